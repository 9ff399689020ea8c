#include "rank_meeting.h"
#include "../lib/error.h"
#include <algorithm>
#include <sys/wait.h>

namespace {

constexpr double stranger_patience = 5;   // s for a connection to say who it is
constexpr double join_patience = 120;     // s for all ranks to come
constexpr double others_may_speak = 1;    // s from the first sign of trouble to the verdict
constexpr double silence_patience = 30;   // s without a beat
constexpr double waiting_line_every = 10; // s
constexpr size_t hashes_kept = 64;

// "2, 3", "8 to 15, 17"
std::string list_of(const std::vector<int>& ranks) {
    std::string text;
    for (size_t i = 0; i < ranks.size();) {
        size_t last = i;
        while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) last++;
        if (last < i + 2) last = i;
        text += strf("%s%d", text.empty() ? "" : ", ", ranks[i]);
        if (last > i) text += strf(" to %d", ranks[last]);
        i = last + 1;
    }
    return text;
}

// What came over the network becomes part of one line of text.
std::string one_line(std::string text) {
    while (!text.empty() && text.back() == '\n') text.pop_back();
    for (char& c : text)
        if (uint8_t(c) < 32 || c == 127) c = '?';
    return text;
}

bool asks_to_stop(int signal) { return signal == SIGINT || signal == SIGTERM || signal == SIGHUP; }

} // namespace

std::string what_it_does(int phase, int64_t step) {
    if (Phase(phase) == Phase::starting) return "at the start";
    if (Phase(phase) == Phase::ending) return "at the end";
    return strf("in %s of step %lld", phase_names[phase], (long long)step);
}

Meeting::Meeting(int size, const std::string& run, double timeout, double now)
    : run(run), timeout(timeout), begin(now), last_tick(now), next_waiting_line(now + waiting_line_every),
      members(size_t(size)) {}

// ---------------------------------------------------------------------------------------------------------
// What comes in

void Meeting::connected(int connection, double now, size_t most_strangers) {
    if (strangers.size() >= most_strangers) {
        const auto oldest =
            std::min_element(strangers.begin(), strangers.end(),
                             [](const auto& a, const auto& b) { return a.second < b.second; });
        to_drop.insert(oldest->first);
        strangers.erase(oldest);
    }
    strangers[connection] = now;
}

void Meeting::garbage(int connection) { to_drop.insert(connection); }

void Meeting::closed(int connection, double now) {
    strangers.erase(connection);
    for (Member& m : members)
        if (m.connection == connection) {
            m.connection = -1;
            if (m.done || over) return;
            m.lost = true;
            trouble(now, others_may_speak); // why it is gone may yet come: from waitpid, here or over there
        }
}

void Meeting::child_ended(int rank, int wait_status, double now) {
    Member& m = members[size_t(rank)];
    const bool killed = WIFSIGNALED(wait_status);
    if (over) {
        if (!good || !killed) return;
        lines.push_back(
            strf("moex: %s was killed by signal %d as it ended", name(rank).c_str(), WTERMSIG(wait_status)));
        status = 1;
        return;
    }
    if (m.done && !killed && WEXITSTATUS(wait_status) == m.bye_status) return;
    m.wait_status = wait_status;
    trouble(now, killed ? 0 : others_may_speak);
}

void Meeting::stop_requested(int signal) {
    if (over) return;
    if (!welcomed || stop_signal) return end(128 + signal, ""); // nothing to save; or asked twice
    stop_signal = signal;
    for (const Member& m : members)
        if (m.connection >= 0)
            to_send.push_back({m.connection, {FrameKind::stop, 0, {{"signal", std::to_string(signal)}}}});
}

void Meeting::received(int connection, const Frame& frame, double now) {
    if (over && frame.kind == FrameKind::join) return say_end(connection); // too late
    if (over) return;
    if (strangers.count(connection)) return join(connection, frame, now);
    const auto found = std::find_if(members.begin(), members.end(),
                                    [&](const Member& m) { return m.connection == connection; });
    if (found == members.end()) return;
    Member& m = *found;
    const int rank = int(found - members.begin());
    m.heard = now;
    switch (frame.kind) {
    case FrameKind::beat: {
        const long long moves = frame.number("moves", 0, INT64_MAX);
        if (moves != m.moves) m.moved = now;
        m.moves = moves;
        m.step = frame.number("step", 0, INT64_MAX);
        m.phase = int(frame.number("phase", 0, n_phases - 1));
        m.stop = int(frame.number("stop", 0, 127));
        return;
    }
    case FrameKind::hello:
        m.moved = now;
        return hello(rank, frame);
    case FrameKind::hash:
        return hash(rank, frame);
    case FrameKind::saved:
        checkpoint = frame.text("path"), command = frame.text("command");
        return;
    case FrameKind::failed:
        m.failure = one_line(frame.text("text"));
        if (m.failure.empty()) m.failure = "an error without a text";
        if (first_failed < 0) first_failed = rank;
        m.failure_status = int(frame.number("status", 1, 255));
        return trouble(now, others_may_speak);
    case FrameKind::bye:
        m.done = true;
        m.bye_status = int(frame.number("status", 0, 255));
        if (std::all_of(members.begin(), members.end(), [](const Member& x) { return x.done; })) {
            good = true;
            for (const Member& x : members) status = std::max(status, x.bye_status);
            end(status, "");
        }
        return;
    default:
        to_drop.insert(connection); // no rank says this
        closed(connection, now);
    }
}

