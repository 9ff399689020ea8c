// Tests of the emulator's nccl.h between processes: every call with right arguments, groups in any order,
// messages beyond the rings, both ways of running a stream; and what hardware answers by hanging or by wrong
// numbers: other counts, types, calls, cycles, ranks that end, die, or never come. Each case runs in
// processes of its own, which are looked at from outside.
#include "forked.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <nccl.h>
#include <set>
#include <thread>
#include <vector>

// ---- ranks as processes ---------------------------------------------------------------------------------

static double seconds() { return emu::Stall::now(); }

// All ended with status 1 (those that died by themselves apart), and one of them said one line with all
// parts.
static bool stopped(const std::vector<Ended>& ended, const std::vector<std::string>& parts,
                    const std::set<size_t>& apart = {}) {
    std::string all;
    bool good = true;
    for (size_t r = 0; r < ended.size(); r++) {
        good = good && (apart.count(r) || ended[r].status == 1);
        all += ended[r].text;
    }
    good = good && all.rfind("emu: NCCL: ", 0) == 0 && all.find('\n') == all.size() - 1;
    for (const std::string& part : parts) good = good && all.find(part) != std::string::npos;
    if (!good) {
        for (size_t r = 0; r < ended.size(); r++) printf("rank %zu: status %d\n", r, ended[r].status);
        printf("%s", all.c_str());
    }
    return good;
}

static ncclUniqueId new_id() {
    ncclUniqueId id;
    if (ncclGetUniqueId(&id) != ncclSuccess) fail("no id");
    return id;
}
static ncclComm_t join(const ncclUniqueId& id, int ranks, int rank) {
    ncclComm_t comm = nullptr;
    const ncclResult_t result = ncclCommInitRank(&comm, ranks, id, rank);
    if (result != ncclSuccess) {
        printf("%s: %s\n", ncclGetErrorString(result), ncclGetLastError(nullptr));
        _exit(4);
    }
    return comm;
}

// Numbers in memory of the device.
template <class T> struct Numbers {
    T* data = nullptr;
    size_t n;
    explicit Numbers(size_t n, T first = T(0), T step = T(0)) : n(n) {
        if (cudaMalloc(&data, std::max<size_t>(1, n) * sizeof(T)) != cudaSuccess) fail("no memory");
        for (size_t i = 0; i < n; i++) data[i] = T(first + T(i) * step);
    }
    Numbers(const Numbers&) = delete;
    ~Numbers() { cudaFree(data); }
    T& operator[](size_t i) { return data[i]; }
};

// ---- what is right --------------------------------------------------------------------------------------

static void every_collective(const ncclUniqueId& id, int ranks, int rank) {
    constexpr size_t count = 5;
    const auto number = [](int rank, size_t i) { return float((rank + 1) * 100 + int(i)); };
    const ncclComm_t comm = join(id, ranks, rank);
    int n = 0, me = -1;
    check(ncclCommCount(comm, &n) == ncclSuccess && n == ranks);
    check(ncclCommUserRank(comm, &me) == ncclSuccess && me == rank);
    const size_t all = size_t(ranks) * count;
    Numbers<float> mine(all, number(rank, 0), 1), sum(all, number(rank, 0), 1), mean(count), high(count),
        scattered(count), gathered(all), sent(count);
    cudaStream_t s;
    check(cudaStreamCreate(&s) == cudaSuccess);
    check(ncclAllReduce(sum.data, sum.data, all, ncclFloat, ncclSum, comm, s) == ncclSuccess); // in place
    check(ncclAllReduce(mine.data, mean.data, count, ncclFloat, ncclAvg, comm, s) == ncclSuccess);
    check(ncclReduce(mine.data, high.data, count, ncclFloat, ncclMax, 2, comm, s) == ncclSuccess);
    check(ncclReduceScatter(mine.data, scattered.data, count, ncclFloat, ncclSum, comm, s) == ncclSuccess);
    check(ncclAllGather(mine.data, gathered.data, count, ncclFloat, comm, s) == ncclSuccess);
    check(ncclBroadcast(mine.data, sent.data, count, ncclFloat, 1, comm, s) == ncclSuccess);
    // 1, then 2^-8 twice: one at a time they would be rounded away.
    Numbers<__nv_bfloat16> rounded(1);
    rounded[0] = __float2bfloat16(rank == 0 ? 1.0f : 0x1p-8f);
    check(ncclAllReduce(rounded.data, rounded.data, 1, ncclBfloat16, ncclSum, comm, s) == ncclSuccess);
    check(cudaStreamSynchronize(s) == cudaSuccess);
    for (size_t i = 0; i < all; i++) {
        check(sum[i] == 600 + 3 * float(i));
        check(gathered[i] == number(int(i / count), i % count));
    }
    for (size_t i = 0; i < count; i++) {
        check(mean[i] == 200 + float(i) && sent[i] == number(1, i));
        check(high[i] == (rank == 2 ? 300 + float(i) : 0));
        check(scattered[i] == 600 + 3 * float(size_t(rank) * count + i));
    }
    check(float(rounded[0]) == 1.0078125f);
    check(ncclCommDestroy(comm) == ncclSuccess && cudaStreamDestroy(s) == cudaSuccess);
}

