#!/usr/bin/env python3
"""A complete driver of the sanlab NIC in Python, standard library only, written from docs/device.md alone.

    minidriver.py SOCKET            two queue pairs of one function
    minidriver.py SOCKET_A SOCKET_B one queue pair in each of two functions, of one node or of two

The same tour as minidriver.c. Python has neither atomic read-modify-write nor fences, so this driver uses the ways
around them that the page offers:

* Every word that the device reads or writes on its own is accessed by one load or store of its size: memoryviews cast to
  32 and 64 bits do that, `struct.pack_into` may not.
* It is the only one that sets bits in its doorbell pages, so "or" may be a load and a store: a bit that the device took
  away meanwhile is at most set once too often.
* It kicks always, without a look at `parked`; the system call orders what was stored before.
* In place of a fence it reads a register: the answer comes from the device itself, so whatever the device did before is
  visible afterwards, and whatever it does later sees what was stored before. Where x86 keeps loads or stores in order by
  itself, `order` does nothing.
"""

import array
import errno
import fcntl
import mmap
import os
import platform
import select
import socket
import struct
import sys
import time

IOVA = 1 << 32
MEMORY_LEN = 1 << 20
ADMIN_DEPTH, CQ_DEPTH, EQ_DEPTH, SQ_DEPTH, RQ_DEPTH = 16, 64, 16, 32, 32
ADMIN_SQ_AT, ADMIN_CQ_AT, CQ_AT, EQ_AT = 0x0000, 0x1000, 0x2000, 0x3000
QUEUES_AT, QUEUES_LEN = 0x8000, 0x4000
SEND_AT, RECV_AT, TARGET_AT = 0x40000, 0x80000, 0xC0000
ADMIN_SLOT, CQ_SLOT, EQ_SLOT, QP_SLOT = 0, 1, 2, 3
CQ_VECTOR, EQ_VECTOR = 0, 1
PATIENCE = 20

# vfio-user commands and the structures they carry.
VERSION, DMA_MAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS = 1, 2, 4, 5, 6, 7, 8
REGION_READ, REGION_WRITE = 9, 10
HEADER = struct.Struct("<HHIII")
BAR0, BAR2, MSIX = 0, 2, 2
BAR2_LEN = 8 << 20

# Registers.
MAGIC, ABI, DRIVER_FEATURES, STATUS, RESET_GENERATION = 0x00, 0x04, 0x10, 0x18, 0x1C
ADMIN_SQ_BASE, ADMIN_CQ_BASE, ADMIN_DEPTH_REGISTER, KICK, ERROR_SYNDROME = 0x20, 0x28, 0x30, 0x80, 0xA0
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED = 1, 2, 4, 8, 128

# Admin commands.
IDENTIFY, PD_ALLOC, MR_REG, CQ_CREATE, EQ_CREATE, QP_CREATE, QP_MODIFY = 1, 2, 4, 6, 8, 10, 11
LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ = 1, 2, 4
RESET, INIT, RTR, RTS = 0, 1, 2, 3

# Work requests and completions.
NOP, SEND, RDMA_WRITE, RDMA_READ = 0, 1, 3, 5
SIGNALED, INLINE = 1, 8
WC_SEND, WC_RDMA_WRITE, WC_RDMA_READ, WC_RECV = 1, 3, 5, 0x80
SUCCESS, REM_ACCESS_ERR, RKEY_UNKNOWN, QP_ACCESS = 0, 10, 32, 2


def check(holds, what):
    if not holds:
        raise SystemExit(f"minidriver.py: {what}")


def phase(position, depth):
    return 2 if position & depth else 1


