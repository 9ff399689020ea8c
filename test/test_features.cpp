// Tests of detect.h, text_labels.h and features.h: what a unit detects, on planted units whose answer is
// known and against slow versions that count one place after the other; and the program, end to end, on
// models made by hand and at random.
#include "../dev/cpu/model.h"
#include "../dev/interp/features.h"
#include "../dev/interp/units_cpu.h"
#include "check.h"
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace fs = std::filesystem;
using std::string, std::vector;

// ---------------------------------------------------------------------------------------------------------
// Planted units

constexpr size_t games = 150, per_game = 20, places = games * per_game, n_cells = 12, n_questions = 4,
                 n_units = 15;

// One set of games: what holds (cells,places), what the text says (questions,places), what the units do
// (units,places). A game also has a length, which its text shows, and with which cell 11 goes.
struct Planted {
    vector<vector<bool>> holds{n_cells, vector<bool>(places)}, says{n_questions, vector<bool>(places)};
    vector<vector<float>> value{n_units, vector<float>(places)};
    Strata strata;

    explicit Planted(uint64_t seed) {
        Random random{seed};
        constexpr size_t ranges = 10;
        strata.count = per_game * ranges;
        for (size_t g = 0; g < games; g++) {
            const size_t turn = 7 + random.below(7); // of this game: what holds before it
            const bool whole = random.uniform() < 0.5;
            const double length = random.uniform();
            for (size_t d = 0; d < per_game; d++) {
                const size_t n = g * per_game + d;
                strata.of.push_back(uint32_t(d * ranges + size_t(length * ranges)));
                holds[0][n] = d < turn;
                holds[1][n] = random.uniform() < 0.3;
                holds[2][n] = whole;
                holds[3][n] = holds[1][n];  // equals cell 1
                holds[4][n] = true;         // always
                holds[6][n] = n % 400 == 3; // 8 times
                holds[7][n] = random.uniform() < 0.06;
                holds[8][n] = n >= 9;                  // false 9 times
                holds[9][n] = random.uniform() < 0.08; // check: the text says it
                holds[10][n] =
                    holds[9][n] && random.uniform() < 0.35; // a discovered one: it does not say that
                holds[11][n] = length + 0.3 * (random.uniform() - 0.5) > 0.5;

                says[0][n] = holds[9][n];
                says[1][n] = random.uniform() < 0.3;
                says[2][n] = length > 0.55;
                says[3][n] = (random.uniform() < 0.7) == holds[1][n]; // a hint of cell 1

                value[0][n] = holds[1][n] ? 2 : 0;                                   // cell 1
                value[1][n] = holds[2][n] ? 0 : float(0.5 + random.uniform());       // not cell 2
                value[2][n] = random.uniform() < 0.2 ? float(random.uniform()) : 0;  // noise
                value[3][n] = d < 10;                                                // counts moves
                value[4][n] = holds[0][n] ? float(0.9 + 0.1 * random.uniform()) : 0; // cell 0
                value[5][n] = holds[7][n] ? 10 : random.uniform() < 0.3 ? 4 : -1;    // cell 7, strongly
                value[6][n] = 1;                                                     // always on
                value[8][n] = (random.uniform() < 0.8) == holds[1][n];               // cell 1, roughly
                value[9][n] = holds[2][n] && random.uniform() < 0.1;  // cell 2, seldom: precise
                value[10][n] = holds[9][n] ? 3 : 0;                   // reads +
                value[11][n] = length > 0.4 && length < 0.9 && d > 4; // counts characters
                value[12][n] = g == 7 && d < 12;                      // fires in one game
                value[13][n] = holds[10][n];                          // knows discovered check
                value[14][n] = holds[9][n] && random.uniform() < 0.6; // reads +, not always
            }
        }
    }
    static Labels labels_of(const vector<vector<bool>>& cells) {
        Labels out = empty_labels(cells.size(), places);
        for (size_t c = 0; c < cells.size(); c++)
            for (size_t n = 0; n < places; n++)
                if (cells[c][n]) out.set(c, n);
        return out;
    }
    Answers answers() const { return {labels_of(holds), labels_of(says), strata, games}; }
    TokenValues values() const {
        TokenValues list(places);
        for (size_t n = 0; n < places; n++)
            for (uint32_t u = 0; u < n_units; u++)
                if (value[u][n] > 0) list[n].push_back({u, value[u][n]});
        return list;
    }
    UnitFires fires(const vector<float>& cuts) const {
        TokenValues list = values();
        return unit_fires(list, cuts);
    }
};

struct PlantedSplit {
    Planted train{11}, test{12};
    Evidence e;
    LayerFires fires;

    PlantedSplit() {
        vector<Property> properties, questions;
        for (size_t c = 0; c < n_cells; c++)
            properties.push_back({"cell", {strf("%zu holds", c), strf("%zu fails", c)}});
        for (size_t q = 0; q < n_questions; q++)
            questions.push_back(
                {"text", {strf("the text says %zu", q), strf("the text does not say %zu", q)}});
        Answers seen = test.answers();
        seen.seen.assign(places, 0);
        for (size_t n = 0; n < places; n += per_game) seen.seen[n] = 1;
        e = make_evidence(properties, questions, train.answers(), seen);
        fires.units = n_units;
        fires.cuts = cuts_of_firings(train.values(), n_units);
        fires.rate.assign(n_units, 0.5);
        fires.train = train.fires(fires.cuts), fires.test = test.fires(fires.cuts);
    }
    // Cells of the properties that were kept.
    size_t cell(size_t property) const { return size_t(std::stoul(e.properties[property].words[0])); }
};

static Counts slow_counts(const Planted& p, const LayerFires& fires, size_t unit, size_t t, size_t cell,
                          bool negated, const vector<size_t>& times = {}, bool fresh = false) {
    Counts counts;
    for (size_t n = 0; n < places; n++) {
        const double weight = fresh && n % per_game == 0 ? 0
                              : times.empty()            ? 1
                                                         : double(times[n / per_game]);
        const bool on = p.value[unit][n] > fires.cuts[unit * n_thresholds + t],
                   holds = p.holds[cell][n] != negated;
        counts.n += weight, counts.on += weight * on, counts.positives += weight * holds,
            counts.tp += weight * (on && holds);
    }
    return counts;
}

static void test_counts() {
    // By hand: 10 places, on at 4, holds at 5, both at 3.
    const Counts c = {10, 4, 5, 3};
    check_near(c.precision(), 0.75, 1e-15);
    check_near(c.recall(), 0.6, 1e-15);
    check_near(c.f1(), 2 * 0.75 * 0.6 / 1.35, 1e-15);
    check_near(c.base(), 0.5, 1e-15);
    check_near(c.floor(), 2.0 / 3, 1e-15);
    check_near(c.shuffled(), 2 * 0.4 * 0.5 / 0.9, 1e-15);
    check_near(c.mcc(), (3 * 4 - 1 * 2) / std::sqrt(4.0 * 5 * 5 * 6), 1e-15); // (TP TN - FP FN) / ..
    const Counts not_c = c.negated();
    check(not_c.on == 4 && not_c.positives == 5 && not_c.tp == 1 && not_c.n == 10);
    check_near(not_c.mcc(), -c.mcc(), 1e-15);
    const Counts always = {10, 10, 5, 5}, never = {10, 0, 5, 0};
    check_near(always.f1(), always.floor(), 1e-15);
    check(always.mcc() == 0 && never.mcc() == 0 && never.f1() == 0 && std::isnan(never.precision()));
}

static void test_evidence(const PlantedSplit& s) {
    vector<size_t> kept;
    for (size_t p = 0; p < s.e.properties.size(); p++) kept.push_back(s.cell(p));
    check((kept == vector<size_t>{0, 1, 2, 7, 9, 10, 11}), "%zu properties are kept", kept.size());
    check(s.e.train.games == games && s.e.test.per_game == per_game && s.e.test.size() == places);
    check(s.e.questions.size() == n_questions);
    size_t wrong = 0;
    for (size_t p = 0; p < kept.size(); p++) {
        for (size_t n = 0; n < places; n++)
            wrong += s.e.rows.at(p, n) != s.train.holds[kept[p]][n] ||
                     s.e.test.properties.at(p, n) != s.test.holds[kept[p]][n] ||
                     s.e.test.rules.at(p, n) != s.e.rules[p].says(s.e.test.questions, n);
        if (kept[p] == 9) check(s.e.rules[p].a == 0 && s.e.rules[p].single() && s.e.rules[p].score == 1);
    }
    check(wrong == 0, "%zu labels", wrong);
    // What holds in few games is not asked about, however often it does there.
    Labels labels = empty_labels(2, places);
    for (size_t g = 0; g < 12; g++)
        for (size_t d = 0; d < per_game; d++) labels.set(g < 9 ? 0 : 1, (g % 9) * per_game + d);
    for (size_t g = 20; g < 30; g++) labels.set(1, g * per_game);
    check((distinct_cells(labels, per_game) == vector<uint32_t>{1}));
}

