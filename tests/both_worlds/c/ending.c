/* The end of connections: shutdown, close, reset, and what both sides see. */
#include "world.h"

static void say_recv(const char *what, int fd)
{
    char room[64];
    told(what, recv(fd, room, sizeof room, 0));
}

CASE(peer_closes)
{
    struct pair p = new_pair();
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("again", p.fd);
    bits("after", p.fd);
}

CASE(peer_closes_after_data)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    bits("then", p.fd);
    say_recv("end", p.fd);
}

CASE(peer_closes_with_unread_data)
{
    struct pair p = new_pair();
    send(p.fd, "abc", 3, 0);
    peer_until(p.far, POLLIN);
    peer_close(p.far);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("again", p.fd);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
    bits("after", p.fd);
}

CASE(peer_closes_with_unread_data_after_sending)
{
    struct pair p = new_pair();
    send(p.fd, "abc", 3, 0);
    peer_until(p.far, POLLIN);
    peer_send(p.far, "reply");
    until_readable(p.fd, 5);
    peer_close(p.far);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("then", p.fd);
    say_recv("again", p.fd);
}

CASE(send_to_a_closed_peer)
{
    struct pair p = new_pair();
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    told("first", send(p.fd, "x", 1, MSG_NOSIGNAL));
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    told("second", send(p.fd, "x", 1, MSG_NOSIGNAL));
    say("error=%d", get_int(p.fd, SOL_SOCKET, SO_ERROR));
    say_recv("recv", p.fd);
}

