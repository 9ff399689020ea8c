// Sockets, processes and threads of ranks.h, in the order of a run: what both sides share, the server, a
// rank's connection and its watching thread, the launcher.
#include "ranks.h"
#include "../lib/error.h"
#include "../lib/terminal.h"
#include "../lib/threads.h"
#include "rank_meeting.h"
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <random>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------
// Both sides

namespace {

constexpr double connect_patience = 120; // s for the server to be there
constexpr double answer_patience = 5;    // s for it to answer the first frame
constexpr double beat_every = 1;         // s
constexpr double freeing_patience = 10;  // s from finish() to the end of the process
constexpr double leaving_patience = 2;   // s from the line that says why to the end of all processes
constexpr int network_timeout_ms = 30000;
constexpr size_t most_strangers = 256; // connections that have not said who they are

// One end of a connection: what has come and what has still to go.
struct Peer {
    FrameReader in;
    std::string out;
};

// Sends what can be sent now. False when the connection is broken.
bool send_some(int fd, Peer& peer) {
    while (!peer.out.empty()) {
        const ssize_t n = send(fd, peer.out.data(), peer.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        peer.out.erase(0, size_t(n));
    }
    return true;
}

// Reads what has come. False at the end of the connection.
bool receive_some(int fd, Peer& peer) {
    char buffer[16384];
    for (;;) {
        const ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        if (n == 0) return false;
        peer.in.bytes.append(buffer, size_t(n));
        if (peer.in.bytes.size() > 2 * largest_payload) return true; // the rest in the next turn
    }
}

void set_options(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &network_timeout_ms, sizeof network_timeout_ms);
}

int poll_until(std::vector<pollfd>& fds, double deadline) {
    const double left = std::max(0.0, deadline - now_seconds());
    return poll(fds.data(), fds.size(), int(left * 1000 + 0.999));
}

// The addresses of a host; Error for none.
struct Addresses {
    addrinfo* first = nullptr;
    Addresses(const std::string& host, int port) {
        addrinfo wanted = {};
        wanted.ai_socktype = SOCK_STREAM;
        const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &first);
        if (error) fail("%s: %s", quoted(host).c_str(), gai_strerror(error));
    }
    Addresses(const Addresses&) = delete;
    ~Addresses() {
        if (first) freeaddrinfo(first);
    }
};

// Tries all addresses once, each for a second. Returns -1 and the reason when none answers.
int try_to_connect(const std::string& host, int port, std::string* reason) {
    try {
        const Addresses addresses(host, port);
        for (const addrinfo* a = addresses.first; a; a = a->ai_next) {
            const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            if (fd < 0) continue;
            int error = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
            if (error == EINPROGRESS) {
                std::vector<pollfd> fds = {{fd, POLLOUT, 0}};
                socklen_t size = sizeof error;
                error = ETIMEDOUT;
                if (poll_until(fds, now_seconds() + 1) > 0)
                    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
            }
            if (error == 0) {
                set_options(fd);
                return fd;
            }
            *reason = strerror(error);
            close(fd);
        }
    } catch (const Error& e) {
        *reason = e.what();
    }
    return -1;
}

// The name of this machine for messages, and what distinguishes it from another of that name. MOEX_HOST makes
// several machines of one, for tests.
std::string host_name() {
    if (const char* name = getenv("MOEX_HOST")) return name;
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    return name;
}
std::string machine_name() {
    std::string name = host_name();
    if (getenv("MOEX_HOST")) return name;
    char boot[64] = "";
    if (FILE* f = fopen("/proc/sys/kernel/random/boot_id", "r")) {
        if (fgets(boot, sizeof boot, f)) name += std::string(" ") + boot;
        fclose(f);
    }
    return name;
}

// The main thread may hang in a library, and other ranks wait for this one: nothing else is sure to work.
[[noreturn]] void leave_at_once(int status) { _exit(status); }

// A thread that signals pass by: they are for the program's own handlers, in its main thread.
std::thread quiet_thread(const std::function<void()>& body) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread thread(body);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return thread;
}

// ---------------------------------------------------------------------------------------------------------
// The server

