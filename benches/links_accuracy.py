#!/usr/bin/env python3
"""Measures links of namespace mode against what was declared, and prints the tables of docs/netns.md.

    cargo build --release
    SANLAB=target/release/sanlab benches/links_accuracy.py

Latency: the median round trip of datagrams of one byte with and without the latency, alternated; half of the difference was added one way.
Bandwidth: the bytes that iperf3, without the library, moves over TCP, in the frames that they take. Nothing here is an assertion.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

SANLAB = os.path.abspath(os.environ.get("SANLAB", "target/release/sanlab"))
FILE = """
[cluster]
name = "accuracy"
isolation = "netns"
[[node]]
name = "a"
[[node]]
name = "b"
"""
# Bytes of payload in a full frame, and of the frame: IPv4, TCP with timestamps, Ethernet.
PAYLOAD, FRAME = 1448, 1514
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(64); s.sendto(data, peer)
"""
ASK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("b", 7)); s.settimeout(5)
for line in sys.stdin:
    took = []
    for _ in range(int(line)):
        start = time.perf_counter_ns(); s.send(b"x"); s.recv(64); took.append(time.perf_counter_ns() - start)
    print(sorted(took)[len(took) // 2], flush=True)
"""


def sanlab(*arguments):
    return subprocess.run([SANLAB, *arguments], check=True, capture_output=True, text=True).stdout


def on(node, *command, **options):
    return subprocess.Popen([SANLAB, "run", "--node", node, "--", *command], text=True, stdout=subprocess.PIPE, **options)


def link(**parameters):
    words = [word for key, value in parameters.items() for word in ("--" + key, value)]
    sanlab("link", "set", "a", "b", *words)


def latencies():
    echo = on("b", sys.executable, "-c", ECHO)
    assert echo.stdout.readline() == "ready\n"
    ask = on("a", sys.executable, "-c", ASK, stdin=subprocess.PIPE)

    def round_trip(latency_us, rounds):
        link(latency=f"{latency_us} us")
        ask.stdin.write(f"{rounds}\n")
        ask.stdin.flush()
        return int(ask.stdout.readline()) / 1000

    print("| declared latency | added, measured | off by |\n|---|---|---|")
    for declared in (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 200_000):
        rounds = max(5, min(200, 400_000 // declared))
        added = []
        for _ in range(5):
            plain = round_trip(0, 200)
            added.append((round_trip(declared, rounds) - plain) / 2)
        measured = statistics.median(added)
        print(f"| {declared} us | {measured:.0f} us | {measured - declared:+.0f} us, {100 * (measured / declared - 1):+.1f} % |", flush=True)
    for process in (ask, echo):
        process.kill()
        process.wait()
    link(latency="0 us")


def bandwidths():
    server = on("b", "env", "-u", "LD_PRELOAD", "iperf3", "-s", "--forceflush")
    while "listening" not in server.stdout.readline():
        pass
    print("\n| declared bandwidth | frames, measured | off by | payload of TCP |\n|---|---|---|---|")
    for megabits in (1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000, None):
        # Without limit is the last, and what the machine can do.
        link(bandwidth=f"{megabits or 1_000_000} Mbit/s")
        client = on("a", "env", "-u", "LD_PRELOAD", "iperf3", "-c", "b", "-J", "-t", "6", "-O", "2")
        report = json.loads(client.communicate()[0])
        payload = report["end"]["sum_received"]["bits_per_second"] / 1e6
        frames = payload * FRAME / PAYLOAD
        off = f"{100 * (frames / megabits - 1):+.1f} %" if megabits else ""
        print(f"| {megabits or 'no limit'} Mbit/s | {frames:.1f} Mbit/s | {off} | {payload:.1f} Mbit/s |", flush=True)
    server.kill()
    server.wait()


with tempfile.TemporaryDirectory() as directory:
    os.environ["SANLAB_RUN_DIR"] = os.path.join(directory, "run")
    path = os.path.join(directory, "accuracy.toml")
    with open(path, "w") as file:
        file.write(FILE)
    sanlab("up", "--detach", path)
    try:
        latencies()
        bandwidths()
    finally:
        sanlab("down", "accuracy")
