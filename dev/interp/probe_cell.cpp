// Units, samples and cells: see probe.h, sections 1 to 3.
#include "logistic.h"
#include "probe.h"

// ---------------------------------------------------------------------------------------------------------
// Units of a layer

void TokenUnits::add(const LayerUnits& layer, size_t N, bool gated) {
    units = layer.E * layer.D;
    deal.E = layer.choice ? layer.E : 1;
    deal.K = layer.choice ? layer.K : 1;
    for (size_t n = 0; n < N; n++) {
        layer.each(n, gated, [&](size_t u, float v) {
            if (!std::isfinite(v)) fail("the model's units at token %zu are not finite", tokens());
            unit.push_back(uint32_t(u));
            value.push_back(v);
        });
        begin.push_back(unit.size());
        for (size_t k = 0; k < deal.K; k++)
            deal.expert.push_back(uint16_t(layer.choice ? layer.choice[n * layer.K + k] : 0));
    }
}

Deal shuffled_deal(const Deal& deal, uint64_t seed) {
    const size_t tokens = deal.expert.size() / deal.K;
    std::vector<uint32_t> order(tokens);
    std::iota(order.begin(), order.end(), 0u);
    Random random{seed, random_stream("deal")};
    for (size_t n = tokens; n > 1; n--) std::swap(order[n - 1], order[random.below(n)]);
    Deal out = deal;
    for (size_t n = 0; n < tokens; n++)
        std::copy_n(deal.expert.data() + order[n] * deal.K, deal.K, out.expert.data() + n * deal.K);
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// Samples

// At most `most` of a list, drawn without return.
static void draw(std::vector<uint32_t>& list, size_t most, Random& random) {
    for (size_t i = 0; i < std::min(most, list.size()); i++)
        std::swap(list[i], list[i + random.below(list.size() - i)]);
    list.resize(std::min(most, list.size()));
}

ProbeSample draw_sample(const Concepts& concepts, size_t c, const Labels& labels, size_t row,
                        Negatives negatives, size_t most, uint64_t seed) {
    ProbeSample sample;
    const size_t T = concepts.rows.T;
    for (size_t part = 0; part < n_parts; part++) {
        // Places of either answer, and by what a negative must share with a positive.
        std::vector<uint32_t> yes, no;
        for (size_t d = 0; d < concepts.documents(); d++)
            if (concepts.part[d] == part)
                for (size_t n = d * T; n < (d + 1) * T; n++)
                    if (concepts.asked(c, n)) (labels.at(row, n) ? yes : no).push_back(uint32_t(n));
        Random random{seed, random_stream("sample") + (c * n_parts + part) * n_negatives + negatives};
        draw(yes, part == TRAIN ? most : std::max<size_t>(1, most / 2), random);
        const auto shared = [&](uint32_t n) {
            return negatives == SAME_TOKEN ? uint32_t(concepts.rows.tokens[n]) : uint32_t(n / T);
        };
        std::vector<uint32_t> chosen_yes, chosen_no;
        if (negatives == OTHER_DOCUMENTS) { // any document: few are of the same
            draw(no, yes.size(), random);
            yes.resize(std::min(yes.size(), no.size()));
            chosen_yes = yes;
            chosen_no = no;
        } else {
            std::map<uint32_t, std::vector<uint32_t>> of; // negatives that are left
            for (const uint32_t n : no) of[shared(n)].push_back(n);
            for (const uint32_t n : yes) {
                std::vector<uint32_t>& list = of[shared(n)];
                if (list.empty()) continue;
                std::swap(list.back(), list[random.below(list.size())]);
                chosen_yes.push_back(n);
                chosen_no.push_back(list.back());
                list.pop_back();
            }
        }
        std::vector<std::pair<uint32_t, uint8_t>> all;
        for (const uint32_t n : chosen_yes) all.push_back({n, 1});
        for (const uint32_t n : chosen_no) all.push_back({n, 0});
        std::sort(all.begin(), all.end());
        for (const auto& [n, is] : all) {
            sample.token[part].push_back(n);
            sample.yes[part].push_back(is);
        }
    }
    return sample;
}

Labels shifted_labels(const Concepts& concepts, size_t c, uint64_t seed) {
    Labels out = empty_labels(1, concepts.rows.size());
    const size_t T = concepts.rows.T, documents = concepts.documents();
    Random random{seed, random_stream("shift")};
    if (concepts.list[c].of_document) { // by whole rows: within one it would stay as it is
        const size_t by = documents > 1 ? T * (1 + random.below(documents - 1)) : 0;
        for (size_t n = 0; n < concepts.rows.size(); n++)
            if (concepts.labels.at(c, n)) out.set(0, (n + by) % concepts.rows.size());
        return out;
    }
    if (!concepts.list[c].at_dots) {
        for (size_t d = 0; d < documents; d++) {
            const size_t by = T > 1 ? 1 + random.below(T - 1) : 0;
            for (size_t t = 0; t < T; t++)
                if (concepts.labels.at(c, d * T + t)) out.set(0, d * T + (t + by) % T);
        }
        return out;
    }
    for (size_t part = 0; part < n_parts; part++) { // the same dot of the next document in a random cycle
        std::vector<size_t> own;
        for (size_t d = 0; d < documents; d++)
            if (concepts.part[d] == part) own.push_back(d);
        const Order other = random_cycle(own.size(), seed, "games");
        const auto dots = [&](size_t d) {
            std::vector<size_t> at;
            for (size_t n = d * T; n < (d + 1) * T; n++)
                if (concepts.dot[n]) at.push_back(n);
            return at;
        };
        for (size_t i = 0; i < own.size(); i++) {
            const std::vector<size_t> to = dots(own[i]), from = dots(own[other[i]]);
            for (size_t n = 0; n < std::min(to.size(), from.size()); n++)
                if (concepts.labels.at(c, from[n])) out.set(0, to[n]);
        }
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// Cells

// The area under the ROC curve: the share of pairs of a positive and a negative that scores put in order.
static double area_under_curve(const std::vector<double>& score, const std::vector<uint8_t>& yes) {
    const std::vector<double> rank = ranks(score.data(), score.size());
    double sum = 0, positives = 0;
    for (size_t i = 0; i < yes.size(); i++) {
        sum += yes[i] * (rank[i] + 1);
        positives += yes[i];
    }
    const double negatives = double(yes.size()) - positives;
    return positives > 0 && negatives > 0 ? (sum - positives * (positives + 1) / 2) / (positives * negatives)
                                          : undefined;
}

namespace {
// f(unit, value) for the units of a token that a cell may use.
template <class F> void each_unit(const CellPlan& plan, size_t cell, size_t token, F f) {
    const TokenUnits& u = *plan.units;
    for (size_t i = u.begin[token]; i < u.begin[token + 1]; i++) {
        if (plan.own && u.unit[i] / plan.own != cell) continue;
        if (plan.subset && !(*plan.subset)[cell][u.unit[i]]) continue;
        f(u.unit[i], double(u.value[i]));
    }
}

// Of every unit on the train tokens of a cell.
struct UnitMoments {
    std::vector<double> sum[2], square; // by class
    std::vector<uint32_t> seen;         // units that are not zero everywhere
};
} // namespace

// The k units of the largest difference of class means, in sd unless raw; of equal ones the lower number.
static std::vector<uint32_t> rank_train_units(const UnitMoments& m, const double n[2], size_t k, bool raw,
                                              std::vector<double>& mean, std::vector<double>& sd) {
    std::vector<std::pair<double, uint32_t>> order;
    for (const uint32_t u : m.seen) {
        const double all = n[0] + n[1], average = (m.sum[0][u] + m.sum[1][u]) / all;
        const double variance = m.square[u] / all - average * average;
        if (!(variance > 1e-12 * m.square[u] / all)) continue; // a constant tells nothing
        const double spread = raw ? 1 : std::sqrt(variance);
        order.push_back({-std::fabs(m.sum[1][u] / n[1] - m.sum[0][u] / n[0]) / spread, u});
    }
    const size_t kept = std::min(k, order.size());
    std::partial_sort(order.begin(), order.begin() + long(kept), order.end());
    std::vector<uint32_t> units;
    for (size_t i = 0; i < kept; i++) {
        const uint32_t u = order[i].second;
        const double all = n[0] + n[1], average = (m.sum[0][u] + m.sum[1][u]) / all;
        units.push_back(u);
        mean.push_back(raw ? 0 : average);
        sd.push_back(raw ? 1 : std::sqrt(m.square[u] / all - average * average));
    }
    return units;
}

CellResult probe_cell(const CellPlan& plan, size_t cell, const ProbeSample& sample,
                      const std::vector<size_t>& ks, bool raw, const std::vector<uint32_t>* block, size_t T) {
    std::vector<uint32_t> token[n_parts];
    std::vector<uint8_t> yes[n_parts];
    double n[n_parts][2] = {};
    for (size_t part = 0; part < n_parts; part++)
        for (size_t i = 0; i < sample.token[part].size(); i++) {
            const uint32_t at = sample.token[part][i];
            if (plan.deal && !plan.deal->has(at, cell)) continue;
            token[part].push_back(at);
            yes[part].push_back(sample.yes[part][i]);
            n[part][sample.yes[part][i]]++;
        }
    CellResult out;
    out.at.resize(ks.size());
    out.probed = true;
    for (size_t part = 0; part < n_parts; part++)
        for (const double count : n[part]) out.probed &= count >= (part == TRAIN ? least_train : least_other);

    if (block) out.by_block.resize(*std::max_element(block->begin(), block->end()) + size_t(1));
    const auto answer = [&](size_t k, size_t part, size_t i, bool said) {
        (part == TEST ? out.at[k].test : out.at[k].validation).add(said, yes[part][i]);
        if (part == TEST && block && k == 0)
            out.by_block[(*block)[token[part][i] / T]].add(said, yes[part][i]);
    };
    if (!out.probed) {
        for (size_t k = 0; k < ks.size(); k++)
            for (size_t part : {VALIDATION, TEST})
                for (size_t i = 0; i < token[part].size(); i++)
                    answer(k, part, i, n[TRAIN][1] >= n[TRAIN][0]);
        return out;
    }

    UnitMoments m;
    const size_t units = plan.units->units;
    m.sum[0].assign(units, 0);
    m.sum[1].assign(units, 0);
    m.square.assign(units, 0);
    for (size_t i = 0; i < token[TRAIN].size(); i++)
        each_unit(plan, cell, token[TRAIN][i], [&](uint32_t u, double v) {
            if (m.square[u] == 0) m.seen.push_back(u);
            m.sum[yes[TRAIN][i]][u] += v;
            m.square[u] += v * v;
        });
    std::sort(m.seen.begin(), m.seen.end());
    m.seen.erase(std::unique(m.seen.begin(), m.seen.end()), m.seen.end());
    std::vector<double> mean, sd;
    const size_t most = *std::max_element(ks.begin(), ks.end());
    const std::vector<uint32_t> chosen = rank_train_units(m, n[TRAIN], most, raw, mean, sd);
    std::vector<uint32_t> place(units, UINT32_MAX);
    for (size_t j = 0; j < chosen.size(); j++) place[chosen[j]] = uint32_t(j);

    std::vector<double> x[n_parts]; // (tokens, chosen)
    for (size_t part = 0; part < n_parts; part++) {
        x[part].resize(token[part].size() * chosen.size());
        for (size_t i = 0; i < token[part].size(); i++) {
            double* row = x[part].data() + i * chosen.size();
            for (size_t j = 0; j < chosen.size(); j++) row[j] = -mean[j] / sd[j];
            each_unit(plan, cell, token[part][i], [&](uint32_t u, double v) {
                if (const uint32_t j = place[u]; j != UINT32_MAX) row[j] = (v - mean[j]) / sd[j];
            });
        }
    }
    std::vector<double> some, score;
    for (size_t i = 0; i < ks.size(); i++) {
        const size_t k = std::min(ks[i], chosen.size());
        if (i > 0 && k == std::min(ks[i - 1], chosen.size())) { // no more units than before
            out.at[i] = out.at[i - 1];
            continue;
        }
        const auto first_k = [&](size_t part) {
            some.resize(token[part].size() * k);
            for (size_t t = 0; t < token[part].size(); t++)
                std::copy_n(x[part].data() + t * chosen.size(), k, some.data() + t * k);
        };
        first_k(TRAIN);
        const LogisticFit fit = fit_logistic(some, yes[TRAIN], k);
        out.at[i].gradient = fit.gradient;
        for (size_t part : {VALIDATION, TEST}) {
            first_k(part);
            score.assign(token[part].size(), fit.b);
            for (size_t t = 0; t < score.size(); t++) {
                for (size_t j = 0; j < k; j++) score[t] += fit.w[j] * some[t * k + j];
                answer(i, part, t, score[t] >= 0);
            }
        }
        out.at[i].auroc = area_under_curve(score, yes[TEST]);
    }
    return out;
}
