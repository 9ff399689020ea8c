// Tests of concepts.h, logistic.h and probe.h: concepts of a language whose every label is known, planted
// units whose figures are known, and the tool on small models.
#include "../dev/interp/logistic.h"
#include "../dev/interp/probe.h"
#include "byte_model.h"
#include "check.h"
#include <filesystem>

using std::string, std::vector;

struct TemporaryFolder {
    string path = (std::filesystem::temp_directory_path() / "test_probe_XXXXXX").string();
    TemporaryFolder() {
        if (!mkdtemp(path.data())) fail("%s: cannot be made", path.c_str());
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

// ---------------------------------------------------------------------------------------------------------
// A language: words and numbers of two dialects, nested brackets of three kinds, and math between dollar
// signs

struct Language {
    string text;
    vector<string> open; // by byte: the brackets around it, its own included
    vector<bool> number, closes;
    Random random;

    explicit Language(uint64_t seed) : random{seed} {}
    void add(const string& s, const string& around, bool is_number = false, bool is_closer = false) {
        for (const char c : s) {
            text += c;
            open.push_back(around);
            number.push_back(is_number);
            closes.push_back(is_closer);
        }
    }
    void phrase(const string& around, bool dialect) {
        const size_t parts = 1 + random.below(4);
        for (size_t i = 0; i < parts; i++) {
            const size_t kind = random.below(around.size() < 4 ? 6 : 3);
            if (kind >= 4) {
                const size_t bracket = random.below(3);
                const string inside = around + "([{"[bracket];
                add(string(1, "([{"[bracket]), inside);
                phrase(inside, dialect);
                add(string(1, ")]}"[bracket]), inside, false, true);
            } else if (kind == 3) {
                add(dialect ? "$x^2$" : "$y_1$", around);
                number[number.size() - 2] = true;
            } else if (kind == 2) {
                add(std::to_string(random.below(1000)), around, true);
            } else {
                add(dialect ? "toka" : "Mire", around);
            }
            add(" ", around);
        }
    }
};

static Concepts concepts_of(const string& text, size_t T) {
    Concepts c;
    vector<string> vocabulary;
    for (size_t i = 0; i < 256; i++) vocabulary.push_back(string(1, char(i)));
    c.rows.T = T;
    c.rows.rows = text.size() / T;
    for (size_t i = 0; i < c.rows.size(); i++) c.rows.tokens.push_back((unsigned char)text[i]);
    c.dot.assign(c.rows.size(), 0);
    label_text_concepts(c, vocabulary);
    return c;
}

static size_t named(const Concepts& c, const string& name) {
    for (size_t i = 0; i < c.list.size(); i++)
        if (c.list[i].name == name) return i;
    fail("no concept %s", name.c_str());
}

// Where the tokens of the first document have a label: 1, elsewhere a dot.
static string marks_of(const Concepts& c, const char* name) {
    string out;
    for (size_t n = 0; n < c.rows.T; n++) out += c.labels.at(named(c, name), n) ? '1' : '.';
    return out;
}

static void test_text_concepts() {
    Language language(3);
    while (language.text.size() < 5000) language.phrase("", language.random.below(2));
    const Concepts c = concepts_of(language.text, language.text.size());
    size_t wrong = 0, deep = 0;
    for (size_t n = 0; n < language.text.size(); n++) {
        const string& open = language.open[n];
        const auto holds = [&](const char* name) { return c.labels.at(named(c, name), n); };
        const char inner = open.empty() ? 0 : open.back();
        deep += open.size() >= 3;
        wrong += holds("in a bracket") != (open.size() >= 1);
        wrong += holds("two deep or more") != (open.size() >= 2);
        wrong += holds("three deep or more") != (open.size() >= 3);
        wrong += holds("a round one is the innermost") != (inner == '(');
        wrong += holds("a square one is the innermost") != (inner == '[');
        wrong += holds("a curly one is the innermost") != (inner == '{');
        wrong += holds("closes a round one") != (inner == '(' && language.closes[n]);
        wrong += holds("in a number") != language.number[n];
    }
    check(wrong == 0 && deep > 100, "%zu labels, %zu deep", wrong, deep);

    const string text = "Ab cd  12 USA\n\"q\" )\xC3";
    const Concepts d = concepts_of(text, text.size());
    const auto marks = [&](const char* name) { return marks_of(d, name); };
    check(marks("a word with a capital first") == "11........111.......");
    check(marks("a word with a small letter first") == "...11..........1....");
    check(marks("a word of digits alone") == ".......11...........");
    check(marks("not ASCII") == "...................1");
    check(marks("two white characters or more") == ".....11.............");
    check(marks("a word of capitals alone") == "..........111.......");
    check(marks("begins a word") == "1..1...1..1....1....");
    check(marks("ends a word") == ".1..1...1...1..1....");
    check(marks("begins a line") == "..............1.....");
    check(marks("in quotes") == "..............11....");
    check(marks("in a bracket") == "....................");
}

static void test_chess_concepts() {
    const string text = ";1.e4 d5 2.exd5 Qxd5 3.Nc3 Qe5+ 4.Be2 O";
    GameSet games;
    games.texts = {text};
    games.characters = text.size();
    games.dots = 4;
    Concepts c;
    c.rows = game_rows(games);
    c.part = {TRAIN};
    label_chess_concepts(c, games);
    const auto marks = [&](const char* name) { return marks_of(c, name); };
    // clang-format off
    //                                   ;1.e4 d5 2.exd5 Qxd5 3.Nc3 Qe5+ 4.Be2 O
    check(marks("a piece letter") ==       "................1......1...1......1....");
    check(marks("of a move's number") ==   ".1.......1...........1..........1......");
    check(marks("a rank") ==               "....1..1......1....1.....1...1......1..");
    check(marks("of Black's move") ==      "......11........1111.......1111.......1");
    check(marks("of a capture") ==         "...........1111.1111...................");
    check(marks("of a check") ==           "...........................1111........");
    check(marks("a move's first") ==       "...1..1....1....1......1...1......1...1");
    check(marks("check_state") ==          ".................................1.....");
    // clang-format on
    for (size_t n = 0; n < text.size(); n++) check(c.dot[n] == (text[n] == '.'));
}

// ---------------------------------------------------------------------------------------------------------
// Planted units

constexpr size_t n_documents = 240, length = 40, n_units = 8; // two experts of four units

struct Planted {
    Concepts concepts;
    vector<vector<float>> z{n_units, vector<float>(n_documents* length)};
    vector<int32_t> expert = vector<int32_t>(n_documents * length);
    Random random{5};

    Planted() {
        concepts.rows.rows = n_documents;
        concepts.rows.T = length;
        for (uint32_t d = 0; d < n_documents; d++) concepts.block.push_back(d);
        concepts.part = deal_blocks(concepts.block);
        concepts.dot.assign(tokens(), 0);
        for (size_t n = 0; n < tokens(); n++) {
            concepts.rows.tokens.push_back(int32_t(random.below(10)));
            expert[n] = int32_t(random.below(2));
        }
    }
    size_t tokens() const { return n_documents * length; }
    // A concept that holds where yes(n).
    template <class F> void ask(F yes) {
        concepts.list = {{"group", "concept"}};
        concepts.labels = empty_labels(1, tokens());
        for (size_t n = 0; n < tokens(); n++)
            if (yes(n)) concepts.labels.set(0, n);
        concepts.rule = {""};
        concepts.rule_says = empty_labels(1, tokens());
    }
    void noise(size_t unit) {
        for (float& v : z[unit]) v = float(random.uniform());
    }
    // One layer, of E experts (1: dense), the units of each token by its slot.
    TokenUnits units(size_t E, bool choose) const {
        const size_t D = n_units / E;
        vector<float> rows;
        vector<int32_t> choice, slot;
        for (size_t n = 0; n < tokens(); n++) {
            const size_t e = E == 1 ? 0 : size_t(expert[n]);
            choice.push_back(int32_t(e));
            slot.push_back(int32_t(n));
            for (size_t i = 0; i < D; i++) rows.push_back(z[e * D + i][n]);
        }
        LayerUnits layer{};
        layer.E = E;
        layer.K = 1;
        layer.D = D;
        layer.z = rows.data();
        if (choose) {
            layer.choice = choice.data();
            layer.slot = slot.data();
        }
        TokenUnits out;
        out.add(layer, tokens(), false);
        return out;
    }
    ProbeSample sample(Negatives negatives = OTHER_DOCUMENTS) const {
        return draw_sample(concepts, 0, concepts.labels, 0, negatives, 1000, 1);
    }
};

static const vector<size_t> ks = {1, 2, 64};

static ConceptCells probe_all(const TokenUnits& units, const ProbeSample& sample, bool raw = false) {
    const CellPlan plan = {&units, &units.deal, units.deal.E, units.units / units.deal.E, nullptr};
    ConceptCells cells(1);
    for (size_t e = 0; e < plan.cells; e++) cells[0].push_back(probe_cell(plan, e, sample, ks, raw));
    for (const CellResult& cell : cells[0])
        for (const CellResult::AtK& at : cell.at) check(!cell.probed || at.gradient < 1e-6);
    return cells;
}

static Figures figures(const TokenUnits& units, const ProbeSample& sample, size_t k) {
    return figures_of(probe_all(units, sample), k, double(sample.token[TEST].size()) / 2);
}

static void test_planted() {
    Planted p;
    const auto coin = [&](size_t n) { return random_uniform(9, 1, n) < 0.4; };
    p.ask(coin);
    for (size_t u = 0; u < n_units; u++) p.noise(u);
    for (size_t n = 0; n < p.tokens(); n++) p.z[2][n] = p.z[6][n] = coin(n) ? 1.5f : 0;
    for (size_t k = 0; k < ks.size(); k++) { // a unit that is the label, of either expert
        const Figures f = figures(p.units(2, true), p.sample(), k);
        check(f.A == 1 && f.B == 1 && f.C == 1 && f.auroc == 1 && f.D == 1, "k %zu: A %g D %g", ks[k], f.A,
              f.D);
        check_near(f.coverage, 0.5, 0.06);
        check_near(f.always, 2.0 / 3, 0.05);
    }
    for (size_t n = 0; n < p.tokens(); n++) p.z[6][n] = 0.5; // of one expert alone: D sees the other half
    const Figures half = figures(p.units(2, true), p.sample(), 0);
    check(half.A == 1 && half.B == 1 && half.cell == 0);
    check(half.D > 0.6 && half.D < 0.9, "%g", half.D);

    // Scaled features, standardised: the same; E = 1, K = 1: dense, bit for bit.
    Planted scaled = p;
    for (auto& unit : scaled.z)
        for (float& v : unit) v *= 8;
    const ProbeSample sample = p.sample();
    const ConceptCells a = probe_all(p.units(2, true), sample), b = probe_all(scaled.units(2, true), sample),
                       one = probe_all(p.units(1, true), sample),
                       dense = probe_all(p.units(1, false), sample);
    const auto equal = [](const ConceptCells& x, const ConceptCells& y) {
        bool same = x[0].size() == y[0].size();
        for (size_t e = 0; same && e < x[0].size(); e++)
            for (size_t k = 0; k < ks.size(); k++) {
                const Tally &t = x[0][e].at[k].test, &u = y[0][e].at[k].test;
                same &= t.tp == u.tp && t.fp == u.fp && t.fn == u.fn && t.tn == u.tn &&
                        x[0][e].at[k].auroc == y[0][e].at[k].auroc;
            }
        return same;
    };
    check(equal(a, b) && equal(one, dense) && !equal(a, one));

    Planted broken = p;
    broken.z[1][77] = NAN;
    check_error(broken.units(1, false), "not finite");
}

// XOR of two units; random labels; the token; a document; a unit that is always on.
static void test_nothing_there() {
    Planted p;
    for (size_t u = 0; u < n_units; u++) p.noise(u);
    for (size_t n = 0; n < p.tokens(); n++)
        for (size_t u : {0, 1}) p.z[u][n] = random_uniform(11, u, n) < 0.5;
    p.ask([&](size_t n) { return p.z[0][n] != p.z[1][n]; });
    for (size_t k = 0; k < ks.size(); k++) {
        const Figures f = figures(p.units(1, false), p.sample(), k);
        check_near(f.auroc, 0.5, 0.06);
    }

    p.ask([](size_t n) { return random_uniform(12, 0, n) < 0.5; }); // selection alone lifts A
    double A = 0, B = 0, area = 0;
    constexpr size_t times = 10;
    for (size_t i = 0; i < times; i++) {
        const ProbeSample sample =
            draw_sample(p.concepts, 0, shifted_labels(p.concepts, 0, i), 0, OTHER_DOCUMENTS, 200, i);
        const Figures f = figures(p.units(2, true), sample, 0);
        A += f.A / times;
        B += f.B / times;
        area += f.auroc / times;
    }
    check(A > B, "A %g, B %g", A, B);
    check_near(area, 0.5, 0.04);

    const auto is_three = [&](size_t n) { return p.concepts.rows.tokens[n] == 3; };
    p.ask(is_three);
    for (size_t n = 0; n < p.tokens(); n++) p.z[0][n] = p.z[4][n] = is_three(n);
    const ProbeSample of_token = p.sample();
    const Figures told = figures(p.units(2, true), of_token, 0);
    const Rival rival = rival_of(p.concepts, 0, of_token);
    check(told.A == 1 && told.D == 1 && rival.token[0] == 1 && rival.token[1] == 1);
    check(!(told.D_validation > rival.best())); // it is not counted
    check(p.sample(SAME_TOKEN).token[TRAIN].empty());

    // Units that know the document: nothing is left on documents they were not trained on.
    p.ask([](size_t n) { return random_uniform(13, 0, n / length) < 0.5; });
    for (size_t n = 0; n < p.tokens(); n++)
        for (size_t u = 0; u < n_units; u++) p.z[u][n] = float(random_uniform(14, u, n / length));
    const CellResult known = probe_all(p.units(1, false), p.sample())[0][0];
    check(known.probed && std::fabs(known.at[2].auroc - 0.5) < 0.2, "%g", known.at[2].auroc);

    for (auto& unit : p.z) std::fill(unit.begin(), unit.end(), 1.0f);
    p.ask([](size_t n) { return random_uniform(15, 0, n) < 0.3; });
    const Figures on = figures(p.units(1, false), p.sample(), 0);
    check(on.A == on.always && on.auroc == 0.5);
    check_near(on.always, 2.0 / 3, 1e-12);
}

// Concepts from files: where documents come from, and a user's own.
static void test_given(const string& folder) {
    Concepts c;
    c.rows.rows = 3;
    c.rows.T = 4;
    c.rows.tokens = {256, 1, 2, 256, 3, 4, 256, 5, 256, 6, 7, 8}; // four documents
    c.rows.group.assign(12, 0);
    c.part = {TRAIN, VALIDATION, TEST};
    c.block = {0, 1, 2};
    c.dot.assign(12, 0);
    const string sources = folder + "/a.sources", labels = folder + "/a.npy";
    const auto write = [](const string& path, const string& text) {
        AtomicFile file(path);
        file.write(text.data(), text.size());
        file.commit();
    };
    const vector<size_t> document = documents_of(c.rows, 256, true);
    write(sources, "prose\nc\nprose\nc\nnot read\n");
    label_sources(c, sources, document);
    check(c.list.size() == 2 && c.list[0].name == "c" && c.list[1].name == "prose" && c.list[1].of_document);
    string prose;
    for (size_t n = 0; n < 12; n++) {
        prose += c.labels.at(1, n) ? '1' : '0';
        check(c.labels.at(0, n) != c.labels.at(1, n) &&
              c.rows.groups[c.rows.group[n]] == c.list[c.rows.group[n]].name);
    }
    check(prose == "111000110000", "%s", prose.c_str());
    check((c.block == vector<uint32_t>{0, 1, 3})); // rows of one document are one witness
    const Labels moved = shifted_labels(c, 1, 1);  // by whole rows
    string after;
    for (size_t n = 0; n < 12; n++) after += moved.at(0, n) ? '1' : '0';
    check(after == "000011100011" || after == "001100001110", "%s", after.c_str());
    write(sources, "prose\nc\nprose\n");
    check_error(label_sources(c, sources, document), "a.sources", "3 lines", "have 4");
    write(sources, "prose\n\nprose\nc\n");
    check_error(label_sources(c, sources, document), "line 2", "empty");

    const auto npy = [&](const string& shape, const vector<float>& values) {
        string header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }";
        header += string(63 - (10 + header.size()) % 64, ' ') + "\n";
        string bytes("\x93NUMPY\x01\x00", 8);
        bytes += char(header.size() % 256);
        bytes += char(header.size() / 256);
        write(labels, bytes + header + string((const char*)values.data(), values.size() * sizeof(float)));
    };
    vector<float> values(24);
    for (size_t n = 0; n < 12; n++) values[2 * n + 1] = n % 3 == 0;
    for (const char* shape : {"(12, 2)", "(3, 4, 2)"}) {
        Concepts own = c;
        npy(shape, values);
        label_given(own, labels);
        check(own.list.size() == 4 && own.list[3].name == "label 1" && own.labels.positives(2) == 0 &&
              own.labels.positives(3) == 4 && own.labels.at(3, 9) && !own.labels.at(3, 10));
    }
    npy("(8, 3)", values);
    check_error(label_given(c, labels), "a.npy", "(8, 3)", "(12, concepts)");
    values[5] = 0.5;
    npy("(12, 2)", values);
    check_error(label_given(c, labels), "0.5 at token 2, concept 1", "0 or 1");
}

static void test_samples() {
    Planted p;
    p.ask([](size_t n) { return random_uniform(16, 0, n) < 0.3; });
    for (size_t v = 0; v < n_negatives; v++) {
        const ProbeSample s = p.sample(Negatives(v));
        for (size_t part = 0; part < n_parts; part++) {
            const size_t yes = size_t(std::count(s.yes[part].begin(), s.yes[part].end(), 1));
            check(yes > 100 && 2 * yes == s.yes[part].size());
            check(std::is_sorted(s.token[part].begin(), s.token[part].end()));
            std::map<uint32_t, int> balance; // of what negatives share with positives
            size_t wrong = 0;
            for (size_t i = 0; i < s.token[part].size(); i++) {
                const uint32_t n = s.token[part][i];
                wrong += p.concepts.part[n / length] != part || p.concepts.labels.at(0, n) != s.yes[part][i];
                balance[v == SAME_TOKEN ? uint32_t(p.concepts.rows.tokens[n]) : n / uint32_t(length)] +=
                    s.yes[part][i] ? 1 : -1;
            }
            size_t uneven = 0;
            for (const auto& [key, sum] : balance) uneven += sum != 0;
            check(wrong == 0 && (uneven == 0) == (v != OTHER_DOCUMENTS), "%s: %zu wrong, %zu uneven",
                  negatives_names[v], wrong, uneven);
        }
    }
    const Labels moved = shifted_labels(p.concepts, 0, 1);
    check(moved.positives(0) == p.concepts.labels.positives(0));
    check(moved.bits != p.concepts.labels.bits);
    const Deal deal = p.units(2, true).deal, dealt = shuffled_deal(deal, 1);
    check(std::count(deal.expert.begin(), deal.expert.end(), 1) ==
              std::count(dealt.expert.begin(), dealt.expert.end(), 1) &&
          deal.expert != dealt.expert);

    EnoughWitnesses enough = {20, 10};
    p.concepts.list.push_back({"group", "the same again"});
    p.concepts.labels.bits.insert(p.concepts.labels.bits.end(), p.concepts.labels.bits.begin(),
                                  p.concepts.labels.bits.end());
    p.concepts.list.push_back({"group", "never"});
    p.concepts.labels.bits.resize(3 * p.concepts.labels.words);
    keep_answerable(p.concepts, enough);
    check(p.concepts.list.size() == 1 && p.concepts.left_out == vector<string>{"group: never"});
    for (const size_t rows : {1, 4, 7, 100}) {
        const vector<uint8_t> part = deal_stretches(rows);
        check(part.size() == rows);
        for (size_t r = 1; r < rows; r++)
            check(part[r] == part[r - 1] || part[r] == n_parts || part[r - 1] == n_parts);
    }
}

static void test_logistic() {
    constexpr size_t n = 400, k = 5;
    vector<double> x(n * k), gradient;
    vector<uint8_t> y(n);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < k; j++) x[i * k + j] = random_normal(20, j, i);
        y[i] = x[i * k] + 0.5 * x[i * k + 1] + random_normal(20, 9, i) > 0.8;
    }
    const LogisticFit fit = fit_logistic(x, y, k);
    const double f = logistic_objective(x, y, k, fit.w, fit.b, gradient);
    for (const double part : gradient) check(std::fabs(part) < 1e-6);
    for (size_t j = 0; j < k; j++) { // the gradient is that of the objective, and it is the minimum
        for (const double h : {1e-3, -1e-3}) {
            vector<double> w = fit.w, unused;
            w[j] += h;
            check(logistic_objective(x, y, k, w, fit.b, unused) > f);
        }
        vector<double> low = {0.1, 0.2, 0.3, 0.4, 0.5}, high = low, middle = low, slope, unused;
        low[j] -= 1e-6;
        high[j] += 1e-6;
        logistic_objective(x, y, k, middle, 0.3, slope);
        check_near(
            (logistic_objective(x, y, k, high, 0.3, unused) - logistic_objective(x, y, k, low, 0.3, unused)) /
                2e-6,
            slope[j], 1e-4);
    }
    // Separable labels and large features end, too.
    for (size_t i = 0; i < n; i++) {
        y[i] = i % 2;
        x[i * k] = y[i] ? 1e4 : -1e4;
    }
    check(fit_logistic(x, y, k).gradient < 1e-4);
}

