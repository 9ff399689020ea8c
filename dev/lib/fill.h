// A text with gaps, and what goes into them.
#pragma once
#include <cstring>
#include <map>
#include <string>

// The text with parts[name] in the place of every {{name}}; every name must be there.
inline std::string filled(const char* from, const std::map<std::string, std::string>& parts) {
    std::string out;
    while (const char* begin = strstr(from, "{{")) {
        const char* end = strstr(begin, "}}");
        out.append(from, begin);
        out += parts.at(std::string(begin + 2, end));
        from = end + 2;
    }
    return out + from;
}
