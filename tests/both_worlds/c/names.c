/* Names and states: bind, listen, connect, accept, getsockname, getpeername. */
#include "world.h"

static long try_connect(int fd, in_port_t port)
{
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, port);
    return connect(fd, (struct sockaddr *)&name, len);
}

static int far_listener(in_port_t *port)
{
    int listener = (int)peer(LISTEN, -1, 8, 0, NULL, 0);
    memcpy(port, peer_bytes, sizeof *port);
    return listener;
}

/* A port of the peer where nobody listens any more. */
static in_port_t dead_port(void)
{
    in_port_t port;
    int listener = far_listener(&port);
    peer_close(listener);
    return port;
}

enum end { SELF, PEER };

static void say_name(const char *what, int fd, enum end end)
{
    struct sockaddr_storage name;
    memset(&name, 0, sizeof name);
    socklen_t len = sizeof name;
    int result = end == SELF ? getsockname(fd, (struct sockaddr *)&name, &len) : getpeername(fd, (struct sockaddr *)&name, &len);
    if (result < 0)
        told(what, result);
    else
        say("%s=%s/%u", what, whose(&name), len);
}

/* ---- bind ---- */

CASE(bind_a_second_time)
{
    int fd = new_socket();
    told("first", bind_here(fd, 0) ? 0 : -1);
    told("second", bind_here(fd, 0) ? 0 : -1);
}

CASE(bind_to_a_port_with_a_listener)
{
    in_port_t port;
    int first = new_socket(), second = new_socket();
    bind_here(first, 0);
    listen(first, 1);
    port = port_of(first);
    told("bind", bind_here(second, port) ? 0 : -1);
    set_int(second, SOL_SOCKET, SO_REUSEADDR, 1);
    told("with-reuseaddr", bind_here(second, port) ? 0 : -1);
}

CASE(bind_two_with_reuseaddr_and_listen_on_one)
{
    int first = new_socket(), second = new_socket();
    set_int(first, SOL_SOCKET, SO_REUSEADDR, 1);
    set_int(second, SOL_SOCKET, SO_REUSEADDR, 1);
    bind_here(first, 0);
    told("bind", bind_here(second, port_of(first)) ? 0 : -1);
    told("listen", listen(first, 1));
    told("listen-too", listen(second, 1));
}

CASE(bind_two_with_reuseport_and_listen_on_both)
{
    int first = new_socket(), second = new_socket();
    set_int(first, SOL_SOCKET, SO_REUSEPORT, 1);
    set_int(second, SOL_SOCKET, SO_REUSEPORT, 1);
    bind_here(first, 0);
    told("bind", bind_here(second, port_of(first)) ? 0 : -1);
    told("listen", listen(first, 1));
    told("listen-too", listen(second, 1));
}

CASE(bind_with_reuseport_beside_one_without)
{
    int first = new_socket(), second = new_socket();
    bind_here(first, 0);
    set_int(second, SOL_SOCKET, SO_REUSEPORT, 1);
    told("bind", bind_here(second, port_of(first)) ? 0 : -1);
}

CASE(bind_with_a_short_name)
{
    struct sockaddr_storage name;
    int fd = new_socket();
    my_name(&name, 0);
    told("bind", bind(fd, (struct sockaddr *)&name, 8));
    told("none", bind(fd, (struct sockaddr *)&name, 0));
}

CASE(bind_with_a_long_name)
{
    struct sockaddr_storage name;
    int fd = new_socket();
    my_name(&name, 0);
    told("storage", bind(fd, (struct sockaddr *)&name, sizeof name));
}

CASE(bind_with_an_overlong_name)
{
    char name[256] = {0};
    int fd = new_socket();
    my_name((struct sockaddr_storage *)name, 0);
    told("bind", bind(fd, (struct sockaddr *)name, sizeof name));
}

CASE(bind_with_another_family)
{
    struct sockaddr_storage name;
    int fd = new_socket();
    socklen_t len = my_name(&name, 0);
    name.ss_family = AF_UNIX;
    told("bind", bind(fd, (struct sockaddr *)&name, len));
}

