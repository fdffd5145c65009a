/* poll, select and epoll: the bits of each state, edges, and single shots. */
#include "world.h"

CASE(bits_of_a_fresh_socket) { bits("bits", new_socket()); }

CASE(bits_of_a_bound_socket)
{
    int fd = new_socket();
    bind_here(fd, 0);
    bits("bits", fd);
}

CASE(bits_of_a_listener)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    bits("idle", fd);
    peer(CONNECT, -1, port, 0, NULL, 0);
    until(fd, POLLIN);
    bits("waiting", fd);
    accept(fd, NULL, NULL);
    bits("after", fd);
}

CASE(bits_of_a_connection)
{
    struct pair p = new_pair();
    bits("idle", p.fd);
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    bits("data", p.fd);
    char byte;
    recv(p.fd, &byte, 1, 0);
    bits("after", p.fd);
}

CASE(bits_of_a_full_connection)
{
    struct pair p = new_pair();
    fill(p);
    nonblocking(p.fd, true);
    bits("full", p.fd);
    peer_begin(RECV, p.far, 60000, MSG_WAITALL, NULL, 0);
    peer_end();
    /* Much must be read before there is room to speak of. */
    for (int n = 0; n < 2000; n++) {
        struct pollfd one = {p.fd, POLLOUT, 0};
        if (poll(&one, 1, 0) == 1)
            break;
        peer(NONBLOCK, p.far, 1, 0, NULL, 0);
        peer_recv(p.far, 60000);
    }
    bits("room", p.fd);
}

CASE(bits_that_were_not_asked_for)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    struct pollfd one = {p.fd, 0, 0};
    told("poll", poll(&one, 1, 0));
    say("revents=%x", one.revents);
}

CASE(rdhup_only_for_who_asks)
{
    struct pair p = new_pair();
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    struct pollfd one = {p.fd, POLLIN, 0};
    told("poll", poll(&one, 1, 0));
    say("revents=%x", one.revents);
    one.events = POLLOUT;
    told("poll", poll(&one, 1, 0));
    say("revents=%x", one.revents);
}

CASE(poll_of_the_normal_and_band_bits)
{
    struct pair p = new_pair();
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    struct pollfd one = {p.fd, POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND, 0};
    told("poll", poll(&one, 1, 0));
    say("revents=%x", one.revents);
}

CASE(poll_of_closed_and_negative_descriptors)
{
    struct pair p = new_pair();
    close(p.fd);
    struct pollfd fds[3] = {{p.fd, POLLIN, 9}, {-1, POLLIN, 9}, {-p.fd, POLLIN, 9}};
    told("poll", poll(fds, 3, 0));
    say("revents=%x,%x,%x", fds[0].revents, fds[1].revents, fds[2].revents);
}

CASE(poll_of_one_socket_twice)
{
    struct pair p = new_pair();
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    struct pollfd fds[2] = {{p.fd, POLLIN, 0}, {p.fd, POLLOUT, 0}};
    told("poll", poll(fds, 2, 0));
    say("revents=%x,%x", fds[0].revents, fds[1].revents);
}

CASE(poll_with_a_pipe_beside)
{
    struct pair p = new_pair();
    int ends[2];
    if (pipe(ends) < 0)
        return;
    struct pollfd fds[2] = {{p.fd, POLLIN, 0}, {ends[0], POLLIN, 0}};
    told("none", poll(fds, 2, 10));
    told("write", write(ends[1], "x", 1));
    told("pipe", poll(fds, 2, 10000));
    say("revents=%x,%x", fds[0].revents, fds[1].revents);
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    told("both", poll(fds, 2, 10000));
    say("revents=%x,%x", fds[0].revents, fds[1].revents);
}

CASE(poll_times_out)
{
    struct pair p = new_pair();
    struct pollfd one = {p.fd, POLLIN, 9};
    told("poll", poll(&one, 1, 20));
    say("revents=%x", one.revents);
    struct timespec bad = {0, 2000000000};
    told("bad-time", ppoll(&one, 1, &bad, NULL));
    struct timespec zero = {0, 0};
    told("zero", ppoll(&one, 1, &zero, NULL));
}

static void all_sets(int fd, fd_set *in, fd_set *out, fd_set *except)
{
    fd_set *sets[] = {in, out, except};
    for (int n = 0; n < 3; n++) {
        FD_ZERO(sets[n]);
        FD_SET(fd, sets[n]);
    }
}

