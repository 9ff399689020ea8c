// Files that are never half there: AtomicFile writes to a temporary name beside the target, syncs, and
// renames on commit(); without commit() the temporary is removed and the old file stays. MappedFile is a
// whole file in memory, read-only. Every failure names the file and the system's reason.
#pragma once
#include "error.h"
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

inline std::string parent_directory(const std::string& path) {
    size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// mkdir -p.
inline void make_directories(const std::string& path) {
    for (size_t i = 1; i <= path.size(); i++)
        if (i == path.size() || path[i] == '/') {
            std::string part = path.substr(0, i);
            if (mkdir(part.c_str(), 0777) != 0 && errno != EEXIST)
                fail("%s: cannot create the folder: %s", part.c_str(), strerror(errno));
        }
    struct stat st;
    if (stat(path.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) fail("%s: not a folder", path.c_str());
}

struct AtomicFile {
    std::string path, temporary;

    explicit AtomicFile(const std::string& path)
        : path(path), temporary(strf("%s.tmp.%d", path.c_str(), int(getpid()))) {
        fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (fd < 0) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
    }
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;
    ~AtomicFile() {
        if (fd < 0) return;
        close(fd);
        unlink(temporary.c_str());
    }

    // Appends; small writes are collected into large ones.
    void write(const void* data, size_t bytes) {
        const char* p = (const char*)data;
        if (buffer.size() + bytes > buffer_limit) flush();
        if (bytes >= buffer_limit)
            put(p, bytes, -1);
        else
            buffer.insert(buffer.end(), p, p + bytes);
    }
    // Overwrites bytes already written (a header whose counts are known only at the end).
    void write_at(size_t offset, const void* data, size_t bytes) {
        flush();
        put((const char*)data, bytes, (off_t)offset);
    }
    // From here on the file is there, whole, under its name, also after a power cut.
    void commit() {
        flush();
        if (fsync(fd) != 0) fail("%s: cannot be synced: %s", path.c_str(), strerror(errno));
        if (close(std::exchange(fd, -1)) != 0 || rename(temporary.c_str(), path.c_str()) != 0) {
            int reason = errno;
            unlink(temporary.c_str());
            fail("%s: cannot be written: %s", path.c_str(), strerror(reason));
        }
        int folder = open(parent_directory(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder >= 0) fsync(folder), close(folder);
    }

  private:
    static constexpr size_t buffer_limit = 1 << 20;
    int fd;
    std::vector<char> buffer;

    void flush() {
        put(buffer.data(), buffer.size(), -1);
        buffer.clear();
    }
    void put(const char* p, size_t bytes, off_t offset) {
        while (bytes > 0) {
            ssize_t n = offset < 0 ? ::write(fd, p, bytes) : pwrite(fd, p, bytes, offset);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) fail("%s: cannot be written: %s", path.c_str(), strerror(n < 0 ? errno : ENOSPC));
            p += n, bytes -= n;
            if (offset >= 0) offset += n;
        }
    }
};

struct MappedFile {
    std::string path;
    const uint8_t* data = nullptr;
    size_t size = 0;

    explicit MappedFile(const std::string& path) : path(path) {
        int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) fail("%s: cannot be opened: %s", path.c_str(), strerror(errno));
        struct stat st;
        if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
            close(fd);
            fail("%s: not a regular file", path.c_str());
        }
        size = st.st_size;
        void* p = size ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
        int reason = errno;
        close(fd);
        if (p == MAP_FAILED) fail("%s: cannot be mapped: %s", path.c_str(), strerror(reason));
        data = (const uint8_t*)p;
    }
    MappedFile(MappedFile&& other) noexcept
        : path(std::move(other.path)), data(std::exchange(other.data, nullptr)),
          size(std::exchange(other.size, 0)) {}
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile() {
        if (data) munmap((void*)data, size);
    }
};
