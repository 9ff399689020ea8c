// experts: what decides which expert a token goes to (experts.h).
#include "experts.h"
#include "units_cpu.h"

int main(int argc, char** argv) {
    return run_main([&] { return experts_program(argc, argv, cpu_reader); });
}