struct Server {
    Meeting meeting;
    int listener = -1;
    std::map<int, Peer> peers;

    Server(const RankIdentity& id, const RankFlags& flags)
        : meeting(id.size, id.run, double(flags.timeout), now_seconds()) {
        rlimit files; // two thousand ranks are more than the usual 1024 descriptors
        if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
            files.rlim_cur = files.rlim_max;
            setrlimit(RLIMIT_NOFILE, &files);
        }
    }
    Server(const Server&) = delete;
    ~Server() {
        for (const auto& [fd, peer] : peers) close(fd);
        if (listener >= 0) close(listener);
    }

    // Only this machine can reach 127.0.0.1. Port 0: any that is free. Returns the port.
    int listen_at(const std::string& host, int port) {
        const bool local = host == "127.0.0.1" || host == "localhost";
        sockaddr_in6 any = {};
        any.sin6_family = AF_INET6;
        any.sin6_port = htons(uint16_t(port));
        sockaddr_in four = {};
        four.sin_family = AF_INET;
        four.sin_port = any.sin6_port;
        four.sin_addr.s_addr = htonl(local ? INADDR_LOOPBACK : INADDR_ANY);
        const int on = 1, off = 0;
        int reason = EADDRNOTAVAIL;
        for (const int family : {AF_INET6, AF_INET}) {
            if (family == AF_INET6 && local) continue;
            listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            if (listener < 0) continue; // a system without IPv6
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
            if (family == AF_INET6) setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
            const sockaddr* address = family == AF_INET6 ? (sockaddr*)&any : (sockaddr*)&four;
            const socklen_t size = family == AF_INET6 ? sizeof any : sizeof four;
            if (bind(listener, address, size) == 0 && listen(listener, SOMAXCONN) == 0) {
                sockaddr_in6 bound = {};
                socklen_t bound_size = sizeof bound;
                getsockname(listener, (sockaddr*)&bound, &bound_size);
                return ntohs(bound.sin6_port); // at the same place for either family
            }
            reason = errno;
            close(listener);
            listener = -1;
            if (reason == EADDRINUSE) break;
        }
        fail("rank 0 cannot wait for the others at %s:%d: %s; another port would help (MASTER_PORT, or "
             "--master)",
             host.c_str(), port, strerror(reason));
    }

    // Waits for something to happen, at most 0.1 s, on `also`, too, and deals with it.
    void turn(int also = -1) {
        std::vector<pollfd> fds = {{listener, POLLIN, 0}, {also, POLLIN, 0}};
        for (const auto& [fd, peer] : peers)
            fds.push_back({fd, short(POLLIN | (peer.out.empty() ? 0 : POLLOUT)), 0});
        poll_until(fds, now_seconds() + 0.1);
        const double now = now_seconds();
        meeting.tick(now); // before what has come is read: it may have waited while we were stopped
        for (size_t i = 2; i < fds.size(); i++)
            if (fds[i].revents) serve(fds[i].fd, now);
        carry_out(); // descriptors that it closes are given out again by accept
        if (fds[0].revents) welcome_strangers(now);
    }

    void carry_out() {
        for (const auto& [fd, frame] : meeting.to_send)
            if (const auto peer = peers.find(fd); peer != peers.end()) peer->second.out += encode(frame);
        meeting.to_send.clear();
        for (auto& [fd, peer] : peers) send_some(fd, peer); // a broken one is noticed by reading
        for (const std::string& line : meeting.lines) fprintf(stderr, "%s\n", line.c_str());
        meeting.lines.clear();
        for (const int fd : meeting.to_drop)
            if (peers.erase(fd)) close(fd);
        meeting.to_drop.clear();
    }

    // When the run is over: until all others have read that, and gone.
    void part() {
        const double deadline = now_seconds() + leaving_patience;
        close(std::exchange(listener, -1));
        while (!peers.empty() && now_seconds() < deadline) turn();
    }

  private:
    void serve(int fd, double now) {
        Peer& peer = peers[fd];
        const bool open = receive_some(fd, peer);
        try {
            for (Frame frame; !meeting.to_drop.count(fd) && peer.in.next(&frame);)
                meeting.received(fd, frame, now);
        } catch (const Error&) {
            meeting.garbage(fd);
            meeting.closed(fd, now);
            return;
        }
        if (open) return;
        meeting.closed(fd, now);
        close(fd);
        peers.erase(fd);
    }

    void welcome_strangers(double now) {
        for (;;) {
            const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (fd < 0) return;
            set_options(fd);
            peers[fd];
            meeting.connected(fd, now, most_strangers);
        }
    }
};

} // namespace

