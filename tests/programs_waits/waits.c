// Two ends of one connection between two nodes. `waits PORT` serves: threads are cancelled and signal handlers jump out of blocked
// calls, then a child and its parent use the connection in turn. `waits ADDRESS PORT` connects by an edge-triggered epoll set that
// knew the socket before, and sends back what it gets until the end.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what)                                                                      \
  do {                                                                                   \
    errno = 0;                                                                           \
    if (!(what)) {                                                                       \
      fprintf(stderr, "line %d: %s does not hold, errno %d\n", __LINE__, #what, errno); \
      _exit(1);                                                                          \
    }                                                                                    \
  } while (0)

enum call { RECV, READ, ACCEPT, POLL, EPOLL, CALLS };

static int listening, connected, epoll;

static void block(enum call call) {
  char bytes[8];
  struct pollfd polled = {connected, POLLIN, 0};
  struct epoll_event event;
  switch (call) {
  case RECV: recv(connected, bytes, sizeof bytes, 0); break;
  case READ: read(connected, bytes, sizeof bytes); break;
  case ACCEPT: accept(listening, 0, 0); break;
  case POLL: poll(&polled, 1, -1); break;
  default: epoll_wait(epoll, &event, 1, -1);
  }
}

static void echo(int fd) {
  char bytes[6] = {0};
  CHECK(send(fd, "again", 5, MSG_NOSIGNAL) == 5);
  CHECK(recv(fd, bytes, 5, MSG_WAITALL) == 5);
  CHECK(strcmp(bytes, "again") == 0);
}

static volatile pid_t thread_id;
static int cleaned;

static void cleanup(void *unused) { cleaned++; }

static void *blocked(void *call) {
  thread_id = syscall(SYS_gettid);
  pthread_cleanup_push(cleanup, 0);
  block(*(enum call *)call);
  pthread_cleanup_pop(0);
  return 0;
}

static int sleeps(pid_t tid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
  int fd = open(path, O_RDONLY);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  char *state = strrchr(text, ')');
  return state && state[2] == 'S';
}

static void cancel(enum call call) {
  pthread_t thread;
  void *result;
  int before = cleaned;
  thread_id = 0;
  CHECK(pthread_create(&thread, 0, blocked, &call) == 0);
  while (!thread_id || !sleeps(thread_id)) sched_yield();
  CHECK(pthread_cancel(thread) == 0);
  CHECK(pthread_join(thread, &result) == 0);
  CHECK(result == PTHREAD_CANCELED && cleaned == before + 1);
}

static sigjmp_buf back;
static timer_t timer;

static void jump(int signal) { siglongjmp(back, 1); }

static void every(long ns) {
  struct itimerspec times = {{0, ns}, {0, ns}};
  CHECK(timer_settime(timer, 0, &times, 0) == 0);
}

static void jump_out(enum call call) {
  volatile int jumps = 0;
  // A signal may come even between the third jump and the end of the timer.
  if (sigsetjmp(back, 1) && ++jumps >= 3) {
    every(0);
    return;
  }
  every(2000000);
  block(call);
  CHECK(!"the call came back");
}

static void wait_for(pid_t child) {
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void share(void) {
  int told[2];
  char byte;
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    echo(connected);
    _exit(0);
  }
  wait_for(child);
  // The child's exit ended nothing.
  echo(connected);
  CHECK(pipe(told) == 0);
  child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    close(told[1]);
    CHECK(read(told[0], &byte, 1) == 0);
    // The parent has closed its descriptor: the connection is ours alone.
    echo(connected);
    CHECK(shutdown(connected, SHUT_WR) == 0);
    CHECK(recv(connected, &byte, 1, 0) == 0);
    _exit(0);
  }
  echo(connected);
  CHECK(close(connected) == 0);
  CHECK(close(told[0]) == 0 && close(told[1]) == 0);
  wait_for(child);
}

