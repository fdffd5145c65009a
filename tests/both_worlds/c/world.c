/* The runner of the cases and the peer's side: each case in a process of its own, and another one for its peer. */
#include "world.h"
#include <netinet/ip.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define PATIENCE_MS 40000
#define CASE_MS 60000

enum family family;
enum role role;
char peer_bytes[65536];
volatile sig_atomic_t signals[65];
volatile sig_atomic_t signal_fd[65];

static struct in_addr mine, theirs;
static const int channel = STDIN_FILENO;
static uint32_t sequence;

struct outcome {
    size_t len;
    char text[8192];
};
static struct outcome *outcome;

/* ---- observations ---- */

void say(const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    if (outcome->len > 0 && outcome->len < sizeof outcome->text - 1)
        outcome->text[outcome->len++] = ' ';
    int n = vsnprintf(outcome->text + outcome->len, sizeof outcome->text - outcome->len, format, rest);
    va_end(rest);
    outcome->len += (size_t)n;
    if (outcome->len > sizeof outcome->text - 1)
        outcome->len = sizeof outcome->text - 1;
}

const char *errno_name(int error)
{
    const char *name = strerrorname_np(error);
    return name ? name : "?";
}

void told(const char *what, long result)
{
    if (result < 0)
        say("%s=%s", what, errno_name(errno));
    else
        say("%s=%ld", what, result);
}

void begun(int result)
{
    if (result < 0 && errno != EINPROGRESS)
        told("connect", result);
    else
        say("connect=begun");
}

static void say_bits(const char *what, unsigned now)
{
    static const struct { unsigned bit; const char *name; } names[] = {
        {POLLIN, "in"}, {POLLPRI, "pri"}, {POLLOUT, "out"}, {POLLRDHUP, "rdhup"},
        {POLLHUP, "hup"}, {POLLERR, "err"}, {POLLNVAL, "nval"},
    };
    char text[64] = "";
    for (size_t n = 0; n < sizeof names / sizeof *names; n++)
        if (now & names[n].bit) {
            if (*text)
                strcat(text, "|");
            strcat(text, names[n].name);
        }
    say("%s=%s", what, *text ? text : "none");
}

#define ALL_BITS (POLLIN | POLLPRI | POLLOUT | POLLRDHUP)

void bits(const char *what, int fd)
{
    struct pollfd one = {fd, ALL_BITS, 0};
    int n = poll(&one, 1, 0);
    if (n < 0)
        told(what, n);
    else
        say_bits(what, (unsigned short)one.revents);
}

/* ---- waiting ---- */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pause_ms(int ms)
{
    struct timespec span = {0, ms * 1000000L};
    nanosleep(&span, NULL);
}

bool until_true(bool (*is_met)(void *), void *of, const char *what)
{
    int64_t end = now_ms() + PATIENCE_MS;
    while (!is_met(of)) {
        if (now_ms() > end) {
            say("never-%s", what);
            return false;
        }
        pause_ms(2);
    }
    return true;
}

bool until(int fd, short events)
{
    struct pollfd one = {fd, events, 0};
    int n;
    do
        n = poll(&one, 1, PATIENCE_MS);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        say("never-ready");
    return n > 0;
}

struct wanted {
    int fd;
    int value;
};

static bool shows_all(void *of)
{
    const struct wanted *wanted = of;
    struct pollfd one = {wanted->fd, ALL_BITS, 0};
    poll(&one, 1, 0);
    return (one.revents & wanted->value) == wanted->value;
}

bool until_all(int fd, short events)
{
    struct wanted wanted = {fd, events};
    return until_true(shows_all, &wanted, "ready");
}

int queued(int fd)
{
    int count = -1;
    return ioctl(fd, FIONREAD, &count) < 0 ? -1 : count;
}

static bool has_queued(void *of)
{
    const struct wanted *wanted = of;
    return queued(wanted->fd) >= wanted->value;
}

bool until_readable(int fd, int bytes)
{
    struct wanted wanted = {fd, bytes};
    return until_true(has_queued, &wanted, "readable");
}

/* ---- names and options ---- */

static socklen_t name_in(struct sockaddr_storage *name, struct in_addr address, in_port_t port)
{
    memset(name, 0, sizeof *name);
    if (family == MAPPED) {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)name;
        six->sin6_family = AF_INET6;
        six->sin6_port = port;
        six->sin6_addr.s6_addr[10] = six->sin6_addr.s6_addr[11] = 0xff;
        memcpy(six->sin6_addr.s6_addr + 12, &address, 4);
        return sizeof *six;
    }
    struct sockaddr_in *four = (struct sockaddr_in *)name;
    four->sin_family = AF_INET;
    four->sin_port = port;
    four->sin_addr = address;
    return sizeof *four;
}

