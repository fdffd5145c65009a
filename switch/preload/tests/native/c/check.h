// Shared by the semantic checks: a check prints its name when it holds, and ends the program when it does not.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what)                                                           \
  do {                                                                        \
    errno = 0;                                                                \
    if (!(what)) {                                                            \
      printf("%s:%d: %s does not hold, errno %d\n", __FILE__, __LINE__, #what, errno); \
      fflush(stdout);                                                         \
      _exit(1);                                                               \
    }                                                                         \
    printf("%s\n", #what);                                                    \
    fflush(stdout);                                                           \
  } while (0)

static inline int listener(struct sockaddr_in *name) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  socklen_t len = sizeof *name;
  memset(name, 0, sizeof *name);
  name->sin_family = AF_INET;
  const char *addr = getenv("ADDR");
  name->sin_addr.s_addr = addr ? inet_addr(addr) : htonl(INADDR_LOOPBACK);
  if (fd < 0 || bind(fd, (struct sockaddr *)name, sizeof *name) || listen(fd, 16) ||
      getsockname(fd, (struct sockaddr *)name, &len))
    abort();
  return fd;
}

// A connected pair over TCP.
static inline void pair(int fds[2]) {
  struct sockaddr_in name;
  int l = listener(&name);
  fds[0] = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fds[0], (struct sockaddr *)&name, sizeof name)) abort();
  fds[1] = accept(l, 0, 0);
  if (fds[1] < 0) abort();
  close(l);
}

// Whether a thread of this process sleeps in the kernel, other than the caller.
static inline int asleep(pid_t tid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
  int fd = open(path, O_RDONLY);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  if (n <= 0) return 0;
  text[n] = 0;
  char *state = strrchr(text, ')');
  return state && state[2] == 'S';
}
