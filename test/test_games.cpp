// The games that dev/interp measures on (games.h): the three kinds of file, what is left out, and the split.
// Makes its inputs in a temporary folder and removes it.
#include "../dev/interp/games.h"
#include "check.h"
#include <filesystem>

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
          as_shard("rows.bin", games, 300), as_shard("short.bin", games, 257), folder + "/ro*.bin"}) {
        const GameSet set = read_games(path, 256, 20, 1000);
        check(set.texts == expected, "%s: %zu games", path.c_str(), set.size());
        check(set.read == games.size() && set.shorter == games.size() - expected.size(), "%s: %zu read, %zu shorter", path.c_str(), set.read, set.shorter);
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
                "none of its 1 games");
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
        test_formats();
        test_unfit();
        test_split();
        test_errors();
        return finish();
    });
    std::filesystem::remove_all(folder);
    return status;
}
