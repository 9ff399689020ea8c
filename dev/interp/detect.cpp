// What a unit detects: see detect.h.
#include "detect.h"

Evidence make_evidence(const std::vector<Property>& properties, const std::vector<Property>& questions,
                       Answers train, Answers test, const std::vector<std::vector<uint32_t>>& natural) {
    Evidence e;
    const size_t per_game = train.properties.tokens / train.games;
    const std::vector<uint32_t> kept = distinct_cells(train.properties, per_game),
                                asked = distinct_cells(train.questions, per_game);
    for (const uint32_t c : kept) e.properties.push_back(properties[c]);
    for (const uint32_t c : asked) e.questions.push_back(questions[c]);
    for (const bool is_test : {false, true}) {
        Answers& from = is_test ? test : train;
        Places& to = is_test ? e.test : e.train;
        to.games = from.games;
        to.per_game = from.properties.tokens / from.games;
        to.properties = chosen_cells(from.properties, kept);
        to.questions = chosen_cells(from.questions, asked);
        to.strata = std::move(from.strata);
        to.seen = std::move(from.seen);
        to.witnesses = {to.per_game, std::move(from.block)};
    }
    std::vector<uint32_t> all(kept.size());
    std::vector<uint32_t> place(questions.size(), UINT32_MAX); // of a question among those kept
    std::iota(all.begin(), all.end(), 0);
    for (uint32_t q = 0; q < asked.size(); q++) place[asked[q]] = q;
    std::vector<std::vector<uint32_t>> targets, near;
    for (size_t p = 0; p < kept.size(); p++) {
        targets.push_back(places_where(e.train.properties, p));
        if (natural.empty()) continue;
        near.emplace_back();
        for (const uint32_t q : natural[kept[p]])
            if (place[q] != UINT32_MAX) near.back().push_back(place[q]);
    }
    e.rules = best_rules(e.train.questions, targets, mcc_of, near);
    for (Places* set : {&e.train, &e.test}) set->rules = rule_labels(e.rules, set->questions);
    e.rows = label_rows(e.train.properties, all, true);
    return e;
}

Firing firing_of(const UnitFires& fires, size_t unit, size_t threshold, const Places& places) {
    Firing f;
    f.on.assign(places.size(), 0);
    f.list.reserve(fires.on(unit, threshold));
    for (const uint32_t* n = fires.first(unit); n < fires.last(unit, threshold); n++) f.on[*n] = 1;
    size_t last = SIZE_MAX; // witness
    for (size_t n = 0; n < places.size(); n++) {
        if (!f.on[n]) continue;
        const size_t witness = places.witnesses.of(n);
        f.list.push_back(uint32_t(n));
        f.witnesses += witness != last;
        last = witness;
    }
    return f;
}

Truth::Truth(const Places& places, const Order* order) : places(places), order(order) {
    const size_t P = places.properties.cells();
    std::vector<uint32_t> place_of(order ? places.size() : 0); // whose label it is
    for (size_t n = 0; n < place_of.size(); n++) place_of[(*order)[n]] = uint32_t(n);
    positives.assign(P, 0);
    in_game.assign(P * places.games, 0);
    parallel_items(P, [&](size_t p) {
        each_place(places.properties, p, [&](size_t n) {
            positives[p]++;
            in_game[p * places.games + (order ? place_of[n] : n) / places.per_game]++;
        });
    });
}

std::vector<uint8_t> Truth::holds(const Choice& c) const {
    const std::vector<uint8_t> own = answers_of(places.properties, c.property);
    std::vector<uint8_t> list(places.size());
    for (size_t n = 0; n < list.size(); n++) list[n] = own[order ? (*order)[n] : n] ^ uint8_t(c.negated);
    return list;
}

Counts count(const Firing& firing, const Choice& c, const Truth& truth) {
    const double n = double(truth.places.size()), positives = truth.positives[c.property];
    Counts counts = {n, double(firing.list.size()), c.negated ? n - positives : positives, 0};
    for (const uint32_t at : firing.list) counts.tp += truth.holds(c, at);
    return counts;
}

double mcc_error(const Firing& firing, const Choice& c, const Truth& truth, const Counts& unit) {
    const MccSlopes d = mcc_slopes(unit);
    const Places& places = truth.places;
    const size_t G = places.games, per_game = places.per_game;
    std::vector<double> parts(places.witnesses.count(places.size())); // of each
    for (size_t g = 0; g < G; g++) {
        const double holds = truth.in_game[c.property * G + g];
        parts[places.witnesses.of_game(g)] += d.positives * (c.negated ? double(per_game) - holds : holds);
    }
    for (const uint32_t n : firing.list) parts[places.witnesses.of(n)] += d.on + truth.holds(c, n) * d.tp;
    return error_of_sum(parts);
}

