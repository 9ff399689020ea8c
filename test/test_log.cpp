// log.jsonl: what is written, what a resumed run keeps of it, what is left when the run was killed in the
// middle of a line or the disk is full.
#include "../dev/run/log.h"
#include "check.h"
#include <csignal>
#include <sys/resource.h>
#include <sys/wait.h>

std::string folder, path;

std::string read_all() {
    const MappedFile file(path);
    return std::string((const char*)file.data, file.size);
}
void write_all(const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}
void steps(Log& log, uint64_t first, uint64_t last) {
    for (uint64_t s = first; s <= last; s++) log.step({s, 3.1234, 1.002, 0.812, 3e-4, 81.25, 12600, 812});
}
// What is left of a log's text after resuming at a step.
std::string resumed(const std::string& text, uint64_t step) {
    write_all(text);
    { Log(folder, step); }
    return read_all();
}

void test_writer() {
    JsonWriter out;
    out.open('{').member("a \"b\"", "x\n").member("n", 3).member("big", UINT64_MAX).member("yes", true);
    out.key("list").values(std::vector<double>{0.1234567, NAN, -2, 1e300}).key("none").open('[').close();
    out.key("rows").open('[').values(std::vector<int>{1, 2}).open('{').member("z", "").close().close();
    out.key("exact").value(0.123456789012, 12).close();
    check(out.text == "{\"a \\\"b\\\"\":\"x\\u000a\",\"n\":3,\"big\":18446744073709551615,\"yes\":true,"
                      "\"list\":[0.123457,null,-2,1e+300],\"none\":[],\"rows\":[[1,2],{\"z\":\"\"}],"
                      "\"exact\":0.123456789012}",
          "%s", out.text.c_str());
    check(parse_json(out.text, "own text").find("rows")->items[1].find("z")->text.empty());
}

void test_lines() {
    {
        Log log(folder);
        log.step({1, 3.1234f, 1.002, 0.812, 3e-4, 81.25, 12600, 812.5});
        check(read_all().size() > 0); // already in the file
        check(log.evaluated == -1);
        log.evaluation(1, 2.5, {{0.25, 0.75}, {0.5, 0.5}});
        check(log.evaluated == 1);
        log.evaluation(1, 3);
        log.step({2, NAN, INFINITY, -INFINITY, 1e300, 0, 0, 0});
        log.sync();
        check_error(Log{folder}, path, "another run");
        check_error(Log(folder, 1), path, "another run");
    }
    check(read_all() ==
              "{\"step\":1,\"loss\":3.1234,\"aux\":1.002,\"norm\":0.812,\"lr\":3e-04,\"ms\":81.25,"
              "\"tok_s\":12600,\"l0\":812.5}\n"
              "{\"step\":1,\"val_loss\":2.5}\n"
              "{\"step\":1,\"load\":[[0.25,0.75],[0.5,0.5]]}\n"
              "{\"step\":1,\"val_loss\":3}\n"
              "{\"step\":2,\"loss\":null,\"aux\":null,\"norm\":null,\"lr\":null,\"ms\":0,\"tok_s\":0,"
              "\"l0\":0}\n",
          "%s", read_all().c_str());
    std::vector<double> loads;
    size_t lines = 0;
    const size_t bytes = scan_log(path, UINT64_MAX, [&](const Json& line) {
        lines++;
        if (const Json* load = line.find("load"))
            for (const Json& layer : load->items)
                for (const Json& share : layer.items) loads.push_back(share.number);
    });
    check(lines == 5 && bytes == read_all().size() && loads == std::vector<double>({0.25, 0.75, 0.5, 0.5}));

    // A new run begins with an empty log; one that holds steps is kept beside it, under a name of its own.
    const std::string first = read_all();
    check(Log(folder).set_aside == path + ".old" && read_all().empty());
    check(Log(folder).set_aside.empty() && read_all().empty(), "nothing to keep");
    write_all("{\"step\":0,\"val_loss\":3}\n{\"st");
    check(Log(folder).set_aside.empty() && read_all().empty(), "an evaluation before the first step");
    write_all("what is this?\n{\"step\":1}\n");
    check(Log(folder).set_aside == path + ".old2" && read_all().empty());
    const MappedFile kept(path + ".old");
    check(std::string((const char*)kept.data, kept.size) == first);
    check(unlink((path + ".old").c_str()) == 0 && unlink((path + ".old2").c_str()) == 0);
}