// ---------------------------------------------------------------------------------------------------------
// A rank's connection

struct Ranks::Connection {
    RankIdentity id;
    volatile std::sig_atomic_t* stop;
    int fd = -1, wake = -1;
    Peer peer; // of the watching thread, once it runs
    std::thread watching, serving;
    std::unique_ptr<Server> server; // in rank 0 where there is no launcher

    std::atomic<int64_t> step{0}, moves{0};
    std::atomic<int> phase{int(Phase::starting)};

    std::mutex mutex; // of what follows
    std::condition_variable changed;
    std::string outbox; // frames of the main thread
    std::function<std::string()> check;
    std::optional<Frame> welcome;
    std::string failure; // an error has been sent
    int failure_status = 1;
    bool bye = false, abandoned = false, ended = false, served = false;
    double free_by = 0; // > 0: when finish() runs out
    int finish_status = 0;
    std::string checkpoint, command;

    Connection(const RankIdentity& id, const RankFlags& flags, volatile std::sig_atomic_t* stop);
    ~Connection();
    void connect_to_server(double patience);
    void put(FrameKind kind, const Fields& fields);
    void wake_up() const;
    std::string bye_frame(int status) const;
    void watch();
    bool take(const Frame& frame);
    void lost();
    [[noreturn]] void fail_rank(const std::string& text, int status);
    int leave(int status);
    bool server_is_done();
    [[noreturn]] void leave_after_server(int status);
};

Ranks::Connection::Connection(const RankIdentity& id, const RankFlags& flags,
                              volatile std::sig_atomic_t* stop)
    : id(id), stop(stop) {
    if (id.rank == 0 && !id.launcher_pid) {
        server = std::make_unique<Server>(id, flags);
        server->listen_at(id.host, id.port);
        serving = quiet_thread([this] {
            while (!server->meeting.over) server->turn();
            server->part();
            const std::lock_guard lock(mutex);
            served = true;
            changed.notify_all();
        });
    }
    connect_to_server(flags.timeout > 0 ? std::min(connect_patience, double(flags.timeout))
                                        : connect_patience);
    // Only rank 0 has something to say: no print statement needs a condition.
    if (id.rank > 0 && !freopen("/dev/null", "w", stdout)) fail("/dev/null cannot be opened");
    wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    watching = quiet_thread([this] { watch(); });
}

Ranks::Connection::~Connection() {
    if (watching.joinable()) watching.join();
    if (serving.joinable()) serving.join();
    if (fd >= 0) close(fd);
    if (wake >= 0) close(wake);
}

