// The paper's tables from results (result.h): means over seeds with their 95% t intervals, differences to a
// table's reference paired by seed, with Holm's correction over all differences of a table, and the same as
// CSV, JSON and a page. A run that is missing is a dash, and so is an interval of one run.
//
// What is in which table says the manifest, a text file that paper.mk writes; fields are separated by tabs:
//   size NAME              tokens N, parameters N: of a run of length 1
//   method NAME            LABEL, RATE (how much slower than the dense twin), LENGTH, FLAGS
//   table NAME             REFERENCE (or -), TITLE, METHODS separated by blanks
//   run METHOD SEED
#pragma once
#include "result.h"
#include "../lib/student.h"

struct Method {
    std::string name, label, flags;
    double slower = 1, length = 1;
};
struct TablePlan {
    std::string name, reference, title;
    std::vector<std::string> methods;
};
struct Manifest {
    std::string size;
    double tokens = 0, parameters = 0;
    std::vector<Method> methods;
    std::vector<TablePlan> tables;
    std::vector<std::pair<std::string, int64_t>> runs; // method, seed

    const Method& method(const std::string& name) const;
};
Manifest read_manifest(const std::string& path);

// A number of a run that stands in a table. Those of a layer are of the layer with the highest coverage on
// the train games, of the board for board.*, of strategy for strategy.*.
struct Metric {
    const char *name, *head;
    int digits;
    bool layer;   // of a layer, not of the model
    bool compare; // differences are looked at
};
const std::vector<Metric>& metrics();

// NaN where the run has no such number.
double metric_of(const RunResult& r, const std::string& view, const Metric& metric);

struct Cell {
    std::map<int64_t, double> values; // by seed
    MeanInterval mean;
};
struct Difference {
    MeanInterval mean; // of the differences, paired by seed
    double p_holm = NAN;
    bool marked() const { return p_holm < 0.05; } // the interval excludes 0 after Holm's correction, too
};
struct Row {
    std::string method, label, view, reason; // reason: why the trainer refused it, "" else
    size_t runs = 0, expected = 0;
    std::map<std::string, Cell> cells;             // by metric
    std::map<std::string, Difference> differences; // to the table's reference
};
struct Effect { // of a factor of Table 3
    std::string name, metric;
    MeanInterval mean;
};
struct Table {
    TablePlan plan;
    std::vector<Row> rows;
    std::vector<Effect> effects;
};

std::vector<Table> make_tables(const Manifest& manifest, const std::vector<RunResult>& results);

std::string tables_markdown(const Manifest& manifest, const std::vector<Table>& tables,
                            const std::vector<RunResult>& results);
std::string tables_csv(const std::vector<Table>& tables);
std::string runs_csv(const std::vector<RunResult>& results); // every number of every run and layer
std::string tables_json(const Manifest& manifest, const std::vector<Table>& tables);

// Runs, hours and bytes before anything runs. done: the results that are there, from which rates are taken.
std::string plan_text(const Manifest& manifest, const std::vector<RunResult>& done, double default_rate);

// What the paper reports for a method on its own data, NaN if nothing.
struct Published {
    const char *table, *method;
    double val_loss, coverage, reconstruction;
};
const std::vector<Published>& published();
