/* Flags of send and receive. */
#include "world.h"

CASE(peek_leaves_bytes)
{
    struct pair p = new_pair();
    char room[8] = "";
    peer_send(p.far, "abc");
    until(p.fd, POLLIN);
    told("peek", recv(p.fd, room, 8, MSG_PEEK));
    told("peek", recv(p.fd, room, 2, MSG_PEEK));
    told("recv", recv(p.fd, room, 8, 0));
    say("%.3s", room);
    told("none", recv(p.fd, room, 8, MSG_PEEK | MSG_DONTWAIT));
}

CASE(peek_and_waitall)
{
    struct pair p = new_pair();
    char room[8] = "";
    peer_send(p.far, "abcd");
    peer_send(p.far, "efgh");
    told("peek", recv(p.fd, room, 8, MSG_PEEK | MSG_WAITALL));
    say("%.8s queued=%d", room, queued(p.fd));
}

CASE(peek_sees_the_end)
{
    struct pair p = new_pair();
    char byte;
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    told("peek", recv(p.fd, &byte, 1, MSG_PEEK));
    told("recv", recv(p.fd, &byte, 1, 0));
}

CASE(peek_takes_an_error)
{
    struct pair p = new_pair();
    char byte;
    peer_reset(p.far);
    until_all(p.fd, POLLERR);
    told("peek", recv(p.fd, &byte, 1, MSG_PEEK));
    told("recv", recv(p.fd, &byte, 1, 0));
}

CASE(peek_at_what_a_later_send_completes)
{
    struct pair p = new_pair();
    char room[8] = "";
    peer_send(p.far, "ab");
    until(p.fd, POLLIN);
    told("peek", recv(p.fd, room, 8, MSG_PEEK));
    peer_send(p.far, "cd");
    until_readable(p.fd, 4);
    told("peek", recv(p.fd, room, 8, MSG_PEEK));
    say("%.4s", room);
}

CASE(waitall_waits_for_all)
{
    struct pair p = new_pair();
    char room[8] = "";
    peer_send(p.far, "abc");
    peer_begin(SEND, p.far, 0, 0, "defgh", 5);
    told("recv", recv(p.fd, room, 8, MSG_WAITALL));
    peer_end();
    say("%.8s", room);
}

CASE(waitall_ends_with_the_stream)
{
    struct pair p = new_pair();
    char room[8];
    peer_send(p.far, "abc");
    peer_close(p.far);
    told("recv", recv(p.fd, room, 8, MSG_WAITALL));
    told("end", recv(p.fd, room, 8, MSG_WAITALL));
}

CASE(waitall_ends_with_an_error)
{
    struct pair p = new_pair();
    char room[8];
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    peer_reset(p.far);
    told("recv", recv(p.fd, room, 8, MSG_WAITALL));
    until_all(p.fd, POLLHUP);
    told("again", recv(p.fd, room, 8, MSG_WAITALL));
    told("then", recv(p.fd, room, 8, MSG_WAITALL));
}

CASE(waitall_on_a_nonblocking_socket)
{
    struct pair p = new_pair();
    char room[8];
    nonblocking(p.fd, true);
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    told("recv", recv(p.fd, room, 8, MSG_WAITALL));
    told("none", recv(p.fd, room, 8, MSG_WAITALL));
}

CASE(waitall_and_dontwait)
{
    struct pair p = new_pair();
    char room[8];
    peer_send(p.far, "abc");
    until_readable(p.fd, 3);
    told("recv", recv(p.fd, room, 8, MSG_WAITALL | MSG_DONTWAIT));
}

CASE(waitall_of_much)
{
    struct pair p = new_pair();
    size_t len = 300000;
    char *room = malloc(len);
    peer_begin(FLOOD, p.far, (long)len, 0, NULL, 0);
    told("recv", recv(p.fd, room, len, MSG_WAITALL));
    peer_end();
    size_t right = 0;
    while (right < len && room[right] == pattern(right))
        right++;
    say("right=%zu", right);
}

CASE(dontwait_receive_of_nothing)
{
    struct pair p = new_pair();
    char byte;
    told("recv", recv(p.fd, &byte, 1, MSG_DONTWAIT));
    told("zero", recv(p.fd, &byte, 0, MSG_DONTWAIT));
}

CASE(dontwait_send_until_full)
{
    struct pair p = new_pair();
    static char block[1 << 16];
    long n, calls = 0;
    while ((n = send(p.fd, block, sizeof block, MSG_DONTWAIT)) > 0)
        calls++;
    told("send", n);
    say("some=%d", calls > 0);
    bits("bits", p.fd);
}

