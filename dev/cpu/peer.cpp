// The layer of peer.h, in its order: there the formulas and shapes, here the loops.
#include "peer.h"
#include "moe.h"
#include "sparse.h"

void for_each_array(PeerActivations& a, const Config& c, size_t N, const Visit& visit,
                    const VisitIndices& visit_indices) {
    const size_t visits = N * c.n_retrieve * c.n_top;
    visit(a.query, N * c.n_retrieve * c.d_key);
    visit_indices(a.unit, visits);
    visit(a.w, visits);
    visit(a.f, visits);
    if (!c.relu()) visit(a.h, visits);
}

void for_each_array(PeerScratch& a, const Config& c, size_t N, bool training, const Visit& visit,
                    const VisitIndices& visit_indices) {
    const size_t H = c.n_retrieve, visits = N * H * c.n_top;
    for (real*& s : a.s) visit(s, N * H * c.n_key);
    if (!training) return;
    for (real*& dquery : a.dquery) visit(dquery, N * H * c.d_key / 2);
    visit(a.dq, N * H * c.d_key);
    visit(a.wf, visits);
    visit(a.dh, visits);
    visit_indices(a.begin, c.n_key * c.n_key + 1);
    visit_indices(a.place, visits);
    visit_indices(a.token, visits);
}

// The two halves of a query's matrix (N*H, d_key), and of the keys.
static Matrix half(const real* query, size_t side, const Config& c) {
    return {query + side * (c.d_key / 2), c.d_key, 1};
}
static size_t key_offset(size_t side, const Config& c) { return side * c.n_key * (c.d_key / 2); }

// unit w (k) of one head from its scores (Q) of both sides. Of the pairs of I x J, both in falling order, the
// one at (a,b) has (a+1)(b+1) - 1 others that are as good: where these are k or more, it is not wanted.
static void retrieve(int32_t* unit, real* w, const real* s0, const real* s1, size_t Q, size_t k) {
    static thread_local std::vector<int32_t> best, pair;
    static thread_local Workspace memory;
    best.resize(3 * k);
    int32_t *I = best.data(), *J = I + k, *chosen = J + k;
    choose(I, s0, nullptr, Q, k);
    choose(J, s1, nullptr, Q, k);
    pair.clear();
    real* sum = memory.reserve(k * k);
    for (size_t a = 0; a < k; a++)
        for (size_t b = 0; b < k && (a + 1) * (b + 1) <= k; b++) {
            sum[pair.size()] = s0[I[a]] + s1[J[b]];
            pair.push_back(int32_t(I[a] * Q + J[b]));
        }
    choose(chosen, sum, nullptr, pair.size(), k);
    real total = 0;
    for (size_t a = 0; a < k; a++) {
        unit[a] = pair[chosen[a]];
        total += w[a] = fast_exp(sum[chosen[a]] - sum[chosen[0]]);
    }
    for (size_t a = 0; a < k; a++) w[a] /= total;
}

size_t peer_forward(real* out, const real* mid, const real* x, const PeerParameters<real>& w,
                    const PeerActivations& h, const PeerScratch& scratch, const Config& c, size_t N) {
    const size_t C = c.n_embd, Q = c.n_key, H = c.n_retrieve, k = c.n_top, half_key = c.d_key / 2;
    linear_forward(h.query, x, w.query, nullptr, N, C, H * c.d_key);
    Product scores[2];
    for (size_t s = 0; s < 2; s++)
        scores[s] = {scratch.s[s],
                     half(h.query, s, c),
                     row_major(w.keys + key_offset(s, c), half_key).transposed(),
                     N * H,
                     Q,
                     half_key};
    multiply(scores, 2);
    std::atomic<size_t> active{0};
    parallel_ranges(N, 1, [&](size_t begin, size_t end) {
        static thread_local Distinct fired;
        static thread_local Workspace memory;
        real* const wf = memory.reserve(H * k);
        size_t found = 0;
        for (size_t n = begin; n < end; n++) {
            const size_t first = n * H * k;
            for (size_t nh = n * H; nh < (n + 1) * H; nh++)
                retrieve(h.unit + nh * k, h.w + nh * k, scratch.s[0] + nh * Q, scratch.s[1] + nh * Q, Q, k);
            dot_rows(h.h + first, h.unit + first, H * k, x + n * C, w.w_enc, C);
            activate(h.f + first, h.h + first, H * k, c.relu());
            for (size_t i = 0; i < H * k; i++) {
                wf[i] = h.w[first + i] * h.f[first + i];
                if (h.f[first + i] > 0) fired.add(size_t(h.unit[first + i]));
            }
            std::copy(mid + n * C, mid + (n + 1) * C, out + n * C);
            add_rows(out + n * C, h.unit + first, wf, H * k, w.w_dec, C);
            found += fired.take_count();
        }
        active += found;
    });
    return active;
}

