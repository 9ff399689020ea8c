// Tests of the board metrics: fires, counting, selection, reconstruction, held-out numbers and controls
// against slow versions written from the definitions; planted features; the facts of the published code; .npy
// files; the program on a tiny model, on the same units as .npy files, and on bad input.
#include "../dev/interp/bsp.h"
#include "../dev/cpu/layers.h"
#include "../dev/interp/units_cpu.h"
#include "check.h"
#include "random_games.h"

// ---------------------------------------------------------------------------------------------------------
// Games, labels and activity made up

static std::string folder; // of this run's files, removed at the end

static void write_text(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}
static std::string write_game_file(const std::string& name, const GameSet& games) {
    std::string all;
    for (const std::string& text : games.texts) all += text + "\n";
    write_text(folder + "/" + name, all);
    return folder + "/" + name;
}

// Values (tokens,units) as the lists score.h works on.
static UnitFires fires_of(const std::vector<float>& values, size_t units, const std::vector<float>& max) {
    TokenValues at(values.size() / units);
    for (size_t n = 0; n < at.size(); n++)
        for (uint32_t u = 0; u < units; u++)
            if (values[n * units + u] > 0) at[n].push_back({u, values[n * units + u]});
    return unit_fires(at, cuts_of_maximum(max));
}
static bool is_on(const std::vector<float>& values, const std::vector<float>& max, size_t n, size_t u,
                  size_t t) {
    return values[n * max.size() + u] > float(t) / 10.0f * max[u];
}

// A case small enough for slow versions: real labels of random games; units that follow a cell with errors,
// noise units, a constant, one that never fires.
struct Case {
    Ruler ruler;
    Labels labels[2];             // of the train and the test games
    std::vector<float> values[2]; // (tokens,units)
    std::vector<float> max;
    LayerFires fires;
};
static Case make_case(size_t train_games, size_t test_games, size_t units, uint64_t seed, bool all = true) {
    Case c;
    GameSplit games{random_games(train_games, 2 * seed), random_games(test_games, 2 * seed + 1)};
    c.ruler = make_ruler(games, all, 5);
    c.labels[0] = label_games(games.train, 20), c.labels[1] = label_games(games.test, 20);
    Random random{seed};
    std::vector<size_t> follows(units); // some of them the colour of d4 or e4, so that their errors meet
    for (size_t u = 0; u < units; u++)
        follows[u] = u % 3 == 1 ? cell_of("piece_color_state") + 27 * 3 + random.below(6)
                                : c.ruler.columns.cell[random.below(c.ruler.columns.columns())];
    for (size_t set = 0; set < 2; set++)
        for (size_t n = 0; n < c.labels[set].tokens; n++)
            for (size_t u = 0; u < units; u++) {
                float value = 0;
                if (u == 0)
                    value = 1;
                else if (u > 1 && u % 3 == 0)
                    value = random.uniform() < 0.2 ? float(random.uniform()) : 0;
                else if (u > 1 && c.labels[set].at(follows[u], n))
                    value = float(0.3 + 0.7 * random.uniform());
                else if (u > 1 && random.uniform() < (set ? 0.15 : 0.02))
                    value = float(0.5 * random.uniform());
                c.values[set].push_back(value);
            }
    c.max.assign(units, 0);
    for (size_t i = 0; i < c.values[0].size(); i++)
        c.max[i % units] = std::max(c.max[i % units], c.values[0][i]);
    for (float& m : c.max) m = m > 0 ? m : INFINITY;
    c.fires.units = units, c.fires.max = c.max, c.fires.cuts = cuts_of_maximum(c.max);
    c.fires.rate.assign(units, 0.1);
    c.fires.train = fires_of(c.values[0], units, c.max);
    c.fires.test = fires_of(c.values[1], units, c.max);
    return c;
}

// ---------------------------------------------------------------------------------------------------------
// The same from the definitions, slowly. order: whose labels a token gets.

static size_t get(const Order* order, size_t n) { return order ? (*order)[n] : n; }

static float slow_f1(size_t tp, size_t on, size_t positives) {
    const float fp = float(on) - float(tp), fn = float(positives) - float(tp);
    const float p = float(tp) / (float(tp) + fp + 1e-8f), r = float(tp) / (float(tp) + fn + 1e-8f);
    return 2 * (p * r) / (p + r + 1e-8f);
}
struct SlowCell {
    float f1[n_thresholds] = {};
    size_t unit[n_thresholds] = {};
    std::vector<bool> said[n_thresholds]; // by unit
};
static SlowCell slow_cell(const Case& c, size_t cell, const Order* order) {
    SlowCell out;
    const size_t units = c.max.size(), tokens = c.labels[0].tokens;
    size_t positives = 0;
    for (size_t n = 0; n < tokens; n++) positives += c.labels[0].at(cell, n);
    for (size_t t = 0; t < n_thresholds; t++)
        for (size_t u = 0; u < units; u++) {
            size_t tp = 0, on = 0;
            for (size_t n = 0; n < tokens; n++)
                if (is_on(c.values[0], c.max, n, u, t)) on++, tp += c.labels[0].at(cell, get(order, n));
            const float f1 = slow_f1(tp, on, positives);
            if (f1 > out.f1[t]) out.f1[t] = f1, out.unit[t] = u;
            out.said[t].push_back(tp >= 10 && on > 0 && float(tp) * (1.0f / float(on)) >= 0.95f);
        }
    return out;
}

