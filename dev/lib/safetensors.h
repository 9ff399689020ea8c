// safetensors files, read and written: 8 bytes with the length N of the header (little-endian), N bytes of
// JSON, then the data of all tensors without gaps. The header is an object: "__metadata__" (optional) maps
// strings to strings, every other name is a tensor {"dtype", "shape", "data_offsets": [begin, end)}, offsets
// counted from the end of the header. The reader maps the file and believes nothing it has not checked; the
// writer streams the data and leaves either the whole new file or whatever was there before.
#pragma once
#include "file.h"
#include "json.h"
#include <algorithm>
#include <bit>
#include <map>
#include <memory>

static_assert(std::endian::native == std::endian::little, "tensors are read and written in memory order");

// ---------------------------------------------------------------------------------------------------------
// Element types

enum Dtype { BOOL, U8, I8, U16, I16, F16, BF16, U32, I32, F32, U64, I64, F64 };

struct DtypeInfo {
    const char* name;
    size_t size; // bytes per element
};
constexpr DtypeInfo dtype_table[] = {{"BOOL", 1}, {"U8", 1},   {"I8", 1},  {"U16", 2}, {"I16", 2},
                                     {"F16", 2},  {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},
                                     {"U64", 8},  {"I64", 8},  {"F64", 8}};

constexpr const char* dtype_name(Dtype dtype) { return dtype_table[dtype].name; }
constexpr size_t dtype_size(Dtype dtype) { return dtype_table[dtype].size; }

// Returns false when no type has this name.
inline bool dtype_from_name(const std::string& name, Dtype* dtype) {
    for (size_t i = 0; i < std::size(dtype_table); i++)
        if (name == dtype_table[i].name) return *dtype = Dtype(i), true;
    return false;
}

// bf16 is the upper half of a float: 1 sign bit, 8 exponent bits, 7 of the mantissa.
inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

// Rounds to the nearest bf16, ties to even: adds just under half of the last kept bit, and the rest when
// that bit is odd. A NaN stays a NaN of the same sign (rounding could carry it over to infinity).
inline uint16_t float_to_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if (x != x) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// fp16: 1 sign bit, 5 exponent bits (bias 15; float's is 127), 10 of the mantissa. Exact.
inline float f16_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits >> 15) << 31, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x = float(mantissa) * 0x1p-24f; // zero and subnormal
    if (exponent == 31)
        x = std::bit_cast<float>(0x7F800000u | mantissa << 13);
    else if (exponent > 0)
        x = std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x) | sign);
}

// Size in bytes of a tensor; false when that, or the number of elements, is more than size_t holds.
inline bool tensor_bytes(const std::vector<size_t>& shape, Dtype dtype, size_t* bytes) {
    size_t n = 1;
    for (const size_t dim : shape)
        if (__builtin_mul_overflow(n, dim, &n)) return false;
    return !__builtin_mul_overflow(n, dtype_size(dtype), bytes);
}

// (2, 3) -> "[2,3]", for headers and messages.
inline std::string shape_text(const std::vector<size_t>& shape) {
    std::string text = "[";
    for (const size_t dim : shape) text += strf(text.size() == 1 ? "%zu" : ",%zu", dim);
    return text + "]";
}

// ---------------------------------------------------------------------------------------------------------
// Reading

constexpr size_t safetensors_max_header = 100'000'000; // the format's own limit

struct SafeTensor {
    std::string name;
    Dtype dtype;
    std::vector<size_t> shape;
    const uint8_t* data; // inside the mapped file, at any alignment: read it with memcpy
    size_t bytes;
    std::string file; // for messages

    size_t elements() const { return bytes / dtype_size(dtype); }
};

struct SafeTensorsFile {
    std::string path;
    std::map<std::string, std::string> metadata;
    std::vector<SafeTensor> tensors; // in the order of their data

    explicit SafeTensorsFile(const std::string& path) : path(path), mapping(new MappedFile(path)) {
        read(mapping->data, mapping->size);
    }
    // From memory that outlives this object; `name` stands for the file in messages.
    SafeTensorsFile(const uint8_t* data, size_t size, const std::string& name) : path(name) {
        read(data, size);
    }

    // nullptr when there is no such tensor.
    const SafeTensor* find(const std::string& name) const {
        const auto found = index.find(name);
        return found == index.end() ? nullptr : &tensors[found->second];
    }

  private:
    std::unique_ptr<MappedFile> mapping;
    std::map<std::string, size_t> index; // name -> place in tensors

