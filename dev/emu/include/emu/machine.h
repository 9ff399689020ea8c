// How a kernel runs. Blocks are dealt to one worker (a system thread) per core; a worker runs one block at a
// time, the threads of the block as fibers of which one runs until it has to wait. Threads are started one
// after the other on the same stack as long as none waits, so a kernel without barriers is a plain loop; a
// thread that waits keeps its stack and the next one starts on another. What cannot go on stops the program
// with `emu: kernel NAME, block (x,y,z), thread (x,y,z): what` and exit status 1.
#pragma once
#include "fiber.h"
#include "types.h"
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdarg>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <unistd.h>
#include <vector>

// What device code reads. Every switch sets threadIdx, so a debugger shows the thread it stands in.
inline thread_local constinit uint3 threadIdx{}, blockIdx{};
inline thread_local constinit dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

// Of the device: 90, or 80 for one that has no wgmma.
inline int compute_capability() {
    const char* const text = getenv("EMU_SM");
    return text && atoi(text) == 80 ? 80 : 90;
}

constexpr size_t shared_default = 48 << 10; // of one block: static and dynamic together
// with cudaFuncAttributeMaxDynamicSharedMemorySize
inline size_t shared_opt_in() { return (compute_capability() == 90 ? 227 : 163) << 10; }
constexpr size_t shared_window = 1 << 10;        // the shared address of the first byte: no valid one is 0
constexpr size_t shared_arena_bytes = 512 << 10; // room for the red zones of sanitized builds
constexpr unsigned max_threads = 1024, named_barriers = 16;

struct AsyncCopy { // one cp.async on its way to shared memory
    unsigned group;
    char* to;
    const void* from;
    unsigned bytes, source_bytes;
};

struct AsyncCopies { // of one thread
    std::vector<AsyncCopy> pending;
    unsigned group;      // groups committed so far
    uint64_t fences = 0; // between the proxies, and blocks begun
};

// What of wgmma is in flight: one warp's 16 rows of each product (see wgmma.h)
struct SumsInFlight {
    int columns;
    unsigned products;      // in flight that are added to them
    float* places[32][128]; // the registers of each lane, which are theirs again after the last of these
    float d[16][256];
};
struct ProductInFlight {
    unsigned group;
    int line, columns;
    uint64_t a, b; // descriptors
    bool a_transposed, b_transposed;
    SumsInFlight* sums;
    std::vector<char> operands; // what was read when it started
};
struct WarpProducts {
    std::vector<ProductInFlight> products;
    std::vector<std::unique_ptr<SumsInFlight>> sums;
    unsigned group = 0; // groups committed so far
    size_t started = 0; // products of this block
    bool fenced = false;
};
struct StartedProduct { // by the first warp of a warpgroup that comes to it: the others must follow
    int line;
    uint64_t a, b;
    bool operator==(const StartedProduct&) const = default;
};

struct alignas(64) Thread { // one line of the cache
    uint3 index;
    unsigned number; // in the block, x fastest
    Fiber* fiber;
    const char* waits_at; // the name of the barrier or warp operation it waits in, or null
    void* operands;       // what it brought there
    int line;             // of the source, where that is known, or 0
    int barrier;          // the barrier it waits at, or -1 in a warp operation
    unsigned mask;        // the lanes of that warp operation
    bool exited, waited;  // waited: has executed griddepcontrol.wait
    unsigned lane() const { return number % 32; }
};

struct Barrier {
    unsigned expected;
    unsigned sum, result; // of the predicates: those of the threads that wait; those of the last full round
    int line;
    std::vector<Thread*> waiting;
};

struct Launch {
    const char* name;
    dim3 grid, block;
    size_t dynamic_shared, shared_limit;
    void (*body)(const void* arguments);
    const void* arguments;
    bool programmatic; // every thread waits for the kernel before (griddepcontrol.wait)
    bool random;
    uint64_t seed;
};

struct Random { // splitmix64
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    size_t below(size_t n) { return size_t((unsigned __int128)next() * n >> 64); }
};

struct SharedObject {
    uint64_t block; // the block (counted by its worker) in which `offset` was given out
    size_t offset;
};

struct alignas(64) MmaTile { // one warp's matrix product in progress: d = a b + c (see ptx.h)
    float a[16][16], b[16][8], c[16][8], d[16][8];
};
typedef float Float8 __attribute__((vector_size(32)));