void test_resume() {
    std::string unbroken;
    {
        Log log(folder);
        for (uint64_t s = 1; s <= 10; s++) {
            steps(log, s, s);
            if (s % 5 == 0) log.evaluation(s, 2);
        }
    }
    unbroken = read_all();
    for (uint64_t at = 0; at <= 12; at++) {
        write_all(unbroken);
        Log log(folder, at);
        check(log.evaluated == (at >= 10 ? 10 : at >= 5 ? 5 : -1));
        size_t lines = 0;
        scan_log(path, UINT64_MAX,
                 [&](const Json& line) { lines++, check(line.find("step")->magnitude <= at); });
        check(lines == std::min<size_t>(at, 10) + (at >= 5) + (at >= 10));
        for (uint64_t s = at + 1; s <= 10; s++) {
            steps(log, s, s);
            if (s % 5 == 0) log.evaluation(s, 2);
        }
        check(read_all() == unbroken);
    }

    // Killed at any byte: whole lines stay, the torn one goes.
    for (size_t n = 0; n <= unbroken.size(); n++) {
        const std::string cut = unbroken.substr(0, n);
        const size_t newline = cut.rfind('\n');
        check(resumed(cut, 100) == cut.substr(0, newline == std::string::npos ? 0 : newline + 1));
    }
    const std::string one = "{\"step\":1}\n", two = "{\"step\":2}\n", three = "{\"step\":3}\n";
    check(resumed(one + std::string(5000, '\0'), 9) == one); // blocks that never reached the disk
    check(resumed(one + "\x01\n{\"st\n\n", 9) == one);
    check(resumed(one + "{}\n[]\n{\"step\":-1}\n{\"step\":\"1\"}\n", 9) == one);
    check(resumed(one + two + "garbage\n" + three, 2) == one + two);
    check(resumed("", 9).empty());
    unlink(path.c_str());
    { Log(folder, 9); } // the log was deleted: it begins again
    check(read_all().empty());

    // An unreadable line among those to be kept is not cut off with everything after it.
    write_all(one + "garbage\n" + two);
    check_error(Log(folder, 9), path, "line 2", "broken JSON");
    check_error(Log(folder, 9), path, "line 2", "broken JSON"); // and no lock is left behind
    write_all(one + "{}\n" + two);
    check_error(Log(folder, 9), path, "line 2", "step");
    check(read_all() == one + "{}\n" + two);
}

// A limit on the size of files makes write() fail in the middle of a line.
void test_disk_full() {
    unlink(path.c_str());
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit = {10'000, 10'000};
        setrlimit(RLIMIT_FSIZE, &limit);
        bool refused = false;
        Log log(folder);
        try {
            steps(log, 1, 1000);
        } catch (const Error& e) {
            refused = strstr(e.what(), path.c_str()) && strstr(e.what(), strerror(EFBIG));
        }
        _exit(refused ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0);
    size_t lines = 0;
    check(scan_log(path, UINT64_MAX, [&](const Json& line) {
              check(line.find("step")->magnitude == ++lines);
          }) == read_all().size());
    check(lines > 50 && read_all().size() > 9'800);

    check_error(Log{folder + "/absent"}, folder + "/absent/log.jsonl: ", strerror(ENOENT));
    check_error(Log{path}, "log.jsonl/log.jsonl: ", strerror(ENOTDIR));
    check_error(Log{"/proc"}, "/proc/log.jsonl: cannot be opened");
}

int main() {
    return run_main([] {
        const char* temporary = getenv("TMPDIR");
        folder = std::string(temporary ? temporary : "/tmp") + "/test_log.XXXXXX";
        if (!mkdtemp(folder.data())) fail("%s: cannot be created: %s", folder.c_str(), strerror(errno));
        path = folder + "/log.jsonl";
        test_writer();
        test_lines();
        test_resume();
        test_disk_full();
        check(unlink(path.c_str()) == 0 && rmdir(folder.c_str()) == 0);
        return finish();
    });
}
