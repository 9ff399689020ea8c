// The handler of stop.h.
#include "stop.h"

static void on_stop_signal(int number) {
    static timespec first;
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const bool asked = stop_signal && stop_signal != SIGPIPE;
    if (asked && number == SIGHUP && now.tv_sec - first.tv_sec < 2) return;
    if (asked && number != SIGPIPE) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    if (stop_signal && number == SIGPIPE) return;
    first = now;
    stop_signal = number;
}

void stop_on_signals() {
    struct sigaction action = {}, before = {};
    action.sa_handler = on_stop_signal;
    action.sa_flags = SA_RESTART;
    sigfillset(&action.sa_mask); // one at a time
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
        sigaction(number, nullptr, &before);
        if (number == SIGHUP && before.sa_handler == SIG_IGN) continue;
        sigaction(number, &action, nullptr);
    }
    signal(SIGXFSZ, SIG_IGN); // a file-size limit is then an error of write(), with a message
}
