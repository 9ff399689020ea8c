// The concepts of games of chess: see concepts.h.
#include "concepts.h"

constexpr size_t squares_asked = 4; // cells of each function about squares

// Board functions at the dots: the single answers, and of squares the cells nearest to one half on train.
static void label_dots(Concepts& out, const GameSet& games) {
    const Labels cells = label_games(games, games.dots);
    std::vector<uint32_t> dots; // token of every place
    for (size_t g = 0; g < games.size(); g++)
        for (const size_t at : dots_of(games.texts[g], games.dots)) {
            dots.push_back(uint32_t(g * out.rows.T + at));
            out.dot[dots.back()] = 1;
        }
    const auto add = [&](size_t f, size_t cell, const std::string& words) {
        out.list.push_back({f == SIZE_MAX ? "board" : "squares", words, true});
        out.labels.bits.resize(out.list.size() * out.labels.words);
        for (size_t n = 0; n < dots.size(); n++)
            if (cells.at(cell, n)) out.labels.set(out.list.size() - 1, dots[n]);
    };
    for (size_t f = 0; f < n_board_functions; f++) {
        const BoardFunction& function = board_functions[f];
        const size_t first = first_cell(f), count = cells_of(function);
        if (count == 1) add(SIZE_MAX, first, function.name);
        if (count <= 1 || !function.binary || !function.measured) continue;
        std::vector<std::pair<double, size_t>> order; // how far from one half
        for (size_t cell = 0; cell < count; cell++) {
            size_t yes = 0, all = 0;
            for (size_t n = 0; n < dots.size(); n++) {
                if (out.part[dots[n] / out.rows.T] != TRAIN) continue;
                yes += cells.at(first + cell, n);
                all++;
            }
            order.push_back({std::fabs(double(yes) / double(std::max<size_t>(all, 1)) - 0.5), cell});
        }
        std::sort(order.begin(), order.end());
        for (size_t i = 0; i < std::min(squares_asked, order.size()); i++) {
            const size_t cell = order[i].second, square = cell / function.classes;
            add(f, first + cell,
                strf("%s: %s", function.name,
                     cell_text(f, square / function.columns, square % function.columns,
                               cell % function.classes)
                         .c_str()));
        }
    }
}

// What a character is, and of what move, from the text alone. A move's word is what stands between the dot
// or a space and the next space; what it captures or checks is known of all of its characters.
static void label_characters(Concepts& out) {
    const std::vector<std::pair<const char*, std::string>> classes = {
        {"a piece letter", "NBRQK"}, {"a file", "abcdefgh"}, {"x", "x"},     {"+ or #", "+#"},
        {"a digit", "0123456789"},   {"castling", "O-"},     {"a dot", "."}, {"a space", " "}};
    const size_t first = out.list.size();
    for (const auto& [name, characters] : classes) out.list.push_back({"character", name});
    enum {
        RANK,
        NUMBER,
        FIRST,
        SECOND,
        THIRD,
        BLACK,
        CAPTURES,
        CHECKS,
        PROMOTES,
        PAWN,
        PLY_20,
        PLY_50,
        count
    };
    const char* names[] = {"a rank",         "of a move's number", "a move's first",   "a move's second",
                           "a move's third", "of Black's move",    "of a capture",     "of a check",
                           "of a promotion", "of a pawn's move",   "20 plies or more", "50 plies or more"};
    static_assert(std::size(names) == count);
    const size_t second = out.list.size();
    for (size_t i = 0; i < count; i++)
        out.list.push_back({i <= NUMBER ? "character" : i <= THIRD ? "place in the move" : "move", names[i]});
    out.labels.bits.resize(out.list.size() * out.labels.words);
    const size_t T = out.rows.T;
    for (size_t d = 0; d < out.documents(); d++) {
        std::string text;
        for (size_t t = 0; t < T; t++) text += chess_char(out.rows.tokens[d * T + t]);
        size_t plies = 0; // whole moves behind
        for (size_t t = 0; t < T; t++) {
            const size_t n = d * T + t;
            const char c = text[t];
            for (size_t i = 0; i < classes.size(); i++)
                if (classes[i].second.find(c) != std::string::npos) out.labels.set(first + i, n);
            const auto set = [&](size_t i, bool holds) {
                if (holds) out.labels.set(second + i, n);
            };
            set(PLY_20, plies >= 20);
            set(PLY_50, plies >= 50);
            plies += c == ' ';
            if (c == ' ' || c == ';' || c == '.') continue;
            const size_t space = text.find_last_of(" ;", t), dot = text.find('.', t);
            const size_t end = std::min(text.find(' ', t), T);
            const bool number = dot < end;
            set(NUMBER, number);
            if (number) continue;
            const size_t behind = text.find_last_of(" ;.", t);
            const size_t begin = behind == std::string::npos ? 0 : behind + 1;
            const std::string word = text.substr(begin, end - begin);
            set(RANK, c >= '1' && c <= '8');
            set(FIRST, t == begin);
            set(SECOND, t == begin + 1);
            set(THIRD, t == begin + 2);
            set(BLACK, space != std::string::npos && text[begin ? begin - 1 : 0] != '.');
            set(CAPTURES, word.find('x') != std::string::npos);
            set(CHECKS, word.find_first_of("+#") != std::string::npos);
            set(PROMOTES, word.find('=') != std::string::npos);
            set(PAWN, word[0] >= 'a' && word[0] <= 'h');
        }
    }
}

void label_chess_concepts(Concepts& out, const GameSet& games) {
    out.labels = empty_labels(0, out.rows.size());
    out.dot.assign(out.rows.size(), 0);
    label_dots(out, games);
    label_characters(out);
}