struct SlowFunction {
    double average[n_thresholds] = {}, per_cell = 0, floor = 0;
    std::vector<size_t> above = std::vector<size_t>(n_thresholds), above_threshold = above;
    double held_out = 0;
    double f1[n_thresholds + 1], per_square[n_thresholds + 1]; // reconstruction; the last: max mask
};
static SlowFunction slow_function(const Case& c, size_t function, size_t set, const Order* orders = nullptr) {
    const BoardFunction& f = board_functions[function];
    const Order *train = orders ? &orders[0] : nullptr, *order = orders ? &orders[set] : nullptr;
    const size_t units = c.max.size(), cells = cells_of(f), first = first_cell(function);
    const double counted = double(f.rows * f.columns * (f.masked >= 0 ? f.classes - 1 : f.classes));
    SlowFunction out;
    std::vector<SlowCell> slow;
    for (size_t i = 0; i < cells; i++) {
        slow.push_back(slow_cell(c, first + i, train));
        float best = 0;
        for (size_t t = 0; t < n_thresholds; t++) {
            out.average[t] += double(slow[i].f1[t]) / counted;
            best = std::max(best, slow[i].f1[t]);
        }
        out.per_cell += double(best) / counted;
        size_t positives = 0;
        for (size_t n = 0; n < c.labels[0].tokens; n++) positives += c.labels[0].at(first + i, n);
        out.floor += 2.0 * double(positives) / double(c.labels[0].tokens + positives) / counted;
    }
    for (size_t x = 0; x < n_thresholds; x++)
        for (size_t t = n_thresholds; t-- > 0;) {
            size_t n = 0;
            for (const SlowCell& cell : slow) n += cell.f1[t] > float(x) / 10;
            if (n > 0 && n >= out.above[x]) out.above[x] = n, out.above_threshold[x] = t;
        }
    size_t best = 0;
    for (size_t t = 0; t < n_thresholds; t++) best = out.average[t] > out.average[best] ? t : best;
    for (size_t i = 0; i < cells; i++) {
        size_t tp = 0, on = 0, positives = 0;
        for (size_t n = 0; n < c.labels[1].tokens; n++) {
            const bool truth = c.labels[1].at(first + i, get(orders ? &orders[1] : nullptr, n));
            const bool fires = slow[i].f1[best] > 0 && is_on(c.values[1], c.max, n, slow[i].unit[best], best);
            tp += truth && fires, on += fires, positives += truth;
        }
        out.held_out += double(slow_f1(tp, on, positives)) / counted;
    }
    for (size_t row = 0; row <= n_thresholds; row++) {
        size_t tp = 0, fp = 0, fn = 0, both = 0;
        for (size_t n = 0; n < c.labels[set].tokens; n++) {
            std::vector<bool> predicted(cells);
            for (size_t u = 0; u < units; u++) {
                size_t t = row;
                if (row == n_thresholds) { // the highest threshold where it is on and says anything
                    t = 0;
                    for (size_t higher = 1; higher < n_thresholds; higher++) {
                        bool any = false;
                        for (size_t i = 0; i < cells; i++) any = any || slow[i].said[higher][u];
                        if (any && is_on(c.values[set], c.max, n, u, higher)) t = higher;
                    }
                }
                if (!is_on(c.values[set], c.max, n, u, t)) continue;
                for (size_t i = 0; i < cells; i++)
                    if (slow[i].said[t][u]) predicted[i] = true;
            }
            for (size_t square = 0; square < f.rows * f.columns; square++) {
                size_t right = 0, wrong = 0;
                for (size_t k = 0; k < f.classes; k++) {
                    const size_t i = square * f.classes + k;
                    const bool truth = c.labels[set].at(first + i, get(order, n));
                    right += truth && predicted[i], wrong += !truth && predicted[i],
                        fn += truth && !predicted[i];
                }
                tp += right, fp += wrong, both += right == 1 && wrong == 1;
            }
        }
        out.f1[row] = double(slow_f1(tp, tp + fp, tp + fn));
        out.per_square[row] = double(slow_f1(tp - both, tp - both + fp, tp - both + fn));
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------

static void test_levels() {
    for (size_t t = 0; t < n_thresholds; t++) check(threshold(t) == float(double(t) / 10));
    const auto level_of_max = [](float value, float max) {
        return level_of(value, cuts_of_maximum({max}).data());
    };
    check(level_of_max(0, 1) == 0);
    check(level_of_max(-1, 1) == 0);
    check(level_of_max(1, 1) == 10); // strictly above 0.9, not above 1.0
    check(level_of_max(1.5f, 1) == 11);
    check(level_of_max(1e-30f, 1) == 1);
    check(level_of_max(0.6f, 1) == 6); // 0.6 is not above 0.6
    check(level_of_max(5, INFINITY) == 0);
    check(level_of_max(1, 0) == 11);
    Random random{1};
    size_t wrong = 0;
    for (size_t i = 0; i < 100000; i++) {
        const float max = float(random.uniform() * 3), value = float(double(random.below(21)) * 0.05) * max;
        const size_t level = level_of_max(value, max);
        for (size_t t = 0; t < n_thresholds; t++) wrong += (value > float(t) / 10.0f * max) != (t < level);
    }
    check(wrong == 0, "%zu", wrong);
}

static void test_fires() {
    const size_t units = 7, tokens = 400;
    std::vector<float> values, max(units, 1.0f);
    Random random{2};
    for (size_t i = 0; i < units * tokens; i++) values.push_back(float(random.uniform() * 1.4 - 0.3));
    max[3] = INFINITY; // dead
    const UnitFires fires = fires_of(values, units, max);
    size_t wrong = 0;
    for (size_t u = 0; u < units; u++)
        for (size_t t = 0; t < n_thresholds; t++) {
            std::set<uint32_t> expected;
            for (uint32_t n = 0; n < tokens; n++)
                if (u != 3 && is_on(values, max, n, u, t)) expected.insert(n);
            wrong += std::set<uint32_t>(fires.first(u), fires.last(u, t)) != expected;
            wrong += fires.on(u, t) != expected.size();
            const uint32_t* level = t + 1 < n_thresholds ? fires.last(u, t + 1) : fires.first(u);
            wrong += !std::is_sorted(level, fires.last(u, t)); // those of one level
        }
    check(wrong == 0, "%zu", wrong);

    // Maxima and alive units: over all characters, with the zeros that are not reported.
    const size_t B = 2, T = 4;
    const float x[B * T][4] = {{-1, 0, 0, -2}, {-3, 0, 2, -2}, {-1, 0, 0, -2}, {-1, 0, 0, -4},
                               {-1, 0, 5, -2}, {-1, 0, 0, -2}, {-1, 0, 0, 0},  {-2, 0, 1, -2}};
    FireCollector collector(4);
    const size_t bad = collector.add(B, T, {{}, {1, 3}, {0, 3}}, 1, [&](size_t n, auto f) {
        f(0, x[n], 1, 1.0f); // of two experts, the second with a gate weight
        const float half[3] = {2 * x[n][1], 2 * x[n][2], 2 * x[n][3]};
        f(1, half, 3, 0.5f);
    });
    check(bad == B * T && collector.characters == 8 && collector.values.size() == 4);
    const LayerFires layer = train_fires(collector, Ladder::OF_MAXIMUM);
    check(layer.alive == 3 && layer.rate[0] == 0 && layer.rate[1] == 0 && layer.rate[2] == 0.375);
    check(layer.max[0] == 1); // |-1|: never zero, never positive
    check(layer.max[1] == INFINITY && layer.max[2] == 5 && layer.max[3] == 0);
    check(layer.train.on(0, 0) == 0 && layer.train.on(2, 0) == 3 && layer.train.on(2, 3) == 2);
    check(layer.train.on(2, 10) == 0 && layer.train.on(2, 9) == 1 && *layer.train.first(2) == 2);

    FireCollector broken(4);
    const auto with = [&](size_t first, size_t last, float value) { // at these characters, else 1
        return [=](size_t n, auto f) {
            const float z[2] = {1, n >= first && n <= last ? value : 1};
            f(2, z, 2, 1.0f);
        };
    };
    check(broken.add(B, T, {{0}, {0}}, 0, with(5, 6, NAN)) == 5);
    check(FireCollector(4).add(B, T, {{0}, {0}}, 0, with(7, 7, INFINITY)) == 7);
}

// Facts of the published code's tests and arithmetic.
static void test_published_facts() {
    std::vector<size_t> below;
    for (size_t on = 20; on <= 20000; on += 20)
        if (!says(float(on / 20 * 19), float(on))) below.push_back(on);
    check(below.size() == 23, "%zu", below.size());
    check(below.size() > 2 && below[0] == 460 && below[1] == 920 && below[2] == 1840);
    check(says(10, 10) && !says(9, 9) && says(19, 20) && !says(18, 19));

    // Aggregation: every character of three games; feature 0 on the last 5 characters, feature 1 on 5-7.
    const std::string text = ";1.e4 e5 2.d3 f6 3.Nd2 Bb4 4.a3";
    const size_t T = text.size();
    const chess::GameTextReader game = chess::parse_game_text(text);
    Labels labels;
    labels.tokens = 3 * T, labels.words = (labels.tokens + 63) / 64;
    labels.bits.assign(total_cells() * labels.words, 0);
    std::vector<uint8_t> cells, after_e4;
    for (size_t n = 0; n < 3 * T; n++) {
        BoardHistory history;
        const size_t plies = size_t(std::count(text.begin(), text.begin() + std::ptrdiff_t(n % T + 1), ' '));
        for (size_t ply = 0; ply < plies; ply++) history.play(game.moves[ply]);
        label_position(history, cells);
        if (plies == 1) after_e4 = cells;
        for (size_t c = 0; c < cells.size(); c++)
            if (cells[c]) labels.bits[c * labels.words + n / 64] |= uint64_t(1) << (n % 64);
    }
    std::vector<float> values(3 * T * 4);
    for (size_t n = 0; n < 3 * T; n++) {
        if (n % T + 5 >= T) values[n * 4] = 0.6f;
        if (n % T >= 5 && n % T <= 7) values[n * 4 + 1] = 0.6f;
    }
    const UnitFires fires = fires_of(values, 4, std::vector<float>(4, 1.0f));
    std::vector<uint32_t> all(total_cells());
    std::iota(all.begin(), all.end(), 0);
    const LabelRows rows = label_rows(labels, all, true);
    std::vector<uint32_t> tp;
    for (const size_t t : {0, 5}) {
        for (size_t u = 0; u < 4; u++) check(fires.on(u, t) == (u == 0 ? 15u : u == 1 ? 9u : 0u));
        count_cells(fires, 1, rows, nullptr, tp);
        size_t wrong = 0;
        for (size_t c = 0; c < all.size(); c++) wrong += tp[t * all.size() + c] != 9u * after_e4[c];
        check(wrong == 0, "%zu", wrong);
        count_cells(fires, 0, rows, nullptr, tp);
        const size_t pin = cell_of("pin_state");
        check(tp[t * all.size() + pin] == 15 && rows.positives[pin] == 15); // on: always; off: never
    }
}

static void test_counting() {
    const Case c = make_case(23, 9, 12, 3);
    const LabelRows& rows = c.ruler.columns;
    size_t wrong = 0;
    for (size_t i = 0; i < rows.columns(); i++) { // cells that hold somewhere, and all of those
        size_t positives = 0;
        for (size_t n = 0; n < rows.tokens; n++)
            positives += c.labels[0].at(rows.cell[i], n),
                wrong += rows.at(i, n) != c.labels[0].at(rows.cell[i], n);
        wrong += positives != rows.positives[i] || positives == 0;
    }
    for (size_t cell = 0; cell < total_cells(); cell++) {
        size_t positives = 0;
        for (size_t n = 0; n < rows.tokens; n++) positives += c.labels[0].at(cell, n);
        wrong += (positives > 0) != std::binary_search(rows.cell.begin(), rows.cell.end(), cell);
    }
    check(wrong == 0, "%zu", wrong);
    check(rows.columns() > tile_cells * 3 && rows.columns() % tile_cells != 0);

    std::vector<uint32_t> tp;
    for (const Order* order : {(const Order*)nullptr, &c.ruler.permuted[0], &c.ruler.same_move[0]})
        for (size_t u = 0; u < 12; u++) {
            count_cells(c.fires.train, u, rows, order, tp);
            wrong = 0;
            for (size_t t = 0; t < n_thresholds; t++)
                for (size_t i = 0; i < rows.columns(); i++) {
                    size_t count = 0;
                    for (size_t n = 0; n < rows.tokens; n++)
                        count +=
                            is_on(c.values[0], c.max, n, u, t) && c.labels[0].at(rows.cell[i], get(order, n));
                    wrong += count != tp[t * rows.columns() + i];
                }
            check(wrong == 0, "unit %zu: %zu", u, wrong);
        }
    check(c.fires.train.on(0, 9) == 460); // the constant: more fires at one level than a byte counts
}

static void test_orders() {
    for (const size_t games : {2, 3, 50}) {
        const size_t dots = 20;
        const Order permuted = permuted_order(games, dots, 1), same = same_move_order(games, dots, 1);
        std::set<uint32_t> seen[2];
        size_t wrong = 0;
        for (size_t n = 0; n < games * dots; n++) {
            seen[0].insert(permuted[n]), seen[1].insert(same[n]);
            wrong += permuted[n] == n;
            wrong += same[n] % dots != n % dots || same[n] / dots == n / dots;
            wrong += same[n] / dots != same[n / dots * dots] / dots; // one game's labels stay together
        }
        check(wrong == 0 && seen[0].size() == games * dots && seen[1].size() == games * dots);
        check(*seen[0].rbegin() == games * dots - 1 && *seen[1].rbegin() == games * dots - 1);
        check(permuted == permuted_order(games, dots, 1) && permuted != permuted_order(games, dots, 2));
    }
}

// Selection, coverage, held-out coverage and reconstruction, for functions of every shape.
static void test_against_definitions() {
    const Case c = make_case(14, 12, 30, 4);
    size_t compared = 0, both = 0, rec_positive = 0, told = 0;
    for (const bool permuted : {false, true}) {
        const Order* orders = permuted ? c.ruler.same_move : nullptr;
        const Selection chosen = select_units(c.fires.train, c.ruler.columns, orders);
        const Order* test = orders ? &orders[1] : nullptr;
        const Reconstruction r = reconstruct(c.fires.test, chosen, c.ruler.test, c.ruler.functions, test),
                             known =
                                 reconstruct(c.fires.train, chosen, c.ruler.train, c.ruler.functions, orders);
        for (const Predictions& p : r.counts) both += p.both;
        for (const char* name : {"piece_masked_blank_and_initial_state", "piece_color_state", "threat_state",
                                 "has_castling_rights", "is_stalemate", "has_queen"}) {
            if (permuted && cells_of(board_functions[board_function(name)]) > 192) continue; // slow
            size_t f = 0;
            while (c.ruler.functions[f].function != board_function(name)) f++;
            const FunctionColumns& columns = c.ruler.functions[f];
            const SlowFunction slow = slow_function(c, columns.function, 1, orders);
            const Coverage fast = coverage(chosen, columns);
            size_t best = 0, best_rec = 0;
            for (size_t t = 0; t < n_thresholds; t++) {
                check_near(fast.average[t], slow.average[t], 1e-9);
                if (slow.average[t] > slow.average[best]) best = t;
                if (t + 1 < n_thresholds && slow.per_square[t] > slow.per_square[best_rec]) best_rec = t;
            }
            check(fast.threshold == best && fast.value == fast.average[best]);
            check_near(fast.per_cell, slow.per_cell, 1e-9);
            check(std::equal(slow.above.begin(), slow.above.end(), fast.above));
            check(std::equal(slow.above_threshold.begin(), slow.above_threshold.end(), fast.above_threshold));
            told += slow.above[5];
            check_near(always_on_floor(c.ruler.columns, columns), slow.floor, 1e-6);
            const HeldOut held = held_out(c.fires.test, chosen, best, c.ruler.test, columns, test);
            check_near(held_out_f1(held, columns.cells()), slow.held_out, 1e-9);
            for (size_t row = 0; row <= max_mask; row++) {
                check_near(class_f1(r, c.ruler.test, row, f), slow.f1[row], 1e-12);
                check_near(class_f1(r, c.ruler.test, row, f, nullptr, true), slow.per_square[row], 1e-12);
                rec_positive += slow.f1[row] > 0, compared++;
            }
            check(best_threshold(r, c.ruler.test, f) == best_rec);
            if (!permuted && (f == 3 || f == 4)) { // on the train games, too
                const SlowFunction on_train = slow_function(c, columns.function, 0);
                for (size_t row = 0; row <= max_mask; row++)
                    check_near(class_f1(known, c.ruler.train, row, f), on_train.f1[row], 1e-12);
            }
        }
    }
    check(both > 0 && rec_positive > compared / 4 && told > 10, "%zu %zu of %zu %zu", both, rec_positive,
          compared, told);

    // The unit of a tie is the lowest, whichever thread found it: copies of every unit change nothing.
    const size_t copies = 10;
    std::vector<float> many, max;
    for (size_t n = 0; n < c.labels[0].tokens; n++)
        for (size_t copy = 0; copy < copies; copy++)
            many.insert(many.end(), &c.values[0][n * 30], &c.values[0][n * 30] + 30);
    for (size_t copy = 0; copy < copies; copy++) max.insert(max.end(), c.max.begin(), c.max.end());
    const Selection one = select_units(c.fires.train, c.ruler.columns),
                    all = select_units(fires_of(many, copies * 30, max), c.ruler.columns);
    check(one.f1 == all.f1 && one.unit == all.unit);
    check(all.labelled.size() == copies * one.labelled.size());
    check(one.labelled.size() > 5);
}

static void test_bits_between() {
    Random random{9};
    std::vector<uint64_t> row(4);
    size_t wrong = 0;
    for (size_t i = 0; i < 20000; i++) {
        for (uint64_t& word : row) word = random.u64();
        const size_t first = random.below(200),
                     last = first + 1 + random.below(std::min<size_t>(64, 256 - first));
        const uint64_t bits = bits_between(row.data(), first, last);
        for (size_t b = 0; b < 64; b++)
            wrong +=
                (bits >> b & 1) != (first + b < last ? row[(first + b) / 64] >> ((first + b) % 64) & 1 : 0);
    }
    check(wrong == 0, "%zu", wrong);
}

// A unit that equals a cell has F1 = 1 there, also held out; a unit that is always on has the floor.
static void test_planted() {
    Case c = make_case(20, 20, 2, 6, false);
    for (const char* name :
         {"can_check_next", "has_queen", "threat_state", "piece_masked_blank_and_initial_state"}) {
        const size_t function = board_function(name), cells = cells_of(board_functions[function]);
        const size_t units = cells + 1; // the last one is always on
        std::vector<float> values[2], max(units, INFINITY);
        for (size_t set = 0; set < 2; set++)
            for (size_t n = 0; n < c.labels[set].tokens; n++)
                for (size_t u = 0; u < units; u++) {
                    const bool on = u == cells || c.labels[set].at(first_cell(function) + u, n);
                    values[set].push_back(on);
                    if (on) max[u] = 1;
                }
        LayerFires fires;
        fires.units = units;
        fires.train = fires_of(values[0], units, max), fires.test = fires_of(values[1], units, max);
        const LayerBsp layer = measure_layer(fires, c.ruler, 1);
        size_t f = 0;
        while (c.ruler.functions[f].function != function) f++;
        const BspScore& s = layer.functions[f];
        const FunctionColumns& columns = c.ruler.functions[f];
        const double occurring = double(columns.last - columns.first) / columns.cells();
        check_near(s.coverage, occurring, 1e-6);
        size_t held = 0;
        for (size_t i = columns.first; i < columns.last; i++)
            for (size_t n = 0; n < c.ruler.test.tokens(); n++)
                if (c.ruler.test.row(n)[i / 64] >> (i % 64) & 1) {
                    held++;
                    break;
                }
        const double expected =
            double(held) / columns.cells(); // but for cells that are equal on the train games
        check(s.held_out <= expected + 1e-6 && s.held_out > 0.98 * expected, "%g %g", s.held_out, expected);
        check(s.per_cell >= s.coverage - 1e-9);
        check(s.permuted.coverage < s.coverage ||
              c.ruler.columns.positives[columns.first] == c.ruler.train.tokens());
        check(s.held_out_interval.low <= s.held_out_interval.high && s.held_out_interval.low > 0);

        LayerFires constant;
        constant.units = 1;
        constant.train = fires_of(std::vector<float>(c.labels[0].tokens, 2.0f), 1, {2.0f});
        constant.test = fires_of(std::vector<float>(c.labels[1].tokens, 2.0f), 1, {2.0f});
        const LayerBsp flat = measure_layer(constant, c.ruler, 1);
        check_near(flat.functions[f].coverage, always_on_floor(c.ruler.columns, columns), 1e-9);
        check_near(flat.functions[f].coverage, flat.functions[f].permuted.coverage, 1e-9);
        check(flat.active[9] == 1 && flat.active[10] == 0);
    }
    // Groups: board is the headline function, strategy the mean of 14.
    check(c.ruler.strategy.size() == 14 && c.ruler.functions.size() == 23);
    check(c.ruler.functions[c.ruler.board].function ==
          board_function("piece_masked_blank_and_initial_state"));
    check(c.ruler.functions[c.ruler.board].cells() == 768 && c.ruler.functions[0].cells() == 832);
    const LayerBsp layer = measure_layer(c.fires, c.ruler, 1);
    double coverage = 0, held_out = 0, last = 0, control = 0;
    for (size_t f = 0; f < layer.functions.size(); f++)
        if (board_functions[c.ruler.functions[f].function].strategy) {
            coverage += layer.functions[f].coverage / 14, held_out += layer.functions[f].held_out / 14;
            last += layer.functions[f].rec_max_mask / 14,
                control += layer.functions[f].same_move.held_out / 14;
        }
    check_near(layer.strategy.coverage, coverage, 1e-12);
    check_near(layer.strategy.held_out, held_out, 1e-12);
    check_near(layer.strategy.rec_max_mask, last, 1e-12);
    check_near(layer.strategy.same_move.held_out, control, 1e-12);
    check_near(layer.board.of_704, layer.board.coverage / 704 * 768, 1e-12);
}

// Coverage and reconstruction beyond the text from their definitions.
static void test_beyond() {
    const Case c = make_case(30, 25, 20, 7, false);
    const Ruler& ruler = c.ruler;
    const Selection chosen = select_units(c.fires.train, ruler.columns);
    const Reconstruction r = reconstruct(c.fires.test, chosen, ruler.test, ruler.functions);
    size_t better = 0, open = 0;
    for (const char* name : {"threat_state", "has_castling_rights", "piece_masked_blank_and_initial_state"}) {
        size_t f = 0;
        while (ruler.functions[f].function != board_function(name)) f++;
        const FunctionColumns& columns = ruler.functions[f];
        const size_t t = coverage(chosen, columns).threshold;
        const HeldOut held = held_out(c.fires.test, chosen, t, ruler.test, columns);
        const Beyond beyond =
            beyond_text(held, chosen, t, ruler.text.held_out[f], ruler.text.chosen, columns);
        const std::vector<double> units = column_f1(held), text = column_f1(ruler.text.held_out[f]);
        double sum = 0;
        for (size_t i = columns.first; i < columns.last; i++)
            if (chosen.f1[t * chosen.width + i] > ruler.text.chosen.f1[i]) {
                sum += units[i - columns.first] - text[i - columns.first];
                better++;
            }
        check_near(coverage_beyond(beyond, columns.cells()), sum / columns.cells(), 1e-9);
        if (columns.cells() > 64) continue; // slow
        std::vector<SlowCell> slow;
        for (size_t i = columns.first; i < columns.last; i++)
            slow.push_back(slow_cell(c, ruler.columns.cell[i], nullptr));
        for (const size_t row : {0, 3}) {
            size_t tp = 0, fp = 0, positives = 0;
            for (size_t n = 0; n < ruler.test.tokens(); n++) {
                const auto said = [&](size_t i) {
                    return ruler.test.said[n * ruler.test.words + i / 64] >> (i % 64) & 1;
                };
                for (size_t i = columns.first; i < columns.last; i++) {
                    if (said(i)) continue;
                    bool predicted = false;
                    for (size_t u = 0; u < c.max.size(); u++)
                        predicted = predicted || (slow[i - columns.first].said[row][u] &&
                                                  is_on(c.values[1], c.max, n, u, row));
                    const bool truth = c.labels[1].at(ruler.columns.cell[i], n);
                    tp += predicted && truth, fp += predicted && !truth, positives += truth;
                }
                for (size_t cell = 0; cell < cells_of(board_functions[columns.function]); cell++) {
                    const size_t id = first_cell(columns.function) + cell;
                    if (!std::binary_search(ruler.columns.cell.begin(), ruler.columns.cell.end(), id))
                        positives += c.labels[1].at(id, n); // without a column
                }
            }
            check_near(open_f1(r, ruler.open[1], row, f), slow_f1(tp, tp + fp, positives), 1e-9);
            open += tp;
        }
    }
    check(better > 0 && open > 0, "%zu columns, %zu predictions", better, open);
}

// What reads the text has nothing beyond it; what knows what no rule says has.
static void test_reader_and_knower() {
    GameSplit games{random_games(150, 31), random_games(150, 32)};
    const Ruler ruler = make_ruler(games, false, 1);
    const Labels boards[2] = {label_games(games.train, 20), label_games(games.test, 20)};
    const ChessQuestions asked = chess_questions(games.train, {20, false});
    const Labels texts[2] = {label_chess_text(games.train, asked), label_chess_text(games.test, asked)};
    const size_t plus = asked.slot[BLACK_LAST] + slot_marks + CHECK;
    size_t hard = 0; // the column that the text says least of, of those that are common
    const FunctionColumns& board = ruler.functions[ruler.board];
    for (size_t i = board.first; i < board.last; i++)
        if (ruler.common[i] && (hard == 0 || ruler.text.chosen.f1[i] < ruler.text.chosen.f1[hard])) hard = i;
    std::vector<float> values[2];
    for (size_t set = 0; set < 2; set++)
        for (size_t n = 0; n < boards[set].tokens; n++) {
            values[set].push_back(texts[set].at(plus, n));
            values[set].push_back(boards[set].at(ruler.columns.cell[hard], n));
        }
    LayerFires fires;
    fires.units = 2;
    fires.train = fires_of(values[0], 2, {1, 1}), fires.test = fires_of(values[1], 2, {1, 1});
    const LayerBsp layer = measure_layer(fires, ruler, 1);
    size_t f = 0;
    while (ruler.functions[f].function != board_function("check_state")) f++;
    const BspScore& check_state = layer.functions[f];
    check(check_state.held_out > 0.99 && check_state.text.held_out > 0.99 &&
              std::fabs(check_state.beyond) < 1e-9,
          "%g, the text %g", check_state.held_out, check_state.text.held_out);
    check(check_state.matched > 0.95 * check_state.held_out, "%g",
          check_state.matched); // the last move gives it away
    check(ruler.text.words(ruler.functions[f].first).find("check") != std::string::npos, "%s",
          ruler.text.words(ruler.functions[f].first).c_str());
    const double gain = (1 - column_f1(ruler.text.held_out[ruler.board])[hard - board.first]) / 768;
    check(gain > 1e-4 && layer.board.beyond > 0.9 * gain, "%g, of one piece %g", layer.board.beyond, gain);
    check(layer.board.beyond_interval.low > 0 && layer.board.rec_beyond > 0);
    check(layer.board.permuted.beyond < 0.2 * gain && layer.board.same_move.beyond < 0.2 * gain);
    check(layer.board.matched < layer.board.held_out);
    check(layer.board.text.held_out > 2 * layer.board.held_out && layer.board.gain > 0);
}

// A resample that holds every game twice changes nothing; one of a single game is that game's own number.
static void test_resamples() {
    const Case c = make_case(10, 6, 20, 8, false);
    const Selection chosen = select_units(c.fires.train, c.ruler.columns);
    const Reconstruction r = reconstruct(c.fires.test, chosen, c.ruler.test, c.ruler.functions);
    for (const size_t f : {size_t(1), size_t(3), size_t(4), c.ruler.strategy[5]}) {
        const FunctionColumns& columns = c.ruler.functions[f];
        const HeldOut held = held_out(c.fires.test, chosen, 2, c.ruler.test, columns);
        const std::vector<uint32_t> twice(6, 2), third = {0, 0, 1, 0, 0, 0};
        check(held_out_f1(held, columns.cells(), &twice) == held_out_f1(held, columns.cells()));
        check(class_f1(r, c.ruler.test, 2, f, &twice) == class_f1(r, c.ruler.test, 2, f));
        double sum = 0;
        size_t tp_all = 0, on_all = 0, positives_all = 0;
        const size_t first = first_cell(columns.function);
        for (size_t cell = 0; cell < cells_of(board_functions[columns.function]); cell++) {
            const auto column =
                std::lower_bound(c.ruler.columns.cell.begin(), c.ruler.columns.cell.end(), first + cell);
            const bool has = column != c.ruler.columns.cell.end() && *column == first + cell;
            const size_t i = size_t(column - c.ruler.columns.cell.begin());
            size_t tp = 0, on = 0, positives = 0;
            for (size_t n = 40; n < 60; n++) {
                const bool truth = c.labels[1].at(first + cell, n);
                const bool fires = has && chosen.f1[2 * chosen.width + i] > 0 &&
                                   is_on(c.values[1], c.max, n, chosen.unit[2 * chosen.width + i], 2);
                tp += truth && fires, on += fires, positives += truth;
            }
            sum += double(slow_f1(tp, on, positives)) / columns.cells();
            positives_all += positives;
        }
        check_near(held_out_f1(held, columns.cells(), &third), sum, 1e-9);
        tp_all = r.at(2, f, 2).tp, on_all = tp_all + r.at(2, f, 2).fp;
        check_near(class_f1(r, c.ruler.test, 2, f, &third), slow_f1(tp_all, on_all, positives_all), 1e-12);
        check(c.ruler.test.positives[f * 6 + 2] == positives_all);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Files and programs

// An .npy file as numpy.save writes it, with a header that may be anything.
static std::string npy_file(const std::string& name, const std::string& header,
                            const std::vector<float>& data, unsigned version = 1) {
    std::string text = "\x93NUMPY";
    text += {char(version), 0};
    std::string padded = header;
    const size_t before = version == 1 ? 10 : 12;
    while ((before + padded.size() + 1) % 64) padded += ' ';
    padded += '\n';
    for (size_t i = 0; i < before - 8; i++) text += char(padded.size() >> 8 * i & 255);
    text += padded;
    text.append((const char*)data.data(), data.size() * sizeof(float));
    write_text(folder + "/" + name, text);
    return folder + "/" + name;
}
static std::string npy_header(const std::vector<size_t>& shape) {
    return "{'descr': '<f4', 'fortran_order': False, 'shape': " + npy_shape_text(shape) + ", }";
}

static void test_npy() {
    const std::vector<float> six = {1, 2, 3, 4, 5, 6};
    for (const unsigned version : {1, 2, 3}) {
        const NpyArray array = read_npy(npy_file("a.npy", npy_header({2, 3}), six, version));
        check(array.shape == std::vector<size_t>({2, 3}) && array.data[5] == 6);
    }
    check(read_npy(npy_file("a.npy", npy_header({6}), six)).shape == std::vector<size_t>({6}));
    check(read_npy(npy_file("a.npy", "{\"shape\": (3, 2), \"fortran_order\":False,\"descr\" : \"<f4\"}", six))
              .shape[0] == 3);
    check(read_npy(npy_file("a.npy", npy_header({}), {7})).data[0] == 7);
    check(npy_shape_text({1000, 256, 64}) == "(1000, 256, 64)" && npy_shape_text({3}) == "(3,)");

    const auto refuse = [&](const char* header, const char* what) {
        check_error(read_npy(npy_file("bad.npy", header, six)), "bad.npy", what);
    };
    refuse("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }", "float32");
    refuse("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", "'<f4'");
    refuse("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2, 3), }", "a string");
    refuse("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", "C order");
    refuse("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3), }", "True or False");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", "(2, 4)");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }", "a size");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3 }", "expected");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (2 3), }", "','");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "a size");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 999999999999), }", "24 bytes");
    // four times the product is 24 modulo 2^64
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (2617318, 7047956753329), }", "24 bytes");
    refuse("{'descr': '<f4', 'fortran_order': False}", "shape");
    refuse("{'descr': '<f4', 'descr': '<f4', 'shape': (2, 3)}", "unexpected");
    refuse("{'descr': '<f4', 'other': '<f4', 'shape': (2, 3)}", "unexpected");
    refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), ", "a string");
    refuse("['descr']", "'{'");
    refuse("", "'{'");
    check_error(read_npy(npy_file("bad.npy", npy_header({2, 3}), six, 4)), "version 4");
    write_text(folder + "/bad.npy", "\x93NUMPY\x01");
    check_error(read_npy(folder + "/bad.npy"), "not an npy file");
    write_text(folder + "/bad.npy", "PK\x03\x04 a zip file of arrays");
    check_error(read_npy(folder + "/bad.npy"), "not an npy file");
    write_text(folder + "/bad.npy", std::string("\x93NUMPY\x01\0\xFF\xFF{'descr'", 18));
    check_error(read_npy(folder + "/bad.npy"), "cut off");
    write_text(folder + "/bad.npy", std::string("\x93NUMPY\x02\0\x10\0", 10));
    check_error(read_npy(folder + "/bad.npy"), "cut off");
    const std::string odd = npy_header({1}); // data at a place no float can be read from
    write_text(folder + "/bad.npy", std::string("\x93NUMPY\x01\0", 8) +
                                        char(odd.size() + (odd.size() % 4 == 0)) + '\0' + odd +
                                        std::string(odd.size() % 4 == 0, ' ') + "abcd");
    check_error(read_npy(folder + "/bad.npy"), "bad.npy");
    check_error(read_npy(folder + "/none.npy"), "none.npy", "cannot be opened");
}

