// Flags into a state file and back: see stored_flags.h.
#include "stored_flags.h"
#include "../lib/json.h"

Strings flag_strings(const Options& options) {
    Strings strings;
    for (const std::string& name : options.names()) {
        if (options.stored(name) == Stored::No) continue;
        const std::string value = options.text(name);
        if (is_utf8(value))
            strings["flag." + name] = value;
        else
            strings["encoded." + name] = percent_encoded(value);
    }
    return strings;
}

// A flag of a run as its state file has it; false when it has it not.
static bool stored_flag(const SafeTensorsFile& state, const std::string& name, std::string* value) {
    const auto plain = state.metadata.find("flag." + name), encoded = state.metadata.find("encoded." + name);
    if (encoded != state.metadata.end())
        *value = percent_decoded(encoded->second, state.path + ": metadata: " + name);
    else if (plain != state.metadata.end())
        *value = plain->second;
    else
        return false;
    return true;
}

std::string restore_flags(const SafeTensorsFile& state, Options& options, const MayTake& may_take) {
    std::string differ, was;
    for (const std::string& name : options.names()) {
        if (!stored_flag(state, name, &was)) continue;
        const std::string now = options.text(name);
        const Stored kind = options.stored(name);
        if (!options.given(name) || (kind == Stored::FromPreset && now == options.initial(name))) {
            try {
                options.restore(name, was);
            } catch (const Error& e) {
                fail("%s: metadata: %s", state.path.c_str(), e.what());
            }
            continue;
        }
        std::string note;
        if (kind == Stored::Free || (may_take && may_take(name, was, note)) || now == was) continue;
        differ += strf("%s--%s %s (was %s%s)", differ.empty() ? "" : ", ", name.c_str(), now.c_str(),
                       was.c_str(), note.c_str());
    }
    return differ;
}

int64_t whole_number(const SafeTensorsFile& file, const std::string& name, const std::string& text) {
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
        fail("%s: metadata: %s is %s, expected a whole number", file.path.c_str(), name.c_str(),
             quoted(text).c_str());
    return std::stoll(text);
}

double real_number(const SafeTensorsFile& file, const std::string& name) {
    const std::string& text = metadata_entry(file, name);
    char* end = nullptr;
    const double value = strtod(text.c_str(), &end);
    if (text.empty() || *end || !std::isfinite(value))
        fail("%s: metadata: %s is %s, expected a number", file.path.c_str(), name.c_str(),
             quoted(text).c_str());
    return value;
}

std::string resume_command(std::vector<std::string> words, const std::string& out) {
    auto word = [](const std::string& text) {
        if (text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-./") ==
            std::string::npos)
            return text;
        std::string quotes = "'";
        for (const char c : text) quotes += c == '\'' ? std::string("'\\''") : std::string(1, c);
        return quotes + "'";
    };
    words.insert(words.end(), {"--resume", "--out", out});
    std::string command;
    for (const std::string& w : words) {
        if (!command.empty()) command += ' ';
        command += word(w);
    }
    return command;
}