struct Worker {
    Fiber home; // the system thread's own stack
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> idle; // fibers that hold no thread
    // the block being run
    const Launch* launch = nullptr;
    unsigned n_threads = 0, started = 0, exited = 0;
    std::vector<Thread> threads = std::vector<Thread>(max_threads);
    std::vector<uint16_t> order = std::vector<uint16_t>(max_threads); // in which the threads are started
    unsigned warp_waiting[max_threads / 32];                          // lanes that wait in a warp operation
    std::vector<MmaTile> mma_tiles = std::vector<MmaTile>(max_threads / 32);
    Barrier barriers[named_barriers];
    std::vector<Thread*> ready = std::vector<Thread*>(max_threads); // woken, a ring of n_ready from first
    unsigned first_ready = 0, n_ready = 0;
    Random random{};
    unsigned hasty = 0, n_hasty = 0; // EMU_ORDER=random: the warp that runs ahead, its woken lanes
    char* shared = nullptr;
    size_t shared_used = 0, shared_end = 0; // as the hardware counts; as the arena, with red zones, is filled
    uint64_t block_number = 0;
    std::vector<AsyncCopies> copies = std::vector<AsyncCopies>(max_threads); // of every thread
    bool any_copies = false; // has cp.async been used since the worker was made?
    // Of every 16 bytes of shared memory the thread that last copied there, and how many fences it had
    // passed.
    std::vector<std::pair<unsigned, uint64_t>> copied;
    std::vector<WarpProducts> products = std::vector<WarpProducts>(max_threads / 32);
    std::vector<StartedProduct> started_products[max_threads / 128];
    bool any_products = false; // has wgmma been used since the worker was made?
    std::vector<SharedObject> shared_objects;
};

inline thread_local constinit Worker* worker = nullptr; // of this system thread, in a kernel
inline thread_local constinit Thread* self = nullptr;   // the emulated thread that runs

// `kernel NAME, block (x,y,z), thread (x,y,z): `, or nothing in host code.
inline std::string where_in_kernel() {
    if (!self) return "";
    const uint3 b = blockIdx, t = self->index;
    char text[400];
    snprintf(text, sizeof text, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", worker->launch->name, b.x,
             b.y, b.z, t.x, t.y, t.z);
    return text;
}

// Stops the program: a kernel did what no GPU can be trusted to do.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void die(const char* format, ...) {
    static std::atomic_flag stopping;
    while (stopping.test_and_set()) pause(); // one message, whoever is first
    char what[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, "emu: %s%s\n", where_in_kernel().c_str(), what);
    _exit(1);
}

// ---- scheduling: who runs next --------------------------------------------------------------------------

inline std::string at_line(int line) { return line ? " (line " + std::to_string(line) + ")" : ""; }

// Nobody can go on. Names the first thread that waits, and somebody whom it waits for.
[[noreturn]] inline void stop_stuck(Worker& w) {
    Thread* stuck = nullptr;
    for (unsigned i = 0; i < w.n_threads && !stuck; i++)
        if (!w.threads[i].exited) stuck = &w.threads[i];
    const unsigned base = stuck->barrier < 0 ? stuck->number & ~31u : 0;
    const unsigned end = stuck->barrier < 0 ? base + 32 : w.n_threads;
    std::string missing = "nobody else can arrive";
    for (unsigned i = base; i < end; i++) {
        if (stuck->barrier < 0 && !(stuck->mask >> (i - base) & 1)) continue;
        const std::string who = (stuck->barrier < 0 ? "lane " : "thread ") + std::to_string(i - base);
        if (i >= w.n_threads) {
            missing = who + " does not exist in a block of " + std::to_string(w.n_threads) + " threads";
            break;
        }
        const Thread& other = w.threads[i];
        if (other.exited)
            missing = who + " has exited";
        else if (other.barrier != stuck->barrier || other.mask != stuck->mask)
            missing = who + " waits at " + other.waits_at + at_line(other.line);
        else
            continue;
        break;
    }
    std::string what = std::string("waits at ") + stuck->waits_at + at_line(stuck->line);
    if (stuck->barrier >= 0) {
        const Barrier& barrier = w.barriers[stuck->barrier];
        what += ", which " + std::to_string(barrier.waiting.size()) + " of " +
                std::to_string(barrier.expected) + " threads reached";
    }
    self = stuck;
    die("%s: %s", what.c_str(), missing.c_str());
}

inline void wake(Worker& w, Thread* thread) {
    w.ready[(w.first_ready + w.n_ready++) % max_threads] = thread;
    w.n_hasty += thread->number / 32 == w.hasty;
}