// What the two roads answer differently; the caller compares.
static void edges(void) {
  int file, inner = epoll_create1(0), outer = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN};
  char path[64];
  CHECK((file = memfd_create("again", 0)) >= 0 && write(file, "again", 5) == 5 && lseek(file, 0, SEEK_SET) == 0);
  CHECK(sendfile(connected, file, 0, 5) == 5 && close(file) == 0);
  CHECK(recv(connected, path, 5, MSG_WAITALL) == 5 && memcmp(path, "again", 5) == 0);
  CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event) == 0);
  printf("into a nested set: %d\n", epoll_ctl(inner, EPOLL_CTL_ADD, connected, &event) ? errno : 0);
  printf("a set with it: %d\n", epoll_ctl(outer, EPOLL_CTL_ADD, epoll, &event) ? errno : 0);
  CHECK(close(inner) == 0 && close(outer) == 0);
  CHECK(ioctl(connected, FIONCLEX) == 0);
  CHECK((fcntl(connected, F_GETFD) & FD_CLOEXEC) == 0);
  fflush(stdout);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    snprintf(path, sizeof path, "test -e /proc/self/fd/%d; echo after exec: $?", connected);
    execl("/bin/sh", "sh", "-c", path, (char *)0);
    _exit(127);
  }
  wait_for(child);
}

static void serve(int port) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct sigaction action = {.sa_handler = jump};
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x123456789abcdef0};
  int on = 1;
  CHECK((listening = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
  CHECK(setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
  CHECK(bind(listening, (struct sockaddr *)&name, sizeof name) == 0);
  CHECK(listen(listening, 4) == 0);
  CHECK((connected = accept(listening, 0, 0)) >= 0);
  CHECK((epoll = epoll_create1(0)) >= 0);
  CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, connected, &event) == 0);
  for (enum call call = RECV; call < CALLS; call++) {
    cancel(call);
    echo(connected);
  }
  CHECK(sigaction(SIGALRM, &action, 0) == 0);
  CHECK(timer_create(CLOCK_MONOTONIC, 0, &timer) == 0);
  for (int round = 0; round < 30; round++)
    for (enum call call = RECV; call < CALLS; call++) jump_out(call);
  echo(connected);
  CHECK(send(connected, "x", 1, 0) == 1);
  for (int level = 0; level < 2; level++) {
    event.data.u64 = 0;
    CHECK(epoll_wait(epoll, &event, 1, -1) == 1);
    CHECK(event.events == EPOLLIN && event.data.u64 == 0x123456789abcdef0);
  }
  char byte;
  CHECK(recv(connected, &byte, 1, 0) == 1 && byte == 'x');
  CHECK(epoll_wait(epoll, &event, 1, 0) == 0);
  edges();
  CHECK(close(epoll) == 0);
  share();
  CHECK(close(listening) == 0);
}

static void repeat(const char *address, int port) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
  char bytes[64];
  socklen_t len = sizeof errno;
  int error = -1;
  name.sin_addr.s_addr = inet_addr(address);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  int set = epoll_create1(0);
  CHECK(fd >= 0 && set >= 0);
  CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
  CHECK(connect(fd, (struct sockaddr *)&name, sizeof name) == 0 || errno == EINPROGRESS);
  do CHECK(epoll_wait(set, &event, 1, -1) == 1);
  while (!(event.events & EPOLLOUT) || event.events & EPOLLHUP);
  CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0);
  for (;;) {
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0) CHECK(write(fd, bytes, n) == n);
    int why = errno;
    if (n == 0) break;
    CHECK(why == EAGAIN);
    CHECK(epoll_wait(set, &event, 1, -1) == 1);
  }
  CHECK(close(fd) == 0);
}

int main(int argc, char **argv) {
  if (argc == 2) serve(atoi(argv[1]));
  if (argc == 3) repeat(argv[1], atoi(argv[2]));
  return 0;
}
