// The lines of log.jsonl, and what a run that resumes keeps of them.
#include "log.h"

size_t scan_log(const std::string& path, uint64_t last_step, const std::function<void(const Json&)>& visit) {
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

Log::Log(const std::string& folder) : path(folder + "/log.jsonl") {
    open_locked();
    if (holds_steps()) keep_old();
    cut(0);
}

Log::Log(const std::string& folder, uint64_t last_step) : path(folder + "/log.jsonl") {
    open_locked();
    cut(scan_log(path, last_step, [&](const Json& line) {
        if (line.find("val_loss")) evaluated = int64_t(line.find("step")->magnitude);
    }));
}

void Log::step(const StepRecord& r) {
    append(strf("{\"step\":%llu", (unsigned long long)r.step) + field("loss", r.loss) + field("aux", r.aux) +
           field("norm", r.norm) + field("lr", r.lr) + field("ms", r.ms) + field("tok_s", r.tok_s) +
           (std::isnan(r.l0) ? "" : field("l0", r.l0)) + "}");
}

void Log::evaluation(uint64_t step, double val_loss, const std::vector<std::vector<double>>& load) {
    const std::string begin = strf("{\"step\":%llu", (unsigned long long)step);
    std::string lines = begin + field("val_loss", val_loss) + "}", layers;
    for (const std::vector<double>& layer : load) {
        std::string shares;
        for (const double share : layer) {
            if (!shares.empty()) shares += ',';
            shares += number(share);
        }
        layers += strf(layers.empty() ? "[%s]" : ",[%s]", shares.c_str());
    }
    if (!load.empty()) lines += "\n" + begin + ",\"load\":[" + layers + "]}";
    append(lines);
    evaluated = int64_t(step);
}

void Log::append(std::string line) {
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

void Log::open_locked() {
    file.fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file.fd < 0) fail("%s: cannot be opened: %s", path.c_str(), strerror(errno));
    if (flock(file.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        fail("%s: another run is writing to this folder", path.c_str());
}

bool Log::holds_steps() const {
    bool steps = false;
    try {
        scan_log(path, UINT64_MAX, [&](const Json& line) { steps |= line.find("step")->magnitude > 0; });
    } catch (const Error&) {
        return true; // not what this program wrote: all the more
    }
    return steps;
}

void Log::keep_old() {
    set_aside = path + ".old";
    for (int n = 2; access(set_aside.c_str(), F_OK) == 0; n++) set_aside = strf("%s.old%d", path.c_str(), n);
    if (rename(path.c_str(), set_aside.c_str()) != 0)
        fail("%s: cannot be renamed: %s", path.c_str(), strerror(errno));
    close(std::exchange(file.fd, -1));
    open_locked();
}

void Log::cut(size_t bytes) {
    size = bytes;
    if (ftruncate(file.fd, off_t(bytes)) != 0) fail("%s: cannot be cut: %s", path.c_str(), strerror(errno));
}

std::string Log::number(double x) {
    const float value = float(x);
    char text[32];
    return std::isfinite(value) ? std::string(text, std::to_chars(text, text + sizeof text, value).ptr)
                                : "null";
}
