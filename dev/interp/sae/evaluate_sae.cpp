// SAEs on held-out data: see evaluate_sae.h.
#include "evaluate_sae.h"

// The loss of a batch, with f(x) called on the activations (N,C) of an SAE's site.
template <class F> static double loss_with(Model& model, const SaeFile& sae, const std::vector<int32_t>& x,
                                           const std::vector<int32_t>& y, size_t B, size_t T, F f) {
    const Place site = sae.site == "residual" ? Place::out : Place::ln_2;
    model.intervene = [&](size_t layer, Place place, real* at) {
        if (layer == sae.layer && place == site) f(at);
    };
    const double loss = forward(model, x.data(), y.data(), B, T).loss;
    model.intervene = nullptr;
    return loss;
}

// sum over tokens and channels of x, x^2 and (x - xh)^2, for the share of the variance unexplained.
struct VarianceSums {
    std::vector<double> x;
    double xx = 0, error = 0;
    size_t N = 0;

    double fvu() const {
        double of_mean = 0;
        for (const double sum : x) of_mean += sum * sum / double(N);
        return error / (xx - of_mean);
    }
};

std::vector<SaeEvaluation> evaluate_saes(Model& model, const std::vector<SaeFile>& saes, Loader& data,
                                         size_t rows, size_t T) {
    const size_t max_B = model.max_B, C = model.config.n_embd, n = std::min(rows, data.samples);
    std::vector<SaeEvaluation> results(saes.size());
    std::vector<VarianceSums> sums(saes.size(), VarianceSums{std::vector<double>(C)});
    std::vector<std::vector<bool>> fired(saes.size(), std::vector<bool>(saes[0].sae.F));
    SaeActivations t(saes[0].sae, max_B * T);
    std::vector<int32_t> x(max_B * T), y(max_B * T);
    Progress progress("loss with the SAEs", "rows", double(n));
    data.position = 0;
    for (size_t done = 0; done < n;) {
        const size_t B = std::min(max_B, n - done), N = B * T;
        const double share = double(B) / double(n);
        data.next(B, x.data(), y.data());
        const double loss = forward(model, x.data(), y.data(), B, T).loss;
        for (size_t i = 0; i < saes.size(); i++) {
            SaeEvaluation& e = results[i];
            e.layer = saes[i].layer;
            e.loss += share * loss;
            e.loss_sae += share * loss_with(model, saes[i], x, y, B, T, [&](real* at) {
                              sae_forward(saes[i].sae, t, at, N, false);
                              for (size_t j = 0; j < N * C; j++) {
                                  sums[i].x[j % C] += double(at[j]);
                                  sums[i].xx += double(at[j]) * double(at[j]);
                                  sums[i].error += double(t.error.data[j]) * double(t.error.data[j]);
                              }
                              sums[i].N += N;
                              e.l0 += double(t.kept.size());
                              for (const uint32_t unit : t.kept.unit) fired[i][unit] = true;
                              std::copy_n(t.xh.data, N * C, at);
                          });
            e.loss_zero += share * loss_with(model, saes[i], x, y, B, T,
                                             [&](real* at) { std::fill_n(at, N * C, real(0)); });
        }
        done += B;
        progress.update(double(done));
    }
    progress.finish(double(n));
    for (size_t i = 0; i < saes.size(); i++) {
        results[i].fvu = sums[i].fvu();
        results[i].l0 /= double(n * T);
        results[i].dead = size_t(std::count(fired[i].begin(), fired[i].end(), false));
    }
    return results;
}
