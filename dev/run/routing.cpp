// The flags of routing.h: read, and checked against a model.
#include "routing.h"
#include "../lib/options.h"
#include <algorithm>
#include <bit>

namespace {
// A number of a list, SIZE_MAX if it is none.
size_t number(const std::string& text) {
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos)
        return SIZE_MAX;
    return std::stoul(text);
}

// "1/2" or "1/2/30" of a flag: layer, expert and, with units, unit, each in its range.
std::vector<size_t> place_of(const char* flag, const std::string& text, bool with_unit, const Config& c) {
    const struct {
        const char* name;
        size_t count;
    } parts[] = {{"layer", c.n_layer},
                 {"expert", c.dense() ? 1 : c.n_expert},
                 {"unit", c.dense() ? c.dense_width() : c.d_expert}};
    const std::vector<std::string> words = split(text, '/');
    if (words.size() != (with_unit ? 3 : 2))
        fail_usage("--%s: %s is no %s", flag, quoted(text).c_str(),
                   with_unit ? "layer/expert/unit (in a dense layer all are of expert 0)" : "layer/expert");
    std::vector<size_t> place;
    for (size_t i = 0; i < words.size(); i++) {
        place.push_back(number(words[i]));
        if (place[i] >= parts[i].count)
            fail_usage("--%s: %s: %s %s, expected 0 to %zu", flag, quoted(text).c_str(), parts[i].name,
                       quoted(words[i]).c_str(), parts[i].count - 1);
    }
    return place;
}

double factor_of(const std::string& item, const std::string& text) {
    char* end;
    const double value = strtod(text.c_str(), &end);
    if (text.empty() || *end || !std::isfinite(value) || std::fabs(value) > 1e6)
        fail_usage("--units-scale: %s: %s is not a number of at most a million", quoted(item).c_str(),
                   quoted(text).c_str());
    return value;
}

uint64_t read_ranks(const char* flag, const std::string& text, const Config& c) {
    const size_t ranks = std::min<size_t>(c.n_expert, 64); // bits
    uint64_t bits = 0;
    for (const std::string& word : split(text, ',')) {
        const size_t rank = number(word);
        if (rank >= ranks)
            fail_usage("--%s: rank %s, expected 0 to %zu", flag, quoted(word).c_str(), ranks - 1);
        if (bits >> rank & 1) fail_usage("--%s: rank %zu is there twice", flag, rank);
        bits |= uint64_t(1) << rank;
    }
    return bits;
}

// In every layer as many experts are left as the choice looks at, and those that are on are among those
// taken.
void check_choice(const char* flag, const Intervention& v, const Config& c) {
    const Routing& r = v.routing;
    const size_t looked_at = r.ranks ? size_t(std::bit_width(r.ranks)) : v.apply(c).n_expert_active;
    const size_t first =
        r.ranks ? size_t(std::countr_one(r.ranks)) : looked_at; // places all of which are taken
    for (size_t l = 0; l < c.n_layer && !r.standing.empty(); l++) {
        const int8_t* s = r.standing_of(l, c.n_expert);
        const size_t left = c.n_expert - size_t(std::count(s, s + c.n_expert, int8_t(Routing::off))),
                     on = size_t(std::count(s, s + c.n_expert, int8_t(Routing::on)));
        if (left < looked_at)
            fail_usage("--%s: layer %zu has %zu experts left, but the choice is among the first %zu", flag, l,
                       left, looked_at);
        if (on > first)
            fail_usage(
                "--experts-on: layer %zu has %zu experts on, but of the order only the first %zu are all "
                "taken",
                l, on, first);
    }
}
} // namespace

void InterventionFlags::declare(Options& o) {
    o.add(0, "active", "K", &active, 0, 1 << 20, "experts that a token goes to (0: as trained)");
    o.add(
        0, "ranks", "R,..", &ranks,
        "a token goes to the experts at these places of its router's order, 0 the best (none: the first K)");
    o.add(0, "experts-off", "L/E,..", &experts_off,
          "experts (layer/expert) that are never chosen: the next best takes the place");
    o.add(0, "experts-on", "L/E,..", &experts_on,
          "experts that every token goes to, weighted by their score");
    o.add(0, "units-off", "L/E/U,..", &units_off,
          "units (layer/expert/unit; a dense layer has expert 0) of which nothing comes, the routing as "
          "before");
    o.add(0, "units-scale", "L/E/U=X,..", &units_scale, "units that count X times");
}

