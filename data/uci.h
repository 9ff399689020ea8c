// A chess engine in a process of its own, spoken to by the UCI protocol through two pipes. Everything an
// engine can do wrong (not start, not answer in time, talk without end, die, play an illegal move) is one
// clear error.
#pragma once
#include "../dev/lib/terminal.h"
#include "chess.h"
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <string>
#include <sys/wait.h>
#include <utility>

namespace chess {

// A pipe that programs started later do not inherit; false, and errno, if there is none. (pipe2 would do
// both in one step, but macOS lacks it.)
inline bool make_pipe(int (&ends)[2]) {
    if (pipe(ends) != 0) return false;
    for (int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
    return true;
}
// In a child about to become another program: descriptor `fd` as its `number`.
inline void hand_over(int fd, int number) {
    if (fd == number)
        fcntl(fd, F_SETFD, 0); // dup2 would leave it as it is, to be closed on exec
    else
        dup2(fd, number);
}

struct Engine {
    // Starts the program (found in PATH if the name has no slash) and waits until it is ready. patience:
    // seconds that the answer to a command may take. interrupted: a signal that has come ends every wait with
    // an Error; nullptr for none.
    Engine(const std::string& path, double patience, const volatile std::sig_atomic_t* interrupted = nullptr)
        : path(path), patience(patience), interrupted(interrupted) {
        signal(SIGPIPE, SIG_IGN);       // writing to a dead engine is an error like any other
        int to[2], from[2], failure[2]; // failure: carries errno if exec fails, closes if it does not
        if (!make_pipe(to)) fail("%s: no pipe to it: %s", path.c_str(), strerror(errno));
        in = to[1];
        fcntl(in, F_SETFL, O_NONBLOCK);
        if (!make_pipe(from)) {
            const int reason = errno;
            close(to[0]);
            close(to[1]);
            fail("%s: no pipe from it: %s", path.c_str(), strerror(reason));
        }
        out = from[0];
        const bool piped = make_pipe(failure);
        pid = piped ? fork() : -1;
        if (pid == 0) {
            setpgid(0, 0); // a Ctrl-C at the terminal is ours to handle, not the engine's
            signal(SIGPIPE, SIG_DFL);
            hand_over(to[0], STDIN_FILENO);
            hand_over(from[1], STDOUT_FILENO);
            execlp(path.c_str(), path.c_str(), (char*)nullptr);
            const int reason = errno;
            [[maybe_unused]] const ssize_t told = ::write(failure[1], &reason, sizeof reason);
            _exit(127);
        }
        int reason = pid < 0 ? errno : 0;
        if (pid > 0) setpgid(pid, pid); // whichever of the two comes first
        close(to[0]);
        close(from[1]);
        if (piped) {
            close(failure[1]);
            while (pid > 0 && ::read(failure[0], &reason, sizeof reason) < 0 && errno == EINTR) {
            }
            close(failure[0]);
        }
        if (reason) {
            stop();
            fail("%s: cannot be started: %s", path.c_str(), strerror(reason));
        }
        try {
            send("uci");
            while (read_line("uciok") != "uciok") {
            }
            ready();
        } catch (...) {
            stop();
            throw;
        }
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine() { stop(); }

    void new_game() {
        send("ucinewgame");
        ready();
    }

    // The engine's move after `moves` from the start position, p being the position reached.
    Move best_move(const Position& p, const std::vector<Move>& moves, int64_t nodes) {
        std::string line = "position startpos";
        if (!moves.empty()) line += " moves";
        for (Move m : moves) line += ' ' + to_uci(m);
        send(line);
        send("go nodes " + std::to_string(nodes));
        do line = read_line("bestmove");
        while (line.compare(0, 9, "bestmove ") != 0);
        const std::string answer = line.substr(9, line.find(' ', 9) - 9);
        for (Move m : legal_moves(p))
            if (to_uci(m) == answer) return m;
        fail("%s: played %s, which is not legal in %s", path.c_str(), quoted(answer).c_str(),
             to_fen(p).c_str());
    }

  private:
    std::string path, received; // received: bytes after the last whole line
    double patience, deadline = 0;
    const volatile std::sig_atomic_t* interrupted;
    int in = -1, out = -1; // our ends of its stdin and stdout
    pid_t pid = -1;

    void ready() {
        send("isready");
        while (read_line("readyok") != "readyok") {
        }
    }

    void send(const std::string& line) {
        deadline = now_seconds() + patience;
        const std::string bytes = line + "\n";
        for (size_t sent = 0; sent < bytes.size();) {
            await(in, POLLOUT, "to take a command");
            const ssize_t n = ::write(in, bytes.data() + sent, bytes.size() - sent);
            if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
            if (n < 0) died(line.c_str());
            sent += size_t(n);
        }
    }

    std::string read_line(const char* awaited) {
        for (;;) {
            const size_t end = received.find('\n');
            if (end != std::string::npos) {
                std::string line = received.substr(0, end);
                received.erase(0, end + 1);
                if (!line.empty() && line.back() == '\r') line.pop_back();
                return line;
            }
            if (received.size() > 1 << 16) fail("%s: sent a line over 64 KiB, expected UCI", path.c_str());
            await(out, POLLIN, strf("to answer with %s", awaited).c_str());
            char bytes[4096];
            const ssize_t n = ::read(out, bytes, sizeof bytes);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) died(awaited);
            received.append(bytes, size_t(n));
        }
    }

    // Until the descriptor is ready. The deadline holds however often it is: what keeps talking is late, too.
    // (A signal may reach another thread than this one, so it is looked for five times a second.)
    void await(int fd, short what, const char* purpose) {
        for (;;) {
            if (interrupted && *interrupted) fail("%s: interrupted", path.c_str());
            const double left = deadline - now_seconds();
            if (left <= 0) fail("%s: took more than %g seconds %s", path.c_str(), patience, purpose);
            pollfd wait = {fd, what, 0};
            if (poll(&wait, 1, int(std::ceil(std::min(left, 0.2) * 1000))) > 0) return;
        }
    }

    [[noreturn]] void died(const char* during) {
        int status = 0;
        pid_t ended = 0;
        // Its pipes close a little before it can be waited for.
        for (int i = 0; i < 100 && pid > 0 && ended == 0; i++) {
            ended = waitpid(pid, &status, WNOHANG);
            if (ended == 0) usleep(10000);
        }
        if (ended > 0) pid = -1;
        const std::string how = ended <= 0            ? "closed its pipes"
                                : WIFSIGNALED(status) ? strf("died of signal %d", WTERMSIG(status))
                                                      : strf("ended with status %d", WEXITSTATUS(status));
        fail("%s: %s at %s, expected a UCI engine", path.c_str(), how.c_str(), quoted(during).c_str());
    }

    // Asks it to quit, gives it a second, then kills it.
    void stop() {
        if (in >= 0) {
            [[maybe_unused]] const ssize_t asked = ::write(in, "quit\n", 5);
            close(std::exchange(in, -1));
        }
        if (out >= 0) close(std::exchange(out, -1));
        if (pid <= 0) return;
        for (int i = 0; i < 100; i++) {
            if (waitpid(pid, nullptr, WNOHANG) != 0) return void(pid = -1);
            usleep(10000);
        }
        kill(-pid, SIGKILL);
        waitpid(std::exchange(pid, -1), nullptr, 0);
    }
};

} // namespace chess
