// Tests of dev/run/ranks: the variables of launchers and lists of hosts, frames, the server's rules under a
// clock of the test's own, and whole runs of test/rank_stub that are killed, stopped, contradicted and
// disturbed. Wherever a run fails: one line on stderr, its status, and no process left.
#include "../dev/run/rank_meeting.h"
#include "rank_process.h"
#include <arpa/inet.h>
#include <chrono>
#include <climits>
#include <dirent.h>
#include <map>
#include <netinet/in.h>
#include <sys/socket.h>

// ---------------------------------------------------------------------------------------------------------
// Who am I

typedef std::map<std::string, std::string> Variables;

static RankIdentity identity(const Variables& variables, RankFlags flags = {}) {
    return rank_identity(flags, [&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
    });
}
static bool is(const RankIdentity& id, int rank, int size, int local, const std::string& host, int port) {
    return id.rank == rank && id.size == size && id.local == local && id.host == host && id.port == port;
}
static RankFlags gpus(int64_t n, const char* node = "", const char* master = "") {
    RankFlags flags;
    flags.gpus = n;
    flags.node = node;
    flags.master = master;
    return flags;
}
static bool alone(const RankIdentity& id) { return id.size == 1 && id.rank == 0 && id.starts == 0; }

static void test_identity() {
    check(alone(identity({})));
    check(alone(identity({}, gpus(1))));

    Variables torch = {{"RANK", "5"},
                       {"WORLD_SIZE", "8"},
                       {"LOCAL_RANK", "1"},
                       {"MASTER_ADDR", "h"},
                       {"MASTER_PORT", "1234"}};
    check(is(identity(torch), 5, 8, 1, "h", 1234));
    torch["TORCHELASTIC_USE_AGENT_STORE"] = "False";
    check(is(identity(torch), 5, 8, 1, "h", 1234));
    torch["TORCHELASTIC_USE_AGENT_STORE"] = "True";
    check(is(identity(torch), 5, 8, 1, "h", 1235));
    check(alone(identity({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}})));

    Variables open_mpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                          {"OMPI_COMM_WORLD_SIZE", "2"},
                          {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                          {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
    check(is(identity(open_mpi), 1, 2, 1, "127.0.0.1", 29500));
    open_mpi["PMIX_NAMESPACE"] = "prterun-n-17@1";
    const int port = identity(open_mpi).port;
    check(port >= 20000 && port < 30000 && port == identity(open_mpi).port);
    open_mpi["PMIX_NAMESPACE"] = "prterun-n-18@1"; // another run on this machine
    check(identity(open_mpi).port != port);
    open_mpi["OMPI_COMM_WORLD_LOCAL_SIZE"] = "1";
    check_error(identity(open_mpi), "MASTER_ADDR", "mpirun -x");
    open_mpi["MASTER_ADDR"] = "n1";
    check(identity(open_mpi).host == "n1");

    Variables mpich = {
        {"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
    check_error(identity(mpich), "MASTER_ADDR");
    mpich["MASTER_ADDR"] = "n1";
    check(is(identity(mpich), 3, 4, 1, "n1", 29500));

    Variables batch = {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}, {"SLURM_JOB_ID", "123456"}};
    check(alone(identity(batch))); // sbatch sets these in the script itself
    Variables step = {{"SLURM_PROCID", "9"},
                      {"SLURM_STEP_NUM_TASKS", "16"},
                      {"SLURM_LOCALID", "1"},
                      {"SLURM_JOB_ID", "123456"},
                      {"SLURM_STEP_NODELIST", "node[003-010,12]"}};
    check(is(identity(step), 9, 16, 1, "node003", 23456));
    step["SLURM_STEP_ID"] = "2";
    check(identity(step).port == 23458);
    step["PMI_RANK"] = "9";
    step["PMI_SIZE"] = "16"; // srun speaks PMI, too
    check(is(identity(step), 9, 16, 1, "node003", 23458));
    step["WORLD_SIZE"] = "16";
    step["MASTER_ADDR"] = "n7";
    step["MASTER_PORT"] = "99"; // a script's own
    check(is(identity(step), 9, 16, 1, "n7", 99));
    step["SLURM_STEP_NUM_TASKS"] = "1";
    step.erase("PMI_RANK");
    step.erase("WORLD_SIZE");
    check(alone(identity(step)));

    // R13: half of a set, no numbers, and what to type instead.
    check_error(identity({{"RANK", "0"}, {"WORLD_SIZE", "2"}}), "LOCAL_RANK",
                "--gpus 8 --node $RANK/$WORLD_SIZE --master $MASTER_ADDR:$MASTER_PORT");
    check_error(identity({{"RANK", "5"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}}), "RANK is 5",
                "WORLD_SIZE is 2");
    check_error(identity({{"RANK", "x"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}}), "RANK is 'x'");
    check_error(identity({{"RANK", ""}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}}), "RANK is ''");
    check_error(identity({{"RANK", "0"}, {"LOCAL_RANK", "0"}}), "WORLD_SIZE is not set");
    check_error(identity({{"WORLD_SIZE", "2"}}), "RANK is not set");
    check_error(identity({{"OMPI_COMM_WORLD_RANK", "0"}}), "OMPI_COMM_WORLD_SIZE is not set");
    check_error(identity(torch, gpus(2)), "leave out --gpus", "torchrun");
    check_error(identity(open_mpi, gpus(2)), "leave out --gpus", "Open MPI");
    check_error(identity({}, gpus(0, "0/2")), "--node needs --gpus");
    check_error(identity({}, gpus(8, "0/2")), "--master HOST:PORT");
    check_error(identity({}, gpus(8, "2/2", "h:1")), "--node I/M", "from 0 to 1");
    check_error(identity({}, gpus(8, "2", "h:1")), "expected I/M");
    check_error(identity({}, gpus(8, "1/2", "h")), "--master", "HOST:PORT");
    check_error(identity({}, gpus(8, "1/2", "h:x")), "the port of --master");

    // The launcher: on one machine, and on each of several (the command that R13 gave works).
    const RankIdentity one = identity({}, gpus(8));
    check(one.starts == 8 && one.size == 8 && one.host == "127.0.0.1");
    const RankIdentity many = identity({{"RANK", "1"}, {"WORLD_SIZE", "4"}}, gpus(8, "1/4", "h:29500"));
    check(many.starts == 8 && many.size == 32 && many.node == 1 && many.nodes == 4 && many.host == "h" &&
          many.port == 29500);
    check(identity({}, gpus(1, "0/2", "[::1]:5")).starts == 1 &&
          identity({}, gpus(1, "0/2", "[::1]:5")).host == "::1");
    // A rank of that launcher.
    Variables rank = {{"RANK", "1"},         {"WORLD_SIZE", "2"},
                      {"LOCAL_RANK", "1"},   {"MASTER_ADDR", "127.0.0.1"},
                      {"MASTER_PORT", "77"}, {launcher_variable, strf("%d name", int(getppid()))}};
    check(is(identity(rank, gpus(2)), 1, 2, 1, "127.0.0.1", 77) &&
          identity(rank, gpus(2)).launcher_pid == getppid() && identity(rank, gpus(2)).run == "name");
}

// R18
static void test_host_lists() {
    check(first_host("node[003-010,12]") == "node003");
    check(first_host("a,b") == "a");
    check(first_host("gpu-1-[7,9]") == "gpu-1-7");
    check(first_host("n1") == "n1");
    check(first_host("rack[2-4]n[5,6]-ib,x") == "rack2n5-ib");
    for (const char* list : {"", ",a", "n[", "n[]", "n[-3]", "n[x]", "n]3"})
        check_error(first_host(list), "list of hosts");
}

// ---------------------------------------------------------------------------------------------------------
// Frames

static void test_frames() {
    const Frame frame = {FrameKind::hello, 3, {{"a", "1"}, {"", "x\ny"}, {"b", ""}}};
    const std::string bytes = encode(frame) + encode({FrameKind::bye, 0, {}});
    FrameReader reader;
    Frame got;
    size_t frames = 0;
    for (const char c : bytes) { // byte by byte
        reader.bytes += c;
        while (reader.next(&got)) {
            frames++;
            if (frames == 1)
                check(got.kind == FrameKind::hello && got.rank == 3 && got.fields == frame.fields);
            if (frames == 2) check(got.kind == FrameKind::bye && got.fields.empty());
        }
    }
    check(frames == 2 && reader.bytes.empty());
    check(frame.number("a", 0, 9) == 1 && frame.number("a", 5, 9) == 5 && frame.number("b", 2, 9) == 2 &&
          frame.number("c", 2, 9) == 2 && frame.text("c").empty());
    const auto refused = [](const std::string& bytes) {
        FrameReader reader = {bytes};
        Frame frame;
        check_error(reader.next(&frame), "frame");
    };
    refused("GET / HTTP/1.1\r\n");
    refused("M X");
    refused(std::string(4, '\0'));
    std::string wrong = encode(frame);
    wrong[4] = 99; // kind
    refused(wrong);
    wrong = encode(frame);
    wrong[14] = wrong[15] = 1; // length
    refused(wrong);
    wrong = encode(frame);
    wrong.back() = 'x'; // the last text does not end
    refused(wrong);
    check_error(encode({FrameKind::hello, 0, {{"a", std::string(largest_payload, 'x')}}}), "65539 bytes");
}

// ---------------------------------------------------------------------------------------------------------
// The rules, under a clock of our own: ranks 0 .. size-1 are connections 100, 101, ..

struct Play {
    Meeting meeting;
    double now = 1000;
    int size;

    explicit Play(int size, double timeout = 600) : meeting(size, "r", timeout, 1000), size(size) {}
    void say(int rank, FrameKind kind, const Fields& fields = {}) {
        meeting.received(100 + rank, {kind, rank, fields}, now);
    }
    void join(int rank, const char* machine = "m0") {
        meeting.connected(100 + rank, now, 256);
        say(rank, FrameKind::join,
            {{"run", "r"},
             {"size", std::to_string(size)},
             {"host", machine},
             {"machine", machine},
             {"local", std::to_string(rank)}});
    }
    void hello(int rank, const std::string& gpu, const Fields& agree = {}) {
        Fields fields = {{"gpu", gpu}, {"kind", "H100"}, {"id", rank == 0 ? "abc" : ""}};
        for (const auto& [name, value] : agree) fields.push_back({"=" + name, value});
        say(rank, FrameKind::hello, fields);
    }
    void all_meet(int per_machine) {
        for (int r = 0; r < size; r++) join(r, strf("m%d", r / per_machine).c_str());
        for (int r = 0; r < size; r++) hello(r, strf("bus%d", r));
    }
    void beat(int rank, int64_t step, Phase phase, int moves) {
        say(rank, FrameKind::beat,
            {{"step", std::to_string(step)},
             {"phase", std::to_string(int(phase))},
             {"moves", std::to_string(moves)},
             {"stop", "0"}});
    }
    // Time passes; those that live beat, and those that move do something new.
    void pass(double seconds, const std::vector<int>& live, const std::vector<int>& moving = {}) {
        for (double t = 0; t < seconds && !meeting.over; t += 0.5) {
            now += 0.5;
            for (const int r : live) {
                const bool moves = std::find(moving.begin(), moving.end(), r) != moving.end();
                beat(r, r == 2 ? 7 : 8, r == 2 ? Phase::backward : Phase::exchange, moves ? int(now * 2) : 1);
            }
            meeting.tick(now);
        }
    }
    Fields told(int rank, FrameKind kind) {
        for (const auto& [connection, frame] : meeting.to_send)
            if (connection == 100 + rank && frame.kind == kind) return frame.fields;
        return {{"nothing", ""}};
    }
    bool ended(int status, const std::vector<std::string>& parts) {
        std::string line;
        for (const std::string& l : meeting.lines)
            if (l.rfind("moex: ", 0) == 0) line += l + "\n";
        bool good = meeting.over && meeting.status == status && (line.empty() == parts.empty());
        good = good && (line.empty() || line.find('\n') == line.size() - 1);
        for (const std::string& part : parts) good = good && line.find(part) != std::string::npos;
        if (!good) printf("over %d, status %d: %s\n", meeting.over, meeting.status, line.c_str());
        return good;
    }
};

static void test_rules() {
    { // Places: neighbours in a machine are as far apart as there are machines.
        Play p(4);
        p.all_meet(2);
        for (int r = 0; r < 4; r++)
            check(p.told(r, FrameKind::welcome) ==
                  Fields({{"id", "abc"}, {"machines", "2"}, {"place", std::to_string(r % 2 * 2 + r / 2)}}));
        for (int r = 0; r < 4; r++) p.say(r, FrameKind::bye, {{"status", "143"}});
        check(p.meeting.over && p.meeting.good && p.ended(143, {}));
        check(p.told(3, FrameKind::end) == Fields({{"status", "143"}, {"good", "1"}}));
    }
    { // A machine is lost: 30 s.
        Play p(4);
        p.all_meet(2);
        p.say(0, FrameKind::saved, {{"path", "model_5"}, {"command", "t --resume"}});
        p.pass(1, {0, 1, 2, 3}, {0, 1, 2, 3});
        p.pass(29.4, {0, 1}, {0, 1});
        check(!p.meeting.over);
        p.pass(3, {0, 1}, {0, 1});
        check(p.ended(1, {"m1 (ranks 2, 3) has not been heard of for 30 s", "the last checkpoint is model_5",
                          "to go on: t --resume"}));
    }
    { // A rank hangs: the one that is behind is named, after the timeout, not before.
        Play p(4);
        p.all_meet(4);
        p.pass(590, {0, 1, 2, 3});
        check(!p.meeting.over);
        p.pass(20, {0, 1, 2, 3});
        check(p.ended(
            1, {"rank 2 (m0, GPU 2) has been in backward of step 7 for 600 s, the others wait in exchange",
                "there is no checkpoint yet"}));
    }
    { // Whoever still does something new keeps the run alive.
        Play p(4);
        p.all_meet(4);
        p.pass(2000, {0, 1, 2, 3}, {3});
        check(!p.meeting.over);
    }
    { // --timeout 0 waits for ever.
        Play p(2, 0);
        p.all_meet(2);
        p.pass(5000, {});
        check(!p.meeting.over);
    }
    { // A server that was stopped for an hour has heard nobody meanwhile.
        Play p(2);
        p.all_meet(2);
        p.pass(5, {0, 1}, {0, 1});
        p.now += 3600;
        p.meeting.tick(p.now);
        p.pass(20, {0, 1}, {0, 1});
        check(!p.meeting.over);
    }
    { // All the same: once, without a rank. The status is theirs.
        Play p(3);
        p.all_meet(3);
        for (int r = 0; r < 3; r++) p.say(r, FrameKind::failed, {{"text", "loss is nan"}, {"status", "2"}});
        check(p.ended(2, {"moex: loss is nan"}));
    }
    { // One of them: the first, after a second in which others may speak, on one line.
        Play p(3);
        p.all_meet(3);
        p.say(1, FrameKind::failed, {{"text", "out of\nmemory"}, {"status", "1"}});
        p.say(0, FrameKind::failed, {{"text", "NCCL: the peer is gone"}, {"status", "1"}});
        check(!p.meeting.over);
        p.pass(2, {});
        check(p.ended(1, {"moex: rank 1 (m0, GPU 1): out of?memory"}));
    }
    { // A death by signal is the reason of what the others then say.
        Play p(3);
        p.all_meet(3);
        p.say(1, FrameKind::failed, {{"text", "NCCL: the peer is gone"}, {"status", "1"}});
        p.meeting.closed(102, p.now);
        p.meeting.child_ended(2, 9, p.now);
        check(p.ended(1, {"rank 2 (m0, GPU 2) was killed by signal 9"}));
    }
    { // .. also when the launcher of another machine says it; and where nobody can say more than: gone.
        Play p(2);
        p.all_meet(1);
        p.meeting.closed(101, p.now);
        p.meeting.connected(7, p.now, 256);
        p.meeting.received(7, {FrameKind::died, 1, {{"run", "r"}, {"size", "2"}, {"status", "11"}}}, p.now);
        check(p.ended(1, {"rank 1 (m1, GPU 1) was killed by signal 11"}));
        Play q(2);
        q.all_meet(1);
        q.meeting.closed(101, q.now);
        q.pass(2, {0}, {0});
        check(q.ended(1, {"rank 1 (m1, GPU 1) is gone"}));
    }
    { // A rank that goes after its bye is no failure; one that goes otherwise is.
        Play p(2);
        p.all_meet(2);
        p.say(1, FrameKind::bye, {{"status", "0"}});
        p.meeting.closed(101, p.now);
        p.meeting.child_ended(1, 0, p.now);
        p.pass(5, {0}, {0});
        check(!p.meeting.over);
        p.meeting.child_ended(0, 0, p.now);
        p.pass(2, {});
        check(p.ended(1, {"rank 0 (m0, GPU 0) ended with status 0"}));
    }
    { // Signals: before the ranks have met, and twice, at once and silently; else they are asked to stop.
        Play p(2);
        p.join(0);
        p.meeting.stop_requested(SIGTERM);
        check(p.ended(143, {}));
        Play q(2);
        q.all_meet(2);
        q.meeting.stop_requested(SIGINT);
        check(!q.meeting.over && q.told(1, FrameKind::stop) == Fields({{"signal", "2"}}));
        q.meeting.stop_requested(SIGINT);
        check(q.ended(130, {}));
    }
    { // Who is waited for is said, and not for ever.
        Play p(9, 25);
        for (const int r : {0, 1, 3}) p.join(r);
        p.pass(11, {0, 1, 3});
        check(p.meeting.lines == std::vector<std::string>{"waiting for ranks 2, 4 to 8 of 9"});
        p.pass(20, {0, 1, 3}, {0, 1, 3});
        check(p.ended(1, {"ranks 2, 4 to 8 of 9 have not come in 25 s"}));
    }
    { // Strangers: another run's ranks are not heard, silent ones are dropped, the oldest first.
        Play p(2);
        p.meeting.connected(5, p.now, 2);
        p.meeting.connected(6, p.now + 1, 2);
        p.meeting.connected(7, p.now + 2, 2);
        check(p.meeting.to_drop == std::set<int>{5});
        p.meeting.received(6, {FrameKind::join, 1, {{"run", "other"}, {"size", "3"}}}, p.now);
        p.meeting.received(7, {FrameKind::hello, 1, {}}, p.now);
        check(p.meeting.to_drop == std::set<int>({5, 6, 7}) && !p.meeting.over);
        p.meeting.connected(8, p.now, 256);
        p.all_meet(2);
        p.pass(6, {0, 1}, {0, 1});
        check(p.meeting.to_drop == std::set<int>({5, 6, 7, 8}) && !p.meeting.over);
    }
    { // Refusals name ranks and values.
        Play p(3);
        for (int r = 0; r < 3; r++) p.join(r);
        p.hello(0, "a", {{"--lr", "1"}, {"the data", "x"}});
        p.hello(1, "b", {{"--lr", "1"}, {"the data", "x"}});
        p.hello(2, "c", {{"--lr", "2"}, {"the data", "y"}});
        check(p.ended(1, {"--lr of rank 2 (m0, GPU 2) is 2, of rank 0 (m0, GPU 0) 1; so differ the data"}));
        Play q(3);
        for (int r = 0; r < 3; r++) q.join(r, r == 2 ? "m1" : "m0");
        for (int r = 0; r < 3; r++) q.hello(r, strf("bus%d", r));
        check(q.ended(1, {"2 ranks are on m0 and 1 on m1"}));
        Play s(2);
        s.all_meet(2);
        s.say(0, FrameKind::hash, {{"what", "weights"}, {"step", "1200"}, {"value", "5"}});
        check(!s.meeting.over);
        s.say(1, FrameKind::hash, {{"what", "weights"}, {"step", "1200"}, {"value", "6"}});
        check(s.ended(1, {"the weights of rank 1 (m0, GPU 1) differ from those of rank 0", "at step 1200"}));
    }
}

// ---------------------------------------------------------------------------------------------------------
// Whole runs

static std::string stub;
static const std::string home = std::filesystem::current_path().string();

static std::string fresh_dir() {
    static int count = 0;
    const std::string dir = strf("run%d.%d", count++, int(getpid()));
    std::filesystem::create_directory(dir);
    return dir;
}
static pid_t wait_for_pid(const std::string& dir, int rank) {
    for (const double end = seconds() + 20; seconds() < end; usleep(2000)) {
        const std::string text = read_file(strf("%s/pid.%d", dir.c_str(), rank));
        if (!text.empty()) return atoi(text.c_str());
    }
    return 0;
}
// A connection to a port of this machine, tried until somebody listens.
static int connect_to(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(uint16_t(port));
    for (const double end = seconds() + 20; seconds() < end; usleep(5000)) {
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (sockaddr*)&address, sizeof address) == 0) return fd;
        close(fd);
    }
    fail("nobody listens at port %d", port);
}

