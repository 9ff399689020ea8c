// What ranks and server say to each other over TCP: frames of a header and named texts. Whoever sends
// anything else (another program may come to the port) is found out at the first byte that cannot be.
//   header   "MOEX", kind, rank, bytes of payload: four words of 32 bits, little-endian
//   payload  name, 0, value, 0, and so on; at most 64 KiB
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

typedef std::vector<std::pair<std::string, std::string>> Fields;

enum class FrameKind : uint32_t {
    // a rank says
    join = 1, // run, size, host, machine, local: first of all
    beat,     // step, phase, moves, stop: every second
    hello,    // what must agree among the ranks, and the GPU
    hash,     // what, step, value: must agree, too
    saved,    // path, command: a checkpoint, and how to go on from it
    failed,   // text, status: an error, which ends the run
    bye,      // status: done
    // the launcher of another machine says, and no more
    died, // run, size, status (as waitpid gives it): of its rank
    stop, // run, size, signal: stop after this step; the server says it to the ranks
    // the server says
    joined,  // the answer to join
    welcome, // id, machines, place: all have said hello, and agree
    end,     // status, good: the run is over
};
constexpr uint32_t first_frame_kind = 1, last_frame_kind = uint32_t(FrameKind::end);
constexpr size_t largest_payload = 64 << 10;

struct Frame {
    FrameKind kind;
    int rank = 0;
    Fields fields = {};

    std::string text(const char* name) const; // "" where it is not there
    long long number(const char* name, long long low,
                     long long high) const; // nearest in range; low for no number
};

// Error for one that is too large.
std::string encode(const Frame& frame);

// Bytes as they come in, and the frames in them.
struct FrameReader {
    std::string bytes;

    // Takes the next frame out; false when it is not whole yet. Error when it can be none.
    bool next(Frame* frame);
};
