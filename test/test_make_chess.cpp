// Tests of the program make_chess: shards checked token by token against the games they hold, the split,
// duplicates, filters, equal bytes for any number of threads, games from files and pipes, a UCI engine (this
// program itself plays it, well or badly), interrupts and errors on the way, and every message.
// Usage: test_make_chess [path of make_chess].
#include "../data/chess.h"
#include "../data/shard.h"
#include "../data/tokenizer.h"
#include "check.h"
#include <csignal>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>
#include <sys/wait.h>

static std::string program = "build/make_chess", self, folder;

// ---------------------------------------------------------------------------------------------------------
// An engine that plays the first legal move it finds, or does what `mode` says

static int play_engine(const std::string& mode) {
    size_t searches = 0;
    std::vector<chess::Move> moves;
    chess::Position p;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string word;
        words >> word;
        if (word == "uci" && mode == "mute") continue;
        if (word == "uci" && mode == "chatter") { // more than a reader can take in, so that bytes always wait
            std::string lines;
            while (lines.size() < 1 << 20) lines += "info string still thinking\n";
            for (;;) std::cout << lines << std::flush;
        }
        if (word == "uci" && mode == "endless") std::cout << std::string(100000, 'x') << std::flush;
        if (word == "uci") std::cout << "id name fake\r\noption name Hash type spin\nuciok" << std::endl;
        if (word == "isready") std::cout << "readyok" << std::endl;
        if (word == "quit" && mode != "stubborn") return 0;
        if (word == "position") {
            p = chess::start_position();
            words >> word >> word; // startpos moves
            while (words >> word) chess::make(p, chess::parse_san(p, word).move);
        }
        if (word != "go") continue;
        searches++;
        if (mode == "dies" && searches == 3) return 7;
        if (mode == "crashes" && searches == 3) raise(SIGKILL);
        if (mode == "sleeps" && searches == 3) continue;
        if (mode == "tires" && searches == 100) return 7;
        if (mode == "interrupts" && searches == 100) { // as if the user did, while it thinks
            kill(getppid(), SIGINT);
            continue;
        }
        const chess::MoveList legal = chess::legal_moves(p);
        const chess::Move m = legal.moves[mode == "last" ? legal.size - 1 : 0];
        std::cout << "info depth 1 score cp 3\nbestmove "
                  << (mode == "cheats" && searches == 3 ? "e2e5"
                      : mode == "resigns"               ? "(none)"
                                                        : chess::to_uci(m))
                  << " ponder e7e5" << std::endl;
    }
    return mode == "stubborn" ? (pause(), 0) : 0;
}

// UCI engines take no arguments: a script that starts this program in the right mode.
static std::string engine(const std::string& mode) {
    const std::string path = folder + "/engine_" + mode;
    std::ofstream(path) << "#!/bin/sh\nexec '" << self << "' engine " << mode << "\n";
    chmod(path.c_str(), 0755);
    return path;
}

// ---------------------------------------------------------------------------------------------------------

struct Run {
    int status;
    std::string out, err;
};

static std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// before: what stands before the program in the shell's line, a pipe for instance.
static Run run(const std::string& arguments, const std::string& before = "") {
    const std::string out = folder + "/out", err = folder + "/err";
    const int status = system((before + "'" + program + "' " + arguments + " >" + out + " 2>" + err).c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(out), read_file(err)};
}

// A failure is one line on stderr that names every part, leaves nothing in the folder, and has the status.
static void check_fails(int status, const std::string& arguments, std::vector<std::string> parts,
                        const std::string& before = "") {
    const std::string dir = folder + "/refused";
    const Run r = run(arguments + " --out " + dir, before);
    check(r.status == status, "%s: status %d", arguments.c_str(), r.status);
    check(r.err.find("moex: ") == 0 && std::count(r.err.begin(), r.err.end(), '\n') == 1, "%s: %s",
          arguments.c_str(), r.err.c_str());
    for (const std::string& part : parts)
        check(r.err.find(part) != std::string::npos, "%s: %s does not name %s", arguments.c_str(),
              r.err.c_str(), part.c_str());
    check(system(("test -z \"$(ls -A " + dir + " 2>/dev/null)\"").c_str()) == 0, "%s: left files",
          arguments.c_str());
    check(system(("rm -rf " + dir).c_str()) == 0);
}