CASE(bind_with_no_family)
{
    struct sockaddr_in any = {.sin_family = AF_UNSPEC};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    told("any", bind(fd, (struct sockaddr *)&any, sizeof any));
    fd = socket(AF_INET, SOCK_STREAM, 0);
    any.sin_addr.s_addr = htonl(0x7f000001);
    told("address", bind(fd, (struct sockaddr *)&any, sizeof any));
}

CASE(bind_to_an_address_of_nobody)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xcb007101)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    told("bind", bind(fd, (struct sockaddr *)&name, sizeof name));
}

CASE(bind_what_is_no_socket)
{
    struct sockaddr_storage name;
    socklen_t len = my_name(&name, 0);
    int file = open("/dev/null", O_RDWR);
    told("file", bind(file, (struct sockaddr *)&name, len));
    close(file);
    told("closed", bind(file, (struct sockaddr *)&name, len));
    told("minus-one", bind(-1, (struct sockaddr *)&name, len));
}

CASE(bind_with_a_bad_pointer)
{
    told("bind", bind(new_socket(), (struct sockaddr *)8, sizeof(struct sockaddr_in6)));
}

CASE(bind_a_connected_socket)
{
    struct pair p = new_pair();
    told("bind", bind_here(p.fd, 0) ? 0 : -1);
}

CASE(bind_after_a_listener_has_closed)
{
    int first = new_socket(), second = new_socket();
    bind_here(first, 0);
    listen(first, 1);
    in_port_t port = port_of(first);
    close(first);
    told("bind", bind_here(second, port) ? 0 : -1);
}

/* ---- listen ---- */

CASE(listen_unbound_takes_a_port)
{
    int fd = new_socket();
    told("listen", listen(fd, 1));
    say("port=%s", port_of(fd) ? "some" : "none");
    say_name("name", fd, SELF);
}

CASE(listen_again_changes_the_backlog)
{
    in_port_t port;
    int fd = new_listener(1, &port);
    told("again", listen(fd, 100));
    told("zero", listen(fd, 0));
    told("negative", listen(fd, -1));
    say("accepts=%d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN));
}

CASE(listen_on_a_connected_socket)
{
    struct pair p = new_pair();
    told("listen", listen(p.fd, 1));
    told("still-sends", send(p.fd, "x", 1, 0));
}

CASE(listen_on_a_datagram_socket)
{
    told("listen", listen(socket(AF_INET, SOCK_DGRAM, 0), 1));
}

CASE(listen_on_what_is_no_socket)
{
    told("file", listen(open("/dev/null", O_RDWR), 1));
    told("none", listen(-1, 1));
}

CASE(listener_answers_what_it_is)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    say("accepts=%d type=%d protocol=%d domain=%d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN), get_int(fd, SOL_SOCKET, SO_TYPE),
        get_int(fd, SOL_SOCKET, SO_PROTOCOL), get_int(fd, SOL_SOCKET, SO_DOMAIN));
    say_name("name", fd, SELF);
    say_name("peer", fd, PEER);
}

CASE(connected_socket_answers_what_it_is)
{
    struct pair p = new_pair();
    int fd = p.fd;
    say("accepts=%d type=%d protocol=%d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN), get_int(fd, SOL_SOCKET, SO_TYPE),
        get_int(fd, SOL_SOCKET, SO_PROTOCOL));
}

CASE(listener_ended_by_shutdown_listens_no_more)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    told("shutdown", shutdown(fd, SHUT_RD));
    nonblocking(fd, true);
    told("accept", accept(fd, NULL, NULL));
    told("peer", peer(CONNECT, -1, port, 0, NULL, 0));
    told("again", shutdown(fd, SHUT_RD));
    told("listen", listen(fd, 4));
    say("accepts=%d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN));
}

CASE(listener_shut_for_writing_goes_on)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    told("shutdown", shutdown(fd, SHUT_WR));
    told("peer", peer(CONNECT, -1, port, 0, NULL, 0) >= 0);
    told("accept", accept(fd, NULL, NULL) >= 0);
}


static int blocked_fd;
static void shut_blocked(void) { shutdown(blocked_fd, SHUT_RDWR); }

CASE(blocked_accept_ends_with_shutdown)
{
    in_port_t port;
    blocked_fd = new_listener(4, &port);
    ticking(SA_RESTART, shut_blocked);
    told("accept", accept(blocked_fd, NULL, NULL));
}

