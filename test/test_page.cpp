// The model in the report's page: its weights rounded to 8 bits as embed.h says, and the page's script in a
// real Chromium beside the reference, on the same rounded weights. One start of Chromium looks at every page.
#include "../dev/cpu/decode.h"
#include "../dev/interp/report.h"
#include "../dev/interp/units_cpu.h"
#include "browser.h"
#include "random_games.h"
#include "variants.h"

// ---------------------------------------------------------------------------------------------------------
// Models

static Config config_of(const char* tokenizer, const char* ffn, const char* act, const char* router,
                        const Later& later) {
    Config c;
    c.n_layer = 3, c.n_head = 2, c.n_embd = 24, c.n_expert = 5, c.n_expert_active = 2, c.d_expert = 13;
    c.block_size = 256, c.tokenizer = tokenizer, c.ffn = ffn, c.act = act, c.router = router;
    c.vocab_size = tokenizer_vocab(tokenizer_from_name(tokenizer));
    set_later(c, later);
    return c;
}

// A folder with a checkpoint whose every tensor matters: logits of a few units' size, nothing 0 or 1.
static void write_model(const std::string& dir, const Config& c) {
    make_directories(dir);
    const std::vector<Tensor> table = tensor_table(c);
    std::vector<float> weights(block_elements(table));
    init_parameters(c, table, weights.data(), 1);
    for (const Tensor& t : table)
        for (size_t i = 0; i < t.count; i++) {
            float& w = weights[t.offset + i];
            const double x = random_normal(2, random_stream(t.name.c_str()), i);
            w = t.decay ? (t.name == "wte.weight" ? 30 : 8) * w
                        : w + float((t.name.ends_with("rho") ? .02 : .1) * x);
        }
    save_model(model_path(dir, 7), c, table, weights.data(), 7);
}

static Report write_page(const std::string& dir, int64_t embed = 4000000) {
    ReportOptions options;
    options.run = dir, options.embed = embed, options.rounded = dir + "/rounded.safetensors";
    return write_report(options, {});
}

// ---------------------------------------------------------------------------------------------------------
// Rounding

static void test_rounding(const std::string& folder) {
    const Config c = config_of("chess-32", "moe", "relu", "sparsity", {});
    const std::vector<Tensor> table = tensor_table(c);
    std::vector<float> weights(block_elements(table)), rounded;
    init_parameters(c, table, weights.data(), 3);
    std::fill_n(&weights[table[0].offset + 24], 24, 0.0f); // a row of zeros
    rounded = weights;
    round_weights(table, rounded.data());
    size_t matrices = 0, bytes = 0;
    for (const Tensor& t : table) {
        const size_t n = t.shape.back();
        bytes += t.decay ? 4 * (t.count / n) + (t.count + 3) / 4 * 4 : 4 * t.count;
        matrices += t.decay;
        double worst = 0;
        for (size_t r = 0; r < t.count / n; r++) {
            const float *x = &weights[t.offset + r * n], *y = &rounded[t.offset + r * n];
            double most = 0;
            for (size_t i = 0; i < n; i++) most = std::max(most, std::fabs(double(x[i])));
            for (size_t i = 0; i < n; i++) // half a step; of a vector nothing
                worst = std::max(worst, std::fabs(double(x[i]) - y[i]) - (t.decay ? most / 127 * .5001 : 0));
        }
        check(worst <= 0, "%s: %g too far", t.name.c_str(), worst);
    }
    check(matrices == 2 + 4 * c.n_layer && packed_weights(table, weights.data()).size() == bytes);
    weights[table.back().offset] = NAN;
    check_error(round_weights(table, weights.data()), "not finite", table.back().name);
    check_error(packed_weights(table, weights.data()), "not finite", table.back().name);

    const char* const pairs[][2] = {
        {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"\xff\xfe\xfd\xfc", "//79/A=="}};
    for (const auto& [plain, coded] : pairs)
        check(base64(plain) == coded, "%s", base64(plain).c_str()); // RFC 4648

    // The file is the model as rounded, and its loss is what is said that rounding costs.
    const std::string dir = folder + "/rounding";
    write_model(dir, c);
    const Report page = write_page(dir);
    check(page.model == "runs in the page, in 8 bits", "%s", page.model.c_str());
    const SafeTensorsFile before(model_path(dir, 7)), after(dir + "/rounded.safetensors");
    std::vector<float> a(block_elements(table)), b(a.size());
    read_block(before, table, "", a.data()), read_block(after, table, "", b.data());
    check(a != b);
    round_weights(table, a.data());
    check(a == b && config_to_strings(read_config(after)) == config_to_strings(c));
    std::string text;
    for (const std::string& game : random_games(20, 1).texts) text += game + "\n";
    write_file(dir + "/games.txt", text);
    const RoundingCost cost = measure_rounding(dir, dir + "/games.txt", "", cpu_reader);
    check(cost.tokens == 20 * 255 && cost.error > 0 && cost.error < .01, "%zu %g", cost.tokens, cost.error);
    double losses[2] = {0, 0};
    const SafeTensorsFile* const files[] = {&before, &after};
    for (int i = 0; i < 2; i++) {
        Model model(c, 1, 255, false);
        read_block(*files[i], model.table, "", model.weights.data);
        for (const std::string& game : random_games(20, 1).texts) {
            std::vector<int32_t> tokens;
            for (const char x : game) tokens.push_back(chess_id(x));
            losses[i] += forward(model, tokens.data(), tokens.data() + 1, 1, 255).loss / 20;
        }
    }
    check_near(cost.loss, losses[0], 1e-4);
    check_near(cost.rounded, losses[1], 1e-4);
    check(std::fabs(cost.loss - cost.rounded) > 1e-6);

    // What is not put into a page, and what the page says of it.
    check(write_page(dir, 1000).model.find("With --embed") != std::string::npos);
    const Config peer = config_of("chess-32", "peer", "relu", "sparsity", {4, 2, 2, 8});
    check(page_cannot_run(peer).find("peer") != std::string::npos);
    check(!page_cannot_run(config_of("chess-32", "dense", "solu", "sparsity", {})).empty());
    check(!page_cannot_run(
               config_of("chess-32", "moe", "relu", "sparsity", {0, 0, 0, 0, 0, "chosen", "loss", "full"}))
               .empty());
}

