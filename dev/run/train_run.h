// Training, apart from the arithmetic: the loop from step to step with its validations, checkpoints, samples
// and log. The CPU and the CUDA trainer share it and bring a TrainingEngine, which takes one optimizer step
// at a time. Stopped, killed or out of disk, what is there is whole, and a resumed run comes to the bits of
// one that was never interrupted.
#pragma once
#include "print.h"
#include "ranks.h"
#include "run.h"
#include <functional>

enum class Family { weights, gradients, moment_1, moment_2 };

struct StepResult {
    double loss;
    double aux; // summed over the layers
    double norm;
    double l0; // active units per token, mean over the layers; NaN where nobody counted, which a step whose
               // line is not shown may leave out
    int stop;  // the signal that asked to stop before this step was done, of any rank; 0 for none
    bool finite() const { return std::isfinite(loss) && std::isfinite(aux) && std::isfinite(norm); }
};

struct TrainingEngine {
    // Optimizer step t = 1, 2, ... on the next micro-batches of run.train. Where the result is not finite the
    // weights and moments are left as they were.
    std::function<StepResult(uint64_t t, double lr)> step;
    // Mean cross-entropy of a batch, tokens and targets (B,T); without gradients.
    std::function<double(const int32_t* tokens, const int32_t* targets, size_t B)> loss;
    // How many (token, expert) pairs of that batch went to expert j of layer l.
    std::function<size_t(size_t l, size_t j)> load;
    // Forgets the text read so far; reads a token and returns the logits (V) of the next one.
    std::function<void()> restart;
    std::function<const float*(int32_t token)> read;
    // A block of parameters in memory of the host, laid out as the table says, until the next step.
    std::function<const float*(Family)> block;

    // Where several processes train together, all of them run the same loop; rank 0 alone writes and prints.
    // What follows they call together, and block(), which only rank 0 has an answer from; the others' is
    // null.
    Ranks ranks;
    // The sum of each number over all ranks.
    std::function<std::vector<double>(std::vector<double>)> add = [](std::vector<double> x) { return x; };
    // Makes sure that all have the same weights.
    std::function<void()> compare = [] {};
};

// Initial weights of a tensor: a new model's, a checkpoint's, or those of a dense checkpoint cut into
// experts.
void initial_weights(const Run& run, const Tensor& t, float* weights);

// The loop. Returns the exit status of the program. program: its name, and the flags beside --resume and
// --out that go on with the run.
int run_training(Run& run, const Options& options, const std::vector<Tensor>& table, TrainingEngine& engine,
                 const std::vector<std::string>& program);