// Runs the program with its tables thrown away.
static int bsp(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "bsp");
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    fflush(stdout);
    const int kept = dup(1), nothing = open("/dev/null", O_WRONLY);
    dup2(nothing, 1), close(nothing);
    const auto restore = [&] { fflush(stdout), dup2(kept, 1), close(kept); };
    try {
        const int status = bsp_program(int(arguments.size()), argv.data(), cpu_reader);
        return restore(), status;
    } catch (...) {
        restore();
        throw;
    }
}
static Json read_json(const std::string& path) {
    const MappedFile file(path);
    return parse_json((const char*)file.data, file.size, path);
}
static std::string without_seconds(const std::string& path) {
    const MappedFile file(path);
    std::string text((const char*)file.data, file.size);
    const size_t at = text.find("\"seconds\":"), end = text.find(',', at);
    return text.erase(at, end - at);
}
static const Json& at(const Json& json, std::initializer_list<const char*> path) {
    const Json* here = &json;
    for (const char* name : path) {
        const bool index = *name >= '0' && *name <= '9';
        const Json* next = index ? &here->items.at(size_t(atoi(name))) : here->find(name);
        if (!check(next != nullptr, "%s", name)) return *here;
        here = next;
    }
    return *here;
}

static Config tiny_config() {
    Config c;
    c.n_layer = 2, c.n_head = 2, c.n_embd = 16, c.block_size = 256, c.vocab_size = 32,
    c.tokenizer = "chess-32";
    c.n_expert = 3, c.n_expert_active = 2, c.d_expert = 8;
    return c;
}
static std::string save_tiny(const std::string& name, const Config& config, uint64_t seed, float bias = 0) {
    const std::vector<Tensor> table = tensor_table(config);
    std::vector<float> weights(block_elements(table));
    init_parameters(config, table, weights.data(), seed);
    for (const Tensor& t : table) // units that are more often on than off, and a router that has a choice
        if (t.name.find("b_enc") != std::string::npos || t.name.find("c_fc.bias") != std::string::npos)
            for (size_t i = 0; i < t.count; i++) weights[t.offset + i] = bias * float(i % 5);
    make_directories(folder + "/" + name);
    save_model(folder + "/" + name + "/model_00000007.safetensors", config, table, weights.data(), 7);
    return folder + "/" + name;
}