Candidates choose(const UnitFires& fires, size_t unit, const Evidence& e, const Order* order) {
    const LabelRows& labels = e.rows;
    Candidates out;
    std::vector<uint32_t> tp;
    if (fires.on(unit, 0) < least_places) return out;
    count_cells(fires, unit, labels, order, tp);
    const auto choice = [&](size_t t, size_t c) {
        const Counts counts = {double(labels.tokens), double(fires.on(unit, t)), double(labels.positives[c]),
                               double(tp[t * labels.columns() + c])};
        const double mcc = counts.mcc();
        return Choice{c, t, mcc < 0, std::fabs(mcc), mcc_error_by_places(counts)};
    };
    const auto sure = [](const Choice& c) { return c.score - 2 * c.error; };
    Choice top;
    for (size_t t = 0; t < n_thresholds; t++) {
        const size_t on = fires.on(unit, t);
        if (on < least_places || (t > 0 && on == fires.on(unit, t - 1))) continue;
        for (size_t c = 0; c < labels.columns(); c++)
            if (const Choice here = choice(t, c); here.score > 0 && (!top.any() || sure(here) > sure(top)))
                top = here;
    }
    if (!top.any()) return out;
    std::vector<Choice> all;
    for (size_t c = 0; c < labels.columns(); c++) {
        all.push_back(choice(top.threshold, c));
        if (e.properties[c].square != SIZE_MAX && (!out.square.any() || sure(all.back()) > sure(out.square)))
            out.square = all.back();
    }
    const size_t n = std::min(n_candidates + n_rivals, all.size());
    std::partial_sort(all.begin(), all.begin() + std::ptrdiff_t(n), all.end(),
                      [&](const Choice& a, const Choice& b) {
                          return sure(a) != sure(b) ? sure(a) > sure(b) : a.property < b.property;
                      });
    out.best.assign(all.begin(), all.begin() + std::ptrdiff_t(n));
    return out;
}

Excess excess_beyond(const Firing& firing, const Choice& c, const Truth& truth, const Rule& text,
                     bool rules) {
    const Places& places = truth.places;
    std::vector<uint8_t> finer;
    if (rules) {
        finer = answers_of(places.rules, c.property);
        const std::vector<uint8_t> says = text.answers(places.questions);
        for (size_t n = 0; n < finer.size(); n++) finer[n] = uint8_t(2 * finer[n] + says[n]);
    }
    return matched_excess(firing.on, truth.holds(c), places.strata, rules ? finer.data() : nullptr,
                          places.witnesses);
}

void settle(Finding& f, const Candidates& candidates, const Firing& firing, const Truth& train) {
    std::vector<Choice> list = candidates.best;
    for (Choice& c : list) c.error = mcc_error(firing, c, train, count(firing, c, train));
    const auto sure = [](const Choice& c) { return c.score - 2 * c.error; };
    std::stable_sort(list.begin(), list.end(),
                     [&](const Choice& a, const Choice& b) { return sure(a) > sure(b); });
    f.choice = list[0];
    f.square = candidates.square;
    const bool text_fits = f.text.score >= list[0].score - list[0].error;
    double most = 0;
    for (size_t i = 0; i < std::min(n_candidates, list.size()) && !text_fits; i++) {
        if (f.text.score >= list[i].score - list[i].error) continue;
        const Excess e = excess_beyond(firing, list[i], train, f.text, true);
        const double tells =
            (e.value - 2 * e.error) * mcc_slopes(count(firing, list[i], train)).tp; // as a part of Matthews
        if (!(tells > most)) continue;
        most = tells;
        f.choice = list[i];
    }
    for (const Choice& c : list)
        if (c.property != f.choice.property && f.rivals.size() < n_rivals &&
            c.score >= f.choice.score - f.choice.error)
            f.rivals.push_back(c);
    if (most > 0) f.verdict = KNOWS; // so far
}

// Does the unit tell its property better than the property's best rule does: the difference of their Matthews
// correlations in standard errors over witnesses.
static double errors_over_rule(Finding& f, const Firing& firing, const Truth& test) {
    const Places& places = test.places;
    const std::vector<uint8_t> holds = test.holds(f.choice);
    std::vector<uint8_t> says = answers_of(places.rules, f.choice.property);
    f.rule = {f.counts.n, 0, f.counts.positives, 0};
    for (size_t n = 0; n < places.size(); n++) {
        says[n] ^= uint8_t(f.choice.negated);
        f.rule.on += says[n];
        f.rule.tp += says[n] & holds[n];
    }
    const MccSlopes d = mcc_slopes(f.counts), r = mcc_slopes(f.rule);
    std::vector<double> parts(places.witnesses.count(places.size())); // of each
    for (size_t n = 0; n < places.size(); n++)
        parts[places.witnesses.of(n)] += firing.on[n] * (d.on + holds[n] * d.tp) + holds[n] * d.positives -
                                         says[n] * (r.on + holds[n] * r.tp) - holds[n] * r.positives;
    return (f.counts.mcc() - f.rule.mcc()) / error_of_sum(parts);
}

