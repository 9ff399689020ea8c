// What a unit does: see unit_effects.h.
#include "unit_effects.h"
#include "../../data/chess.h"

namespace {
struct PlaceScore {
    float log_p, legal; // NaN: nothing follows; no chess
};

// From the logits (V) at a place.
PlaceScore place_score(const float* logits, size_t V, int32_t next, uint64_t legal) {
    const double most = *std::max_element(logits, logits + V);
    double sum = 0, allowed = 0;
    for (size_t v = 0; v < V; v++) {
        const double e = std::exp(logits[v] - most);
        sum += e;
        if (v < 64 && legal >> v & 1) allowed += e;
    }
    return {next < 0 ? NAN : float(logits[next] - most - std::log(sum)), legal ? float(allowed / sum) : NAN};
}

// At all places of the first rows, one row after the other.
std::vector<PlaceScore> read_places(Reader& reader, const PlacedRows& set, size_t rows,
                                    const std::vector<uint64_t>& legal) {
    const size_t T = set.rows.T, V = reader.config.vocab_size;
    std::vector<PlaceScore> out;
    for (size_t first = 0; first < rows; first += reader.max_B) {
        const size_t B = std::min(reader.max_B, rows - first);
        const int32_t* tokens = set.rows.tokens.data() + first * T;
        reader.read(tokens, B, T);
        const float* logits = reader.logits();
        for (size_t b = 0; b < B; b++)
            for (const size_t t : set.places[first + b]) {
                const size_t n = b * T + t;
                out.push_back(place_score(logits + n * V, V, t + 1 < T ? tokens[n + 1] : -1,
                                          legal.empty() ? 0 : legal[out.size()]));
            }
    }
    return out;
}

// The same with a unit off; afterwards it is on again.
std::vector<PlaceScore> read_without(Reader& reader, const PlacedRows& set, size_t rows,
                                     const std::vector<uint64_t>& legal, const UnitFactor& unit) {
    const Intervention off = {0, {}, {unit}};
    std::vector<std::pair<float*, float>> kept;
    for (const Tensor& t : reader.table) {
        float* values = reader.weights() + t.offset;
        off.each_value(reader.config, t, [&](size_t i, double factor) {
            kept.push_back({values + i, values[i]});
            values[i] *= float(factor);
        });
    }
    reader.changed();
    const std::vector<PlaceScore> out = read_places(reader, set, rows, legal);
    for (const auto& [place, value] : kept) *place = value;
    reader.changed();
    return out;
}
} // namespace

std::vector<UnitEffect> unit_effects(Reader& reader, const PlacedRows& set, size_t most, size_t per_game,
                                     const std::vector<uint64_t>& legal,
                                     const std::vector<EffectTask>& tasks) {
    std::vector<UnitEffect> effects(tasks.size());
    if (tasks.empty()) return effects;
    Progress progress("effects", "passes", double(1 + 2 * tasks.size()));
    const size_t rows = std::min(most, set.rows.rows);
    const std::vector<PlaceScore> with = read_places(reader, set, rows, legal);
    std::vector<uint32_t> game(with.size());
    for (size_t n = 0; n < game.size(); n++) game[n] = uint32_t(n / per_game);
    progress.update(1);
    for (size_t i = 0; i < tasks.size(); i++) {
        const EffectTask& task = tasks[i];
        UnitEffect& e = effects[i];
        std::vector<double>
            change[2]; // of log p where the property holds: without the unit, without the control
        for (const bool control : {false, true}) {
            const UnitFactor unit = {task.layer, control ? task.control_expert : task.expert,
                                     control ? task.control_unit : task.unit, 0};
            const std::vector<PlaceScore> without = read_without(reader, set, rows, legal, unit);
            const auto mean = [&](float PlaceScore::*score, bool holds) {
                std::vector<double> values(with.size(), undefined);
                for (size_t n = 0; n < with.size(); n++)
                    if (bool(task.holds[n]) == holds) values[n] = double(without[n].*score) - with[n].*score;
                if (holds && score == &PlaceScore::log_p) change[control] = values;
                return mean_by_group(values, game, 1);
            };
            UnitOff& off = control ? e.control : e.off;
            off.inside = mean(&PlaceScore::log_p, true);
            off.outside = mean(&PlaceScore::log_p, false);
            if (!legal.empty()) {
                off.legal_inside = mean(&PlaceScore::legal, true);
                off.legal_outside = mean(&PlaceScore::legal, false);
            }
            progress.update(double(2 + 2 * i + control));
        }
        for (size_t n = 0; n < with.size(); n++) change[0][n] -= change[1][n];
        e.beyond = mean_by_group(change[0], game, 1);
        e.places = size_t(std::count(task.holds.begin(), task.holds.begin() + long(with.size()), uint8_t(1)));
        e.games = game.empty() ? 0 : game.back() + 1;
    }
    progress.finish(double(1 + 2 * tasks.size()));
    return effects;
}

std::vector<uint64_t> legal_beginnings(const std::vector<std::string>& games,
                                       const std::vector<std::vector<size_t>>& places, size_t most) {
    std::vector<uint64_t> out;
    for (size_t g = 0; g < std::min(most, games.size()); g++) {
        chess::GameTextReader game;
        size_t read = 0;
        for (const size_t place : places[g]) {
            while (read <= place) game.push(games[g][read++]);
            uint64_t bits = 0;
            const chess::MoveList legal = chess::legal_moves(game.position);
            for (const chess::Move m : legal)
                bits |= uint64_t(1) << chess_id(chess::to_san(game.position, m, legal)[0]);
            out.push_back(bits);
        }
    }
    return out;
}

size_t nearest_rate(const std::vector<double>& rate, size_t unit) {
    size_t best = SIZE_MAX;
    for (size_t u = 0; u < rate.size(); u++)
        if (u != unit && rate[u] > 0 &&
            (best == SIZE_MAX || std::fabs(rate[u] - rate[unit]) < std::fabs(rate[best] - rate[unit])))
            best = u;
    return best;
}
