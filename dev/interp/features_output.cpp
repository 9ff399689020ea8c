// What features found, as pages and as JSON: see features.h, section 4.
#include "features.h"

std::string best_sentence(const Features& features) {
    const char* held = features.chess ? "games" : "rows";
    const std::string tells = features.chess ? "of the board" : "of what comes next";
    if (!features.any_found()) {
        std::string text =
            strf("none of %zu units tested is found to tell more %s than rules about the text do",
                 features.trained.tested, tells.c_str());
        if (!features.ranking.empty() && features.units[features.ranking[0]].finding.verdict == READS)
            text += strf("; %zu read the text, as %s: ", features.trained.reads,
                         unit_text(features.units[features.ranking[0]], features.config).c_str()) +
                    features.text_words[features.ranking[0]];
        return text;
    }
    const size_t i = features.ranking[0];
    const Feature& f = features.units[i];
    const Counts& c = f.finding.counts;
    return unit_text(f, features.config) + " tells that " + f.words() + ": right at " +
           share_text(c.precision()) +
           strf(" of the %.0f places where it is on, of %.0f in %zu %s it was not chosen on", c.on, c.n,
                features.test_games, held) +
           " (base rate " + share_text(c.base()) + ", recall " + share_text(c.recall()) +
           "); the best rule about the text (" + features.rule_words[i] + ") has Matthews " +
           share_text(f.finding.rule.mcc()) + " to its " + share_text(c.mcc());
}

std::string boards_text(const Feature& f) {
    using namespace chess;
    const Position p = parse_fen(f.contexts[0].fen);
    const bool heat = !f.heat.empty();
    std::string out =
        heat ? strf("    %-32s%s\n", "strongest", ("lift in %, " + f.heat_words).c_str()) : "    strongest\n";
    for (int rank = 7; rank >= 0; rank--) {
        out += strf("    %d ", rank + 1);
        for (int file = 0; file < 8; file++) {
            const int piece = p.board[square_at(file, rank)];
            out += strf(" %c ", piece ? char(piece_letters[std::abs(piece)] + (piece < 0 ? 32 : 0)) : '.');
        }
        if (heat) out += "      ";
        for (int file = 0; file < 8 && heat; file++)
            out += strf("%5.0f", 100 * f.heat[size_t(square_at(file, rank))]);
        out += "\n";
    }
    out += "       a  b  c  d  e  f  g  h";
    return out + (heat ? "            a    b    c    d    e    f    g    h\n" : "\n");
}

void print_finding(const Feature& f, const Features& features, size_t i) {
    const Finding& finding = f.finding;
    const Counts& held = finding.counts;
    const char* game = features.chess ? "game" : "row";
    printf(
        "  on             the strongest %.0f%% of its firings, above %.3g: at %.1f places a %s, at %.0f of "
        "the %.0f that are tested (%s)\n",
        100 * firing_share(finding.choice.threshold), f.cut, f.on_anywhere, game, held.on, held.n,
        features.chess ? "the boundaries between moves" : "all tokens");
    printf("  verdict        %s\n", finding.verdict == KNOWS   ? "knows: it tells this beyond the text"
                                    : finding.verdict == READS ? "reads the text"
                                                               : "nothing is found");
    printf("  tells that     %s   (%s)\n", f.words().c_str(), f.property.function.c_str());
    printf("  held out       precision %s (%s)   recall %s   F1 %s (%s)   Matthews %s (%s)\n",
           share_text(held.precision()).c_str(), range_text(finding.precision).c_str(),
           share_text(held.recall()).c_str(), share_text(held.f1()).c_str(), range_text(finding.f1).c_str(),
           share_text(held.mcc()).c_str(), range_text(finding.mcc).c_str());
    if (finding.fresh.on > 0)
        printf("                 where the text so far is in no train game: precision %s, recall %s\n",
               share_text(finding.fresh.precision()).c_str(), share_text(finding.fresh.recall()).c_str());
    printf("  for nothing    base rate %s   always on: F1 %s   labels shuffled: F1 %s   %s: F1 %s\n",
           share_text(held.base()).c_str(), share_text(held.floor()).c_str(),
           share_text(held.shuffled()).c_str(),
           features.chess ? "move, last move and length alone" : "the token alone",
           share_text(finding.matched_f1()).c_str());
    printf("  the text       the best rule for it has F1 %s, Matthews %s: %s\n",
           share_text(finding.rule.f1()).c_str(), share_text(finding.rule.mcc()).c_str(),
           features.rule_words[i].c_str());
    printf("                 the rule nearest to its firing has Matthews %s with it: %s\n",
           share_text(finding.text_counts.mcc()).c_str(), features.text_words[i].c_str());
    printf("  beyond it      Matthews %+.3f, %.1f standard errors\n", finding.beyond_mcc(),
           finding.beyond.errors());
}

