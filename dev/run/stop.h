// Stopping: the first SIGINT, SIGTERM or SIGHUP asks the loop to save and end after its step; a second one
// ends the process at once. When a terminal goes away the system may send SIGHUP twice, and a service manager
// sends it right after SIGTERM: within a second that counts as one. A run under nohup stays deaf to SIGHUP.
// A reader of our output that goes away (SIGPIPE: `| tee` that died with the terminal) asks, too.
#pragma once
#include <csignal>
#include <ctime>
#include <initializer_list>

inline volatile std::sig_atomic_t stop_signal = 0; // the first signal that asked, 0 for none

void stop_on_signals();
