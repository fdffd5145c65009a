// A thread blocked in recv, accept or poll is cancelled; its cleanup handler runs, and the sockets go on working.
#include "check.h"

static int fd, cleaned;
static volatile pid_t tid;
static int which;

static void cleanup(void *unused) { cleaned++; }

static void *block(void *unused) {
  char bytes[8];
  struct pollfd polled = {fd, POLLIN, 0};
  tid = syscall(SYS_gettid);
  pthread_cleanup_push(cleanup, 0);
  if (which == 0) recv(fd, bytes, sizeof bytes, 0);
  if (which == 1) accept(fd, 0, 0);
  if (which == 2) poll(&polled, 1, -1);
  if (which == 3) read(fd, bytes, sizeof bytes);
  pthread_cleanup_pop(0);
  return 0;
}

static int cancelled(int what, int on) {
  pthread_t thread;
  void *result;
  which = what, fd = on, tid = 0;
  if (pthread_create(&thread, 0, block, 0)) return 0;
  while (!tid || !asleep(tid)) sched_yield();
  if (pthread_cancel(thread) || pthread_join(thread, &result)) return 0;
  return result == PTHREAD_CANCELED;
}

int main(void) {
  int fds[2];
  char bytes[8];
  struct sockaddr_in name;
  pair(fds);
  int l = listener(&name);
  CHECK(cancelled(0, fds[0]));
  CHECK(cleaned == 1);
  CHECK(cancelled(1, l));
  CHECK(cancelled(2, fds[0]));
  CHECK(cancelled(3, fds[0]));
  CHECK(cleaned == 4);
  CHECK(send(fds[1], "after", 5, 0) == 5);
  CHECK(recv(fds[0], bytes, sizeof bytes, 0) == 5);
  int c = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(connect(c, (struct sockaddr *)&name, sizeof name) == 0);
  CHECK((fds[0] = accept(l, 0, 0)) >= 0);
  CHECK(close(fds[0]) == 0 && close(c) == 0 && close(l) == 0);
  return 0;
}