CASE(select_sets)
{
    struct pair p = new_pair();
    fd_set in, out, except;
    all_sets(p.fd, &in, &out, &except);
    struct timeval limit = {10, 0};
    told("idle", select(p.fd + 1, &in, &out, &except, &limit));
    say("in=%d out=%d except=%d", FD_ISSET(p.fd, &in), FD_ISSET(p.fd, &out), FD_ISSET(p.fd, &except));
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    all_sets(p.fd, &in, &out, &except);
    told("closed", select(p.fd + 1, &in, &out, &except, &limit));
    say("in=%d out=%d except=%d", FD_ISSET(p.fd, &in), FD_ISSET(p.fd, &out), FD_ISSET(p.fd, &except));
}

CASE(select_after_a_reset)
{
    struct pair p = new_pair();
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    fd_set in, out, except;
    all_sets(p.fd, &in, &out, &except);
    struct timeval limit = {10, 0};
    told("select", select(p.fd + 1, &in, &out, &except, &limit));
    say("in=%d out=%d except=%d", FD_ISSET(p.fd, &in), FD_ISSET(p.fd, &out), FD_ISSET(p.fd, &except));
}

CASE(select_errors)
{
    struct pair p = new_pair();
    fd_set in;
    FD_ZERO(&in);
    struct timeval limit = {0, 0};
    told("negative", select(-1, &in, NULL, NULL, &limit));
    FD_SET(p.fd, &in);
    close(p.fd);
    told("closed", select(p.fd + 1, &in, NULL, NULL, &limit));
    limit.tv_sec = -1;
    told("bad-time", select(0, NULL, NULL, NULL, &limit));
}

/* ---- epoll ---- */

static int set_of(int fd, uint32_t events)
{
    int set = epoll_create1(0);
    struct epoll_event event = {.events = events, .data.u64 = 0x1234567890};
    if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
        told("add", -1);
    return set;
}

/* What the set says within this time. */
static void look(const char *what, int set, int ms)
{
    struct epoll_event events[4];
    int n = epoll_wait(set, events, 4, ms);
    if (n <= 0)
        told(what, n);
    else
        say("%s=%x", what, events[0].events);
}

CASE(epoll_keeps_the_programs_data)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLOUT);
    struct epoll_event event;
    told("wait", epoll_wait(set, &event, 1, 0));
    say("data=%lx", event.data.u64);
}

CASE(epoll_level)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN);
    look("idle", set, 0);
    peer_send(p.far, "ab");
    until(p.fd, POLLIN);
    look("data", set, 10000);
    look("again", set, 0);
    char room[4];
    recv(p.fd, room, 1, 0);
    look("half", set, 0);
    recv(p.fd, room, 1, 0);
    look("after", set, 0);
}

CASE(epoll_edge)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLET);
    look("idle", set, 0);
    peer_send(p.far, "ab");
    look("data", set, 10000);
    look("again", set, 0);
    peer_send(p.far, "cd");
    look("more", set, 10000);
    look("again", set, 0);
}

CASE(epoll_edge_out)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLOUT | EPOLLET);
    look("first", set, 0);
    look("again", set, 0);
    send(p.fd, "x", 1, 0);
    peer_recv(p.far, 1);
    look("after-send", set, 0);
}

CASE(epoll_edge_in_and_out)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLOUT | EPOLLET);
    look("first", set, 0);
    peer_send(p.far, "x");
    look("data", set, 10000);
    look("again", set, 0);
}

CASE(epoll_edge_of_a_full_connection)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLOUT | EPOLLET);
    look("first", set, 0);
    fill(p);
    nonblocking(p.fd, true);
    look("full", set, 0);
    peer_begin(DRAIN, p.far, 1 << 30, 0, NULL, 0);
    look("room", set, 10000);
}

CASE(epoll_edge_of_the_end)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLRDHUP | EPOLLET);
    peer_shutdown(p.far, SHUT_WR);
    look("end", set, 10000);
    look("again", set, 0);
    char byte;
    told("recv", recv(p.fd, &byte, 1, 0));
    look("after", set, 0);
}

CASE(epoll_edge_of_a_reset)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLRDHUP | EPOLLET);
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    look("reset", set, 10000);
    look("again", set, 0);
}

CASE(epoll_edge_of_an_own_shutdown)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLRDHUP | EPOLLET);
    shutdown(p.fd, SHUT_RD);
    look("shut", set, 10000);
    look("again", set, 0);
}

CASE(epoll_edge_reports_what_was_left)
{
    struct pair p = new_pair();
    peer_send(p.far, "ab");
    until(p.fd, POLLIN);
    int set = set_of(p.fd, EPOLLIN | EPOLLET);
    look("added-late", set, 10000);
    char byte;
    recv(p.fd, &byte, 1, 0);
    look("half", set, 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    epoll_ctl(set, EPOLL_CTL_MOD, p.fd, &event);
    look("modified", set, 10000);
}

CASE(epoll_oneshot)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLONESHOT);
    peer_send(p.far, "a");
    look("first", set, 10000);
    peer_send(p.far, "b");
    until_readable(p.fd, 2);
    look("disarmed", set, 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT};
    told("mod", epoll_ctl(set, EPOLL_CTL_MOD, p.fd, &event));
    look("again", set, 10000);
    look("disarmed", set, 0);
}

