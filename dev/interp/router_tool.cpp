// The tool router: see router.h.
#include "router.h"

ExpertSample::Shape shape_of(float* h, size_t D, double mu, double sd) {
    ExpertSample::Shape s;
    const Moments m = moments(h, D);
    std::sort(h, h + D);
    s.n = 1, s.skew = m.skew, s.skew_squared = m.skew * m.skew, s.kurtosis = m.kurtosis;
    s.ks = distance_from_normal(h, D, mu, sd), s.ks_fitted = distance_from_normal(h, D, m.mean, m.sd);
    s.sd_ratio = m.sd / sd;
    return s;
}

ExpertSample::Shape gaussian_shape(size_t D) {
    const size_t draws = 1000;
    std::vector<ExpertSample::Shape> each(draws);
#pragma omp parallel
    {
        std::vector<float> h(D);
#pragma omp for schedule(static)
        for (size_t draw = 0; draw < draws; draw++) {
            for (size_t i = 0; i < D; i++)
                h[i] =
                    float(random_normal(RouterOptions::gaussian_seed, random_stream("gaussian") + draw, i));
            each[draw] = shape_of(h.data(), D, moments(h.data(), D).mean, 1);
        }
    }
    ExpertSample::Shape all;
    for (const ExpertSample::Shape& s : each) all.add(s);
    return all;
}

void add_to_sample(ExpertSample& sample, const LayerUnits& units, const SampledTokens& tokens,
                   const float* w_enc, const float* b_enc, const EncoderStatistics& statistics, size_t C) {
    const size_t E = sample.E, D = sample.D, n = tokens.number.size();
    std::vector<float> x(n * C), own_g(n * E), mu(n * E), sd(n * E);
    gather(x.data(), units.x, tokens.number.data(), n, C);
    router_forward(own_g.data(), mu.data(), sd.data(), x.data(), statistics.m.data(), statistics.v.data(),
                   statistics.mb.data(), statistics.vb.data(), n, E, C);
    const size_t before = sample.S;
    sample.S += n;
    sample.row.insert(sample.row.end(), tokens.row.begin(), tokens.row.end());
    for (std::vector<float>* list : {&sample.g, &sample.sparsity_g, &sample.predicted, &sample.actual})
        list->resize(sample.S * E);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < E; j++) {
            const size_t from = tokens.number[i] * E + j, here = i * E + j, to = before * E + here;
            if (units.mu) own_g[here] = units.g[from], mu[here] = units.mu[from], sd[here] = units.sd[from];
            sample.g[to] = units.g[from], sample.sparsity_g[to] = own_g[here];
            sample.predicted[to] = float(D * normal_cdf(double(mu[here]) / sd[here]));
        }

    // h = x W_enc^T + b_enc of all experts at once, as one encoder of E*D rows, some tokens at a time.
    const size_t block = std::max<size_t>(1, std::min<size_t>(n, (size_t(1) << 22) / (E * D)));
    static Workspace memory;
    float* h = memory.reserve(block * E * D);
    std::vector<ExpertSample::Shape> shapes(block * E);
    for (size_t first = 0; first < n; first += block) {
        const size_t count = std::min(block, n - first);
        multiply({h, row_major(x.data() + first * C, C), row_major(w_enc, C).transposed(), count, E * D, C,
                  false, b_enc});
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < count * E; i++) {
            float* values = h + i * D;
            uint32_t active = 0;
            for (size_t u = 0; u < D; u++) active += values[u] > 0;
            sample.actual[(before + first) * E + i] = float(active);
            if (tokens.shape[first + i / E])
                shapes[i] = shape_of(values, D, mu[first * E + i], sd[first * E + i]);
        }
        for (size_t i = 0; i < count * E; i++)
            if (tokens.shape[first + i / E]) sample.shape[i % E].add(shapes[i]);
    }
}

std::vector<ExpertSample> sample_experts(Reader& reader, const TokenRows& rows, size_t tokens, size_t shapes,
                                         const char* label) {
    const Config& c = reader.config;
    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    ExpertSample empty;
    empty.E = c.n_expert, empty.K = c.n_expert_active, empty.D = c.d_expert, empty.shape.resize(c.n_expert);
    std::vector<ExpertSample> samples(c.n_layer, empty);
    std::vector<EncoderStatistics> statistics;
    for (const LayerParameters<float>& h : weights.h)
        statistics.emplace_back(h.w_enc, h.b_enc, c.n_expert, c.d_expert, c.n_embd);
    const size_t stride = std::max<size_t>(1, rows.size() / tokens);
    const size_t shape_stride = std::max<size_t>(1, rows.size() / stride / shapes);
    size_t taken = 0;
    read_rows(reader, rows, label, [&](size_t first, size_t B) {
        SampledTokens sampled;
        const size_t begin = first * rows.T, end = (first + B) * rows.T;
        for (size_t k = begin / stride; k * stride < end; k++) { // one of every `stride` tokens, at random
            const size_t at = k * stride + random_u64(1, random_stream("sampled tokens"), k) % stride;
            if (at < begin || at >= end) continue;
            sampled.number.push_back(int32_t(at - begin)), sampled.row.push_back(uint32_t(at / rows.T));
            sampled.shape.push_back(taken++ % shape_stride == 0);
        }
        if (sampled.number.empty()) return;
        for (size_t l = 0; l < c.n_layer; l++)
            add_to_sample(samples[l], reader.layer(l), sampled, weights.h[l].w_enc, weights.h[l].b_enc,
                          statistics[l], c.n_embd);
    });
    return samples;
}

