// What experts found, as a table and as JSON (experts.h).
#include "experts.h"
#include <functional>

static std::string share(const Estimate& e) {
    return std::isfinite(e.value) ? strf("%6.3f (%6.3f to %6.3f)", e.value, e.interval.low, e.interval.high)
                                  : strf("%27s", "-");
}

static std::string two(double x) { return std::isfinite(x) ? strf("%5.2f", x) : "    -"; }

static void print_labels(const ExpertsReport& r) {
    size_t named = 0, scored = 0;
    printf("\nwhat experts take, told by windows of test documents: balanced accuracy of a label of concepts "
           "and "
           "tokens, of the tokens alone, of the other experts' labels, and where routing is random\n");
    printf("layer expert  load %%  label  error   token  other random\n");
    for (size_t l = 0; l < r.labels.size(); l++)
        for (size_t e = 0; e < r.labels[l].size(); e++) {
            const ExpertLabel& x = r.labels[l][e];
            printf("%-5zu %6zu %7.1f  %s  %s   %s  %s  %s   %s%s\n", l, e, 100 * x.load,
                   two(x.own.balanced).c_str(), two(x.own.error).c_str(), two(x.token.balanced).c_str(),
                   two(x.other.balanced).c_str(), two(x.random.balanced).c_str(), x.named ? "* " : "",
                   x.words.c_str());
            named += x.named;
            scored += std::isfinite(x.own.balanced);
        }
    printf(
        "%zu of %zu experts take what is more than their tokens, beyond all three by %g standard errors%s\n",
        named, scored, sure, named ? ":" : "");
    for (size_t l = 0; l < r.labels.size(); l++)
        for (size_t e = 0; e < r.labels[l].size(); e++)
            if (r.labels[l][e].named) printf("  %s\n", r.labels[l][e].sentence(l, e).c_str());
}

static void print_effects(const ExpertsReport& r) {
    printf(
        "\nwhat removing an expert does: change of log p of the true next token, mean and 95%% interval over "
        "test "
        "documents\n(off: the next best takes its place; zero: nothing does; inside: where its label holds; "
        "control: another expert of like load off, there)\n");
    printf(
        "layer expert  off                         zero                        inside                      "
        "control                     inside less control         most changed\n");
    for (size_t l = 0; l < r.effects.size(); l++)
        for (size_t e = 0; e < r.effects[l].experts.size(); e++) {
            const ExpertEffect& x = r.effects[l].experts[e];
            printf("%-5zu %6zu", l, e);
            for (const Estimate* estimate : {&x.off, &x.zero, &x.inside, &x.control, &x.beyond})
                printf(" %s", share(*estimate).c_str());
            size_t most = SIZE_MAX;
            for (size_t c = 0; c < x.by_concept.size(); c++)
                if (std::isfinite(x.by_concept[c].value) &&
                    (most == SIZE_MAX || x.by_concept[c].value < x.by_concept[most].value))
                    most = c;
            if (most != SIZE_MAX)
                printf("  %s: %.3f", r.concepts[most].name.c_str(), x.by_concept[most].value);
            printf("\n");
        }
    printf("at single positions, where the label holds: correlation of what is lost there with direct logit "
           "attribution\n");
    for (size_t l = 0; l < r.effects.size(); l++)
        printf("%-5zu %s\n", l, share(r.effects[l].agreement).c_str());
}

// The mean over experts and its 95% interval.
static Estimate over_experts(const ExpertsReport& r, const std::function<double(const LanguageScore&)>& of) {
    std::vector<double> values;
    for (const auto& layer : r.language)
        for (const LanguageScore& s : layer)
            if (s.answered && std::isfinite(of(s))) values.push_back(of(s));
    std::vector<uint32_t> group(values.size());
    std::iota(group.begin(), group.end(), 0u);
    return mean_by_group(values, group, r.seed);
}

static void print_language(const ExpertsReport& r) {
    printf("\nwhat a language model says, on the same windows; control: another expert's hypothesis\n");
    printf("layer expert  label  error  control  over token  unread\n");
    size_t answered = 0, named = 0;
    for (size_t l = 0; l < r.language.size(); l++)
        for (size_t e = 0; e < r.language[l].size(); e++) {
            const LanguageScore& s = r.language[l][e];
            if (!s.answered) continue;
            answered++;
            named += s.named;
            printf("%-5zu %6zu  %s  %s    %s       %s   %4.0f%%   %s%s\n", l, e, two(s.own.balanced).c_str(),
                   two(s.own.error).c_str(), two(s.control.balanced).c_str(), two(s.gain[0]).c_str(),
                   100 * s.unread, s.named ? "* " : "", printable(s.hypothesis).c_str());
        }
    printf("%zu of %zu hypotheses tell more than the tokens and the control by %g standard errors\n", named,
           answered, sure);
    printf("mean over experts: own %s, control %s (always the same answer 0.500), windows of others refused "
           "%s\n",
           share(over_experts(r, [](const LanguageScore& s) { return s.own.balanced; })).c_str(),
           share(over_experts(r, [](const LanguageScore& s) { return s.control.balanced; })).c_str(),
           share(over_experts(r, [](const LanguageScore& s) { return s.own.specificity; })).c_str());
    printf("own windows found, by quarters of rising importance:");
    for (size_t q = 0; q < n_quarters; q++)
        printf(" %s",
               share(over_experts(r, [q](const LanguageScore& s) { return s.own.by_quarter[q]; })).c_str());
    printf("\n");
}

