// One team of threads for the program's loops, made when the first loop needs it.
#include "threads.h"
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#ifdef __linux__
#include <sched.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

// ---------------------------------------------------------------------------------------------------------
// How many

double group_quota(const std::string& folder) {
    double quota = -1, period = 0;
    std::ifstream(folder + "/cpu.max") >> quota >> period; // "max 100000" is not a number
    if (period <= 0) {
        quota = -1;
        std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    }
    return quota > 0 && period > 0 ? quota / period : INFINITY;
}

double cpu_quota(const std::string& root) {
    double quota = INFINITY;
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) { // hierarchy:controllers:group
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = strf(",%s,", line.substr(first + 1, second - first - 1).c_str());
        const bool version_2 = controllers == ",,";
        if (!version_2 && controllers.find(",cpu,") == std::string::npos) continue;
        const std::vector<std::string> mounts =
            version_2 ? std::vector<std::string>{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}
                      : std::vector<std::string>{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
        for (std::string group = line.substr(second + 1);; group.resize(group.rfind('/'))) {
            for (const std::string& mount : mounts)
                quota = std::min(quota, group_quota(root + mount + group));
            if (group.rfind('/') == std::string::npos) break;
        }
    }
    return quota;
}

ThreadChoice choose_threads(int asked, int environment, int cores, double quota) {
    auto threads = [](int n) { return strf(n == 1 ? "%d thread" : "%d threads", n); };
    if (asked > 0) return {asked, threads(asked) + ", as --threads says"};
    if (environment > 0) return {environment, threads(environment) + ", as OMP_NUM_THREADS says"};
    const int allowed = quota < cores ? std::max(1, int(std::lround(quota))) : cores;
    if (quota < cores) return {allowed, threads(allowed) + strf(": a quota of %.3g cores", quota)};
    return {cores, threads(cores) + strf(cores == 1 ? " of %d core" : " of %d cores", cores)};
}

// Cores that the affinity mask allows.
static int allowed_cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return int(std::max(1u, std::thread::hardware_concurrency()));
}

static ThreadChoice choice = {0, ""};

static void choose(const ThreadChoice& c) {
    choice = c;
#ifdef _OPENMP
    omp_set_num_threads(c.count); // loops that are still OpenMP's
#endif
}

void use_threads(int asked) {
    const char* variable = getenv("OMP_NUM_THREADS");
    const int environment = variable ? atoi(variable) : 0; // "4,2" are 4 here and 2 in loops within
    choose(choose_threads(asked, environment, allowed_cores(), cpu_quota()));
}

void set_thread_count(size_t n) { choose(choose_threads(int(n), 0, 1, INFINITY)); }

static const ThreadChoice& chosen() {
    if (choice.count == 0) use_threads(0);
    return choice;
}
std::string threads_text() { return chosen().text; }
size_t thread_count() { return size_t(chosen().count); }

// ---------------------------------------------------------------------------------------------------------
// Waiting: first spinning, since what is waited for on an idle machine comes 10 to 100 us later, and waking a
// thread takes as long; then asleep. OMP_WAIT_POLICY may say to sleep at once (passive) or never (active).

using Clock = std::chrono::steady_clock;

static std::chrono::nanoseconds spin_time() {
    const char* policy = getenv("OMP_WAIT_POLICY");
    const std::string text = policy ? policy : "";
    if (text == "passive" || text == "PASSIVE") return std::chrono::nanoseconds(0);
    if (text == "active" || text == "ACTIVE") return std::chrono::hours(1);
    return std::chrono::microseconds(200);
}

