// Ranks as processes that a test forks: each runs a function of its rank, with a device of its own. Nothing
// of CUDA may have been used before. What a rank prints, its checks included, comes back with its end.
#pragma once
#include "check.h"
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

struct Ended {
    int status = -1, signal = 0;
    std::string text; // of stdout and stderr
};

// Runs body(rank) in `ranks` processes on as many devices. Theirs are the checks inside. A process that hangs
// is killed after 20 s.
template <class Body> std::vector<Ended> in_processes(int ranks, Body body) {
    struct Child {
        pid_t pid;
        int from;
    };
    std::vector<Child> children;
    setenv("EMU_DEVICES", std::to_string(ranks).c_str(), 1);
    setenv("EMU_THREADS", "1", 1);
    fflush(stdout);
    for (int rank = 0; rank < ranks; rank++) {
        int ends[2];
        if (pipe(ends) != 0) fail("pipe: %s", strerror(errno));
        const pid_t pid = fork();
        if (pid == 0) {
            dup2(ends[1], 1);
            dup2(ends[1], 2);
            close(ends[0]);
            close(ends[1]);
            alarm(20);
            checks_passed = checks_failed = 0;
            if (cudaSetDevice(rank) != cudaSuccess) fail("no device %d", rank);
            body(rank);
            fflush(stdout);
            _exit(checks_failed ? 3 : 0);
        }
        close(ends[1]);
        children.push_back({pid, ends[0]});
    }
    std::vector<Ended> ended;
    for (const Child& child : children) {
        Ended e;
        char buffer[4096];
        for (ssize_t n; (n = read(child.from, buffer, sizeof buffer)) > 0;) e.text.append(buffer, size_t(n));
        close(child.from);
        int status;
        waitpid(child.pid, &status, 0);
        if (WIFEXITED(status)) e.status = WEXITSTATUS(status);
        if (WIFSIGNALED(status)) e.signal = WTERMSIG(status);
        ended.push_back(e);
    }
    return ended;
}

// All ended well.
inline bool all_right(const std::vector<Ended>& ended) {
    bool good = true;
    for (size_t r = 0; r < ended.size(); r++) {
        if (ended[r].status == 0) continue;
        good = false;
        printf("rank %zu: status %d, signal %d: %s\n", r, ended[r].status, ended[r].signal,
               ended[r].text.c_str());
    }
    return good;
}