// The program on a tiny model against values that are collected one by one from LayerUnits and scored slowly;
// and the same values as .npy files.
static void test_program() {
    Case c;
    GameSplit games{random_games(12, 91), random_games(11, 92)};
    const std::string train = write_game_file("train.txt", games.train),
                      test = write_game_file("test.txt", games.test);
    for (const char* kind : {"moe", "dense gelu"}) {
        Config config = tiny_config();
        if (*kind == 'd') config.ffn = "dense", config.act = "gelu";
        const bool gated = config.moe();
        const std::string run = save_tiny(strf("run %s", kind), config, 3, 0.02f);
        const std::string model = run + "/model_00000007.safetensors";
        std::vector<std::string> flags = {"--ckpt", run, "--games", train, "--test-games", test};
        check(bsp(flags) == 0);
        const Json json = read_json(run + "/interp/bsp.json");

        // Every value of every character.
        Reader reader = cpu_reader(config, 5, 256);
        load_weights(reader, SafeTensorsFile(model));
        const size_t units = reader.units(), layer_index = 1;
        std::vector<float> all[2];
        for (size_t set = 0; set < 2; set++) {
            const GameSet& from = set ? games.test : games.train;
            all[set].assign(from.size() * 256 * units, 0);
            read_rows(reader, game_rows(from), "test", [&](size_t first, size_t B) {
                const LayerUnits layer = reader.layer(layer_index);
                for (size_t n = 0; n < B * 256; n++)
                    for (size_t k = 0; k < layer.K; k++)
                        for (size_t i = 0; i < layer.D; i++) {
                            const size_t expert = gated ? size_t(layer.choice[n * layer.K + k]) : 0;
                            const size_t row = gated ? size_t(layer.slot[n * layer.K + k]) : n;
                            const float w = gated ? layer.weight[n * layer.K + k] : 1;
                            all[set][((first * 256) + n) * units + expert * layer.D + i] =
                                w * layer.z[row * layer.D + i];
                        }
            });
        }
        c.ruler = make_ruler(games, false, 1);
        c.labels[0] = label_games(games.train, 20), c.labels[1] = label_games(games.test, 20);
        c.max.assign(units, -INFINITY);
        std::vector<bool> alive(units);
        for (size_t i = 0; i < all[0].size(); i++) {
            c.max[i % units] = std::max(c.max[i % units], all[0][i]);
            if (all[0][i] != 0) alive[i % units] = true;
        }
        for (size_t u = 0; u < units; u++) c.max[u] = alive[u] ? std::fabs(c.max[u]) : INFINITY;
        double active = 0;
        for (size_t set = 0; set < 2; set++) {
            const GameSet& from = set ? games.test : games.train;
            c.values[set].clear();
            for (size_t g = 0; g < from.size(); g++)
                for (const size_t dot : dots_of(from.texts[g], 20))
                    c.values[set].insert(c.values[set].end(), &all[set][(g * 256 + dot) * units],
                                         &all[set][(g * 256 + dot) * units] + units);
        }
        for (size_t n = 0; n < c.labels[1].tokens; n++)
            for (size_t u = 0; u < units; u++) active += is_on(c.values[1], c.max, n, u, 0);

        const Json& layer = at(json, {"layers", "1"});
        check(at(layer, {"units"}).magnitude == units && at(layer, {"layer"}).magnitude == 1);
        check(at(layer, {"alive"}).magnitude == size_t(std::count(alive.begin(), alive.end(), true)));
        check_near(at(layer, {"active", "0"}).number, active / double(c.labels[1].tokens), 1e-4);
        for (const char* name :
             {"threat_state", "has_castling_rights", "piece_color_state", "can_check_next"}) {
            const SlowFunction slow = slow_function(c, board_function(name), 1);
            size_t best = 0, rec = 0;
            for (size_t t = 0; t < n_thresholds; t++) {
                if (slow.average[t] > slow.average[best]) best = t;
                if (t < 10 && slow.per_square[t] > slow.per_square[rec]) rec = t;
            }
            const Json& f = at(layer, {"functions", std::to_string(board_function(name)).c_str()});
            check(at(f, {"name"}).text == name);
            check_near(at(f, {"coverage"}).number, slow.average[best], 1e-5);
            check(std::fabs(at(f, {"threshold"}).number - double(best) / 10) < 1e-6 &&
                  std::fabs(at(f, {"rec_threshold"}).number - double(rec) / 10) < 1e-6);
            check_near(at(f, {"per_cell"}).number, slow.per_cell, 1e-5);
            check(at(f, {"above", "5"}).magnitude == slow.above[5]);
            check_near(at(f, {"held_out"}).number, slow.held_out, 1e-5);
            check_near(at(f, {"rec_published"}).number, slow.f1[rec], 1e-5);
            check_near(at(f, {"rec_max_mask"}).number, slow.f1[max_mask], 1e-5);
            const SlowFunction moved = slow_function(c, board_function(name), 1, c.ruler.same_move);
            check_near(at(f, {"same_move", "coverage"}).number,
                       *std::max_element(moved.average, moved.average + n_thresholds), 1e-5);
            check_near(at(f, {"same_move", "held_out"}).number, moved.held_out, 1e-5);
            check_near(at(json, {"functions", std::to_string(board_function(name)).c_str(), "floor"}).number,
                       slow.floor, 1e-5);
        }
        check(at(json, {"tool"}).text == "bsp" && at(json, {"checkpoint"}).text == model);
        check(at(json, {"step"}).magnitude == 7 && at(json, {"config", "n_embd"}).text == "16");
        check(at(json, {"games", "train"}).magnitude == 12 && at(json, {"games", "test"}).magnitude == 11);
        check(at(json, {"gated"}).boolean && at(json, {"seeds", "untrained"}).magnitude == 1);
        check(at(json, {"functions"}).items.size() == 23 && at(layer, {"functions"}).items.size() == 23);
        check(at(layer, {"strategy", "threshold"}).type == Json::Null);
        check(at(layer, {"board", "held_out_low"}).number <= at(layer, {"board", "held_out_high"}).number);
        check(at(layer, {"board", "untrained", "coverage"}).number > 0);
        check_near(at(layer, {"board", "coverage"}).number, at(layer, {"functions", "2", "coverage"}).number,
                   0);

        // The same values as features made elsewhere.
        const std::string a = npy_file("train.npy", npy_header({12, 256, units}), all[0]),
                          b = npy_file("test.npy", npy_header({11, 256, units}), all[1]);
        check(bsp({"--activations", a, "--test-activations", b, "--games", train, "--test-games", test,
                   "--json", folder + "/deep/er/npy.json"}) == 0);
        const Json same = read_json(folder + "/deep/er/npy.json");
        for (const char* name : {"coverage", "held_out", "held_out_low", "rec_published", "rec_max_mask",
                                 "rec_high", "beyond", "rec_beyond", "matched"})
            for (const char* group : {"board", "strategy"})
                check_near(at(same, {"layers", "0", group, name}).number, at(layer, {group, name}).number, 0);
        check(at(same, {"layers", "0", "board", "untrained", "coverage"}).type == Json::Null);
        check(at(same, {"checkpoint"}).type == Json::Null && at(same, {"layers"}).items.size() == 1);

        // Any number of threads; one layer of all; seeds; without gate weights.
        const std::string reference = without_seconds(run + "/interp/bsp.json");
        const size_t threads = thread_count();
        set_thread_count(threads == 1 ? 3 : 1);
        check(bsp(flags) == 0 && without_seconds(run + "/interp/bsp.json") == reference);
        set_thread_count(threads);
        std::vector<std::string> other = flags;
        other.insert(other.end(), {"--layer", "1", "--seed", "2", "--json", folder + "/one.json"});
        check(bsp(other) == 0);
        const Json one = read_json(folder + "/one.json");
        check(at(one, {"layers"}).items.size() == 1 && at(one, {"layers", "0", "layer"}).magnitude == 1);
        check(at(one, {"layers", "0", "board", "coverage"}).number ==
              at(layer, {"board", "coverage"}).number);
        check(at(one, {"layers", "0", "board", "untrained", "coverage"}).number ==
              at(layer, {"board", "untrained", "coverage"}).number);
        check(at(one, {"layers", "0", "board", "permuted", "coverage"}).number !=
              at(layer, {"board", "permuted", "coverage"}).number);
        other = flags;
        other.insert(other.end(), {"--ungated", "--json", folder + "/ungated.json"});
        check(bsp(other) == 0);
        const Json plain = read_json(folder + "/ungated.json");
        for (const char* whose : {"permuted", "untrained"})
            check((at(plain, {"layers", "1", "strategy", whose, "coverage"}).number ==
                   at(layer, {"strategy", whose, "coverage"}).number) == !gated);
        other.insert(other.end(), {"--untrained-seed", "9", "--functions", "all"});
        check(bsp(other) == 0);
        const Json ungated = read_json(folder + "/ungated.json");
        check(!at(ungated, {"gated"}).boolean && at(ungated, {"seeds", "untrained"}).magnitude == 9);
        check(at(ungated, {"functions"}).items.size() == 27);
        check((at(ungated, {"layers", "1", "board", "coverage"}).number ==
               at(layer, {"board", "coverage"}).number) == !gated);
        check(at(ungated, {"layers", "1", "board", "untrained", "coverage"}).number !=
              at(layer, {"board", "untrained", "coverage"}).number);
    }

    // A path that is no UTF-8 does not lose what was measured.
    const std::string odd = write_game_file("odd\xFF.txt", games.train);
    check(bsp({"--ckpt", folder + "/run moe", "--games", odd, "--layer", "1", "--json",
               folder + "/odd.json"}) == 0);
    check(at(read_json(folder + "/odd.json"), {"games", "source"}).text == folder + "/odd?.txt");

    // Games written out are read back as they are; labels go to a file.
    check(bsp({"--games", train, "--write-games", folder + "/games"}) == 0);
    const GameSplit split = split_games(train, "", 256, 20, 1000);
    check(read_games(folder + "/games/train.txt", 256, 20, 100).texts == split.train.texts);
    check(read_games(folder + "/games/test.txt", 256, 20, 100).texts == split.test.texts);
    check(split.train.size() == 6 && split.test.size() == 6);
    check(bsp({"--games", train, "--labels", folder + "/labels.csv"}) == 0);
    const MappedFile csv(folder + "/labels.csv");
    check(std::string((const char*)csv.data, 21) == "game,ply,fen,piece64,");
}