CASE(blocking_send_of_much_is_whole)
{
    struct pair p = new_pair();
    size_t len = 8 << 20;
    char *block = malloc(len);
    for (size_t n = 0; n < len; n++)
        block[n] = pattern(n);
    peer_begin(DRAIN, p.far, (long)len, 0, NULL, 0);
    told("send", send(p.fd, block, len, 0));
    told("far", peer_end());
}

CASE(nonblocking_send_of_much_is_partial)
{
    struct pair p = new_pair();
    size_t len = 64 << 20;
    char *block = calloc(1, len);
    nonblocking(p.fd, true);
    ssize_t n = send(p.fd, block, len, 0);
    say("partial=%d", n > 0 && (size_t)n < len);
    fill(p);
    nonblocking(p.fd, true);
    told("more", send(p.fd, block, len, 0));
}

CASE(truncating_receive_drops_bytes)
{
    struct pair p = new_pair();
    char room[8] = "........";
    peer_send(p.far, "abcdef");
    until_readable(p.fd, 6);
    told("trunc", recv(p.fd, room, 3, MSG_TRUNC));
    say("%.3s", room);
    told("recv", recv(p.fd, room, 8, 0));
    say("%.3s", room);
}

CASE(truncating_receive_needs_no_room)
{
    struct pair p = new_pair();
    peer_send(p.far, "abcdef");
    until_readable(p.fd, 6);
    told("trunc", recv(p.fd, NULL, 4, MSG_TRUNC));
    say("left=%d", queued(p.fd));
}

CASE(truncating_peek)
{
    struct pair p = new_pair();
    peer_send(p.far, "abcdef");
    until_readable(p.fd, 6);
    told("peek", recv(p.fd, NULL, 4, MSG_TRUNC | MSG_PEEK));
    say("left=%d", queued(p.fd));
}

CASE(truncating_waitall)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    peer_begin(SEND, p.far, 0, 0, "def", 3);
    told("trunc", recv(p.fd, NULL, 6, MSG_TRUNC | MSG_WAITALL));
    peer_end();
}

CASE(more_holds_bytes_back)
{
    struct pair p = new_pair();
    told("more", send(p.fd, "abc", 3, MSG_MORE));
    say("far=%ld", peer(QUEUED, p.far, 0, 0, NULL, 0));
    told("send", send(p.fd, "def", 3, 0));
    peer_until(p.far, POLLIN);
    told("far", peer_recv(p.far, 10));
}

CASE(more_goes_out_after_its_time)
{
    struct pair p = new_pair();
    send(p.fd, "abc", 3, MSG_MORE);
    peer_until(p.far, POLLIN);
    told("far", peer_recv(p.far, 10));
}

CASE(more_goes_out_with_a_close)
{
    struct pair p = new_pair();
    send(p.fd, "abc", 3, MSG_MORE);
    close(p.fd);
    peer_until(p.far, POLLRDHUP);
    told("far", peer_recv(p.far, 10));
    told("end", peer_recv(p.far, 10));
}

CASE(more_of_much_goes_out)
{
    struct pair p = new_pair();
    static char block[200000];
    peer_begin(RECV, p.far, 60000, MSG_WAITALL, NULL, 0);
    told("send", send(p.fd, block, sizeof block, MSG_MORE));
    told("far", peer_end());
}

CASE(nosignal_gives_the_error_alone)
{
    struct pair p = new_pair();
    count_signal(SIGPIPE, 0);
    shutdown(p.fd, SHUT_WR);
    told("quiet", send(p.fd, "x", 1, MSG_NOSIGNAL));
    say("signals=%d", signals[SIGPIPE]);
    told("loud", send(p.fd, "x", 1, 0));
    say("signals=%d", signals[SIGPIPE]);
}

CASE(sending_nothing)
{
    struct pair p = new_pair();
    told("send", send(p.fd, "", 0, 0));
    told("write", write(p.fd, "", 0));
    told("writev", writev(p.fd, NULL, 0));
    say("far=%ld", peer(QUEUED, p.far, 0, 0, NULL, 0));
}

CASE(sending_nothing_after_a_shutdown)
{
    struct pair p = new_pair();
    shutdown(p.fd, SHUT_WR);
    told("send", send(p.fd, "", 0, MSG_NOSIGNAL));
}

CASE(receiving_nothing)
{
    struct pair p = new_pair();
    char byte;
    peer_send(p.far, "a");
    until(p.fd, POLLIN);
    told("recv", recv(p.fd, &byte, 0, 0));
    told("read", read(p.fd, &byte, 0));
    told("peek", recv(p.fd, &byte, 0, MSG_PEEK));
    say("left=%d", queued(p.fd));
}

CASE(receiving_nothing_at_the_end)
{
    struct pair p = new_pair();
    char byte;
    peer_close(p.far);
    until(p.fd, POLLRDHUP);
    told("recv", recv(p.fd, &byte, 0, 0));
    told("read", read(p.fd, &byte, 0));
}

