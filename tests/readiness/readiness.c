// What poll, select and epoll show of TCP connections: a table of cases, each of which prints what it saw. The program is both ends of
// its connections, on 127.0.0.1, so that one process run natively and one run over the SAN can be compared line by line.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { printf("line %d: %s, errno %d\n", __LINE__, #c, errno); fflush(stdout); exit(1); } } while (0)
#define PATIENCE 20000

static const char *current;

static void show_bits(uint32_t bits) {
  static const struct { uint32_t bit; const char *name; } names[] = {
    {EPOLLIN, "IN"}, {EPOLLPRI, "PRI"}, {EPOLLOUT, "OUT"}, {EPOLLRDNORM, "RDNORM"}, {EPOLLWRNORM, "WRNORM"},
    {EPOLLERR, "ERR"}, {EPOLLHUP, "HUP"}, {EPOLLRDHUP, "RDHUP"}};
  if (!bits) printf(" -");
  for (size_t n = 0; n < sizeof names / sizeof *names; n++)
    if (bits & names[n].bit) printf(" %s", names[n].name);
}

static void show(const char *what, uint32_t bits) {
  printf("%s: %s:", current, what);
  show_bits(bits);
  printf("\n");
}

static void number(const char *what, long value) { printf("%s: %s: %ld\n", current, what, value); }

// A listener on 127.0.0.1.
static int listener(struct sockaddr_in *name) {
  int l = socket(AF_INET, SOCK_STREAM, 0);
  *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  CHECK(bind(l, (void *)name, sizeof *name) == 0);
  CHECK(listen(l, 16) == 0);
  CHECK(getsockname(l, (void *)name, &(socklen_t){sizeof *name}) == 0);
  return l;
}

// Both ends of a connection, non-blocking.
static void connection(int end[2]) {
  struct sockaddr_in name;
  int l = listener(&name);
  end[0] = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(connect(end[0], (void *)&name, sizeof name) == 0);
  end[1] = accept(l, 0, 0);
  CHECK(end[1] >= 0);
  CHECK(close(l) == 0);
  for (int n = 0; n < 2; n++) CHECK(fcntl(end[n], F_SETFL, O_NONBLOCK) == 0);
}

static uint32_t now(int fd, short events) {
  struct pollfd p = {fd, events, 0};
  CHECK(poll(&p, 1, 0) >= 0);
  return (uint16_t)p.revents;
}

// Waits until all of these bits are there. What is on its way between the ends has arrived then.
static void until(int fd, uint16_t bits) {
  for (int n = 0; (now(fd, bits) & bits) != bits; n++) {
    if (n > PATIENCE) { printf("%s: never", current); show_bits(bits); printf("\n"); exit(1); }
    poll(0, 0, 1);
  }
}

static int add(int set, int fd, uint32_t events, uint64_t data) {
  struct epoll_event e = {events, {.u64 = data}};
  return epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int set, int fd, uint32_t events, uint64_t data) {
  struct epoll_event e = {events, {.u64 = data}};
  return epoll_ctl(set, EPOLL_CTL_MOD, fd, &e);
}

// One wait, as a line. The order of events is nobody's promise, so they are shown by their data.
static int wait_for(const char *what, int set, int timeout) {
  struct epoll_event e[16];
  int n = epoll_wait(set, e, 16, timeout);
  printf("%s: %s: %d", current, what, n);
  for (uint64_t data = 0; data < 100; data++)
    for (int k = 0; k < n; k++)
      if (e[k].data.u64 == data) { printf(" [%d", (int)data); show_bits(e[k].events); printf("]"); }
  printf("\n");
  return n;
}

static void settle(void) { poll(0, 0, 30); }

static const short EVERYTHING = POLLIN | POLLPRI | POLLOUT | POLLRDHUP | POLLRDNORM | POLLWRNORM;
static char much[1 << 20];

// ---- bits

