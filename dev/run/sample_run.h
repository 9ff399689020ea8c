// Sampling, apart from the arithmetic: the flags, the prompts, streaming, the board, the trace. The CPU and
// the CUDA sampler share all of it and bring an Engine, which reads one text, or several side by side.
#pragma once
#include "../../data/chess.h"
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "checkpoint.h"
#include "routing.h"
#include <functional>

struct SampleFlags {
    std::string ckpt, prompt, prompts, tokenizer;
    int64_t tokens = 256, top_k = 0, seed = 1;
    double temperature = 1, top_p = 1;
    bool board = false, trace = false;
    InterventionFlags changes;
    ContrastFlags contrast;

    void declare(Options& o);

    // The lines of --prompts, an empty one being the empty prompt; without that flag, --prompt alone.
    std::vector<std::string> texts() const;
};

// What one layer did with the last token. Dense layers have no experts; their units are numbered as expert
// 0's.
struct TraceLayer {
    struct Choice {
        size_t expert;
        double weight;
    };
    struct Unit {
        size_t expert, index;
        double value; // w_j z_j, times its factor: what the unit puts into the output
    };
    std::vector<Choice> experts;
    std::vector<Unit> units; // those that fired, any order
};

// What sample() asks of a model that reads up to `places` texts side by side.
struct Engine {
    size_t places = 1;
    std::function<void(size_t place, const int32_t* tokens, size_t n)> restart; // it has read these n only
    std::function<void(const std::vector<int32_t>& tokens)> step; // each place reads its token; -1: none
    std::function<const float*(size_t place)> logits;             // (V) after the token just read
    std::function<const float*(size_t place)> weak_logits;      // with --contrast those of the other routing
    std::function<std::vector<TraceLayer>(size_t place)> trace; // of the token just read
    std::function<double()> bytes; // that all steps so far had to move; empty where they are not counted
};

// The first token of the context in which token `read` of a text is read: when the context is full, it is
// left for its second half.
size_t context_begin(size_t read, size_t block_size);

// Prints a sample from each prompt on stdout, in the order of the prompts, and tokens per second on stderr at
// the end.
void sample(const SampleFlags& flags, const std::vector<std::string>& prompts, const Config& config,
            const Engine& engine);
