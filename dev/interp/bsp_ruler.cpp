// The ruler: games, labels and what the text says (bsp.h, section 2).
#include "bsp.h"

std::vector<uint32_t> open_positives(const TruthRows& truth, const std::vector<FunctionColumns>& functions) {
    std::vector<uint32_t> open = truth.positives;
    for (size_t f = 0; f < functions.size(); f++)
        for (size_t n = 0; n < truth.tokens(); n++)
            for (size_t w = 0; w < functions[f].mask.size(); w++) {
                const size_t at = n * truth.words + functions[f].first / 64 + w;
                open[f * truth.games + n / truth.dots] -=
                    uint32_t(std::popcount(truth.bits[at] & truth.said[at] & functions[f].mask[w]));
            }
    return open;
}

// Of a cell about a piece on a square, the natural questions (rules.h) among those kept.
static std::vector<uint32_t> natural_rules(size_t cell, const ChessQuestions& asked,
                                           const std::vector<uint32_t>& place) {
    size_t f = 0;
    while (cell >= first_cell(f) + cells_of(board_functions[f])) f++;
    const size_t classes = board_functions[f].classes, square = (cell - first_cell(f)) / classes;
    const int cls = int((cell - first_cell(f)) % classes), piece = classes == 13  ? cls - 6
                                                                   : classes == 3 ? cls - 1
                                                                                  : 0;
    std::vector<uint32_t> list;
    if (piece == 0) return list;
    for (const uint32_t q :
         natural_questions(asked, piece < 0, classes == 13 ? size_t(std::abs(piece)) - 1 : n_kinds, square))
        if (place[q] != UINT32_MAX) list.push_back(place[q]);
    return list;
}

void add_text_rival(Ruler& ruler, const Labels& train_labels) {
    const Boundaries where = {ruler.train.dots, false};
    const ChessQuestions asked = chess_questions(ruler.games.train, where);
    Labels train = label_chess_text(ruler.games.train, asked),
           test = label_chess_text(ruler.games.test, asked);
    const std::vector<uint32_t> kept = distinct_cells(train, where.per_game(), 1, 1);
    train = chosen_cells(train, kept);
    test = chosen_cells(test, kept);
    TextRival& text = ruler.text;
    std::vector<uint32_t> place(asked.list.size(), UINT32_MAX); // of a question among those kept
    for (uint32_t q = 0; q < kept.size(); q++) {
        text.questions.push_back(asked.list[kept[q]]);
        text.rules.push_back({q, q, 8, 0});
        place[kept[q]] = q;
    }
    std::vector<std::vector<uint32_t>> targets, natural;
    for (const uint32_t cell : ruler.columns.cell) {
        targets.push_back(places_where(train_labels, cell));
        natural.push_back(natural_rules(cell, asked, place));
    }
    for (const Rule& r : best_rules(train, targets, f1_of, natural)) text.rules.push_back(r);

    LayerFires layer; // of rules
    layer.train = rule_fires(rule_labels(text.rules, train));
    layer.test = rule_fires(rule_labels(text.rules, test));
    layer.units = text.rules.size();
    text.chosen = select_units(layer.train, ruler.columns);
    for (size_t c = 0; c < ruler.columns.columns(); c++) { // for a column its own rule, not the luckiest
        const Rule& r = text.rules[kept.size() + c];
        for (size_t t = 0; t < n_thresholds; t++) {
            text.chosen.f1[t * text.chosen.width + c] = t + 1 < n_thresholds ? float(r.score) : 0;
            text.chosen.unit[t * text.chosen.width + c] = uint32_t(kept.size() + c);
        }
    }
    ruler.train.said = said_cells(layer.train, text.chosen, ruler.train.words);
    ruler.test.said = said_cells(layer.test, text.chosen, ruler.test.words);
    ruler.open[0] = open_positives(ruler.train, ruler.functions);
    ruler.open[1] = open_positives(ruler.test, ruler.functions);
    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        text.held_out.push_back(held_out(layer.test, text.chosen, 0, ruler.test, columns));
        text.scores.push_back({coverage(text.chosen, columns).value,
                               held_out_f1(text.held_out.back(), columns.cells()),
                               said_f1(ruler.test, ruler.functions, f), undefined, undefined});
    }
}

Ruler make_ruler(GameSplit games, bool all_functions, uint64_t seed) {
    Ruler ruler;
    std::vector<uint32_t> functions, cells;
    for (uint32_t f = 0; f < n_board_functions; f++) {
        if (!board_functions[f].binary || !(board_functions[f].measured || all_functions)) continue;
        if (board_functions[f].strategy) ruler.strategy.push_back(functions.size());
        if (f == board_function("piece_masked_blank_and_initial_state")) ruler.board = functions.size();
        functions.push_back(f);
        for (size_t c = 0; c < cells_of(board_functions[f]); c++)
            cells.push_back(uint32_t(first_cell(f) + c));
    }
    const size_t dots = games.train.dots;
    const Labels train = label_games(games.train, dots), test = label_games(games.test, dots);
    ruler.columns = label_rows(train, cells);
    ruler.functions = function_columns(ruler.columns, functions);
    ruler.train = truth_rows(train, dots, ruler.columns, ruler.functions);
    ruler.test = truth_rows(test, dots, ruler.columns, ruler.functions);
    for (const bool is_test : {false, true}) {
        const size_t n = (is_test ? games.test : games.train).size();
        ruler.permuted[is_test] = permuted_order(n, dots, seed + is_test);
        ruler.same_move[is_test] = same_move_order(n, dots, seed + is_test);
    }
    constexpr size_t common_dots = 20;
    for (const uint32_t cell : ruler.columns.cell) {
        bool common = true;
        for (const Labels* set : {&train, &test})
            common = common && set->positives(cell) >= common_dots &&
                     games_where(*set, cell, dots, true) >= least_games;
        ruler.common.push_back(common);
        ruler.in_test.push_back(test.positives(cell) > 0);
    }
    ruler.strata = chess_strata(games.test, {dots, false});
    ruler.seen = seen_places(games, {dots, false});
    ruler.games = std::move(games);
    add_text_rival(ruler, train);
    return ruler;
}
