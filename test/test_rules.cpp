// Tests of what a measurement is read against (dev/interp/chess_text.h, rules.h, controls.h): questions about
// the text against the moves that were played, the best rules against every rule there is, the matched null
// against what it stands for, and planted units that read, count or fire in one game.
#include "../dev/interp/rules.h"
#include "check.h"
#include "random_games.h"

constexpr size_t dots = 20;

static void test_written_moves() {
    const auto is = [](const char* san, bool white, std::vector<std::pair<size_t, const char*>> landings,
                       const char* marks) {
        const WrittenMove m = read_written_move(san, white);
        bool same = m.landings.size() == landings.size();
        for (size_t i = 0; same && i < landings.size(); i++)
            same = m.landings[i].kind == landings[i].first &&
                   chess::square_name(int(m.landings[i].square)) == std::string(landings[i].second);
        const std::string got = std::string(m.capture ? "x" : "") + (m.check ? "+" : "") +
                                (m.promotion ? "=" : "") + (m.castles ? "O" : "") +
                                (m.castles_long ? "l" : "");
        check(same && got == marks, "%s: %zu landings, '%s'", san, m.landings.size(), got.c_str());
    };
    is("e4", true, {{0, "e4"}}, "");
    is("12.Nbxd7+", true, {{1, "d7"}}, "x+");
    is("exd8=Q#", true, {{4, "d8"}}, "x+=");
    is("O-O", true, {{5, "g1"}, {3, "f1"}}, "O");
    is("O-O-O+", false, {{5, "c8"}, {3, "d8"}}, "+Ol");
    is("R1", true, {}, ""); // cut off
    is("", true, {}, "");
}

// Every question of these families, from the moves as the rules of chess play them.
static void test_chess_text() {
    const GameSet games = random_games(40, 7);
    for (const bool both : {false, true}) {
        const ChessQuestions q = chess_questions(games, {dots, both});
        const Labels labels = label_chess_text(games, q);
        const size_t per_game = q.where.per_game();
        check(labels.tokens == games.size() * per_game && labels.cells() == q.list.size());
        size_t wrong = 0, landed = 0;
        for (size_t g = 0; g < games.size(); g++) {
            const std::vector<size_t> characters = boundary_characters(games.texts[g], q.where);
            check(characters.size() == per_game);
            chess::GameTextReader reader;
            for (const char c : games.texts[g]) reader.push(c);
            for (size_t place = 0; place < per_game; place++) {
                const size_t n = g * per_game + place, ply = q.where.ply(place), at = characters[place];
                wrong += games.texts[g][at] != (ply % 2 ? ' ' : '.');
                chess::Position p = chess::start_position();
                int captures = 0, last_by[64];
                bool castled[2] = {}, gave_check = false;
                std::fill(std::begin(last_by), std::end(last_by), -1);
                for (size_t i = 0; i < ply; i++) {
                    const chess::Move m = reader.moves[i];
                    const std::string san = chess::to_san(p, m);
                    captures += san.find('x') != std::string::npos;
                    castled[i % 2] = castled[i % 2] || san[0] == 'O';
                    const bool white = p.turn == chess::WHITE;
                    chess::make(p, m);
                    gave_check = chess::in_check(p);
                    last_by[m.to] = int(!white) * 6 + std::abs(p.board[m.to]) - 1;
                    if (san[0] == 'O') {
                        const size_t rook = size_t(m.to) + (m.to % 8 == 6 ? -1 : 1);
                        last_by[rook] = int(!white) * 6 + 3;
                    }
                }
                if (ply > 0) {
                    const size_t slot = q.slot[ply % 2 ? WHITE_LAST : BLACK_LAST];
                    const chess::Move m = reader.moves[ply - 1];
                    const size_t kind = size_t(std::abs(p.board[m.to])) - 1;
                    for (const MoveSlot s : {ply % 2 ? WHITE_LAST : BLACK_LAST, OTHER_LAST}) {
                        wrong += !labels.at(q.slot[s] + slot_both + kind * 64 + size_t(m.to), n);
                        wrong += labels.at(q.slot[s] + slot_marks + CHECK, n) != gave_check;
                    }
                    size_t on = 0;
                    for (size_t c = slot_both; c < slot_marks; c++) on += labels.at(slot + c, n);
                    wrong += on != 1 + size_t(labels.at(slot + slot_marks + CASTLES, n));
                    landed++;
                }
                for (size_t s = 0; s < 64; s++)
                    for (int who = 0; who < 12; who++)
                        wrong += labels.at(q.square + size_t(who) * 64 + s, n) != (last_by[s] == who);
                for (size_t side = 0; side < 2; side++)
                    wrong += labels.at(q.so_far[side] + slot_marks + CASTLES, n) != castled[side];
                for (size_t who = 2; who < 4 && both; who++) // of the side to move and the other
                    wrong += labels.at(q.so_far[who] + slot_marks + CASTLES, n) != castled[(ply + who) % 2];
                for (size_t s = 0; s < 64 && both; s++)
                    for (size_t kind = 0; kind < 6; kind++)
                        wrong += labels.at(q.own_square + kind * 64 + s, n) !=
                                 (last_by[s] == int(ply % 2 * 6 + kind));
                for (size_t k = 1; k <= most_captures; k++)
                    wrong += labels.at(q.captures + k - 1, n) != (captures >= int(k));
                for (size_t move = 2; move <= dots; move++)
                    wrong += labels.at(q.move + move - 2, n) != (ply / 2 + 1 >= move);
                for (size_t k = 0; k < q.steps.size(); k++)
                    wrong += labels.at(q.characters + k, n) != (at >= q.steps[k]);
                wrong += labels.at(q.turn, n) != (ply % 2 == 1);
                for (const auto& [text, i] : q.endings)
                    wrong +=
                        labels.at(i, n) != (at + 1 >= text.size() &&
                                            games.texts[g].substr(at + 1 - text.size(), text.size()) == text);
            }
        }
        check(wrong == 0 && landed > 500 && q.endings.size() > 20 && q.steps.size() > 10,
              "%zu wrong, %zu endings", wrong, q.endings.size());
    }
}

