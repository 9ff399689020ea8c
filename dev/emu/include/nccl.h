// NCCL on the CPU, between processes of this machine, or threads of one: each rank has a communicator of its
// own, all of one id share a file in /dev/shm. From each rank to each other goes a ring of 64 KiB with one
// writer and one reader, atomics only, so that a rank killed anywhere leaves no lock. What is put on a
// stream, a group as a whole, drives its sends and receives in turn until all are done, and a send is done
// when it has been received: a cycle of calls without a group stops here as it may on hardware. Sums run in
// the order of the ranks, in fp32 (fp64 for doubles, exactly for integers), rounded once at the end.
//
// Strict where hardware hangs or overwrites: a call that meets another one, count or type, and calls that
// wait for each other, or for a rank that has ended or died, stop all ranks with the calls by their numbers.
// Two ranks on one device get ncclInvalidUsage. EMU_NCCL=hang: calls that can never end wait for ever,
// silently. ncclCommGetAsyncError reports ranks lost on other machines (MOEX_HOST=name) and, like NCCL, none
// of this one.
#pragma once
#include "cuda_bf16.h"
#include "cuda_runtime.h"
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <vector>

#define NCCL_MAJOR 2
#define NCCL_MINOR 20
#define NCCL_PATCH 5
#define NCCL_VERSION_CODE 22005

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
} ncclResult_t;
typedef enum {
    ncclInt8 = 0,
    ncclUint8 = 1,
    ncclInt32 = 2,
    ncclUint32 = 3,
    ncclInt64 = 4,
    ncclUint64 = 5,
    ncclFloat32 = 7,
    ncclFloat = 7,
    ncclFloat64 = 8,
    ncclDouble = 8,
    ncclBfloat16 = 9,
} ncclDataType_t;
typedef enum { ncclSum = 0, ncclProd = 1, ncclMax = 2, ncclMin = 3, ncclAvg = 4 } ncclRedOp_t;
typedef struct {
    char internal[128];
} ncclUniqueId;

// ---- what the ranks of a communicator share -------------------------------------------------------------

namespace emu {

constexpr int nccl_most_ranks = 64; // a bit for each
constexpr size_t ring_bytes = 64 << 10;

// From one rank to another.
struct alignas(64) Ring {
    std::atomic<uint64_t> written; // bytes, ever
    alignas(64) std::atomic<uint64_t> read;
    alignas(64) char data[ring_bytes];
};

enum class RankState { absent, here, ended, aborted };

struct alignas(64) RankRecord {
    std::atomic<RankState> state;
    std::atomic<int> pid;
    std::atomic<uint64_t> machine; // hashed
    std::atomic<int> device;
    // While it is in NCCL: whom it waits for, and how often it has looked; waits is 0 outside.
    std::atomic<uint64_t> waits, passes, moved;
    // Of its first transfer that is not done.
    std::atomic<uint64_t> call, count;
    std::atomic<int> function, type, peer;
};

struct Shared {
    std::atomic<int> ranks, arrived;
    std::atomic<int> stopped; // the pid of a rank that says why all of them stop
    RankRecord rank[nccl_most_ranks];
    Ring rings[]; // [from * ranks + to]
};

inline size_t shared_bytes(int ranks) {
    return sizeof(Shared) + size_t(ranks) * size_t(ranks) * sizeof(Ring);
}

enum class Function { send, receive, all_reduce, reduce, reduce_scatter, all_gather, broadcast };
constexpr const char* function_names[] = {"ncclSend",          "ncclRecv",      "ncclAllReduce", "ncclReduce",
                                          "ncclReduceScatter", "ncclAllGather", "ncclBroadcast"};

inline size_t nccl_bytes(int type) {
    return type == ncclInt8 || type == ncclUint8                          ? 1
           : type == ncclBfloat16                                         ? 2
           : type == ncclInt32 || type == ncclUint32 || type == ncclFloat ? 4
                                                                          : 8;
}
inline const char* type_name(int type) {
    constexpr const char* names[] = {"int8",   "uint8", "int32", "uint32", "int64",
                                     "uint64", "half",  "float", "double", "bfloat16"};
    return type >= 0 && type <= ncclBfloat16 ? names[type] : "unknown";
}

} // namespace emu