// Cuts by shares of a unit's firings: no more than the share is above, and with the value itself it would be.
static void test_cuts(const PlantedSplit& s) {
    size_t wrong = 0, several = 0;
    for (size_t unit = 0; unit < n_units; unit++) {
        vector<float> fired;
        for (const float v : s.train.value[unit])
            if (v > 0) fired.push_back(v);
        const float* cuts = &s.fires.cuts[unit * n_thresholds];
        wrong += cuts[0] != 0;
        double share = 1;
        for (size_t t = 1; t < n_thresholds; t++) {
            share *= 0.7;
            const auto count = [&](auto is) { return double(std::count_if(fired.begin(), fired.end(), is)); };
            const double most = share * double(fired.size()),
                         above = count([&](float v) { return v > cuts[t]; }),
                         from = count([&](float v) { return v >= cuts[t]; });
            wrong += fired.empty() ? std::isfinite(cuts[t]) : !(above <= most + 1e-6 && from > most - 1e-6);
            wrong += cuts[t] < cuts[t - 1];
            several += cuts[t] > cuts[t - 1];
        }
    }
    check(wrong == 0 && several > 30, "%zu wrong, %zu steps", wrong, several);
}

// The threshold and the order of the candidates: by the correlation less two standard errors.
static void test_choose(const PlantedSplit& s) {
    for (size_t unit = 0; unit < n_units; unit++) {
        double best = -INFINITY;
        size_t threshold = 0, property = SIZE_MAX;
        for (size_t t = 0; t < n_thresholds; t++)
            for (size_t p = 0; p < s.e.properties.size(); p++) {
                const Counts c = slow_counts(s.train, s.fires, unit, t, s.cell(p), false);
                const double sure = std::fabs(c.mcc()) - 2 * mcc_error_by_places(c);
                if (c.on >= 10 && c.mcc() != 0 && sure > best) best = sure, threshold = t, property = p;
            }
        const Candidates found = choose(s.fires.train, unit, s.e, nullptr);
        if (!check(found.best.empty() == (property == SIZE_MAX), "unit %zu", unit) || found.best.empty())
            continue;
        check(found.best[0].property == property && found.best[0].threshold == threshold,
              "unit %zu: property %zu at %zu, expected %zu at %zu", unit, found.best[0].property,
              found.best[0].threshold, property, threshold);
        for (size_t i = 1; i < found.best.size(); i++)
            check(found.best[i].score - 2 * found.best[i].error <=
                      found.best[i - 1].score - 2 * found.best[i - 1].error &&
                  found.best[i].threshold == threshold);
        check(!found.square.any());
        const Truth truth(s.e.test, nullptr);
        const Choice& choice = found.best[0];
        const Firing firing = firing_of(s.fires.test, unit, threshold, s.e.test);
        const Counts c = count(firing, choice, truth),
                     slow = slow_counts(s.test, s.fires, unit, threshold, s.cell(property), choice.negated);
        check(c.n == slow.n && c.on == slow.on && c.positives == slow.positives && c.tp == slow.tp,
              "unit %zu on the test games", unit);
    }
    // Squares are told from the rest, and are the best of their own.
    Evidence e = s.e;
    e.properties[0].square = 0;
    const Candidates found = choose(s.fires.train, 8, e, nullptr);
    check(s.cell(found.best[0].property) == 1 && found.square.any() && found.square.property == 0);
}

static void test_verdicts(const PlantedSplit& s) {
    vector<size_t> all(n_units);
    std::iota(all.begin(), all.end(), size_t(0));
    const vector<Finding> found = find(s.fires, all, s.e);
    const auto expect = [&](size_t unit, Verdict verdict, size_t cell, bool negated) {
        const Finding& f = found[unit];
        check(f.verdict == verdict, "unit %zu: %s, beyond %g errors, reads %g", unit,
              verdict_names[f.verdict], f.beyond.errors(), f.reads.errors());
        if (verdict == KNOWS && f.choice.any())
            check(s.cell(f.choice.property) == cell && f.choice.negated == negated, "unit %zu: cell %zu",
                  unit, s.cell(f.choice.property));
    };
    expect(0, KNOWS, 1, false);
    expect(1, KNOWS, 2, true);
    expect(2, NOTHING, 0, false);
    check(found[3].verdict != KNOWS); // counts moves: within a stratum it is always on or never
    expect(4, KNOWS, 0, false);
    expect(5, KNOWS, 7, false);
    expect(8, KNOWS, 1, false);
    expect(9, KNOWS, 2, false); // right whenever it is on, and worse by F1 than a unit that is always on
    check(found[9].counts.precision() == 1 && found[9].counts.f1() < found[9].counts.floor());
    expect(10, READS, 9, false);
    expect(14, READS, 9, false);
    check(found[10].text.a == 0 && found[10].text.single() && found[14].text.a == 0);
    check(found[11].verdict != KNOWS && found[11].choice.any()); // counts characters
    expect(12, NOTHING, 0, false);
    expect(13, KNOWS, 10, false);
    check(found[13].outright && found[0].outright && !found[9].rivals.size() && found[13].rule.mcc() < 0.8);
    for (const size_t unit : {6, 7, 12}) check(!found[unit].choice.any(), "unit %zu is tested", unit);
    check(found[5].choice.threshold == 1, "threshold %zu", found[5].choice.threshold); // the strong ones only
    for (const size_t unit : {0, 1, 4, 5, 13}) check(found[unit].counts.f1() == 1);

    // With the labels of other games nothing is known, whatever the unit is.
    const Order orders[2] = {same_move_order(games, per_game, 3), same_move_order(games, per_game, 4)};
    size_t untrue = 0;
    for (const Finding& f : find(s.fires, all, s.e, orders)) untrue += f.found();
    check(untrue == 0, "%zu units", untrue);

    // Intervals of unit 8, from resamples drawn and counted the slow way; its error agrees with them.
    Finding f = found[8];
    const Truth truth(s.e.test, nullptr);
    describe(f, s.fires.test, 8, truth, 3);
    vector<double> f1, mcc, precision;
    for (size_t r = 0; r < bootstrap_resamples; r++) {
        Random random{3, random_stream("bootstrap") + r};
        vector<size_t> times(games);
        for (size_t g = 0; g < games; g++) times[random.below(games)]++;
        const Counts c = slow_counts(s.test, s.fires, 8, f.choice.threshold, s.cell(f.choice.property),
                                     f.choice.negated, times);
        f1.push_back(c.f1()), mcc.push_back(c.mcc()), precision.push_back(c.precision());
    }
    const auto at = [](vector<double> x, double p) { return std::sort(x.begin(), x.end()), quantile(x, p); };
    const Counts fresh = slow_counts(s.test, s.fires, 8, f.choice.threshold, s.cell(f.choice.property),
                                     f.choice.negated, {}, true);
    check(f.fresh.n == fresh.n && f.fresh.on == fresh.on && f.fresh.positives == fresh.positives &&
          f.fresh.tp == fresh.tp && fresh.n == places - games);
    check_near(f.f1.low, at(f1, 0.025), 1e-12);
    check_near(f.f1.high, at(f1, 0.975), 1e-12);
    check_near(f.mcc.low, at(mcc, 0.025), 1e-12);
    check_near(f.precision.low, at(precision, 0.025), 0.01);
    check_near(f.precision.high, at(precision, 0.975), 0.01);
    const Firing firing = firing_of(s.fires.test, 8, f.choice.threshold, s.e.test);
    const double error = mcc_error(firing, f.choice, truth, f.counts);
    check(std::fabs(error / moments(mcc.data(), mcc.size()).sd - 1) < 0.1, "%g", error);
    // A share of 1 has an interval that ends below it.
    f = found[9];
    describe(f, s.fires.test, 9, truth, 3);
    check(f.precision.high == 1 && f.precision.low > 0.9 && f.precision.low < 0.97, "%g", f.precision.low);
    // Unit 12 was on in one game: so it is not tested; were it, it would be one standard error from nothing.
    Finding one;
    one.choice = {0, 0, false, 1, 0}, one.verdict = KNOWS, one.text = {0, 0, 8, 0};
    measure(one, s.fires.test, 12, truth);
    check(one.verdict == NOTHING && one.beyond.errors() < 1.5);
}