CASE(epoll_oneshot_edge)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLONESHOT | EPOLLET);
    peer_send(p.far, "a");
    look("first", set, 10000);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT | EPOLLET};
    epoll_ctl(set, EPOLL_CTL_MOD, p.fd, &event);
    look("again", set, 10000);
}

CASE(epoll_oneshot_hides_even_a_reset)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLONESHOT);
    peer_send(p.far, "a");
    look("first", set, 10000);
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    look("reset", set, 0);
}

CASE(epoll_without_events)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, 0);
    peer_send(p.far, "a");
    until(p.fd, POLLIN);
    look("data", set, 0);
    peer_reset(p.far);
    until_all(p.fd, POLLHUP);
    look("reset", set, 10000);
}

CASE(epoll_control_errors)
{
    struct pair p = new_pair();
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    told("mod", epoll_ctl(set, EPOLL_CTL_MOD, p.fd, &event));
    told("del", epoll_ctl(set, EPOLL_CTL_DEL, p.fd, &event));
    told("add", epoll_ctl(set, EPOLL_CTL_ADD, p.fd, &event));
    told("again", epoll_ctl(set, EPOLL_CTL_ADD, p.fd, &event));
    told("self", epoll_ctl(set, EPOLL_CTL_ADD, set, &event));
    told("none", epoll_ctl(set, EPOLL_CTL_ADD, -1, &event));
    told("no-set", epoll_ctl(p.fd, EPOLL_CTL_ADD, p.fd, &event));
    told("operation", epoll_ctl(set, 77, p.fd, &event));
    told("file", epoll_ctl(set, EPOLL_CTL_ADD, open("/proc/self/exe", O_RDONLY), &event));
    told("no-event", epoll_ctl(set, EPOLL_CTL_MOD, p.fd, NULL));
    told("del", epoll_ctl(set, EPOLL_CTL_DEL, p.fd, NULL));
}

CASE(epoll_wait_errors)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN);
    struct epoll_event event;
    told("none", epoll_wait(set, &event, 0, 0));
    told("negative", epoll_wait(set, &event, -1, 0));
    told("no-set", epoll_wait(p.fd, &event, 1, 0));
    told("bad", epoll_wait(-1, &event, 1, 0));
}

CASE(epoll_exclusive)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLEXCLUSIVE);
    struct epoll_event event = {.events = EPOLLIN};
    told("mod", epoll_ctl(set, EPOLL_CTL_MOD, p.fd, &event));
    peer_send(p.far, "a");
    look("data", set, 10000);
    event.events = EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT;
    int other = epoll_create1(0);
    told("with-oneshot", epoll_ctl(other, EPOLL_CTL_ADD, p.fd, &event));
}

CASE(epoll_of_one_socket_in_two_sets)
{
    struct pair p = new_pair();
    int first = set_of(p.fd, EPOLLIN), second = set_of(p.fd, EPOLLIN | EPOLLET);
    peer_send(p.far, "a");
    look("first", first, 10000);
    look("second", second, 10000);
    look("first", first, 0);
    look("second", second, 0);
}

CASE(epoll_of_two_descriptors_of_one_socket)
{
    struct pair p = new_pair();
    int copy = dup(p.fd);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 1}, events[4];
    told("add", epoll_ctl(set, EPOLL_CTL_ADD, p.fd, &event));
    event.data.u32 = 2;
    told("copy", epoll_ctl(set, EPOLL_CTL_ADD, copy, &event));
    peer_send(p.far, "a");
    until(p.fd, POLLIN);
    told("wait", epoll_wait(set, events, 4, 10000));
    close(copy);
    /* The set knows the open file, which lives on. */
    told("after-close", epoll_wait(set, events, 4, 0));
}

CASE(epoll_forgets_a_closed_socket)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN);
    peer_send(p.far, "a");
    until(p.fd, POLLIN);
    close(p.fd);
    look("closed", set, 0);
    struct epoll_event event = {.events = EPOLLIN};
    told("del", epoll_ctl(set, EPOLL_CTL_DEL, p.fd, &event));
}

