// What router found, as a table and as JSON (router.h).
#include "router.h"

void print_truth(const char* name, const RouterTruth& t) {
    printf("%-12s %8.3f %8.3f %9.3f %8.3f   (%.3f to %.3f) %9.1f%% %6.1f%% %8.2f %8.2f\n", name,
           t.pearson.within.value, t.spearman.within.value, t.pearson.overall.value, t.spearman.overall.value,
           t.pearson.overall.interval.low, t.pearson.overall.interval.high, 100 * t.agreement.value,
           100 * t.chance, t.regret.value, t.random_regret);
}

void print_router(const RouterReport& r) {
    const Config& c = r.config;
    printf("%s, step %lld, all %zu experts run on %zu tokens (%zu rows) of %s\n\n", r.checkpoint.c_str(),
           (long long)r.step, c.n_expert, r.tokens, r.rows, r.source.c_str());
    printf("%s with the true l0 of the experts\n",
           c.topk() ? "correlation of the router's logits, and of sparsity routing's g,"
                    : "correlation of g");
    printf("               within a token          overall  95%% of the overall   K sparsest chosen     "
           "units lost\n");
    printf("layer         Pearson Spearman   Pearson Spearman           Pearson   and by chance         and "
           "by chance\n");
    for (size_t l = 0; l < r.layers.size(); l++) {
        print_truth(strf("%zu%s", l, c.topk() ? " topk" : "").c_str(), r.layers[l].truth);
        if (c.topk()) print_truth("  sparsity", r.layers[l].sparsity);
    }
    printf("\ncalibration of D Phi(mu/sd): predicted less true units\n");
    printf("layer     mean error     rms   chosen   predicted -> true, by twentieths: first, middle, last\n");
    for (size_t l = 0; l < r.layers.size(); l++) {
        const Calibration& k = r.layers[l].calibration;
        const size_t last = k.count.size() - 1, middle = last / 2;
        printf("%-5zu %14.2f %7.2f %8.2f   %.1f -> %.1f   %.1f -> %.1f   %.1f -> %.1f\n", l, k.bias, k.rmse,
               k.chosen_bias, k.predicted[0], k.actual[0], k.predicted[middle], k.actual[middle],
               k.predicted[last], k.actual[last]);
    }
    const auto shape = [](const char* name, const ExpertSample::Shape& s, double pearson) {
        const double n = double(s.n);
        printf("%-22s %7.3f %7.3f %9.3f %8.4f %8.4f %9.3f", name, s.skew / n, std::sqrt(s.skew_squared / n),
               s.kurtosis / n, s.ks / n, s.ks_fitted / n, s.sd_ratio / n);
        if (std::isnan(pearson))
            printf("\n");
        else
            printf(" %9.3f\n", pearson);
    };
    printf("\nare the rows of W_enc Gaussian? W_enc x + b_enc over the %zu units of an expert, mean over %zu "
           "tokens\n",
           c.d_expert, r.shape_tokens);
    printf("                          skew     rms  kurtosis       KS   fitted  sd ratio    g, l0\n");
    shape("Gaussian rows", r.gaussian, undefined);
    for (const CheckpointShape& checkpoint : r.history)
        for (size_t l = 0; l < checkpoint.layers.size(); l++)
            shape(strf("%s layer %zu",
                       checkpoint.untrained ? "untrained"
                                            : strf("step %lld", (long long)checkpoint.step).c_str(),
                       l)
                      .c_str(),
                  checkpoint.layers[l], checkpoint.pearson_within[l]);
    if (!r.history.empty()) {
        printf("sd ratio by expert, lowest to highest, last checkpoint:");
        for (const Interval& i : r.history.back().sd_ratios) printf("  %.2f to %.2f", i.low, i.high);
        printf("\n");
    }
    for (const std::string& why : r.passed_over) printf("passed over %s\n", why.c_str());
}

