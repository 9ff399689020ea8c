// Tables from results: see tables.h.
#include "tables.h"
#include "../lib/options.h"
#include "../lib/terminal.h"
#include <set>

// ---------------------------------------------------------------------------------------------------------
// Manifest

static double number_of(const std::string& text, const std::string& where) {
    char* end = nullptr;
    const double x = strtod(text.c_str(), &end);
    if (text.empty() || *end || !std::isfinite(x))
        fail("%s: %s, expected a number", where.c_str(), quoted(text).c_str());
    return x;
}

Manifest read_manifest(const std::string& path) {
    const MappedFile file(path);
    Manifest m;
    size_t line_number = 0;
    for (const std::string& line : split(std::string((const char*)file.data, file.size), '\n')) {
        const std::string where = strf("%s: line %zu", path.c_str(), ++line_number);
        if (line.empty()) continue;
        const std::vector<std::string> f = split(line, '\t');
        const auto expect = [&](size_t n) {
            if (f.size() != n)
                fail("%s: %zu fields, expected %zu of %s", where.c_str(), f.size(), n, f[0].c_str());
        };
        if (f[0] == "size") {
            expect(2);
            m.size = f[1];
        } else if (f[0] == "tokens") {
            expect(2);
            m.tokens = number_of(f[1], where);
        } else if (f[0] == "parameters") {
            expect(2);
            m.parameters = number_of(f[1], where);
        } else if (f[0] == "method") {
            expect(6);
            m.methods.push_back({f[1], f[2], f[5], number_of(f[3], where), number_of(f[4], where)});
        } else if (f[0] == "table") {
            expect(5);
            std::vector<std::string> methods = split(f[4], ' ');
            std::erase(methods, "");
            m.tables.push_back({f[1], f[2] == "-" ? "" : f[2], f[3], methods});
        } else if (f[0] == "run") {
            expect(3);
            m.runs.push_back({f[1], int64_t(number_of(f[2], where))});
        } else {
            fail("%s: %s, expected size, tokens, parameters, method, table or run", where.c_str(),
                 quoted(f[0]).c_str());
        }
    }
    for (const TablePlan& t : m.tables)
        for (const std::string& name : t.methods) m.method(name);
    for (const auto& [name, seed] : m.runs) m.method(name);
    return m;
}

const Method& Manifest::method(const std::string& name) const {
    for (const Method& m : methods)
        if (m.name == name) return m;
    fail("the manifest has no method %s", quoted(name).c_str());
}

// ---------------------------------------------------------------------------------------------------------
// Numbers of a run

const std::vector<Metric>& metrics() {
    static const std::vector<Metric> list = {
        {"active_parameters", "active parameters", 0, false, false},
        {"parameters", "parameters", 0, false, false},
        {"units", "features of a layer", 0, true, false},
        {"val_loss", "validation loss", 4, false, true},
        {"legal", "legal moves", 3, false, true},
        {"l0", "l0", 1, false, true},
        {"participation", "participation ratio", 1, false, true},
        {"board.coverage", "coverage, published", 3, true, true},
        {"board.untrained.coverage", "untrained", 3, true, false},
        {"board.same_move.coverage", "same move", 3, true, false},
        {"board.held_out", "held out", 3, true, true},
        {"board.untrained.held_out", "untrained, held out", 3, true, false},
        {"board.subset.held_out", "held out, at equal F", 3, true, true},
        {"board.beyond", "beyond the text", 3, true, true},
        {"board.rec_published", "reconstruction, published", 3, true, true},
        {"board.rec", "reconstruction, held out", 3, true, true},
        {"strategy.coverage", "strategy coverage, published", 3, true, true},
        {"strategy.held_out", "strategy, held out", 3, true, true},
        {"strategy.subset.held_out", "strategy, at equal F", 3, true, true},
        {"strategy.rec_published", "strategy reconstruction, published", 3, true, true},
        {"units_found", "units found", 0, false, true},
        {"router_correlation", "router score against l0", 3, false, true},
        {"fvu", "variance unexplained", 3, false, true},
        {"recovered", "loss recovered", 3, false, true}};
    return list;
}

static const Numbers* best_layer(const std::vector<Numbers>& layers, const std::string& by) {
    const Numbers* best = nullptr;
    for (const Numbers& layer : layers)
        if (layer.count(by) && (!best || layer.at(by) > best->at(by))) best = &layer;
    return best;
}

