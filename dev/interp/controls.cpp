// Permuted labels, the matched null, what was seen before: see controls.h.
#include "controls.h"

MccSlopes mcc_slopes(const Counts& c) {
    const double square = c.on * (c.n - c.on) * c.positives * (c.n - c.positives);
    if (!(square > 0)) return {};
    const double root = std::sqrt(square), mcc = c.mcc();
    return {c.n / root, -c.positives / root - mcc / 2 * (c.n - 2 * c.on) / (c.on * (c.n - c.on)),
            -c.on / root - mcc / 2 * (c.n - 2 * c.positives) / (c.positives * (c.n - c.positives))};
}

double error_of_sum(const std::vector<double>& values) {
    const double n = double(values.size());
    if (values.size() < 2) return INFINITY;
    double sum = 0, squares = 0;
    for (const double v : values) {
        sum += v;
        squares += v * v;
    }
    return std::sqrt(std::max(0.0, squares - sum * sum / n) * n / (n - 1));
}

Order random_cycle(size_t n, uint64_t seed, const char* stream) {
    Order order(n);
    for (size_t i = 0; i < n; i++) order[i] = uint32_t(i);
    Random random{seed, random_stream(stream)};
    for (size_t i = n; i-- > 1;) std::swap(order[i], order[random.below(i)]);
    return order;
}

Strata chess_strata(const GameSet& games, const Boundaries& where) {
    const size_t G = games.size(), per_game = where.per_game();
    const size_t ranges = std::clamp<size_t>(G / games_per_range, 1, most_ranges);
    std::vector<std::vector<size_t>> characters;
    std::vector<std::vector<std::string>> words;
    for (const std::string& text : games.texts) {
        characters.push_back(boundary_characters(text, where));
        words.push_back(words_of(text));
    }
    Strata strata;
    strata.of.resize(G * per_game);
    std::map<std::string, uint32_t> known;
    for (size_t place = 0; place < per_game; place++) {
        std::vector<size_t> sorted;
        for (const auto& list : characters) sorted.push_back(list[place]);
        std::sort(sorted.begin(), sorted.end());
        std::vector<std::string> begins, moves;
        std::map<std::string, size_t> times;
        for (size_t g = 0; g < G; g++) {
            const size_t rank =
                size_t(std::lower_bound(sorted.begin(), sorted.end(), characters[g][place]) - sorted.begin());
            const size_t ply = where.ply(place);
            std::string move = ply ? words[g][ply - 1] : "";
            if (const size_t dot = move.find('.'); dot != std::string::npos) move.erase(0, dot + 1);
            begins.push_back(strf("%zu %zu ", place, rank * ranges / G));
            moves.push_back(move);
            times[begins.back() + move]++;
        }
        for (size_t g = 0; g < G; g++) {
            std::string key = begins[g] + moves[g];
            if (times[key] < least_places) {
                const WrittenMove m = read_written_move(moves[g], where.ply(place) % 2 == 1);
                key = begins[g] + strf("class %zu %d%d%d%d", m.landings.empty() ? 9 : m.landings[0].kind,
                                       m.capture, m.check, m.promotion, m.castles);
            }
            strata.of[g * per_game + place] = strata.number(known, key);
        }
    }
    return strata;
}

Excess matched_excess(const std::vector<uint8_t>& on, const std::vector<uint8_t>& holds, const Strata& strata,
                      const uint8_t* finer, const Witnesses& witnesses) {
    struct Sums {
        uint32_t n = 0, on = 0, positives = 0;
    };
    thread_local std::vector<Sums> sums;
    sums.assign(size_t(strata.count) * 4, Sums{});
    const auto key = [&](size_t n) { return size_t(strata.of[n]) * 4 + (finer ? finer[n] : 0); };
    for (size_t n = 0; n < on.size(); n++) {
        Sums& s = sums[key(n)];
        s.n++;
        s.on += on[n];
        s.positives += holds[n];
    }
    Excess out;
    std::vector<double> told(witnesses.count(on.size())); // by each
    double tp = 0;
    for (size_t n = 0; n < on.size(); n++) {
        const Sums& s = sums[key(n)];
        if (s.on == 0 || s.positives == 0) continue; // adds nothing
        told[witnesses.of(n)] += (on[n] - double(s.on) / s.n) * (holds[n] - double(s.positives) / s.n);
        tp += on[n] & holds[n];
    }
    for (const double t : told) out.value += t;
    out.expected = tp - out.value;
    out.error = error_of_sum(told);
    return out;
}

std::vector<uint8_t> seen_places(const GameSplit& games, const Boundaries& where) {
    std::unordered_set<std::string_view> known;
    for (const std::string& text : games.train.texts)
        for (const size_t at : boundary_characters(text, where))
            known.insert(std::string_view(text).substr(0, at + 1));
    std::vector<uint8_t> seen;
    for (const std::string& text : games.test.texts)
        for (const size_t at : boundary_characters(text, where))
            seen.push_back(known.count(std::string_view(text).substr(0, at + 1)) > 0);
    return seen;
}
