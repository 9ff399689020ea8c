// Ctrl-C and its like (SIGINT, SIGTERM, SIGHUP): the first one asks the program to end in order, which it
// does where it looks at `interrupted`; a second SIGINT or SIGTERM ends it at once. (A second SIGHUP does
// not: a terminal that goes away may send two of them, and nobody in a hurry sends one.)
#pragma once
#include <csignal>
#include <initializer_list>

inline volatile std::sig_atomic_t interrupted = 0; // the signal's number

inline void catch_interrupts() {
    struct sigaction action = {};
    action.sa_handler = [](int number) {
        if (interrupted && number == SIGHUP) return;
        if (interrupted) {
            signal(number, SIG_DFL);
            raise(number); // delivered when this handler returns
        }
        interrupted = number;
    };
    action.sa_flags = 0; // no SA_RESTART: a read that waits for input returns
    for (int number : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction before = {};
        sigaction(number, nullptr, &before);
        if (before.sa_handler != SIG_IGN) sigaction(number, &action, nullptr); // nohup stays as it is
    }
}
