"""An ordinary socket program that a test leads step by step: a command a line in, an answer a line out."""
import errno
import select
import socket
import sys

sockets = {}


def content(count):
    block = bytes(i % 251 for i in range(251 * 512))
    return (block * (count // len(block) + 1))[:count]


def listen(name, host, port):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, int(port)))
    s.listen(16)
    sockets[name] = s
    return "listening %s %d" % s.getsockname()[:2]


def accept(name, listener):
    sockets[name], peer = sockets[listener].accept()
    return "accepted %s %d" % peer[:2]


def poll_accept(name, listener):
    poll = select.poll()
    poll.register(sockets[listener], select.POLLIN)
    poll.poll()
    return accept(name, listener)


def connect(name, host, port):
    sockets[name] = socket.create_connection((host, int(port)))
    return "connected %s %d" % sockets[name].getpeername()[:2]


def local(name):
    return "local %s %d" % sockets[name].getsockname()[:2]


def send(name, count):
    sockets[name].sendall(content(int(count)))
    return "sent " + count


def recv(name, count):
    """Receives this many bytes of the content, or what comes before the end of the stream."""
    return take(name, int(count))


def drain(name):
    """Receives until the stream ends, and tells how it ended."""
    return take(name, None)


def take(name, limit):
    got = bytearray()
    end = "more"
    while limit is None or len(got) < limit:
        try:
            piece = sockets[name].recv(65536 if limit is None else min(65536, limit - len(got)))
        except OSError as error:
            end = errno.errorcode[error.errno]
            break
        if not piece:
            end = "eof"
            break
        got += piece
    right = "right" if got == content(len(got)) else "wrong"
    return "received %d %s %s" % (len(got), right, end)


def patience(name, milliseconds):
    sockets[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(milliseconds))
    return "patient for " + milliseconds


def keepalive(name, idle, interval, count):
    s = sockets[name]
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(idle))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(interval))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(count))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return "alive after " + idle


def shutdown(name):
    sockets[name].shutdown(socket.SHUT_WR)
    return "shut"


def close(name):
    sockets.pop(name).close()
    return "closed"


commands = [listen, accept, poll_accept, connect, local, send, recv, drain, patience, keepalive, shutdown, close]
commands = {command.__name__: command for command in commands}
for line in sys.stdin:
    word, *arguments = line.split()
    try:
        answer = commands[word](*arguments)
    except OSError as error:
        answer = "error " + errno.errorcode[error.errno]
    print(answer, flush=True)
