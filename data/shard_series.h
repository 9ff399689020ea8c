// A data set as the makers write it: two series of shards, train_000000.bin .. and val_000000.bin .., in one
// folder. Shards are written under names of their own (train_000000.bin.part) and put in place together, by
// publish(), when all are whole and on the disk; only then those of an earlier run go. A maker that fails
// before leaves the folder as it was. Two makers cannot write into one folder at a time.
#pragma once
#include "shard.h"
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <optional>
#include <sys/file.h>
#include <unistd.h>

// A numbered series of shards, <prefix>_000000.bin and on, each full but for the last.
struct ShardSeries {
    std::string prefix; // folder and name
    Tokenizer tokenizer;
    size_t row, shard_tokens;      // shard_tokens: of a full one; whole rows, at least one
    size_t shards = 0, tokens = 0; // whole shards; tokens in them and in the one being written
    std::optional<ShardWriter> writer = {};

    std::string path(size_t shard) const { return strf("%s_%06zu.bin", prefix.c_str(), shard); }
    static constexpr const char* part = ".part"; // behind the name until publish()

    // Whole rows, if the series has rows.
    void write(const uint16_t* ids, size_t n) {
        const size_t full = row ? std::max<size_t>(1, shard_tokens / row) * row : shard_tokens;
        while (n > 0) {
            if (!writer) writer.emplace(path(shards) + part, tokenizer, row);
            const size_t k = std::min(n, full - writer->tokens);
            writer->write(ids, k);
            ids += k;
            n -= k;
            tokens += k;
            if (writer->tokens == full) close_shard();
        }
    }
    void close_shard() {
        if (!writer) return;
        writer->commit();
        writer.reset();
        shards++;
    }
    // The shard being written is given up: its disk is full, say. How many tokens go with it.
    size_t drop_shard() {
        const size_t lost = writer ? writer->tokens : 0;
        writer.reset();
        tokens -= lost;
        return lost;
    }
};

struct ShardFolder {
    std::string folder;
    ShardSeries train, val;

    // Refuses a folder that holds shards, unless they are to be replaced.
    ShardFolder(const std::string& folder, Tokenizer tokenizer, size_t row, size_t shard_tokens,
                bool overwrite)
        : folder(folder), train{folder + "/train", tokenizer, row, shard_tokens}, val{folder + "/val",
                                                                                      tokenizer, row,
                                                                                      shard_tokens} {
        make_directories(folder);
        lock = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(lock);
            fail("%s: another make_chess or make_text is writing there, expected one at a time",
                 folder.c_str());
        }
        const std::vector<std::string> old = files("");
        if (!old.empty() && !overwrite) {
            close(lock);
            fail("%s: there already, from an earlier run; give --overwrite to replace it, or another --out",
                 old[0].c_str());
        }
        // Left by a run that was killed: nobody else writes here.
        for (const std::string& path : files(ShardSeries::part)) unlink(path.c_str());
    }
    ShardFolder(const ShardFolder&) = delete;
    ~ShardFolder() {
        train.writer.reset();
        val.writer.reset();
        if (!publishing)
            for (const ShardSeries* series : {&train, &val})
                for (size_t i = 0; i < series->shards; i++)
                    unlink((series->path(i) + ShardSeries::part).c_str());
        if (lock >= 0) close(lock);
    }

    // What was written becomes the folder's data set, in place of what was there. Everything is durable
    // before anything is removed; the old shards go before the first new one has its name, so that whoever
    // looks at the folder in between finds too little and never a mixture.
    void publish() {
        train.close_shard();
        val.close_shard();
        publishing = true; // from here on what was written stays, whatever goes wrong
        for (const std::string& path : files(""))
            if (unlink(path.c_str()) != 0) fail("%s: cannot be removed: %s", path.c_str(), strerror(errno));
        for (const ShardSeries* series : {&train, &val})
            for (size_t i = 0; i < series->shards; i++) {
                const std::string path = series->path(i), from = path + ShardSeries::part;
                if (rename(from.c_str(), path.c_str()) != 0)
                    fail("%s: cannot be renamed to %s: %s", from.c_str(), path.c_str(), strerror(errno));
            }
        if (lock >= 0) fsync(lock);
    }

  private:
    int lock;
    bool publishing = false;

    // What a maker has written, and nothing else: train_NNNNNN.bin and val_NNNNNN.bin, or, with a suffix,
    // names that begin like this and go on with it.
    std::vector<std::string> files(const std::string& suffix) const {
        std::vector<std::string> paths;
        std::error_code problem;
        for (const auto& entry : std::filesystem::directory_iterator(folder, problem)) {
            const std::string name = entry.path().filename().string();
            for (const std::string series : {"train_", "val_"}) {
                const size_t number = series.size(), end = std::min(number + 6, name.size());
                if (name.compare(0, number, series) != 0) continue;
                if (name.find_first_not_of("0123456789", number) != end) continue;
                const std::string rest = name.substr(end), expected = ".bin" + suffix;
                if (suffix.empty() ? rest == expected : rest.starts_with(expected))
                    paths.push_back(folder + "/" + name);
            }
        }
        std::sort(paths.begin(), paths.end());
        return paths;
    }
};
