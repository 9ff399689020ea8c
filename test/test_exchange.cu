// Tests of train_moex.cu's section "Several GPUs": whatever the number of GPUs and machines, gradients are
// summed to the bits of one tree, every number is owned by one GPU, and what is sent to all arrives. Each
// rank is a process, by dev/emu or, where there are several GPUs, on them.
#define MOEX_LIBRARY
#include "../train_moex.cu"
#include "forked.h"
#include <sys/mman.h>

// The id of the network, from the rank that makes it to the others.
struct Board {
    volatile int written = 0;
    char id[128];
};
static Board* new_board() {
    void* const p = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) fail("mmap: %s", strerror(errno));
    return new (p) Board;
}
static Exchange joined(Board* board, size_t machines, size_t per_machine, size_t place) {
    Exchange exchange;
    exchange.sharing.lanes = {machines * per_machine, machines, per_machine};
    exchange.sharing.place = place;
    if (place == 0) {
        memcpy(board->id, Network::new_id().data(), sizeof board->id);
        board->written = 1;
    }
    while (!board->written) usleep(1000);
    exchange.network.join(std::string(board->id, sizeof board->id), place, machines * per_machine);
    return exchange;
}

// What place p has of number i.
static float number(size_t p, size_t i) { return float(random_normal(7, p, i)) * (i % 3 ? 1 : 1e4f); }

// The sum over all places by the plain loop: GPUs of a machine in a tree, then machines. Place l * M + m.
static float expected_sum(size_t machines, size_t per_machine, size_t i) {
    std::vector<float> sums;
    for (size_t m = 0; m < machines; m++) {
        std::vector<float> x;
        for (size_t l = 0; l < per_machine; l++) x.push_back(number(l * machines + m, i));
        while (x.size() > 1) {
            const size_t lower = (x.size() + 1) / 2;
            for (size_t k = 0; k + lower < x.size(); k++) x[k] += x[k + lower];
            x.resize(lower);
        }
        sums.push_back(x[0]);
    }
    while (sums.size() > 1) {
        const size_t lower = (sums.size() + 1) / 2;
        for (size_t k = 0; k + lower < sums.size(); k++) sums[k] += sums[k + lower];
        sums.resize(lower);
    }
    return sums[0];
}

template <class T> static std::vector<T> downloaded(const Block<T>& block) {
    cuda_check(cudaDeviceSynchronize());
    std::vector<T> numbers(block.count);
    block.download(numbers.data(), block.count);
    return numbers;
}
static bool same_bits(const float* a, const float* b, size_t n) {
    return memcmp(a, b, n * sizeof(float)) == 0;
}

struct Streams {
    cudaStream_t stream;
    Streams() { cuda_check(cudaStreamCreate(&stream)); }
    ~Streams() { cudaStreamDestroy(stream); }
};

// Pieces one after the other, with numbers before and behind that are nobody's.
static void check_pieces(Exchange& exchange) {
    const Lanes& lanes = exchange.sharing.lanes;
    const size_t P = lanes.places(), place = exchange.sharing.place, guard = 32;
    const Streams s;
    std::vector<Span> pieces;
    size_t end = guard;
    for (const size_t n : {32, 4096 - 32, 4096, 4096 + 32, 40000}) {
        pieces.push_back({end, end + n});
        end += n;
    }
    exchange.received = Block<float>(P * 40960);
    std::vector<float> host(end + guard), sums(end + guard);
    for (size_t i = 0; i < host.size(); i++) {
        const bool in = i >= guard && i < end;
        host[i] = in ? number(place, i) : -1;
        sums[i] = in ? expected_sum(lanes.machines, lanes.per_machine, i) : -1;
    }
    const Block<float> gradients(host.size());
    gradients.upload(host.data(), host.size());
    for (const Span piece : pieces) exchange.reduce(gradients.data, piece, s.stream);
    const std::vector<float> reduced = downloaded(gradients);
    for (const Span piece : pieces) {
        const Span ours = owned(piece, place, P);
        check(same_bits(&reduced[ours.begin], &sums[ours.begin], ours.count()), "place %zu of %zu: the sums",
              place, P);
    }
    check(same_bits(reduced.data(), host.data(), guard) && same_bits(&reduced[end], &host[end], guard));
    for (const Span piece : pieces) exchange.gather(gradients.data, sizeof(float), piece, s.stream);
    check(downloaded(gradients) == sums, "place %zu of %zu: what was gathered", place, P);

    // The same numbers on the host of place 0, from blocks that hold no more than what is owned.
    std::vector<float> collected(place ? 0 : host.size(), -1);
    for (const Span piece : pieces)
        exchange.collect(collected.data(), gradients.data + owned(piece, place, P).begin, piece, s.stream);
    check(place > 0 || collected == sums, "what was collected");

    const std::vector<double> total = exchange.add({1, double(place), place == 1 ? NAN : 0}, s.stream);
    check(total[0] == double(P) && total[1] == double(P * (P - 1) / 2) && std::isnan(total[2]) == (P > 1));
}

