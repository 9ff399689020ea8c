// Games in files: the one reader of PGN, game text and tables (data/game_file.h), the filter by tags
// (data/game_filter.h), and the games that dev/interp measures on (dev/interp/games.h), with what is left out
// and the split. Makes its inputs in a temporary folder and removes it.
#include "../data/game_filter.h"
#include "../dev/interp/games.h"
#include "check.h"
#include <filesystem>
#include <map>

static std::string folder;

static std::string written(const std::string& name, const std::string& bytes) {
    const std::string path = folder + "/" + name;
    FILE* file = fopen(path.c_str(), "wb");
    if (!file || fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || fclose(file) != 0)
        fail("%s: cannot be written", path.c_str());
    return path;
}

// A game of random moves, as game text.
static std::string random_game(uint64_t seed, size_t plies) {
    chess::Position p = chess::start_position();
    std::vector<chess::Move> moves;
    while (moves.size() < plies) {
        const chess::MoveList legal = chess::legal_moves(p);
        if (legal.size == 0) break;
        moves.push_back(legal.moves[random_u64(seed, 1, moves.size()) % legal.size]);
        chess::make(p, moves.back());
    }
    return chess::to_game_text(moves);
}

static std::string as_pgn(const std::string& text) {
    return "[Event \"test\"]\n\n" + text.substr(1) + " *\n\n";
}

// The rows of a shard: each begins with a game; where a game ends the next begins.
static std::string as_shard(const std::string& name, const std::vector<std::string>& games, size_t row,
                            Tokenizer tokenizer = TOKENIZER_CHESS, bool stream = false) {
    const std::string path = folder + "/" + name;
    ShardWriter writer(path, tokenizer, stream ? 0 : row);
    for (std::string text : games) {
        while (text.size() < row) text += ";1.e4 e5";
        std::vector<uint16_t> ids;
        for (size_t i = 0; i < row; i++) ids.push_back(uint16_t(chess_id(text[i])));
        writer.write(ids.data(), row);
    }
    writer.commit();
    return path;
}

// ---------------------------------------------------------------------------------------------------------
// data/game_file.h

struct ReadFile {
    std::string texts, format; // one per line
    chess::GameCounts counts;
    std::vector<chess::GameRecord> games;
};
static ReadFile read_text(const std::string& text, size_t chunk = 1 << 16) {
    const ByteSource pieces = [chunk, whole = source_of(text)](char* to, size_t n) {
        return whole(to, std::min(n, chunk));
    };
    chess::GameFile file(pieces, "games", "make_chess --pgn -");
    ReadFile out;
    for (chess::GameRecord game; file.next(game);) {
        check(chess::to_game_text(game.moves) == game.text, "%s", game.text.c_str());
        out.texts += game.text + "\n";
        out.games.push_back(game);
    }
    out.format = file.format;
    out.counts = file.counts();
    return out;
}

