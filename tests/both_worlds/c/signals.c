/* Signals: SIGPIPE, SIGIO, and calls that a handler interrupts. */
#include "world.h"

static bool has_signal(void *of) { return signals[*(int *)of] > 0; }

CASE(writing_to_an_ended_stream_raises_sigpipe)
{
    struct pair p = new_pair();
    count_signal(SIGPIPE, 0);
    shutdown(p.fd, SHUT_WR);
    told("write", write(p.fd, "x", 1));
    say("signals=%d", signals[SIGPIPE]);
    struct iovec part = {"x", 1};
    told("writev", writev(p.fd, &part, 1));
    say("signals=%d", signals[SIGPIPE]);
    told("sendto", sendto(p.fd, "x", 1, 0, NULL, 0));
    say("signals=%d", signals[SIGPIPE]);
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    told("sendmsg", sendmsg(p.fd, &message, 0));
    say("signals=%d", signals[SIGPIPE]);
}

CASE(sigpipe_kills_by_default)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    say("write");
    told("write", write(p.fd, "x", 1));
    say("lives");
}

CASE(ignored_sigpipe_leaves_the_error)
{
    struct pair p = new_pair();
    signal(SIGPIPE, SIG_IGN);
    shutdown(p.fd, SHUT_WR);
    told("write", write(p.fd, "x", 1));
}

CASE(blocked_sigpipe_stays_pending)
{
    struct pair p = new_pair();
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    sigprocmask(SIG_BLOCK, &set, NULL);
    shutdown(p.fd, SHUT_WR);
    told("write", write(p.fd, "x", 1));
    sigpending(&pending);
    say("pending=%d", sigismember(&pending, SIGPIPE));
}

/* A blocked call that a handler interrupts, without and with SA_RESTART: the peer sends at the third tick. */
static struct pair ticked;
static void send_at_tick(void) { peer_begin(SEND, ticked.far, 0, 0, "late", 4); }

