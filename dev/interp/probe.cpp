// probe: how well a few units of an expert tell a concept, beside what explains it away (probe.h).
#include "probe.h"
#include "units_cpu.h"

int main(int argc, char** argv) {
    return run_main([&] { return probe_program(argc, argv, cpu_reader); });
}