static void bits_of_states(void) {
  int e[2];
  int fresh = socket(AF_INET, SOCK_STREAM, 0);
  show("fresh", now(fresh, EVERYTHING));
  close(fresh);
  connection(e);
  show("idle", now(e[0], EVERYTHING));
  CHECK(send(e[1], "x", 1, 0) == 1);
  until(e[0], POLLIN);
  show("data", now(e[0], EVERYTHING));
  show("data, not asked", now(e[0], POLLRDHUP));
  CHECK(recv(e[0], much, 1, 0) == 1);
  show("read", now(e[0], EVERYTHING));
  CHECK(shutdown(e[1], SHUT_WR) == 0);
  until(e[0], POLLRDHUP);
  show("peer shut", now(e[0], EVERYTHING));
  show("own shut", now(e[1], EVERYTHING));
  CHECK(shutdown(e[0], SHUT_WR) == 0);
  until(e[0], POLLHUP);
  until(e[1], POLLHUP);
  show("both shut", now(e[0], EVERYTHING));
  show("both shut, nothing asked", now(e[1], 0));
  close(e[0]);
  close(e[1]);
  connection(e);
  CHECK(shutdown(e[0], SHUT_RD) == 0);
  show("read side shut", now(e[0], EVERYTHING));
  close(e[0]);
  close(e[1]);
  connection(e);
  CHECK(close(e[1]) == 0);
  until(e[0], POLLRDHUP);
  show("peer closed", now(e[0], EVERYTHING));
  close(e[0]);
  connection(e);
  CHECK(send(e[0], "unread", 6, 0) == 6);
  until(e[1], POLLIN);
  CHECK(close(e[1]) == 0);
  until(e[0], POLLERR);
  show("reset", now(e[0], EVERYTHING));
  int error = 0;
  CHECK(getsockopt(e[0], SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error}) == 0);
  number("error", error);
  show("reset, error taken", now(e[0], EVERYTHING));
  close(e[0]);
}

static void listeners_and_connects(void) {
  struct sockaddr_in name;
  int l = listener(&name);
  show("listener", now(l, EVERYTHING));
  int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  int set = epoll_create1(0);
  CHECK(add(set, c, EPOLLIN | EPOLLOUT | EPOLLET, 1) == 0);
  CHECK(add(set, l, EPOLLIN | EPOLLOUT | EPOLLRDHUP, 2) == 0);
  wait_for("fresh", set, 0);
  int r = connect(c, (void *)&name, sizeof name);
  CHECK(r == 0 || errno == EINPROGRESS);
  until(c, POLLOUT);
  until(l, POLLIN);
  wait_for("connected", set, PATIENCE);
  show("listener with one", now(l, EVERYTHING));
  int a = accept(l, 0, 0);
  CHECK(a >= 0);
  show("listener emptied", now(l, EVERYTHING));
  close(a);
  close(c);
  // Nobody there.
  close(l);
  c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  CHECK(add(set, c, EPOLLIN | EPOLLOUT, 3) == 0);
  r = connect(c, (void *)&name, sizeof name);
  CHECK(r == 0 || errno == EINPROGRESS || errno == ECONNREFUSED);
  if (errno == EINPROGRESS) until(c, POLLHUP);
  close(c);
  close(set);
}

static void full_and_room(void) {
  int e[2];
  connection(e);
  int set = epoll_create1(0);
  CHECK(add(set, e[0], EPOLLIN | EPOLLOUT | EPOLLET, 1) == 0);
  wait_for("room", set, 0);
  wait_for("told", set, 0);
  long sent = 0;
  for (int quiet = 0; quiet < 30; quiet++) {
    for (ssize_t n; (n = send(e[0], much, sizeof much, 0)) > 0; quiet = 0) sent += n;
    poll(0, 0, 2);
  }
  show("full", now(e[0], EVERYTHING));
  epoll_wait(set, &(struct epoll_event){0}, 1, 0);
  wait_for("full", set, 0);
  long got = 0;
  while (got < sent) {
    ssize_t n = recv(e[1], much, sizeof much, 0);
    if (n > 0) got += n;
    else CHECK(n < 0 && errno == EAGAIN);
  }
  until(e[0], POLLOUT);
  wait_for("room again", set, PATIENCE);
  show("empty", now(e[0], EVERYTHING));
  close(e[0]); close(e[1]); close(set);
}

// ---- modes of epoll