static std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

// The rows that the games must give: games one after the other, each row begun with a new one, the last one
// of a row cut off, an unfinished last row dropped.
static std::string rows_of(const std::vector<std::string>& games, size_t row) {
    std::string all, current;
    for (const std::string& game : games) {
        current += game;
        if (current.size() < row) continue;
        all += current.substr(0, row);
        current.clear();
    }
    return all;
}

static std::string text_of(const std::vector<Shard>& shards) {
    std::string text;
    for (const Shard& shard : shards)
        for (size_t i = 0; i < shard.header.tokens; i++)
            text += shard.tokens[i] < 32 ? chess_char(shard.tokens[i]) : '?';
    return text;
}

static std::string summary_number(const std::string& out, const std::string& before) {
    const size_t at = out.find(before);
    return at == std::string::npos
               ? ""
               : out.substr(at + before.size(),
                            out.find_first_of(" ,:\n", at + before.size()) - at - before.size());
}

static void test_selfplay() {
    const std::string dir = folder + "/self",
                      texts = " --train-text " + dir + "_train.txt --val-text " + dir + "_val.txt ";
    const Run r =
        run("--games 150 --row 257 --val-fraction 0.2 --seed 5 --threads 1 --shard-tokens 10000 --out " +
            dir + texts);
    check(r.status == 0, "%s", r.err.c_str());
    std::set<std::string> seen;
    size_t games = 0;
    for (const char* split : {"train", "val"}) {
        const std::vector<std::string> lines = lines_of(read_file(dir + "_" + split + ".txt"));
        games += lines.size();
        for (const std::string& line : lines) {
            const chess::GameTextReader text = chess::parse_game_text(line);
            check(text.ok() && text.games == 1 && chess::to_game_text(text.moves) == line, "%s",
                  line.c_str());
            check(seen.insert(line).second, "a game is there twice");
        }
        const std::vector<Shard> shards = open_shards(dir + "/" + split + "_*.bin");
        for (size_t i = 0; i < shards.size(); i++) {
            check(shards[i].file.path == dir + "/" + split + strf("_%06zu.bin", i));
            check(shards[i].header.tokenizer == TOKENIZER_CHESS && shards[i].header.row == 257);
            check(shards[i].header.tokens == 38 * 257 ||
                  (i + 1 == shards.size() && shards[i].header.tokens < 38 * 257));
        }
        const std::string text = text_of(shards);
        check(text == rows_of(lines, 257), "%s: the rows are not those of the games", split);
        for (size_t i = 0; i < text.size(); i += 257) check(text.compare(i, 3, ";1.") == 0);
        check(shards.size() > 1 || split == std::string("val"));
    }
    check(games == 150 && summary_number(r.out, "games      ") == "150", "%s", r.out.c_str());
    const size_t val = lines_of(read_file(dir + "_val.txt")).size();
    check(val > 12 && val < 50, "%zu of 150 in val", val);
    check(r.out.find("repeated") == std::string::npos && r.out.find("sample     ;1.") != std::string::npos);

    // The same with another number of threads; another seed gives other games.
    for (const char* threads : {"2", "3"}) {
        const std::string again = folder + "/self" + threads;
        check(run("--games 150 --row 257 --val-fraction 0.2 --seed 5 --shard-tokens 10000 --threads " +
                  std::string(threads) + " --out " + again)
                  .status == 0);
        check(text_of(open_shards(again + "/train_*.bin")) == text_of(open_shards(dir + "/train_*.bin")));
        check(text_of(open_shards(again + "/val_*.bin")) == text_of(open_shards(dir + "/val_*.bin")));
    }
    const std::string other = folder + "/other";
    check(run("--games 20 --row 257 --seed 6 --out " + other).status == 0);
    check(text_of(open_shards(other + "/train_*.bin")).substr(0, 2570) !=
          text_of(open_shards(dir + "/train_*.bin")).substr(0, 2570));

    // Shards of an earlier run stay, unless they are to be replaced; then none of them is left over.
    const std::string before = read_file(dir + "/train_000000.bin");
    const Run refused = run("--games 20 --row 257 --out " + dir);
    check(refused.status == 1 && refused.err.find("there already") != std::string::npos, "%s",
          refused.err.c_str());
    check(read_file(dir + "/train_000000.bin") == before && before.size() > 1024);
    const Run failed = run("--games 2 --row 100000 --overwrite --out " + dir);
    check(failed.status == 1 && read_file(dir + "/train_000000.bin") == before,
          "a failed run has taken the old shards");
    check(run("--games 20 --row 257 --seed 6 --overwrite --out " + dir).status == 0);
    check(open_shards(dir + "/train_*.bin").size() == 1);
    check(text_of(open_shards(dir + "/train_*.bin")) == text_of(open_shards(other + "/train_*.bin")));
    check(run("--games 20 --row 257 --val-fraction 0 --out " + folder + "/noval")
              .out.find("val        0 games, 0 rows") != std::string::npos);
    check(run("--games 8 --max-plies 10 --temperature 0 --row 16 --out " + folder + "/short")
              .out.find("8 at the ply cap") != std::string::npos);

    // Only shards are replaced, and two runs do not write into one folder.
    std::ofstream(dir + "/train_other.bin") << "x";
    std::ofstream(dir + "/train_000001.bin.part.tmp.12") << "left by a run that was killed";
    check(run("--games 20 --row 257 --seed 6 --overwrite --out " + dir).status == 0);
    check(system(("cd " + dir + " && test \"$(echo *)\" = 'train_000000.bin train_other.bin'").c_str()) == 0);
    const std::string locked = "flock " + folder + "/other ";
    if (system((locked + "true").c_str()) == 0) {
        const Run second =
            run("--games 20 --row 257 --seed 6 --overwrite --out " + folder + "/other", locked);
        check(second.status == 1 && second.err.find("another make_chess") != std::string::npos, "%s",
              second.err.c_str());
    }
}

