// dup, dup2, dup3, F_DUPFD, close_range, closefrom, fdopen: sockets live as long as a number names them.
#include "check.h"

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static int same_peer(int a, int b) {
  struct sockaddr_in x, y;
  socklen_t m = sizeof x, n = sizeof y;
  return !getpeername(a, (struct sockaddr *)&x, &m) && !getpeername(b, (struct sockaddr *)&y, &n) &&
         x.sin_port == y.sin_port;
}

int main(void) {
  int fds[2], other[2], d;
  char bytes[16];
  pair(fds);
  CHECK((d = dup(fds[0])) >= 0);
  CHECK(same_peer(d, fds[0]));
  CHECK(close(fds[0]) == 0);
  CHECK(send(d, "dup", 3, 0) == 3);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 3);
  CHECK(dup2(d, 200) == 200);
  CHECK(dup2(200, 200) == 200);
  CHECK(dup3(d, 201, O_CLOEXEC) == 201);
  CHECK(dup3(d, d, 0) == -1 && errno == EINVAL);
  CHECK(fcntl(d, F_DUPFD, 202) >= 202);
  CHECK(fcntl(d, F_DUPFD_CLOEXEC, 210) >= 210);
  CHECK(same_peer(200, 201) && same_peer(202, 210));
  CHECK(dup2(-1, 200) == -1 && errno == EBADF);
  CHECK(same_peer(200, d));

  // A socket over another one ends that.
  pair(other);
  CHECK(dup2(d, other[0]) == other[0]);
  CHECK(recv(other[1], bytes, sizeof bytes, 0) == 0);
  CHECK(same_peer(other[0], d));
  CHECK(dup2(0, other[0]) == other[0]);
  CHECK(getsockname(other[0], (struct sockaddr *)bytes, &(socklen_t){16}) == -1 && errno == ENOTSOCK);

  // Ranges.
  CHECK(close_range(200, 220, 0) == 0);
  CHECK(!is_open(200) && !is_open(201) && !is_open(210));
  CHECK(close_range(2, 1, 0) == -1 && errno == EINVAL);
  CHECK(same_peer(d, d));
  CHECK(close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) == 0);
  CHECK(fcntl(d, F_GETFD) == FD_CLOEXEC);
  CHECK(send(d, "range", 5, 0) == 5);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 5);

  // A stream on a socket closes it.
  int copy = dup(d);
  FILE *stream = fdopen(copy, "w");
  CHECK(fprintf(stream, "stream") == 6);
  CHECK(fclose(stream) == 0);
  CHECK(!is_open(copy));
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 6);
  CHECK(open("/dev/null", O_RDONLY) == copy);
  CHECK(getpeername(copy, (struct sockaddr *)bytes, &(socklen_t){16}) == -1 && errno == ENOTSOCK);
  CHECK(close(copy) == 0);
  CHECK(close(copy) == -1 && errno == EBADF);

  // All numbers at once, then sockets again.
  closefrom(3);
  CHECK(!is_open(d) && !is_open(fds[1]) && !is_open(3));
  for (int fd = 3; fd < 1024; fd++) close(fd);
  CHECK(is_open(1));
  pair(fds);
  CHECK(fds[0] < 10 && fds[1] < 10);
  CHECK(send(fds[0], "again", 5, 0) == 5);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 5);
  return 0;
}
