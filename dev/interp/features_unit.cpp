// What is told of one unit: see features.h, section 1.
#include "features.h"

std::vector<double> square_lifts(const UnitFires& fires, size_t unit, size_t threshold, size_t first,
                                 size_t stride, const Labels& labels, size_t per_game) {
    std::vector<double> lifts(64), positives(per_game);
    const double games = double(labels.tokens) / double(per_game);
    for (size_t s = 0; s < 64; s++) {
        const size_t cell = first + s * stride;
        double tp = 0, expected = 0;
        std::fill(positives.begin(), positives.end(), 0);
        each_place(labels, cell, [&](size_t n) { positives[n % per_game]++; });
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, threshold); n++) {
            tp += labels.at(cell, *n);
            expected += positives[*n % per_game] / games;
        }
        lifts[s] = (tp + 1) / (expected + 1);
    }
    return lifts;
}

std::vector<double> direct_logits(const Config& c, const Parameters<float>& w, size_t layer, size_t unit) {
    const size_t C = c.n_embd, V = c.vocab_size;
    const LayerParameters<float>& h = w.h[layer];
    std::vector<double> d(C);
    for (size_t i = 0; i < C; i++)
        d[i] = c.moe() ? h.w_dec[unit * C + i] : h.fc_proj_weight[i * c.dense_width() + unit];
    const double mean = std::accumulate(d.begin(), d.end(), 0.0) / double(C);
    for (size_t i = 0; i < C; i++) d[i] = (d[i] - mean) * w.ln_f_weight[i];
    std::vector<double> logits(V);
    for (size_t v = 0; v < V; v++) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < C; i++) sum += w.wte[v * C + i] * d[i];
        logits[v] = sum;
    }
    const double middle = std::accumulate(logits.begin(), logits.end(), 0.0) / double(V);
    for (double& logit : logits) logit -= middle;
    return logits;
}

void add_output_tokens(Feature& f, const std::vector<double>& logits, const std::vector<std::string>& names) {
    std::vector<size_t> order(std::min(logits.size(), names.size()));
    std::iota(order.begin(), order.end(), size_t(0));
    const size_t n = std::min(n_output_tokens, order.size());
    for (const bool promotes : {true, false}) {
        std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(n), order.end(),
                          [&](size_t a, size_t b) {
                              return logits[a] != logits[b] ? promotes == (logits[a] > logits[b]) : a < b;
                          });
        for (size_t i = 0; i < n; i++)
            (promotes ? f.promotes : f.suppresses).push_back({names[order[i]], logits[order[i]]});
    }
}

FeatureContext game_context(const std::string& text, size_t place, float value) {
    using namespace chess;
    GameTextReader game;
    for (size_t i = 0; i <= place; i++) game.push(text[i]);
    FeatureContext context;
    size_t begin = place > 60 ? text.find(' ', place - 60) : 0, end = std::min(text.size(), place + 20);
    if (begin > 0) begin = begin < place ? begin + 1 : place;
    if (end < text.size()) end = std::max(place + 1, text.rfind(' ', end));
    context.text = text.substr(begin, end - begin);
    context.mark = place - begin;
    context.length = 1;
    context.value = value;
    if (!game.ok()) return context;
    context.fen = to_fen(game.position);
    if (game.moves.empty()) return context;
    Position before = start_position();
    for (size_t i = 0; i + 1 < game.moves.size(); i++) make(before, game.moves[i]);
    const char* dots = before.turn == WHITE ? "." : "...";
    context.move = strf("%d%s", before.fullmove, dots) + to_san(before, game.moves.back());
    context.last = to_uci(game.moves.back());
    return context;
}

FeatureContext text_context(const int32_t* row, size_t T, size_t place,
                            const std::vector<std::string>& vocabulary, float value) {
    std::string before, after;
    for (size_t t = place; t-- > 0 && before.size() < 60;) before = vocabulary[size_t(row[t])] + before;
    for (size_t t = place + 1; t < T && after.size() < 20; t++) after += vocabulary[size_t(row[t])];
    while (!before.empty() && (before[0] & 0xC0) == 0x80) before.erase(0, 1); // half of a character
    const std::string& token = vocabulary[size_t(row[place])];
    const std::string marked = token.empty() ? "<end of text>" : shown(token);
    FeatureContext context;
    context.text = shown(before) + marked + shown(after);
    context.mark = code_points(shown(before));
    context.length = code_points(marked);
    context.value = value;
    return context;
}

// ---------------------------------------------------------------------------------------------------------
// Where units of a list fire

UnitWatch::UnitWatch(const std::vector<Feature>& list, const Reader& reader, bool gated)
    : gated(gated), units(list.size()),
      of_layer(reader.config.n_layer, std::vector<size_t>(reader.units(), SIZE_MAX)) {
    const size_t E = reader.config.moe() ? reader.config.n_expert : 1;
    for (size_t i = 0; i < list.size(); i++) {
        of_layer[list[i].layer][list[i].expert * (reader.units() / E) + list[i].unit] = i;
        units[i].cut = list[i].cut;
        units[i].experts.resize(E);
    }
    together.assign(reader.config.n_layer, std::vector<size_t>(E * E));
}

void UnitWatch::add(const Reader& reader, size_t first, size_t B, size_t T) {
    std::vector<LayerUnits> layers;
    for (size_t l = 0; l < of_layer.size(); l++) layers.push_back(reader.layer(l));
    games += B;
    parallel_items(layers.size(), [&](size_t l) { add_layer(layers[l], l, first, B, T); });
}

void UnitWatch::add_layer(const LayerUnits& layer, size_t l, size_t first, size_t B, size_t T) {
    const size_t K = layer.choice ? layer.K : 0;
    const auto expert = [&](size_t n, size_t k) { return size_t(layer.choice[n * K + k]); };
    for (size_t n = 0; n < B * T; n++)
        for (size_t k = 0; k < K; k++)
            for (size_t other = 0; other < K; other++)
                together[l][expert(n, k) * layer.E + expert(n, other)]++;
    std::vector<Peak> top(units.size());
    for (size_t b = 0; b < B; b++) {
        for (Peak& peak : top) peak = {0, first + b, 0};
        for (size_t t = 0; t < T; t++) {
            const size_t n = b * T + t;
            layer.each(n, gated, [&](size_t unit, float value) {
                const size_t i = of_layer[l][unit];
                if (i == SIZE_MAX) return;
                if (value > top[i].value) {
                    top[i].value = value;
                    top[i].place = t;
                }
                if (!(value > units[i].cut)) return;
                units[i].on++;
                for (size_t k = 0; k < K; k++) units[i].experts[expert(n, k)]++;
            });
        }
        for (size_t i = 0; i < units.size(); i++)
            if (top[i].value > 0) units[i].peaks.add(top[i]);
    }
}

void UnitWatch::fill(Feature& f, size_t i) const {
    const Watched& w = units[i];
    const size_t E = w.experts.size();
    f.on_anywhere = games ? double(w.on) / double(games) : 0;
    for (size_t e = 0; e < E; e++) {
        if (e == f.expert || w.experts[e] == 0) continue;
        const std::vector<size_t>& both = together[f.layer];
        f.with.push_back({e, double(w.experts[e]) / double(w.on),
                          double(both[f.expert * E + e]) / double(both[f.expert * E + f.expert])});
    }
    std::stable_sort(f.with.begin(), f.with.end(),
                     [](const auto& a, const auto& b) { return a.share > b.share; });
}
