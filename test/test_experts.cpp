// Tests of information.h, locality.h and experts.h: planted routings whose answers are known, slow versions,
// and the tool on a small model.
#include "../dev/cpu/model.h"
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
    check_near(layers[0].slots[0].token.value, 1, little);
    check_near(layers[0].slots[0].entropy, 2, little);
    for (const LayerRouting& layer : {layers[1], layers[2], layers[3]})
        check_near(layer.slots[0].token.value, 0, little);
    check_near(layers[1].slots[0].before.value, 1, little);
    check_near(layers[3].slots[0].before.value, 0, 2 * little);
    check_near(layers[2].concepts[0].beyond.value, 1, little);
    check_near(layers[2].concepts[0].alone.value, 1, little);
    check(layers[2].concepts[0].beyond.interval.low > 0.9);
    check_near(layers[2].concepts[0].moved, 0, little);
    for (size_t l = 0; l < 4; l++)
        check_near(layers[l].concepts[1].beyond.value, layers[l].concepts[1].moved, little);
    check_near(layers[4].slots[0].below.value, 1, little);
    check_near(layers[3].slots[0].below.value, 0, little);
    check(std::isnan(layers[0].slots[0].below.value));
    for (size_t l = 0; l < 4; l++) {
        check_near(layers[l].slots[0].position.value, 0, 2 * little);
        check_near(layers[l].slots[0].group.value, 0, 2 * little);
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
// Clusters

static void test_clusters() {
    // Eight directions, each five times at other lengths: eight clusters of five, whatever they begin with.
    constexpr size_t n = 40, C = 8;
    vector<float> vectors(n * C);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C; c++)
            vectors[i * C + c] = float(c == i % 8) + 0.01f * float(random_normal(1, i, c));
    size_t best = 0; // of ten beginnings, since two may begin in one direction
    for (uint64_t seed = 0; seed < 10; seed++) {
        const vector<uint32_t> cluster = spherical_clusters(vectors.data(), n, C, 8, seed);
        check(cluster == spherical_clusters(vectors.data(), n, C, 8, seed));
        std::set<std::pair<size_t, uint32_t>> pairs;
        for (size_t i = 0; i < n; i++) pairs.insert({i % 8, cluster[i]});
        std::set<uint32_t> used(cluster.begin(), cluster.end());
        best = std::max(best, pairs.size() == 8 ? used.size() : 0);
    }
    check(best >= 6, "%zu", best);

    // Every expert has a cluster of its own: the most that is possible. All alike: nothing.
    constexpr size_t E = 8;
    vector<double> own(E * E), alike(E * E), chance(E * 16);
    for (size_t e = 0; e < E; e++)
        for (size_t c = 0; c < E; c++) {
            own[e * E + c] = e == c ? 50000 : 0;
            alike[e * E + c] = double(10000 * (1 + c));
        }
    check_near(most_divergence(1.0 / 8), 0.717, 0.0005); // as the paper's bound
    check_near(specialization(own, E, E, 1).value, 1, 0.001);
    check_near(specialization(alike, E, E, 1).value, 0, 0.001);
    for (size_t i = 0; i < 20000; i++) chance[dice(E, 30, i) * 16 + dice(16, 31, i)]++;
    const Estimate none = specialization(chance, E, 16, 1);
    check_near(none.value, 0, 2 * (none.interval.high - none.value) / 1.96 + 1e-4);
    check(std::isnan(specialization({5, 5}, 1, 2, 1).interval.low)); // one expert
}

// ---------------------------------------------------------------------------------------------------------
// Labels

static RoutedLayer routed_layer(size_t E, size_t K, const std::function<size_t(size_t n, size_t k)>& expert) {
    RoutedLayer layer;
    layer.deal = deal_of(E, K, expert);
    for (size_t i = 0; i < tokens * K; i++) layer.importance.push_back(float(random_uniform(7, 40, i)));
    return layer;
}

