// The one table of tensors. for_each_tensor() lists every tensor of a model: where its pointer lives, its
// name, shape, whether it decays, how it starts, and whether it belongs to the experts. Sizes, memory,
// initial values, weight decay, checkpoints, gradient tests and printing all follow from that list.
//
// Parameters<T> are the same pointers for weights (T float or bf16), gradients and optimizer moments.
#pragma once
#include "../lib/random.h"
#include "config.h"
#include <string>
#include <vector>

template <class T> struct MonetParameters { // the tensors of one layer, as dev/cpu/monet.h names its parts
    T* router;                              // (2,H,Q,C), in the first layer of a group
    T *u[2], *b_u[2];    // hd: one list of encoders (Q,m,C) (Q,m); vd: two (Q,m/2,C) (Q,m/2)
    T *v[2][2], *b_v[2]; // hd: one of decoders (Q,m,C) (Q,C); vd: four (Q,m/2,C/2), two biases (Q,C/2)
};
template <class T> struct PeerParameters {
    T *query, *keys;  // (H,d_key,C) (2,Q,d_key/2)
    T *w_enc, *w_dec; // (Q*Q,C) (Q*Q,C)
};

template <class T> struct LayerParameters {
    T *ln_1_weight, *ln_1_bias;       // (C) (C)
    T *c_attn_weight, *c_attn_bias;   // (3C,C) (3C): rows of q, then k, then v
    T *c_proj_weight, *c_proj_bias;   // (C,C) (C)
    T *ln_2_weight, *ln_2_bias;       // (C) (C)
    T *gate_weight, *gate_bias;       // dense, geglu only: (W,C) (W) with W = K*D
    T *fc_weight, *fc_bias;           // dense: (W,C) (W)
    T *ln_mid_weight, *ln_mid_bias;   // dense, solu only: (W) (W)
    T *fc_proj_weight, *fc_proj_bias; // dense: (C,W) (C)
    T *w_enc, *b_enc;                 // moe: (E,D,C) (E,D)
    T *w_dec, *b_dec;                 // moe: (E,D,C) (E,C)
    T* router;                        // moe, topk only: (E,C)
    T* balance;                       // moe, balanced by a bias only: (E)
    T* rho;                           // moe, router_sd scaled only: (E)
    MonetParameters<T> monet;         // monet-hd, monet-vd
    PeerParameters<T> peer;           // peer
};

template <class T> struct Parameters {
    T *wte, *wpe;                      // (V,C), also the output head; (block_size,C)
    std::vector<LayerParameters<T>> h; // L of them
    T *ln_f_weight, *ln_f_bias;        // (C) (C)
};

// normal: deviation 0.02; fan_in: 1/sqrt(last dimension); residual: times 1/sqrt(2L)
enum class Init { zeros, ones, normal, normal_residual, fan_in, fan_in_residual };

enum class Use { matrix, vector, running };

struct Tensor {
    std::string name;
    std::vector<size_t> shape;
    bool trained; // by its gradient; the others (`running`) move by a rule of their own and have no moments
    bool decay;   // used as a matrix: weight decay applies
    Init init;
    bool experts;  // of the leading dimension a token uses a part: K of E; PEER: H*k of Q*Q
    size_t count;  // product of the shape
    size_t offset; // in elements, into a block of parameters
};

