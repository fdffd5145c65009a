/* Socket options: a table of them, each tried on sockets in four states, and what single ones do. */
#include "world.h"

struct option {
    const char *name;
    int level, number, value;
};

/* Options with an int; `value` is what is set. */
#define OPTIONS(X)                             \
    X(so_sndbuf, SOL_SOCKET, SO_SNDBUF, 100000) \
    X(so_rcvbuf, SOL_SOCKET, SO_RCVBUF, 100000) \
    X(so_rcvlowat, SOL_SOCKET, SO_RCVLOWAT, 100) \
    X(so_sndlowat, SOL_SOCKET, SO_SNDLOWAT, 100) \
    X(so_keepalive, SOL_SOCKET, SO_KEEPALIVE, 1) \
    X(so_reuseaddr, SOL_SOCKET, SO_REUSEADDR, 7) \
    X(so_reuseport, SOL_SOCKET, SO_REUSEPORT, 1) \
    X(so_broadcast, SOL_SOCKET, SO_BROADCAST, 1) \
    X(so_oobinline, SOL_SOCKET, SO_OOBINLINE, 1) \
    X(so_priority, SOL_SOCKET, SO_PRIORITY, 3) \
    X(so_timestamp, SOL_SOCKET, SO_TIMESTAMP, 1) \
    X(so_timestampns, SOL_SOCKET, SO_TIMESTAMPNS, 1) \
    X(so_no_check, SOL_SOCKET, SO_NO_CHECK, 1) \
    X(so_rxq_ovfl, SOL_SOCKET, SO_RXQ_OVFL, 1) \
    X(so_zerocopy, SOL_SOCKET, SO_ZEROCOPY, 1) \
    X(so_type, SOL_SOCKET, SO_TYPE, 1) \
    X(so_error, SOL_SOCKET, SO_ERROR, 1) \
    X(so_acceptconn, SOL_SOCKET, SO_ACCEPTCONN, 1) \
    X(so_unknown, SOL_SOCKET, 9999, 1) \
    X(unknown_level, 9999, 1, 1) \
    X(tcp_nodelay, IPPROTO_TCP, TCP_NODELAY, 1) \
    X(tcp_cork, IPPROTO_TCP, TCP_CORK, 1) \
    X(tcp_keepidle, IPPROTO_TCP, TCP_KEEPIDLE, 33) \
    X(tcp_keepintvl, IPPROTO_TCP, TCP_KEEPINTVL, 22) \
    X(tcp_keepcnt, IPPROTO_TCP, TCP_KEEPCNT, 4) \
    X(tcp_syncnt, IPPROTO_TCP, TCP_SYNCNT, 3) \
    X(tcp_linger2, IPPROTO_TCP, TCP_LINGER2, 9) \
    X(tcp_defer_accept, IPPROTO_TCP, TCP_DEFER_ACCEPT, 1) \
    X(tcp_window_clamp, IPPROTO_TCP, TCP_WINDOW_CLAMP, 20000) \
    X(tcp_user_timeout, IPPROTO_TCP, TCP_USER_TIMEOUT, 12345) \
    X(tcp_thin_linear_timeouts, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1) \
    X(tcp_notsent_lowat, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096) \
    X(tcp_inq, IPPROTO_TCP, TCP_INQ, 1) \
    X(tcp_unknown, IPPROTO_TCP, 9999, 1) \
    X(ip_tos, IPPROTO_IP, IP_TOS, 16) \
    X(ip_ttl, IPPROTO_IP, IP_TTL, 44) \
    X(ip_recverr, IPPROTO_IP, IP_RECVERR, 1)

static void ask(const char *what, int fd, const struct option *o)
{
    int value = 0x5a5a5a5a;
    socklen_t len = sizeof value;
    int result = getsockopt(fd, o->level, o->number, &value, &len);
    if (result < 0)
        told(what, result);
    else
        say("%s=%d/%u", what, len == 1 ? value & 0xff : value, len);
}

static void set_and_ask(int fd, const struct option *o)
{
    int other = o->value;
    ask("before", fd, o);
    told("set", setsockopt(fd, o->level, o->number, &other, sizeof other));
    ask("after", fd, o);
    other = 0;
    told("clear", setsockopt(fd, o->level, o->number, &other, sizeof other));
    ask("cleared", fd, o);
}

static void fresh(const void *o) { set_and_ask(new_socket(), o); }

