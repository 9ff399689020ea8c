// The layer of monet.h, in its order: there the formulas and shapes, here the loops.
#include "monet.h"
#include "moe.h"
#include "sparse.h"
#include <cmath>

static size_t parts(const Config& c) { return c.ffn == "monet-vd" ? 2 : 1; }

// ---------------------------------------------------------------------------------------------------------
// Router

double monet_router_forward(const MonetRouting& r, const real* x, const real* router, const Config& c,
                            size_t N) {
    const size_t Q = c.n_key, k = c.n_top, heads = 2 * c.n_retrieve, all = heads * Q;
    linear_forward(r.p, x, router, nullptr, N, c.n_embd, all);
    choice_forward(r.index, r.g, r.p, N * heads, Q, k);
    parallel_for(N * heads, [&](size_t row) { // r.p: until here the scores z
        real *p = r.p + row * Q, most = p[r.index[row * k]], sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < Q; i++) sum += p[i] = fast_exp(p[i] - most);
        for (size_t i = 0; i < Q; i++) p[i] /= sum;
    });
    std::fill(r.mean_p, r.mean_p + all, real(0));
    add_column_sums(r.mean_p, r.p, N, all);
    double uniformity = 0, ambiguity = 0;
    for (size_t i = 0; i < all; i++) {
        r.mean_p[i] /= N;
        uniformity -= std::log(double(r.mean_p[i]));
    }
    for (size_t row = 0; row < N * heads; row++) ambiguity += 1 - r.g[row * k];
    return uniformity / all - std::log(double(Q)) + ambiguity / (heads * N);
}

void monet_router_backward(real* dx, real* drouter, real* dg, real* dz, const real* x, const real* router,
                           const MonetRouting& r, real scale, const Config& c, size_t N) {
    const size_t C = c.n_embd, Q = c.n_key, k = c.n_top, heads = 2 * c.n_retrieve, all = heads * Q;
    parallel_for(N * heads, [&](size_t row) {
        const real *p = r.p + row * Q, *P = r.mean_p + row % heads * Q;
        real* d = dz + row * Q;
        real mean = 0;
        for (size_t i = 0; i < Q; i++) {
            d[i] = -scale / (real(all * N) * P[i]); // dp
            mean += p[i] * d[i];
        }
        for (size_t i = 0; i < Q; i++) d[i] = p[i] * (d[i] - mean);
        dg[row * k] -= scale / real(heads * N);
    });
    choice_backward(dz, dg, r.g, r.index, N * heads, Q, k);
    multiply({drouter, row_major(dz, all).transposed(), row_major(x, C), all, C, N, true});
    multiply({dx, row_major(dz, all), row_major(router, C), N, C, all, true});
}

// ---------------------------------------------------------------------------------------------------------
// Mixing, of one token: its rows of the arrays of MonetActivations and MonetScratch

// What head h of a token keeps of side s.
struct Kept {
    const int32_t* index; // (k)
    const real* g;        // (k)
};
static Kept kept(const MonetRouting& r, const Config& c, size_t n, size_t s, size_t h) {
    const size_t at = ((n * 2 + s) * c.n_retrieve + h) * c.n_top;
    return {r.index + at, r.g + at};
}

// t (M) = sum over the kept i of g_i a_i, a = hidden^2
static void mix(real* t, const Kept& kept, const real* hidden, size_t k, size_t M) {
    std::fill(t, t + M, real(0));
    for (size_t a = 0; a < k; a++) {
        const real *row = hidden + kept.index[a] * M, g = kept.g[a];
        for (size_t u = 0; u < M; u++) t[u] += g * row[u] * row[u];
    }
}

// rows (Q,M) of the kept j += g_j t
static void spread(real* rows, const Kept& kept, const real* t, size_t k, size_t M) {
    for (size_t a = 0; a < k; a++) {
        real* row = rows + kept.index[a] * M;
        for (size_t u = 0; u < M; u++) row[u] += kept.g[a] * t[u];
    }
}

// t (M) = sum over the kept j of g_j rows_j
static void collect(real* t, const Kept& kept, const real* rows, size_t k, size_t M) {
    std::fill(t, t + M, real(0));
    for (size_t a = 0; a < k; a++) {
        const real* row = rows + kept.index[a] * M;
        for (size_t u = 0; u < M; u++) t[u] += kept.g[a] * row[u];
    }
}

static real dot(const real* a, const real* b, size_t M) {
    real sum = 0;
    for (size_t u = 0; u < M; u++) sum += a[u] * b[u];
    return sum;
}
static real dot_squared(const real* a, const real* hidden, size_t M) { // a . hidden^2
    real sum = 0;
    for (size_t u = 0; u < M; u++) sum += a[u] * hidden[u] * hidden[u];
    return sum;
}

