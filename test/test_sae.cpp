// Tests of sparse autoencoders: which latents are kept against slow versions, a planted dictionary that is
// found again, dead latents; and train_sae, `bsp --sae` and `evaluate --sae` as a user meets them, on a tiny
// model: the same bits with one thread or more, stopped and resumed or not; files; what is refused. argv[1]
// is the folder of the programs.
#include "../dev/interp/bsp.h"
#include "../dev/interp/sae/evaluate_sae.h"
#include "../dev/interp/units_cpu.h"
#include "../dev/run/log.h"
#include "process.h"

namespace fs = std::filesystem;
using std::string, std::vector;

static string bin;
static string program(const string& name) { return bin + "/" + name; }

// ---------------------------------------------------------------------------------------------------------
// The arithmetic

// By sorting all of them.
static void test_kept() {
    const size_t N = 13, F = 37;
    for (const size_t steps : {3, 1000000}) { // few values: many are equal
        vector<real> a(N * F);
        for (size_t i = 0; i < a.size(); i++)
            a[i] = std::max(0.0f, float(double(random_u64(7, steps, i) % steps) / double(steps) - 0.3));
        struct Place {
            size_t n, unit;
            bool operator==(const Place&) const = default;
        };
        const auto places = [&](const Latents& kept) {
            vector<Place> list;
            for (size_t n = 0; n < N; n++)
                for (size_t j = kept.begin[n]; j < kept.begin[n + 1]; j++) {
                    list.push_back({n, kept.unit[j]});
                    check(kept.value[j] == a[n * F + kept.unit[j]]);
                }
            return list;
        };
        // The `most` largest of the places [from, to), in the order of the places.
        const auto largest = [&](size_t from, size_t to, size_t most) {
            vector<size_t> order;
            for (size_t i = from; i < to; i++)
                if (a[i] > 0) order.push_back(i);
            std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) { return a[x] > a[y]; });
            order.resize(std::min(most, order.size()));
            std::sort(order.begin(), order.end());
            vector<Place> list;
            for (const size_t i : order) list.push_back({i / F, i % F});
            return list;
        };
        Latents kept;
        for (const size_t k : {0, 1, 5, 37, 100}) {
            keep_topk(kept, a.data(), N, F, k);
            vector<Place> expected;
            for (size_t n = 0; n < N; n++)
                for (const Place& p : largest(n * F, (n + 1) * F, k)) expected.push_back(p);
            check(places(kept) == expected, "k %zu", k);
        }
        for (const size_t count : {0, 1, 2, 50, 300, 481, 1000}) {
            keep_largest(kept, a.data(), N, F, count);
            check(places(kept) == largest(0, N * F, count), "count %zu", count);
        }
        for (const float theta : {0.0f, 0.2f, 0.5f}) {
            keep_above(kept, a.data(), N, F, theta);
            vector<Place> expected;
            for (size_t i = 0; i < N * F; i++)
                if (a[i] > theta) expected.push_back({i / F, i % F});
            check(places(kept) == expected, "theta %g", double(theta));
        }
    }
    vector<real> broken = {0, 1, NAN, 2};
    Latents kept;
    keep_largest(kept, broken.data(), 1, 4, 2);
    check(kept.size() == 2 && std::isnan(kept.value[0]) && kept.value[1] == 2); // a NaN is seen
}

static void test_median() {
    // Of three points on a line the middle one, wherever the outer ones are; of a cross its middle.
    const vector<real> line = {0, 0, 1, 1, 100, 100};
    real median[2];
    geometric_median(median, line.data(), 3, 2, 1000);
    check_near(median[0], 1, 0.02);
    const vector<real> cross = {1, 0, -1, 0, 0, 5, 0, -5};
    geometric_median(median, cross.data(), 4, 2);
    check_near(median[0], 0, 1e-4);
    check_near(median[1], 0, 1e-4);
}

// Sums of `active` of 64 directions: the SAE finds the directions.
constexpr size_t planted = 64, planted_C = 32, active = 4;
static vector<real> planted_directions() {
    vector<real> d(planted * planted_C);
    for (size_t i = 0; i < planted; i++) {
        double square = 0;
        for (size_t c = 0; c < planted_C; c++) square += std::pow(random_normal(8, 0, i * planted_C + c), 2);
        for (size_t c = 0; c < planted_C; c++)
            d[i * planted_C + c] = real(random_normal(8, 0, i * planted_C + c) / std::sqrt(square));
    }
    return d;
}

