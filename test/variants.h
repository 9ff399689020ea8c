// Sizes of Monet and PEER in tests, for lists of variants.
#pragma once
#include "../dev/run/config.h"

struct Keys {
    size_t Q = 0, H = 0, k = 0, d_key = 0, share = 0; // Q 0: neither of them
};
inline void set_keys(Config& c, const Keys& keys) {
    if (!keys.Q) return;
    c.n_key = keys.Q;
    c.n_retrieve = keys.H;
    c.n_top = keys.k;
    c.d_key = keys.d_key;
    c.n_share = keys.share;
    c.n_expert = c.n_expert_active = 1;
    if (c.peer()) c.d_expert = 1;
}
