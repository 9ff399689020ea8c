// A program that trains nothing, for test_ranks: it joins, takes steps of a few phases that all ranks must
// take together, stops on a signal, and goes wrong where it is told to. What NCCL does for the trainer, a
// small file that all ranks map does here. Leaves pid.R and, at its end, step.R in --dir.
//   --do RANK:WHAT:STEP:PHASE,..   RANK may be *; STEP 0 is before they meet
//   WHAT   error, usage, hang, exit, return, abort, hash, watch, hang_freeing, out_of_memory
#include "../dev/lib/error.h"
#include "../dev/lib/file.h"
#include "../dev/lib/options.h"
#include "../dev/run/ranks.h"
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <sstream>
#include <sys/mman.h>
#include <unistd.h>

static volatile std::sig_atomic_t stop_signal = 0;

struct StubFlags {
    std::string dir = ".", lr = "0.001", data = "12 tokens", misdeeds, bus;
    int64_t steps = 5, work = 10, devices = 64;
};

// Whole or absent: the test reads it while ranks come and go.
static void write_text(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}

// What a rank shows the others: the last step it has finished, and whether it was asked to stop by then.
struct Shown {
    std::atomic<int64_t> step, stop;
};

static void misbehave(const StubFlags& flags, Ranks& ranks, int64_t step, Phase phase) {
    std::stringstream list(flags.misdeeds);
    for (std::string item; std::getline(list, item, ',');) {
        std::stringstream parts(item);
        std::string rank, what, at_step, at_phase;
        std::getline(parts, rank, ':');
        std::getline(parts, what, ':');
        std::getline(parts, at_step, ':');
        std::getline(parts, at_phase, ':');
        if (rank != "*" && atoi(rank.c_str()) != ranks.rank) continue;
        if (atoll(at_step.c_str()) != step) continue;
        if (!at_phase.empty() && at_phase != phase_names[int(phase)]) continue;
        if (what == "error") fail("shard.bin: cannot be opened");
        if (what == "usage") fail_usage("--train is missing");
        if (what == "out_of_memory") throw std::bad_alloc();
        if (what == "exit") _exit(3);
        if (what == "abort") abort();
        if (what == "hash") ranks.same("weights", step, 7);
        if (what == "watch") ranks.watch([] { return "NCCL: a cable was pulled"; });
        while (what == "hang") pause();
        if (what == "hang_freeing") {
            ranks.finish(0);
            while (true) pause();
        }
    }
}

static int body(const StubFlags& flags, Ranks& ranks, const std::string& program) {
    const auto path = [&](const char* name) { return strf("%s/%s.%d", flags.dir.c_str(), name, ranks.rank); };
    const int fd = open((flags.dir + "/exchange").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    const size_t bytes = 64 * sizeof(Shown);
    if (fd < 0 || ftruncate(fd, bytes) != 0) fail("%s: no exchange", flags.dir.c_str());
    Shown* shown = (Shown*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);

    misbehave(flags, ranks, 0, Phase::starting);
    Hello hello;
    const int device = ranks.device(int(flags.devices));
    hello.gpu = flags.bus.empty() ? strf("0000:%02x:00.0", device) : flags.bus;
    hello.kind = "emulated";
    hello.agree = {{"--lr", flags.lr}, {"the data", flags.data}};
    hello.id = std::string("an id \0 of any bytes \xff", 22);
    const std::string id = ranks.meet(hello);
    if (id != hello.id) fail("the id of rank 0 did not come as it was");

    struct sigaction action = {};
    action.sa_handler = [](int signal) { stop_signal = signal; };
    action.sa_flags = int(SA_RESETHAND) | SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    if (ranks.rank == 0)
        printf("%s: %d ranks on %d machines\n", ranks.launcher.c_str(), ranks.size, ranks.machines);
    fflush(stdout);
    write_text(path("place"), std::to_string(ranks.place));

    int64_t step = 1, stop = 0;
    for (; step <= flags.steps && !stop; step++) {
        for (const Phase phase : {Phase::data, Phase::forward, Phase::backward}) {
            ranks.at(step, phase);
            misbehave(flags, ranks, step, phase);
            usleep(useconds_t(flags.work * 1000 / 3));
        }
        ranks.at(step, Phase::exchange);
        misbehave(flags, ranks, step, Phase::exchange);
        shown[ranks.rank].stop = stop_signal;
        shown[ranks.rank].step = step;
        for (int r = 0; r < ranks.size; r++) {
            while (shown[r].step < step) usleep(1000);
            if (shown[r].stop) stop = shown[r].stop; // a later step's would not be reached without this one's
        }
        if (ranks.size > 1) // nobody goes on before all have seen what all have shown
            for (int r = 0; r < ranks.size; r++) {
                shown[32 + ranks.rank].step = step;
                while (shown[32 + r].step < step) usleep(1000);
            }
        printf("step %lld\n", (long long)step);
        fflush(stdout);
        ranks.same("weights", step, 5);
        ranks.saved(strf("model_%lld", (long long)step), program + " --resume");
    }
    write_text(path("step"), std::to_string(step - 1));
    misbehave(flags, ranks, -1, Phase::ending);
    ranks.finish(stop ? 128 + int(stop) : 0);
    return stop ? 128 + int(stop) : 0;
}

int main(int argc, char** argv) {
    return run_main([&] {
        StubFlags flags;
        RankFlags rank_flags;
        Options o("rank_stub", "Takes steps together.");
        o.add(0, "dir", "DIR", &flags.dir, "where to leave files");
        o.add(0, "lr", "RATE", &flags.lr, "must agree");
        o.add(0, "data", "TEXT", &flags.data, "must agree");
        o.add(0, "do", "LIST", &flags.misdeeds, "what to do wrong");
        o.add(0, "bus", "ID", &flags.bus, "of the GPU");
        o.add(0, "steps", "N", &flags.steps, 0, 1 << 30, "steps");
        o.add(0, "work", "MS", &flags.work, 0, 1 << 30, "of a step");
        o.add(0, "devices", "N", &flags.devices, 1, 1024, "visible");
        rank_flags.declare(o);
        if (!o.parse(argc, argv)) return 0;
        const char* rank = getenv("RANK");
        write_text(strf("%s/pid.%s", flags.dir.c_str(), rank ? rank : "launcher"), std::to_string(getpid()));
        return run_ranks(rank_flags, argv, &stop_signal,
                         [&](Ranks& ranks) { return body(flags, ranks, argv[0]); });
    });
}
