/* Calls that move bytes: vectors, messages, sendfile, splice, and descriptors that several names share. */
#include "world.h"

#include <stdarg.h>
#include <sys/syscall.h>

static void say_far(const char *what, int far, long len)
{
    long n = peer(RECV, far, len, MSG_WAITALL, NULL, 0);
    if (n < 0)
        told(what, n);
    else
        say("%s=%ld/%.*s", what, n, (int)n, peer_bytes);
}

CASE(writev_gathers)
{
    struct pair p = new_pair();
    struct iovec parts[] = {{"ab", 2}, {"", 0}, {"cde", 3}, {NULL, 0}, {"f", 1}};
    told("writev", writev(p.fd, parts, 5));
    say_far("far", p.far, 6);
}

CASE(readv_scatters)
{
    struct pair p = new_pair();
    char first[3] = "", second[3] = "", third[3] = "";
    struct iovec parts[] = {{first, 2}, {NULL, 0}, {second, 2}, {third, 2}};
    peer_send(p.far, "abcde");
    until_readable(p.fd, 5);
    told("readv", readv(p.fd, parts, 4));
    say("%s,%s,%s", first, second, third);
}

CASE(vectors_out_of_range)
{
    struct pair p = new_pair();
    struct iovec part = {"a", 1};
    static struct iovec many[1100];
    for (int n = 0; n < 1100; n++)
        many[n] = part;
    told("negative", writev(p.fd, &part, -1));
    told("none", writev(p.fd, &part, 0));
    told("too-many", writev(p.fd, many, 1025));
    told("most", writev(p.fd, many, 1024));
    part.iov_len = (size_t)-1;
    told("length", writev(p.fd, &part, 1));
    told("read-negative", readv(p.fd, &part, -1));
    told("read-none", readv(p.fd, &part, 0));
}

CASE(positioned_calls_are_refused)
{
    struct pair p = new_pair();
    char byte = 0;
    struct iovec part = {&byte, 1};
    told("pread", pread(p.fd, &byte, 1, 0));
    told("pwrite", pwrite(p.fd, &byte, 1, 0));
    told("preadv", preadv(p.fd, &part, 1, 0));
    told("pwritev", pwritev(p.fd, &part, 1, 0));
    told("lseek", lseek(p.fd, 0, SEEK_CUR));
}

CASE(positioned_calls_at_minus_one_go_with_the_stream)
{
    struct pair p = new_pair();
    char byte = 'x';
    struct iovec part = {&byte, 1};
    told("pwritev2", pwritev2(p.fd, &part, 1, -1, 0));
    say_far("far", p.far, 1);
    peer_send(p.far, "y");
    until(p.fd, POLLIN);
    told("preadv2", preadv2(p.fd, &part, 1, -1, 0));
    say("byte=%c", byte);
}

CASE(file_calls_on_a_socket)
{
    struct pair p = new_pair();
    told("fsync", fsync(p.fd));
    told("ftruncate", ftruncate(p.fd, 0));
    told("fchdir", fchdir(p.fd));
    told("isatty", isatty(p.fd));
}

CASE(sendmsg_gathers)
{
    struct pair p = new_pair();
    struct iovec parts[] = {{"ab", 2}, {"cd", 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    told("sendmsg", sendmsg(p.fd, &message, 0));
    say_far("far", p.far, 4);
    message.msg_iovlen = 0;
    told("none", sendmsg(p.fd, &message, 0));
    message.msg_iovlen = 1025;
    told("too-many", sendmsg(p.fd, &message, 0));
}

CASE(sendmsg_with_a_name_ignores_it)
{
    struct pair p = new_pair();
    struct sockaddr_storage name;
    struct iovec part = {"ab", 2};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_name = &name, .msg_namelen = peer_name(&name, 9)};
    told("sendmsg", sendmsg(p.fd, &message, 0));
    told("sendto", sendto(p.fd, "cd", 2, 0, (struct sockaddr *)&name, message.msg_namelen));
    say_far("far", p.far, 4);
}

CASE(recvmsg_scatters)
{
    struct pair p = new_pair();
    char first[3] = "", second[5] = "", control[64];
    struct sockaddr_storage name;
    struct iovec parts[] = {{first, 2}, {second, 4}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_name = &name, .msg_namelen = sizeof name, .msg_control = control, .msg_controllen = sizeof control, .msg_flags = 77};
    peer_send(p.far, "abcde");
    until_readable(p.fd, 5);
    told("recvmsg", recvmsg(p.fd, &message, 0));
    say("%s,%s name=%u control=%zu flags=%x", first, second, message.msg_namelen, message.msg_controllen, message.msg_flags);
}

CASE(recvmsg_truncates_by_flag)
{
    struct pair p = new_pair();
    struct iovec part = {NULL, 3};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    peer_send(p.far, "abcde");
    until_readable(p.fd, 5);
    told("recvmsg", recvmsg(p.fd, &message, MSG_TRUNC));
    say("flags=%x left=%d", message.msg_flags, queued(p.fd));
}

CASE(recvmsg_at_the_end)
{
    struct pair p = new_pair();
    char byte;
    struct sockaddr_storage name;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_name = &name, .msg_namelen = sizeof name};
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    told("recvmsg", recvmsg(p.fd, &message, 0));
    say("name=%u flags=%x", message.msg_namelen, message.msg_flags);
}