// The rows of token n.
struct Token {
    real *hidden[2], *r[2][2], *s[2];
};
static Token token_of(real* const hidden[2], real* const r[2][2], real* const s[2], size_t P, size_t n,
                      size_t Q, size_t M) {
    Token t{};
    for (size_t a = 0; a < P; a++) {
        t.hidden[a] = hidden[a] + n * Q * M;
        for (size_t b = 0; b < P; b++) t.r[a][b] = r[a][b] + n * Q * M;
    }
    for (size_t a = 2 - P; a < 2; a++) t.s[a] = s[a] + n * Q;
    return t;
}

static void mix_forward(const MonetActivations& h, const Config& c, size_t n, real* t) { // t scratch (M)
    const size_t P = parts(c), Q = c.n_key, k = c.n_top, M = c.d_expert / P;
    const Token x = token_of(h.hidden, h.r, h.s, P, n, Q, M);
    for (size_t a = 2 - P; a < 2; a++) std::fill(x.s[a], x.s[a] + Q, real(0));
    for (size_t a = 0; a < P; a++)
        for (size_t b = 0; b < P; b++) std::fill(x.r[a][b], x.r[a][b] + Q * M, real(0));
    for (size_t head = 0; head < c.n_retrieve; head++) {
        const Kept side[2] = {kept(h.routing, c, n, 0, head), kept(h.routing, c, n, 1, head)};
        for (size_t s = 2 - P; s < 2; s++)
            for (size_t a = 0; a < k; a++) x.s[s][side[s].index[a]] += side[s].g[a];
        mix(t, side[0], x.hidden[0], k, M);
        spread(x.r[P - 1][0], side[1], t, k, M); // hd: r, vd: r21
        if (P == 1) continue;
        mix(t, side[1], x.hidden[1], k, M);
        spread(x.r[0][1], side[0], t, k, M); // r12
    }
    for (size_t s = 0; s < P && P == 2; s++) // r11, r22
        for (size_t i = 0; i < Q; i++)
            for (size_t u = i * M; u < (i + 1) * M; u++)
                x.r[s][s][u] = x.s[s][i] * x.hidden[s][u] * x.hidden[s][u];
}

static void mix_backward(const MonetScratch& d, const MonetActivations& h, const Config& c, size_t n, real* t,
                         real* dt) { // t dt scratch (M)
    const size_t P = parts(c), Q = c.n_key, k = c.n_top, M = c.d_expert / P;
    const Token x = token_of(h.hidden, h.r, h.s, P, n, Q, M),
                dx = token_of(d.dhidden, d.dr, d.ds, P, n, Q, M);
    for (size_t s = 0; s < P; s++) { // da, until the end
        if (P == 1) std::fill(dx.hidden[s], dx.hidden[s] + Q * M, real(0));
        for (size_t i = 0; i < Q && P == 2; i++) {
            for (size_t u = i * M; u < (i + 1) * M; u++) dx.hidden[s][u] = x.s[s][i] * dx.r[s][s][u];
            dx.s[s][i] += dot_squared(dx.r[s][s] + i * M, x.hidden[s] + i * M, M);
        }
    }
    for (size_t head = 0; head < c.n_retrieve; head++) {
        const Kept side[2] = {kept(h.routing, c, n, 0, head), kept(h.routing, c, n, 1, head)};
        // Mixed on side s, spread on the other: hd from 0 to 1; vd that, r21, and from 1 to 0, r12.
        for (size_t s = 0; s < P; s++) {
            const size_t other = 1 - s;
            const real* dr = P == 1 ? dx.r[0][0] : dx.r[other][s];
            real *dg = d.dg + (side[s].g - h.routing.g), *dg_other = d.dg + (side[other].g - h.routing.g);
            mix(t, side[s], x.hidden[s], k, M);
            collect(dt, side[other], dr, k, M);
            for (size_t a = 0; a < k; a++) {
                const size_t i = side[s].index[a], j = side[other].index[a];
                dg[a] += dot_squared(dt, x.hidden[s] + i * M, M);
                dg_other[a] += dot(dr + j * M, t, M) + dx.s[other][j];
            }
            spread(dx.hidden[s], side[s], dt, k, M);
        }
    }
    for (size_t s = 0; s < P; s++)
        for (size_t u = 0; u < Q * M; u++) dx.hidden[s][u] *= 2 * x.hidden[s][u];
}

// ---------------------------------------------------------------------------------------------------------
// The layer

void for_each_array(MonetActivations& a, const Config& c, size_t N, bool routes, const Visit& visit,
                    const VisitIndices& visit_indices) {
    const size_t P = parts(c), Q = c.n_key, M = c.d_expert / P, heads = 2 * c.n_retrieve;
    if (routes) {
        visit_indices(a.routing.index, N * heads * c.n_top);
        visit(a.routing.g, N * heads * c.n_top);
        visit(a.routing.p, N * heads * Q);
        visit(a.routing.mean_p, heads * Q);
    }
    for (size_t s = 0; s < P; s++) {
        visit(a.hidden[s], N * Q * M);
        for (size_t b = 0; b < P; b++) visit(a.r[s][b], N * Q * M);
    }
    for (size_t s = 2 - P; s < 2; s++) visit(a.s[s], N * Q);
}

