// The layer of moe.h, in its order: there the formulas and shapes, here the loops.
#include "moe.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

// ---------------------------------------------------------------------------------------------------------
// Expert statistics

void expert_statistics_forward(real* m, real* v, real* mb, real* vb, const real* w_enc, const real* b_enc,
                               size_t E, size_t D, size_t C) {
    parallel_for(E, [&](size_t j) {
        real *mj = m + j * C, *vj = v + j * C;
        std::fill(mj, mj + C, real(0));
        std::fill(vj, vj + C, real(0));
        for (size_t i = 0; i < D; i++)
            for (size_t c = 0; c < C; c++) mj[c] += w_enc[(j * D + i) * C + c];
        for (size_t c = 0; c < C; c++) mj[c] /= D;
        for (size_t i = 0; i < D; i++)
            for (size_t c = 0; c < C; c++) {
                const real d = w_enc[(j * D + i) * C + c] - mj[c];
                vj[c] += d * d;
            }
        for (size_t c = 0; c < C; c++) vj[c] /= D;
        real mean = 0, variance = 0;
        for (size_t i = 0; i < D; i++) mean += b_enc[j * D + i];
        mean /= D;
        for (size_t i = 0; i < D; i++) variance += (b_enc[j * D + i] - mean) * (b_enc[j * D + i] - mean);
        mb[j] = mean;
        vb[j] = variance / D;
    });
}

void expert_statistics_backward(real* dw_enc, real* db_enc, const RouterGradients& d, const real* w_enc,
                                const real* b_enc, const RouterView& r, size_t E, size_t D, size_t C) {
    const real share = real(1) / D;
    parallel_for(E * D, [&](size_t ji) {
        const size_t j = ji / D;
        const real *row = w_enc + ji * C, *m = r.m + j * C, *dm = d.m + j * C, *dv = d.v + j * C;
        const real each = share; // in here, where no store can change it
        real* drow = dw_enc + ji * C;
        for (size_t c = 0; c < C; c++) drow[c] += each * (dm[c] + 2 * dv[c] * (row[c] - m[c]));
        db_enc[ji] += each * (d.mb[j] + 2 * d.vb[j] * (b_enc[ji] - r.mb[j]));
    });
}

// ---------------------------------------------------------------------------------------------------------
// Router

void score_forward(real* g, real* sd, const real* mu, const real* rho, size_t N, size_t E) {
    const real root_half = real(0.70710678118654752440);
    parallel_ranges(N, 2, [&](size_t begin, size_t end) {
#pragma omp simd
        for (size_t nj = begin * E; nj < end * E; nj++) sd[nj] = std::sqrt(sd[nj] + real(1e-12));
        for (size_t n = begin; n < end && rho; n++)
            for (size_t j = 0; j < E; j++) sd[n * E + j] *= rho[j];
#pragma omp simd
        for (size_t nj = begin * E; nj < end * E; nj++) g[nj] = -fast_erf(root_half * mu[nj] / sd[nj]);
    });
}

void router_forward(real* g, real* mu, real* sd, const real* x, const real* m, const real* v, const real* mb,
                    const real* vb, size_t N, size_t E, size_t C, const real* rho) {
    static thread_local Workspace memory;
    real* xx = memory.reserve(N * C);
    parallel_for(N, [&](size_t n) {
        for (size_t i = n * C; i < (n + 1) * C; i++) xx[i] = x[i] * x[i];
    });
    const Product moments[] = {{mu, row_major(x, C), row_major(m, C).transposed(), N, E, C, false, mb},
                               {sd, row_major(xx, C), row_major(v, C).transposed(), N, E, C, false, vb}};
    multiply(moments, 2);
    score_forward(g, sd, mu, rho, N, E);
}

void score_backward(real* dmu, real* dvar, const real* dg, const real* mu, const real* sd, const real* rho,
                    size_t N, size_t E) {
    parallel_for(N, [&](size_t n) {
        const real root = real(0.79788456080286535588); // sqrt(2/pi)
        for (size_t nj = n * E; nj < (n + 1) * E; nj++) {
            const real z = mu[nj] / sd[nj], phi = root * fast_exp(real(-0.5) * z * z);
            dmu[nj] = dg[nj] * -phi / sd[nj];
            dvar[nj] = dg[nj] * phi * z / sd[nj] / (2 * sd[nj]);
        }
        for (size_t j = 0; j < E && rho; j++) dvar[n * E + j] *= rho[j] * rho[j];
    });
}

