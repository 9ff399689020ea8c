// Programs as processes, for tests that use them as a user does: run a command, look at what it prints, how
// it ends, and the files it leaves. Everything happens in the current folder, which tests make for
// themselves.
#pragma once
#include "check.h"
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

// ---------------------------------------------------------------------------------------------------------
// Processes

struct Result {
    int status = -1, signal = 0; // status -1: ended by the signal
    std::string out, err;
};

// In a child: the shell with a command. A program that hangs fails its test; one that is sent SIGHUP meets it
// also where the tests run under nohup.
[[noreturn]] inline void become_shell(const std::string& command) {
    signal(SIGHUP, SIG_DFL);
    alarm(900);
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
}

// A shell command that runs while we look at what it prints. Its end is waited for in finish().
struct Process {
    pid_t pid;
    std::string out;

    explicit Process(const std::string& command) {
        static int count = 0;
        error_path = strf("stderr.%d", count++);
        int ends[2];
        if (pipe(ends) != 0) fail("pipe: %s", strerror(errno));
        for (const int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC); // macOS has no pipe2
        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            const int errors = open(error_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
            dup2(ends[1], 1);
            dup2(errors, 2);
            become_shell(command);
        }
        close(ends[1]);
        from = ends[0];
    }
    Process(const Process&) = delete;

    // Reads until the text has been printed; false when the process ends without it.
    bool wait_for(const std::string& text) {
        while (out.find(text) == std::string::npos)
            if (!read_some()) return false;
        return true;
    }
    Result finish() {
        while (read_some()) {
        }
        close(from);
        int status;
        waitpid(pid, &status, 0);
        Result r;
        if (WIFEXITED(status))
            r.status = WEXITSTATUS(status);
        else
            r.signal = WTERMSIG(status);
        std::stringstream text;
        text << std::ifstream(error_path).rdbuf();
        unlink(error_path.c_str());
        r.out = out, r.err = text.str();
        return r;
    }

  private:
    int from;
    std::string error_path;

    bool read_some() {
        char buffer[4096];
        const ssize_t n = read(from, buffer, sizeof buffer);
        if (n > 0) out.append(buffer, size_t(n));
        return n > 0;
    }
};

inline Result run(const std::string& command) { return Process("exec " + command).finish(); }

inline std::string tail_of(const std::string& text) {
    return text.size() > 400 ? text.substr(text.size() - 400) : text;
}

// Runs a command that has to work.
inline Result works_at(const char* file, int line, const std::string& command) {
    const Result r = run(command);
    check_at(r.status == 0, file, line,
             strf("%s\n  ended with status %d, signal %d: %s", command.c_str(), r.status, r.signal,
                  tail_of(r.err).c_str()));
    return r;
}
#define works(command) works_at(__FILE__, __LINE__, command)

// Runs a command that has to end with the status and one line `moex: ..` that contains all the parts.
inline void refuses_at(const char* file, int line, const std::string& command, int status,
                       const std::vector<std::string>& parts) {
    const Result r = run(command);
    bool good = r.status == status && r.err.rfind("moex: ", 0) == 0 && r.err.find('\n') == r.err.size() - 1;
    std::string wanted;
    for (const std::string& part : parts) {
        good = good && r.err.find(part) != std::string::npos;
        wanted += " \"" + part + "\"";
    }
    check_at(good, file, line,
             strf("%s\n  status %d, signal %d, stderr: %s  expected status %d and one line with%s",
                  command.c_str(), r.status, r.signal, tail_of(r.err).c_str(), status, wanted.c_str()));
}
#define refuses(command, status, ...) refuses_at(__FILE__, __LINE__, command, status, {__VA_ARGS__})

// All that a command prints on a terminal of so many columns, which it has for stdout and stderr.
inline std::string in_terminal(const std::string& command, unsigned short columns) {
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) fail("no terminal can be opened");
    const winsize size = {24, columns, 0, 0};
    const int inside = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    if (inside < 0 || ioctl(inside, TIOCSWINSZ, &size) != 0) fail("the terminal has no size");
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(inside, 1);
        dup2(inside, 2);
        close(terminal);
        become_shell("exec " + command);
    }
    close(inside);
    std::string out;
    char buffer[4096];
    for (ssize_t n; (n = read(terminal, buffer, sizeof buffer)) > 0;) out.append(buffer, size_t(n));
    close(terminal);
    waitpid(pid, nullptr, 0);
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// Files

inline std::string read_file(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}
inline void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}
