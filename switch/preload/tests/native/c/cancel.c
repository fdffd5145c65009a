// A thread blocked in recv, send, accept, poll or connect is cancelled; its cleanup handler runs, and the sockets go on working.
#include "check.h"

static int fd, cleaned;
static volatile pid_t tid;
static int which;

static void cleanup(void *unused) { cleaned++; }

static void *block(void *unused) {
  static char bytes[1 << 20];
  struct pollfd polled = {fd, POLLIN, 0};
  struct epoll_event event = {EPOLLIN, {0}};
  int set = epoll_create1(0);
  epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
  tid = syscall(SYS_gettid);
  pthread_cleanup_push(cleanup, 0);
  if (which == 0) recv(fd, bytes, 8, 0);
  if (which == 1) accept(fd, 0, 0);
  if (which == 2) poll(&polled, 1, -1);
  if (which == 3) read(fd, bytes, 8);
  if (which == 4) epoll_wait(set, &event, 1, -1);
  if (which == 5)
    for (;;) send(fd, bytes, sizeof bytes, 0);
  pthread_cleanup_pop(0);
  return 0;
}

static int cancelled(int what, int on) {
  pthread_t thread;
  void *result;
  which = what, fd = on, tid = 0;
  if (pthread_create(&thread, 0, block, 0)) return 0;
  for (int seen = 0; seen < 50; sched_yield()) seen = tid && asleep(tid) ? seen + 1 : 0;
  if (pthread_cancel(thread) || pthread_join(thread, &result)) return 0;
  return result == PTHREAD_CANCELED;
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
  char bytes[8];
  struct sockaddr_in name;
  int c = dial(0), full = dial(1);
  int l = listener(&name);
  for (int round = 0; round < 3; round++) {
    CHECK(cancelled(0, c));
    CHECK(cancelled(1, l));
    CHECK(cancelled(2, c));
    CHECK(cancelled(2, l));
    CHECK(cancelled(3, c));
    CHECK(cancelled(4, c));
    CHECK(cancelled(4, l));
    CHECK(cancelled(5, full));
  }
  CHECK(cleaned == 24);
  CHECK(ASK("send 0 5") == 5);
  CHECK(recv(c, bytes, sizeof bytes, 0) == 5);
  CHECK(send(c, "after", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);
  tell("connect 2 %s %d", setting("ADDR"), ntohs(name.sin_port));
  int a = accept(l, 0, 0);
  CHECK(a >= 0 && told() == 0);
  CHECK(ASK("send 2 5") == 5);
  CHECK(recv(a, bytes, 5, MSG_WAITALL) == 5);
  CHECK(close(a) == 0 && close(c) == 0 && close(l) == 0 && close(full) == 0);
  return 0;
}