void router_backward(real* dx, const RouterGradients& d, const real* dg, const real* x, const RouterView& r,
                     real* scratch, size_t N, size_t E, size_t C) {
    real* const xx = scratch; // x*x
    score_backward(d.mu, d.var, dg, r.mu, r.sd, r.rho, N, E);
    parallel_for(N, [&](size_t n) {
        for (size_t c = n * C; c < (n + 1) * C; c++) xx[c] = x[c] * x[c];
    });
    add_column_sums(d.mb, d.mu, N, E);
    add_column_sums(d.vb, d.var, N, E);
    const Matrix dmu = row_major(d.mu, E), dvar = row_major(d.var, E);
    const Product to_statistics[] = {{d.m, dmu.transposed(), row_major(x, C), E, C, N, true},
                                     {d.v, dvar.transposed(), row_major(xx, C), E, C, N, true}};
    multiply(to_statistics, 2);
    real* const dvar_v = scratch; // sum_j dvar_j v_j: x*x is not needed any more
    const Product to_x[] = {{dx, dmu, row_major(r.m, C), N, C, E, true},
                            {dvar_v, dvar, row_major(r.v, C), N, C, E}};
    multiply(to_x, 2);
    parallel_for(N, [&](size_t n) {
        for (size_t c = n * C; c < (n + 1) * C; c++) dx[c] += 2 * x[c] * dvar_v[c];
    });
}

// ---------------------------------------------------------------------------------------------------------
// Choice

void choose(int32_t* choice, const real* g, const real* bias, size_t E, size_t K, const int8_t* standing) {
    auto score = [&](size_t j) { return bias ? g[j] + bias[j] : g[j]; };
    auto before = [&](size_t a, size_t b) {
        return standing && standing[a] != standing[b] ? standing[a] > standing[b] : score(a) > score(b);
    };
    for (size_t j = 0; j < E; j++) {
        size_t k = std::min(j, K); // of those before j that are kept
        if (k == K && !before(j, choice[K - 1])) continue;
        if (k == K) k--;
        for (; k > 0 && before(j, choice[k - 1]); k--) choice[k] = choice[k - 1];
        choice[k] = int32_t(j);
    }
}

void choice_forward(int32_t* choice, real* weight, const real* g, size_t N, size_t E, size_t K,
                    const Gate& gate) {
    parallel_for(N, [&](size_t n) {
        int32_t* s = choice + n * K;
        real* w = weight + n * K;
        const real* gn = g + n * E;
        if (gate.ranks) {
            int32_t order[64];
            choose(order, gn, gate.bias, E, size_t(std::bit_width(gate.ranks)), gate.standing);
            for (size_t r = 0, k = 0; k < K; r++)
                if (gate.ranks >> r & 1) s[k++] = order[r];
        } else {
            choose(s, gn, gate.bias, E, K, gate.standing);
        }
        real most = gn[s[0]], sum = 0;
        for (size_t k = 1; k < K; k++) most = std::max(most, gn[s[k]]);
        for (size_t k = 0; k < K; k++) sum += w[k] = std::exp(gn[s[k]] - most);
        if (gate.all) {
            sum = 0;
            for (size_t j = 0; j < E; j++)
                if (!gate.standing || gate.standing[j] != Routing::off) sum += std::exp(gn[j] - most);
        }
        for (size_t k = 0; k < K; k++) w[k] /= sum;
    });
}

void choice_backward(real* dg, const real* dweight, const real* weight, const int32_t* choice, size_t N,
                     size_t E, size_t K, const real* p) {
    parallel_for(N, [&](size_t n) {
        const real *dw = dweight + n * K, *w = weight + n * K;
        real mean = 0;
        for (size_t k = 0; k < K; k++) mean += dw[k] * w[k];
        for (size_t k = 0; k < K; k++) dg[n * E + choice[n * K + k]] += w[k] * (p ? dw[k] : dw[k] - mean);
        for (size_t j = n * E; p && j < (n + 1) * E; j++) dg[j] -= p[j] * mean;
    });
}

// ---------------------------------------------------------------------------------------------------------
// Load balance

real balance_forward(real* p, real* mean, const real* g, const int32_t* begin, size_t N, size_t E, size_t K) {
    parallel_for(N, [&](size_t n) {
        const real *gn = g + n * E, most = *std::max_element(gn, gn + E);
        real sum = 0;
        for (size_t j = 0; j < E; j++) sum += p[n * E + j] = fast_exp(gn[j] - most);
        for (size_t j = 0; j < E; j++) p[n * E + j] /= sum;
    });
    std::fill(mean, mean + E, real(0));
    add_column_sums(mean, p, N, E);
    real aux = 0;
    for (size_t j = 0; j < E; j++) aux += E * (real(begin[j + 1] - begin[j]) / (N * K)) * (mean[j] / N);
    return aux;
}

