// What experts found, as a table and as JSON (experts.h).
#include "experts.h"

static std::string share(const Estimate& e) {
    return std::isfinite(e.value) ? strf("%6.3f (%6.3f to %6.3f)", e.value, e.interval.low, e.interval.high)
                                  : strf("%27s", "-");
}

void print_experts(const ExpertsReport& r) {
    printf("%s, step %lld: %zu experts, %zu to a token, on %zu documents of %zu tokens of %s\n",
           r.checkpoint.c_str(), (long long)r.step, r.config.n_expert, r.config.n_expert_active, r.rows, r.T,
           r.source.c_str());
    printf(
        "\nwhat tells the first expert: share of its entropy, with 95%% intervals; all but the first beyond "
        "the token\n");
    printf(
        "layer    bits  token                       position                    token before                "
        "layer below                 group\n");
    for (size_t l = 0; l < r.layers.size(); l++) {
        const LayerRouting& layer = r.layers[l];
        printf("%-5zu %7.2f", l, layer.entropy);
        for (const Estimate* e : {&layer.token, &layer.position, &layer.before, &layer.below, &layer.group})
            printf(" %s", share(*e).c_str());
        printf("\n");
    }
    if (r.top) printf("\nconcepts that tell most beyond the token, and what their labels moved tell\n");
    for (size_t l = 0; l < r.layers.size(); l++) {
        std::vector<size_t> order(r.concepts.size());
        std::iota(order.begin(), order.end(), size_t(0));
        const auto beyond = [&](size_t c) {
            const double x = r.layers[l].concepts[c].beyond.value - r.layers[l].concepts[c].moved;
            return std::isfinite(x) ? x : -1;
        };
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return beyond(a) > beyond(b); });
        for (size_t i = 0; i < std::min(r.top, order.size()); i++) {
            const LayerRouting::ByConcept& by = r.layers[l].concepts[order[i]];
            const Concept& about = r.concepts[order[i]];
            printf("%-5zu %s   %6.3f   %s: %s%s\n", l, share(by.beyond).c_str(), by.moved,
                   about.group.c_str(), about.name.c_str(), about.at_dots ? " (at the dots)" : "");
        }
    }
    printf("\nlocality, beside tokens shuffled within each row; a cache of %zu experts\n", r.cache);
    printf("layer window   SRP                          shuffled   group    SCH shuffled     LRU     LFU\n");
    for (size_t l = 0; l < r.layers.size(); l++)
        for (const LayerRouting::Window& w : r.layers[l].windows)
            printf("%-5zu %6zu %s    %6.3f  %6.3f  %6.3f   %6.3f  %6.3f  %6.3f\n", l, w.m,
                   share(w.own.srp).c_str(), w.shuffled.srp.value, w.own.size, w.hits, w.hits_shuffled,
                   w.recent, w.frequent);
}

static void estimate_json(JsonWriter& out, const char* name, const Estimate& e) {
    out.key(name).open('{').member("value", e.value).member("low", e.interval.low);
    out.member("high", e.interval.high).close();
}

std::string experts_json(const ExpertsReport& r) {
    JsonWriter out = begin_json("experts", r.checkpoint, r.step, r.config, r.seconds);
    out.member("data", as_utf8(r.source)).member("rows", r.rows).member("tokens", r.T).member("seed", r.seed);
    out.member("cache", r.cache).key("layers").open('[');
    for (size_t l = 0; l < r.layers.size(); l++) {
        const LayerRouting& layer = r.layers[l];
        out.open('{').member("layer", l).member("entropy", layer.entropy);
        estimate_json(out, "token", layer.token);
        estimate_json(out, "position", layer.position);
        estimate_json(out, "before", layer.before);
        estimate_json(out, "below", layer.below);
        estimate_json(out, "group", layer.group);
        out.key("concepts").open('[');
        for (size_t c = 0; c < r.concepts.size(); c++) {
            out.open('{').member("group", r.concepts[c].group).member("concept", r.concepts[c].name);
            estimate_json(out, "alone", layer.concepts[c].alone);
            estimate_json(out, "beyond", layer.concepts[c].beyond);
            out.member("moved", layer.concepts[c].moved).close();
        }
        out.close().key("windows").open('[');
        for (const LayerRouting::Window& w : layer.windows) {
            out.open('{').member("tokens", w.m);
            estimate_json(out, "srp", w.own.srp);
            out.member("group", w.own.size).member("srp_shuffled", w.shuffled.srp.value);
            out.member("sch", w.hits).member("sch_shuffled", w.hits_shuffled);
            out.member("lru", w.recent).member("lfu", w.frequent).close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}