// The first frame of a connection says who it is, or it is not of this run.
void Meeting::join(int connection, const Frame& frame, double now) {
    strangers.erase(connection);
    const int rank = frame.rank, size = int(members.size());
    const bool launcher = frame.kind == FrameKind::died || frame.kind == FrameKind::stop;
    if ((frame.kind != FrameKind::join && !launcher) || frame.text("run") != run) {
        to_drop.insert(connection);
        return;
    }
    const int their_size = int(frame.number("size", 0, INT32_MAX));
    const std::string host = one_line(frame.text("host"));
    if (their_size != size) {
        end(1, strf("rank %d (%s) was started as one of %d ranks, rank 0 as one of %d: WORLD_SIZE must be "
                    "the same for all",
                    rank, host.c_str(), their_size, size));
        return say_end(connection);
    }
    if (launcher || rank >= size) {
        to_drop.insert(connection);
        if (frame.kind == FrameKind::stop) stop_requested(int(frame.number("signal", 1, 127)));
        if (frame.kind == FrameKind::died && rank < size)
            child_ended(rank, int(frame.number("status", 0, 65535)), now);
        return;
    }
    Member& m = members[size_t(rank)];
    if (m.joined) {
        end(1, strf("rank %d came twice, from %s and from %s: each process needs a rank of its own", rank,
                    m.host.c_str(), host.c_str()));
        return say_end(connection);
    }
    m.connection = connection;
    m.joined = true;
    m.host = host;
    m.machine = frame.text("machine");
    m.local = int(frame.number("local", 0, INT32_MAX));
    m.heard = m.moved = now;
    to_send.push_back({connection, {FrameKind::joined, 0, {}}});
}

// ---------------------------------------------------------------------------------------------------------
// What must agree

void Meeting::hello(int rank, const Frame& frame) {
    Member& m = members[size_t(rank)];
    if (welcomed || m.greeted) return;
    m.greeted = true;
    m.hello = frame.fields;
    if (std::all_of(members.begin(), members.end(), [](const Member& x) { return x.greeted; })) welcome();
}

void Meeting::welcome() {
    const int size = int(members.size());
    const auto field = [&](int rank, const std::string& key) {
        return one_line(Frame{FrameKind::hello, rank, members[size_t(rank)].hello}.text(key.c_str()));
    };
    // Names that begin with = are those of Hello::agree.
    for (int rank = 1; rank < size; rank++) {
        std::vector<std::string> differ;
        for (int of : {0, rank})
            for (const auto& [key, value] : members[size_t(of)].hello)
                if (key[0] == '=' && field(0, key) != field(rank, key) &&
                    std::find(differ.begin(), differ.end(), key) == differ.end())
                    differ.push_back(key);
        if (differ.empty()) continue;
        const auto value = [&](int of) {
            const std::string text = field(of, differ[0]);
            return text.empty() ? "not set" : text;
        };
        std::string line = strf("%s of %s is %s, of %s %s", one_line(differ[0].substr(1)).c_str(),
                                name(rank).c_str(), value(rank).c_str(), name(0).c_str(), value(0).c_str());
        for (size_t i = 1; i < differ.size(); i++)
            line += (i == 1 ? "; so differ " : ", ") + one_line(differ[i].substr(1));
        return end(1, line);
    }

    std::vector<std::string> machine_of; // machines in the order of their lowest ranks
    std::vector<std::vector<int>> ranks_of;
    for (int rank = 0; rank < size; rank++) {
        const std::string& machine = members[size_t(rank)].machine;
        const size_t m =
            size_t(std::find(machine_of.begin(), machine_of.end(), machine) - machine_of.begin());
        if (m == machine_of.size()) {
            machine_of.push_back(machine);
            ranks_of.emplace_back();
        }
        for (const int other : ranks_of[m])
            if (field(other, "gpu") == field(rank, "gpu"))
                return end(1,
                           strf("ranks %d and %d are both on GPU %s of %s: each rank needs a GPU of its own",
                                other, rank, field(rank, "gpu").c_str(), members[size_t(rank)].host.c_str()));
        ranks_of[m].push_back(rank);
    }
    for (const std::vector<int>& ranks : ranks_of)
        if (ranks.size() != ranks_of[0].size())
            return end(1, strf("%zu ranks are on %s and %zu on %s: each machine needs as many",
                               ranks_of[0].size(), members[size_t(ranks_of[0][0])].host.c_str(), ranks.size(),
                               members[size_t(ranks[0])].host.c_str()));
    for (int rank = 1; rank < size; rank++)
        if (field(rank, "kind") != field(0, "kind")) {
            lines.push_back(strf("warning: the GPUs differ: %s has a %s, %s a %s; the slowest sets the pace",
                                 name(0).c_str(), field(0, "kind").c_str(), name(rank).c_str(),
                                 field(rank, "kind").c_str()));
            break;
        }

    welcomed = true;
    const std::string machines = std::to_string(ranks_of.size()),
                      id = Frame{FrameKind::hello, 0, members[0].hello}.text("id");
    for (size_t m = 0; m < ranks_of.size(); m++)
        for (size_t l = 0; l < ranks_of[m].size(); l++) {
            const Fields fields = {
                {"id", id}, {"machines", machines}, {"place", std::to_string(l * ranks_of.size() + m)}};
            const int connection = members[size_t(ranks_of[m][l])].connection;
            if (connection >= 0) to_send.push_back({connection, {FrameKind::welcome, 0, fields}});
        }
}

