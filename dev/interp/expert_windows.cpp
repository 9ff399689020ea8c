// Windows and answers of a language model: see expert_windows.h.
#include "expert_windows.h"
#include "../lib/file.h"
#include "../lib/json.h"

std::string expert_name(size_t layer, size_t expert) { return strf("%zu/%zu", layer, expert); }

namespace {
// The text of a window with << >> around the tokens that went to its expert; neighbours within one pair.
std::string marked_text(const RoutedLayer& routed, const Concepts& concepts, const ExpertWindow& w,
                        size_t length) {
    std::string out;
    bool inside = false;
    for (size_t n = w.first; n < w.first + length; n++) {
        const bool marked = routed.deal.has(n, w.marked);
        if (marked != inside) out += marked ? "<<" : ">>";
        inside = marked;
        out += concepts.vocabulary[size_t(concepts.rows.tokens[n])];
    }
    return out + (inside ? ">>" : "");
}

// Its tokens of largest importance, the largest of all windows being 10.
void strongest_json(JsonWriter& out, const RoutedLayer& routed, const Concepts& concepts,
                    const ExpertWindow& w, size_t length, double largest) {
    const size_t K = routed.deal.K;
    std::vector<std::pair<double, size_t>> order;
    for (size_t at = w.first * K; at < (w.first + length) * K; at++)
        if (routed.deal.expert[at] == w.marked) order.push_back({-double(routed.importance[at]), at / K});
    std::sort(order.begin(), order.end());
    order.resize(std::min(order.size(), n_strongest));
    out.key("strongest").open('[');
    for (const auto& [importance, n] : order) {
        out.open('[').value(concepts.vocabulary[size_t(concepts.rows.tokens[n])]);
        out.value(largest > 0 ? std::lround(-10 * importance / largest) : 0).close();
    }
    out.close();
}

std::string hash_of(const std::string& text) {
    uint64_t h = 0;
    for (const char c : text) h = mix64(h ^ (unsigned char)c);
    return strf("%016llx", (unsigned long long)h);
}
} // namespace

std::vector<ExpertWindows> expert_windows(const RoutedLayer& routed, const Concepts& concepts, size_t layer,
                                          const LabelOptions& o) {
    const size_t length = std::min(o.length, concepts.rows.T), E = routed.deal.E, K = routed.deal.K;
    std::vector<ExpertWindows> out;
    std::vector<std::vector<ExpertWindow>> explain;
    for (size_t e = 0; e < E; e++) {
        ExpertWindows w;
        w.name = expert_name(layer, e);
        w.score = score_windows(routed, concepts, e, o);
        std::vector<ExpertWindow> to_explain = explain_windows(routed, concepts, e, n_explain, o);
        if (w.score.empty() || to_explain.empty()) continue;
        out.push_back(std::move(w));
        explain.push_back(std::move(to_explain));
    }
    for (size_t i = 0; i < out.size(); i++) {
        ExpertWindows& w = out[i];
        w.control = out[(i + 1) % out.size()].name;
        double largest = 0;
        for (const ExpertWindow& x : explain[i])
            for (size_t at = x.first * K; at < (x.first + length) * K; at++)
                if (routed.deal.expert[at] == x.marked)
                    largest = std::max(largest, double(routed.importance[at]));
        JsonWriter json;
        json.open('{').member("control", w.control).key("explain").open('[');
        for (const ExpertWindow& x : explain[i]) {
            json.open('{').member("text", marked_text(routed, concepts, x, length));
            strongest_json(json, routed, concepts, x, length, largest);
            json.close();
        }
        json.close().key("score").open('[');
        for (const ExpertWindow& x : w.score) json.value(marked_text(routed, concepts, x, length));
        json.close().close();
        w.hash = hash_of(w.name + json.text);
        JsonWriter head;
        head.open('{').member("name", w.name).member("windows", w.hash).close();
        w.line = head.text.substr(0, head.text.size() - 1) + "," + json.text.substr(1);
    }
    return out;
}

