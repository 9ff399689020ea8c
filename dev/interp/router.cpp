// router: what the router of a checkpoint believes of its experts, and what is true (router.h).
#include "router.h"
#include "units_cpu.h"

int main(int argc, char** argv) {
    return run_main([&] { return router_program(argc, argv, cpu_reader); });
}
