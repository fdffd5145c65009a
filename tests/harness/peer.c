/* A socket program that a test leads step by step, for static linking: a command a line in, an answer a line out. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int listener = -1, stream = -1, datagrams = -1;
static char block[65536];

static struct sockaddr_in address(const char *ip, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &a.sin_addr);
    return a;
}

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void failed(void)
{
    printf("error %s\n", strerrorname_np(errno));
}

/* The content of a stream: byte i is i modulo 251. */
static void send_content(long long count)
{
    for (long long done = 0; done < count;) {
        long long piece = count - done < (long long)sizeof block ? count - done : (long long)sizeof block;
        for (long long i = 0; i < piece; i++)
            block[i] = (done + i) % 251;
        long n = send(stream, block, piece, MSG_NOSIGNAL);
        if (n < 0) {
            failed();
            return;
        }
        done += n;
    }
    printf("sent %lld\n", count);
}

static void receive_content(long long count)
{
    long long done = 0;
    const char *end = "more", *right = "right";
    while (done < count) {
        long long piece = count - done < (long long)sizeof block ? count - done : (long long)sizeof block;
        long n = recv(stream, block, piece, 0);
        if (n <= 0) {
            end = n == 0 ? "eof" : strerrorname_np(errno);
            break;
        }
        for (long i = 0; i < n; i++)
            if ((unsigned char)block[i] != (done + i) % 251)
                right = "wrong";
        done += n;
    }
    printf("received %lld %s %s\n", done, right, end);
}

/* The shortest of several round trips. */
static void measure(int fd, int rounds)
{
    long long best = -1;
    for (int i = 0; i < rounds; i++) {
        char byte = i;
        long long start = now();
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1) {
            failed();
            return;
        }
        long long took = now() - start;
        if (best < 0 || took < best)
            best = took;
    }
    printf("round trip %lld ns\n", best);
}

int main(void)
{
    char line[256], word[32], ip[64];
    long long number;
    int port, one = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "listen %d", &port) == 1) {
            struct sockaddr_in a = address("0.0.0.0", port);
            listener = socket(AF_INET, SOCK_STREAM, 0);
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
            if (bind(listener, (void *)&a, sizeof a) || listen(listener, 16))
                failed();
            else
                printf("listening\n");
        } else if (sscanf(line, "datagrams %d", &port) == 1) {
            struct sockaddr_in a = address("0.0.0.0", port);
            datagrams = socket(AF_INET, SOCK_DGRAM, 0);
            if (bind(datagrams, (void *)&a, sizeof a))
                failed();
            else
                printf("bound\n");
        } else if (sscanf(line, "connect %63s %d", ip, &port) == 2) {
            struct sockaddr_in a = address(ip, port);
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(fd, (void *)&a, sizeof a)) {
                failed();
                close(fd);
            } else {
                stream = fd;
                printf("connected\n");
            }
        } else if (sscanf(line, "address %63s %d", ip, &port) == 2) {
            struct sockaddr_in a = address(ip, port);
            datagrams = socket(AF_INET, SOCK_DGRAM, 0);
            if (connect(datagrams, (void *)&a, sizeof a))
                failed();
            else
                printf("addressed\n");
        } else if (sscanf(line, "send %lld", &number) == 1) {
            send_content(number);
        } else if (sscanf(line, "recv %lld", &number) == 1) {
            receive_content(number);
        } else if (sscanf(line, "echo %lld", &number) == 1) {
            long long done = 0;
            for (; done < number; done++)
                if (recv(stream, block, 1, 0) != 1 || send(stream, block, 1, MSG_NOSIGNAL) != 1)
                    break;
            printf("echoed %lld\n", done);
        } else if (sscanf(line, "return %lld", &number) == 1) {
            long long done = 0;
            for (; done < number; done++) {
                struct sockaddr_in from;
                socklen_t len = sizeof from;
                long n = recvfrom(datagrams, block, sizeof block, 0, (void *)&from, &len);
                if (n < 0 || sendto(datagrams, block, n, 0, (void *)&from, len) != n)
                    break;
            }
            printf("returned %lld\n", done);
        } else if (sscanf(line, "measure %31s %lld", word, &number) == 2) {
            measure(strcmp(word, "stream") == 0 ? stream : datagrams, number);
        } else if (strcmp(line, "accept\n") == 0) {
            stream = accept(listener, NULL, NULL);
            if (stream < 0)
                failed();
            else {
                printf("accepted\n");
            }
        } else if (strcmp(line, "close\n") == 0) {
            close(stream);
            printf("closed\n");
        } else {
            printf("unknown\n");
        }
    }
    return 0;
}