static void test_labels() {
    const Concepts c = planted_concepts();
    const Literals literals = expert_literals(c);
    const LabelOptions o = {16, 80, 1};
    const auto token = [&](size_t n) { return c.rows.tokens[n]; };
    check(literals.list.size() == 2 + 3 * 8 + 64); // concepts, tokens, endings
    for (size_t i = 0; i < literals.list.size(); i++) {
        size_t wrong = 0;
        for (size_t n = 0; n < tokens && literals.list[i].words == "the token before is 'token 3'"; n++)
            wrong += literals.holds.at(i, n) != (n % T > 0 && token(n - 1) == 3);
        check(wrong == 0);
    }

    // By the token: found, but not more than the token.
    const auto by_token =
        label_experts(routed_layer(4, 1, [&](size_t n, size_t) { return token(n) / 2; }), literals, c, o);
    for (const ExpertLabel& x : by_token) {
        check(x.token.balanced == 1 && !x.named && x.own.balanced > 0.6, "%g", x.own.balanced);
        check_near(x.load, 0.25, 0.02);
    }
    const auto one_token =
        label_experts(routed_layer(2, 1, [&](size_t n, size_t) { return token(n) == 5; }), literals, c, o);
    check(one_token[1].words == "the token is 'token 5'" && one_token[1].own.balanced == 1);
    check(one_token[1].formula.validation == 1 && !one_token[1].named);

    // By the token before: the token alone fails, the label is found and named.
    const auto by_before = label_experts(
        routed_layer(4, 1,
                     [&](size_t n, size_t) {
                         return n % T && token(n - 1) == 3 ? 1 : dice(3, 41, n) == 0 ? 0 : 1 + dice(3, 41, n);
                     }),
        literals, c, o);
    check(by_before[1].words == "the token before is 'token 3'" && by_before[1].named);
    check(by_before[1].own.balanced == 1 && by_before[1].own.f1 == 1 && by_before[1].token.balanced < 0.65);
    check(by_before[1].sentence(2, 1).find("layer 2, expert 1 takes tokens for which: the token before is") ==
          0);

    // Two literals.
    const auto both = label_experts(
        routed_layer(2, 1, [&](size_t n, size_t) { return c.labels.at(0, n) && token(n) == 2; }), literals, c,
        o);
    check(both[1].words == "hidden and the token is 'token 2'" && both[1].own.balanced == 1, "%s",
          both[1].words.c_str());
    // A concept, which two of four experts never see; and its negation.
    const auto hidden = label_experts(routed_layer(4, 1, [&](size_t n, size_t) { return c.labels.at(0, n); }),
                                      literals, c, o);
    check(hidden[1].words == "hidden" && hidden[1].named && hidden[0].words == "not hidden" &&
          hidden[0].named);
    check(hidden[2].words.empty() && !hidden[2].named && hidden[2].load == 0);
    // Chance, and a bit that is no concept: nothing is named.
    for (const uint64_t stream : {5, 42})
        for (const ExpertLabel& x : label_experts(
                 routed_layer(4, 1, [&](size_t n, size_t) { return dice(4, stream, n); }), literals, c, o)) {
            check(!x.named && std::fabs(x.own.balanced - 0.5) < 4 * x.own.error, "%s: %g +- %g",
                  x.words.c_str(), x.own.balanced, x.own.error);
            check(std::fabs(x.random.balanced - 0.5) < 4 * x.random.error);
        }
    // Two experts that always go together.
    const auto twins = label_experts(
        routed_layer(4, 2, [&](size_t n, size_t k) { return (token(n) < 4 ? 0 : 2) + k; }), literals, c, o);
    check(twins[0].words == twins[1].words && twins[2].words == twins[3].words &&
          twins[0].words != twins[2].words);
}