static void connected(const void *subject)
{
    const struct option *o = subject;
    struct pair p = new_pair();
    /* How large a connection's buffers and window have grown is its own matter. */
    bool grows = o->number == SO_SNDBUF || o->number == SO_RCVBUF;
    if (o->level == SOL_SOCKET && grows) {
        told("set", setsockopt(p.fd, o->level, o->number, &o->value, sizeof o->value));
        ask("after", p.fd, o);
        return;
    }
    set_and_ask(p.fd, o);
}

static void kept(const void *subject)
{
    const struct option *o = subject;
    in_port_t port;
    int listener = (int)peer(LISTEN, -1, 4, 0, NULL, 0);
    memcpy(&port, peer_bytes, sizeof port);
    (void)listener;
    int fd = new_socket();
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, port);
    if (setsockopt(fd, o->level, o->number, &o->value, sizeof o->value) < 0) {
        told("set", -1);
        return;
    }
    told("connect", connect(fd, (struct sockaddr *)&name, len));
    ask("kept", fd, o);
}

static void inherited(const void *subject)
{
    const struct option *o = subject;
    in_port_t port;
    int fd = new_listener(4, &port);
    if (setsockopt(fd, o->level, o->number, &o->value, sizeof o->value) < 0) {
        told("set", -1);
        return;
    }
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    /* One that accepts only with data gets some. */
    peer_send(far, "x");
    int accepted = accept(fd, NULL, NULL);
    ask("listener", fd, o);
    ask("accepted", accepted, o);
}

static void odd_sizes(const void *subject)
{
    const struct option *o = subject;
    int fd = new_socket();
    long value[2] = {o->value, 0};
    told("two", setsockopt(fd, o->level, o->number, value, 2));
    told("none", setsockopt(fd, o->level, o->number, value, 0));
    told("eight", setsockopt(fd, o->level, o->number, value, 8));
    unsigned char room[8];
    memset(room, 0xaa, sizeof room);
    socklen_t len = 1;
    told("get-one", getsockopt(fd, o->level, o->number, room, &len));
    say("len=%u beyond=%x", len, room[1]);
    len = 8;
    told("get-eight", getsockopt(fd, o->level, o->number, room, &len));
    say("len=%u", len);
    len = (socklen_t)-1;
    told("get-negative", getsockopt(fd, o->level, o->number, room, &len));
}