CASE(recvfrom_tells_no_name)
{
    struct pair p = new_pair();
    char byte;
    struct sockaddr_storage name = {.ss_family = 77};
    socklen_t len = sizeof name;
    peer_send(p.far, "a");
    until(p.fd, POLLIN);
    told("recvfrom", recvfrom(p.fd, &byte, 1, 0, (struct sockaddr *)&name, &len));
    say("len=%u family=%d", len, name.ss_family);
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    len = sizeof name;
    told("end", recvfrom(p.fd, &byte, 1, 0, (struct sockaddr *)&name, &len));
    say("len=%u", len);
}

CASE(sendmmsg_sends_all)
{
    struct pair p = new_pair();
    struct iovec parts[3] = {{"a", 1}, {"bc", 2}, {"def", 3}};
    struct mmsghdr messages[3] = {0};
    for (int n = 0; n < 3; n++)
        messages[n].msg_hdr = (struct msghdr){.msg_iov = &parts[n], .msg_iovlen = 1};
    told("sendmmsg", sendmmsg(p.fd, messages, 3, 0));
    say("%u,%u,%u", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len);
    say_far("far", p.far, 6);
    told("none", sendmmsg(p.fd, messages, 0, 0));
    shutdown(p.fd, SHUT_WR);
    told("shut", sendmmsg(p.fd, messages, 3, MSG_NOSIGNAL));
}

CASE(recvmmsg_receives_what_is_there)
{
    struct pair p = new_pair();
    char rooms[3][3] = {"", "", ""};
    struct iovec parts[3];
    struct mmsghdr messages[3] = {0};
    for (int n = 0; n < 3; n++) {
        parts[n] = (struct iovec){rooms[n], 2};
        messages[n].msg_hdr = (struct msghdr){.msg_iov = &parts[n], .msg_iovlen = 1};
    }
    peer_send(p.far, "abcd");
    until_readable(p.fd, 4);
    told("recvmmsg", recvmmsg(p.fd, messages, 3, MSG_DONTWAIT, NULL));
    say("%u,%u %s,%s", messages[0].msg_len, messages[1].msg_len, rooms[0], rooms[1]);
    told("none", recvmmsg(p.fd, messages, 3, MSG_DONTWAIT, NULL));
    peer_send(p.far, "ef");
    told("one", recvmmsg(p.fd, messages, 3, MSG_WAITFORONE, NULL));
}

CASE(recvmmsg_has_a_time_limit)
{
    struct pair p = new_pair();
    char room[2];
    struct iovec part = {room, 2};
    struct mmsghdr messages[2] = {{{.msg_iov = &part, .msg_iovlen = 1}, 0}, {{.msg_iov = &part, .msg_iovlen = 1}, 0}};
    peer_send(p.far, "abcd");
    until_readable(p.fd, 4);
    struct timespec limit = {0, 0};
    told("recvmmsg", recvmmsg(p.fd, messages, 2, 0, &limit));
    limit.tv_nsec = 2000000000;
    told("bad-time", recvmmsg(p.fd, messages, 2, 0, &limit));
}

/* ---- files ---- */

static int file_of(size_t len)
{
    char path[] = "/tmp/both-worlds-XXXXXX";
    int file = mkstemp(path);
    unlink(path);
    for (size_t n = 0; n < len; n++) {
        char byte = pattern(n);
        if (write(file, &byte, 1) != 1)
            say("no-file");
    }
    lseek(file, 0, SEEK_SET);
    return file;
}