socklen_t my_name(struct sockaddr_storage *name, in_port_t port) { return name_in(name, mine, port); }
socklen_t peer_name(struct sockaddr_storage *name, in_port_t port) { return name_in(name, theirs, port); }

int new_socket(void) { return socket(family == MAPPED ? AF_INET6 : AF_INET, SOCK_STREAM, 0); }

bool bind_here(int fd, in_port_t port)
{
    struct sockaddr_storage name;
    socklen_t len = my_name(&name, port);
    return bind(fd, (struct sockaddr *)&name, len) == 0;
}

in_port_t port_of(int fd)
{
    struct sockaddr_storage name;
    socklen_t len = sizeof name;
    if (getsockname(fd, (struct sockaddr *)&name, &len) < 0)
        return 0;
    return name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port : ((struct sockaddr_in *)&name)->sin_port;
}

int new_listener(int backlog, in_port_t *port)
{
    int fd;
    bool is_bound;
    if (family == DUAL) {
        struct sockaddr_in6 any = {.sin6_family = AF_INET6};
        fd = socket(AF_INET6, SOCK_STREAM, 0);
        is_bound = bind(fd, (struct sockaddr *)&any, sizeof any) == 0;
    } else {
        fd = new_socket();
        is_bound = bind_here(fd, 0);
    }
    if (!is_bound || listen(fd, backlog) < 0)
        return -1;
    *port = port_of(fd);
    return fd;
}

const char *whose(const struct sockaddr_storage *name)
{
    struct in_addr address;
    if (name->ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)name;
        if (IN6_IS_ADDR_UNSPECIFIED(&six->sin6_addr))
            return "any6";
        if (!IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
            return "other6";
        memcpy(&address, six->sin6_addr.s6_addr + 12, 4);
        return address.s_addr == mine.s_addr ? "mine6" : address.s_addr == theirs.s_addr ? "peers6" : "other6";
    }
    if (name->ss_family != AF_INET)
        return "no-family";
    address = ((const struct sockaddr_in *)name)->sin_addr;
    return address.s_addr == mine.s_addr ? "mine" : address.s_addr == theirs.s_addr ? "peers" : address.s_addr == 0 ? "any" : "other";
}

void set_int(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof value) < 0)
        told("setsockopt", -1);
}

int get_int(int fd, int level, int name)
{
    int value = 0;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) < 0 ? -1 : value;
}