// Three sends to and three receives from each rank, itself too, in one group, in an order of the rank's own,
// with messages of nothing, of a few numbers and of more than a ring holds.
static void everybody_to_everybody(const ncclUniqueId& id, int ranks, int rank) {
    constexpr size_t counts[3] = {0, 7, 50000};
    const auto value = [](int from, int to, size_t m, size_t i) {
        return float(from * 1000 + to * 100 + int(m) * 10) + float(i % 7);
    };
    const ncclComm_t comm = join(id, ranks, rank);
    cudaStream_t s;
    check(cudaStreamCreate(&s) == cudaSuccess);
    std::vector<std::unique_ptr<Numbers<float>>> out, in;
    for (int peer = 0; peer < ranks; peer++)
        for (size_t m = 0; m < 3; m++) {
            out.push_back(std::make_unique<Numbers<float>>(counts[m]));
            in.push_back(std::make_unique<Numbers<float>>(counts[m], -1.0f));
            for (size_t i = 0; i < counts[m]; i++) (*out.back())[i] = value(rank, peer, m, i);
        }
    for (int round = 0; round < 3; round++) {
        check(ncclGroupStart() == ncclSuccess);
        for (size_t m = 0; m < 3; m++) // those between two ranks in order
            for (int k = 0; k < ranks; k++) {
                const int to = (rank * 2 + k + round) % ranks, from = (rank + ranks - k) % ranks;
                check(ncclGroupStart() == ncclSuccess); // groups nest
                check(ncclRecv(in[size_t(from) * 3 + m]->data, counts[m], ncclFloat, from, comm, s) ==
                      ncclSuccess);
                check(ncclGroupEnd() == ncclSuccess);
                check(ncclSend(out[size_t(to) * 3 + m]->data, counts[m], ncclFloat, to, comm, s) ==
                      ncclSuccess);
            }
        check(ncclGroupEnd() == ncclSuccess);
        check(cudaStreamSynchronize(s) == cudaSuccess);
        for (int peer = 0; peer < ranks; peer++)
            for (size_t m = 0; m < 3; m++)
                for (size_t i = 0; i < counts[m]; i++) {
                    float& x = (*in[size_t(peer) * 3 + m])[i];
                    if (!(x == value(peer, rank, m, i)))
                        check(false, "from %d, message %zu, number %zu: %g", peer, m, i, double(x));
                    x = -1;
                }
    }
    check(ncclCommDestroy(comm) == ncclSuccess && cudaStreamDestroy(s) == cudaSuccess);
}