// Of every window whether the answer was right; what could not be read is wrong.
static std::vector<double> right_answers(const Json& line, const char* name,
                                         const std::vector<ExpertWindow>& windows, const std::string& where,
                                         size_t& unread) {
    const Json* list = line.find(name);
    if (!list || list->type != Json::Array || list->items.size() != windows.size())
        fail("%s: %s, expected a list of %zu answers", where.c_str(), name, windows.size());
    std::vector<double> right;
    for (size_t i = 0; i < windows.size(); i++) {
        const Json& answer = list->items[i];
        if (answer.type != Json::Null && (!answer.is_unsigned() || answer.magnitude > 1))
            fail("%s: %s: answer %zu, expected 0, 1 or null", where.c_str(), name, i);
        unread += answer.type == Json::Null;
        right.push_back(answer.type != Json::Null && bool(answer.magnitude) == windows[i].yes);
    }
    return right;
}

std::vector<std::vector<LanguageScore>> read_answers(const std::string& path,
                                                     const std::vector<std::vector<ExpertWindows>>& windows,
                                                     const std::vector<RoutedLayer>& routed,
                                                     const Concepts& concepts, const LabelOptions& o) {
    const size_t length = std::min(o.length, concepts.rows.T);
    std::vector<std::vector<LanguageScore>> out;
    std::map<std::string, std::array<size_t, 3>> place; // layer, expert, place in its list
    for (size_t l = 0; l < windows.size(); l++) {
        out.emplace_back(routed[l].deal.E);
        for (size_t i = 0; i < windows[l].size(); i++)
            place[windows[l][i].name] = {
                l, size_t(std::stoul(windows[l][i].name.substr(windows[l][i].name.find('/') + 1))), i};
    }
    const MappedFile file(path);
    const std::string text((const char*)file.data, file.size);
    size_t number = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const std::string where = strf("%s: line %zu", path.c_str(), ++number);
        const Json line = parse_json(text.data() + at, end - at, where);
        at = end + 1;
        const auto word = [&](const char* name) {
            const Json* found = line.find(name);
            if (!found || found->type != Json::String)
                fail("%s: no %s, expected a text", where.c_str(), name);
            return found->text;
        };
        const std::string name = word("name");
        const auto found = place.find(name);
        if (found == place.end())
            fail("%s: expert %s, which has no windows", where.c_str(), quoted(name).c_str());
        const auto [l, e, i] = found->second;
        const ExpertWindows& w = windows[l][i];
        if (word("windows") != w.hash)
            fail("%s: answers to other windows of expert %s than those of this checkpoint, data, seed and "
                 "flags",
                 where.c_str(), name.c_str());
        LanguageScore& score = out[l][e];
        if (score.answered) fail("%s: expert %s for the second time", where.c_str(), name.c_str());
        score.answered = true;
        score.hypothesis = word("hypothesis");
        size_t unread = 0;
        const std::vector<double> own = right_answers(line, "answers", w.score, where, unread),
                                  control = right_answers(line, "control_answers", w.score, where, unread);
        score.unread = double(unread) / double(2 * w.score.size());
        score.own = detection_of(w.score, own);
        score.control = detection_of(w.score, control);
        const std::vector<uint8_t> table = token_table(routed[l].deal, concepts, e);
        std::vector<double> over[2] = {own, own};
        for (size_t x = 0; x < own.size(); x++) {
            const bool says = window_answer(routed[l], w.score[x], length, [&](size_t n) {
                const size_t id = size_t(concepts.rows.tokens[n]);
                return id < table.size() && table[id];
            });
            over[0][x] -= says == w.score[x].yes;
            over[1][x] -= control[x];
        }
        score.named = true;
        for (size_t c = 0; c < 2; c++) {
            const Detection d = detection_of(w.score, over[c]);
            score.gain[c] = d.balanced;
            score.error[c] = d.error;
            score.named &= d.balanced > 0 && d.balanced >= sure * d.error;
        }
    }
    return out;
}