void peer_backward(real* dx, const PeerParameters<real>& dw, const PeerScratch& d, const real* dy,
                   const real* x, const PeerParameters<real>& w, const PeerActivations& h, const Config& c,
                   size_t N) {
    const size_t C = c.n_embd, Q = c.n_key, H = c.n_retrieve, k = c.n_top, half_key = c.d_key / 2;
    dispatch(d.begin, d.place, d.token, h.unit, N, Q * Q, H * k);
    parallel_ranges(N, 1, [&](size_t begin, size_t end) {
        static thread_local Workspace memory;
        real *const b = memory.reserve(2 * H * k), *const dpre = b + H * k;
        for (size_t n = begin; n < end; n++) {
            const size_t first = n * H * k;
            const int32_t* unit = h.unit + first;
            const real *wn = h.w + first, *f = h.f + first;
            dot_rows(b, unit, H * k, dy + n * C, w.w_dec, C);
            for (size_t i = 0; i < H * k; i++) dpre[i] = b[i] * wn[i];
            activate_backward(dpre, dpre, h.h + first, H * k, c.relu());
            std::fill(dx + n * C, dx + (n + 1) * C, real(0));
            add_rows(dx + n * C, unit, dpre, H * k, w.w_enc, C);
            for (size_t i = 0; i < H * k; i++) {
                d.wf[d.place[first + i]] = wn[i] * f[i];
                d.dh[d.place[first + i]] = dpre[i];
            }
            for (size_t head = 0; head < H; head++) {
                real *ds0 = d.s[0] + (n * H + head) * Q, *ds1 = d.s[1] + (n * H + head) * Q, mean = 0;
                std::fill(ds0, ds0 + Q, real(0));
                std::fill(ds1, ds1 + Q, real(0));
                for (size_t i = head * k; i < (head + 1) * k; i++) mean += wn[i] * b[i] * f[i];
                for (size_t i = head * k; i < (head + 1) * k; i++) {
                    const real dsum = wn[i] * (b[i] * f[i] - mean);
                    ds0[size_t(unit[i]) / Q] += dsum;
                    ds1[size_t(unit[i]) % Q] += dsum;
                }
            }
        }
    });
    parallel_items(Q * Q, [&](size_t e) {
        const size_t first = d.begin[e], count = d.begin[e + 1] - first;
        add_rows(dw.w_dec + e * C, d.token + first, d.wf + first, count, dy, C);
        add_rows(dw.w_enc + e * C, d.token + first, d.dh + first, count, x, C);
    });
    Product to_query[2], to_keys[2];
    for (size_t s = 0; s < 2; s++) {
        const Matrix ds = row_major(d.s[s], Q);
        to_query[s] = {d.dquery[s], ds, row_major(w.keys + key_offset(s, c), half_key), N * H, half_key, Q};
        to_keys[s] = {
            dw.keys + key_offset(s, c), ds.transposed(), half(h.query, s, c), Q, half_key, N * H, true};
    }
    multiply(to_query, 2);
    multiply(to_keys, 2);
    parallel_for(N * H, [&](size_t nh) { // both halves beside each other again
        for (size_t s = 0; s < 2; s++)
            std::copy(d.dquery[s] + nh * half_key, d.dquery[s] + (nh + 1) * half_key,
                      d.dq + nh * c.d_key + s * half_key);
    });
    multiply({dw.query, row_major(d.dq, H * c.d_key).transposed(), row_major(x, C), H * c.d_key, C, N, true});
    multiply({dx, row_major(d.dq, H * c.d_key), row_major(w.query, C), N, C, H * c.d_key, true});
}