static void test_right() {
    for (const char* streams : {"", "random:1", "random:2"}) {
        setenv("EMU_STREAMS", streams, 1);
        ncclUniqueId id = new_id();
        check(all_right(in_processes(3, [&](int rank) { every_collective(id, 3, rank); })), "%s", streams);
        id = new_id();
        check(all_right(in_processes(3, [&](int rank) { everybody_to_everybody(id, 3, rank); })), "%s",
              streams);
    }
    unsetenv("EMU_STREAMS");
    // A receive that waits while the sender computes, longer than a deadlock takes to be seen.
    ncclUniqueId id = new_id();
    check(all_right(in_processes(2, [&](int rank) {
        const ncclComm_t comm = join(id, 2, rank);
        Numbers<double> x(3, rank == 0 ? 5 : 0);
        if (rank == 0) sleep(2);
        check((rank == 0 ? ncclSend(x.data, 3, ncclDouble, 1, comm, nullptr)
                         : ncclRecv(x.data, 3, ncclDouble, 0, comm, nullptr)) == ncclSuccess &&
              x[2] == 5);
        check(ncclCommDestroy(comm) == ncclSuccess);
    })));
    // Ranks as threads of one process.
    setenv("EMU_DEVICES", "3", 1);
    id = new_id();
    std::vector<std::thread> threads;
    float sums[3] = {};
    for (int rank = 0; rank < 3; rank++)
        threads.emplace_back([&, rank] {
            cudaSetDevice(rank);
            const ncclComm_t comm = join(id, 3, rank);
            Numbers<float> x(1, float(rank + 1));
            ncclAllReduce(x.data, x.data, 1, ncclFloat, ncclSum, comm, nullptr);
            sums[rank] = x[0];
            ncclCommDestroy(comm);
        });
    for (std::thread& t : threads) t.join();
    check(sums[0] == 6 && sums[1] == 6 && sums[2] == 6);
    // One rank alone.
    ncclComm_t alone;
    check(ncclCommInitAll(&alone, 2, nullptr) == ncclInvalidUsage &&
          ncclCommInitAll(&alone, 1, nullptr) == ncclSuccess);
    Numbers<float> x(1, 3.0f);
    check(ncclAllReduce(x.data, x.data, 1, ncclFloat, ncclSum, alone, nullptr) == ncclSuccess && x[0] == 3);
    // What is refused at once.
    float host = 0;
    check(ncclAllReduce(nullptr, x.data, 1, ncclFloat, ncclSum, alone, nullptr) == ncclInvalidArgument);
    check(ncclSend(&host, 1, ncclFloat, 0, alone, nullptr) == ncclInvalidArgument);
    check(ncclSend(x.data, 2, ncclFloat, 0, alone, nullptr) == ncclInvalidArgument);
    check(ncclSend(x.data, 1, ncclFloat, 1, alone, nullptr) == ncclInvalidArgument);
    check(ncclSend(x.data, 1, ncclFloat, 0, nullptr, nullptr) == ncclInvalidArgument);
    check(ncclGroupEnd() == ncclInvalidUsage && *ncclGetLastError(alone));
    int version = 0;
    check(ncclGetVersion(&version) == ncclSuccess && version == NCCL_VERSION_CODE);
    check(ncclCommDestroy(alone) == ncclSuccess);
    ncclComm_t none;
    check(ncclCommInitRank(&none, 2, id, 2) == ncclInvalidArgument);
    check(ncclCommInitRank(&none, 1, ncclUniqueId{}, 0) == ncclInvalidArgument);
}

static void test_devices() {
    setenv("EMU_DEVICES", "3", 1);
    int count = 0, device = -1;
    check(cudaGetDeviceCount(&count) == cudaSuccess && count == 3);
    std::set<std::string> ids;
    for (int d = 0; d < 3; d++) {
        char id[16];
        cudaDeviceProp p;
        check(cudaSetDevice(d) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess && device == d);
        check(cudaDeviceGetPCIBusId(id, sizeof id, d) == cudaSuccess &&
              cudaGetDeviceProperties(&p, d) == cudaSuccess);
        ids.insert(id);
    }
    check(ids.size() == 3);
    cudaDeviceProp p;
    char id[16];
    check(cudaSetDevice(3) == cudaErrorInvalidDevice && cudaSetDevice(-1) == cudaErrorInvalidDevice);
    check(cudaGetDeviceProperties(&p, 3) == cudaErrorInvalidDevice &&
          cudaDeviceGetPCIBusId(id, sizeof id, 3) == cudaErrorInvalidDevice &&
          cudaDeviceGetPCIBusId(id, 4, 0) == cudaErrorInvalidValue);
    check(cudaGetLastError() != cudaSuccess && cudaSetDevice(0) == cudaSuccess);
    // Two ranks on one device; on two machines they are not.
    ncclUniqueId same = new_id();
    check(all_right(in_processes(2, [&](int rank) {
        ncclComm_t comm;
        cudaSetDevice(0);
        check(ncclCommInitRank(&comm, 2, same, rank) == ncclInvalidUsage);
        check(strstr(ncclGetLastError(nullptr), "ranks 0 and 1 are both on device 0"));
    })));
    same = new_id();
    check(all_right(in_processes(2, [&](int rank) {
        cudaSetDevice(0);
        setenv("MOEX_HOST", rank ? "b" : "a", 1);
        ncclCommDestroy(join(same, 2, rank));
    })));
}

