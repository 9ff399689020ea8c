// The GPU sampler: its kernels against plain loops in double, its decoder against the trainer's forward pass
// of the same text, many texts side by side against each alone, and the whole program against sample_cpu,
// whose path is argv[1]. Everything else is made here: random models, and checkpoints in a temporary folder.
// Runs on a GPU, or on the CPU with dev/emu; for both precisions.
#define MOEX_LIBRARY
#include "../sample.cu"
#include "check.h"
#include <filesystem>
#include <fstream>
#include <sstream>

using std::string, std::vector;
namespace fs = std::filesystem;

constexpr bool fp32 = sizeof(floatX) == 4;

// ---------------------------------------------------------------------------------------------------------
// Numbers

static float noise(uint64_t index, uint64_t stream = 1) { return float(random_normal(7, stream, index)); }

// Random numbers on the GPU, as they are stored there.
template <class T> struct Numbers {
    Block<T> block;
    vector<float> host;
    explicit Numbers(size_t n, uint64_t stream, float scale = 1) : block(n), host(n) {
        vector<T> stored(n);
        for (size_t i = 0; i < n; i++) stored[i] = T(scale * noise(i, stream)), host[i] = float(stored[i]);
        block.upload(stored.data(), n);
    }
    T* data() const { return block.data; }
};

// Room for results, poisoned.
static Block<float> results(size_t n) {
    Block<float> block(n);
    const vector<float> poison(n, NAN);
    block.upload(poison.data(), n);
    return block;
}
static vector<float> downloaded(const Block<float>& block) {
    cuda_check(cudaDeviceSynchronize());
    vector<float> host(block.count);
    block.download(host.data(), host.size());
    return host;
}

// ||a - b|| / ||b||
template <class A, class B> double distance(const A* a, const B* b, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
        size += double(b[i]) * double(b[i]);
    }
    return std::sqrt(difference / size);
}

static double act_double(double h, Activation act) {
    if (act == Activation::gelu)
        return h / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (h + 0.044715 * h * h * h)));
    return act == Activation::relu ? std::max(h, 0.0) : h;
}

// ---------------------------------------------------------------------------------------------------------
// Kernels

static void test_matrix_vectors() {
    const struct {
        size_t S, M, C;
        Activation act;
    } cases[] = {
        {1, 8, 8, Activation::none},    {1, 37, 64, Activation::relu},   {2, 257, 8, Activation::none},
        {7, 24, 136, Activation::gelu}, {8, 5, 520, Activation::none},   {9, 64, 72, Activation::relu},
        {64, 3, 24, Activation::none},  {3, 16, 2056, Activation::none}, {17, 130, 256, Activation::gelu}};
    for (const auto& k : cases) {
        const Numbers<floatX> weight(k.M * k.C, 1), bias(k.M, 2);
        const Numbers<float> x(k.S * k.C, 3);
        for (const bool with_bias : {true, false}) {
            const Block<float> out = results(k.S * k.M), again = results(k.S * k.M);
            for (const Block<float>* to : {&out, &again})
                matrix_vectors(to->data, weight.data(), with_bias ? bias.data() : nullptr, x.data(), k.S, k.M,
                               k.C, k.act, nullptr);
            vector<double> expected(k.S * k.M);
            for (size_t s = 0; s < k.S; s++)
                for (size_t m = 0; m < k.M; m++) {
                    double sum = with_bias ? bias.host[m] : 0;
                    for (size_t c = 0; c < k.C; c++)
                        sum += double(weight.host[m * k.C + c]) * x.host[s * k.C + c];
                    expected[s * k.M + m] = act_double(sum, k.act);
                }
            const vector<float> got = downloaded(out);
            check(distance(got.data(), expected.data(), got.size()) < 2e-6, "S %zu, M %zu, C %zu", k.S, k.M,
                  k.C);
            check(got == downloaded(again), "twice the same bits");
            // A vector alone gives the bits it has among others.
            const Block<float> alone = results(k.M);
            matrix_vectors(alone.data, weight.data(), with_bias ? bias.data() : nullptr,
                           x.data() + (k.S - 1) * k.C, 1, k.M, k.C, k.act, nullptr);
            check(memcmp(downloaded(alone).data(), &got[(k.S - 1) * k.M], k.M * sizeof(float)) == 0);
        }
    }
    // NaN comes out.
    const vector<float> broken(16, NAN);
    const Block<float> x(16), out = results(8);
    x.upload(broken.data(), 16);
    const Numbers<floatX> weight(8 * 16, 1);
    matrix_vectors(out.data, weight.data(), nullptr, x.data, 1, 8, 16, Activation::relu, nullptr);
    for (const float y : downloaded(out)) check(std::isnan(y));
}

