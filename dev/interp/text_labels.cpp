// What is true of a place in a text: see text_labels.h.
#include "text_labels.h"

std::string shown(const std::string& text) {
    std::string out;
    for (size_t i = 0, length; i < text.size(); i += std::max<size_t>(1, length)) {
        length = utf8_length(text.data() + i, text.size() - i);
        const unsigned char c = (unsigned char)text[i];
        if (length == 0 || c < 32 || c == 127)
            out += c == '\n' ? "\\n" : c == '\t' ? "\\t" : c == '\r' ? "\\r" : strf("\\x%02X", c);
        else
            out.append(text, i, length);
    }
    return out;
}

void check_known(const TokenRows& rows, const TextProperties& p) {
    for (const int32_t token : rows.tokens)
        if (size_t(token) >= p.vocabulary.size())
            fail("%s: token %d, expected less than the %zu of the tokenizer", rows.source.c_str(), token,
                 p.vocabulary.size());
}

TextProperties text_properties(const TokenRows& rows, Tokenizer kind, const std::string& gpt2_file) {
    TextProperties p;
    const TextTokenizer tokenizer = TextTokenizer::load(kind, gpt2_file);
    for (size_t id = 0; id < tokenizer.vocab_size(); id++) {
        p.vocabulary.push_back(tokenizer.decode(int32_t(id)));
        p.classes.push_back(byte_class(p.vocabulary.back()));
    }

    check_known(rows, p);
    std::unordered_map<uint64_t, size_t> counts;
    for (size_t i = 0; i < rows.size(); i++)
        text_keys(rows.tokens.data() + i / rows.T * rows.T, i % rows.T, rows.T,
                  [&](uint64_t key) { counts[key]++; });
    for (uint64_t k = 0; k < n_text_keys; k++) {
        std::vector<std::pair<size_t, uint64_t>> order;
        for (const auto& [key, n] : counts)
            if (key >> 48 == k && n >= least_seen) order.push_back({rows.size() - n, key});
        std::sort(order.begin(), order.end()); // the most frequent first
        order.resize(std::min(order.size(), k < TWO_END ? n_text_tokens : n_text_endings / 2));
        for (const auto& [rest, key] : order) {
            std::string text;
            for (int place = k == THREE_END ? 2 : k == TWO_END; place >= 0; place--)
                text += p.vocabulary[key >> (16 * place) & 0xFFFF];
            const std::string words = text.empty() ? " the end of a text" : " '" + shown(text) + "'";
            p.of_key[key] = p.list.size();
            p.list.push_back(
                {text_key_names[k], text_key_words[k] + words, text_key_negated[k] + words, k != TOKEN_NEXT});
        }
    }
    p.first_class = p.list.size();
    for (uint64_t k = 0; k < TWO_END; k++)
        for (const std::string& name : byte_class_names)
            p.list.push_back({text_key_names[k], std::string(text_key_words[k]) + " of class " + name,
                              std::string(text_key_negated[k]) + " of class " + name, k != TOKEN_NEXT});
    p.first_place = p.list.size();
    for (size_t i = 0; i < n_places; i++)
        p.list.push_back({"place", place_words[i][0], place_words[i][1], i != WORD_ENDS && i != IN_QUOTES});
    p.first_position = p.list.size();
    constexpr size_t n_positions = 16;
    for (size_t i = 1; i < n_positions; i++) {
        const size_t at = i * rows.T / n_positions;
        if (at == 0 || (!p.positions.empty() && at == p.positions.back())) continue;
        p.positions.push_back(at);
        p.list.push_back({"position", strf("the row is %zu tokens long or more", at),
                          strf("the row is less than %zu tokens long", at), true});
    }
    return p;
}

Labels label_text(const TokenRows& rows, const TextProperties& p) {
    check_known(rows, p);
    Labels labels;
    labels.tokens = rows.size();
    labels.words = (labels.tokens + 63) / 64;
    labels.bits.assign(p.list.size() * labels.words, 0);
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    const auto is_capital = [](char c) { return c >= 'A' && c <= 'Z'; };
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const std::string nothing;
    for (size_t r = 0; r < rows.rows; r++) {
        const int32_t* row = rows.tokens.data() + r * rows.T;
        bool quoted = false;
        size_t capitals = 0; // that end here
        for (size_t t = 0; t < rows.T; t++) {
            const size_t n = r * rows.T + t;
            const auto set = [&](size_t i) {
                labels.bits[i * labels.words + n / 64] |= uint64_t(1) << n % 64;
            };
            text_keys(row, t, rows.T, [&](uint64_t key) {
                if (const auto found = p.of_key.find(key); found != p.of_key.end()) set(found->second);
                if (const uint64_t k = key >> 48; k < TWO_END)
                    set(p.first_class + k * byte_class_names.size() + p.classes[key & 0xFFFF]);
            });

            const std::string& here = p.vocabulary[size_t(row[t])];
            const std::string& before = t ? p.vocabulary[size_t(row[t - 1])] : nothing;
            const std::string& next = t + 1 < rows.T ? p.vocabulary[size_t(row[t + 1])] : nothing;
            const auto set_place = [&](TextPlace place, bool holds) {
                if (holds) set(p.first_place + place);
            };
            const char first = here.empty() ? 0 : here[here.size() > 1 && here[0] == ' '];
            const char last = here.empty() ? 0 : here.back(), left = before.empty() ? 0 : before.back();
            const bool joined = !here.empty() && here[0] == first; // no blank before the word
            for (const char c : here) {
                capitals = is_capital(c) ? capitals + 1 : 0;
                quoted = c == '"' ? !quoted : quoted && c != '\n';
            }
            if (here.empty()) {
                capitals = 0;
                quoted = false;
            }
            set_place(IN_WORD, joined && is_letter(first) && is_letter(left));
            set_place(WORD_BEGINS, is_letter(first) && !(joined && is_letter(left)));
            set_place(WORD_ENDS, is_letter(last) && t + 1 < rows.T && (next.empty() || !is_letter(next[0])));
            set_place(IN_NUMBER, joined && is_digit(first) && is_digit(left));
            set_place(LINE_BEGINS, left == '\n');
            set_place(IN_CAPITALS, capitals >= 2);
            set_place(IN_QUOTES, quoted);
            for (size_t i = 0; i < p.positions.size(); i++)
                if (t >= p.positions[i]) set(p.first_position + i);
        }
    }
    return labels;
}