static void level_edge_and_one_shot(void) {
  int e[2], l = epoll_create1(0), edge = epoll_create1(0), once = epoll_create1(0);
  connection(e);
  CHECK(add(l, e[0], EPOLLIN, 1) == 0);
  CHECK(add(edge, e[0], EPOLLIN | EPOLLET, 2) == 0);
  CHECK(add(once, e[0], EPOLLIN | EPOLLONESHOT, 3) == 0);
  for (int round = 0; round < 2; round++) {
    CHECK(send(e[1], "xy", 2, 0) == 2);
    until(e[0], POLLIN);
    settle();
    wait_for("level", l, PATIENCE);
    wait_for("level again", l, 0);
    if (round == 0) wait_for("edge", edge, PATIENCE); else wait_for("edge, more came", edge, PATIENCE);
    wait_for("edge again", edge, 0);
    wait_for("once", once, round == 0 ? PATIENCE : 0);
    wait_for("once again", once, 0);
    CHECK(recv(e[0], much, 1, 0) == 1);
    wait_for("level, one read", l, 0);
    wait_for("edge, one read", edge, 0);
  }
  CHECK(mod(once, e[0], EPOLLIN | EPOLLONESHOT, 4) == 0);
  wait_for("armed again", once, PATIENCE);
  CHECK(mod(edge, e[0], EPOLLIN | EPOLLET, 5) == 0);
  wait_for("edge set anew", edge, PATIENCE);
  CHECK(recv(e[0], much, 10, 0) == 2);
  wait_for("level, read", l, 0);
  CHECK(epoll_ctl(l, EPOLL_CTL_DEL, e[0], 0) == 0);
  number("gone", epoll_ctl(l, EPOLL_CTL_DEL, e[0], 0) ? errno : 0);
  number("twice", add(edge, e[0], EPOLLIN, 1) ? errno : 0);
  close(e[0]); close(e[1]); close(l); close(edge); close(once);
}

static void exclusive(void) {
  int e[2], a = epoll_create1(0), b = epoll_create1(0);
  connection(e);
  CHECK(add(a, e[0], EPOLLIN | EPOLLEXCLUSIVE, 1) == 0);
  CHECK(add(b, e[0], EPOLLIN | EPOLLEXCLUSIVE, 2) == 0);
  number("with oneshot", add(epoll_create1(0), e[0], EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 2) ? errno : 0);
  number("changed", mod(a, e[0], EPOLLIN, 2) ? errno : 0);
  CHECK(send(e[1], "x", 1, 0) == 1);
  until(e[0], POLLIN);
  wait_for("first", a, PATIENCE);
  wait_for("second", b, PATIENCE);
  close(e[0]); close(e[1]); close(a); close(b);
}

static void added_late_and_several_descriptors(void) {
  int e[2], set = epoll_create1(0), other = epoll_create1(0);
  connection(e);
  CHECK(send(e[1], "x", 1, 0) == 1);
  until(e[0], POLLIN);
  CHECK(add(set, e[0], EPOLLIN | EPOLLET, 1) == 0);
  wait_for("after data", set, PATIENCE);
  int copy = dup(e[0]);
  CHECK(add(set, copy, EPOLLIN | EPOLLOUT, 2) == 0);
  CHECK(add(other, copy, EPOLLIN, 3) == 0);
  wait_for("by its copy too", set, PATIENCE);
  wait_for("in another set", other, PATIENCE);
  CHECK(close(e[0]) == 0);
  wait_for("first number closed", set, 0);
  CHECK(send(e[1], "y", 1, 0) == 1);
  settle();
  until(copy, POLLIN);
  wait_for("still told by both", set, PATIENCE);
  CHECK(close(copy) == 0);
  wait_for("closed", set, 0);
  wait_for("closed", other, 0);
  close(e[1]); close(set); close(other);
}

