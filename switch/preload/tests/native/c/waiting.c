// select as a sleep, timeouts, errno, and calls that must not block.
#include "check.h"

static int refused(const char *ip, int port, int type) {
  struct sockaddr_in to = address(ip, port);
  int fd = socket(AF_INET, SOCK_STREAM | type, 0), error = 0;
  if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return 0;
  error = errno;
  if (error == EINPROGRESS) {
    struct pollfd polled = {fd, POLLOUT, 0};
    if (poll(&polled, 1, 10000) != 1 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4})) return 0;
  }
  close(fd);
  return error == ECONNREFUSED;
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
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

  // A connection, kernel descriptors and nothing ready.
  int c = dial(0), pipes[2];
  char bytes[64];
  CHECK(pipe(pipes) == 0);
  fd_set in, out;
  FD_ZERO(&in);
  FD_SET(c, &in);
  FD_SET(pipes[0], &in);
  tv = (struct timeval){0, 30000};
  start = now();
  CHECK(select(c + 3, &in, 0, 0, &tv) == 0);
  CHECK(now() - start >= 0.03);
  CHECK(!FD_ISSET(c, &in) && !FD_ISSET(pipes[0], &in));
  struct pollfd fds[3] = {{c, POLLIN, 0}, {pipes[0], POLLIN, 0}, {-1, POLLIN, 7}};
  start = now();
  CHECK(poll(fds, 3, 30) == 0);
  CHECK(now() - start >= 0.03);
  CHECK(fds[0].revents == 0 && fds[1].revents == 0 && fds[2].revents == 0);

  // One of them, then the other, then both.
  CHECK(write(pipes[1], "x", 1) == 1);
  CHECK(poll(fds, 3, 10000) == 1 && fds[1].revents == POLLIN);
  tell("send 0 1");
  CHECK(readable(c, 1) == 1 && told() == 1);
  CHECK(poll(fds, 3, 10000) == 2 && fds[0].revents == POLLIN);
  CHECK(read(pipes[0], bytes, 1) == 1);
  CHECK(poll(fds, 3, 10000) == 1 && fds[0].revents == POLLIN);
  FD_ZERO(&in);
  FD_SET(c, &in);
  FD_ZERO(&out);
  FD_SET(c, &out);
  CHECK(select(c + 1, &in, &out, 0, 0) == 2);
  CHECK(FD_ISSET(c, &in) && FD_ISSET(c, &out));
  CHECK(recv(c, bytes, sizeof bytes, 0) == 1);
  fds[0].events = POLLIN | POLLOUT;
  CHECK(poll(fds, 1, 0) == 1 && fds[0].revents == POLLOUT);

  // Sleeping until the peer sends.
  fds[0].events = POLLIN;
  tell("send 0 3");
  CHECK(poll(fds, 2, 20000) == 1 && fds[0].revents == POLLIN);
  CHECK(told() == 3);
  CHECK(recv(c, bytes, 3, MSG_WAITALL) == 3);
  fds[1].fd = 999;
  CHECK(poll(fds, 2, 10000) == 1 && fds[1].revents == POLLNVAL);

  // errno stays what it was when a call succeeds.
  struct sockaddr_in name;
  int l = listener(&name);
  errno = 77;
  int made = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = peer_name();
  if (errno != 77 || made < 0) return 1;
  if (connect(made, (struct sockaddr *)&to, sizeof to) || errno != 77) return 2;
  if (send(made, "y", 1, 0) != 1 || errno != 77) return 4;
  if (close(made) || errno != 77) return 5;
  CHECK(ASK("accept 1") == 0 && ASK("close 1") == 0);

  // Flags in the type and in accept4.
  tell("connect 1 %s %d", setting("ADDR"), ntohs(name.sin_port));
  int taken = accept4(l, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  CHECK(told() == 0);
  CHECK((fcntl(taken, F_GETFL) & O_NONBLOCK) != 0);
  CHECK((fcntl(taken, F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(recv(taken, bytes, 1, 0) == -1 && errno == EAGAIN);
  tell("connect 2 %s %d", setting("ADDR"), ntohs(name.sin_port));
  int plain = accept(l, 0, 0);
  CHECK(told() == 0);
  CHECK((fcntl(plain, F_GETFL) & O_NONBLOCK) == 0);
  CHECK((fcntl(plain, F_GETFD) & FD_CLOEXEC) == 0);
  CHECK((fcntl(l, F_GETFL) & O_NONBLOCK) == 0);
  CHECK(fcntl(l, F_SETFL, O_NONBLOCK) == 0);
  CHECK((fcntl(l, F_GETFL) & O_NONBLOCK) != 0);
  CHECK(accept(l, 0, 0) == -1 && errno == EAGAIN);
  int type = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK((fcntl(type, F_GETFL) & O_NONBLOCK) != 0);
  CHECK((fcntl(type, F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(accept(type, 0, 0) == -1 && errno == EINVAL);

  // Time limits.
  tv = (struct timeval){0, 40000};
  CHECK(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
  start = now();
  CHECK(recv(c, bytes, 1, 0) == -1 && errno == EAGAIN);
  CHECK(now() - start >= 0.03);
  CHECK(recv(c, bytes, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  CHECK(ASK("send 0 2") == 2);
  CHECK(recv(c, bytes, 8, MSG_WAITALL) == 2);

  // Refusals, with and without blocking.
  to = name;
  close(l);
  CHECK(refused(setting("ADDR"), ntohs(name.sin_port), 0));
  CHECK(refused("127.0.0.1", ntohs(name.sin_port), 0));
  CHECK(refused("127.0.0.1", ntohs(name.sin_port), SOCK_NONBLOCK));
  CHECK(refused(setting("PEER_ADDR"), 9, 0));
  CHECK(refused(setting("PEER_ADDR"), 9, SOCK_NONBLOCK));

  // A connect without blocking.
  to = peer_name();
  CHECK(connect(type, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS || 1);
  struct pollfd polled = {type, POLLOUT, 0};
  CHECK(poll(&polled, 1, 20000) == 1 && polled.revents == POLLOUT);
  int error = 7;
  CHECK(getsockopt(type, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4}) == 0 && error == 0);
  CHECK(ASK("accept 3") == 0);
  CHECK(send(type, "now", 3, 0) == 3);
  CHECK(ASK("recv 3 3") == 3);

  // Addresses are cut to the room given, and the whole length told.
  struct sockaddr_in cut;
  memset(&cut, 0xff, sizeof cut);
  socklen_t len = 4;
  CHECK(getsockname(c, (struct sockaddr *)&cut, &len) == 0 && len == 16);
  CHECK(cut.sin_family == AF_INET && cut.sin_addr.s_addr == 0xffffffff);
  len = sizeof cut;
  CHECK(getpeername(c, (struct sockaddr *)&cut, &len) == 0 && ntohs(cut.sin_port) == peer_port);
  CHECK(cut.sin_addr.s_addr == inet_addr(setting("PEER_ADDR")));
  len = sizeof cut;
  CHECK(getsockname(c, (struct sockaddr *)&cut, &len) == 0 && cut.sin_addr.s_addr == inet_addr(setting("ADDR")));
  return 0;
}
