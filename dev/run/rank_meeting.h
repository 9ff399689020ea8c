// The server's rules: who may join, what must agree, when a run is over and which line says why. It knows no
// sockets and no clock: connections are numbers, every call brings the time in seconds. ranks.cpp carries out
// what it leaves in `to_send`, `lines` and `to_drop`; tests and the fuzzer drive it directly.
#pragma once
#include "ranks.h"
#include <map>
#include <optional>
#include <set>

// "in backward of step 7", "at the start"
std::string what_it_does(int phase, int64_t step);

struct Meeting {
    Meeting(int size, const std::string& run, double timeout, double now);

    // What happens.
    void connected(int connection, double now, size_t most_strangers); // beyond that the oldest is dropped
    void received(int connection, const Frame& frame, double now);
    void garbage(int connection);            // what came is no frame
    void closed(int connection, double now); // by the other side
    void child_ended(int rank, int wait_status, double now);
    void stop_requested(int signal); // of the launcher
    void tick(double now);           // at least every 0.2 s

    // What is to be done about it, in this order; whoever does it clears the lists.
    std::vector<std::pair<int, Frame>> to_send;
    std::vector<std::string> lines; // to print: the one line, warnings, who is waited for
    std::set<int> to_drop;          // connections to close

    bool over = false; // all have been told so
    bool good = false; // all ranks said bye
    int status = 0;

  private:
    struct Member {
        int connection = -1;
        bool joined = false, greeted = false, done = false, lost = false;
        std::string host, machine; // machine: distinguishes two of one name
        int local = 0;
        Fields hello;
        int64_t step = 0, moves = 0;
        int phase = 0, stop = 0;
        double heard = 0, moved = 0; // when it last spoke, when it last did something new
        std::string failure;         // what it said of its own error
        int failure_status = 1;
        int bye_status = 0;
        std::optional<int> wait_status;
    };
    std::string run;
    double timeout, begin, last_tick, next_waiting_line;
    double decide_at = 0; // > 0: something is wrong; the verdict falls then, when others may have spoken
    int stop_signal = 0, first_failed = -1;
    bool welcomed = false;
    std::vector<Member> members;
    std::map<int, double> strangers; // connections that have not joined, and since when
    std::map<std::pair<std::string, long long>, std::vector<std::pair<int, std::string>>> hashes;
    std::string checkpoint, command;

    void join(int connection, const Frame& frame, double now);
    void hello(int rank, const Frame& frame);
    void hash(int rank, const Frame& frame);
    void welcome();
    void trouble(double now, double patience);
    void decide();
    void look_for_silence(double now);
    void look_for_hang(double now);
    void end(int with_status, const std::string& line);
    void say_end(int connection);
    std::string name(int rank) const;
    std::string how_to_go_on() const;
};
