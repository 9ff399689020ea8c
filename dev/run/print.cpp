// The table of settings and the line of a step.
#include "print.h"

void SettingsTable::row(const char* name, const char* format, ...) const {
    va_list args;
    va_start(args, format);
    std::string value = vstrf(format, args);
    va_end(args);
    for (bool first = true; first || !value.empty(); first = false) {
        std::string line = cut_to(value, right);
        const size_t blank = line.rfind(' ');
        if (line.size() < value.size() && value[line.size()] != ' ' && blank != std::string::npos &&
            blank > line.size() / 2)
            line.resize(blank);
        value.erase(0, line.size());
        value.erase(0, std::min(value.find_first_not_of(' '), value.size()));
        const size_t rest = right - std::min(right, text_columns(line));
        printf("| %-*s | %s%s |\n", int(left), first ? name : "", line.c_str(),
               std::string(rest, ' ').c_str());
    }
}

void print_settings(const Run& run, const std::vector<Tensor>& table, const std::string& machine,
                    const std::vector<std::pair<const char*, double>>& memory) {
    const Config& c = run.config;
    const ParameterCount n = count_parameters(c, table);
    const double flops = flops_per_token(c, run.T);
    const SettingsTable t(window_width(1));
    t.rule();
    t.row("machine", "%s", machine.c_str());
    if (!run.ranks_note.empty()) t.row("ranks", "%s", run.ranks_note.c_str());
    t.row("model", "%zu layers, %zu heads, %zu channels, %zu positions", c.n_layer, c.n_head, c.n_embd,
          c.block_size);
    if (c.moe())
        t.row("feed-forward", "%zu of %zu experts of %zu %s units, %s router", c.n_expert_active, c.n_expert,
              c.d_expert, c.act.c_str(), c.router.c_str());
    else if (c.monet())
        t.row("feed-forward",
              "%s: %zu of %zu x %zu experts of %zu hidden units, %zu heads, a router for %zu layers",
              c.ffn.c_str(), c.n_top * c.n_top, c.n_key, c.n_key, c.d_expert, c.n_retrieve, c.n_share);
    else if (c.peer())
        t.row("feed-forward", "peer: %zu of %zu x %zu %s units by each of %zu heads, queries of %zu", c.n_top,
              c.n_key, c.n_key, c.act.c_str(), c.n_retrieve, c.d_key);
    else
        t.row("feed-forward", "dense, %zu %s units", c.dense_width(), c.act.c_str());
    t.row("vocabulary", "%zu (%s)", c.vocab_size,
          c.tokenizer.empty() ? "tokenizer unstated" : c.tokenizer.c_str());
    t.row("parameters", "%s (%zu), of which a token uses %s", human_count(double(n.total)).c_str(), n.total,
          human_count(double(n.active)).c_str());
    t.row("compute", "%s FLOP per token, %s per step", human_count(flops).c_str(),
          human_count(flops * run.tokens_per_step()).c_str());
    t.rule();
    t.row("training data", "%s", run.flags.train.c_str());
    t.row("", "%s tokens per epoch: %zu samples in %zu shard%s of %s",
          human_count(double(run.train->tokens_per_epoch)).c_str(), run.train->samples, run.train->n_shards,
          run.train->n_shards == 1 ? "" : "s",
          run.train->row ? strf("rows of %zu", run.train->row).c_str() : "a stream");
    if (run.T + 1 < run.train->row)
        t.row("", "the first %zu of the %zu tokens of each row, %s", run.T + 1, run.train->row,
              run.init_file && run.train->row - 1 > c.block_size
                  ? "as the model has positions"
                  : strf("--seq %zu would take all", run.train->row - 1).c_str());
    if (run.val)
        t.row("validation data", "%s: %s tokens", run.flags.val.c_str(),
              human_count(double(run.val->tokens_per_epoch)).c_str());
    else
        t.row("validation data", "none");
    t.row("batch", "%zu x %zu x %zu = %s tokens (accumulation x rows x positions)", run.accumulate, run.B,
          run.T, human_count(double(run.tokens_per_step())).c_str());
    if (!run.batch_note.empty()) t.row("", "%s", run.batch_note.c_str());
    t.row("steps", "%lld = %.2f epochs, from step %lld", (long long)run.schedule.steps,
          double(run.schedule.steps) * run.tokens_per_step() / run.train->tokens_per_epoch,
          (long long)run.step);
    t.row("learning rate", "%g, warm-up %lld steps, cosine to %g", run.schedule.lr,
          (long long)run.schedule.warmup, run.schedule.lr * run.schedule.final_fraction);
    if (run.schedule.lengthened_at >= 0)
        t.row("", "made longer at step %lld: from there on a cosine from %g to %g at step %lld",
              (long long)run.schedule.lengthened_at, run.schedule.lengthened_lr,
              run.schedule.lr * run.schedule.final_fraction, (long long)run.schedule.steps);
    t.row("optimizer", "AdamW 0.9 0.95, decay %g, clip %g, load balance %g, seed %lld",
          run.flags.weight_decay, run.flags.clip, run.flags.aux_weight, (long long)run.flags.seed);
    t.rule();
    if (!run.ranks_note.empty()) t.row("on each GPU", "%s", "");
    double total = 0;
    for (const auto& [name, bytes] : memory) {
        t.row(name, "%s", human_bytes(bytes).c_str());
        total += bytes;
    }
    t.row("memory in all", "%s", human_bytes(total).c_str());
    t.row("output", "%s", run.flags.out.c_str());
    if (run.flags.keep > 0)
        t.row("", "the newest %lld checkpoints%s", (long long)run.flags.keep,
              run.flags.keep_every > 0
                  ? strf(" and those of every %lld steps", (long long)run.flags.keep_every).c_str()
                  : "");
    t.rule();
    if (!run.resumed_note.empty()) printf("%s\n", run.resumed_note.c_str());
    fflush(stdout);
}

std::string step_line(const StepRecord& r, int64_t steps, double eta_seconds, size_t width) {
    const int digits = int(std::to_string(steps).size());
    return fitted_line({{9, strf("step %*lld/%lld", digits, (long long)r.step, (long long)steps)},
                        {8, strf("loss %.4f", r.loss)},
                        {3, strf("aux %.3f", r.aux)},
                        {1, strf("norm %.3f", r.norm)},
                        {2, strf("lr %.2e", r.lr)},
                        {5, strf("l0 %.0f", r.l0)},
                        {4, strf("%.1f ms", r.ms)},
                        {6, human_count(r.tok_s) + " tok/s"},
                        {7, "eta " + human_duration(eta_seconds)}},
                       " | ", width);
}

bool step_line_stays(const Run& run, int64_t step) {
    return step % run.flags.print_every == 0 || step == 1 || step == run.schedule.steps;
}

void show_line(const std::function<std::string(size_t columns)>& line, bool stays) {
    if (!stays && !escapes_wanted(1)) return;
    const size_t width = window_width(1);
    printf("%s%s%s", line_start(), line(width > 0 ? width - 1 : 0).c_str(),
           stays ? "\n" : ""); // the last wraps
    fflush(stdout);
}

void print_step(const StepRecord& r, const Run& run, double eta_seconds) {
    show_line([&](size_t columns) { return step_line(r, run.schedule.steps, eta_seconds, columns); },
              step_line_stays(run, int64_t(r.step)));
}