// ---------------------------------------------------------------------------------------------------------
// The script beside the reference

// The logits of every position, as the decoder of sample_cpu has them.
static void add_logits(JsonWriter& out, const std::string& checkpoint,
                       const std::vector<std::vector<int32_t>>& texts) {
    const SafeTensorsFile file(checkpoint);
    Model model(read_config(file));
    read_block(file, model.table, "", model.weights.data);
    Decoder decoder(model);
    out.key("texts").open('[');
    for (const std::vector<int32_t>& tokens : texts) {
        decoder.refresh();
        out.open('{').key("tokens").values(tokens).key("logits").open('[');
        for (const int32_t token : tokens) {
            decoder.step(token);
            out.open('[');
            for (const real x : decoder.logits) out.value(double(x), 9);
            out.close();
        }
        out.close().close();
    }
    out.close();
}

static const char* const look_script = R"js(
const lines = [], say = (ok, what) => lines.push((ok ? 'ok ' : 'no ') + what);
function embeddedOf(w, id) { return JSON.parse(w.document.getElementById('data-' + id).textContent); }
// Every logit of every position of whole texts, beside those of the reference.
function sameLogits(w, name, {texts}) {
  const model = w.readModel(embeddedOf(w, 'model'), embeddedOf(w, 'run').config);
  let worst = 0, size = 0, count = 0;
  for (const {tokens, logits} of texts) {
    const decoder = w.newDecoder(model);
    tokens.forEach((token, t) => {
      const own = decoder.step(token);
      logits[t].forEach((x, v) => {
        const d = Math.abs(x - own[v]);
        if (!(d <= worst)) worst = d; // NaN stays
        size += x * x, count++;
      });
    });
  }
  say(worst <= 1e-4 && size / count > .3, `${name}: logits of ${count} differ by ${worst} at most, rms ${Math.sqrt(size / count)}`);
}
)js";

static void test_browser(const std::string& folder) {
    std::vector<std::vector<int32_t>> games, texts(1);
    for (const uint64_t seed : {1, 2}) {
        games.emplace_back();
        for (const char x : random_game(seed, 256, 20)) games.back().push_back(chess_id(x));
    }
    for (size_t i = 0; i < 256; i++) texts[0].push_back(int32_t(random_u64(5, 1, i) % 257));
    const struct {
        const char* name;
        Config config;
    } models[] = {{"moe-x", config_of("chess-32", "moe", "relu", "sparsity", {})},
                  {"scaled", config_of("chess-32", "moe", "relu", "sparsity",
                                       {0, 0, 0, 0, 0, "chosen", "bias", "scaled", 4})},
                  {"switch", config_of("chess-32", "moe", "gelu", "topk", {0, 0, 0, 0, 0, "all"})},
                  {"dense", config_of("chess-32", "dense", "gelu", "sparsity", {})},
                  {"text", config_of("bytes", "moe", "relu", "sparsity", {})}};
    std::string frames, looks;
    for (const auto& m : models) {
        const std::string dir = folder + "/" + m.name;
        write_model(dir, m.config);
        write_page(dir);
        JsonWriter expected;
        expected.open('{');
        add_logits(expected, dir + "/rounded.safetensors", m.config.tokenizer == "bytes" ? texts : games);
        expected.close();
        frames +=
            strf("<iframe id='%s' src='%s/report.html' width=1200 height=900></iframe>\n", m.name, m.name);
        looks += strf("sameLogits(document.getElementById('%s').contentWindow, '%s', %s);\n", m.name, m.name,
                      expected.text.c_str());
    }
    write_file(folder + "/look.html",
               "<!DOCTYPE html><meta charset=utf-8><body>" + frames + "<script>" + look_script +
                   "onload = () => { try {\n" + looks +
                   "lines.push('end'); } catch (e) { say(false, e.stack.replace(/\\n/g, ' ')); }\n"
                   "document.body.textContent = '\\n' + lines.join('\\n') + '\\n'; };</script>");
    std::string console;
    const std::string dom = browse(folder, "--dump-dom", folder + "/look.html", &console, false);
    check(console.empty(), "console: %s", console.substr(0, 500).c_str());
    check(dom.find("\nend\n") != std::string::npos, "not looked at to the end: %s",
          dom.substr(0, 600).c_str());
    check(check_findings(dom) >= std::size(models));
}

int main() {
    return run_main([] {
        char folder[] = "/tmp/test_page_XXXXXX";
        if (!mkdtemp(folder)) fail("%s: cannot be created: %s", folder, strerror(errno));
        test_rounding(folder);
        if (chromium().empty())
            puts("skipped: no chromium, the pages were not opened");
        else
            test_browser(folder);
        if (system(strf("rm -rf %s", folder).c_str()) != 0) fail("%s: cannot be removed", folder);
        return finish();
    });
}
