// The figures of a concept, and what all of them say: see probe.h, section 4.
#include "probe.h"

Figures figures_of(const ConceptCells& cells, size_t k, double positives) {
    Figures f;
    double best = -1, best_pooled = -1;
    for (size_t l = 0; l < cells.size(); l++) {
        Tally validation, test;
        for (size_t e = 0; e < cells[l].size(); e++) {
            const CellResult::AtK& at = cells[l][e].at[k];
            validation.add(at.validation);
            test.add(at.test);
            if (!cells[l][e].probed) continue;
            if (!(f.A >= at.test.f1())) f.A = at.test.f1();
            if (!(f.always_most >= at.test.always())) f.always_most = at.test.always();
            if (!(at.validation.f1() > best)) continue;
            best = at.validation.f1();
            f.B = at.test.f1();
            f.C = at.test.balanced();
            f.auroc = at.auroc;
            f.always = at.test.always();
            f.coverage = at.test.positives() / positives;
            f.layer = l;
            f.cell = e;
        }
        if (!(validation.balanced() > best_pooled)) continue;
        best_pooled = f.D_validation = validation.balanced();
        f.D = test.balanced();
        f.pooled_layer = l;
    }
    return f;
}

double Rival::best() const {
    double most = -1;
    for (const double x : {token[0], position[0], rule[0]})
        if (x > most) most = x;
    return most;
}

Rival rival_of(const Concepts& concepts, size_t c, const ProbeSample& sample) {
    constexpr size_t bins = 8;
    const size_t T = concepts.rows.T;
    const auto key = [&](uint32_t n, bool position) {
        return uint64_t(uint32_t(concepts.rows.tokens[n])) << 8 | (position ? 1 + n % T * bins / T : 0);
    };
    std::unordered_map<uint64_t, int64_t> more_yes;
    Tally tally[3][2]; // token, position, rule; validation, test
    for (size_t part = 0; part < n_parts; part++)
        for (size_t i = 0; i < sample.token[part].size(); i++) {
            const uint32_t n = sample.token[part][i];
            const bool is = sample.yes[part][i];
            for (size_t position = 0; position < 2; position++) {
                if (part == TRAIN) {
                    more_yes[key(n, position)] += is ? 1 : -1;
                } else {
                    const auto found = more_yes.find(key(n, position));
                    tally[position][part == TEST].add(found == more_yes.end() || found->second >= 0, is);
                }
            }
            if (part != TRAIN && !concepts.rule[c].empty())
                tally[2][part == TEST].add(concepts.rule_says.at(c, n), is);
        }
    Rival rival;
    for (size_t test = 0; test < 2; test++) {
        rival.token[test] = tally[0][test].balanced();
        rival.position[test] = tally[1][test].balanced();
        if (tally[2][test].n() > 0) rival.rule[test] = tally[2][test].balanced();
    }
    return rival;
}

// "higher by 0.021 (0.004 to 0.038)", or that no difference is seen.
static std::string difference(const Estimate& e) {
    const char* word = e.interval.low > 0 ? "higher" : e.interval.high < 0 ? "lower" : nullptr;
    const std::string range = strf("(95%%: %+.3f to %+.3f)", e.interval.low, e.interval.high);
    if (!word) return strf("not told apart from its twin's, %+.3f ", e.value) + range;
    return strf("%s than its twin's by %.3f ", word, std::fabs(e.value)) + range;
}

std::string ProbeReport::sentence() const {
    if (twin.empty())
        return "Without --twin there is no sentence: whether a dense model's units tell as much on the same "
               "tokens is not known.";
    if (counted == 0)
        return "There is no sentence: no concept is told better than by the token, its position and the "
               "text.";
    if (!std::isfinite(beyond_E.interval.low) || !std::isfinite(beyond_D.interval.low))
        return "There is no sentence: too few documents or probes for an interval.";
    return strf("With %zu unit%s, over the %zu of %zu concepts that are told better than by the token, its "
                "position and the text: the best expert's F1 on its own tokens is ",
                ks[0], ks[0] == 1 ? "" : "s", counted, concepts.size()) +
           difference(beyond_E) + " on the same tokens; over all tokens the model's F1 at equal classes is " +
           difference(beyond_D) + ".";
}
