// One token at a time, with a cache of keys and values: what sampling needs. Work per token is one row of
// each matrix product; of an expert layer only the chosen experts are read, and of W_dec only the rows whose
// unit fired.
#pragma once
#include "model.h"

struct Decoder {
    const Model& model; // its weights
    Config config;      // its config, but for K where the routing is another
    Routing routing;
    size_t position = 0;            // tokens read so far
    std::vector<real> keys, values; // (L,T,C)
    struct Layer {
        std::vector<real> m, v, mb, vb; // expert statistics
        std::vector<real> covariance;   // of router_sd full
        std::vector<real> g, weight,
            z; // (E) scores; of the last token: (K) gate weights, (K,D) units (dense: one row)
        std::vector<int32_t> choice; // (K)
        MonetActivations monet;      // of one token, in `arrays` and `indices`
        PeerActivations peer;
    };
    std::vector<Layer> layers;
    std::vector<real> logits; // (V)

    explicit Decoder(const Model& model) : Decoder(model, model.config.n_expert_active, model.routing) {}
    // With K experts per token, chosen as the routing says.
    Decoder(const Model& model, size_t K, const Routing& routing);
    Decoder(const Decoder&) = delete;

    // Forgets the text read so far and takes notice of new weights.
    void refresh();

    // Reads a token at the next position; on return `logits` are those of the token after it.
    void step(int32_t token);

  private:
    std::vector<real> x, norm, qkv, att, proj, scores, mu, sd, gate;

    void layernorm(const real* weight, const real* bias);
    Block arrays; // of the layers of Monet and PEER
    std::vector<int32_t> indices;
    PeerScratch peer_scratch;

    void dense(size_t l);  // the feed-forward layer of norm, into proj
    void attend(size_t l); // of the newest query over the cache, its own key and value included
};