// `--gpus N` of the stub. The process is the launcher.
static std::string launched(const std::string& dir, int ranks, const std::string& flags) {
    return strf("exec %s --dir %s --gpus %d %s", stub.c_str(), dir.c_str(), ranks, flags.c_str());
}
// One rank as torchrun starts it.
static std::string torch_rank(const std::string& dir, int rank, int size, int port,
                              const std::string& flags) {
    return torch_variables(rank, size, port) +
           strf("%s --dir %s %s", stub.c_str(), dir.c_str(), flags.c_str());
}
// The steps at which the ranks ended; -1 where they differ.
static int common_step(const std::string& dir, int ranks) {
    const std::string first = read_file(dir + "/step.0");
    for (int r = 1; r < ranks; r++)
        if (read_file(strf("%s/step.%d", dir.c_str(), r)) != first) return -1;
    return first.empty() ? -1 : atoi(first.c_str());
}

static void test_runs() {
    std::string dir = fresh_dir();
    Result r = Process(launched(dir, 4, "--steps 3")).finish();
    check(r.status == 0 &&
          r.out.find("--gpus 4: 4 ranks on 1 machines\nstep 1\nstep 2\nstep 3\n") != std::string::npos &&
          r.out.find("step 1") == r.out.rfind("step 1")); // of one rank
    check(common_step(dir, 4) == 3 && nothing_said(dir, r));
    for (int rank = 0; rank < 4; rank++)
        check(read_file(strf("%s/place.%d", dir.c_str(), rank)) == std::to_string(rank));

    // One process: no rank, no launcher, and a batch script is no step.
    dir = fresh_dir();
    r = works(
        strf("env SLURM_PROCID=0 SLURM_NTASKS=16 SLURM_JOB_ID=7 %s --dir %s", stub.c_str(), dir.c_str()));
    check(r.out.find("one process: 1 ranks") != std::string::npos && nothing_said(dir, r));
    check(!std::filesystem::exists(dir + "/pid.0"));

    // Two machines of two, each with a launcher; the second comes a second later.
    dir = fresh_dir();
    const int port = free_port();
    std::vector<std::string> nodes;
    for (int node = 0; node < 2; node++)
        nodes.push_back(
            strf("(%s MOEX_HOST=node%d exec %s --dir %s --gpus 2 --node %d/2 --master 127.0.0.1:%d)",
                 node ? "sleep 1;" : "", node, stub.c_str(), dir.c_str(), node, port));
    r = Process(side_by_side(nodes)).finish();
    check(r.out.find("4 ranks on 2 machines") != std::string::npos &&
              r.out.find("statuses 0 0") != std::string::npos && common_step(dir, 4) == 5 &&
              nothing_said(dir, r),
          "%s", r.out.c_str());
    check(read_file(dir + "/place.1") == "2" && read_file(dir + "/place.2") == "1");

    // R12: the variables of four launchers.
    const std::vector<std::pair<const char*, const char*>> launchers = {
        {"torchrun", "RANK=%d WORLD_SIZE=2 LOCAL_RANK=%d"},
        {"Open MPI", "OMPI_COMM_WORLD_RANK=%d OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=%d"},
        {"MPICH", "PMI_RANK=%d PMI_SIZE=2 MPI_LOCALRANKID=%d"},
        {"srun", "SLURM_PROCID=%d SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=%d"}};
    for (const auto& [name, variables] : launchers) {
        dir = fresh_dir();
        const int port = free_port();
        std::vector<std::string> ranks;
        for (int rank = 0; rank < 2; rank++)
            ranks.push_back(
                strf(variables, rank, rank) +
                strf(" MASTER_ADDR=127.0.0.1 MASTER_PORT=%d %s --dir %s", port, stub.c_str(), dir.c_str()));
        r = Process(side_by_side(ranks)).finish();
        check(r.out.find(std::string(name) + ": 2 ranks on 1 machines") != std::string::npos &&
                  r.out.find("statuses 0 0") != std::string::npos && nothing_said(dir, r),
              "%s: %s", name, r.out.c_str());
    }

    // R13
    const std::string program = stub + " --dir " + fresh_dir();
    refuses("env RANK=0 WORLD_SIZE=2 " + program, 2, "LOCAL_RANK", "--gpus 8 --node $RANK/$WORLD_SIZE");
    refuses("env RANK=5 WORLD_SIZE=2 LOCAL_RANK=0 " + program, 2, "RANK is 5");
    refuses("env RANK=x WORLD_SIZE=2 LOCAL_RANK=0 " + program, 2, "RANK is 'x'");
    refuses("env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 " + program + " --gpus 2", 2, "leave out --gpus");
    dir = fresh_dir();
    r = Process(launched(dir, 9, "--devices 8")).finish();
    check(r.status == 1 && one_line(dir, r, {"moex: 9 GPUs were asked for on this machine, 8 are visible"}));
}