CASE(sendfile_from_the_start)
{
    struct pair p = new_pair();
    int file = file_of(10000);
    told("sendfile", sendfile(p.fd, file, NULL, 20000));
    told("far", peer(DRAIN, p.far, 10000, 0, NULL, 0));
    say("at=%ld", lseek(file, 0, SEEK_CUR));
    told("end", sendfile(p.fd, file, NULL, 100));
}

CASE(sendfile_from_an_offset)
{
    struct pair p = new_pair();
    int file = file_of(10000);
    off_t offset = 4000;
    told("sendfile", sendfile(p.fd, file, &offset, 1000));
    told("far", peer(DRAIN, p.far, 1000, 4000, NULL, 0));
    say("offset=%ld at=%ld", offset, lseek(file, 0, SEEK_CUR));
}

CASE(sendfile_errors)
{
    struct pair p = new_pair();
    int file = file_of(10), ends[2];
    off_t offset = -1;
    if (pipe(ends) < 0)
        return;
    told("negative", sendfile(p.fd, file, &offset, 5));
    told("nothing", sendfile(p.fd, file, NULL, 0));
    told("from-none", sendfile(p.fd, -1, NULL, 5));
    told("to-none", sendfile(-1, file, NULL, 5));
    int write_only = open("/dev/null", O_WRONLY);
    told("unreadable", sendfile(p.fd, write_only, NULL, 5));
    signal(SIGPIPE, SIG_IGN);
    shutdown(p.fd, SHUT_WR);
    told("shut", sendfile(p.fd, file, NULL, 5));
}

CASE(sendfile_without_blocking)
{
    struct pair p = new_pair();
    int file = file_of(100);
    fill(p);
    nonblocking(p.fd, true);
    told("sendfile", sendfile(p.fd, file, NULL, 100));
    say("at=%ld", lseek(file, 0, SEEK_CUR));
}

CASE(splice_into_a_socket)
{
    struct pair p = new_pair();
    int ends[2];
    if (pipe(ends) < 0)
        return;
    told("write", write(ends[1], "abcdef", 6));
    told("splice", splice(ends[0], NULL, p.fd, NULL, 4, 0));
    say_far("far", p.far, 4);
    told("rest", splice(ends[0], NULL, p.fd, NULL, 100, 0));
    say_far("far", p.far, 2);
    told("empty", splice(ends[0], NULL, p.fd, NULL, 100, SPLICE_F_NONBLOCK));
    close(ends[1]);
    told("end", splice(ends[0], NULL, p.fd, NULL, 100, 0));
}

CASE(splice_out_of_a_socket)
{
    struct pair p = new_pair();
    int ends[2];
    char room[16] = "";
    if (pipe(ends) < 0)
        return;
    peer_send(p.far, "abcdef");
    until_readable(p.fd, 6);
    told("splice", splice(p.fd, NULL, ends[1], NULL, 4, 0));
    told("rest", splice(p.fd, NULL, ends[1], NULL, 100, 0));
    told("read", read(ends[0], room, 16));
    say("%s", room);
    nonblocking(p.fd, true);
    told("empty", splice(p.fd, NULL, ends[1], NULL, 100, 0));
    nonblocking(p.fd, false);
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    told("end", splice(p.fd, NULL, ends[1], NULL, 100, 0));
}

CASE(splice_errors)
{
    struct pair p = new_pair(), q = new_pair();
    int ends[2];
    off_t offset = 0;
    if (pipe(ends) < 0)
        return;
    told("two-sockets", splice(p.fd, NULL, q.fd, NULL, 4, 0));
    told("offset", splice(p.fd, &offset, ends[1], NULL, 4, 0));
    told("offset-out", splice(ends[0], NULL, p.fd, &offset, 4, 0));
    told("flags", splice(p.fd, NULL, ends[1], NULL, 4, 0x8000));
    told("nothing", splice(p.fd, NULL, ends[1], NULL, 0, 0));
    told("wrong-end", splice(p.fd, NULL, ends[0], NULL, 4, SPLICE_F_NONBLOCK));
    told("none", splice(-1, NULL, p.fd, NULL, 4, 0));
    told("tee", tee(p.fd, ends[1], 4, 0));
    signal(SIGPIPE, SIG_IGN);
    shutdown(p.fd, SHUT_WR);
    told("write", write(ends[1], "x", 1));
    told("shut", splice(ends[0], NULL, p.fd, NULL, 1, 0));
}