static void test_windows() {
    const Concepts c = planted_concepts();
    const RoutedLayer layer =
        routed_layer(4, 2, [&](size_t n, size_t k) { return (dice(4, 43, n) + k * 2) % 4; });
    const LabelOptions o = {16, 80, 1};
    for (size_t e = 0; e < 4; e++) {
        const vector<ExpertWindow> score = score_windows(layer, c, e, o),
                                   explain = explain_windows(layer, c, e, 20, o);
        size_t yes = 0, quarter[n_quarters] = {}, wrong = 0;
        std::set<size_t> places;
        double top[n_quarters] = {};
        for (const ExpertWindow& w : score) {
            wrong += c.part[w.first / T] != TEST || w.first % 16 != 0 || (w.marked == e) != w.yes;
            double most = -1;
            for (size_t at = w.first * 2; at < (w.first + 16) * 2; at++)
                if (layer.deal.expert[at] == w.marked) most = std::max(most, double(layer.importance[at]));
            wrong += most < 0;
            yes += w.yes;
            if (!w.yes) continue;
            quarter[w.quarter]++;
            top[w.quarter] += most / 20;
            wrong += !places.insert(w.first).second;
        }
        check(wrong == 0 && score.size() == 160 && yes == 80, "%zu wrong", wrong);
        for (size_t q = 0; q < n_quarters; q++) check(quarter[q] == 20 && (q == 0 || top[q] > top[q - 1]));
        check(explain.size() == 20);
        for (const ExpertWindow& w : explain) check(c.part[w.first / T] == TRAIN && w.marked == e);
    }
    // By hand: of a window's marked tokens, 0 and 2, the second weighs more.
    RoutedLayer three;
    three.deal.E = 2;
    three.deal.expert = {1, 0, 1};
    three.importance = {1, 9, 2};
    const ExpertWindow w = {0, 1, true, 0, 0};
    check(window_answer(three, w, 3, [](size_t n) { return n == 2; }));
    check(!window_answer(three, w, 3, [](size_t n) { return n < 2; }));
    three.importance = {0, 9, 0}; // of no importance: each counts alike, half is enough
    check(window_answer(three, w, 3, [](size_t n) { return n < 2; }));
    check(!window_answer(three, w, 3, [](size_t n) { return n == 1; }));

    // Two positives, one of them found; two negatives, both refused.
    vector<ExpertWindow> four = {
        {0, 1, true, 0, 0}, {0, 1, true, 3, 1}, {0, 0, false, 0, 2}, {0, 0, false, 0, 3}};
    const Detection d = detection_of(four, {1, 0, 1, 1});
    check(d.balanced == 0.75 && d.sensitivity == 0.5 && d.specificity == 1 && d.by_quarter[0] == 1 &&
          d.by_quarter[3] == 0 && std::isnan(d.by_quarter[1]));
    check_near(d.f1, 2 / 3.0, 1e-12);
    check_near(d.error, std::sqrt(2.0) / 8, 1e-12);
    four[1].document = 0; // one witness: what one misses the other has
    check_near(detection_of(four, {1, 0, 1, 1}).error, 0, 1e-12);
}