RouterTruth router_truth(const ExpertSample& s, const std::vector<float>& score) {
    const size_t S = s.S, E = s.E, K = s.K;
    RouterTruth truth;
    std::vector<double> pearsons(S), spearmans(S), agreement(S), regret(S);
    std::vector<int32_t> choice(S * K);
    std::vector<float> weight(S * K);
    choice_forward(choice.data(), weight.data(), score.data(), S, E, K);
    double chance = 0, random_regret = 0;
    for (size_t i = 0; i < S; i++) {
        const float *g = &score[i * E], *actual = &s.actual[i * E];
        pearsons[i] = pearson(g, actual, E), spearmans[i] = spearman(g, actual, E);
        std::vector<float> sorted(actual, actual + E);
        std::sort(sorted.begin(), sorted.end());
        double fewest = 0, all = 0;
        for (size_t j = 0; j < E; j++) all += sorted[j], fewest += j < K ? sorted[j] : 0;
        regret[i] = -fewest;
        for (size_t k = 0; k < K; k++) {
            const float units = actual[choice[i * K + k]];
            agreement[i] += units <= sorted[K - 1] ? 1.0 / K : 0, regret[i] += units;
        }
        for (size_t j = 0; j < E; j++) chance += actual[j] <= sorted[K - 1] ? 1.0 / E : 0;
        random_regret += all * K / E - fewest;
    }
    const uint64_t seed = RouterOptions::bootstrap_seed;
    const std::vector<double> g(score.begin(), score.end()), actual(s.actual.begin(), s.actual.end());
    truth.pearson = {mean_by_group(pearsons, s.row, seed), pearson_by_group(g, actual, E, s.row, seed)};
    truth.spearman = {mean_by_group(spearmans, s.row, seed),
                      pearson_by_group(ranks(g.data(), S * E), ranks(actual.data(), S * E), E, s.row, seed)};
    truth.agreement = mean_by_group(agreement, s.row, seed),
    truth.regret = mean_by_group(regret, s.row, seed);
    truth.chance = chance / S, truth.random_regret = random_regret / S;
    return truth;
}

Calibration calibrate(const ExpertSample& s, size_t bins) {
    const size_t pairs = s.S * s.E;
    Calibration c;
    std::vector<size_t> order(pairs);
    std::iota(order.begin(), order.end(), size_t(0));
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return s.predicted[a] != s.predicted[b] ? s.predicted[a] < s.predicted[b] : a < b;
    });
    bins = std::min(bins, pairs);
    double error = 0, squared = 0;
    for (size_t b = 0; b < bins; b++) {
        const size_t begin = b * pairs / bins, end = (b + 1) * pairs / bins;
        double predicted = 0, actual = 0;
        for (size_t i = begin; i < end; i++) {
            const double p = s.predicted[order[i]], a = s.actual[order[i]];
            predicted += p, actual += a, error += p - a, squared += (p - a) * (p - a);
        }
        c.predicted.push_back(predicted / (end - begin)), c.actual.push_back(actual / (end - begin));
        c.count.push_back(end - begin);
    }
    c.bias = error / pairs, c.rmse = std::sqrt(squared / pairs);
    std::vector<int32_t> choice(s.S * s.K);
    std::vector<float> weight(s.S * s.K);
    choice_forward(choice.data(), weight.data(), s.g.data(), s.S, s.E, s.K);
    double chosen_error = 0;
    for (size_t i = 0; i < s.S * s.K; i++) {
        const size_t pair = i / s.K * s.E + choice[i];
        chosen_error += double(s.predicted[pair]) - s.actual[pair];
    }
    c.chosen_bias = chosen_error / (s.S * s.K);
    return c;
}

LayerRouter layer_router(const ExpertSample& s, bool topk, const float* w_enc, size_t C) {
    LayerRouter layer;
    layer.truth = router_truth(s, s.g);
    if (topk) layer.sparsity = router_truth(s, s.sparsity_g);
    layer.calibration = calibrate(s);
    layer.shape = s.shape;
    const size_t pairs = s.S * s.E, points = std::min(pairs, scatter_points);
    for (size_t i = 0; i < points; i++) {
        const size_t token = i * s.S / points, pair = pairs <= scatter_points ? i : token * s.E + i % s.E;
        layer.scatter.push_back({s.g[pair], s.actual[pair], pair % s.E});
    }
    const size_t n = s.E * s.D, shown = std::min(n, encoder_points);
    const Projection pca = principal_components(w_enc, n, C);
    layer.explained[0] = pca.explained[0], layer.explained[1] = pca.explained[1];
    float largest = 0;
    for (const float at : pca.points) largest = std::max(largest, std::fabs(at));
    const float scale = largest > 0 ? 1000 / largest : 0;
    for (size_t i = 0; i < shown; i++) {
        const size_t unit = i * n / shown;
        layer.encoder_rows.push_back({int(std::lround(scale * pca.points[unit * 2])),
                                      int(std::lround(scale * pca.points[unit * 2 + 1])), unit / s.D});
    }
    return layer;
}

