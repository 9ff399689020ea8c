// Causal multi-head attention in the manner of FlashAttention (Dao et al., arXiv 2205.14135): the T x T
// matrix is never stored; blocks of it live in the cache, with a running maximum and sum per query. O(T)
// memory, O(T^2) work, only blocks on or under the diagonal. One task per (batch row, head); a task is
// sequential, so the bits do not depend on the number of threads.
//
//   S = Q K^T / sqrt(HS), masked to keys <= query;  P = softmax(S);  O = P V
#pragma once
#include "gemm.h"

// out (B,T,C), lse (B,NH,T) log of the sum of exp S, qkv (B,T,3C)
void attention_forward(real* out, real* lse, const real* qkv, size_t B, size_t T, size_t C, size_t NH);

// From dO: dV = P^T dO;  dP = dO V^T;  dS = P (dP - delta), delta_i = dO_i . O_i (= sum_j P_ij dP_ij);
// dQ = dS K / sqrt(HS);  dK = dS^T Q / sqrt(HS).  P = exp(S - lse) is computed again.
// dqkv (B,T,3C), dout out (B,T,C), lse (B,NH,T), qkv (B,T,3C)
void attention_backward(real* dqkv, const real* dout, const real* out, const real* lse, const real* qkv,
                        size_t B, size_t T, size_t C, size_t NH);