CASE(splice_of_much)
{
    struct pair p = new_pair(), q = new_pair();
    int ends[2];
    if (pipe(ends) < 0)
        return;
    peer_begin(FLOOD, p.far, 500000, 0, NULL, 0);
    long total = 0;
    while (total < 500000) {
        ssize_t n = splice(p.fd, NULL, ends[1], NULL, 65536, SPLICE_F_MOVE | SPLICE_F_MORE);
        if (n <= 0)
            break;
        for (ssize_t out = 0; out < n;) {
            ssize_t sent = splice(ends[0], NULL, q.fd, NULL, (size_t)(n - out), SPLICE_F_MOVE);
            if (sent <= 0)
                break;
            out += sent;
        }
        total += n;
    }
    peer_end();
    say("total=%ld", total);
    told("far", peer(DRAIN, q.far, 500000, 0, NULL, 0));
}

CASE(splice_into_a_full_pipe)
{
    struct pair p = new_pair();
    int ends[2];
    static char block[1 << 20];
    if (pipe2(ends, O_NONBLOCK) < 0)
        return;
    while (write(ends[1], block, sizeof block) > 0)
        ;
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    told("splice", splice(p.fd, NULL, ends[1], NULL, 3, SPLICE_F_NONBLOCK));
    say("left=%d", queued(p.fd));
}

/* ---- descriptors ---- */

CASE(queues_are_counted)
{
    struct pair p = new_pair();
    int count = -1;
    told("in", ioctl(p.fd, FIONREAD, &count));
    say("%d", count);
    told("out", ioctl(p.fd, TIOCOUTQ, &count));
    say("%d", count);
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    say("%d", queued(p.fd));
    char byte;
    recv(p.fd, &byte, 1, 0);
    say("%d", queued(p.fd));
    told("bad", ioctl(p.fd, FIONREAD, (void *)8));
}

CASE(queues_of_other_states)
{
    in_port_t port;
    int count = -1, fresh = new_socket(), listener = new_listener(4, &port);
    told("fresh-in", ioctl(fresh, FIONREAD, &count));
    told("fresh-out", ioctl(fresh, TIOCOUTQ, &count));
    told("listener-in", ioctl(listener, FIONREAD, &count));
    told("listener-out", ioctl(listener, TIOCOUTQ, &count));
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    say("ended=%d", queued(p.fd));
}

CASE(unsent_bytes_are_counted)
{
    struct pair p = new_pair();
    fill(p);
    nonblocking(p.fd, true);
    int out = -1, unsent = -1;
    told("out", ioctl(p.fd, TIOCOUTQ, &out));
    say("some=%d", out > 0);
    told("unsent", ioctl(p.fd, 0x894B, &unsent));
    say("bounded=%d", unsent >= 0 && unsent <= out);
}

CASE(terminal_calls_are_refused)
{
    struct pair p = new_pair();
    char room[64];
    told("tcgets", ioctl(p.fd, 0x5401, room));
    told("winsize", ioctl(p.fd, 0x5413, room));
    told("unknown", ioctl(p.fd, 0x1234, room));
}

CASE(fionbio_and_o_nonblock_are_one)
{
    struct pair p = new_pair();
    int on = 1;
    char byte;
    told("set", ioctl(p.fd, FIONBIO, &on));
    say("flag=%d", !!(fcntl(p.fd, F_GETFL) & O_NONBLOCK));
    told("recv", recv(p.fd, &byte, 1, 0));
    on = 0;
    ioctl(p.fd, FIONBIO, &on);
    say("flag=%d", !!(fcntl(p.fd, F_GETFL) & O_NONBLOCK));
    fcntl(p.fd, F_SETFL, O_NONBLOCK);
    told("read", read(p.fd, &byte, 1));
    say("flags=%x", fcntl(p.fd, F_GETFL));
}

CASE(close_on_exec_flag)
{
    struct pair p = new_pair();
    say("%d", fcntl(p.fd, F_GETFD));
    told("set", fcntl(p.fd, F_SETFD, FD_CLOEXEC));
    say("%d", fcntl(p.fd, F_GETFD));
    told("ioctl", ioctl(p.fd, FIONCLEX, NULL));
    say("%d", fcntl(p.fd, F_GETFD));
    int copy = fcntl(p.fd, F_DUPFD_CLOEXEC, 0);
    say("copy=%d original=%d", fcntl(copy, F_GETFD), fcntl(p.fd, F_GETFD));
}

