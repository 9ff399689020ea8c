// The loops that threads share (dev/lib/threads.h): every part once, whatever the number of threads, nested,
// from several threads at once, when a part throws, and when there are too few threads.
#include "../dev/lib/threads.h"
#include "check.h"
#include <chrono>
#include <fstream>
#include <numeric>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

static void test_every_index_once() {
    for (const size_t threads : {1, 2, 3, 8}) {
        set_thread_count(threads);
        check(thread_count() == threads);
        for (const size_t count : {0, 1, 2, 7, 8, 9, 1000}) {
            std::vector<int> by_index(count), by_item(count), by_range(count);
            parallel_for(count, [&](size_t i) { by_index[i]++; });
            parallel_items(count, [&](size_t i) { by_item[i]++; });
            std::atomic<size_t> shortest{1000};
            parallel_ranges(count, 5, [&](size_t begin, size_t end) {
                for (size_t i = begin; i < end; i++) by_range[i]++;
                size_t known = shortest;
                while (end - begin < known && !shortest.compare_exchange_weak(known, end - begin)) {
                }
            });
            const std::vector<int> ones(count, 1);
            check(by_index == ones && by_item == ones && by_range == ones, "%zu threads, %zu items", threads,
                  count);
            check(shortest >= std::min<size_t>(count, 5), "%zu threads: a range of %zu of %zu", threads,
                  shortest.load(), count);
        }
    }
}

// Many short loops one after the other: threads that come late to one must not disturb the next.
static void test_many_loops() {
    set_thread_count(4);
    std::vector<size_t> sums(64);
    for (size_t round = 0; round < 20000; round++)
        parallel_for(round % sums.size() + 1, [&](size_t i) { sums[i] += round; });
    std::vector<size_t> expected(sums.size());
    for (size_t round = 0; round < 20000; round++)
        for (size_t i = 0; i < round % sums.size() + 1; i++) expected[i] += round;
    check(sums == expected, "a loop lost a part, or did one twice");
}

static void test_nested() {
    set_thread_count(3);
    std::vector<int> cells(30 * 40);
    parallel_for(30, [&](size_t i) { parallel_for(40, [&](size_t j) { cells[i * 40 + j]++; }); });
    check(cells == std::vector<int>(cells.size(), 1), "loops within loops");
}

// Loops of several threads at once: one has the team, the others run theirs alone, and none waits for
// another.
static void test_several_callers() {
    set_thread_count(2);
    std::vector<std::vector<int>> cells(4, std::vector<int>(500));
    std::vector<std::thread> callers;
    for (std::vector<int>& mine : cells)
        callers.emplace_back([&mine] {
            for (int round = 0; round < 50; round++) parallel_for(mine.size(), [&](size_t i) { mine[i]++; });
        });
    for (std::thread& caller : callers) caller.join();
    for (const std::vector<int>& mine : cells) check(mine == std::vector<int>(500, 50), "several callers");

    std::atomic<bool> other_done{false}, waited{true};
    parallel_parts(2, [&](size_t part) {
        if (part == 0) {
            std::thread other([&] {
                int sum = 0;
                parallel_for(10, [&](size_t i) { sum += int(i); });
                other_done = sum == 45;
            });
            other.join();
            waited = false;
        }
    });
    check(other_done && !waited, "a loop beside a loop");
}

// A part that nobody else comes to do is done by the caller: here every other thread sleeps in a part.
static void test_not_waited_for() {
    set_thread_count(2);
    std::atomic<int> done{0};
    parallel_parts(2, [&](size_t) { done++; }); // the team is there
    const std::thread::id caller = std::this_thread::get_id();
    size_t by_caller = 0;
    Items items(200);
    parallel_parts(2, [&](size_t) {
        const bool mine = std::this_thread::get_id() == caller;
        for (size_t i; items.take(&i);) {
            if (mine)
                by_caller++;
            else
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
    });
    check(done == 2 && by_caller >= 150, "the caller did %zu of 200 items beside a slow thread", by_caller);
}

static void test_exceptions() {
    set_thread_count(2);
    for (const size_t culprit : {0, 1}) {
        std::string message;
        std::atomic<int> others{0};
        try {
            parallel_parts(2, [&](size_t part) {
                if (part == culprit) fail("part %zu failed", part);
                others++;
            });
        } catch (const Error& e) {
            message = e.what();
        }
        check(message == strf("part %zu failed", culprit), "an exception of part %zu: '%s'", culprit,
              message.c_str());
        check(others == 1, "the other part is done");
    }
    std::vector<int> cells(100);
    parallel_for(100, [&](size_t i) { cells[i]++; });
    check(cells == std::vector<int>(100, 1), "a loop after one that failed");
}

// Where the system gives no more threads those that are there do the work.
static void test_no_more_threads() {
#ifndef __SANITIZE_ADDRESS__ // its own memory is beyond any limit
    const pid_t child = fork();
    if (child == 0) {
        size_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const rlim_t most = pages * size_t(sysconf(_SC_PAGESIZE)) + (size_t(64) << 20); // some of 256 stacks
        const rlimit limit = {most, most};
        if (pages > 0) setrlimit(RLIMIT_AS, &limit);
        set_thread_count(256);
        std::vector<std::atomic<int>> seen(1000);
        for (int loop = 0; loop < 2; loop++) parallel_items(1000, [&](size_t i) { seen[i]++; });
        _exit(std::all_of(seen.begin(), seen.end(), [](const std::atomic<int>& n) { return n == 2; }) ? 0
                                                                                                      : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "status %d", status);
#endif
}

int main() {
    return run_main([] {
        test_no_more_threads();
        test_every_index_once();
        test_many_loops();
        test_nested();
        test_several_callers();
        test_not_waited_for();
        test_exceptions();
        return finish();
    });
}