// Games of one event count as one witness: what is on in many games of a few events is not tested, what holds
// everywhere still is, with larger errors.
static void test_blocks(const PlantedSplit& s) {
    const auto evidence = [&](size_t games_of_block) {
        Answers answers[2] = {s.train.answers(), s.test.answers()};
        for (Answers& a : answers)
            for (size_t g = 0; g < games; g++) a.block.push_back(uint32_t(g / games_of_block));
        vector<Property> properties(n_cells, {"cell", {"holds", "fails"}}),
            questions(n_questions, {"text", {"says", "does not say"}});
        return make_evidence(properties, questions, std::move(answers[0]), std::move(answers[1]));
    };
    const Evidence apart = evidence(1), blocks = evidence(5), few = evidence(20);
    const vector<size_t> one = {8};
    const Finding alone = find(s.fires, one, apart)[0], grouped = find(s.fires, one, blocks)[0],
                  none = find(s.fires, one, few)[0];
    check(alone.verdict == KNOWS && grouped.verdict == KNOWS && !none.choice.any());
    check(alone.witnesses == games && grouped.witnesses == games / 5);
    check_near(alone.beyond.value, grouped.beyond.value, 1e-9 * alone.beyond.value);
    check(alone.beyond.error != grouped.beyond.error);

    // A property of events: by games it would seem surer than it is.
    vector<uint8_t> on(places), holds(places);
    vector<uint32_t> block(games);
    Random random{2};
    for (size_t g = 0; g < games; g++) {
        block[g] = uint32_t(g / 15);
        for (size_t d = 0; d < per_game; d++) {
            on[g * per_game + d] = g / 15 % 3 == 0 && random.uniform() < 0.5;
            holds[g * per_game + d] = g / 15 % 3 == 0;
        }
    }
    const Strata all = {vector<uint32_t>(places), 1};
    const double by_games = matched_excess(on, holds, all, nullptr, per_game).errors(),
                 by_events = matched_excess(on, holds, all, nullptr, {per_game, block}).errors();
    check(by_games > 20 && by_events < 8, "%g, %g", by_games, by_events);
}

// ---------------------------------------------------------------------------------------------------------
// Properties of text

static TokenRows rows_of(const string& text, size_t T) {
    TokenRows rows;
    rows.source = "test", rows.T = T, rows.rows = text.size() / T;
    for (size_t i = 0; i < rows.size(); i++) rows.tokens.push_back((unsigned char)text[i]);
    return rows;
}

static string random_text(size_t n, uint64_t seed) {
    static const char* const words[] = {"the",   "rook",   "takes", "a", "Pawn", "in",   "1923", "SHE",
                                        "said:", "\"go\"", "x",     "7", "café", "then", "e",    "(odd)"};
    Random random{seed};
    string text;
    while (text.size() < n) text += string(words[random.below(16)]) + (random.uniform() < 0.2 ? "\n" : " ");
    text.resize(n);
    return text;
}

static void test_text_labels() {
    const size_t T = 50;
    const string text = random_text(6000, 1);
    const TokenRows rows = rows_of(text, T);
    const TextProperties p = text_properties(rows, TOKENIZER_BYTES, "");
    const Labels labels = label_text(rows, p);
    check(labels.tokens == 6000 && labels.bits.size() == p.list.size() * labels.words);
    for (const TextProperty& property :
         p.list) // what the last tokens and the position say is a question about the text
        check(property.said == (property.words.find("next token") == string::npos &&
                                property.words != place_words[2][0] && property.words != place_words[6][0]),
              "%s", property.words.c_str());

    // Every property of a token or an ending, by its words.
    size_t tokens = 0, endings = 0, wrong = 0;
    for (size_t i = 0; i < p.first_class; i++) {
        const string& words = p.list[i].words;
        const string name = words.substr(words.find('\'') + 1, words.rfind('\'') - words.find('\'') - 1);
        const bool ending = words.find("the text ends in") == 0;
        const int offset = words.find("the next token") == 0     ? 1
                           : words.find("the token before") == 0 ? -1
                                                                 : 0;
        (ending ? endings : tokens)++;
        size_t seen = 0;
        for (size_t n = 0; n < text.size(); n++) {
            const size_t t = n % T;
            bool holds;
            if (ending) {
                holds = false;
                for (size_t length = 2; length <= 3; length++)
                    holds |= t + 1 >= length && shown(text.substr(n + 1 - length, length)) == name;
            } else {
                const std::ptrdiff_t at = std::ptrdiff_t(t) + offset;
                holds = at >= 0 && at < std::ptrdiff_t(T) && shown(text.substr(n + offset, 1)) == name;
            }
            wrong += holds != labels.at(i, n);
            seen += labels.at(i, n);
        }
        check(seen >= least_seen, "%s: %zu times", words.c_str(), seen);
    }
    check(wrong == 0, "%zu labels of tokens and endings are wrong", wrong);
    check(tokens > 60 && endings > 60, "%zu tokens, %zu endings", tokens, endings);

    // Places and classes, as the C library sees them.
    wrong = 0;
    const auto letter = [](char c) { return isalpha((unsigned char)c) != 0; };
    for (size_t n = 0; n < text.size(); n++) {
        const size_t t = n % T;
        const char here = text[n], left = t ? text[n - 1] : 0, right = t + 1 < T ? text[n + 1] : 0;
        const string line = text.substr(n - t, t + 1);
        const size_t begin = line.rfind('\n') == string::npos ? 0 : line.rfind('\n');
        const bool expected[] = {letter(here) && letter(left),
                                 letter(here) && !letter(left),
                                 letter(here) && t + 1 < T && !letter(right),
                                 isdigit((unsigned char)here) && isdigit((unsigned char)left),
                                 left == '\n',
                                 isupper((unsigned char)here) && isupper((unsigned char)left),
                                 std::count(line.begin() + long(begin), line.end(), '"') % 2 == 1};
        for (size_t i = 0; i < n_places; i++) wrong += expected[i] != labels.at(p.first_place + i, n);
        wrong += labels.at(p.first_class + 0, n) != (islower((unsigned char)here) != 0);
        wrong += labels.at(p.first_class + 2, n) != (isdigit((unsigned char)here) != 0);
        wrong += labels.at(p.first_class + 7 + 3, n) != (right == ' ');
        wrong += labels.at(p.first_class + 14 + 1, n) != (isupper((unsigned char)left) != 0);
        for (size_t i = 0; i < p.positions.size(); i++)
            wrong += labels.at(p.first_position + i, n) != (t >= p.positions[i]);
    }
    check(wrong == 0, "%zu labels of places and classes are wrong", wrong);

    // Tokens of several bytes, as GPT-2 has them.
    TextProperties q;
    q.vocabulary = {"", " the", "cat", "s", "\n", " 12", "3", " A", "B"};
    for (const string& token : q.vocabulary) q.classes.push_back(byte_class(token));
    q.first_class = 0, q.first_place = 21;
    q.list.assign(28, {"", "", ""});
    TokenRows several;
    several.source = "tokens", several.rows = 1, several.T = 9, several.tokens = {1, 2, 3, 4, 5, 6, 7, 8, 0};
    const Labels l = label_text(several, q);
    const auto set = [&](TextPlace place) {
        string out;
        for (size_t n = 0; n < several.T; n++) out += l.at(q.first_place + place, n) ? '1' : '0';
        return out;
    };
    check(set(WORD_BEGINS) == "100000100", "%s", set(WORD_BEGINS).c_str());
    check(set(IN_WORD) == "011000010", "%s", set(IN_WORD).c_str());
    check(set(WORD_ENDS) == "001000010", "%s", set(WORD_ENDS).c_str());
    check(set(IN_NUMBER) == "000001000" && set(LINE_BEGINS) == "000010000" &&
          set(IN_CAPITALS) == "000000010");
    several.tokens[3] = 9;
    check_error(label_text(several, q), "tokens: token 9", "less than the 9");

    check(shown("a\n\t\r\x01\x7F\xC3\xA9\xC3") == "a\\n\\t\\r\\x01\\x7F\xC3\xA9\\xC3");
    check(shown("") == "");
    const vector<string> bytes = p.vocabulary;
    const string line = "x\n" + string(70, 'y') + "\xC3\xA9z\nnext" + string(40, 'w');
    const TokenRows one = rows_of(line, line.size());
    const FeatureContext c = text_context(one.tokens.data(), one.T, 74, bytes, 1.5f);
    check(c.text == string(58, 'y') + "\xC3\xA9z\\nnext" + string(15, 'w') && c.mark == 59 && c.length == 1 &&
              c.value == 1.5f,
          "%s at %zu", c.text.c_str(), c.mark);
    const FeatureContext end = text_context(one.tokens.data(), one.T, 1, bytes, 1);
    check(end.text.substr(0, 4) == "x\\ny" && end.mark == 1 && end.length == 2);
}