void measure(Finding& f, const UnitFires& fires, size_t unit, const Truth& test) {
    const Places& places = test.places;
    const Firing firing = firing_of(fires, unit, f.choice.threshold, places);
    f.witnesses = firing.witnesses;
    f.counts = count(firing, f.choice, test);
    const std::vector<uint8_t> says = f.text.answers(places.questions);
    f.text_counts = {f.counts.n, f.counts.on, 0, 0};
    for (size_t n = 0; n < places.size(); n++) {
        f.text_counts.positives += says[n];
        f.text_counts.tp += firing.on[n] & says[n];
    }
    const bool often = firing.list.size() >= least_places && firing.witnesses >= least_games;
    if (f.verdict == KNOWS && often && f.counts.mcc() > 0) {
        f.beyond = excess_beyond(firing, f.choice, test, f.text, true);
        if (f.beyond.errors() > least_clearance) {
            f.outright = errors_over_rule(f, firing, test) > least_clearance;
            return;
        }
    }
    const Strata all = {std::vector<uint32_t>(places.size()), 1};
    f.reads = matched_excess(firing.on, says, all, nullptr, places.witnesses);
    f.verdict = f.text.any() && often && f.reads.errors() > least_clearance ? READS : NOTHING;
}

static void add(Counts& sum, const Counts& c, double times = 1) {
    sum.n += times * c.n;
    sum.on += times * c.on;
    sum.positives += times * c.positives;
    sum.tp += times * c.tp;
}

// Precision: Wilson's interval for as many independent witnesses as its spread over them says, and no more
// than there are where it is always right or always wrong.
static Interval precision_interval(const Counts& all, const std::vector<Counts>& parts, size_t witnesses) {
    if (!(all.on > 0)) return {};
    const double p = all.precision(), binomial = p * (1 - p) * all.on;
    double spread = 0;
    for (const Counts& part : parts) spread += (part.tp - p * part.on) * (part.tp - p * part.on);
    return wilson(p, binomial > 0 ? all.on * std::min(1.0, binomial / spread) : double(witnesses));
}

void describe(Finding& f, const UnitFires& fires, size_t unit, const Truth& test, uint64_t seed) {
    const Places& places = test.places;
    const Firing firing = firing_of(fires, unit, f.choice.threshold, places);
    f.matched = excess_beyond(firing, f.choice, test, f.text, false);
    f.beyond = excess_beyond(firing, f.choice, test, f.text, true);
    errors_over_rule(f, firing, test);
    std::vector<Counts> parts(places.witnesses.count(places.size())); // of each
    for (size_t n = 0; n < places.size(); n++) {
        Counts here = {1, double(firing.on[n]), double(test.holds(f.choice, n)), 0};
        here.tp = here.on * here.positives;
        add(parts[places.witnesses.of(n)], here);
        if (!places.seen.empty() && !places.seen[n]) add(f.fresh, here);
    }
    const auto interval = [&](double (*number)(const Counts&)) { // resamples without a firing count as 0
        return bootstrap(parts.size(), seed, [&](const std::vector<uint32_t>& times) {
            Counts sum;
            for (size_t i = 0; i < parts.size(); i++) add(sum, parts[i], times[i]);
            return number(sum);
        });
    };
    f.f1 = interval(f1_of);
    f.mcc = interval(mcc_of);
    f.precision = precision_interval(f.counts, parts, f.witnesses);
}

std::vector<Finding> find(const LayerFires& fires, const std::vector<size_t>& units, const Evidence& e,
                          const Order* orders) {
    const Truth train(e.train, orders ? &orders[0] : nullptr), test(e.test, orders ? &orders[1] : nullptr);
    const size_t n = units.size();
    std::vector<Finding> findings(n);
    std::vector<Candidates> candidates(n);
    std::vector<std::vector<uint32_t>> targets(n);
    parallel_items(n, [&](size_t i) {
        candidates[i] = choose(fires.train, units[i], e, train.order);
        if (candidates[i].best.empty()) return;
        Firing f = firing_of(fires.train, units[i], candidates[i].best[0].threshold, e.train);
        if (f.witnesses < least_games)
            candidates[i].best.clear();
        else
            targets[i] = std::move(f.list);
    });
    const std::vector<Rule> rules = best_rules(e.train.questions, targets, mcc_of);
    parallel_items(n, [&](size_t i) {
        if (candidates[i].best.empty()) return;
        Finding& f = findings[i];
        f.text = rules[i];
        const size_t threshold = candidates[i].best[0].threshold;
        settle(f, candidates[i], firing_of(fires.train, units[i], threshold, e.train), train);
        measure(f, fires.test, units[i], test);
    });
    return findings;
}
