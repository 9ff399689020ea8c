// Games of chess to measure on: see games.h.
#include "games.h"
#include <unordered_set>

std::vector<size_t> dots_of(const std::string& text, size_t n) {
    std::vector<size_t> places;
    for (size_t i = 0; i < text.size() && places.size() < n; i++)
        if (text[i] == '.') places.push_back(i);
    return places;
}

bool legal_up_to_dots(const std::string& text, size_t dots) {
    const size_t last = dots_of(text, dots).back();
    chess::GameTextReader game;
    for (size_t i = 0; i < last && game.ok(); i++) game.push(text[i]);
    return game.ok();
}

std::vector<uint32_t> blocks_of_events(const std::vector<std::string>& events) {
    const size_t longest = std::max<size_t>(1, events.size() / 100);
    std::vector<uint32_t> blocks;
    size_t length = 0; // of the last block
    for (size_t i = 0; i < events.size(); i++) {
        const bool named = !events[i].empty() && events[i] != "?";
        const bool goes_on = i > 0 && named && events[i] == events[i - 1] && length < longest;
        length = goes_on ? length + 1 : 1;
        blocks.push_back(i == 0 ? 0 : blocks.back() + !goes_on);
    }
    return blocks;
}

// What is being read into a set.
struct GameIntake {
    GameSet& set;
    size_t most;
    std::vector<std::string> events; // of the games kept
    std::unordered_set<std::string> seen;

    bool add(std::string text, const std::string& event) { // false: enough
        set.read++;
        text.resize(std::min({text.size(), set.characters, text.find(';', 1)}));
        if (text.size() < set.characters || dots_of(text, set.dots).size() < set.dots) {
            set.shorter++;
        } else if (!legal_up_to_dots(text, set.dots)) {
            set.illegal++;
        } else if (!seen.insert(text).second) {
            set.repeated++;
        } else {
            set.texts.push_back(std::move(text));
            events.push_back(event);
        }
        return set.size() < most;
    }
};

// The rows of a shard, up to the characters that are needed; false: enough.
static bool add_shard(GameIntake& intake, const Shard& shard) {
    const char* name = shard.file.path.c_str();
    if (shard.header.tokenizer != TOKENIZER_CHESS)
        fail("%s: its tokens are %s, expected chess-32", name, tokenizer_name(shard.header.tokenizer));
    if (shard.header.row == 0) fail("%s: a stream, expected rows that begin with a game", name);
    std::string row(std::min(shard.header.row, intake.set.characters + 1), ' ');
    for (size_t at = 0; at < shard.header.tokens; at += shard.header.row) {
        for (size_t i = 0; i < row.size(); i++) {
            if (shard.tokens[at + i] >= chess_vocab)
                fail("%s: token %zu is %d, expected less than %zu", name, at + i, shard.tokens[at + i],
                     size_t(chess_vocab));
            row[i] = chess_char(shard.tokens[at + i]);
        }
        if (!intake.add(row, "")) return false;
    }
    return true;
}

GameSet read_games(const std::string& path, size_t characters, size_t dots, size_t most) {
    GameSet set;
    set.source = path;
    set.characters = characters;
    set.dots = dots;
    GameIntake intake{set, most, {}, {}};

    // A name under which nothing stands is a pattern; so is what begins as a shard. (A pipe does not.)
    struct stat st;
    const bool there = stat(path.c_str(), &st) == 0 && !S_ISDIR(st.st_mode);
    int32_t magic = 0;
    if (FILE* file = there && S_ISREG(st.st_mode) ? fopen(path.c_str(), "rb") : nullptr) {
        if (fread(&magic, sizeof magic, 1, file) != 1) magic = 0;
        fclose(file);
    }
    if (!there || magic == shard_magic) {
        for (const Shard& shard : open_shards(path))
            if (!add_shard(intake, shard)) break;
    } else {
        const chess::InputFile input(path);
        chess::GameFile games(input.source(), path, "", {}, true);
        bool more = true;
        for (chess::GameRecord game; more && games.next(game);)
            more = intake.add(game.text, game.tags.find("event"));
        if (more) games.fail_if_none();
    }
    if (set.texts.empty())
        fail("%s: none of its %zu games has %zu characters with %zu legal moves of White (%zu are shorter, "
             "%zu not legal)",
             path.c_str(), set.read, characters, dots, set.shorter, set.illegal);
    set.block = blocks_of_events(intake.events);
    return set;
}

// Some games of a set, in order; blocks keep what is left of them, and are numbered anew.
static GameSet chosen_games(const GameSet& from, const std::vector<size_t>& games) {
    GameSet set = from;
    set.texts.clear();
    set.block.clear();
    for (size_t i = 0; i < games.size(); i++) {
        const bool new_block = i > 0 && from.block[games[i]] != from.block[games[i - 1]];
        set.texts.push_back(from.texts[games[i]]);
        set.block.push_back(i == 0 ? 0 : set.block.back() + new_block);
    }
    return set;
}

static GameSplit deal_out(const GameSet& all, size_t count) {
    std::vector<size_t> dealt[2]; // train, test
    for (size_t i = 0, end; i < all.size(); i = end) {
        for (end = i; end < all.size() && all.block[end] == all.block[i];) end++;
        std::vector<size_t>& to = dealt[dealt[1].size() < dealt[0].size()];
        for (size_t game = i; game < end && to.size() < count; game++) to.push_back(game);
    }
    if (dealt[0].size() == dealt[1].size() + 1) dealt[0].pop_back(); // as many of each
    return {chosen_games(all, dealt[0]), chosen_games(all, dealt[1])};
}

GameSplit split_games(const std::string& path, const std::string& test_path, size_t characters, size_t dots,
                      size_t count) {
    if (test_path.empty()) {
        GameSet all = read_games(path, characters, dots, 2 * count);
        if (all.size() < 2)
            fail("%s: 1 fit game, expected 2 or more: one to choose on and one to measure on", path.c_str());
        return deal_out(all, count);
    }
    GameSplit split;
    split.train = read_games(path, characters, dots, count);
    const GameSet test = read_games(test_path, characters, dots, 2 * count);
    const std::unordered_set<std::string> known(split.train.texts.begin(), split.train.texts.end());
    std::vector<size_t> fresh;
    size_t repeated = 0;
    for (size_t i = 0; i < test.size(); i++)
        if (known.count(test.texts[i]))
            repeated++;
        else if (fresh.size() < count)
            fresh.push_back(i);
    if (fresh.empty()) fail("%s: every one of its games is in %s, too", test_path.c_str(), path.c_str());
    split.test = chosen_games(test, fresh);
    split.test.repeated += repeated;
    return split;
}