static void test_planted() {
    const vector<real> directions = planted_directions();
    const size_t N = 512;
    for (const SaeKind kind : {SaeKind::batchtopk, SaeKind::topk, SaeKind::relu}) {
        const int64_t steps = kind == SaeKind::relu ? 6000 : 3000;
        Sae s(kind, planted_C, planted, active, true);
        s.lambda = 0.02, s.theta_share = 0.01;
        SaeActivations t(s, N);
        vector<real> x(N * planted_C);
        SaeStep last{};
        for (int64_t step = 0; step < steps; step++) {
            std::fill(x.begin(), x.end(), 0.5f);
            parallel_for(N, [&](size_t n) {
                Random random{9, uint64_t(step) * N + n};
                for (size_t j = 0; j < active; j++) {
                    const size_t i = random.below(planted);
                    const real value = real(1 + random.uniform());
                    for (size_t c = 0; c < planted_C; c++)
                        x[n * planted_C + c] += value * directions[i * planted_C + c];
                }
            });
            if (step == 0) sae_start(s, x.data(), N, 1, 1);
            last = sae_step(s, t, x.data(), N, 100, uint64_t(step + 1), 3e-3 * sae_rate(step, steps));
            if (kind == SaeKind::relu && (step == steps / 4 || step == steps / 2))
                sae_resample(s, t, x.data(), 100, 1, uint64_t(step));
        }
        double mean = 0;
        for (size_t i = 0; i < planted; i++) {
            double best = -1;
            for (size_t j = 0; j < planted; j++) {
                double cosine = 0;
                for (size_t c = 0; c < planted_C; c++)
                    cosine += double(directions[i * planted_C + c]) * double(s.w.w_dec[j * planted_C + c]);
                best = std::max(best, cosine);
            }
            mean += best / planted;
        }
        printf("%s: mean cosine %.3f, fvu %.3f, l0 %.2f\n", sae_kinds[size_t(kind)].c_str(), mean, last.fvu,
               last.l0);
        check(mean > 0.95, "%s: mean cosine %.3f", sae_kinds[size_t(kind)].c_str(), mean);
        // (What is planted is 1 to 2; a penalty leaves many that are hardly above zero, a third of the batch's
        // smallest planted value and more is said to be there.)
        const double there = double(std::count_if(t.kept.value.begin(), t.kept.value.end(),
                                                  [](real v) { return v > real(1.0 / 3); })) /
                             N;
        check(last.fvu < 0.1 && there > 3 && there < 8, "fvu %g, %g there of l0 %g", last.fvu, there, last.l0);
        if (kind != SaeKind::batchtopk) continue;
        sae_encode(s, t, x.data(), N); // in use, by theta, about as many are kept as in training
        sae_keep(s, t, false);
        check_near(double(t.kept.size()) / N, active, 0.5);
    }
}

// Dead latents are counted, come back by aux, and start anew where they are asked to.
static void test_dead() {
    const size_t C = 8, F = 20, N = 64;
    vector<real> x(N * C);
    for (size_t i = 0; i < x.size(); i++) x[i] = real(random_normal(10, 0, i));
    Sae s(SaeKind::topk, C, F, 2, true);
    sae_start(s, x.data(), N, 1, 1);
    for (size_t i = 0; i < 10; i++) s.w.b_enc[i] = -0.5f; // positive at times, never among the two largest
    SaeActivations t(s, N);
    sae_forward(s, t, x.data(), N, true);
    sae_count(s, t);
    sae_count(s, t);
    vector<bool> kept(F);
    for (const uint32_t i : t.kept.unit) kept[i] = true;
    for (size_t i = 0; i < F; i++) check(s.idle[i] == (kept[i] ? 0u : 2u));
    check(sae_revive(s, t, 2) == 0 && t.revived.size() == 0); // none is idle for more than two
    s.idle[3] = 3;
    const double aux = sae_revive(s, t, 2);
    check(aux > 0 && std::isfinite(aux) && t.revived.size() > 0);
    for (const uint32_t i : t.revived.unit) check(i == 3);

    s.moment_1.data[3 * C] = 1;
    check(sae_resample(s, t, x.data(), 2, 1, 1) == 1 && s.idle[3] == 0 && s.w.b_enc[3] == 0);
    check(s.moment_1.data[3 * C] == 0);
    double living = 0, square = 0, same = 0;
    for (size_t i = 0; i < F; i++) {
        double sum = 0;
        for (size_t c = 0; c < C; c++) sum += std::pow(s.w.w_enc[i * C + c], 2);
        if (i != 3)
            living += std::sqrt(sum) / (F - 1);
        else
            square = sum;
    }
    check_near(std::sqrt(square), 0.2 * living, 1e-6);
    for (size_t n = 0; n < N; n++) { // the direction of an input
        double dot = 0, length = 0;
        for (size_t c = 0; c < C; c++) {
            const double centred = x[n * C + c] - s.w.b_dec[c];
            dot += centred * s.w.w_dec[3 * C + c];
            length += centred * centred;
        }
        same += dot / std::sqrt(length) > 1 - 1e-5;
    }
    check(same == 1, "%g", same);
}

