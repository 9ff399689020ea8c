// The tool router: see router.h. (The sample: router_sample.cpp; table and JSON: router_output.cpp.)
#include "router.h"

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
        pearsons[i] = pearson(g, actual, E);
        spearmans[i] = spearman(g, actual, E);
        std::vector<float> sorted(actual, actual + E);
        std::sort(sorted.begin(), sorted.end());
        double fewest = 0, all = 0;
        for (size_t j = 0; j < E; j++) {
            all += sorted[j];
            fewest += j < K ? sorted[j] : 0;
        }
        regret[i] = -fewest;
        for (size_t k = 0; k < K; k++) {
            const float units = actual[choice[i * K + k]];
            agreement[i] += units <= sorted[K - 1] ? 1.0 / K : 0;
            regret[i] += units;
        }
        for (size_t j = 0; j < E; j++) chance += actual[j] <= sorted[K - 1] ? 1.0 / E : 0;
        random_regret += all * K / E - fewest;
    }
    const uint64_t seed = RouterOptions::bootstrap_seed;
    const std::vector<double> g(score.begin(), score.end()), actual(s.actual.begin(), s.actual.end());
    truth.pearson = {mean_by_group(pearsons, s.row, seed), pearson_by_group(g, actual, E, s.row, seed)};
    truth.spearman = {mean_by_group(spearmans, s.row, seed),
                      pearson_by_group(ranks(g.data(), S * E), ranks(actual.data(), S * E), E, s.row, seed)};
    truth.agreement = mean_by_group(agreement, s.row, seed);
    truth.regret = mean_by_group(regret, s.row, seed);
    truth.chance = chance / S;
    truth.random_regret = random_regret / S;
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
            predicted += p;
            actual += a;
            error += p - a;
            squared += (p - a) * (p - a);
        }
        c.predicted.push_back(predicted / (end - begin));
        c.actual.push_back(actual / (end - begin));
        c.count.push_back(end - begin);
    }
    c.bias = error / pairs;
    c.rmse = std::sqrt(squared / pairs);
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
    layer.explained[0] = pca.explained[0];
    layer.explained[1] = pca.explained[1];
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
    checkpoint.step = step;
    checkpoint.untrained = untrained;
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
            if (std::isnan(r)) continue;
            sum += r;
            defined++;
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

// The shape of the experts' rows and the correlation with the truth, of the untrained weights and of the
// checkpoints of the run, on fewer tokens.
static void add_history(RouterReport& report, Reader& reader, const TokenRows& rows,
                        const RouterOptions& options, const std::string& checkpoint) {
    TokenRows some = rows; // enough for the shape, which needs no more tokens
    some.rows = std::min(rows.rows, history_rows);
    const auto add = [&](int64_t step, bool untrained) {
        report.history.push_back(checkpoint_shape(
            sample_experts(reader, some, shape_tokens, shape_tokens,
                           untrained ? "untrained weights" : strf("step %lld", (long long)step).c_str()),
            step, untrained));
    };
    untrained_weights(reader, report.untrained_seed);
    add(0, true);
    std::vector<int64_t> steps = {report.step};
    const bool folder = options.ckpt != checkpoint;
    if (folder) steps = history_steps(checkpoint_steps(options.ckpt), size_t(options.history));
    for (const int64_t step : steps) {
        try {
            const SafeTensorsFile other(folder ? model_path(options.ckpt, step) : checkpoint);
            if (config_to_strings(read_config(other)) != config_to_strings(report.config))
                fail("%s: a model of another config than %s", other.path.c_str(), checkpoint.c_str());
            load_weights(reader, other);
            add(step, false);
        } catch (const Error& e) {
            report.passed_over.push_back(strf("step %lld: %s", (long long)step, e.what()));
        }
    }
}

RouterReport measure_router(const RouterOptions& options, const MakeReader& make_reader) {
    const double begin = now_seconds();
    need_data(options.data);
    const SafeTensorsFile file(find_checkpoint(options.ckpt));
    RouterReport report;
    report.checkpoint = file.path;
    report.step = checkpoint_step(file);
    report.config = read_config(file);
    const Config& c = report.config;
    if (!c.moe())
        fail("%s: a dense model, which has no router, expected a mixture of experts", file.path.c_str());
    const TokenRows rows =
        token_rows(options.data, c, size_t(options.seq), size_t(options.rows), "", file.path);
    report.source = rows.source;
    report.rows = rows.rows;
    Reader reader = make_reader(c, batch_rows(rows.T), rows.T);
    load_weights(reader, file);
    const std::vector<ExpertSample> samples =
        sample_experts(reader, rows, size_t(options.tokens), shape_tokens, "all experts");
    report.tokens = samples[0].S;
    report.shape_tokens = samples[0].shape[0].n;
    report.gaussian = gaussian_shape(c.d_expert);
    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    for (size_t l = 0; l < c.n_layer; l++)
        report.layers.push_back(layer_router(samples[l], c.topk(), weights.h[l].w_enc, c.n_embd));

    report.untrained_seed = seed_of_run(file.path, report.step);
    if (options.history > 0) add_history(report, reader, rows, options, file.path);
    report.seconds = now_seconds() - begin;
    return report;
}

int router_program(int argc, char** argv, const MakeReader& make_reader) {
    return tool_program<RouterOptions>(
        argc, argv, "router",
        "Runs all experts of a checkpoint and compares the router's scores with what is true.",
        [&](const RouterOptions& options) { return measure_router(options, make_reader); }, print_router,
        router_json);
}