template <class T, class Visit> void for_each_monet_tensor(const Config& c, MonetParameters<T>& p,
                                                           bool routes, const std::string& at, Visit visit) {
    const size_t Q = c.n_key, P = c.ffn == "monet-vd" ? 2 : 1, M = c.d_expert / P, O = c.n_embd / P;
    const Use matrix = Use::matrix, vector = Use::vector;
    const bool shared = false;
    auto name = [&](const char* what, size_t i, size_t j = 0) { // hd: u; vd: u1, u2; v11 .. v22
        return at + what + (P == 1 ? "" : std::to_string(i + 1) + (j ? std::to_string(j) : ""));
    };
    if (routes) visit(p.router, at + "router", {2, c.n_retrieve, Q, c.n_embd}, matrix, Init::fan_in, shared);
    for (size_t s = 0; s < P; s++) {
        visit(p.u[s], name("u", s), {Q, M, c.n_embd}, matrix, Init::fan_in, shared);
        visit(p.b_u[s], name("b_u", s), {Q, M}, vector, Init::zeros, shared);
    }
    for (size_t s = 0; s < P; s++) {
        for (size_t b = 0; b < P; b++)
            visit(p.v[s][b], name("v", s, b + 1), {Q, M, O}, matrix, Init::normal_residual, shared);
        visit(p.b_v[s], name("b_v", s), {Q, O}, vector, Init::zeros, shared);
    }
}

template <class T, class Visit> void for_each_tensor(const Config& c, Parameters<T>& p, Visit visit) {
    const size_t C = c.n_embd, V = c.vocab_size, E = c.n_expert, D = c.d_expert, W = c.dense_width();
    const Use matrix = Use::matrix, vector = Use::vector, running = Use::running;
    const bool experts = true, shared = false;
    p.h.resize(c.n_layer);
    visit(p.wte, "wte.weight", {V, C}, matrix, Init::normal, shared);
    visit(p.wpe, "wpe.weight", {c.block_size, C}, matrix, Init::normal, shared);
    for (size_t l = 0; l < c.n_layer; l++) {
        LayerParameters<T>& h = p.h[l];
        const std::string at = "h." + std::to_string(l) + ".";
        visit(h.ln_1_weight, at + "ln_1.weight", {C}, vector, Init::ones, shared);
        visit(h.ln_1_bias, at + "ln_1.bias", {C}, vector, Init::zeros, shared);
        visit(h.c_attn_weight, at + "attn.c_attn.weight", {3 * C, C}, matrix, Init::normal, shared);
        visit(h.c_attn_bias, at + "attn.c_attn.bias", {3 * C}, vector, Init::zeros, shared);
        visit(h.c_proj_weight, at + "attn.c_proj.weight", {C, C}, matrix, Init::normal_residual, shared);
        visit(h.c_proj_bias, at + "attn.c_proj.bias", {C}, vector, Init::zeros, shared);
        visit(h.ln_2_weight, at + "ln_2.weight", {C}, vector, Init::ones, shared);
        visit(h.ln_2_bias, at + "ln_2.bias", {C}, vector, Init::zeros, shared);
        if (c.moe()) {
            visit(h.w_enc, at + "moe.w_enc", {E, D, C}, matrix, Init::normal, experts);
            visit(h.b_enc, at + "moe.b_enc", {E, D}, vector, Init::zeros, experts);
            visit(h.w_dec, at + "moe.w_dec", {E, D, C}, matrix, Init::normal_residual, experts);
            visit(h.b_dec, at + "moe.b_dec", {E, C}, vector, Init::zeros, experts);
            if (c.topk()) visit(h.router, at + "moe.router", {E, C}, matrix, Init::normal, shared);
            if (c.scaled()) visit(h.rho, at + "moe.rho", {E}, running, Init::ones, shared);
            if (c.biased()) visit(h.balance, at + "moe.balance", {E}, running, Init::zeros, shared);
        } else if (c.monet()) {
            for_each_monet_tensor(c, h.monet, c.routes(l), at + "monet.", visit);
        } else if (c.peer()) {
            const size_t Q = c.n_key, H = c.n_retrieve;
            visit(h.peer.query, at + "peer.query", {H, c.d_key, C}, matrix, Init::fan_in, shared);
            visit(h.peer.keys, at + "peer.keys", {2, Q, c.d_key / 2}, matrix, Init::fan_in, shared);
            visit(h.peer.w_enc, at + "peer.w_enc", {Q * Q, C}, matrix, Init::fan_in, experts);
            visit(h.peer.w_dec, at + "peer.w_dec", {Q * Q, C}, matrix, Init::fan_in_residual, experts);
        } else {
            if (c.geglu()) {
                visit(h.gate_weight, at + "mlp.c_gate.weight", {W, C}, matrix, Init::normal, shared);
                visit(h.gate_bias, at + "mlp.c_gate.bias", {W}, vector, Init::zeros, shared);
            }
            visit(h.fc_weight, at + "mlp.c_fc.weight", {W, C}, matrix, Init::normal, shared);
            visit(h.fc_bias, at + "mlp.c_fc.bias", {W}, vector, Init::zeros, shared);
            if (c.solu()) {
                visit(h.ln_mid_weight, at + "mlp.ln_mid.weight", {W}, vector, Init::ones, shared);
                visit(h.ln_mid_bias, at + "mlp.ln_mid.bias", {W}, vector, Init::zeros, shared);
            }
            visit(h.fc_proj_weight, at + "mlp.c_proj.weight", {C, W}, matrix, Init::normal_residual, shared);
            visit(h.fc_proj_bias, at + "mlp.c_proj.bias", {C}, vector, Init::zeros, shared);
        }
    }
    visit(p.ln_f_weight, "ln_f.weight", {C}, vector, Init::ones, shared);
    visit(p.ln_f_bias, "ln_f.bias", {C}, vector, Init::zeros, shared);
}