CASE(send_and_receive_on_a_listener)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    char byte;
    told("send", send(fd, "x", 1, MSG_NOSIGNAL));
    told("recv", recv(fd, &byte, 1, 0));
    told("write", fcntl(fd, F_GETFL) & O_NONBLOCK);
}

CASE(closing_a_listener_resets_what_waits)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    until(fd, POLLIN);
    close(fd);
    peer_until(far, POLLIN | POLLHUP);
    told("recv", peer_recv(far, 1));
}

CASE(closing_a_listener_leaves_what_was_accepted)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    int accepted = accept(fd, NULL, NULL);
    close(fd);
    told("send", send(accepted, "abc", 3, 0));
    told("recv", peer_recv(far, 3));
}

/* ---- accept ---- */

CASE(accept_on_a_fresh_socket) { told("accept", accept(new_socket(), NULL, NULL)); }

CASE(accept_on_a_connected_socket)
{
    struct pair p = new_pair();
    told("accept", accept(p.fd, NULL, NULL));
}

CASE(accept_on_a_datagram_socket) { told("accept", accept(socket(AF_INET, SOCK_DGRAM, 0), NULL, NULL)); }

CASE(accept_on_what_is_no_socket)
{
    told("file", accept(open("/dev/null", O_RDWR), NULL, NULL));
    told("none", accept(-1, NULL, NULL));
}

CASE(accept_without_blocking_finds_nothing)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    nonblocking(fd, true);
    told("accept", accept(fd, NULL, NULL));
    told("accept4", accept4(fd, NULL, NULL, SOCK_NONBLOCK));
}

CASE(accept_with_unknown_flags)
{
    in_port_t port;
    told("accept4", accept4(new_listener(4, &port), NULL, NULL, 1));
}

CASE(accept_gives_up_after_its_time)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    struct timeval limit = {0, 30000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    told("accept", accept(fd, NULL, NULL));
}

static void accept_with(int flags)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    peer(CONNECT, -1, port, 0, NULL, 0);
    int accepted = accept4(fd, NULL, NULL, flags);
    say("nonblock=%d cloexec=%d", !!(fcntl(accepted, F_GETFL) & O_NONBLOCK), fcntl(accepted, F_GETFD) & FD_CLOEXEC);
}

CASE(accept_with_no_flags) { accept_with(0); }
CASE(accept_with_nonblock) { accept_with(SOCK_NONBLOCK); }
CASE(accept_with_cloexec) { accept_with(SOCK_CLOEXEC); }
CASE(accept_with_both_flags) { accept_with(SOCK_CLOEXEC | SOCK_NONBLOCK); }

CASE(accepted_socket_does_not_inherit_nonblock)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    nonblocking(fd, true);
    peer(CONNECT, -1, port, 0, NULL, 0);
    until(fd, POLLIN);
    int accepted = accept(fd, NULL, NULL);
    say("nonblock=%d", !!(fcntl(accepted, F_GETFL) & O_NONBLOCK));
}

CASE(accept_tells_the_peer)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    struct sockaddr_storage name;
    socklen_t len = sizeof name;
    int accepted = accept(fd, (struct sockaddr *)&name, &len);
    in_port_t from = name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port : ((struct sockaddr_in *)&name)->sin_port;
    say("name=%s/%u port=%s", whose(&name), len, from == peer(PORT, far, 0, 0, NULL, 0) ? "right" : "wrong");
    say_name("self", accepted, SELF);
    say_name("peer", accepted, PEER);
    say("own-port=%s", port_of(accepted) == port ? "listeners" : "another");
}

CASE(accept_with_room_for_half_a_name)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    peer(CONNECT, -1, port, 0, NULL, 0);
    unsigned char room[32];
    memset(room, 0xaa, sizeof room);
    socklen_t len = 4;
    told("accept", accept(fd, (struct sockaddr *)room, &len) >= 0);
    say("len=%u beyond=%x", len, room[4]);
}

CASE(accept_with_a_negative_room)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    peer(CONNECT, -1, port, 0, NULL, 0);
    struct sockaddr_storage name;
    socklen_t len = (socklen_t)-1;
    told("accept", accept(fd, (struct sockaddr *)&name, &len));
}