struct ncclComm {
    emu::Shared* shared;
    int ranks, rank;
    uint64_t calls = 0;
    std::atomic<bool> aborted{false};
    emu::RankRecord& record(int r) const { return shared->rank[r]; }
    emu::Ring& ring(int from, int to) const { return shared->rings[from * ranks + to]; }
};
typedef ncclComm* ncclComm_t;

namespace emu {

inline thread_local std::string nccl_last_error;
inline ncclResult_t nccl_error(ncclResult_t result, const std::string& text) {
    nccl_last_error = text;
    return result;
}

// Killed and not yet waited for counts as dead.
inline bool is_dead(int pid) {
    FILE* f = fopen(("/proc/" + std::to_string(pid) + "/stat").c_str(), "r");
    if (!f) return true;
    char text[512] = "";
    const size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    const char* end = n ? strrchr(text, ')') : nullptr;
    return end && (end[2] == 'Z' || end[2] == 'X');
}

// Says why, once, and ends all ranks that are in NCCL or will come to it.
[[noreturn]] inline void stop_all(const ncclComm& c, const std::string& why) {
    int nobody = 0;
    if (c.shared->stopped.compare_exchange_strong(nobody, int(getpid()))) die("NCCL: %s", why.c_str());
    if (nobody == int(getpid())) // another thread, which is about to end the process
        for (;;) pause();
    _exit(1);
}

// ---- transfers ------------------------------------------------------------------------------------------

// What begins a message. Both ends must have called the same; of a send and its receive all but the function.
struct MessageHeader {
    uint64_t call, count;
    int function, type, op, root;
};

struct Transfer {
    MessageHeader header;
    int peer;
    bool sends;
    char* data;
    size_t done = 0; // bytes of header and data
    MessageHeader met = {};
    bool finished = false;