// Against every rule of the two best questions, for both scores.
static void test_best_rules() {
    constexpr size_t n = 1000, Q = 150, n_targets = 9;
    Random random{3};
    Labels questions = empty_labels(Q, n);
    for (uint32_t q = 0; q < Q; q++) {
        const double rate = random.uniform();
        for (size_t i = 0; i < n; i++)
            if (random.uniform() < rate) questions.set(q, i);
    }
    std::vector<std::vector<uint32_t>> targets(n_targets);
    for (size_t i = 0; i < n; i++) {
        const auto holds = [&](size_t q) { return questions.at(q, i); };
        const bool of[n_targets] = {holds(3),
                                    !holds(4),
                                    holds(5) && !holds(140),
                                    holds(6) || holds(7),
                                    !holds(8) && !holds(9),
                                    !holds(8) || holds(70),
                                    random.uniform() < 0.3,
                                    (random.uniform() < 0.8) == holds(20),
                                    false};
        for (size_t t = 0; t < n_targets; t++)
            if (of[t]) targets[t].push_back(uint32_t(i));
    }
    for (const auto score : {mcc_of, f1_of}) {
        const std::vector<Rule> rules = best_rules(questions, targets, score);
        const Labels answers = rule_labels(rules, questions);
        for (size_t t = 0; t < n_targets; t++) {
            const auto counts = [&](const Rule& r) {
                Counts c = {double(n), 0, double(targets[t].size()), 0};
                for (size_t i = 0; i < n; i++) c.on += r.says(questions, i);
                for (const uint32_t i : targets[t]) c.tp += r.says(questions, i);
                return score(c);
            };
            std::vector<std::pair<double, uint32_t>> single;
            for (uint32_t q = 0; q < Q; q++)
                single.push_back({-std::max(counts({q, q, 8, 0}), counts({q, q, 1, 0})), q});
            std::sort(single.begin(), single.end());
            const double T = double(targets[t].size()), charge = rule_charge(24 * Q, n, T);
            double best = -single[0].first - rule_charge(2 * Q, n, T); // less what it is charged
            for (size_t k = 0; k < 2; k++)
                for (uint32_t q = 0; q < Q; q++)
                    for (const uint8_t yes : {1, 2, 4, 8, 14, 13, 11, 7})
                        best = std::max(best, counts({single[k].second, q, yes, 0}) - charge);
            if (t < 8) {
                const double own = rule_charge((rules[t].single() ? 2 : 24) * Q, n, T);
                check_near(rules[t].score - own, best, 1e-8);
                check_near(counts(rules[t]), rules[t].score, 1e-8);
            }
            size_t wrong = 0;
            for (size_t i = 0; i < n; i++) wrong += answers.at(t, i) != rules[t].says(questions, i);
            check(wrong == 0, "target %zu: %zu answers", t, wrong);
        }
        check(rules[0].a == 3 && rules[0].single() && rules[1].single() && rules[1].yes == 1);
        for (const size_t t : {0, 1, 2, 3, 4, 5}) check(rules[t].score > (t < 2 ? 1 - 1e-12 : 0.9));
        check(!rules[8].any());
    }
    // Of a rare target the natural question is taken, though another fits the few places better; of a
    // frequent one what fits better is.
    Labels few = empty_labels(300, 4000);
    std::vector<std::vector<uint32_t>> rare(1), often(1), natural = {{7}};
    for (size_t q = 0; q < 300; q++)
        for (size_t i = 0; i < 4000; i++)
            if (random.uniform() < 0.01) few.set(q, i);
    for (size_t i = 0; i < 5; i++) {
        rare[0].push_back(uint32_t(700 * i));
        if (i != 2) few.set(7, 700 * i);
        few.set(11, 700 * i);
    }
    few.set(7, 1), few.set(7, 2);
    for (size_t i = 0; i < 4000; i++)
        if (few.at(11, i)) often[0].push_back(uint32_t(i));
    for (size_t i = 0; i < 4000; i++) { // of these few remain
        if (few.at(7, i) && i % 700 && i > 2) few.bits[7 * few.words + i / 64] &= ~(uint64_t(1) << i % 64);
        if (few.at(11, i) && i % 700 && i > 400)
            few.bits[11 * few.words + i / 64] &= ~(uint64_t(1) << i % 64);
    }
    check(best_rules(few, rare, f1_of, natural)[0].a == 7 &&
          best_rules(few, often, f1_of, natural)[0].a == 11);
    const std::vector<Property> words = {{"", {"a", "not a"}}, {"", {"b", "not b"}}};
    check(rule_text({0, 0, 8, 1}, words) == "a" && rule_text({0, 0, 1, 1}, words) == "not a");
    check(rule_text({0, 1, 8, 1}, words) == "a and b" && rule_text({0, 1, 2, 1}, words) == "not a and b");
    check(rule_text({0, 1, 14, 1}, words) == "a or b" && rule_text({0, 1, 13, 1}, words) == "a or not b");
    check(rule_text({0, 1, 7, 1}, words) == "not a or not b" && rule_text({}, words) == "nothing");
}