static void test_errors() {
    const auto ends = [](const char* flags, int status, const std::vector<std::string>& parts) {
        const std::string dir = fresh_dir();
        const Result r = Process(launched(dir, 3, std::string("--work 20 ") + flags)).finish();
        check(r.status == status && one_line(dir, r, parts), "%s: status %d", flags, r.status);
    };
    ends("--do 1:error:2:forward", 1, {"moex: rank 1 (", ", GPU 1): shard.bin: cannot be opened"});
    ends("--do 1:error:0", 1, {"moex: rank 1 (", ", GPU 1): shard.bin: cannot be opened"});
    ends("--do '*:error:0'", 1, {"moex: shard.bin: cannot be opened"});
    ends("--do '*:usage:0'", 2, {"moex: --train is missing (see --help)"});
    ends("--do '*:error:3:exchange'", 1, {"moex: shard.bin: cannot be opened"});
    ends("--do 2:out_of_memory:2", 1, {"moex: rank 2 (", "): out of memory"});
    ends("--do 2:exit:2", 1,
         {"moex: rank 2 (", "ended with status 3", "the last checkpoint is model_1", "to go on: "});
    ends("--do 0:abort:2", 1, {"moex: rank 0 (", "was killed by signal 6"});
    ends("--do 1:hash:1", 1, {"moex: the weights of rank 1 (", "differ from those of rank 0"});
    ends("--do 1:watch:1 --steps 1000", 1, {"moex: rank 1 (", "NCCL: a cable was pulled"});
}