static void beside_kernel_descriptors(void) {
  int e[2], p[2], set = epoll_create1(0);
  connection(e);
  CHECK(pipe(p) == 0);
  int event = eventfd(0, 0);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  CHECK(sigprocmask(SIG_BLOCK, &mask, 0) == 0);
  int sig = signalfd(-1, &mask, 0);
  int timer = timerfd_create(CLOCK_MONOTONIC, 0);
  CHECK(add(set, e[0], EPOLLIN, 1) == 0);
  CHECK(add(set, p[0], EPOLLIN, 2) == 0);
  CHECK(add(set, event, EPOLLIN, 3) == 0);
  CHECK(add(set, sig, EPOLLIN, 4) == 0);
  CHECK(add(set, timer, EPOLLIN, 5) == 0);
  wait_for("nothing", set, 0);
  CHECK(write(p[1], "x", 1) == 1);
  wait_for("pipe", set, PATIENCE);
  CHECK(read(p[0], much, 1) == 1);
  CHECK(write(event, &(uint64_t){1}, 8) == 8);
  wait_for("eventfd", set, PATIENCE);
  CHECK(read(event, much, 8) == 8);
  CHECK(kill(getpid(), SIGUSR1) == 0);
  wait_for("signalfd", set, PATIENCE);
  CHECK(read(sig, much, sizeof much) > 0);
  struct itimerspec soon = {.it_value.tv_nsec = 1000000};
  CHECK(timerfd_settime(timer, 0, &soon, 0) == 0);
  wait_for("timerfd", set, PATIENCE);
  CHECK(read(timer, much, 8) == 8);
  CHECK(send(e[1], "x", 1, 0) == 1);
  wait_for("socket", set, PATIENCE);
  CHECK(write(p[1], "x", 1) == 1 && write(event, &(uint64_t){1}, 8) == 8);
  wait_for("all", set, PATIENCE);
  // One place: each gets its turn.
  int seen[6] = {0};
  for (int n = 0; n < 12; n++) {
    struct epoll_event one;
    CHECK(epoll_wait(set, &one, 1, PATIENCE) == 1);
    seen[one.data.u64]++;
  }
  number("each in its turn", seen[1] && seen[2] && seen[3]);
  CHECK(sigprocmask(SIG_UNBLOCK, &mask, 0) == 0);
  close(e[0]); close(e[1]); close(p[0]); close(p[1]); close(event); close(sig); close(timer); close(set);
}

static void precise_waits_and_masks(void) {
  int e[2], set = epoll_create1(0);
  connection(e);
  CHECK(add(set, e[0], EPOLLIN, 1) == 0);
  struct epoll_event ev;
  number("0 ns", epoll_pwait2(set, &ev, 1, &(struct timespec){0}, 0));
  number("1 ms", epoll_pwait2(set, &ev, 1, &(struct timespec){.tv_nsec = 1000000}, 0));
  number("bad span", epoll_pwait2(set, &ev, 1, &(struct timespec){.tv_nsec = 1000000000}, 0) < 0 ? errno : 0);
  number("no room", epoll_wait(set, &ev, 0, 0) < 0 ? errno : 0);
  CHECK(send(e[1], "x", 1, 0) == 1);
  number("for ever", epoll_pwait2(set, &ev, 1, 0, 0));
  number("signals masked", epoll_pwait(set, &ev, 1, PATIENCE, &(sigset_t){{0}}));
  struct pollfd p = {e[0], POLLIN, 0};
  number("ppoll", ppoll(&p, 1, &(struct timespec){.tv_sec = 5}, 0));
  fd_set in, out, except;
  FD_ZERO(&in); FD_ZERO(&out); FD_ZERO(&except);
  FD_SET(e[0], &in); FD_SET(e[0], &out); FD_SET(e[0], &except);
  number("select", select(e[0] + 1, &in, &out, &except, &(struct timeval){5, 0}));
  printf("%s: sets: %d %d %d\n", current, FD_ISSET(e[0], &in) != 0, FD_ISSET(e[0], &out) != 0, FD_ISSET(e[0], &except) != 0);
  FD_ZERO(&in); FD_SET(e[1], &in);
  number("pselect", pselect(e[1] + 1, &in, 0, 0, &(struct timespec){.tv_nsec = 1000000}, 0));
  close(e[0]); close(e[1]); close(set);
}

static void around_the_library(void) {
  int e[2], set = epoll_create1(0);
  connection(e);
  CHECK(add(set, e[0], EPOLLIN, 1) == 0);
  CHECK(send(e[1], "x", 1, 0) == 1);
  struct epoll_event ev;
  number("epoll_wait", syscall(SYS_epoll_wait, set, &ev, 1, PATIENCE));
  number("epoll_pwait", syscall(SYS_epoll_pwait, set, &ev, 1, PATIENCE, 0, 8));
  struct pollfd p = {e[0], POLLIN, 0};
  number("poll", syscall(SYS_poll, &p, 1, PATIENCE));
  close(e[0]); close(e[1]); close(set);
}

