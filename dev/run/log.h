// log.jsonl in the output folder of a run, one JSON object per line: optimizer steps, evaluations and the
// load of the experts. Steps never go down along the file: a run that resumes at step s first cuts off what
// was logged after s, so that the log reads like that of a run that was never interrupted. A line is there
// whole or not at all, also when the disk is full. NaN and infinity are written as null.
#pragma once
#include "../lib/file.h"
#include "../lib/json.h"
#include <functional>
#include <sys/file.h>

// Calls visit(line) for every line of a log up to the first whose step is beyond last_step, and returns how
// many bytes those lines take. What a killed run left behind them, an unfinished or unreadable end, does not
// count; an unreadable line with others that should be kept after it is an error.
size_t scan_log(const std::string& path, uint64_t last_step,
                const std::function<void(const Json&)>& visit = nullptr);

struct StepRecord {
    uint64_t step; // the first is 1
    double loss;   // mean cross-entropy of the step's tokens
    double aux;    // load balance
    double norm;   // of the gradient, before clipping
    double lr;
    double ms;    // wall-clock time of the step
    double tok_s; // tokens per second
    double l0;    // active units per token, mean over layers; NaN: not counted in this step
};

struct Log {
    const std::string path;

    std::string set_aside;  // where the log of an earlier run in the folder was put, "" if there was none
    int64_t evaluated = -1; // the last step with an evaluation

    // The log of a new run: empty. One that holds steps is never erased, but given another name.
    explicit Log(const std::string& folder);
    // The log of a run that resumes at last_step, the last one that is done: lines beyond it are cut off.
    Log(const std::string& folder, uint64_t last_step);
    Log(const Log&) = delete;
    Log& operator=(const Log&) = delete;

    void step(const StepRecord& r);
    // load (L,E): the fraction of a layer's assignments that went to each expert; empty for a dense model.
    // Two lines, which are there together or not at all.
    void evaluation(uint64_t step, double val_loss, const std::vector<std::vector<double>>& load = {});

    // A line (or two), each a JSON object with a step. It is in the file when this returns; a line that
    // does not fit on the disk is taken back and refused.
    void append(std::string line);
    // To be called before a checkpoint is written: the steps that lead up to it are then on the disk, too.
    void sync() {
        if (fsync(file.fd) != 0) fail("%s: cannot be synced: %s", path.c_str(), strerror(errno));
    }

  private:
    struct Descriptor { // closed also when the constructor fails
        int fd = -1;
        ~Descriptor() {
            if (fd >= 0) close(fd);
        }
    } file;
    size_t size = 0; // bytes of whole lines

    // The lock keeps two runs from writing to one folder; where the file system has no locks it does without.
    void open_locked();
    bool holds_steps() const;
    void keep_old();
    void cut(size_t bytes);

    // A float's precision is enough: the shortest decimal that gives the same float.
    static std::string number(double x);
    static std::string field(const char* name, double x) { return strf(",\"%s\":", name) + number(x); }
};
