// Several processes of one run, for tests: started side by side, as torchrun or mpirun does, and looked at
// when they end. A run is known by its folder, which stands on the command line of each of its processes.
#pragma once
#include "process.h"
#include <arpa/inet.h>
#include <chrono>
#include <netinet/in.h>
#include <sys/socket.h>

inline double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Processes with this folder on their command line.
inline std::vector<pid_t> processes_of(const std::string& dir) {
    std::vector<pid_t> found;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
        const std::string name = entry.path().filename();
        if (name.find_first_not_of("0123456789") != std::string::npos) continue;
        if (read_file(entry.path() / "cmdline").find(dir) != std::string::npos)
            found.push_back(atoi(name.c_str()));
    }
    return found;
}
inline int free_port() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(fd, (sockaddr*)&address, size) != 0) fail("no free port");
    getsockname(fd, (sockaddr*)&address, &size);
    close(fd);
    return ntohs(address.sin_port);
}

// What torchrun sets for a rank, to stand before its command.
inline std::string torch_variables(int rank, int size, int port) {
    return strf("RANK=%d WORLD_SIZE=%d LOCAL_RANK=%d MASTER_ADDR=127.0.0.1 MASTER_PORT=%d ", rank, size, rank,
                port);
}
// Commands side by side, as torchrun or mpirun runs them; the last line printed is their statuses.
inline std::string side_by_side(const std::vector<std::string>& commands) {
    std::string script, waits;
    for (size_t i = 0; i < commands.size(); i++) {
        script += commands[i] + strf(" & p%zu=$!; ", i);
        waits += strf("{ wait $p%zu; } 2>/dev/null; s=\"$s $?\"; ", i);
    }
    return script + waits + "echo statuses$s";
}

// All processes of a run end, within the 5 s that a death may take.
inline bool all_gone(const std::string& dir) {
    for (const double end = seconds() + 5; seconds() < end; usleep(20000))
        if (processes_of(dir).empty()) return true;
    return false;
}

// One line `moex: ..` with all parts, and nothing left running.
inline bool one_line(const std::string& dir, const Result& r, const std::vector<std::string>& parts) {
    bool good = r.err.rfind("moex: ", 0) == 0 && r.err.find('\n') == r.err.size() - 1;
    for (const std::string& part : parts) good = good && r.err.find(part) != std::string::npos;
    const bool gone = all_gone(dir);
    if (!good || !gone)
        printf("%s: status %d, signal %d, %s, stderr: %s\n", dir.c_str(), r.status, r.signal,
               gone ? "all gone" : "processes are left", r.err.c_str());
    return good && gone;
}
inline bool nothing_said(const std::string& dir, const Result& r) {
    if (!r.err.empty()) printf("%s: stderr: %s\n", dir.c_str(), r.err.c_str());
    return r.err.empty() && all_gone(dir);
}
