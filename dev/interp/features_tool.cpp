// The tool features: see features.h. What a checkpoint's units are found to tell.
#include "features.h"

// ---------------------------------------------------------------------------------------------------------
// Counting and ranking

void Census::add(const std::vector<Finding>& findings, const std::vector<size_t>& which,
                 const UnitFires& test, const std::vector<Property>& properties) {
    for (size_t i = 0; i < findings.size(); i++) {
        const Finding& f = findings[i];
        const size_t on = test.on(which[i], 0);
        units++;
        firing += on;
        tested += f.choice.any();
        if (f.verdict == KNOWS) {
            knows++;
            outright += f.outright;
            knows_firing += on;
            known.insert(properties[f.choice.property].words[f.choice.negated]);
        } else if (f.verdict == READS) {
            reads++;
            reads_firing += on;
        }
    }
}

bool goes_before(const Finding& a, const Finding& b) {
    if (a.verdict != b.verdict) return a.verdict > b.verdict;
    if (a.verdict == KNOWS)
        return a.beyond_mcc() - 2 * a.beyond_error() > b.beyond_mcc() - 2 * b.beyond_error();
    return a.verdict == READS ? a.text_counts.mcc() > b.text_counts.mcc() : a.choice.score > b.choice.score;
}

std::vector<size_t> rank_units(const std::vector<Feature>& units) {
    std::vector<size_t> order(units.size()), ranking;
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return goes_before(units[a].finding, units[b].finding); });
    for (const Verdict verdict : {KNOWS, READS, NOTHING}) {
        std::set<std::string> seen;
        std::vector<size_t> again;
        for (const size_t i : order) {
            const Finding& f = units[i].finding;
            if (f.verdict != verdict) continue;
            const std::string what = verdict == READS ? strf("%u %u", f.text.a, f.text.b)
                                                      : units[i].property.function + ": " + units[i].words();
            (seen.insert(what).second ? ranking : again).push_back(i);
        }
        ranking.insert(ranking.end(), again.begin(), again.end());
    }
    return ranking;
}

std::vector<size_t> units_of_layer(const Config& c, size_t layer, const std::set<UnitName>& wanted) {
    const size_t E = c.moe() ? c.n_expert : 1, D = c.moe() ? c.d_expert : c.dense_width();
    std::vector<size_t> list;
    for (size_t u = 0; u < E * D; u++)
        if (wanted.empty() || wanted.count({layer, u / D, u % D})) list.push_back(u);
    return list;
}

// ---------------------------------------------------------------------------------------------------------
// Measuring a checkpoint

// The features of an expert's units among those of its layer, the best of them first; all if they were asked
// for, else the best that were tested.
static std::vector<Feature> listed_units(const std::vector<size_t>& units,
                                         const std::vector<Finding>& findings, const LayerFires& fires,
                                         size_t layer, size_t expert, size_t D, size_t most, bool all,
                                         const std::vector<Property>& properties) {
    std::vector<Feature> list;
    std::vector<double> on_places; // the share where each unit fires
    for (size_t u = 0; u < fires.units; u++)
        on_places.push_back(double(fires.test.on(u, 0)) / double(fires.test.tokens));
    for (size_t i = 0; i < units.size(); i++) {
        const size_t u = units[i];
        const Choice& choice = findings[i].choice;
        if (u / D != expert || (!all && !choice.any())) continue;
        Feature f;
        f.layer = layer;
        f.expert = expert;
        f.unit = u % D;
        f.finding = findings[i];
        f.rate = fires.rate[u];
        f.max = f.rate > 0 ? fires.max[u] : 0;
        f.cut = fires.cuts[u * n_thresholds + choice.threshold];
        if (choice.any()) f.property = properties[choice.property];
        f.control = nearest_rate(on_places, u);
        if (f.control != SIZE_MAX) f.control_rate = on_places[f.control];
        list.push_back(f);
    }
    std::stable_sort(list.begin(), list.end(),
                     [](const Feature& a, const Feature& b) { return goes_before(a.finding, b.finding); });
    if (!all) list.resize(std::min(list.size(), most));
    return list;
}

