// bsp with the model on the GPU: the same program (bsp.h), its units from the CUDA program's forward pass.
#define MOEX_LIBRARY
#include "../../train_moex.cu"

#include "bsp.h"
#include "units_cuda.h"

int main(int argc, char** argv) {
    return run_main([&] { return bsp_program(argc, argv, cuda_reader); });
}