// ---------------------------------------------------------------------------------------------------------
// The programs

constexpr size_t width = 256;
static string flags_of(const string& run) {
    return " --ckpt " + run +
           " --train 'data/train*.bin' --batch 512 --tokens 61440 --width 256 --k 4 --lr 3e-3 "
           "--print-every 10 --checkpoint-every 7 ";
}

static void make_inputs() {
    works(program("make_chess") +
          " --games 400 --row 257 --val-fraction 0.4 --threads 1 --out data --val-text games.txt");
    for (const string run : {"moe", "other"})
        works(program("train_moex_cpu") +
              " --layers 2 --heads 2 --embd 16 --experts 4 --d-expert 16 --batch 4 "
              "--steps 20 --val-every 0 --sample-every 0 --seq 256 --train 'data/train*.bin' --seed " +
              (run == "moe" ? "1" : "2") + " --out " + run);
}

static string bytes_of(const string& folder) {
    string all;
    for (const char* name : {"/layer_0.safetensors", "/layer_1.safetensors"}) all += read_file(folder + name);
    return all;
}

// What is written, the same bits whatever the threads and stops; every kind.
static void test_training() {
    for (const string kind : {"batchtopk", "topk", "relu"}) {
        const string flags = flags_of("moe") + "--kind " + kind +
                             (kind == "relu" ? " --lambda 0.01 --p-end 0.5" : "") + " --out ";
        const Result r = works(program("train_sae") + flags + kind);
        check(r.out.find("step 120/120 | fvu ") != string::npos && r.out.find("layer 1 ") != string::npos, "%s",
              tail_of(r.out).c_str());
        works("env OMP_NUM_THREADS=3 " + program("train_sae") + flags + kind + "_three");
        check(bytes_of(kind) == bytes_of(kind + "_three"), "%s: one thread and three", kind.c_str());

        // Stopped at step 23, killed after it, resumed.
        Process stopped("exec " + program("train_sae") + flags + kind + "_parts --print-every 1");
        check(stopped.wait_for("step  23/120"));
        kill(stopped.pid, SIGINT);
        const Result s = stopped.finish();
        check(s.status == 130 && s.out.find("to go on: ") != string::npos, "%d %s", s.status,
              tail_of(s.out).c_str());
        Process killed("exec " + program("train_sae") + " --resume --out " + kind + "_parts --print-every 1");
        check(killed.wait_for("step  77/120"));
        kill(killed.pid, SIGKILL);
        killed.finish();
        const Result rest = works(program("train_sae") + " --resume --out " + kind + "_parts");
        check(rest.out.find("resumed from") != string::npos);
        check(bytes_of(kind) == bytes_of(kind + "_parts"), "%s: stopped and resumed", kind.c_str());
        size_t lines = 0;
        scan_log(kind + "_parts/log.jsonl", 120, [&](const Json& line) {
            lines++;
            check(line.find("step")->magnitude == lines && line.find("fvu")->items.size() == 2);
        });
        check(lines == 120);
        works(program("train_sae") + " --resume --out " + kind + "_parts"); // has nothing left to do
        check(bytes_of(kind) == bytes_of(kind + "_parts"));
        for (const auto& entry : fs::directory_iterator(kind + "_parts"))
            check(entry.path().string().find(".tmp.") == string::npos, "%s", entry.path().c_str());

        const vector<SaeFile> saes = read_saes(kind);
        check(saes.size() == 2 && saes[1].layer == 1 && saes[0].sae.F == width && saes[0].tokens == 61440);
        check(saes[0].fvu > 0 && saes[0].fvu < 1 && saes[0].l0 > 0);
    }
    const string early = program("train_sae") + flags_of("moe") + "--out early --resume";
    check(works(early).out.find("nothing to resume in early: a new run") != string::npos);
}

