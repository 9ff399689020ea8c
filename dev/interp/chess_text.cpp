// What the text of a game says aloud: see chess_text.h.
#include "chess_text.h"
#include <array>

WrittenMove read_written_move(std::string san, bool white) {
    WrittenMove m;
    const size_t dot = san.find('.');
    if (dot != std::string::npos) san.erase(0, dot + 1);
    while (!san.empty() && (san.back() == '+' || san.back() == '#')) {
        m.check = true;
        san.pop_back();
    }
    constexpr size_t king = 5, rook = 3;
    const size_t rank = white ? 0 : 56;
    if (san == "O-O" || san == "O-O-O") {
        m.castles = true;
        m.castles_long = san.size() > 3;
        m.landings = {{king, rank + (m.castles_long ? 2 : 6)}, {rook, rank + (m.castles_long ? 3 : 5)}};
        return m;
    }
    const std::string letters = "PNBRQK";
    size_t kind = san.empty() ? std::string::npos : letters.find(san[0]);
    m.capture = san.find('x') != std::string::npos;
    if (const size_t equals = san.find('='); equals != std::string::npos && equals + 1 < san.size()) {
        m.promotion = true;
        kind = letters.find(san[equals + 1]);
        san.resize(equals);
    }
    const size_t n = san.size();
    if (n >= 2 && san[n - 2] >= 'a' && san[n - 2] <= 'h' && san[n - 1] >= '1' && san[n - 1] <= '8')
        m.landings = {
            {kind == std::string::npos ? 0 : kind, size_t(8 * (san[n - 1] - '1') + san[n - 2] - 'a')}};
    return m;
}

std::vector<size_t> boundary_characters(const std::string& text, const Boundaries& b) {
    std::vector<size_t> places;
    for (const size_t dot : dots_of(text, b.dots)) {
        if (b.both && !places.empty()) places.push_back(text.find(' ', places.back()));
        places.push_back(dot);
    }
    return places;
}

