// What is put on streams, and when it runs. Usually everything has happened when the call returns. With
// EMU_STREAMS=random[:seed] kernels, copies, fills, products and host functions wait in their stream's queue
// until something waits for them, and then run one at a time, in an order drawn by lot among those that
// streams, events and the legacy default stream allow: a missing wait gives other numbers. What a pending
// copy will write is full of 0xFF until it has run. A call waits for no more than CUDA's documentation
// promises ("API synchronization behavior"), and a seed gives one order.
//
// A stream that is being captured runs nothing: its calls become a graph's nodes, which are made again, in
// their order, on the stream that the graph is launched on.
#pragma once
#include "machine.h"
#include <algorithm>
#include <ctime>
#include <deque>

namespace emu {

struct Record { // one call of cudaEventRecord
    bool done = false;
    timespec time{};
};

struct Range { // of the host's memory
    const void* data;
    size_t bytes;
    bool meets(const Range& o) const {
        const char *a = static_cast<const char*>(data), *b = static_cast<const char*>(o.data);
        return a < b ? size_t(b - a) < bytes : size_t(a - b) < o.bytes;
    }
};
constexpr Range nothing{nullptr, 0}, anything{nullptr, ~size_t(0)};

struct Operation {
    uint64_t number; // calls are counted
    std::function<void()> run;
    std::shared_ptr<const Record> after; // what has to have happened before, or null
    Range reads;                         // of the host's memory
};

} // namespace emu

struct CUstream_st;
typedef struct CUgraph_st {
    std::vector<std::function<void(CUstream_st*)>> nodes; // each makes its call again
    bool broken = false;                                  // a call that cannot be captured was made
} * cudaGraph_t;
typedef struct CUstream_st {
    unsigned flags = 0;
    cudaGraph_t capture = nullptr; // what the calls are added to, instead of being made
    bool destroyed = false;        // the memory is kept, so that use after destruction can be named
    std::deque<emu::Operation> queue = {};
    uint64_t priority = 0; // the highest that can run runs next
} * cudaStream_t;
typedef struct CUevent_st {
    unsigned flags = 0;
    bool destroyed = false;
    std::shared_ptr<emu::Record> last = nullptr;
} * cudaEvent_t;
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };

namespace emu {

struct Streams {
    std::recursive_mutex mutex;                               // held while an operation runs
    std::deque<CUstream_st> all = std::deque<CUstream_st>(1); // the first is the legacy default stream
    std::deque<CUevent_st> events;
    std::string setting;
    bool late = false; // EMU_STREAMS is set
    uint64_t calls = 0;
    Random random{};
    size_t patience = 4; // how many operations of one stream run in a row, on average

    CUstream_st& live(cudaStream_t s, const char* call) {
        if (s && s->destroyed) die("%s: this stream has been destroyed", call);
        return s ? *s : all.front();
    }

    // A change of EMU_STREAMS begins anew, with nothing pending.
    void listen() {
        const char* const now = getenv("EMU_STREAMS");
        if (setting == (now ? now : "")) return;
        const std::string wanted = now ? now : "";
        if (!wanted.empty() && wanted != "random" && wanted.rfind("random:", 0) != 0)
            die("EMU_STREAMS is '%s', expected 'random' or 'random:seed'", now);
        while (step()) {
        }
        setting = wanted;
        late = !wanted.empty();
        random = {wanted.size() > 7 ? strtoull(&wanted[7], nullptr, 10) : 1};
        for (CUstream_st& s : all)
            if (!s.destroyed) s.priority = random.next();
    }

    bool is_pending(const CUstream_st& s, uint64_t number) const {
        return !s.queue.empty() && s.queue.front().number <= number;
    }
    // May the first operation of this queue run? The legacy stream waits for what was put on blocking streams
    // before, and they for what was put on it before.
    bool can_run(const CUstream_st& s) const {
        if (s.queue.empty()) return false;
        const Operation& first = s.queue.front();
        if (first.after && !first.after->done) return false;
        if (s.flags & cudaStreamNonBlocking) return true;
        if (&s != &all.front()) return !is_pending(all.front(), first.number);
        return std::none_of(all.begin() + 1, all.end(), [&](const CUstream_st& other) {
            return !(other.flags & cudaStreamNonBlocking) && is_pending(other, first.number);
        });
    }
    // Runs one operation; false: there is none that can run.
    bool step() {
        CUstream_st* next = nullptr;
        for (CUstream_st& s : all)
            if (can_run(s) && (!next || s.priority > next->priority)) next = &s;
        if (!next) return false;
        if (random.below(patience) == 0) next->priority = random.next(); // others get their turn
        const Operation operation = std::move(next->queue.front());
        next->queue.pop_front();
        operation.run();
        return true;
    }
    template <class Done> void run_until(Done done) {
        patience = size_t(1) << random.below(5);
        while (!done())
            if (!step()) die("streams: nothing can run, and what is waited for has not happened");
    }

    // Puts an operation on a stream; returns its number.
    uint64_t put(cudaStream_t stream, const char* call, std::function<void()> run, Range reads = nothing,
                 std::shared_ptr<const Record> after = nullptr) {
        {
            const std::lock_guard lock(mutex);
            listen();
            CUstream_st& s = live(stream, call);
            if (s.capture) die("%s: not emulated on a stream that is being captured", call);
            if (late) {
                s.queue.push_back({++calls, std::move(run), std::move(after), reads});
                return calls;
            }
        }
        run();
        return 0;
    }
    // While the stream is captured the call becomes a node; false: it is to be made now.
    bool captured(cudaStream_t stream, const char* call, std::function<void(cudaStream_t)> again) {
        const std::lock_guard lock(mutex);
        const cudaGraph_t graph = live(stream, call).capture;
        if (graph) graph->nodes.push_back(std::move(again));
        return graph;
    }
    // A call that waits, allocates or uses the legacy stream makes every capture under way invalid; false:
    // there is none.
    bool breaks_capture() {
        const std::lock_guard lock(mutex);
        bool any = false;
        for (CUstream_st& s : all)
            if (s.capture) any = s.capture->broken = true;
        return any;
    }
    // Waits for what has been put on a stream up to an operation, or for all of it.
    void finish(cudaStream_t stream, const char* call, uint64_t number = ~uint64_t(0)) {
        const std::lock_guard lock(mutex);
        CUstream_st& s = live(stream, call);
        number = std::min(number, calls);
        run_until([&] { return !is_pending(s, number); });
    }
    void finish_all() {
        const std::lock_guard lock(mutex);
        run_until([&] {
            return std::all_of(all.begin(), all.end(), [](const CUstream_st& s) { return s.queue.empty(); });
        });
    }
    bool anything_pending() const {
        return std::any_of(all.begin(), all.end(), [](const CUstream_st& s) { return !s.queue.empty(); });
    }
    bool is_read(const Range& range) const { // by anything that is pending
        for (const CUstream_st& s : all)
            for (const Operation& o : s.queue)
                if (o.reads.bytes == anything.bytes || (o.reads.bytes && o.reads.meets(range))) return true;
        return false;
    }
};
inline Streams& streams() {
    static Streams* const streams = new Streams;
    return *streams;
}

inline CUevent_st& live(cudaEvent_t e, const char* call) {
    if (e->destroyed) die("%s: this event has been destroyed", call);
    return *e;
}

} // namespace emu
