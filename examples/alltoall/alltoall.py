"""Every node sends blocks to every other one; each block is checked, and each node tells at its end what it got from whom.

BLOCKS: how many to each peer at least. UNTIL: go on until this file is there. It begins when start.py says so, which is when everybody listens.
"""

import hashlib
import os
import random
import socket
import struct
import threading
import time

PORT = 7100
SIZE = 16 * 1024
HEAD = struct.Struct("!HIQ32s")  # sender, length, number, SHA-256; length 0 is the end

own = int(os.environ["SANLAB_INDEX"])
count = int(os.environ["SANLAB_COUNT"])
group = os.environ["SANLAB_NODE"].removesuffix(str(own))
blocks = int(os.environ.get("BLOCKS", "8"))
until = os.environ.get("UNTIL")
peers = [peer for peer in range(1, count + 1) if peer != own]
received = dict.fromkeys(peers, 0)
failures = []
started = threading.Event()


def content(sender, receiver, number):
    """What a block holds; both ends know it."""
    return random.Random(f"{sender} {receiver} {number}").randbytes(SIZE)


def send_to(peer):
    started.wait()
    with socket.create_connection((f"{group}{peer}", PORT)) as stream:
        number = 0
        while number < blocks or (until and not os.path.exists(until)):
            block = content(own, peer, number)
            stream.sendall(HEAD.pack(own, len(block), number, hashlib.sha256(block).digest()) + block)
            number += 1
            if number >= blocks:
                time.sleep(0.01)
        stream.sendall(HEAD.pack(own, 0, number, bytes(32)))
        stream.recv(1)  # the other end has everything


def exactly(stream, size):
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"{len(data)} of {size} bytes")
    return data


def receive(connection):
    with connection, connection.makefile("rb") as stream:
        if stream.peek(2)[:2] == bytes(2):
            started.set()
            return
        expected = 0
        while True:
            sender, size, number, digest = HEAD.unpack(exactly(stream, HEAD.size))
            assert number == expected, f"block {number} of n{sender} where {expected} belongs"
            if size == 0:
                return
            block = exactly(stream, size)
            assert hashlib.sha256(block).digest() == digest, f"block {number} of n{sender} is damaged"
            assert block == content(sender, own, number), f"block {number} of n{sender} is another"
            received[sender] += size
            expected += 1


def guarded(work, *arguments):
    def run():
        try:
            work(*arguments)
        except Exception as error:
            failures.append(f"{work.__name__}{arguments[:1]}: {error!r}")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


listener = socket.create_server(("", PORT), backlog=count)
threads = [guarded(send_to, peer) for peer in peers]
for _ in range(count):  # the peers, and start.py
    threads.append(guarded(receive, listener.accept()[0]))
for thread in threads:
    thread.join()
for failure in failures:
    print("failed:", failure)
print("row", own, " ".join(str(received.get(peer, 0)) for peer in range(1, count + 1)))
raise SystemExit(bool(failures))