CASE(accept_in_the_order_of_connects)
{
    in_port_t port;
    int fd = new_listener(8, &port);
    in_port_t ports[4];
    for (int n = 0; n < 4; n++)
        ports[n] = (in_port_t)peer(PORT, (int)peer(CONNECT, -1, port, 0, NULL, 0), 0, 0, NULL, 0);
    for (int n = 0; n < 4; n++) {
        struct sockaddr_storage name;
        socklen_t len = sizeof name;
        accept(fd, (struct sockaddr *)&name, &len);
        in_port_t from = name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port : ((struct sockaddr_in *)&name)->sin_port;
        say("%d", from == ports[n]);
    }
}

CASE(accept_what_the_peer_has_closed)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    peer_send(far, "abc");
    peer_close(far);
    int accepted = accept(fd, NULL, NULL);
    char room[8];
    told("accept", accepted >= 0);
    told("recv", recv(accepted, room, 8, MSG_WAITALL));
    told("again", recv(accepted, room, 8, 0));
}

CASE(accept_what_the_peer_has_reset)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    until(fd, POLLIN);
    peer_reset(far);
    int accepted = accept(fd, NULL, NULL);
    char byte;
    told("accept", accepted >= 0);
    until(accepted, POLLIN);
    told("recv", recv(accepted, &byte, 1, 0));
    told("again", recv(accepted, &byte, 1, 0));
}

CASE(backlog_of_zero_takes_one)
{
    in_port_t port;
    int fd = new_listener(0, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    told("connect", far >= 0);
    told("accept", accept(fd, NULL, NULL) >= 0);
}

CASE(backlog_takes_one_more_than_it_says)
{
    in_port_t port;
    int fd = new_listener(2, &port);
    for (int n = 0; n < 3; n++)
        told("connect", peer(CONNECT, -1, port, 0, NULL, 0) >= 0);
    for (int n = 0; n < 3; n++)
        told("accept", accept(fd, NULL, NULL) >= 0);
    nonblocking(fd, true);
    told("more", accept(fd, NULL, NULL));
}

CASE(many_wait_to_be_accepted)
{
    in_port_t port;
    int fd = new_listener(200, &port);
    int connected = 0, accepted = 0;
    for (int n = 0; n < 100; n++)
        connected += peer(CONNECT, -1, port, 0, NULL, 0) >= 0;
    for (int n = 0; n < connected; n++)
        accepted += accept(fd, NULL, NULL) >= 0;
    say("connected=%d accepted=%d", connected, accepted);
}

CASE(two_listeners_of_a_port_both_accept)
{
    int first = new_socket(), second = new_socket();
    set_int(first, SOL_SOCKET, SO_REUSEPORT, 1);
    set_int(second, SOL_SOCKET, SO_REUSEPORT, 1);
    bind_here(first, 0);
    in_port_t port = port_of(first);
    bind_here(second, port);
    listen(first, 64);
    listen(second, 64);
    for (int n = 0; n < 40; n++)
        peer(CONNECT, -1, port, 0, NULL, 0);
    int counts[2] = {0, 0};
    struct pollfd fds[2] = {{first, POLLIN, 0}, {second, POLLIN, 0}};
    while (counts[0] + counts[1] < 40 && poll(fds, 2, 10000) > 0)
        for (int n = 0; n < 2; n++)
            if (fds[n].revents & POLLIN)
                counts[n] += accept(fds[n].fd, NULL, NULL) >= 0;
    say("all=%d first=%s second=%s", counts[0] + counts[1], counts[0] ? "some" : "none", counts[1] ? "some" : "none");
}

/* ---- connect ---- */

CASE(connect_where_nobody_listens)
{
    int fd = new_socket();
    in_port_t port = dead_port();
    told("connect", try_connect(fd, port));
    told("again", try_connect(fd, port));
    say("error=%d", get_int(fd, SOL_SOCKET, SO_ERROR));
    say_name("peer", fd, PEER);
    bits("bits", fd);
}

CASE(connect_after_a_refusal)
{
    int fd = new_socket();
    told("refused", try_connect(fd, dead_port()));
    in_port_t port;
    far_listener(&port);
    told("connect", try_connect(fd, port));
    told("send", send(fd, "x", 1, 0));
}

CASE(connect_without_blocking_where_nobody_listens)
{
    int fd = new_socket();
    nonblocking(fd, true);
    told("connect", try_connect(fd, dead_port()));
    until(fd, POLLOUT);
    bits("bits", fd);
    say("error=%s", errno_name(get_int(fd, SOL_SOCKET, SO_ERROR)));
    say("again=%d", get_int(fd, SOL_SOCKET, SO_ERROR));
    bits("after", fd);
}

CASE(failed_connect_is_told_by_the_next_call)
{
    int fd = new_socket();
    char byte;
    nonblocking(fd, true);
    told("connect", try_connect(fd, dead_port()));
    until(fd, POLLOUT);
    told("recv", recv(fd, &byte, 1, 0));
    told("again", recv(fd, &byte, 1, 0));
    told("send", send(fd, "x", 1, MSG_NOSIGNAL));
}

CASE(connect_without_blocking)
{
    in_port_t port;
    far_listener(&port);
    int fd = new_socket();
    nonblocking(fd, true);
    int result = try_connect(fd, port);
    begun(result);
    until(fd, POLLOUT);
    bits("bits", fd);
    say("error=%d", get_int(fd, SOL_SOCKET, SO_ERROR));
    if (result < 0)
        told("again", try_connect(fd, port));
    else
        say("again=0");
    told("third", try_connect(fd, port));
}

CASE(connect_a_second_time)
{
    in_port_t port;
    far_listener(&port);
    int fd = new_socket();
    told("connect", try_connect(fd, port));
    told("again", try_connect(fd, port));
    told("elsewhere", try_connect(fd, dead_port()));
}

CASE(connect_a_listener)
{
    in_port_t port, other;
    int fd = new_listener(4, &port);
    far_listener(&other);
    told("connect", try_connect(fd, other));
    say("accepts=%d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN));
}

CASE(connect_with_a_short_name)
{
    struct sockaddr_storage name;
    peer_name(&name, 1);
    int fd = new_socket();
    told("eight", connect(fd, (struct sockaddr *)&name, 8));
    told("one", connect(fd, (struct sockaddr *)&name, 1));
    told("zero", connect(fd, (struct sockaddr *)&name, 0));
}

CASE(connect_with_another_family)
{
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, 1);
    name.ss_family = AF_UNIX;
    told("connect", connect(new_socket(), (struct sockaddr *)&name, len));
}

CASE(connect_with_a_bad_pointer) { told("connect", connect(new_socket(), (struct sockaddr *)8, sizeof(struct sockaddr_in6))); }

CASE(connect_what_is_no_socket)
{
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, 1);
    told("file", connect(open("/dev/null", O_RDWR), (struct sockaddr *)&name, len));
    told("none", connect(-1, (struct sockaddr *)&name, len));
}

