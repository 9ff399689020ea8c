// How this project fails: a function that cannot do its job calls fail("what, where, expected what"),
// which throws Error; main() runs its body under run_main(), which prints `moex: <message>` and turns
// the error into the exit status: 1, or 2 for a wrong command line. Nothing else prints errors or exits,
// so destructors run, temporary files go, and tests and fuzzers can call any reader and catch Error.
// Results on stdout that could not be written are such an error, too.
#pragma once
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <new>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <utility>

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct UsageError : Error {
    using Error::Error;
};
// Data that turn out to be damaged on the way: all else is as it was, and can be saved.
struct DataError : Error {
    using Error::Error;
};

__attribute__((format(printf, 1, 0))) inline std::string vstrf(const char* format, va_list args) {
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(nullptr, 0, format, args);
    std::string text(length > 0 ? length : 0, '\0');
    if (length > 0) vsnprintf(text.data(), text.size() + 1, format, again);
    va_end(again);
    return text;
}

// printf into a string.
__attribute__((format(printf, 1, 2))) inline std::string strf(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = vstrf(format, args);
    va_end(args);
    return text;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = vstrf(format, args);
    va_end(args);
    throw Error(text);
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail_usage(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = vstrf(format, args);
    va_end(args);
    throw UsageError(text);
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail_data(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = vstrf(format, args);
    va_end(args);
    throw DataError(text);
}

// Text from a file, made safe to put into a one-line message: control characters and anything beyond
// 80 bytes are replaced.
inline std::string quoted(const std::string& text) {
    std::string out = "'";
    for (unsigned char c : text.substr(0, 80)) out += c < 32 || c == 127 ? '?' : char(c);
    return out + (text.size() > 80 ? "...'" : "'");
}
// Where <iomanip> is included, std::quoted would be the better match for a string that is not const.
inline std::string quoted(std::string& text) { return quoted(std::as_const(text)); }

// A program may be started with stdin, stdout or stderr closed. The next file it opens would take that
// place, and what is printed would go into it: so what is missing becomes /dev/null first.
inline void open_standard_streams() {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) != fd)
            fail("/dev/null: cannot be opened in place of descriptor %d, which is closed", fd);
}

// Sends what was printed on its way; a full disk is an error now, not lost results and status 0.
inline void flush_results() {
    const bool failed = ferror(stdout);
    if (fflush(stdout) != 0) fail("standard output: cannot be written: %s", strerror(errno));
    if (failed) fail("standard output: cannot be written: results were lost");
}

// The body of every main(): returns the process's exit status. A reader that goes away (`| head`) ends the
// program quietly, by SIGPIPE, whatever the parent made of that signal.
template <class Body> int run_main(Body body) {
    try {
        open_standard_streams();
        signal(SIGPIPE, SIG_DFL);
        const int status = body();
        if (status == 0) flush_results();
        return status;
    } catch (const UsageError& e) {
        fprintf(stderr, "moex: %s (see --help)\n", e.what());
        return 2;
    } catch (const Error& e) {
        fprintf(stderr, "moex: %s\n", e.what());
    } catch (const std::bad_alloc&) {
        fprintf(stderr, "moex: out of memory\n");
    } catch (const std::length_error&) {
        fprintf(stderr, "moex: out of memory: a size beyond what any machine holds was asked for\n");
    } catch (const std::exception& e) { // of the standard library: no thread to be had, say
        fprintf(stderr, "moex: %s\n", e.what());
    }
    return 1;
}
