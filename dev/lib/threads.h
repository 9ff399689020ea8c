// How many threads a program uses: what --threads or OMP_NUM_THREADS says, else as many as the affinity mask
// and the quota of its control group allow (more would wait for each other). One place sets it, Options, and
// the results of no program depend on it. Where the compiler has no OpenMP its few functions are stood in
// for here: one thread.
#pragma once
#include "error.h"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_max_threads() { return 1; }
inline int omp_get_num_procs() { return 1; }
inline int omp_get_thread_num() { return 0; }
inline void omp_set_num_threads(int) {}
#endif

// Cores that the control groups of this process allow it: the least of its own group's and those above.
// The group is named by /proc/self/cgroup; in a container its files may stand at the top alone. root: of the
// file system, another one in tests.
double cpu_quota(const std::string& root = "");

struct ThreadChoice {
    int count;
    std::string text; // for people: "2 threads of 2 cores", "1 thread: a quota of 0.5 cores"
};

// asked: by --threads, 0 for not; environment: what OMP_NUM_THREADS says, 0 for nothing.
ThreadChoice choose_threads(int asked, int environment, int cores, double quota);

inline std::string threads_text = "1 thread"; // what use_threads() chose, in words

// Called once, before the first parallel loop.
void use_threads(int asked);