CASE(epoll_added_before_connect)
{
    in_port_t port;
    int listener = (int)peer(LISTEN, -1, 4, 0, NULL, 0);
    memcpy(&port, peer_bytes, sizeof port);
    int fd = new_socket();
    int set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    look("fresh", set, 0);
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, port);
    told("connect", connect(fd, (struct sockaddr *)&name, len));
    look("connected", set, 10000);
    int far = (int)peer(ACCEPT, listener, 0, 0, NULL, 0);
    peer_send(far, "a");
    until(fd, POLLIN);
    look("data", set, 10000);
}

CASE(epoll_edge_added_before_a_nonblocking_connect)
{
    in_port_t port;
    int listener = (int)peer(LISTEN, -1, 4, 0, NULL, 0);
    memcpy(&port, peer_bytes, sizeof port);
    int fd = new_socket();
    nonblocking(fd, true);
    int set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    look("fresh", set, 0);
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, port);
    begun(connect(fd, (struct sockaddr *)&name, len));
    look("connected", set, 10000);
    look("again", set, 0);
    int far = (int)peer(ACCEPT, listener, 0, 0, NULL, 0);
    peer_send(far, "a");
    look("data", set, 10000);
}

CASE(epoll_of_a_failed_connect)
{
    in_port_t port;
    int listener = (int)peer(LISTEN, -1, 4, 0, NULL, 0);
    memcpy(&port, peer_bytes, sizeof port);
    peer_close(listener);
    int fd = new_socket();
    nonblocking(fd, true);
    struct sockaddr_storage name;
    socklen_t len = peer_name(&name, port);
    told("connect", connect(fd, (struct sockaddr *)&name, len));
    int set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    look("failed", set, 10000);
}

CASE(epoll_of_a_listener)
{
    in_port_t port;
    int fd = new_listener(4, &port);
    int level = set_of(fd, EPOLLIN), edge = set_of(fd, EPOLLIN | EPOLLET);
    look("idle", level, 0);
    peer(CONNECT, -1, port, 0, NULL, 0);
    look("level", level, 10000);
    look("edge", edge, 10000);
    look("level", level, 0);
    look("edge", edge, 0);
    peer(CONNECT, -1, port, 0, NULL, 0);
    look("edge", edge, 10000);
    accept(fd, NULL, NULL);
    look("level", level, 0);
    accept(fd, NULL, NULL);
    look("level", level, 0);
}

CASE(epoll_rotates_among_ready_sockets)
{
    struct pair pairs[3];
    int set = epoll_create1(0);
    for (unsigned n = 0; n < 3; n++) {
        pairs[n] = new_pair();
        struct epoll_event event = {.events = EPOLLOUT, .data.u32 = n};
        epoll_ctl(set, EPOLL_CTL_ADD, pairs[n].fd, &event);
    }
    int seen[3] = {0, 0, 0};
    for (int n = 0; n < 9; n++) {
        struct epoll_event event;
        if (epoll_wait(set, &event, 1, 0) == 1)
            seen[event.data.u32]++;
    }
    say("%d,%d,%d", seen[0], seen[1], seen[2]);
}

static volatile pid_t waiter;

static bool waiter_sleeps(void *of)
{
    (void)of;
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", waiter);
    FILE *file = waiter ? fopen(path, "r") : NULL;
    if (!file)
        return false;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    char *name_end = n > 0 ? strrchr(text, ')') : NULL;
    return name_end && name_end[2] == 'S';
}

static void *epoll_waiter(void *set)
{
    struct epoll_event event;
    waiter = gettid();
    long n = epoll_wait(*(int *)set, &event, 1, 10000);
    return (void *)(n == 1 ? (long)event.events : -1L);
}

CASE(epoll_added_while_another_thread_waits)
{
    struct pair p = new_pair();
    int set = epoll_create1(0);
    pthread_t thread;
    pthread_create(&thread, NULL, epoll_waiter, &set);
    until_true(waiter_sleeps, NULL, "asleep");
    peer_send(p.far, "a");
    until(p.fd, POLLIN);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, p.fd, &event);
    void *result;
    pthread_join(thread, &result);
    say("events=%lx", (long)result);
}

CASE(epoll_wakes_one_thread_for_an_edge)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN | EPOLLET);
    pthread_t thread;
    pthread_create(&thread, NULL, epoll_waiter, &set);
    peer_send(p.far, "a");
    void *result;
    pthread_join(thread, &result);
    say("events=%lx", (long)result);
    look("another", set, 0);
}

CASE(epoll_pwait2_takes_nanoseconds)
{
    struct pair p = new_pair();
    int set = set_of(p.fd, EPOLLIN);
    struct timespec limit = {0, 1000000};
    struct epoll_event event;
    told("none", epoll_pwait2(set, &event, 1, &limit, NULL));
    peer_send(p.far, "a");
    told("data", epoll_pwait2(set, &event, 1, NULL, NULL));
}
