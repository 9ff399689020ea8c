// What probe found, as a table and as JSON (probe.h).
#include "../lib/student.h"
#include "probe.h"
#include <functional>
#include <map>

namespace {
// Mean over the concepts of a group ("" for all) of what value(concept) gives, where it gives anything.
template <class F> double mean_over(const ProbeReport& r, const std::string& group, F value) {
    std::vector<double> list;
    for (const ConceptProbe& c : r.concepts)
        if (group.empty() || c.about.group == group)
            if (const double x = value(c); std::isfinite(x)) list.push_back(x);
    return mean_of(list);
}

std::string cell_of_table(double x) { return std::isfinite(x) ? strf("%7.3f", x) : "      -"; }

// A column of the table: its title and what it takes the mean of.
struct Column {
    const char* title;
    std::function<double(const ConceptProbe::Variant&)> value;
};

// What was measured with some negatives at the k of this place in the list: E, F and J need a twin, and are
// probed with negatives of the same document alone.
std::vector<Column> columns_of(const ProbeReport& r, size_t k, size_t negatives) {
    using V = ConceptProbe::Variant;
    const auto model = [k](double Figures::*figure) {
        return [=](const V& v) { return v.model[k].*figure; };
    };
    const auto control = [k](std::vector<double> V::*list) {
        return [=](const V& v) { return (v.*list)[k]; };
    };
    std::vector<Column> columns = {{"A", model(&Figures::A)}, {"B", model(&Figures::B)},
                                   {"C", model(&Figures::C)}, {"auroc", model(&Figures::auroc)},
                                   {"D", model(&Figures::D)}, {"covers", model(&Figures::coverage)}};
    if (!r.twin.empty() && negatives == SAME_DOCUMENT)
        for (const Column& c : {Column{"E", control(&V::E)}, {"F", control(&V::F)}, {"J", control(&V::J)}})
            columns.push_back(c);
    if (!r.twin.empty()) columns.push_back({"D dense", [k](const V& v) { return v.dense[k].D; }});
    for (const Column& c : {Column{"H most", model(&Figures::always_most)},
                            {"I token", [](const V& v) { return v.rival.token[1]; }},
                            {"I pos", [](const V& v) { return v.rival.position[1]; }},
                            {"I rule", [](const V& v) { return v.rival.rule[1]; }}})
        columns.push_back(c);
    return columns;
}

// Of a group of concepts ("" for all).
void print_group(const ProbeReport& r, const std::string& group, const std::vector<Column>& columns,
                 size_t negatives) {
    size_t count = 0;
    for (const ConceptProbe& c : r.concepts)
        count += (group.empty() || c.about.group == group) && c.variant[negatives].asked;
    printf("%-18s %4zu", group.empty() ? "all" : group.c_str(), count);
    for (const Column& column : columns)
        printf(" %s", cell_of_table(mean_over(r, group, [&](const ConceptProbe& c) {
                          const ConceptProbe::Variant& v = c.variant[negatives];
                          return v.asked ? column.value(v) : undefined;
                      })).c_str());
    printf("\n");
}

// The least k that gives 95% of the F1 of the most units.
size_t k95(const ProbeReport& r, const std::vector<Figures>& figures) {
    for (size_t k = 0; k < r.ks.size(); k++)
        if (figures[k].A >= 0.95 * figures.back().A) return r.ks[k];
    return 0;
}

void figures_json(JsonWriter& out, const ProbeReport& r, const std::vector<Figures>& figures) {
    out.open('[');
    for (size_t k = 0; k < figures.size(); k++) {
        const Figures& f = figures[k];
        out.open('{').member("k", r.ks[k]).member("A", f.A).member("B", f.B).member("C", f.C);
        out.member("auroc", f.auroc).member("D", f.D).member("D_validation", f.D_validation);
        out.member("coverage", f.coverage).member("H", f.always).member("H_most", f.always_most);
        out.member("layer", r.layers[f.layer]).member("expert", f.cell);
        out.member("D_layer", r.layers[f.pooled_layer]).close();
    }
    out.close();
}

void concept_json(JsonWriter& out, const ProbeReport& r, const ConceptProbe& c) {
    out.open('{').member("group", c.about.group).member("concept", c.about.name);
    out.member("counts", c.counts).key("positives").values(c.positives).member("rule", c.rule);
    for (size_t v = 0; v < n_negatives; v++) {
        const ConceptProbe::Variant& variant = c.variant[v];
        if (!variant.asked) continue;
        out.key(negatives_names[v]).open('{').key("model");
        figures_json(out, r, variant.model);
        if (!variant.dense.empty()) {
            out.key("dense");
            figures_json(out, r, variant.dense);
            if (!variant.E.empty())
                out.key("E").values(variant.E).key("F").values(variant.F).key("J").values(variant.J);
        }
        out.member("I_token", variant.rival.token[1]).member("I_position", variant.rival.position[1]);
        out.member("I_rule", variant.rival.rule[1]).member("k95", k95(r, variant.model));
        out.member("gap", variant.model.back().A - variant.model[0].A).close();
    }
    out.key("G").open('{').member("A_mean", c.shifted_A[0]).member("A_most", c.shifted_A[1]);
    out.member("D_mean", c.shifted_D[0]).member("D_most", c.shifted_D[1]).close().close();
}
} // namespace