static void test_tables() {
    const std::string two = ";1.e4 e5 2.Nf3\n;1.d4 d5\n", mark = "\xEF\xBB\xBF";
    const struct {
        std::string text;
        const char* format;
    } same[] = {
        {two, "game text"},
        {mark + two, "game text"},
        {"\n\r\n  \n;1.e4 e5 2.Nf3\r\n\r\n;1.d4 d5", "game text"},
        {";1.e4 e5 2.Nf3;1.d4 d5\n", "game text"},
        {";1. e4 e5 2. Nf3 1-0\n;1.d4! d5 ½-½\n", "game text"},
        {"transcript\n" + two, "table"},
        {mark + "Transcript\r\n\r\n;1.e4 e5 2.Nf3\r\n;1.d4 d5\r\n", "table"},
        {"id,transcript\n1,\";1.e4 e5 2.Nf3\"\n2,;1.d4 d5\n", "table"},
        {",transcript,WhiteElo\n0,1.e4 e5 2.Nf3,1500\n1,1.d4 d5,\n", "table"},
        {"a\ttranscript\n\"x\ty\"\t;1.e4 e5 2.Nf3\n\t;1.d4 d5\n", "table"},
        {"name;moves\n\"A; \"\"B\"\"\";1.e4 e5 2.Nf3\nC;e4x\n", "table"}, // the second is no game
        {"games\n" + two, "table"},                                       // no known name: the games are seen
        {"7,;1.e4 e5 2.Nf3\n8,;1.d4 d5\n", "table"},                      // no header
        {"moves,note\n\"1.e4 e5\n2.Nf3\",\"a\nb\"\n1.d4 d5,\n", "table"}, // lines within quotes
        {"1. e4 e5 2. Nf3 *\n1. d4 d5 *\n", "PGN"},
    };
    for (const auto& s : same)
        for (size_t chunk : {1 << 16, 1, 3}) {
            const ReadFile r = read_text(s.text, chunk);
            const bool one = s.text.find("e4x") != std::string::npos;
            check(r.format == s.format && r.texts == (one ? ";1.e4 e5 2.Nf3\n" : two), "%s: %s %s",
                  s.text.c_str(), r.format.c_str(), r.texts.c_str());
            check(r.counts.dropped() == one);
        }
    const ReadFile tags = read_text("white_elo,Result,transcript\n1812,0-1,;1.e4\n");
    check(tags.games.size() == 1 && tags.games[0].tags.find("whiteelo") == "1812" &&
          tags.games[0].tags.find("result") == "0-1");

    // A row that is cut anywhere: its last game counts only when its last move is whole. Nothing is kept that
    // was not played, nor anything else lost.
    const std::string row = ";1.e4 e5 2.Nf3 Nc6 3.Bb5;1.d4 Nf6 2.c4";
    for (size_t n = 1; n <= row.size(); n++) {
        const std::string part = row.substr(0, n);
        const ReadFile r = read_text(part + "\n;1.c4\n");
        const bool whole = part.ends_with("e4") || part.ends_with("e5") || part.ends_with("Nf3") ||
                           part.ends_with("Nc6") || part.ends_with("Bb5") || part.ends_with("d4") ||
                           part.ends_with("Nf6") || part.ends_with("c4") || part.back() == ' ';
        check(r.texts.ends_with(";1.c4\n"), "%s", part.c_str());
        const std::string last = part.substr(part.rfind(';')), first = r.texts.substr(0, r.texts.size() - 6);
        const std::string expected =
            (last == part || last.size() == n ? "" : ";1.e4 e5 2.Nf3 Nc6 3.Bb5\n") +
            (whole && last.size() > 3 ? last.substr(0, last.find_last_not_of(' ') + 1) + "\n" : "");
        check(n < 3 || first == expected, "%s -> %s", part.c_str(), first.c_str());
        check(n < 3 || whole || r.counts.of[chess::CUT] == 1 || last.size() <= 1, "%s", part.c_str());
    }
    const std::string castled = ";1.e4 e5 2.Nf3 Nc6 3.Bc4 Bc5 4.Qe2 d6 5.d3 Bg4 6.Nc3 Nf6 7.Be3 Qd7 8.h3 O-O";
    check(read_text(castled).games.size() == 1 && read_text(castled + ";1.e4").games.size() == 2);
    check(read_text(";1.e4" + castled).games.size() == 1, "O-O at the end of a row may have been O-O-O");
    const ReadFile bad = read_text(
        "transcript\n;1.e4 e5 2.Ke3 Nc6\n;1.e4 e5 3.Nf3 d6\n;1.e4 0000 2.d4\n\";1.e4 e5\n;1.c4 c5\n");
    check(bad.texts.empty() && bad.counts.example[chess::ILLEGAL] == "line 2, 2. 'Ke3'" &&
              bad.counts.of[chess::NUMBERS] == 1 && bad.counts.of[chess::NULL_MOVE] == 1 &&
              bad.counts.example[chess::CUT] == "line 5, a quote without end",
          "%s", bad.counts.example[chess::CUT].c_str());

    // A published table's columns by any other name are not guessed at: the file is not PGN either.
    chess::GameFile file(source_of("a,b\n1,2\n"), "x.csv", "");
    chess::GameRecord game;
    check(!file.next(game));
    check_error(file.fail_if_none(), "x.csv", "not PGN");
}

