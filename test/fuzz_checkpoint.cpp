// libFuzzer target for what reads checkpoints: any bytes at all may only give tensors whose every byte can be
// touched, or an Error. Build with clang++ -fsanitize=fuzzer,address,undefined.
// The first byte of the input says how the rest is used: as a file, as a header whose length is put before it
// (so that the fuzzer need not find that number), as JSON, as edits to the checkpoint of a tiny model
// (triples of an offset in two bytes and the byte to put there), or as the name of a file in a state.
#include "../dev/run/checkpoint.h"
#include <cstdlib>

// A violated expectation ends the process, which is what libFuzzer looks for.
static void expect(bool ok) {
    if (!ok) abort();
}

static void read_file(const uint8_t* data, size_t size) {
    const SafeTensorsFile file(data, size, "input");
    size_t total = 0;
    for (const SafeTensor& t : file.tensors) {
        expect(file.find(t.name) == &t);
        expect(t.data >= data + 8 && t.bytes <= size && t.data + t.bytes <= data + size);
        unsigned sum = 0;
        for (size_t i = 0; i < t.bytes; i++) sum += t.data[i];
        volatile unsigned touched = sum; // keeps the loop
        (void)touched;
        total += t.bytes;
        const bool floats = t.dtype == F64 || t.dtype == F32 || t.dtype == F16 || t.dtype == BF16;
        std::vector<float> single(t.elements());
        std::vector<double> whole(t.elements());
        try {
            read_floats(t, single.data());
            read_floats(t, whole.data());
            expect(floats || t.elements() == 0);
        } catch (const Error&) {
            expect(!floats);
        }
        for (size_t i = 0; i < single.size(); i++)
            if (t.dtype == F32 || t.dtype == BF16 || t.dtype == F16)
                expect(double(single[i]) == whole[i] || whole[i] != whole[i]);
    }
    expect(total <= size);

    // As a model: its config may be refused, but what is accepted must be readable.
    const Config config = read_config(file);
    const std::vector<Tensor> table = tensor_table(config);
    std::vector<float> weights(block_elements(table));
    read_block(file, table, "", weights.data());
}

// A whole checkpoint of the smallest model there is.
static const std::vector<uint8_t>& tiny_checkpoint() {
    static const std::vector<uint8_t> bytes = [] {
        Config c;
        c.n_layer = 1, c.n_head = 1, c.n_embd = 2, c.block_size = 2, c.vocab_size = 3;
        c.n_expert = 2, c.n_expert_active = 1, c.d_expert = 2;
        const std::vector<Tensor> table = tensor_table(c);
        std::vector<float> weights(block_elements(table));
        init_parameters(c, table, weights.data(), 1);
        const std::string path = strf("/tmp/fuzz_checkpoint_%d.safetensors", int(getpid()));
        save_model(path, c, table, weights.data(), 7);
        const MappedFile file(path);
        unlink(path.c_str());
        return std::vector<uint8_t>(file.data, file.data + file.size);
    }();
    return bytes;
}

// What was read, written as JSON and read again, is the same.
static std::string to_text(const Json& v) {
    std::string out;
    if (v.type == Json::Null) return "null";
    if (v.type == Json::Boolean) return v.boolean ? "true" : "false";
    if (v.type == Json::Integer) return (v.negative ? "-" : "") + std::to_string(v.magnitude);
    if (v.type == Json::Number) return json_number(v.number);
    if (v.type == Json::String) return json_quote(v.text);
    for (size_t i = 0; i < v.items.size(); i++) {
        if (i > 0) out += ",";
        if (v.type == Json::Object) out += json_quote(v.keys[i]) + ":";
        out += to_text(v.items[i]);
    }
    return v.type == Json::Object ? "{" + out + "}" : "[" + out + "]";
}
static void read_json(const uint8_t* data, size_t size) {
    const std::string text = to_text(parse_json((const char*)data, size, "input"));
    expect(to_text(parse_json(text, "own text")) == text);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const uint8_t how = data[0] % 5;
    data++, size--;
    try {
        if (how == 0) read_file(data, size);
        if (how == 1) {
            // The header ends at the first zero byte (JSON has none); what follows is the tensors' data.
            const void* zero = size ? memchr(data, 0, size) : nullptr;
            const uint64_t header = zero ? size_t((const uint8_t*)zero - data) : size;
            std::vector<uint8_t> file(8 + size - (zero ? 1 : 0)); // exactly as large as the file
            memcpy(file.data(), &header, 8);
            if (header) memcpy(file.data() + 8, data, header);
            if (zero && size > header + 1)
                memcpy(file.data() + 8 + header, data + header + 1, size - header - 1);
            read_file(file.data(), file.size());
        }
        if (how == 2) read_json(data, size);
        if (how == 4) {
            const std::string bytes((const char*)data, size), text = percent_encoded(bytes);
            expect(is_utf8(text) && percent_decoded(text, "input") == bytes && is_utf8(shown_as_utf8(bytes)));
            percent_decoded(bytes, "input");
        }
        if (how == 3) {
            std::vector<uint8_t> file = tiny_checkpoint();
            for (size_t i = 0; i + 3 <= size; i += 3)
                file[(data[i] | data[i + 1] << 8) % file.size()] = data[i + 2];
            read_file(file.data(), file.size());
        }
    } catch (const Error& e) {
        expect(strlen(e.what()) < 1000 && !strchr(e.what(), '\n')); // one line a person can read
    }
    return 0;
}
