// fork, vfork and posix_spawn with sockets: the child's closes are the child's own, and either may use the connection.
#include "check.h"

extern char **environ;

static int far_port(int fd) {
  struct sockaddr_in name;
  socklen_t len = sizeof name;
  return getpeername(fd, (struct sockaddr *)&name, &len) ? -1 : ntohs(name.sin_port);
}

static int exit_of(pid_t child) {
  int status;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(int argc, char **argv) {
  start_peer(argc, argv);
  char bytes[16];
  pid_t child;
  int c = dial(0);
  int port = far_port(c);

  // The child talks over a socket of its parent, and closes it; then the parent goes on.
  if ((child = fork()) == 0) {
    int ok = send(c, "child", 5, 0) == 5 && recv(c, bytes, 3, MSG_WAITALL) == 3 && far_port(c) == port && close(c) == 0;
    _exit(ok ? 7 : 1);
  }
  CHECK(ASK("recv 0 5") == 5);
  CHECK(ASK("send 0 3") == 3);
  CHECK(exit_of(child) == 7);
  CHECK(send(c, "parent", 6, 0) == 6);
  CHECK(ASK("recv 0 6") == 6);
  CHECK(ASK("send 0 4") == 4);
  CHECK(recv(c, bytes, 4, MSG_WAITALL) == 4);
  CHECK(far_port(c) == port);

  // Both talk, in turn and blocked at the same time.
  int hold[2];
  CHECK(pipe(hold) == 0);
  if ((child = fork()) == 0) {
    close(hold[1]);
    int ok = recv(c, bytes, 1, 0) == 1 && read(hold[0], bytes, 1) == 0 && send(c, "late", 4, 0) == 4;
    _exit(ok ? 7 : 1);
  }
  close(hold[0]);
  CHECK(ASK("send 0 1") == 1);
  CHECK(send(c, "first", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);
  CHECK(close(hold[1]) == 0);
  CHECK(exit_of(child) == 7);
  CHECK(ASK("recv 0 4") == 4);

  // A vfork child shares the parent's memory: what it closes and copies must not be the parent's.
  if ((child = vfork()) == 0) {
    dup2(c, 9);
    close(c);
    close(9);
    execl("/bin/sh", "sh", "-c", "exit 3", (char *)0);
    _exit(1);
  }
  CHECK(exit_of(child) == 3);
  CHECK(far_port(c) == port);
  CHECK(send(c, "still", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);

  // posix_spawn with file actions over a socket.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addclose(&actions, c);
  char *argv2[] = {"sh", "-c", "exit 4", 0};
  CHECK(posix_spawn(&child, "/bin/sh", &actions, 0, argv2, environ) == 0);
  CHECK(exit_of(child) == 4);
  CHECK(send(c, "spawn", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);

  // The connection ends when its last owner closes it.
  CHECK(pipe(hold) == 0);
  if ((child = fork()) == 0) {
    close(hold[1]);
    _exit(read(hold[0], bytes, 1) == 0 ? 7 : 1);
  }
  CHECK(close(c) == 0);
  CHECK(ASK("now 0 1") == -EAGAIN);
  CHECK(close(hold[1]) == 0);
  CHECK(exit_of(child) == 7);
  CHECK(ASK("recv 0 1") == 0);

  // A child that makes its own connections, and one that accepts for its parent.
  struct sockaddr_in name;
  int l = listener(&name);
  if ((child = fork()) == 0) {
    int a = accept(l, 0, 0);
    _exit(a >= 0 && send(a, "hello", 5, 0) == 5 && shutdown(a, SHUT_WR) == 0 ? 7 : 1);
  }
  CHECK(ASK("connect 1 %s %d", setting("ADDR"), ntohs(name.sin_port)) == 0);
  CHECK(ASK("recv 1 100") == 5);
  CHECK(exit_of(child) == 7);
  tell("accept 2");
  if ((child = fork()) == 0) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = peer_name();
    _exit(connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && send(fd, "mine", 4, 0) == 4 ? 7 : 1);
  }
  CHECK(told() == 0);
  CHECK(ASK("recv 2 100") == 4);
  CHECK(exit_of(child) == 7);

  // The parent closes what its child keeps: a server that forks for each connection.
  for (int round = 0; round < 5; round++) {
    tell("connect 3 %s %d", setting("ADDR"), ntohs(name.sin_port));
    int a = accept(l, 0, 0);
    if ((child = fork()) == 0) {
      close(l);
      int ok = recv(a, bytes, 10, MSG_WAITALL) == 10 && send(a, bytes, 10, 0) == 10;
      _exit(ok ? 7 : 1);
    }
    CHECK(close(a) == 0);
    CHECK(told() == 0);
    CHECK(ASK("send 3 10") == 10);
    CHECK(ASK("recv 3 11") == 10);
    CHECK(exit_of(child) == 7);
    CHECK(ASK("close 3") == 0);
  }
  return 0;
}