// Tests the units wanted of one layer, all if none is, counts them and lists the best of every expert.
static void search_layer(Features& out, const std::set<UnitName>& wanted, size_t per_expert, size_t pairs,
                         size_t layer, const LayerFires& fires, const Material& m) {
    const Config& c = out.config;
    const Evidence& e = m.evidence;
    const size_t E = c.moe() ? c.n_expert : 1, D = fires.units / E;
    const std::vector<size_t> units = units_of_layer(c, layer, wanted);
    const std::vector<Finding> findings = find(fires, units, e);
    out.trained.add(findings, units, fires.test, e.properties);
    if (out.all) {
        out.pairs.push_back(frequent_pairs(fires, e, pairs, out.seed));
        const Order other_games[2] = {same_move_order(e.train.games, e.train.per_game, out.seed),
                                      same_move_order(e.test.games, e.test.per_game, out.seed + 1)};
        out.other_labels.add(find(fires, units, e, other_games), units, fires.test, e.properties);
    }
    const Truth truth(e.test, nullptr);
    for (size_t expert = 0; expert < E; expert++) {
        std::vector<Feature> list =
            listed_units(units, findings, fires, layer, expert, D, per_expert, !out.all, e.properties);
        parallel_items(list.size(), [&](size_t i) {
            Feature& f = list[i];
            const size_t u = expert * D + f.unit;
            if (f.finding.choice.any()) describe(f.finding, fires.test, u, truth, out.seed);
            const Choice& square = f.finding.square;
            if (!square.any()) return;
            const Property& p = e.properties[square.property];
            f.heat_words = p.squares;
            f.heat = square_lifts(fires.test, u, f.finding.choice.threshold, p.square, p.stride,
                                  m.test_boards, e.test.per_game);
        });
        std::move(list.begin(), list.end(), std::back_inserter(out.units));
    }
}

// Where the listed units fire most strongly, with which experts, and what they promote.
static void add_contexts(std::vector<Feature>& units, Reader& reader, const Material& m, bool gated) {
    const Config& c = reader.config;
    const TokenRows& rows = m.test.rows;
    const size_t D = c.moe() ? c.d_expert : c.dense_width();
    UnitWatch watch(units, reader, gated);
    read_rows(reader, rows, "contexts", [&](size_t first, size_t B) { watch.add(reader, first, B, rows.T); });
    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    parallel_items(units.size(), [&](size_t i) {
        Feature& f = units[i];
        for (const Peak& peak : watch.peaks(i))
            f.contexts.push_back(m.chess ? game_context(m.test_texts[peak.game], peak.place, peak.value)
                                         : text_context(rows.tokens.data() + peak.game * rows.T, rows.T,
                                                        peak.place, m.vocabulary, peak.value));
        watch.fill(f, i);
        add_output_tokens(f, direct_logits(c, weights, f.layer, f.expert * D + f.unit), m.token_names);
    });
}

// What the model loses without each of the best units: those that were found to tell something.
constexpr size_t effect_tokens = 25600;
static void add_effects(Features& out, Reader& reader, const Material& m, size_t most) {
    const Config& c = out.config;
    const size_t D = c.moe() ? c.d_expert : c.dense_width();
    if (!c.moe() && !c.dense()) return; // a unit has no decoder row of its own
    std::vector<size_t> which;
    std::vector<EffectTask> tasks;
    const Truth truth(m.evidence.test, nullptr);
    for (const size_t i : out.ranking) {
        const Feature& f = out.units[i];
        if (which.size() == most) break;
        if (!f.finding.choice.any() || f.control == SIZE_MAX) continue;
        which.push_back(i);
        tasks.push_back(
            {f.layer, f.expert, f.unit, f.control / D, f.control % D, truth.holds(f.finding.choice)});
    }
    const size_t rows = std::max<size_t>(2, effect_tokens / m.T());
    const std::vector<uint64_t> legal =
        m.chess ? legal_beginnings(m.test_texts, m.test.places, rows) : std::vector<uint64_t>();
    const std::vector<UnitEffect> effects =
        unit_effects(reader, m.test, rows, m.evidence.test.per_game, legal, tasks);
    for (size_t i = 0; i < which.size(); i++) out.units[which[i]].effect = effects[i];
}

