// libFuzzer target: what may come to the port where ranks meet. The bytes are cut into pieces that arrive at
// several connections in turn, between ticks of the clock; the frames in them drive the server's rules.
// Whatever comes: nobody crashes, a frame is read as it was written, every line is one line, and what is over
// stays over.
#include "../dev/lib/error.h"
#include "../dev/run/rank_meeting.h"

struct Input {
    const uint8_t *data, *end;
    int byte() { return data < end ? *data++ : 0; }
    std::string take(size_t n) {
        n = std::min(n, size_t(end - data));
        data += n;
        return std::string((const char*)data - n, n);
    }
};

// A frame that is right as such, so that the fuzzer reaches what lies behind the header without seeds.
static std::string some_frame(Input& input) {
    static const char* const names[] = {"run",  "size",   "host",  "machine", "local",   "step",  "phase",
                                        "what", "value",  "moves", "stop",    "status",  "text",  "gpu",
                                        "kind", "signal", "id",    "path",    "command", "=--lr", "="};
    Frame frame = {
        FrameKind(first_frame_kind + uint32_t(input.byte()) % last_frame_kind), input.byte() % 4, {}};
    for (int n = input.byte() % 8; n > 0; n--) {
        const std::string name = names[size_t(input.byte()) % (sizeof names / sizeof names[0])];
        frame.fields.push_back({name, input.take(size_t(input.byte() % 8))});
    }
    if (frame.kind == FrameKind::join)
        frame.fields.insert(frame.fields.begin(), {{"run", ""}, {"size", "3"}});
    return encode(frame);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input = {data, data + size};
    double now = 1;
    Meeting meeting(3, "", double(input.byte() % 3 * 20), now);
    FrameReader readers[8];
    bool open[8] = {};
    while (input.data < input.end) {
        const int what = input.byte(), c = what % 8;
        if (!open[c]) {
            readers[c] = {};
            meeting.connected(c, now, 4);
            open[c] = true;
        }
        if (what < 64) {
            readers[c].bytes += input.take(size_t(input.byte()));
        } else if (what < 200) {
            readers[c].bytes += some_frame(input);
        } else if (what < 220) {
            meeting.closed(c, now);
            open[c] = false;
            continue;
        } else if (what < 225) {
            meeting.child_ended(c % 3, input.byte() << 8 | input.byte(), now);
        } else if (what < 227) {
            meeting.stop_requested(1 + c);
        } else {
            now += (what - 226) / 4.0;
            meeting.tick(now);
        }
        const bool was_over = meeting.over;
        const int status = meeting.status;
        try {
            for (Frame frame, again; readers[c].next(&frame);) {
                FrameReader copy = {encode(frame)};
                if (!copy.next(&again) || again.kind != frame.kind || again.rank != frame.rank ||
                    again.fields != frame.fields || !copy.bytes.empty())
                    abort();
                meeting.received(c, frame, now);
            }
        } catch (const Error&) {
            meeting.garbage(c);
            meeting.closed(c, now);
        }
        if (was_over && (!meeting.over || meeting.status != status)) abort();
        for (const std::string& line : meeting.lines)
            if (line.find('\n') != std::string::npos) abort();
        for (const auto& [connection, frame] : meeting.to_send)
            if (connection < 0 || connection > 7) abort();
        for (const int drop : meeting.to_drop) open[drop] = false;
        meeting.lines.clear();
        meeting.to_send.clear();
        meeting.to_drop.clear();
    }
    return 0;
}