CASE(send_to_a_closed_peer_tells_by_so_error)
{
    struct pair p = new_pair();
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    told("first", send(p.fd, "x", 1, MSG_NOSIGNAL));
    until_all(p.fd, POLLHUP);
    say("error=%s", errno_name(get_int(p.fd, SOL_SOCKET, SO_ERROR)));
    told("second", send(p.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(peer_resets)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    bits("after", p.fd);
    say_recv("again", p.fd);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(peer_resets_and_send_sees_it_first)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
    told("again", send(p.fd, "x", 1, MSG_NOSIGNAL));
    say_recv("recv", p.fd);
}

CASE(peer_resets_after_data)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("then", p.fd);
    say_recv("again", p.fd);
}

CASE(peer_finishes_and_resets)
{
    struct pair p = new_pair();
    peer_shutdown(p.far, SHUT_WR);
    until(p.fd, POLLRDHUP);
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
    told("again", send(p.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(peer_is_killed)
{
    struct pair p = new_pair();
    peer_send(p.far, "last words");
    peer_begin(DIE, 0, 0, 0, NULL, 0);
    until(p.fd, POLLRDHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("end", p.fd);
}

CASE(peer_is_killed_with_unread_data)
{
    struct pair p = new_pair();
    send(p.fd, "abc", 3, 0);
    peer_until(p.far, POLLIN);
    peer_begin(DIE, 0, 0, 0, NULL, 0);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("again", p.fd);
}

CASE(peer_shuts_writing)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    peer_shutdown(p.far, SHUT_WR);
    until(p.fd, POLLRDHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    say_recv("end", p.fd);
    told("send", send(p.fd, "still", 5, 0));
    told("far", peer_recv(p.far, 10));
}

static bool has_three(void *far) { return peer(QUEUED, *(int *)far, 0, 0, NULL, 0) == 3; }

CASE(peer_shuts_reading)
{
    struct pair p = new_pair();
    peer_shutdown(p.far, SHUT_RD);
    bits("bits", p.fd);
    told("send", send(p.fd, "abc", 3, 0));
    /* It is readable anyhow. */
    until_true(has_three, &p.far, "arrived");
    told("far", peer_recv(p.far, 10));
    told("far-end", peer_recv(p.far, 10));
    bits("after", p.fd);
}

CASE(shut_reading)
{
    struct pair p = new_pair();
    told("shutdown", shutdown(p.fd, SHUT_RD));
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    bits("data", p.fd);
    say_recv("recv", p.fd);
    say_recv("end", p.fd);
    told("send", send(p.fd, "x", 1, 0));
}

CASE(shut_reading_with_data_here)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    shutdown(p.fd, SHUT_RD);
    say_recv("recv", p.fd);
    say_recv("end", p.fd);
}

CASE(shut_writing)
{
    struct pair p = new_pair();
    told("shutdown", shutdown(p.fd, SHUT_WR));
    bits("bits", p.fd);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
    peer_until(p.far, POLLRDHUP);
    told("far", peer_recv(p.far, 10));
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    say_recv("recv", p.fd);
    bits("after", p.fd);
}

CASE(shut_both)
{
    struct pair p = new_pair();
    told("shutdown", shutdown(p.fd, SHUT_RDWR));
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
    peer_until(p.far, POLLRDHUP);
    told("far", peer_recv(p.far, 10));
}

CASE(shut_both_and_the_peer_sends)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_RDWR);
    peer_until(p.far, POLLRDHUP);
    told("far-send", peer_send(p.far, "abc"));
    peer_until(p.far, POLLHUP);
    told("far-again", peer_send(p.far, "abc"));
    bits("bits", p.fd);
}

CASE(shut_one_after_the_other)
{
    struct pair p = new_pair();
    told("write", shutdown(p.fd, SHUT_WR));
    told("read", shutdown(p.fd, SHUT_RD));
    told("both", shutdown(p.fd, SHUT_RDWR));
    bits("bits", p.fd);
}

CASE(shut_twice)
{
    struct pair p = new_pair();
    told("first", shutdown(p.fd, SHUT_WR));
    told("second", shutdown(p.fd, SHUT_WR));
    told("bad", shutdown(p.fd, 3));
    told("negative", shutdown(p.fd, -1));
}

CASE(shut_after_a_reset)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    told("shutdown", shutdown(p.fd, SHUT_WR));
    told("read", shutdown(p.fd, SHUT_RD));
}

CASE(shut_after_both_have_finished)
{
    struct pair p = new_pair();
    peer_shutdown(p.far, SHUT_WR);
    until(p.fd, POLLRDHUP);
    shutdown(p.fd, SHUT_WR);
    peer_until(p.far, POLLHUP);
    until_all(p.fd, POLLHUP);
    told("shutdown", shutdown(p.fd, SHUT_WR));
    bits("bits", p.fd);
}

CASE(shut_crosswise)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    peer_shutdown(p.far, SHUT_WR);
    until_all(p.fd, POLLHUP);
    bits("bits", p.fd);
    say_recv("recv", p.fd);
    told("far", peer_recv(p.far, 4));
    say("far-bits=%lx", peer_until(p.far, POLLHUP));
}

CASE(half_closed_stream_carries_much)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    peer_until(p.far, POLLRDHUP);
    peer_begin(FLOOD, p.far, 3000000, 0, NULL, 0);
    say("right=%d", drain(p.fd, 0, 3000000));
    told("far", peer_end());
    peer_close(p.far);
    say_recv("end", p.fd);
}

CASE(close_sends_what_was_written)
{
    struct pair p = new_pair();
    flood(p.fd, 0, 200000);
    close(p.fd);
    told("far", peer(DRAIN, p.far, 200000, 0, NULL, 0));
    told("end", peer_recv(p.far, 1));
}

CASE(close_with_unread_data_resets)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    close(p.fd);
    say("far=%lx", peer_until(p.far, POLLHUP));
    told("recv", peer_recv(p.far, 1));
}

CASE(close_with_unread_data_keeps_what_arrived)
{
    struct pair p = new_pair();
    send(p.fd, "reply", 5, 0);
    peer_until(p.far, POLLIN);
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    close(p.fd);
    peer_until(p.far, POLLHUP);
    told("recv", peer_recv(p.far, 10));
    told("then", peer_recv(p.far, 10));
}

