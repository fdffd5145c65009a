#!/usr/bin/env python3
"""Walks every vfio-user command of a device with a raw socket: sound, cut, lengthened, oversized, out of order, without descriptors.

Usage: walk.py SOCKET. Standard library only; shares no code with the device or any client of it. Prints one line per
chapter, exits with 1 at the first answer that is not the expected one.
"""

import array
import errno
import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

HEADER = struct.Struct("<HHIII")
VERSION, DMA_MAP, DMA_UNMAP, INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS = 1, 2, 3, 4, 5, 6, 7, 8
READ, WRITE, RESET, WRITE_MULTI = 9, 10, 13, 15
HELLO = struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'
EINVAL, ENOTSUP, EMSGSIZE = errno.EINVAL, errno.EOPNOTSUPP, errno.EMSGSIZE
IOVA = 1 << 32


def check(holds, what):
    if not holds:
        raise SystemExit(f"walk.py: {what}")


class Client:
    def __init__(self, path, hello=True):
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stream.settimeout(60)
        self.stream.connect(path)
        self.id = 0
        if hello:
            check(self.call(VERSION, HELLO)[0] == 0, "VERSION")

    def send(self, data, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.stream.sendmsg([data], rights)
        if sent < len(data):
            self.stream.sendall(data[sent:])

    def message(self, command, payload, flags=0, size=None):
        self.id = (self.id + 1) & 0xFFFF
        size = HEADER.size + len(payload) if size is None else size
        return HEADER.pack(self.id, command, size, flags, 0) + payload

    def receive(self, length, fds):
        data = b""
        while len(data) < length:
            try:
                piece, control, _, _ = self.stream.recvmsg(length - len(data), socket.CMSG_SPACE(16 * 4))
            except ConnectionResetError:
                return None
            if not piece:
                return None
            data += piece
            for level, kind, rights in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
                    fds.extend(numbers)
        return data

    def reply(self):
        """Id, command, errno, payload and descriptors of the next reply; None at the end of the connection."""
        fds = []
        header = self.receive(HEADER.size, fds)
        if header is None:
            return None
        message_id, command, size, flags, error = HEADER.unpack(header)
        check(flags & 0xF == 1 and HEADER.size <= size <= 65536, f"reply header {header.hex()}")
        check(bool(flags & 32) == bool(error), "error flag without errno, or the other way round")
        check(not error or size == HEADER.size, "an error reply with a payload")
        return message_id, command, error, self.receive(size - HEADER.size, fds), fds

    def call(self, command, payload=b"", fds=(), want_fds=0):
        self.send(self.message(command, payload), fds)
        reply = self.reply()
        check(reply is not None, f"command {command} ended the connection")
        check(reply[:2] == (self.id, command), f"a reply to {reply[:2]} instead of {(self.id, command)}")
        check(len(reply[4]) == (0 if reply[2] else want_fds), f"{len(reply[4])} descriptors with command {command}")
        return reply[2], reply[3], reply[4]

    def expect(self, error, command, payload=b"", fds=(), what=""):
        got, data, _ = self.call(command, payload, fds)
        names = errno.errorcode.get(got, got), errno.errorcode.get(error, error)
        check(got == error, f"command {command} {what}: {names[0]} instead of {names[1]}")
        return data

    def ends(self):
        while self.reply() is not None:
            pass

    def in_step(self):
        """The stream is where it should be: a register answers with its value."""
        data = self.expect(0, READ, struct.pack("<QII", 0, 0, 4), what="in step")
        check(data[16:] == b"SANN", "MAGIC after a refused message")


def memfd(length, seal=True):
    fd = os.memfd_create("walk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, length)
    if seal:
        fcntl.fcntl(fd, getattr(fcntl, "F_ADD_SEALS", 1033), 2)
    return fd


def dma_map(address, size, flags=3, offset=0, argsz=32):
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def irq_set(flags, start=0, count=1, index=2, data=b"", argsz=None):
    return struct.pack("<IIIII", 20 + len(data) if argsz is None else argsz, flags, index, start, count) + data


def sound():
    """A sound payload of every command, whether bytes may follow it, and whether the device does it without a descriptor."""
    yield INFO, struct.pack("<IIII", 16, 0, 0, 0), False
    yield REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0), True
    yield IO_FDS, struct.pack("<IIII", 16, 0, 1, 0), True
    yield IRQ_INFO, struct.pack("<IIII", 16, 0, 2, 0), False
    yield SET_IRQS, irq_set(1 | 32), True
    yield DMA_MAP, dma_map(1 << 40, 4096), False
    yield DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 1 << 40, 4096), True
    yield READ, struct.pack("<QII", 0, 7, 4), False
    yield WRITE, struct.pack("<QII", 0x3C, 7, 1) + b"\5", False
    yield WRITE_MULTI, struct.pack("<QQIIQ", 1, 0x3C, 7, 1, 6), False
    yield RESET, b"", False


