// How the files of file.h are written and read; SIGBUS.
#include "file.h"
#include <csetjmp>

std::string parent_directory(const std::string& path) {
    size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

void make_directories(const std::string& path) {
    for (size_t i = 1; i <= path.size(); i++)
        if (i == path.size() || path[i] == '/') {
            std::string part = path.substr(0, i);
            if (mkdir(part.c_str(), 0777) != 0 && errno != EEXIST)
                fail("%s: cannot create the folder: %s", part.c_str(), strerror(errno));
        }
    struct stat st;
    if (stat(path.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) fail("%s: not a folder", path.c_str());
}

std::vector<std::string> file_names(const std::string& folder) {
    std::vector<std::string> names;
    DIR* open_folder = opendir(folder.c_str());
    if (!open_folder) return names;
    while (const dirent* entry = readdir(open_folder)) names.push_back(entry->d_name);
    closedir(open_folder);
    return names;
}

// Where a name leads, also when nothing is there yet: symbolic links are followed.
static std::string followed(std::string path) {
    char target[4096];
    for (int links = 0; links < 40; links++) {
        const ssize_t n = readlink(path.c_str(), target, sizeof target);
        if (n <= 0 || n == ssize_t(sizeof target)) break;
        const std::string next(target, size_t(n));
        path = next[0] == '/' ? next : parent_directory(path) + "/" + next;
    }
    return path;
}

AtomicFile::AtomicFile(const std::string& path) : path(path) {
    struct stat st;
    const bool there = stat(path.c_str(), &st) == 0;
    if (!there && errno != ENOENT) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
    if (path == "/dev/stdout" || path == "/dev/stderr") {
        fflush(stdout);
        fd = fcntl(path == "/dev/stdout" ? 1 : 2, F_DUPFD_CLOEXEC, 3);
    } else if (there && (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode))) {
        fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    } else if (there && !S_ISREG(st.st_mode)) {
        fail("%s: cannot be written: it is %s", path.c_str(),
             S_ISDIR(st.st_mode) ? "a folder" : "neither a file nor a pipe");
    } else {
        target = followed(path);
        temporary = strf("%s.tmp.%d", target.c_str(), int(getpid()));
        fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (fd >= 0 && there) (void)!fchmod(fd, st.st_mode & 0777); // no reason to fail: it is our file
    }
    if (fd < 0) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
}

AtomicFile::~AtomicFile() {
    if (fd < 0) return;
    close(fd);
    if (!temporary.empty()) unlink(temporary.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
    const char* p = (const char*)data;
    if (buffer.size() + bytes > buffer_limit) flush();
    if (bytes >= buffer_limit)
        put(p, bytes, -1);
    else
        buffer.insert(buffer.end(), p, p + bytes);
}

void AtomicFile::commit() {
    flush();
    if (temporary.empty()) {
        if (close(std::exchange(fd, -1)) != 0)
            fail("%s: cannot be written: %s", path.c_str(), strerror(errno));
        return;
    }
    if (fsync(fd) != 0) fail("%s: cannot be synced: %s", path.c_str(), strerror(errno));
    if (close(std::exchange(fd, -1)) != 0 || rename(temporary.c_str(), target.c_str()) != 0) {
        int reason = errno;
        unlink(temporary.c_str());
        fail("%s: cannot be written: %s", path.c_str(), strerror(reason));
    }
    int folder = open(parent_directory(target).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;
    fsync(folder);
    close(folder);
}

void AtomicFile::put(const char* p, size_t bytes, off_t offset) {
    while (bytes > 0) {
        ssize_t n = offset < 0 ? ::write(fd, p, bytes) : pwrite(fd, p, bytes, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail("%s: cannot be written: %s", path.c_str(), strerror(n < 0 ? errno : ENOSPC));
        p += n;
        bytes -= size_t(n);
        if (offset >= 0) offset += n;
    }
}

// A file that others cut short while it is mapped, or a disk that fails, is met as SIGBUS, at any instruction
// that reads it. The handler looks the address up among what is mapped and names the file. It may use nothing
// that takes a lock: the list only grows, and a place in it whose size is 0 is free to be taken again.
struct MappedRange {
    std::atomic<const uint8_t*> data{nullptr};
    std::atomic<size_t> size{0}; // to the end of its last page
    std::atomic<char*> path{nullptr};
    MappedRange* next = nullptr;
};
static std::atomic<MappedRange*> mapped_ranges{nullptr};
static std::mutex mapped_ranges_mutex; // of those who map and unmap
static constexpr char cut_short[] = ": cut short by another program while it was read, or its disk failed";
static thread_local sigjmp_buf* way_back = nullptr; // where this thread goes on if a copy meets the end

static void on_bus_error(int signal_number, siginfo_t* info, void*) {
    auto say = [](const char* text) { (void)!write(2, text, strlen(text)); };
    const uint8_t* at = (const uint8_t*)info->si_addr;
    for (const MappedRange* r = mapped_ranges; r; r = r->next) {
        const uint8_t* data = r->data;
        if (at < data || at >= data + r->size) continue;
        if (way_back) siglongjmp(*way_back, 1);
        say("moex: ");
        say(r->path);
        say(cut_short);
        say("\n");
        _exit(1);
    }
    signal(signal_number, SIG_DFL); // not ours
    raise(signal_number);
}

static MappedRange* remember_mapping(const uint8_t* data, size_t size, const std::string& path) {
    const std::lock_guard<std::mutex> lock(mapped_ranges_mutex);
    static const bool installed = [] {
        struct sigaction action = {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO;
        return sigaction(SIGBUS, &action, nullptr) == 0;
    }();
    (void)installed;
    MappedRange* r = mapped_ranges;
    while (r && r->size > 0) r = r->next;
    if (!r) {
        r = new MappedRange;
        r->next = mapped_ranges;
        mapped_ranges = r;
    }
    free(r->path);
    r->path = strdup(path.c_str());
    r->data = data;
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    r->size = (size + page - 1) / page * page;
    return r;
}

MappedFile::MappedFile(const std::string& path) : path(path) {
    int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe is refused, not waited for
    if (fd < 0) fail("%s: cannot be opened: %s", path.c_str(), strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        fail("%s: %snot a regular file", path.c_str(), S_ISDIR(st.st_mode) ? "a folder, " : "");
    }
    size = st.st_size;
    void* p = size ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
    int reason = errno;
    close(fd);
    if (p == MAP_FAILED) fail("%s: cannot be mapped: %s", path.c_str(), strerror(reason));
    data = (const uint8_t*)p;
    if (data) range = remember_mapping(data, size, path);
}

MappedFile::~MappedFile() {
    if (!data) return;
    range->size = 0;
    munmap((void*)data, size);
}

void MappedFile::copy(void* to, size_t offset, size_t bytes) const {
    sigjmp_buf here;
    if (sigsetjmp(here, 1) != 0) {
        way_back = nullptr;
        fail_data("%s%s", path.c_str(), cut_short);
    }
    way_back = &here;
    std::atomic_signal_fence(std::memory_order_seq_cst); // the handler sees it for as long as the copy takes
    memcpy(to, data + offset, bytes);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    way_back = nullptr;
}
