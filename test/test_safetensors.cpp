// The files of checkpoints: JSON and safetensors read and written, every way they can be wrong, and what is
// left on disk when a write fails or the process is killed.
// Without arguments: the tests. `--write FILE` and `--read FILE COUNT` exchange the tensors of sample() with
// the safetensors package of Python (test_safetensors_interop.py).
#include "../dev/lib/safetensors.h"
#include "check.h"
#include <csignal>
#include <dirent.h>
#include <functional>
#include <sys/resource.h>
#include <sys/wait.h>

std::string folder; // a temporary folder for the files of this test

std::string read_all(const std::string& path) {
    const MappedFile file(path);
    return std::string((const char*)file.data, file.size);
}
void write_all(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}
std::vector<std::string> list_folder(const std::string& path) {
    std::vector<std::string> names;
    DIR* dir = opendir(path.c_str());
    while (const dirent* entry = readdir(dir))
        if (entry->d_name[0] != '.') names.push_back(entry->d_name);
    closedir(dir);
    return names;
}

// A safetensors file with this header text and data.
std::string assemble(const std::string& header, const std::string& data) {
    const uint64_t size = header.size();
    return std::string((const char*)&size, 8) + header + data;
}
// Reads a file held in memory, from a block of exactly its size so that a sanitizer sees any step beyond it.
void read_bytes(const std::string& file) {
    const std::unique_ptr<uint8_t[]> block(new uint8_t[file.size()]);
    memcpy(block.get(), file.data(), file.size());
    SafeTensorsFile(block.get(), file.size(), "some.safetensors");
}

// ---------------------------------------------------------------------------------------------------------
// Tensors of every type with known values

struct Sample {
    std::string name;
    Dtype dtype;
    std::vector<size_t> shape;
    size_t elements() const {
        size_t bytes = 0;
        tensor_bytes(shape, dtype, &bytes);
        return bytes / dtype_size(dtype);
    }
};

std::vector<Sample> sample() {
    std::vector<Sample> list = {{"odd", U8, {5}}}; // leaves everything after it unaligned
    for (int d = BOOL; d <= F64; d++)
        list.push_back({strf("h.0.%s", dtype_name(Dtype(d))), Dtype(d), {2, 3}});
    list.push_back({"scalar", F32, {}});
    list.push_back({"empty", F32, {0, 4}});
    list.push_back({"deep", I64, {1, 2, 1, 3, 1}});
    list.push_back({"caf\u00e9 \"\\\n", BF16, {1}});
    list.push_back({"empty at the end", F64, {3, 0}});
    return list;
}
const std::map<std::string, std::string> sample_metadata = {
    {"format", "pt"}, {"model", "moex"}, {"empty", ""}, {"note", "\"quoted\" \\ \n\t caf\u00e9 \U0001F642"}};

template <class T> void store(std::string& out, T value) { out.append((const char*)&value, sizeof value); }

// Element i: i - 2 for signed integers, half of that for floats, 3 i + 1 for unsigned ones, i odd for BOOL.
std::string sample_data(const Sample& s) {
    std::string out;
    for (size_t i = 0; i < s.elements(); i++) {
        const int n = int(i) - 2;
        const float x = 0.5f * n;
        const uint16_t f16[] = {0xBC00, 0xB800, 0, 0x3800, 0x3C00, 0x3E00}; // -1 -0.5 0 0.5 1 1.5
        switch (s.dtype) {
        case BOOL:
            store(out, uint8_t(i % 2));
            break;
        case U8:
            store(out, uint8_t(3 * i + 1));
            break;
        case I8:
            store(out, int8_t(n));
            break;
        case U16:
            store(out, uint16_t(3 * i + 1));
            break;
        case I16:
            store(out, int16_t(n));
            break;
        case F16:
            store(out, f16[i]);
            break;
        case BF16:
            store(out, float_to_bf16(x));
            break;
        case U32:
            store(out, uint32_t(3 * i + 1));
            break;
        case I32:
            store(out, int32_t(n));
            break;
        case F32:
            store(out, x);
            break;
        case U64:
            store(out, uint64_t(3 * i + 1));
            break;
        case I64:
            store(out, int64_t(n));
            break;
        case F64:
            store(out, double(x));
            break;
        }
    }
    return out;
}

void write_sample(const std::string& path) {
    SafeTensorsWriter writer(path, sample_metadata);
    for (const Sample& s : sample()) writer.declare(s.name, s.dtype, s.shape);
    for (const Sample& s : sample()) {
        const std::string data = sample_data(s);
        writer.write(data.data(), data.size());
    }
    writer.commit();
}