CASE(connect_to_port_zero)
{
    told("connect", try_connect(new_socket(), 0));
}

CASE(connect_binds_to_a_port)
{
    in_port_t port;
    far_listener(&port);
    int fd = new_socket();
    say_name("before", fd, SELF);
    try_connect(fd, port);
    say_name("after", fd, SELF);
    say_name("peer", fd, PEER);
    say("port=%s", port_of(fd) ? "some" : "none");
}

CASE(connect_from_a_bound_port_keeps_it)
{
    in_port_t port;
    int listener = far_listener(&port);
    int fd = new_socket();
    bind_here(fd, 0);
    in_port_t own = port_of(fd);
    told("connect", try_connect(fd, port));
    say("kept=%d", own == port_of(fd));
    int far = (int)peer(ACCEPT, listener, 0, 0, NULL, 0);
    told("accepted", far >= 0);
    say_name("self", fd, SELF);
}

CASE(connect_two_from_one_port)
{
    in_port_t first, second;
    far_listener(&first);
    far_listener(&second);
    int one = new_socket(), two = new_socket();
    set_int(one, SOL_SOCKET, SO_REUSEADDR, 1);
    set_int(two, SOL_SOCKET, SO_REUSEADDR, 1);
    bind_here(one, 0);
    told("bind", bind_here(two, port_of(one)) ? 0 : -1);
    told("connect", try_connect(one, first));
    told("connect", try_connect(two, second));
}