// ---------------------------------------------------------------------------------------------------------
// Boards

// A game of random legal moves, as text, cut to `characters`.
static string random_game(Random& random, size_t characters) {
    for (;;) {
        chess::Game game;
        vector<chess::Move> moves;
        while (game.outcome() == chess::UNFINISHED && moves.size() < 120) {
            const chess::MoveList list = chess::legal_moves(game.position);
            moves.push_back(list.moves[random.below(list.size)]);
            game.play(moves.back());
        }
        const string text = chess::to_game_text(moves);
        if (text.size() >= characters) return text.substr(0, characters);
    }
}

static void test_contexts() {
    const string text =
        ";1.e4 g6 2.Qh5 gxh5 3.Bc4 a6 4.Bxf7+ Kxf7 5.Nf3 b5 6.O-O c5 7.Re1 d5 8.exd5 Qxd5 9.d4 cx";
    const size_t plus = text.find('+'), space = plus + 1;
    FeatureContext c = game_context(text, plus, 2);
    check(c.text[c.mark] == '+');
    check(c.text == ";1.e4 g6 2.Qh5 gxh5 3.Bc4 a6 4.Bxf7+ Kxf7 5.Nf3 b5", "%s", c.text.c_str());
    check(c.mark == plus && c.length == 1 && c.move == "3...a6" && c.last == "a7a6", "%s", c.move.c_str());
    check(c.fen == chess::to_fen(chess::parse_game_text(";1.e4 g6 2.Qh5 gxh5 3.Bc4 a6").position));
    c = game_context(text, space, 2); // the board changes at the space behind a move
    check(c.move == "4.Bxf7+" && c.last == "c4f7" && c.fen.find(" b ") != string::npos, "%s", c.move.c_str());
    c = game_context(text, 0, 2);
    check(c.text.substr(0, 9) == ";1.e4 g6 " && c.mark == 0 && c.move.empty() && c.last.empty() &&
          c.fen == chess::start_fen);
    c = game_context(text, text.size() - 1, 2); // the last move is cut
    check(c.move == "9.d4" && c.text[c.mark] == 'x' && c.mark + 1 == c.text.size() && c.text[0] != ' ');

    Random random{9};
    size_t wrong = 0;
    for (int i = 0; i < 20; i++) {
        const string game = random_game(random, 200);
        for (size_t place = 0; place < game.size(); place++) {
            const FeatureContext at = game_context(game, place, 1);
            const size_t found = game.find(at.text);
            const string before = game.substr(0, place + 1);
            const size_t whole =
                before.rfind(' ') == string::npos ? 1 : before.rfind(' '); // whole moves end here
            const string fen = chess::to_fen(chess::parse_game_text(before.substr(0, whole)).position);
            wrong += found == string::npos || at.text[at.mark] != game[place] || at.fen != fen ||
                     at.text.size() > 90 || at.mark > 60;
        }
    }
    check(wrong == 0, "%zu contexts are wrong", wrong);
}

static void test_squares(const string& folder) {
    GameSet set;
    set.source = folder, set.characters = 160, set.dots = 10;
    Random random{4};
    for (int i = 0; i < 30; i++) set.texts.push_back(random_game(random, 160));
    const Labels labels = label_games(set, 10);
    TokenValues values(300);
    for (size_t n = 0; n < 300; n++)
        if (const double x = random.uniform(); x < 0.4) values[n].push_back({0, float(x)});
    vector<float> value(300);
    for (size_t n = 0; n < 300; n++) value[n] = values[n].empty() ? 0 : values[n][0].value;
    const UnitFires fires = unit_fires(values, cuts_of_maximum({0.4f}));
    const size_t f = board_function("piece_state"), cls = 7; // white pawns
    const vector<double> lifts = square_lifts(fires, 0, 3, first_cell(f) + cls, 13, labels, 10);
    for (size_t s = 0; s < 64; s++) {
        double tp = 0, on[10] = {}, positives[10] = {}, expected = 0;
        for (size_t n = 0; n < 300; n++) {
            const bool fires_here = value[n] > 0.3f * 0.4f;
            chess::GameTextReader game;
            for (const char c : set.texts[n / 10]) {
                if (game.moves.size() == 2 * (n % 10)) break;
                game.push(c);
            }
            const bool pawn = game.position.board[s] == chess::PAWN;
            on[n % 10] += fires_here, positives[n % 10] += pawn, tp += fires_here && pawn;
        }
        for (size_t move = 0; move < 10; move++) expected += on[move] * positives[move] / 30;
        check_near(lifts[s], (tp + 1) / (expected + 1), 1e-12);
    }
}

// Every answer about the board, at boundaries of both sides, from the rules of chess.
static void test_board_labels() {
    GameSet set;
    set.source = "test", set.characters = 160, set.dots = 10;
    Random random{14};
    for (int i = 0; i < 25; i++) set.texts.push_back(random_game(random, 160));
    // 5.Nc6+ discovers the check of the queen on e2.
    set.texts.push_back(";1.e4 e5 2.Nf3 Nf6 3.Nxe5 Nxe4 4.Qe2 Nf6 5.Nc6+ Be7 6.Nxd8 Kxd8 7.d4 Re8 8.Be3 d5 "
                        "9.Nc3 c6 10.O-O-O");
    const Boundaries where = {10, true};
    const vector<Property> list = board_properties();
    const Labels labels = label_boards(set, where);
    if (!check(list.size() == BoardFamilies::size && labels.cells() == list.size() &&
               labels.tokens == 26 * 19))
        return;
    std::map<string, size_t> of_words;
    for (size_t i = 0; i < list.size(); i++) of_words[list[i].words[0]] = i;
    check(of_words.size() == list.size(), "%zu different words", of_words.size());
    size_t wrong = 0, discovered = 0;
    for (size_t g = 0; g < set.size(); g++) {
        const vector<size_t> at = boundary_characters(set.texts[g], where);
        for (size_t place = 0; place < 19; place++) {
            chess::GameTextReader game;
            for (size_t i = 0; i <= at[place]; i++) game.push(set.texts[g][i]);
            const chess::Position& p = game.position;
            const bool white = p.turn == chess::WHITE;
            const size_t n = g * 19 + place;
            wrong += white != (place % 2 == 0) || set.texts[g][at[place]] != (white ? '.' : ' ');
            const auto says = [&](const string& words) { return labels.at(of_words.at(words), n); };
            for (int s = 0; s < 64; s++) {
                const string square = chess::square_name(s);
                const int piece = p.board[s];
                wrong += says(square + " is empty") != (piece == 0);
                wrong += says("a white knight stands on " + square) != (piece == chess::KNIGHT);
                wrong += says("a black piece stands on " + square) != (piece < 0);
                wrong += says("a piece of the side to move stands on " + square) !=
                         (white ? piece > 0 : piece < 0);
                wrong += says("a rook of the other side stands on " + square) !=
                         (piece == (white ? -chess::ROOK : int(chess::ROOK)));
                wrong += says("White attacks " + square) !=
                         (chess::attackers(p, chess::Square(s), chess::WHITE) != 0);
                bool target = false;
                for (const chess::Move m : chess::legal_moves(p)) target |= m.to == s;
                wrong += says("the side to move can move to " + square) != target;
            }
            const bool in_check = chess::in_check(p);
            wrong += says("the side to move is in check") != in_check;
            wrong += says("White is in check") != (in_check && white) ||
                     says("Black is in check") != (in_check && !white);
            wrong += says("Black has a queen") != (p.pieces(chess::BLACK, chess::QUEEN) != 0);
            wrong +=
                says("White has both bishops") != (chess::count(p.pieces(chess::WHITE, chess::BISHOP)) > 1);
            wrong += says("Black has the right to castle kingside") !=
                     ((p.castling & chess::kingside(chess::BLACK)) != 0);
            discovered += says("Black is in check from a piece that did not just move");
        }
    }
    check(wrong == 0 && discovered >= 1, "%zu wrong, %zu discovered", wrong, discovered);
    check(list[of_words["a black queen stands on d8"]].words[1] == "Black's queen is off d8");
    const Property& queen = list[of_words["a black queen stands on d8"]];
    check(queen.squares == "where black queens stand" &&
          queen.square + 59 == of_words["a black queen stands on d8"]);
    check(list[of_words["White attacks e4"]].squares == "the squares that White attacks");
    check(list[of_words["the side to move is in check"]].square == SIZE_MAX);
}