static void interrupted(int flags, int timeout, long (*call)(int fd))
{
    ticked = new_pair();
    if (timeout) {
        struct timeval limit = {20, 0};
        setsockopt(ticked.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    }
    ticking(flags, send_at_tick);
    long result = call(ticked.fd);
    still();
    told("call", result);
}

static long by_recv(int fd) { char room[8]; return recv(fd, room, 8, 0); }
static long by_read(int fd) { char room[8]; return read(fd, room, 8); }
static long by_waitall(int fd) { char room[4]; return recv(fd, room, 4, MSG_WAITALL); }
static long by_recvmsg(int fd)
{
    char room[8];
    struct iovec part = {room, 8};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return recvmsg(fd, &message, 0);
}
static long by_poll(int fd) { struct pollfd one = {fd, POLLIN, 0}; return poll(&one, 1, 20000); }
static long by_select(int fd)
{
    fd_set in;
    FD_ZERO(&in);
    FD_SET(fd, &in);
    return select(fd + 1, &in, NULL, NULL, NULL);
}
static long by_epoll(int fd)
{
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    return epoll_wait(set, &event, 1, 20000);
}

CASE(recv_is_interrupted) { interrupted(0, 0, by_recv); }
CASE(recv_is_restarted) { interrupted(SA_RESTART, 0, by_recv); }
CASE(read_is_interrupted) { interrupted(0, 0, by_read); }
CASE(read_is_restarted) { interrupted(SA_RESTART, 0, by_read); }
CASE(waitall_is_interrupted) { interrupted(0, 0, by_waitall); }
CASE(waitall_is_restarted) { interrupted(SA_RESTART, 0, by_waitall); }
CASE(recvmsg_is_interrupted) { interrupted(0, 0, by_recvmsg); }
CASE(recvmsg_is_restarted) { interrupted(SA_RESTART, 0, by_recvmsg); }
CASE(recv_with_a_time_limit_is_never_restarted) { interrupted(SA_RESTART, 1, by_recv); }
CASE(poll_is_interrupted) { interrupted(0, 0, by_poll); }
CASE(poll_is_never_restarted) { interrupted(SA_RESTART, 0, by_poll); }
CASE(select_is_interrupted) { interrupted(0, 0, by_select); }
CASE(select_is_never_restarted) { interrupted(SA_RESTART, 0, by_select); }
CASE(epoll_is_interrupted) { interrupted(0, 0, by_epoll); }
CASE(epoll_is_never_restarted) { interrupted(SA_RESTART, 0, by_epoll); }

static in_port_t ticked_port;
static void connect_at_tick(void) { peer_begin(CONNECT, -1, ticked_port, 0, NULL, 0); }

static void accept_interrupted(int flags)
{
    int fd = new_listener(4, &ticked_port);
    ticking(flags, connect_at_tick);
    long result = accept(fd, NULL, NULL);
    still();
    told("accept", result < 0 ? result : 0);
}

CASE(accept_is_interrupted) { accept_interrupted(0); }
CASE(accept_is_restarted) { accept_interrupted(SA_RESTART); }

static void drain_at_tick(void) { peer_begin(RECV, ticked.far, 60000, MSG_WAITALL, NULL, 0); }

static void send_interrupted(int flags, long len)
{
    ticked = new_pair();
    fill(ticked);
    ticking(flags, NULL);
    if (flags & SA_RESTART)
        ticking(flags, drain_at_tick);
    char *much = calloc(1, (size_t)len);
    struct timeval limit = {flags & SA_RESTART ? 0 : 20, 200000};
    if (!(flags & SA_RESTART))
        setsockopt(ticked.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    told("send", send(ticked.fd, much, (size_t)len, 0));
    still();
}

CASE(send_is_interrupted) { send_interrupted(0, 100); }

CASE(waitall_is_interrupted_with_what_came)
{
    struct pair p = new_pair();
    char room[8];
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    ticking(0, NULL);
    told("recv", recv(p.fd, room, 8, MSG_WAITALL));
    still();
}

CASE(pselect_and_ppoll_take_a_mask)
{
    struct pair p = new_pair();
    sigset_t set, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    count_signal(SIGUSR1, 0);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    struct pollfd one = {p.fd, POLLIN, 0};
    struct timespec limit = {10, 0};
    told("ppoll", ppoll(&one, 1, &limit, &none));
    raise(SIGUSR1);
    fd_set in;
    FD_ZERO(&in);
    FD_SET(p.fd, &in);
    told("pselect", pselect(p.fd + 1, &in, NULL, NULL, &limit, &none));
    raise(SIGUSR1);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, p.fd, &event);
    told("epoll", epoll_pwait(epoll, &event, 1, 10000, &none));
    say("signals=%d", signals[SIGUSR1]);
}

/* ---- SIGIO ---- */

static struct pair asynchronous(int number)
{
    struct pair p = new_pair();
    count_signal(number ? number : SIGIO, SA_RESTART);
    fcntl(p.fd, F_SETOWN, getpid());
    if (number)
        told("setsig", fcntl(p.fd, F_SETSIG, number));
    told("async", fcntl(p.fd, F_SETFL, fcntl(p.fd, F_GETFL) | O_ASYNC));
    return p;
}

CASE(sigio_tells_of_data)
{
    struct pair p = asynchronous(0);
    peer_send(p.far, "x");
    int number = SIGIO;
    until_true(has_signal, &number, "signalled");
    bits("bits", p.fd);
}

CASE(sigio_tells_of_data_again)
{
    struct pair p = asynchronous(0);
    int number = SIGIO;
    char room[8];
    for (int n = 0; n < 3; n++) {
        signals[SIGIO] = 0;
        peer_send(p.far, "x");
        until_true(has_signal, &number, "signalled");
        told("recv", recv(p.fd, room, 8, 0));
    }
}

CASE(sigio_tells_of_the_end)
{
    struct pair p = asynchronous(0);
    peer_close(p.far);
    int number = SIGIO;
    until_true(has_signal, &number, "signalled");
    bits("bits", p.fd);
}

CASE(sigio_tells_of_a_reset)
{
    struct pair p = asynchronous(0);
    peer_reset(p.far);
    int number = SIGIO;
    until_true(has_signal, &number, "signalled");
    until_all(p.fd, POLLHUP);
}

CASE(sigio_by_fioasync)
{
    struct pair p = new_pair();
    int number = SIGIO, on = 1;
    count_signal(SIGIO, SA_RESTART);
    fcntl(p.fd, F_SETOWN, getpid());
    told("async", ioctl(p.fd, FIOASYNC, &on));
    say("flag=%d", !!(fcntl(p.fd, F_GETFL) & O_ASYNC));
    peer_send(p.far, "x");
    until_true(has_signal, &number, "signalled");
}

CASE(chosen_signal_names_the_descriptor)
{
    struct pair p = asynchronous(SIGRTMIN);
    say("sig=%d", fcntl(p.fd, F_GETSIG) == SIGRTMIN);
    peer_send(p.far, "x");
    int number = SIGRTMIN;
    until_true(has_signal, &number, "signalled");
    say("fd=%d", signal_fd[SIGRTMIN] == p.fd);
}

CASE(no_sigio_without_the_flag)
{
    struct pair p = new_pair();
    count_signal(SIGIO, SA_RESTART);
    fcntl(p.fd, F_SETOWN, getpid());
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    say("signals=%d", signals[SIGIO]);
}

CASE(sigio_of_a_listener)
{
    in_port_t port;
    int fd = new_listener(4, &port), number = SIGIO;
    count_signal(SIGIO, SA_RESTART);
    fcntl(fd, F_SETOWN, getpid());
    fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK);
    peer(CONNECT, -1, port, 0, NULL, 0);
    until_true(has_signal, &number, "signalled");
    told("accept", accept(fd, NULL, NULL) >= 0);
}

CASE(owner_is_answered_as_set)
{
    struct pair p = new_pair();
    say("none=%d sig=%d", fcntl(p.fd, F_GETOWN), fcntl(p.fd, F_GETSIG));
    told("own", fcntl(p.fd, F_SETOWN, getpid()));
    say("self=%d", fcntl(p.fd, F_GETOWN) == getpid());
    struct f_owner_ex owner = {F_OWNER_TID, gettid()};
    told("ex", fcntl(p.fd, F_SETOWN_EX, &owner));
    owner.pid = 0;
    fcntl(p.fd, F_GETOWN_EX, &owner);
    say("type=%d self=%d", owner.type, owner.pid == gettid());
    told("bad-sig", fcntl(p.fd, F_SETSIG, 200));
    told("bad-own", fcntl(p.fd, F_SETOWN, 1 << 29));
    int pid = 0;
    told("siocgpgrp", ioctl(p.fd, 0x8904, &pid));
}