// The file holds `count` tensors of sample(), and nothing else.
void check_sample(const SafeTensorsFile& file, size_t count) {
    check(file.metadata == sample_metadata);
    check(file.tensors.size() == count);
    size_t found = 0;
    for (const Sample& s : sample()) {
        const SafeTensor* t = file.find(s.name);
        if (!t) continue;
        found++;
        check(t->dtype == s.dtype && t->shape == s.shape && t->elements() == s.elements(), "%s",
              s.name.c_str());
        check(std::string((const char*)t->data, t->bytes) == sample_data(s), "%s", s.name.c_str());
        if (s.dtype != F64 && s.dtype != F32 && s.dtype != F16 && s.dtype != BF16) {
            std::vector<float> out(s.elements());
            check_error(read_floats(*t, out.data()), t->file, t->name.substr(0, 4), dtype_name(s.dtype));
            continue;
        }
        std::vector<float> single(s.elements());
        std::vector<double> whole(s.elements());
        read_floats(*t, single.data());
        read_floats(*t, whole.data());
        for (size_t i = 0; i < s.elements(); i++) {
            check_near(single[i], 0.5 * (double(i) - 2), 0);
            check_near(whole[i], 0.5 * (double(i) - 2), 0);
        }
    }
    check(found == count);
}

void test_round_trip() {
    const std::string path = folder + "/sample.safetensors", again = folder + "/again.safetensors";
    write_sample(path);
    const SafeTensorsFile file(path);
    check_sample(file, sample().size());
    check(!file.find("absent") && !file.find("__metadata__"));
    for (size_t i = 0; i < file.tensors.size(); i++) check(file.tensors[i].name == sample()[i].name);

    // What was read, written again, gives the same bytes; the data begins at a multiple of 8.
    SafeTensorsWriter writer(again, file.metadata);
    for (const SafeTensor& t : file.tensors) writer.declare(t.name, t.dtype, t.shape);
    for (const SafeTensor& t : file.tensors) writer.write(t.data, t.bytes);
    writer.commit();
    check(read_all(again) == read_all(path));
    check((uintptr_t)file.tensors[0].data % 8 == 0);

    // No tensors, with and without metadata; the exact bytes of the smallest file.
    { SafeTensorsWriter(again, {}).commit(); }
    check(read_all(again) == assemble("{}      ", ""));
    check(SafeTensorsFile(again).tensors.empty());
    { SafeTensorsWriter(again, {{"b", "2"}, {"a", "1"}}).commit(); }
    check(read_all(again) == assemble("{\"__metadata__\":{\"a\":\"1\",\"b\":\"2\"}}      ", ""));

    // Data written in pieces that know nothing of tensors.
    SafeTensorsWriter pieces(again, sample_metadata);
    std::string all;
    for (const Sample& s : sample()) {
        pieces.declare(s.name, s.dtype, s.shape);
        all += sample_data(s);
    }
    for (const char c : all) pieces.write(&c, 1);
    pieces.commit();
    check(read_all(again) == read_all(path));
}

void test_writer_refuses() {
    const std::string path = folder + "/refused.safetensors";
    SafeTensorsWriter writer(path, {});
    const float x[2] = {1, 2};
    writer.declare("a", F32, {2});
    check_error(writer.declare("a", F32, {2}), path, "'a'", "taken");
    check_error(writer.declare("__metadata__", F32, {2}), path, "__metadata__");
    check_error(writer.declare("b", F32, {size_t(1) << 32, size_t(1) << 32}), path, "'b'", "too large");
    check_error(writer.declare("b", F32, {size_t(1) << 62}), path, "'b'");
    check_error(writer.declare("b\xFF", F32, {2}), "UTF-8");
    check_error(writer.commit(), path, "0 bytes", "expected 8");
    writer.write(x, 4);
    check_error(writer.declare("c", F32, {2}), path, "'c'", "data has been written");
    check_error(writer.commit(), path, "4 bytes", "expected 8");
    check_error(writer.write(x, 8), path, "8 bytes of data after 4", "expected 8");
    check_error(SafeTensorsWriter(path, {{"k", "\xC0\x80"}}), "UTF-8");
}

// ---------------------------------------------------------------------------------------------------------
// Number formats

