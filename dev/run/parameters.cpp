// The table of tensors, and what is counted over it.
#include "parameters.h"

std::vector<Tensor> tensor_table(const Config& config, size_t vocab_multiple) {
    std::vector<Tensor> table;
    Parameters<char> unused;
    size_t offset = 0;
    for_each_tensor(
        config, unused,
        [&](char*&, const std::string& name, std::vector<size_t> shape, Use use, Init init, bool experts) {
            size_t count = 1;
            bool overflow = false;
            for (size_t n : shape) overflow |= __builtin_mul_overflow(count, n, &count);
            if (overflow || count > size_t(1) << 48)
                fail("%s: too large: the sizes of its shape overflow", name.c_str());
            const size_t rows_behind =
                table.empty() ? (vocab_multiple - shape[0] % vocab_multiple) % vocab_multiple : 0; // of wte
            const size_t room = count + (rows_behind ? rows_behind * shape[1] : 0);
            table.push_back({name, std::move(shape), use != Use::running, use == Use::matrix, init, experts,
                             count, offset});
            offset += (room + 31) / 32 * 32;
        });
    if (offset > size_t(1) << 48) fail("a model of these sizes has too many parameters: %zu", offset);
    return table;
}

std::vector<Tensor> trained_tensors(const std::vector<Tensor>& table) {
    std::vector<Tensor> trained;
    for (const Tensor& t : table)
        if (t.trained) trained.push_back(t);
    return trained;
}

size_t block_elements(const std::vector<Tensor>& table) {
    return (table.back().offset + table.back().count + 31) / 32 * 32;
}

ParameterCount count_parameters(const Config& config, const std::vector<Tensor>& table) {
    ParameterCount n{0, 0};
    for (const Tensor& t : table) {
        n.total += t.count;
        const size_t used = config.peer() ? config.most_active() : config.n_expert_active;
        n.active += t.experts ? t.count / t.shape[0] * std::min(used, t.shape[0]) : t.count;
    }
    return n;
}

double flops_per_token(const Config& c, size_t T) {
    const double C = c.n_embd, L = c.n_layer, W = c.dense_width(), E = c.n_expert;
    const double Q = c.n_key, H = c.n_retrieve, D = c.d_expert;
    const double units = c.monet()  ? 2 * C * Q * D + 2 * H * Q * C / c.n_share
                         : c.peer() ? H * (c.d_key * C + Q * c.d_key + 2 * c.n_top * C)
                                    : (c.geglu() ? 3 : 2) * C * W;
    const double linear = 4 * C * C + units + (!c.moe() ? 0 : c.topk() ? E * C : 2 * E * C);
    const double attention = 2 * C * (T + 1) / 2.0;
    return 3 * 2 * (L * (linear + attention) + C * c.vocab_size);
}
