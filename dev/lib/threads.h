// Threads: how many a program uses, and the loops that they share. The results of no program depend on their
// number: a loop's parts write to different places, and what is summed over parts is summed in their order.
//
// A loop does not wait for a thread whose core has other work: its part is done by who is there. Without more
// to do a thread spins for a moment, then sleeps and leaves its core to others. (OpenMP's loops wait for all
// of their threads and spin meanwhile: beside one busy process on two cores a training step took 2.2 to 3.6
// times as long, beside four 20 times and more; now twice and four times, dev/bench/busy.sh.)
#pragma once
#include "error.h"
#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

// ---------------------------------------------------------------------------------------------------------
// How many: what --threads or OMP_NUM_THREADS says, else as many as the affinity mask and the quota of the
// control group allow (more would wait for each other). One place sets it, Options.

// Cores that one control group may use, infinity for all: cpu.max of version 2, the two files of version 1.
double group_quota(const std::string& folder);

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

void use_threads(int asked);     // chooses; may be called again between loops
std::string threads_text();      // what was chosen, in words
size_t thread_count();           // at least 1
void set_thread_count(size_t n); // whatever was chosen (tests, benchmarks)

// ---------------------------------------------------------------------------------------------------------
// Loops. The caller is one of the threads and returns when all is done. An exception leaves the loop by its
// caller. A loop within a loop, or while another thread of the program has one, is run by its caller alone.

// work(context, part) for part = 0 .. parts - 1, each once; thread t begins with part t, then does those that
// nobody has begun. At most thread_count() parts.
void run_parts(size_t parts, void (*work)(void* context, size_t part), void* context);

// work(part)
template <class Work> void parallel_parts(size_t parts, Work work) {
    run_parts(
        parts, [](void* context, size_t part) { (*static_cast<Work*>(context))(part); }, &work);
}

// work(begin, end) on ranges that cover 0 .. count, dealt out in order: a thread meets the same range in
// every loop over the same count, and finds it in its cache. No range is made that is shorter than `least`.
template <class Work> void parallel_ranges(size_t count, size_t least, Work work) {
    const size_t parts = std::max<size_t>(1, std::min(thread_count(), count / std::max<size_t>(1, least)));
    parallel_parts(parts, [&](size_t part) { work(part * count / parts, (part + 1) * count / parts); });
}

// work(i) for every i < count, in such ranges
template <class Work> void parallel_for(size_t count, Work work) {
    parallel_ranges(count, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) work(i);
    });
}

// Items that are taken one by one by whoever is free: for those of unequal length. In parallel_parts(),
// for what a thread needs of its own:  for (size_t i; items.take(&i);) ..
struct Items {
    size_t count;
    std::atomic<size_t> next{0};
    explicit Items(size_t count) : count(count) {}
    bool take(size_t* i) {
        *i = next.fetch_add(1, std::memory_order_relaxed);
        return *i < count;
    }
};

// work(i) for every i < count, as such items
template <class Work> void parallel_items(size_t count, Work work) {
    Items items(count);
    parallel_parts(std::max<size_t>(1, std::min(thread_count(), count)), [&](size_t) {
        for (size_t i; items.take(&i);) work(i);
    });
}