def versions(path):
    for payload, error in [
        (HELLO, 0),
        (HELLO + b"\0\0", 0),
        (HELLO + b"\xaa\xbb", EINVAL),
        (struct.pack("<HH", 0, 1), 0),
        (struct.pack("<HH", 0, 77) + b"{}\0", 0),
        (struct.pack("<HH", 1, 0), errno.EPROTONOSUPPORT),
        (struct.pack("<HH", 0, 1) + b"{}", EINVAL),
        (struct.pack("<HH", 0, 1) + b"\0", EINVAL),
        (struct.pack("<HH", 0, 1) + b"[]\0", EINVAL),
        (struct.pack("<HH", 0, 1) + b'{"capabilities":1}\0', EINVAL),
        (struct.pack("<HH", 0, 1) + b"{" * 5000 + b"\0", EINVAL),
        (b"\0\0\1", EINVAL),
        (b"", EINVAL),
    ]:
        client = Client(path, hello=False)
        data = client.expect(error, VERSION, payload, what=repr(payload[:20]))
        if error:
            client.ends()
        else:
            major, minor = struct.unpack_from("<HH", data)
            check((major, minor) == (0, 1) and data.endswith(b"}\0") and b"max_msg_fds" in data, "answer to VERSION")
            client.expect(EINVAL, VERSION, HELLO, what="a second time")
            client.in_step()
    for command, payload, _ in sound():
        client = Client(path, hello=False)
        client.send(client.message(command, payload))
        check(client.reply()[2] == EINVAL, f"command {command} before VERSION")
        client.ends()


def lengths(path):
    client = Client(path)
    count = 0
    for command, payload, may_grow in sound():
        client.expect(0, command, payload, what="sound")
        for cut in range(len(payload)):
            client.expect(EINVAL, command, payload[:cut], what=f"cut to {cut} bytes")
            count += 1
        if not may_grow:
            for more in (1, 8, 60000):
                client.expect(EINVAL, command, payload + bytes(more), what=f"with {more} bytes more")
                count += 1
        # A peer's idea of its own size, where there is one.
        if command not in (READ, WRITE, WRITE_MULTI, RESET):
            for argsz in (0, 1, 15):
                client.expect(EINVAL, command, struct.pack("<I", argsz) + payload[4:], what=f"argsz {argsz}")
                count += 1
        if command == DMA_MAP:
            client.expect(0, DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 0), what="all")
            client.expect(0, DMA_MAP, payload, what="again")
        client.in_step()
    return count


def framing(path):
    for size, error in [(0, EINVAL), (1, EINVAL), (15, EINVAL), (65537, EMSGSIZE), (1 << 30, EMSGSIZE), (0xFFFFFFFF, EMSGSIZE)]:
        for command in (VERSION, READ, 999):
            client = Client(path)
            client.send(client.message(command, b"", size=size))
            check(client.reply()[2] == error, f"size {size}")
            client.ends()
    for kind in range(2, 16):
        client = Client(path)
        client.send(client.message(INFO, b"", flags=kind))
        check(client.reply()[2] == EINVAL, f"message type {kind}")
        client.ends()
    client = Client(path)
    # Unknown commands with every size of payload: all of it is taken, none of it is done, the stream stays in step.
    for command in (0, 11, 12, 14, 16, 17, 999, 65535):
        for length in (0, 1, 16, 4096, 65520):
            client.expect(ENOTSUP, command, bytes(length), what="unknown")
        client.in_step()
    # Replies nobody asked for are dropped, and commands that want no reply get none, good or bad.
    for command, payload, _ in sound():
        client.send(client.message(command, payload, flags=1))
        client.send(client.message(command, payload + b"x", flags=16))
    client.send(client.message(RESET, b"", flags=16))
    client.in_step()
    # A pipeline with ids in no order and twice the same: answers come in the order of the commands.
    ids = [9, 3, 3, 65535, 0, 9]
    read = struct.pack("<QII", 0, 0, 4)
    client.send(b"".join(HEADER.pack(i, READ, 32, 0, 0) + read for i in ids))
    check([client.reply()[0] for _ in ids] == ids, "order of a pipeline")
    for byte in client.message(READ, read):
        client.send(bytes([byte]))
    check(client.reply()[0] == client.id, "a message in single bytes")
    client.in_step()


