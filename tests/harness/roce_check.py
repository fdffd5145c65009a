#!/usr/bin/env python3
"""Reads a pcapng file of RoCEv2 frames and checks it by the rules of InfiniBand and RoCEv2, without anything of the program that wrote it.

    roce_check.py FILE        prints what it found as JSON; what is against the rules stands in "problems"

Checked: lengths and checksums of IP and UDP, pads, the ICRC of every whole frame (bad exactly where a comment says that a bit flipped),
the opcodes of a message in their order, and that what a QP sends has PSNs without a gap, but for packets sent again.
"""

import collections
import json
import struct
import sys
import zlib

FIRST, MIDDLE, LAST, ONLY = range(4)
# Opcode of a request: kind and place in its message.
REQUESTS = {
    0x00: ("SEND", FIRST), 0x01: ("SEND", MIDDLE), 0x02: ("SEND", LAST), 0x03: ("SEND", LAST), 0x04: ("SEND", ONLY), 0x05: ("SEND", ONLY),
    0x16: ("SEND", LAST), 0x17: ("SEND", ONLY),
    0x06: ("WRITE", FIRST), 0x07: ("WRITE", MIDDLE), 0x08: ("WRITE", LAST), 0x09: ("WRITE", LAST), 0x0a: ("WRITE", ONLY), 0x0b: ("WRITE", ONLY),
    0x0c: ("READ", ONLY), 0x13: ("CAS", ONLY), 0x14: ("FAA", ONLY),
}
RETH = {0x06, 0x0a, 0x0b, 0x0c}
IMM = {0x03, 0x05, 0x09, 0x0b}
IETH = {0x16, 0x17}
AETH = {0x0d, 0x0f, 0x10, 0x11, 0x12}
ATOMIC = {0x13, 0x14}
MTU = 4096


def blocks(data):
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0 and length >= 12, f"block of {length} bytes at {at}"
        assert struct.unpack_from("<I", data, at + length - 4)[0] == length, f"lengths of the block at {at} differ"
        yield kind, data[at + 8:at + length - 4]
        at += length
    assert at == len(data), "the file ends within a block"


def options(body):
    found = collections.defaultdict(list)
    at = 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from("<HH", body, at)
        if code == 0:
            break
        found[code].append(body[at + 4:at + 4 + length])
        at += 4 + (length + 3) // 4 * 4
    return found


def ones_sum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return total


def icrc(ip, header):
    """Over eight bytes of ones in place of the local route header, then the packet with what routers change as ones."""
    masked = bytearray(ip[:-4])
    if header == 20:
        for at in (1, 8, 10, 11):
            masked[at] = 0xff
    else:
        masked[0] |= 0x0f
        for at in (1, 2, 3, 7):
            masked[at] = 0xff
    for at in (header + 6, header + 7, header + 8 + 4):
        masked[at] = 0xff
    return struct.pack("<I", zlib.crc32(b"\xff" * 8 + bytes(masked)))