// Tries until the server answers: ranks start in any order.
void Ranks::Connection::connect_to_server(double patience) {
    const std::string join = encode({FrameKind::join,
                                     id.rank,
                                     {{"run", id.run},
                                      {"size", std::to_string(id.size)},
                                      {"host", host_name()},
                                      {"machine", machine_name()},
                                      {"local", std::to_string(id.local)}}});
    // Rank 0 is its own server's neighbour, whatever the others know it by.
    const std::string host = server ? "127.0.0.1" : id.host;
    const double begin = now_seconds();
    std::string reason;
    for (double pause = 0.05;; pause = std::min(1.0, 2 * pause)) {
        fd = try_to_connect(host, id.port, &reason);
        if (fd >= 0) {
            peer = {{}, join};
            const double deadline = now_seconds() + answer_patience;
            Frame frame;
            for (bool open = true; open && now_seconds() < deadline;) {
                std::vector<pollfd> fds = {{fd, POLLIN, 0}};
                open = send_some(fd, peer);
                poll_until(fds, std::min(deadline, now_seconds() + 0.1));
                open = open && receive_some(fd, peer);
                try {
                    if (!peer.in.next(&frame)) continue;
                } catch (const Error&) {
                    break;
                }
                if (frame.kind == FrameKind::end) leave_after_server(int(frame.number("status", 1, 255)));
                if (frame.kind == FrameKind::joined) return;
                break;
            }
            reason = "something answers there, but no run of moex, or another one";
            close(std::exchange(fd, -1));
        }
        if (id.launcher_pid && getppid() != id.launcher_pid) leave_at_once(1); // it is gone
        if (server_is_done()) leave_at_once(server->meeting.status);           // others could not agree
        if (now_seconds() - begin > patience) break;
        usleep(useconds_t(pause * 1e6));
    }
    // One line is enough, of rank 1. (Rank 0 has a server of its own, whose thread must not be left behind.)
    if (id.rank <= 1)
        fprintf(stderr, "moex: rank %d cannot reach rank 0 at %s:%d in %.0f s: %s\n", id.rank, host.c_str(),
                id.port, patience, reason.c_str());
    leave_at_once(1);
}

void Ranks::Connection::put(FrameKind kind, const Fields& fields) {
    const std::string bytes = encode({kind, id.rank, fields});
    const std::lock_guard lock(mutex);
    outbox += bytes;
    wake_up();
}

void Ranks::Connection::wake_up() const {
    const uint64_t one = 1;
    if (write(wake, &one, sizeof one) < 0) return; // it is awake already
}

std::string Ranks::Connection::bye_frame(int status) const {
    return encode({FrameKind::bye, id.rank, {{"status", std::to_string(status)}}});
}

// The watching thread: beats, however long the main thread takes, and the end of the process where the run
// ends elsewhere.
void Ranks::Connection::watch() {
    double next_beat = 0;
    int stop_told = 0;
    int64_t moves_told = 0;
    for (;;) {
        const double now = now_seconds();
        if (now >= next_beat || *stop != stop_told || moves != moves_told) { // looked at every 0.2 s
            stop_told = *stop;
            moves_told = moves;
            next_beat = now + beat_every;
            peer.out += encode({FrameKind::beat,
                                id.rank,
                                {{"step", std::to_string(step)},
                                 {"phase", std::to_string(phase)},
                                 {"moves", std::to_string(moves_told)},
                                 {"stop", std::to_string(stop_told)}}});
            std::unique_lock lock(mutex);
            const std::function<std::string()> ask = failure.empty() && !bye ? check : nullptr;
            lock.unlock();
            const std::string error = ask ? ask() : "";
            if (!error.empty()) {
                lock.lock();
                failure = error;
                lock.unlock();
                put(FrameKind::failed, {{"text", error}, {"status", "1"}});
            }
        }
        {
            const std::lock_guard lock(mutex);
            peer.out += outbox;
            outbox.clear();
            if (free_by > 0 && now > free_by && !bye) { // in the main thread's place
                peer.out += bye_frame(finish_status);
                bye = abandoned = true;
            }
        }
        bool open = send_some(fd, peer);
        std::vector<pollfd> fds = {{fd, short(POLLIN | (peer.out.empty() ? 0 : POLLOUT)), 0},
                                   {wake, POLLIN, 0}};
        poll_until(fds, std::min(next_beat, now_seconds() + 0.2));
        uint64_t count;
        if (fds[1].revents && read(wake, &count, sizeof count) < 0) continue;
        if (fds[0].revents & (POLLIN | POLLERR | POLLHUP)) open = receive_some(fd, peer) && open;
        try {
            for (Frame frame; peer.in.next(&frame);)
                if (!take(frame)) return;
        } catch (const Error&) {
            open = false;
        }
        if (!open) return lost();
    }
}

