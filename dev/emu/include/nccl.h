// NCCL on the CPU: the ranks are threads of one process, each with a communicator of its own, and a
// collective is done when all of them have called it. Sums run in the order of the ranks, in fp32 (fp64 for
// doubles, exactly for integers), rounded once at the end. A rank that waits for one that called something
// else, or for another count, type or root, gets ncclInvalidUsage, and so does that one; hardware would hang.
// Several ranks in one thread (ncclCommInitAll of more than one) are not there, so groups have nothing to do.
#pragma once
#include "cuda_bf16.h"
#include "cuda_runtime.h"
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
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

namespace emu {

enum class Kind { all_reduce, reduce, reduce_scatter, all_gather, broadcast };

struct Collective { // what one rank asks for
    Kind kind;
    int type, op, root;
    size_t count;
    const void* send;
    bool same(const Collective& o) const {
        return kind == o.kind && type == o.type && op == o.op && root == o.root && count == o.count;
    }
};

struct Clique { // the ranks that share an id
    std::mutex mutex;
    std::condition_variable all_here;
    std::vector<Collective> asked;
    int ranks = 0, arrived = 0;
    size_t round = 0;

    void wait() {
        std::unique_lock lock(mutex);
        const size_t now = round;
        if (++arrived == ranks) {
            arrived = 0, round++;
            all_here.notify_all();
        } else {
            all_here.wait(lock, [&] { return round != now; });
        }
    }
};

inline std::mutex cliques_mutex;
inline std::map<uint64_t, std::shared_ptr<Clique>> cliques;

} // namespace emu

struct ncclComm {
    std::shared_ptr<emu::Clique> clique;
    int rank;
};
typedef ncclComm* ncclComm_t;

namespace emu {

inline size_t nccl_bytes(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    default:
        return 8;
    }
}

// out (count) = the reduction over the ranks of their numbers first .. first+count-1, computed as Sum.
template <class T, class Sum>
void nccl_reduce(void* out, const std::vector<Collective>& ranks, size_t first, size_t count, int op) {
    for (size_t i = 0; i < count; i++) {
        Sum sum = Sum(((const T*)ranks[0].send)[first + i]);
        for (size_t r = 1; r < ranks.size(); r++) {
            const Sum x = Sum(((const T*)ranks[r].send)[first + i]);
            sum = op == ncclProd  ? sum * x
                  : op == ncclMax ? (x > sum ? x : sum)
                  : op == ncclMin ? (x < sum ? x : sum)
                                  : sum + x;
        }
        ((T*)out)[i] = T(op == ncclAvg ? sum / Sum(ranks.size()) : sum);
    }
}
inline void nccl_reduce(void* out, const std::vector<Collective>& ranks, size_t first, size_t count,
                        ncclDataType_t type, int op) {
    switch (type) {
    case ncclInt8:
        return nccl_reduce<int8_t, int8_t>(out, ranks, first, count, op);
    case ncclUint8:
        return nccl_reduce<uint8_t, uint8_t>(out, ranks, first, count, op);
    case ncclInt32:
        return nccl_reduce<int32_t, int32_t>(out, ranks, first, count, op);
    case ncclUint32:
        return nccl_reduce<uint32_t, uint32_t>(out, ranks, first, count, op);
    case ncclInt64:
        return nccl_reduce<int64_t, int64_t>(out, ranks, first, count, op);
    case ncclUint64:
        return nccl_reduce<uint64_t, uint64_t>(out, ranks, first, count, op);
    case ncclFloat32:
        return nccl_reduce<float, float>(out, ranks, first, count, op);
    case ncclFloat64:
        return nccl_reduce<double, double>(out, ranks, first, count, op);
    case ncclBfloat16:
        return nccl_reduce<__nv_bfloat16, float>(out, ranks, first, count, op);
    }
}