static void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#ifdef _OPENMP
// The same for the loops that are still OpenMP's. libgomp, which spins for a number of pauses that takes it 4
// ms or more, reads that number from the environment in a constructor, before main: where it is linked
// statically (the Makefile does, where it can) this one, of a higher priority, comes first. LLVM's reads its
// own, in milliseconds, at the first parallel region. What the user set stays.
__attribute__((constructor(101))) static void set_openmp_spin() {
    for (const char* variable : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"})
        if (getenv(variable)) return;
    const int pauses = 500;
    double least = 1; // seconds; what interrupts a measurement only makes it longer
    for (int trial = 0; trial < 5; trial++) {
        const Clock::time_point begin = Clock::now();
        for (int i = 0; i < pauses; i++) pause_core();
        least = std::min(least, std::chrono::duration<double>(Clock::now() - begin).count());
    }
    setenv("GOMP_SPINCOUNT", std::to_string(size_t(200e-6 / std::max(least, 1e-9) * pauses)).c_str(), 0);
    setenv("KMP_BLOCKTIME", "1", 0);
}
#endif

// Returns when the number is no longer `old`.
static void wait_until_changed(const std::atomic<uint32_t>& number, uint32_t old, bool may_spin) {
    static const std::chrono::nanoseconds spin = spin_time();
    const Clock::time_point end = Clock::now() + spin;
    while (may_spin && number.load(std::memory_order_acquire) == old) {
        for (int i = 0; i < 16; i++) pause_core();
        if (Clock::now() > end) break;
    }
    number.wait(old, std::memory_order_acquire);
}

// ---------------------------------------------------------------------------------------------------------
// The team. A loop opens the door; who wakes up while it is open enters, looks for parts that nobody has
// begun, and leaves. The caller, when there is no such part, closes it and waits for those inside alone.

namespace {

struct Team {
    static constexpr uint32_t closed = 1u << 31;
    std::mutex mutex;                   // of the caller whose loop it is
    std::atomic<uint32_t> round{0};     // loops so far: what the others wait for
    std::atomic<uint32_t> door{closed}; // threads inside, and whether no more may enter
    size_t members = 1;                 // threads there are, the caller included
    std::atomic<bool> may_spin{true};   // not where there are more of them than cores
    // the loop
    size_t parts = 0;
    void (*work)(void*, size_t) = nullptr;
    void* context = nullptr;
    std::vector<std::atomic<bool>> begun; // (members)
    std::mutex error_mutex;
    std::exception_ptr error;

    bool enter() {
        uint32_t inside = door.load(std::memory_order_relaxed);
        while (!(inside & closed))
            if (door.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
        return false;
    }
    void leave() {
        if (door.fetch_sub(1, std::memory_order_release) == (closed | 1)) door.notify_one();
    }

    void do_parts(size_t thread) {
        for (size_t i = 0; i < parts; i++) {
            const size_t part = (thread + i) % parts;
            if (begun[part].exchange(true, std::memory_order_relaxed)) continue;
            try {
                work(context, part);
            } catch (...) {
                const std::lock_guard lock(error_mutex);
                error = std::current_exception();
            }
        }
    }

    void member(size_t thread);

    // The threads are never ended: they sleep when the program exits. Where the system gives no more of them
    // (a limit on processes) those that are there do all parts.
    void grow(size_t count) {
        if (count <= begun.size()) return;
        begun = std::vector<std::atomic<bool>>(count);
        try {
            for (; members < count; members++)
                std::thread([this, thread = members] { member(thread); }).detach();
        } catch (const std::system_error&) {
        }
        may_spin = members <= size_t(allowed_cores());
    }

    void run(size_t n) {
        for (size_t i = 0; i < n; i++) begun[i].store(false, std::memory_order_relaxed);
        door.store(0, std::memory_order_release);
        round.fetch_add(1);
        round.notify_all();
        do_parts(0);
        uint32_t inside = door.fetch_or(closed, std::memory_order_acq_rel) | closed;
        while (inside != closed) {
            wait_until_changed(door, inside, may_spin);
            inside = door.load(std::memory_order_acquire);
        }
    }
};

thread_local bool in_loop = false;

void Team::member(size_t thread) {
    in_loop = true; // whatever it runs is within a loop
    for (uint32_t seen = 0;;) {
        wait_until_changed(round, seen, may_spin);
        if (enter()) {
            seen = round.load(std::memory_order_relaxed);
            do_parts(thread);
            leave();
        } else
            seen = round.load(std::memory_order_relaxed);
    }
}

} // namespace

void run_parts(size_t parts, void (*work)(void*, size_t), void* context) {
    static Team& team = *new Team; // outlives every static object: its threads may still look at it
    std::unique_lock lock(team.mutex, std::defer_lock);
    if (parts <= 1 || in_loop || !lock.try_lock()) {
        for (size_t part = 0; part < parts; part++) work(context, part);
        return;
    }
    team.grow(parts);
    team.parts = parts;
    team.work = work;
    team.context = context;
    in_loop = true;
    team.run(parts);
    in_loop = false;
    if (team.error) std::rethrow_exception(std::exchange(team.error, nullptr));
}