// ---- sets within sets

static void nested(void) {
  int e[2], p[2], inner = epoll_create1(0), outer = epoll_create1(0), top = epoll_create1(0);
  connection(e);
  CHECK(pipe(p) == 0);
  CHECK(add(inner, e[0], EPOLLIN, 1) == 0);
  CHECK(add(outer, inner, EPOLLIN, 2) == 0);
  CHECK(add(top, outer, EPOLLIN, 3) == 0);
  CHECK(add(inner, p[0], EPOLLIN, 4) == 0);
  number("into itself", add(inner, inner, EPOLLIN, 1) ? errno : 0);
  number("a circle", add(inner, top, EPOLLIN, 1) ? errno : 0);
  wait_for("idle", top, 0);
  show("idle", now(inner, EVERYTHING));
  CHECK(send(e[1], "x", 1, 0) == 1);
  wait_for("data, from the top", top, PATIENCE);
  wait_for("in the middle", outer, PATIENCE);
  show("polled", now(inner, EVERYTHING));
  show("polled at the top", now(top, POLLIN));
  wait_for("inside", inner, PATIENCE);
  wait_for("still", outer, 0);
  CHECK(recv(e[0], much, 10, 0) == 1);
  wait_for("read", top, 0);
  show("read", now(inner, POLLIN));
  CHECK(write(p[1], "x", 1) == 1);
  wait_for("a pipe", top, PATIENCE);
  CHECK(send(e[1], "x", 1, 0) == 1);
  until(e[0], POLLIN);
  wait_for("a pipe and data", top, PATIENCE);
  CHECK(read(p[0], much, 1) == 1);
  wait_for("data alone", top, PATIENCE);
  CHECK(epoll_ctl(outer, EPOLL_CTL_DEL, inner, 0) == 0);
  wait_for("taken out", top, 0);
  CHECK(add(outer, inner, EPOLLIN | EPOLLONESHOT, 5) == 0);
  wait_for("once", outer, PATIENCE);
  wait_for("and no more", outer, 0);
  CHECK(mod(outer, inner, EPOLLIN | EPOLLET, 6) == 0);
  wait_for("by edge", outer, PATIENCE);
  wait_for("and no more", outer, 0);
  CHECK(recv(e[0], much, 10, 0) == 1);
  CHECK(send(e[1], "x", 1, 0) == 1);
  wait_for("another edge", outer, PATIENCE);
  CHECK(close(inner) == 0);
  wait_for("closed", outer, 0);
  close(e[0]); close(e[1]); close(p[0]); close(p[1]); close(outer); close(top);
}

static void nested_before_connect_and_by_edge(void) {
  struct sockaddr_in name;
  int l = listener(&name), c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  int inner = epoll_create1(0), outer = epoll_create1(0);
  CHECK(add(inner, c, EPOLLIN | EPOLLET, 1) == 0);
  CHECK(add(inner, l, EPOLLIN, 2) == 0);
  CHECK(add(outer, inner, EPOLLIN, 3) == 0);
  epoll_wait(inner, &(struct epoll_event){0}, 1, 0);
  int r = connect(c, (void *)&name, sizeof name);
  CHECK(r == 0 || errno == EINPROGRESS);
  until(c, POLLOUT);
  wait_for("a request", outer, PATIENCE);
  int a = accept(l, 0, 0);
  CHECK(a >= 0);
  while (epoll_wait(inner, &(struct epoll_event){0}, 1, 0) > 0);
  wait_for("nothing more", outer, 0);
  CHECK(send(a, "x", 1, 0) == 1);
  wait_for("data", outer, PATIENCE);
  wait_for("an edge inside", inner, PATIENCE);
  wait_for("taken, although unread", outer, 0);
  close(c); close(a); close(l); close(inner); close(outer);
}

static atomic_int woken;

static void *sleeper(void *set) {
  struct epoll_event e;
  int n = epoll_wait(*(int *)set, &e, 1, PATIENCE);
  woken++;
  return (void *)(intptr_t)(n == 1 ? (int)e.data.u64 : -1);
}

static int is_asleep(pthread_t thread) {
  // Asleep or about to be: what follows must wake it in both cases.
  (void)thread;
  settle();
  return 1;
}