// R5
static void test_signals() {
    const std::string flags = "--steps 100000 --work 30";
    for (const bool to_launcher : {false, true}) {
        const std::string dir = fresh_dir();
        Process p(launched(dir, 3, flags));
        check(p.wait_for("step 3\n"));
        kill(to_launcher ? p.pid : wait_for_pid(dir, 1), SIGTERM);
        const Result r = p.finish();
        check(r.status == 128 + SIGTERM && common_step(dir, 3) >= 3 && nothing_said(dir, r),
              "status %d, step %d", r.status, common_step(dir, 3));
    }
    for (const bool to_launcher : {false, true}) { // twice: at once, though a step would take a minute
        const std::string dir = fresh_dir();
        Process p(launched(dir, 3, "--steps 100000 --work 60000"));
        check(p.wait_for("3 ranks"));
        usleep(300000);
        const pid_t pid = to_launcher ? p.pid : wait_for_pid(dir, 1);
        const double begin = seconds();
        kill(pid, SIGINT);
        usleep(300000);
        kill(pid, SIGINT);
        const Result r = p.finish();
        check(r.status == 128 + SIGINT && seconds() - begin < 5 && nothing_said(dir, r),
              "status %d after %.1f s", r.status, seconds() - begin);
    }
    // Ctrl-C reaches launcher and ranks alike, and is one request.
    const std::string dir = fresh_dir();
    Process p("setsid --wait sh -c '" + launched(dir, 3, flags) + "'");
    check(p.wait_for("step 3\n"));
    kill(-getpgid(wait_for_pid(dir, 0)), SIGINT);
    const Result r = p.finish();
    check(r.status == 128 + SIGINT && common_step(dir, 3) >= 3 && nothing_said(dir, r), "status %d",
          r.status);
}

