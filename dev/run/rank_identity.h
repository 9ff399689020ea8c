// Who this process is among those of a run. One that was started alone says so by its flags (--gpus 8); one
// of many was told by whatever started them, in variables: torchrun and our own launcher by RANK, Open MPI by
// OMPI_COMM_WORLD_RANK, MPICH and Intel MPI by PMI_RANK, srun by SLURM_PROCID. The first that is there is
// believed; half of a set, or a set beside flags that contradict it, is refused with what to type instead.
// A batch script is not a step: sbatch sets SLURM_PROCID, too, only srun sets SLURM_STEP_NUM_TASKS.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

struct Options;

struct RankFlags {
    int64_t gpus = 0;         // processes to start on this machine, one for each GPU; 0: not given
    std::string node, master; // "I/M": this is machine I of M; "HOST:PORT" where all of them meet
    int64_t timeout = 600;    // seconds without progress after which a run is given up; 0: never

    void declare(Options& options);
};

struct RankIdentity {
    int rank = 0, size = 1;
    int local = 0;                  // number of the rank on its machine: of its GPU
    int local_size = 0;             // ranks on its machine, 0: not said
    std::string host = "127.0.0.1"; // where the ranks meet
    int port = 0;
    std::string launcher = "one process"; // who was believed
    std::string run;                      // distinguishes this run from others that may come to the same port
    int launcher_pid = 0;                 // of --gpus, which is the server, else rank 0 is
    int starts = 0;                       // > 0: this process is the launcher of so many ranks
    int node = 0, nodes = 1;              // of the launcher: its machine and how many there are
};

// The value of a variable, or nullptr: getenv, or what a test puts in its place.
typedef std::function<const char*(const char* name)> Environment;

// Refuses by UsageError what is contradictory, half there, or no number.
RankIdentity rank_identity(const RankFlags& flags, const Environment& environment);

// The first host of a list as Slurm writes it: "node[003-010,12],gpu1" is node003. UsageError for no such
// list.
std::string first_host(const std::string& list);

// "host:29500", "[::1]:29500". UsageError, which begins with `what`, for anything else.
void parse_address(const std::string& text, const std::string& what, std::string* host, int* port);

// What our launcher tells the ranks it starts: in these variables and in MASTER_ADDR and MASTER_PORT.
constexpr const char* launcher_variable = "MOEX_LAUNCHER"; // its pid, then a name of the run