def line(slot):
    """Offset of a slot's doorbell line in BAR2."""
    return 0x8000 + 0x2000 * (slot // 64) + 0x1000 + 64 * (slot % 64)


class Words:
    """A mapping, word by word."""

    def __init__(self, memory):
        view = memoryview(memory)
        self.bytes, self.u32, self.u64 = view, view.cast("I"), view.cast("Q")

    def store32(self, at, value):
        self.u32[at // 4] = value & 0xFFFFFFFF

    def load64(self, at):
        return self.u64[at // 8]

    def store64(self, at, value):
        self.u64[at // 8] = value


class Function:
    """One attachment: its stream, its doorbells, its memory."""

    def __init__(self, path):
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stream.settimeout(PATIENCE)
        self.stream.connect(path)
        self.message_id = 0
        reply, _ = self.call(VERSION, struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0')
        major, minor = struct.unpack_from("<HH", reply)
        check(major == 0 and reply[-1] == 0, "the server speaks another version")
        _, flags, regions, _ = struct.unpack("<IIII", self.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))[0])
        check(flags & 2 and regions == 9, "not a PCI device")

        reply, fds = self.call(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, BAR2, 0, 0, 0), want_fds=1)
        _, flags, _, _, size, offset = struct.unpack("<IIIIQQ", reply)
        check(flags & 4 and size == BAR2_LEN, "BAR2 cannot be mapped")
        self.bar2 = Words(mmap.mmap(fds[0], size, offset=offset))
        os.close(fds[0])

        reply, fds = self.call(GET_REGION_IO_FDS, struct.pack("<IIII", 16 + 40, 0, BAR0, 0), want_fds=1)
        register, _, _, _, _, _, _ = struct.unpack_from("<QQIIIIQ", reply, 16)
        check(register == KICK, "no eventfd for KICK")
        self.kick_fd = fds[0]

        memory = os.memfd_create("minidriver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, MEMORY_LEN)
        fcntl.fcntl(memory, getattr(fcntl, "F_ADD_SEALS", 1033), getattr(fcntl, "F_SEAL_SHRINK", 2))
        self.memory = Words(mmap.mmap(memory, MEMORY_LEN))
        self.call(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, IOVA, MEMORY_LEN), fds=[memory])
        os.close(memory)

        _, flags, _, count = struct.unpack("<IIII", self.call(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, MSIX, 0))[0])
        check(flags & 1 and count >= 2, "no interrupts by eventfd")
        self.vectors = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
        self.call(SET_IRQS, struct.pack("<IIIII", 20, 4 | 32, MSIX, 0, 2), fds=self.vectors)

        self.admin_posted = self.cq_consumer = self.eq_consumer = self.queue_pairs = 0

    # ---- vfio-user ----

    def receive(self, length, fds):
        data = b""
        while len(data) < length:
            piece, control, _, _ = self.stream.recvmsg(length - len(data), socket.CMSG_SPACE(16 * 4))
            check(piece, "the device hung up")
            data += piece
            for level, kind, rights in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
                    fds.extend(numbers)
        return data

    def call(self, command, payload, fds=(), want_fds=0):
        self.message_id = (self.message_id + 1) & 0xFFFF
        message = HEADER.pack(self.message_id, command, HEADER.size + len(payload), 0, 0) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        check(self.stream.sendmsg([message], rights) == len(message), "a message went in pieces")
        got_fds = []
        reply_id, reply_command, size, flags, error = HEADER.unpack(self.receive(HEADER.size, got_fds))
        check((reply_id, reply_command, flags & 0xF) == (self.message_id, command, 1), "a reply to something else")
        check(not flags & 32, f"command {command} refused: {errno.errorcode.get(error, error)}")
        payload = self.receive(size - HEADER.size, got_fds)
        check(len(got_fds) == want_fds, "a reply with other descriptors than it should have")
        return payload, got_fds

    def read_register(self, offset, length=4):
        reply, _ = self.call(REGION_READ, struct.pack("<QII", offset, BAR0, length))
        return int.from_bytes(reply[16:], "little")

    def write_register(self, offset, value, length=4):
        self.call(REGION_WRITE, struct.pack("<QII", offset, BAR0, length) + value.to_bytes(length, "little"))

    def fence(self):
        self.read_register(MAGIC)

    def order(self):
        if platform.machine() != "x86_64":
            self.fence()

    def publish(self, at, value):
        """Stores a producer or consumer behind what it stands for."""
        self.order()
        self.bar2.store32(at, value)

    # ---- rings ----

    def ring(self, slot):
        uar = slot // 64
        head, summary = 0x8000 + 0x2000 * uar, 8 * (uar // 64)
        self.order()
        self.bar2.store64(head, self.bar2.load64(head) | 1 << slot % 64)
        self.order()
        self.bar2.store64(summary, self.bar2.load64(summary) | 1 << uar % 64)
        os.eventfd_write(self.kick_fd, 1)

    def take(self, base, position, depth, size, publish):
        """The element at a position, or None while it does not carry its phase."""
        at = base + (position & depth - 1) * size
        if self.memory.load64(at + publish) >> 56 != phase(position, depth):
            return None
        self.order()
        return bytes(self.memory.bytes[at : at + size])

    def wait(self, what, look):
        deadline = time.monotonic() + PATIENCE
        while (found := look()) is None:
            check(time.monotonic() < deadline, f"{what} does not come")
            # The device may share this core.
            os.sched_yield()
        return found

    def admin(self, opcode, body=b""):
        position = self.admin_posted
        self.admin_posted += 1
        at = ADMIN_SQ_AT + (position & ADMIN_DEPTH - 1) * 64
        self.memory.bytes[at : at + 64] = struct.pack("<HHI56s", opcode, 0, position, body)
        self.publish(line(ADMIN_SLOT), self.admin_posted)
        self.ring(ADMIN_SLOT)
        done = self.wait(f"admin command {opcode}", lambda: self.take(ADMIN_CQ_AT, position, ADMIN_DEPTH, 32, 24))
        self.publish(line(ADMIN_SLOT) + 8, position + 1)
        command_id, status, _, result, _, _ = struct.unpack("<IHHQQQ", done)
        check((command_id, status) == (position, 0), f"admin command {opcode}: status {status}")
        return result

    def start(self):
        check(self.read_register(MAGIC) == 0x4E4E4153, "MAGIC")
        check(self.read_register(ABI) >> 16 == 1, "another major version")
        self.write_register(STATUS, ACKNOWLEDGE)
        self.write_register(STATUS, ACKNOWLEDGE | DRIVER)
        self.write_register(DRIVER_FEATURES, 0, 8)
        self.write_register(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        check(self.read_register(STATUS) & FEATURES_OK, "features refused")
        self.write_register(ADMIN_SQ_BASE, IOVA + ADMIN_SQ_AT, 8)
        self.write_register(ADMIN_CQ_BASE, IOVA + ADMIN_CQ_AT, 8)
        self.write_register(ADMIN_DEPTH_REGISTER, ADMIN_DEPTH)
        self.write_register(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        if self.read_register(STATUS) & FAILED:
            check(False, f"start: syndrome {self.read_register(ERROR_SYNDROME)}")
        self.id = self.admin(IDENTIFY) & 0xFFFFFFFF
        self.pdn = self.admin(PD_ALLOC)
        access = LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ
        keys = self.admin(MR_REG, struct.pack("<QQIIII", IOVA + SEND_AT, MEMORY_LEN - SEND_AT, self.pdn, access, 0, 0))
        self.lkey, self.rkey = keys & 0xFFFFFFFF, keys >> 32
        self.eqn = self.admin(EQ_CREATE, struct.pack("<QII", IOVA + EQ_AT, EQ_DEPTH, EQ_SLOT))
        self.cqn = self.admin(CQ_CREATE, struct.pack("<QII", IOVA + CQ_AT, CQ_DEPTH, CQ_SLOT))

    def poll_cq(self):
        cqe = self.take(CQ_AT, self.cq_consumer, CQ_DEPTH, 32, 24)
        if cqe is not None:
            self.cq_consumer += 1
            self.publish(line(CQ_SLOT) + 8, self.cq_consumer)
        return cqe

    # ---- interrupts ----

    def arm(self, slot, vector, consumer):
        at = line(slot)
        self.bar2.store32(at + 0x18, consumer)
        self.bar2.store64(at + 0x10, self.bar2.load64(at + 0x10) | 1 << vector)
        self.fence()

    def sleep_until(self, vector):
        poll = select.poll()
        poll.register(self.vectors[vector], select.POLLIN)
        check(poll.poll(PATIENCE * 1000), "no interrupt")
        check(os.eventfd_read(self.vectors[vector]) == 1, "more than one interrupt")


class QueuePair:
    """A queue pair and the places of its rings."""

    def __init__(self, function):
        f = self.function = function
        self.sq = QUEUES_AT + f.queue_pairs * QUEUES_LEN
        self.rq = self.sq + QUEUES_LEN // 2
        self.slot = QP_SLOT + f.queue_pairs
        f.queue_pairs += 1
        self.sq_producer = self.rq_producer = self.sq_free = 0
        access = LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ
        body = struct.pack("<QQIIIIIIII", IOVA + self.sq, IOVA + self.rq, SQ_DEPTH, RQ_DEPTH, f.pdn, f.cqn, f.cqn,
                           self.slot, 0, access)
        self.qpn = f.admin(QP_CREATE, body)

    def modify(self, state, peer):
        function, qpn = (peer.function.id, peer.qpn) if state == RTR else (0, 0)
        self.function.admin(QP_MODIFY, struct.pack("<IIIII", self.qpn, state, function, qpn, 7 if state == RTS else 0))

    def post_receive(self, wr_id, at, length):
        f = self.function
        to = self.rq + (self.rq_producer & RQ_DEPTH - 1) * 64
        f.memory.bytes[to : to + 64] = struct.pack("<QB7xQII32x", wr_id, 1, IOVA + at, length, f.lkey)
        self.rq_producer += 1
        f.publish(line(self.slot) + 4, self.rq_producer)
        f.ring(self.slot)

    def post_blocks(self, wqe):
        """Posts a WQE of whole blocks; a NOP fills up to the end of the ring where it would wrap."""
        f, count = self.function, len(wqe) // 64
        left = SQ_DEPTH - (self.sq_producer & SQ_DEPTH - 1)
        fill = left if left < count else 0
        check(self.sq_producer + fill + count - self.sq_free <= SQ_DEPTH, "the send queue is full")
        if fill:
            to = self.sq + (self.sq_producer & SQ_DEPTH - 1) * 64
            f.memory.bytes[to : to + 64] = struct.pack("<BBBB60x", NOP, 0, fill, 0)
            self.sq_producer += fill
        to = self.sq + (self.sq_producer & SQ_DEPTH - 1) * 64
        f.memory.bytes[to : to + len(wqe)] = wqe
        self.sq_producer += count
        f.publish(line(self.slot), self.sq_producer)
        f.ring(self.slot)

    def post(self, opcode, wr_id, at, length, remote=0, rkey=0):
        head = struct.pack("<BBBBIQQII", opcode, SIGNALED, 1, 1, 0, wr_id, remote, rkey, length)
        self.post_blocks(head + struct.pack("<QII16x", IOVA + at, length, self.function.lkey))

    def post_inline(self, wr_id, data):
        blocks = 1 + max(0, len(data) - 32 + 63) // 64
        head = struct.pack("<BBBBIQQII", SEND, SIGNALED | INLINE, blocks, len(data), 0, wr_id, 0, 0, len(data))
        self.post_blocks((head + data).ljust(64 * blocks, b"\0"))

    def expect(self, opcode, wr_id, status=SUCCESS):
        """The next completion of the function, which has to be this one: its length, sender and syndrome."""
        cqe = self.function.wait(f"completion {wr_id}", self.function.poll_cq)
        got_id, length, _, qpn_opcode, sender, publish = struct.unpack("<QIIIIQ", cqe)
        got = (got_id, qpn_opcode & 0xFFFFFF, qpn_opcode >> 24, publish >> 32 & 0xFF)
        syndrome = publish >> 40 & 0xFFFF
        check(got == (wr_id, self.qpn, opcode, status), f"completion {got}, syndrome {syndrome}")
        if opcode < WC_RECV:
            self.sq_free = publish & 0xFFFFFFFF
        return length, sender & 0xFFFFFF, syndrome


def pattern(length, seed):
    return (seed.to_bytes(4, "little") + bytes(range(251))) * (length // 255) + bytes(length % 255)


def tour(a, b):
    fa, fb, length = a.function, b.function, 100_000

    def put(function, at, data):
        function.memory.bytes[at : at + len(data)] = data

    def get(function, at, n):
        return bytes(function.memory.bytes[at : at + n])

    data = pattern(length, 1)
    put(fa, SEND_AT, data)
    b.post_receive(100, RECV_AT, length)
    a.post(SEND, 1, SEND_AT, length)
    got, sender, _ = b.expect(WC_RECV, 100)
    check((got, sender) == (length, a.qpn) and get(fb, RECV_AT, length) == data, "SEND changed the message")
    a.expect(WC_SEND, 1)
    print(f"ok send {length} bytes")

    data = pattern(length, 2)
    put(fa, SEND_AT, data)
    a.post(RDMA_WRITE, 2, SEND_AT, length, IOVA + TARGET_AT, fb.rkey)
    a.expect(WC_RDMA_WRITE, 2)
    check(get(fb, TARGET_AT, length) == data, "RDMA WRITE changed the bytes")
    print(f"ok rdma write {length} bytes")

    data = pattern(length, 3)
    put(fb, TARGET_AT, data)
    a.post(RDMA_READ, 3, RECV_AT, length, IOVA + TARGET_AT, fb.rkey)
    check(a.expect(WC_RDMA_READ, 3)[0] == length, "length of the READ")
    check(get(fa, RECV_AT, length) == data, "RDMA READ changed the bytes")
    print(f"ok rdma read {length} bytes")

    rounds = 1000
    for i in range(rounds):
        data = pattern(1 + i % 224, i)
        source, target = (b, a) if i & 1 else (a, b)
        target.post_receive(1000 + i, RECV_AT, 224)
        source.post_inline(i, data)
        got, _, _ = target.expect(WC_RECV, 1000 + i)
        check(get(target.function, RECV_AT, got) == data, "inline data")
        source.expect(WC_SEND, i)
    print(f"ok {rounds} inline messages over {a.sq_producer // SQ_DEPTH} laps of the send rings")

    fb.arm(CQ_SLOT, CQ_VECTOR, fb.cq_consumer)
    check(fb.poll_cq() is None, "a completion nobody asked for")
    b.post_receive(200, RECV_AT, 64)
    a.post_inline(4, b"wake up")
    fb.sleep_until(CQ_VECTOR)
    b.expect(WC_RECV, 200)
    a.expect(WC_SEND, 4)
    check(get(fb, RECV_AT, 7) == b"wake up", "the message that woke us")
    print(f"ok interrupt on vector {CQ_VECTOR}")

    fb.arm(EQ_SLOT, EQ_VECTOR, fb.eq_consumer)
    a.post(RDMA_READ, 5, RECV_AT, 8, IOVA + TARGET_AT, fb.rkey ^ 0x80)
    _, _, syndrome = a.expect(WC_RDMA_READ, 5, REM_ACCESS_ERR)
    check(syndrome == RKEY_UNKNOWN, "syndrome of a wrong key")
    fb.sleep_until(EQ_VECTOR)
    event = fb.take(EQ_AT, fb.eq_consumer, EQ_DEPTH, 16, 8)
    check(event is not None, "no event")
    source, _, publish = struct.unpack("<IIQ", event)
    fb.eq_consumer += 1
    fb.publish(line(EQ_SLOT) + 8, fb.eq_consumer)
    check(fa is fb or (publish & 0xFFFF, source) == (QP_ACCESS, b.qpn), "not QP_ACCESS of our QP")
    print(f"ok refused with syndrome {syndrome}, event {publish & 0xFFFF}")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: minidriver.py SOCKET [SOCKET]")
    functions = [Function(path) for path in sys.argv[1:]]
    for function in functions:
        function.start()
        print(f"ok function {function.id}")
    a, b = QueuePair(functions[0]), QueuePair(functions[-1])
    for state in (INIT, RTR, RTS):
        a.modify(state, b)
        b.modify(state, a)
    print(f"ok queue pairs {a.qpn} and {b.qpn} connected")
    tour(a, b)
    for function in functions:
        generation = function.read_register(RESET_GENERATION)
        function.write_register(STATUS, 0)
        check(function.read_register(STATUS) == 0, "STATUS after a reset")
        check(function.read_register(RESET_GENERATION) == generation + 1, "generation of the reset")
        function.stream.close()
    print("ok reset\ndone")


if __name__ == "__main__":
    main()