// ---- what is wrong (E3) ---------------------------------------------------------------------------------

// Three ranks that do this stop, with the message, in two seconds (on a machine that is busy, a little more).
template <class Body> static void stops_at(int line, Body body, const std::vector<std::string>& parts,
                                           const std::set<size_t>& apart = {}) {
    const ncclUniqueId id = new_id();
    const double begin = seconds();
    const std::vector<Ended> ended = in_processes(3, [&](int rank) {
        const ncclComm_t comm = join(id, 3, rank);
        Numbers<float> x(70000, float(rank)), y(70000, -1.0f);
        body(comm, rank, x.data, y.data);
        ncclCommDestroy(comm);
    });
    check_at(stopped(ended, parts, apart), __FILE__, line, "stops");
    check_at(seconds() - begin < 5, __FILE__, line, strf("stopped after %.1f s", seconds() - begin));
}
#define stops(body, ...) stops_at(__LINE__, body, __VA_ARGS__)

static void test_wrong() {
    // Another count, another type, another call, another root: the calls that came before are counted.
    stops(
        [](ncclComm_t c, int rank, float* x, float* y) {
            for (int i = 0; i < 3; i++) ncclAllReduce(x, y, 5, ncclFloat, ncclSum, c, nullptr);
            if (rank == 0) ncclSend(x, 2048, ncclFloat, 2, c, nullptr);
            if (rank == 2) ncclRecv(y, 4096, ncclFloat, 0, c, nullptr);
            if (rank == 1) ncclRecv(y, 1, ncclFloat, 0, c, nullptr);
        },
        {"rank 2, call 4, receives 4096 float from rank 0, which sends 2048 float (its call 4)"});
    stops(
        [](ncclComm_t c, int rank, float* x, float* y) {
            if (rank == 0) ncclSend(x, 8, ncclFloat, 1, c, nullptr);
            if (rank == 1) ncclRecv(y, 8, ncclInt32, 0, c, nullptr);
            if (rank == 2) ncclRecv(y, 8, ncclFloat, 0, c, nullptr);
        },
        {"rank 1, call 1, receives 8 int32 from rank 0, which sends 8 float"});
    stops(
        [](ncclComm_t c, int rank, float* x, float* y) {
            if (rank != 1) ncclAllReduce(x, y, 8, ncclFloat, ncclSum, c, nullptr);
            if (rank == 1) ncclBroadcast(x, y, 8, ncclFloat, 1, c, nullptr);
        },
        {"ncclAllReduce of 8 float", "ncclBroadcast of 8 float", "its call 1"});
    stops([](ncclComm_t c, int rank, float* x,
             float* y) { ncclAllReduce(x, y, rank == 0 ? 2 : 1, ncclFloat, ncclSum, c, nullptr); },
          {"ncclAllReduce of 2 float", "ncclAllReduce of 1 float"});
    // Sends in another order than the receives.
    stops(
        [](ncclComm_t c, int rank, float* x, float* y) {
            ncclGroupStart();
            if (rank == 0) {
                ncclSend(x, 3, ncclFloat, 1, c, nullptr);
                ncclSend(x, 4, ncclFloat, 1, c, nullptr);
            }
            if (rank == 1) {
                ncclRecv(y, 4, ncclFloat, 0, c, nullptr);
                ncclRecv(y, 3, ncclFloat, 0, c, nullptr);
            }
            if (rank == 2) ncclRecv(y, 4, ncclFloat, 0, c, nullptr);
            ncclGroupEnd();
        },
        {"rank 1, call 1, receives 4 float from rank 0, which sends 3 float (its call 1)"});
    // A cycle of three that a group would have made right.
    stops(
        [](ncclComm_t c, int rank, float* x, float* y) {
            ncclSend(x, 9, ncclFloat, (rank + 1) % 3, c, nullptr);
            ncclRecv(y, 9, ncclFloat, (rank + 2) % 3, c, nullptr);
        },
        {"deadlock: rank 0 waits in call 1 to send 9 float to rank 1; rank 1 waits in call 1 to send 9 float "
         "to rank 2; "
         "rank 2 waits in call 1 to send 9 float to rank 0"});
    // A missing receive, of more than a ring holds; the rank ends.
    stops(
        [](ncclComm_t c, int rank, float* x, float*) {
            if (rank == 0) ncclSend(x, 70000, ncclFloat, 1, c, nullptr);
        },
        {"deadlock: rank 0 waits in call 1 to send 70000 float to rank 1; rank 1 has ended"}, {1, 2});
    // A rank is killed in the middle of a message.
    stops(
        [](ncclComm_t c, int rank, float* x, float* y) {
            if (rank == 1) kill(getpid(), SIGKILL);
            if (rank == 0) ncclRecv(y, 70000, ncclFloat, 1, c, nullptr);
            if (rank == 2) ncclSend(x, 70000, ncclFloat, 0, c, nullptr);
        },
        {"deadlock: rank 0 waits in call 1 to receive 70000 float from rank 1; rank 1 is dead"}, {1});
    // .. before all have come.
    {
        const ncclUniqueId id = new_id();
        const std::vector<Ended> ended = in_processes(3, [&](int rank) {
            if (rank == 1) {
                usleep(300000);
                return;
            }
            if (rank == 2)
                std::thread([] {
                    usleep(600000);
                    _exit(7);
                }).detach();
            join(id, 3, rank);
        });
        check(ended[0].status == 1 &&
                  ended[0].text == "emu: NCCL: rank 0 waits in ncclCommInitRank, rank 2 is dead\n",
              "%s", ended[0].text.c_str());
    }
    // As hardware does: nothing, for ever. Another thread can get it out.
    setenv("EMU_NCCL", "hang", 1);
    const ncclUniqueId id = new_id();
    check(all_right(in_processes(3, [&](int rank) {
        setenv("MOEX_HOST", rank == 1 ? "other" : "", 1);
        const ncclComm_t comm = join(id, 3, rank);
        Numbers<float> x(1);
        if (rank > 0) _exit(0);
        ncclResult_t error = ncclSuccess;
        std::thread watch([&] {
            const double begin = seconds();
            while (error == ncclSuccess && seconds() - begin < 10) {
                usleep(1600000); // longer than a deadlock takes to be seen
                ncclCommGetAsyncError(comm, &error);
            }
            check(error == ncclRemoteError && strstr(ncclGetLastError(comm), "rank 1"));
            ncclCommAbort(comm);
        });
        check(ncclRecv(x.data, 1, ncclFloat, 2, comm, nullptr) == ncclInternalError);
        watch.join();
    })));
    unsetenv("EMU_NCCL");
}

// Files of runs whose makers are dead go when the next id is made; those of the living stay.
static void test_files() {
    const std::string folder = emu::shared_folder(), mine = folder + strf("moex-nccl.%d.x", int(getpid()));
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, nullptr, 0);
    const std::string dead = folder + strf("moex-nccl.%d.x", int(pid));
    for (const std::string& path : {mine, dead}) fclose(fopen(path.c_str(), "w"));
    new_id();
    check(access(mine.c_str(), F_OK) == 0 && access(dead.c_str(), F_OK) != 0);
    unlink(mine.c_str());
}

int main() {
    return run_main([] {
        test_right();
        test_devices();
        test_wrong();
        test_files();
        return finish();
    });
}