CASE(connect_two_from_one_port_to_the_same)
{
    in_port_t first;
    far_listener(&first);
    int one = new_socket(), two = new_socket();
    set_int(one, SOL_SOCKET, SO_REUSEADDR, 1);
    set_int(two, SOL_SOCKET, SO_REUSEADDR, 1);
    bind_here(one, 0);
    bind_here(two, port_of(one));
    told("connect", try_connect(one, first));
    told("connect", try_connect(two, first));
}

CASE(connect_to_itself)
{
    struct sockaddr_storage name;
    int fd = new_socket();
    char room[8] = "";
    bind_here(fd, 0);
    socklen_t len = my_name(&name, port_of(fd));
    told("connect", connect(fd, (struct sockaddr *)&name, len));
    told("send", send(fd, "echo", 4, 0));
    told("recv", recv(fd, room, 8, 0));
    told("shutdown", shutdown(fd, SHUT_WR));
    told("end", recv(fd, room, 8, 0));
}

static long dissolve(int fd)
{
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    return connect(fd, &none, sizeof none);
}

CASE(dissolve_a_fresh_socket) { told("dissolve", dissolve(new_socket())); }

CASE(dissolve_a_connection)
{
    struct pair p = new_pair();
    char byte;
    told("dissolve", dissolve(p.fd));
    say_name("peer", p.fd, PEER);
    told("send", send(p.fd, "x", 1, MSG_NOSIGNAL));
    told("recv", recv(p.fd, &byte, 1, MSG_DONTWAIT));
    peer_until(p.far, POLLIN | POLLHUP);
    told("far", peer_recv(p.far, 1));
}

CASE(dissolve_and_connect_again)
{
    struct pair p = new_pair();
    in_port_t port;
    int listener = far_listener(&port);
    told("dissolve", dissolve(p.fd));
    int result = try_connect(p.fd, port);
    told("connect", result);
    if (result < 0)
        return;
    int far = (int)peer(ACCEPT, listener, 0, 0, NULL, 0);
    told("send", send(p.fd, "abc", 3, MSG_NOSIGNAL));
    told("far", peer_recv(far, 3));
}

CASE(dissolve_a_listener)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    told("dissolve", dissolve(fd));
    say("accepts=%d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN));
    told("peer", peer(CONNECT, -1, port, 0, NULL, 0));
}

/* ---- names ---- */

CASE(names_of_a_fresh_socket)
{
    int fd = new_socket();
    say_name("self", fd, SELF);
    say_name("peer", fd, PEER);
}

CASE(names_of_a_bound_socket)
{
    int fd = new_socket();
    bind_here(fd, 0);
    say_name("self", fd, SELF);
    say_name("peer", fd, PEER);
}

CASE(names_of_a_connection)
{
    struct pair p = new_pair();
    say_name("self", p.fd, SELF);
    say_name("peer", p.fd, PEER);
}

CASE(names_after_the_peer_has_closed)
{
    struct pair p = new_pair();
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    say_name("self", p.fd, SELF);
    say_name("peer", p.fd, PEER);
}

CASE(names_after_a_shutdown)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    say_name("self", p.fd, SELF);
    say_name("peer", p.fd, PEER);
}

CASE(names_after_both_have_finished)
{
    struct pair p = new_pair();
    peer_shutdown(p.far, SHUT_WR);
    until(p.fd, POLLRDHUP);
    shutdown(p.fd, SHUT_WR);
    peer_until(p.far, POLLRDHUP);
    until_all(p.fd, POLLHUP);
    say_name("peer", p.fd, PEER);
}

CASE(names_after_a_reset)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    say_name("self", p.fd, SELF);
    say_name("peer", p.fd, PEER);
}

CASE(names_with_little_room)
{
    struct pair p = new_pair();
    unsigned char room[32];
    memset(room, 0xaa, sizeof room);
    socklen_t len = 2;
    told("self", getsockname(p.fd, (struct sockaddr *)room, &len));
    say("len=%u beyond=%x", len, room[2]);
    len = 0;
    told("peer", getpeername(p.fd, (struct sockaddr *)room, &len));
    say("len=%u", len);
}