// Where threads that are drawn one by one keep step with each other, a barrier that only holds back who is
// far ahead is not missed. So in random order one warp of a block goes before all others whenever it can.
inline Thread* take_ready(Worker& w) {
    if (w.launch->random) {
        size_t drawn = w.random.below(w.n_hasty ? w.n_hasty : w.n_ready), at = w.first_ready;
        for (;; at++) {
            const bool counts = !w.n_hasty || w.ready[at % max_threads]->number / 32 == w.hasty;
            if (counts && drawn-- == 0) break;
        }
        std::swap(w.ready[at % max_threads], w.ready[w.first_ready]);
    }
    Thread* thread = w.ready[w.first_ready];
    w.first_ready = (w.first_ready + 1) % max_threads;
    w.n_ready--;
    w.n_hasty -= thread->number / 32 == w.hasty;
    return thread;
}

// Who goes next, a woken thread or a new one? Woken threads go before new ones: the lanes of few warps are
// then in flight, and their stacks in the cache.
inline bool prefer_ready(Worker& w) {
    if (!w.launch->random || w.started == w.n_threads) return w.n_ready > 0;
    if (w.n_hasty) return true;
    return w.random.below(w.n_ready + w.n_threads - w.started) < w.n_ready;
}

inline void run_threads();

inline Fiber* idle_fiber(Worker& w) {
    if (w.idle.empty()) {
        w.fibers.push_back(std::make_unique<Fiber>());
        create_fiber(*w.fibers.back(), run_threads, unsigned(w.fibers.size()));
        return w.fibers.back().get();
    }
    Fiber* fiber = w.idle.back();
    w.idle.pop_back();
    return fiber;
}

// The running thread is about to wait until somebody wakes it: who goes on instead? Leave for that fiber.
inline Fiber* wait_at(const char* name, int line) {
    Worker& w = *worker;
    self->waits_at = name;
    self->line = line;
    if (prefer_ready(w)) return take_ready(w)->fiber;
    if (w.started < w.n_threads) return idle_fiber(w);
    stop_stuck(w);
}

EMU_INLINE void leave_for(Fiber* next) {
    Thread* const me = self;
    if (next != me->fiber) switch_fiber(*me->fiber, *next);
    me->waits_at = nullptr;
    self = me;
    threadIdx = me->index;
}

inline void run_one(Worker& w, unsigned number, Fiber* fiber) {
    Thread& t = w.threads[number];
    const unsigned x = blockDim.x, y = blockDim.y;
    t.index = x == w.n_threads ? uint3{number, 0, 0} : uint3{number % x, number / x % y, number / x / y};
    t.number = number;
    t.fiber = fiber;
    t.waits_at = nullptr;
    t.barrier = -1;
    t.exited = t.waited = false;
    if (w.any_copies) w.copies[number].pending.clear(), w.copies[number].group = 0, w.copies[number].fences++;
    self = &t;
    threadIdx = t.index;
    w.launch->body(w.launch->arguments);
    if (w.launch->programmatic && !t.waited) die("ends without a griddepcontrol.wait");
    t.exited = true;
    w.exited++;
}

// What every fiber does, for ever: runs new threads until a woken one should go on or the block is done.
inline void run_threads() {
    Worker& w = *worker;
    fiber_started(w.home);
    Fiber* const fiber = w.fibers.back().get(); // only the newest one has never run
    for (;;) {
        if (prefer_ready(w)) {
            w.idle.push_back(fiber);
            switch_fiber(*fiber, *take_ready(w)->fiber);
        } else if (w.started < w.n_threads) {
            run_one(w, w.order[w.started++], fiber);
        } else if (w.exited == w.n_threads) {
            w.idle.push_back(fiber);
            switch_fiber(*fiber, w.home);
        } else {
            stop_stuck(w);
        }
    }
}

// ---- barriers and warp operations -----------------------------------------------------------------------

// Every arrival below returns the fiber to leave for, or null when the thread need not wait.

