// A program with connections to itself that nobody uses: threads that wait for them in every way there is.
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { perror(#c); exit(1); } } while (0)
#define PAIRS 24

static int ends[PAIRS][2], listening;
static pthread_barrier_t ready;

static void *receives(void *pair) {
  char byte;
  pthread_barrier_wait(&ready);
  return recv(((int *)pair)[0], &byte, 1, 0) < 0 ? "" : 0;
}

static void *polls(void *unused) {
  struct pollfd fds[PAIRS + 1];
  for (int n = 0; n < PAIRS; n++) fds[n] = (struct pollfd){ends[n][1], POLLIN, 0};
  fds[PAIRS] = (struct pollfd){listening, POLLIN, 0};
  pthread_barrier_wait(&ready);
  poll(fds, PAIRS + 1, -1);
  return unused;
}

static void *selects(void *unused) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(ends[3][0], &set);
  pthread_barrier_wait(&ready);
  select(ends[3][0] + 1, &set, 0, 0, 0);
  return unused;
}

static void *waits(void *outer) {
  int set = epoll_create1(0), within = set;
  if (outer) {
    within = epoll_create1(0);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, within, &(struct epoll_event){.events = EPOLLIN}) == 0);
  }
  for (int n = 0; n < PAIRS; n++)
    CHECK(epoll_ctl(within, EPOLL_CTL_ADD, ends[n][0], &(struct epoll_event){.events = EPOLLIN}) == 0);
  CHECK(epoll_ctl(within, EPOLL_CTL_ADD, listening, &(struct epoll_event){.events = EPOLLIN}) == 0);
  pthread_barrier_wait(&ready);
  struct epoll_event event;
  epoll_wait(set, &event, 1, -1);
  return 0;
}

int main(void) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  listening = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(bind(listening, (void *)&name, sizeof name) == 0 && listen(listening, PAIRS) == 0);
  CHECK(getsockname(listening, (void *)&name, &(socklen_t){sizeof name}) == 0);
  for (int n = 0; n < PAIRS; n++) {
    ends[n][0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(ends[n][0], (void *)&name, sizeof name) == 0);
    ends[n][1] = accept(listening, 0, 0);
    char byte = 0;
    CHECK(send(ends[n][0], &byte, 1, 0) == 1 && recv(ends[n][1], &byte, 1, 0) == 1);
  }
  pthread_barrier_init(&ready, 0, 6);
  pthread_t thread;
  pthread_create(&thread, 0, receives, ends[0]);
  pthread_create(&thread, 0, polls, 0);
  pthread_create(&thread, 0, selects, 0);
  pthread_create(&thread, 0, waits, 0);
  pthread_create(&thread, 0, waits, "nested");
  pthread_barrier_wait(&ready);
  puts("idle");
  fflush(stdout);
  for (;;) pause();
}