// R8: kill -9 at random moments; R9: of the launcher, and of rank 0 where there is none.
static void test_kills() {
    srand(1);
    const int at_once = 5;
    double longest = 0;
    for (int round = 0; round < 6; round++) {
        struct Victim {
            std::string dir;
            int rank;
            std::unique_ptr<Process> process;
            double killed_at;
        };
        std::vector<Victim> victims;
        for (int i = 0; i < at_once; i++) {
            Victim v;
            v.dir = fresh_dir();
            v.rank = std::vector<int>{0, 1, 3}[size_t(rand() % 3)];
            v.process = std::make_unique<Process>(launched(v.dir, 4, "--steps 100000 --work 5"));
            victims.push_back(std::move(v));
        }
        for (Victim& v : victims) {
            const pid_t pid = wait_for_pid(v.dir, v.rank); // from before it joins
            usleep(useconds_t(rand() % (round < 2 ? 20000 : 400000)));
            v.killed_at = seconds();
            check(pid > 0 && kill(pid, SIGKILL) == 0);
        }
        for (Victim& v : victims) {
            const Result r = v.process->finish();
            longest = std::max(longest, seconds() - v.killed_at);
            check(r.status == 1 && one_line(v.dir, r, {strf("rank %d", v.rank), "killed by signal 9"}),
                  "status %d", r.status);
        }
    }
    check(longest < 5, "%.1f s", longest);

    { // of the launcher
        const std::string dir = fresh_dir();
        Process p(launched(dir, 3, "--steps 100000"));
        check(p.wait_for("step 3\n"));
        kill(p.pid, SIGKILL);
        check(all_gone(dir));
        const Result r = p.finish();
        check(r.signal == SIGKILL && one_line(dir, r, {"the launcher is gone", "rank 1", "to go on: "}));
    }
    { // .. before the ranks have met
        const std::string dir = fresh_dir();
        Process p(launched(dir, 3, "--do 2:hang:0"));
        check(wait_for_pid(dir, 2) > 0);
        kill(p.pid, SIGKILL);
        check(all_gone(dir));
        const Result r = p.finish();
        check(r.signal == SIGKILL && (r.err.empty() || r.err.find('\n') == r.err.size() - 1));
    }
    for (const int rank : {0, 1}) {
        const std::string dir = fresh_dir();
        const int port = free_port();
        std::vector<std::string> ranks;
        for (int i = 0; i < 3; i++) ranks.push_back(torch_rank(dir, i, 3, port, "--steps 100000"));
        Process p(side_by_side(ranks));
        check(p.wait_for("step 3\n"));
        kill(wait_for_pid(dir, rank), SIGKILL);
        const Result r = p.finish();
        check(one_line(dir, r, {strf("rank %d", rank), "is gone", "to go on: "}) &&
                  r.out.find(rank == 0 ? "statuses 137 1 1" : "statuses 1 137 1") != std::string::npos,
              "%s", tail_of(r.out).c_str());
    }
    { // on another machine: its launcher knows the signal
        const std::string dir = fresh_dir();
        const int port = free_port();
        std::vector<std::string> nodes;
        for (int node = 0; node < 2; node++)
            nodes.push_back(
                strf("MOEX_HOST=node%d %s --dir %s --gpus 2 --node %d/2 --master 127.0.0.1:%d --steps 10000",
                     node, stub.c_str(), dir.c_str(), node, port));
        Process p(side_by_side(nodes));
        check(p.wait_for("step 3\n"));
        kill(wait_for_pid(dir, 3), SIGKILL);
        const Result r = p.finish();
        check(one_line(dir, r, {"rank 3 (node1, GPU 1) was killed by signal 9"}) &&
                  r.out.find("statuses 1 1") != std::string::npos,
              "%s", tail_of(r.out).c_str());
    }
}

