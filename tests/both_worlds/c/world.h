/* What the socket cases see of their world: a driver, in which they run, and a peer, a process on another node that makes calls for them.
 *
 * A case says what it observed, and nothing that may differ from run to run: no port, no address, no time. It waits for conditions. */
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How addresses are written: IPv4; IPv6 sockets with IPv4-mapped addresses; listeners on the dual-stack wildcard. */
enum family { FOUR, MAPPED, DUAL };
/* Which end of a pair the driver is. */
enum role { CONNECTING, ACCEPTING };

extern enum family family;
extern enum role role;

/* One case. `subject` is for those that a table makes. */
struct test_case {
    const char *name;
    void (*run)(const void *subject);
    const void *subject;
};

/* Cases register themselves in a section that the linker makes a table of. */
#define CASE(name)                                                                                         \
    static void name(const void *subject);                                                                 \
    static const struct test_case case_##name = {#name, name, NULL};                                       \
    __attribute__((used, section("cases"))) static const struct test_case *const entry_##name = &case_##name; \
    static void name(__attribute__((unused)) const void *subject)
#define CASE_OF(label, function, of)                                                                       \
    static const struct test_case case_##label = {#label, function, of};                                   \
    __attribute__((used, section("cases"))) static const struct test_case *const entry_##label = &case_##label

/* Observations. `told` writes the result of a call: its value, or its errno. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void told(const char *what, long result);
/* The result of a connect without blocking: done at once or under way, which is a matter of time. */
void begun(int result);
/* Writes the poll bits of now. */
void bits(const char *what, int fd);
const char *errno_name(int error);

/* Waiting, each at most forty seconds; what did not happen is said. */
bool until(int fd, short events);
bool until_all(int fd, short events);
bool until_readable(int fd, int bytes);
bool until_true(bool (*is_met)(void *), void *of, const char *what);

/* Sockets and names of this end. */
int new_socket(void);
int new_listener(int backlog, in_port_t *port);
bool bind_here(int fd, in_port_t port);
socklen_t my_name(struct sockaddr_storage *name, in_port_t port);
socklen_t peer_name(struct sockaddr_storage *name, in_port_t port);
in_port_t port_of(int fd);
/* "mine", "peer's", "any" or "other", without the port. */
const char *whose(const struct sockaddr_storage *name);
void set_int(int fd, int level, int name, int value);
int get_int(int fd, int level, int name);
void nonblocking(int fd, bool on);
int queued(int fd);

/* Signals: a handler that counts. */
extern volatile sig_atomic_t signals[65];
extern volatile sig_atomic_t signal_fd[65];
void count_signal(int number, int flags);
/* SIGALRM every 20 ms; `on_tick` runs in the handler, at the third. */
void ticking(int flags, void (*on_tick)(void));
void still(void);

/* A connected pair: our end, and the number of the peer's. */
struct pair {
    int fd;
    int far;
};
struct pair new_pair(void);
/* Fills our send queue; the socket blocks afterwards. */
void fill(struct pair pair);

/* Calls of the peer. */
enum call { LISTEN, ACCEPT, CONNECT, SEND, RECV, SHUTDOWN, CLOSE, SET, GET, FLOOD, DRAIN, WAIT, QUEUED, RESET, PORT, NONBLOCK, SPAWN_SEND, DIE };
long peer(enum call call, int fd, long a, long b, const void *bytes, size_t len);
/* The same without waiting for the answer, and the wait for it. */
void peer_begin(enum call call, int fd, long a, long b, const void *bytes, size_t len);
long peer_end(void);
extern char peer_bytes[65536];

static inline long peer_send(int far, const char *text) { return peer(SEND, far, 0, 0, text, strlen(text)); }
static inline long peer_recv(int far, long len) { return peer(RECV, far, len, 0, NULL, 0); }
static inline long peer_close(int far) { return peer(CLOSE, far, 0, 0, NULL, 0); }
/* Closes the peer's end with linger 0. */
static inline long peer_reset(int far) { return peer(RESET, far, 0, 0, NULL, 0); }
static inline long peer_shutdown(int far, int how) { return peer(SHUTDOWN, far, how, 0, NULL, 0); }
/* Waits, at most forty seconds, until the peer's end shows one of these bits; the bits it shows. */
static inline long peer_until(int far, short events) { return peer(WAIT, far, events, 0, NULL, 0); }

/* The pattern that FLOOD sends and DRAIN checks. */
static inline char pattern(size_t at) { return (char)(at * 31 + (at >> 8) * 7 + (at >> 16)); }
/* Sends, or receives and checks, so many bytes of the pattern, from `start`. */
bool flood(int fd, size_t start, size_t len);
bool drain(int fd, size_t start, size_t len);