// The latents of a file, for activations as the model has them, are those of the trained one.
static void test_latents() {
    const Config c = read_config(SafeTensorsFile(model_path("moe", 20)));
    Reader reader = cpu_reader(c, 4, 256);
    load_weights(reader, SafeTensorsFile(model_path("moe", 20)));
    const GameSplit games = split_games("games.txt", "", 256, 20, 6);
    for (const string kind : {"batchtopk", "topk", "relu"}) {
        const vector<SaeFile> saes = read_saes(kind);
        check_saes(saes, model_path("moe", 20), c);
        Reader latents = sae_reader(reader, saes);
        check(latents.units() == width);
        vector<float> values[2];
        for (const bool test : {false, true}) {
            const GameSet& set = test ? games.test : games.train;
            vector<int32_t> tokens(256);
            for (const string& text : set.texts) {
                for (size_t i = 0; i < 256; i++) tokens[i] = chess_id(text[i]);
                latents.read(tokens.data(), 1, 256);
                const LayerUnits units = latents.layer(1);
                const size_t at = values[test].size();
                values[test].resize(at + 256 * width);
                const float* x = reader.residual(1);
                size_t wrong = 0;
                for (size_t n = 0; n < 256; n++) {
                    units.each(n, true,
                               [&](size_t unit, float value) { values[test][at + n * width + unit] = value; });
                    // from the tensors, slowly
                    const SaeTensors& w = saes[1].sae.w;
                    vector<std::pair<float, size_t>> all;
                    for (size_t i = 0; i < width; i++) {
                        double a = w.b_enc[i];
                        for (size_t d = 0; d < 16; d++)
                            a += double(w.w_enc[i * 16 + d]) * double(x[n * 16 + d] - w.b_dec[d]);
                        const bool kept = kind == "batchtopk" ? a > saes[1].sae.theta : a > 0;
                        all.push_back({kept ? float(a) : 0, i});
                    }
                    std::sort(all.rbegin(), all.rend());
                    for (size_t i = 0; i < all.size(); i++) {
                        const float expected = kind == "topk" && i >= 4 ? 0 : all[i].first;
                        const float got = values[test][at + n * width + all[i].second];
                        wrong += !(std::fabs(got - expected) <= 1e-4 * (1 + std::fabs(expected)));
                    }
                }
                check(wrong <= 2, "%s: %zu", kind.c_str(), wrong); // ties at the border, rounded otherwise
            }
        }
        // bsp of a saved SAE equals bsp of the same numbers as features made elsewhere.
        const auto write_npy = [&](const string& path, const vector<float>& data, size_t n) {
            string header = strf("{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, 256, %zu), }", n, width);
            header += string(128 - (10 + header.size() + 1) % 128, ' ') + "\n";
            const uint16_t length = uint16_t(header.size());
            string bytes = string("\x93NUMPY\x01\x00", 8) + string((const char*)&length, 2) + header;
            bytes.append((const char*)data.data(), data.size() * sizeof(float));
            write_file(path, bytes);
        };
        write_npy("train.npy", values[0], games.train.size());
        write_npy("test.npy", values[1], games.test.size());
        const string few = " --games games.txt --count 6 --json ";
        const Result r = works(program("bsp") + " --ckpt moe --sae " + kind + few + kind + ".json");
        check(r.out.find("latents of " + kind) != string::npos &&
              r.out.find("random directions") != string::npos);
        works(program("bsp") + " --activations train.npy --test-activations test.npy" + few + "npy.json");
        const Json a = parse_json(read_file(kind + ".json"), kind),
                   b = parse_json(read_file("npy.json"), "npy");
        const Json &layer = a.find("layers")->items[1], &same = b.find("layers")->items[0];
        check(a.find("layers")->items.size() == 2 && a.find("sae")->text == kind);
        check(layer.find("units")->magnitude == width &&
              layer.find("alive")->magnitude == same.find("alive")->magnitude);
        for (const char* group : {"board", "strategy"}) {
            for (const char* name :
                 {"coverage", "held_out", "rec_published", "rec", "beyond", "held_out_high"})
                check(layer.find(group)->find(name)->number == same.find(group)->find(name)->number, "%s %s",
                      group, name);
            check(layer.find(group)->find("untrained")->find("coverage")->number > 0);
        }
    }
}

