// Ctrl-C and its like (SIGINT, SIGTERM, SIGHUP): the first one asks the program to end in order, which it
// does where it looks at `interrupted`; a second one of any of them ends it at once.
#pragma once
#include <csignal>
#include <initializer_list>

inline volatile std::sig_atomic_t interrupted = 0; // the signal's number

inline void catch_interrupts() {
    struct sigaction action = {};
    action.sa_handler = [](int number) {
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
