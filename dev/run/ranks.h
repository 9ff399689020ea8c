// Several processes that train together, one for each GPU: how they find each other, agree, and end. Numbers
// go by NCCL; all else goes over one TCP connection of each rank to a server, which the launcher (--gpus) or
// rank 0 (torchrun, mpirun, srun) runs. An error, a death, a hang or a signal in any of them ends all of
// them, within seconds, with one line that says which and why. A program hands its body to run_ranks(); one
// that runs alone finds size 1 there, and no socket, thread or process has been made.
//   rank_identity.h  which rank am I      rank_frames.h  what goes over the connection
//   rank_meeting.h   the server's rules   ranks.cpp      sockets, processes, threads
#pragma once
#include "rank_frames.h"
#include "rank_identity.h"
#include <csignal>
#include <functional>
#include <memory>
#include <string>

// What a rank is doing, in the order of a step.
enum class Phase {
    starting,
    data,
    forward,
    backward,
    exchange,
    update,
    validation,
    sample,
    checkpoint,
    ending
};
constexpr const char* phase_names[] = {"starting", "data",       "forward", "backward",   "exchange",
                                       "update",   "validation", "sample",  "checkpoint", "ending"};
constexpr int n_phases = sizeof phase_names / sizeof phase_names[0];

// What a rank brings to the meeting.
struct Hello {
    std::string gpu;  // where it is on its machine: the PCI bus id
    std::string kind; // of the GPU: ranks of different kinds get a warning
    Fields agree;   // names, as a user knows them ("--lr", "the data"), and values that all ranks must share
    std::string id; // of rank 0: what the others need to reach it (ncclUniqueId); any bytes
};

struct Ranks {
    int rank = 0, size = 1;
    int local = 0;                        // number of the rank on its machine
    std::string launcher = "one process"; // who was believed about this

    // Known once they have met: the machines, and this rank's place among all. Neighbours in a machine are
    // `machines` places apart: place = number on the machine * machines + number of the machine.
    int machines = 1, place = 0;

    // Which of the visible GPUs is this rank's: number `local`, or the only one. Error where that is not
    // there.
    int device(int visible) const;

    // Waits for all ranks, and returns the id that rank 0 brought. Where they do not agree the run ends.
    std::string meet(const Hello& hello);

    // What is done from here on, of which step (1, 2, ..; 0 before the first): for messages, and a sign of
    // life.
    void at(int64_t step, Phase phase);

    // All ranks have written, or start from, this checkpoint; the command goes on from it.
    void saved(const std::string& path, const std::string& command);

    // All ranks must have the same number here: a hash of their weights, at a step. Returns at once.
    void same(const std::string& what, int64_t step, uint64_t value);

    // Asked every second, beside the main thread: a text that is not empty is this rank's error.
    void watch(std::function<std::string()> check);

    // To be called where an exception is handled: it ends this rank, and the run. Returns where there is one
    // process. What is thrown out of run_ranks()'s body comes here as well, but by then its objects are gone.
    void error();

    // All is done but freeing: whoever is not gone 10 s later is ended, with this status.
    void finish(int status);

    struct Connection;
    std::shared_ptr<Connection> connection; // none where there is one process
};

// Runs the body as one process, or as a rank, or starts the ranks and waits for them; returns the exit
// status. argv: to start the program again. stop: what the program's signal handler sets; a request to stop
// that comes another way is put there, too. stdout of ranks but 0 goes nowhere.
int run_ranks(const RankFlags& flags, char** argv, volatile std::sig_atomic_t* stop,
              const std::function<int(Ranks&)>& body);
