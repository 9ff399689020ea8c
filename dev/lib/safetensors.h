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
bool dtype_from_name(const std::string& name, Dtype* dtype);

// bf16 is the upper half of a float: 1 sign bit, 8 exponent bits, 7 of the mantissa.
inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

// Rounds to the nearest bf16, ties to even: adds just under half of the last kept bit, and the rest when
// that bit is odd. A NaN stays a NaN of the same sign (rounding could carry it over to infinity).
uint16_t float_to_bf16(float x);

// fp16: 1 sign bit, 5 exponent bits (bias 15; float's is 127), 10 of the mantissa. Exact.
float f16_to_float(uint16_t bits);

// Size in bytes of a tensor; false when that, or the number of elements, is more than size_t holds.
bool tensor_bytes(const std::vector<size_t>& shape, Dtype dtype, size_t* bytes);

// (2, 3) -> "[2,3]", for headers and messages.
std::string shape_text(const std::vector<size_t>& shape);

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

// What a file is that people take for a checkpoint of safetensors, by its first bytes; "" when none of them.
// The length of a safetensors header comes first, so its third byte is small and its ninth an opening brace.
std::string foreign_kind(const uint8_t* data, size_t size);

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

    void read(const uint8_t* data, size_t size);

    void read_metadata(const Json& json);

    SafeTensor read_tensor(const std::string& name, const Json& json, const uint8_t* buffer,
                           size_t buffer_size);

    std::vector<size_t> read_sizes(const std::string& name, const char* field, const Json& json);

    // A hostile shape may have a million dimensions: a message shows the first few.
    static std::string short_shape(std::vector<size_t> shape);

    [[noreturn]] __attribute__((format(printf, 3, 4))) void refuse(const std::string& tensor,
                                                                   const char* format, ...) const;
};

// `count` elements of a floating-point tensor from `first` on, in order, as float or double. Refuses a tensor
// of integers. F64 into float rounds; everything else is exact.
template <class Real> void read_floats(const SafeTensor& t, Real* out, size_t first, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint8_t* p = t.data + (first + i) * dtype_size(t.dtype);
        uint16_t half;
        float single;
        double whole;
        switch (t.dtype) {
        case F64:
            memcpy(&whole, p, sizeof whole);
            out[i] = Real(whole);
            break;
        case F32:
            memcpy(&single, p, sizeof single);
            out[i] = Real(single);
            break;
        case BF16:
            memcpy(&half, p, sizeof half);
            out[i] = Real(bf16_to_float(half));
            break;
        case F16:
            memcpy(&half, p, sizeof half);
            out[i] = Real(f16_to_float(half));
            break;
        default:
            fail("%s: tensor %s: dtype %s, expected F32, BF16, F16 or F64", t.file.c_str(),
                 quoted(t.name).c_str(), dtype_name(t.dtype));
        }
    }
}
// All of them: out has t.elements() places.
template <class Real> void read_floats(const SafeTensor& t, Real* out) {
    read_floats(t, out, 0, t.elements());
}

// ---------------------------------------------------------------------------------------------------------
// Writing

// Declare every tensor, then write their data in the same order, then commit(). The same calls give the same
// bytes: metadata stands sorted by key, tensors as declared. The header is padded with spaces so that the
// data begins at a multiple of 8. Destroyed without commit(), it leaves the file as it was before.
struct SafeTensorsWriter {
    SafeTensorsWriter(const std::string& path, const std::map<std::string, std::string>& metadata);

    void declare(const std::string& name, Dtype dtype, const std::vector<size_t>& shape);

    // The next bytes of the data of all tensors.
    void write(const void* data, size_t bytes);

    // Refuses when the data is not complete. On return the file is whole under its name, also after a power
    // cut.
    void commit();

  private:
    AtomicFile file;
    std::string header;
    std::set<std::string> names;
    bool header_written = false;
    size_t declared = 0, written = 0; // bytes of data

    void write_header();
};