// The table of a config. Offsets are rounded up so that every tensor begins on a 128-byte boundary in fp32;
// behind the V rows of wte there is room for as many more as make a multiple of vocab_multiple. Refuses sizes
// whose sums or products overflow.
std::vector<Tensor> tensor_table(const Config& config, size_t vocab_multiple = 1);

// Those that have a gradient and moments.
std::vector<Tensor> trained_tensors(const std::vector<Tensor>& table);

// Elements in a block that holds the whole table, padding included.
size_t block_elements(const std::vector<Tensor>& table);

template <class T>
Parameters<T> carve_parameters(const Config& config, const std::vector<Tensor>& table, T* block) {
    Parameters<T> p{};
    size_t i = 0;
    for_each_tensor(config, p,
                    [&](T*& pointer, const std::string&, const std::vector<size_t>&, Use, Init, bool) {
                        pointer = block + table[i++].offset;
                    });
    return p;
}

// Initial values of a tensor. Every number depends only on the seed, the tensor's name and its place in it.
template <class T> void init_tensor(const Config& config, const Tensor& t, T* out, uint64_t seed) {
    const uint64_t stream = random_stream(t.name.c_str());
    const bool residual = t.init == Init::normal_residual || t.init == Init::fan_in_residual,
               fan_in = t.init == Init::fan_in || t.init == Init::fan_in_residual;
    const double std = (fan_in ? 1 / std::sqrt(double(t.shape.back())) : 0.02) /
                       (residual ? std::sqrt(2.0 * config.n_layer) : 1);
#pragma omp parallel for
    for (size_t i = 0; i < t.count; i++)
        out[i] = t.init == Init::zeros  ? T(0)
                 : t.init == Init::ones ? T(1)
                                        : T(float(std * random_normal(seed, stream, i)));
}
template <class T>
void init_parameters(const Config& config, const std::vector<Tensor>& table, T* block, uint64_t seed) {
    for (const Tensor& t : table) init_tensor(config, t, block + t.offset, seed);
}

struct ParameterCount {
    size_t total, active; // active: with K of E experts
};
ParameterCount count_parameters(const Config& config, const std::vector<Tensor>& table);

// Floating-point operations to train on one token in a sequence of T: three times the forward's two per
// active weight (embeddings are looked up, the head is a matrix), causal attention at the half that is
// computed, and the router's two products with m and v (or its one matrix).
double flops_per_token(const Config& c, size_t T);