void truth_json(JsonWriter& out, const RouterTruth& t) {
    for (const auto& [name, c] : {std::pair{"pearson", &t.pearson}, {"spearman", &t.spearman}}) {
        out.key(name).open('{').member("within", c->within.value).member("overall", c->overall.value);
        out.member("low", c->overall.interval.low).member("high", c->overall.interval.high);
        out.member("within_low", c->within.interval.low)
            .member("within_high", c->within.interval.high)
            .close();
    }
    out.member("agreement", t.agreement.value).member("agreement_low", t.agreement.interval.low);
    out.member("agreement_high", t.agreement.interval.high).member("chance", t.chance);
    out.member("regret", t.regret.value).member("regret_low", t.regret.interval.low);
    out.member("regret_high", t.regret.interval.high).member("random_regret", t.random_regret);
}

void shape_json(JsonWriter& out, const ExpertSample::Shape& s) {
    const double n = double(s.n);
    out.member("skew", s.skew / n).member("skew_rms", std::sqrt(s.skew_squared / n));
    out.member("kurtosis", s.kurtosis / n).member("ks", s.ks / n).member("ks_fitted", s.ks_fitted / n);
    out.member("sd_ratio", s.sd_ratio / n);
}

std::string router_json(const RouterReport& r) {
    JsonWriter out = begin_json("router", r.checkpoint, r.step, r.config, r.seconds);
    out.member("data", as_utf8(r.source))
        .key("sample")
        .open('{')
        .member("tokens", r.tokens)
        .member("rows", r.rows);
    out.member("shape_tokens", r.shape_tokens).close();
    out.key("seeds").open('{').member("bootstrap", RouterOptions::bootstrap_seed);
    out.member("gaussian", RouterOptions::gaussian_seed).member("untrained", r.untrained_seed).close();
    out.key("gaussian").open('{');
    shape_json(out, r.gaussian);
    out.close().key("layers").open('[');
    for (size_t l = 0; l < r.layers.size(); l++) {
        const LayerRouter& layer = r.layers[l];
        out.open('{').member("layer", l);
        truth_json(out, layer.truth);
        out.key("calibration").open('{').key("predicted").values(layer.calibration.predicted);
        out.key("actual")
            .values(layer.calibration.actual)
            .key("count")
            .values(layer.calibration.count)
            .close();
        out.member("rmse", layer.calibration.rmse).member("bias", layer.calibration.bias);
        out.member("chosen_bias", layer.calibration.chosen_bias);
        if (r.config.topk()) {
            out.key("sparsity_router").open('{');
            truth_json(out, layer.sparsity);
            out.close();
        }
        out.key("experts").open('[');
        for (const ExpertSample::Shape& s : layer.shape) {
            out.open('{');
            shape_json(out, s);
            out.close();
        }
        out.close().key("scatter").open('[');
        for (const LayerRouter::Point& p : layer.scatter)
            out.open('[').value(double(p.g), 4).value(double(p.l0)).value(p.expert).close();
        out.close().key("pca").open('{').key("explained").open('[');
        out.value(layer.explained[0], 4).value(layer.explained[1], 4).close().key("points").open('[');
        for (const LayerRouter::Row& p : layer.encoder_rows)
            out.open('[').value(p.x).value(p.y).value(p.expert).close();
        out.close().close().close();
    }
    out.close().key("history").open('[');
    for (const CheckpointShape& checkpoint : r.history) {
        out.open('{').member("step", checkpoint.step).member("untrained", checkpoint.untrained);
        out.key("layers").open('[');
        for (size_t l = 0; l < checkpoint.layers.size(); l++) {
            out.open('{');
            shape_json(out, checkpoint.layers[l]);
            out.member("ks_gaussian", r.gaussian.ks / r.gaussian.n);
            out.member("sd_ratio_low", checkpoint.sd_ratios[l].low)
                .member("sd_ratio_high", checkpoint.sd_ratios[l].high);
            out.member("pearson_within", checkpoint.pearson_within[l]).close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}