// False when this was the last word.
bool Ranks::Connection::take(const Frame& frame) {
    if (frame.kind == FrameKind::stop && *stop == 0) *stop = int(frame.number("signal", 1, 127));
    if (frame.kind == FrameKind::welcome) {
        const std::lock_guard lock(mutex);
        welcome = frame;
        changed.notify_all();
    }
    if (frame.kind != FrameKind::end) return true;
    close(std::exchange(fd, -1)); // the server waits for that
    std::unique_lock lock(mutex);
    if (abandoned || frame.text("good") != "1") {
        lock.unlock();
        leave_after_server(int(frame.number("status", 0, 255)));
    }
    ended = true;
    changed.notify_all();
    return false;
}

// The server is gone, and with it whoever would say so.
void Ranks::Connection::lost() {
    std::unique_lock lock(mutex);
    if (abandoned) leave_at_once(finish_status);
    if (bye) {
        ended = true;
        changed.notify_all();
        return;
    }
    if (!failure.empty()) {
        fprintf(stderr, "moex: rank %d: %s\n", id.rank, failure.c_str());
        leave_at_once(failure_status);
    }
    if (id.rank == 1) {
        const std::string go_on =
            checkpoint.empty() ? "" : "; the last checkpoint is " + checkpoint + "; to go on: " + command;
        fprintf(stderr, "moex: %s is gone: the connection of rank 1 to it ended %s%s\n",
                id.launcher_pid ? "the launcher" : strf("rank 0 (%s)", id.host.c_str()).c_str(),
                what_it_does(phase, step).c_str(), go_on.c_str());
    }
    leave_at_once(1);
}

bool Ranks::Connection::server_is_done() {
    const std::lock_guard lock(mutex);
    return served;
}

// A server in this process has to tell the others first.
void Ranks::Connection::leave_after_server(int status) {
    std::unique_lock lock(mutex);
    if (server)
        changed.wait_for(lock, std::chrono::duration<double>(leaving_patience + 1), [&] { return served; });
    leave_at_once(status);
}

// The main thread's error. The server says when to go, after it has told the user and the other ranks.
void Ranks::Connection::fail_rank(const std::string& text, int status) {
    {
        const std::lock_guard lock(mutex);
        failure = text;
        failure_status = status;
    }
    put(FrameKind::failed, {{"text", text}, {"status", std::to_string(status)}});
    std::this_thread::sleep_for(std::chrono::duration<double>(freeing_patience));
    fprintf(stderr, "moex: rank %d: %s\n", id.rank, text.c_str());
    leave_at_once(status);
}

// Returns when all ranks have come as far: a process that ends before is a failure of the run.
int Ranks::Connection::leave(int status) {
    std::unique_lock lock(mutex);
    if (!bye) outbox += bye_frame(status);
    bye = true;
    wake_up();
    changed.wait(lock, [&] { return ended; });
    lock.unlock();
    watching.join();
    if (serving.joinable()) serving.join();
    return status;
}

// ---------------------------------------------------------------------------------------------------------
// What the program calls

int Ranks::device(int visible) const {
    if (visible == 1 && launcher.rfind("--gpus", 0) != 0) return 0; // each rank was given its own
    const int asked = connection && connection->id.local_size ? connection->id.local_size : local + 1;
    if (asked > visible)
        fail("%d GPUs were asked for on this machine, %d %s visible", asked, visible,
             visible == 1 ? "is" : "are");
    return local;
}

std::string Ranks::meet(const Hello& hello) {
    if (!connection) return hello.id;
    std::string id; // in hexadecimal: it is any bytes
    for (const char c : hello.id) id += strf("%02x", uint8_t(c));
    Fields fields = {{"gpu", hello.gpu}, {"kind", hello.kind}, {"id", id}};
    for (const auto& [name, value] : hello.agree) fields.push_back({"=" + name, value});
    connection->put(FrameKind::hello, fields);
    std::unique_lock lock(connection->mutex);
    connection->changed.wait(lock, [&] { return connection->welcome.has_value(); });
    const Frame& welcome = *connection->welcome;
    machines = int(welcome.number("machines", 1, size));
    place = int(welcome.number("place", 0, size - 1));
    const std::string text = welcome.text("id");
    std::string of_rank_0;
    for (size_t i = 0; i + 1 < text.size(); i += 2)
        of_rank_0 += char(strtol(text.substr(i, 2).c_str(), nullptr, 16));
    return of_rank_0;
}