// ---------------------------------------------------------------------------------------------------------
// The matched null

static void test_excess() {
    // By hand: strata of 4 and 2 places; on at 2 of 4, holds at 3 of 4, both at 2: E = 6/4; the other is
    // constant.
    Strata strata{{0, 0, 0, 0, 1, 1}, 2};
    const std::vector<uint8_t> on = {1, 1, 0, 0, 1, 0}, holds = {1, 1, 1, 0, 1, 1};
    const Excess e = matched_excess(on, holds, strata, nullptr, 1);
    check_near(e.expected, 1.5 + 1, 1e-12);
    check_near(e.value, 3 - 2.5, 1e-12);
    const uint8_t finer[] = {0, 0, 1, 1, 0, 0}; // within the strata: 2/2 2/2, 0/2 1/2
    check_near(matched_excess(on, holds, strata, finer, 1).value, 0, 1e-12);

    // It is the mean over labels shuffled within the strata.
    constexpr size_t games = 60, per_game = 5, n = games * per_game;
    Random random{5};
    Strata many;
    std::vector<uint8_t> fires(n), truth(n);
    std::vector<std::vector<uint32_t>> members(12);
    for (uint32_t i = 0; i < n; i++) {
        many.of.push_back(uint32_t(random.below(12)));
        members[many.of[i]].push_back(i);
        fires[i] = random.uniform() < 0.1 + 0.05 * many.of[i];
        truth[i] = random.uniform() < 0.08 * many.of[i];
    }
    many.count = 12;
    double sum = 0, squares = 0;
    constexpr size_t shuffles = 4000;
    for (size_t s = 0; s < shuffles; s++) {
        std::vector<uint8_t> moved = truth;
        for (const auto& list : members)
            for (size_t i = list.size(); i-- > 1;)
                std::swap(moved[list[i]], moved[list[random.below(i + 1)]]);
        double tp = 0;
        for (size_t i = 0; i < n; i++) tp += fires[i] & moved[i];
        sum += tp, squares += tp * tp;
    }
    const double mean = sum / shuffles, error = std::sqrt((squares / shuffles - mean * mean) / shuffles);
    const Excess null = matched_excess(fires, truth, many, nullptr, per_game);
    check(std::fabs(null.expected - mean) < 4 * error, "%g, shuffled %g +- %g", null.expected, mean, error);
    check(std::fabs(null.errors()) < 4);

    // A unit that fires in k games is sqrt(k) standard errors from nothing at most, however often it fires in
    // them.
    Strata one{std::vector<uint32_t>(400 * 20), 1};
    for (const size_t k : {1, 4, 25}) {
        std::vector<uint8_t> rare(400 * 20);
        for (size_t g = 0; g < k; g++) std::fill_n(&rare[g * 20], 10, uint8_t(1));
        std::vector<uint8_t> property = rare;
        std::fill_n(&property[399 * 20], 5, uint8_t(1));
        const double errors = matched_excess(rare, property, one, nullptr, 20).errors();
        check(errors > 0.9 * std::sqrt(double(k)) && errors < 1.1 * std::sqrt(double(k)), "%zu games: %g", k,
              errors);
    }

    const Interval all = wilson(1, 60), half = wilson(0.5, 1e6), none = wilson(0, 60);
    check(all.low > 0.93 && all.low < 0.95 && all.high == 1); // rule of three: 0.95
    check_near(half.high - half.low, 2 * 1.96 * 0.5 / 1000, 1e-6);
    check_near(none.high, 1 - all.low, 1e-12);
    check(std::isnan(wilson(1, 0).low));
}

