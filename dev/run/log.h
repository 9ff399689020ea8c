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
inline size_t scan_log(const std::string& path, uint64_t last_step,
                       const std::function<void(const Json&)>& visit = nullptr) {
    const MappedFile file(path);
    const char* text = (const char*)file.data;
    std::string broken; // the message of the first unreadable line
    size_t end = 0;
    for (size_t begin = 0, number = 1; begin < file.size; number++) {
        const char* newline = (const char*)memchr(text + begin, '\n', file.size - begin);
        if (!newline) break;
        const size_t next = size_t(newline - text) + 1;
        Json line;
        try {
            const std::string where = strf("%s: line %zu", path.c_str(), number);
            line = parse_json(text + begin, next - 1 - begin, where);
            const Json* step = line.find("step");
            if (!step || !step->is_unsigned()) fail("%s: expected an object with a step", where.c_str());
            if (step->magnitude > last_step) break;
        } catch (const Error& e) {
            if (broken.empty()) broken = e.what();
            line.type = Json::Null;
        }
        begin = next;
        if (line.type != Json::Object) continue;
        if (!broken.empty()) fail("%s", broken.c_str());
        if (visit) visit(line);
        end = next;
    }
    return end;
}

struct StepRecord {
    uint64_t step; // the first is 1
    double loss;   // mean cross-entropy of the step's tokens
    double aux;    // load balance
    double norm;   // of the gradient, before clipping
    double lr;
    double ms;    // wall-clock time of the step
    double tok_s; // tokens per second
    double l0;    // active units per token, mean over layers
};

struct Log {
    const std::string path;

    // The log of a new run: empty.
    explicit Log(const std::string& folder) : path(folder + "/log.jsonl") {
        open_locked();
        cut(0);
    }
    // The log of a run that resumes at last_step, the last one that is done: lines beyond it are cut off.
    Log(const std::string& folder, uint64_t last_step) : path(folder + "/log.jsonl") {
        open_locked();
        cut(scan_log(path, last_step));
    }
    Log(const Log&) = delete;
    Log& operator=(const Log&) = delete;

    void step(const StepRecord& r) {
        append(strf("{\"step\":%llu", (unsigned long long)r.step) + field("loss", r.loss) +
               field("aux", r.aux) + field("norm", r.norm) + field("lr", r.lr) + field("ms", r.ms) +
               field("tok_s", r.tok_s) + field("l0", r.l0) + "}");
    }
    void evaluation(uint64_t step, double val_loss) {
        append(strf("{\"step\":%llu", (unsigned long long)step) + field("val_loss", val_loss) + "}");
    }
    // load (L,E): the fraction of a layer's assignments that went to each expert.
    void expert_load(uint64_t step, const std::vector<std::vector<double>>& load) {
        std::string line = strf("{\"step\":%llu,\"load\":[", (unsigned long long)step);
        for (size_t l = 0; l < load.size(); l++) {
            line += l == 0 ? "[" : ",[";
            for (size_t e = 0; e < load[l].size(); e++) {
                if (e > 0) line += ",";
                line += number(load[l][e]);
            }
            line += "]";
        }
        append(line + "]}");
    }

    // One line, which has to be a JSON object with a step. It is in the file when this returns; a line that
    // does not fit on the disk is taken back and refused.
    void append(std::string line) {
        line += "\n";
        for (size_t done = 0; done < line.size();) {
            const ssize_t n = ::write(file.fd, line.data() + done, line.size() - done);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) {
                const int reason = n < 0 ? errno : ENOSPC;
                cut(size);
                fail("%s: cannot be written: %s", path.c_str(), strerror(reason));
            }
            done += size_t(n);
        }
        size += line.size();
    }
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
    void open_locked() {
        file.fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (file.fd < 0) fail("%s: cannot be opened: %s", path.c_str(), strerror(errno));
        if (flock(file.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
            fail("%s: another run is writing to this folder", path.c_str());
    }
    void cut(size_t bytes) {
        size = bytes;
        if (ftruncate(file.fd, off_t(bytes)) != 0)
            fail("%s: cannot be cut: %s", path.c_str(), strerror(errno));
    }

    // A float's precision is enough: the shortest decimal that gives the same float.
    static std::string number(double x) {
        const float value = float(x);
        char text[32];
        return std::isfinite(value) ? std::string(text, std::to_chars(text, text + sizeof text, value).ptr)
                                    : "null";
    }
    static std::string field(const char* name, double x) { return strf(",\"%s\":", name) + number(x); }
};
