// Sockets across exec and its kind: the next image uses what its caller left open, whichever way it was started.
#include "check.h"

extern char **environ;

static char self[4096];

static int exit_of(pid_t child) {
  int status;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// What the next image does with the descriptor it was left.
static int heir(const char *what, int fd) {
  char bytes[16];
  struct sockaddr_in name;
  socklen_t len = sizeof name;
  if (!strcmp(what, "closed")) return fcntl(fd, F_GETFD) == -1 && errno == EBADF ? 7 : 1;
  if (!strcmp(what, "accept")) {
    int a = accept(fd, 0, 0);
    return a >= 0 && send(a, "hello", 5, 0) == 5 && recv(a, bytes, 3, MSG_WAITALL) == 3 ? 7 : 1;
  }
  if (!strcmp(what, "again")) {
    // Through one more image.
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    execl(self, self, "heir", "talk", number, (char *)0);
    return 2;
  }
  if (getpeername(fd, (struct sockaddr *)&name, &len)) return 3;
  if (send(fd, "heirs", 5, 0) != 5) return 4;
  if (recv(fd, bytes, 3, MSG_WAITALL) != 3) return 5;
  return 7;
}

enum way { EXECVE, EXECV, EXECVP, EXECVPE, EXECL, EXECLP, EXECLE, CLEARED, FEXECVE, SYSCALL, OUTSIDE, SPAWN, SPAWNP, VFORK, VFORK_OUTSIDE, SPAWN_OUTSIDE };

static char number[16];
static char *none[] = {0};

static void run(enum way way, char **argv) {
  switch (way) {
  case EXECVE: execve(self, argv, environ); break;
  case VFORK:
  case EXECV: execv(self, argv); break;
  case EXECVP: execvp(self, argv); break;
  case EXECVPE: execvpe(self, argv, environ); break;
  case EXECL: execl(self, argv[0], argv[1], argv[2], argv[3], (char *)0); break;
  case EXECLP: execlp(self, argv[0], argv[1], argv[2], argv[3], "a", "b", "c", "d", "e", (char *)0); break;
  case EXECLE: execle(self, argv[0], argv[1], argv[2], argv[3], "a", "b", "c", (char *)0, environ); break;
  case CLEARED: execve(self, argv, none); break;
  case FEXECVE: fexecve(open(self, O_RDONLY | O_CLOEXEC), argv, environ); break;
  case SYSCALL: syscall(SYS_execve, self, argv, environ); break;
  case VFORK_OUTSIDE: execve(self, argv, environ); break;
  case OUTSIDE:
    unsetenv("LD_PRELOAD");
    execv(self, argv);
    break;
  default: break;
  }
}

// Starts an image that does `what` with `fd`, and gives its exit.
static pid_t start(enum way way, const char *what, int fd) {
  pid_t child;
  snprintf(number, sizeof number, "%d", fd);
  char *argv[] = {self, "heir", (char *)what, number, 0};
  if (way == SPAWN) return posix_spawn(&child, self, 0, 0, argv, environ) ? -1 : child;
  if (way == SPAWNP || way == SPAWN_OUTSIDE) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 77);
    posix_spawn_file_actions_addclose(&actions, fd);
    argv[3] = "77";
    char *preload = getenv("LD_PRELOAD") ? strdup(getenv("LD_PRELOAD")) : 0;
    if (way == SPAWN_OUTSIDE) unsetenv("LD_PRELOAD");
    int result = posix_spawnp(&child, self, &actions, 0, argv, environ);
    if (preload) setenv("LD_PRELOAD", preload, 1);
    posix_spawn_file_actions_destroy(&actions);
    return result ? -1 : child;
  }
  if (way == VFORK || way == VFORK_OUTSIDE) {
    char *preload = getenv("LD_PRELOAD") ? strdup(getenv("LD_PRELOAD")) : 0;
    if (way == VFORK_OUTSIDE) unsetenv("LD_PRELOAD");
    argv[3] = "78";
    if ((child = vfork()) == 0) {
      dup2(fd, 78);
      close(fd);
      run(way, argv);
      _exit(99);
    }
    if (preload) setenv("LD_PRELOAD", preload, 1);
    return child;
  }
  if ((child = fork()) == 0) {
    run(way, argv);
    _exit(99);
  }
  return child;
}

