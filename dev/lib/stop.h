// Stopping: the first SIGINT, SIGTERM or SIGHUP asks the program to end in order, which it does where it
// looks at stop_signal; a second one ends the process at once. When a terminal goes away the system may send
// SIGHUP twice, and a service manager sends it right after SIGTERM: for a second or two that counts as one. A
// program under nohup stays deaf to SIGHUP.
#pragma once
#include <csignal>

inline volatile std::sig_atomic_t stop_signal = 0; // the first signal that asked, 0 for none

enum class Reads {
    go_on, // a signal interrupts no system call
    end    // a read that waits for input returns, so that the program may look
};
void stop_on_signals(Reads reads);

// A reader of our output that goes away (SIGPIPE: `| tee` that died with the terminal) asks, too.
void stop_on_broken_pipe();
