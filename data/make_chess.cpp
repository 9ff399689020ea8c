// make_chess: games of chess to chess-32 shards, train and val. The games are played here (--games), read
// from a file (--pgn: PGN, game text, tables), or played by a UCI engine against itself (--uci). Text of a
// game: `;1.e4 e5 2.Nf3`. Shards: rows of R tokens, one token per character; a row begins with a game, takes
// in game after game, and cuts the last one off. A game is in train or in val, never in both.
#include "../dev/lib/options.h"
#include "../dev/lib/stop.h"
#include "../dev/lib/terminal.h"
#include "../dev/lib/threads.h"
#include "game_file.h"
#include "game_filter.h"
#include "selfplay.h"
#include "shard_series.h"
#include "tokenizer.h"
#include "uci.h"
#include <atomic>
#include <exception>
#include <memory>

struct Settings {
    int64_t games = 0;
    std::string pgn, uci, out;
    int64_t row = 1024, shard_tokens = 100000000, seed = 1;
    double val_fraction = 0.01;
    bool overwrite = false, keep_duplicates = false;
    std::string train_text, val_text;
    int64_t max_plies = 240, temperature = 12, nodes = 2000, random_plies = 8;
    double patience = 30;
    chess::GameFilter filter;
};

// ---------------------------------------------------------------------------------------------------------
// From games to rows to shards

// One half of the data set.
struct Split {
    std::string name;
    ShardSeries& series;
    size_t row;
    std::optional<AtomicFile> text; // the games as lines, if asked for
    size_t games = 0, characters = 0;
    std::vector<uint16_t> tokens = {}; // of the row being filled; one that is not full at the end is dropped
    bool broken = false; // a shard could not be written

    size_t rows() const { return series.tokens / row; }

    void add(const std::string& game) {
        games++;
        characters += game.size();
        broken = true; // unless all of this succeeds
        if (text) text->write((game + "\n").data(), game.size() + 1);
        for (size_t i = 0; i < game.size() && tokens.size() < row; i++)
            tokens.push_back(uint16_t(chess_id(game[i])));
        if (tokens.size() == row) {
            series.write(tokens.data(), row);
            tokens.clear();
        }
        broken = false;
    }
};

// The hashes of the games so far, in an open-addressed table: 10 to 20 bytes a game. (Two different games of
// 100 million share a hash with a probability of 0.0003.)
struct SeenGames {
    std::vector<uint64_t> slots = std::vector<uint64_t>(1 << 12); // 0: free
    size_t size = 0;

    // False if it was there already.
    bool insert(uint64_t hash) {
        if (10 * size >= 8 * slots.size()) {
            std::vector<uint64_t> old(2 * slots.size());
            old.swap(slots);
            for (uint64_t h : old)
                if (h) slots[place(h)] = h;
        }
        hash += hash == 0;
        uint64_t& slot = slots[place(hash)];
        if (slot) return false;
        slot = hash;
        size++;
        return true;
    }

  private:
    // Where the hash is or would be.
    size_t place(uint64_t hash) const {
        size_t i = hash & (slots.size() - 1);
        while (slots[i] && slots[i] != hash) i = (i + 1) & (slots.size() - 1);
        return i;
    }
};

struct DataSet {
    const Settings& settings;
    ShardFolder shards;
    Split train, val;
    SeenGames seen;
    size_t plies = 0, repeated = 0;
    std::string sample;
    std::exception_ptr failure; // what ended the work before its end

    DataSet(const DataSet&) = delete;
    explicit DataSet(const Settings& s)
        : settings(s), shards(s.out, TOKENIZER_CHESS, size_t(s.row), size_t(s.shard_tokens), s.overwrite),
          train{"train", shards.train, size_t(s.row), {}}, val{"val", shards.val, size_t(s.row), {}} {
        if (!s.train_text.empty()) train.text.emplace(s.train_text);
        if (!s.val_text.empty()) val.text.emplace(s.val_text);
    }
    size_t games() const { return train.games + val.games; }

