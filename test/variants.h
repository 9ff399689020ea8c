// What a variant of the tests says beside ffn, act, router, E and K: the fields of a config that came later.
#pragma once
#include "../dev/run/config.h"

struct Later {
    size_t Q = 0, H = 0, k = 0, d_key = 0, share = 0; // Monet and PEER
    const char *gate = "chosen", *balance = "loss", *router_sd = "diagonal";
    size_t unit_top = 0;
    double l0 = 0, l1 = 0; // not of the config: weights of the penalties on what fires
};
inline void set_later(Config& c, const Later& later) {
    c.gate = later.gate, c.balance = later.balance, c.router_sd = later.router_sd,
    c.unit_top = later.unit_top;
    if (!later.Q) return;
    c.n_key = later.Q, c.n_retrieve = later.H, c.n_top = later.k, c.d_key = later.d_key,
    c.n_share = later.share;
    c.n_expert = c.n_expert_active = 1;
    if (c.peer()) c.d_expert = 1;
}