void balance_backward(real* dg, const real* p, const int32_t* begin, real scale, size_t N, size_t E,
                      size_t K) {
    parallel_for(N, [&](size_t n) {
        auto dp = [&](size_t j) { return scale * E * (real(begin[j + 1] - begin[j]) / (N * K)) / N; };
        real mean = 0;
        for (size_t j = 0; j < E; j++) mean += dp(j) * p[n * E + j];
        for (size_t j = 0; j < E; j++) dg[n * E + j] = p[n * E + j] * (dp(j) - mean);
    });
}

void move_bias(real* bias, const size_t* load, real rate, size_t E) {
    size_t total = 0;
    for (size_t j = 0; j < E; j++) total += load[j];
    for (size_t j = 0; j < E; j++) bias[j] += E * load[j] < total ? rate : E * load[j] > total ? -rate : 0;
}

// ---------------------------------------------------------------------------------------------------------
// Dispatch

void dispatch(int32_t* begin, int32_t* slot, int32_t* token, const int32_t* choice, size_t N, size_t E,
              size_t K) {
    std::fill(begin, begin + E + 1, 0);
    for (size_t i = 0; i < N * K; i++) begin[choice[i] + 1]++;
    for (size_t j = 0; j < E; j++) begin[j + 1] += begin[j];
    for (size_t i = 0; i < N * K; i++) { // begin[j] serves as expert j's cursor and ends at its end
        slot[i] = begin[choice[i]]++;
        token[slot[i]] = int32_t(i / K);
    }
    for (size_t j = E; j > 0; j--) begin[j] = begin[j - 1];
    begin[0] = 0;
}

void gather(real* out, const real* x, const int32_t* token, size_t slots, size_t C) {
    parallel_for(slots, [&](size_t s) { std::copy(x + token[s] * C, x + (token[s] + 1) * C, out + s * C); });
}

// ---------------------------------------------------------------------------------------------------------
// Experts

size_t keep_largest(real* z, size_t slots, size_t D, size_t q) {
    std::atomic<size_t> active{0};
    parallel_ranges(slots, 1, [&](size_t begin, size_t end) {
        static thread_local Workspace memory;
        real* sorted = memory.reserve(D);
        size_t found = 0;
        for (size_t s = begin; s < end; s++) {
            real* row = z + s * D;
            size_t positive = 0;
            for (size_t i = 0; i < D; i++)
                if (!(row[i] <= 0)) sorted[positive++] = row[i]; // a NaN stays: it must reach the loss
            found += std::min(positive, q);
            if (positive <= q) continue;
            std::nth_element(sorted, sorted + q, sorted + positive, std::greater<real>());
            const real least = sorted[q]; // of what goes: the largest
            size_t above = 0;
            for (size_t i = 0; i < D; i++) above += row[i] > least;
            for (size_t i = 0, ties = q - std::min(q, above); i < D; i++) {
                if (row[i] == least && ties > 0)
                    ties--;
                else if (row[i] <= least)
                    row[i] = 0;
            }
        }
        active += found;
    });
    return active;
}

size_t experts_forward(real* y, real* z, real* h, const real* x, const Experts& e) {
    const size_t D = e.D, C = e.C;
    const size_t n_products = e.describe(e.products, [&](size_t j, size_t s, size_t n) -> Product {
        const Matrix xs = row_major(x, C, e.token).from(s, 0), w = row_major(e.w_enc + j * D * C, C);
        return {h + s * D, xs, w.transposed(), n, D, C, false, e.b_enc + j * D};
    });
    std::atomic<size_t> active{0};
    multiply(e.products, n_products, [&](size_t p, size_t i, size_t j, size_t rows, size_t columns) {
        const size_t first = e.products[p].out - h + i * D + j;
        size_t fired = 0;
        for (size_t r = 0; r < rows; r++)
            fired += activate(z + first + r * D, h + first + r * D, columns, e.relu);
        active += fired;
    });
    if (e.top) active = keep_largest(z, e.slots(), D, e.top);
    if (e.relu && active <= e.skip.forward * e.slots() * D) {
        skipping_decode(e.parts, e.describe(e.parts, [&](size_t j, size_t s, size_t n) {
            ExpertPart part{};
            part.n = n;
            part.D = D;
            part.C = C;
            part.z = z + s * D;
            part.y = y + s * C;
            part.w_dec = e.w_dec + j * D * C;
            part.b_dec = e.b_dec + j * C;
            return part;
        }));
    } else {
        e.each([&](size_t j, size_t s, size_t n) -> Product {
            const Matrix zs = row_major(z + s * D, D), w = row_major(e.w_dec + j * D * C, C);
            return {y + s * C, zs, w, n, C, D, false, e.b_dec + j * C};
        });
    }
    return active;
}