static void threads(void) {
  int e[2], inner = epoll_create1(0), outer = epoll_create1(0);
  pthread_t t[3];
  void *result;
  connection(e);
  // A sleeper in a set that gets its connection, and then data, later.
  CHECK(add(outer, inner, EPOLLIN, 1) == 0);
  pthread_create(&t[0], 0, sleeper, &outer);
  pthread_create(&t[1], 0, sleeper, &inner);
  is_asleep(t[0]);
  CHECK(add(inner, e[0], EPOLLIN, 2) == 0);
  is_asleep(t[0]);
  CHECK(send(e[1], "x", 1, 0) == 1);
  for (int n = 0; n < 2; n++) { pthread_join(t[n], &result); number("woken with", (intptr_t)result); }
  // Several sleepers of one set: what stays ready wakes all of them.
  CHECK(recv(e[0], much, 1, 0) == 1);
  for (int n = 0; n < 3; n++) pthread_create(&t[n], 0, sleeper, &inner);
  is_asleep(t[0]);
  CHECK(send(e[1], "x", 1, 0) == 1);
  for (int n = 0; n < 3; n++) { pthread_join(t[n], &result); number("by level", (intptr_t)result); }
  // By edge, each arrival wakes one.
  CHECK(recv(e[0], much, 1, 0) == 1);
  CHECK(mod(inner, e[0], EPOLLIN | EPOLLET, 3) == 0);
  for (int n = 0; n < 2; n++) pthread_create(&t[n], 0, sleeper, &inner);
  is_asleep(t[0]);
  woken = 0;
  for (int n = 0; n < 2; n++) {
    CHECK(send(e[1], "x", 1, 0) == 1);
    // Before the first one has taken its edge, the second arrival would be part of it.
    while (woken <= n) sched_yield();
  }
  for (int n = 0; n < 2; n++) { pthread_join(t[n], &result); number("by edge", (intptr_t)result); }
  // A poll on a set.
  CHECK(recv(e[0], much, 2, 0) == 2);
  CHECK(mod(inner, e[0], EPOLLIN, 4) == 0);
  pthread_create(&t[0], 0, sleeper, &inner);
  struct pollfd p[2] = {{inner, POLLIN, 0}, {outer, POLLIN, 0}};
  CHECK(poll(p, 2, 0) == 0);
  CHECK(send(e[1], "x", 1, 0) == 1);
  while (poll(p, 2, PATIENCE) != 2);
  show("polled", p[0].revents);
  show("polled outside", p[1].revents);
  pthread_join(t[0], &result);
  number("beside", (intptr_t)result);
  close(e[0]); close(e[1]); close(inner); close(outer);
}

static pthread_barrier_t together;
static int shared_set;

static void *adds(void *fd) {
  pthread_barrier_wait(&together);
  CHECK(add(shared_set, *(int *)fd, EPOLLIN, *(int *)fd) == 0);
  return 0;
}

// Sets in which threads sleep before there is a socket in them.
static void sockets_for_sleepers(void) {
  int e[2], set = epoll_create1(0);
  pthread_t t[4];
  void *result;
  connection(e);
  for (int n = 0; n < 4; n++) pthread_create(&t[n], 0, sleeper, &set);
  is_asleep(t[0]);
  CHECK(add(set, e[0], EPOLLIN, 5) == 0);
  CHECK(send(e[1], "x", 1, 0) == 1);
  for (int n = 0; n < 4; n++) { pthread_join(t[n], &result); number("all of them", (intptr_t)result); }
  close(set);
  // The data is there already, and a sleeper of before has gone without a word.
  set = epoll_create1(0);
  pthread_create(&t[0], 0, sleeper, &set);
  is_asleep(t[0]);
  CHECK(pthread_cancel(t[0]) == 0 && pthread_join(t[0], &result) == 0);
  pthread_create(&t[1], 0, sleeper, &set);
  is_asleep(t[1]);
  until(e[0], POLLIN);
  CHECK(add(set, e[0], EPOLLIN | EPOLLET, 6) == 0);
  pthread_join(t[1], &result);
  number("after a cancelled one", (intptr_t)result);
  close(set);
  // A set by two names: sockets come by the one, threads sleep on the other.
  for (int made = 0; made < 2; made++) {
    set = epoll_create1(0);
    int name = made ? fcntl(set, F_DUPFD_CLOEXEC, 0) : dup(set);
    pthread_create(&t[0], 0, sleeper, &set);
    is_asleep(t[0]);
    CHECK(add(name, e[0], EPOLLIN, 7) == 0);
    pthread_join(t[0], &result);
    number("by its other name", (intptr_t)result);
    struct epoll_event event;
    number("by its first name", epoll_wait(set, &event, 1, 0));
    close(set);
    number("the name that is left", epoll_wait(name, &event, 1, 0));
    close(name);
  }
  // Two threads give a set its first sockets at once.
  CHECK(send(e[0], "y", 1, 0) == 1);
  until(e[1], POLLIN);
  pthread_barrier_init(&together, 0, 2);
  int both = 0;
  for (int round = 0; round < 50; round++) {
    shared_set = epoll_create1(0);
    for (int n = 0; n < 2; n++) pthread_create(&t[n], 0, adds, &e[n]);
    for (int n = 0; n < 2; n++) pthread_join(t[n], &result);
    struct epoll_event events[4];
    both += epoll_wait(shared_set, events, 4, 0) == 2;
    close(shared_set);
  }
  number("both are in it", both);
  close(e[0]); close(e[1]);
}

