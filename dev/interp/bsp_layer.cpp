// What the units of a layer are worth (bsp.h, section 3).
#include "bsp.h"

std::vector<BspControl> control_scores(const LayerFires& fires, const Ruler& ruler, const Order* orders) {
    const Order *train = orders ? &orders[0] : nullptr, *test = orders ? &orders[1] : nullptr;
    const Selection chosen = select_units(fires.train, ruler.columns, train);
    const Reconstruction r = reconstruct(fires.test, chosen, ruler.test, ruler.functions, test);
    std::vector<BspControl> controls;
    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        const Coverage c = coverage(chosen, columns);
        const HeldOut held = held_out(fires.test, chosen, c.threshold, ruler.test, columns, test);
        const Beyond beyond =
            beyond_text(held, chosen, c.threshold, ruler.text.held_out[f], ruler.text.chosen, columns);
        controls.push_back({c.value, held_out_f1(held, columns.cells()),
                            class_f1(r, ruler.test, best_threshold(r, ruler.test, f), f),
                            coverage_beyond(beyond, columns.cells()),
                            open_f1(r, ruler.open[1], best_open_threshold(r, ruler.open[1], f), f)});
    }
    return controls;
}

BspControl strategy_control(const Ruler& ruler, const std::vector<BspControl>& of) {
    const auto mean = [&](double BspControl::*number) {
        return strategy_mean(ruler, [&](size_t f) { return of[f].*number; });
    };
    return {mean(&BspControl::coverage), mean(&BspControl::held_out), mean(&BspControl::rec_published),
            mean(&BspControl::beyond), mean(&BspControl::rec_beyond)};
}

double common_mean(const std::vector<double>& f1, const Ruler& ruler, const FunctionColumns& columns) {
    double sum = 0, n = 0;
    for (size_t c = columns.first; c < columns.last; c++)
        if (ruler.common[c]) {
            sum += f1[c - columns.first];
            n++;
        }
    return n > 0 ? sum / n : undefined;
}

// What is asked anew of every resample of the games, of one function.
struct Resampled {
    double held_out, beyond, rec, rec_beyond;
};
static constexpr std::pair<double Resampled::*, Interval BspScore::*> intervals[] = {
    {&Resampled::held_out, &BspScore::held_out_interval},
    {&Resampled::beyond, &BspScore::beyond_interval},
    {&Resampled::rec, &BspScore::rec_interval},
    {&Resampled::rec_beyond, &BspScore::rec_beyond_interval}};

// value(number, resample): of the resamples one number.
template <class Value> static void set_intervals(BspScore& s, size_t resamples, Value value) {
    for (const auto& [number, interval] : intervals) {
        std::vector<double> values;
        for (size_t i = 0; i < resamples; i++) values.push_back(value(number, i));
        s.*interval = interval_of(values);
    }
}

// A function of the board, as the units of a layer tell it on the test games: thresholds and units are chosen
// on the train games.
struct FunctionMeasure {
    const Ruler& ruler;
    const Reconstruction& test; // of the test games
    size_t f;
    HeldOut held;
    Beyond beyond;
    size_t t_rec, t_open;

    Resampled numbers(const std::vector<uint32_t>* times = nullptr) const {
        const double cells = ruler.functions[f].cells();
        return {held_out_f1(held, cells, times), coverage_beyond(beyond, cells, times),
                class_f1(test, ruler.test, t_rec, f, times), open_f1(test, ruler.open[1], t_open, f, times)};
    }
};

// How much the best unit of every column has over its text rule, on the train games.
static double gain_over_text(const Ruler& ruler, const Selection& chosen, size_t t,
                             const FunctionColumns& columns) {
    double gain = 0;
    for (size_t c = columns.first; c < columns.last; c++)
        gain += std::max(0.0, double(chosen.f1[t * chosen.width + c]) - double(ruler.text.chosen.f1[c])) /
                columns.cells();
    return gain;
}

static void add_coverage(BspScore& s, const Coverage& c) {
    s.coverage = c.value;
    s.per_cell = c.per_cell;
    s.threshold = int(c.threshold);
    s.above.assign(c.above, c.above + n_thresholds);
    s.above_threshold.assign(c.above_threshold, c.above_threshold + n_thresholds);
}

// The mean over the strategy functions.
static BspScore strategy_score(const Ruler& ruler, const std::vector<BspScore>& functions) {
    BspScore s;
    for (double BspScore::*number :
         {&BspScore::coverage, &BspScore::per_cell, &BspScore::held_out, &BspScore::unseen,
          &BspScore::matched, &BspScore::gain, &BspScore::beyond, &BspScore::rec_published,
          &BspScore::rec_max_mask, &BspScore::rec, &BspScore::rec_beyond})
        s.*number = strategy_mean(ruler, [&](size_t f) { return functions[f].*number; });
    for (BspControl BspScore::*control : {&BspScore::permuted, &BspScore::same_move, &BspScore::text}) {
        std::vector<BspControl> of;
        for (const BspScore& f : functions) of.push_back(f.*control);
        s.*control = strategy_control(ruler, of);
    }
    return s;
}