// The image and the peer talk, then the caller and the peer.
static void talk(enum way way, const char *what, int c) {
  pid_t child = start(way, what, c);
  CHECK(child > 0);
  CHECK(ASK("recv 0 5") == 5);
  CHECK(ASK("send 0 3") == 3);
  CHECK(exit_of(child) == 7);
  if (way == OUTSIDE || way == VFORK_OUTSIDE || way == SPAWN_OUTSIDE) return;
  CHECK(send(c, "still", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);
}

int main(int argc, char **argv) {
  ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
  if (len <= 0) abort();
  if (argc >= 4 && !strcmp(argv[1], "heir")) return heir(argv[2], atoi(argv[3]));
  start_peer(argc, argv);
  char bytes[64];
  pid_t child;
  int c = dial(0);
  for (enum way way = EXECVE; way <= SYSCALL; way++) talk(way, "talk", c);
  talk(EXECV, "again", c);
  talk(SPAWN, "talk", c);
  talk(SPAWNP, "talk", c);
  talk(VFORK, "talk", c);

  // An exec that fails leaves everything as it was.
  CHECK(execl("/nowhere/at/all", "all", (char *)0) == -1 && errno == ENOENT);
  CHECK(send(c, "after", 5, 0) == 5);
  CHECK(ASK("recv 0 5") == 5);

  // What is close-on-exec is closed, and only in the image.
  CHECK(fcntl(c, F_SETFD, FD_CLOEXEC) == 0);
  CHECK(exit_of(start(EXECV, "closed", c)) == 7);
  CHECK(exit_of(start(SPAWN, "closed", c)) == 7);
  CHECK(send(c, "mine", 4, 0) == 4);
  CHECK(ASK("recv 0 4") == 4);
  CHECK(fcntl(c, F_SETFD, 0) == 0);

  // The image has the connection when its caller is gone.
  if ((child = start(EXECV, "talk", c)) > 0) close(c);
  CHECK(ASK("recv 0 5") == 5);
  CHECK(ASK("now 0 1") == -EAGAIN);
  CHECK(ASK("send 0 3") == 3);
  CHECK(exit_of(child) == 7);
  CHECK(ASK("recv 0 1") == 0);

  // A connection that only the replaced image had.
  tell("accept 0");
  if ((child = fork()) == 0) {
    int own = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = peer_name();
    if (connect(own, (struct sockaddr *)&to, sizeof to)) _exit(98);
    snprintf(number, sizeof number, "%d", own);
    execl(self, self, "heir", "talk", number, (char *)0);
    _exit(99);
  }
  CHECK(told() == 0);
  CHECK(ASK("recv 0 5") == 5);
  CHECK(ASK("send 0 3") == 3);
  CHECK(exit_of(child) == 7);
  CHECK(ASK("recv 0 1") == 0);

  // A listener: the image accepts what comes, and so does its caller.
  struct sockaddr_in name;
  int l = listener(&name);
  for (enum way way = EXECVE; way <= VFORK; way += VFORK - EXECVE) {
    child = start(way, "accept", l);
    CHECK(ASK("connect 1 %s %d", setting("ADDR"), ntohs(name.sin_port)) == 0);
    CHECK(ASK("recv 1 5") == 5);
    CHECK(ASK("send 1 3") == 3);
    CHECK(exit_of(child) == 7);
    CHECK(ASK("recv 1 1") == 0);
    CHECK(ASK("close 1") == 0);
    tell("connect 1 %s %d", setting("ADDR"), ntohs(name.sin_port));
    int a = accept(l, 0, 0);
    CHECK(a >= 0);
    CHECK(told() == 0);
    CHECK(send(a, "own", 3, 0) == 3);
    CHECK(close(a) == 0);
    CHECK(ASK("recv 1 4") == 3);
    CHECK(ASK("close 1") == 0);
  }

  // Images without the library, and the standard streams of any image.
  for (enum way way = EXECVE; way <= SPAWN_OUTSIDE; way++) {
    if (way != OUTSIDE && way != VFORK_OUTSIDE && way != SPAWN_OUTSIDE) continue;
    c = dial(0);
    talk(way, "talk", c);
    CHECK(close(c) == 0);
    CHECK(ASK("recv 0 1") == 0);
    CHECK(ASK("close 0") == 0);
  }
  c = dial(0);
  if ((child = fork()) == 0) {
    dup2(c, 0);
    dup2(c, 1);
    close(c);
    execlp("cat", "cat", (char *)0);
    _exit(99);
  }
  CHECK(close(c) == 0);
  CHECK(ASK("send 0 300000") == 300000);
  CHECK(ASK("shut 0 1") == 0);
  CHECK(ASK("recv 0 400000") == 300000);
  CHECK(exit_of(child) == 0);
  CHECK(ASK("close 0") == 0);
  c = dial(0);
  if ((child = fork()) == 0) {
    dup2(c, 0);
    dup2(c, 1);
    close(c);
    // A shell reads its input byte by byte, and writes past everybody.
    execl("/bin/sh", "sh", "-c", "read -r line <&0; echo \"got $line\"", (char *)0);
    _exit(99);
  }
  CHECK(close(c) == 0);
  CHECK(ASK("send 0 5") == 5);
  CHECK(ASK("shut 0 1") == 0);
  CHECK(ASK("recv 0 100") == 10);
  CHECK(exit_of(child) == 0);
  CHECK(ASK("close 0") == 0);

  // Streams of the C library.
  c = dial(0);
  FILE *stream = fdopen(c, "r+");
  CHECK(stream != 0);
  CHECK(fprintf(stream, "printed %d\n", 42) == 11);
  CHECK(fflush(stream) == 0);
  CHECK(ASK("recv 0 11") == 11);
  CHECK(ASK("send 0 4") == 4);
  CHECK(ASK("shut 0 1") == 0);
  CHECK(fgets(bytes, sizeof bytes, stream) == bytes && !strcmp(bytes, "aaaa"));
  CHECK(feof(stream));
  CHECK(fclose(stream) == 0);
  CHECK(ASK("recv 0 1") == 0);
  CHECK(ASK("close 0") == 0);
  return 0;
}