// ---------------------------------------------------------------------------------------------------------
// Models

struct TemporaryFolder {
    string path;
    TemporaryFolder() {
        char name[] = "/tmp/test_features.XXXXXX";
        if (!mkdtemp(name)) fail("mkdtemp: %s", strerror(errno));
        path = name;
    }
    ~TemporaryFolder() { fs::remove_all(path); }
};

static Config small_config(const char* tokenizer, size_t vocab, const char* ffn) {
    Config c;
    c.n_layer = 2, c.n_head = 2, c.n_embd = 32, c.block_size = 128, c.vocab_size = vocab;
    c.n_expert = 4, c.n_expert_active = 2, c.d_expert = 12, c.ffn = ffn, c.tokenizer = tokenizer;
    return c;
}

// With a random decoder row, and a residual x that is orthogonal to it and centred, the spread that ln_f
// divides by does not change to first order, so the direct effect is what ln_f and the head do exactly.
static void test_direct_logits() {
    for (const char* ffn : {"moe", "dense"}) {
        const Config c = small_config("chess-32", 32, ffn);
        const size_t C = c.n_embd, V = c.vocab_size, layer = 1, expert = 3, unit = c.moe() ? 5 : 17;
        const vector<Tensor> table = tensor_table(c);
        vector<float> block(block_elements(table));
        Parameters<float> w = carve_parameters(c, table, block.data());
        init_parameters(c, table, block.data(), 7);
        Random random{8};
        for (size_t i = 0; i < C; i++) w.ln_f_weight[i] = float(0.5 + random.uniform());
        const size_t u = c.moe() ? expert * c.d_expert + unit : unit;
        const vector<double> logits = direct_logits(c, w, layer, u);

        vector<double> d(C), x(C), effect(V);
        double mean = 0, dot = 0, square = 0, mean_x = 0, spread = 0;
        for (size_t i = 0; i < C; i++)
            d[i] = c.moe() ? w.h[layer].w_dec[(expert * c.d_expert + unit) * C + i]
                           : w.h[layer].fc_proj_weight[i * c.dense_width() + unit];
        for (const double value : d) mean += value / double(C);
        for (size_t i = 0; i < C; i++) x[i] = random_normal(5, 0, i), mean_x += x[i] / double(C);
        for (size_t i = 0; i < C; i++)
            x[i] -= mean_x, dot += x[i] * (d[i] - mean), square += (d[i] - mean) * (d[i] - mean);
        for (size_t i = 0; i < C; i++)
            x[i] -= dot / square * (d[i] - mean), spread += x[i] * x[i] / double(C);
        const auto head = [&](double step) { // ln_f and the head, of x + step d
            vector<double> r(C), out(V);
            double m = 0, v = 0;
            for (size_t i = 0; i < C; i++) r[i] = x[i] + step * d[i], m += r[i] / double(C);
            for (size_t i = 0; i < C; i++) v += (r[i] - m) * (r[i] - m) / double(C);
            for (size_t t = 0; t < V; t++)
                for (size_t i = 0; i < C; i++)
                    out[t] +=
                        w.wte[t * C + i] * ((r[i] - m) / std::sqrt(v) * w.ln_f_weight[i] + w.ln_f_bias[i]);
            return out;
        };
        const double step = 1e-3;
        const vector<double> up = head(step), down = head(-step);
        double middle = 0, largest = 0;
        for (size_t t = 0; t < V; t++) {
            effect[t] = (up[t] - down[t]) / (2 * step) * std::sqrt(spread);
            middle += effect[t] / double(V);
        }
        for (size_t t = 0; t < V; t++) largest = std::max(largest, std::fabs(effect[t] - middle));
        for (size_t t = 0; t < V; t++) check_near(logits[t], effect[t] - middle, 1e-5 * largest);

        Feature f;
        vector<string> names;
        for (int t = 0; t < chess_vocab; t++) names.push_back(string(1, chess_char(t)));
        add_output_tokens(f, logits, names);
        vector<double> sorted = logits;
        std::sort(sorted.begin(), sorted.end());
        check(f.promotes.size() == 5 && f.suppresses.size() == 5);
        for (size_t i = 0; i < 5; i++) {
            check(f.promotes[i].logit == sorted[V - 1 - i] && f.suppresses[i].logit == sorted[i]);
            check(logits[size_t(chess_id(f.promotes[i].text[0]))] == f.promotes[i].logit);
        }
    }
}

static void save(const string& path, const Config& c, const std::function<void(Parameters<float>&)>& edit,
                 uint64_t seed) {
    const vector<Tensor> table = tensor_table(c);
    vector<float> block(block_elements(table));
    Parameters<float> w = carve_parameters(c, table, block.data());
    if (seed) init_parameters(c, table, block.data(), seed);
    edit(w);
    save_model(path, c, table, block.data(), 42);
}

static string write_games(const string& path, size_t n, uint64_t seed) {
    Random random{seed};
    std::ofstream file(path);
    for (size_t i = 0; i < n; i++) file << random_game(random, 180) << "\n";
    return path;
}

static string json_without_time(Features f) {
    f.seconds = 0;
    return features_json(f);
}

// Pairs with what is planted: two independent units and properties that are their exclusive or, one of them,
// and chance.
static void test_pairs() {
    const size_t games = 60, per_game = 50, n = games * per_game;
    Places sets[2]; // train, test
    vector<uint8_t> independent[2], copies[2];
    for (size_t s = 0; s < 2; s++) {
        Places& p = sets[s];
        p.games = games;
        p.per_game = per_game;
        p.properties = empty_labels(3, n);
        for (size_t i = 0; i < n; i++) {
            const bool a = random_uniform(9, s * 4, i) < 0.5, b = random_uniform(9, s * 4 + 1, i) < 0.5;
            independent[s].push_back(uint8_t(a + 2 * b));
            copies[s].push_back(uint8_t(3 * a));
            if (a != b) p.properties.set(0, i);
            if (a) p.properties.set(1, i);
            if (random_uniform(9, s * 4 + 2, i) < 0.3) p.properties.set(2, i);
        }
    }
    const Order orders[2] = {same_move_order(games, per_game, 1), same_move_order(games, per_game, 2)};
    const PairFinding f = measure_pair(independent[0], independent[1], sets[0], sets[1], orders, 1);
    check(f.property == 0 && f.more());
    check_near(f.beyond.value, 1, 0.02); // one bit, told by neither
    check_near(f.apart.value, 0, 0.01);
    check_near(f.null.value, 0, 0.01);
    check_near(f.lift.value, 1, 0.1);
    check_near(f.rate_a, 0.5, 0.05);
    // A unit's copy is on wherever it is, twice as often as by chance, and tells nothing of its own.
    const PairFinding copy = measure_pair(copies[0], copies[1], sets[0], sets[1], orders, 1);
    check_near(copy.lift.value, 1 / copy.rate_a, 1e-12);
    check(!copy.more() && copy.lift.interval.low > 1.5);
    // What one of them tells is told apart, not beyond.
    Places one[2] = {sets[0], sets[1]};
    for (Places& p : one) p.properties = chosen_cells(p.properties, {1});
    const PairFinding alone = measure_pair(independent[0], independent[1], one[0], one[1], orders, 1);
    check(!alone.more() && (alone.property == SIZE_MAX || std::fabs(alone.beyond.value) < 0.01));
    // Chance: whatever is chosen tells nothing on the test places.
    for (size_t s = 0; s < 2; s++) one[s].properties = chosen_cells(sets[s].properties, {2});
    const PairFinding chance = measure_pair(independent[0], independent[1], one[0], one[1], orders, 1);
    check(!chance.more() && std::fabs(chance.beyond.value) < 0.005);
}

