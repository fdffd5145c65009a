// Shared by the semantic checks: a check prints its name when it holds, and ends the program when it does not.
// Each program has a peer: itself, started again (on another node, where there are nodes), which does what it is told.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
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

static inline double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static inline const char *setting(const char *name) {
  const char *value = getenv(name);
  return value ? value : "127.0.0.1";
}

static inline struct sockaddr_in address(const char *ip, int port) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
  name.sin_addr.s_addr = inet_addr(ip);
  return name;
}

static inline int listener(struct sockaddr_in *name) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  socklen_t len = sizeof *name;
  *name = address(setting("ADDR"), 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)name, sizeof *name) || listen(fd, 16) ||
      getsockname(fd, (struct sockaddr *)name, &len))
    abort();
  return fd;
}

// Bytes that can be read, once there are so many.
static inline int readable(int fd, int wanted) {
  int n = 0;
  for (double end = now() + 20; now() < end && n < wanted; sched_yield())
    if (ioctl(fd, FIONREAD, &n)) return -1;
  return n;
}

static int peer_pid, peer_line = -1, peer_port;

// Reads a line, byte by byte: nobody else may read ahead.
static inline int read_line(int fd, char *line, int room) {
  int n = 0;
  while (n < room - 1) {
    ssize_t got = read(fd, line + n, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    if (line[n] == '\n') break;
    n++;
  }
  line[n] = 0;
  return 1;
}

// Tells the peer what to do, without waiting for it.
static inline void tell(const char *format, ...) {
  char line[256];
  va_list list;
  va_start(list, format);
  int n = vsnprintf(line, sizeof line - 1, format, list);
  va_end(list);
  line[n++] = '\n';
  if (write(peer_line, line, n) != n) abort();
}

// What the peer's last order came to: a result, or minus an errno.
static inline long told(void) {
  char line[64];
  if (!read_line(peer_line, line, sizeof line)) abort();
  return atol(line);
}

#define ASK(...) (tell(__VA_ARGS__), told())

static inline void peer_main(int line_fd) {
  static char bytes[1 << 16];
  char line[256], word[32], ip[64];
  int fds[64];
  struct sockaddr_in name;
  int l = listener(&name);
  signal(SIGPIPE, SIG_IGN);
  for (;;) {
    int s = 0, n = 0;
    long result = 0;
    if (!read_line(line_fd, line, sizeof line)) _exit(0);
    sscanf(line, "%31s %d %d", word, &s, &n);
    if (!strcmp(word, "port")) result = ntohs(name.sin_port);
    if (!strcmp(word, "accept")) result = (fds[s] = accept(l, 0, 0)) < 0 ? -errno : 0;
    if (!strcmp(word, "connect")) {
      sscanf(line, "%*s %*d %63s %d", ip, &n);
      struct sockaddr_in to = address(ip, n);
      fds[s] = socket(AF_INET, SOCK_STREAM, 0);
      result = connect(fds[s], (struct sockaddr *)&to, sizeof to) ? -errno : 0;
    }
    if (!strcmp(word, "send")) {
      memset(bytes, 'a' + s, sizeof bytes);
      while (result < n) {
        int part = n - result < (long)sizeof bytes ? n - result : (long)sizeof bytes;
        ssize_t sent = send(fds[s], bytes, part, 0);
        if (sent < 0) {
          result = -errno;
          break;
        }
        result += sent;
      }
    }
    if (!strcmp(word, "recv")) {
      while (result < n) {
        int part = n - result < (long)sizeof bytes ? n - result : (long)sizeof bytes;
        ssize_t got = recv(fds[s], bytes, part, 0);
        if (got < 0) result = -errno;
        if (got <= 0) break;
        result += got;
      }
    }
    // Bytes that can be read, once there are so many: what was sent has arrived then.
    if (!strcmp(word, "until")) result = readable(fds[s], n);
    if (!strcmp(word, "now")) result = recv(fds[s], bytes, n, MSG_DONTWAIT), result = result < 0 ? -errno : result;
    if (!strcmp(word, "shut")) result = shutdown(fds[s], n) ? -errno : 0;
    if (!strcmp(word, "close")) result = close(fds[s]) ? -errno : 0;
    if (!strcmp(word, "reset")) {
      struct linger hard = {1, 0};
      setsockopt(fds[s], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
      result = close(fds[s]) ? -errno : 0;
    }
    snprintf(line, sizeof line, "%ld\n", result);
    if (write(line_fd, line, strlen(line)) < 0) _exit(1);
  }
}

// Starts the peer. To be called first of all.
static inline void start_peer(int argc, char **argv) {
  int pair[2];
  if (argc == 3 && !strcmp(argv[1], "peer")) peer_main(atoi(argv[2]));
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) abort();
  if ((peer_pid = fork()) == 0) {
    char number[16];
    snprintf(number, sizeof number, "%d", pair[1]);
    close(pair[0]);
    setenv("ADDR", setting("PEER_ADDR"), 1);
    if (getenv("PEER_CONFIG")) setenv("SANLAB_CONFIG", getenv("PEER_CONFIG"), 1);
    if (getenv("PEER_CHANNEL")) setenv("SANLAB_CHANNEL", getenv("PEER_CHANNEL"), 1);
    execl("/proc/self/exe", argv[0], "peer", number, (char *)0);
    _exit(127);
  }
  close(pair[1]);
  fcntl(pair[0], F_SETFD, FD_CLOEXEC);
  peer_line = pair[0];
  peer_port = ASK("port");
}

static inline struct sockaddr_in peer_name(void) { return address(setting("PEER_ADDR"), peer_port); }

// A connection to the peer, which has it in slot `s`.
static inline int dial(int s) {
  struct sockaddr_in name = peer_name();
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&name, sizeof name) || ASK("accept %d", s)) abort();
  return fd;
}

// Whether a thread of this process sleeps in the kernel.
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