#define ROW(label, level, number, value) static const struct option option_##label = {#label, level, number, value};
OPTIONS(ROW)
#define FIVE(label, level, number, value)                        \
    CASE_OF(label##_on_a_fresh_socket, fresh, &option_##label);  \
    CASE_OF(label##_on_a_connection, connected, &option_##label); \
    CASE_OF(label##_set_before_connect, kept, &option_##label);  \
    CASE_OF(label##_of_a_listener, inherited, &option_##label);  \
    CASE_OF(label##_in_odd_sizes, odd_sizes, &option_##label);
OPTIONS(FIVE)

/* ---- structures ---- */

static void say_linger(const char *what, int fd)
{
    struct linger linger = {9, 9};
    socklen_t len = sizeof linger;
    if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len) < 0)
        told(what, -1);
    else
        say("%s=%d/%d/%u", what, linger.l_onoff, linger.l_linger, len);
}

CASE(linger_is_answered_as_set)
{
    struct pair p = new_pair();
    struct linger linger = {5, 7};
    say_linger("before", p.fd);
    told("set", setsockopt(p.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    say_linger("after", p.fd);
    told("short", setsockopt(p.fd, SOL_SOCKET, SO_LINGER, &linger, 4));
}

static void say_time(const char *what, int fd, int name)
{
    struct timeval time = {9, 9};
    socklen_t len = sizeof time;
    if (getsockopt(fd, SOL_SOCKET, name, &time, &len) < 0)
        told(what, -1);
    else
        say("%s=%ld.%06ld/%u", what, time.tv_sec, time.tv_usec, len);
}

static void times(int fd, int name)
{
    struct timeval time = {3, 500000};
    say_time("before", fd, name);
    told("set", setsockopt(fd, SOL_SOCKET, name, &time, sizeof time));
    say_time("after", fd, name);
    time.tv_usec = 1000000;
    told("overflow", setsockopt(fd, SOL_SOCKET, name, &time, sizeof time));
    time = (struct timeval){-1, 0};
    told("negative", setsockopt(fd, SOL_SOCKET, name, &time, sizeof time));
    say_time("now", fd, name);
    told("short", setsockopt(fd, SOL_SOCKET, name, &time, 8));
}

CASE(receive_time_is_answered_as_set) { times(new_pair().fd, SO_RCVTIMEO); }
CASE(send_time_is_answered_as_set) { times(new_pair().fd, SO_SNDTIMEO); }

CASE(congestion_control_can_be_named)
{
    struct pair p = new_pair();
    told("unknown", setsockopt(p.fd, IPPROTO_TCP, TCP_CONGESTION, "nonesuch", 8));
    told("reno", setsockopt(p.fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    char name[16] = "";
    socklen_t len = sizeof name;
    getsockopt(p.fd, IPPROTO_TCP, TCP_CONGESTION, name, &len);
    say("name=%s/%u", name, len);
}

CASE(options_of_what_is_no_socket)
{
    int value = 1, file = open("/dev/null", O_RDWR);
    socklen_t len = sizeof value;
    told("set-file", setsockopt(file, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value));
    told("get-file", getsockopt(file, SOL_SOCKET, SO_KEEPALIVE, &value, &len));
    told("set-none", setsockopt(-1, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value));
    told("get-none", getsockopt(-1, SOL_SOCKET, SO_KEEPALIVE, &value, &len));
}

CASE(options_with_bad_pointers)
{
    struct pair p = new_pair();
    int value = 0;
    socklen_t len = sizeof value;
    told("set", setsockopt(p.fd, SOL_SOCKET, SO_KEEPALIVE, (void *)8, 4));
    told("get", getsockopt(p.fd, SOL_SOCKET, SO_KEEPALIVE, (void *)8, &len));
    told("len", getsockopt(p.fd, SOL_SOCKET, SO_KEEPALIVE, &value, (void *)8));
    told("null", setsockopt(p.fd, SOL_SOCKET, SO_KEEPALIVE, NULL, 4));
}

CASE(quickack_can_be_set)
{
    struct pair p = new_pair();
    int on = 1;
    told("set", setsockopt(p.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on));
    say("now=%d", get_int(p.fd, IPPROTO_TCP, TCP_QUICKACK));
}

CASE(keepalive_values_out_of_range)
{
    struct pair p = new_pair();
    int bad = 40000;
    told("idle", setsockopt(p.fd, IPPROTO_TCP, TCP_KEEPIDLE, &bad, sizeof bad));
    told("interval", setsockopt(p.fd, IPPROTO_TCP, TCP_KEEPINTVL, &bad, sizeof bad));
    bad = 200;
    told("count", setsockopt(p.fd, IPPROTO_TCP, TCP_KEEPCNT, &bad, sizeof bad));
    bad = -1;
    told("user-timeout", setsockopt(p.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &bad, sizeof bad));
}

CASE(maxseg_is_bounded)
{
    int fd = new_socket(), value = 40;
    told("small", setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &value, sizeof value));
    value = 1000;
    told("set", setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &value, sizeof value));
    say("now=%d", get_int(fd, IPPROTO_TCP, TCP_MAXSEG));
}

CASE(error_is_told_once)
{
    struct pair p = new_pair();
    say("none=%d", get_int(p.fd, SOL_SOCKET, SO_ERROR));
    peer_reset(p.far);
    until_all(p.fd, POLLERR);
    say("reset=%s", errno_name(get_int(p.fd, SOL_SOCKET, SO_ERROR)));
    say("again=%d", get_int(p.fd, SOL_SOCKET, SO_ERROR));
    char byte;
    told("recv", recv(p.fd, &byte, 1, 0));
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
}

/* ---- TCP_INFO ---- */

static struct tcp_info_head {
    struct tcp_info now;
    /* What the C library's header does not know yet. */
    uint64_t room[64];
} info;

static void look(int fd)
{
    memset(&info, 0, sizeof info);
    socklen_t len = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0)
        told("info", -1);
}

/* Offsets of fields that the kernel has added: linux/tcp.h. */
static uint64_t field64(size_t at)
{
    uint64_t value;
    memcpy(&value, (char *)&info + at, sizeof value);
    return value;
}

#define BYTES_ACKED 120
#define BYTES_RECEIVED 128
#define BYTES_SENT 200

CASE(info_of_a_fresh_socket)
{
    look(new_socket());
    say("state=%u", info.now.tcpi_state);
}

CASE(info_of_a_listener)
{
    in_port_t port;
    int fd = new_listener(7, &port);
    look(fd);
    say("state=%u backlog=%u waiting=%u", info.now.tcpi_state, info.now.tcpi_sacked, info.now.tcpi_unacked);
}

static bool nothing_queued(void *of)
{
    int count = 1;
    return ioctl(*(int *)of, TIOCOUTQ, &count) == 0 && count == 0;
}

CASE(info_counts_bytes)
{
    struct pair p = new_pair();
    flood(p.fd, 0, 50000);
    peer(DRAIN, p.far, 50000, 0, NULL, 0);
    peer(FLOOD, p.far, 3000, 0, NULL, 0);
    drain(p.fd, 0, 3000);
    until_true(nothing_queued, &p.fd, "acknowledged");
    look(p.fd);
    /* The kernel counts the SYN as acknowledged. */
    say("state=%u acked=%lu received=%lu sent=%lu", info.now.tcpi_state, (field64(BYTES_ACKED) - 50000) / 2, field64(BYTES_RECEIVED), field64(BYTES_SENT));
}

CASE(info_follows_the_state)
{
    struct pair p = new_pair();
    look(p.fd);
    say("open=%u", info.now.tcpi_state);
    peer_shutdown(p.far, SHUT_WR);
    until(p.fd, POLLRDHUP);
    look(p.fd);
    say("peer-finished=%u", info.now.tcpi_state);
    shutdown(p.fd, SHUT_WR);
    until_all(p.fd, POLLHUP);
    peer_until(p.far, POLLRDHUP);
    look(p.fd);
    say("both=%u", info.now.tcpi_state);
}

CASE(info_after_an_own_shutdown)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    peer_until(p.far, POLLRDHUP);
    until_true(nothing_queued, &p.fd, "acknowledged");
    look(p.fd);
    say("state=%u", info.now.tcpi_state);
}

CASE(info_after_a_reset)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    look(p.fd);
    say("state=%u", info.now.tcpi_state);
}

CASE(info_in_little_room)
{
    struct pair p = new_pair();
    unsigned char room[8];
    memset(room, 0xaa, sizeof room);
    socklen_t len = 1;
    told("get", getsockopt(p.fd, IPPROTO_TCP, TCP_INFO, room, &len));
    say("len=%u state=%u beyond=%x", len, room[0], room[1]);
}

CASE(info_counts_segments_and_times)
{
    struct pair p = new_pair();
    for (int n = 0; n < 20; n++) {
        send(p.fd, "ping", 4, 0);
        peer_recv(p.far, 4);
        peer_send(p.far, "pong");
        until(p.fd, POLLIN);
        char room[4];
        recv(p.fd, room, 4, 0);
    }
    look(p.fd);
    say("rtt=%s window=%s segment=%s", info.now.tcpi_rtt ? "some" : "none", info.now.tcpi_snd_cwnd ? "some" : "none", info.now.tcpi_snd_mss ? "some" : "none");
}

/* ---- what options do ---- */

CASE(defer_accept_waits_for_data)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    set_int(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 30);
    nonblocking(fd, true);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    told("silent", accept(fd, NULL, NULL));
    bits("bits", fd);
    peer_send(far, "x");
    until(fd, POLLIN);
    told("speaking", accept(fd, NULL, NULL) >= 0);
}

CASE(low_water_holds_poll_back)
{
    struct pair p = new_pair();
    set_int(p.fd, SOL_SOCKET, SO_RCVLOWAT, 10);
    peer_send(p.far, "12345");
    until_readable(p.fd, 5);
    bits("five", p.fd);
    peer_send(p.far, "67890");
    until_readable(p.fd, 10);
    bits("ten", p.fd);
}

CASE(low_water_holds_a_blocking_receive_back)
{
    struct pair p = new_pair();
    char room[20];
    set_int(p.fd, SOL_SOCKET, SO_RCVLOWAT, 10);
    struct timeval limit = {0, 50000};
    setsockopt(p.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    peer_send(p.far, "12345");
    until_readable(p.fd, 5);
    told("recv", recv(p.fd, room, 20, 0));
    peer_send(p.far, "12345");
    until_readable(p.fd, 5);
    told("small", recv(p.fd, room, 3, 0));
    told("rest", recv(p.fd, room, 20, MSG_DONTWAIT));
}

CASE(low_water_does_not_hold_the_end_back)
{
    struct pair p = new_pair();
    char room[20];
    set_int(p.fd, SOL_SOCKET, SO_RCVLOWAT, 10);
    peer_send(p.far, "12345");
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    bits("bits", p.fd);
    told("recv", recv(p.fd, room, 20, 0));
    told("end", recv(p.fd, room, 20, 0));
}

CASE(receive_gives_up_after_its_time)
{
    struct pair p = new_pair();
    char byte;
    struct timeval limit = {0, 30000};
    setsockopt(p.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    told("recv", recv(p.fd, &byte, 1, 0));
    told("read", read(p.fd, &byte, 1));
}

CASE(send_gives_up_after_its_time)
{
    struct pair p = new_pair();
    struct timeval limit = {0, 30000};
    setsockopt(p.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    static char block[1 << 16];
    long last = 0, calls = 0;
    while (last >= 0 && calls++ < 10000)
        last = send(p.fd, block, sizeof block, 0);
    told("send", last);
}

CASE(waitall_gives_up_after_its_time_with_what_came)
{
    struct pair p = new_pair();
    char room[8];
    struct timeval limit = {0, 50000};
    setsockopt(p.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    peer_send(p.far, "abc");
    told("recv", recv(p.fd, room, 8, MSG_WAITALL));
}

CASE(small_send_buffer_bounds_what_is_taken)
{
    struct pair p = new_pair();
    set_int(p.fd, SOL_SOCKET, SO_SNDBUF, 4096);
    peer(SET, p.far, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
    nonblocking(p.fd, true);
    static char block[1 << 16];
    long total = 0, n;
    while ((n = send(p.fd, block, sizeof block, 0)) > 0)
        total += n;
    told("send", n);
    /* The peer's window opened before its buffer was made small. */
    say("bounded=%d", total < (1 << 20));
}

CASE(corked_bytes_go_out_when_uncorked)
{
    struct pair p = new_pair();
    set_int(p.fd, IPPROTO_TCP, TCP_CORK, 1);
    send(p.fd, "abc", 3, 0);
    send(p.fd, "def", 3, 0);
    int count;
    ioctl(p.fd, TIOCOUTQ, &count);
    say("queued=%d far=%ld", count, peer(QUEUED, p.far, 0, 0, NULL, 0));
    set_int(p.fd, IPPROTO_TCP, TCP_CORK, 0);
    peer_until(p.far, POLLIN);
    told("far", peer_recv(p.far, 10));
}

CASE(corked_bytes_go_out_with_the_end)
{
    struct pair p = new_pair();
    set_int(p.fd, IPPROTO_TCP, TCP_CORK, 1);
    send(p.fd, "abc", 3, 0);
    shutdown(p.fd, SHUT_WR);
    peer_until(p.far, POLLRDHUP);
    told("far", peer_recv(p.far, 10));
    told("end", peer_recv(p.far, 10));
}

CASE(nodelay_uncorks)
{
    struct pair p = new_pair();
    set_int(p.fd, IPPROTO_TCP, TCP_CORK, 1);
    send(p.fd, "abc", 3, 0);
    say("far=%ld", peer(QUEUED, p.far, 0, 0, NULL, 0));
    set_int(p.fd, IPPROTO_TCP, TCP_NODELAY, 1);
    peer_until(p.far, POLLIN);
    told("far", peer_recv(p.far, 10));
}

CASE(corked_bytes_go_out_after_their_time)
{
    struct pair p = new_pair();
    set_int(p.fd, IPPROTO_TCP, TCP_CORK, 1);
    send(p.fd, "abc", 3, 0);
    peer_until(p.far, POLLIN);
    told("far", peer_recv(p.far, 10));
}

CASE(inq_tells_what_is_left)
{
    struct pair p = new_pair();
    set_int(p.fd, IPPROTO_TCP, TCP_INQ, 1);
    peer_send(p.far, "abcdef");
    until_readable(p.fd, 6);
    char byte[2], control[64];
    struct iovec part = {byte, 2};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    told("recv", recvmsg(p.fd, &message, 0));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (!head)
        say("no-control");
    else
        say("level=%d type=%d left=%d", head->cmsg_level, head->cmsg_type, *(int *)CMSG_DATA(head));
}