void nonblocking(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

/* ---- signals ---- */

static void (*tick)(void);

static void counting(int number, siginfo_t *info, void *context)
{
    (void)context;
    int error = errno;
    signals[number]++;
    signal_fd[number] = info->si_fd;
    if (number == SIGALRM && signals[number] == 3 && tick)
        tick();
    errno = error;
}

void count_signal(int number, int flags)
{
    struct sigaction action = {.sa_sigaction = counting, .sa_flags = flags | SA_SIGINFO};
    sigaction(number, &action, NULL);
}

void ticking(int flags, void (*on_tick)(void))
{
    tick = on_tick;
    count_signal(SIGALRM, flags);
    struct itimerval timer = {{0, 20000}, {0, 20000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

void still(void)
{
    struct itimerval timer = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* ---- bytes ---- */

bool flood(int fd, size_t start, size_t len)
{
    char block[16384];
    while (len > 0) {
        size_t n = len < sizeof block ? len : sizeof block;
        for (size_t i = 0; i < n; i++)
            block[i] = pattern(start + i);
        ssize_t sent = send(fd, block, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        start += (size_t)sent;
        len -= (size_t)sent;
    }
    return true;
}

bool drain(int fd, size_t start, size_t len)
{
    char block[16384];
    while (len > 0) {
        ssize_t n = recv(fd, block, len < sizeof block ? len : sizeof block, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        for (ssize_t i = 0; i < n; i++)
            if (block[i] != pattern(start + (size_t)i))
                return false;
        start += (size_t)n;
        len -= (size_t)n;
    }
    return true;
}

/* ---- the peer ---- */

struct request {
    uint32_t sequence;
    int32_t call, fd;
    int64_t a, b;
    uint32_t len;
    char bytes[65536];
};

struct answer {
    uint32_t sequence;
    int32_t error;
    int64_t result;
    uint32_t len;
    char bytes[65536];
};

#define HEAD(type) offsetof(struct type, bytes)
#define BEGIN (-1)

void peer_begin(enum call call, int fd, long a, long b, const void *bytes, size_t len)
{
    static struct request request;
    request = (struct request){.sequence = ++sequence, .call = (int32_t)call, .fd = fd, .a = a, .b = b, .len = (uint32_t)len};
    memcpy(request.bytes, bytes ? bytes : "", len);
    if (send(channel, &request, HEAD(request) + len, 0) < 0)
        say("peer-gone");
}

long peer_end(void)
{
    static struct answer answer;
    for (;;) {
        ssize_t n = recv(channel, &answer, sizeof answer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            say("peer-gone");
            errno = ECHILD;
            return -1;
        }
        /* Answers to a case before this one are late. */
        if (answer.sequence == sequence)
            break;
    }
    memcpy(peer_bytes, answer.bytes, answer.len);
    errno = answer.error;
    return answer.error ? -1 : answer.result;
}

long peer(enum call call, int fd, long a, long b, const void *bytes, size_t len)
{
    peer_begin(call, fd, a, b, bytes, len);
    return peer_end();
}

/* Bound, or the kernel would take another address of the loopback network. */
static int connect_to(in_port_t port)
{
    struct sockaddr_storage name;
    int fd = new_socket();
    bind_here(fd, 0);
    socklen_t len = peer_name(&name, port);
    if (connect(fd, (struct sockaddr *)&name, len) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static long shown(int fd, short events)
{
    struct pollfd one = {fd, ALL_BITS, 0};
    int64_t end = now_ms() + PATIENCE_MS;
    while (poll(&one, 1, 0) >= 0 && events && !(one.revents & events) && now_ms() < end)
        pause_ms(2);
    return one.revents;
}

static long serve(const struct request *r, struct answer *answer)
{
    in_port_t port = 0;
    int fd;
    socklen_t len;
    switch (r->call) {
    case LISTEN:
        fd = new_listener((int)r->a, &port);
        memcpy(answer->bytes, &port, sizeof port);
        answer->len = sizeof port;
        return fd;
    case ACCEPT:
        return accept(r->fd, NULL, NULL);
    case CONNECT:
        return connect_to((in_port_t)r->a);
    case SEND:
        return send(r->fd, r->bytes, r->len, (int)r->a | MSG_NOSIGNAL);
    case RECV: {
        long n = recv(r->fd, answer->bytes, (size_t)r->a, (int)r->b);
        answer->len = n > 0 ? (uint32_t)n : 0;
        return n;
    }
    case SHUTDOWN:
        return shutdown(r->fd, (int)r->a);
    case CLOSE:
        return close(r->fd);
    case SET:
        return setsockopt(r->fd, (int)r->a, (int)r->b, r->bytes, r->len);
    case GET:
        len = sizeof(int);
        answer->len = len;
        return getsockopt(r->fd, (int)r->a, (int)r->b, answer->bytes, &len);
    case FLOOD:
        return flood(r->fd, (size_t)r->b, (size_t)r->a) ? r->a : -1;
    case DRAIN:
        return drain(r->fd, (size_t)r->b, (size_t)r->a) ? r->a : -1;
    case WAIT:
        return shown(r->fd, (short)r->a);
    case QUEUED:
        return queued(r->fd);
    case RESET: {
        struct linger now = {1, 0};
        setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        return close(r->fd);
    }
    case PORT:
        return port_of(r->fd);
    case NONBLOCK:
        nonblocking(r->fd, r->a);
        return 0;
    case SPAWN_SEND: {
        /* A child sends and exits, the peer keeps its descriptor. */
        pid_t child = fork();
        if (child == 0)
            _exit(send(r->fd, r->bytes, r->len, 0) == (ssize_t)r->len ? 0 : 1);
        int status;
        return waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
    }
    case DIE:
        raise(SIGKILL);
        return -1;
    default:
        errno = ENOSYS;
        return -1;
    }
}

static void answer_to(const struct request *r, struct answer *answer, long result)
{
    answer->sequence = r->sequence;
    answer->error = result < 0 ? errno : 0;
    answer->result = result;
    send(channel, answer, HEAD(answer) + answer->len, 0);
}

/* Serves the cases, each in a child: what one leaves behind does not touch the next. */
static int be_the_peer(void)
{
    static struct request request;
    static struct answer answer;
    for (;;) {
        ssize_t n = recv(channel, &request, sizeof request, 0);
        if (n <= 0)
            return 0;
        /* A call that the case's child did not live to read. */
        if (request.call != BEGIN)
            continue;
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            answer.len = 0;
            answer_to(&request, &answer, getpid());
            while (recv(channel, &request, sizeof request, 0) > 0) {
                answer.len = 0;
                errno = 0;
                answer_to(&request, &answer, serve(&request, &answer));
            }
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
}

/* ---- pairs ---- */

static struct pair try_pair(void)
{
    struct pair pair = {-1, -1};
    if (role == CONNECTING) {
        int listener = (int)peer(LISTEN, -1, 8, 0, NULL, 0);
        in_port_t port;
        memcpy(&port, peer_bytes, sizeof port);
        pair.fd = connect_to(port);
        pair.far = (int)peer(ACCEPT, listener, 0, 0, NULL, 0);
        peer_close(listener);
    } else {
        in_port_t port;
        int listener = new_listener(8, &port);
        pair.far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
        pair.fd = accept(listener, NULL, NULL);
        close(listener);
    }
    return pair;
}

struct pair new_pair(void)
{
    struct pair pair = try_pair();
    if (pair.fd < 0 || pair.far < 0)
        say("no-pair");
    return pair;
}

/* Until nothing more goes in: what is under way may make room once more. Buffers that were set do not grow meanwhile. */
void fill(struct pair p)
{
    static const char block[1 << 16];
    int room = 1 << 17;
    set_int(p.fd, SOL_SOCKET, SO_SNDBUF, room);
    peer(SET, p.far, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    nonblocking(p.fd, true);
    struct pollfd one = {p.fd, POLLOUT, 0};
    bool is_quiet = false;
    while (!is_quiet) {
        while (send(p.fd, block, sizeof block, MSG_NOSIGNAL) > 0)
            ;
        bool has_room = poll(&one, 1, 1000) > 0 && !(one.revents & (POLLHUP | POLLERR));
        /* A little room does not count as writable. */
        is_quiet = !has_room && send(p.fd, block, sizeof block, MSG_NOSIGNAL) <= 0;
    }
    nonblocking(p.fd, false);
}

/* ---- the runner ---- */

extern const struct test_case *const __start_cases[], *const __stop_cases[];

static bool ends_within(int watch, int ms)
{
    struct pollfd one = {watch, POLLIN, 0};
    return poll(&one, 1, ms) > 0;
}

static void run_case(const struct test_case *test)
{
    outcome->len = 0;
    outcome->text[0] = 0;
    static struct request begin;
    begin = (struct request){.sequence = ++sequence, .call = BEGIN};
    if (send(channel, &begin, HEAD(request), 0) < 0) {
        printf("%s: no peer\n", test->name);
        exit(2);
    }
    pid_t far = (pid_t)peer_end();
    int far_watch = far > 0 ? (int)syscall(SYS_pidfd_open, far, 0) : -1;
    if (far_watch < 0) {
        printf("%s: no peer\n", test->name);
        exit(2);
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        test->run(test->subject);
        _exit(0);
    }
    int watch = (int)syscall(SYS_pidfd_open, child, 0);
    if (!ends_within(watch, CASE_MS)) {
        say("still-running");
        kill(child, SIGKILL);
    }
    int status;
    waitpid(child, &status, 0);
    /* The next case's first message must not meet it alive. */
    syscall(SYS_pidfd_send_signal, far_watch, SIGKILL, NULL, 0);
    ends_within(far_watch, -1);
    close(watch);
    close(far_watch);
    /* Numbers of the child's requests: at most as many as a case makes. */
    sequence += 100000;
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
        say("killed-by=%s", sigabbrev_np(WTERMSIG(status)));
    printf("%s: %s\n", test->name, outcome->text);
    fflush(stdout);
}

static bool is_asked_for(const char *name, char **only)
{
    if (!*only)
        return true;
    for (; *only; only++)
        if (strcmp(name, *only) == 0 || (strchr(*only, '*') && strncmp(name, *only, strlen(*only) - 1) == 0))
            return true;
    return false;
}

/* cases driver|peer FAMILY ROLE MY-ADDRESS PEER-ADDRESS [CASE...], with a SEQPACKET socket to the other one as standard input */
int main(int argc, char **argv)
{
    if (argc < 6) {
        for (const struct test_case *const *test = __start_cases; test < __stop_cases; test++)
            puts((*test)->name);
        return 0;
    }
    family = strcmp(argv[2], "mapped") == 0 ? MAPPED : strcmp(argv[2], "dual") == 0 ? DUAL : FOUR;
    role = strcmp(argv[3], "accepting") == 0 ? ACCEPTING : CONNECTING;
    if (!inet_aton(argv[4], &mine) || !inet_aton(argv[5], &theirs))
        return 2;
    signal(SIGPIPE, SIG_DFL);
    if (strcmp(argv[1], "peer") == 0)
        return be_the_peer();
    outcome = mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (const struct test_case *const *test = __start_cases; test < __stop_cases; test++)
        if (is_asked_for((*test)->name, argv + 6))
            run_case(*test);
    return 0;
}
