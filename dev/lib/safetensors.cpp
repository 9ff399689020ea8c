// The reader, which checks everything before it hands it out, and the writer of safetensors.h.
#include "safetensors.h"

bool dtype_from_name(const std::string& name, Dtype* dtype) {
    for (size_t i = 0; i < std::size(dtype_table); i++)
        if (name == dtype_table[i].name) return *dtype = Dtype(i), true;
    return false;
}

uint16_t float_to_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if (x != x) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float f16_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits >> 15) << 31, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x = float(mantissa) * 0x1p-24f; // zero and subnormal
    if (exponent == 31)
        x = std::bit_cast<float>(0x7F800000u | mantissa << 13);
    else if (exponent > 0)
        x = std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x) | sign);
}

bool tensor_bytes(const std::vector<size_t>& shape, Dtype dtype, size_t* bytes) {
    size_t n = 1;
    for (const size_t dim : shape)
        if (__builtin_mul_overflow(n, dim, &n)) return false;
    return !__builtin_mul_overflow(n, dtype_size(dtype), bytes);
}

std::string shape_text(const std::vector<size_t>& shape) {
    std::string text = "[";
    for (const size_t dim : shape) text += strf(text.size() == 1 ? "%zu" : ",%zu", dim);
    return text + "]";
}

std::string foreign_kind(const uint8_t* data, size_t size) {
    auto begins = [&](const char* text, size_t n) { return size >= n && memcmp(data, text, n) == 0; };
    int32_t word = 0;
    if (size >= 4) memcpy(&word, data, 4);
    const char* pickle = "a PyTorch file (.pt, .bin): save its tensors with the safetensors package";
    if (size > 8 && data[8] == '{' && data[6] == 0 && data[7] == 0) return "";
    if (begins("PK\3\4", 4)) {
        const std::string head((const char*)data, std::min<size_t>(size, 200));
        return head.find(".npy") != std::string::npos ? "a NumPy archive (.npz)" : pickle;
    }
    if (begins("\x80\2", 2) || begins("\x80\4", 2)) return pickle;
    if (begins("GGUF", 4)) return "a GGUF file (llama.cpp)";
    if (begins("\x89HDF", 4)) return "an HDF5 file";
    if (begins("\x93NUMPY", 6)) return "a NumPy array (.npy)";
    if (begins("\x1F\x8B", 2)) return "compressed (gzip): unpack it first";
    if (begins("\x28\xB5\x2F\xFD", 4)) return "compressed (zstd): unpack it first";
    if (begins("version https://git-lfs", 23))
        return "a Git LFS pointer: `git lfs pull` fetches the file itself";
    if (begins("{", 1)) return "JSON text";
    if (begins("<!DOCTYPE", 9) || begins("<html", 5)) return "a web page: the download went wrong";
    if (word == 20240326) return "a checkpoint of llm.c, which cannot be read yet";
    if (word == 20240520) return "a token shard";
    return "";
}

void SafeTensorsFile::read(const uint8_t* data, size_t size) {
    if (const std::string kind = foreign_kind(data, size); !kind.empty())
        fail("%s: %s, not a safetensors file", path.c_str(), kind.c_str());
    uint64_t header_size;
    if (size < sizeof header_size)
        fail("%s: not a whole safetensors file: %zu bytes, expected 8 for the header's length", path.c_str(),
             size);
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

void SafeTensorsFile::read_metadata(const Json& json) {
    if (json.type != Json::Object) fail("%s: header: __metadata__ is not a JSON object", path.c_str());
    for (size_t i = 0; i < json.keys.size(); i++) {
        if (json.items[i].type != Json::String)
            fail("%s: header: __metadata__ %s is not a string", path.c_str(), quoted(json.keys[i]).c_str());
        metadata[json.keys[i]] = json.items[i].text;
    }
}

SafeTensor SafeTensorsFile::read_tensor(const std::string& name, const Json& json, const uint8_t* buffer,
                                        size_t buffer_size) {
    const Json *dtype = json.find("dtype"), *shape = json.find("shape"), *offsets = json.find("data_offsets");
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

std::vector<size_t> SafeTensorsFile::read_sizes(const std::string& name, const char* field,
                                                const Json& json) {
    if (json.type != Json::Array) refuse(name, "its %s is not a list", field);
    std::vector<size_t> sizes;
    for (const Json& item : json.items) {
        if (!item.is_unsigned()) refuse(name, "its %s holds something other than whole numbers >= 0", field);
        sizes.push_back(item.magnitude);
    }
    return sizes;
}

std::string SafeTensorsFile::short_shape(std::vector<size_t> shape) {
    if (shape.size() <= 8) return shape_text(shape);
    shape.resize(8);
    return shape_text(shape) + "...";
}

void SafeTensorsFile::refuse(const std::string& tensor, const char* format, ...) const {
    va_list args;
    va_start(args, format);
    const std::string reason = vstrf(format, args);
    va_end(args);
    fail("%s: tensor %s: %s", path.c_str(), quoted(tensor).c_str(), reason.c_str());
}

SafeTensorsWriter::SafeTensorsWriter(const std::string& path,
                                     const std::map<std::string, std::string>& metadata)
    : file(path) {
    if (metadata.empty()) return;
    header = "{\"__metadata__\":{";
    for (const auto& [key, value] : metadata) header += json_quote(key) + ":" + json_quote(value) + ",";
    header.back() = '}';
}

void SafeTensorsWriter::declare(const std::string& name, Dtype dtype, const std::vector<size_t>& shape) {
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

void SafeTensorsWriter::write(const void* data, size_t bytes) {
    write_header();
    if (bytes > declared - written)
        fail("%s: %zu bytes of data after %zu, expected %zu in all", file.path.c_str(), bytes, written,
             declared);
    file.write(data, bytes);
    written += bytes;
}

void SafeTensorsWriter::commit() {
    write_header();
    if (written != declared)
        fail("%s: %zu bytes of data, expected %zu", file.path.c_str(), written, declared);
    file.commit();
}

void SafeTensorsWriter::write_header() {
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