void print_effect(const Feature& f, const Features& features) {
    const UnitEffect& e = f.effect;
    const size_t D = features.config.moe() ? features.config.d_expert : features.config.dense_width();
    const std::string control =
        features.config.moe() ? strf("%zu/%zu", f.control / D, f.control % D) : strf("%zu", f.control % D);
    const auto line = [&](const UnitOff& off) {
        printf("                 log p of the next %s where that holds %s, elsewhere %s\n",
               features.chess ? "character" : "token", change_text(off.inside, 4).c_str(),
               change_text(off.outside, 4).c_str());
        if (features.chess)
            printf("                 characters that begin legal moves %s, elsewhere %s\n",
                   change_text(off.legal_inside, 4).c_str(), change_text(off.legal_outside, 4).c_str());
    };
    printf("  when it is off   at %zu places of %zu %s where that holds, and the others:\n", e.places,
           e.games, features.chess ? "games" : "blocks of rows");
    line(e.off);
    printf("                 with unit %s off instead, which fires at %.1f%% of the places (log p where that "
           "holds: difference %s)\n",
           control.c_str(), 100 * f.control_rate, change_text(e.beyond, 4).c_str());
    line(e.control);
}

void print_feature(const Features& features, size_t i) {
    const Feature& f = features.units[i];
    printf("\n%s\n", unit_text(f, features.config).c_str());
    printf("  fires          on %.2f%% of the %s, at most %.3g\n", 100 * f.rate,
           features.chess ? "characters" : "tokens", f.max);
    if (f.finding.choice.any())
        print_finding(f, features, i);
    else
        printf("  property       none: it is on at fewer than %zu %s in %zu %s\n", least_places,
               features.chess ? "boundaries of moves, where properties are compared," : "tokens", least_games,
               features.chess ? "games" : "blocks of rows");
    if (f.effect.games) print_effect(f, features);
    for (const bool promotes : {true, false}) {
        printf(promotes ? "  promotes      " : "  suppresses    ");
        for (const OutputToken& t : promotes ? f.promotes : f.suppresses)
            printf(" '%s' %+.2f ", t.text.c_str(), t.logit);
        printf("\n");
    }
    if (!f.with.empty()) {
        printf("  experts with it");
        for (const auto& [expert, share, base] : f.with)
            if (share >= 0.01) printf("  %zu (%.0f%%, else %.0f%%)", expert, 100 * share, 100 * base);
        printf("\n");
    }
    if (f.contexts.empty()) return;
    printf("  contexts\n");
    for (const FeatureContext& c : f.contexts) {
        const auto at = [&](size_t characters) { // the byte where so many characters end
            size_t byte = 0;
            for (size_t n = 0; byte < c.text.size(); byte++)
                if ((c.text[byte] & 0xC0) != 0x80 && n++ == characters) break;
            return byte;
        };
        const size_t begin = at(c.mark), end = at(c.mark + c.length);
        printf("    %8.3g  %s[%s]%s\n", c.value, c.text.substr(0, begin).c_str(),
               c.text.substr(begin, end - begin).c_str(), c.text.substr(end).c_str());
    }
    if (!f.contexts[0].fen.empty()) printf("%s", boards_text(f).c_str());
}

std::string census_text(const Census& c) {
    return strf(
        "%zu of %zu units tested, %zu in all, tell more than the text says (%.1f%% of all firing; %zu "
        "properties; %zu units more\n  than the best rule about it), %zu read the text (%.1f%% of "
        "all firing)",
        c.knows, c.tested, c.units, 100 * c.share(c.knows_firing), c.known.size(), c.outright, c.reads,
        100 * c.share(c.reads_firing));
}

// Two units of a layer by name.
static std::string pair_text(const Features& features, size_t layer, const PairFinding& f) {
    const size_t D = features.config.moe() ? features.config.d_expert : features.config.dense_width();
    return features.config.moe()
               ? strf("%zu/%zu/%zu and %zu/%zu/%zu", layer, f.a / D, f.a % D, layer, f.b / D, f.b % D)
               : strf("%zu/%zu and %zu/%zu", layer, f.a, layer, f.b);
}

