"""Checked traffic for a campaign of faults: both ends know every byte of every stream, and say WRONG where one differs.

serve PORT WORKERS        accepts in forked workers, which answer by themselves, in a thread or in a fork of their own
ask SEED PORT NODE...     asks one node after the other until SIGTERM, then ends what it has begun

A request is a header (key, length up, length down) and a stream; the answer is a stream. Both follow from the key.
"""
import ctypes
import os
import random
import signal
import socket
import struct
import sys
import threading
import time

HEADER = struct.Struct("<QII")
BLOCK = 65521
PR_SET_PDEATHSIG = 1


def tell(line):
    os.write(1, (line + "\n").encode())


def stream(key):
    block = random.Random(key).randbytes(BLOCK)
    return block + block


def send(connection, key, length, pieces):
    content = stream(key)
    sent = 0
    while sent < length:
        at = sent % BLOCK
        piece = min(length - sent, BLOCK, pieces.randrange(1, BLOCK))
        connection.sendall(content[at:at + piece])
        sent += piece


def receive(connection, key, length):
    """Returns whether the whole stream came."""
    content = stream(key)
    got = 0
    while got < length:
        piece = connection.recv(min(length - got, BLOCK))
        if not piece:
            return False
        at = got % BLOCK
        if piece != content[at:at + len(piece)]:
            tell("WRONG byte of stream %x behind %d of %d" % (key, got, length))
            os._exit(9)
        got += len(piece)
    return True


def answer(connection):
    with connection:
        try:
            header = b""
            while len(header) < HEADER.size:
                piece = connection.recv(HEADER.size - len(header))
                if not piece:
                    return
                header += piece
            key, up, down = HEADER.unpack(header)
            if receive(connection, key, up):
                send(connection, ~key & (1 << 64) - 1, down, random.Random(key))
        except OSError:
            pass  # Its peer is gone.


def work(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            continue
        way = random.randrange(3)
        if way == 0:
            answer(connection)
        elif way == 1:
            threading.Thread(target=answer, args=(connection,), daemon=True).start()
        elif os.fork() == 0:
            listener.close()
            answer(connection)
            os._exit(0)
        else:
            connection.close()


def serve(port, workers):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            listener.bind(("", int(port)))
            listener.listen(128)
            break
        except OSError:
            time.sleep(0.01)  # The processes of a killed predecessor end after it.
    libc = ctypes.CDLL(None)
    master = os.getpid()

    def start():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == master:
                work(listener)
            os._exit(0)  # It was killed before this could be told.
        return pid

    ours = {start() for _ in range(int(workers))}

    def end(*_):
        for pid in ours:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    tell("ready")
    while True:
        pid, _ = os.wait()
        ours.discard(pid)
        ours.add(start())


def ask(seed, port, *nodes):
    chance = random.Random(int(seed))
    asked_to_end = []
    tell("ready")
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(True))
    while not asked_to_end:
        key, up, down = chance.getrandbits(64), chance.randrange(300_000), chance.randrange(300_000)
        child = os.fork() if chance.randrange(8) == 0 else None
        if child:
            os.waitpid(child, 0)
            continue
        try:
            with socket.create_connection((chance.choice(nodes), int(port))) as connection:
                connection.sendall(HEADER.pack(key, up, down))
                send(connection, key, up, chance)
                if chance.randrange(2):
                    connection.shutdown(socket.SHUT_WR)
                whole = receive(connection, ~key & (1 << 64) - 1, down)
                tell("whole" if whole else "cut off")
        except OSError as error:
            tell("error %s" % error)
        if child == 0:
            os._exit(0)


{"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