void experts_backward(real* dx, const ExpertsGradients& d, const real* dy, const real* x, const real* z,
                      const real* h, size_t active, const Experts& e) {
    real* const dh = d.h;
    const size_t D = e.D, C = e.C;
    const double share = e.relu ? double(active) / (e.slots() * D) : INFINITY; // gelu has no zeros to skip
    const size_t n_parts = e.describe(e.parts, [&](size_t j, size_t s, size_t n) {
        ExpertPart part{};
        part.n = n;
        part.D = D;
        part.C = C;
        part.z = z + s * D;
        part.dh = dh + s * D;
        part.dx = dx + s * C;
        part.dy = dy + s * C;
        part.x = row_major(x, C, e.token).from(s, 0);
        part.w_enc = e.w_enc + j * D * C;
        part.w_dec = e.w_dec + j * D * C;
        part.dw_enc = d.w_enc + j * D * C;
        part.dw_dec = d.w_dec + j * D * C;
        return part;
    });
    if (share <= e.skip.slots && !e.l1.norm) {
        skipping_slots(e.parts, n_parts);
    } else {
        const size_t n_products = e.describe(e.products, [&](size_t j, size_t s, size_t n) -> Product {
            const Matrix dys = row_major(dy + s * C, C), w = row_major(e.w_dec + j * D * C, C);
            return {dh + s * D, dys, w.transposed(), n, D, C};
        });
        multiply(e.products, n_products, [&](size_t p, size_t i, size_t j, size_t rows, size_t columns) {
            const size_t first = e.products[p].out - dh + i * D + j;
            for (size_t at = first; at < first + rows * D; at += D)
                activate_backward(dh + at, dh + at, h + at, columns, e.relu);
        });
        for (size_t j = 0; j < e.E && e.l1.norm; j++) {
            const size_t s = e.begin[j];
            weighted_l1_units(dh + s * D, z + s * D, {e.l1.norm + j * D, e.l1.factor + s, e.l1.scale},
                              e.begin[j + 1] - s, D);
        }
        e.each([&](size_t j, size_t s, size_t n) -> Product {
            return {dx + s * C, row_major(dh + s * D, D), row_major(e.w_enc + j * D * C, C), n, C, D};
        });
    }
    if (share <= e.skip.units) {
        skipping_units(e.parts, n_parts);
    } else {
        e.each([&](size_t j, size_t s, size_t n) -> Product {
            const Matrix zs = row_major(z + s * D, D), dys = row_major(dy + s * C, C);
            return {d.w_dec + j * D * C, zs.transposed(), dys, D, C, n, true};
        });
        e.each([&](size_t j, size_t s, size_t n) -> Product {
            const Matrix dhs = row_major(dh + s * D, D), xs = row_major(x, C, e.token).from(s, 0);
            return {d.w_enc + j * D * C, dhs.transposed(), xs, D, C, n, true};
        });
    }
    add_column_sums(d.b_dec, dy, e.begin, e.E, C);
    add_column_sums(d.b_enc, dh, e.begin, e.E, D);
}

// ---------------------------------------------------------------------------------------------------------
// Combine

void combine_forward(real* out, const real* x, const real* y, const real* weight, const int32_t* slot,
                     size_t N, size_t K, size_t C) {
    parallel_for(N, [&](size_t n) {
        std::copy(x + n * C, x + (n + 1) * C, out + n * C);
        for (size_t k = 0; k < K; k++) {
            const real w = weight[n * K + k], *row = y + slot[n * K + k] * C;
            for (size_t c = 0; c < C; c++) out[n * C + c] += w * row[c];
        }
    });
}

void combine_backward(real* dy, real* dweight, const real* dout, const real* y, const real* weight,
                      const int32_t* slot, size_t N, size_t K, size_t C) {
    parallel_for(N, [&](size_t n) {
        for (size_t k = 0; k < K; k++) {
            const size_t s = slot[n * K + k];
            const real w = weight[n * K + k], *d = dout + n * C;
            real dot = 0;
#pragma omp simd reduction(+ : dot)
            for (size_t c = 0; c < C; c++) {
                dy[s * C + c] = w * d[c];
                dot += d[c] * y[s * C + c];
            }
            dweight[n * K + k] = dot;
        }
    });
}

void gather_backward(real* dx, const real* dslots, const int32_t* slot, size_t N, size_t K, size_t C) {
    parallel_for(N, [&](size_t n) {
        std::fill(dx + n * C, dx + (n + 1) * C, real(0));
        for (size_t k = 0; k < K; k++)
            for (size_t c = 0; c < C; c++) dx[n * C + c] += dslots[slot[n * K + k] * C + c];
    });
}