void Meeting::hash(int rank, const Frame& frame) {
    const std::string what = one_line(frame.text("what"));
    const long long step = frame.number("step", 0, INT64_MAX);
    auto& known = hashes[{what, step}];
    known.push_back({rank, frame.text("value")});
    if (known.size() < members.size()) {
        if (hashes.size() > hashes_kept) hashes.erase(hashes.begin());
        return;
    }
    std::sort(known.begin(), known.end());
    for (const auto& [other, value] : known)
        if (value != known[0].second)
            return end(1, strf("the %s of %s differ from those of %s at step %lld%s", what.c_str(),
                               name(other).c_str(), name(0).c_str(), step, how_to_go_on().c_str()));
    hashes.erase({what, step});
}

// ---------------------------------------------------------------------------------------------------------
// How it ends

// The verdict falls after `patience` seconds, in which a better reason may come.
void Meeting::trouble(double now, double patience) {
    if (over) return;
    const double at = now + patience;
    decide_at = decide_at > 0 ? std::min(decide_at, at) : at;
    const bool all_known = std::all_of(members.begin(), members.end(), [](const Member& m) {
        return m.done || !m.failure.empty() || m.wait_status.has_value();
    });
    if (all_known || patience == 0) decide();
}

void Meeting::decide() {
    // A signal is the reason of everything else: of what the others then say of their connections.
    for (size_t rank = 0; rank < members.size(); rank++) {
        const Member& m = members[rank];
        if (!m.wait_status || !WIFSIGNALED(*m.wait_status)) continue;
        const int signal = WTERMSIG(*m.wait_status);
        if (asks_to_stop(signal)) return end(128 + signal, "");
        return end(1, strf("%s was killed by signal %d %s%s", name(int(rank)).c_str(), signal,
                           what_it_does(m.phase, m.step).c_str(), how_to_go_on().c_str()));
    }
    if (first_failed >= 0) {
        const Member& m = members[size_t(first_failed)];
        const bool all_the_same = std::all_of(members.begin(), members.end(),
                                              [&](const Member& x) { return x.failure == m.failure; });
        return end(m.failure_status, (all_the_same ? "" : name(first_failed) + ": ") + m.failure);
    }
    for (size_t rank = 0; rank < members.size(); rank++) {
        const Member& m = members[rank];
        if (m.wait_status)
            return end(1, strf("%s ended with status %d %s%s", name(int(rank)).c_str(),
                               WEXITSTATUS(*m.wait_status), what_it_does(m.phase, m.step).c_str(),
                               how_to_go_on().c_str()));
        if (m.lost && m.stop) return end(128 + m.stop, ""); // a second signal
        if (m.lost)
            return end(1, strf("%s is gone: its connection ended %s%s", name(int(rank)).c_str(),
                               what_it_does(m.phase, m.step).c_str(), how_to_go_on().c_str()));
    }
}

