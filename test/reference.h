// The plain C++ reference of dev/cpu in double, for tests of programs that cannot include it: nvcc does not
// read its vector code, and its names are also those of the CUDA program. Here they stand in a namespace of
// their own. The layers are those of layers.h, attention.h and moe.h, where shapes and formulas are, under
// the same names and with the same arguments; train() is what a trainer does with a whole model.
// reference.cpp, built with -DMOEX_DOUBLE, is to be linked in.
#pragma once
#include "../dev/run/config.h"
#include <cstddef>
#include <cstdint>
#include <vector>

namespace reference {

// Pointers to the functions of dev/cpu: declared so, no function has to be written a second time. Those that
// take views of a layer there take their pointers here.

// layers.h
extern void (*const add_column_sums)(double* sums, const double* x, const int32_t* begin, size_t G, size_t M);
extern void (*const embedding_forward)(double* out, const int32_t* tokens, const double* wte,
                                       const double* wpe, size_t B, size_t T, size_t C);
extern void (*const embedding_backward)(double* dwte, double* dwpe, const double* dout, const int32_t* tokens,
                                        size_t B, size_t T, size_t C);
extern void (*const layernorm_forward)(double* out, double* mean, double* rstd, const double* x,
                                       const double* weight, const double* bias, size_t N, size_t C);
extern void (*const layernorm_backward)(double* dx, double* dweight, double* dbias, const double* dout,
                                        const double* x, const double* mean, const double* rstd,
                                        const double* weight, size_t N, size_t C);
extern void (*const linear_forward)(double* out, const double* x, const double* weight, const double* bias,
                                    size_t N, size_t C, size_t OC);
extern void (*const linear_backward)(double* dx, double* dweight, double* dbias, const double* dout,
                                     const double* x, const double* weight, size_t N, size_t C, size_t OC);
extern void (*const activation_forward)(double* out, const double* h, size_t count, bool relu);
extern void (*const activation_backward)(double* dh, const double* dout, const double* h, size_t count,
                                         bool relu);
extern void (*const geglu_forward)(double* z, const double* a, const double* u, size_t count);
extern void (*const geglu_backward)(double* da, double* du, const double* dz, const double* a,
                                    const double* u, size_t count);
extern void (*const solu_forward)(double* u, double* s, const double* h, size_t N, size_t W);
extern void (*const solu_backward)(double* dh, const double* du, const double* u, const double* s,
                                   const double* h, size_t N, size_t W);
extern void (*const classifier)(double* losses, double* logits, const int32_t* targets, size_t N, size_t V,
                                double scale);

// attention.h
extern void (*const attention_forward)(double* out, double* lse, const double* qkv, size_t B, size_t T,
                                       size_t C, size_t NH);
extern void (*const attention_backward)(double* dqkv, const double* dout, const double* out,
                                        const double* lse, const double* qkv, size_t B, size_t T, size_t C,
                                        size_t NH);

// moe.h
extern void (*const expert_statistics_forward)(double* m, double* v, double* mb, double* vb,
                                               const double* w_enc, const double* b_enc, size_t E, size_t D,
                                               size_t C);
void expert_statistics_backward(double* dw_enc, double* db_enc, const double* dm, const double* dv,
                                const double* dmb, const double* dvb, const double* w_enc,
                                const double* b_enc, const double* m, const double* mb, size_t E, size_t D,
                                size_t C);
// rho (E) may be null
void router_forward(double* g, double* mu, double* sd, const double* x, const double* m, const double* v,
                    const double* mb, const double* vb, const double* rho, size_t N, size_t E, size_t C);
void router_backward(double* dx, double* dm, double* dv, double* dmb, double* dvb, double* dmu, double* dvar,
                     double* scratch, const double* dg, const double* x, const double* mu, const double* sd,
                     const double* m, const double* v, const double* rho, size_t N, size_t E, size_t C);
// standing (E) and ranks: of dev/run/routing.h
void choice_forward(int32_t* choice, double* weight, const double* g, size_t N, size_t E, size_t K,
                    const int8_t* standing = nullptr, uint64_t ranks = 0);
void choice_backward(double* dg, const double* dweight, const double* weight, const int32_t* choice, size_t N,
                     size_t E, size_t K);
extern double (*const balance_forward)(double* p, double* mean, const double* g, const int32_t* begin,
                                       size_t N, size_t E, size_t K);
extern void (*const balance_backward)(double* dg, const double* p, const int32_t* begin, double scale,
                                      size_t N, size_t E, size_t K);
extern void (*const expected_share_backward)(double* dg, const int32_t* choice, double scale, size_t N,
                                             size_t E, size_t K); // penalty.h
extern void (*const dispatch)(int32_t* begin, int32_t* slot, int32_t* token, const int32_t* choice, size_t N,
                              size_t E, size_t K);
extern void (*const gather)(double* out, const double* x, const int32_t* token, size_t slots, size_t C);
extern void (*const gather_backward)(double* dx, const double* dslots, const int32_t* slot, size_t N,
                                     size_t K, size_t C);
extern void (*const combine_forward)(double* out, const double* x, const double* y, const double* weight,
                                     const int32_t* slot, size_t N, size_t K, size_t C);
extern void (*const combine_backward)(double* dy, double* dweight, const double* dout, const double* y,
                                      const double* weight, const int32_t* slot, size_t N, size_t K,
                                      size_t C);

// router_sd.h: what the slots of each expert add to sums (E,2), and the factors (E) after a step with them
void add_variances(double* sums, const double* h, const double* sd, const double* rho, const int32_t* begin,
                   const int32_t* token, size_t E, size_t D);
void move_rho(double* rho, const double* sums, size_t E);

struct Experts { // moe.h's, without scratch; no zeros are skipped
    size_t E, D, C;
    bool relu;
    const double *w_enc, *b_enc, *w_dec, *b_dec; // (E,D,C) (E,D) (E,D,C) (E,C)
    const int32_t* begin;                        // (E+1)
};
void experts_forward(double* y, double* z, double* h, const double* x, const Experts& e);
void experts_backward(double* dx, double* dw_enc, double* db_enc, double* dw_dec, double* db_dec, double* dh,
                      const double* dy, const double* x, const double* z, const double* h, const Experts& e);

// out (M,N) (+)= a (M,K) b (K,N); an operand marked as transposed is stored (K,M), (N,K)
void multiply(double* out, const double* a, const double* b, size_t M, size_t N, size_t K, bool a_transposed,
              bool b_transposed, bool accumulate);

// What training comes to: `steps` optimizer steps from these weights, each on the same micro-batches.
struct Results {
    double loss, aux;                    // of the first step: means over the micro-batches; aux over layers
    std::vector<double> logits;          // (B,T,V) of its first micro-batch
    std::vector<double> gradients;       // of the first step, laid out as the tensor table says
    std::vector<double> weights, losses; // after the steps; (steps)
    std::vector<int32_t> choice;         // (L,B*T,K) of the first micro-batch; moe only
    std::vector<double> scores;          // (L,B*T,E) likewise
};
// weights as the tensor table lays them out; tokens targets (micros,B,T); lr constant; clip 0: none
Results train(const Config& config, const std::vector<float>& weights, const std::vector<int32_t>& tokens,
              const std::vector<int32_t>& targets, size_t micros, size_t B, size_t T, size_t steps, double lr,
              double aux_weight, double l0_weight, double clip, double weight_decay);

// What the feed-forward layers do with a batch: (L) of each.
struct LayerUnits {
    std::vector<double> x, mega, g; // (N,C) input; (N,units) w_j z_j, zero where not chosen; (N,E) moe only
};
std::vector<LayerUnits> units(const Config& config, const std::vector<float>& weights,
                              const std::vector<int32_t>& tokens, size_t B, size_t T);

} // namespace reference
