// A signal handler jumps out of a blocked recv, accept, read, poll and epoll_wait, again and again.
#include "check.h"

static sigjmp_buf back;
static timer_t timer;

static void handler(int signal) { siglongjmp(back, 1); }

static void arm(void) {
  struct itimerspec soon = {{0, 2000000}, {0, 2000000}};
  timer_settime(timer, 0, &soon, 0);
}

static void disarm(void) {
  struct itimerspec never = {{0, 0}, {0, 0}};
  timer_settime(timer, 0, &never, 0);
}

static int jumped(int what, int fd, int set) {
  char bytes[8];
  struct pollfd polled = {fd, POLLIN, 0};
  struct epoll_event event;
  volatile int jumps = 0;
  if (sigsetjmp(back, 1)) {
    jumps++;
    // A signal may come even between the fifth jump and the end of the timer.
    if (jumps >= 5) {
      disarm();
      return 1;
    }
  }
  arm();
  if (what == 0) recv(fd, bytes, sizeof bytes, 0);
  if (what == 1) accept(fd, 0, 0);
  if (what == 2) poll(&polled, 1, -1);
  if (what == 3) read(fd, bytes, sizeof bytes);
  if (what == 4) epoll_wait(set, &event, 1, -1);
  return 0;
}

// Jumps out of calls that mostly work, wherever they are just then.
static volatile int wild;
static int wildly(int fd) {
  char bytes[64];
  wild = 0;
  struct itimerspec often = {{0, 300000}, {0, 300000}};
  sigsetjmp(back, 1);
  if (++wild < 300) {
    timer_settime(timer, 0, &often, 0);
    for (;;) {
      send(fd, bytes, 1, MSG_DONTWAIT);
      recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    }
  }
  disarm();
  return 1;
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
  struct sigaction action = {.sa_handler = handler};
  struct sockaddr_in name;
  char bytes[8];
  sigaction(SIGALRM, &action, 0);
  if (timer_create(CLOCK_MONOTONIC, 0, &timer)) abort();
  int c = dial(0), w = dial(1), l = listener(&name), set = epoll_create1(0);
  struct epoll_event event = {EPOLLIN, {0}};
  epoll_ctl(set, EPOLL_CTL_ADD, c, &event);
  for (int round = 0; round < 3; round++) {
    CHECK(jumped(0, c, set));
    CHECK(jumped(1, l, set));
    CHECK(jumped(2, c, set));
    CHECK(jumped(3, c, set));
    CHECK(jumped(4, c, set));
  }
  CHECK(ASK("send 0 5") == 5);
  CHECK(recv(c, bytes, 5, MSG_WAITALL) == 5);
  CHECK(close(c) == 0);
  CHECK(ASK("recv 0 1") == 0);
  CHECK(wildly(w));
  CHECK(ASK("send 1 5") == 5);
  CHECK(recv(w, bytes, 5, MSG_WAITALL) == 5);
  CHECK(send(w, "x", 1, 0) == 1);
  CHECK(ASK("recv 1 1") == 1);
  return 0;
}
