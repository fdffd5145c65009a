// Data calls and their flags, half close, reset, buffering, and messages.
#include "check.h"

static volatile int pipes_broken;
static void broken(int signal) { pipes_broken++; }
static void nothing(int signal) {}

static void *killer(void *target) {
  while (!asleep(*(pid_t *)target)) sched_yield();
  for (int i = 0; i < 5; i++) poll(0, 0, 2), syscall(SYS_tgkill, getpid(), *(pid_t *)target, SIGUSR1);
  tell("send 0 1");
  return 0;
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
  static char bytes[1 << 20], more[1 << 16];
  int c = dial(0), n;
  struct iovec parts[3] = {{bytes, 2}, {bytes + 100, 0}, {bytes + 200, 5}};

  // Peek, wait for all, without waiting.
  CHECK(recv(c, bytes, 4, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  CHECK(ASK("send 0 4") == 4);
  CHECK(recv(c, bytes, 4, MSG_PEEK | MSG_WAITALL) == 4);
  CHECK(recv(c, bytes, 2, MSG_PEEK) == 2);
  CHECK(ioctl(c, FIONREAD, &n) == 0 && n == 4);
  CHECK(recv(c, bytes, 3, 0) == 3 && bytes[0] == 'a');
  tell("send 0 6");
  CHECK(recv(c, bytes, 7, MSG_WAITALL) == 7);
  CHECK(told() == 6);
  CHECK(recv(c, bytes, 0, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  CHECK(send(c, bytes, 0, 0) == 0);
  CHECK(ASK("send 0 10") == 10);
  CHECK(readable(c, 10) == 10);
  CHECK(recv(c, 0, 4, MSG_TRUNC) == 4);
  CHECK(recv(c, bytes, 100, 0) == 6);

  // Vectors and messages.
  CHECK(ASK("send 0 7") == 7);
  CHECK(readable(c, 7) == 7);
  CHECK(readv(c, parts, 3) == 7 && bytes[204] == 'a');
  CHECK(writev(c, parts, 3) == 7);
  CHECK(ASK("recv 0 7") == 7);
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
  CHECK(sendmsg(c, &message, MSG_NOSIGNAL) == 7);
  CHECK(ASK("recv 0 7") == 7);
  char name[32], control[64];
  message.msg_name = name, message.msg_namelen = sizeof name;
  message.msg_control = control, message.msg_controllen = sizeof control;
  CHECK(ASK("send 0 7") == 7);
  CHECK(recvmsg(c, &message, MSG_WAITALL) == 7);
  CHECK(message.msg_namelen == 0 && message.msg_controllen == 0 && (message.msg_flags & MSG_TRUNC) == 0);
  struct mmsghdr both[2] = {{{.msg_iov = parts, .msg_iovlen = 1}}, {{.msg_iov = parts + 2, .msg_iovlen = 1}}};
  CHECK(sendmmsg(c, both, 2, 0) == 2 && both[0].msg_len == 2 && both[1].msg_len == 5);
  CHECK(ASK("recv 0 7") == 7);
  CHECK(ASK("send 0 7") == 7);
  CHECK(readable(c, 7) == 7);
  CHECK(recvmmsg(c, both, 2, 0, 0) == 2 && both[0].msg_len == 2 && both[1].msg_len == 5);
  CHECK(sendto(c, "to", 2, 0, 0, 0) == 2);
  CHECK(ASK("recv 0 2") == 2);
  CHECK(ASK("send 0 3") == 3);
  socklen_t len = sizeof name;
  CHECK(recvfrom(c, bytes, 3, MSG_WAITALL, (struct sockaddr *)name, &len) == 3 && len == 0);
  CHECK(write(c, "wr", 2) == 2);
  CHECK(ASK("recv 0 2") == 2);
  CHECK(syscall(SYS_sendto, c, "raw", 3, 0, 0, 0) == 3);
  CHECK(ASK("recv 0 3") == 3);
  CHECK(ASK("send 0 3") == 3);
  CHECK(syscall(SYS_read, c, bytes, 3) > 0);
  while (recv(c, bytes, 3, MSG_DONTWAIT) > 0) {
  }
  CHECK(pread(c, bytes, 1, 0) == -1 && errno == ESPIPE);
  CHECK(lseek(c, 0, SEEK_CUR) == -1 && errno == ESPIPE);
  volatile int negative = -1;
  CHECK(writev(c, parts, negative) == -1 && errno == EINVAL);

  // A file.
  int file = open("/proc/self/exe", O_RDONLY);
  off_t at = 100;
  CHECK(sendfile(c, file, &at, 5000) == 5000 && at == 5100);
  CHECK(lseek(file, 0, SEEK_CUR) == 0);
  CHECK(ASK("recv 0 5000") == 5000);
  CHECK(sendfile(c, file, 0, 3000) == 3000);
  CHECK(lseek(file, 0, SEEK_CUR) == 3000);
  CHECK(ASK("recv 0 3000") == 3000);
  close(file);

  // A megabyte is accepted while the peer reads, and all of it arrives.
  tell("recv 0 %d", (int)sizeof bytes);
  CHECK(send(c, bytes, sizeof bytes, 0) == sizeof bytes);
  CHECK(told() == sizeof bytes);
  tell("send 0 %d", (int)sizeof bytes);
  CHECK(recv(c, bytes, sizeof bytes, MSG_WAITALL) == sizeof bytes);
  CHECK(told() == sizeof bytes);

  // Both ends send much before either reads.
  tell("send 0 200000");
  CHECK(send(c, bytes, 200000, 0) == 200000);
  CHECK(told() == 200000);
  CHECK(recv(c, bytes, 200000, MSG_WAITALL) == 200000);
  CHECK(ASK("recv 0 200000") == 200000);

  // Full without blocking, poll tells of room.
  CHECK(fcntl(c, F_SETFL, O_NONBLOCK) == 0);
  long sent = 0;
  for (int quiet = 0; quiet < 10; quiet++) {
    for (ssize_t got; (got = send(c, more, sizeof more, 0)) > 0; quiet = 0) sent += got;
    if (errno != EAGAIN) abort();
    poll(0, 0, 3);
  }
  CHECK(sent > 100000);
  struct pollfd polled = {c, POLLOUT, 0};
  CHECK(poll(&polled, 1, 0) == 0);
  tell("recv 0 %ld", sent);
  CHECK(poll(&polled, 1, 20000) == 1 && polled.revents == POLLOUT);
  CHECK(told() == sent);
  CHECK(fcntl(c, F_SETFL, 0) == 0);

  // A send that may wait only so long.
  struct timeval tv = {0, 30000};
  CHECK(setsockopt(c, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) == 0);
  sent = 0;
  for (ssize_t got; (got = send(c, bytes, sizeof bytes, 0)) > 0;) sent += got;
  CHECK(sent > 0);
  CHECK(ASK("recv 0 %ld", sent) == sent);

  // Interrupted by a handler that asks for it, and not by one that restarts.
  pid_t me = syscall(SYS_gettid);
  pthread_t thread;
  struct sigaction action = {.sa_handler = nothing};
  sigaction(SIGUSR1, &action, 0);
  pthread_create(&thread, 0, killer, &me);
  CHECK(recv(c, bytes, 1, 0) == -1 && errno == EINTR);
  pthread_join(thread, 0);
  CHECK(told() == 1 && recv(c, bytes, 1, MSG_WAITALL) >= 0);
  while (recv(c, bytes, 1, MSG_DONTWAIT) > 0) {
  }
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, 0);
  pthread_create(&thread, 0, killer, &me);
  CHECK(recv(c, bytes, 1, 0) == 1);
  pthread_join(thread, 0);
  CHECK(told() == 1);

  // Half close in both directions.
  CHECK(shutdown(c, SHUT_WR) == 0);
  CHECK(ASK("recv 0 1") == 0);
  CHECK(ASK("send 0 3") == 3);
  CHECK(recv(c, bytes, 10, 0) == 3);
  action.sa_handler = broken;
  sigaction(SIGPIPE, &action, 0);
  CHECK(send(c, "x", 1, 0) == -1 && errno == EPIPE && pipes_broken == 1);
  CHECK(send(c, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE && pipes_broken == 1);
  CHECK(write(c, "x", 1) == -1 && errno == EPIPE && pipes_broken == 2);
  CHECK(ASK("close 0") == 0);
  CHECK(recv(c, bytes, 1, 0) == 0);
  CHECK(recv(c, bytes, 1, MSG_WAITALL) == 0);
  polled = (struct pollfd){c, POLLIN | POLLOUT | POLLRDHUP, 0};
  CHECK(poll(&polled, 1, 20000) == 1 && polled.revents == (POLLIN | POLLOUT | POLLRDHUP | POLLHUP));
  CHECK(close(c) == 0);

  // Data, then the end, after the peer has closed; a reset after unread data.
  c = dial(1);
  CHECK(ASK("send 1 1000") == 1000 && ASK("close 1") == 0);
  CHECK(recv(c, bytes, 2000, MSG_WAITALL) == 1000);
  CHECK(recv(c, bytes, 1, 0) == 0);
  CHECK(close(c) == 0);
  c = dial(1);
  CHECK(send(c, "unread", 6, 0) == 6);
  CHECK(ASK("until 1 6") == 6);
  CHECK(ASK("send 1 10") == 10);
  CHECK(readable(c, 10) == 10);
  CHECK(ASK("close 1") == 0);
  CHECK(recv(c, bytes, 10, MSG_WAITALL) == 10);
  CHECK(recv(c, bytes, 1, 0) == -1 && errno == ECONNRESET);
  CHECK(recv(c, bytes, 1, 0) == 0);
  CHECK(close(c) == 0);
  c = dial(1);
  CHECK(ASK("reset 1") == 0);
  polled = (struct pollfd){c, POLLIN, 0};
  CHECK(poll(&polled, 1, 20000) == 1 && (polled.revents & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP));
  int error = 0;
  CHECK(getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4}) == 0 && error == ECONNRESET);
  CHECK(getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){4}) == 0 && error == 0);
  CHECK(send(c, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
  CHECK(close(c) == 0);

  // Never connected.
  c = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(recv(c, bytes, 1, 0) == -1 && errno == ENOTCONN);
  CHECK(send(c, bytes, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
  CHECK(shutdown(c, SHUT_WR) == -1 && errno == ENOTCONN);
  CHECK(getpeername(c, (struct sockaddr *)name, &len) == -1 && errno == ENOTCONN);
  polled = (struct pollfd){c, POLLIN | POLLOUT, 0};
  CHECK(poll(&polled, 1, 0) == 1 && polled.revents == (POLLOUT | POLLHUP));

  CHECK(close(c) == 0);

  // Options.
  c = socket(AF_INET, SOCK_STREAM, 0);
  int on = 1;
  CHECK(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  CHECK(setsockopt(c, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == 0);
  struct sockaddr_in to = peer_name();
  CHECK(connect(c, (struct sockaddr *)&to, sizeof to) == 0);
  CHECK(connect(c, (struct sockaddr *)&to, sizeof to) == -1 && errno == EISCONN);
  CHECK(ASK("accept 2") == 0);
  on = 0;
  CHECK(getsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, &(socklen_t){4}) == 0 && on == 1);
  CHECK(getsockopt(c, SOL_SOCKET, SO_TYPE, &on, &(socklen_t){4}) == 0 && on == SOCK_STREAM);
  CHECK(getsockopt(c, SOL_SOCKET, 9999, &on, &(socklen_t){4}) == -1 && errno == ENOPROTOOPT);
  struct tcp_info info;
  len = sizeof info;
  CHECK(getsockopt(c, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == TCP_ESTABLISHED);
  struct linger wait = {1, 10};
  CHECK(setsockopt(c, SOL_SOCKET, SO_LINGER, &wait, sizeof wait) == 0);
  CHECK(send(c, "bye", 3, 0) == 3);
  CHECK(close(c) == 0);
  CHECK(ASK("recv 2 10") == 3);
  return 0;
}