void print_experts(const ExpertsReport& r) {
    printf("%s, step %lld: %zu experts, %zu to a token, on %zu documents of %zu tokens of %s\n",
           r.checkpoint.c_str(), (long long)r.step, r.config.n_expert, r.config.n_expert_active, r.rows, r.T,
           r.source.c_str());
    printf("\nwhat tells the first expert, the second ..: share of its entropy, with 95%% intervals; all but "
           "the "
           "first column beyond the token\n");
    printf("layer expert   bits  token                       position                    token before        "
           "    "
           "    layer below                 group\n");
    for (size_t l = 0; l < r.layers.size(); l++)
        for (size_t k = 0; k < r.layers[l].slots.size(); k++) {
            const LayerRouting::Slot& slot = r.layers[l].slots[k];
            printf("%-5zu %6zu %6.2f", l, k + 1, slot.entropy);
            for (const Estimate* e : {&slot.token, &slot.position, &slot.before, &slot.below, &slot.group})
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
    print_labels(r);
    if (!r.language.empty()) print_language(r);
    if (!r.effects.empty()) print_effects(r);
    if (r.layers.empty() || r.layers[0].clustered.empty()) return;
    printf("\ndivergence of an expert's tokens from the layer's, by clusters of wte, less that of draws, of "
           "the most "
           "that is possible; mean and 95%% interval over experts\nlayer");
    for (const LayerRouting::Clustered& c : r.layers[0].clustered)
        printf("  %-26s", strf("%zu clusters", c.clusters).c_str());
    printf("\n");
    for (size_t l = 0; l < r.layers.size(); l++) {
        printf("%-5zu", l);
        for (const LayerRouting::Clustered& c : r.layers[l].clustered)
            printf(" %s", share(c.divergence).c_str());
        printf("\n");
    }
}

static void estimate_json(JsonWriter& out, const char* name, const Estimate& e) {
    out.key(name).open('{').member("value", e.value).member("low", e.interval.low);
    out.member("high", e.interval.high).close();
}

static void detection_json(JsonWriter& out, const char* name, const Detection& d) {
    out.key(name).open('{').member("balanced", d.balanced).member("error", d.error).member("f1", d.f1);
    out.member("sensitivity", d.sensitivity).member("specificity", d.specificity);
    out.key("by_quarter").values(d.by_quarter).close();
}

static void label_json(JsonWriter& out, const ExpertLabel& x) {
    out.member("load", x.load).member("label", x.words).member("train", x.formula.train);
    out.member("validation", x.formula.validation).member("named", x.named);
    detection_json(out, "own", x.own);
    detection_json(out, "token", x.token);
    detection_json(out, "other", x.other);
    detection_json(out, "random", x.random);
    out.key("gain").values(x.gain).key("gain_error").values(x.error);
}

static void language_json(JsonWriter& out, const LanguageScore& s) {
    out.key("language").open('{').member("hypothesis", s.hypothesis).member("named", s.named);
    detection_json(out, "own", s.own);
    detection_json(out, "control", s.control);
    out.member("unread", s.unread).key("gain").values(s.gain).key("gain_error").values(s.error).close();
}

static void effect_json(JsonWriter& out, const ExpertEffect& x) {
    out.key("effect").open('{');
    estimate_json(out, "off", x.off);
    estimate_json(out, "zero", x.zero);
    estimate_json(out, "inside", x.inside);
    estimate_json(out, "outside", x.outside);
    estimate_json(out, "control", x.control);
    estimate_json(out, "beyond", x.beyond);
    if (x.other != SIZE_MAX) out.member("other", x.other);
    out.member("triggers", x.triggers).member("at_position", x.at_position).member("dla", x.dla);
    out.key("by_concept").open('[');
    for (const Estimate& e : x.by_concept)
        out.open('[').value(e.value).value(e.interval.low).value(e.interval.high).close();
    out.close().close();
}

std::string experts_json(const ExpertsReport& r) {
    JsonWriter out = begin_json("experts", r.checkpoint, r.step, r.config, r.seconds);
    out.member("data", as_utf8(r.source)).member("rows", r.rows).member("tokens", r.T).member("seed", r.seed);
    out.member("cache", r.cache).key("layers").open('[');
    for (size_t l = 0; l < r.layers.size(); l++) {
        const LayerRouting& layer = r.layers[l];
        out.open('{').member("layer", l).key("slots").open('[');
        for (const LayerRouting::Slot& slot : layer.slots) {
            out.open('{').member("entropy", slot.entropy);
            estimate_json(out, "token", slot.token);
            estimate_json(out, "position", slot.position);
            estimate_json(out, "before", slot.before);
            estimate_json(out, "below", slot.below);
            estimate_json(out, "group", slot.group);
            out.close();
        }
        out.close().key("concepts").open('[');
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
        out.close().key("clusters").open('[');
        for (const LayerRouting::Clustered& c : layer.clustered) {
            out.open('{').member("clusters", c.clusters);
            estimate_json(out, "divergence", c.divergence);
            out.close();
        }
        out.close().key("experts").open('[');
        for (size_t e = 0; e < r.labels[l].size(); e++) {
            out.open('{');
            label_json(out, r.labels[l][e]);
            if (!r.language.empty() && r.language[l][e].answered) language_json(out, r.language[l][e]);
            if (!r.effects.empty()) effect_json(out, r.effects[l].experts[e]);
            out.close();
        }
        out.close();
        if (!r.effects.empty()) estimate_json(out, "agreement", r.effects[l].agreement);
        out.close();
    }
    out.close().close();
    return out.text;
}