CASE(names_with_a_negative_room)
{
    struct pair p = new_pair();
    struct sockaddr_storage name;
    socklen_t len = (socklen_t)-1;
    told("self", getsockname(p.fd, (struct sockaddr *)&name, &len));
    told("peer", getpeername(p.fd, (struct sockaddr *)&name, &len));
}

CASE(names_of_what_is_no_socket)
{
    struct sockaddr_storage name;
    socklen_t len = sizeof name;
    int file = open("/dev/null", O_RDWR);
    told("self", getsockname(file, (struct sockaddr *)&name, &len));
    told("peer", getpeername(file, (struct sockaddr *)&name, &len));
    told("none", getpeername(-1, (struct sockaddr *)&name, &len));
}

CASE(both_ends_agree_on_their_ports)
{
    struct pair p = new_pair();
    struct sockaddr_storage name;
    socklen_t len = sizeof name;
    getpeername(p.fd, (struct sockaddr *)&name, &len);
    in_port_t port = name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port : ((struct sockaddr_in *)&name)->sin_port;
    say("agree=%d", port == peer(PORT, p.far, 0, 0, NULL, 0));
}

/* ---- fresh sockets ---- */

CASE(send_and_receive_on_a_fresh_socket)
{
    int fd = new_socket();
    char byte;
    told("send", send(fd, "x", 1, MSG_NOSIGNAL));
    told("recv", recv(fd, &byte, 1, 0));
    told("write-nothing", write(fd, "", 0));
    told("read-nothing", read(fd, &byte, 0));
}

CASE(send_to_a_name_on_a_fresh_socket)
{
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, 9);
    told("sendto", sendto(new_socket(), "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&name, len));
}

CASE(shutdown_of_a_fresh_socket)
{
    int fd = new_socket();
    told("shutdown", shutdown(fd, SHUT_WR));
    told("bad-how", shutdown(fd, 7));
    told("file", shutdown(open("/dev/null", O_RDWR), SHUT_WR));
    told("none", shutdown(-1, SHUT_WR));
    bits("bits", fd);
}

CASE(sockets_of_unknown_kinds)
{
    told("type", socket(AF_INET, 77, 0));
    told("protocol", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    told("family", socket(77, SOCK_STREAM, 0));
    told("tcp", socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) >= 0);
}

CASE(socket_flags_are_kept)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    say("nonblock=%d cloexec=%d", !!(fcntl(fd, F_GETFL) & O_NONBLOCK), fcntl(fd, F_GETFD) & FD_CLOEXEC);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    say("access=%d", fcntl(fd, F_GETFL));
}

/* ---- ports after a close ---- */

CASE(bind_again_with_reuseaddr_after_the_server_closed_first)
{
    in_port_t port;
    int fd = new_socket();
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    bind_here(fd, 0);
    listen(fd, 4);
    port = port_of(fd);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    int accepted = accept(fd, NULL, NULL);
    close(accepted);
    close(fd);
    peer_until(far, POLLRDHUP);
    peer_close(far);
    int again = new_socket();
    set_int(again, SOL_SOCKET, SO_REUSEADDR, 1);
    told("bind", bind_here(again, port) ? 0 : -1);
    told("listen", listen(again, 4));
    told("connect", peer(CONNECT, -1, port, 0, NULL, 0) >= 0);
}

CASE(bind_again_after_the_server_closed_first)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    close(accept(fd, NULL, NULL));
    close(fd);
    peer_until(far, POLLRDHUP);
    peer_close(far);
    told("bind", bind_here(new_socket(), port) ? 0 : -1);
}

CASE(bind_again_after_a_reset)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int far = (int)peer(CONNECT, -1, port, 0, NULL, 0);
    int accepted = accept(fd, NULL, NULL);
    struct linger now = {1, 0};
    setsockopt(accepted, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(accepted);
    close(fd);
    peer_until(far, POLLHUP);
    peer_close(far);
    told("bind", bind_here(new_socket(), port) ? 0 : -1);
}

CASE(bind_while_a_connection_of_the_port_lives)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    peer(CONNECT, -1, port, 0, NULL, 0);
    int accepted = accept(fd, NULL, NULL);
    close(fd);
    told("bind", bind_here(new_socket(), port) ? 0 : -1);
    told("send", send(accepted, "x", 1, 0));
}
