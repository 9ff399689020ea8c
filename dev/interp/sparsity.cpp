// sparsity: how sparsely the units of a checkpoint fire and how its experts share the work (sparsity.h).
#include "sparsity.h"
#include "units_cpu.h"

int main(int argc, char** argv) {
    return run_main([&] { return sparsity_program(argc, argv, cpu_reader); });
}