double metric_of(const RunResult& r, const std::string& view, const Metric& metric) {
    const std::string name = metric.name;
    if (!metric.layer) return view.empty() ? r.number(name) : NAN;
    const auto layers = r.layers.find(view);
    if (layers == r.layers.end()) return NAN;
    const Numbers* layer =
        best_layer(layers->second, name.starts_with("strategy.") ? "strategy.coverage" : "board.coverage");
    if (!layer || !layer->count(name)) return NAN;
    return layer->at(name);
}

// ---------------------------------------------------------------------------------------------------------
// Tables

static const std::map<int64_t, double>* values_of(const Row& row, const std::string& metric) {
    const auto cell = row.cells.find(metric);
    return cell == row.cells.end() ? nullptr : &cell->second.values;
}

static MeanInterval mean_of(const std::map<int64_t, double>& values) {
    std::vector<double> list;
    for (const auto& [seed, x] : values) list.push_back(x);
    return mean_interval(list);
}

static Row make_row(const Manifest& manifest, const std::string& method, const std::string& view,
                    const std::vector<RunResult>& results) {
    Row row;
    row.method = method;
    row.view = view;
    row.label = manifest.method(method).label + (view.empty() ? "" : ", " + view);
    for (const auto& [name, seed] : manifest.runs) row.expected += name == method;
    for (const RunResult& r : results) {
        if (r.method != method) continue;
        if (!r.reason.empty()) row.reason = r.reason;
        row.runs += r.reason.empty() && (view.empty() || r.layers.count(view));
        for (const Metric& m : metrics())
            if (const double x = metric_of(r, view, m); !std::isnan(x)) row.cells[m.name].values[r.seed] = x;
    }
    for (auto& [name, cell] : row.cells) cell.mean = mean_of(cell.values);
    return row;
}

static void add_differences(Table& table) {
    const Row* reference = nullptr;
    for (const Row& row : table.rows)
        if (row.method == table.plan.reference && row.view.empty()) reference = &row;
    if (!reference) return;
    std::vector<Difference*> all;
    std::vector<double> p;
    for (Row& row : table.rows) {
        if (&row == reference) continue;
        for (const Metric& m : metrics()) {
            const auto *values = values_of(row, m.name), *others = values_of(*reference, m.name);
            if (!m.compare || !values || !others) continue;
            std::vector<double> differences;
            for (const auto& [seed, x] : *values)
                if (others->count(seed)) differences.push_back(x - others->at(seed));
            if (differences.empty()) continue;
            Difference& d = row.differences[m.name];
            d.mean = mean_interval(differences);
            all.push_back(&d);
            p.push_back(d.mean.p);
        }
    }
    const std::vector<double> corrected = holm(p);
    for (size_t i = 0; i < all.size(); i++) all[i]->p_holm = corrected[i];
}

// Table 3: two factors, each on or off. Effects are means over the other factor.
static void add_effects(Table& table) {
    const auto row = [&](const char* suffix) -> const Row* {
        for (const Row& r : table.rows)
            if (r.method == suffix && r.view.empty()) return &r;
        return nullptr;
    };
    for (const std::string start : {"", "up-"}) {
        const Row *neither = row((start + "switch").c_str()), *relu = row((start + "relu-topk").c_str()),
                  *sparsity = row((start + "gelu-sparsity").c_str()), *both = row((start + "moex").c_str());
        if (!neither || !relu || !sparsity || !both) continue;
        for (const Metric& m : metrics()) {
            if (!m.compare) continue;
            const auto *a = values_of(*neither, m.name), *b = values_of(*relu, m.name),
                       *c = values_of(*sparsity, m.name), *d = values_of(*both, m.name);
            if (!a || !b || !c || !d) continue;
            std::vector<double> of_relu, of_router, interaction;
            for (const auto& [seed, x] : *a) {
                if (!b->count(seed) || !c->count(seed) || !d->count(seed)) continue;
                const double y = b->at(seed), z = c->at(seed), w = d->at(seed);
                of_relu.push_back((y - x + w - z) / 2);
                of_router.push_back((z - x + w - y) / 2);
                interaction.push_back(w - z - y + x);
            }
            if (of_relu.empty()) continue;
            const std::string how = start.empty() ? "" : ", upcycled";
            table.effects.push_back({"ReLU experts" + how, m.name, mean_interval(of_relu)});
            table.effects.push_back({"sparsity router" + how, m.name, mean_interval(of_router)});
            table.effects.push_back({"interaction" + how, m.name, mean_interval(interaction)});
        }
    }
}