// A model's table: norm and totals are those of one GPU that has the sums.
static void check_sums(Exchange& exchange) {
    Config config;
    config.n_layer = 2, config.n_head = 1, config.n_embd = 24, config.block_size = 9, config.vocab_size = 70;
    config.n_expert = 3, config.n_expert_active = 1, config.d_expert = 40;
    const std::vector<Tensor> table = gpu_tensor_table(config);
    const size_t A = 13, count = block_elements(table), words = sizeof(Totals) / sizeof(double);
    const Lanes& lanes = exchange.sharing.lanes;
    const Streams s;
    std::vector<float> host(count), sums(count);
    for (size_t i = 0; i < count; i++) {
        host[i] = number(exchange.sharing.place, i);
        sums[i] = expected_sum(lanes.machines, lanes.per_machine, i);
    }
    Totals result[2];
    for (const bool alone : {false, true}) {
        Exchange one;
        Exchange& all = alone ? one : exchange;
        all.sharing.micro_batches = A;
        const std::vector<Piece> pieces = pieces_of_table(config, table, all.sharing);
        all.received = Block<float>(largest_exchange(pieces, all.sharing));
        const StepSums step({config, table, all.sharing, words});
        const Block<float> gradients(count);
        gradients.upload(alone ? sums.data() : host.data(), count);
        const Block<Totals> totals(1);
        totals.zero();
        const size_t P = all.places(), place = all.sharing.place;
        for (size_t i = place; i < A; i += P) {
            const Totals micro = {0.1 * double(i + 1), 1.0 / double(i + 3), i, NAN, i == 5 ? 15u : 0u};
            cuda_check(cudaMemcpy(step.totals(i), &micro, sizeof micro, cudaMemcpyHostToDevice));
        }
        double* const squares = step.parts.data + step.layout.of_place[place].begin;
        for (const Piece& p : pieces) {
            all.reduce(gradients.data, p.all, s.stream);
            segment_squares(squares + p.squares, gradients.data + p.owned.begin, p.owned.count(), s.stream);
        }
        all.spread(step.parts.data, sizeof(double), all.everyone(step.layout.of_place), s.stream);
        step_totals(totals.data, nullptr, step.parts.data, step.order.data, step.layout.segments, A, 0,
                    s.stream);
        result[alone] = downloaded(totals)[0];
    }
    check(memcmp(&result[0], &result[1], sizeof(Totals)) == 0 && result[0].norm > 0 && result[0].stop == 15,
          "norm %.17g, alone %.17g; loss %.17g, alone %.17g", result[0].norm, result[1].norm, result[0].loss,
          result[1].loss);
}

static int devices() {
    int found = 1;
#ifdef MOEX_EMU
    found = 64;
#else
    int ends[2];
    if (pipe(ends) != 0) fail("pipe: %s", strerror(errno));
    if (fork() == 0) { // CUDA may not be used before the ranks are forked
        cuda_check(cudaGetDeviceCount(&found));
        _exit(write(ends[1], &found, sizeof found) != sizeof found);
    }
    if (read(ends[0], &found, sizeof found) != sizeof found) fail("the GPUs cannot be counted");
    wait(nullptr);
#endif
    return found;
}

int main() {
    return run_main([&] {
        const int found = devices();
        const auto test = [&](size_t machines, size_t per_machine, const char* streams) {
            const size_t P = machines * per_machine;
            if (int(P) > found) return;
            Board* const board = new_board();
            const std::vector<Ended> ended = in_processes(int(P), [&](int place) {
                if (*streams) setenv("EMU_STREAMS", streams, 1);
                Exchange exchange = joined(board, machines, per_machine, size_t(place));
                check_pieces(exchange);
                check_sums(exchange);
            });
            check(all_right(ended), "%zu machines of %zu, %s", machines, per_machine, streams);
        };
        if (found < 2) printf("one GPU: what several exchange is not tested here\n");
        for (size_t P = 1; P <= 16; P++) test(1, P, "");
        for (const size_t per_machine : {1, 2, 3}) test(2, per_machine, "");
        test(3, 2, "");
        test(4, 2, "");
#ifdef MOEX_EMU // streams that run late, in any order they may
        for (int seed = 1; seed <= 10; seed++) test(2, 2, strf("random:%d", seed).c_str());
#endif
        return finish();
    });
}