// ---- forks

static void shared_over_fork(void) {
  int e[2], p[2], set = epoll_create1(0), outer = epoll_create1(0);
  connection(e);
  CHECK(pipe(p) == 0);
  CHECK(add(set, e[0], EPOLLIN, 1) == 0);
  CHECK(add(set, p[0], EPOLLIN, 2) == 0);
  CHECK(add(outer, set, EPOLLIN, 3) == 0);
  wait_for("before", set, 0);
  fflush(stdout);
  for (int round = 0; round < 2; round++) {
    pid_t child = fork();
    if (child == 0) {
      wait_for("child, data", set, PATIENCE);
      wait_for("child, outside", outer, PATIENCE);
      CHECK(recv(e[0], much, 10, 0) == 1);
      wait_for("child, read", set, 0);
      CHECK(write(p[1], "x", 1) == 1);
      wait_for("child, pipe", set, PATIENCE);
      CHECK(read(p[0], much, 1) == 1);
      fflush(stdout);
      _exit(0);
    }
    CHECK(send(e[1], "x", 1, 0) == 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    wait_for("parent, nothing left", set, 0);
    CHECK(send(e[1], "y", 1, 0) == 1);
    wait_for("parent, data", set, PATIENCE);
    wait_for("parent, outside", outer, PATIENCE);
    CHECK(recv(e[0], much, 10, 0) == 1);
    fflush(stdout);
  }
  close(e[0]); close(e[1]); close(p[0]); close(p[1]); close(set); close(outer);
}

static void set_made_by_the_child(void) {
  int e[2];
  connection(e);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    int set = epoll_create1(0), outer = epoll_create1(0);
    CHECK(add(outer, set, EPOLLIN, 2) == 0);
    CHECK(add(set, e[0], EPOLLIN | EPOLLRDHUP, 1) == 0);
    wait_for("child", outer, PATIENCE);
    wait_for("child", set, PATIENCE);
    fflush(stdout);
    _exit(0);
  }
  CHECK(send(e[1], "x", 1, 0) == 1);
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  show("parent", now(e[0], EVERYTHING));
  close(e[0]); close(e[1]);
}

static const struct { const char *name; void (*run)(void); } cases[] = {
#define CASE(name) {#name, name}
  CASE(bits_of_states), CASE(listeners_and_connects), CASE(full_and_room), CASE(level_edge_and_one_shot), CASE(exclusive),
  CASE(added_late_and_several_descriptors), CASE(beside_kernel_descriptors), CASE(precise_waits_and_masks), CASE(around_the_library),
  CASE(nested), CASE(nested_before_connect_and_by_edge), CASE(threads), CASE(sockets_for_sleepers), CASE(shared_over_fork), CASE(set_made_by_the_child),
};

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
    current = cases[n].name;
    int is_wanted = argc < 2;
    for (int k = 1; k < argc; k++) is_wanted |= !strcmp(argv[k], current);
    if (is_wanted) cases[n].run();
  }
  return 0;
}
