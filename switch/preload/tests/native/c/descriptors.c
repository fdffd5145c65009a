// dup, dup2, dup3, F_DUPFD, close_range, closefrom, close-on-exec: sockets live as long as a number names them.
#include "check.h"

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static int same_peer(int a, int b) {
  struct sockaddr_in x, y;
  socklen_t m = sizeof x, n = sizeof y;
  return !getpeername(a, (struct sockaddr *)&x, &m) && !getpeername(b, (struct sockaddr *)&y, &n) &&
         x.sin_port == y.sin_port && !getsockname(a, (struct sockaddr *)&x, &m) &&
         !getsockname(b, (struct sockaddr *)&y, &n) && x.sin_port == y.sin_port;
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
  char bytes[16];
  int c = dial(0), other = dial(1), d;
  CHECK((d = dup(c)) >= 0);
  CHECK(same_peer(d, c));
  CHECK(!same_peer(d, other));
  CHECK(close(c) == 0);
  CHECK(send(d, "dup", 3, 0) == 3);
  CHECK(ASK("recv 0 3") == 3);
  CHECK(dup2(d, 200) == 200);
  CHECK(dup2(200, 200) == 200);
  CHECK(dup3(d, 201, O_CLOEXEC) == 201);
  CHECK(dup3(d, d, 0) == -1 && errno == EINVAL);
  CHECK(fcntl(d, F_DUPFD, 202) == 202);
  CHECK(fcntl(d, F_DUPFD_CLOEXEC, 210) == 210);
  CHECK(same_peer(200, 201) && same_peer(202, 210));
  CHECK(dup2(-1, 200) == -1 && errno == EBADF);
  CHECK(same_peer(200, d));
  CHECK(fcntl(200, F_GETFD) == 0 && fcntl(201, F_GETFD) == FD_CLOEXEC && fcntl(210, F_GETFD) == FD_CLOEXEC);
  CHECK(fcntl(201, F_SETFD, 0) == 0 && fcntl(201, F_GETFD) == 0);
  CHECK(fcntl(200, F_SETFD, FD_CLOEXEC) == 0 && fcntl(200, F_GETFD) == FD_CLOEXEC);
  CHECK(fcntl(d, F_SETFL, O_NONBLOCK) == 0);
  CHECK((fcntl(200, F_GETFL) & O_NONBLOCK) != 0);
  CHECK(recv(200, bytes, 1, 0) == -1 && errno == EAGAIN);
  CHECK(ioctl(200, FIONBIO, &(int){0}) == 0);
  CHECK((fcntl(d, F_GETFL) & O_NONBLOCK) == 0);

  // A socket over another one ends that.
  CHECK(dup2(d, other) == other);
  CHECK(ASK("recv 1 1") == 0);
  CHECK(same_peer(other, d));
  CHECK(dup2(0, other) == other);
  CHECK(getsockname(other, (struct sockaddr *)bytes, &(socklen_t){16}) == -1 && errno == ENOTSOCK);
  CHECK(close(other) == 0);

  // Ranges.
  CHECK(close_range(200, 220, 0) == 0);
  CHECK(!is_open(200) && !is_open(201) && !is_open(210));
  CHECK(close_range(2, 1, 0) == -1 && errno == EINVAL);
  CHECK(send(d, "range", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);
  CHECK(ASK("now 0 5") == -EAGAIN);

  // All numbers but the peer's line at once, then sockets again.
  if (peer_line != 3) CHECK(dup2(peer_line, 3) == 3 && (peer_line = 3));
  closefrom(4);
  CHECK(!is_open(d) && !is_open(4) && is_open(3));
  CHECK(ASK("recv 0 1") == 0);
  for (int fd = 4; fd < 1024; fd++) close(fd);
  CHECK(is_open(1));
  c = dial(0);
  CHECK(c == 4);
  CHECK(send(c, "again", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);
  CHECK(close(c) == 0);
  CHECK(close(c) == -1 && errno == EBADF);
  CHECK(ASK("recv 0 5") == 0);
  return 0;
}