// count: as the call names it: numbers each rank sends (reduce_scatter: receives).
inline ncclResult_t collective(Kind kind, const void* send, void* receive, size_t count, ncclDataType_t type,
                               int op, int root, ncclComm_t comm) {
    if (!comm || (count && !send && kind != Kind::broadcast)) return ncclInvalidArgument;
    Clique& clique = *comm->clique;
    const int ranks = clique.ranks, rank = comm->rank;
    if (root < 0 || root >= ranks) return ncclInvalidArgument;
    clique.asked[rank] = {kind, type, op, root, count, send};
    clique.wait(); // everyone has asked
    bool agree = true;
    for (const Collective& other : clique.asked) agree &= other.same(clique.asked[0]);
    // A receiver may be someone's sender (in place), so results are made first and written when all are made.
    const size_t bytes = nccl_bytes(type);
    const bool receives = agree && (kind != Kind::reduce || rank == root);
    std::vector<char> result(receives ? (kind == Kind::all_gather ? ranks : 1) * count * bytes : 0);
    if (receives && kind == Kind::all_gather)
        for (int r = 0; r < ranks; r++)
            std::memcpy(result.data() + r * count * bytes, clique.asked[r].send, count * bytes);
    else if (receives && kind == Kind::broadcast)
        std::memcpy(result.data(), clique.asked[root].send, count * bytes);
    else if (receives)
        nccl_reduce(result.data(), clique.asked, kind == Kind::reduce_scatter ? rank * count : 0, count, type,
                    op);
    clique.wait(); // everyone has read
    if (!agree) return ncclInvalidUsage;
    if (!result.empty()) std::memcpy(receive, result.data(), result.size());
    return ncclSuccess;
}

} // namespace emu

inline const char* ncclGetErrorString(ncclResult_t result) {
    return result == ncclSuccess           ? "no error"
           : result == ncclInvalidArgument ? "invalid argument"
           : result == ncclInvalidUsage    ? "invalid usage"
                                           : "internal error";
}
inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static uint64_t next = 1;
    const std::lock_guard lock(emu::cliques_mutex);
    std::memset(id, 0, sizeof *id);
    std::memcpy(id->internal, &next, sizeof next);
    next++;
    return ncclSuccess;
}
// Returns when all ranks have called it.
inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    if (!comm || ranks < 1 || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    uint64_t key;
    std::memcpy(&key, id.internal, sizeof key);
    std::shared_ptr<emu::Clique> clique;
    {
        const std::lock_guard lock(emu::cliques_mutex);
        std::shared_ptr<emu::Clique>& shared = emu::cliques[key];
        if (!shared) shared = std::make_shared<emu::Clique>();
        clique = shared;
        if (clique->ranks && clique->ranks != ranks) return ncclInvalidArgument;
        clique->ranks = ranks;
        clique->asked.resize(ranks);
    }
    *comm = new ncclComm{clique, rank};
    clique->wait();
    return ncclSuccess;
}
inline ncclResult_t ncclCommInitAll(ncclComm_t* comms, int devices, const int*) {
    ncclUniqueId id;
    if (devices != 1) return ncclInvalidUsage;
    return ncclGetUniqueId(&id), ncclCommInitRank(comms, 1, id, 0);
}
inline ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    delete comm;
    return ncclSuccess;
}
inline ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
    *count = comm->clique->ranks;
    return ncclSuccess;
}
inline ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
    *rank = comm->rank;
    return ncclSuccess;
}
inline ncclResult_t ncclGroupStart() { return ncclSuccess; }
inline ncclResult_t ncclGroupEnd() { return ncclSuccess; }

inline ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                                  ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
    return emu::collective(emu::Kind::all_reduce, send, receive, count, type, op, 0, comm);
}
inline ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t) {
    return emu::collective(emu::Kind::reduce, send, receive, count, type, op, root, comm);
}
inline ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type,
                                      ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
    return emu::collective(emu::Kind::reduce_scatter, send, receive, count, type, op, 0, comm);
}
inline ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type,
                                  ncclComm_t comm, cudaStream_t) {
    return emu::collective(emu::Kind::all_gather, send, receive, count, type, 0, 0, comm);
}
inline ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type,
                                  int root, ncclComm_t comm, cudaStream_t) {
    return emu::collective(emu::Kind::broadcast, send, receive, count, type, 0, root, comm);
}