void Meeting::tick(double now) {
    if (over) return;
    // A server that was itself stopped (Ctrl-Z, a suspended machine) has heard nobody in that time.
    const double late = now - last_tick;
    last_tick = now;
    if (late > 2) {
        for (double* time : {&begin, &next_waiting_line}) *time += late;
        if (decide_at > 0) decide_at += late;
        for (auto& [connection, since] : strangers) since += late;
        for (Member& m : members) {
            m.heard += late;
            m.moved += late;
        }
    }
    for (auto it = strangers.begin(); it != strangers.end();)
        if (now - it->second > stranger_patience) {
            to_drop.insert(it->first);
            it = strangers.erase(it);
        } else
            ++it;
    if (decide_at > 0) {
        if (now >= decide_at) decide();
        return;
    }
    std::vector<int> missing;
    for (size_t rank = 0; rank < members.size(); rank++)
        if (!members[rank].joined) missing.push_back(int(rank));
    if (!missing.empty()) {
        const bool one = missing.size() == 1;
        const double patience = timeout > 0 ? std::min(join_patience, timeout) : join_patience;
        if (now - begin > patience)
            return end(1, strf("%s %s of %zu %s not come in %.0f s", one ? "rank" : "ranks",
                               list_of(missing).c_str(), members.size(), one ? "has" : "have", patience));
        if (now >= next_waiting_line) {
            next_waiting_line = now + waiting_line_every;
            lines.push_back(strf("waiting for %s %s of %zu", one ? "rank" : "ranks", list_of(missing).c_str(),
                                 members.size()));
        }
    }
    if (timeout <= 0) return;
    look_for_silence(now);
    if (!over && missing.empty()) look_for_hang(now);
}

// A rank says something every second, whatever it is doing: one that does not is stopped, or its machine is
// lost.
void Meeting::look_for_silence(double now) {
    const double patience = std::min(silence_patience, timeout);
    std::vector<int> silent;
    for (size_t rank = 0; rank < members.size(); rank++) {
        const Member& m = members[rank];
        if (m.joined && !m.done && now - m.heard > patience) silent.push_back(int(rank));
    }
    if (silent.empty()) return;
    const Member& first = members[size_t(silent[0])];
    std::vector<int> of_machine;
    for (size_t rank = 0; rank < members.size(); rank++)
        if (members[rank].machine == first.machine) of_machine.push_back(int(rank));
    const bool whole_machine = silent == of_machine && silent.size() > 1 && silent.size() < members.size();
    const std::string who =
        whole_machine ? strf("%s (ranks %s)", first.host.c_str(), list_of(silent).c_str()) : name(silent[0]);
    end(1, strf("%s has not been heard of for %.0f s, the last was %s%s", who.c_str(), patience,
                what_it_does(first.phase, first.step).c_str(), how_to_go_on().c_str()));
}

// Nobody does anything new: whoever is furthest behind holds up the others.
void Meeting::look_for_hang(double now) {
    const Member* behind = nullptr;
    double moved = -1;
    for (const Member& m : members) {
        if (m.done) continue;
        moved = std::max(moved, m.moved);
        if (!behind || std::pair(m.step, m.phase) < std::pair(behind->step, behind->phase)) behind = &m;
    }
    if (!behind || now - moved <= timeout) return;
    std::set<int> others;
    for (const Member& m : members)
        if (!m.done && std::pair(m.step, m.phase) != std::pair(behind->step, behind->phase))
            others.insert(m.phase);
    std::string line = strf("has been %s for %.0f s", what_it_does(behind->phase, behind->step).c_str(),
                            now - behind->moved);
    if (others.empty()) {
        line = "every rank " + line;
    } else {
        line = name(int(behind - members.data())) + " " + line + ", the others wait in";
        for (const int phase : others)
            line += strf("%s %s", phase == *others.begin() ? "" : " or", phase_names[phase]);
    }
    end(1, line + how_to_go_on());
}

void Meeting::end(int with_status, const std::string& line) {
    over = true;
    status = with_status;
    if (!line.empty()) lines.push_back("moex: " + line);
    for (const Member& m : members)
        if (m.connection >= 0) say_end(m.connection);
}

void Meeting::say_end(int connection) {
    const Fields fields = {{"status", std::to_string(status)}, {"good", good ? "1" : "0"}};
    to_send.push_back({connection, {FrameKind::end, 0, fields}});
}

std::string Meeting::name(int rank) const {
    const Member& m = members[size_t(rank)];
    return m.joined ? strf("rank %d (%s, GPU %d)", rank, m.host.c_str(), m.local) : strf("rank %d", rank);
}

std::string Meeting::how_to_go_on() const {
    if (!checkpoint.empty())
        return "; the last checkpoint is " + one_line(checkpoint) + "; to go on: " + one_line(command);
    return welcomed ? "; there is no checkpoint yet" : "";
}