void test_conversions() {
    for (uint32_t bits = 0; bits < 65536; bits++) { // every bf16 survives the way to float and back
        const float x = bf16_to_float(uint16_t(bits));
        if (!(x != x ? float_to_bf16(x) == (bits | 0x40) : float_to_bf16(x) == bits))
            check(false, "bf16 %04x", bits);
    }
    check(float_to_bf16(1.0f) == 0x3F80);
    check(float_to_bf16(0x1.01p0f) == 0x3F80);       // halfway between 3F80 and 3F81: to the even one
    check(float_to_bf16(0x1.03p0f) == 0x3F82);       // halfway between 3F81 and 3F82
    check(float_to_bf16(0x1.010002p0f) == 0x3F81);   // just above halfway
    check(float_to_bf16(-0x1.03p0f) == 0xBF82);      // the sign changes nothing
    check(float_to_bf16(0x1.FFFFFEp127f) == 0x7F80); // beyond the largest bf16: infinity
    check(float_to_bf16(0x1p-149f) == 0 && float_to_bf16(-0.0f) == 0x8000);
    check(float_to_bf16(std::bit_cast<float>(0x7F800001u)) == 0x7FC0); // a NaN of low bits only stays a NaN
    check(float_to_bf16(std::bit_cast<float>(0xFFFFFFFFu)) == 0xFFFF);

    // Every fp16 against its definition: (-1)^sign * 2^(e - 15) * 1.mantissa, 2^-14 * 0.mantissa when e is 0.
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const int exponent = int(bits >> 10 & 31), mantissa = int(bits & 1023);
        const double m = mantissa / 1024.0, sign = bits >> 15 ? -1 : 1;
        const double expected = exponent == 31 ? (mantissa ? NAN : INFINITY)
                                : exponent     ? std::ldexp(1 + m, exponent - 15)
                                               : std::ldexp(m, -14);
        const float x = f16_to_float(uint16_t(bits));
        if (!(std::isnan(expected) ? std::isnan(x) : x == sign * expected) || std::signbit(x) != (sign < 0))
            check(false, "fp16 %04x", bits);
    }

    // F64 into float rounds, and infinities and NaN arrive.
    const double values[] = {0.1, -INFINITY, NAN, 1e300};
    float out[4];
    const std::string file = assemble("{\"a\":{\"dtype\":\"F64\",\"shape\":[4],\"data_offsets\":[0,32]}}",
                                      std::string((const char*)values, 32));
    const SafeTensorsFile read((const uint8_t*)file.data(), file.size(), "some.safetensors");
    read_floats(read.tensors[0], out);
    check(out[0] == 0.1f && out[1] == -INFINITY && out[2] != out[2] && out[3] == INFINITY);
}

// ---------------------------------------------------------------------------------------------------------
// Files that are wrong