void Ranks::at(int64_t step, Phase phase) {
    if (!connection) return;
    connection->step = step;
    connection->phase = int(phase);
    connection->moves++;
}

void Ranks::saved(const std::string& path, const std::string& command) {
    if (!connection) return;
    {
        const std::lock_guard lock(connection->mutex);
        connection->checkpoint = path;
        connection->command = command;
    }
    if (rank == 0) connection->put(FrameKind::saved, {{"path", path}, {"command", command}});
}

void Ranks::same(const std::string& what, int64_t step, uint64_t value) {
    if (!connection) return;
    connection->put(FrameKind::hash,
                    {{"what", what}, {"step", std::to_string(step)}, {"value", std::to_string(value)}});
}

void Ranks::watch(std::function<std::string()> check) {
    if (!connection) return;
    const std::lock_guard lock(connection->mutex);
    connection->check = std::move(check);
}

void Ranks::error() {
    if (!connection) return;
    try {
        throw;
    } catch (const UsageError& e) {
        connection->fail_rank(std::string(e.what()) + " (see --help)", 2);
    } catch (const std::bad_alloc&) {
        connection->fail_rank("out of memory", 1);
    } catch (const std::length_error&) {
        connection->fail_rank("out of memory: a size beyond what any machine holds was asked for", 1);
    } catch (const std::exception& e) {
        connection->fail_rank(e.what(), 1);
    }
}

void Ranks::finish(int status) {
    if (!connection) return;
    const std::lock_guard lock(connection->mutex);
    connection->phase = int(Phase::ending);
    connection->moves++;
    connection->finish_status = status;
    connection->free_by = now_seconds() + freeing_patience;
}

// ---------------------------------------------------------------------------------------------------------
// The launcher: starts the program once for each GPU, and is the server of the ranks if this is machine 0. It
// never touches CUDA, which may not be used on both sides of a fork.

namespace {

struct Launcher {
    RankIdentity id;
    std::vector<pid_t> children;    // 0: ended
    int first;                      // rank of children[0]
    std::unique_ptr<Server> server; // on machine 0
    int status = 0;                 // where there is no server: the highest of the ranks
    int signals = -1, stop_signal = 0;
    bool killed = false; // what is left, by us
    sigset_t mask_before;

    Launcher(const RankIdentity& id, const RankFlags& flags);
    void start(char** argv);
    int run();
    void take_signals();
    void reap();
    bool tell_server(FrameKind kind, int rank, const char* name, int value);
    void kill_all();
    bool all_ended() const;
};

Launcher::Launcher(const RankIdentity& of, const RankFlags& flags) : id(of), first(of.node * of.starts) {
    if (id.run.empty()) {
        std::random_device random;
        id.run = strf("%08x%08x", random(), random());
    }
    if (id.node == 0) {
        server = std::make_unique<Server>(id, flags);
        id.port = server->listen_at(id.host, id.port);
    }
    sigset_t mask;
    sigemptyset(&mask);
    for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP}) sigaddset(&mask, signal);
    sigprocmask(SIG_BLOCK, &mask, &mask_before);
    signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
}

// fork and exec, for neither CUDA nor a team of threads survives a fork alone. The variables are those of
// torchrun.
void Launcher::start(char** argv) {
    const auto set = [](const char* name, int value) { setenv(name, std::to_string(value).c_str(), 1); };
    set("WORLD_SIZE", id.size);
    set("LOCAL_WORLD_SIZE", id.starts);
    setenv("MASTER_ADDR", id.host.c_str(), 1);
    set("MASTER_PORT", id.port);
    setenv(launcher_variable, strf("%d %s", int(getpid()), id.run.c_str()).c_str(), 1);
    const int threads = std::max(1, int(thread_count()) / id.starts); // of those that Options allowed us
    setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), 0);
    fflush(nullptr);
    for (int local = 0; local < id.starts; local++) {
        set("RANK", first + local);
        set("LOCAL_RANK", local);
        const pid_t pid = fork();
        if (pid == 0) {
            sigprocmask(SIG_SETMASK, &mask_before, nullptr);
            execv("/proc/self/exe", argv);
            fprintf(stderr, "moex: %s cannot be started again: %s\n", argv[0], strerror(errno));
            _exit(127);
        }
        if (pid < 0) {
            const int reason = errno;
            kill_all();
            fail("process %d of %d cannot be started: %s", local + 1, id.starts, strerror(reason));
        }
        children.push_back(pid);
    }
}