    size_t total() const { return sizeof header + header.count * nccl_bytes(header.type); }
};

inline void check_message(const ncclComm& c, const Transfer& t) {
    const MessageHeader &mine = t.header, &theirs = t.met;
    const bool pair = mine.function == int(Function::receive) && theirs.function == int(Function::send);
    if ((pair || mine.function == theirs.function) && mine.count == theirs.count &&
        mine.type == theirs.type && mine.op == theirs.op && mine.root == theirs.root)
        return;
    const auto text = [](const char* format, auto... values) {
        char line[400];
        snprintf(line, sizeof line, format, values...);
        return std::string(line);
    };
    typedef unsigned long long Number;
    if (pair)
        stop_all(
            c, text("rank %d, call %llu, receives %llu %s from rank %d, which sends %llu %s (its call %llu)",
                    c.rank, Number(mine.call), Number(mine.count), type_name(mine.type), t.peer,
                    Number(theirs.count), type_name(theirs.type), Number(theirs.call)));
    stop_all(
        c,
        text("rank %d, call %llu, is %s of %llu %s, op %d, root %d; rank %d meets it with %s of %llu %s, op "
             "%d, root %d (its call %llu)",
             c.rank, Number(mine.call), function_names[mine.function], Number(mine.count),
             type_name(mine.type), mine.op, mine.root, t.peer, function_names[theirs.function],
             Number(theirs.count), type_name(theirs.type), theirs.op, theirs.root, Number(theirs.call)));
}

// Moves bytes between a ring and a message, which is its header and then its data. Returns how many.
inline size_t move_some(Ring& ring, Transfer& t, size_t n) {
    const uint64_t at =
        t.sends ? ring.written.load(std::memory_order_relaxed) : ring.read.load(std::memory_order_relaxed);
    for (size_t moved = 0; moved < n;) {
        const bool in_header = t.done < sizeof(MessageHeader);
        char* const mine = !in_header ? t.data + (t.done - sizeof(MessageHeader))
                           : t.sends  ? reinterpret_cast<char*>(&t.header) + t.done
                                      : reinterpret_cast<char*>(&t.met) + t.done;
        const size_t offset = (at + moved) % ring_bytes;
        const size_t part = std::min({n - moved, ring_bytes - offset,
                                      in_header ? sizeof(MessageHeader) - t.done : t.total() - t.done});
        if (t.sends)
            memcpy(ring.data + offset, mine, part);
        else
            memcpy(mine, ring.data + offset, part);
        t.done += part;
        moved += part;
    }
    (t.sends ? ring.written : ring.read).store(at + n, std::memory_order_release);
    return n;
}

inline size_t advance(const ncclComm& c, Transfer& t) {
    Ring& ring = t.sends ? c.ring(c.rank, t.peer) : c.ring(t.peer, c.rank);
    const size_t filled =
        size_t(ring.written.load(std::memory_order_acquire) - ring.read.load(std::memory_order_acquire));
    if (t.sends) {
        const size_t n = move_some(ring, t, std::min(ring_bytes - filled, t.total() - t.done));
        t.finished = t.done == t.total() && n == 0 && filled == 0; // the other has it all
        return n;
    }
    size_t n = 0;
    if (t.done < sizeof(MessageHeader)) {
        n = move_some(ring, t, std::min(filled, sizeof(MessageHeader) - t.done));
        if (t.done == sizeof(MessageHeader)) check_message(c, t);
    }
    if (t.done >= sizeof(MessageHeader)) n += move_some(ring, t, std::min(filled - n, t.total() - t.done));
    t.finished = t.done == t.total();
    return n;
}

// ---- calls that can never end ---------------------------------------------------------------------------

inline bool hangs_allowed() {
    const char* const setting = getenv("EMU_NCCL");
    return setting && strcmp(setting, "hang") == 0;
}

// The ranks this one waits for, those they wait for, and so on. 0 when one of them is still computing: it may
// yet come.
inline uint64_t waiting_together(const ncclComm& c) {
    uint64_t found = uint64_t(1) << c.rank;
    for (uint64_t seen = 0; seen != found;) {
        const int r = __builtin_ctzll(found & ~seen);
        seen |= uint64_t(1) << r;
        const RankRecord& record = c.record(r);
        if (record.state != RankState::here || is_dead(record.pid)) continue;
        const uint64_t waits = record.waits;
        if (!waits) return 0;
        found |= waits;
    }
    return found;
}

inline std::string describe_wait(const ncclComm& c, int r) {
    const RankRecord& x = c.record(r);
    const std::string rank = "rank " + std::to_string(r);
    if (x.state == RankState::ended) return rank + " has ended";
    if (x.state == RankState::aborted) return rank + " has aborted";
    if (is_dead(x.pid)) return rank + " is dead";
    const Function function = Function(x.function.load());
    const std::string what = std::to_string(x.count) + " " + type_name(x.type),
                      peer = "rank " + std::to_string(x.peer);
    return rank + " waits in call " + std::to_string(x.call) +
           (function == Function::send ? " to send " + what + " to " + peer
            : function == Function::receive
                ? " to receive " + what + " from " + peer
                : std::string(", ") + function_names[int(function)] + " of " + what + ", for " + peer);
}

// Nothing has moved for a second, and all that wait for each other have looked again meanwhile: however busy
// the machine is, they wait for ever.
struct Stall {
    double since = 0, next_look = 0.5; // s
    uint64_t group = 0, moved = 0, passes[nccl_most_ranks] = {};