inline Fiber* barrier_arrive(unsigned id, unsigned expected, bool predicate, const char* name, int line) {
    Worker& w = *worker;
    if (id >= named_barriers) die("%s names barrier %u, there are %u", name, id, named_barriers);
    if (expected == 0 || (expected % 32 != 0 && expected != w.n_threads))
        die("%s for %u threads: not a multiple of 32", name, expected);
    if (expected > w.n_threads) die("%s for %u threads in a block of %u", name, expected, w.n_threads);
    Barrier& b = w.barriers[id];
    if (b.waiting.empty()) {
        b.expected = expected;
        b.line = line;
        b.sum = 0;
    }
    if (b.expected != expected)
        die("%s for %u threads, where thread %u waits for %u", name, expected, b.waiting[0]->number,
            b.expected);
    if (b.line != line)
        die("waits at %s (line %d): thread %u waits at %s (line %d)", name, line, b.waiting[0]->number,
            b.waiting[0]->waits_at, b.line);
    b.sum += predicate;
    self->barrier = int(id);
    self->mask = 0;
    if (b.waiting.size() + 1 < expected) {
        b.waiting.push_back(self);
        return wait_at(name, line);
    }
    b.result = b.sum;
    for (Thread* t : b.waiting) wake(w, t);
    b.waiting.clear();
    if (!w.launch->random) return nullptr;
    wake(w, self);
    return wait_at(name, line);
}

// Waits at barrier `id` until `expected` threads have come, all from the same line where it is known (not 0).
// Returns how many of them brought a true predicate.
EMU_INLINE unsigned barrier_wait(unsigned id, unsigned expected, bool predicate, const char* name, int line) {
    if (Fiber* next = barrier_arrive(id, expected, predicate, name, line)) leave_for(next);
    self->barrier = -1;
    return worker->barriers[id].result; // stands until all of them have come again
}

// Null: this lane is the last of `mask`, all others wait with the same mask in the same operation.
inline Fiber* warp_arrive(unsigned mask, void* operands, const char* name, int line) {
    Thread* const me = self;
    const unsigned lane = me->lane(), others = mask & ~(1u << lane);
    Thread* const lanes = me - lane;
    unsigned& waiting = worker->warp_waiting[me->number / 32];
    if (others == mask) die("%s with mask 0x%08x, which does not name its own lane %u", name, mask, lane);
    me->mask = mask;
    me->operands = operands;
    bool complete = (waiting & mask) == others;
    if (complete) {
        for (unsigned l = 0, rest = others; rest; l++, rest >>= 1) {
            if (!(rest & 1)) continue;
            complete = complete && lanes[l].mask == mask;
            if (lanes[l].mask == mask && (lanes[l].waits_at != name || lanes[l].line != line))
                die("%s%s, where lane %u with the same mask waits at %s%s", name, at_line(line).c_str(), l,
                    lanes[l].waits_at, at_line(lanes[l].line).c_str());
        }
    }
    if (complete) {
        waiting &= ~mask;
        return nullptr;
    }
    waiting |= 1u << lane;
    return wait_at(name, line);
}

// The lane that completed a warp operation wakes the others.
inline Fiber* warp_release(unsigned mask, const char* name, int line) {
    Thread* const me = self;
    Thread* const lanes = me - me->lane();
    for (unsigned l = 0, rest = mask & ~(1u << me->lane()); rest; l++, rest >>= 1)
        if (rest & 1) wake(*worker, &lanes[l]);
    if (!worker->launch->random) return nullptr;
    wake(*worker, me);
    return wait_at(name, line);
}

// The lanes of `mask` meet, each with its operands; the last to arrive does the work of all of them by
// act(lanes, mask), lanes[l].operands being what lane l brought, and then all go on.
template <class Act>
EMU_INLINE void warp_meet(unsigned mask, void* operands, const char* name, int line, Act act) {
    Fiber* next = warp_arrive(mask, operands, name, line);
    if (!next) {
        act(self - self->lane(), mask);
        next = warp_release(mask, name, line);
    }
    if (next) leave_for(next);
}

// ---- shared memory --------------------------------------------------------------------------------------

inline std::atomic<int> shared_sites{0};

// One more object of the running block: `bytes` at `align`, filled with 0xFF. Sanitized builds leave a gap
// that must not be touched between two objects.
inline size_t place_shared(size_t bytes, size_t align) {
    Worker& w = *worker;
    w.shared_used = (w.shared_used + align - 1) / align * align + bytes;
    if (w.shared_used - w.launch->dynamic_shared > shared_default)
        die("%zu bytes of static shared memory; 49152 is the most there is",
            w.shared_used - w.launch->dynamic_shared);
    if (w.shared_used > w.launch->shared_limit)
        die("%zu bytes of shared memory, %zu of them dynamic; this kernel's limit is %zu", w.shared_used,
            w.launch->dynamic_shared, w.launch->shared_limit);
#ifdef EMU_ASAN
    w.shared_end += 32;
#endif
    const size_t offset = (w.shared_end + align - 1) / align * align;
    w.shared_end = offset + bytes;
#ifdef EMU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(w.shared + offset, bytes);
#endif
    memset(w.shared + offset, 0xFF, bytes);
    return offset;
}

