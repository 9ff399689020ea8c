#include "rank_frames.h"
#include "../lib/error.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace {
constexpr char magic[4] = {'M', 'O', 'E', 'X'};
constexpr size_t header_bytes = 16;

std::string word(uint32_t value) {
    std::string bytes(4, '\0');
    for (int i = 0; i < 4; i++) bytes[i] = char(value >> 8 * i);
    return bytes;
}
uint32_t word_at(const std::string& bytes, size_t offset) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) value |= uint32_t(uint8_t(bytes[offset + i])) << 8 * i;
    return value;
}
} // namespace

std::string Frame::text(const char* name) const {
    for (const auto& [key, value] : fields)
        if (key == name) return value;
    return "";
}

long long Frame::number(const char* name, long long low, long long high) const {
    const std::string value = text(name);
    char* end;
    const long long n = strtoll(value.c_str(), &end, 10);
    return end == value.c_str() || *end ? low : std::clamp(n, low, high);
}

std::string encode(const Frame& frame) {
    std::string payload;
    for (const auto& [name, value] : frame.fields)
        for (const std::string* text : {&name, &value}) payload += text->substr(0, text->find('\0')) + '\0';
    if (payload.size() > largest_payload)
        fail("what ranks tell each other is %zu bytes, expected at most %zu", payload.size(),
             largest_payload);
    return std::string(magic, 4) + word(uint32_t(frame.kind)) + word(uint32_t(frame.rank)) +
           word(uint32_t(payload.size())) + payload;
}

bool FrameReader::next(Frame* frame) {
    if (memcmp(bytes.data(), magic, std::min(bytes.size(), sizeof magic)) != 0) fail("no frame of moex");
    if (bytes.size() < header_bytes) return false;
    const uint32_t kind = word_at(bytes, 4), rank = word_at(bytes, 8), length = word_at(bytes, 12);
    if (kind < first_frame_kind || kind > last_frame_kind || rank > 65535 || length > largest_payload)
        fail("a frame of kind %u, rank %u, %u bytes", kind, rank, length);
    if (bytes.size() < header_bytes + length) return false;
    *frame = {FrameKind(kind), int(rank), {}};
    const std::string payload = bytes.substr(header_bytes, length);
    bytes.erase(0, header_bytes + length);
    for (size_t at = 0; at < payload.size();) {
        std::string texts[2];
        for (std::string& text : texts) {
            const size_t zero = payload.find('\0', at);
            if (zero == std::string::npos) fail("a frame whose texts do not end");
            text = payload.substr(at, zero - at);
            at = zero + 1;
        }
        frame->fields.push_back({texts[0], texts[1]});
    }
    return true;
}