static void test_evaluate() {
    const string command = program("evaluate") + " --ckpt moe --val 'data/val*.bin' --rows 6 --games 2 ";
    const string without = works(command + "--json plain.json").out;
    const Result r = works(command + "--sae batchtopk --json sae.json");
    check(r.out.find(without.substr(0, without.find("JSON in"))) == 0, "%s", r.out.c_str());
    const Json json = parse_json(read_file("sae.json"), "sae.json");
    check(json.find("saes")->items.size() == 2 && json.find("tokens")->magnitude == 6 * 256);
    check(json.find("loss")->number == parse_json(read_file("plain.json"), "plain").find("loss")->number);

    // From the definitions: the variance over all tokens, and the loss with xh put in by hand.
    const SafeTensorsFile file(model_path("moe", 20));
    Model model(read_config(file), 6, 256, false);
    read_block(file, model.table, "", model.weights.data);
    const vector<SaeFile> saes = read_saes("batchtopk");
    Loader data("data/val*.bin", 256, 32, false, 0);
    vector<int32_t> x(6 * 256), y(6 * 256);
    data.next(6, x.data(), y.data());
    for (const SaeFile& sae : saes) {
        const Json& e = json.find("saes")->items[sae.layer];
        const double loss = forward(model, x.data(), y.data(), 6, 256).loss;
        const size_t N = 6 * 256, C = 16;
        const vector<real> out(model.a.h[sae.layer].out, model.a.h[sae.layer].out + N * C);
        SaeActivations t(sae.sae, N);
        sae_forward(sae.sae, t, out.data(), N, false);
        double error = 0, variance = 0;
        for (size_t c = 0; c < C; c++) {
            double mean = 0;
            for (size_t n = 0; n < N; n++) mean += out[n * C + c] / double(N);
            for (size_t n = 0; n < N; n++) {
                variance += std::pow(out[n * C + c] - mean, 2);
                error += std::pow(out[n * C + c] - t.xh.data[n * C + c], 2);
            }
        }
        check_near(e.find("fvu")->number, error / variance, 1e-4);
        check_near(e.find("l0")->number, double(t.kept.size()) / double(N), 1e-4);
        for (const bool zero : {false, true}) {
            model.intervene = [&](size_t l, Place place, real* at) {
                for (size_t i = 0; i < N * C && l == sae.layer && place == Place::out; i++)
                    at[i] = zero ? 0 : t.xh.data[i];
            };
            const double changed = forward(model, x.data(), y.data(), 6, 256).loss;
            model.intervene = nullptr;
            check_near(e.find(zero ? "loss_zero" : "loss")->number, changed, 1e-4);
            check(std::fabs(changed - loss) > 1e-6);
        }
        check_near(e.find("recovered")->number,
                   (e.find("loss_zero")->number - e.find("loss")->number) /
                       (e.find("loss_zero")->number - loss),
                   1e-3);
    }
    // The other site; one layer; an SAE of untrained weights, which is measured on those.
    works(program("train_sae") + flags_of("moe") + "--site mlp-in --layer 1 --out mlp");
    check(works(command + "--sae mlp").out.find("sae       layer 1 ") != string::npos);
    check(works(command + "--sae mlp/layer_1.safetensors").out.find("recovered") != string::npos);
    works(program("train_sae") + flags_of("moe") + "--untrained-seed 5 --out untrained");
    const string null = works(command + "--sae untrained").out;
    const double loss = strtod(null.c_str() + null.find("loss ") + 5, nullptr);
    check(loss > 3.4, "%g", loss); // a uniform guess: log 32
    works(program("bsp") + " --ckpt moe --sae untrained --games games.txt --count 6 --json null.json");
    check(parse_json(read_file("null.json"), "null").find("layers")->items.size() == 2);
}

