// All experts run on a sample of tokens (router.h).
#include "router.h"

ExpertSample::Shape shape_of(float* h, size_t D, double mu, double sd) {
    ExpertSample::Shape s;
    const Moments m = moments(h, D);
    std::sort(h, h + D);
    s.n = 1;
    s.skew = m.skew;
    s.skew_squared = m.skew * m.skew;
    s.kurtosis = m.kurtosis;
    s.ks = distance_from_normal(h, D, mu, sd);
    s.ks_fitted = distance_from_normal(h, D, m.mean, m.sd);
    s.sd_ratio = m.sd / sd;
    return s;
}

ExpertSample::Shape gaussian_shape(size_t D) {
    const size_t draws = 1000;
    std::vector<ExpertSample::Shape> each(draws);
    parallel_for(draws, [&](size_t draw) {
        std::vector<float> h(D);
        for (size_t i = 0; i < D; i++)
            h[i] = float(random_normal(RouterOptions::gaussian_seed, random_stream("gaussian") + draw, i));
        each[draw] = shape_of(h.data(), D, moments(h.data(), D).mean, 1);
    });
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
            if (units.mu) {
                own_g[here] = units.g[from];
                mu[here] = units.mu[from];
                sd[here] = units.sd[from];
            }
            sample.g[to] = units.g[from];
            sample.sparsity_g[to] = own_g[here];
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
        parallel_for(count * E, [&](size_t i) {
            float* values = h + i * D;
            uint32_t active = 0;
            for (size_t u = 0; u < D; u++) active += values[u] > 0;
            sample.actual[(before + first) * E + i] = float(active);
            if (tokens.shape[first + i / E])
                shapes[i] = shape_of(values, D, mu[first * E + i], sd[first * E + i]);
        });
        for (size_t i = 0; i < count * E; i++)
            if (tokens.shape[first + i / E]) sample.shape[i % E].add(shapes[i]);
    }
}

std::vector<ExpertSample> sample_experts(Reader& reader, const TokenRows& rows, size_t tokens, size_t shapes,
                                         const char* label) {
    const Config& c = reader.config;
    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    ExpertSample empty;
    empty.E = c.n_expert;
    empty.K = c.n_expert_active;
    empty.D = c.d_expert;
    empty.shape.resize(c.n_expert);
    std::vector<ExpertSample> samples(c.n_layer, empty);
    std::vector<EncoderStatistics> statistics;
    for (const LayerParameters<float>& h : weights.h)
        statistics.emplace_back(h.w_enc, h.b_enc, c.n_expert, c.d_expert, c.n_embd);
    const size_t stride = std::max<size_t>(1, rows.size() / tokens);
    const size_t shape_stride = std::max<size_t>(1, rows.size() / stride / shapes);
    size_t taken = 0;
    read_rows(reader, rows, label, [&](size_t first, size_t B) {
        check_finite(reader, rows, first, B * rows.T);
        SampledTokens sampled;
        const size_t begin = first * rows.T, end = (first + B) * rows.T;
        for (size_t k = begin / stride; k * stride < end; k++) { // one of every `stride` tokens, at random
            const size_t at = k * stride + random_u64(1, random_stream("sampled tokens"), k) % stride;
            if (at < begin || at >= end) continue;
            sampled.number.push_back(int32_t(at - begin));
            sampled.row.push_back(uint32_t(at / rows.T));
            sampled.shape.push_back(taken++ % shape_stride == 0);
        }
        if (sampled.number.empty()) return;
        for (size_t l = 0; l < c.n_layer; l++)
            add_to_sample(samples[l], reader.layer(l), sampled, weights.h[l].w_enc, weights.h[l].b_enc,
                          statistics[l], c.n_embd);
    });
    return samples;
}
