// What an expert takes, in words: see expert_labels.h.
#include "expert_labels.h"

// ---------------------------------------------------------------------------------------------------------
// Literals

namespace {
enum LiteralKind { HERE, BEFORE, NEXT, ENDING, n_literal_kinds };
constexpr const char* kind_words[] = {"the token is ", "the token before is ", "the next token is ",
                                      "the text ends in "};
constexpr const char* kind_negated[] = {"the token is not ", "the token before is not ",
                                        "the next token is not ", "the text does not end in "};

// f(kind, key) of token n.
template <class F> void each_key(const TokenRows& rows, size_t n, F f) {
    const size_t t = n % rows.T;
    const auto id = [&](size_t at) { return uint64_t(uint32_t(rows.tokens[at])); };
    f(HERE, id(n));
    if (t + 1 < rows.T) f(NEXT, id(n + 1));
    if (t == 0) return;
    f(BEFORE, id(n - 1));
    f(ENDING, id(n - 1) << 32 | id(n));
}
} // namespace

Literals expert_literals(const Concepts& concepts, size_t most) {
    const TokenRows& rows = concepts.rows;
    Literals out;
    for (const Concept& c : concepts.list) {
        const std::string at = c.at_dots ? " at a dot" : "";
        out.list.push_back({c.name + at, "not " + c.name + at});
    }
    std::unordered_map<uint64_t, size_t> count[n_literal_kinds], place[n_literal_kinds];
    for (size_t n = 0; n < rows.size(); n++)
        if (concepts.part[concepts.document_of(n)] == TRAIN)
            each_key(rows, n, [&](LiteralKind kind, uint64_t key) { count[kind][key]++; });
    const auto text_of = [&](uint64_t id) {
        return shown(id < concepts.vocabulary.size() ? concepts.vocabulary[id]
                                                     : strf("token %zu", size_t(id)));
    };
    for (size_t kind = 0; kind < n_literal_kinds; kind++) {
        std::vector<std::pair<size_t, uint64_t>>
            order; // the most frequent first, of equal ones the lower key
        for (const auto& [key, times] : count[kind]) order.push_back({SIZE_MAX - times, key});
        std::sort(order.begin(), order.end());
        for (size_t i = 0; i < std::min(most, order.size()); i++) {
            const uint64_t key = order[i].second;
            std::string text = kind == ENDING ? text_of(key >> 32) : "";
            text = quoted(text + text_of(key & 0xFFFFFFFF));
            place[kind][key] = out.list.size();
            out.list.push_back({kind_words[kind] + text, kind_negated[kind] + text});
        }
    }
    out.holds = empty_labels(out.list.size(), rows.size());
    for (size_t c = 0; c < concepts.list.size(); c++)
        each_place(concepts.labels, c, [&](size_t n) {
            if (concepts.asked(c, n)) out.holds.set(c, n);
        });
    for (size_t n = 0; n < rows.size(); n++)
        each_key(rows, n, [&](LiteralKind kind, uint64_t key) {
            if (const auto found = place[kind].find(key); found != place[kind].end())
                out.holds.set(found->second, n);
        });
    return out;
}