// A game is in train or in val by its text: in whatever order games come, and beside whatever others.
static void test_split_by_text() {
    std::vector<std::string> games;
    for (int i = 0; i < 300; i++) {
        chess::Game game;
        std::vector<chess::Move> moves;
        for (int ply = 0; ply < 8; ply++) {
            const chess::MoveList legal = chess::legal_moves(game.position);
            moves.push_back(legal.moves[random_u64(3, uint64_t(i), uint64_t(ply)) % legal.size]);
            game.play(moves.back());
        }
        games.push_back(chess::to_game_text(moves));
    }
    const auto halves = [&](const std::string& name, const std::vector<std::string>& list,
                            const std::string& flags) {
        std::string text;
        for (const std::string& game : list) text += game + "\n";
        std::ofstream(folder + "/" + name + ".txt") << text;
        const Run r = run("--pgn " + folder + "/" + name + ".txt --row 8 --val-fraction 0.25 --train-text " +
                          folder + "/t --val-text " + folder + "/v --out " + folder + "/" + name + flags);
        check(r.status == 0, "%s", r.err.c_str());
        return std::pair{lines_of(read_file(folder + "/t")), lines_of(read_file(folder + "/v"))};
    };
    const auto [train, val] = halves("all", games, "");
    check(train.size() + val.size() == 300 && val.size() > 45 && val.size() < 105, "%zu in val", val.size());
    std::vector<std::string> other(games.rbegin(), games.rbegin() + 200);
    for (int i = 0; i < 50; i++) other.push_back(games[size_t(i)]);
    other.insert(other.end(), other.begin(), other.begin() + 30); // again
    const auto [train_2, val_2] = halves("part", other, " --seed 9");
    const std::set<std::string> in_val(val.begin(), val.end());
    for (const std::string& game : train_2) check(!in_val.count(game));
    for (const std::string& game : val_2) check(in_val.count(game));
    check(train_2.size() + val_2.size() == 250);
    const auto [train_3, val_3] = halves("again", other, " --keep-duplicates");
    check(train_3.size() + val_3.size() == 280);
    check(read_file(folder + "/out").find("repeated   30 games, kept") != std::string::npos);
}