    // A game from a file is in val by its text alone: the same game lands in the same half in whatever file
    // it is found, also in another run. A game played here has a number, which with the seed decides.
    void add_read(const std::string& text, size_t game_plies) {
        const uint64_t hash = mix64(random_stream(text.c_str()));
        add(hash, double(hash >> 11) * 0x1p-53, text, game_plies);
    }
    void add_played(uint64_t index, const std::string& text, size_t game_plies) {
        static const uint64_t stream = random_stream("val split");
        add(mix64(random_stream(text.c_str())), random_uniform(uint64_t(settings.seed), stream, index), text,
            game_plies);
    }

    // Puts what was made in its place. After a failure that is what could be written.
    void finish() {
        for (Split* split : {&train, &val}) {
            try {
                if (!split->broken) split->series.close_shard();
            } catch (const Error&) {
                split->broken = true;
                if (!failure) failure = std::current_exception();
            }
            if (split->broken) split->series.drop_shard();
        }
        if (train.rows() == 0) {
            if (failure) std::rethrow_exception(failure);
            if (stop_signal)
                fail("%s: interrupted before the first row was full; nothing was written",
                     settings.out.c_str());
            fail("%s: %zu games of %zu characters do not fill one row of %lld for training; nothing was "
                 "written",
                 settings.out.c_str(), train.games, train.characters, (long long)settings.row);
        }
        shards.publish();
        for (Split* split : {&train, &val}) {
            try {
                if (split->text) split->text->commit();
            } catch (const Error&) {
                if (!failure) failure = std::current_exception();
            }
        }
    }

  private:
    void add(uint64_t hash, double place, const std::string& text, size_t game_plies) {
        if (!seen.insert(hash)) {
            repeated++;
            if (!settings.keep_duplicates) return;
        }
        (place < settings.val_fraction ? val : train).add(text);
        plies += game_plies;
        if (sample.empty()) sample = text;
    }
};

// ---------------------------------------------------------------------------------------------------------
// The three sources. Each gives its games to the data set in the order of their numbers and returns the lines
// it has to say in the summary. What goes wrong on the way is put into data.failure: the games so far count.

using Lines = std::vector<std::string>;

struct MadeGame {
    std::vector<chess::Move> moves; // none: the game was not played to its end
    chess::Outcome outcome = chess::UNFINISHED;
    std::string text;
};

// Plays `games` games with make(index), so many at a time that all threads have work, and keeps their order.
static Lines play(const Settings& s, DataSet& data, size_t batch,
                  const std::function<MadeGame(uint64_t)>& make) {
    size_t by_outcome[6] = {}, played = 0;
    Progress progress(s.uci.empty() ? "playing" : "engine", "games", double(s.games));
    std::vector<MadeGame> games(batch);
    for (size_t begin = 0; begin < size_t(s.games) && !stop_signal && !data.failure; begin += batch) {
        const size_t n = std::min(batch, size_t(s.games) - begin);
        std::atomic<bool> failed = false; // then the other games are not begun
        parallel_items(n, [&](size_t i) {
            games[i] = {};
            try {
                if (stop_signal || failed) return;
                games[i] = make(begin + i);
                games[i].text = chess::to_game_text(games[i].moves);
            } catch (...) {
                games[i] = {};
                if (!failed.exchange(true) && !stop_signal) data.failure = std::current_exception();
            }
        });
        try {
            for (size_t i = 0; i < n; i++) {
                if (games[i].moves.empty()) continue;
                by_outcome[games[i].outcome]++;
                played++;
                data.add_played(begin + i, games[i].text, games[i].moves.size());
            }
        } catch (const Error&) {
            data.failure = std::current_exception();
        }
        progress.update(double(begin + n));
    }
    progress.finish(double(played));
    using namespace chess;
    return {strf(
        "endings    %zu checkmate, %zu stalemate, %zu threefold, %zu fifty moves, %zu insufficient material, "
        "%zu at the ply cap",
        by_outcome[CHECKMATE], by_outcome[STALEMATE], by_outcome[THREEFOLD], by_outcome[FIFTY_MOVES],
        by_outcome[INSUFFICIENT_MATERIAL], by_outcome[UNFINISHED])};
}