static void test_answers(const string& folder) {
    const Concepts c = planted_concepts();
    const vector<RoutedLayer> routed = {
        routed_layer(3, 1, [&](size_t n, size_t) { return c.labels.at(0, n) ? 1 : 2 * dice(2, 44, n); })};
    const LabelOptions o = {16, 40, 1};
    Concepts named = c;
    for (size_t id = 0; id < 8; id++) named.vocabulary.push_back(string(1, char('a' + id)));
    const auto windows = expert_windows(routed[0], named, 0, o);
    check(windows.size() == 3 && windows[0].control == "0/1" && windows[2].control == "0/0");
    const Json line = parse_json(windows[1].line, "windows");
    check(line.find("name")->text == "0/1" && line.find("windows")->text == windows[1].hash);
    check(line.find("score")->items.size() == windows[1].score.size());
    const Json& piece = line.find("explain")->items[0];
    string plain = piece.find("text")->text;
    check(plain.find("<<") != string::npos && piece.find("strongest")->items[0].items[1].int64() == 10);
    for (const char* mark : {"<<", ">>"})
        for (size_t at; (at = plain.find(mark)) != string::npos;) plain.erase(at, 2);
    check(plain.size() == 16 && plain.find_first_not_of("abcdefgh") == string::npos, "%s", plain.c_str());

    const string path = folder + "/answers.jsonl";
    const auto answers_of = [&](const ExpertWindows& w, bool truth, bool other, size_t unread) {
        JsonWriter out;
        out.open('{').member("name", w.name).member("windows", w.hash).member("hypothesis", "it is hidden");
        for (const auto& [key, right] : {std::pair{"answers", truth}, {"control_answers", other}}) {
            string list;
            for (size_t i = 0; i < w.score.size(); i++)
                list += string(i ? "," : "") + (i < unread ? "null" : w.score[i].yes == right ? "1" : "0");
            out.key(key).open('[').close();
            out.text.insert(out.text.size() - 1, list);
        }
        return out.close().text + "\n";
    };
    const auto read = [&](const string& text) {
        AtomicFile file(path);
        file.write(text.data(), text.size());
        file.commit();
        return read_answers(path, {windows}, routed, named, o)[0];
    };
    const vector<LanguageScore> scores =
        read(answers_of(windows[1], true, false, 0) +
             answers_of(windows[0], true, true, windows[0].score.size() / 4));
    check(scores[1].answered && scores[1].own.balanced == 1 && scores[1].control.balanced == 0 &&
          scores[1].named);
    check(scores[1].hypothesis == "it is hidden" && scores[1].unread == 0 && !scores[2].answered);
    check_near(scores[0].unread, 0.25, 0.01); // unread counts as wrong
    check_near((scores[0].own.sensitivity + scores[0].own.specificity) / 2, 0.75, 0.1);
    check(!scores[0].named); // the control tells as much
    const string good = answers_of(windows[1], true, false, 0);
    const auto with = [&](const string& from, const string& to) {
        string text = good;
        return text.replace(text.find(from), from.size(), to);
    };
    check_error(read(good + good), "answers.jsonl: line 2", "second time");
    check_error(read(with("\"0/1\"", "\"0/7\"")), "line 1", "'0/7'");
    check_error(read(with(windows[1].hash, windows[0].hash)), "other windows");
    check_error(read(with("[", "[1,")), "answers", strf("a list of %zu", windows[1].score.size()).c_str());
    check_error(read(with("[1", "[2") == good ? with("[0", "[2") : with("[1", "[2")), "0, 1 or null");
    check_error(read(with("hypothesis", "hypotheses")), "no hypothesis");
    check_error(read("{"), "line 1");
}

// ---------------------------------------------------------------------------------------------------------
// The tool

// What experts put out, as the model itself has it.
static void test_importance(const string& ckpt) {
    const SafeTensorsFile file(ckpt);
    const Config c = read_config(file);
    Reader reader = cpu_reader(c, 2, 32);
    load_weights(reader, file);
    Model model(c, 2, 32, false);
    read_block(file, model.table, "", model.weights.data);
    TokenRows rows_of;
    rows_of.rows = 2;
    rows_of.T = 32;
    for (size_t n = 0; n < 64; n++) rows_of.tokens.push_back(int32_t(dice(200, 50, n)));
    const vector<RoutedLayer> routed = read_routing(reader, rows_of);
    forward_layers(model, rows_of.tokens.data(), 2, 32);
    for (size_t l = 0; l < c.n_layer; l++)
        for (size_t i = 0; i < 64 * c.n_expert_active; i++) {
            const LayerActivations& h = model.a.h[l];
            double square = 0;
            for (size_t j = 0; j < c.n_embd; j++) {
                const double y = h.y[size_t(h.slot[i]) * c.n_embd + j];
                square += y * y;
            }
            check_near(routed[l].importance[i], h.weight[i] * std::sqrt(square), 1e-6);
            check(routed[l].deal.expert[i] == h.choice[i]);
        }
}