Intervention InterventionFlags::read(const Config& c, const std::string& where) const {
    Intervention v;
    const auto refuse_without = [&](bool there, const char* what,
                                    std::initializer_list<std::pair<const char*, bool>> flags) {
        for (const auto& [name, given] : flags)
            if (given && !there)
                fail_usage("--%s: %s has no %s: its ffn is %s", name, where.c_str(), what, c.ffn.c_str());
    };
    refuse_without(c.moe(), "experts to choose from",
                   {{"active", active > 0},
                    {"ranks", !ranks.empty()},
                    {"experts-off", !experts_off.empty()},
                    {"experts-on", !experts_on.empty()}});
    refuse_without(c.moe() || c.dense(), "units with a decoder row of their own",
                   {{"units-off", !units_off.empty()}, {"units-scale", !units_scale.empty()}});
    if (active && !ranks.empty()) fail_usage("--active and --ranks are both given, expected one of them");
    if (size_t(active) > c.n_expert && active)
        fail_usage("--active %zu: %s has %zu experts", size_t(active), where.c_str(), c.n_expert);
    v.K = size_t(active);
    if (!ranks.empty()) {
        v.routing.ranks = read_ranks("ranks", ranks, c);
        v.K = size_t(std::popcount(v.routing.ranks));
    }
    const auto each = [](const std::string& list, auto f) {
        if (list.empty()) return;
        for (const std::string& item : split(list, ',')) f(item);
    };
    each(experts_off, [&](const std::string& item) {
        const std::vector<size_t> at = place_of("experts-off", item, false, c);
        v.routing.set(c, at[0], at[1], Routing::off);
    });
    each(experts_on, [&](const std::string& item) {
        const std::vector<size_t> at = place_of("experts-on", item, false, c);
        if (!experts_off.empty() && v.routing.standing_of(at[0], c.n_expert)[at[1]] == Routing::off)
            fail_usage("--experts-on: %s is among --experts-off, too", quoted(item).c_str());
        v.routing.set(c, at[0], at[1], Routing::on);
    });
    const auto add_unit = [&](const char* flag, const std::string& item, const std::string& place,
                              double factor) {
        const std::vector<size_t> at = place_of(flag, place, true, c);
        for (const UnitFactor& u : v.units)
            if (u.layer == at[0] && u.expert == at[1] && u.unit == at[2])
                fail_usage("--%s: %s: the unit is named twice", flag, quoted(item).c_str());
        v.units.push_back({at[0], at[1], at[2], factor});
    };
    each(units_off, [&](const std::string& item) { add_unit("units-off", item, item, 0); });
    each(units_scale, [&](const std::string& item) {
        const size_t equals = item.find('=');
        if (equals == std::string::npos)
            fail_usage("--units-scale: %s is no layer/expert/unit=factor", quoted(item).c_str());
        add_unit("units-scale", item, item.substr(0, equals), factor_of(item, item.substr(equals + 1)));
    });
    check_choice("experts-off", v, c);
    return v;
}

std::string InterventionFlags::text() const {
    std::string text = active ? strf("--active %lld", (long long)active) : "";
    for (const auto& [name, value] : {std::pair{"ranks", &ranks},
                                      {"experts-off", &experts_off},
                                      {"experts-on", &experts_on},
                                      {"units-off", &units_off},
                                      {"units-scale", &units_scale}})
        if (!value->empty()) text += strf("%s--%s %s", text.empty() ? "" : " ", name, value->c_str());
    return text;
}

void ContrastFlags::declare(Options& o) {
    o.add(0, "contrast", "R,..", &ranks,
          "choose by the model's logits against those it has where tokens go to the experts of these ranks");
    o.add(0, "contrast-beta", "X", &beta, 0, 100, "--contrast: how strongly");
    o.add(0, "contrast-alpha", "X", &alpha, 0, 1,
          "--contrast: only tokens at least X times as probable as the most probable (0: all)");
}

std::string ContrastFlags::text(const std::string& before) const {
    if (!given()) return "";
    return before + strf("--contrast %s --contrast-beta %g --contrast-alpha %g", ranks.c_str(), beta, alpha);
}

Intervention ContrastFlags::weak(const Intervention& strong, const Config& c,
                                 const std::string& where) const {
    if (!c.moe())
        fail_usage("--contrast: %s has no experts to choose from: its ffn is %s", where.c_str(),
                   c.ffn.c_str());
    Intervention v;
    v.routing.ranks = read_ranks("contrast", ranks, c);
    v.K = size_t(std::popcount(v.routing.ranks));
    v.routing.standing = strong.routing.standing;
    for (int8_t& s : v.routing.standing) s = std::min(s, int8_t(Routing::as_scored));
    check_choice("contrast", v, c);
    return v;
}