// What a unit does, against two plain passes: one of them of a model without its decoder row.
static void test_effects(const string& folder) {
    for (const char* ffn : {"moe", "dense"}) {
        const Config c = small_config("chess-32", 32, ffn);
        const size_t T = 128, rows = 6, per_game = 19, D = c.moe() ? c.d_expert : c.dense_width(),
                     C = c.n_embd;
        const string path = folder + "/effects.safetensors";
        save(
            path, c,
            [&](Parameters<float>& w) {
                for (size_t i = 0; i < c.vocab_size * C; i++) w.wte[i] *= 20;
                for (LayerParameters<float>& h : w.h)
                    for (size_t i = 0; i < (c.moe() ? c.n_expert : 1) * D * C; i++)
                        (c.moe() ? h.w_dec : h.fc_proj_weight)[i] *= 20;
            },
            3);
        const GameSet games = read_games(write_games(folder + "/effects.txt", 12, 4), T, 10, 12);
        const PlacedRows set = placed_games(games, {games.dots, true});
        check(games.size() >= 8 && set.places[0].size() == per_game);
        Reader reader = cpu_reader(c, 4, T);
        const SafeTensorsFile file(path);
        load_weights(reader, file);
        const size_t count = block_elements(reader.table);
        const vector<float> before(reader.weights(), reader.weights() + count);
        // The two units that fire most where moves begin, since many are silent there.
        reader.read(set.rows.tokens.data(), 4, T);
        vector<std::pair<size_t, size_t>> fires(reader.units());
        for (size_t u = 0; u < fires.size(); u++) fires[u].second = u;
        for (size_t g = 0; g < 4; g++)
            for (const size_t t : set.places[g])
                reader.layer(1).each(g * T + t, true,
                                     [&](size_t u, float value) { fires[u].first += value > 0; });
        std::sort(fires.rbegin(), fires.rend());
        const size_t most = fires[0].second, next = fires[1].second;
        EffectTask task = {1, most / D, most % D, next / D, next % D, {}};
        for (size_t n = 0; n < rows * per_game; n++) task.holds.push_back(random_uniform(5, 1, n) < 0.3);
        const vector<uint64_t> legal = legal_beginnings(games.texts, set.places, rows);
        const UnitEffect e = unit_effects(reader, set, rows, per_game, legal, {task})[0];
        check(memcmp(before.data(), reader.weights(), count * sizeof(float)) == 0,
              "the weights are as before");

        double inside[2] = {}, outside[2] = {}, legal_inside = 0;
        size_t holds = 0, wrong = 0;
        for (const bool control : {false, true}) {
            double change[2][2] = {}; // (log p, legal), by whether the property holds
            vector<double> with;
            for (const bool off : {false, true}) {
                Model model(c, rows, T, false);
                read_block(file, model.table, "", model.weights.data);
                const size_t expert = control ? task.control_expert : task.expert,
                             unit = control ? task.control_unit : task.unit;
                for (size_t i = 0; i < C && off; i++)
                    (c.moe() ? model.w.h[1].w_dec[(expert * D + unit) * C + i]
                             : model.w.h[1].fc_proj_weight[i * D + unit]) = 0;
                forward_logits(model, set.rows.tokens.data(), rows, T);
                for (size_t g = 0, n = 0; g < rows; g++)
                    for (const size_t t : set.places[g]) {
                        const float* logits = model.a.logits + (g * T + t) * c.vocab_size;
                        double sum = 0, allowed = 0;
                        uint64_t bits = 0;
                        const auto game = chess::parse_game_text(games.texts[g].substr(0, t + 1));
                        const auto moves = chess::legal_moves(game.position);
                        for (const chess::Move m : moves)
                            bits |= uint64_t(1) << chess_id(chess::to_san(game.position, m, moves)[0]);
                        wrong += bits != legal[n];
                        for (size_t v = 0; v < c.vocab_size; v++) {
                            sum += std::exp(double(logits[v]));
                            if (bits >> v & 1) allowed += std::exp(double(logits[v]));
                        }
                        const double log_p = logits[set.rows.tokens[g * T + t + 1]] - std::log(sum);
                        const bool in = task.holds[n++];
                        change[0][in] += off ? log_p : -log_p;
                        change[1][in] += (off ? allowed : -allowed) / sum;
                    }
            }
            holds = size_t(std::count(task.holds.begin(), task.holds.end(), 1));
            inside[control] = change[0][1] / double(holds);
            outside[control] = change[0][0] / double(rows * per_game - holds);
            if (!control) legal_inside = change[1][1] / double(holds);
        }
        check(wrong == 0 && e.places == holds && e.games == rows);
        check_near(e.off.inside.value, inside[0], 1e-5);
        check_near(e.off.outside.value, outside[0], 1e-5);
        check_near(e.control.inside.value, inside[1], 1e-5);
        check_near(e.beyond.value, inside[0] - inside[1], 1e-5);
        check_near(e.off.legal_inside.value, legal_inside, 1e-5);
        const Interval within = e.off.inside.interval;
        check(e.off.inside.value != 0 && within.low <= e.off.inside.value &&
                  e.off.inside.value <= within.high,
              "%s: %g (%g to %g), outside %g", ffn, e.off.inside.value, within.low, within.high,
              e.off.outside.value);
    }
    check(nearest_rate({0.5, 0.1, 0, 0.11, 0.2}, 1) == 3 && nearest_rate({0, 0.1, 0.0}, 1) == SIZE_MAX);
    check(nearest_rate({0.3, 0.2, 0.1}, 1) == 0, "a tie to the lower index");
}