static void test_filters() {
    std::string pgn;
    for (int i = 0; i < 20; i++)
        pgn += strf("[Event \"Rated Blitz game\"]\n[WhiteElo \"%d\"]\n[BlackElo \"%s\"]\n[TimeControl "
                    "\"%s\"]\n\n1. %s e5 2. Nf3 "
                    "Nc6%s %s\n\n",
                    1500 + 10 * i, i == 3 ? "?" : "1700", i % 2 ? "180+0" : "600+0", i % 4 < 2 ? "e4" : "d4",
                    std::string(i % 5, '!').c_str(), i % 3 ? "1-0" : "0-1");
    std::ofstream(folder + "/rated.pgn") << pgn;
    const std::string common = "--pgn " + folder +
                               "/rated.pgn --keep-duplicates --row 8 --val-fraction 0 --overwrite --out " +
                               folder + "/rated ";
    const auto kept = [&](const std::string& flags) {
        const Run r = run(common + flags);
        check(r.status == 0, "%s: %s", flags.c_str(), r.err.c_str());
        return summary_number(r.out, "games      ");
    };
    check(kept("") == "20" && kept("--min-elo 1600") == "10" &&
          kept("--max-elo 1700 --min-elo 1510") == "18");
    check(kept("--time-control blitz") == "10" && kept("--result 0-1") == "7" &&
          kept("--games 4 --result 0-1") == "4");
    const Run r = run(common + "--min-elo 1600 --time-control rapid");
    check(r.out.find("left out   15: 9 by --min-elo, 1 by --min-elo, without ratings, 5 by --time-control") !=
                  std::string::npos ||
              r.out.find("1 by --min-elo, without ratings") != std::string::npos,
          "%s", r.out.c_str());
    check_fails(1, "--pgn " + folder + "/rated.pgn --min-elo 2500",
                {"no game is left of 20", "19 by --min-elo", "without ratings"});
    check_fails(2, "--games 10 --min-elo 2500", {"--min-elo", "--pgn FILE"});
    check_fails(2, "--pgn x --since 17", {"--since: '17' is not a date"});
    check_fails(2, "--pgn x --result won", {"--result: 'won'"});
}

// Games from other files than PGN, and files that are none.
static void test_other_files() {
    const std::string games = ";1.e4 e5 2.Nf3 Nc6\n;1.d4 d5 2.c4 e6\n;1.c4\n";
    std::ofstream(folder + "/text.txt") << games;
    std::ofstream(folder + "/table.csv") << "transcript\n" << games;
    for (const char* file : {"text.txt", "table.csv"}) {
        const std::string dir = folder + "/from_" + file;
        check(run("--pgn " + folder + "/" + file + " --row 8 --val-fraction 0 --train-text " + dir +
                  ".txt --out " + dir)
                  .status == 0);
        check(read_file(dir + ".txt") == games, "%s", file);
    }
    std::ofstream(folder + "/x.pgn.zst") << "\x28\xB5\x2F\xFD....";
    check_fails(1, "--pgn " + folder + "/x.pgn.zst",
                {"compressed with zstd", "zstdcat " + folder + "/x.pgn.zst | make_chess --pgn -"});
    check_fails(1, "--pgn - < " + folder + "/x.pgn.zst",
                {"standard input: compressed with zstd", "zstdcat FILE"});
}

