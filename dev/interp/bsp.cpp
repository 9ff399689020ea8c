// bsp: what the units of a checkpoint know about the board (bsp.h), the model run by the CPU's reference.
#include "bsp.h"
#include "sae/sae_file.h"
#include "units_cpu.h"

int main(int argc, char** argv) {
    return run_main([&] { return bsp_program(argc, argv, cpu_reader, open_saes); });
}