def descriptors(path):
    client = Client(path)
    read_end, write_end = os.pipe()
    spare = memfd(4096)
    for command, payload, _ in sound():
        if command != DMA_MAP:
            client.expect(EINVAL, command, payload, [spare], what="with a descriptor that it does not take")
    client.expect(EINVAL, DMA_MAP, dma_map(IOVA, 4096), [spare, spare], what="with two")
    client.expect(errno.EMFILE, DMA_MAP, dma_map(IOVA, 4096), [spare] * 17, what="with seventeen")
    client.expect(errno.EMFILE, 999, b"", [spare] * 100, what="unknown, with a hundred")
    for fd, what in [(write_end, "a pipe"), (memfd(4096, seal=False), "unsealed"), (memfd(4095), "too small")]:
        error, _, _ = client.call(DMA_MAP, dma_map(IOVA, 4096), [fd])
        check(error, f"DMA_MAP of a descriptor that is {what}")
    eventfds = [os.eventfd(0) for _ in range(3)]
    client.expect(EINVAL, SET_IRQS, irq_set(4 | 32, count=2), [eventfds[0]], what="with too few eventfds")
    client.expect(EINVAL, SET_IRQS, irq_set(4 | 32), [eventfds[0], eventfds[1]], what="with too many")
    client.expect(EINVAL, SET_IRQS, irq_set(4 | 32, count=2), [eventfds[0], read_end], what="with a pipe among them")
    client.expect(0, SET_IRQS, irq_set(1 | 32, count=64), what="trigger")
    check(not any(ready(fd) for fd in eventfds), "a refused eventfd was connected")
    client.in_step()


def ready(fd):
    return bool(select.select([fd], [], [], 0)[0])


def windows(path):
    client = Client(path)
    memory = memfd(1 << 20)
    client.expect(0, DMA_MAP, dma_map(IOVA, 1 << 20), [memory], what="sealed memory")
    client.expect(0, DMA_MAP, dma_map(2 * IOVA, 4096), what="without a descriptor: mapped, not accessible")
    top = (1 << 64) - 4096
    for address, size, offset, flags, what in [
        (IOVA, 4096, 0, 3, "overlap at the start"),
        (IOVA + (1 << 20) - 4096, 8192, 0, 3, "overlap at the end"),
        (3 * IOVA, 0, 0, 3, "nothing"),
        (3 * IOVA + 1, 4096, 0, 3, "address not aligned"),
        (3 * IOVA, 4097, 0, 3, "length not aligned"),
        (3 * IOVA, 4096, 1, 3, "offset not aligned"),
        (3 * IOVA, 1 << 20, 4096, 3, "end behind the memory"),
        (3 * IOVA, 4096, top, 3, "offset that wraps"),
        (top, 8192, 0, 3, "address that wraps"),
        (3 * IOVA, 4096, 0, 0, "neither read nor write"),
        (3 * IOVA, 4096, 0, 4, "unknown flag"),
    ]:
        error, _, _ = client.call(DMA_MAP, dma_map(address, size, flags, offset), [memory])
        check(error, f"DMA_MAP: {what}")
        client.in_step()
    unmap = lambda flags, address, size: struct.pack("<IIQQ", 24, flags, address, size)
    client.expect(ENOTSUP, DMA_UNMAP, unmap(1, IOVA, 1 << 20), what="with a dirty bitmap")
    client.expect(EINVAL, DMA_UNMAP, unmap(2, IOVA, 1 << 20), what="all, and a range")
    for address, size in [(3 * IOVA, 4096), (IOVA + 4096, 4096), (top, 8192), (0, 0)]:
        error, _, _ = client.call(DMA_UNMAP, unmap(0, address, size))
        check(error, f"DMA_UNMAP of {size} at {address:#x}")
    request = unmap(0, IOVA, 1 << 20)
    check(client.expect(0, DMA_UNMAP, request, what="a window") == request, "DMA_UNMAP does not repeat the request")
    client.expect(0, DMA_UNMAP, unmap(2, 0, 0), what="all")