class Check:
    def __init__(self):
        self.problems = []
        self.interfaces = []
        self.opcodes = collections.Counter()
        self.result = collections.Counter()
        self.next_psn = {}
        self.message = {}

    def problem(self, text):
        self.problems.append(f"frame {self.result['frames']}: {text}")

    def frame(self, data, whole, comments, outbound, interface):
        self.result["frames"] += 1
        is_whole = len(data) == whole
        kind = data[12:14]
        ip = data[14:]
        if kind == b"\x08\x00":
            header = 20
            if ones_sum(ip[:20]) != 0xffff:
                self.problem("checksum of IP")
            length = struct.unpack_from(">H", ip, 2)[0]
            protocol, ends = ip[9], ip[12:20]
        elif kind == b"\x86\xdd":
            header = 40
            length = 40 + struct.unpack_from(">H", ip, 4)[0]
            protocol, ends = ip[6], ip[8:40]
        else:
            self.problem(f"type {kind.hex()}")
            return
        if protocol != 17 or length != whole - 14:
            self.problem(f"protocol {protocol}, {length} bytes of IP in a frame of {whole}")
        source, target, udp_length, udp_sum = struct.unpack_from(">HHHH", ip, header)
        if target != 4791 or udp_length != length - header or source < 0xc000:
            self.problem(f"UDP {source} -> {target}, {udp_length} bytes")
        bth = ip[header + 8:]
        opcode, flags = bth[0], bth[1]
        pad, version = flags >> 4 & 3, flags & 15
        qpn = struct.unpack_from(">I", bth, 4)[0] & 0xffffff
        psn = struct.unpack_from(">I", bth, 8)[0] & 0xffffff
        if version or struct.unpack_from(">H", bth, 2)[0] != 0xffff:
            self.problem("version or partition key")
        extended = 16 * (opcode in RETH) + 4 * (opcode in IMM) + 4 * (opcode in IETH) + 4 * (opcode in AETH)
        extended += 28 * (opcode in ATOMIC) + 8 * (opcode == 0x12) + 8 * (opcode == 0x64)
        payload = whole - 14 - header - 8 - 12 - extended - pad - 4
        if payload < 0 or (payload + pad) % 4 or payload > MTU:
            self.problem(f"{payload} bytes of payload and {pad} of pad")
        self.opcodes[f"{opcode:#04x}"] += 1
        is_damaged = "a bit flipped on the link" in comments
        if is_whole:
            is_good = icrc(ip, header) == ip[-4:]
            self.result["icrc_good" if is_good else "icrc_bad"] += 1
            if is_good == is_damaged:
                self.problem(f"ICRC is {'good' if is_good else 'bad'}, comments {comments}")
            if header == 40 and not is_damaged:
                pseudo = ends + struct.pack(">II", udp_length, 17)
                if ones_sum(pseudo + ip[40:]) != 0xffff:
                    self.problem("checksum of UDP")
        for comment in comments:
            self.result[comment] += 1
        if opcode == 0x64:
            self.mad(bth[20:], payload)
        elif opcode in REQUESTS and outbound:
            reth = struct.unpack_from(">QII", bth, 12) if opcode in RETH else None
            self.request((interface, ends, source, qpn), opcode, psn, payload, reth)

    def mad(self, mad, payload):
        if payload != 256 or mad[:4] != b"\x01\x07\x02\x03":
            self.problem(f"a MAD of {payload} bytes, {mad[:4].hex()}")
        attribute = struct.unpack_from(">H", mad, 16)[0]
        self.result[{0x10: "REQ", 0x12: "REJ", 0x13: "REP", 0x14: "RTU", 0x15: "DREQ", 0x16: "DREP"}.get(attribute, "CM ?")] += 1

    def request(self, flow, opcode, psn, payload, reth):
        kind, place = REQUESTS[opcode]
        packets = max(1, -(-reth[2] // MTU)) if kind == "READ" else 1
        expected = self.next_psn.get(flow)
        if expected is not None:
            ahead = (psn - expected) & 0xffffff
            if ahead and ahead < 1 << 23:
                self.problem(f"PSN {psn}, expected {expected}")
            if ahead:
                self.result["sent_again"] += 1
                self.message.pop(flow, None)
        after = (psn + packets) & 0xffffff
        if expected is None or (after - expected) & 0xffffff < 1 << 23:
            self.next_psn[flow] = after
        # Where a message is taken up in its middle there is nothing to compare.
        under_way = self.message.get(flow)
        if under_way and (place in (FIRST, ONLY) or under_way[0] != kind):
            self.problem(f"{kind} begins within {under_way[0]}")
        left = None
        if place == FIRST:
            left = reth[2] - payload if reth else None
            self.message[flow] = (kind, left)
        elif place in (MIDDLE, LAST) and under_way:
            left = None if under_way[1] is None else under_way[1] - payload
            self.message[flow] = (kind, left)
        elif place == ONLY and kind == "WRITE" and reth[2] != payload:
            self.problem(f"a WRITE of {reth[2]} bytes has {payload}")
        if place in (FIRST, MIDDLE) and payload not in (256, 512, 1024, 2048, 4096):
            self.problem(f"a packet of {payload} bytes is not the last of its message")
        if place == LAST:
            if left:
                self.problem(f"a {kind} ends with {left} bytes missing")
            self.message.pop(flow, None)

    def read(self, path):
        with open(path, "rb") as file:
            data = file.read()
        for kind, body in blocks(data):
            if kind == 0x0a0d0d0a:
                assert struct.unpack_from("<IHH", body) == (0x1a2b3c4d, 1, 0)
            elif kind == 1:
                found = options(body[8:])
                assert struct.unpack_from("<H", body)[0] == 1 and found[9] == [b"\x09"]
                self.interfaces.append({"name": found[2][0].decode(), "description": found[3][0].decode(), "frames": 0, "last_ns": 0})
            elif kind == 6:
                interface, high, low, length, whole = struct.unpack_from("<5I", body)
                row = self.interfaces[interface]
                row["frames"] += 1
                at_ns = high << 32 | low
                if at_ns < row["last_ns"]:
                    self.problem("time runs backwards")
                row["last_ns"] = at_ns
                found = options(body[20 + (length + 3) // 4 * 4:])
                comments = [comment.decode() for comment in found[1]]
                outbound = struct.unpack("<I", found[2][0])[0] & 3 == 2
                self.frame(body[20:20 + length], whole, comments, outbound, interface)
            elif kind == 5:
                found = options(body[12:])
                received, dropped, delivered = (struct.unpack("<Q", found[code][0])[0] for code in (4, 5, 8))
                self.interfaces[struct.unpack_from("<I", body)[0]].update(received=received, dropped=dropped, delivered=delivered)


def main():
    check = Check()
    check.read(sys.argv[1])
    for row in check.interfaces:
        if row.get("delivered") != row["frames"]:
            check.problems.append(f"interface {row['name']}: {row['frames']} frames, statistics {row}")
    report = {"interfaces": check.interfaces, "opcodes": check.opcodes, "problems": check.problems[:50], **check.result}
    print(json.dumps(report))
    return 1 if check.problems else 0


if __name__ == "__main__":
    sys.exit(main())
