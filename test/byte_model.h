// Models of bytes with untrained weights, small enough for a test of a tool to read a text with.
#pragma once
#include "../dev/interp/units_cpu.h"
#include "../dev/run/checkpoint.h"

// Two layers of 16 channels; ffn: moe (four experts of 16 units) or dense. Returns the path.
inline std::string save_byte_model(const std::string& path, const char* ffn, uint64_t seed) {
    Config c;
    c.n_layer = 2;
    c.n_head = 2;
    c.n_embd = 16;
    c.block_size = 32;
    c.vocab_size = 257;
    c.n_expert = 4;
    c.d_expert = 16;
    c.ffn = ffn;
    c.tokenizer = "bytes";
    Reader reader = cpu_reader(c, 1, 8);
    untrained_weights(reader, seed);
    save_model(path, c, reader.table, reader.weights(), 7);
    return path;
}

// A byte shard of the text.
inline std::string save_byte_shard(const std::string& path, const std::string& text) {
    ShardWriter shard(path, TOKENIZER_BYTES, 0);
    for (const char c : text) {
        const uint16_t id = (unsigned char)c;
        shard.write(&id, 1);
    }
    shard.commit();
    return path;
}

// A tool's JSON but for how long it took.
inline std::string without_times(std::string json) {
    const size_t at = json.find("\"seconds\":"), end = json.find(',', at);
    return json.erase(at, end - at);
}