LayerBsp measure_layer(const LayerFires& fires, const Ruler& ruler, uint64_t seed) {
    LayerBsp out;
    out.units = fires.units;
    out.alive = fires.alive;
    for (size_t t = 0; t < n_thresholds; t++) out.active[t] = fires.active(t);

    const Selection chosen = select_units(fires.train, ruler.columns);
    const Reconstruction train = reconstruct(fires.train, chosen, ruler.train, ruler.functions),
                         test = reconstruct(fires.test, chosen, ruler.test, ruler.functions);
    const std::vector<BspControl> permuted = control_scores(fires, ruler, ruler.permuted),
                                  same_move = control_scores(fires, ruler, ruler.same_move);
    std::vector<std::vector<Resampled>> resampled; // by function
    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        const Coverage c = coverage(chosen, columns);
        FunctionMeasure m{ruler, test, f, {}, {}, 0, 0};
        m.held = held_out(fires.test, chosen, c.threshold, ruler.test, columns);
        m.beyond =
            beyond_text(m.held, chosen, c.threshold, ruler.text.held_out[f], ruler.text.chosen, columns);
        m.t_rec = best_threshold(train, ruler.train, f);
        m.t_open = best_open_threshold(train, ruler.open[0], f);
        const Resampled numbers = m.numbers();

        BspScore s;
        add_coverage(s, c);
        s.gain = gain_over_text(ruler, chosen, c.threshold, columns);
        s.held_out = numbers.held_out;
        s.beyond = numbers.beyond;
        s.rec = numbers.rec;
        s.rec_beyond = numbers.rec_beyond;
        const HeldOut unseen =
            held_out(fires.test, chosen, c.threshold, ruler.test, columns, nullptr, &ruler.seen);
        s.unseen = held_out_f1(unseen, columns.cells());
        s.common = common_mean(column_f1(m.held), ruler, columns);
        s.text_common = common_mean(column_f1(ruler.text.held_out[f]), ruler, columns);
        s.matched = matched_f1(fires.test, chosen, c.threshold, ruler.test, columns, ruler.strata);
        const size_t t = best_threshold(test, ruler.test, f);
        s.rec_threshold = int(t);
        s.rec_published = class_f1(test, ruler.test, t, f);
        s.rec_max_mask = class_f1(test, ruler.test, max_mask, f);
        s.permuted = permuted[f];
        s.same_move = same_move[f];
        s.text = ruler.text.scores[f];
        resampled.push_back(resample(
            ruler.test.games, seed, [&](const std::vector<uint32_t>& times) { return m.numbers(&times); },
            ruler.games.test.block));
        const std::vector<Resampled>& of = resampled.back();
        set_intervals(s, of.size(), [&](double Resampled::*number, size_t i) { return of[i].*number; });
        out.functions.push_back(s);
    }

    // 64 of the headline's 768 cells can never hold: each initial piece on its own square, pawns on the first
    // and the last rank.
    out.board = out.functions[ruler.board];
    out.board.of_704 = out.board.coverage * 768 / (768 - 64);
    out.strategy = strategy_score(ruler, out.functions);
    set_intervals(out.strategy, resampled[0].size(), [&](double Resampled::*number, size_t i) {
        return strategy_mean(ruler, [&](size_t f) { return resampled[f][i].*number; });
    });
    return out;
}

std::vector<uint32_t> drawn_units(const LayerFires& fires, size_t units, uint64_t seed, size_t draw) {
    std::vector<uint32_t> list;
    for (uint32_t u = 0; u < fires.units; u++)
        if (fires.max[u] != INFINITY) list.push_back(u);
    units = std::min(units, list.size());
    Random random{seed, random_stream("subset") + draw};
    for (size_t i = 0; i < units; i++) std::swap(list[i], list[i + random.below(list.size() - i)]);
    list.resize(units);
    std::sort(list.begin(), list.end()); // of equally good units the lowest is taken, as among all
    return list;
}

SubsetScores measure_subset(const LayerFires& fires, const Ruler& ruler, size_t units, size_t draws,
                            uint64_t seed) {
    SubsetScores scores;
    for (size_t draw = 0; draw < draws; draw++) {
        const std::vector<uint32_t> list = drawn_units(fires, units, seed, draw);
        const std::vector<BspControl> of = control_scores(some_units(fires, list), ruler);
        scores.units = list.size();
        scores.board.push_back(of[ruler.board]);
        scores.strategy.push_back(strategy_control(ruler, of));
    }
    return scores;
}

void add_untrained(LayerBsp& layer, const std::vector<BspControl>& of, const Ruler& ruler) {
    for (size_t f = 0; f < of.size(); f++) layer.functions[f].untrained = of[f];
    layer.board.untrained = of[ruler.board];
    layer.strategy.untrained = strategy_control(ruler, of);
}