void print_probe(const ProbeReport& r) {
    printf("%s, step %lld: %zu concepts on %zu documents of %zu tokens of %s\n", r.checkpoint.c_str(),
           (long long)r.step, r.concepts.size(), r.rows, r.T, r.source.c_str());
    printf("(%zu to train on, %zu to choose on, %zu to test on)%s\n", r.documents[TRAIN],
           r.documents[VALIDATION], r.documents[TEST],
           r.twin.empty() ? "" : strf("; twin %s", r.twin.c_str()).c_str());
    std::vector<std::string> groups;
    for (const ConceptProbe& c : r.concepts)
        if (std::find(groups.begin(), groups.end(), c.about.group) == groups.end())
            groups.push_back(c.about.group);
    for (size_t v = 0; v < n_negatives; v++)
        for (const size_t k : {size_t(0), r.ks.size() - 1}) {
            const std::vector<Column> columns = columns_of(r, k, v);
            printf("\nk = %zu, negatives of %s%s\nconcepts               ", r.ks[k], negatives_names[v],
                   r.twin.empty()       ? " (E, F, J and the dense D need --twin)"
                   : v == SAME_DOCUMENT ? ""
                                        : " (E, F, J are probed with those of the same document alone)");
            for (const Column& column : columns) printf(" %7s", column.title);
            printf("\n");
            for (const std::string& group : groups) print_group(r, group, columns, v);
            print_group(r, "", columns, v);
            if (r.ks.size() == 1) break;
        }
    const auto over_all = [&](auto value) {
        return cell_of_table(mean_over(r, "", [&](const ConceptProbe& c) { return value(c); }));
    };
    printf("\nG, labels shifted, k = 1: A mean%s most%s   D mean%s most%s\n",
           over_all([](const ConceptProbe& c) { return c.shifted_A[0]; }).c_str(),
           over_all([](const ConceptProbe& c) { return c.shifted_A[1]; }).c_str(),
           over_all([](const ConceptProbe& c) { return c.shifted_D[0]; }).c_str(),
           over_all([](const ConceptProbe& c) { return c.shifted_D[1]; }).c_str());
    if (!r.left_out.empty())
        printf("%zu concepts are answered too seldom and were left out\n", r.left_out.size());
    printf("\n%s\n", r.sentence().c_str());
}

std::string probes_side_by_side(const std::vector<ProbeReport>& reports) {
    const auto name_of = [](const ConceptProbe& c) { return c.about.group + ": " + c.about.name; };
    std::map<std::string, size_t> times;
    for (const ProbeReport& r : reports)
        for (const ConceptProbe& c : r.concepts) times[name_of(c)] += c.variant[SAME_DOCUMENT].asked;
    size_t shared = 0;
    for (const auto& [name, n] : times) shared += n == reports.size();
    if (shared == 0) return "";
    const std::vector<Column> columns = columns_of(reports[0], 0, SAME_DOCUMENT);
    std::string out = strf("side by side, k = %zu, negatives of %s, %zu concepts\n%-40s", reports[0].ks[0],
                           negatives_names[SAME_DOCUMENT], shared, "checkpoint");
    std::vector<std::vector<double>> values(columns.size());
    for (const Column& column : columns) out += strf(" %7s", column.title);
    for (const ProbeReport& r : reports) {
        out += strf("\n%-40s", r.checkpoint.c_str());
        for (size_t i = 0; i < columns.size(); i++) {
            values[i].push_back(mean_over(r, "", [&](const ConceptProbe& c) {
                return times[name_of(c)] == reports.size() ? columns[i].value(c.variant[SAME_DOCUMENT])
                                                           : undefined;
            }));
            out += " " + cell_of_table(values[i].back());
        }
    }
    for (const bool half : {false, true}) {
        out += strf("\n%-40s", half ? "half of the 95% t interval" : "mean");
        for (const std::vector<double>& of_column : values) {
            const MeanInterval m = mean_interval(of_column);
            out += " " + cell_of_table(half ? m.high - m.mean : m.mean);
        }
    }
    return out + "\n";
}

std::string probe_json(const ProbeReport& r) {
    JsonWriter out = begin_json("probe", r.checkpoint, r.step, r.config, r.seconds);
    out.member("data", as_utf8(r.source)).member("rows", r.rows).member("tokens", r.T);
    out.key("documents").values(r.documents).key("k").values(r.ks).key("layers").values(r.layers);
    out.member("seed", r.seed).member("gated", r.gated).member("raw", r.raw);
    if (!r.twin.empty())
        out.key("twin")
            .open('{')
            .member("checkpoint", as_utf8(r.twin))
            .member("weights", weights_hash(r.twin))
            .close();
    out.member("sentence", r.sentence()).member("counted", r.counted);
    for (const auto& [name, e] : {std::pair{"A_less_E", &r.beyond_E}, {"D_less_dense", &r.beyond_D}}) {
        out.key(name).open('{').member("value", e->value).member("low", e->interval.low);
        out.member("high", e->interval.high).close();
    }
    out.key("concepts").open('[');
    for (const ConceptProbe& c : r.concepts) concept_json(out, r, c);
    out.close().key("left_out").values(r.left_out).close();
    return out.text;
}