static void print_pairs(const Features& features) {
    size_t pairs = 0, more = 0;
    for (size_t l = 0; l < features.pairs.size(); l++)
        for (const PairFinding& f : features.pairs[l]) {
            pairs++;
            more += f.more();
            if (!f.more()) continue;
            printf("units %s fire together at %.1f%% of the places, %.2f times the product of their rates; "
                   "together "
                   "they tell %s bits more than apart (%.4f) of: %s\n",
                   pair_text(features, l, f).c_str(), 100 * f.both, f.lift.value,
                   change_text(f.beyond, 4).c_str(), f.apart.value,
                   features.asked[f.property].words[0].c_str());
        }
    if (pairs)
        printf("%zu of the %zu pairs of units that fire together most often tell a property beyond what the "
               "two tell "
               "apart\n",
               more, pairs);
}

static void pairs_json(JsonWriter& out, const Features& features) {
    const auto estimate = [&](const char* name, const Estimate& x) {
        out.key(name).open('[').value(x.value, 4).value(x.interval.low, 4).value(x.interval.high, 4).close();
    };
    out.key("pairs").open('[');
    for (size_t l = 0; l < features.pairs.size(); l++)
        for (const PairFinding& f : features.pairs[l]) {
            out.open('{').member("layer", l).member("a", f.a).member("b", f.b);
            out.key("rate_a")
                .value(f.rate_a, 4)
                .key("rate_b")
                .value(f.rate_b, 4)
                .key("both")
                .value(f.both, 4);
            out.member("property",
                       f.property < features.asked.size() ? features.asked[f.property].words[0] : "");
            estimate("lift", f.lift);
            estimate("apart", f.apart);
            estimate("beyond", f.beyond);
            estimate("null", f.null);
            out.member("more", f.more()).close();
        }
    out.close();
}

void print_features(const Features& features, size_t best) {
    const char* games = features.chess ? "games" : "blocks of rows";
    printf("%s: %zu properties and %zu questions about the text, chosen on %zu %s of %s, measured on %zu of "
           "%s\n",
           features.checkpoint.c_str(), features.properties, features.questions, features.train_games, games,
           features.train.c_str(), features.test_games, features.test.c_str());
    if (features.own_data)
        printf("warning: the model was trained on these %s\n", features.chess ? "games" : "data");
    for (size_t i = 0; i < std::min(best, features.ranking.size()); i++)
        print_feature(features, features.ranking[i]);
    printf("\n%s\n", census_text(features.trained).c_str());
    if (features.all) {
        printf("untrained weights (seed %llu): %s\n", (unsigned long long)features.untrained_seed,
               census_text(features.untrained).c_str());
        printf("with the labels of another %s at the same %s (seed %llu): %zu would know\n",
               features.chess ? "game" : "block", features.chess ? "move" : "place",
               (unsigned long long)features.seed, features.other_labels.knows);
    }
    print_pairs(features);
    printf("%s\n", best_sentence(features).c_str());
}

// null where it was not measured
static void effect_json(JsonWriter& out, const Feature& f, const Features& features) {
    const UnitEffect& e = f.effect;
    out.key("effect");
    if (!e.games) {
        out.value(undefined);
        return;
    }
    const size_t D = features.config.moe() ? features.config.d_expert : features.config.dense_width();
    const auto estimate = [&](const char* name, const Estimate& x) {
        out.key(name).open('[').value(x.value, 4).value(x.interval.low, 4).value(x.interval.high, 4).close();
    };
    const auto changes = [&](const UnitOff& off) {
        estimate("inside", off.inside);
        estimate("outside", off.outside);
        if (!features.chess) return;
        estimate("legal_inside", off.legal_inside);
        estimate("legal_outside", off.legal_outside);
    };
    out.open('{').member("places", e.places).member("games", e.games);
    changes(e.off);
    out.key("control").open('{').member("expert", f.control / D).member("unit", f.control % D);
    out.key("rate").value(f.control_rate, 4);
    changes(e.control);
    out.close();
    estimate("beyond", e.beyond);
    out.close();
}