// The error of a Matthews correlation, from its slopes, is that of resampling.
static void test_mcc_error() {
    const Counts c = {5000, 700, 900, 300};
    Random random{8};
    double sum = 0, squares = 0;
    constexpr size_t resamples = 3000;
    for (size_t r = 0; r < resamples; r++) {
        double counts[3] = {};
        const double p = c.tp / c.n, q = (c.on - c.tp) / c.n, s = (c.positives - c.tp) / c.n;
        for (size_t i = 0; i < size_t(c.n); i++) {
            const double u = random.uniform();
            counts[0] += u < p, counts[1] += u >= p && u < p + q, counts[2] += u >= p + q && u < p + q + s;
        }
        const double mcc = Counts{c.n, counts[0] + counts[1], counts[0] + counts[2], counts[0]}.mcc();
        sum += mcc, squares += mcc * mcc;
    }
    const double sd = std::sqrt(squares / resamples - sum / resamples * sum / resamples);
    check(std::fabs(mcc_error_by_places(c) / sd - 1) < 0.06, "%g, resampled %g", mcc_error_by_places(c), sd);
    check(mcc_error_by_places({100, 0, 5, 0}) == 0);
    check_near((Counts{1000, 500, 400, 300}.shuffled()), 2.0 * 500 * 400 / 1000 / 900, 1e-12);
}