std::vector<Table> make_tables(const Manifest& manifest, const std::vector<RunResult>& results) {
    std::vector<Table> tables;
    for (const TablePlan& plan : manifest.tables) {
        Table table{plan, {}, {}};
        for (const std::string& method : plan.methods) {
            table.rows.push_back(make_row(manifest, method, "", results));
            std::set<std::string> views;
            for (const RunResult& r : results)
                if (r.method == method)
                    for (const auto& [view, layers] : r.layers)
                        if (!view.empty()) views.insert(view);
            for (const std::string& view : views)
                table.rows.push_back(make_row(manifest, method, view, results));
        }
        add_differences(table);
        add_effects(table);
        tables.push_back(std::move(table));
    }
    return tables;
}

// ---------------------------------------------------------------------------------------------------------
// What the paper reports (its Tables 1, 3 and 4): other data, other training

const std::vector<Published>& published() {
    static const std::vector<Published> list = {
        {"table1", "gelu", 0.213, 0.356, 0.608},       {"table1", "relu", 0.215, 0.312, 0.581},
        {"table1", "geglu", 0.209, 0.255, 0.394},      {"table1", "solu", 0.216, 0.306, 0.343},
        {"table1", "monet-hd", 0.210, 0.312, 0.528},   {"table1", "monet-vd", 0.212, 0.283, 0.482},
        {"table1", "peer", 0.214, 0.323, 0.426},       {"table1", "up-switch", 0.212, 0.424, 0.734},
        {"table1", "up-moex", 0.211, 0.428, 0.840},    {"table1", "moex", NAN, 0.398, 0.657},
        {"table3", "up-switch", NAN, 0.424, 0.734},    {"table3", "up-gelu-sparsity", NAN, 0.404, 0.740},
        {"table3", "up-relu-topk", NAN, 0.418, 0.829}, {"table3", "up-moex", NAN, 0.428, 0.840},
        {"table4", "gelu", NAN, 0.356, 0.608},         {"table4", "gelu-continued", NAN, 0.377, 0.674},
        {"table4", "moex", NAN, 0.398, 0.657},         {"table4", "up-moex", NAN, 0.428, 0.840}};
    return list;
}

// ---------------------------------------------------------------------------------------------------------
// Markdown

static std::string shown(double x, int digits) {
    if (std::isnan(x)) return "-";
    return digits == 0 && std::fabs(x) >= 1e4 ? human_count(x) : strf("%.*f", digits, x);
}
static std::string shown(const MeanInterval& m, int digits) {
    if (m.n == 0) return "-";
    if (m.n == 1 || m.high == m.low) return shown(m.mean, digits);
    return shown(m.mean, digits) + " ± " + strf("%.*f", digits, (m.high - m.low) / 2);
}

static bool in_table(const Table& table, const Metric& m) {
    for (const Row& row : table.rows)
        if (row.cells.count(m.name)) return true;
    return false;
}

static void rows_markdown(std::string& out, const Table& table, const std::vector<const Metric*>& columns) {
    std::string rule = "|---|";
    out += "| |";
    for (const Metric* m : columns) {
        out += strf(" %s |", m->head);
        rule += "---|";
    }
    out += "\n" + rule + "\n";
    for (const Row& row : table.rows) {
        std::string cells;
        for (const Metric* m : columns) {
            const auto cell = row.cells.find(m->name);
            cells += strf(" %s |", cell == row.cells.end() ? "-" : shown(cell->second.mean, m->digits).c_str());
        }
        out +=
            "| " + row.label +
            (row.runs < row.expected && row.runs ? strf(" (%zu of %zu runs)", row.runs, row.expected) : "") +
            " |" + cells + "\n";
    }
    out += "\n";
}