std::vector<std::string> words_of(const std::string& text) {
    std::vector<std::string> words;
    for (size_t at = text.find(';') == 0 ? 1 : 0; at < text.size();) {
        const size_t end = std::min(text.find(' ', at), text.size());
        words.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return words;
}

ChessQuestions chess_questions(const GameSet& games, const Boundaries& where) {
    static constexpr const char* kinds[] = {"pawn", "knight", "bishop", "rook", "queen", "king"};
    static constexpr const char* slots[] = {"White's last move",
                                            "Black's last move",
                                            "White's last move but one",
                                            "Black's last move but one",
                                            "the last move of the side to move",
                                            "the last move of the other side"};
    ChessQuestions q;
    q.where = where;
    const auto add = [&](const char* function, const std::string& words, const std::string& negated) {
        q.list.push_back({function, {words, negated}});
    };
    const auto name = [](size_t s) { return std::string(chess::square_name(int(s))); };
    const auto moved = [](const char* kind) { return std::string(kind) + " move"; };
    for (size_t i = 0; i < n_slots; i++) {
        q.slot[i] = q.list.size();
        const std::string a = slots[i];
        for (const char* k : kinds) add("last move", a + " was a " + moved(k), a + " was no " + moved(k));
        for (size_t s = 0; s < 64; s++)
            add("last move", a + " ended on " + name(s), a + " did not end on " + name(s));
        for (const char* k : kinds)
            for (size_t s = 0; s < 64; s++)
                add("last move", a + " put a " + k + " on " + name(s), a + " put no " + k + " on " + name(s));
        static constexpr const char* marks[][2] = {
            {" was a capture", " was no capture"},
            {" gave check", " gave no check"},
            {" promoted a pawn", " promoted no pawn"},
            {" was castling", " was not castling"},
            {" was castling queenside", " was not castling queenside"}};
        for (const auto& m : marks) add("last move", a + m[0], a + m[1]);
    }
    for (size_t side = 0; side < (where.both ? 4 : 2); side++) {
        static constexpr const char* sides[] = {"White", "Black", "the side to move", "the other side"};
        q.so_far[side] = q.list.size();
        const std::string a = sides[side];
        for (const char* k : kinds)
            add("written so far", a + " has written a " + moved(k), a + " has written no " + moved(k));
        for (size_t s = 0; s < 64; s++)
            add("written so far", a + " has written a move to " + name(s),
                a + " has written no move to " + name(s));
        for (const char* k : kinds)
            for (size_t s = 0; s < 64; s++)
                add("written so far", a + " has written a " + moved(k) + " to " + name(s),
                    a + " has written no " + moved(k) + " to " + name(s));
        static constexpr const char* marks[][2] = {{" has captured", " has not captured"},
                                                   {" has given check", " has not given check"},
                                                   {" has promoted a pawn", " has promoted no pawn"},
                                                   {" has castled", " has not castled"},
                                                   {" has castled queenside", " has not castled queenside"}};
        for (const auto& m : marks) add("written so far", a + m[0], a + m[1]);
        for (size_t n = 1; n <= side_captures; n++)
            add("written so far", a + strf(" has written x %zu times or more", n),
                a + strf(" has written x fewer than %zu times", n));
        for (size_t s = 0; s < 64; s++)
            add("written so far", a + " has captured on " + name(s), a + " has not captured on " + name(s));
    }
    q.square = q.list.size();
    const auto last_to = [&](size_t s, const std::string& who) {
        add("last to a square", "the last move to " + name(s) + " was " + who,
            "the last move to " + name(s) + " was not " + who);
    };
    for (size_t side = 0; side < 2; side++)
        for (const char* k : kinds)
            for (size_t s = 0; s < 64; s++)
                last_to(s, std::string(side ? "a black " : "a white ") + k + "'s");
    for (size_t side = 0; side < 2; side++)
        for (size_t s = 0; s < 64; s++) last_to(s, side ? "Black's" : "White's");
    for (size_t s = 0; s < 64; s++)
        add("last to a square", "a move has ended on " + name(s), "no move has ended on " + name(s));
    q.own_square = q.list.size();
    for (size_t other = 0; other < 2 && where.both; other++)
        for (const char* k : kinds)
            for (size_t s = 0; s < 64; s++)
                last_to(s, std::string(other ? "the other side's " : "the side to move's own ") + k);
    q.captures = q.list.size();
    for (size_t n = 1; n <= most_captures; n++)
        add("clock", strf("%zu captures or more have been written", n),
            strf("fewer than %zu captures have been written", n));
    q.move = q.list.size();
    for (size_t n = 2; n <= where.dots; n++)
        add("clock", strf("it is move %zu or later", n), strf("it is not yet move %zu", n));

    std::vector<size_t> characters;
    std::map<std::string, size_t> seen;
    for (const std::string& text : games.texts)
        for (const size_t at : boundary_characters(text, where)) {
            characters.push_back(at);
            for (size_t length = 2; length <= std::min<size_t>(4, at + 1); length++)
                seen[text.substr(at + 1 - length, length)]++;
        }
    std::sort(characters.begin(), characters.end());
    for (size_t i = 1; i < n_clock_steps; i++)
        if (const size_t at = characters[i * (characters.size() - 1) / n_clock_steps];
            q.steps.empty() || at > q.steps.back())
            q.steps.push_back(at);
    q.characters = q.list.size();
    for (const size_t at : q.steps)
        add("clock", strf("%zu characters or more have been written", at),
            strf("fewer than %zu characters have been written", at));
    q.turn = q.list.size();
    add("clock", "it is Black's turn", "it is White's turn");
    q.ending = q.list.size();
    std::vector<std::pair<size_t, std::string>> order;
    for (const auto& [text, n] : seen)
        if (n >= least_places) order.push_back({characters.size() - n, text});
    std::sort(order.begin(), order.end());
    order.resize(std::min(order.size(), n_endings));
    for (const auto& [rest, text] : order) {
        q.endings[text] = q.list.size();
        add("ending", "the text ends in '" + text + "'", "the text does not end in '" + text + "'");
    }
    return q;
}

// What a game has written up to some ply.
struct TextSoFar {
    std::vector<WrittenMove> moves;                 // of both sides in turn
    std::vector<uint8_t> so_far[2], captured_on[2]; // as in the list, up to the marks; (64)
    int last_kind[64];                              // side * 6 + kind; -1: nobody
    size_t captures[2] = {};

    TextSoFar() {
        for (size_t side = 0; side < 2; side++) {
            so_far[side].assign(slot_size, 0);
            captured_on[side].assign(64, 0);
        }
        std::fill(std::begin(last_kind), std::end(last_kind), -1);
    }

    void add(const std::string& word) {
        const size_t side = moves.size() % 2;
        const WrittenMove m = read_written_move(word, side == 0);
        for (const auto& [kind, square] : m.landings) {
            so_far[side][kind] = 1;
            so_far[side][slot_square + square] = 1;
            so_far[side][slot_both + kind * 64 + square] = 1;
            last_kind[square] = int(side * n_kinds + kind);
            if (m.capture) captured_on[side][square] = 1;
        }
        const auto marks = marks_of(m);
        for (size_t k = 0; k < n_marks; k++) so_far[side][slot_marks + k] |= marks[k];
        captures[side] += m.capture;
        moves.push_back(m);
    }
    static std::array<bool, n_marks> marks_of(const WrittenMove& m) {
        return {m.capture, m.check, m.promotion, m.castles, m.castles_long};
    }
};

// The answers at one place.
struct TextAnswers {
    const ChessQuestions& q;
    const TextSoFar& text;
    Labels& labels;
    size_t n; // the place

    size_t ply() const { return text.moves.size(); }
    size_t side() const { return ply() % 2; }
    void set(size_t question) { labels.set(question, n); }
    // Those of questions that ask for at least 1, 2, .. of something.
    void set_steps(size_t first, size_t reached, size_t most) {
        for (size_t k = 0; k < std::min(reached, most); k++) set(first + k);
    }

    void last_move(MoveSlot slot, size_t back) { // the move `back` plies ago
        if (back > ply()) return;
        const WrittenMove& m = text.moves[ply() - back];
        const size_t first = q.slot[slot];
        for (const auto& [kind, square] : m.landings) {
            set(first + kind);
            set(first + slot_square + square);
            set(first + slot_both + kind * 64 + square);
        }
        const auto marks = TextSoFar::marks_of(m);
        for (size_t k = 0; k < n_marks; k++)
            if (marks[k]) set(first + slot_marks + k);
    }
    void last_moves() {
        const size_t white = side() == 0 ? 2 : 1, black = 3 - white; // plies back to their last moves
        last_move(WHITE_LAST, white);
        last_move(WHITE_BEFORE, white + 2);
        last_move(BLACK_LAST, black);
        last_move(BLACK_BEFORE, black + 2);
        last_move(OTHER_LAST, 1);
        last_move(OWN_LAST, 2);
    }
    void written_so_far() {
        for (size_t who = 0; who < (q.where.both ? 4 : 2); who++) {
            const size_t s = who < 2 ? who : who == 2 ? side() : 1 - side();
            const size_t first = q.so_far[who], counts = first + slot_size;
            for (size_t k = 0; k < slot_size; k++)
                if (text.so_far[s][k]) set(first + k);
            set_steps(counts, text.captures[s], side_captures);
            for (size_t square = 0; square < 64; square++)
                if (text.captured_on[s][square]) set(counts + side_captures + square);
        }
    }
    void last_to_squares() {
        for (size_t square = 0; square < 64; square++) {
            if (text.last_kind[square] < 0) continue;
            const size_t by = size_t(text.last_kind[square]), of_side = by / n_kinds, kind = by % n_kinds;
            set(q.square + by * 64 + square);
            set(q.square + (2 * n_kinds + of_side) * 64 + square);
            set(q.square + (2 * n_kinds + 2) * 64 + square);
            if (q.where.both) set(q.own_square + ((of_side != side()) * n_kinds + kind) * 64 + square);
        }
    }
    void clocks(size_t character) {
        set_steps(q.captures, text.captures[0] + text.captures[1], most_captures);
        set_steps(q.move, ply() / 2, SIZE_MAX);
        for (size_t k = 0; k < q.steps.size(); k++)
            if (character >= q.steps[k]) set(q.characters + k);
        if (side() == 1) set(q.turn);
    }
    void ending(const std::string& game, size_t character) {
        for (size_t length = 2; length <= std::min<size_t>(4, character + 1); length++) {
            const auto known = q.endings.find(game.substr(character + 1 - length, length));
            if (known != q.endings.end()) set(known->second);
        }
    }
};

Labels label_chess_text(const GameSet& games, const ChessQuestions& q) {
    const size_t per_game = q.where.per_game();
    Labels labels = empty_labels(q.list.size(), games.size() * per_game);
    each_labelled_game("questions about the text", games.size(), per_game, [&](size_t g) {
        const std::string& game = games.texts[g];
        const std::vector<std::string> words = words_of(game);
        const std::vector<size_t> characters = boundary_characters(game, q.where);
        TextSoFar text;
        for (size_t place = 0; place < per_game; place++) {
            while (text.moves.size() < q.where.ply(place)) text.add(words[text.moves.size()]);
            TextAnswers answers{q, text, labels, g * per_game + place};
            answers.last_moves();
            answers.written_so_far();
            answers.last_to_squares();
            answers.clocks(characters[place]);
            answers.ending(game, characters[place]);
        }
    });
    return labels;
}

std::vector<uint32_t> natural_questions(const ChessQuestions& q, size_t side, size_t kind, size_t square) {
    static constexpr MoveSlot last[] = {WHITE_LAST, BLACK_LAST, OWN_LAST, OTHER_LAST};
    const bool absolute = side < 2;
    std::vector<size_t> list;
    if (kind < n_kinds) {
        const size_t both = slot_both + kind * 64 + square;
        list.push_back((absolute ? q.square + (side * n_kinds + kind) * 64
                                 : q.own_square + ((side - 2) * n_kinds + kind) * 64) +
                       square);
        list.push_back(q.slot[last[side]] + both);
        list.push_back(q.so_far[side] + both);
        if (absolute) list.push_back(q.slot[side ? BLACK_BEFORE : WHITE_BEFORE] + both);
    }
    if (absolute) list.push_back(q.square + (2 * n_kinds + side) * 64 + square);
    list.push_back(q.slot[last[side]] + slot_square + square);
    list.push_back(q.so_far[side] + slot_square + square);
    list.push_back(q.square + (2 * n_kinds + 2) * 64 + square);
    return {list.begin(), list.end()};
}
