// See embed.h.
#include "embed.h"
#include "results.h"
#include "rows.h"

std::string page_cannot_run(const Config& c) {
    if (!c.moe() && !c.dense()) return "it runs experts and dense layers, not " + c.ffn;
    if (!c.relu() && c.act != "gelu") return "it knows units of relu and gelu, not of " + c.act;
    if (c.full()) return "it knows the router's diagonal and scaled estimates, not the full one";
    return "";
}

// ---------------------------------------------------------------------------------------------------------
// Rounding

static float row_scale(const float* row, size_t n) {
    float most = 0;
    for (size_t i = 0; i < n; i++) most = std::max(most, std::fabs(row[i]));
    return most / 127;
}
static int8_t whole(float x, float scale) {
    return int8_t(scale > 0 ? std::clamp<long>(std::lrint(x / scale), -127, 127) : 0);
}
static void check_finite(const Tensor& t, const float* x) {
    for (size_t i = 0; i < t.count; i++)
        if (!std::isfinite(x[i])) fail("the weights %s are not finite", t.name.c_str());
}

void round_weights(const std::vector<Tensor>& table, float* weights) {
    for (const Tensor& t : table) {
        check_finite(t, weights + t.offset);
        const size_t n = t.shape.back();
        for (float* row = weights + t.offset; t.decay && row < weights + t.offset + t.count; row += n) {
            const float s = row_scale(row, n);
            for (size_t i = 0; i < n; i++) row[i] = s * float(whole(row[i], s));
        }
    }
}

std::string packed_weights(const std::vector<Tensor>& table, const float* weights) {
    std::string bytes;
    const auto add = [&](const void* data, size_t size) { bytes.append((const char*)data, size); };
    for (const Tensor& t : table) {
        const float* x = weights + t.offset;
        check_finite(t, x);
        if (!t.decay) {
            add(x, t.count * sizeof(float));
            continue;
        }
        const size_t n = t.shape.back(), rows = t.count / n;
        std::vector<float> scale(rows);
        std::vector<int8_t> q(t.count);
        for (size_t r = 0; r < rows; r++) {
            scale[r] = row_scale(x + r * n, n);
            for (size_t i = r * n; i < (r + 1) * n; i++) q[i] = whole(x[i], scale[r]);
        }
        add(scale.data(), rows * sizeof(float));
        add(q.data(), q.size());
        bytes.resize((bytes.size() + 3) / 4 * 4);
    }
    return bytes;
}

std::string base64(const std::string& bytes) {
    const char* const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    out.reserve((bytes.size() + 2) / 3 * 4);
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t three = 0;
        for (size_t k = 0; k < 3; k++)
            three = three << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0);
        for (size_t k = 0; k < 4; k++) out += i + k > bytes.size() ? '=' : digits[three >> (18 - 6 * k) & 63];
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// What it costs

// Mean cross-entropy of each row, every token but its first a target.
static std::vector<double> row_losses(Reader& reader, const TokenRows& rows, const char* label) {
    const size_t V = reader.config.vocab_size, T = rows.T;
    std::vector<double> loss(rows.rows);
    read_rows(reader, rows, label, [&](size_t first, size_t count) {
        const float* logits = reader.logits();
        parallel_for(count, [&](size_t b) {
            double sum = 0;
            for (size_t t = 0; t + 1 < T; t++) {
                const float* x = logits + (b * T + t) * V;
                double total = 0;
                const float most = *std::max_element(x, x + V);
                for (size_t v = 0; v < V; v++) total += std::exp(double(x[v] - most));
                sum += std::log(total) - double(x[rows.tokens[(first + b) * T + t + 1]] - most);
            }
            loss[first + b] = sum / double(T - 1);
        });
    });
    return loss;
}