static void test_attend() {
    const struct {
        size_t C, NH, block_size;
        vector<int> positions;
    } cases[] = {{64, 2, 200, {0, 199, -1, 63, 64, 130}},
                 {24, 8, 65, {64}},
                 {40, 2, 127, {126, 5}},
                 {8, 8, 10, {9}},
                 {256, 1, 70, {69, 0}},
                 {136, 1, 64, {63}}};
    for (const auto& k : cases) {
        const size_t S = k.positions.size(), C = k.C, HS = C / k.NH, T = k.block_size;
        const Numbers<floatX> keys(S * T * C, 1), values(S * T * C, 2);
        const Numbers<float> qkv(S * 3 * C, 3);
        const Block<int> positions(S);
        positions.upload(k.positions.data(), S);
        const size_t heads = S * k.NH * piece_count(T);
        const Block<float> pieces = results(heads * (HS + 2)), out = results(S * C);
        const Block<int> finished(S * k.NH);
        finished.zero();
        attend(out.data, {pieces.data, pieces.data + heads, pieces.data + 2 * heads, finished.data},
               keys.data(), values.data(), qkv.data(), positions.data, S, T, C, k.NH, nullptr);
        const vector<float> got = downloaded(out);
        for (size_t s = 0; s < S; s++) {
            const int position = k.positions[s];
            vector<double> expected(C);
            auto cached = [&](const vector<float>& cache, size_t part, int t, size_t c) {
                return t < position ? double(cache[(s * T + t) * C + c])
                                    : double(float(floatX(qkv.host[s * 3 * C + part * C + c])));
            };
            for (size_t h = 0; h < k.NH && position >= 0; h++) {
                vector<double> p(position + 1);
                double sum = 0;
                for (int t = 0; t <= position; t++) {
                    for (size_t c = h * HS; c < (h + 1) * HS; c++)
                        p[t] += qkv.host[s * 3 * C + c] * cached(keys.host, 1, t, c) / std::sqrt(double(HS));
                    sum += p[t] = std::exp(p[t]);
                }
                for (int t = 0; t <= position; t++)
                    for (size_t c = h * HS; c < (h + 1) * HS; c++)
                        expected[c] += p[t] / sum * cached(values.host, 2, t, c);
            }
            if (position < 0)
                check(std::isnan(got[s * C]), "an idle place is left alone");
            else
                check(distance(&got[s * C], expected.data(), C) < 2e-6, "C %zu, NH %zu, position %d", C, k.NH,
                      position);
        }
        // The newest key and value are in the cache, and nothing else has changed.
        vector<floatX> cache(S * T * C);
        keys.block.download(cache.data(), cache.size());
        size_t wrong = 0;
        for (size_t i = 0; i < cache.size(); i++) {
            const size_t s = i / (T * C), t = i / C % T, c = i % C;
            const bool newest = int(t) == k.positions[s];
            const float expected = newest ? float(floatX(qkv.host[s * 3 * C + C + c])) : keys.host[i];
            wrong += float(cache[i]) != expected;
        }
        check(wrong == 0, "%zu keys are wrong", wrong);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Models

struct Variant {
    const char* name;
    Config config;
};
static vector<Variant> variants() {
    auto make = [](const char* ffn, const char* act, const char* router, size_t L, size_t NH, size_t C,
                   size_t E, size_t K, size_t D, size_t T, size_t V) {
        Config c;
        c.n_layer = L, c.n_head = NH, c.n_embd = C, c.n_expert = E, c.n_expert_active = K, c.d_expert = D;
        c.block_size = T, c.vocab_size = V, c.ffn = ffn, c.act = act, c.router = router;
        return c;
    };
    auto scaled = [](Config c) {
        c.router_sd = "scaled";
        return c;
    };
    return {{"moe relu sparsity", make("moe", "relu", "sparsity", 2, 3, 48, 5, 2, 40, 40, 37)},
            {"moe scaled", scaled(make("moe", "relu", "sparsity", 1, 2, 40, 5, 2, 24, 24, 32))},
            {"moe gelu sparsity", make("moe", "gelu", "sparsity", 1, 1, 32, 4, 2, 24, 24, 257)},
            {"moe relu topk, heads of 3", make("moe", "relu", "topk", 2, 8, 24, 9, 3, 16, 24, 32)},
            {"moe gelu topk, heads of 20", make("moe", "gelu", "topk", 1, 2, 40, 4, 1, 24, 24, 33)},
            {"K = 1, experts of 264", make("moe", "relu", "sparsity", 1, 2, 72, 3, 1, 264, 24, 32)},
            {"K = E, long context", make("moe", "relu", "sparsity", 1, 2, 64, 3, 3, 32, 150, 32)},
            {"one expert", make("moe", "relu", "sparsity", 1, 1, 8, 1, 1, 8, 24, 8)},
            {"dense relu", make("dense", "relu", "sparsity", 2, 2, 40, 1, 2, 40, 24, 32)},
            {"dense geglu", make("dense", "geglu", "sparsity", 2, 2, 40, 1, 2, 40, 24, 32)},
            {"dense solu", make("dense", "solu", "sparsity", 2, 2, 40, 1, 2, 136, 24, 32)},
            {"dense gelu", make("dense", "gelu", "sparsity", 1, 4, 64, 1, 1, 136, 24, 100)},
            {"wide", make("moe", "relu", "sparsity", 1, 4, 264, 4, 2, 64, 16, 32)}};
}

// Weights far larger than initial ones, so that attention attends and experts differ, and biases.
static vector<float> random_weights(const Config& config, uint64_t seed) {
    const vector<Tensor> table = gpu_tensor_table(config);
    vector<float> weights(block_elements(table));
    init_parameters(config, table, weights.data(), seed);
    for (const Tensor& t : table)
        for (size_t i = 0; i < t.count; i++) {
            float& w = weights[t.offset + i];
            w = t.init == Init::zeros  ? 0.1f * noise(i, seed + t.offset)
                : t.init == Init::ones ? 1 + 0.1f * noise(i, seed + t.offset)
                                       : 8 * w;
            w = float(floatX(w)); // so that programs of every precision compute with the same
        }
    return weights;
}

// A model ready to decode with; it lives in one place.
struct Loaded {
    Config config;
    Model model;
    explicit Loaded(const Config& config, uint64_t seed = 3)
        : config(config), model(config, 1, config.block_size, 2, false) {
        load_weights(model, random_weights(config, seed).data(), 0, 0);
    }
};

static vector<int32_t> random_text(const Config& config, size_t n, uint64_t stream = 1) {
    vector<int32_t> tokens(n);
    for (size_t i = 0; i < n; i++) tokens[i] = int32_t(random_u64(5, stream, i) % config.vocab_size);
    return tokens;
}

// One token at one place.
static void feed(Decoder& decoder, size_t place, int32_t token) {
    vector<int32_t> tokens(decoder.S, -1);
    tokens[place] = token;
    decoder.step(tokens.data());
}
static vector<float> logits_of(const Decoder& decoder, size_t place) {
    const size_t V = decoder.model.config.vocab_size;
    return {decoder.logits.data + place * V, decoder.logits.data + (place + 1) * V};
}

// The logits (T,V) of a text, and the experts its tokens chose (L,T,K), by the trainer's forward pass.
struct Reference {
    vector<float> logits;
    vector<int> choice;
};
static Reference reference(Model& model, const vector<int32_t>& text) {
    const Config& c = model.config;
    const size_t T = text.size(), V = c.vocab_size, Vp = model.shape().padded_vocab(), K = c.n_expert_active;
    upload_batch(model, text.data(), nullptr, 1, T, false);
    forward(model);
    cuda_check(cudaStreamSynchronize(model.gpu.stream));
    vector<floatX> padded(T * Vp);
    cuda_check(
        cudaMemcpy(padded.data(), model.a.logits, padded.size() * sizeof(floatX), cudaMemcpyDeviceToHost));
    Reference r;
    for (size_t t = 0; t < T; t++)
        for (size_t v = 0; v < V; v++) r.logits.push_back(float(padded[t * Vp + v]));
    if (c.moe()) r.choice.resize(c.n_layer * T * K);
    for (size_t l = 0; l < c.n_layer && c.moe(); l++)
        cuda_check(cudaMemcpy(&r.choice[l * T * K], model.a.h[l].router.choice, T * K * sizeof(int),
                              cudaMemcpyDeviceToHost));
    return r;
}

// Did place 0's last token, number t of a text of T, choose the experts it chose in the reference?
static bool same_choice(const Decoder& decoder, const Reference& r, size_t t, size_t T) {
    const Config& c = decoder.model.config;
    const size_t K = c.n_expert_active;
    if (!c.moe()) return true;
    vector<int> choice(decoder.choice.count);
    decoder.choice.download(choice.data(), choice.size());
    for (size_t l = 0; l < c.n_layer; l++)
        for (size_t k = 0; k < K; k++)
            if (choice[l * decoder.S * K + k] != r.choice[(l * T + t) * K + k]) return false;
    return true;
}

// Token by token, and from every kind of prefix on, the logits are those of the trainer's forward pass.
static void test_decoder(const Variant& v) {
    const Config& c = v.config;
    const size_t T = c.block_size, V = c.vocab_size;
    // Where the trainer's pass rounds what solu takes exp() of, it is off by more.
    const double tolerance = fp32 ? 1e-4 : c.solu() ? 6e-2 : 3e-2;
    Loaded loaded(c);
    const vector<int32_t> text = random_text(c, T);
    const Reference r = reference(loaded.model, text);
    Decoder decoder(loaded.model, 1);
    // Rounded to bf16, a token between two experts may go to another here than there, and from then on the
    // texts differ; until then they must agree.
    size_t agreed = 0, beginnings = 0;
    for (const size_t begin : {size_t(0), size_t(1), T / 2, T - 1}) {
        decoder.restart(0, text.data(), begin);
        for (size_t t = begin; t < std::min(T, begin + 24); t++) {
            feed(decoder, 0, text[t]);
            if (!same_choice(decoder, r, t, T)) {
                check(!fp32, "%s: token %zu chooses other experts", v.name, t);
                break;
            }
            const double d = distance(decoder.logits.data, &r.logits[t * V], V);
            check(d < tolerance, "%s: token %zu after %zu: %g", v.name, t, begin, d);
            agreed++;
        }
        beginnings++;
    }
    check(agreed >= 8 && beginnings == 4, "%s: only %zu tokens could be compared", v.name, agreed);
    check_error(feed(decoder, 0, text[0]), "context", "full");
    decoder.restart(0, nullptr, 0);
    check_error(feed(decoder, 0, int32_t(V)), "vocabulary");
}

// Many texts of different lengths side by side, some idle at times: the bits of each alone.
static void test_batch(const Variant& v, size_t S) {
    const Config& c = v.config;
    Loaded loaded(c);
    Decoder many(loaded.model, S), one(loaded.model, 1);
    const size_t steps = 5;
    auto prefix = [&](size_t s) { return s * 5 % (c.block_size - steps); };
    for (size_t s = 0; s < S; s++) many.restart(s, random_text(c, prefix(s), s).data(), prefix(s));
    vector<vector<vector<float>>> got(S);
    for (size_t i = 0; i < steps; i++) {
        vector<int32_t> tokens(S, -1);
        for (size_t s = 0; s < S; s++)
            if ((s + i) % 4) tokens[s] = random_text(c, 100, s)[prefix(s) + got[s].size()];
        many.step(tokens.data());
        for (size_t s = 0; s < S; s++)
            if (tokens[s] >= 0) got[s].push_back(logits_of(many, s));
    }
    for (size_t s = 0; s < S; s++) {
        const vector<int32_t> text = random_text(c, 100, s);
        one.restart(0, text.data(), prefix(s));
        for (size_t i = 0; i < got[s].size(); i++) {
            feed(one, 0, text[prefix(s) + i]);
            check(logits_of(one, 0) == got[s][i], "%s: place %zu of %zu, step %zu", v.name, s, S, i);
        }
    }
}

// Of the experts' weights only the rows of the chosen, and of W_dec only those whose unit fired, are read:
// with NaN in all others the bits are the same. And they are counted.
static void test_moved_rows() {
    Config c = variants()[0].config;
    c.n_layer = 1; // a token that reads a NaN ends there
    const size_t E = c.n_expert, K = c.n_expert_active, D = c.d_expert, C = c.n_embd, S = 3;
    const vector<int32_t> tokens = {4, 9, 30};
    Loaded loaded(c);
    Decoder decoder(loaded.model, S);
    decoder.step(tokens.data());
    const vector<float> before(decoder.logits.data, decoder.logits.data + S * c.vocab_size);
    vector<int> choice(S * K);
    vector<float> z(S * K * D);
    decoder.choice.download(choice.data(), choice.size());
    decoder.z.download(z.data(), z.size());
    vector<bool> chosen(E), fired(E * D);
    for (size_t slot = 0; slot < S * K; slot++) {
        chosen[choice[slot]] = true;
        for (size_t u = 0; u < D; u++)
            if (z[slot * D + u] > 0) fired[choice[slot] * D + u] = true;
    }
    const size_t experts = std::count(chosen.begin(), chosen.end(), true),
                 rows = std::count(fired.begin(), fired.end(), true);
    check(experts < E && rows < experts * D, "%zu experts, %zu rows", experts, rows);
    unsigned long long counted = 0;
    decoder.rows_read.download(&counted, 1);
    check(counted == experts * D + rows, "%llu rows, expected %zu", counted, experts * D + rows);
    check_near(decoder.bytes(), decoder.fixed_bytes() + double(counted * C + S * 2 * C) * sizeof(floatX),
               0.5);

    const vector<floatX> broken(C, floatX(NAN));
    const LayerParameters<floatX>& w = loaded.model.w.h[0];
    for (size_t row = 0; row < E * D; row++) {
        auto poison = [&](floatX* to) {
            cuda_check(cudaMemcpy(to + row * C, broken.data(), C * sizeof(floatX), cudaMemcpyHostToDevice));
        };
        if (!chosen[row / D]) poison(w.w_enc);
        if (!fired[row]) poison(w.w_dec);
    }
    for (size_t s = 0; s < S; s++) decoder.restart(s, nullptr, 0);
    decoder.step(tokens.data());
    check(memcmp(before.data(), decoder.logits.data, before.size() * sizeof(float)) == 0);

    // The same rows for many places are read, and counted, once; the places of an expert are in several
    // shares.
    Decoder one(loaded.model, 1), many(loaded.model, 40);
    one.step(tokens.data());
    many.step(vector<int32_t>(40, tokens[0]).data());
    unsigned long long rows_of_one = 0, rows_of_many = 0;
    one.rows_read.download(&rows_of_one, 1);
    many.rows_read.download(&rows_of_many, 1);
    check(rows_of_one > K * D && rows_of_one == rows_of_many, "%llu, %llu", rows_of_one, rows_of_many);
    for (const size_t s : {0, 15, 16, 39}) check(logits_of(many, s) == logits_of(one, 0), "place %zu", s);

    // A NaN that is read is seen.
    const size_t row = std::find(fired.begin(), fired.end(), true) - fired.begin();
    cuda_check(cudaMemcpy(w.w_dec + row * C, broken.data(), C * sizeof(floatX), cudaMemcpyHostToDevice));
    for (size_t s = 0; s < S; s++) decoder.restart(s, nullptr, 0);
    decoder.step(tokens.data());
    check(std::any_of(decoder.logits.data, decoder.logits.data + before.size(),
                      [](float x) { return std::isnan(x); }));
}

static void test_refusals() {
    Config c = variants()[0].config;
    Loaded loaded(c);
    check_error(Decoder(loaded.model, 0), "places");
    check_error(Decoder(loaded.model, 65), "places");
    check(fitting_places(c, 1000, size_t(40) << 30, "m") == 64 &&
          fitting_places(c, 3, size_t(40) << 30, "m") == 3);
    check_error(fitting_places(c, 3, 1 << 20, "m.safetensors"), "m.safetensors", "1.0 MiB are free");
    check_error(fitting_places(c, 3, size_t(512) << 20, "m"), "are free"); // cuBLASLt would not fit beside it
    const Config small = find_preset("small")->config;                     // 36 MiB for each text
    const size_t some = fitting_places(small, 64, size_t(5) << 30, "m");
    check(some >= 1 && some < 64, "%zu", some);
}

// The context as it was defined: when it is full, it goes on from its second half.
static void test_context() {
    for (const size_t block_size : {1, 2, 3, 7, 8, 64}) {
        size_t begin = 0, wrong = 0;
        for (size_t read = 0; read < 500; read++) {
            if (read - begin == block_size) begin = read - block_size / 2;
            wrong += context_begin(read, block_size) != begin;
        }
        check(wrong == 0, "block_size %zu", block_size);
    }
}

// ---------------------------------------------------------------------------------------------------------
// The program

struct Output {
    int status;
    string out, err;
};
static string read_all(const string& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}
static Output run_cpu(const string& program, const string& flags) {
    const int status = system((program + " " + flags + " > cpu.out 2> cpu.err").c_str());
    return {WEXITSTATUS(status), read_all("cpu.out"), read_all("cpu.err")};
}
// The GPU's, in this process, with its output in files.
static Output run_gpu(const string& flags) {
    vector<string> words = {"sample"};
    bool quoting = false, more = true; // more: the next character begins a word
    for (const char ch : flags) {
        if (ch == ' ' && !quoting) {
            more = true;
            continue;
        }
        if (more) words.emplace_back();
        more = false;
        if (ch == '\'')
            quoting = !quoting;
        else
            words.back() += ch;
    }
    vector<char*> argv;
    for (string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    fflush(stdout), fflush(stderr);
    const int out = dup(1), err = dup(2);
    const int to_out = open("gpu.out", O_WRONLY | O_CREAT | O_TRUNC, 0666),
              to_err = open("gpu.err", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(to_out, 1), dup2(to_err, 2);
    close(to_out), close(to_err);
    const int status = run_main([&] { return sample_program(int(words.size()), argv.data()); });
    fflush(stdout), fflush(stderr);
    dup2(out, 1), dup2(err, 2);
    close(out), close(err);
    return {status, read_all("gpu.out"), read_all("gpu.err")};
}

static void test_program(const string& cpu) {
    const string program = "'" + fs::absolute(cpu).string() + "'";
    char folder[] = "/tmp/test_sample.XXXXXX";
    if (!mkdtemp(folder)) fail("%s: cannot be made", folder);
    const fs::path back = fs::current_path();
    fs::current_path(folder);
    std::ofstream("prompts") << "1.e4 e5\n\n1.d4 d5 2.c4 e6 3.Nc3 Nf6 4.Bg5 Be7 5.e3\r\n;1.c4";
    const vector<string> lines = {"1.e4 e5", "", "1.d4 d5 2.c4 e6 3.Nc3 Nf6 4.Bg5 Be7 5.e3", ";1.c4"};

    bool first = true;
    size_t other_texts = 0; // with something changed
    for (Variant& v : variants()) {
        if (v.config.vocab_size != 32) continue;
        v.config.tokenizer = "chess-32";
        const string ckpt = string(fs::path(folder) / "model.safetensors");
        save_model(ckpt, v.config, gpu_tensor_table(v.config), random_weights(v.config, 4).data(), 0);
        const string flags = "--ckpt '" + ckpt + "' -n 40 ";
        // Past the end of the context; greedy, and drawn by the same seed.
        for (const string how : {"--temperature 0 ", "--temperature 0.7 --seed 5 "}) {
            if (!first && how != "--temperature 0 ") continue;
            const Output all = run_gpu(flags + how + "--prompts prompts");
            check(all.status == 0, "%s: %s", v.name, all.err.c_str());
            string expected;
            for (size_t i = 0; i < lines.size(); i++) {
                const string prompt = "--prompt '" + lines[i] + "'";
                const Output one = run_gpu(flags + how + prompt);
                expected += strf("--- prompt %zu: '%s'\n", i + 1, lines[i].c_str()) + one.out;
                if (fp32)
                    check(one.out == run_cpu(program, flags + how + prompt).out, "%s: %s", v.name,
                          lines[i].c_str());
            }
            check(all.out == expected, "%s: %s\nexpected %s", v.name, all.out.c_str(), expected.c_str());
            const Output other = run_cpu(program, flags + how + "--prompts prompts");
            check(other.status == 0 && (!fp32 || other.out == all.out), "%s", other.err.c_str());
        }
        // Interventions and self-contrast: what sample_cpu makes of them.
        const bool some_left = v.config.n_expert > v.config.n_expert_active;
        vector<string> changes = {"--units-off 0/0/3,1/0/0", "--units-scale 0/0/1=-20,0/0/2=30"};
        if (v.config.moe()) changes.push_back("--active 1");
        if (v.config.moe() && some_left)
            for (const char* change : {"--experts-off 0/1", "--experts-on 0/1,1/0", "--ranks 1",
                                       "--contrast 1 --contrast-beta 0.7 --experts-off 0/0"})
                changes.push_back(change);
        const string as_trained = run_gpu(flags + "--temperature 0 --prompts prompts").out;
        for (const string& change : changes) {
            if (change.find("1/0") != string::npos && v.config.n_layer < 2) continue;
            const string whole = flags + "--temperature 0 --prompts prompts " + change;
            const Output ours = run_gpu(whole);
            check(ours.status == 0, "%s %s: %s", v.name, change.c_str(), ours.err.c_str());
            other_texts += ours.out != as_trained;
            if (fp32) check(ours.out == run_cpu(program, whole).out, "%s %s", v.name, change.c_str());
        }
        if (!std::exchange(first, false) && v.config.moe()) continue;
        const Output board = run_gpu(flags + "--board --prompt '1.e4 e5'");
        check(board.out.find("legal") != string::npos);
        if (fp32) check(board.out == run_cpu(program, flags + "--board --prompt '1.e4 e5'").out);
        // The trace names, for each token and layer, the experts that the CPU's names.
        const string trace = "--temperature 0 --prompt '1.e4 e5' --trace";
        const string told = run_gpu(flags + trace).out,
                     plain = run_gpu(flags + "--temperature 0 --prompt '1.e4 e5'").out;
        check(told.size() > plain.size() && told.substr(told.size() - plain.size()) == plain, "%s",
              told.c_str());
        std::stringstream ours(told), theirs(run_cpu(program, flags + trace).out);
        string our_line, their_line, word;
        for (size_t n = 0; fp32 && std::getline(theirs, their_line); n++) {
            check(bool(std::getline(ours, our_line)), "the trace ends after %zu lines", n);
            auto experts = [&](const string& line) {
                string list;
                std::stringstream words(line);
                while (words >> word)
                    if (word == "expert" || word == "layer") words >> word, list += word + " ";
                return list;
            };
            check(experts(our_line) == experts(their_line), "%s\nexpected %s", our_line.c_str(),
                  their_line.c_str());
        }
    }
    check(other_texts > 15, "%zu", other_texts);
    const string flags = "--ckpt model.safetensors ";
    const Output speed = run_gpu(flags + "-n 3 --temperature 0");
    check(speed.err.find(" tokens/s, ") != string::npos && speed.err.find("moved at ") != string::npos &&
              speed.err.find("GB/s (prompt: 1 tokens in ") != string::npos,
          "%s", speed.err.c_str());
    check(run_gpu(flags + "-n 0 --prompt ';1.d4'").out == ";1.d4\n");
    // Refused in the same words.
    std::ofstream("empty").flush();
    std::ofstream("wrong") << "1.e4\n1.e4 z5\n";
    for (const char* wrong :
         {"--experts-off 9/0", "--prompts empty", "--prompts wrong", "--prompts none", "--prompt ';1.e4 z'",
          "--prompts wrong --prompt 1.e4", "--tokens -1", "--nonsense"}) {
        const Output gpu = run_gpu(flags + wrong), other = run_cpu(program, flags + wrong);
        check(gpu.status > 0 && gpu.status == other.status && gpu.err == other.err, "%s\nexpected %s",
              gpu.err.c_str(), other.err.c_str());
    }
    Config config = variants()[5].config;
    config.tokenizer = "chess-32";
    const vector<float> broken(block_elements(tensor_table(config)), NAN);
    save_model("nan.safetensors", config, tensor_table(config), broken.data(), 0);
    const Output nan = run_gpu("--ckpt nan.safetensors");
    check(nan.status == 1 && nan.err == run_cpu(program, "--ckpt nan.safetensors").err, "%s",
          nan.err.c_str());
    check(run_gpu(flags + "--prompts wrong").err.find("wrong:2: character 'z'") != string::npos);
    fs::current_path(back);
    fs::remove_all(folder);
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc != 2) fail_usage("expected the path of sample_cpu");
        test_matrix_vectors();
        test_attend();
        test_context();
        for (const Variant& v : variants()) test_decoder(v);
        for (const size_t i : {0, 2, 4, 5, 7}) test_batch(variants()[i], 5);
        test_batch(variants()[0], 37);
        test_moved_rows();
        test_refusals();
        test_program(argv[1]);
        return finish();
    });
}
