// What a unit does: what becomes of the model's predictions when it is off (dev/run/routing.h), at the places
// where its property is asked, apart for those where it holds and the others. Changes are without the unit
// less with it:
//   log p   of the true next token; below zero: it was of use
//   legal   chess, where moves begin: the probability of the characters that legal moves begin with
// Beside it, at the same places, the same with another unit of the layer off, the one that fires at nearest
// as many of them: what switching off any unit does. Means over places with 95% intervals over games (blocks
// of text). The effect is of all that the unit does at earlier tokens, too, which later layers read.
#pragma once
#include "../run/routing.h"
#include "fires.h"
#include "statistics.h"

struct UnitOff {
    Estimate inside, outside;             // log p
    Estimate legal_inside, legal_outside; // chess
};
struct UnitEffect {
    size_t places = 0, games = 0; // measured at; places: where the property holds. 0: it was not measured
    UnitOff off, control;
    Estimate beyond; // off.inside less control.inside, place by place
};

// A unit whose effect is wanted, and its control, in the same layer.
struct EffectTask {
    size_t layer = 0, expert = 0, unit = 0;
    size_t control_expert = 0, control_unit = 0;
    std::vector<uint8_t> holds; // (places) its property
};

// Of the first `most` rows of the set. per_game: places of a game or block; legal (places): bit v is set
// where token v begins a legal move, or none. The reader's weights are afterwards what they were.
std::vector<UnitEffect> unit_effects(Reader& reader, const PlacedRows& set, size_t most, size_t per_game,
                                     const std::vector<uint64_t>& legal,
                                     const std::vector<EffectTask>& tasks);

// By place of the first `most` games: with which characters (ids of chess-32) legal moves begin.
std::vector<uint64_t> legal_beginnings(const std::vector<std::string>& games,
                                       const std::vector<std::vector<size_t>>& places, size_t most);

// The other unit of a layer whose rate is nearest, a tie to the lower index; SIZE_MAX where no other fires.
size_t nearest_rate(const std::vector<double>& rate, size_t unit);