    void read(const uint8_t* data, size_t size) {
        uint64_t header_size;
        if (size < sizeof header_size)
            fail("%s: not a whole safetensors file: %zu bytes, expected 8 for the header's length",
                 path.c_str(), size);
        memcpy(&header_size, data, sizeof header_size);
        if (header_size > safetensors_max_header)
            fail("%s: not a safetensors file: a header of %llu bytes, expected at most %zu", path.c_str(),
                 (unsigned long long)header_size, safetensors_max_header);
        if (header_size > size - 8)
            fail("%s: truncated: a header of %zu bytes, but only %zu follow its length", path.c_str(),
                 size_t(header_size), size - 8);
        if (header_size == 0 || data[8] != '{')
            fail("%s: not a safetensors file: its header is not a JSON object", path.c_str());
        const Json header = parse_json((const char*)data + 8, header_size, path + ": header");

        const uint8_t* buffer = data + 8 + header_size;
        const size_t buffer_size = size - 8 - header_size;
        for (size_t i = 0; i < header.keys.size(); i++) {
            if (header.keys[i] == "__metadata__")
                read_metadata(header.items[i]);
            else
                tensors.push_back(read_tensor(header.keys[i], header.items[i], buffer, buffer_size));
        }

        // In the order of the data, every tensor begins where the one before ends: no overlaps, no holes.
        // Several without elements may share a place, also with the tensor that begins there.
        std::stable_sort(tensors.begin(), tensors.end(), [](const SafeTensor& a, const SafeTensor& b) {
            return a.data != b.data ? a.data < b.data : a.bytes < b.bytes;
        });
        size_t end = 0;
        for (size_t i = 0; i < tensors.size(); i++) {
            const SafeTensor& t = tensors[i];
            const size_t begin = size_t(t.data - buffer);
            if (begin != end)
                refuse(t.name, "its data begins at byte %zu, expected %zu, where the tensor before it ends%s",
                       begin, end, begin < end ? ": they overlap" : "");
            end = begin + t.bytes;
            index[t.name] = i;
        }
        if (end != buffer_size)
            fail("%s: %zu bytes of data, but its tensors take %zu", path.c_str(), buffer_size, end);
    }

    void read_metadata(const Json& json) {
        if (json.type != Json::Object) fail("%s: header: __metadata__ is not a JSON object", path.c_str());
        for (size_t i = 0; i < json.keys.size(); i++) {
            if (json.items[i].type != Json::String)
                fail("%s: header: __metadata__ %s is not a string", path.c_str(),
                     quoted(json.keys[i]).c_str());
            metadata[json.keys[i]] = json.items[i].text;
        }
    }

    SafeTensor read_tensor(const std::string& name, const Json& json, const uint8_t* buffer,
                           size_t buffer_size) {
        const Json *dtype = json.find("dtype"), *shape = json.find("shape"),
                   *offsets = json.find("data_offsets");
        if (json.type != Json::Object || !dtype || !shape || !offsets)
            refuse(name, "expected an object with dtype, shape and data_offsets");
        SafeTensor t{name, F32, {}, nullptr, 0, path};
        if (dtype->type != Json::String) refuse(name, "its dtype is not a string");
        if (!dtype_from_name(dtype->text, &t.dtype))
            refuse(name, "unknown dtype %s, expected one of BOOL, U8..U64, I8..I64, F16, BF16, F32, F64",
                   quoted(dtype->text).c_str());
        t.shape = read_sizes(name, "shape", *shape);

        const std::vector<size_t> range = read_sizes(name, "data_offsets", *offsets);
        if (range.size() != 2) refuse(name, "%zu data_offsets, expected 2", range.size());
        const size_t begin = range[0], end = range[1];
        if (begin > end) refuse(name, "its data_offsets end at %zu, before they begin at %zu", end, begin);
        if (end > buffer_size)
            refuse(name, "its data ends at byte %zu, but the file has %zu bytes of data: truncated?", end,
                   buffer_size);
        if (!tensor_bytes(t.shape, t.dtype, &t.bytes))
            refuse(name, "its shape %s has more elements than can be counted", short_shape(t.shape).c_str());
        if (t.bytes != end - begin)
            refuse(name, "data_offsets of %zu bytes, expected %zu for shape %s of %s", end - begin, t.bytes,
                   short_shape(t.shape).c_str(), dtype_name(t.dtype));
        t.data = buffer + begin;
        return t;
    }

    std::vector<size_t> read_sizes(const std::string& name, const char* field, const Json& json) {
        if (json.type != Json::Array) refuse(name, "its %s is not a list", field);
        std::vector<size_t> sizes;
        for (const Json& item : json.items) {
            if (!item.is_unsigned())
                refuse(name, "its %s holds something other than whole numbers >= 0", field);
            sizes.push_back(item.magnitude);
        }
        return sizes;
    }

