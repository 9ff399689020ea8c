// Where the number of threads comes from.
#include "threads.h"

// Cores that one control group may use, infinity for all: cpu.max of version 2, the two files of version 1.
static double group_quota(const std::string& folder) {
    double quota = -1, period = 0;
    std::ifstream(folder + "/cpu.max") >> quota >> period; // "max 100000" is not a number
    if (period <= 0) {
        quota = -1;
        std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    }
    return quota > 0 && period > 0 ? quota / period : INFINITY;
}

double cpu_quota(const std::string& root) {
    double quota = INFINITY;
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) { // hierarchy:controllers:group
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = strf(",%s,", line.substr(first + 1, second - first - 1).c_str());
        const bool version_2 = controllers == ",,";
        if (!version_2 && controllers.find(",cpu,") == std::string::npos) continue;
        const std::vector<std::string> mounts =
            version_2 ? std::vector<std::string>{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}
                      : std::vector<std::string>{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
        for (std::string group = line.substr(second + 1);; group.resize(group.rfind('/'))) {
            for (const std::string& mount : mounts)
                quota = std::min(quota, group_quota(root + mount + group));
            if (group.rfind('/') == std::string::npos) break;
        }
    }
    return quota;
}

ThreadChoice choose_threads(int asked, int environment, int cores, double quota) {
    auto threads = [](int n) { return strf(n == 1 ? "%d thread" : "%d threads", n); };
    if (asked > 0) return {asked, threads(asked) + ", as --threads says"};
    if (environment > 0) return {environment, threads(environment) + ", as OMP_NUM_THREADS says"};
    const int allowed = quota < cores ? std::max(1, int(std::lround(quota))) : cores;
    if (quota < cores) return {allowed, threads(allowed) + strf(": a quota of %.3g cores", quota)};
    return {cores, threads(cores) + strf(cores == 1 ? " of %d core" : " of %d cores", cores)};
}

void use_threads(int asked) {
#ifdef _OPENMP
    static const char* variable = getenv("OMP_NUM_THREADS");
    static const int environment = variable && *variable ? omp_get_max_threads() : 0;
    const ThreadChoice choice = choose_threads(asked, environment, omp_get_num_procs(), cpu_quota());
    omp_set_num_threads(choice.count);
    threads_text = choice.text;
#else
    (void)asked;
    threads_text = "1 thread: compiled without OpenMP";
#endif
}
