// fork, vfork and posix_spawn with sockets: the child's closes are the child's own.
#include "check.h"

extern char **environ;

static int peer_port(int fd) {
  struct sockaddr_in name;
  socklen_t len = sizeof name;
  return getpeername(fd, (struct sockaddr *)&name, &len) ? -1 : ntohs(name.sin_port);
}

static int exit_of(pid_t child) {
  int status;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(void) {
  int fds[2];
  char bytes[16];
  pid_t child;
  pair(fds);
  int port = peer_port(fds[0]);

  // The child talks over a socket of its parent, and closes it.
  if ((child = fork()) == 0) {
    int ok = send(fds[0], "child", 5, 0) == 5 && peer_port(fds[0]) == port && close(fds[0]) == 0;
    _exit(ok ? 7 : 1);
  }
  CHECK(exit_of(child) == 7);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 5);
  CHECK(send(fds[0], "parent", 6, 0) == 6);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 6);
  CHECK(peer_port(fds[0]) == port);

  // A vfork child shares the parent's memory: what it closes and copies must not be the parent's.
  if ((child = vfork()) == 0) {
    dup2(fds[0], 9);
    dup2(1, fds[1]);
    close(fds[0]);
        execl("/bin/sh", "sh", "-c", "printf vforked >&9", (char *)0);
    _exit(1);
  }
  CHECK(exit_of(child) == 0);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 7);
  CHECK(peer_port(fds[0]) == port);
  CHECK(send(fds[0], "still", 5, 0) == 5);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 5);

  // posix_spawn with file actions over a socket.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fds[0], 1);
  posix_spawn_file_actions_addclose(&actions, fds[0]);
  char *argv[] = {"sh", "-c", "printf spawned", 0};
  CHECK(posix_spawn(&child, "/bin/sh", &actions, 0, argv, environ) == 0);
  CHECK(exit_of(child) == 0);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 7);

  // The connection ends when its last owner closes it.
  int hold[2];
  CHECK(pipe(hold) == 0);
  if ((child = fork()) == 0) {
    close(hold[1]);
    close(fds[1]);
    _exit(read(hold[0], bytes, 1) == 0 ? 7 : 1);
  }
  CHECK(close(fds[0]) == 0);
  CHECK(recv(fds[1], bytes, sizeof bytes, MSG_DONTWAIT) == -1);
  CHECK(close(hold[1]) == 0);
  CHECK(exit_of(child) == 7);
  CHECK(recv(fds[1], bytes, sizeof bytes, 0) == 0);

  // A server that forks a child for each connection, and children that accept.
  struct sockaddr_in name;
  int l = listener(&name);
  if ((child = fork()) == 0) {
    int c = accept(l, 0, 0);
    _exit(c >= 0 && send(c, "hello", 5, 0) == 5 ? 7 : 1);
  }
  int c = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(connect(c, (struct sockaddr *)&name, sizeof name) == 0);
  CHECK(recv(c, bytes, sizeof bytes, MSG_WAITALL) == 5);
  CHECK(exit_of(child) == 7);
  return 0;
}
