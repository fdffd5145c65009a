// select as a sleep, timeouts, and errno.
#include "check.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

int main(void) {
  struct timeval tv = {0, 50000};
  double start = now();
  CHECK(select(0, 0, 0, 0, &tv) == 0);
  CHECK(now() - start >= 0.05);
  CHECK(tv.tv_sec == 0 && tv.tv_usec == 0);
  start = now();
  CHECK(poll(0, 0, 30) == 0);
  CHECK(now() - start >= 0.03);
  start = now();
  CHECK(pselect(0, 0, 0, 0, &(struct timespec){0, 30000000}, 0) == 0);
  CHECK(now() - start >= 0.03);
  CHECK(ppoll(0, 0, &(struct timespec){0, 1000}, 0) == 0);

  int fds[2];
  char bytes[64];
  pair(fds);
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fds[0], &set);
  tv = (struct timeval){0, 1000};
  CHECK(select(fds[0] + 1, &set, 0, 0, &tv) == 0);
  CHECK(!FD_ISSET(fds[0], &set));
  CHECK(write(fds[1], "x", 1) == 1);
  FD_SET(fds[0], &set);
  CHECK(select(fds[0] + 1, &set, 0, 0, 0) == 1);
  CHECK(FD_ISSET(fds[0], &set));

  // errno stays what it was when a call succeeds.
  errno = 77;
  int made = socket(AF_INET, SOCK_STREAM, 0);
  if (errno != 77 || made < 0) return 1;
  struct sockaddr_in name;
  int l = listener(&name);
  errno = 77;
  if (connect(made, (struct sockaddr *)&name, sizeof name) || errno != 77) return 2;
  int taken = accept4(l, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (taken < 0 || errno != 77) return 3;
  if (send(made, "y", 1, 0) != 1 || recv(fds[0], bytes, 1, 0) != 1 || errno != 77) return 4;
  if (close(made) || errno != 77) return 5;
  CHECK((fcntl(taken, F_GETFL) & O_NONBLOCK) != 0);
  CHECK((fcntl(taken, F_GETFD) & FD_CLOEXEC) != 0);
  int type = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK((fcntl(type, F_GETFL) & O_NONBLOCK) != 0);
  CHECK((fcntl(type, F_GETFD) & FD_CLOEXEC) != 0);

  // Receive timeouts and non-blocking calls.
  CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 20000}, sizeof tv) == 0);
  start = now();
  CHECK(recv(fds[0], bytes, 1, 0) == -1 && errno == EAGAIN);
  CHECK(now() - start >= 0.015);
  CHECK(recv(fds[0], bytes, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  CHECK(accept(type, 0, 0) == -1 && errno == EINVAL);

  // Refusals, also without blocking.
  close(l);
  int refused = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(connect(refused, (struct sockaddr *)&name, sizeof name) == -1 && errno == ECONNREFUSED);
  struct sockaddr_in local = name;
  local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(refused, (struct sockaddr *)&local, sizeof local) == -1 && errno == ECONNREFUSED);
  int later = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  CHECK(connect(later, (struct sockaddr *)&local, sizeof local) == -1 && errno == EINPROGRESS);
  struct pollfd polled = {later, POLLOUT, 0};
  CHECK(poll(&polled, 1, 10000) == 1);
  int error = 0;
  socklen_t len = sizeof error;
  CHECK(getsockopt(later, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == ECONNREFUSED);

  // Addresses are cut to the room given, and the whole length told.
  struct sockaddr_in cut;
  memset(&cut, 0xff, sizeof cut);
  len = 4;
  CHECK(getsockname(fds[0], (struct sockaddr *)&cut, &len) == 0 && len == 16);
  CHECK(cut.sin_family == AF_INET && cut.sin_addr.s_addr == 0xffffffff);
  return 0;
}