// A random model of chess: contexts, marks, experts and the JSON against slow versions.
static void test_chess_model(const string& folder) {
    for (const char* ffn : {"moe", "dense"}) {
        const Config c = small_config("chess-32", 32, ffn);
        const size_t E = c.moe() ? 4 : 1, D = c.moe() ? 12 : 24, T = 128;
        const string path = folder + "/" + ffn + "/model_00000042.safetensors";
        make_directories(folder + "/" + ffn);
        save(
            path, c,
            [&](Parameters<float>& w) {
                for (size_t i = 0; i < c.vocab_size * c.n_embd; i++) w.wte[i] *= 20;
            },
            3);
        FeatureOptions o;
        o.ckpt = path, o.games = write_games(folder + "/games.txt", 90, 1), o.per_expert = 3, o.seed = 5;
        o.test_games = write_games(folder + "/test.txt", 40, 2);
        const Features features = measure_features(o, cpu_reader);
        check(features.chess && features.train_games == 90 && features.test_games == 40 &&
              features.characters == T && features.per_game == 19 && features.step == 42);
        check(features.units.size() > E && features.units.size() <= 2 * E * 3 &&
              features.trained.tested <= 2 * E * D && features.trained.tested >= features.units.size() &&
              features.trained.units == 2 * E * D && features.untrained.units == 2 * E * D);
        check(features.other_labels.knows <= 1, "%zu", features.other_labels.knows);
        check(features.trained.knows <= 2, "%zu units of random weights", features.trained.knows);
        const Census& census = features.trained;
        check(census.known.size() <= census.knows && (census.knows_firing > 0) == (census.knows > 0) &&
              (census.reads_firing > 0) == (census.reads > 0) &&
              census.firing >= census.reads_firing + census.knows_firing && census.firing > 0);

        // All of it again, slowly, for every listed unit.
        const GameSet test = read_games(o.test_games, T, 10, 1000);
        Reader reader = cpu_reader(c, 40, T);
        load_weights(reader, SafeTensorsFile(path));
        vector<int32_t> tokens;
        for (const string& text : test.texts)
            for (const char character : text) tokens.push_back(chess_id(character));
        reader.read(tokens.data(), 40, T);
        size_t wrong_contexts = 0, wrong_experts = 0, contexts = 0, order = 0;
        for (size_t i = 0; i < features.units.size(); i++) {
            const Feature& f = features.units[i];
            if (i && std::tuple(f.layer, f.expert) <
                         std::tuple(features.units[i - 1].layer, features.units[i - 1].expert))
                order++;
            if (i && f.layer == features.units[i - 1].layer && f.expert == features.units[i - 1].expert &&
                goes_before(f.finding, features.units[i - 1].finding))
                order++;
            const LayerUnits layer = reader.layer(f.layer);
            vector<std::tuple<float, int, size_t>> peaks; // value, - game, place
            vector<size_t> with(E);
            size_t on = 0;
            for (size_t g = 0; g < 40; g++) {
                float best = 0;
                size_t place = 0;
                for (size_t t = 0; t < T; t++) {
                    const size_t n = g * T + t;
                    float value = 0;
                    if (c.moe()) {
                        for (size_t k = 0; k < 2; k++)
                            if (size_t(layer.choice[n * 2 + k]) == f.expert)
                                value = layer.weight[n * 2 + k] *
                                        layer.z[size_t(layer.slot[n * 2 + k]) * D + f.unit];
                    } else {
                        value = layer.z[n * D + f.unit];
                    }
                    if (value > best) best = value, place = t;
                    if (!(value > f.cut)) continue;
                    on++;
                    for (size_t k = 0; c.moe() && k < 2; k++) with[size_t(layer.choice[n * 2 + k])]++;
                }
                if (best > 0) peaks.push_back({best, -int(g), place});
            }
            std::sort(peaks.rbegin(), peaks.rend());
            wrong_contexts += f.contexts.size() != std::min<size_t>(4, peaks.size());
            for (size_t k = 0; k < f.contexts.size(); k++, contexts++) {
                const auto [value, game, place] = peaks[k];
                const FeatureContext expected = game_context(test.texts[size_t(-game)], place, value);
                wrong_contexts += f.contexts[k].value != value || f.contexts[k].text != expected.text ||
                                  f.contexts[k].mark != expected.mark || f.contexts[k].fen != expected.fen;
            }
            size_t others = 0;
            for (size_t e = 0; e < E; e++) others += e != f.expert && with[e] > 0;
            wrong_experts += f.with.size() != others;
            double before = 1;
            std::vector<size_t> together(E);
            for (size_t n = 0; c.moe() && n < 40 * T; n++)
                for (size_t a = 0; a < 2; a++)
                    for (size_t b = 0; b < 2; b++)
                        if (size_t(layer.choice[n * 2 + a]) == f.expert)
                            together[size_t(layer.choice[n * 2 + b])]++;
            for (const auto& [expert, share, base] : f.with) {
                wrong_experts += expert == f.expert || share != double(with[expert]) / double(on) ||
                                 share > before ||
                                 base != double(together[expert]) / double(together[f.expert]);
                before = share;
            }
            check_near(f.on_anywhere, double(on) / 40, 1e-12);
            check(f.heat.size() == 64 && !f.heat_words.empty());
        }
        check(wrong_contexts == 0 && contexts > 20, "%zu of %zu contexts are wrong", wrong_contexts,
              contexts);
        check(wrong_experts == 0 && order == 0, "%zu wrong experts, %zu out of order", wrong_experts, order);

        // The same bits on one thread; another seed gives other resamples and the same choices.
        const size_t threads = thread_count();
        set_thread_count(1);
        const Features again = measure_features(o, cpu_reader);
        set_thread_count(threads);
        check(json_without_time(features) == json_without_time(again));
        o.seed = 6;
        const Features other = measure_features(o, cpu_reader);
        check(other.units.size() == features.units.size() &&
              json_without_time(other) != json_without_time(features));

        // Without gate weights a mixture's units have other values; a dense layer has none.
        o.seed = 5, o.ungated = true;
        const Features plain = measure_features(o, cpu_reader);
        check(!plain.gated && plain.trained.units == features.trained.units);
        check((plain.units[0].max == features.units[0].max) == !c.moe() ||
              plain.units[0].unit != features.units[0].unit);
        o.ungated = false;

        // What the best do is measured, of all that were asked for by name.
        size_t measured = 0;
        for (const Feature& f : features.units)
            measured += f.effect.games == 40 && std::isfinite(f.effect.beyond.value);
        check(measured == 5, "%zu", measured);
        check(features.pairs.size() == 2 && features.pairs[0].size() == 5);
        for (const PairFinding& f : features.pairs[0])
            check(f.a < f.b && f.b < E * D && f.both <= std::min(f.rate_a, f.rate_b) && f.lift.value > 0 &&
                  !f.more());

        // JSON as the report reads it.
        const Json json = parse_json(features_json(features), "features");
        const Json *units = json.find("units"), *summary = json.find("summary"), *data = json.find("games");
        check(json.find("tool")->text == "features" && json.find("step")->int64() == 42 &&
              json.find("config")->find("n_layer")->text == "2" && data &&
              data->find("boundaries")->int64() == 19);
        check(units && units->items.size() == features.units.size() && summary &&
              summary->find("tested")->int64() == int64_t(features.trained.tested) &&
              json.find("best") != nullptr && summary->find("untrained")->find("tested")->int64() > 0 &&
              json.find("weights")->text == weights_hash(path));
        for (const Json& unit : units->items) {
            for (const char* key :
                 {"layer",     "expert",       "unit",        "rate",          "max",
                  "threshold", "share",        "precision",   "precision_low", "recall",
                  "f1",        "f1_low",       "f1_high",     "base",          "floor",
                  "shuffled",  "matched",      "rule_f1",     "rule_mcc",      "text_mcc",
                  "beyond",    "beyond_error", "on_anywhere", "places",        "precision_high"})
                check(unit.find(key) && (unit.find(key)->is_number() || unit.find(key)->type == Json::Null),
                      "%s", key);
            const Json* effect = unit.find("effect");
            check(effect && (effect->type == Json::Null ||
                             (effect->find("inside")->items.size() == 3 && effect->find("legal_outside") &&
                              effect->find("control")->find("inside")->items.size() == 3)));
            check(unit.find("found")->type == Json::Boolean && !unit.find("property")->text.empty() &&
                  unit.find("heat")->items.size() == 64 && unit.find("promotes")->items.size() == 5 &&
                  unit.find("with")->type == Json::Array);
            for (const Json& context : unit.find("contexts")->items)
                check(size_t(context.find("mark")->int64()) < context.find("text")->text.size() &&
                      context.find("fen")->text.size() > 20);
        }

        // Single units, in any number; nothing is left out for firing too seldom.
        o.seed = 5, o.unit = c.moe() ? "1/3/7,0/0/0" : "1/7", o.units = {"0/0/11"};
        const Features some = measure_features(o, cpu_reader);
        check(some.units.size() == (c.moe() ? 3 : 2) && !some.all && some.units.back().layer == 1 &&
              some.units.back().unit == 7);
        for (const Feature& f : features.units)
            for (const Feature& g : some.units)
                if (f.layer == g.layer && f.expert == g.expert && f.unit == g.unit)
                    check(f.finding.counts.tp == g.finding.counts.tp && f.words() == g.words() &&
                          f.finding.f1.low == g.finding.f1.low && f.finding.verdict == g.finding.verdict);
        check(parse_json(features_json(some), "features").find("summary")->find("untrained")->type ==
              Json::Null);
    }
}

static string write_shard(const string& path, const string& text, Tokenizer tokenizer) {
    ShardWriter shard(path, tokenizer, 0);
    for (const char c : text) {
        const uint16_t id = tokenizer == TOKENIZER_CHESS ? uint16_t(chess_id(c)) : (unsigned char)c;
        shard.write(&id, 1);
    }
    shard.commit();
    return path;
}