CASE(nonblock_is_shared_by_duplicates)
{
    struct pair p = new_pair();
    int copy = dup(p.fd);
    char byte;
    nonblocking(copy, true);
    told("recv", recv(p.fd, &byte, 1, 0));
    nonblocking(p.fd, false);
    say("flag=%d", !!(fcntl(copy, F_GETFL) & O_NONBLOCK));
}

CASE(duplicates_share_the_stream)
{
    struct pair p = new_pair();
    int copy = dup(p.fd), at = fcntl(p.fd, F_DUPFD, 100), third = dup3(p.fd, 200, O_CLOEXEC);
    char room[8] = "";
    peer_send(p.far, "abcd");
    until_readable(p.fd, 4);
    told("one", recv(p.fd, room, 1, 0));
    told("two", recv(copy, room + 1, 1, 0));
    told("three", recv(at, room + 2, 1, 0));
    told("four", recv(third, room + 3, 1, 0));
    say("%s at=%d third=%d", room, at >= 100, third);
}

CASE(duplicate_over_a_connection_closes_it)
{
    struct pair p = new_pair();
    int file = open("/dev/null", O_RDWR);
    told("dup2", dup2(file, p.fd) == p.fd);
    peer_until(p.far, POLLRDHUP);
    told("far", peer_recv(p.far, 1));
    told("write", write(p.fd, "x", 1));
}

CASE(duplicate_onto_itself)
{
    struct pair p = new_pair();
    told("dup2", dup2(p.fd, p.fd) == p.fd);
    told("dup3", dup3(p.fd, p.fd, 0));
    told("send", send(p.fd, "x", 1, 0));
    told("dup-none", dup2(-1, p.fd));
}

CASE(stdio_on_a_connection)
{
    struct pair p = new_pair();
    FILE *file = fdopen(p.fd, "r+");
    say("opened=%d", file != NULL);
}

CASE(fstat_says_socket)
{
    struct pair p = new_pair();
    told("socket", isfdtype(p.fd, 0140000));
}

static int formatted(int fd, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vdprintf(fd, format, arguments);
    va_end(arguments);
    return n;
}

CASE(formatted_text_goes_with_the_stream)
{
    struct pair p = new_pair();
    told("dprintf", dprintf(p.fd, "%d %s %.2f %c%c %d %d %ld %.1f|", -1, "word", 2.5, 'x', 'y', 4, 5, 1234567890123L, 0.5));
    say_far("far", p.far, 38);
    told("vdprintf", formatted(p.fd, "%.1f%.1f%.1f%.1f%.1f%.1f%.1f%.1f%.1f", 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0));
    say_far("far", p.far, 27);
    told("empty", dprintf(p.fd, "%s", ""));
    told("wide", dprintf(p.fd, "%20000d", 7));
    shutdown(p.fd, SHUT_WR);
    signal(SIGPIPE, SIG_IGN);
    told("at the end", dprintf(p.fd, "%d", 1));
    signal(SIGPIPE, SIG_DFL);
    told("nowhere", dprintf(-1, "x"));
}

CASE(calls_by_their_numbers)
{
    struct pair p = new_pair();
    char byte = 'x';
    struct iovec part = {&byte, 1};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
    struct timespec none = {0, 0};
    fd_set set;
    told("dup2", syscall(SYS_dup2, p.fd, 200));
    told("write", syscall(SYS_write, 200, "a", 1L));
    told("pwritev2", syscall(SYS_pwritev2, p.fd, &part, 1L, -1L, 0L, 0L));
    say_far("far", p.far, 2);
    peer_send(p.far, "yz");
    until_readable(p.fd, 2);
    FD_ZERO(&set);
    FD_SET(p.fd, &set);
    told("pselect6", syscall(SYS_pselect6, p.fd + 1L, &set, NULL, NULL, &none, NULL));
    told("preadv2", syscall(SYS_preadv2, p.fd, &part, 1L, -1L, 0L, 0L));
    say("byte=%c", byte);
    told("recvmmsg", syscall(SYS_recvmmsg, p.fd, &message, 1L, 0L, NULL));
    say("byte=%c", byte);
    told("close", syscall(SYS_close, 200L));
}