    static double now() {
        timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
    }
    void look(const ncclComm& c) {
        const double waited = now() - since;
        if (waited < next_look) return;
        next_look = waited + 0.1;
        if (hangs_allowed()) return;
        const uint64_t together = waiting_together(c);
        uint64_t moved_by_all = 0;
        bool all_looked = true;
        for (int r = 0; r < c.ranks; r++) {
            if (!(together >> r & 1)) continue;
            const RankRecord& record = c.record(r);
            moved_by_all += record.moved;
            const bool waits = record.state == RankState::here && !is_dead(record.pid);
            all_looked = all_looked && (!waits || record.passes >= passes[r] + 2);
        }
        if (!together || together != group || moved_by_all != moved) {
            group = together;
            moved = moved_by_all;
            for (int r = 0; r < c.ranks; r++) passes[r] = c.record(r).passes;
            return;
        }
        if (waited < 1 || !all_looked) return;
        std::string why = "deadlock: ";
        for (int r = 0; r < c.ranks; r++)
            if (together >> r & 1) why += (why.back() == ' ' ? "" : "; ") + describe_wait(c, r);
        stop_all(c, why);
    }
};

// Drives transfers until all are done; those between the same two ranks in their order.
inline ncclResult_t drive(ncclComm& c, std::vector<Transfer>& transfers) {
    RankRecord& me = c.record(c.rank);
    Stall stall;
    stall.since = Stall::now();
    for (unsigned idle = 0;; idle++) {
        if (c.shared->stopped) stop_all(c, "");
        size_t moved = 0;
        uint64_t busy[2] = {}, waits = 0; // ranks; busy: with an earlier receive, send
        const Transfer* first = nullptr;
        for (Transfer& t : transfers) {
            const uint64_t bit = uint64_t(1) << t.peer;
            if (t.finished) continue;
            if (!(busy[t.sends] & bit)) moved += advance(c, t);
            if (t.finished) continue;
            busy[t.sends] |= bit;
            waits |= bit;
            if (!first) first = &t;
        }
        if (first) {
            me.call = first->header.call;
            me.count = first->header.count;
            me.function = first->header.function;
            me.type = first->header.type;
            me.peer = first->peer;
        }
        me.moved += moved;
        me.waits = c.aborted ? 0 : waits;
        me.passes++;
        if (c.aborted) return nccl_error(ncclInternalError, "the communicator was aborted");
        if (!first) return ncclSuccess;
        if (moved) {
            idle = 0;
            stall.since = Stall::now();
            stall.next_look = 0.5;
            continue;
        }
        idle < 100 ? void(sched_yield()) : void(usleep(100));
        stall.look(c);
    }
}

// ---- calls ----------------------------------------------------------------------------------------------

// out (count) = the reduction over the ranks of the numbers at parts[rank], computed as Sum.
template <class T, class Sum>
void nccl_reduce(void* out, const std::vector<const char*>& parts, size_t count, int op) {
    for (size_t i = 0; i < count; i++) {
        Sum sum = Sum(reinterpret_cast<const T*>(parts[0])[i]);
        for (size_t r = 1; r < parts.size(); r++) {
            const Sum x = Sum(reinterpret_cast<const T*>(parts[r])[i]);
            sum = op == ncclProd  ? sum * x
                  : op == ncclMax ? (x > sum ? x : sum)
                  : op == ncclMin ? (x < sum ? x : sum)
                                  : sum + x;
        }
        static_cast<T*>(out)[i] = T(op == ncclAvg ? sum / Sum(parts.size()) : sum);
    }
}
inline void nccl_reduce(void* out, const std::vector<const char*>& parts, size_t count, int type, int op) {
    switch (type) {
    case ncclInt8:
        return nccl_reduce<int8_t, int8_t>(out, parts, count, op);
    case ncclUint8:
        return nccl_reduce<uint8_t, uint8_t>(out, parts, count, op);
    case ncclInt32:
        return nccl_reduce<int32_t, int32_t>(out, parts, count, op);
    case ncclUint32:
        return nccl_reduce<uint32_t, uint32_t>(out, parts, count, op);
    case ncclInt64:
        return nccl_reduce<int64_t, int64_t>(out, parts, count, op);
    case ncclUint64:
        return nccl_reduce<uint64_t, uint64_t>(out, parts, count, op);
    case ncclFloat32:
        return nccl_reduce<float, float>(out, parts, count, op);
    case ncclFloat64:
        return nccl_reduce<double, double>(out, parts, count, op);
    case ncclBfloat16:
        return nccl_reduce<__nv_bfloat16, float>(out, parts, count, op);
    }
}

// One call of a group. What it receives waits in `parts` until all is there, for a receiver may be someone's
// sender (in place).
struct NcclCall {
    ncclComm* comm;
    MessageHeader header;
    const char* send;
    char* receive;
    int peer; // of a send or receive
    cudaStream_t stream;
    std::vector<std::vector<char>> parts = {};

    size_t bytes() const { return header.count * nccl_bytes(header.type); }

