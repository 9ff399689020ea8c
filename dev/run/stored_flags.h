// The flags of a run in its state file, and what becomes of a command line that resumes it: a flag that is
// not given is restored, one that is given must say the same, unless it is free to change (Stored in
// options.h). The name of a file may be any bytes: what is not UTF-8 stands there encoded, under another key.
#pragma once
#include "../lib/options.h"
#include "checkpoint.h"
#include <functional>

// The strings of every flag that is stored.
Strings flag_strings(const Options& options);

// Restores them. may_take(name, was, note): a value that the run may go on with all the same; else `note` is
// what the message says behind the old value. Returns the flags that differ and may not, as text for a
// message.
using MayTake = std::function<bool(const std::string& name, const std::string& was, std::string& note)>;
std::string restore_flags(const SafeTensorsFile& state, Options& options, const MayTake& may_take = nullptr);

// A whole number in the metadata of a file: `text`, found under a name. And a finite one.
int64_t whole_number(const SafeTensorsFile& file, const std::string& name, const std::string& text);
double real_number(const SafeTensorsFile& file, const std::string& name);

// The command that goes on with a run, ready for a POSIX shell. words: how the program was called.
std::string resume_command(std::vector<std::string> words, const std::string& out);