std::string Formula::words(const Literals& l) const {
    std::string out;
    for (const uint32_t i : literals)
        out += (out.empty() ? "" : " and ") + (i % 2 ? l.list[i / 2].negated : l.list[i / 2].words);
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// The search

namespace {
// The answers of a list of places, side by side.
Labels gathered(const Labels& from, const std::vector<uint32_t>& places) {
    Labels out = empty_labels(from.cells(), places.size());
    parallel_items(from.cells(), [&](size_t c) {
        for (size_t i = 0; i < places.size(); i++)
            if (from.at(c, places[i])) out.set(c, i);
    });
    return out;
}

// At most `most` tokens of a part, evenly drawn.
std::vector<uint32_t> tokens_of(const Concepts& concepts, Part part, size_t most) {
    std::vector<uint32_t> all, out;
    for (size_t n = 0; n < concepts.rows.size(); n++)
        if (concepts.part[concepts.document_of(n)] == part) all.push_back(uint32_t(n));
    const double step = std::max(1.0, double(all.size()) / double(most));
    for (double at = 0; size_t(at) < all.size(); at += step) out.push_back(all[size_t(at)]);
    return out;
}

struct Totals {
    double yes = 0, no = 0; // places that go to the expert, and the others
    double balanced(double found, double said) const { return (found / yes + 1 - (said - found) / no) / 2; }
};

struct Searched {
    std::vector<uint32_t> literals; // rising
    double score = 0;
    bool operator<(const Searched& o) const {
        return score != o.score ? score > o.score : literals < o.literals;
    }
};

// Of each length the formula of the highest balanced accuracy that the beam meets.
std::vector<Searched> search_formulas(const Labels& literals, const std::vector<uint64_t>& target,
                                      const Totals& all) {
    const size_t words = literals.words, L = literals.cells();
    std::vector<Searched> beam = {{}}, best;
    for (size_t length = 1; length <= most_literals; length++) {
        std::vector<Searched> next;
        for (const Searched& from : beam) {
            std::vector<uint64_t> holds(words), goes(words); // of the formula; and of the expert's among them
            double found = 0, said = 0;
            for (size_t w = 0; w < words; w++) {
                const size_t left = literals.tokens - w * 64;
                uint64_t bits = left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
                for (const uint32_t i : from.literals)
                    bits &= i % 2 ? ~literals.cell(i / 2)[w] : literals.cell(i / 2)[w];
                holds[w] = bits;
                goes[w] = bits & target[w];
                said += std::popcount(bits);
                found += std::popcount(goes[w]);
            }
            for (uint32_t l = 0; l < L; l++) {
                size_t both = 0, both_goes = 0;
                const uint64_t* row = literals.cell(l);
                for (size_t w = 0; w < words; w++) {
                    both += size_t(std::popcount(holds[w] & row[w]));
                    both_goes += size_t(std::popcount(goes[w] & row[w]));
                }
                for (uint32_t negated = 0; negated < 2; negated++) {
                    const uint32_t i = 2 * l + negated;
                    if (std::find_if(from.literals.begin(), from.literals.end(),
                                     [&](uint32_t had) { return had / 2 == l; }) != from.literals.end())
                        continue;
                    Searched s = from;
                    s.literals.insert(std::upper_bound(s.literals.begin(), s.literals.end(), i), i);
                    s.score = negated ? all.balanced(found - double(both_goes), said - double(both))
                                      : all.balanced(double(both_goes), double(both));
                    next.push_back(std::move(s));
                }
            }
            if (next.size() > (1 << 16)) { // keep what can still be among the best
                std::sort(next.begin(), next.end());
                next.erase(std::unique(next.begin(), next.end(),
                                       [](const auto& a, const auto& b) { return a.literals == b.literals; }),
                           next.end());
                next.resize(std::min(next.size(), beam_width));
            }
        }
        std::sort(next.begin(), next.end());
        next.erase(std::unique(next.begin(), next.end(),
                               [](const auto& a, const auto& b) { return a.literals == b.literals; }),
                   next.end());
        next.resize(std::min(next.size(), beam_width));
        if (next.empty()) break;
        best.push_back(next[0]);
        beam = std::move(next);
    }
    return best;
}
} // namespace

std::vector<Formula> best_formulas(const Literals& literals, const Concepts& concepts, const Deal& deal,
                                   const LabelOptions&) {
    struct Places {
        std::vector<uint32_t> token;
        Labels literals;
    } part[2];
    for (const Part p : {TRAIN, VALIDATION}) {
        part[p].token = tokens_of(concepts, p, most_train);
        part[p].literals = gathered(literals.holds, part[p].token);
    }
    std::vector<Formula> out(deal.E);
    parallel_items(deal.E, [&](size_t e) {
        std::vector<uint64_t> target[2];
        Totals counts[2];
        for (size_t p = 0; p < 2; p++) {
            target[p].resize(part[p].literals.words);
            for (size_t i = 0; i < part[p].token.size(); i++) {
                const bool goes = deal.has(part[p].token[i], e);
                target[p][i / 64] |= uint64_t(goes) << (i % 64);
                (goes ? counts[p].yes : counts[p].no)++;
            }
            if (counts[p].yes == 0 || counts[p].no == 0) return;
        }
        const Labels& validation = part[VALIDATION].literals;
        for (const Searched& s : search_formulas(part[TRAIN].literals, target[TRAIN], counts[TRAIN])) {
            double found = 0, said = 0;
            for (size_t i = 0; i < validation.tokens; i++) {
                bool holds = true;
                for (const uint32_t l : s.literals) holds &= validation.at(l / 2, i) != bool(l % 2);
                said += holds;
                found += holds && (target[VALIDATION][i / 64] >> (i % 64) & 1);
            }
            const double on_validation = counts[VALIDATION].balanced(found, said);
            if (out[e].literals.empty() || on_validation > out[e].validation + least_gain)
                out[e] = {s.literals, s.score, on_validation};
        }
    });
    return out;
}

std::vector<uint8_t> token_table(const Deal& deal, const Concepts& concepts, size_t e) {
    std::vector<double> count[2]; // by token: of other experts, of e
    double all[2] = {};
    for (size_t n = 0; n < concepts.rows.size(); n++) {
        if (concepts.part[concepts.document_of(n)] != TRAIN) continue;
        const size_t id = size_t(concepts.rows.tokens[n]);
        for (auto& list : count)
            if (list.size() <= id) list.resize(id + 1);
        const bool goes = deal.has(n, e);
        count[goes][id]++;
        all[goes]++;
    }
    std::vector<uint8_t> more(count[0].size());
    for (size_t id = 0; id < more.size(); id++) more[id] = count[1][id] * all[0] > count[0][id] * all[1];
    return more;
}

// ---------------------------------------------------------------------------------------------------------
// Windows

namespace {
struct Found {
    double importance;
    ExpertWindow window;
};

// Windows of a part in which tokens go to expert e, with the importance of the most important.
std::vector<Found> windows_of(const RoutedLayer& layer, const Concepts& concepts, size_t e, Part part,
                              size_t length) {
    const size_t T = concepts.rows.T, K = layer.deal.K;
    std::vector<Found> out;
    for (uint32_t d = 0; d < concepts.documents(); d++) {
        if (concepts.part[d] != part) continue;
        for (size_t t = 0; t + length <= T; t += length) {
            double most = -1;
            for (size_t at = (d * T + t) * K; at < (d * T + t + length) * K; at++)
                if (layer.deal.expert[at] == e) most = std::max(most, double(layer.importance[at]));
            if (most >= 0) out.push_back({most, {d * T + t, uint16_t(e), false, 0, concepts.block[d]}});
        }
    }
    return out;
}

template <class T> void shuffle(std::vector<T>& list, Random& random) {
    for (size_t n = list.size(); n > 1; n--) std::swap(list[n - 1], list[random.below(n)]);
}

size_t window_length(const Concepts& concepts, const LabelOptions& o) {
    return std::min(o.length, concepts.rows.T);
}
} // namespace

std::vector<ExpertWindow> score_windows(const RoutedLayer& layer, const Concepts& concepts, size_t e,
                                        const LabelOptions& o) {
    const size_t length = window_length(concepts, o), E = layer.deal.E;
    Random random{o.seed, random_stream("score windows") + e};
    std::vector<Found> own = windows_of(layer, concepts, e, TEST, length);
    std::vector<ExpertWindow> out;
    if (own.size() < n_quarters || E < 2) return out;
    std::stable_sort(own.begin(), own.end(),
                     [](const Found& a, const Found& b) { return a.importance < b.importance; });
    for (size_t q = 0; q < n_quarters; q++) {
        std::vector<Found> quarter(own.begin() + long(own.size() * q / n_quarters),
                                   own.begin() + long(own.size() * (q + 1) / n_quarters));
        shuffle(quarter, random);
        for (size_t i = 0; i < std::min(quarter.size(), o.examples / n_quarters); i++) {
            out.push_back(quarter[i].window);
            out.back().yes = true;
            out.back().quarter = uint8_t(q);
        }
    }
    std::vector<std::vector<Found>> others(E);
    std::vector<size_t> left; // experts that have windows left
    for (size_t j = 0; j < E; j++) {
        if (j == e) continue;
        others[j] = windows_of(layer, concepts, j, TEST, length);
        shuffle(others[j], random);
        if (!others[j].empty()) left.push_back(j);
    }
    for (size_t wanted = out.size(); wanted > 0 && !left.empty(); wanted--) {
        const size_t i = random.below(left.size()), j = left[i];
        out.push_back(others[j].back().window);
        others[j].pop_back();
        if (others[j].empty()) left.erase(left.begin() + long(i));
    }
    shuffle(out, random);
    return out;
}

std::vector<ExpertWindow> explain_windows(const RoutedLayer& layer, const Concepts& concepts, size_t e,
                                          size_t count, const LabelOptions& o) {
    std::vector<Found> all = windows_of(layer, concepts, e, TRAIN, window_length(concepts, o));
    std::stable_sort(all.begin(), all.end(),
                     [](const Found& a, const Found& b) { return a.importance > b.importance; });
    const size_t top = std::min(count / 2, all.size());
    std::vector<Found> rest(all.begin() + long(top), all.end());
    Random random{o.seed, random_stream("explain windows") + e};
    shuffle(rest, random);
    rest.resize(std::min(rest.size(), count - top));
    std::vector<ExpertWindow> out;
    for (size_t i = 0; i < top; i++) out.push_back(all[i].window);
    for (const Found& f : rest) out.push_back(f.window);
    return out;
}

bool window_answer(const RoutedLayer& layer, const ExpertWindow& w, size_t length,
                   const std::function<bool(size_t token)>& rule) {
    double yes = 0, all = 0, plain_yes = 0, plain = 0;
    for (size_t n = w.first; n < w.first + length; n++)
        for (size_t k = 0; k < layer.deal.K; k++) {
            const size_t at = n * layer.deal.K + k;
            if (layer.deal.expert[at] != w.marked) continue;
            const bool says = rule(n);
            yes += says * double(layer.importance[at]);
            all += double(layer.importance[at]);
            plain_yes += says;
            plain++;
        }
    return all > 0 ? yes >= all / 2 : plain_yes >= plain / 2; // of no importance at all: each counts alike
}

// ---------------------------------------------------------------------------------------------------------
// Scores

namespace {
// Of one number a window: the mean of the two classes' means, and its standard error with the windows of a
// document as one witness.
std::pair<double, double> class_mean(const std::vector<ExpertWindow>& windows, const std::vector<double>& x) {
    double sum[2] = {}, n[2] = {};
    for (size_t i = 0; i < windows.size(); i++) {
        sum[windows[i].yes] += x[i];
        n[windows[i].yes]++;
    }
    if (n[0] == 0 || n[1] == 0) return {undefined, undefined};
    std::map<uint32_t, double> of_document;
    for (size_t i = 0; i < windows.size(); i++) {
        const size_t yes = windows[i].yes;
        of_document[windows[i].document] += (x[i] - sum[yes] / n[yes]) / (2 * n[yes]);
    }
    double square = 0;
    for (const auto& [document, r] : of_document) square += r * r;
    return {(sum[0] / n[0] + sum[1] / n[1]) / 2, std::sqrt(square)};
}
} // namespace

Detection detection_of(const std::vector<ExpertWindow>& windows, const std::vector<double>& right) {
    Detection out;
    double found = 0, positives = 0, refused = 0, negatives = 0, quarter[n_quarters][2] = {};
    for (size_t i = 0; i < windows.size(); i++) {
        const ExpertWindow& w = windows[i];
        (w.yes ? found : refused) += right[i];
        (w.yes ? positives : negatives)++;
        if (!w.yes) continue;
        quarter[w.quarter][0] += right[i];
        quarter[w.quarter][1]++;
    }
    std::tie(out.balanced, out.error) = class_mean(windows, right);
    out.sensitivity = positives > 0 ? found / positives : undefined;
    out.specificity = negatives > 0 ? refused / negatives : undefined;
    const double said = found + negatives - refused;
    out.f1 = positives + said > 0 ? 2 * found / (positives + said) : undefined;
    for (size_t q = 0; q < n_quarters; q++)
        out.by_quarter[q] = quarter[q][1] > 0 ? quarter[q][0] / quarter[q][1] : undefined;
    return out;
}

std::vector<ExpertLabel> label_experts(const RoutedLayer& layer, const Literals& literals,
                                       const Concepts& concepts, const LabelOptions& o) {
    const size_t E = layer.deal.E, length = window_length(concepts, o);
    RoutedLayer random;
    random.deal = shuffled_rows(layer.deal, concepts.rows.T, o.seed);
    random.importance.assign(layer.importance.size(), 1); // none of its own
    const std::vector<Formula> formulas = best_formulas(literals, concepts, layer.deal, o),
                               by_chance = best_formulas(literals, concepts, random.deal, o);
    std::vector<ExpertLabel> out(E);
    parallel_items(E, [&](size_t e) {
        ExpertLabel& label = out[e];
        label.load = double(std::count(layer.deal.expert.begin(), layer.deal.expert.end(), uint16_t(e))) /
                     double(layer.deal.expert.size());
        label.formula = formulas[e];
        if (formulas[e].literals.empty()) return;
        label.words = formulas[e].words(literals);
        const std::vector<ExpertWindow> windows = score_windows(layer, concepts, e, o),
                                        chance_windows = score_windows(random, concepts, e, o);
        const auto right_of = [&](const RoutedLayer& of, const std::vector<ExpertWindow>& list,
                                  const std::function<bool(size_t)>& rule) {
            std::vector<double> right;
            for (const ExpertWindow& w : list) right.push_back(window_answer(of, w, length, rule) == w.yes);
            return right;
        };
        const auto rule_of = [&](const Formula& f) { return [&](size_t n) { return f.says(literals, n); }; };
        const std::vector<double> own = right_of(layer, windows, rule_of(formulas[e]));
        const std::vector<uint8_t> table = token_table(layer.deal, concepts, e);
        const std::vector<double> token = right_of(layer, windows, [&](size_t n) {
            const size_t id = size_t(concepts.rows.tokens[n]);
            return id < table.size() && table[id];
        });
        std::vector<double> other(windows.size());
        double others = 0;
        for (size_t j = 0; j < E; j++) others += j != e && !formulas[j].literals.empty();
        for (size_t j = 0; j < E; j++) {
            if (j == e || formulas[j].literals.empty()) continue;
            const std::vector<double> right = right_of(layer, windows, rule_of(formulas[j]));
            for (size_t i = 0; i < right.size(); i++) other[i] += right[i] / others;
        }
        label.own = detection_of(windows, own);
        label.token = detection_of(windows, token);
        if (others > 0) label.other = detection_of(windows, other);
        if (!by_chance[e].literals.empty())
            label.random =
                detection_of(chance_windows, right_of(random, chance_windows, rule_of(by_chance[e])));
        const auto over = [&](const std::vector<double>& rival) {
            std::vector<double> difference(own);
            for (size_t i = 0; i < own.size(); i++) difference[i] -= rival[i];
            return class_mean(windows, difference);
        };
        std::tie(label.gain[0], label.error[0]) = over(token);
        if (others > 0) std::tie(label.gain[1], label.error[1]) = over(other);
        label.gain[2] = label.own.balanced - label.random.balanced; // other windows: their errors add up
        label.error[2] = std::hypot(label.own.error, label.random.error);
        label.named = true;
        for (size_t i = 0; i < 3; i++)
            label.named &= label.gain[i] > 0 && label.gain[i] >= sure * label.error[i];
    });
    return out;
}

std::string ExpertLabel::sentence(size_t layer, size_t expert) const {
    return strf(
        "layer %zu, expert %zu takes tokens for which: %s (balanced accuracy %.2f +- %.2f; tokens alone "
        "%.2f, other experts' labels %.2f, random routing %.2f)",
        layer, expert, words.c_str(), own.balanced, 1.96 * own.error, token.balanced, other.balanced,
        random.balanced);
}