// Units as two by their sign; scores of units drawn among all.
// The views of a layer against one another: what each is follows from the others and the weights.
static void test_views() {
    for (const std::string kind : {"geglu", "solu", "monet-hd", "monet-vd", "peer"}) {
        Config config = tiny_config();
        config.ffn = kind == "geglu" || kind == "solu" ? "dense" : kind;
        config.act = config.dense() ? kind : config.peer() ? "gelu" : "relu2";
        if (!config.dense()) {
            config.n_expert = config.n_expert_active = 1;
            config.n_key = 6, config.n_top = 3, config.n_retrieve = 2,
            config.d_expert = config.peer() ? 1 : 4;
            (config.peer() ? config.d_key : config.n_share) = 2;
        }
        check_config(config, kind);
        const size_t T = 20, C = config.n_embd, Q = config.n_key, H = config.n_retrieve, M = config.d_expert;
        Reader reader = cpu_reader(config, 1, T);
        untrained_weights(reader, 5);
        std::vector<int32_t> tokens(T);
        for (size_t t = 0; t < T; t++) tokens[t] = int32_t(random_u64(1, 1, t) % 32);
        reader.read(tokens.data(), 1, T);
        check(reader.units() == reader.views[0].units);
        const auto view = [&](const char* name, size_t n) {
            const Reader r = view_reader(reader, name, false, kind);
            std::vector<double> all(r.units());
            r.layer(1).each(n, true, [&](size_t u, float v) { all[u] = v; });
            return all;
        };
        const float* const x = reader.layer(1).x;
        const auto dot = [&](const char* tensor, size_t row, size_t n) {
            double sum = 0;
            for (const Tensor& t : reader.table)
                for (size_t c = 0; c < C && t.name == std::string("h.1.") + tensor; c++)
                    sum += reader.weights()[t.offset + row * C + c] * x[n * C + c];
            return sum;
        };
        double worst = 0, size = 0;
        const auto same = [&](double a, double b) {
            worst = std::max(worst, std::isnan(a - b) ? INFINITY : std::fabs(a - b));
            size = std::max(size, std::fabs(b));
        };
        for (size_t n = 0; n < T; n++) {
            if (kind == "geglu") {
                const std::vector<double> units = view("units", n), gate = view("gate", n);
                for (size_t u = 0; u < units.size(); u++) {
                    same(gate[u], gelu(real(dot("mlp.c_gate.weight", u, n))));
                    same(units[u], gate[u] * dot("mlp.c_fc.weight", u, n));
                }
            } else if (kind == "solu") { // post is the LayerNorm of pre, whose weights are 1 and 0
                const std::vector<double> pre = view("pre", n), post = view("post", n);
                double mean = 0, variance = 0;
                for (const double v : pre) mean += v / double(pre.size());
                for (const double v : pre) variance += (v - mean) * (v - mean) / double(pre.size());
                for (size_t u = 0; u < pre.size(); u++)
                    same(post[u], (pre[u] - mean) / std::sqrt(variance + 1e-5));
            } else if (kind == "peer") {
                const std::vector<double> units = view("units", n), routing = view("routing", n);
                double sum = 0;
                for (size_t u = 0; u < Q * Q; u++) {
                    sum += routing[u];
                    same(units[u], routing[u] == 0 ? 0 : routing[u] * gelu(real(dot("peer.w_enc", u, n))));
                }
                same(sum, double(H)); // a softmax of each head
            } else {
                // With R_ij = sum_h g0_hi g1_hj:  hd r_j = sum_i R_ij a_i;  vd r12_i = sum_j R_ij a2_j, r21_j
                // = sum_i R_ij a1_i. A layer that shares the router of the one before has its R.
                const std::vector<double> R = view("routing", n), units = view("units", n),
                                          a = view("encoder", n);
                const bool hd = kind == "monet-hd";
                const size_t P = hd ? 1 : 2, m = M / P, part = Q * m;
                check(units.size() == P * P * part && a.size() == P * part && R.size() == Q * Q);
                for (size_t j = 0; j < Q; j++)
                    for (size_t d = 0; d < m; d++) {
                        double columns = 0, rows = 0;
                        for (size_t i = 0; i < Q; i++) {
                            columns += R[i * Q + j] * a[i * m + d];
                            if (!hd) rows += R[j * Q + i] * a[part + i * m + d];
                        }
                        same(units[(hd ? 0 : 2 * part) + j * m + d], columns);
                        if (!hd) same(units[part + j * m + d], rows);
                    }
            }
        }
        check(worst <= 2e-6 * std::max(1.0, size) && size > 1e-6, "%s: %g of %g", kind.c_str(), worst, size);
    }
}