// The words of the rules beside every listed unit.
static void add_rule_words(Features& out, const Evidence& e) {
    for (const Feature& f : out.units) {
        const Choice& choice = f.finding.choice;
        Rule rule = choice.any() ? e.rules[choice.property] : Rule{};
        if (choice.any() && choice.negated) rule.yes = uint8_t(rule.single() ? rule.yes ^ 9 : rule.yes ^ 15);
        out.text_words.push_back(rule_text(f.finding.text, e.questions));
        out.rule_words.push_back(rule_text(rule, e.questions));
    }
}

Features measure_features(const FeatureOptions& o, const MakeReader& make_reader) {
    const double begin = now_seconds();
    const SafeTensorsFile file(find_checkpoint(o.ckpt));
    Features out;
    out.checkpoint = file.path;
    out.step = checkpoint_step(file);
    out.config = read_config(file);
    out.seed = uint64_t(o.seed);
    out.untrained_seed = seed_of_run(file.path, out.step);
    out.gated = !o.ungated;
    const std::set<UnitName> wanted = parse_units(o, out.config);
    out.all = wanted.empty();
    const Material m = read_material(o, out.config, file.path);
    const Evidence& e = m.evidence;
    out.chess = m.chess;
    out.train = m.train_name;
    out.test = m.test_name;
    out.own_data = trained_on(file.path, out.step, m.train_name);
    out.train_games = e.train.games;
    out.test_games = e.test.games;
    out.characters = m.T();
    out.per_game = e.train.per_game;
    out.seen = m.seen;
    out.asked = e.properties;
    out.properties = e.properties.size();
    out.questions = e.questions.size();

    Reader reader = make_reader(out.config, batch_rows(m.T()), m.T());
    std::vector<size_t> layers(out.config.n_layer);
    std::iota(layers.begin(), layers.end(), size_t(0));
    load_weights(reader, file);
    each_layer_group({reader, m.train, m.test, Ladder::OF_FIRINGS, out.gated, file.path}, layers,
                     [&](const std::vector<size_t>& group, std::vector<LayerFires>& fires) {
                         Progress progress("units", "layers", double(group.size()));
                         for (size_t i = 0; i < group.size(); i++) {
                             search_layer(out, wanted, size_t(o.per_expert), size_t(o.pairs), group[i],
                                          fires[i], m);
                             progress.update(double(i + 1));
                         }
                         progress.finish(double(group.size()));
                     });
    add_contexts(out.units, reader, m, out.gated);
    out.ranking = rank_units(out.units);
    add_effects(out, reader, m, out.all ? size_t(o.effects) : out.units.size());
    if (out.all) {
        const std::vector<size_t> every = units_of_layer(out.config, 0, {});
        untrained_weights(reader, out.untrained_seed);
        each_layer_group({reader, m.train, m.test, Ladder::OF_FIRINGS, out.gated, "untrained weights"},
                         layers, [&](const std::vector<size_t>&, std::vector<LayerFires>& fires) {
                             for (const LayerFires& layer : fires)
                                 out.untrained.add(find(layer, every, e), every, layer.test, e.properties);
                         });
    }
    add_rule_words(out, e);
    out.seconds = now_seconds() - begin;
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// The program

int features_program(int argc, char** argv, const MakeReader& make_reader) {
    FeatureOptions flags;
    Options options("features",
                    "Says what single units of a checkpoint tell of the board, or of what comes next in a "
                    "text, and whether\n"
                    "that is more than rules about the text tell: measured on games they were not chosen on.",
                    "[more of --unit]");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    flags.units = options.arguments;
    const Features features = measure_features(flags, make_reader);
    const bool some = !flags.unit.empty() || !flags.units.empty();
    print_features(features, some ? SIZE_MAX : size_t(flags.best));
    if (!some || !flags.json.empty()) { // a part has a file of its own
        std::string name = "features";
        if (flags.count != FeatureOptions().count) name += strf("_count_%lld", (long long)flags.count);
        if (flags.ungated) name += "_ungated";
        write_json(json_path(flags.json, features.checkpoint, name.c_str()), features_json(features));
    }
    return 0;
}
