// A signal handler jumps out of a blocked recv, accept, read and poll, again and again.
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

static int jumped(int what, int fd) {
  char bytes[8];
  struct pollfd polled = {fd, POLLIN, 0};
  volatile int jumps = 0;
  if (sigsetjmp(back, 1)) {
    jumps++;
    if (jumps == 3) {
      disarm();
      return 1;
    }
  }
  arm();
  if (what == 0) recv(fd, bytes, sizeof bytes, 0);
  if (what == 1) accept(fd, 0, 0);
  if (what == 2) poll(&polled, 1, -1);
  if (what == 3) read(fd, bytes, sizeof bytes);
  return 0;
}

int main(void) {
  struct sigaction action = {.sa_handler = handler};
  struct sockaddr_in name;
  int fds[2];
  char bytes[8];
  sigaction(SIGALRM, &action, 0);
  if (timer_create(CLOCK_MONOTONIC, 0, &timer)) abort();
  pair(fds);
  int l = listener(&name);
  for (int round = 0; round < 3; round++) {
    CHECK(jumped(0, fds[0]));
    CHECK(jumped(1, l));
    CHECK(jumped(2, fds[0]));
    CHECK(jumped(3, fds[0]));
  }
  CHECK(send(fds[1], "after", 5, 0) == 5);
  CHECK(recv(fds[0], bytes, sizeof bytes, 0) == 5);
  CHECK(close(fds[0]) == 0);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 0);
  return 0;
}