int Launcher::run() {
    double deadline = 0;
    while (!all_ended()) {
        if (server) {
            server->turn(signals);
        } else {
            std::vector<pollfd> fds = {{signals, POLLIN, 0}};
            poll_until(fds, now_seconds() + 0.1);
        }
        take_signals();
        reap();
        if (server) server->carry_out();
        if (!server || !server->meeting.over) continue;
        // The ranks end by themselves, unless they hang or are stopped.
        const Meeting& meeting = server->meeting;
        if (deadline == 0)
            deadline = now_seconds() + (meeting.good           ? freeing_patience
                                        : meeting.status > 128 ? 0.1
                                                               : leaving_patience);
        if (now_seconds() > deadline) kill_all();
    }
    if (!server) return status;
    while (!server->meeting.over) server->turn(); // ranks of other machines
    server->part();
    return server->meeting.status;
}

// A signal to the launcher is a request to the ranks. The terminal's Ctrl-C reaches them as well, so it is
// not sent on as a signal, of which the second would end them at once.
void Launcher::take_signals() {
    for (signalfd_siginfo info; read(signals, &info, sizeof info) == sizeof info;) {
        const int signal = int(info.ssi_signo);
        if (signal == SIGCHLD) continue;
        if (server) {
            server->meeting.stop_requested(signal);
        } else {
            status = 128 + signal;
            if (!tell_server(FrameKind::stop, first, "signal", signal) || stop_signal) kill_all();
        }
        stop_signal = signal;
    }
}

void Launcher::reap() {
    int wait_status;
    for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;)
        for (size_t i = 0; i < children.size(); i++) {
            if (children[i] != pid) continue;
            const int rank = first + int(i);
            children[i] = 0;
            if (server) {
                if (!killed) server->meeting.child_ended(rank, wait_status, now_seconds());
                continue;
            }
            status = std::max(status, WIFSIGNALED(wait_status) ? 1 : WEXITSTATUS(wait_status));
            if (WIFSIGNALED(wait_status) && !stop_signal)
                tell_server(FrameKind::died, rank, "status", wait_status);
        }
}

// From a machine that is not the server's. Where the server is gone its ranks say so.
bool Launcher::tell_server(FrameKind kind, int rank, const char* name, int value) {
    std::string reason;
    const int fd = try_to_connect(id.host, id.port, &reason);
    if (fd < 0) return false;
    Peer peer = {
        {},
        encode({kind,
                rank,
                {{"run", id.run}, {"size", std::to_string(id.size)}, {name, std::to_string(value)}}})};
    const bool sent = send_some(fd, peer) && peer.out.empty();
    close(fd);
    return sent;
}

void Launcher::kill_all() {
    killed = true;
    for (const pid_t pid : children)
        if (pid > 0) kill(pid, SIGKILL);
}

bool Launcher::all_ended() const {
    return std::all_of(children.begin(), children.end(), [](pid_t pid) { return pid == 0; });
}

} // namespace

int run_ranks(const RankFlags& flags, char** argv, volatile std::sig_atomic_t* stop,
              const std::function<int(Ranks&)>& body) {
    const RankIdentity id = rank_identity(flags, [](const char* name) { return getenv(name); });
    if (id.starts > 0) {
        Launcher launcher(id, flags);
        launcher.start(argv);
        return launcher.run();
    }
    Ranks ranks;
    ranks.rank = id.rank;
    ranks.size = id.size;
    ranks.local = id.local;
    ranks.launcher = id.launcher;
    if (id.size == 1) return body(ranks);
    ranks.connection = std::make_shared<Ranks::Connection>(id, flags, stop);
    int status = 1;
    try {
        status = body(ranks);
    } catch (...) {
        ranks.error();
    }
    return ranks.connection->leave(status);
}
