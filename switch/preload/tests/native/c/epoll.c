// epoll: level, edge and one shot; mixed with kernel descriptors; registered before connect; duplicates; close.
#include "check.h"

static int set;

static int wait_events(struct epoll_event *events, int timeout) {
  return epoll_wait(set, events, 8, timeout);
}

static int add(int fd, uint32_t events, uint64_t data) {
  struct epoll_event e = {events, {.u64 = data}};
  return epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int fd, uint32_t events, uint64_t data) {
  struct epoll_event e = {events, {.u64 = data}};
  return epoll_ctl(set, EPOLL_CTL_MOD, fd, &e);
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
  struct epoll_event ev[8];
  char bytes[64];
  const uint64_t word = 0x123456789abcdef0;
  int c = dial(0);
  set = epoll_create1(EPOLL_CLOEXEC);

  // Level.
  CHECK(add(c, EPOLLIN, word) == 0);
  CHECK(add(c, EPOLLIN, 1) == -1 && errno == EEXIST);
  CHECK(wait_events(ev, 0) == 0);
  double start = now();
  CHECK(wait_events(ev, 30) == 0);
  CHECK(now() - start >= 0.03);
  tell("send 0 2");
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(ev[0].events == EPOLLIN && ev[0].data.u64 == word);
  CHECK(told() == 2 && readable(c, 2) == 2);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(recv(c, bytes, 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(recv(c, bytes, 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 0);

  // Edge: once per arrival, whatever is left unread.
  CHECK(mod(c, EPOLLIN | EPOLLET, 2) == 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(ASK("send 0 2") == 2);
  CHECK(readable(c, 2) == 2);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(ev[0].data.u64 == 2);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(recv(c, bytes, 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(ASK("send 0 1") == 1);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(mod(c, EPOLLIN | EPOLLET, 3) == 0);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(recv(c, bytes, 64, 0) == 2);

  // One shot: silent until it is armed again.
  CHECK(mod(c, EPOLLIN | EPOLLONESHOT, 4) == 0);
  CHECK(ASK("send 0 1") == 1);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(ASK("send 0 1") == 1);
  CHECK(readable(c, 2) == 2);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(mod(c, EPOLLIN | EPOLLONESHOT, 5) == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].data.u64 == 5);
  CHECK(recv(c, bytes, 64, 0) == 2);

  // Writable, beside kernel descriptors.
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  CHECK(add(pipes[0], EPOLLIN, 6) == 0);
  CHECK(mod(c, EPOLLOUT, 7) == 0);
  CHECK(wait_events(ev, 0) == 1 && ev[0].events == EPOLLOUT && ev[0].data.u64 == 7);
  CHECK(write(pipes[1], "x", 1) == 1);
  CHECK(wait_events(ev, 0) == 2);
  CHECK(epoll_wait(set, ev, 1, 0) == 1);
  CHECK(read(pipes[0], bytes, 8) == 1);
  CHECK(mod(c, EPOLLIN, 7) == 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(epoll_ctl(set, EPOLL_CTL_DEL, pipes[0], 0) == 0);

  // Full, then room again, by edge.
  CHECK(fcntl(c, F_SETFL, O_NONBLOCK) == 0);
  CHECK(mod(c, EPOLLOUT | EPOLLET, 8) == 0);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(wait_events(ev, 0) == 0);
  static char much[1 << 16];
  long sent = 0;
  for (ssize_t n; (n = send(c, much, sizeof much, 0)) > 0;) sent += n;
  CHECK(errno == EAGAIN || errno == 0);
  // The rest may leave while nobody looks: fill it until it stays full.
  for (int quiet = 0; quiet < 20; quiet++) {
    poll(0, 0, 5);
    for (ssize_t n; (n = send(c, much, sizeof much, 0)) > 0; quiet = 0) sent += n;
  }
  while (wait_events(ev, 0) > 0)
    for (ssize_t n; (n = send(c, much, sizeof much, 0)) > 0;) sent += n;
  CHECK(sent > 0);
  tell("recv 0 %ld", sent);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == EPOLLOUT);
  CHECK(told() == sent);

  // Half close, then close of the peer.
  CHECK(mod(c, EPOLLIN | EPOLLRDHUP, 8) == 0);
  CHECK(ASK("shut 0 %d", SHUT_WR) == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == (EPOLLIN | EPOLLRDHUP));
  CHECK(recv(c, bytes, 8, 0) == 0);
  CHECK(shutdown(c, SHUT_WR) == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == (EPOLLIN | EPOLLRDHUP | EPOLLHUP));
  CHECK(epoll_ctl(set, EPOLL_CTL_DEL, c, 0) == 0);
  CHECK(epoll_ctl(set, EPOLL_CTL_DEL, c, 0) == -1 && errno == ENOENT);
  CHECK(mod(c, EPOLLIN, 1) == -1 && errno == ENOENT);
  CHECK(close(c) == 0 && ASK("close 0") == 0);

  // A reset.
  c = dial(0);
  CHECK(add(c, EPOLLIN, 9) == 0);
  CHECK(ASK("reset 0") == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == (EPOLLIN | EPOLLERR | EPOLLHUP));
  CHECK(recv(c, bytes, 8, 0) == -1 && errno == ECONNRESET);
  CHECK(recv(c, bytes, 8, 0) == 0);
  CHECK(close(c) == 0);
  CHECK(wait_events(ev, 0) == 0);

  // A listener in the set.
  struct sockaddr_in name;
  int l = socket(AF_INET, SOCK_STREAM, 0);
  name = address(setting("ADDR"), 0);
  CHECK(bind(l, (struct sockaddr *)&name, sizeof name) == 0);
  CHECK(listen(l, 8) == 0);
  CHECK(getsockname(l, (struct sockaddr *)&name, &(socklen_t){sizeof name}) == 0);
  CHECK(add(l, EPOLLIN, 10) == 0);
  CHECK(wait_events(ev, 0) == 0);
  tell("connect 1 %s %d", setting("ADDR"), ntohs(name.sin_port));
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == EPOLLIN && ev[0].data.u64 == 10);
  CHECK(told() == 0);
  int a = accept4(l, 0, 0, SOCK_NONBLOCK);
  CHECK(a >= 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(close(l) == 0 && close(a) == 0 && ASK("recv 1 1") == 0);

  // Registered before connect.
  c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  CHECK(add(c, EPOLLIN | EPOLLOUT | EPOLLET, 11) == 0);
  CHECK(wait_events(ev, 0) == 1 && ev[0].events == (EPOLLOUT | EPOLLHUP));
  struct sockaddr_in to = peer_name();
  CHECK(connect(c, (struct sockaddr *)&to, sizeof to) == 0 || 1);
  int writable = 0;
  while (!writable) {
    if (wait_events(ev, 10000) != 1 || ev[0].data.u64 != 11) abort();
    writable = ev[0].events == EPOLLOUT;
  }
  int error = 1;
  CHECK(getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4}) == 0 && error == 0);
  CHECK(ASK("accept 2") == 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(ASK("send 2 5") == 5);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].data.u64 == 11 && ev[0].events == (EPOLLIN | EPOLLOUT));
  CHECK(recv(c, bytes, 64, 0) == 5);

  // A registration lives as long as its open file: a duplicate keeps it.
  int d = dup(c);
  CHECK(close(c) == 0);
  CHECK(ASK("send 2 3") == 3);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].data.u64 == 11);
  CHECK(recv(d, bytes, 64, 0) == 3);
  CHECK(close(d) == 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(ASK("recv 2 1") == 0);

  // Refused, by edge.
  c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  to.sin_port = htons(9);
  CHECK(connect(c, (struct sockaddr *)&to, sizeof to) == -1);
  CHECK(add(c, EPOLLIN | EPOLLOUT | EPOLLET, 12) == 0);
  CHECK(wait_events(ev, 10000) == 1 && (ev[0].events & EPOLLERR) != 0);
  CHECK(getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4}) == 0 && error == ECONNREFUSED);
  CHECK(close(c) == 0 && close(set) == 0);
  return 0;
}
