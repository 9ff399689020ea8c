// The loader: batches of (input, target) token sequences from all shards of a glob, in an order that depends
// on nothing but the seed and the position, which is also all that has to be saved to resume.
//   sample    rows (R > 0): a row's first T+1 tokens; streams: tokens w*T .. w*T+T of a shard, w = 0, 1, ..
//             (neighbours share one token: the last target of one is the first input of the next; what is
//             left at the end of a shard and fills no window is not used)
//   position  the number of samples handed out so far: position p is sample
//             permutation(epoch p / samples)[p % samples], whatever the batch size or stops before it
// Several GPUs each read() what is theirs of the step's samples, and move the position by all of them.
#pragma once
#include "../dev/lib/random.h"
#include "shard.h"

// The pseudo-random permutation of 0..n-1 that belongs to `key`, at i < n. It is computed, not stored: no
// memory for a billion samples, nothing to shuffle at the start of an epoch, nothing to save or replay to
// resume, and every rank knows every place of it.
// A Feistel network (left, right -> right, left ^ f(right)) is a permutation of 0..4^h-1 whatever f is. With
// the smallest h such that 4^h >= n, a value at or beyond n is sent through again until it falls below n:
// that is the same cycle with the foreign places cut out, so still a permutation, and takes under 4 passes on
// average.
inline uint64_t permuted(uint64_t i, uint64_t n, uint64_t key) {
    int h = 1;
    while (h < 32 && (n - 1) >> 2 * h) h++;
    const uint64_t mask = (uint64_t(1) << h) - 1;
    do {
        uint64_t left = i >> h, right = i & mask;
        for (uint64_t round = 0; round < 8; round++) {
            const uint64_t mixed = left ^ (random_u64(key, round, right) & mask);
            left = right, right = mixed;
        }
        i = left << h | right;
    } while (i >= n);
    return i;
}

struct Loader {
    size_t T;            // positions of a sample
    size_t V;            // vocabulary: a token at or beyond it is refused; 0 for any token
    Tokenizer tokenizer; // of the shards
    size_t row;          // of the shards, 0 for streams
    size_t n_shards;
    size_t samples;          // of one epoch, over all shards
    size_t tokens_per_epoch; // samples * T
    uint64_t position = 0;   // the whole state: save it, set it back to resume

    // shuffle = false: samples in the order of the files. Refuses a T that the shards cannot serve.
    Loader(const std::string& pattern, size_t T, size_t V, bool shuffle, uint64_t seed)
        : T(T), V(V), shards(open_shards(pattern)), shuffle(shuffle), seed(seed) {
        if (T == 0) fail("%s: T = 0, expected at least one position", pattern.c_str());
        tokenizer = shards[0].header.tokenizer;
        row = shards[0].header.row;
        n_shards = shards.size();
        if (row && T > row - 1)
            fail("%s: T = %zu, expected at most %zu: its rows are %zu tokens, one more than the positions",
                 shards[0].file.path.c_str(), T, row - 1, row);
        size_t longest = 0;
        first_sample.push_back(0);
        for (const Shard& shard : shards) {
            const size_t tokens = shard.header.tokens;
            first_sample.push_back(first_sample.back() + (row ? tokens / row : (tokens - 1) / T));
            longest = std::max(longest, tokens);
        }
        samples = first_sample.back();
        tokens_per_epoch = samples * T;
        if (samples == 0)
            fail("%s: no shard is long enough for T = %zu, expected %zu tokens or more, the longest has %zu",
                 pattern.c_str(), T, T + 1, longest);
    }

    // Samples first .. first + B-1, inputs (B,T) and targets (B,T), targets one token ahead, whatever the
    // position is.
    void read(uint64_t first, size_t B, int32_t* inputs, int32_t* targets) const {
        for (size_t b = 0; b < B; b++) copy(find(first + b), inputs + b * T, targets + b * T);
    }

    // To be called when a batch has been read: while the caller computes on it, the system reads this one
    // into memory. Only a hint, which returns at once, so that read() finds its pages and never waits for the
    // disk.
    void will_need(uint64_t first, size_t B) const {
        for (size_t b = 0; b < B; b++) will_need(find(first + b));
    }

    // The next B samples, inputs (B,T) and targets (B,T), targets one token ahead. A batch may run over the
    // end of an epoch.
    void next(size_t B, int32_t* inputs, int32_t* targets) {
        read(position, B, inputs, targets);
        position += B;
        will_need(position, B);
    }

  private:
    std::vector<Shard> shards;
    std::vector<size_t> first_sample; // (n_shards+1) number of the first sample of each shard, then samples
    bool shuffle;
    uint64_t seed;

    struct Place {
        const Shard& shard;
        size_t begin; // the sample is tokens[begin] .. tokens[begin + T]
    };

    Place find(uint64_t p) const {
        const uint64_t epoch = p / samples, index = p % samples;
        const size_t sample =
            shuffle ? permuted(index, samples, random_u64(seed, random_stream("epoch"), epoch)) : index;
        const size_t s =
            std::upper_bound(first_sample.begin(), first_sample.end(), sample) - first_sample.begin() - 1;
        return {shards[s], (sample - first_sample[s]) * (row ? row : T)};
    }

    void copy(const Place& place, int32_t* inputs, int32_t* targets) const {
        std::vector<uint16_t> tokens(T + 1);
        place.shard.read(place.begin, T + 1, tokens.data());
        uint16_t highest = tokens[T];
        for (size_t t = 0; t < T; t++) {
            inputs[t] = tokens[t];
            targets[t] = tokens[t + 1];
            highest = std::max(highest, tokens[t]);
        }
        if (V == 0 || highest < V) return;
        const size_t at =
            std::find_if(tokens.begin(), tokens.end(), [&](uint16_t x) { return x >= V; }) - tokens.begin();
        fail_data("%s: token %zu is %d, expected less than %zu, the model's vocabulary",
                  place.shard.file.path.c_str(), place.begin + at, tokens[at], V);
    }

    void will_need(const Place& place) const {
        const uintptr_t page = sysconf(_SC_PAGESIZE), begin = uintptr_t(place.shard.tokens + place.begin);
        const uintptr_t from = begin - begin % page, to = begin + (T + 1) * sizeof(uint16_t);
        madvise((void*)from, to - from, MADV_WILLNEED); // a refusal costs nothing but the wait
    }
};