    void add_transfers(std::vector<Transfer>& out) {
        const Function f = Function(header.function);
        if (f == Function::send) return out.push_back({header, peer, true, const_cast<char*>(send)});
        if (f == Function::receive) return out.push_back({header, peer, false, receive});
        const int me = comm->rank;
        const bool to_root = f == Function::reduce, from_root = f == Function::broadcast;
        parts.resize(size_t(comm->ranks));
        for (int r = 0; r < comm->ranks; r++) {
            const bool sends = !from_root || me == header.root, receives = !from_root || r == header.root;
            const char* const from = send + (f == Function::reduce_scatter ? size_t(r) * bytes() : 0);
            if (r == me) {
                if (send && sends) parts[size_t(r)].assign(from, from + bytes());
                continue;
            }
            if (sends && (!to_root || r == header.root))
                out.push_back({header, r, true, const_cast<char*>(from)});
            if (receives && (!to_root || me == header.root)) {
                parts[size_t(r)].resize(bytes());
                out.push_back({header, r, false, parts[size_t(r)].data()});
            }
        }
    }
    void finish() const {
        const Function f = Function(header.function);
        if (parts.empty() || (f == Function::reduce && comm->rank != header.root)) return;
        if (f == Function::broadcast) {
            memcpy(receive, parts[size_t(header.root)].data(), bytes());
        } else if (f == Function::all_gather) {
            for (size_t r = 0; r < parts.size(); r++) memcpy(receive + r * bytes(), parts[r].data(), bytes());
        } else {
            std::vector<const char*> pointers;
            for (const std::vector<char>& part : parts) pointers.push_back(part.data());
            nccl_reduce(receive, pointers, header.count, header.type, header.op);
        }
    }
};

struct NcclGroup { // of a thread
    int depth = 0;
    std::vector<NcclCall> calls;
};
inline thread_local NcclGroup nccl_group;

// Puts the calls of a group on their stream, as one operation.
inline ncclResult_t submit(std::vector<NcclCall> calls) {
    if (calls.empty()) return ncclSuccess;
    ncclComm* const comm = calls[0].comm;
    const cudaStream_t stream = calls[0].stream;
    for (const NcclCall& call : calls)
        if (call.comm != comm || call.stream != stream)
            die("NCCL: rank %d, call %llu: a group of several communicators or streams is not emulated",
                comm->rank, static_cast<unsigned long long>(call.header.call));
    const auto result = std::make_shared<ncclResult_t>(ncclSuccess); // known now unless the stream runs late
    const auto work = std::make_shared<std::vector<NcclCall>>(std::move(calls));
    streams().put(stream, function_names[(*work)[0].header.function], [comm, result, work] {
        std::vector<Transfer> transfers;
        for (NcclCall& call : *work) call.add_transfers(transfers);
        *result = drive(*comm, transfers);
        if (*result != ncclSuccess) return;
        for (const NcclCall& call : *work) call.finish();
    });
    return *result;
}

// count: as the call names it: numbers each rank sends (reduce_scatter: receives).
inline ncclResult_t nccl_call(Function f, const void* send, void* receive, size_t count, ncclDataType_t type,
                              int op, int root, int peer, ncclComm_t comm, cudaStream_t stream) {
    const char* const name = function_names[int(f)];
    if (!comm) return nccl_error(ncclInvalidArgument, std::string(name) + ": no communicator");
    const size_t all = size_t(comm->ranks), bytes = count * nccl_bytes(type);
    const bool sends = f != Function::receive && (f != Function::broadcast || comm->rank == root);
    const bool receives = f != Function::send && (f != Function::reduce || comm->rank == root);
    if (root < 0 || root >= comm->ranks || peer < 0 || peer >= comm->ranks)
        return nccl_error(ncclInvalidArgument, std::string(name) + ": there is no such rank");
    if (bytes &&
        ((sends && !device_memory().holds(send, bytes * (f == Function::reduce_scatter ? all : 1))) ||
         (receives && !device_memory().holds(receive, bytes * (f == Function::all_gather ? all : 1)))))
        return nccl_error(ncclInvalidArgument,
                          std::string(name) + ": a buffer is not, or not all, memory of the device");
    const NcclCall call = {comm,
                           {++comm->calls, count, int(f), int(type), op, root},
                           static_cast<const char*>(sends ? send : nullptr),
                           static_cast<char*>(receive),
                           peer,
                           stream};
    if (!nccl_group.depth) return submit({call});
    nccl_group.calls.push_back(call);
    return ncclSuccess;
}

// ---- communicators --------------------------------------------------------------------------------------

inline std::string shared_folder() {
    struct stat st;
    return stat("/dev/shm", &st) == 0 ? "/dev/shm/" : "/tmp/";
}

// A run that was killed before all its ranks had come has left its file.
inline void remove_files_of_the_dead() {
    DIR* const folder = opendir(shared_folder().c_str());
    if (!folder) return;
    while (const dirent* entry = readdir(folder))
        if (int pid; sscanf(entry->d_name, "moex-nccl.%d.", &pid) == 1 && is_dead(pid))
            unlink((shared_folder() + entry->d_name).c_str());
    closedir(folder);
}

inline uint64_t this_machine() {
    const char* const name = getenv("MOEX_HOST");
    return std::hash<std::string>()(name ? name : "");
}

} // namespace emu