// R10, R14, R15, R17: what takes --timeout, or is refused. They wait side by side.
static void test_refusals() {
    const double begin = seconds();
    std::vector<std::tuple<std::string, std::unique_ptr<Process>, std::vector<std::string>, int>> waiting;
    const auto start = [&](const std::string& dir, const std::string& command, std::vector<std::string> parts,
                           int status) {
        waiting.push_back({dir, std::make_unique<Process>(command), std::move(parts), status});
    };
    std::string dir = fresh_dir();
    const std::string stopped = dir;
    start(dir, launched(dir, 3, "--timeout 5 --steps 100000"), {"rank 2", "step ", "for 5 s"},
          1); // R10: stopped below
    dir = fresh_dir();
    start(dir, launched(dir, 3, "--timeout 3 --do 2:hang:4:backward"),
          {"rank 2", "has been in backward of step 4 for", "the others wait in exchange", "to go on: "}, 1);
    dir = fresh_dir();
    start(dir, launched(dir, 3, "--timeout 3 --do 1:hang:0"), {"every rank has been at the start for"}, 1);
    // R14; -1: ranks side by side, which print their statuses
    dir = fresh_dir();
    int port = free_port();
    start(dir, side_by_side({torch_rank(dir, 0, 2, port, ""), torch_rank(dir, 1, 3, port, "")}),
          {"rank 1", "one of 3", "one of 2", "WORLD_SIZE"}, -1);
    dir = fresh_dir();
    port = free_port();
    start(dir,
          side_by_side(
              {torch_rank(dir, 0, 3, port, "--timeout 5"), torch_rank(dir, 1, 3, port, "--timeout 5")}),
          {"rank 2 of 3 has not come in 5 s"}, -1);
    dir = fresh_dir();
    port = free_port();
    start(dir,
          side_by_side({torch_rank(dir, 0, 3, port, ""), "MOEX_HOST=a " + torch_rank(dir, 1, 3, port, ""),
                        "MOEX_HOST=b " + torch_rank(dir, 1, 3, port, "")}),
          {"rank 1 came twice", "from a", "from b"}, -1);
    dir = fresh_dir();
    port = free_port();
    start(dir,
          side_by_side(
              {torch_rank(dir, 0, 2, port, "--devices 1"), torch_rank(dir, 1, 2, port, "--devices 1")}),
          {"ranks 0 and 1 are both on GPU 0000:00:00.0 of "}, -1);
    // R15: rank 0 cannot listen; torchrun then ends the others.
    const int held = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    check(bind(held, (sockaddr*)&address, size) == 0 && listen(held, 16) == 0);
    getsockname(held, (sockaddr*)&address, &size);
    port = ntohs(address.sin_port);
    dir = fresh_dir();
    start(dir,
          torch_rank(dir, 1, 2, port, "") + " & other=$!; " + torch_rank(dir, 0, 2, port, "") +
              "; s=$?; kill $other; { wait $other; } 2>/dev/null; exit $s",
          {strf("127.0.0.1:%d", port), "MASTER_PORT"}, 1);
    dir = fresh_dir();
    start(dir, torch_rank(dir, 1, 2, port, "--timeout 3"), {strf("127.0.0.1:%d", port), "something answers"},
          1);
    dir = fresh_dir();
    start(dir, torch_rank(dir, 1, 2, free_port(), "--timeout 3"), {"cannot reach rank 0", "refused"}, 1);
    // R17
    for (const auto& [other, name] :
         {std::pair("--lr 0.002", "--lr"), std::pair("--data other", "the data")}) {
        dir = fresh_dir();
        port = free_port();
        start(dir, side_by_side({torch_rank(dir, 0, 2, port, ""), torch_rank(dir, 1, 2, port, other)}),
              {name, "of rank 1 (", "of rank 0 (", strchr(other, ' ') + 1}, -1);
    }
    // The agent of torchrun holds MASTER_PORT itself.
    const std::string agent = fresh_dir();
    std::vector<std::string> ranks;
    for (int rank = 0; rank < 2; rank++)
        ranks.push_back("TORCHELASTIC_USE_AGENT_STORE=True " + torch_rank(agent, rank, 2, port, ""));
    // A process that does not free in time is ended, with its status.
    const std::string freeing = fresh_dir();
    Process slow(launched(freeing, 2, "--steps 1 --do 1:hang_freeing:-1"));
    Process behind_agent(side_by_side(ranks));

    std::get<1>(waiting[0])->wait_for("step 3\n");
    const pid_t pid = wait_for_pid(stopped, 2);
    kill(pid, SIGSTOP);
    const double stopped_at = seconds();
    for (auto& [dir, process, parts, status] : waiting) {
        const Result r = process->finish();
        check((status < 0 || r.status == status) && one_line(dir, r, parts), "%s: status %d",
              parts[0].c_str(), r.status);
        if (status < 0) check(r.out.find("statuses 1 1") != std::string::npos, "%s", r.out.c_str());
        if (dir == stopped) check(seconds() - stopped_at < 10);
    }
    check(seconds() - begin < 20, "%.1f s", seconds() - begin);
    const Result r = slow.finish();
    check(r.status == 0 && nothing_said(freeing, r), "status %d", r.status);
    const Result with_agent = behind_agent.finish();
    check(with_agent.out.find("statuses 0 0") != std::string::npos && nothing_said(agent, with_agent));
    close(held);
}

