// Files that are never half there: AtomicFile writes to a temporary name beside the target, syncs, and
// renames on commit(); without commit() the temporary is removed and the old file stays. MappedFile is a
// whole file in memory, read-only; one that others cut short while it is read is an error with one line.
// Every failure names the file and the system's reason.
#pragma once
#include "error.h"
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <dirent.h>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <utility>
#include <vector>

std::string parent_directory(const std::string& path);

// mkdir -p.
void make_directories(const std::string& path);

// The names in a folder, in no order; none where it cannot be read.
std::vector<std::string> file_names(const std::string& folder);

// What stands under the name decides. A regular file, or nothing: written beside it, and put in its place by
// commit(), with its permissions; a symbolic link stays one, and its target is replaced. A pipe, a terminal,
// /dev/null and other character devices, /dev/stdout and /dev/stderr: written straight to, for they cannot be
// replaced, and what was written stays whatever comes. Anything else (a folder, a disk, a socket) is refused.
struct AtomicFile {
    std::string path, temporary; // temporary: "" where it is written straight to

    explicit AtomicFile(const std::string& path);
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;
    ~AtomicFile();

    // Appends; small writes are collected into large ones.
    void write(const void* data, size_t bytes);
    // Overwrites bytes already written (a header whose counts are known only at the end). A pipe has no way
    // back: refused there.
    void write_at(size_t offset, const void* data, size_t bytes) {
        flush();
        put((const char*)data, bytes, (off_t)offset);
    }
    // From here on the file is there, whole, under its name, also after a power cut.
    void commit();

  private:
    static constexpr size_t buffer_limit = 1 << 20;
    int fd = -1;
    std::string target; // path, with its links followed
    std::vector<char> buffer;

    void flush() {
        put(buffer.data(), buffer.size(), -1);
        buffer.clear();
    }
    void put(const char* p, size_t bytes, off_t offset);
};

// ---------------------------------------------------------------------------------------------------------
// Reading

struct MappedRange; // where a file lies, for the one who meets its end (file.cpp)

struct MappedFile {
    std::string path;
    const uint8_t* data = nullptr;
    size_t size = 0;

    explicit MappedFile(const std::string& path);
    MappedFile(MappedFile&& other) noexcept
        : path(std::move(other.path)), data(std::exchange(other.data, nullptr)),
          size(std::exchange(other.size, 0)), range(std::exchange(other.range, nullptr)) {}
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile();

    // data[offset] .. data[offset + bytes - 1] to memory of the caller's. Throws DataError where others have
    // cut the file short; whoever looks at data itself is then ended, with the same line.
    void copy(void* to, size_t offset, size_t bytes) const;

  private:
    MappedRange* range = nullptr;
};