CheckpointShape checkpoint_shape(const std::vector<ExpertSample>& samples, int64_t step, bool untrained) {
    CheckpointShape checkpoint;
    checkpoint.step = step, checkpoint.untrained = untrained;
    for (const ExpertSample& s : samples) {
        ExpertSample::Shape all;
        Interval ratios = {INFINITY, -INFINITY};
        for (const ExpertSample::Shape& shape : s.shape) {
            all.add(shape);
            ratios.low = std::min(ratios.low, shape.sd_ratio / double(shape.n));
            ratios.high = std::max(ratios.high, shape.sd_ratio / double(shape.n));
        }
        checkpoint.sd_ratios.push_back(ratios);
        checkpoint.layers.push_back(all);
        double sum = 0, defined = 0;
        for (size_t i = 0; i < s.S; i++) {
            const double r = pearson(&s.g[i * s.E], &s.actual[i * s.E], s.E);
            if (!std::isnan(r)) sum += r, defined++;
        }
        checkpoint.pearson_within.push_back(defined ? sum / defined : undefined);
    }
    return checkpoint;
}

std::vector<int64_t> history_steps(std::vector<int64_t> steps, size_t most) {
    std::sort(steps.begin(), steps.end());
    if (steps.size() <= most) return steps;
    std::vector<int64_t> some;
    for (size_t i = 0; i < most; i++) some.push_back(steps[(i + 1) * steps.size() / most - 1]);
    return some;
}

RouterReport measure_router(const RouterOptions& options, const MakeReader& make_reader) {
    const double begin = now_seconds();
    if (options.data.empty()) fail_usage("--data is missing: token shards, or a file of games");
    const SafeTensorsFile file(find_checkpoint(options.ckpt));
    RouterReport report;
    report.checkpoint = file.path, report.step = checkpoint_step(file), report.config = read_config(file);
    const Config& c = report.config;
    if (!c.moe())
        fail("%s: a dense model, which has no router, expected a mixture of experts", file.path.c_str());
    const TokenRows rows =
        token_rows(options.data, c, size_t(options.seq), size_t(options.rows), "", file.path);
    report.source = rows.source, report.rows = rows.rows;
    Reader reader = make_reader(c, batch_rows(rows.T), rows.T);
    load_weights(reader, file);
    const std::vector<ExpertSample> samples =
        sample_experts(reader, rows, size_t(options.tokens), shape_tokens, "all experts");
    report.tokens = samples[0].S, report.shape_tokens = samples[0].shape[0].n;
    report.gaussian = gaussian_shape(c.d_expert);
    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    for (size_t l = 0; l < c.n_layer; l++)
        report.layers.push_back(layer_router(samples[l], c.topk(), weights.h[l].w_enc, c.n_embd));

    report.untrained_seed = seed_of_run(file.path, report.step);
    if (options.history == 0) return report.seconds = now_seconds() - begin, report;
    TokenRows some = rows; // enough for the shape, which needs no more tokens
    some.rows = std::min(rows.rows, history_rows);
    const auto add_history = [&](int64_t step, bool untrained) {
        report.history.push_back(checkpoint_shape(
            sample_experts(reader, some, shape_tokens, shape_tokens,
                           untrained ? "untrained weights" : strf("step %lld", (long long)step).c_str()),
            step, untrained));
    };
    untrained_weights(reader, report.untrained_seed);
    add_history(0, true);
    std::vector<int64_t> steps = {report.step};
    const bool folder = options.ckpt != file.path;
    if (folder) steps = history_steps(checkpoint_steps(options.ckpt), size_t(options.history));
    for (const int64_t step : steps) {
        try {
            const SafeTensorsFile other(folder ? model_path(options.ckpt, step) : file.path);
            if (config_to_strings(read_config(other)) != config_to_strings(c))
                fail("%s: a model of another config than %s", other.path.c_str(), file.path.c_str());
            load_weights(reader, other);
            add_history(step, false);
        } catch (const Error& e) {
            report.passed_over.push_back(strf("step %lld: %s", (long long)step, e.what()));
        }
    }
    report.seconds = now_seconds() - begin;
    return report;
}

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

int router_program(int argc, char** argv, const MakeReader& make_reader) {
    RouterOptions flags;
    Options options("router",
                    "Runs all experts of a checkpoint and compares the router's scores with what is true.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    const RouterReport report = measure_router(flags, make_reader);
    print_router(report);
    write_json(json_path(flags.json, report.checkpoint, "router"), router_json(report));
    return 0;
}