// ---------------------------------------------------------------------------------------------------------
// The tool

static void test_tool(const string& folder) {
    Language language(4);
    while (language.text.size() < 400 * 32 + 1) language.phrase("", language.random.below(2));
    ProbeOptions o;
    o.ckpt = save_byte_model(folder + "/moe.safetensors", "moe", 1);
    o.twin = save_byte_model(folder + "/dense.safetensors", "dense", 2);
    o.data = save_byte_shard(folder + "/text.bin", language.text);
    o.rows = 400;
    o.k = "1,4";
    o.most = 300;
    o.least = 60;
    o.least_documents = 15;
    const ProbeReport r = measure_probe(o, cpu_reader);
    check(r.concepts.size() >= 10 && r.rows == 400 && r.T == 32, "%zu concepts", r.concepts.size());
    for (const ConceptProbe& c : r.concepts) {
        const ConceptProbe::Variant& v = c.variant[SAME_DOCUMENT];
        if (!check(v.asked && v.model.size() == 2 && v.E.size() == 2)) continue;
        check(v.model[1].A >= v.model[1].B && v.model[1].D > 0 && v.model[1].D <= 1);
        check(c.shifted_A[1] >= c.shifted_A[0] && c.shifted_D[1] >= c.shifted_D[0]);
    }
    const string said = r.sentence();
    if (r.counted > 0) check(said.find(strf("%zu of %zu", r.counted, r.concepts.size())) != string::npos);
    const size_t threads = thread_count();
    set_thread_count(3);
    check(without_times(probe_json(measure_probe(o, cpu_reader))) == without_times(probe_json(r)));
    set_thread_count(threads);
    const Json json = parse_json(probe_json(r), "probe.json");
    check(json.find("weights")->text == weights_hash(r.checkpoint) && json.find("sentence")->text == said);

    // Side by side: over the concepts that both were asked.
    ProbeReport other = r;
    other.checkpoint = "other";
    other.concepts.erase(other.concepts.begin());
    double A[2] = {}, most = 0;
    for (size_t c = 1; c < r.concepts.size(); c++) {
        const double value = r.concepts[c].variant[SAME_DOCUMENT].model[0].A;
        A[0] += value / double(r.concepts.size() - 1);
        most = std::max(most, value);
    }
    for (ConceptProbe& c : other.concepts) c.variant[SAME_DOCUMENT].model[0].A = most;
    A[1] = most;
    const string both = probes_side_by_side({r, other});
    const double mean = (A[0] + A[1]) / 2, half = 12.706 * (A[1] - A[0]) / 2; // s/sqrt(2) = |difference|/2
    check(both.find(strf("%zu concepts", r.concepts.size() - 1)) != string::npos, "%s", both.c_str());
    check(both.find(strf("%-40s %7.3f", "mean", mean)) != string::npos, "%s", both.c_str());
    check(both.find(strf("%-40s %7.3f", "half of the 95% t interval", half)) != string::npos, "%s",
          both.c_str());
    other.concepts.clear();
    check(probes_side_by_side({r, other}).empty());

    ProbeReport made;
    check(made.sentence().find("Without --twin") == 0);
    made.twin = "twin";
    check(made.sentence().find("There is no sentence") == 0);
    made.ks = {1};
    made.counted = 3;
    made.concepts.resize(5);
    check(made.sentence().find("too few") != string::npos); // no interval: NaN
    made.beyond_E = {0.02, {-0.01, 0.05}};
    made.beyond_D = {-0.1, {-0.2, -0.05}};
    check(made.sentence().find("not told apart from its twin's, +0.020") != string::npos);
    check(made.sentence().find("lower than its twin's by 0.100") != string::npos);

    ProbeOptions bad = o;
    bad.twin = o.ckpt;
    check_error(measure_probe(bad, cpu_reader), "--twin", "dense");
    bad = o;
    bad.k = "4,1";
    check_error(measure_probe(bad, cpu_reader), "--k", "rising");
    bad = o;
    bad.layer = "2";
    check_error(measure_probe(bad, cpu_reader), "--layer");
    bad = o;
    bad.least = 100000;
    check_error(measure_probe(bad, cpu_reader), "text.bin", "no concept");
    bad = o;
    bad.data = "";
    check_error(measure_probe(bad, cpu_reader), "--data");
}

int main() {
    return run_main([] {
        const TemporaryFolder folder;
        test_text_concepts();
        test_chess_concepts();
        test_logistic();
        test_planted();
        test_nothing_there();
        test_samples();
        test_given(folder.path);
        test_tool(folder.path);
        return finish();
    });
}