def regions(path):
    client = Client(path)
    sizes = {}
    for index in range(9):
        want = 1 if index == 2 else 0
        error, data, _ = client.call(REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0), want_fds=want)
        argsz, flags, got, _, size, _ = struct.unpack("<IIIIQQ", data)
        check((error, argsz, got) == (0, 32, index) and bool(flags & 4) == bool(want), f"region {index}")
        check((flags == 0) == (size == 0), f"region {index} with flags {flags} and {size} bytes")
        sizes[index] = size
    for index in (9, 100, 0x7FFFFFFF, 0xFFFFFFFF):
        error, _, _ = client.call(REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
        check(error, f"region {index} exists")
    for index, size in sizes.items():
        for offset, count in [(size, 4), (size - 3 if size else 0, 4), ((1 << 64) - 4, 8), ((1 << 64) - 1, 4), (0, 65000), (0, 1 << 31)]:
            if size and offset + count <= size:
                continue
            client.expect(EINVAL, READ, struct.pack("<QII", offset, index, count), what=f"region {index} at {offset:#x}")
            data = bytes(min(count, 64))
            client.expect(EINVAL, WRITE, struct.pack("<QII", offset, index, count) + data, what=f"region {index}")
        client.in_step()
    # A write that fails is answered as failed, and nothing of it has happened.
    client.expect(0, WRITE, struct.pack("<QII", 0x3C, 7, 1) + b"\7")
    entry = lambda offset, value, count=1: struct.pack("<QIIQ", offset, 7, count, value)
    for payload in [
        struct.pack("<Q", 2) + entry(0x3C, 1),
        struct.pack("<Q", 1 << 61) + entry(0x3C, 1),
        struct.pack("<Q", 1) + entry(0x3C, 1, 9),
        struct.pack("<Q", 1) + entry(0x3C, 1) + b"x",
        struct.pack("<Q", 1) + entry(256, 1),
    ]:
        client.expect(EINVAL, WRITE_MULTI, payload, what="malformed")
    check(client.expect(0, READ, struct.pack("<QII", 0x3C, 7, 1))[16:] == b"\7", "a refused write changed something")
    # Room for the descriptor of the kick: told first, given then.
    error, data, _ = client.call(IO_FDS, struct.pack("<IIII", 16, 0, 0, 0))
    argsz, _, _, count = struct.unpack("<IIII", data)
    check((error, argsz, count) == (0, 56, 1), "room for the ioeventfd")
    client.call(IO_FDS, struct.pack("<IIII", argsz, 0, 0, 0), want_fds=1)
    client.expect(EINVAL, IO_FDS, struct.pack("<IIII", 56, 0, 9, 0), what="of a region that does not exist")
    return sizes


def interrupts(path):
    client = Client(path)
    for index in range(6):
        error, data, _ = client.call(IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        if index == 5:
            check(error == EINVAL, "interrupt type 5")
            continue
        _, flags, _, count = struct.unpack("<IIII", data)
        check((flags, count) == ((3, 64) if index == 2 else (0, 0)), f"interrupt type {index}")
        if index != 2:
            client.expect(EINVAL, SET_IRQS, irq_set(1 | 32, index=index), what=f"type {index} has no vectors")
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    client.expect(0, SET_IRQS, irq_set(4 | 32, start=8, count=4), fds, what="connect")

    def fired():
        return [os.eventfd_read(fd) if ready(fd) else 0 for fd in fds]

    client.expect(0, SET_IRQS, irq_set(1 | 32, start=8, count=4), what="trigger")
    check(fired() == [1, 1, 1, 1], "trigger by DATA_NONE")
    client.expect(0, SET_IRQS, irq_set(2 | 32, start=8, count=4, data=b"\0\1\0\xff"), what="trigger some")
    check(fired() == [0, 1, 0, 1], "trigger by DATA_BOOL")
    client.expect(0, SET_IRQS, irq_set(1 | 8, start=9, count=2), what="mask")
    client.expect(0, SET_IRQS, irq_set(1 | 32, start=8, count=4))
    check(fired() == [1, 0, 0, 1], "a masked vector fired")
    pending = client.expect(0, READ, struct.pack("<QII", 0x800, 4, 8))[16:]
    check(int.from_bytes(pending, "little") == 0b110 << 8, "pending bits")
    client.expect(0, SET_IRQS, irq_set(2 | 16, start=9, count=2, data=b"\0\1"), what="unmask one")
    check(fired() == [0, 0, 1, 0], "the pending one came")
    client.expect(0, WRITE, struct.pack("<QII", 9 * 16 + 12, 4, 4) + bytes(4), what="unmask in the table")
    check(fired() == [0, 1, 0, 0], "the pending one came by the table")
    client.expect(0, SET_IRQS, irq_set(4 | 32, start=9, count=1), what="disconnect one")
    client.expect(0, SET_IRQS, irq_set(1 | 32, start=8, count=4))
    check(fired() == [1, 0, 1, 1], "a disconnected vector fired")
    client.expect(0, SET_IRQS, irq_set(1 | 32, count=0), what="disconnect all")
    client.expect(0, SET_IRQS, irq_set(1 | 32, start=8, count=4))
    check(fired() == [0, 0, 0, 0], "a vector fired after all were disconnected")
    answers = 0
    for flags in range(128):
        kinds, actions = [flags & bit for bit in (1, 2, 4)], [flags & bit for bit in (8, 16, 32)]
        is_sound = flags < 64 and sum(map(bool, kinds)) == 1 and sum(map(bool, actions)) == 1
        data = b"\1" if flags & 2 else b""
        error, _, _ = client.call(SET_IRQS, irq_set(flags, data=data))
        want = EINVAL if not is_sound else ENOTSUP if flags & 4 and not flags & 32 else 0
        check(error == want, f"SET_IRQS with flags {flags:#x}: {error}")
        answers += 1
    for start, count in [(64, 1), (63, 2), (0, 65), (1, 0xFFFFFFFF), (0xFFFFFFFF, 1)]:
        client.expect(EINVAL, SET_IRQS, irq_set(1 | 32, start, count), what=f"{count} vectors from {start}")
    return answers


def configuration(path, sizes):
    """Reads configuration space as lspci does: header, BARs by sizing, the list of capabilities and what they say."""
    client = Client(path)
    space = client.expect(0, READ, struct.pack("<QII", 0, 7, 256))[16:]
    u8 = lambda at: space[at]
    u16 = lambda at: struct.unpack_from("<H", space, at)[0]
    u32 = lambda at: struct.unpack_from("<I", space, at)[0]
    check((u16(0), u16(2)) == (0x5A17, 1) and u32(8) >> 8 == 0x020700, "identity")
    check(u8(0x0E) & 0x7F == 0 and u16(6) & 0x10, "header type 0 with a list of capabilities")

    for bar in range(6):
        at = 0x10 + 4 * bar
        client.expect(0, WRITE, struct.pack("<QII", at, 7, 4) + b"\xff" * 4)
    sized = client.expect(0, READ, struct.pack("<QII", 0x10, 7, 24))[16:]
    bars = struct.unpack("<6I", sized)
    found, bar = {}, 0
    while bar < 6:
        low, is_wide = bars[bar], bars[bar] & 6 == 4
        check(not low & 1, "an I/O BAR")
        mask = low & ~0xF | (bars[bar + 1] << 32 if is_wide else 0xFFFFFFFF << 32)
        if low & ~0xF or is_wide and bars[bar + 1]:
            found[bar] = (1 << 64) - mask
        bar += 2 if is_wide else 1
    check(found == {0: sizes[0], 2: sizes[2], 4: sizes[4]}, f"BAR sizes {found}")

    at, seen, capabilities = u8(0x34) & ~3, set(), {}
    while at:
        check(at >= 0x40 and at not in seen, "a list of capabilities that does not end")
        seen.add(at)
        capabilities[u8(at)] = at
        at = u8(at + 1) & ~3
    check(sorted(capabilities) == [0x01, 0x09, 0x10, 0x11], f"capabilities {capabilities}")
    express = capabilities[0x10]
    check(u16(express + 2) & 0xF == 2 and u16(express + 2) >> 4 & 0xF == 0, "PCI Express version 2, endpoint")
    check(u32(express + 4) >> 28 & 1, "function-level reset")
    check(u32(express + 0xC) & 0x3FF == u16(express + 0x12) & 0x3FF, "the link runs as it can")
    msix = capabilities[0x11]
    vectors, table, pending = (u16(msix + 2) & 0x7FF) + 1, u32(msix + 4), u32(msix + 8)
    check(vectors == 64 and table & 7 == pending & 7 == 4, "MSI-X")
    table, pending = table & ~7, pending & ~7
    check(table + 16 * vectors <= pending and pending + vectors // 8 <= sizes[4], "MSI-X structures inside of their BAR")
    check(u16(capabilities[0x01] + 2) & 7 == 3, "power management version 3")
    vendor = capabilities[0x09]
    check(u8(vendor + 2) == 16 and space[vendor + 4 : vendor + 8] == b"SANN", "vendor capability")
    extents = sorted((at, at + {0x10: 60, 0x11: 12, 0x01: 8, 0x09: 16}[kind]) for kind, at in capabilities.items())
    check(all(a[1] <= b[0] for a, b in zip(extents, extents[1:])) and extents[-1][1] <= 256, "capabilities overlap")

    # Nothing read-only moves under a write of ones everywhere but in the reset bit.
    for at in range(0, 256, 4):
        ones = b"\xff\x7f\xff\xff" if at == express + 8 else b"\xff" * 4
        client.expect(0, WRITE, struct.pack("<QII", at, 7, 4) + ones)
    after = client.expect(0, READ, struct.pack("<QII", 0, 7, 256))[16:]
    for start, end in [(0, 4), (6, 12), (0x0D, 0x10), (0x2C, 0x38), (0x3D, 0x48), (0x4C, 0x82), (0x84, 0x94), (0x95, 0x100)]:
        check(after[start:end] == space[start:end], f"read-only bytes {start:#x}..{end:#x} changed")
    client.expect(0, WRITE, struct.pack("<QII", express + 9, 7, 1) + b"\x80", what="function-level reset")
    check(client.expect(0, READ, struct.pack("<QII", 0, 7, 256))[16:] == space, "configuration space after a reset")

    lspci = shutil.which("lspci")
    if lspci:
        rows = [f"{at:02x}: " + " ".join(f"{b:02x}" for b in space[at : at + 16]) for at in range(0, 256, 16)]
        with tempfile.NamedTemporaryFile("w", suffix=".hex") as dump:
            dump.write("00:01.0 InfiniBand: sanlab\n" + "\n".join(rows) + "\n\n")
            dump.flush()
            text = subprocess.run([lspci, "-F", dump.name, "-vv"], capture_output=True, text=True, check=True).stdout
        for words in ("Express (v2) Endpoint", "MSI-X: Enable- Count=64", "Power Management version 3", "Vendor Specific"):
            check(words in text, f"lspci does not say {words!r}")
    return "and by lspci" if lspci else "lspci is not installed"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: walk.py SOCKET")
    path = sys.argv[1]
    versions(path)
    print("ok version")
    print(f"ok {lengths(path)} cut and lengthened payloads")
    framing(path)
    print("ok framing")
    descriptors(path)
    print("ok descriptors")
    windows(path)
    print("ok windows")
    sizes = regions(path)
    print("ok regions")
    print(f"ok interrupts, {interrupts(path)} flag combinations")
    print(f"ok configuration space, {configuration(path, sizes)}")
    print("done")


if __name__ == "__main__":
    main()