CASE(linger_of_zero_resets)
{
    struct pair p = new_pair();
    struct linger now = {1, 0};
    setsockopt(p.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    told("close", close(p.fd));
    say("far=%lx", peer_until(p.far, POLLHUP));
    told("recv", peer_recv(p.far, 1));
}

CASE(linger_waits_until_all_has_arrived)
{
    struct pair p = new_pair();
    struct linger wait = {1, 30};
    setsockopt(p.fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait);
    flood(p.fd, 0, 100000);
    peer_begin(DRAIN, p.far, 100000, 0, NULL, 0);
    told("close", close(p.fd));
    told("far", peer_end());
}

CASE(data_after_a_close_resets)
{
    struct pair p = new_pair();
    close(p.fd);
    peer_until(p.far, POLLRDHUP);
    told("send", peer_send(p.far, "abc"));
    say("far=%lx", peer_until(p.far, POLLHUP));
    told("again", peer_send(p.far, "abc"));
    told("recv", peer_recv(p.far, 1));
}

CASE(close_of_a_duplicate_ends_nothing)
{
    struct pair p = new_pair();
    int copy = dup(p.fd);
    close(p.fd);
    told("send", send(copy, "abc", 3, 0));
    told("far", peer_recv(p.far, 3));
    close(copy);
    peer_until(p.far, POLLRDHUP);
    told("end", peer_recv(p.far, 3));
}

CASE(shutdown_of_a_duplicate_ends_all)
{
    struct pair p = new_pair();
    int copy = dup(p.fd);
    shutdown(copy, SHUT_WR);
    told("send", send(p.fd, "abc", 3, MSG_NOSIGNAL));
    peer_until(p.far, POLLRDHUP);
    told("end", peer_recv(p.far, 3));
}

CASE(exit_without_a_close_sends_what_was_written)
{
    struct pair p = new_pair();
    told("child", peer(SPAWN_SEND, p.far, 0, 0, "from a child", 12));
    until_readable(p.fd, 12);
    say_recv("recv", p.fd);
    peer_close(p.far);
    say_recv("end", p.fd);
}

static int blocked;
static void shut_blocked(void) { shutdown(blocked, SHUT_RD); }

CASE(blocked_receive_ends_with_an_own_shutdown)
{
    struct pair p = new_pair();
    blocked = p.fd;
    ticking(SA_RESTART, shut_blocked);
    say_recv("recv", p.fd);
    still();
}

static void *shut_from_a_thread(void *fd)
{
    struct timespec span = {0, 50000000};
    nanosleep(&span, NULL);
    shutdown(*(int *)fd, SHUT_RDWR);
    return NULL;
}

CASE(blocked_receive_ends_with_another_threads_shutdown)
{
    struct pair p = new_pair();
    pthread_t thread;
    pthread_create(&thread, NULL, shut_from_a_thread, &p.fd);
    say_recv("recv", p.fd);
    pthread_join(thread, NULL);
}

CASE(blocked_send_ends_with_another_threads_shutdown)
{
    struct pair p = new_pair();
    static char block[1 << 16];
    fill(p);
    pthread_t thread;
    pthread_create(&thread, NULL, shut_from_a_thread, &p.fd);
    told("send", send(p.fd, block, sizeof block, MSG_NOSIGNAL));
    pthread_join(thread, NULL);
}

CASE(blocked_send_ends_with_a_reset)
{
    struct pair p = new_pair();
    static char block[1 << 16];
    fill(p);
    peer_begin(CLOSE, p.far, 0, 0, NULL, 0);
    told("send", send(p.fd, block, sizeof block, MSG_NOSIGNAL));
    told("again", send(p.fd, block, 1, MSG_NOSIGNAL));
    peer_end();
}

CASE(thousand_connections)
{
    in_port_t port;
    int fd = new_listener(100, &port);
    static int near[1000];
    int made = 0, right = 0;
    for (; made < 1000; made++) {
        peer_begin(CONNECT, -1, port, 0, NULL, 0);
        near[made] = accept(fd, NULL, NULL);
        long far = peer_end();
        if (near[made] < 0 || far < 0)
            break;
    }
    for (int n = 0; n < made; n++)
        right += send(near[n], "x", 1, 0) == 1;
    say("made=%d sent=%d", made, right);
}