// What is no text is named with the command that helps.
static void test_foreign_files() {
    const struct {
        std::string bytes;
        const char *what, *command;
    } cases[] = {
        {std::string("\x28\xB5\x2F\xFD\x04\0\0\0", 8), "compressed with zstd",
         "zstdcat games | make_chess --pgn -"},
        {std::string("\x50\x2A\x4D\x18\x04\0\0\0", 8), "compressed with zstd",
         "zstdcat"}, // a frame to skip comes first
        {"\x1F\x8B\x08 more", "compressed with gzip", "zcat games"},
        {"BZh91AY&SY", "compressed with bzip2", "bzcat"},
        {std::string("\xFD"
                     "7zXZ\0\0",
                     7),
         "compressed with xz", "xzcat"},
        {"PK\x03\x04 more", "a zip archive", "unzip -p"},
        {"7z\xBC\xAF\x27\x1C", "7z archive", "7z x -so"},
        {std::string(257, 'x') + "ustar", "a tar archive", "tar -xOf"},
        {std::string("\xFF\xFE[\0E\0", 6), "UTF-16", "iconv -f UTF-16"},
        {std::string("[\0E\0v\0", 6), "UTF-16", "iconv -f UTF-16LE"},
        {std::string("\0[\0E\0v", 6), "UTF-16", "iconv -f UTF-16BE"},
        {std::string("\xFF\xFE\0\0[\0\0\0", 8), "UTF-32", "iconv -f UTF-32"},
        {"PAR1....", "a Parquet table", ""},
        {"<!DOCTYPE html>", "a web page", ""},
        {"version https://git-lfs.github.com/spec/v1", "git lfs pull", ""},
    };
    for (const auto& c : cases) check_error(read_text(c.bytes), "games: ", c.what, c.command);
    check(!foreign_file("[Event \"x\"]").what && !foreign_file(";1.e4").what && !foreign_file("1. e4").what &&
          !foreign_file("").what);
    check(!foreign_file(std::string(8, '\0')).what);
}

static void test_filter() {
    using chess::GameFilter;
    const auto tags = [](const std::vector<std::pair<std::string, std::string>>& list) {
        chess::Tags t;
        t.list = list;
        return t;
    };
    const chess::Tags blitz = tags({{"whiteelo", "1812"},
                                    {"blackelo", "1650"},
                                    {"timecontrol", "180+2"},
                                    {"termination", "Normal"},
                                    {"event", "Rated Blitz game"},
                                    {"date", "????.??.??"},
                                    {"utcdate", "2017.03.31"}}),
                      bare = tags({{"event", "?"}}), bot = tags({{"whitetitle", "BOT"}});
    const auto wanted = [](GameFilter filter, const chess::Tags& t) {
        filter.validate();
        const bool yes = filter.wanted(t);
        check(filter.any() && filter.left_out() == !yes);
        return yes;
    };
    const auto with = [](auto set) {
        GameFilter filter;
        set(filter);
        return filter;
    };
    const struct {
        GameFilter filter;
        bool blitz, bare;
    } rules[] = {
        {with([](GameFilter& f) { f.min_elo = 1650; }), true, false},
        {with([](GameFilter& f) { f.min_elo = 1651; }), false, false},
        {with([](GameFilter& f) { f.max_elo = 1812; }), true, false},
        {with([](GameFilter& f) { f.max_elo = 1811; }), false, false},
        {with([](GameFilter& f) { f.time_control = "rapid, Blitz"; }), true, false},
        {with([](GameFilter& f) { f.time_control = "180+2"; }), true, false},
        {with([](GameFilter& f) { f.time_control = "bullet,180+0"; }), false, false},
        {with([](GameFilter& f) { f.termination = "normal"; }), true, false},
        {with([](GameFilter& f) { f.termination = "time forfeit,abandoned"; }), false, false},
        {with([](GameFilter& f) { f.event = "rated"; }), true, false},
        {with([](GameFilter& f) { f.event = "swiss"; }), false, false},
        {with([](GameFilter& f) { f.since = "2017", f.until = "2017.03"; }), true, false},
        {with([](GameFilter& f) { f.since = "2017.04"; }), false, false},
        {with([](GameFilter& f) { f.until = "2017-03-30"; }), false, false},
        {with([](GameFilter& f) { f.no_bots = true; }), true, true},
    };
    for (const auto& r : rules) check(wanted(r.filter, blitz) == r.blitz && wanted(r.filter, bare) == r.bare);
    check(!wanted(with([](GameFilter& f) { f.no_bots = true; }), bot));
    GameFilter count = with([](GameFilter& f) { f.min_elo = 2000; });
    count.wanted(blitz);
    count.wanted(bare);
    count.wanted(bare);
    check(count.summary() == "1 by --min-elo, 2 by --min-elo, without ratings", "%s",
          count.summary().c_str());

    chess::GameRecord game;
    game.result = "*";
    game.moves.resize(10);
    game.tags.add("result", "½-½");
    GameFilter drawn = with([](GameFilter& f) { f.result = "1/2-1/2"; });
    game.tags.list[0].second = "1/2-1/2";
    check(drawn.keeps(game)); // the tag, where the moves end without one
    game.result = "1-0";
    check(!drawn.keeps(game));
    GameFilter longer = with([](GameFilter& f) { f.min_plies = 10; });
    check(longer.keeps(game));
    game.moves.pop_back();
    check(!longer.keeps(game));
    check_error(with([](GameFilter& f) { f.since = "2017-3"; }).validate(), "--since", "YYYY.MM");
    check_error(with([](GameFilter& f) { f.result = "win"; }).validate(), "--result", "'win'");
    check_error(with([](GameFilter& f) { f.min_elo = 2000, f.max_elo = 1000; }).validate(), "--max-elo");

    for (const auto& [control, speed] :
         std::vector<std::pair<std::string, std::string>>{{"15+0", "ultrabullet"},
                                                          {"60", "bullet"},
                                                          {"180+2", "blitz"},
                                                          {"600+0", "rapid"},
                                                          {"40/7200:3600", "classical"},
                                                          {"1/86400", "correspondence"},
                                                          {"?", "unknown"},
                                                          {"*180", "unknown"}})
        check(chess::speed_name(chess::expected_seconds(control)) == speed, "%s", control.c_str());
}