// `__shared__ T name[n]`: the block's one object for this declaration, Site being a type of its own.
template <class T, class Site> T& shared(Site, size_t align = alignof(T)) {
    static const int site = shared_sites++;
    Worker& w = *worker;
    if (size_t(site) >= w.shared_objects.size()) w.shared_objects.resize(site + 1);
    SharedObject& object = w.shared_objects[site];
    if (object.block != w.block_number)
        object = {w.block_number, place_shared(sizeof(T), align > alignof(T) ? align : alignof(T))};
    return *reinterpret_cast<T*>(w.shared + object.offset);
}

// `extern __shared__ T name[]`
template <class T> T* dynamic_shared() { return reinterpret_cast<T*>(worker->shared); }

inline size_t shared_address(const void* generic) {
    const size_t offset = size_t(static_cast<const char*>(generic) - worker->shared);
    if (offset > worker->shared_end) die("%p is no address of shared memory", generic);
    return shared_window + offset;
}

// The memory behind a shared address that PTX was given.
inline char* shared_memory(uint64_t address, size_t bytes, const char* name) {
    if (address < shared_window || address - shared_window + bytes > worker->shared_end)
        die("%s at shared address 0x%llx, beyond the block's %zu bytes", name, (unsigned long long)(address),
            worker->shared_end);
    if (address % bytes != 0)
        die("%s at shared address 0x%llx, not a multiple of %zu", name, (unsigned long long)(address), bytes);
    return worker->shared + (address - shared_window);
}

// No product may outlive its block, and all warps of a warpgroup must have started each.
inline void end_products(Worker& w) {
    for (unsigned i = 0; i < max_threads / 32; i++) {
        WarpProducts& p = w.products[i];
        if (!p.products.empty())
            die("wgmma (line %d): the block has ended and warp %u has not waited for it", p.products[0].line,
                i);
        if (p.started != w.started_products[i / 4].size())
            die("wgmma (line %d): not by warp %u of the warpgroup", w.started_products[i / 4][p.started].line,
                i % 4);
    }
    for (unsigned i = 0; i < max_threads / 32; i++) w.products[i].started = w.products[i].fenced = 0;
    for (std::vector<StartedProduct>& started : w.started_products) started.clear();
}

// ---- workers --------------------------------------------------------------------------------------------

inline unsigned core_count() {
    for (const char* name : {"EMU_THREADS", "OMP_NUM_THREADS"})
        if (const char* text = getenv(name); text && atoi(text) > 0)
            return unsigned(std::min(atoi(text), 16));
    cpu_set_t set; // more than 16 workers would need more stacks than Linux maps for one process
    return sched_getaffinity(0, sizeof set, &set) == 0 ? std::min(16u, unsigned(CPU_COUNT(&set))) : 1;
}

// One system thread per core, the caller among them. Made at first use, and again in a forked child, which
// inherits none of its parent's threads.
struct Pool {
    std::vector<std::thread> threads;
    std::mutex turn, mutex;
    std::condition_variable start, done;
    const std::function<void()>* job = nullptr;
    uint64_t round = 0;
    unsigned running = 0;