// Real labels: a unit that counts characters knows a lot about captures at the same move, and nothing within
// the strata; one that reads the last move's + knows nothing of check within them.
static void test_clock_and_reader() {
    const GameSet games = random_games(600, 11);
    const Boundaries where = {dots, false};
    const Labels boards = label_games(games, dots);
    const Strata strata = chess_strata(games, where);
    const size_t n = boards.tokens;
    Strata moves; // what was matched before: the move alone
    moves.count = dots;
    for (size_t i = 0; i < n; i++) moves.of.push_back(uint32_t(i % dots));
    std::vector<uint8_t> counts(n), reads(n), truth(n);
    std::vector<std::vector<size_t>> characters(dots); // of every dot, sorted
    for (const std::string& text : games.texts)
        for (size_t d = 0; d < dots; d++) characters[d].push_back(boundary_characters(text, where)[d]);
    for (auto& list : characters) std::sort(list.begin(), list.end());
    for (size_t g = 0; g < games.size(); g++) {
        const std::vector<size_t> at = boundary_characters(games.texts[g], where);
        for (size_t d = 0; d < dots; d++) {
            counts[g * dots + d] = at[d] > characters[d][games.size() / 2];
            reads[g * dots + d] = at[d] > 0 && games.texts[g].substr(0, at[d]).rfind('+') ==
                                                   games.texts[g].substr(0, at[d]).rfind(' ') - 1;
            for (size_t e = 0; e < dots; e++) // the same stratum: the same move, and all given check or none
                if (d != e) check(strata.of[g * dots + d] != strata.of[g * dots + e]);
        }
    }
    double by_move = 0, matched = 0;
    for (const char* name : {"has_queen", "has_bishop_pair", "can_check_next", "has_castling_rights"}) {
        for (size_t i = 0; i < n; i++) truth[i] = boards.at(first_cell(board_function(name)), i);
        by_move = std::max(by_move, std::fabs(matched_excess(counts, truth, moves, nullptr, dots).errors()));
        matched = std::max(matched, std::fabs(matched_excess(counts, truth, strata, nullptr, dots).errors()));
    }
    check(by_move > 4 && matched < 4, "by move %g, matched %g", by_move, matched);
    for (size_t i = 0; i < n; i++) truth[i] = boards.at(first_cell(board_function("check_state")), i);
    const Excess reader = matched_excess(reads, truth, strata, nullptr, dots);
    check(matched_excess(reads, truth, moves, nullptr, dots).errors() > 4 && std::fabs(reader.value) < 1e-9,
          "%g of %g", reader.value, reader.expected);
}

static void test_seen() {
    GameSplit games = {random_games(5, 21), random_games(5, 22)};
    games.test.texts[0] = games.train.texts[3];
    const std::vector<uint8_t> seen = seen_places(games, {dots, true});
    size_t in_first = 0, first_dots = 0;
    for (size_t i = 0; i < 2 * dots - 1; i++) in_first += seen[i];
    for (size_t g = 0; g < 5; g++) first_dots += seen[g * (2 * dots - 1)];
    check(in_first == 2 * dots - 1 && first_dots == 5);
    size_t all = 0;
    for (const uint8_t s : seen) all += s;
    check(all < 2 * dots - 1 + 4 * 8, "%zu", all);
}

int main() {
    return run_main([] {
        test_written_moves();
        test_chess_text();
        test_best_rules();
        test_excess();
        test_mcc_error();
        test_clock_and_reader();
        test_seen();
        return finish();
    });
}