static void test_split_and_subset() {
    const GameSplit games{random_games(5, 71), random_games(4, 72)};
    const std::string train = write_game_file("split_train.txt", games.train),
                      test = write_game_file("split_test.txt", games.test);
    const size_t units = 70; // more than are split at a time
    std::vector<float> values[2], two[2];
    Random random{73};
    for (const size_t set : {0, 1}) {
        const size_t n = (set ? games.test : games.train).size() * 256;
        for (size_t i = 0; i < n * units; i++)
            values[set].push_back(random.uniform() < 0.3 ? float(random.uniform() - 0.6) : 0);
        for (size_t i = 0; i < n; i++)
            for (const float sign : {1.0f, -1.0f})
                for (size_t u = 0; u < units; u++)
                    two[set].push_back(std::max(0.0f, sign * values[set][i * units + u]));
    }
    const auto measured = [&](const std::vector<float>* of, size_t n, std::vector<std::string> more) {
        std::vector<std::string> flags = {"--activations",
                                          npy_file("a.npy", npy_header({5, 256, n}), of[0]),
                                          "--test-activations",
                                          npy_file("b.npy", npy_header({4, 256, n}), of[1]),
                                          "--games",
                                          train,
                                          "--test-games",
                                          test,
                                          "--json",
                                          folder + "/split.json"};
        flags.insert(flags.end(), more.begin(), more.end());
        check(bsp(flags) == 0);
        return read_json(folder + "/split.json");
    };
    const Json split = measured(values, units, {"--split-signs"}), plain = measured(values, units, {}),
               expected = measured(two, 2 * units, {});
    check(at(split, {"layers", "0", "units"}).magnitude == 2 * units && at(split, {"split"}).boolean);
    size_t differ = 0;
    for (const char* group : {"board", "strategy"})
        for (const char* name :
             {"coverage", "held_out", "rec_published", "beyond", "held_out_low", "rec_max_mask"}) {
            const Json& got = at(split, {"layers", "0", group, name});
            check(got.number == at(expected, {"layers", "0", group, name}).number, "%s %s", group, name);
            differ += got.number != at(plain, {"layers", "0", group, name}).number;
        }
    check(differ > 3, "%zu", differ);

    // A model's units split, beside what it shows.
    Config config = tiny_config();
    config.ffn = "dense", config.act = "gelu";
    const std::string run = save_tiny("split", config, 3, 0.02f);
    Reader reader = cpu_reader(config, 5, 256);
    load_weights(reader, SafeTensorsFile(run + "/model_00000007.safetensors"));
    Reader parts = view_reader(reader, "units", true, "model");
    check(parts.units() == 2 * reader.units());
    std::vector<int32_t> tokens;
    for (const char c : games.train.texts[0]) tokens.push_back(chess_id(c));
    parts.read(tokens.data(), 1, 256);
    size_t wrong = 0, negative = 0;
    for (size_t n = 0; n < 256; n++) {
        std::vector<float> whole(reader.units()), up(2 * reader.units());
        reader.layer(1).each(n, true, [&](size_t u, float v) { whole[u] = v; });
        parts.layer(1).each(n, true, [&](size_t u, float v) { up[u] = v; });
        for (size_t u = 0; u < whole.size(); u++) {
            wrong += up[u] != std::max(0.0f, whole[u]) || up[whole.size() + u] != std::max(0.0f, -whole[u]);
            negative += whole[u] < 0;
        }
    }
    check(wrong == 0 && negative > 100, "%zu, %zu", wrong, negative);
    const std::vector<std::string> model = {"--ckpt", run, "--games", train, "--test-games", test};
    const auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> flags = model;
        flags.insert(flags.end(), more.begin(), more.end());
        check(bsp(flags) == 0);
    };
    with({"--split-signs"});
    check(at(read_json(run + "/interp/bsp_split.json"), {"layers", "1", "units"}).magnitude ==
          2 * reader.units());
    with({"--features", "units"});
    check(at(read_json(run + "/interp/bsp_units.json"), {"features"}).text == "units");
    check_error(with({"--features", "gate"}), "--features", "'gate'", "units");
    check_error(measured(values, units, {"--features", "units"}), "--features");

    // Drawn without replacement among the alive, each as often; the same for the same seed.
    const Case c = make_case(14, 12, 30, 4);
    std::vector<size_t> times(30);
    for (size_t draw = 0; draw < 600; draw++) {
        const std::vector<uint32_t> list = drawn_units(c.fires, 7, 5, draw);
        check(list.size() == 7 && std::is_sorted(list.begin(), list.end()) &&
              std::set<uint32_t>(list.begin(), list.end()).size() == 7);
        for (const uint32_t u : list) times[u]++;
        if (draw < 5)
            check(list == drawn_units(c.fires, 7, 5, draw) && list != drawn_units(c.fires, 7, 6, draw));
    }
    const double alive =
        double(std::count_if(c.max.begin(), c.max.end(), [](float m) { return m != INFINITY; }));
    check(alive < 30); // unit 1 never fires
    for (size_t u = 0; u < 30; u++)
        if (c.max[u] == INFINITY)
            check(times[u] == 0);
        else
            check_near(double(times[u]), 600 * 7 / alive, 60); // five standard deviations

    // The scores are those of these units alone.
    const SubsetScores scores = measure_subset(c.fires, c.ruler, 7, 3, 5);
    check(scores.units == 7 && scores.board.size() == 3 && scores.strategy.size() == 3);
    for (size_t draw = 0; draw < 3; draw++) {
        Case some;
        some.ruler = c.ruler, some.labels[0] = c.labels[0], some.labels[1] = c.labels[1];
        for (const uint32_t u : drawn_units(c.fires, 7, 5, draw)) some.max.push_back(c.max[u]);
        for (size_t set = 0; set < 2; set++)
            for (size_t n = 0; n < c.labels[set].tokens; n++)
                for (const uint32_t u : drawn_units(c.fires, 7, 5, draw))
                    some.values[set].push_back(c.values[set][n * 30 + u]);
        const SlowFunction slow =
            slow_function(some, board_function("piece_masked_blank_and_initial_state"), 1);
        size_t best = 0;
        for (size_t t = 0; t < 10; t++) best = slow.per_square[t] > slow.per_square[best] ? t : best;
        check_near(scores.board[draw].coverage, *std::max_element(slow.average, slow.average + n_thresholds),
                   1e-9);
        check_near(scores.board[draw].held_out, slow.held_out, 1e-9);
        check_near(scores.board[draw].rec_published, slow.f1[best], 1e-9);
    }
    // All of them: the layer's own scores, in every draw.
    const SubsetScores all = measure_subset(c.fires, c.ruler, 1000, 2, 5);
    const std::vector<BspControl> whole = control_scores(c.fires, c.ruler);
    check(all.units == size_t(alive));
    for (const BspControl& drawn : all.board)
        check(drawn.coverage == whole[c.ruler.board].coverage &&
              drawn.held_out == whole[c.ruler.board].held_out &&
              drawn.rec_beyond == whole[c.ruler.board].rec_beyond);
    with({"--subset", "9", "--draws", "3"});
    const Json drawn = read_json(run + "/interp/bsp.json");
    for (const char* name : {"coverage", "held_out", "rec_published", "beyond", "rec_beyond"}) {
        const Json& range = at(drawn, {"layers", "1", "subset", "board", name});
        check(range.items[1].number <= range.items[0].number &&
              range.items[0].number <= range.items[2].number);
    }
    check(at(drawn, {"layers", "0", "subset", "units"}).magnitude == 9 &&
          at(drawn, {"layers", "0", "subset", "draws"}).magnitude == 3);
    check(at(drawn, {"layers", "0", "subset", "board", "coverage", "2"}).number <=
          at(drawn, {"layers", "0", "board", "coverage"}).number);
}