// A dense model of text whose units are made by hand: with no attention and no positions, ln_2 sees the
// token's embedding alone, so a unit that has a token's normalised embedding as its encoder row, less 0.7 of
// its square, fires at that token only. Its decoder row is an embedding, too, of the token to promote.
static void test_text_model(const string& folder) {
    Config c = small_config("bytes", 257, "dense");
    c.n_layer = 1, c.n_embd = 64, c.block_size = 40;
    const size_t C = c.n_embd;
    const string path = folder + "/text.safetensors";
    save(
        path, c,
        [&](Parameters<float>& w) {
            for (size_t i = 0; i < 257 * C; i++) w.wte[i] = float(random_normal(21, 0, i));
            LayerParameters<float>& h = w.h[0];
            std::fill_n(w.ln_f_weight, C, 1.0f), std::fill_n(h.ln_1_weight, C, 1.0f),
                std::fill_n(h.ln_2_weight, C, 1.0f);
            const auto plant = [&](size_t unit, char token, char promoted) {
                const float* e = w.wte + (unsigned char)token * C;
                double mean = 0, square = 0;
                for (size_t i = 0; i < C; i++) mean += e[i] / double(C);
                for (size_t i = 0; i < C; i++) square += (e[i] - mean) * (e[i] - mean) / double(C);
                for (size_t i = 0; i < C; i++) {
                    h.fc_weight[unit * C + i] = float((e[i] - mean) / std::sqrt(square));
                    h.fc_proj_weight[i * c.dense_width() + unit] = w.wte[(unsigned char)promoted * C + i];
                }
                h.fc_bias[unit] = -0.7f * float(C);
            };
            plant(5, 'e', 'q'), plant(9, '\n', '7');
            h.fc_bias[3] = 1; // always on
            for (size_t i = 0; i < C; i++)
                h.fc_weight[11 * C + i] = float(random_normal(22, 0, i)); // any tokens
        },
        0);

    FeatureOptions o;
    o.ckpt = path, o.data = write_shard(folder + "/text.bin", random_text(20001, 2), TOKENIZER_BYTES);
    const Features f = measure_features(o, cpu_reader);
    check(!f.chess && f.train_games == 79 && f.test_games == 79 && f.per_game == 120 && f.units.size() <= 12,
          "%zu blocks of %zu", f.train_games, f.per_game);
    const auto unit = [&](size_t u) {
        for (const Feature& feature : f.units)
            if (feature.unit == u) return feature;
        return Feature{};
    };
    const auto text_of = [&](size_t u) {
        for (size_t i = 0; i < f.units.size(); i++)
            if (f.units[i].unit == u) return f.text_words[i];
        return string();
    };
    // A unit that sees the token it stands on reads; there is nothing to know for a model of one layer
    // without attention but the token, so no unit knows.
    const Feature e = unit(5), line = unit(9);
    check(e.finding.verdict == READS && text_of(5) == "the token is 'e'" && e.finding.text_counts.f1() == 1,
          "%s", text_of(5).c_str());
    check(line.finding.verdict == READS && text_of(9) == "the token is '\\n'" &&
              line.finding.text_counts.f1() == 1,
          "%s", text_of(9).c_str());
    if (!check(e.promotes.size() == 5 && line.promotes.size() == 5)) return;
    check(e.promotes[0].text == "q" && line.promotes[0].text == "7");
    check(!unit(3).finding.found() && e.heat.empty() && e.with.empty() && e.contexts.size() == 4);
    const auto marked = [](const FeatureContext& context) { // the bytes of the code points that are marked
        size_t begin = 0, n = 0;
        for (; begin < context.text.size(); begin++)
            if ((context.text[begin] & 0xC0) != 0x80 && n++ == context.mark) break;
        return context.text.substr(begin, context.length);
    };
    for (const FeatureContext& context : e.contexts)
        check(marked(context) == "e" && context.fen.empty() && context.length == 1);
    for (const FeatureContext& context : line.contexts)
        check(marked(context) == "\\n" && context.length == 2);
    if (!check(!f.any_found() && f.trained.knows == 0 && f.other_labels.knows == 0 && f.trained.reads >= 2))
        return;
    const string sentence = best_sentence(f);
    check(sentence.find("none of ") == 0 &&
              sentence.find(" read the text, as layer 0, unit ") != string::npos,
          "%s", sentence.c_str());
    const Json json = parse_json(features_json(f), "features");
    check(json.find("sentence")->text == sentence && json.find("data") && !json.find("games"));
    check(json.find("units")->items[size_t(json.find("best")->int64())].find("verdict")->text == "reads");

    // What knows most first, one of every property before a second of any; then what reads.
    vector<Feature> list(5);
    const double beyond[] = {50, 90, 80, 100, 30};
    for (size_t i = 0; i < 5; i++) {
        Finding& finding = list[i].finding;
        finding.verdict = i != 3 ? KNOWS : READS;
        finding.counts = {1000, 100, 100, 100}, finding.beyond = {beyond[i], 1, 0};
        list[i].property.words[0] = i < 3 ? "one" : "another";
    }
    check((rank_units(list) == vector<size_t>{1, 4, 2, 0, 3}));
    Features none = f;
    none.units.clear(), none.ranking.clear();
    check(best_sentence(none).find("none of ") == 0);
    Features known = f;
    known.units = {list[1]}, known.ranking = {0}, known.rule_words = {"the best rule"};
    known.units[0].property.words[0] = "one holds";
    check(best_sentence(known) == "layer 0, unit 0 tells that one holds: right at 1.00 of the 100 places "
                                  "where it is on, of 1000 in 79 rows it "
                                  "was not chosen on (base rate 0.10, recall 1.00); the best rule about the "
                                  "text (the best rule) has Matthews "
                                  "0.00 to its 1.00",
          "%s", best_sentence(known).c_str());
}

// The program: what it prints and writes, and one clear line for what cannot be.
static int program(vector<string> arguments) {
    arguments.insert(arguments.begin(), "features");
    vector<char*> argv;
    for (string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    return features_program(int(arguments.size()), argv.data(), cpu_reader);
}

static void test_program(const string& folder) {
    const string moe = folder + "/moe", text = folder + "/text.safetensors",
                 games_file = folder + "/games.txt";
    fflush(stdout);
    const int terminal = dup(1), out = open((folder + "/out").c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
    dup2(out, 1);
    const int status = program({"--ckpt", moe, "--games", games_file, "--best", "2", "--per-expert", "2"});
    const int named = program({"--ckpt", moe, "--games", games_file, "--unit", "0/1/2", "1/1/1"});
    fflush(stdout);
    dup2(terminal, 1), close(terminal), close(out);
    std::stringstream printed;
    printed << std::ifstream(folder + "/out").rdbuf();
    const string all = printed.str();
    check(status == 0 && named == 0 && fs::exists(moe + "/interp/features.json"));
    for (const char* part :
         {"contexts\n", "tells that     ", "held out       precision ", "always on: F1 ", "promotes ",
          "lift in %", "layer 0, expert 1, unit 2\n", "layer 1, expert 1, unit 1\n",
          "the best rule for it has F1 ", "tell more than the text says",
          "untrained weights (seed 1): ", "with the labels of another game at the same move (seed 1): "})
        check(all.find(part) != string::npos, "%s is not printed", part);

    check_error(program({"--ckpt", moe}), "--games", "--data");
    check_error(program({"--ckpt", moe, "--games", games_file, "--data", folder + "/text.bin"}), "--games",
                "--data");
    check_error(program({"--ckpt", moe, "--data", folder + "/text.bin"}), "moe", "chess-32", "--games");
    check_error(program({"--ckpt", text, "--games", games_file}), "text.safetensors", "bytes", "chess-32");
    write_shard(folder + "/chess.bin", random_text(0, 1) + ";1.e4 e5 2.Nf3 Nc6 3.Bb5", TOKENIZER_CHESS);
    check_error(program({"--ckpt", text, "--data", folder + "/chess.bin"}), "chess.bin", "chess-32", "bytes");
    check_error(program({"--ckpt", moe, "--games", games_file, "--unit", "0/1"}), "'0/1'", "2/5/113");
    check_error(program({"--ckpt", moe, "--games", games_file, "--unit", "0/1/x"}), "'0/1/x'");
    check_error(program({"--ckpt", moe, "--games", games_file, "--unit", "2/0/0"}), "2/0/0",
                "2 layers of 4 experts of 12");
    check_error(program({"--ckpt", moe, "--games", games_file, "--unit", "0/4/0"}), "0/4/0");
    check_error(program({"--ckpt", moe, "--games", games_file, "0/0/12"}), "0/0/12");
    check_error(program({"--ckpt", moe, "--games", folder + "/none"}), "none");
    check_error(program({"--ckpt", text, "--data", folder + "/text.bin", "--test-games", games_file}),
                "--test-games");
    std::ofstream(folder + "/short.txt") << ";1.e4 e5 2.Nf3\n";
    check_error(program({"--ckpt", moe, "--games", folder + "/short.txt"}), "short.txt", "128 characters");
    write_shard(folder + "/small.bin", string(60, 'a'), TOKENIZER_BYTES);
    check_error(program({"--ckpt", text, "--data", folder + "/small.bin"}), "small.bin",
                "1 rows of 40 tokens", "64");
    save(
        folder + "/nan.safetensors", small_config("chess-32", 32, "moe"),
        [](Parameters<float>& w) { w.h[1].w_enc[5] = NAN; }, 3);
    check_error(program({"--ckpt", folder + "/nan.safetensors", "--games", games_file}), "finite");
}

int main() {
    return run_main([] {
        const TemporaryFolder folder;
        const PlantedSplit planted;
        test_counts();
        test_evidence(planted);
        test_cuts(planted);
        test_choose(planted);
        test_verdicts(planted);
        test_blocks(planted);
        test_text_labels();
        test_contexts();
        test_squares(folder.path);
        test_board_labels();
        test_direct_logits();
        test_pairs();
        test_effects(folder.path);
        test_chess_model(folder.path);
        test_text_model(folder.path);
        test_program(folder.path);
        return finish();
    });
}
