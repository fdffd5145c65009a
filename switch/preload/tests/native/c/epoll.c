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

int main(void) {
  struct epoll_event ev[8];
  int fds[2];
  char bytes[64];
  const uint64_t word = 0x123456789abcdef0;
  pair(fds);
  set = epoll_create1(EPOLL_CLOEXEC);

  // Level.
  CHECK(add(fds[0], EPOLLIN, word) == 0);
  CHECK(add(fds[0], EPOLLIN, 1) == -1 && errno == EEXIST);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(send(fds[1], "ab", 2, 0) == 2);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(ev[0].events == EPOLLIN && ev[0].data.u64 == word);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(recv(fds[0], bytes, 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(recv(fds[0], bytes, 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 0);

  // Edge: once per arrival, whatever is left unread.
  CHECK(mod(fds[0], EPOLLIN | EPOLLET, 2) == 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(send(fds[1], "ab", 2, 0) == 2);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(ev[0].data.u64 == 2);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(recv(fds[0], bytes, 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(send(fds[1], "c", 1, 0) == 1);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(mod(fds[0], EPOLLIN | EPOLLET, 3) == 0);
  CHECK(wait_events(ev, 0) == 1);
  CHECK(recv(fds[0], bytes, 64, 0) == 2);

  // One shot: silent until it is armed again.
  CHECK(mod(fds[0], EPOLLIN | EPOLLONESHOT, 4) == 0);
  CHECK(send(fds[1], "a", 1, 0) == 1);
  CHECK(wait_events(ev, 10000) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(send(fds[1], "b", 1, 0) == 1);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(mod(fds[0], EPOLLIN | EPOLLONESHOT, 5) == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].data.u64 == 5);
  CHECK(recv(fds[0], bytes, 64, 0) == 2);

  // Writable, beside kernel descriptors.
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  CHECK(add(pipes[0], EPOLLIN, 6) == 0);
  CHECK(mod(fds[0], EPOLLOUT, 7) == 0);
  CHECK(wait_events(ev, 0) == 1 && ev[0].events == EPOLLOUT && ev[0].data.u64 == 7);
  CHECK(write(pipes[1], "x", 1) == 1);
  CHECK(wait_events(ev, 0) == 2);
  CHECK(read(pipes[0], bytes, 8) == 1);
  CHECK(epoll_ctl(set, EPOLL_CTL_DEL, pipes[0], 0) == 0);

  // Half close, then close of the peer.
  CHECK(mod(fds[0], EPOLLIN | EPOLLRDHUP, 8) == 0);
  CHECK(shutdown(fds[1], SHUT_WR) == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == (EPOLLIN | EPOLLRDHUP));
  CHECK(recv(fds[0], bytes, 8, 0) == 0);
  CHECK(shutdown(fds[0], SHUT_WR) == 0);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].events == (EPOLLIN | EPOLLRDHUP | EPOLLHUP));
  CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fds[0], 0) == 0);
  CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fds[0], 0) == -1 && errno == ENOENT);
  CHECK(close(fds[0]) == 0 && close(fds[1]) == 0);

  // Registered before connect; a listener in the set.
  struct sockaddr_in name;
  int l = listener(&name);
  CHECK(add(l, EPOLLIN, 10) == 0);
  int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  CHECK(add(c, EPOLLIN | EPOLLOUT | EPOLLET, 11) == 0);
  CHECK(wait_events(ev, 0) == 1 && ev[0].events == (EPOLLOUT | EPOLLHUP));
  int r = connect(c, (struct sockaddr *)&name, sizeof name);
  CHECK(r == 0 || (r == -1));
  int writable = 0, acceptable = 0;
  while (!writable || !acceptable) {
    int n = wait_events(ev, 10000);
    if (n <= 0) abort();
    for (int i = 0; i < n; i++) {
      if (ev[i].data.u64 == 11 && ev[i].events == EPOLLOUT) writable = 1;
      if (ev[i].data.u64 == 10) acceptable = 1;
    }
  }
  int error = 1;
  CHECK(getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4}) == 0 && error == 0);
  int a = accept4(l, 0, 0, SOCK_NONBLOCK);
  CHECK(a >= 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(send(a, "hello", 5, 0) == 5);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].data.u64 == 11 && ev[0].events == (EPOLLIN | EPOLLOUT));
  CHECK(recv(c, bytes, 64, 0) == 5);

  // A registration lives as long as its open file: a duplicate keeps it.
  int d = dup(c);
  CHECK(close(c) == 0);
  CHECK(send(a, "dup", 3, 0) == 3);
  CHECK(wait_events(ev, 10000) == 1 && ev[0].data.u64 == 11);
  CHECK(recv(d, bytes, 64, 0) == 3);
  CHECK(close(d) == 0);
  CHECK(wait_events(ev, 0) == 0);
  CHECK(recv(a, bytes, 64, 0) == 0);
  CHECK(close(a) == 0 && close(l) == 0 && close(set) == 0);
  return 0;
}
