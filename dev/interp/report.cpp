// report: one HTML page on a run (report.h). What has not been measured yet is measured with the model run by
// the CPU's reference, as the tools do by themselves.
#include "report.h"
#include "bsp.h"
#include "experts.h"
#include "features.h"
#include "probe.h"
#include "router.h"
#include "sparsity.h"
#include "units_cpu.h"

static Measurements measurements() {
    Measurements m;
    m.bsp = [](const MeasureInputs& in) {
        BspOptions o;
        o.ckpt = in.ckpt;
        o.games = in.games;
        write_json(in.json, bsp_json(measure_bsp(o, cpu_reader)));
    };
    m.sparsity = [](const MeasureInputs& in) {
        SparsityOptions o;
        o.ckpt = in.ckpt;
        o.data = in.data.empty() ? in.games : in.data;
        o.tokenizer = in.tokenizer;
        write_json(in.json, sparsity_json(measure_sparsity(o, cpu_reader)));
    };
    m.router = [](const MeasureInputs& in) {
        RouterOptions o;
        o.ckpt = in.run;
        o.data = in.data.empty() ? in.games : in.data;
        write_json(in.json, router_json(measure_router(o, cpu_reader)));
    };
    m.experts = [](const MeasureInputs& in) {
        ExpertsOptions o;
        o.ckpt = in.ckpt;
        o.data = in.data.empty() ? in.games : in.data;
        o.tokenizer = in.tokenizer;
        write_json(in.json, experts_json(measure_experts(o, cpu_reader)));
    };
    m.probe = [](const MeasureInputs& in) {
        ProbeOptions o;
        o.ckpt = in.ckpt;
        o.data = in.data.empty() ? in.games : in.data;
        o.tokenizer = in.tokenizer;
        write_json(in.json, probe_json(measure_probe(o, cpu_reader)));
    };
    m.features = [](const MeasureInputs& in) {
        FeatureOptions o;
        o.ckpt = in.ckpt;
        o.games = in.games;
        o.data = in.games.empty() ? in.data : "";
        o.tokenizer = in.tokenizer;
        write_json(in.json, features_json(measure_features(o, cpu_reader)));
    };
    m.rounding = [](const MeasureInputs& in) {
        const std::string& rows = in.data.empty() ? in.games : in.data;
        write_json(in.json,
                   rounding_json(in.ckpt, measure_rounding(in.ckpt, rows, in.tokenizer, cpu_reader)));
    };
    return m;
}

int main(int argc, char** argv) {
    return run_main([&] { return report_program(argc, argv, measurements()); });
}