static void test_pgn() {
    const std::string pgn = folder + "/games.pgn";
    std::string text = "\xEF\xBB\xBF";
    std::vector<std::string> expected;
    for (int i = 0; i < 40; i++) {
        text += strf("[Event \"game %d\"]\r\n\r\n1. e4 {[%%clk 0:01]} 1... e5 $1 2. %s! (2. d4 d5) 2... Nc6 "
                     "%s\r\n\r\n",
                     i, i % 2 ? "Nf3" : "Nc3", i % 3 ? "1-0" : "");
        expected.push_back(i % 2 ? ";1.e4 e5 2.Nf3 Nc6" : ";1.e4 e5 2.Nc3 Nc6");
    }
    text += "[Event \"bad\"]\n1. e4 e4 *\n[Event \"x\"]\n[FEN \"?x\"]\n*\n[Event \"none\"]\n*\n[Event "
            "\"cut\"]\n1. d4 d";
    std::ofstream(pgn) << text;
    const std::string all = " --keep-duplicates --row 40 --val-fraction 0 --out ";
    const Run r = run("--pgn " + pgn + all + folder + "/pgn");
    check(r.status == 0 && r.err.empty(), "%s", r.err.c_str());
    check(text_of(open_shards(folder + "/pgn/train_*.bin")) == rows_of(expected, 40));
    for (const char* part :
         {"read       44 games", "dropped    4\n", "1 without moves (line ", "1 FEN or variant (line ",
          ", fen '?x')", "1 with an illegal move (line 162, 1... 'e4')", "1 cut (line ",
          "repeated   38 games, kept", "games      40 in", "160 plies, 4.0 a game"})
        check(r.out.find(part) != std::string::npos, "%s lacks %s", r.out.c_str(), part);

    check(run("--pgn -" + all + folder + "/piped", "cat " + pgn + " | ").status == 0);
    check(read_file(folder + "/piped/train_000000.bin") == read_file(folder + "/pgn/train_000000.bin"));
    check(run("--pgn " + pgn + " --games 10" + all + folder + "/ten").status == 0);
    expected.resize(10);
    check(text_of(open_shards(folder + "/ten/train_*.bin")) == rows_of(expected, 40));

    std::ofstream(folder + "/prose.txt") << "To be, or not to be, that is the question.\n";
    std::ofstream(folder + "/empty.pgn");
    std::ofstream(folder + "/illegal.pgn") << "[Event \"x\"]\n1. e4 e4 *\n";
    check_fails(1, "--pgn " + folder + "/nowhere.pgn", {"nowhere.pgn: cannot be opened", "No such file"});
    check_fails(1, "--pgn " + folder, {"cannot be read", "directory"});
    check_fails(1, "--pgn " + folder + "/prose.txt", {"prose.txt: not PGN: no game found"});
    check_fails(1, "--pgn " + folder + "/empty.pgn", {"empty.pgn: empty, expected games in PGN"});
    check_fails(1, "--pgn " + folder + "/illegal.pgn",
                {"illegal.pgn: no usable game: 1 with an illegal move (line 2, 1... 'e4')"});
    check_fails(1, "--pgn -", {"standard input: not PGN"}, "head -c 100000 /dev/zero | ");
    check_fails(1, "--row 4096 --pgn " + pgn, {"do not fill one row of 4096"});
}

