// Sockets passed to other processes: whoever gets one uses it, with the library or without, and the sender goes on with its own.
#include "check.h"

static char self[4096];

static int exit_of(pid_t child) {
  int status;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

union room {
  char bytes[CMSG_SPACE(2 * sizeof(int))];
  struct cmsghdr header;
};

// Passes `count` descriptors with one byte.
static int pass(int line, const int *fds, int count) {
  union room room;
  memset(&room, 0, sizeof room);
  struct iovec part = {"x", 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(header), fds, count * sizeof(int));
  return sendmsg(line, &message, 0);
}

static int take(int line, int *fds, int count) {
  union room room;
  char byte;
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
  if (recvmsg(line, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(count * sizeof(int))) return -1;
  memcpy(fds, CMSG_DATA(header), count * sizeof(int));
  return 0;
}

static int receiver(int line, const char *what) {
  char bytes[16];
  int fds[2], n = !strcmp(what, "two") ? 2 : 1;
  struct sockaddr_in name;
  socklen_t len = sizeof name;
  if (take(line, fds, n)) return 1;
  if (!strcmp(what, "accept")) {
    // Another listener of the same port.
    for (int k = 0; k < 2; k++) {
      int a = accept(fds[0], 0, 0);
      if (a < 0 || send(a, "taken", 5, 0) != 5 || close(a)) return 2;
    }
    return 7;
  }
  if (getpeername(fds[n - 1], (struct sockaddr *)&name, &len)) return 3;
  if (send(fds[n - 1], "taken", 5, 0) != 5) return 4;
  if (recv(fds[n - 1], bytes, 3, MSG_WAITALL) != 3) return 5;
  if (n == 2 && write(fds[0], "piped", 5) != 5) return 6;
  return 7;
}

// Starts a receiver, which has nothing of ours but its line.
static pid_t start(const char *what, int line, int is_hooked) {
  pid_t child;
  char number[16];
  snprintf(number, sizeof number, "%d", line);
  if ((child = fork()) == 0) {
    if (!is_hooked) unsetenv("LD_PRELOAD");
    fcntl(line, F_SETFD, 0);
    execl(self, self, "receiver", number, what, (char *)0);
    _exit(99);
  }
  return child;
}

int main(int argc, char **argv) {
  ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
  if (len <= 0) abort();
  if (argc >= 4 && !strcmp(argv[1], "receiver")) return receiver(atoi(argv[2]), argv[3]);
  start_peer(argc, argv);
  char bytes[64];
  int line[2], ends[2];
  pid_t child;
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line) == 0);

  for (int is_hooked = 1; is_hooked >= 0; is_hooked--) {
    // The sender closes what it has passed: the receiver is the last.
    int c = dial(0);
    CHECK(fcntl(c, F_SETFD, FD_CLOEXEC) == 0);
    child = start("one", line[1], is_hooked);
    CHECK(pass(line[0], &c, 1) == 1);
    CHECK(close(c) == 0);
    CHECK(ASK("recv 0 5") == 5);
    CHECK(ASK("send 0 3") == 3);
    CHECK(exit_of(child) == 7);
    CHECK(ASK("recv 0 1") == 0);
    CHECK(ASK("close 0") == 0);

    // Both have it, the sender after the receiver; a pipe goes along.
    c = dial(0);
    CHECK(fcntl(c, F_SETFD, FD_CLOEXEC) == 0);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    child = start("two", line[1], is_hooked);
    int both[2] = {ends[1], c};
    CHECK(pass(line[0], both, 2) == 1);
    CHECK(ASK("recv 0 5") == 5);
    CHECK(ASK("send 0 3") == 3);
    CHECK(exit_of(child) == 7);
    CHECK(read(ends[0], bytes, 5) == 5);
    CHECK(send(c, "mine", 4, 0) == 4);
    CHECK(ASK("recv 0 4") == 4);
    CHECK(close(c) == 0);
    CHECK(ASK("recv 0 1") == 0);
    CHECK(ASK("close 0") == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);

    // A listener, with a connection that waits already.
    struct sockaddr_in name;
    int l = listener(&name);
    CHECK(fcntl(l, F_SETFD, FD_CLOEXEC) == 0);
    CHECK(ASK("connect 1 %s %d", setting("ADDR"), ntohs(name.sin_port)) == 0);
    child = start("accept", line[1], is_hooked);
    CHECK(pass(line[0], &l, 1) == 1);
    CHECK(close(l) == 0);
    CHECK(ASK("recv 1 6") == 5);
    CHECK(ASK("connect 2 %s %d", setting("ADDR"), ntohs(name.sin_port)) == 0);
    CHECK(ASK("recv 2 6") == 5);
    CHECK(exit_of(child) == 7);
    CHECK(ASK("close 1") == 0 && ASK("close 2") == 0);
  }

  // In flight and never received: the connection ends with the message.
  int c = dial(0);
  CHECK(pass(line[0], &c, 1) == 1);
  CHECK(close(c) == 0);
  CHECK(ASK("now 0 1") == -EAGAIN);
  CHECK(close(line[0]) == 0 && close(line[1]) == 0);
  CHECK(ASK("recv 0 1") == 0);
  return 0;
}
