/* Urgent data: MSG_OOB, SO_OOBINLINE, SIOCATMARK, POLLPRI, SIGURG. */
#include "world.h"

static int at_mark(int fd)
{
    int answer = -1;
    return ioctl(fd, SIOCATMARK, &answer) < 0 ? -errno : answer;
}

static long peer_urge(int far, const char *text) { return peer(SEND, far, MSG_OOB, 0, text, strlen(text)); }

static void say_text(const char *what, int fd, int flags)
{
    char room[65] = "";
    ssize_t n = recv(fd, room, 64, flags);
    if (n < 0)
        told(what, n);
    else
        say("%s=%zd/%s", what, n, room);
}

CASE(urgent_byte_comes_beside_the_stream)
{
    struct pair p = new_pair();
    told("send", peer_urge(p.far, "!"));
    until(p.fd, POLLPRI);
    bits("bits", p.fd);
    say_text("oob", p.fd, MSG_OOB);
    bits("after", p.fd);
    say_text("again", p.fd, MSG_OOB);
    say_text("stream", p.fd, MSG_DONTWAIT);
}

CASE(urgent_byte_is_the_last_of_its_send)
{
    struct pair p = new_pair();
    told("send", peer_urge(p.far, "abc"));
    until(p.fd, POLLPRI);
    until_readable(p.fd, 2);
    bits("bits", p.fd);
    say_text("oob", p.fd, MSG_OOB);
    say_text("stream", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
    say_text("rest", p.fd, MSG_DONTWAIT);
}

CASE(urgent_byte_divides_the_stream)
{
    struct pair p = new_pair();
    peer_send(p.far, "before");
    peer_urge(p.far, "!");
    peer_send(p.far, "after");
    until(p.fd, POLLPRI);
    until_readable(p.fd, 6);
    say("mark=%d", at_mark(p.fd));
    say_text("first", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
    say_text("oob", p.fd, MSG_OOB);
    say_text("second", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
}

CASE(urgent_byte_left_alone_is_passed_over)
{
    struct pair p = new_pair();
    peer_send(p.far, "before");
    peer_urge(p.far, "!");
    peer_send(p.far, "after");
    until(p.fd, POLLPRI);
    say_text("first", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
    until(p.fd, POLLIN);
    say_text("second", p.fd, 0);
    say_text("oob", p.fd, MSG_OOB);
    bits("bits", p.fd);
}

CASE(urgent_byte_in_line)
{
    struct pair p = new_pair();
    set_int(p.fd, SOL_SOCKET, SO_OOBINLINE, 1);
    peer_send(p.far, "before");
    peer_urge(p.far, "!");
    peer_send(p.far, "after");
    until(p.fd, POLLPRI);
    until_readable(p.fd, 12);
    bits("bits", p.fd);
    say_text("oob", p.fd, MSG_OOB);
    say_text("first", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
    bits("at-mark", p.fd);
    say_text("second", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
    bits("behind", p.fd);
}

CASE(urgent_byte_in_line_alone)
{
    struct pair p = new_pair();
    set_int(p.fd, SOL_SOCKET, SO_OOBINLINE, 1);
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    bits("bits", p.fd);
    say("mark=%d", at_mark(p.fd));
    say_text("stream", p.fd, 0);
    say("mark=%d", at_mark(p.fd));
    bits("after", p.fd);
}

CASE(urgent_byte_can_be_peeked_at)
{
    struct pair p = new_pair();
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    say_text("peek", p.fd, MSG_OOB | MSG_PEEK);
    say_text("oob", p.fd, MSG_OOB);
    say_text("again", p.fd, MSG_OOB);
}

CASE(urgent_byte_into_no_room)
{
    struct pair p = new_pair();
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    char room[1];
    told("none", recv(p.fd, room, 0, MSG_OOB));
    told("trunc", recv(p.fd, room, 1, MSG_OOB | MSG_TRUNC));
}

CASE(urgent_byte_of_recvmsg)
{
    struct pair p = new_pair();
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    char room[4] = "";
    struct iovec part = {room, 4};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    told("recvmsg", recvmsg(p.fd, &message, MSG_OOB));
    say("flags=%x byte=%c", message.msg_flags, room[0]);
}

CASE(urgent_byte_of_recvmsg_without_room)
{
    struct pair p = new_pair();
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    struct msghdr message = {0};
    told("recvmsg", recvmsg(p.fd, &message, MSG_OOB));
    say("flags=%x", message.msg_flags);
}

CASE(no_urgent_byte)
{
    struct pair p = new_pair();
    say_text("oob", p.fd, MSG_OOB);
    say("mark=%d", at_mark(p.fd));
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    say_text("oob", p.fd, MSG_OOB);
    say("mark=%d", at_mark(p.fd));
}

CASE(no_urgent_byte_of_a_fresh_socket)
{
    int fd = new_socket();
    say_text("oob", fd, MSG_OOB);
    say("mark=%d", at_mark(fd));
    told("send", send(fd, "!", 1, MSG_OOB | MSG_NOSIGNAL));
    in_port_t port;
    fd = new_listener(4, &port);
    say_text("listener", fd, MSG_OOB);
    say("mark=%d", at_mark(fd));
}

CASE(urgent_byte_after_the_end)
{
    struct pair p = new_pair();
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    bits("bits", p.fd);
    say_text("oob", p.fd, MSG_OOB);
    say_text("again", p.fd, MSG_OOB);
    say_text("end", p.fd, 0);
}

static bool is_b(void *of)
{
    char byte = 0;
    return recv(*(int *)of, &byte, 1, MSG_OOB | MSG_PEEK) == 1 && byte == 'b';
}

CASE(second_urgent_byte_replaces_the_first)
{
    struct pair p = new_pair();
    peer_urge(p.far, "a");
    until(p.fd, POLLPRI);
    peer_urge(p.far, "b");
    until_true(is_b, &p.fd, "replaced");
    say_text("oob", p.fd, MSG_OOB);
    say_text("again", p.fd, MSG_OOB);
    say_text("stream", p.fd, MSG_DONTWAIT);
}

CASE(second_urgent_byte_after_the_first_was_taken)
{
    struct pair p = new_pair();
    peer_urge(p.far, "a");
    until(p.fd, POLLPRI);
    say_text("oob", p.fd, MSG_OOB);
    peer_urge(p.far, "b");
    until(p.fd, POLLPRI);
    bits("bits", p.fd);
    say_text("oob", p.fd, MSG_OOB);
    say_text("stream", p.fd, MSG_DONTWAIT);
}

CASE(urgent_bytes_are_not_counted_as_readable)
{
    struct pair p = new_pair();
    peer_send(p.far, "ab");
    peer_urge(p.far, "!");
    peer_send(p.far, "cd");
    until(p.fd, POLLPRI);
    until_readable(p.fd, 2);
    say("queued=%d", queued(p.fd));
    say_text("first", p.fd, 0);
    until(p.fd, POLLIN);
    say("queued=%d", queued(p.fd));
    say_text("rest", p.fd, 0);
    say("queued=%d", queued(p.fd));
}

CASE(urgent_byte_stops_waitall)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    peer_urge(p.far, "!");
    peer_send(p.far, "def");
    until(p.fd, POLLPRI);
    until_readable(p.fd, 3);
    say_text("recv", p.fd, MSG_WAITALL | MSG_DONTWAIT);
    say("mark=%d", at_mark(p.fd));
}

CASE(urgent_byte_stops_peek)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    peer_urge(p.far, "!");
    peer_send(p.far, "def");
    until(p.fd, POLLPRI);
    until_readable(p.fd, 3);
    say_text("peek", p.fd, MSG_PEEK);
    say_text("recv", p.fd, 0);
}

CASE(urgent_data_is_signalled)
{
    struct pair p = new_pair();
    count_signal(SIGURG, SA_RESTART);
    told("own", fcntl(p.fd, F_SETOWN, getpid()));
    say("owner=%d", fcntl(p.fd, F_GETOWN) == getpid());
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    say("signals=%d", signals[SIGURG]);
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    say("signals=%d", signals[SIGURG]);
}

static bool has_signal(void *of) { return signals[*(int *)of] > 0; }

CASE(urgent_data_is_signalled_outside_calls)
{
    struct pair p = new_pair();
    count_signal(SIGURG, SA_RESTART);
    fcntl(p.fd, F_SETOWN, getpid());
    peer_urge(p.far, "!");
    int number = SIGURG;
    until_true(has_signal, &number, "signalled");
    say_text("oob", p.fd, MSG_OOB);
}

CASE(urgent_data_without_an_owner_is_not_signalled)
{
    struct pair p = new_pair();
    count_signal(SIGURG, SA_RESTART);
    peer_urge(p.far, "!");
    until(p.fd, POLLPRI);
    say("signals=%d", signals[SIGURG]);
}

CASE(urgent_data_wakes_poll)
{
    struct pair p = new_pair();
    peer_begin(SEND, p.far, MSG_OOB, 0, "!", 1);
    struct pollfd one = {p.fd, POLLPRI, 0};
    told("poll", poll(&one, 1, 10000));
    say("revents=%x", one.revents);
    peer_end();
}

CASE(urgent_data_wakes_select)
{
    struct pair p = new_pair();
    peer_begin(SEND, p.far, MSG_OOB, 0, "!", 1);
    fd_set except, in;
    FD_ZERO(&except);
    FD_ZERO(&in);
    FD_SET(p.fd, &except);
    FD_SET(p.fd, &in);
    struct timeval limit = {10, 0};
    told("select", select(p.fd + 1, &in, NULL, &except, &limit));
    say("except=%d", FD_ISSET(p.fd, &except));
    peer_end();
}

CASE(urgent_data_wakes_epoll)
{
    struct pair p = new_pair();
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLPRI | EPOLLET, .data.u32 = 7};
    epoll_ctl(set, EPOLL_CTL_ADD, p.fd, &event);
    peer_begin(SEND, p.far, MSG_OOB, 0, "!", 1);
    told("epoll", epoll_wait(set, &event, 1, 10000));
    say("events=%x data=%u", event.events, event.data.u32);
    peer_end();
    told("again", epoll_wait(set, &event, 1, 0));
}

CASE(urgent_data_of_this_end)
{
    struct pair p = new_pair();
    told("send", send(p.fd, "abc!", 4, MSG_OOB));
    say("far=%lx", peer_until(p.far, POLLPRI) & POLLPRI);
    told("oob", peer_recv(p.far, 0));
    told("far-oob", peer(RECV, p.far, 1, MSG_OOB, NULL, 0));
    say("byte=%c", peer_bytes[0]);
    told("far-stream", peer_recv(p.far, 8));
}

CASE(urgent_data_after_a_shutdown)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    told("send", send(p.fd, "!", 1, MSG_OOB | MSG_NOSIGNAL));
}

CASE(urgent_data_overtakes_a_full_stream)
{
    struct pair p = new_pair();
    peer(NONBLOCK, p.far, 1, 0, NULL, 0);
    while (peer(FLOOD, p.far, 1 << 20, 0, NULL, 0) > 0)
        ;
    until(p.fd, POLLIN);
    /* No room for the byte. */
    told("far", peer_urge(p.far, "!"));
    bits("bits", p.fd);
}

CASE(urgent_data_is_known_while_the_stream_waits)
{
    struct pair p = new_pair();
    peer(FLOOD, p.far, 600000, 0, NULL, 0);
    told("far", peer_urge(p.far, "!"));
    say("right=%d", drain(p.fd, 0, 600000));
    say("mark=%d", at_mark(p.fd));
    until(p.fd, POLLPRI);
    say_text("oob", p.fd, MSG_OOB);
}

CASE(sending_no_urgent_data)
{
    struct pair p = new_pair();
    told("send", send(p.fd, "", 0, MSG_OOB));
    say("far=%lx", peer(WAIT, p.far, 0, 0, NULL, 0));
}
