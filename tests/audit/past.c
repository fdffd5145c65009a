/* Makes system calls past the C library on sockets that the SAN carries, each from a function of its own, and some that are nobody's
 * business. Prints the names of those that an audit must tell. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#define L(x) ((long)(x))

/* The system call `name`, without the C library, in a function raw_<name>. */
#define RAW(name)                                                                                   \
    __attribute__((noinline)) long raw_##name(long a, long b, long c, long d, long e, long f)        \
    {                                                                                               \
        long result;                                                                                \
        register long r10 __asm__("r10") = d;                                                       \
        register long r8 __asm__("r8") = e;                                                         \
        register long r9 __asm__("r9") = f;                                                         \
        __asm__ volatile("syscall"                                                                  \
                         : "=a"(result)                                                             \
                         : "a"(L(SYS_##name)), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)     \
                         : "rcx", "r11", "memory");                                                 \
        return result;                                                                              \
    }

RAW(read) RAW(write) RAW(readv) RAW(writev) RAW(recvfrom) RAW(sendto) RAW(recvmsg) RAW(sendmsg) RAW(poll) RAW(ppoll) RAW(select)
RAW(pselect6) RAW(epoll_ctl) RAW(epoll_wait) RAW(epoll_pwait) RAW(ioctl) RAW(fcntl) RAW(getsockopt) RAW(setsockopt) RAW(getpeername)
RAW(getsockname) RAW(accept4) RAW(sendfile) RAW(splice) RAW(dup) RAW(dup2) RAW(dup3) RAW(close_range) RAW(socket) RAW(bind)
RAW(listen) RAW(shutdown) RAW(close) RAW(clone) RAW(execve) RAW(io_uring_setup) RAW(fstat) RAW(pipe2) RAW(epoll_create1) RAW(getpid)

#define TOLD(name, ...)                        \
    do {                                       \
        raw_##name(__VA_ARGS__);               \
        puts(#name);                           \
    } while (0)

static int must(int value, const char *what)
{
    if (value < 0) {
        perror(what);
        exit(1);
    }
    return value;
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof name;
    int listener = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(bind(listener, (void *)&name, len), "bind");
    must(listen(listener, 5), "listen");
    must(getsockname(listener, (void *)&name, &len), "getsockname");
    int fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(connect(fd, (void *)&name, len), "connect");
    int peer = must(accept(listener, NULL, NULL), "accept");
    int fresh = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    int set = must(epoll_create1(0), "epoll_create1");
    struct epoll_event event = {.events = EPOLLIN};
    must(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    fcntl(listener, F_SETFL, O_NONBLOCK);

    char bytes[64] = "";
    int number = 0;
    socklen_t room = sizeof number;
    struct iovec part = {bytes, 1};
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    struct timespec none = {0, 0};
    struct timeval nothing = {0, 0};
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    fd_set again = readable;

    TOLD(read, fd, L(bytes), 1, 0, 0, 0);
    TOLD(write, fd, L(bytes), 1, 0, 0, 0);
    TOLD(readv, fd, L(&part), 1, 0, 0, 0);
    TOLD(writev, fd, L(&part), 1, 0, 0, 0);
    TOLD(recvfrom, fd, L(bytes), 1, MSG_DONTWAIT, 0, 0);
    TOLD(sendto, fd, L(bytes), 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    TOLD(recvmsg, fd, L(&message), MSG_DONTWAIT, 0, 0, 0);
    TOLD(poll, L(&polled), 1, 0, 0, 0, 0);
    TOLD(ppoll, L(&polled), 1, L(&none), 0, 0, 0);
    TOLD(select, fd + 1, L(&readable), 0, 0, L(&nothing), 0);
    TOLD(pselect6, fd + 1, L(&again), 0, 0, L(&none), 0);
    TOLD(epoll_wait, set, L(&event), 1, 0, 0, 0);
    TOLD(epoll_pwait, set, L(&event), 1, 0, 0, 8);
    TOLD(epoll_ctl, set, EPOLL_CTL_MOD, fd, L(&event), 0, 0);
    TOLD(ioctl, fd, FIONREAD, L(&number), 0, 0, 0);
    TOLD(fcntl, fd, F_GETFL, 0, 0, 0, 0);
    TOLD(getsockopt, fd, SOL_SOCKET, SO_ERROR, L(&number), L(&room), 0);
    TOLD(setsockopt, fd, SOL_SOCKET, SO_KEEPALIVE, L(&number), sizeof number, 0);
    TOLD(getpeername, fd, L(&name), L(&len), 0, 0, 0);
    TOLD(getsockname, fd, L(&name), L(&len), 0, 0, 0);
    TOLD(accept4, listener, 0, 0, SOCK_NONBLOCK, 0, 0);
    TOLD(sendfile, fd, open("/dev/null", O_RDONLY), 0, 1, 0, 0);
    int pipes[2];
    must(pipe2(pipes, O_NONBLOCK), "pipe2");
    TOLD(splice, fd, 0, pipes[1], 0, 1, 2);

    /* A descriptor in a message. */
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    message.msg_control = control.room;
    message.msg_controllen = sizeof control.room;
    TOLD(sendmsg, pair[0], L(&message), MSG_DONTWAIT, 0, 0, 0);

    /* What changes the state of sockets, and of the process. */
    TOLD(bind, fresh, L(&name), 0, 0, 0, 0);
    TOLD(listen, fresh, 1, 0, 0, 0, 0);
    TOLD(socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    TOLD(io_uring_setup, 0, 0, 0, 0, 0, 0);
    TOLD(execve, L("/nonexistent"), 0, 0, 0, 0, 0);
    long child = raw_clone(SIGCHLD, 0, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    puts("clone");
    must(waitpid((pid_t)child, NULL, 0), "waitpid");
    TOLD(dup, fd, 0, 0, 0, 0, 0);
    TOLD(dup2, fd, 100, 0, 0, 0, 0);
    TOLD(dup3, fd, 101, 0, 0, 0, 0);
    TOLD(shutdown, fd, SHUT_WR, 0, 0, 0, 0);
    TOLD(close_range, peer, peer, 0, 0, 0, 0);
    TOLD(close, fd, 0, 0, 0, 0, 0);

    /* Nobody's business. */
    struct stat about;
    raw_fstat(listener, L(&about), 0, 0, 0, 0);
    raw_fcntl(listener, F_GETFD, 0, 0, 0, 0);
    raw_socket(AF_INET, SOCK_DGRAM, 0, 0, 0, 0);
    raw_socket(AF_UNIX, SOCK_STREAM, 0, 0, 0, 0);
    raw_read(pipes[0], L(bytes), 1, 0, 0, 0);
    raw_write(pipes[1], L(bytes), 1, 0, 0, 0);
    raw_read(-1, 0, 0, 0, 0, 0);
    raw_poll(L(-4096), 5, 0, 0, 0, 0);
    raw_select(10, 8, 8, 8, L(&nothing), 0);
    raw_sendmsg(pair[0], 8, 0, 0, 0, 0);
    raw_close(pipes[0], 0, 0, 0, 0, 0);
    raw_getpid(0, 0, 0, 0, 0, 0);
    return 0;
}
