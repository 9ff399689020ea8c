// make_chess: games of chess to chess-32 shards, train and val. The games are played here (--games), read
// from PGN (--pgn), or played by a UCI engine against itself (--uci). Text of a game: `;1.e4 e5 2.Nf3`.
// Shards: rows of R tokens, one token per character; a row begins with a game, takes in game after game, and
// cuts the last one off. A game is in train or in val, never in both.
#include "../dev/lib/options.h"
#include "../dev/lib/terminal.h"
#include "../dev/lib/threads.h"
#include "pgn.h"
#include "selfplay.h"
#include "shard.h"
#include "tokenizer.h"
#include "uci.h"
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <optional>

struct Settings {
    int64_t games = 0;
    std::string pgn, uci, out;
    int64_t row = 1024, shard_tokens = 100000000, seed = 1, threads = 0;
    double val_fraction = 0.01;
    bool overwrite = false;
    std::string train_text, val_text;
    int64_t max_plies = 240, temperature = 12, nodes = 2000, random_plies = 8;
    double patience = 30;
};

static volatile std::sig_atomic_t interrupted = 0;

// The first Ctrl-C ends the work in order; a second one ends the program.
static void catch_interrupts() {
    struct sigaction action = {};
    action.sa_handler = [](int number) { interrupted = number; };
    action.sa_flags = int(SA_RESETHAND); // and no SA_RESTART: a read that waits for input returns
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

// ---------------------------------------------------------------------------------------------------------
// From games to rows to shards

struct Split {
    std::string folder, name; // files: folder/name_000000.bin, ..
    size_t row, rows_per_shard;
    std::optional<AtomicFile> text;       // the games as lines, if asked for
    std::vector<std::string>* old_shards; // of an earlier run: removed before the first new one is in place
    size_t games = 0, characters = 0, rows = 0, shards = 0;

    std::string path(size_t shard) const {
        return strf("%s/%s_%06zu.bin", folder.c_str(), name.c_str(), shard);
    }

    void add(const std::string& game) {
        games++;
        characters += game.size();
        if (text) text->write((game + "\n").data(), game.size() + 1);
        for (size_t i = 0; i < game.size() && tokens.size() < row; i++)
            tokens.push_back(uint16_t(chess_id(game[i])));
        if (tokens.size() < row) return;
        if (!shard) shard.emplace(path(shards), TOKENIZER_CHESS, row);
        shard->write(tokens.data(), row);
        tokens.clear();
        rows++;
        if (rows % rows_per_shard == 0) commit_shard();
    }
    // What has not filled a row is dropped.
    void finish() {
        if (shard) commit_shard();
        if (text) text->commit();
    }

  private:
    std::optional<ShardWriter> shard;
    std::vector<uint16_t> tokens; // of the row being filled

    void commit_shard() {
        for (const std::string& old : *old_shards) unlink(old.c_str());
        old_shards->clear();
        shard->commit();
        shard.reset();
        shards++;
    }
};

// Shards that lie in the folder already. Two runs must not mix: training takes all that match train_*.bin.
static std::vector<std::string> shards_in(const std::string& folder) {
    std::vector<std::string> paths;
    for (const char* name : {"train", "val"}) {
        glob_t found = {};
        std::string escaped;
        for (char c : folder) escaped += strchr("*?[\\", c) ? std::string("\\") + c : std::string(1, c);
        if (glob(strf("%s/%s_[0-9][0-9][0-9][0-9][0-9][0-9].bin", escaped.c_str(), name).c_str(), 0, nullptr,
                 &found) == 0)
            paths.insert(paths.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
        globfree(&found);
    }
    return paths;
}

struct DataSet {
    const Settings& settings;
    Split train, val;
    std::vector<std::string> old_shards;
    size_t plies = 0;
    std::string sample;

    DataSet(const DataSet&) = delete;
    explicit DataSet(const Settings& s) : settings(s) {
        make_directories(s.out);
        old_shards = shards_in(s.out);
        if (!old_shards.empty() && !s.overwrite)
            fail("%s: there already, from an earlier run; give --overwrite or another --out",
                 old_shards[0].c_str());
        for (Split* split : {&train, &val}) {
            split->old_shards = &old_shards;
            split->folder = s.out;
            split->name = split == &train ? "train" : "val";
            split->row = size_t(s.row);
            split->rows_per_shard = size_t(std::max<int64_t>(1, s.shard_tokens / s.row));
            const std::string& text = split == &train ? s.train_text : s.val_text;
            if (!text.empty()) split->text.emplace(text);
        }
    }

    // index: the game's number in its source, which alone decides where it goes.
    void add(uint64_t index, const std::string& text, size_t game_plies) {
        static const uint64_t stream = random_stream("val split");
        const bool in_val = random_uniform(uint64_t(settings.seed), stream, index) < settings.val_fraction;
        (in_val ? val : train).add(text);
        plies += game_plies;
        if (sample.empty()) sample = text;
    }

    void finish() {
        if (train.rows == 0 && interrupted)
            fail("%s: interrupted before the first row was full; nothing was written", settings.out.c_str());
        if (train.rows == 0)
            fail("%s: %zu games of %zu characters do not fill one row of %lld for training; nothing was "
                 "written",
                 settings.out.c_str(), train.games, train.characters, (long long)settings.row);
        train.finish();
        val.finish();
    }
};

// ---------------------------------------------------------------------------------------------------------
// The three sources. Each gives its games to the data set in the order of their numbers and returns the lines
// it has to say in the summary.

struct MadeGame {
    std::vector<chess::Move> moves;
    chess::Outcome outcome = chess::UNFINISHED;
    std::string text;
};

struct Played { // what games made here have in common
    size_t by_outcome[6] = {};
    std::vector<uint64_t> hashes;

    void add(DataSet& data, uint64_t index, const MadeGame& game) {
        by_outcome[game.outcome]++;
        hashes.push_back(random_stream(game.text.c_str()));
        data.add(index, game.text, game.moves.size());
    }
    std::vector<std::string> summary() {
        using namespace chess;
        std::sort(hashes.begin(), hashes.end());
        const size_t distinct = size_t(std::unique(hashes.begin(), hashes.end()) - hashes.begin());
        const double share = hashes.empty() ? 1 : double(distinct) / double(hashes.size());
        return {strf("endings    %zu checkmate, %zu stalemate, %zu threefold, %zu fifty moves, %zu "
                     "insufficient material, "
                     "%zu at the ply cap",
                     by_outcome[CHECKMATE], by_outcome[STALEMATE], by_outcome[THREEFOLD],
                     by_outcome[FIFTY_MOVES], by_outcome[INSUFFICIENT_MATERIAL], by_outcome[UNFINISHED]),
                strf("distinct   %.2f%% of the games", 100 * share)};
    }
};

// Plays `games` games with make(index), so many at a time that all threads have work, and keeps their order.
static std::vector<std::string> play(const Settings& s, DataSet& data, size_t batch,
                                     const std::function<MadeGame(uint64_t)>& make) {
    Played played;
    Progress progress(s.uci.empty() ? "playing" : "engine", "games", double(s.games));
    std::vector<MadeGame> games(batch);
    for (size_t begin = 0; begin < size_t(s.games) && !interrupted; begin += batch) {
        const size_t n = std::min(batch, size_t(s.games) - begin);
        std::exception_ptr error;
        std::atomic<bool> failed = false; // then the other games are not begun
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(s.threads))
        for (size_t i = 0; i < n; i++) {
            games[i] = {};
            try {
                if (interrupted || failed) continue;
                games[i] = make(begin + i);
                games[i].text = chess::to_game_text(games[i].moves);
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
        if (error) std::rethrow_exception(error);
        for (size_t i = 0; i < n; i++)
            if (!games[i].moves.empty()) played.add(data, begin + i, games[i]);
        progress.update(double(begin + n));
    }
    progress.finish(double(played.hashes.size()));
    return played.summary();
}

static std::vector<std::string> from_selfplay(const Settings& s, DataSet& data) {
    const chess::SelfplayOptions options = {uint64_t(s.seed), int(s.temperature), int(s.max_plies)};
    return play(s, data, 64 * size_t(s.threads), [&](uint64_t index) {
        const chess::PlayedGame game = chess::play_game(options, index);
        return MadeGame{game.moves, game.outcome, ""};
    });
}

// Random legal plies, then the engine on both sides. With node limits and a hash table emptied before every
// game, an engine of one thread plays game number `index` the same way every time.
static MadeGame engine_game(const Settings& s, chess::Engine& engine, uint64_t index) {
    chess::Game game;
    MadeGame made;
    Random random{mix64(uint64_t(s.seed) ^ random_stream("engine openings")), index};
    const size_t opening = size_t(std::min(s.random_plies, s.max_plies));
    while (made.moves.size() < opening) {
        const chess::MoveList legal = chess::legal_moves(game.position);
        made.moves.push_back(legal.moves[random.below(legal.size)]);
        game.play(made.moves.back());
        if (game.outcome() != chess::UNFINISHED) game = {}, made = {}; // over already: another opening
    }
    engine.new_game();
    while ((made.outcome = game.outcome()) == chess::UNFINISHED && made.moves.size() < size_t(s.max_plies)) {
        made.moves.push_back(engine.best_move(game.position, made.moves, s.nodes));
        game.play(made.moves.back());
    }
    return made;
}

static std::vector<std::string> from_engine(const Settings& s, DataSet& data) {
    std::vector<std::unique_ptr<chess::Engine>> engines;
    for (int64_t i = 0; i < std::min(s.threads, s.games); i++)
        engines.push_back(std::make_unique<chess::Engine>(s.uci, s.patience));
    return play(s, data, engines.size(), [&](uint64_t index) {
        return engine_game(s, *engines[index % engines.size()], index);
    });
}

struct InputFile {
    int fd = 0;
    explicit InputFile(const std::string& path) {
        if (path != "-") fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) fail("%s: cannot be opened: %s", path.c_str(), strerror(errno));
    }
    InputFile(const InputFile&) = delete;
    ~InputFile() {
        if (fd > 0) close(fd);
    }
    double size() const { // 0 if it has none, being a pipe
        struct stat st;
        return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? double(st.st_size) : 0;
    }
};

static std::vector<std::string> from_pgn(const Settings& s, DataSet& data) {
    const std::string name = s.pgn == "-" ? "standard input" : s.pgn;
    const InputFile file(s.pgn);
    chess::PgnReader reader(
        [&](char* to, size_t n) -> size_t {
            for (;;) {
                if (interrupted) return 0;
                const ssize_t got = read(file.fd, to, n);
                if (got >= 0) return size_t(got);
                if (errno != EINTR) fail("%s: cannot be read: %s", name.c_str(), strerror(errno));
            }
        },
        name);
    const bool by_bytes = file.size() > 0;
    Progress progress("reading", by_bytes ? "bytes" : "games", file.size());
    const auto done = [&] { return double(by_bytes ? reader.counts.bytes : reader.counts.games()); };
    chess::PgnGame game;
    while (!interrupted && (s.games == 0 || reader.counts.good < uint64_t(s.games)) && reader.next(game)) {
        data.add(reader.counts.good - 1, game.text, game.moves.size());
        if (reader.counts.good % 64 == 0) progress.update(done());
    }
    progress.finish(done());
    if (!interrupted) reader.fail_if_none();
    const chess::PgnCounts& c = reader.counts;
    const auto n = [](uint64_t x) { return (unsigned long long)x; };
    std::vector<std::string> lines = {
        strf("read       %llu games, %s", n(c.games()), human_bytes(double(c.bytes)).c_str()),
        strf(
            "dropped    %llu: %llu illegal, %llu cut, %llu FEN or variant, %llu without moves, %llu too long",
            n(c.dropped()), n(c.illegal), n(c.cut), n(c.variant), n(c.empty), n(c.overlong))};
    if (!reader.first_illegal.empty()) lines.push_back("           first illegal: " + reader.first_illegal);
    if (c.stray) lines.push_back(strf("           %llu words outside any game", n(c.stray)));
    return lines;
}

// ---------------------------------------------------------------------------------------------------------

static void print_summary(const Settings& s, const DataSet& data, const std::vector<std::string>& lines,
                          double seconds) {
    const size_t games = data.train.games + data.val.games;
    for (const std::string& line : lines) printf("%s\n", line.c_str());
    printf("games      %zu in %s, %s games/s\n", games, human_duration(seconds).c_str(),
           human_count(double(games) / seconds).c_str());
    printf("moves      %zu plies, %.1f a game\n", data.plies, double(data.plies) / double(games));
    for (const Split* split : {&data.train, &data.val}) {
        printf("%-10s %zu games, %zu rows of %lld = %s tokens", split->name.c_str(), split->games,
               split->rows, (long long)s.row, human_count(double(split->rows) * double(s.row)).c_str());
        if (split->rows == 0) {
            printf("; no shard: too few games for a row\n");
            continue;
        }
        printf(", %.1f%% of the characters (the others: cut at a row's end)\n",
               100 * double(split->rows * split->row) / double(split->characters));
        printf("           %s", split->path(0).c_str());
        if (split->shards > 1) printf(" .. %s", split->path(split->shards - 1).c_str());
        printf("%s%s\n", split->text ? " and " : "", split->text ? split->text->path.c_str() : "");
    }
    printf("sample     %s%s\n", data.sample.substr(0, 96).c_str(), data.sample.size() > 96 ? " .." : "");
}

int main(int argc, char** argv) {
    return run_main([&] {
        Settings s;
        Options options(
            "make_chess",
            "Writes games of chess as chess-32 token shards: train_000000.bin .., val_000000.bin ..\n"
            "The games come from --games (played here), --pgn or --uci.\n"
            "Ctrl-C ends early and keeps the rows made so far; after an error nothing is kept.");
        options.section("where the games come from");
        options.add(0, "games", "N", &s.games, 1, int64_t(1) << 40,
                    "games to play; with --pgn: stop after so many");
        options.add(0, "pgn", "FILE", &s.pgn, "PGN to convert, - for standard input");
        options.add(0, "uci", "PROGRAM", &s.uci, "engine to play --games games against itself");
        options.section("what is written");
        options.add('o', "out", "DIR", &s.out, "folder for the shards, made if need be");
        options.add(0, "row", "R", &s.row, 8, 1 << 20, "characters in a row");
        options.add(0, "val-fraction", "X", &s.val_fraction, 0, 0.5, "share of the games that goes to val");
        options.add(0, "shard-tokens", "N", &s.shard_tokens, 1, 4000000000, "tokens in a shard, about");
        options.add(0, "train-text", "FILE", &s.train_text,
                    "write the train games as text too, one per line");
        options.add(0, "val-text", "FILE", &s.val_text, "the same for val");
        options.add(0, "overwrite", &s.overwrite, "replace the shards of an earlier run in DIR");
        options.section("how games are played");
        options.add(0, "seed", "N", &s.seed, 0, INT64_MAX, "of the games played and of the split");
        options.add(0, "threads", "N", &s.threads, 0, 1024, "games played at a time, 0: one per core");
        options.add(0, "max-plies", "N", &s.max_plies, 2, 17697, "a longer game is left unfinished");
        options.add(0, "temperature", "CP", &s.temperature, 0, 1000,
                    "players here: a move CP centipawns worse is half as likely");
        options.add(0, "nodes", "N", &s.nodes, 1, INT64_MAX, "engine: search nodes per move");
        options.add(0, "random-plies", "N", &s.random_plies, 0, 100, "engine: random moves before it begins");
        options.add(0, "patience", "SECONDS", &s.patience, 0.1, 86400, "engine: how long an answer may take");
        if (!options.parse(argc, argv)) return 0;
        if (!s.pgn.empty() && !s.uci.empty()) fail_usage("--pgn and --uci exclude each other");
        if (options.given("pgn") && s.pgn.empty()) fail_usage("--pgn: a file is missing");
        if (options.given("uci") && s.uci.empty()) fail_usage("--uci: a program is missing");
        if (s.pgn.empty() && s.games == 0)
            fail_usage(s.uci.empty() ? "no games: give --games N, --pgn FILE or --uci PROGRAM"
                                     : "--uci needs --games N");
        if (s.out.empty()) fail_usage("--out DIR is missing");
        if (!s.train_text.empty() && s.train_text == s.val_text)
            fail_usage("--train-text and --val-text name the same file");
        if (s.threads == 0) s.threads = int64_t(thread_count());

        catch_interrupts();
        const double begin = now_seconds();
        DataSet data(s);
        const std::vector<std::string> lines = !s.pgn.empty()   ? from_pgn(s, data)
                                               : !s.uci.empty() ? from_engine(s, data)
                                                                : from_selfplay(s, data);
        data.finish();
        if (interrupted) printf("interrupted: the rows made so far are kept\n");
        print_summary(s, data, lines, now_seconds() - begin);
        return interrupted ? 128 + interrupted : 0;
    });
}