    // A hostile shape may have a million dimensions: a message shows the first few.
    static std::string short_shape(std::vector<size_t> shape) {
        if (shape.size() <= 8) return shape_text(shape);
        shape.resize(8);
        return shape_text(shape) + "...";
    }

    [[noreturn]] __attribute__((format(printf, 3, 4))) void refuse(const std::string& tensor,
                                                                   const char* format, ...) const {
        va_list args;
        va_start(args, format);
        const std::string reason = vstrf(format, args);
        va_end(args);
        fail("%s: tensor %s: %s", path.c_str(), quoted(tensor).c_str(), reason.c_str());
    }
};

// All elements of a floating-point tensor, in order, as float or double: out has t.elements() places.
// Refuses a tensor of integers. F64 into float rounds; everything else is exact.
template <class Real> void read_floats(const SafeTensor& t, Real* out) {
    for (size_t i = 0, n = t.elements(); i < n; i++) {
        const uint8_t* p = t.data + i * dtype_size(t.dtype);
        uint16_t half;
        float single;
        double whole;
        switch (t.dtype) {
        case F64:
            memcpy(&whole, p, sizeof whole), out[i] = Real(whole);
            break;
        case F32:
            memcpy(&single, p, sizeof single), out[i] = Real(single);
            break;
        case BF16:
            memcpy(&half, p, sizeof half), out[i] = Real(bf16_to_float(half));
            break;
        case F16:
            memcpy(&half, p, sizeof half), out[i] = Real(f16_to_float(half));
            break;
        default:
            fail("%s: tensor %s: dtype %s, expected F32, BF16, F16 or F64", t.file.c_str(),
                 quoted(t.name).c_str(), dtype_name(t.dtype));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Writing

// Declare every tensor, then write their data in the same order, then commit(). The same calls give the same
// bytes: metadata stands sorted by key, tensors as declared. The header is padded with spaces so that the
// data begins at a multiple of 8. Destroyed without commit(), it leaves the file as it was before.
struct SafeTensorsWriter {
    SafeTensorsWriter(const std::string& path, const std::map<std::string, std::string>& metadata)
        : file(path) {
        if (metadata.empty()) return;
        header = "{\"__metadata__\":{";
        for (const auto& [key, value] : metadata) header += json_quote(key) + ":" + json_quote(value) + ",";
        header.back() = '}';
    }

    void declare(const std::string& name, Dtype dtype, const std::vector<size_t>& shape) {
        size_t bytes, end;
        if (!tensor_bytes(shape, dtype, &bytes) || __builtin_add_overflow(declared, bytes, &end))
            fail("%s: tensor %s %s is too large", file.path.c_str(), quoted(name).c_str(),
                 shape_text(shape).c_str());
        if (header_written || name == "__metadata__" || names.count(name))
            fail("%s: tensor %s cannot be declared: %s", file.path.c_str(), quoted(name).c_str(),
                 header_written ? "data has been written" : "the name is taken");
        const std::string entry = json_quote(name) + ":{\"dtype\":\"" + dtype_name(dtype) +
                                  "\",\"shape\":" + shape_text(shape) +
                                  ",\"data_offsets\":" + shape_text({declared, end}) + "}";
        header += (header.empty() ? '{' : ',') + entry;
        names.insert(name);
        declared = end;
    }

    // The next bytes of the data of all tensors.
    void write(const void* data, size_t bytes) {
        write_header();
        if (bytes > declared - written)
            fail("%s: %zu bytes of data after %zu, expected %zu in all", file.path.c_str(), bytes, written,
                 declared);
        file.write(data, bytes);
        written += bytes;
    }

    // Refuses when the data is not complete. On return the file is whole under its name, also after a power
    // cut.
    void commit() {
        write_header();
        if (written != declared)
            fail("%s: %zu bytes of data, expected %zu", file.path.c_str(), written, declared);
        file.commit();
    }

  private:
    AtomicFile file;
    std::string header;
    std::set<std::string> names;
    bool header_written = false;
    size_t declared = 0, written = 0; // bytes of data

    void write_header() {
        if (header_written) return;
        header += header.empty() ? "{}" : "}";
        header.resize((header.size() + 7) / 8 * 8, ' ');
        if (header.size() > safetensors_max_header)
            fail("%s: a header of %zu bytes, the format allows %zu", file.path.c_str(), header.size(),
                 safetensors_max_header);
        const uint64_t size = header.size();
        file.write(&size, sizeof size);
        file.write(header.data(), header.size());
        header_written = true;
    }
};