inline const char* ncclGetErrorString(ncclResult_t result) {
    constexpr const char* texts[] = {"no error",
                                     "unhandled cuda error",
                                     "unhandled system error",
                                     "internal error",
                                     "invalid argument",
                                     "invalid usage",
                                     "remote process exited or there was a network error",
                                     "operation in progress"};
    return result >= ncclSuccess && result <= ncclInProgress ? texts[result] : "unknown result code";
}
inline const char* ncclGetLastError(ncclComm_t) { return emu::nccl_last_error.c_str(); }
inline ncclResult_t ncclGetVersion(int* version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
// Whoever makes an id must stay alive until all have come.
inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static std::atomic<int> made{0};
    if (!id) return emu::nccl_error(ncclInvalidArgument, "ncclGetUniqueId: no id");
    emu::remove_files_of_the_dead();
    memset(id, 0, sizeof *id);
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(id->internal, sizeof id->internal, "moex-nccl.%d.%d.%lld", int(getpid()), made++,
             static_cast<long long>(now.tv_sec) * 1000000000 + now.tv_nsec);
    return ncclSuccess;
}
namespace emu {

// A fresh file is all zeros, which is a right beginning.
inline ncclResult_t map_shared(ncclComm& c, const std::string& path) {
    const size_t bytes = shared_bytes(c.ranks);
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    void* p = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, off_t(bytes)) == 0)
        p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const int reason = errno;
    if (fd >= 0) close(fd);
    if (p == MAP_FAILED) return nccl_error(ncclSystemError, path + ": " + strerror(reason));
    c.shared = static_cast<Shared*>(p);
    return ncclSuccess;
}

// Says that this rank is here, and waits for the others; for ever if one does not come.
inline ncclResult_t meet_ranks(ncclComm& c, const std::string& path) {
    int said = 0;
    if (!c.shared->ranks.compare_exchange_strong(said, c.ranks) && said != c.ranks)
        return nccl_error(ncclInvalidArgument, "ncclCommInitRank: another rank said " + std::to_string(said) +
                                                   " ranks, this one " + std::to_string(c.ranks));
    RankRecord& me = c.record(c.rank);
    RankState absent = RankState::absent;
    if (!me.state.compare_exchange_strong(absent, RankState::here))
        return nccl_error(ncclInvalidUsage,
                          "ncclCommInitRank: rank " + std::to_string(c.rank) + " came twice");
    me.machine = this_machine();
    me.device = current_device;
    me.pid = int(getpid());
    if (++c.shared->arrived == c.ranks) unlink(path.c_str());
    const double begin = Stall::now();
    for (double next_look = 0.5; c.shared->arrived < c.ranks; usleep(200)) {
        if (c.shared->stopped) stop_all(c, "");
        if (Stall::now() - begin < next_look || hangs_allowed()) continue;
        next_look += 0.1;
        for (int r = 0; r < c.ranks; r++)
            if (c.record(r).pid && is_dead(c.record(r).pid))
                stop_all(c, "rank " + std::to_string(c.rank) + " waits in ncclCommInitRank, rank " +
                                std::to_string(r) + " is dead");
    }
    for (int a = 0; a < c.ranks; a++)
        for (int b = 0; b < a; b++)
            if (c.record(a).machine == c.record(b).machine && c.record(a).device == c.record(b).device)
                return nccl_error(ncclInvalidUsage, "ncclCommInitRank: ranks " + std::to_string(b) + " and " +
                                                        std::to_string(a) + " are both on device " +
                                                        std::to_string(c.record(a).device));
    return ncclSuccess;
}

} // namespace emu

inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    if (!comm || ranks < 1 || ranks > emu::nccl_most_ranks || rank < 0 || rank >= ranks ||
        strncmp(id.internal, "moex-nccl.", 10) != 0 || !memchr(id.internal, 0, sizeof id.internal))
        return emu::nccl_error(ncclInvalidArgument, "ncclCommInitRank: no such rank, or no id");
    const std::string path = emu::shared_folder() + id.internal;
    ncclComm* const c = new ncclComm{nullptr, ranks, rank};
    ncclResult_t result = emu::map_shared(*c, path);
    if (result == ncclSuccess) result = emu::meet_ranks(*c, path);
    *comm = result == ncclSuccess ? c : nullptr;
    if (result != ncclSuccess) delete c; // what it mapped stays: another rank may look at it
    return result;
}
inline ncclResult_t ncclCommInitAll(ncclComm_t* comms, int devices, const int*) {
    ncclUniqueId id;
    if (devices != 1) return emu::nccl_error(ncclInvalidUsage, "ncclCommInitAll: several ranks in a thread");
    ncclGetUniqueId(&id);
    return ncclCommInitRank(comms, 1, id, 0);
}
inline ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
inline ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm) return ncclSuccess;
    emu::streams().finish_all();
    comm->record(comm->rank).state = emu::RankState::ended;
    munmap(comm->shared, emu::shared_bytes(comm->ranks));
    delete comm;
    return ncclSuccess;
}
// May be called while another thread is in NCCL: that thread's call then returns, so nothing is freed.
inline ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (!comm) return ncclSuccess;
    comm->record(comm->rank).state = emu::RankState::aborted;
    comm->aborted = true;
    static std::vector<ncclComm_t> kept; // reachable, so that it is no leak
    kept.push_back(comm);
    return ncclSuccess;
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    if (!comm || !error) return emu::nccl_error(ncclInvalidArgument, "ncclCommGetAsyncError: a null pointer");
    *error = ncclSuccess;
    for (int r = 0; r < comm->ranks; r++) {
        const emu::RankRecord& other = comm->record(r);
        const bool lost = other.state == emu::RankState::aborted ||
                          (other.state == emu::RankState::here && emu::is_dead(other.pid));
        if (lost && other.machine != comm->record(comm->rank).machine)
            *error = emu::nccl_error(ncclRemoteError,
                                     "the connection to rank " + std::to_string(r) + " was closed");
    }
    return ncclSuccess;
}
inline ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
    *count = comm->ranks;
    return ncclSuccess;
}
inline ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
    *rank = comm->rank;
    return ncclSuccess;
}
inline ncclResult_t ncclGroupStart() {
    emu::nccl_group.depth++;
    return ncclSuccess;
}
inline ncclResult_t ncclGroupEnd() {
    if (emu::nccl_group.depth == 0)
        return emu::nccl_error(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--emu::nccl_group.depth > 0) return ncclSuccess;
    std::vector<emu::NcclCall> calls;
    calls.swap(emu::nccl_group.calls);
    return emu::submit(std::move(calls));
}

inline ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                             cudaStream_t stream) {
    return emu::nccl_call(emu::Function::send, send, nullptr, count, type, 0, 0, peer, comm, stream);
}
inline ncclResult_t ncclRecv(void* receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                             cudaStream_t stream) {
    return emu::nccl_call(emu::Function::receive, nullptr, receive, count, type, 0, 0, peer, comm, stream);
}
inline ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                                  ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return emu::nccl_call(emu::Function::all_reduce, send, receive, count, type, op, 0, 0, comm, stream);
}
inline ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
    return emu::nccl_call(emu::Function::reduce, send, receive, count, type, op, root, 0, comm, stream);
}
inline ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type,
                                      ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return emu::nccl_call(emu::Function::reduce_scatter, send, receive, count, type, op, 0, 0, comm, stream);
}
inline ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type,
                                  ncclComm_t comm, cudaStream_t stream) {
    return emu::nccl_call(emu::Function::all_gather, send, receive, count, type, 0, 0, 0, comm, stream);
}
inline ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type,
                                  int root, ncclComm_t comm, cudaStream_t stream) {
    return emu::nccl_call(emu::Function::broadcast, send, receive, count, type, 0, root, 0, comm, stream);
}