static Lines from_selfplay(const Settings& s, DataSet& data) {
    const chess::SelfplayOptions options = {uint64_t(s.seed), int(s.temperature), int(s.max_plies)};
    return play(s, data, 64 * thread_count(), [&](uint64_t index) {
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
        if (game.outcome() != chess::UNFINISHED) { // over already: another opening
            game = {};
            made = {};
        }
    }
    engine.new_game();
    while ((made.outcome = game.outcome()) == chess::UNFINISHED && made.moves.size() < size_t(s.max_plies)) {
        if (stop_signal) return {};
        made.moves.push_back(engine.best_move(game.position, made.moves, s.nodes));
        game.play(made.moves.back());
    }
    return made;
}

static Lines from_engine(const Settings& s, DataSet& data) {
    std::vector<std::unique_ptr<chess::Engine>> engines;
    for (size_t i = 0; i < std::min(thread_count(), size_t(s.games)) && !stop_signal; i++)
        engines.push_back(std::make_unique<chess::Engine>(s.uci, s.patience, &stop_signal));
    // A batch has as many games as there are engines, so that each game of it has one of its own, whichever
    // thread plays it.
    return play(s, data, engines.size(),
                [&](uint64_t index) { return engine_game(s, *engines[index % engines.size()], index); });
}

static Lines from_file(const Settings& s, chess::GameFilter filter, DataSet& data) {
    const chess::InputFile file(s.pgn);
    const std::function<bool(const chess::Tags&)> wanted = [&](const chess::Tags& tags) {
        return filter.wanted(tags);
    };
    Progress progress("reading", "bytes", file.size());
    // Counted as it is read: it may be long until a game comes that is wanted.
    size_t bytes = 0;
    const ByteSource counted = [&, source = file.source(&stop_signal)](char* to, size_t n) {
        const size_t got = source(to, n);
        bytes += got;
        progress.update(double(bytes));
        return got;
    };
    chess::GameFile games(counted, file.name, "make_chess --pgn - ..", filter.any() ? wanted : nullptr);
    try {
        for (chess::GameRecord game; s.games == 0 || data.games() < size_t(s.games);) {
            // (A game that an interrupt has ended may be half read.)
            if (!games.next(game) || stop_signal) break;
            if (filter.keeps(game)) data.add_read(game.text, game.moves.size());
        }
    } catch (const Error&) {
        data.failure = std::current_exception();
    }
    progress.finish(double(bytes));
    const chess::GameCounts& c = games.counts();
    if (data.games() == 0 && !stop_signal && !data.failure) {
        if (filter.left_out())
            fail("%s: no game is left of %llu: left out %s", file.name.c_str(), (unsigned long long)c.games(),
                 filter.summary().c_str());
        games.fail_if_none();
    }
    const auto n = [](uint64_t x) { return (unsigned long long)x; };
    Lines lines = {strf("read       %llu games, %s of %s", n(c.games()),
                        human_bytes(double(games.bytes_read())).c_str(), games.format)};
    if (filter.left_out())
        lines.push_back(strf("left out   %llu: %s", n(filter.left_out()), filter.summary().c_str()));
    lines.push_back(strf("dropped    %llu", n(c.dropped())));
    for (const std::string& reason : c.reasons()) lines.push_back("           " + reason);
    if (c.stray) lines.push_back(strf("           %llu words outside any game", n(c.stray)));
    return lines;
}

// ---------------------------------------------------------------------------------------------------------

static void print_summary(const Settings& s, const DataSet& data, const Lines& lines, double seconds) {
    for (const std::string& line : lines) printf("%s\n", line.c_str());
    if (data.repeated)
        printf("repeated   %zu games%s\n", data.repeated,
               s.keep_duplicates ? ", kept" : ", dropped (--keep-duplicates keeps them)");
    printf("games      %zu in %s, %s games/s\n", data.games(), human_duration(seconds).c_str(),
           human_count(double(data.games()) / seconds).c_str());
    printf("moves      %zu plies, %.1f a game\n", data.plies, double(data.plies) / double(data.games()));
    for (const Split* split : {&data.train, &data.val}) {
        printf("%-10s %zu games, %zu rows of %lld = %s tokens", split->name.c_str(), split->games,
               split->rows(), (long long)s.row, human_count(double(split->series.tokens)).c_str());
        if (split->rows() == 0) {
            printf("; no shard: too few games for a row\n");
            continue;
        }
        printf(", %.1f%% of the characters (the others: cut at a row's end)\n",
               100 * double(split->series.tokens) / double(split->characters));
        printf("           %s", split->series.path(0).c_str());
        if (split->series.shards > 1) printf(" .. %s", split->series.path(split->series.shards - 1).c_str());
        printf("%s%s\n", split->text ? " and " : "", split->text ? split->text->path.c_str() : "");
    }
    printf("rows       for models of %lld positions (--seq %lld): of a longer row a shorter model sees the "
           "beginning only\n",
           (long long)s.row - 1, (long long)s.row - 1);
    printf("sample     %s%s\n", data.sample.substr(0, 96).c_str(), data.sample.size() > 96 ? " .." : "");
}

int main(int argc, char** argv) {
    return run_main([&] {
        Settings s;
        Options options(
            "make_chess",
            "Writes games of chess as chess-32 token shards: train_000000.bin .., val_000000.bin ..\n"
            "The games come from --games (played here), --pgn or --uci. The shards are put in place at the "
            "end,\n"
            "all at once. Ctrl-C ends early and keeps the games so far; so does an error on the way (status "
            "1).\n"
            "A game of --pgn is in val or not by its text alone: in the same half in every run, whatever "
            "else is\n"
            "read. Of games played here --seed and the game's number decide.");
        options.section("where the games come from");
        options.add(0, "games", "N", &s.games, 1, int64_t(1) << 40,
                    "games to play; with --pgn: stop when so many are kept");
        options.add(0, "pgn", "FILE", &s.pgn,
                    "PGN, game text (;1.e4 e5) or CSV with a column transcript; - for standard input");
        options.add(0, "uci", "PROGRAM", &s.uci, "engine to play --games games against itself");
        options.section("what is written");
        options.add('o', "out", "DIR", &s.out, "folder for the shards, made if need be");
        options.add(0, "row", "R", &s.row, 8, 1 << 20,
                    "characters in a row: one more than the model's positions");
        options.add(0, "val-fraction", "X", &s.val_fraction, 0, 0.5, "share of the games that goes to val");
        options.add(0, "keep-duplicates", &s.keep_duplicates,
                    "keep a game that was there before (finding them takes 10 to 20 bytes a game)");
        options.add(0, "shard-tokens", "N", &s.shard_tokens, 1, 4000000000, "tokens in a shard, about");
        options.add(0, "train-text", "FILE", &s.train_text,
                    "write the train games as text too, one per line");
        options.add(0, "val-text", "FILE", &s.val_text, "the same for val");
        options.add(0, "overwrite", &s.overwrite, "replace the shards of an earlier run in DIR");
        s.filter.add_options(options);
        options.section("how games are played");
        options.add(0, "seed", "N", &s.seed, 0, INT64_MAX, "of the games played and of their split");
        options.add_threads();
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
        s.filter.validate();
        if (s.filter.any() && s.pgn.empty())
            fail_usage("--min-elo, --result and the like choose among the games of --pgn FILE");

        stop_on_signals(Reads::end);
        const double begin = now_seconds();
        DataSet data(s);
        const Lines lines = !s.pgn.empty()   ? from_file(s, s.filter, data)
                            : !s.uci.empty() ? from_engine(s, data)
                                             : from_selfplay(s, data);
        data.finish();
        if (stop_signal) printf("interrupted: the games so far are kept\n");
        if (data.failure) printf("an error ended it early: what was written by then is kept\n");
        print_summary(s, data, lines, now_seconds() - begin);
        fflush(stdout);
        if (data.failure) std::rethrow_exception(data.failure);
        return stop_signal ? 128 + stop_signal : 0;
    });
}