RoundingCost measure_rounding(const std::string& ckpt, const std::string& data, const std::string& tokenizer,
                              const MakeReader& make_reader) {
    const SafeTensorsFile file(find_checkpoint(ckpt));
    const Config c = read_config(file);
    const TokenRows rows = token_rows(data, c, 0, 64, tokenizer, file.path);
    if (rows.T < 2 || rows.rows == 0) fail("%s: expected rows of two tokens or more", rows.source.c_str());
    const size_t logits = rows.T * c.vocab_size; // of a row; a batch keeps to 16 MB of them
    Reader reader = make_reader(c, std::clamp<size_t>((1 << 22) / logits, 1, batch_rows(rows.T)), rows.T);
    load_weights(reader, file);
    const std::vector<double> before = row_losses(reader, rows, "loss");
    round_weights(reader.table, reader.weights());
    reader.changed();
    const std::vector<double> after = row_losses(reader, rows, "loss in 8 bits");

    RoundingCost cost{rows.source, rows.rows * (rows.T - 1), 0, 0, NAN};
    const double n = double(rows.rows);
    double squares = 0;
    for (size_t r = 0; r < rows.rows; r++) {
        cost.loss += before[r] / n;
        cost.rounded += after[r] / n;
    }
    for (size_t r = 0; r < rows.rows; r++) {
        const double d = after[r] - before[r] - (cost.rounded - cost.loss);
        squares += d * d;
    }
    if (n > 1) cost.error = std::sqrt(squares / (n - 1) / n);
    if (!std::isfinite(cost.loss) || !std::isfinite(cost.rounded))
        fail("%s: the model's loss on %s is not finite", file.path.c_str(), rows.source.c_str());
    return cost;
}

std::string rounding_json(const std::string& ckpt, const RoundingCost& cost) {
    const SafeTensorsFile file(find_checkpoint(ckpt));
    JsonWriter out = begin_json("rounding", file.path, checkpoint_step(file), read_config(file), 0);
    out.member("data", as_utf8(cost.source)).member("tokens", cost.tokens);
    out.member("loss", cost.loss).member("rounded", cost.rounded).member("error", cost.error).close();
    return out.text;
}

// ---------------------------------------------------------------------------------------------------------
// Into the page

static std::vector<float> read_weights(const SafeTensorsFile& file, const std::vector<Tensor>& table) {
    std::vector<float> weights(block_elements(table));
    read_block(file, table, "", weights.data());
    return weights;
}

std::string embedded_model(const SafeTensorsFile& file, const Config& config, size_t most_parameters,
                           const std::string& cost) {
    const std::vector<Tensor> table = tensor_table(config);
    const size_t parameters = count_parameters(config, table).total;
    JsonWriter out;
    out.open('{');
    const auto none = [&](const std::string& why) {
        out.member("none", why).close();
        return out.text;
    };
    if (const std::string why = page_cannot_run(config); !why.empty())
        return none("The script of this page cannot run this model: " + why + ".");
    if (parameters > most_parameters)
        return none(
            strf("The model of %zu parameters is not in this page, which takes %zu. With --embed %zu report "
                 "puts it in: about %s more.",
                 parameters, most_parameters, parameters, human_bytes(4.0 / 3 * double(parameters)).c_str()));
    std::string bytes;
    try {
        bytes = packed_weights(table, read_weights(file, table).data());
    } catch (const Error& e) {
        return none(std::string("The model is not in this page: ") + e.what() + ".");
    }
    out.key("tensors").open('[');
    for (const Tensor& t : table) {
        out.open('{').member("name", t.name).key("shape").values(t.shape);
        out.member("rounded", t.decay).close();
    }
    out.close().member("weights", base64(bytes));
    if (!cost.empty()) {
        const Json json = parse_json(cost, "rounding");
        out.key("cost").open('{');
        for (const char* name : {"loss", "rounded", "error", "tokens"})
            if (const Json* x = json.find(name); x && x->is_number()) out.member(name, x->number);
        if (const Json* x = json.find("data")) out.member("data", x->text);
        out.close();
    }
    out.close();
    return out.text;
}

void write_rounded(const std::string& path, const SafeTensorsFile& file, const Config& config, int64_t step) {
    const std::vector<Tensor> table = tensor_table(config);
    std::vector<float> weights = read_weights(file, table);
    try {
        round_weights(table, weights.data());
    } catch (const Error& e) {
        fail("%s: %s", file.path.c_str(), e.what());
    }
    save_model(path, config, table, weights.data(), step);
}