static void test_refusals() {
    const string train = program("train_sae") + " ";
    refuses(train, 2, "--ckpt");
    refuses(train + "--ckpt moe", 2, "--train");
    refuses(train + flags_of("moe") + "--out batchtopk", 1, "batchtopk already holds a run", "--resume");
    refuses(train + flags_of("moe") + "--out x --layer 2", 2, "--layer", "0 to 1");
    refuses(train + flags_of("moe") + "--out x --k 257", 1, "--k 257", "256");
    refuses(train + flags_of("moe") + "--out x --tokens 100", 1, "--tokens 100", "512");
    refuses(train + flags_of("absent") + "--out x", 1, "absent");
    refuses(train + "--resume --out absent", 2, "absent holds no state");
    refuses(train + "--resume --out topk --k 5", 1, "--k 5 (was 4)");
    refuses(train + "--resume --out topk --train 'data/val*.bin'", 1, "other data");
    check(!fs::exists("x"));

    const string bsp = program("bsp") + " --games games.txt --count 6 ",
                 evaluate = program("evaluate") + " --val 'data/val*.bin' --rows 2 --games 0 ";
    for (const string& tool : {bsp, evaluate}) {
        refuses(tool + "--ckpt other --sae topk", 1, "topk/layer_0", "other weights");
        refuses(tool + "--ckpt moe --sae absent", 1, "absent");
        refuses(tool + "--ckpt moe --sae data", 1, "data", "holds no SAE");
        refuses(tool + "--ckpt moe --sae " + model_path("moe", 20), 1, "model_00000020", "not an SAE");
    }
    refuses(bsp + "--ckpt moe --sae mlp --layer 0", 1, "mlp", "layer 0");
    refuses(bsp + "--sae topk", 2, "--ckpt");
    const string whole = read_file("topk/layer_0.safetensors");
    const auto broken = [&](const string& from, const string& to) {
        string bytes = whole;
        const size_t at = bytes.find(from);
        check(at != string::npos && from.size() == to.size());
        bytes.replace(at, from.size(), to);
        write_file("broken.safetensors", bytes);
    };
    broken("\"kind\":\"topk\"", "\"kind\":\"best\"");
    refuses(evaluate + "--ckpt moe --sae broken.safetensors", 1, "broken.safetensors", "kind is 'best'");
    broken("\"k\":\"4\"", "\"k\":\"x\"");
    refuses(evaluate + "--ckpt moe --sae broken.safetensors", 1, "broken.safetensors", "k is 'x'");
    string bytes = whole;
    const float nan = NAN;
    memcpy(bytes.data() + bytes.size() - 4, &nan, 4);
    write_file("broken.safetensors", bytes);
    refuses(evaluate + "--ckpt moe --sae broken.safetensors", 1, "broken.safetensors", "not finite");
    write_file("broken.safetensors", whole.substr(0, 900));
    refuses(evaluate + "--ckpt moe --sae broken.safetensors", 1, "broken.safetensors");

    // A run whose file cannot be replaced ends with one line, and what was there stays.
    fs::create_directory("full");
    fs::create_directory("full/layer_0.safetensors");
    refuses(train + flags_of("moe") + "--out full", 1, "full/layer_0.safetensors");
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc < 2) fail_usage("usage: test_sae FOLDER");
        bin = fs::absolute(argv[1]);
        setenv("OMP_NUM_THREADS", "1", 1);
        string folder = string(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + "/moex_sae.XXXXXX";
        if (!mkdtemp(folder.data()) || chdir(folder.c_str()) != 0) fail("%s: cannot be made", folder.c_str());
        test_kept();
        test_median();
        test_dead();
        test_planted();
        make_inputs();
        test_training();
        test_latents();
        test_evaluate();
        test_refusals();
        if (chdir("/") != 0) fail("/: cannot be entered");
        if (!getenv("KEEP")) fs::remove_all(folder);
        return finish();
    });
}