// ---------------------------------------------------------------------------------------------------------
// dev/interp/games.h

static void test_formats() {
    std::vector<std::string> games, expected;
    for (uint64_t seed = 0; seed < 12; seed++) games.push_back(random_game(seed, seed == 3 ? 30 : 120));
    for (const std::string& g : games)
        if (g.size() >= 256 && dots_of(g.substr(0, 256), 20).size() == 20)
            expected.push_back(g.substr(0, 256));
    check(expected.size() >= 8 && expected.size() < games.size(), "%zu", expected.size());

    std::string lines, windows, pgn;
    for (const std::string& g : games) lines += g + "\n", windows += g + "\r\n\r\n", pgn += as_pgn(g);
    windows.erase(windows.size() - 4); // the last line has no end
    for (const std::string& path :
         {written("lines.txt", lines), written("windows.txt", windows), written("games.pgn", pgn),
          written(
              "table.csv", "id,transcript\n" +
                               [&] {
                                   std::string rows;
                                   for (const std::string& g : games) rows += "1,\"" + g + "\"\n";
                                   return rows;
                               }()),
          as_shard("rows.bin", games, 300), as_shard("short.bin", games, 257), folder + "/ro*.bin"}) {
        const GameSet set = read_games(path, 256, 20, 1000);
        check(set.texts == expected, "%s: %zu games", path.c_str(), set.size());
        check(set.read == games.size() && set.shorter == games.size() - expected.size(),
              "%s: %zu read, %zu shorter", path.c_str(), set.read, set.shorter);
        check(set.illegal == 0 && set.repeated == 0 && set.characters == 256 && set.dots == 20);
        check(read_games(path, 256, 20, 2).texts ==
              std::vector<std::string>(expected.begin(), expected.begin() + 2));
    }
    check(read_games(written("a.txt", games[0]), 4, 1, 9).texts[0] == games[0].substr(0, 4));
    check(dots_of(games[0], 3) ==
          std::vector<size_t>({2, games[0].find(".", 3), games[0].find(".", games[0].find(".", 3) + 1)}));
}

// What is left out is counted under its reason; a cut last move and what comes after the last dot may be
// wrong.
static void test_unfit() {
    const std::string good = random_game(1, 120).substr(0, 256);
    const size_t last = dots_of(good, 20).back();
    std::string illegal = good, late = random_game(2, 120).substr(0, 256);
    illegal[6] = 'z'; // in the first moves
    for (size_t i = dots_of(late, 20).back() + 1; i < late.size(); i++) late[i] = 'x';
    const std::string path = written("mixed.txt", good + "\n" + good + "\n" + illegal + "\n" + late + "\n" +
                                                      good.substr(0, 255) + "\n");
    const GameSet set = read_games(path, 256, 20, 1000);
    check(set.texts == std::vector<std::string>({good, late}));
    check(set.read == 5 && set.repeated == 1 && set.illegal == 1 && set.shorter == 1);
    check(legal_up_to_dots(good, 20) && !legal_up_to_dots(illegal, 20) && last < 256);
    // A game is not gone on with behind the `;` of the next.
    const std::string two = good.substr(0, 200) + ";" + good.substr(1);
    check_error(read_games(written("two.txt", two.substr(0, 256)), 256, 20, 9), "two.txt",
                "none of its 2 games");
}