CASE(receiving_nothing_after_a_reset)
{
    struct pair p = new_pair();
    char byte;
    peer_reset(p.far);
    until_all(p.fd, POLLERR);
    told("recv", recv(p.fd, &byte, 0, 0));
    told("one", recv(p.fd, &byte, 1, 0));
}

CASE(unknown_flags_are_ignored)
{
    struct pair p = new_pair();
    char room[4];
    told("send", send(p.fd, "abc", 3, MSG_DONTROUTE | MSG_CONFIRM | MSG_EOR));
    peer_send(p.far, "abc");
    until(p.fd, POLLIN);
    told("recv", recv(p.fd, room, 4, MSG_CMSG_CLOEXEC | MSG_WAITFORONE));
}

CASE(error_queue_is_empty)
{
    struct pair p = new_pair();
    char byte;
    told("recv", recv(p.fd, &byte, 1, MSG_ERRQUEUE));
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    told("recvmsg", recvmsg(p.fd, &message, MSG_ERRQUEUE));
}

CASE(error_queue_leaves_the_stream_alone)
{
    struct pair p = new_pair();
    char byte;
    peer_send(p.far, "x");
    until(p.fd, POLLIN);
    told("recv", recv(p.fd, &byte, 1, MSG_ERRQUEUE));
    say("left=%d", queued(p.fd));
}

/* The next notice of the error queue. */
static void say_notice(int fd)
{
    char control[256];
    struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
    until(fd, POLLERR);
    long n = recvmsg(fd, &message, MSG_ERRQUEUE);
    told("notice", n);
    if (n < 0)
        return;
    say("flags=%x", message.msg_flags & ~MSG_EOR);
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        struct { uint32_t error; uint8_t origin, type, code, pad; uint32_t info, data; } notice;
        memcpy(&notice, CMSG_DATA(head), sizeof notice);
        say("level=%d type=%d len=%zu errno=%u origin=%u type=%u info=%u data=%u", head->cmsg_level, head->cmsg_type, head->cmsg_len, notice.error, notice.origin, notice.type, notice.info, notice.data);
    }
}

CASE(zerocopy_without_the_option)
{
    struct pair p = new_pair();
    told("send", send(p.fd, "abc", 3, MSG_ZEROCOPY));
    told("far", peer_recv(p.far, 10));
    bits("bits", p.fd);
}

CASE(zerocopy_is_told_when_done)
{
    struct pair p = new_pair();
    static char block[32768];
    set_int(p.fd, SOL_SOCKET, SO_ZEROCOPY, 1);
    told("send", send(p.fd, block, sizeof block, MSG_ZEROCOPY));
    peer(RECV, p.far, sizeof block, MSG_WAITALL, NULL, 0);
    say_notice(p.fd);
    bits("bits", p.fd);
}

CASE(zerocopy_notices_count_calls)
{
    struct pair p = new_pair();
    static char block[32768];
    set_int(p.fd, SOL_SOCKET, SO_ZEROCOPY, 1);
    for (int n = 0; n < 3; n++) {
        told("send", send(p.fd, block, sizeof block, MSG_ZEROCOPY));
        peer(RECV, p.far, sizeof block, MSG_WAITALL, NULL, 0);
        say_notice(p.fd);
    }
}

CASE(zerocopy_of_plain_sends_is_not_told)
{
    struct pair p = new_pair();
    set_int(p.fd, SOL_SOCKET, SO_ZEROCOPY, 1);
    send(p.fd, "abc", 3, 0);
    peer_recv(p.far, 3);
    bits("bits", p.fd);
    char byte;
    told("recv", recv(p.fd, &byte, 1, MSG_ERRQUEUE));
}

CASE(out_of_range_pointers)
{
    struct pair p = new_pair();
    peer_send(p.far, "abc");
    until(p.fd, POLLIN);
    told("recv", recv(p.fd, (void *)8, 3, 0));
    told("send", send(p.fd, (void *)8, 3, 0));
    told("left", queued(p.fd));
}

CASE(calls_on_what_is_no_socket)
{
    int file = open("/dev/null", O_RDWR);
    char byte;
    told("send", send(file, "x", 1, 0));
    told("recv", recv(file, &byte, 1, 0));
    told("send-none", send(-1, "x", 1, 0));
    told("recv-none", recv(-1, &byte, 1, 0));
    struct pair p = new_pair();
    close(p.fd);
    told("send-closed", send(p.fd, "x", 1, 0));
    told("recv-closed", recv(p.fd, &byte, 1, 0));
    told("read-closed", read(p.fd, &byte, 1));
    told("close-closed", close(p.fd));
}