void unit_json(JsonWriter& out, const Features& features, size_t i) {
    const Feature& f = features.units[i];
    const Finding& finding = f.finding;
    const Counts& held = finding.counts;
    const bool tested = finding.choice.any();
    const auto number = [&](const char* name, double x) { out.key(name).value(tested ? x : undefined, 4); };
    out.open('{').member("layer", f.layer).member("expert", f.expert).member("unit", f.unit);
    out.key("rate").value(f.rate, 4).key("max").value(double(f.max), 4);
    number("share", firing_share(finding.choice.threshold));
    number("threshold", f.max > 0 ? double(f.cut / f.max) : undefined);
    number("on_anywhere", f.on_anywhere);
    number("on", held.on);
    number("places", held.n);
    number("witnesses", double(finding.witnesses));
    out.member("function", f.property.function).member("property", f.words());
    out.member("verdict", verdict_names[finding.verdict]).member("found", finding.found());
    out.member("outright", finding.outright).key("rivals").open('[');
    for (const Choice& r : finding.rivals) out.value(features.words(r));
    out.close();
    number("score", finding.choice.score);
    number("precision", held.precision());
    number("precision_low", finding.precision.low);
    number("precision_high", finding.precision.high);
    number("recall", held.recall());
    number("f1", held.f1());
    number("f1_low", finding.f1.low);
    number("f1_high", finding.f1.high);
    number("mcc", held.mcc());
    number("mcc_low", finding.mcc.low);
    number("mcc_high", finding.mcc.high);
    number("fresh_precision", finding.fresh.precision());
    number("fresh_recall", finding.fresh.recall());
    number("base", held.base());
    number("floor", held.floor());
    number("shuffled", held.shuffled());
    number("matched", finding.matched_f1());
    out.member("rule", features.rule_words[i]);
    number("rule_f1", finding.rule.f1());
    number("rule_mcc", finding.rule.mcc());
    out.member("text", features.text_words[i]);
    number("text_mcc", finding.text_counts.mcc());
    number("beyond", finding.beyond_mcc());
    number("beyond_error", finding.beyond_error());
    effect_json(out, f, features);
    out.member("heat_function", f.heat_words).key("heat").open('[');
    for (const double lift : f.heat) out.value(std::lround(100 * lift));
    out.close().key("contexts").open('[');
    for (const FeatureContext& c : f.contexts) {
        out.open('{').member("text", c.text).member("mark", c.mark).member("length", c.length);
        out.key("value").value(double(c.value), 4);
        if (features.chess) out.member("fen", c.fen).member("move", c.move).member("last", c.last);
        out.close();
    }
    out.close();
    for (const bool promotes : {true, false}) {
        out.key(promotes ? "promotes" : "suppresses").open('[');
        for (const OutputToken& t : promotes ? f.promotes : f.suppresses)
            out.open('[').value(t.text).value(t.logit, 4).close();
        out.close();
    }
    out.key("with").open('[');
    for (const auto& [expert, share, base] : f.with)
        if (features.config.moe()) out.open('[').value(expert).value(share, 4).value(base, 4).close();
    out.close().close();
}

void census_json(JsonWriter& out, const Census& c) {
    out.member("units", c.units).member("tested", c.tested).member("knows", c.knows);
    out.member("outright", c.outright).member("reads", c.reads).member("properties", c.known.size());
    out.member("knows_firing", c.share(c.knows_firing)).member("reads_firing", c.share(c.reads_firing));
}

std::string features_json(const Features& features) {
    JsonWriter out =
        begin_json("features", features.checkpoint, features.step, features.config, features.seconds);
    out.member("own_data", features.own_data).key(features.chess ? "games" : "data").open('{');
    out.member("source", as_utf8(features.train)).member("test_source", as_utf8(features.test));
    out.member("train", features.train_games).member("test", features.test_games);
    out.member("characters", features.characters)
        .member(features.chess ? "boundaries" : "tokens", features.per_game);
    out.member("seen", features.seen).close();
    out.member("gated", features.gated)
        .member("properties", features.properties)
        .member("questions", features.questions);
    out.member("seed", features.seed).member("untrained_seed", features.untrained_seed);
    out.key("units").open('[');
    for (size_t i = 0; i < features.units.size(); i++) unit_json(out, features, i);
    out.close();
    pairs_json(out, features);
    out.member("sentence", best_sentence(features)).key("best");
    if (features.ranking.empty())
        out.value(undefined);
    else
        out.value(features.ranking[0]);
    out.key("summary").open('{');
    census_json(out, features.trained);
    for (const auto& [name, c] :
         {std::pair{"untrained", &features.untrained}, {"other_labels", &features.other_labels}}) {
        out.key(name);
        if (!features.all) {
            out.value(undefined);
            continue;
        }
        out.open('{');
        census_json(out, *c);
        out.close();
    }
    out.close().close();
    return out.text;
}