// Starts the program in the background, waits, sends the signal, returns how it ended.
static int interrupt(const std::string& arguments, int number, double seconds, int times = 1) {
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGHUP, SIG_DFL); // which nohup has set to be ignored
        alarm(900);
        const std::string line =
            "exec '" + program + "' " + arguments + " >" + folder + "/out 2>" + folder + "/err";
        execl("/bin/sh", "sh", "-c", line.c_str(), (char*)nullptr);
        _exit(127);
    }
    for (int i = 0; i < times; i++) {
        usleep(useconds_t(i == 0 ? seconds * 1e6 : 1000)); // (two at once would be one)
        kill(child, number);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void test_engine() {
    const std::string good = engine("good"),
                      common = " --patience 5 --max-plies 30 --random-plies 4 --row 64 ";
    const std::string dir = folder + "/uci", dir2 = folder + "/uci2";
    const Run r = run("--uci " + good + common + "--games 20 --threads 1 --val-fraction 0 --train-text " +
                      dir + ".txt --out " + dir);
    check(r.status == 0, "%s", r.err.c_str());
    const std::vector<std::string> games = lines_of(read_file(dir + ".txt"));
    check(games.size() == 20 && std::set<std::string>(games.begin(), games.end()).size() == 20,
          "random openings differ");
    check(text_of(open_shards(dir + "/train_*.bin")) == rows_of(games, 64));
    for (const std::string& game : games) {
        // After the random moves each is the first of the legal ones.
        const chess::GameTextReader reader = chess::parse_game_text(game);
        chess::Position p = chess::start_position();
        for (size_t ply = 0; ply < reader.moves.size(); ply++) {
            check(ply < 4 || chess::legal_moves(p).moves[0] == reader.moves[ply]);
            chess::make(p, reader.moves[ply]);
        }
    }
    check(run("--uci " + good + common + "--games 20 --threads 3 --val-fraction 0 --out " + dir2).status ==
          0);
    check(text_of(open_shards(dir2 + "/train_*.bin")) == text_of(open_shards(dir + "/train_*.bin")));
    check(run("--uci " + engine("stubborn") + common + "--games 2 --threads 1 --out " + folder + "/uci3")
              .status == 0);

    // More threads than games.
    check(run("--uci " + good + common + "--games 2 --threads 8 --val-fraction 0 --train-text " + dir +
              "3.txt --out " + folder + "/uci4")
              .status == 0);
    check(lines_of(read_file(dir + "3.txt")) == std::vector<std::string>(games.begin(), games.begin() + 2));

    // An engine that fails late, or a signal while it thinks: the games so far are kept.
    const std::string late = " --patience 5 --max-plies 30 --random-plies 4 --row 64 --games 20 --threads 1 "
                             "--val-fraction 0 --uci ";
    const Run tired =
        run(late + engine("tires") + " --train-text " + dir + "4.txt --out " + folder + "/uci5");
    check(tired.status == 1 && tired.err.find("ended with status 7") != std::string::npos, "%s",
          tired.err.c_str());
    check(tired.out.find("an error ended it early: what was written by then is kept\n") == 0);
    const std::vector<std::string> some = lines_of(read_file(dir + "4.txt"));
    check(some.size() > 2 && some.size() < 20 && std::equal(some.begin(), some.end(), games.begin()));
    check(text_of(open_shards(folder + "/uci5/train_*.bin")) == rows_of(some, 64));
    check(run(late + engine("interrupts") + " --out " + folder + "/uci6").status == 128 + SIGINT);
    check(text_of(open_shards(folder + "/uci6/train_*.bin")) == rows_of(some, 64));

    const std::string few =
        " --patience 5 --max-plies 30 --random-plies 4 --row 640 --games 3 --threads 2 --uci ";
    check_fails(1, few + folder + "/no_engine", {"no_engine: cannot be started: No such file"});
    check_fails(1, few + folder, {"cannot be started: Permission denied"});
    check_fails(1, few + "/bin/true", {"/bin/true: ended with status 0", "expected a UCI engine"});
    check_fails(1, few + engine("dies"), {"engine_dies: ended with status 7 at 'bestmove'"});
    check_fails(1, few + engine("crashes"), {"engine_crashes: died of signal 9"});
    check_fails(1, few + engine("cheats"), {"engine_cheats: played 'e2e5', which is not legal in "});
    check_fails(1, few + engine("resigns"), {"played '(none)', which is not legal"});
    check_fails(1, few + engine("endless"), {"over 64 KiB"});
    const std::string hasty = " --patience 0.3 --games 2 --threads 1 --uci ";
    check_fails(1, hasty + engine("mute"), {"took more than 0.3 seconds to answer with uciok"});
    check_fails(1, hasty + engine("chatter"), {"took more than 0.3 seconds to answer with uciok"});
    check_fails(1, hasty + engine("sleeps"), {"took more than 0.3 seconds to answer with bestmove"});
}

// Interrupted, the program keeps the rows made so far, whole; killed, it leaves no shard at all.
static void test_interrupt() {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        const std::string dir = folder + "/stopped" + std::to_string(number);
        check(interrupt("--games 100000000 --row 64 --out " + dir, number, 1.0) == 128 + number);
        const std::string out = read_file(folder + "/out"), text = text_of(open_shards(dir + "/train_*.bin"));
        check(out.find("interrupted: the games so far are kept\n") == 0, "%s", out.c_str());
        bool whole = !text.empty();
        for (size_t i = 0; i < text.size(); i += 64) whole = whole && text.compare(i, 3, ";1.") == 0;
        check(whole);
        check(system(("ls " + dir + " | grep -q tmp").c_str()) != 0);
    }
    // A terminal that goes away sends SIGHUP twice, its shell once more.
    check(interrupt("--games 100000000 --row 64 --out " + folder + "/gone", SIGHUP, 0.5, 3) == 128 + SIGHUP);
    check(!open_shards(folder + "/gone/train_*.bin").empty());
    // A pipe that gives nothing more does not hold it up.
    std::ofstream(folder + "/first.pgn") << "1. e4 e5 2. Nf3 Nc6 3. Bb5 a6 4. Ba4 Nf6 5. O-O *\n1. d4 *\n";
    const std::string dir = folder + "/waiting", fifo = folder + "/fifo";
    check(mkfifo(fifo.c_str(), 0600) == 0);
    check(system(("(cat " + folder + "/first.pgn; sleep 3) > " + fifo + " &").c_str()) == 0);
    check(interrupt("--pgn " + fifo + " --row 32 --val-fraction 0 --out " + dir, SIGINT, 0.5) ==
          128 + SIGINT);
    check(text_of(open_shards(dir + "/train_*.bin")) == ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba");

    check(interrupt("--games 100000000 --row 64 --out " + folder + "/killed", SIGKILL, 0.5) == -SIGKILL);
    check(system(("ls " + folder + "/killed/*.bin >/dev/null 2>&1").c_str()) != 0);
    check(run("--games 20 --row 64 --out " + folder + "/killed").status == 0); // and is not in the way
}

static void test_messages() {
    const Run help = run("--help");
    check(help.status == 0 && help.err.empty() && help.out.find("usage: make_chess") == 0);
    for (const char* option :
         {"--games", "--pgn", "--uci", "--out", "--row", "--val-fraction", "--seed", "--threads",
          "--max-plies", "--temperature", "--nodes", "--shard-tokens", "--overwrite"})
        check(help.out.find(option) != std::string::npos, "%s", option);

    check_fails(2, "", {"no games: give --games N, --pgn FILE or --uci PROGRAM"});
    check_fails(2, "--uci engine", {"--uci needs --games"});
    check_fails(2, "--pgn a --uci b --games 1", {"--pgn and --uci exclude each other"});
    check_fails(2, "--games 0", {"--games: 0 is out of range"});
    check_fails(2, "--games ten", {"--games: 'ten' is not a whole number"});
    check_fails(2, "--games 10 --row 7", {"--row: 7 is out of range, expected 8 to 1048576"});
    check_fails(2, "--games 10 --val-fraction 0.6", {"--val-fraction: 0.6 is out of range"});
    check_fails(2, "--games 10 --val-fraction nan", {"--val-fraction: 'nan' is not a number"});
    check_fails(2, "--games 10 --threads -1", {"--threads: -1 is out of range"});
    check_fails(2, "--games 10 --elo 2000", {"unknown option"});
    check_fails(2, "--games 10 more", {"'more': unexpected argument"});
    check_fails(2, "--games 10 --train-text a --val-text a", {"name the same file"});
    check_fails(1, "--games 2 --row 100000", {"2 games of", "do not fill one row of 100000"});
    check_fails(1, "--games 2 --train-text " + folder + "/nowhere/a.txt",
                {"nowhere/a.txt: cannot be created"});
    const Run no_out = run("--games 10");
    check(no_out.status == 2 && no_out.err.find("--out DIR is missing") != std::string::npos);
    std::ofstream(folder + "/file") << "x";
    const Run not_folder = run("--games 10 --out " + folder + "/file");
    check(not_folder.status == 1 && not_folder.err.find("/file: not a folder") != std::string::npos, "%s",
          not_folder.err.c_str());
    // A write that fails later: the shards that were whole by then are kept.
    const Run later = run("--games 400 --row 64 --shard-tokens 1600 --val-fraction 0 --train-text " + folder +
                              "/long.txt --out " + folder + "/later",
                          "ulimit -f 40; trap '' XFSZ; ");
    check(later.status == 1 && later.err.find("long.txt: cannot be written") != std::string::npos, "%s",
          later.err.c_str());
    const std::string kept = text_of(open_shards(folder + "/later/train_*.bin"));
    check(kept.size() % 64 == 0 && kept.size() >= 1600);

    // No room on the device: nothing half-written is left (a limit on the size of files stands for a full
    // disk).
    const Run full = run("--games 400 --row 64 --out " + folder + "/full", "ulimit -f 8; trap '' XFSZ; ");
    check(full.status == 1 && full.err.find("cannot be written") != std::string::npos, "%s",
          full.err.c_str());
    check(system(("test -z \"$(ls -A " + folder + "/full)\"").c_str()) == 0);
}

int main(int argc, char** argv) {
    if (argc == 3 && std::string(argv[1]) == "engine") return play_engine(argv[2]);
    if (argc > 1) program = argv[1];
    char resolved[4096], name[] = "/tmp/test_make_chess_XXXXXX";
    if (!realpath(argv[0], resolved) || !mkdtemp(name)) return perror("test_make_chess"), 1;
    self = resolved;
    folder = name;
    test_selfplay();
    test_split_by_text();
    test_filters();
    test_other_files();
    test_pgn();
    test_engine();
    test_interrupt();
    test_messages();
    check(system(("rm -rf " + folder).c_str()) == 0);
    return finish();
}
