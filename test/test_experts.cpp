// Tests of information.h, locality.h and experts.h: planted routings whose answers are known, slow versions,
// and the tool on a small model.
#include "../dev/interp/experts.h"
#include "byte_model.h"
#include "check.h"
#include <filesystem>

using std::string, std::vector;

struct TemporaryFolder {
    string path = (std::filesystem::temp_directory_path() / "test_experts_XXXXXX").string();
    TemporaryFolder() {
        if (!mkdtemp(path.data())) fail("%s: cannot be made", path.c_str());
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

constexpr size_t rows = 200, T = 64, tokens = rows * T;

static Deal deal_of(size_t E, size_t K, const std::function<size_t(size_t n, size_t k)>& expert) {
    Deal deal;
    deal.E = E;
    deal.K = K;
    for (size_t n = 0; n < tokens; n++)
        for (size_t k = 0; k < K; k++) deal.expert.push_back(uint16_t(expert(n, k)));
    return deal;
}
static size_t dice(size_t sides, uint64_t stream, size_t n) {
    return size_t(random_uniform(7, stream, n) * double(sides));
}

// ---------------------------------------------------------------------------------------------------------
// Information

static void test_information() {
    // By hand: 8 tokens, R = 0 0 0 0 1 1 1 1, X = 0 0 0 1 1 1 1 0; corrected as the header says.
    const Kinds R = {0, 0, 0, 0, 1, 1, 1, 1}, X = {0, 0, 0, 1, 1, 1, 1, 0};
    const vector<uint8_t> group = {0, 0, 1, 1, 2, 2, 3, 3};
    const double bits = std::log(2.0), one = 1 + 1 / (16 * bits),
                 both = -2 * (3 / 8.0 * std::log2(3 / 8.0) + 1 / 8.0 * std::log2(1 / 8.0)) + 3 / (16 * bits);
    const Estimate by_hand = told_share(R, X, {}, group);
    check_near(by_hand.value, (2 * one - both) / one, 1e-12);
    check_near(entropy_of(R), one, 1e-12);
    double leave_out[4], mean = 0, square = 0; // the jackknife, group by group
    for (size_t g = 0; g < 4; g++) {
        Kinds r, x;
        vector<uint8_t> rest;
        for (size_t n = 0; n < 8; n++) {
            if (group[n] == g) continue;
            r.push_back(R[n]);
            x.push_back(X[n]);
            rest.push_back(group[n]);
        }
        leave_out[g] = told_share(r, x, {}, rest).value;
        mean += leave_out[g] / 4;
    }
    for (const double v : leave_out) square += (v - mean) * (v - mean);
    check_near(by_hand.interval.high - by_hand.value, 1.96 * std::sqrt(0.75 * square), 1e-12);
    const vector<uint8_t> asked = {1, 1, 1, 0, 1, 1, 1, 0};
    check_near(told_share(R, X, {}, group, &asked).value, 1, 1e-12);
    check(std::isnan(told_share(Kinds(8, 1), X, {}, group).value)); // no entropy to share
}

// Routing by the token, by the token before it, by chance.
static Concepts planted_concepts() {
    Concepts c;
    c.rows.rows = rows;
    c.rows.T = T;
    for (uint32_t d = 0; d < rows; d++) c.block.push_back(d);
    c.part = deal_blocks(c.block);
    c.dot.assign(tokens, 0);
    for (size_t n = 0; n < tokens; n++) {
        c.rows.tokens.push_back(int32_t(dice(8, 1, n)));
        c.rows.group.push_back(uint8_t(dice(3, 2, n)));
    }
    c.list = {{"group", "hidden"}, {"group", "nothing"}};
    c.labels = empty_labels(2, tokens);
    for (size_t n = 0; n < tokens; n++) {
        if (dice(2, 3, n)) c.labels.set(0, n);
        if (dice(2, 4, n)) c.labels.set(1, n);
    }
    return c;
}

static void test_planted() {
    const Concepts c = planted_concepts();
    vector<Labels> moved(2);
    for (size_t i = 0; i < 2; i++)
        for (size_t s = 0; s < n_moved; s++) {
            const Labels one = shifted_labels(c, i, s);
            moved[i].tokens = one.tokens;
            moved[i].words = one.words;
            moved[i].bits.insert(moved[i].bits.end(), one.bits.begin(), one.bits.end());
        }
    const auto token = [&](size_t n) { return size_t(c.rows.tokens[n]); };
    const vector<Deal> deals = {
        deal_of(4, 1, [&](size_t n, size_t) { return token(n) / 2; }),
        deal_of(4, 1, [&](size_t n, size_t) { return n % T ? token(n - 1) / 2 : 0; }),
        deal_of(4, 1, [&](size_t n, size_t) { return dice(2, 3, n); }), // the hidden concept
        deal_of(4, 1, [&](size_t n, size_t) { return dice(4, 5, n); }), // chance
        deal_of(4, 1, [&](size_t n, size_t) { return dice(4, 5, n); }), // as the layer below
    };
    vector<LayerRouting> layers;
    for (size_t l = 0; l < deals.size(); l++) layers.push_back(layer_routing(deals, l, c, moved, 1));
    constexpr double little = 0.005;
    check_near(layers[0].token.value, 1, little);
    check_near(layers[0].entropy, 2, little);
    for (const LayerRouting& layer : {layers[1], layers[2], layers[3]})
        check_near(layer.token.value, 0, little);
    check_near(layers[1].before.value, 1, little);
    check_near(layers[3].before.value, 0, 2 * little);
    check_near(layers[2].concepts[0].beyond.value, 1, little);
    check_near(layers[2].concepts[0].alone.value, 1, little);
    check(layers[2].concepts[0].beyond.interval.low > 0.9);
    check_near(layers[2].concepts[0].moved, 0, little);
    for (size_t l = 0; l < 4; l++)
        check_near(layers[l].concepts[1].beyond.value, layers[l].concepts[1].moved, little);
    check_near(layers[4].below.value, 1, little);
    check_near(layers[3].below.value, 0, little);
    check(std::isnan(layers[0].below.value));
    for (size_t l = 0; l < 4; l++) {
        check_near(layers[l].position.value, 0, 2 * little);
        check_near(layers[l].group.value, 0, 2 * little);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Locality

// SRP from its definition: every window and threshold.
static double slow_srp(const Deal& deal, size_t m) {
    double best = 0;
    for (size_t t = 0; t <= m; t++) {
        double M = 0, P = 0, A = 0;
        for (size_t row = 0; row < rows; row++)
            for (size_t first = 0; first + m <= T; first++)
                for (size_t e = 0; e < deal.E; e++) {
                    size_t c = 0;
                    for (size_t n = row * T + first; n < row * T + first + m; n++) c += deal.has(n, e);
                    A += double(c);
                    M += c >= t ? double(c) : 0;
                    P += c >= t ? double(m) : 0;
                }
        best = std::max(best, 2 * M / (P + A));
    }
    return best;
}

// SCH with a list of experts, told what comes by looking.
static double slow_hits(const Deal& deal, size_t m, size_t size) {
    double found = 0;
    for (size_t row = 0; row < rows; row++) {
        vector<size_t> cache; // the least recently used first
        std::set<size_t> seen;
        for (size_t t = 0; t < T; t++) {
            vector<size_t> wanted;
            for (size_t k = 0; k < deal.K; k++) wanted.push_back(deal.expert[(row * T + t) * deal.K + k]);
            for (const size_t e : wanted) {
                const bool there = std::count(cache.begin(), cache.end(), e);
                found += there || (!seen.count(e) && seen.size() < size);
                seen.insert(e);
            }
            for (const size_t e : wanted) {
                if (const auto at = std::find(cache.begin(), cache.end(), e); at != cache.end()) {
                    cache.erase(at);
                } else if (cache.size() == size) {
                    size_t out = 0, fewest = SIZE_MAX;
                    for (size_t i = 0; i < cache.size(); i++) {
                        size_t uses = 0;
                        for (size_t n = t + 1; n <= t + m && n < T; n++)
                            uses += deal.has(row * T + n, cache[i]);
                        if (uses >= fewest) continue;
                        fewest = uses;
                        out = i;
                    }
                    cache.erase(cache.begin() + long(out));
                }
                cache.push_back(e);
            }
        }
    }
    return found / double(tokens * deal.K);
}

static void test_locality() {
    const Deal one = deal_of(4, 1, [](size_t, size_t) { return 2; }),
               blocks = deal_of(4, 1, [](size_t n, size_t) { return n / 16 % 4; }),
               round = deal_of(4, 1, [](size_t n, size_t) { return n % 4; }),
               chance = deal_of(6, 2, [](size_t n, size_t k) {
                   const size_t first = dice(6, 8, n);
                   return k == 0 ? first : (first + 1 + dice(5, 9, n)) % 6;
               });
    for (const size_t m : {4, 16, 64}) {
        check(segment_routing(one, T, m, 1).srp.value == 1 && cache_hits(one, T, m, 1, FEWEST_TO_COME) == 1);
        for (const Deal* deal : {&blocks, &round, &chance})
            check_near(segment_routing(*deal, T, m, 1).srp.value, slow_srp(*deal, m), 1e-12);
        for (const size_t size : {2, 3, 4})
            for (const Deal* deal : {&blocks, &round, &chance})
                check_near(cache_hits(*deal, T, m, size, FEWEST_TO_COME), slow_hits(*deal, m, size), 1e-12);
        for (const Eviction eviction : {FEWEST_TO_COME, LEAST_RECENT, LEAST_FREQUENT})
            check(cache_hits(chance, T, m, 6, eviction) == 1);
    }
    check_near(segment_routing(one, T, 4, 1).size, 1, 1e-12);
    // Round robin over four with room for two: each use comes when it was just evicted; the first two are
    // free.
    check_near(cache_hits(round, T, 4, 2, LEAST_RECENT), 2.0 / T, 1e-12);
    // Shuffled rows keep loads. Of independent choices they are as local as before, within the noise.
    const Deal shuffled = shuffled_rows(blocks, T, 3), again = shuffled_rows(chance, T, 3);
    check(shuffled.expert != blocks.expert);
    for (size_t row = 0; row < rows; row++)
        for (size_t e = 0; e < 4; e++)
            check(std::count(shuffled.expert.begin() + long(row * T),
                             shuffled.expert.begin() + long((row + 1) * T), e) == 16);
    const Locality before = segment_routing(chance, T, 16, 1), after = segment_routing(again, T, 16, 1);
    const double sd = (before.srp.interval.high - before.srp.interval.low) / 3.92;
    check_near(before.srp.value, after.srp.value, 3 * sd);
    check(segment_routing(blocks, T, 16, 1).srp.value > segment_routing(shuffled, T, 16, 1).srp.value + 0.1);
}

// ---------------------------------------------------------------------------------------------------------
// The tool

static void test_tool(const string& folder) {
    string text;
    for (size_t i = 0; i < 300 * 32 + 1; i++)
        text += "The (cat) saw 12 [big] dogs. "[dice(3, 20, i / 7) ? i % 29 : dice(29, 21, i)];
    ExpertsOptions o;
    o.ckpt = save_byte_model(folder + "/moe.safetensors", "moe", 1);
    o.data = save_byte_shard(folder + "/text.bin", text);
    o.rows = 300;
    o.least = 60;
    o.least_documents = 15;
    const ExpertsReport r = measure_experts(o, cpu_reader);
    check(r.layers.size() == 2 && r.concepts.size() > 5 && r.rows == 300 && r.cache == 2);
    for (const LayerRouting& layer : r.layers) {
        check(layer.entropy > 0 && layer.entropy <= 2.01);
        check(layer.token.value > 0.1 && layer.token.value < 1.01);
        check(layer.windows.size() == 2); // of 4 and 16: a row has 32
    }
    const size_t threads = thread_count();
    set_thread_count(3);
    check(without_times(experts_json(measure_experts(o, cpu_reader))) == without_times(experts_json(r)));
    set_thread_count(threads);
    const Json json = parse_json(experts_json(r), "experts.json");
    check(json.find("weights")->text == weights_hash(r.checkpoint) && json.find("layers")->items.size() == 2);
    ExpertsOptions bad = o;
    bad.ckpt = save_byte_model(folder + "/dense.safetensors", "dense", 1);
    check_error(measure_experts(bad, cpu_reader), "dense", "mixture");
    bad = o;
    bad.data = "";
    check_error(measure_experts(bad, cpu_reader), "--data");
}

int main() {
    return run_main([] {
        const TemporaryFolder folder;
        test_information();
        test_planted();
        test_locality();
        test_tool(folder.path);
        return finish();
    });
}
