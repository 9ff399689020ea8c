#include "rank_identity.h"
#include "../lib/options.h"

void RankFlags::declare(Options& o) {
    o.section("Several GPUs");
    o.add(0, "gpus", "N", &gpus, 0, 1024,
          "GPUs of this machine to train on, a process for each (0: one process)", Stored::No);
    o.add(0, "node", "I/M", &node, "with --gpus: this is machine I = 0, 1, .. of M", Stored::No);
    o.add(0, "master", "HOST:PORT", &master, "with --node: where the machines meet, on machine 0",
          Stored::No);
    o.add(0, "timeout", "SECONDS", &timeout, 0, 1 << 30,
          "without progress, after which a run on several GPUs is given up (0: never)", Stored::No);
}

namespace {

constexpr int default_port = 29500; // where torch's programs meet, too
constexpr int most_ranks = 65536;

int whole_number(const std::string& text, const std::string& what, int low, int high) {
    char* end;
    errno = 0;
    const long long value = strtoll(text.c_str(), &end, 10);
    if (end == text.c_str() || *end || errno || value < low || value > high)
        fail_usage("%s is %s, expected a whole number from %d to %d", what.c_str(), quoted(text).c_str(), low,
                   high);
    return int(value);
}

// The variables that one launcher sets.
struct VariableSet {
    const char *launcher, *rank, *size, *local, *local_size;
};
const VariableSet torchrun = {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
const VariableSet open_mpi = {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                              "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
const VariableSet mpich = {"MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};
const VariableSet srun = {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr};

struct Variables {
    const Environment& environment;

    bool has(const char* name) const { return name && environment(name); }
    std::string text(const char* name) const {
        const char* value = name ? environment(name) : nullptr;
        return value ? value : "";
    }
    int number(const char* name, int low, int high) const {
        return whole_number(text(name), name, low, high);
    }

    bool is_step() const { return has(srun.rank) && has(srun.size) && number(srun.size, 1, most_ranks) > 1; }

    // Whose variables these are; nullptr for nobody's.
    const VariableSet* found() const {
        if (has(torchrun.rank) || has(torchrun.local)) return &torchrun;
        if (has(open_mpi.rank)) return &open_mpi;
        // srun may speak PMI as well, but MPICH's own launcher says the local rank.
        if (has(mpich.rank) && (has(mpich.local) || !is_step())) return &mpich;
        if (is_step()) return &srun;
        if (has(torchrun.size)) return &torchrun;
        return nullptr;
    }
};

// The numbers of a set that is whole.
void read_numbers(const Variables& v, const VariableSet& set, RankIdentity& id) {
    id.launcher = set.launcher;
    for (const char* name : {set.rank, set.size, set.local})
        if (!v.has(name)) {
            if (name == torchrun.local)
                fail_usage(
                    "RANK and WORLD_SIZE are set, but not LOCAL_RANK: if they count machines, use --gpus 8 "
                    "--node $RANK/$WORLD_SIZE --master $MASTER_ADDR:$MASTER_PORT, or else torchrun");
            fail_usage("%s is not set, which %s sets with %s", name, set.launcher,
                       name == set.rank ? set.size : set.rank);
        }
    id.size = v.number(set.size, 1, most_ranks);
    id.rank = v.number(set.rank, 0, most_ranks);
    if (id.rank >= id.size)
        fail_usage("%s is %d and %s is %d: ranks go from 0 to %d", set.rank, id.rank, set.size, id.size,
                   id.size - 1);
    id.local = v.number(set.local, 0, most_ranks);
    if (v.has(set.local_size)) id.local_size = v.number(set.local_size, 1, most_ranks);
}

// Runs that start on one machine at the same time must not meet at the same port.
int port_of_job(const std::string& job) {
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (const char c : job) hash = (hash ^ uint8_t(c)) * 1099511628211u;
    return 20000 + int(hash % 10000);
}

// Where the ranks of a set meet: MASTER_ADDR and MASTER_PORT, or what follows from the launcher's variables.
void read_meeting_place(const Variables& v, const VariableSet& set, RankIdentity& id) {
    if (&set == &torchrun) {
        id.port = default_port;
        id.run = v.text("TORCHELASTIC_RUN_ID");
    } else if (&set == &open_mpi) {
        id.run = v.has("PMIX_NAMESPACE") ? v.text("PMIX_NAMESPACE") : v.text("OMPI_MCA_ess_base_jobid");
        id.port = id.run.empty() ? default_port : port_of_job(id.run);
    } else if (&set == &mpich) {
        id.port = default_port;
    } else {
        const int job = v.has("SLURM_JOB_ID") ? v.number("SLURM_JOB_ID", 0, INT32_MAX) : 0;
        const int step = v.has("SLURM_STEP_ID") ? v.number("SLURM_STEP_ID", 0, INT32_MAX) : 0;
        id.run = strf("%d.%d", job, step);
        id.port = 20000 + int((int64_t(job) + step) % 10000); // steps of one job may run side by side
    }
    if (v.has("MASTER_PORT")) id.port = v.number("MASTER_PORT", 1, 65535);
    // Of torchrun the agent listens at that port itself.
    if (&set == &torchrun && v.text("TORCHELASTIC_USE_AGENT_STORE") == "True") id.port++;
    if (v.has("MASTER_ADDR"))
        id.host = v.text("MASTER_ADDR");
    else if (&set == &srun)
        id.host = v.has("SLURM_STEP_NODELIST") ? first_host(v.text("SLURM_STEP_NODELIST")) : "127.0.0.1";
    else if (id.local_size != id.size)
        fail_usage("MASTER_ADDR is not set: the host of rank 0%s",
                   &set == &open_mpi ? " (mpirun -x MASTER_ADDR=HOST)" : "");
}

} // namespace

std::string first_host(const std::string& list) {
    std::string host;
    for (size_t i = 0; i < list.size() && list[i] != ',';) {
        if (list[i] != '[') {
            host += list[i++];
            continue;
        }
        const size_t close = list.find(']', i), end = list.find_first_of("-,]", i);
        const std::string first = close == std::string::npos ? "" : list.substr(i + 1, end - i - 1);
        if (first.empty() || first.find_first_not_of("0123456789") != std::string::npos)
            fail_usage("%s is no list of hosts, expected one like node[003-010,12],gpu1",
                       quoted(list).c_str());
        host += first;
        i = close + 1;
    }
    if (host.empty() || host.find(']') != std::string::npos)
        fail_usage("%s is no list of hosts, expected one like node[003-010,12],gpu1", quoted(list).c_str());
    return host;
}

void parse_address(const std::string& text, const std::string& what, std::string* host, int* port) {
    const size_t colon = text.rfind(':');
    *host = text.substr(0, std::min(colon, text.size()));
    if (host->size() > 2 && host->front() == '[' && host->back() == ']')
        *host = host->substr(1, host->size() - 2);
    if (colon == std::string::npos || host->empty())
        fail_usage("%s is %s, expected HOST:PORT", what.c_str(), quoted(text).c_str());
    *port = whole_number(text.substr(colon + 1), "the port of " + what, 1, 65535);
}

RankIdentity rank_identity(const RankFlags& flags, const Environment& environment) {
    const Variables v = {environment};
    RankIdentity id;

    // A rank of our own launcher, which has checked the flags; it may have died since (ranks.cpp looks).
    const std::string launcher = v.text(launcher_variable);
    const int launcher_pid = atoi(launcher.c_str());
    if (launcher_pid > 0) {
        read_numbers(v, torchrun, id);
        id.launcher = strf("--gpus %lld", (long long)flags.gpus);
        if (!flags.node.empty()) id.launcher += " --node " + flags.node;
        id.local_size = int(flags.gpus);
        id.host = v.text("MASTER_ADDR");
        id.port = v.number("MASTER_PORT", 1, 65535);
        id.run = launcher.substr(std::min(launcher.find(' ') + 1, launcher.size()));
        id.launcher_pid = launcher_pid;
        return id;
    }

    const VariableSet* set = v.found();
    if (flags.gpus == 0) {
        if (!flags.node.empty() || !flags.master.empty())
            fail_usage("%s needs --gpus N, the number of GPUs of this machine",
                       flags.node.empty() ? "--master" : "--node");
        if (!set) return id;
        read_numbers(v, *set, id);
        if (id.size > 1) read_meeting_place(v, *set, id);
        return id;
    }

    // --gpus: this process starts the ranks. Beside a launcher that has started several it would start them
    // once for each; one process on each machine, which --node tells apart, is meant.
    if (set && (flags.node.empty() || v.has(torchrun.local))) {
        read_numbers(v, *set, id);
        if (id.size > 1)
            fail_usage(
                "--gpus %lld starts processes, but %s has started %d already (%s is %d): leave out --gpus, "
                "or have one process started on each machine and add --node I/M --master HOST:PORT",
                (long long)flags.gpus, set->launcher, id.size, set->rank, id.rank);
        id = {};
    }
    if (!flags.node.empty()) {
        const size_t slash = flags.node.find('/');
        if (slash == std::string::npos)
            fail_usage("--node is %s, expected I/M, as in 0/4", quoted(flags.node).c_str());
        id.nodes = whole_number(flags.node.substr(slash + 1), "M of --node I/M", 1, most_ranks);
        id.node = whole_number(flags.node.substr(0, slash), "I of --node I/M", 0, id.nodes - 1);
        if (flags.master.empty() && id.nodes > 1)
            fail_usage("--node %s needs --master HOST:PORT, where the machines meet: a port of machine 0",
                       flags.node.c_str());
    }
    if (!flags.master.empty()) {
        parse_address(flags.master, "--master", &id.host, &id.port);
        id.run = "nodes";
    }
    if (flags.gpus == 1 && id.nodes == 1) return id;
    id.starts = int(flags.gpus);
    id.size = id.starts * id.nodes;
    return id;
}
