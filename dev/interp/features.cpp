// features: what single units of a checkpoint detect, and where they fire (features.h).
#include "features.h"
#include "units_cpu.h"

int main(int argc, char** argv) {
    return run_main([&] { return features_program(argc, argv, cpu_reader); });
}