static void test_bad_input() {
    const GameSet set = random_games(5, 93);
    const std::string games = write_game_file("five.txt", set);
    const std::string run = save_tiny("good", tiny_config(), 1);
    const auto refuse = [&](std::vector<std::string> flags, std::initializer_list<const char*> parts) {
        std::string message;
        try {
            bsp(flags);
        } catch (const Error& e) {
            message = e.what();
        }
        bool all = !message.empty() && message.find('\n') == std::string::npos;
        for (const char* part : parts) all = all && message.find(part) != std::string::npos;
        check(all, "'%s', expected '%s'", message.c_str(), *parts.begin());
    };
    refuse({"--games", games}, {"--ckpt", "--activations"});
    refuse({"--ckpt", run}, {"--games"});
    refuse({"--ckpt", run, "--games", games, "--activations", "x.npy", "--test-activations", "x.npy"},
           {"--ckpt"});
    refuse({"--games", games, "--activations", "x.npy"}, {"--test-activations"});
    refuse({"--ckpt", run, "--games", games, "--layer", "2"}, {"--layer", "'2'", "0 to 1"});
    refuse({"--ckpt", run, "--games", games, "--layer", "1x"}, {"--layer"});
    refuse({"--ckpt", run, "--games", folder + "/none"}, {"none"});
    refuse({"--labels", "-"}, {"--games"});
    refuse({"--labels", folder + "/half.csv", "--games", run + "/model_00000007.safetensors"},
           {"model_00000007"});
    check(system(("ls " + folder + "/half.csv* > /dev/null 2>&1").c_str()) != 0); // nothing half-written
    refuse({"--ckpt", run, "--games", games, "--functions", "some"}, {"--functions"});

    Config text = tiny_config();
    text.vocab_size = 257, text.tokenizer = "bytes";
    refuse({"--ckpt", save_tiny("text", text, 1), "--games", games}, {"bytes", "chess-32"});
    text.tokenizer = "";
    refuse({"--ckpt", save_tiny("text2", text, 1), "--games", games}, {"257", "chess-32"});
    Config small = tiny_config();
    small.block_size = 255;
    refuse({"--ckpt", save_tiny("small", small, 1), "--games", games}, {"255", "256"});

    GameSet shorter = set;
    for (std::string& game : shorter.texts) game.resize(250);
    refuse({"--ckpt", run, "--games", write_game_file("short.txt", shorter)},
           {"short.txt", "256 characters"});
    write_text(folder + "/novel.txt", "It was the best of times, it was the worst of times.\n");
    refuse({"--ckpt", run, "--games", folder + "/novel.txt"}, {"novel.txt"});

    const std::string broken = save_tiny("broken", tiny_config(), 1, NAN);
    refuse({"--ckpt", broken, "--games", games},
           {"broken/model_00000007", "layer 0", "not finite", "five.txt"});

    // Two train games, two test games of 256 characters, 3 features.
    std::vector<float> values(2 * 256 * 3, 0.5f);
    const std::string fit = npy_file("fit.npy", npy_header({2, 256, 3}), values);
    const auto features = [&](const std::string& train, const std::string& test) {
        return std::vector<std::string>{"--activations", train, "--test-activations", test, "--games", games};
    };
    check(bsp(features(fit, fit)) == 0);
    refuse(features(npy_file("x.npy", npy_header({2, 3, 256}), values), fit),
           {"x.npy", "(2, 3, 256)", "(2, 256,"});
    refuse(features(npy_file("x.npy", npy_header({1, 512, 3}), values), fit),
           {"x.npy", "(2, 256, features)"});
    refuse(features(npy_file("x.npy", npy_header({2 * 256, 3}), values), fit), {"x.npy", "(512, 3)"});
    refuse(features(fit, npy_file("x.npy", npy_header({2, 256, 1}), std::vector<float>(512))),
           {"x.npy", "1 features"});
    values[(1 * 256 + 17) * 3 + 2] = NAN;
    refuse(features(npy_file("x.npy", npy_header({2, 256, 3}), values), fit),
           {"x.npy", "game 1", "character 17", "feature 2"});
    values[(1 * 256 + 17) * 3 + 2] = -INFINITY;
    refuse(features(fit, npy_file("x.npy", npy_header({2, 256, 3}), values)), {"x.npy", "feature 2", "inf"});
    refuse({"--activations", fit, "--test-activations", fit, "--games", games, "--layer", "0"}, {"--layer"});
}

int main() {
    char name[] = "/tmp/test_bsp_XXXXXX";
    if (!mkdtemp(name)) return 1;
    folder = name;
    run_main([] {
        test_levels();
        test_fires();
        test_published_facts();
        test_counting();
        test_orders();
        test_against_definitions();
        test_bits_between();
        test_planted();
        test_beyond();
        test_reader_and_knower();
        test_resamples();
        test_npy();
        test_program();
        test_views();
        test_split_and_subset();
        test_bad_input();
        return 0;
    }) &&
        checks_failed++;
    if (system(("rm -r " + folder).c_str()) != 0) checks_failed++;
    return finish();
}