void test_truncation() {
    const std::string path = folder + "/sample.safetensors", cut = folder + "/cut.safetensors";
    write_sample(path);
    const std::string whole = read_all(path);
    for (size_t n = 0; n < whole.size(); n++) {
        check_error(read_bytes(whole.substr(0, n)), "some.safetensors: ");
        if (n % 97 == 0) {
            write_all(cut, whole.substr(0, n));
            check_error(SafeTensorsFile{cut}, cut + ": ");
        }
    }
    check_error(read_bytes(whole + "x"), "some.safetensors: ", "data");

    SafeTensorsWriter writer(path, sample_metadata);
    const std::vector<float> values(50'000, 1.5f);
    for (int i = 0; i < 200; i++) writer.declare(strf("h.%d.weight", i), F32, {500, i < 8 ? 100u : 1u});
    for (int i = 0; i < 200; i++) writer.write(values.data(), i < 8 ? 200'000 : 2'000);
    writer.commit();
    const std::string large = read_all(path);
    check(large.size() > 1'900'000);
    for (size_t n = 0; n < large.size(); n += 1 + n / 7)
        check_error(read_bytes(large.substr(0, n)), "some.safetensors: ");
    for (size_t n = large.size() - 8; n < large.size(); n++)
        check_error(read_bytes(large.substr(0, n)), "truncated");

    check_error(SafeTensorsFile{folder + "/absent"}, folder + "/absent: ", "No such file");
    check_error(SafeTensorsFile{folder}, folder + ": ", "not a regular file");
}

void test_hostile_headers() {
    const auto with_length = [](uint64_t n, std::string rest) {
        return std::string((const char*)&n, 8) + rest;
    };
    check_error(read_bytes(with_length(0, "")), "some.safetensors", "not a JSON object");
    check_error(read_bytes(with_length(0, "{}")), "not a JSON object");
    check_error(read_bytes(with_length(1, "{}")), "broken JSON");
    check_error(read_bytes(with_length(3, "{}")), "truncated", "3 bytes", "only 2");
    check_error(read_bytes(with_length(uint64_t(1) << 63, "{}")), "at most 100000000");
    check_error(read_bytes(with_length(UINT64_MAX, "{}")), "at most 100000000");
    check_error(read_bytes(with_length(UINT64_MAX - 7, "{}")), "at most 100000000");
    check_error(read_bytes(with_length(100'000'001, "{}")), "at most 100000000");
    check_error(read_bytes(with_length(100'000'000, "{}")), "truncated");
    check_error(read_bytes(std::string(100, '\0')), "not a JSON object");

    // Headers that are not what they should be. In H, * stands for a tensor of one float at [0,4].
    const std::string one = "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}";
    const auto header = [&](std::string h) {
        for (size_t at; (at = h.find('*')) != std::string::npos;) h.replace(at, 1, one);
        return assemble(h, "abcd");
    };
    const auto tensor = [&](const std::string& dtype, const std::string& shape, const std::string& offsets) {
        return assemble("{\"t\":{\"dtype\":" + dtype + ",\"shape\":" + shape +
                            ",\"data_offsets\":" + offsets + "}}",
                        "abcd");
    };
    read_bytes(header("{\"t\":*}"));
    read_bytes(header("{\"t\":*}    "));
    read_bytes(
        header("{\"t\" : * , \"u\":{\"shape\":[0],\"data_offsets\":[0,0],\"more\":1,\"dtype\":\"F64\"}}"));
    check_error(read_bytes(header("[*]")), "not a JSON object");
    check_error(read_bytes(header(" {\"t\":*}")), "not a JSON object");
    check_error(read_bytes(header("{\"t\":*")), "header: broken JSON", "',' or '}'");
    check_error(read_bytes(header("{\"t\":*}x")), "header: broken JSON", "'x'");
    check_error(read_bytes(header(std::string("{\"t\":*}\0", 8))), "header: broken JSON");
    check_error(read_bytes(header("{\"t\":*,\"t\":*}")), "'t' stands twice");
    check_error(read_bytes(header("{\"t\":*,\"\\u0074\":*}")), "'t' stands twice");
    check_error(read_bytes(header("{\"\xFF\":*}")), "header: broken JSON", "UTF-8");
    check_error(read_bytes(header("{" + std::string(100'000, '['))), "name in double quotes");
    check_error(read_bytes(header("{\"t\":" + std::string(100'000, '['))), "nested deeper than 64");
    std::string nest;
    for (int i = 0; i < 100'000; i++) nest += "{\"a\":";
    check_error(read_bytes(header(nest)), "nested deeper than 64");
    std::string zeros = "[0";
    for (int i = 0; i < 2'000'000; i++) zeros += ",0";
    check_error(read_bytes(tensor("\"F32\"", zeros + "]", "[0,4]")), "more than 1048576 values");
    check_error(read_bytes(tensor("\"F32\"", zeros.substr(0, 20002) + "]", "[0,4]")), "'t'",
                "[0,0,0,0,0,0,0,0]...");

    for (const char* bad :
         {"null", "1", "\"x\"", "[]", "{}", "{\"dtype\":\"F32\",\"shape\":[1]}",
          "{\"dtype\":\"F32\",\"data_offsets\":[0,4]}", "{\"shape\":[1],\"data_offsets\":[0,4]}"})
        check_error(read_bytes(header(std::string("{\"t\":") + bad + "}")), "some.safetensors: tensor 't'",
                    "dtype, shape and data_offsets");
    for (const char* bad : {"null", "1", "\"x\"", "[\"a\"]"})
        check_error(read_bytes(header(std::string("{\"t\":*,\"__metadata__\":") + bad + "}")),
                    "not a JSON object");
    for (const char* bad : {"null", "1", "true", "[\"a\"]", "{}"})
        check_error(
            read_bytes(header(std::string("{\"t\":*,\"__metadata__\":{\"a\":\"b\",\"k\":") + bad + "}}")),
            "__metadata__ 'k' is not a string");

    for (const char* bad : {"\"F99\"", "\"f32\"", "\"\"", "\"F32 \"", "\"F8_E4M3\"", "\"F32\\u0000\""})
        check_error(read_bytes(tensor(bad, "[1]", "[0,4]")), "tensor 't'", "unknown dtype");
    for (const char* bad : {"null", "32", "[\"F32\"]"})
        check_error(read_bytes(tensor(bad, "[1]", "[0,4]")), "tensor 't'", "dtype is not a string");
    for (const char* bad : {"null", "1", "\"[1]\"", "{}"}) {
        check_error(read_bytes(tensor("\"F32\"", bad, "[0,4]")), "tensor 't'", "shape is not a list");
        check_error(read_bytes(tensor("\"F32\"", "[1]", bad)), "tensor 't'", "data_offsets is not a list");
    }
    for (const char* bad :
         {"-1", "-0", "1.0", "1e0", "\"1\"", "null", "[1]", "true", "18446744073709551616"}) {
        check_error(read_bytes(tensor("\"F32\"", strf("[%s]", bad), "[0,4]")), "tensor 't'", "shape",
                    "whole numbers");
        check_error(read_bytes(tensor("\"F32\"", "[1]", strf("[%s,4]", bad))), "tensor 't'", "data_offsets",
                    "whole numbers");
    }
    for (const char* bad : {"[]", "[0]", "[0,4,4]"})
        check_error(read_bytes(tensor("\"F32\"", "[1]", bad)), "tensor 't'", "expected 2");
    check_error(read_bytes(tensor("\"F32\"", "[1]", "[4,0]")), "tensor 't'", "before they begin");
    check_error(read_bytes(tensor("\"F32\"", "[1]", "[1,5]")), "tensor 't'", "ends at byte 5");
    check_error(read_bytes(tensor("\"F32\"", "[1]", "[0,18446744073709551615]")), "tensor 't'", "truncated");
    check_error(read_bytes(tensor("\"F32\"", "[1]", "[18446744073709551612,18446744073709551615]")),
                "truncated");
    check_error(read_bytes(tensor("\"F32\"", "[2]", "[0,4]")), "tensor 't'", "4 bytes", "expected 8", "[2]");
    check_error(read_bytes(tensor("\"F64\"", "[1]", "[0,4]")), "tensor 't'", "4 bytes", "expected 8", "F64");
    check_error(read_bytes(tensor("\"F32\"", "[0]", "[0,4]")), "tensor 't'", "expected 0");
    check_error(read_bytes(tensor("\"F32\"", "[4294967296,4294967296]", "[0,0]")), "tensor 't'", "counted");
    check_error(read_bytes(tensor("\"F32\"", "[4611686018427387905]", "[0,4]")), "tensor 't'", "counted");
    check_error(read_bytes(tensor("\"F32\"", "[9223372036854775808,2]", "[0,0]")), "tensor 't'", "counted");

    // Ranges against each other and against the buffer of 4 bytes.
    const auto byte_at = [](const char* name, int begin, int end) {
        return strf("\"%s\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]}", name, end - begin,
                    begin, end);
    };
    const auto ranges = [&](std::string a, std::string b) {
        return assemble("{" + a + "," + b + "}", "abcd");
    };
    read_bytes(ranges(byte_at("a", 2, 4), byte_at("b", 0, 2)));
    check_error(read_bytes(ranges(byte_at("a", 0, 3), byte_at("b", 2, 4))), "tensor 'b'", "overlap");
    check_error(read_bytes(ranges(byte_at("a", 0, 4), byte_at("b", 0, 4))), "tensor 'b'", "overlap");
    check_error(read_bytes(ranges(byte_at("a", 0, 4), byte_at("b", 2, 2))), "tensor 'b'", "overlap");
    check_error(read_bytes(ranges(byte_at("a", 3, 4), byte_at("b", 0, 2))), "tensor 'a'",
                "begins at byte 3, expected 2");
    check_error(read_bytes(ranges(byte_at("a", 1, 2), byte_at("b", 2, 4))), "tensor 'a'",
                "begins at byte 1, expected 0");
    check_error(read_bytes(ranges(byte_at("a", 0, 1), byte_at("b", 1, 3))), "4 bytes of data", "take 3");
    check_error(read_bytes(assemble("{}", "abcd")), "4 bytes of data", "take 0");

    // A name cannot reach the terminal with its control characters, nor make the message endless.
    check_error(read_bytes(header("{\"\\n\\u001b[31m\\u0000\":{}}")), "tensor '??[31m?'");
    std::string message;
    try {
        read_bytes(header("{\"" + std::string(1'000'000, 'n') + "\":{}}"));
    } catch (const Error& e) {
        message = e.what();
    }
    check(message.size() > 80 && message.size() < 300, "%zu characters", message.size());
}

// Offsets beyond 4 GiB, in a file that is mostly a hole.
void test_large_file() {
    const std::string path = folder + "/large.safetensors";
    const size_t five_gib = size_t(5) << 30;
    std::string header = strf("{\"big\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[0,%zu]},",
                              five_gib / 4, five_gib);
    header += strf("\"tail\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}}", five_gib,
                   five_gib + 4);
    const std::string begin = assemble(header, "");
    const float tail = 42;
    {
        AtomicFile file(path);
        file.write(begin.data(), begin.size());
        file.write_at(begin.size() + five_gib, &tail, sizeof tail);
        file.commit();
    }
    const SafeTensorsFile file(path);
    float out = 0;
    read_floats(*file.find("tail"), &out);
    check(out == 42);
    check(file.find("big")->elements() == five_gib / 4 &&
          file.tensors[1].data - file.tensors[0].data == (ptrdiff_t)five_gib);
    unlink(path.c_str());
}

// ---------------------------------------------------------------------------------------------------------
// What is left when writing fails

// Runs f in a child process; returns its wait status, and exit status 0 when f returned true.
int in_child(const std::function<bool()>& f) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) _exit(f() ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    return status;
}

// A file of `megabytes` MiB whose every byte is `fill`.
void write_filled(const std::string& path, uint8_t fill, size_t megabytes,
                  const std::function<void(size_t)>& at) {
    const std::vector<uint8_t> block(1 << 20, fill);
    SafeTensorsWriter writer(path, {{"fill", std::to_string(fill)}});
    writer.declare("data", U8, {megabytes, block.size()});
    for (size_t i = 0; i < megabytes; i++) at(i), writer.write(block.data(), block.size());
    at(megabytes);
    writer.commit();
}
bool is_filled(const std::string& path) {
    const SafeTensorsFile file(path);
    const SafeTensor* t = file.find("data");
    for (size_t i = 0; i < t->bytes; i++)
        if (t->data[i] != atoi(file.metadata.at("fill").c_str())) return false;
    return t->bytes > 0;
}
void nothing(size_t) {}

void test_interrupted_writes() {
    const std::string dir = folder + "/atomic", path = dir + "/m.safetensors";
    make_directories(dir);
    write_filled(path, 1, 3, nothing);
    const std::string old = read_all(path);
    const auto untouched = [&] { return read_all(path) == old; };

    // Given up half way: the old file, and nothing else in the folder.
    check_error(write_filled(path, 2, 3,
                             [](size_t i) {
                                 if (i == 2) fail("interrupted");
                             }),
                "interrupted");
    check(untouched() && list_folder(dir).size() == 1);
    { AtomicFile(path).write("x", 1); }
    check(untouched() && list_folder(dir).size() == 1);

    // Disk full, as a limit on the size of files that makes write() fail in the middle.
    check(in_child([&] {
              signal(SIGXFSZ, SIG_IGN);
              const rlimit limit = {3 << 19, 3 << 19};
              setrlimit(RLIMIT_FSIZE, &limit);
              try {
                  write_filled(path, 3, 3, nothing);
              } catch (const Error& e) {
                  return strstr(e.what(), path.c_str()) && strstr(e.what(), strerror(EFBIG));
              }
              return false;
          }) == 0);
    check(untouched() && list_folder(dir).size() == 1);

    // Folders that cannot be written to.
    check_error(write_filled(path + "/m.safetensors", 4, 1, nothing),
                path + "/m.safetensors: ", strerror(ENOTDIR));
    check_error(write_filled("/proc/m.safetensors", 4, 1, nothing),
                "/proc/m.safetensors: ", "cannot be created");
    check_error(write_filled(dir + "/absent/m.safetensors", 4, 1, nothing), "absent/m.safetensors",
                strerror(ENOENT));
    check_error(make_directories(path + "/below"), path, "folder");
    make_directories(dir + "/taken.safetensors"); // found before anything is written
    check_error(write_filled(dir + "/taken.safetensors", 4, 1, nothing), "taken.safetensors", "a folder");
    check(untouched() && list_folder(dir).size() == 2);

    // Killed in the middle, at every megabyte, then at any moment while files are written one after the
    // other.
    for (size_t moment = 0; moment <= 3; moment++) {
        const int status = in_child([&] {
            write_filled(path, 5, 3, [&](size_t i) {
                if (i == moment) raise(SIGKILL);
            });
            return true;
        });
        check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        check(untouched());
    }
    for (int round = 0; round < 20; round++) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0)
            for (uint8_t fill = 1;; fill++) write_filled(path, fill, 2, nothing);
        usleep(useconds_t(1000 + 1700 * round));
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        check(is_filled(path), "round %d", round);
    }
}

// ---------------------------------------------------------------------------------------------------------
// JSON

void test_json() {
    // What is accepted, and the string it must hold.
    const std::pair<std::string, std::string> strings[] = {
        {"\"\"", ""},
        {" \t\r\n\"a\" \n", "a"},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u00e9\\u20AC\"", "A\u00e9\u20AC"},
        {"\"\\uD83D\\uDE42\"", "\U0001F642"},
        {"\"\\udbff\\udfff\"", "\U0010FFFF"},
        {"\"\\u0000\"", std::string(1, '\0')},
        {"\"\x7F\"", "\x7F"},
        {"\"\\uFFFF\\uD7FF\\uE000\"", "\uFFFF\uD7FF\uE000"},
        {"\"\U0001F642\u00e9\"", "\U0001F642\u00e9"}};
    for (const auto& [text, expected] : strings) {
        const Json v = parse_json(text, "j");
        check(v.type == Json::String && v.text == expected, "%s", text.c_str());
        check(parse_json(json_quote(v.text), "j").text == expected, "%s", text.c_str());
    }

    const std::pair<const char*, double> numbers[] = {
        {"0", 0},
        {"-1", -1},
        {"1.5", 1.5},
        {"1e3", 1000},
        {"1E+3", 1000},
        {"25e-1", 2.5},
        {"-0.0", -0.0},
        {"0e0", 0},
        {"0.1", 0.1},
        {"1e-400", 0},
        {"123456789012345678901234567890", 123456789012345678901234567890.0},
        {"1.7976931348623157e308", 1.7976931348623157e308}};
    for (const auto& [text, expected] : numbers) {
        const Json v = parse_json(text, "j");
        check(v.is_number() && v.number == expected && std::signbit(v.number) == std::signbit(expected), "%s",
              text);
    }
    const auto exact = [](const char* text) { return parse_json(text, "j"); };
    check(exact("18446744073709551615").is_unsigned() &&
          exact("18446744073709551615").magnitude == UINT64_MAX);
    check(!exact("18446744073709551615").is_int64() && exact("18446744073709551616").type == Json::Number);
    check(exact("9223372036854775807").is_int64() && exact("9223372036854775807").int64() == INT64_MAX);
    check(exact("-9223372036854775808").is_int64() && exact("-9223372036854775808").int64() == INT64_MIN);
    check(exact("-9223372036854775809").type == Json::Number && exact("-0").type == Json::Number);
    check(exact("1.0").type == Json::Number && exact("1e2").type == Json::Number && exact("7").int64() == 7);
    check(exact("9007199254740993").magnitude == 9007199254740993); // not the nearest double

    const Json v = parse_json(" { \"b\" : [ 1 , [ ] , { } , null ] , \"a\" : true , \"\" : false } ", "j");
    check(v.type == Json::Object && v.keys == std::vector<std::string>({"b", "a", ""}) &&
          v.items.size() == 3);
    check(v.find("b")->items.size() == 4 && v.find("b")->items[3].type == Json::Null && !v.find("c"));
    check(v.find("a")->boolean && v.find("")->type == Json::Boolean && !v.find("")->boolean);
    parse_json(std::string(64, '[') + std::string(64, ']'), "j");
    check_error(parse_json(std::string(65, '[') + std::string(65, ']'), "j"), "j: ", "nested deeper than 64");

    const std::string rejected[] = {
        // not a value, or not only one
        "", " ", "x", "nul", "nulll", "True", "NaN", "Infinity", "-Infinity", "'a'", "1 2", "{} {}", "[]]",
        "null,", "\xEF\xBB\xBF{}", "// c\n1", "1 /* c */", std::string("1\0", 2), std::string("\0", 1),
        // numbers
        "01", "-", "-a", "+1", ".5", "1.", "1.e3", "1e", "1e+", "0x10", "1_000", "--1", "1e999", "-1e999",
        "1,0",
        // arrays and objects
        "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{", "}", "{\"a\"", "{\"a\":", "{\"a\":1",
        "{\"a\":1,", "{\"a\":1,}", "{,}", "{a:1}", "{1:1}", "{\"a\" 1}", "{\"a\":1 \"b\":2}",
        "{\"a\":1,\"a\":1}", "{\"a\":1,\"b\":2,\"\\u0061\":1}", "[}", "{]",
        // strings
        "\"", "\"a", "\"\\\"", "\"\\", "\"\\x41\"", "\"\\u\"", "\"\\u00\"", "\"\\u00g0\"", "\"\\u 041\"",
        "\"\n\"", "\"\t\"", "\"\x1F\"", std::string("\"\0\"", 3), std::string("\"\\\0\"", 4), "\"\\uD800\"",
        "\"\\uD800x\"", "\"\\uD800\\n\"", "\"\\uD800\\u0041\"", "\"\\uDC00\"", "\"\\uD800\\uD800\"",
        "\"\\uDE42\\uD83D\"",
        // not UTF-8: stray, cut, overlong, surrogate, beyond U+10FFFF
        "\"\x80\"", "\"\xFF\"", "\"\xC3\"", "\"\xC3(\"", "\"\xE2\x82\"", "\"\xF0\x9F\x99\"", "\"\xC0\xAF\"",
        "\"\xE0\x80\xAF\"", "\"\xED\xA0\x80\"", "\"\xF0\x80\x80\x80\"", "\"\xF4\x90\x80\x80\"",
        "\"\xF5\x80\x80\x80\"", "\"\xE2\x82", "\"\xF0\x9F"};
    for (const std::string& text : rejected)
        check_error(parse_json(text, "log.jsonl: line 7"), "log.jsonl: line 7: ");
    check_error(parse_json("{\"a\":1,}", "j"), "byte 7", "'}'");

    check(json_quote("a\"b\\c\n\x01\x7F/\u00e9") == "\"a\\\"b\\\\c\\u000a\\u0001\\u007f/\u00e9\"");
    check_error(json_quote("a\x80"), "UTF-8", "byte 1");

    // Bytes that are not UTF-8: shown, and encoded so that they come back.
    check(shown_as_utf8("d\xE9/\u00e9") == "d\uFFFD/\u00e9" && is_utf8("d/\u00e9") && !is_utf8("d\xE9"));
    check(percent_encoded("d\xE9_5%\u00e9") == "d%E9_5%25\u00e9");
    std::string every;
    for (int c = 255; c >= 0; c--) every += char(c);
    for (const std::string& bytes : {every, std::string("%"), std::string("a%41"), std::string()})
        check(is_utf8(percent_encoded(bytes)) && percent_decoded(percent_encoded(bytes), "x") == bytes);
    for (const char* bad : {"%", "%4", "a%zz", "%4x"})
        check_error(percent_decoded(bad, "where"), "where", "%");
    JsonWriter shown;
    shown.open('{').member("d\xE9", "\xFF").close();
    check(shown.text == "{\"d\uFFFD\":\"\uFFFD\"}", "%s", shown.text.c_str());
    check(json_number(NAN) == "null" && json_number(INFINITY) == "null" && json_number(-INFINITY) == "null");
    check(json_number(0.1) == "0.1" && json_number(1e300) == "1e+300" && json_number(-3) == "-3");
    for (const double x : {1.0 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.125, 2e15 + 0.25})
        check(parse_json(json_number(x), "j").number == x, "%.17g", x);
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc == 3 && std::string(argv[1]) == "--write") return write_sample(argv[2]), 0;
        if (argc == 3 && std::string(argv[1]) == "--read")
            return check_sample(SafeTensorsFile(argv[2]), true), finish();

        const char* temporary = getenv("TMPDIR");
        folder = std::string(temporary ? temporary : "/tmp") + "/test_safetensors.XXXXXX";
        if (!mkdtemp(folder.data())) fail("%s: cannot be created: %s", folder.c_str(), strerror(errno));
        test_json();
        test_conversions();
        test_round_trip();
        test_writer_refuses();
        test_truncation();
        test_hostile_headers();
        test_large_file();
        test_interrupted_writes();
        for (const std::string& name : list_folder(folder + "/atomic"))
            remove((folder + "/atomic/" + name).c_str());
        for (const std::string& name : list_folder(folder)) remove((folder + "/" + name).c_str());
        check(rmdir(folder.c_str()) == 0);
        return finish();
    });
}