// R16: what else comes to the port.
static void test_disturbance() {
    const std::string dir = fresh_dir();
    const int port = free_port();
    std::vector<std::string> ranks;
    for (int rank = 0; rank < 2; rank++)
        ranks.push_back(torch_rank(dir, rank, 2, port, "--steps 150 --work 10"));
    Process p("sleep 0.5; " + side_by_side({ranks[0], "sleep 1; " + ranks[1]}));
    std::vector<int> silent;
    const auto tell = [&](const std::string& bytes) {
        const int fd = connect_to(port);
        const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        check(n > 0);
        silent.push_back(fd);
    };
    const auto disturb = [&] {
        tell("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        tell(std::string(1 << 20, '\0'));
        tell(encode({FrameKind::hello, 1, {{"gpu", "0"}}}));
        tell(encode({FrameKind::join, 1, {{"run", "another"}, {"size", "2"}, {"host", "h"}}}));
        tell(encode({FrameKind::join, 1, {{"run", ""}, {"size", "2"}}}).substr(0, 20));
        for (int i = 0; i < 100; i++) silent.push_back(connect_to(port));
    };
    disturb(); // before they have met
    check(p.wait_for("step 20\n"));
    disturb();
    const Result r = p.finish();
    check(r.out.find("statuses 0 0") != std::string::npos && common_step(dir, 2) == 150 &&
              nothing_said(dir, r),
          "%s", tail_of(r.out).c_str());
    for (const int fd : silent) close(fd);
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc != 2) fail_usage("expected the path of rank_stub");
        stub = std::filesystem::absolute(argv[1]);
        const auto folder = std::filesystem::temp_directory_path() / strf("test_ranks.%d", int(getpid()));
        std::filesystem::create_directories(folder);
        std::filesystem::current_path(folder);
        const auto timed = [](const char* name, void (*test)()) {
            const double begin = seconds();
            test();
            printf("%-12s %.1f s\n", name, seconds() - begin);
        };
        timed("identity", test_identity);
        timed("host lists", test_host_lists);
        timed("frames", test_frames);
        timed("rules", test_rules);
        timed("runs", test_runs);
        timed("errors", test_errors);
        timed("signals", test_signals);
        timed("kills", test_kills);
        timed("refusals", test_refusals);
        timed("disturbance", test_disturbance);
        std::filesystem::current_path(home);
        std::filesystem::remove_all(folder);
        return finish();
    });
}