static void differences_markdown(std::string& out, const Table& table, const Manifest& manifest) {
    bool any = false;
    std::vector<const Metric*> columns;
    for (const Metric& m : metrics()) {
        bool here = false;
        for (const Row& row : table.rows)
            if (const auto d = row.differences.find(m.name); d != row.differences.end())
                here |= d->second.mean.n > 1;
        if (here) columns.push_back(&m);
        any |= here;
    }
    if (!any) return;
    out += "Differences to " + manifest.method(table.plan.reference).label +
           ", paired by seed, with their 95% t interval; **bold** where that excludes 0 after Holm's "
           "correction over "
           "all differences of this table, too.\n\n| |";
    std::string rule = "|---|";
    for (const Metric* m : columns) {
        out += strf(" %s |", m->head);
        rule += "---|";
    }
    out += "\n" + rule + "\n";
    for (const Row& row : table.rows) {
        if (row.differences.empty()) continue;
        out += "| " + row.label + " |";
        for (const Metric* m : columns) {
            const auto d = row.differences.find(m->name);
            std::string text = "-";
            if (d != row.differences.end() && d->second.mean.n > 1)
                text = strf("%+.*f ± %.*f", m->digits, d->second.mean.mean, m->digits,
                            (d->second.mean.high - d->second.mean.low) / 2);
            const char* bold = d != row.differences.end() && d->second.marked() ? "**" : "";
            out += strf(" %s%s%s |", bold, text.c_str(), bold);
        }
        out += "\n";
    }
    out += "\n";
}

static std::string floors_text(const Table& table, const std::vector<RunResult>& results) {
    std::map<std::string, std::vector<double>> seen;
    for (const Row& row : table.rows)
        for (const RunResult& r : results) {
            if (r.method != row.method || !row.view.empty()) continue;
            for (const char* name : {"board_floor_test", "strategy_floor_test"})
                if (const double x = r.number(name); !std::isnan(x)) seen[name].push_back(x);
            const auto layers = r.layers.find("");
            for (const std::string group : {"board", "strategy"})
                if (const Numbers* best =
                        layers == r.layers.end() ? nullptr : best_layer(layers->second, group + ".coverage");
                    best && best->count(group + ".permuted.held_out"))
                    seen[group + ".permuted"].push_back(best->at(group + ".permuted.held_out"));
        }
    const auto mean = [&](const char* name) { return shown(mean_interval(seen[name]).mean, 3); };
    if (seen.empty()) return "";
    return strf(
        "Floors, held out: a unit that is always on has board coverage %s and strategy coverage %s; with "
        "permuted labels the same search comes to %s and %s (mean over the rows).\n\n",
        mean("board_floor_test").c_str(), mean("strategy_floor_test").c_str(), mean("board.permuted").c_str(),
        mean("strategy.permuted").c_str());
}