    void work() {
        uint64_t seen = 0;
        for (;;) {
            std::unique_lock lock(mutex);
            start.wait(lock, [&] { return round != seen; });
            seen = round;
            const std::function<void()>& mine = *job;
            lock.unlock();
            mine();
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }
    // Every thread does f once; returns when all have. Host threads that ask together take turns.
    void run(const std::function<void()>& f) {
        std::lock_guard my_turn(turn);
        {
            std::lock_guard lock(mutex);
            job = &f;
            round++;
            running = unsigned(threads.size());
        }
        start.notify_all();
        f();
        std::unique_lock lock(mutex);
        done.wait(lock, [&] { return running == 0; });
    }
};

inline Pool* the_pool = nullptr;

inline Pool& pool() {
    static const int once = pthread_atfork(nullptr, nullptr, [] {
        the_pool = nullptr; // the old one, its threads gone, is left as it is
    });
    (void)once;
    if (!the_pool) {
        the_pool = new Pool;
        for (unsigned i = 1; i < core_count(); i++)
            the_pool->threads.emplace_back([p = the_pool] { p->work(); });
        for (std::thread& t : the_pool->threads) t.detach();
    }
    return *the_pool;
}

// f(i) for every i below n, on all cores.
inline void parallel_for(size_t n, const std::function<void(size_t)>& f) {
    std::atomic<size_t> next{0};
    const std::function<void()> work = [&] {
        for (size_t i; (i = next++) < n;) f(i);
    };
    n > 1 ? pool().run(work) : work();
}

#ifndef EMU_ASAN
// A kernel touched memory that is not there: say which thread did. (AddressSanitizer says it better.)
inline void on_fault(int signal, siginfo_t* info, void*) {
    if (!worker || !self) { // host code: as it would be without us
        ::signal(signal, SIG_DFL);
        return;
    }
    const char* address = static_cast<const char*>(info->si_addr);
    const char* bottom = static_cast<const char*>(self->fiber->bottom);
    if (address < bottom && address >= bottom - guard_bytes)
        die("stack overflow: more than %zu bytes of local variables", stack_bytes);
    die("invalid access to address %p", info->si_addr);
}
#endif

// This system thread's worker, made at its first block.
inline Worker& this_worker() {
    static thread_local Worker* mine = nullptr; // lives as long as the process
    if (!mine) {
        mine = new Worker;
        void* arena;
        if (posix_memalign(&arena, 1024, shared_arena_bytes) != 0) die("out of memory");
        mine->shared = static_cast<char*>(arena);
#ifdef EMU_ASAN
        __sanitizer_set_death_callback([] {
            if (self) fprintf(stderr, "emu: %sreported above\n", where_in_kernel().c_str());
        });
#else
        stack_t stack{};
        stack.ss_size = 64 << 10;
        stack.ss_sp = malloc(stack.ss_size);
        sigaltstack(&stack, nullptr); // the fiber's own may be what overflowed
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, nullptr);
        sigaction(SIGBUS, &action, nullptr);
#endif
    }
    return *mine;
}

inline void run_block(Worker& w, const Launch& launch, size_t number) {
    w.launch = &launch;
    w.n_threads = launch.block.x * launch.block.y * launch.block.z;
    w.started = w.exited = w.first_ready = w.n_ready = w.n_hasty = 0;
    w.block_number++;
    memset(w.warp_waiting, 0, sizeof w.warp_waiting);
    blockDim = launch.block;
    gridDim = launch.grid;
    blockIdx = {unsigned(number % gridDim.x), unsigned(number / gridDim.x % gridDim.y),
                unsigned(number / gridDim.x / gridDim.y)};
    if (launch.random) {
        w.random.state = launch.seed + number * 0x2545f4914f6cdd1d;
        for (unsigned i = 0; i < w.n_threads; i++) w.order[i] = uint16_t(i);
        for (unsigned i = w.n_threads; i > 1; i--) std::swap(w.order[i - 1], w.order[w.random.below(i)]);
        w.hasty = unsigned(w.random.below((w.n_threads + 31) / 32));
    }
#ifdef EMU_ASAN
    ASAN_POISON_MEMORY_REGION(w.shared, shared_arena_bytes);
    ASAN_UNPOISON_MEMORY_REGION(w.shared, launch.dynamic_shared);
#endif
    memset(w.shared, 0xFF, launch.dynamic_shared);
    w.shared_used = w.shared_end = launch.dynamic_shared;
    switch_fiber(w.home, *idle_fiber(w));
    if (w.any_products) end_products(w);
}

// All blocks of a launch, in order or, for EMU_ORDER=random, in steps that visit each once.
inline void run_grid(const Launch& launch) {
    const size_t n = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    size_t first = 0, step = 1;
    if (launch.random && n > 2) {
        Random random{launch.seed};
        first = random.below(n);
        step = random.below(n - 1) + 1;
        const auto divisor = [](size_t a, size_t b) {
            while (b) std::swap(a %= b, b);
            return a;
        };
        while (divisor(step, n) != 1) step++;
    }
    std::atomic<size_t> next{0};
    const std::function<void()> work = [&] {
        Worker& w = this_worker();
        worker = &w;
        if (!launch.random)
            for (unsigned i = 0; i < max_threads; i++) w.order[i] = uint16_t(i);
        for (size_t i; (i = next++) < n;)
            run_block(w, launch, size_t(((unsigned __int128)(i)*step + first) % n));
        worker = nullptr;
        self = nullptr;
    };
    n > 1 ? pool().run(work) : work();
}

} // namespace emu