// Off, zero and a position against plain passes of models that are made so; DLA against the logit.
static void test_effects(const string& ckpt, const string& changed) {
    { // every tensor is random, biases too
        const SafeTensorsFile from(ckpt);
        const Config c = read_config(from);
        Reader reader = cpu_reader(c, 1, 8);
        load_weights(reader, from);
        for (const Tensor& t : reader.table)
            for (size_t i = 0; i < t.count; i++)
                reader.weights()[t.offset + i] += 0.1f * float(random_normal(3, t.offset, i));
        save_model(changed, c, reader.table, reader.weights(), 7);
    }
    const SafeTensorsFile file(changed);
    const Config c = read_config(file);
    constexpr size_t length = 32, documents = 8;
    Concepts asked;
    asked.rows.rows = documents;
    asked.rows.T = length;
    for (uint32_t d = 0; d < documents; d++) asked.block.push_back(d);
    asked.part.assign(documents, TEST);
    asked.dot.assign(documents * length, 0);
    for (size_t n = 0; n < documents * length; n++) asked.rows.tokens.push_back(int32_t(dice(200, 51, n)));
    asked.list = {{"group", "first half"}};
    asked.labels = empty_labels(1, documents * length);
    for (size_t n = 0; n < documents * length; n++)
        if (n % length < 16) asked.labels.set(0, n);
    Reader reader = cpu_reader(c, 4, length);
    load_weights(reader, file);
    const vector<RoutedLayer> routed = read_routing(reader, asked.rows);
    const auto second_half = [](size_t, size_t, size_t n) { return n % length >= 16; };
    const vector<LayerEffects> effects =
        expert_effects(file, c, routed, asked, second_half, {documents, 6, 1});

    // Layer 1, expert 2.
    constexpr size_t l = 1, e = 2;
    const ExpertEffect& x = effects[l].experts[e];
    Model plain(c, documents, length, false), without(c, documents, length, false);
    read_block(file, plain.table, "", plain.weights.data);
    read_block(file, without.table, "", without.weights.data);
    const vector<float> with = next_log_p(plain, asked.rows.tokens, length);
    Model switched(c, documents, length, false);
    read_block(file, switched.table, "", switched.weights.data);
    switched.routing.set(c, l, e, Routing::off);
    const vector<float> off = next_log_p(switched, asked.rows.tokens, length);
    // By hand: with b_enc far above 0 all of its units would fire, so g = -1, the lowest there is.
    std::fill_n(without.w.h[l].b_enc + e * c.d_expert, c.d_expert, real(1e6));
    const vector<float> by_hand = next_log_p(without, asked.rows.tokens, length);
    double worst = 0, mean = 0, zero_mean = 0, inside = 0, outside = 0, first_half = 0;
    for (size_t i = 0; i < off.size(); i++) worst = std::max(worst, std::fabs(double(off[i]) - by_hand[i]));
    check(worst < 1e-6, "%g", worst);
    const size_t n = off.size();
    size_t in = 0, half = 0;
    for (size_t i = 0; i < n; i++) {
        const double change = double(off[i]) - with[i];
        mean += change / double(n);
        const bool second = i % (length - 1) >= 16;
        (second ? inside : outside) += change;
        in += second;
        if (!second) first_half += change;
        half += !second;
    }
    check_near(x.off.value, mean, 1e-6);
    check_near(x.inside.value, inside / double(in), 1e-6);
    check_near(x.outside.value, outside / double(n - in), 1e-6);
    check_near(x.by_concept[0].value, first_half / double(half), 1e-6);
    check(x.off.interval.low <= x.off.value && x.off.value <= x.off.interval.high && x.off.value != 0);
    check(x.other != e && x.other < 4);
    check_near(x.control.value, effects[l].experts[x.other].inside.value,
               1e-9); // here every label is the same
    check_near(x.beyond.value, x.inside.value - x.control.value, 1e-6);

    // Zero: what comes is the same choice without its output.
    Model zero(c, documents, length, false);
    read_block(file, zero.table, "", zero.weights.data);
    std::fill_n(zero.w.h[l].w_dec + e * c.d_expert * c.n_embd, c.d_expert * c.n_embd, real(0));
    std::fill_n(zero.w.h[l].b_dec + e * c.n_embd, c.n_embd, real(0));
    const vector<float> nothing = next_log_p(zero, asked.rows.tokens, length);
    for (size_t i = 0; i < n; i++) zero_mean += (double(nothing[i]) - with[i]) / double(n);
    check_near(x.zero.value, zero_mean, 1e-6);
    // At a position of the last layer: nothing stands behind it, so there zero does the same.
    check(x.triggers > 0 && x.triggers <= 6 && std::isfinite(x.at_position) && std::isfinite(x.dla));
    double at_most = 0;
    for (size_t i = 0; i < n; i++) at_most = std::max(at_most, std::fabs(double(nothing[i]) - with[i]));
    check(std::fabs(x.at_position) <= at_most + 1e-6 && x.at_position != 0);
    check(std::fabs(effects[l].agreement.value) <= 1);

    // DLA of all that is added to the stream, and of the biases, is the logit.
    forward_logits(plain, asked.rows.tokens.data(), documents, length);
    const size_t C = c.n_embd, K = c.n_expert_active;
    for (const size_t place : {size_t(0), size_t(37), documents * length - 1})
        for (const size_t v : {0, 100, 256}) {
            const float* wte_v = plain.w.wte + v * C;
            double sum = 0;
            const auto add = [&](const float* u) {
                sum += direct_logit(u, wte_v, plain.w.ln_f_weight, plain.a.ln_f_rstd[place], C);
            };
            add(plain.a.embedded + place * C);
            for (size_t layer = 0; layer < c.n_layer; layer++) {
                const LayerActivations& h = plain.a.h[layer];
                const float* before = (layer ? plain.a.h[layer - 1].out : plain.a.embedded) + place * C;
                vector<float> u(C);
                for (size_t i = 0; i < C; i++) u[i] = h.mid[place * C + i] - before[i];
                add(u.data());
                for (size_t k = 0; k < K; k++) {
                    for (size_t i = 0; i < C; i++)
                        u[i] = h.weight[place * K + k] * h.y[size_t(h.slot[place * K + k]) * C + i];
                    add(u.data());
                }
            }
            for (size_t i = 0; i < C; i++) sum += double(wte_v[i]) * plain.w.ln_f_bias[i];
            check_near(sum, plain.a.logits[place * c.vocab_size + v], 1e-4);
        }
}

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
        check(layer.slots.size() == 2 &&
              layer.clustered.size() == 3); // of 4, 16 and 64 clusters of 257 bytes
        for (const LayerRouting::Slot& slot : layer.slots) {
            check(slot.entropy > 0 && slot.entropy <= 2.01);
            check(slot.token.value > 0.1 && slot.token.value < 1.01);
        }
        check(layer.windows.size() == 2); // of 4 and 16: a row has 32
    }
    const size_t threads = thread_count();
    set_thread_count(3);
    check(without_times(experts_json(measure_experts(o, cpu_reader))) == without_times(experts_json(r)));
    set_thread_count(threads);
    test_importance(o.ckpt);
    test_effects(o.ckpt, folder + "/changed.safetensors");
    check(r.effects.size() == 2 && r.effects[0].experts.size() == 4);
    for (const auto& layer : r.labels) {
        check(layer.size() == 4);
        for (const ExpertLabel& x : layer)
            check(x.own.balanced >= 0 && x.own.balanced <= 1 && !x.words.empty());
    }
    ExpertsOptions asked = o;
    asked.windows = folder + "/windows.jsonl";
    measure_experts(asked, cpu_reader);
    const MappedFile windows(asked.windows);
    check(std::count(windows.data, windows.data + windows.size, '\n') == 8);
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
        test_clusters();
        test_labels();
        test_windows();
        test_answers(folder.path);
        test_tool(folder.path);
        return finish();
    });
}