std::string tables_markdown(const Manifest& manifest, const std::vector<Table>& tables,
                            const std::vector<RunResult>& results) {
    std::set<std::string> machines, commits, dates;
    for (const RunResult& r : results) {
        const auto note = [&](const char* name, std::set<std::string>& into) {
            if (const auto x = r.provenance.find(name); x != r.provenance.end()) into.insert(x->second);
        };
        note("machine", machines);
        note("commit", commits);
        if (const auto d = r.provenance.find("date"); d != r.provenance.end())
            dates.insert(d->second.substr(0, 10));
    }
    const auto list = [](const std::set<std::string>& words) {
        std::string text;
        for (const std::string& w : words) text += (text.empty() ? "" : ", ") + w;
        return text.empty() ? "-" : text;
    };
    size_t done = 0;
    for (const RunResult& r : results) done += r.reason.empty();
    std::string out = strf("# The paper's tables, size %s\n\n", manifest.size.c_str());
    out += strf("%zu of %zu runs. Machine: %s. Commits: %s. Dates: %s.\n\n", done, manifest.runs.size(),
                list(machines).c_str(), list(commits).c_str(), list(dates).c_str());
    out += "A cell is the mean over seeds ± half of its 95% t interval; without ± it is one run, or all runs "
           "agree; a "
           "dash is a run or a number that is missing. Board and strategy numbers are those of the layer "
           "with the "
           "highest coverage on the train games; *published* is scored on the games that units are chosen "
           "on, *held "
           "out* on others. \"At equal F\": the mean over draws of as many units as the narrowest method "
           "has.\n\n";
    for (const Table& table : tables) {
        out += "## " + table.plan.title + "\n\n";
        std::vector<const Metric*> model, board, strategy;
        for (const Metric& m : metrics()) {
            if (!in_table(table, m)) continue;
            const std::string name = m.name;
            (name.starts_with("board.")      ? board
             : name.starts_with("strategy.") ? strategy
                                             : model)
                .push_back(&m);
        }
        if (model.empty()) out += "No run yet.\n\n";
        if (!model.empty()) rows_markdown(out, table, model);
        if (!board.empty()) {
            out += "Board state\n\n";
            rows_markdown(out, table, board);
        }
        if (!strategy.empty()) {
            out += "Strategy (mean of 14 functions)\n\n";
            rows_markdown(out, table, strategy);
        }
        out += floors_text(table, results);
        differences_markdown(out, table, manifest);
        if (!table.effects.empty()) {
            out += "Effects, each the mean over the other factor, with their 95% t interval.\n\n| | metric | "
                   "effect |\n|---|---|---|\n";
            for (const Effect& e : table.effects) {
                const auto m = std::find_if(metrics().begin(), metrics().end(),
                                            [&](const Metric& x) { return e.metric == x.name; });
                out += "| " + e.name + " | " + m->head + " | " + shown(e.mean, m->digits) + " |\n";
            }
            out += "\n";
        }
        for (const Row& row : table.rows)
            if (!row.reason.empty() && row.view.empty())
                out += "- " + row.label + ": not run: " + row.reason + "\n";
        bool head = false;
        for (const Published& p : published()) {
            if (table.plan.name != p.table) continue;
            if (!head)
                out += "\nThe paper's own numbers, on other data (not comparable):\n\n| | validation loss | "
                       "coverage | reconstruction |\n|---|---|---|---|\n";
            head = true;
            std::string label = p.method;
            for (const Method& m : manifest.methods)
                if (m.name == p.method) label = m.label;
            out += "| " + label + " | " + shown(p.val_loss, 3) + " | " + shown(p.coverage, 3) + " | " +
                   shown(p.reconstruction, 3) + " |\n";
        }
        out += "\n";
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// CSV, JSON

static std::string csv_field(const std::string& text) {
    if (text.find_first_of(",\"\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
    return out + "\"";
}
static std::string csv_number(double x) { return std::isnan(x) ? "" : json_number(x); }

std::string tables_csv(const std::vector<Table>& tables) {
    std::string out = "table,method,label,view,metric,runs,mean,low,high,difference,difference_low,"
                      "difference_high,p,p_holm\n";
    for (const Table& table : tables)
        for (const Row& row : table.rows)
            for (const Metric& m : metrics()) {
                const auto cell = row.cells.find(m.name);
                if (cell == row.cells.end()) continue;
                const MeanInterval& x = cell->second.mean;
                out += csv_field(table.plan.name) + "," + csv_field(row.method) + "," + csv_field(row.label) +
                       "," + csv_field(row.view) + "," + m.name + strf(",%zu,", x.n) + csv_number(x.mean) +
                       "," + csv_number(x.low) + "," + csv_number(x.high);
                const auto d = row.differences.find(m.name);
                const Difference none, &difference = d == row.differences.end() ? none : d->second;
                for (const double x : {difference.mean.mean, difference.mean.low, difference.mean.high,
                                       difference.mean.p, difference.p_holm}) {
                    out += ',';
                    out += csv_number(x);
                }
                out += '\n';
            }
    return out;
}

std::string runs_csv(const std::vector<RunResult>& results) {
    std::string out = "method,size,seed,view,layer,metric,value\n";
    for (const RunResult& r : results) {
        const std::string run =
            csv_field(r.method) + "," + csv_field(r.size) + strf(",%lld,", (long long)r.seed);
        for (const auto& [name, x] : r.numbers) out += run + ",," + name + "," + csv_number(x) + "\n";
        for (const auto& [view, layers] : r.layers)
            for (const Numbers& layer : layers) {
                const auto number = layer.find("layer");
                const std::string at = number == layer.end() ? "" : json_number(number->second);
                for (const auto& [name, x] : layer)
                    if (name != "layer")
                        out += run + csv_field(view) + "," + at + "," + name + "," + csv_number(x) + "\n";
            }
    }
    return out;
}

static void interval_json(JsonWriter& out, const MeanInterval& m) {
    out.member("n", m.n).member("mean", m.mean).member("low", m.low).member("high", m.high);
}

std::string tables_json(const Manifest& manifest, const std::vector<Table>& tables) {
    JsonWriter out;
    out.open('{').member("size", manifest.size).key("metrics").open('[');
    for (const Metric& m : metrics())
        out.open('{')
            .member("name", m.name)
            .member("head", m.head)
            .member("digits", m.digits)
            .member("compare", m.compare)
            .close();
    out.close().key("tables").open('[');
    for (const Table& table : tables) {
        out.open('{').member("name", table.plan.name).member("title", table.plan.title);
        out.member("reference", table.plan.reference).key("rows").open('[');
        for (const Row& row : table.rows) {
            out.open('{').member("method", row.method).member("label", row.label).member("view", row.view);
            out.member("reason", row.reason).member("runs", row.runs).member("expected", row.expected);
            out.key("cells").open('{');
            for (const auto& [name, cell] : row.cells) {
                out.key(name).open('{');
                interval_json(out, cell.mean);
                out.key("values").open('{');
                for (const auto& [seed, x] : cell.values) out.member(std::to_string(seed).c_str(), x);
                out.close().close();
            }
            out.close().key("differences").open('{');
            for (const auto& [name, d] : row.differences) {
                out.key(name).open('{');
                interval_json(out, d.mean);
                out.member("p", d.mean.p).member("p_holm", d.p_holm).member("marked", d.marked()).close();
            }
            out.close().close();
        }
        out.close().key("effects").open('[');
        for (const Effect& e : table.effects) {
            out.open('{').member("name", e.name).member("metric", e.metric);
            interval_json(out, e.mean);
            out.close();
        }
        out.close().key("published").open('[');
        for (const Published& p : published())
            if (table.plan.name == p.table) {
                out.open('{').member("method", p.method).member("val_loss", p.val_loss);
                out.member("board.coverage", p.coverage)
                    .member("board.rec_published", p.reconstruction)
                    .close();
            }
        out.close().close();
    }
    out.close().close();
    return out.text + "\n";
}

// ---------------------------------------------------------------------------------------------------------
// Plan

std::string plan_text(const Manifest& manifest, const std::vector<RunResult>& done, double default_rate) {
    double hours = 0, left = 0;
    size_t there = 0, refused = 0;
    std::string out =
        strf("size %s: %s tokens a run\n\n%-22s %5s %5s  %11s  %8s  %s\n", manifest.size.c_str(),
             human_count(manifest.tokens).c_str(), "method", "runs", "done", "tokens/s", "each", "flags");
    for (const Method& m : manifest.methods) {
        size_t runs = 0, finished = 0;
        double rate = 0;
        std::string reason;
        for (const auto& [name, seed] : manifest.runs) runs += name == m.name;
        if (runs == 0) continue;
        for (const RunResult& r : done) {
            if (r.method != m.name) continue;
            if (!r.reason.empty()) reason = r.reason;
            finished += r.reason.empty();
            if (const auto x = r.provenance.find("tokens_per_second"); x != r.provenance.end())
                rate = strtod(x->second.c_str(), nullptr);
        }
        const bool measured = rate > 0;
        if (!measured) rate = default_rate / m.slower;
        const double each = m.length * manifest.tokens / rate;
        hours += double(runs) * each / 3600;
        left += reason.empty() ? double(runs - std::min(runs, finished)) * each / 3600 : 0;
        there += finished;
        refused += !reason.empty();
        out += strf("%-22s %5zu %5zu  %7s %s  %8s  %s%s\n", m.name.c_str(), runs, finished,
                    human_count(rate).c_str(), measured ? "   " : "(?)", human_duration(each).c_str(),
                    m.flags.c_str(), reason.empty() ? "" : (" | refused: " + reason).c_str());
    }
    out += strf("\n%zu runs, %zu done; training takes %.1f hours in all, %.1f are left (rates with (?) are "
                "guesses; the "
                "measurements of a run come on top)\n",
                manifest.runs.size(), there, hours, left);
    out += strf("disk: about %s\n",
                human_bytes(16 * manifest.parameters * double(manifest.runs.size())).c_str());
    if (refused) out += strf("%zu methods are refused by the trainer: dashes in the tables\n", refused);
    return out;
}