void for_each_array(MonetScratch& a, const Config& c, size_t N, const Visit& visit) {
    const size_t P = parts(c), Q = c.n_key, M = c.d_expert / P, heads = 2 * c.n_retrieve;
    visit(a.dg, N * heads * c.n_top);
    visit(a.dz, N * heads * Q);
    for (size_t s = 0; s < P; s++) {
        visit(a.dhidden[s], N * Q * M);
        for (size_t b = 0; b < P; b++) visit(a.dr[s][b], N * Q * M);
    }
    for (size_t s = 2 - P; s < 2; s++) visit(a.ds[s], N * Q);
}

// Pairs (i,j) that some head of the token keeps.
static size_t count_pairs(const MonetRouting& r, const Config& c, size_t n) {
    static thread_local Distinct pairs;
    for (size_t head = 0; head < c.n_retrieve; head++) {
        const Kept side[2] = {kept(r, c, n, 0, head), kept(r, c, n, 1, head)};
        for (size_t a = 0; a < c.n_top; a++)
            for (size_t b = 0; b < c.n_top; b++)
                pairs.add(size_t(side[0].index[a]) * c.n_key + size_t(side[1].index[b]));
    }
    return pairs.take_count();
}

size_t monet_forward(real* out, real* y, const real* mid, const real* x, const MonetParameters<real>& w,
                     const MonetActivations& h, const Config& c, size_t N) {
    const size_t P = parts(c), C = c.n_embd, Q = c.n_key, M = c.d_expert / P, O = C / P;
    Product products[2];
    for (size_t s = 0; s < P; s++)
        products[s] = {h.hidden[s], row_major(x, C), row_major(w.u[s], C).transposed(), N, Q * M, C,
                       false,       w.b_u[s]};
    multiply(products, P);
    for (size_t s = 0; s < P; s++) activation_forward(h.hidden[s], h.hidden[s], N * Q * M, true);

    std::atomic<size_t> active{0};
    parallel_ranges(N, 1, [&](size_t begin, size_t end) {
        static thread_local Workspace memory;
        real* const t = memory.reserve(M);
        size_t found = 0;
        for (size_t n = begin; n < end; n++) {
            mix_forward(h, c, n, t);
            found += count_pairs(h.routing, c, n);
        }
        active += found;
    });

    real* const part[2] = {y, y + N * O}; // (N,O) each
    for (size_t b = 0; b < P; b++) {
        for (size_t s = 0; s < P; s++)
            products[s] = {part[s], row_major(h.r[s][b], Q * M), row_major(w.v[s][b], O), N, O, Q * M, b > 0};
        multiply(products, P);
    }
    for (size_t s = 0; s < P; s++)
        products[s] = {part[s], row_major(h.s[2 - P + s], Q), row_major(w.b_v[s], O), N, O, Q, true};
    multiply(products, P);
    parallel_for(N, [&](size_t n) {
        for (size_t i = 0; i < C; i++) out[n * C + i] = mid[n * C + i] + part[i / O][n * O + i % O];
    });
    return active;
}

void monet_backward(real* dx, const MonetParameters<real>& dw, const MonetScratch& d, const real* dy,
                    const real* x, const MonetParameters<real>& w, const MonetActivations& h, const Config& c,
                    size_t N) {
    const size_t P = parts(c), C = c.n_embd, Q = c.n_key, M = c.d_expert / P, O = C / P;
    for (size_t s = 0; s < P; s++) {
        const Matrix dpart = {dy + s * O, C, 1}; // (N,O)
        const Matrix S = row_major(h.s[2 - P + s], Q);
        Product to_units[3], to_weights[3];
        for (size_t b = 0; b < P; b++) {
            const Matrix r = row_major(h.r[s][b], Q * M), v = row_major(w.v[s][b], O);
            to_units[b] = {d.dr[s][b], dpart, v.transposed(), N, Q * M, O};
            to_weights[b] = {dw.v[s][b], r.transposed(), dpart, Q * M, O, N, true};
        }
        to_units[P] = {d.ds[2 - P + s], dpart, row_major(w.b_v[s], O).transposed(), N, Q, O};
        to_weights[P] = {dw.b_v[s], S.transposed(), dpart, Q, O, N, true};
        multiply(to_units, P + 1);
        multiply(to_weights, P + 1);
    }
    parallel_ranges(N, 1, [&](size_t begin, size_t end) {
        static thread_local Workspace memory;
        real* const t = memory.reserve(2 * M);
        for (size_t n = begin; n < end; n++) mix_backward(d, h, c, n, t, t + M);
    });
    for (size_t s = 0; s < P; s++) {
        const Matrix dhidden = row_major(d.dhidden[s], Q * M);
        multiply({dx, dhidden, row_major(w.u[s], C), N, C, Q * M, s > 0});
        multiply({dw.u[s], dhidden.transposed(), row_major(x, C), Q * M, C, N, true});
        add_column_sums(dw.b_u[s], d.dhidden[s], N, Q * M);
    }
}
