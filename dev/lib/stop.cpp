// The handlers of stop.h.
#include "stop.h"
#include <ctime>
#include <initializer_list>

static void on_stop_signal(int number) {
    static timespec first;
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const bool asked = stop_signal && stop_signal != SIGPIPE;
    if (asked && number == SIGHUP && now.tv_sec - first.tv_sec < 2) return;
    if (asked && number != SIGPIPE) {
        signal(number, SIG_DFL);
        raise(number); // delivered when this handler returns
        return;
    }
    if (stop_signal && number == SIGPIPE) return;
    first = now;
    stop_signal = number;
}

static void handle(int number, int flags) {
    struct sigaction action = {}, before = {};
    action.sa_handler = on_stop_signal;
    action.sa_flags = flags;
    sigfillset(&action.sa_mask); // one at a time
    sigaction(number, nullptr, &before);
    if (number != SIGHUP || before.sa_handler != SIG_IGN) sigaction(number, &action, nullptr);
}

void stop_on_signals(Reads reads) {
    signal(SIGXFSZ, SIG_IGN); // a file-size limit is then an error of write(), with a message
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) handle(number, reads == Reads::go_on ? SA_RESTART : 0);
}

void stop_on_broken_pipe() { handle(SIGPIPE, SA_RESTART); }