static void test_split() {
    std::string lines, other;
    for (uint64_t seed = 0; seed < 41; seed++) {
        const std::string g = random_game(seed, 140);
        lines += g + "\n";
        if (seed % 2) other += g + "\n";
    }
    for (uint64_t seed = 100; seed < 110; seed++) other += random_game(seed, 140) + "\n";
    const std::string path = written("split.txt", lines), path_2 = written("other.txt", other);
    const GameSplit one = split_games(path, "", 200, 10, 1000), few = split_games(path, "", 200, 10, 5);
    check(one.train.size() == one.test.size() && one.train.size() >= 15);
    check(few.train.size() == 5 && few.test.size() == 5 && few.train.texts[1] == one.train.texts[1]);
    const GameSplit both = split_games(path, path_2, 200, 10, 1000);
    check(both.test.size() >= 8 && both.test.size() <= 10, "%zu", both.test.size());
    for (const GameSplit& s : {one, few, both})
        for (const std::string& text : s.test.texts)
            check(std::find(s.train.texts.begin(), s.train.texts.end(), text) == s.train.texts.end());
    check((one.test.block.back() + 1 == one.test.size()) &&
          one.train.texts[0] == read_games(path, 200, 10, 1).texts[0]);

    // Games of one event stay together, whatever their number; of a file that names one event for all of them
    // every hundredth part does.
    std::string rows = "Event,transcript\n";
    std::map<std::string, std::string> event_of;
    for (size_t i = 0; i < 260; i++) {
        const std::string game = random_game(1000 + i, 140), event = strf("event %zu", i / 3);
        rows += event + ",\"" + game + "\"\n";
        event_of[game.substr(0, 200)] = event;
    }
    const std::string sorted = written("sorted.csv", rows);
    const GameSet all = read_games(sorted, 200, 10, 1000);
    const GameSplit dealt = split_games(sorted, "", 200, 10, 1000);
    check(all.size() > 200 && all.block.size() == all.size() && all.block.back() + 1 < all.size());
    for (size_t i = 1; i < all.size(); i++) {
        const bool same = all.block[i] == all.block[i - 1];
        check(!same || event_of[all.texts[i]] == event_of[all.texts[i - 1]]);
        const auto is_test = [&](size_t game) {
            const std::vector<std::string>& texts = dealt.test.texts;
            return std::find(texts.begin(), texts.end(), all.texts[game]) != texts.end();
        };
        check(!same || is_test(i) == is_test(i - 1));
    }
    for (const GameSet* set : {&dealt.train, &dealt.test})
        for (size_t i = 1; i < set->size(); i++)
            check((set->block[i] == set->block[i - 1]) <=
                  (event_of[set->texts[i]] == event_of[set->texts[i - 1]]));
    std::vector<std::string> names;
    for (size_t i = 0; i < 1000; i++)
        names.push_back(i < 500 ? strf("event %zu", i / 4) : i < 900 ? "club" : "?");
    const std::vector<uint32_t> blocks = blocks_of_events(names);
    check(blocks[0] == 0 && blocks[3] == 0 && blocks[4] == 1 && blocks[499] == 124 && blocks[500] == 125 &&
          blocks[509] == 125 && blocks[510] == 126 && blocks[899] == 164 && blocks[901] == 166);
    check_error(split_games(path, path, 200, 10, 1000), "split.txt", "every one of its games");
    check_error(split_games(written("lone.txt", random_game(1, 140)), "", 200, 10, 9), "lone.txt",
                "1 fit game");
}

static void test_errors() {
    check_error(read_games(folder + "/absent", 256, 20, 9), "absent", "matches no file");
    check_error(read_games(written("nothing", ""), 256, 20, 9), "nothing", "empty");
    check_error(read_games(written("noise", std::string(5000, '\x01')), 256, 20, 9), "noise", "not PGN");
    check_error(read_games(written("short.pgn", as_pgn(";1.e4 e5")), 256, 20, 9), "short.pgn",
                "1 are shorter");
    const std::vector<std::string> games = {random_game(1, 120)};
    check_error(read_games(as_shard("bytes.bin", games, 300, TOKENIZER_BYTES), 256, 20, 9), "bytes.bin",
                "expected chess-32");
    check_error(read_games(as_shard("stream.bin", games, 300, TOKENIZER_CHESS, true), 256, 20, 9),
                "stream.bin", "expected rows");
    ShardWriter writer(folder + "/high.bin", TOKENIZER_CHESS, 300);
    const std::vector<uint16_t> ids(300, 32);
    writer.write(ids.data(), ids.size());
    writer.commit();
    check_error(read_games(folder + "/high.bin", 256, 20, 9), "high.bin", "token 0 is 32");
}

int main() {
    char name[] = "/tmp/moex_games_XXXXXX";
    if (!mkdtemp(name)) return 1;
    folder = name;
    const int status = run_main([] {
        test_tables();
        test_foreign_files();
        test_filter();
        test_formats();
        test_unfit();
        test_split();
        test_errors();
        return finish();
    });
    std::filesystem::remove_all(folder);
    return status;
}
