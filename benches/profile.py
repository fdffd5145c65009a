#!/usr/bin/env python3
"""Which functions an operation of tests/hot_path spends its instructions in, those that the compiler inlined included.

    python3 benches/profile.py [OPERATION] [--by-file]      OPERATION as in benches/instructions.toml, serve_write by default

Callgrind counts every instruction of the optimised test, addr2line names the innermost of our functions it comes from. Needs valgrind
and binutils.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

# Rounds of the workload, and operations of a round: tests/hot_path.
ROUNDS = 101
PER_ROUND = {"serve_write": 64, "ring": 64, "rtrb": 64, "poll": 32, "post_send": 8, "post_inline": 8}
OURS = re.compile(r".*?((?:ring-proto|nic-emu|driver)/src/.*?):\d+")


def program():
    """The optimised test program, built if need be."""
    command = ["cargo", "test", "--release", "--test", "hot_path", "--no-run", "--message-format=json"]
    built = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in built.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "hot_path":
            return message["executable"]
    sys.exit("cargo built no hot_path")


def count(binary, operation):
    """Instructions by address, inside the measured operation."""
    with tempfile.TemporaryDirectory() as directory:
        out = pathlib.Path(directory) / "callgrind"
        subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--toggle-collect=*::measured_{operation}",
             "--dump-instr=yes", "--compress-strings=no", "--compress-pos=no", binary, "workload"],
            check=True, stderr=subprocess.DEVNULL)
        lines = out.read_text().splitlines()
    counts, place, is_call = collections.Counter(), None, False
    for line in lines:
        if line.startswith("ob="):
            place = line[3:]
        elif line.startswith("calls="):
            # The next line is what the callee cost, which stands at the callee too.
            is_call = True
        elif match := re.fullmatch(r"(0x[0-9a-f]+) \S+ (\d+)", line):
            if not is_call:
                counts[place, match[1]] += int(match[2])
            is_call = False
    return counts


def names(binary, addresses):
    """For each address the chain of inlined functions, innermost first: (function, file)."""
    command = ["addr2line", "-afiC", "-e", binary]
    answer = subprocess.run(command, input="\n".join(addresses), check=True, stdout=subprocess.PIPE, text=True).stdout
    chains, words = [], []
    for line in answer.splitlines():
        if line.startswith("0x"):
            words = []
            chains.append(words)
        else:
            words.append(line)
    return [list(zip(words[::2], words[1::2])) for words in chains]


def owner(chain, by_file):
    """Who an instruction is counted for: the innermost function of ours."""
    for function, place in chain:
        if match := OURS.match(place):
            if by_file:
                return match[1]
            while re.search(r"<[^<>]*>", function):
                function = re.sub(r"<[^<>]*>", "", function)
            return f"{match[1]} {function.rstrip(':').rsplit('::', 1)[-1]}"
    return "other"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("operation", nargs="?", default="serve_write")
    arguments.add_argument("--by-file", action="store_true")
    arguments = arguments.parse_args()
    binary = program()
    counts = count(binary, arguments.operation)
    inside = [address for place, address in counts if place == binary]
    shares = collections.Counter()
    for address, chain in zip(inside, names(binary, inside)):
        shares[owner(chain, arguments.by_file)] += counts[binary, address]
    shares["other"] += sum(cost for (place, _), cost in counts.items() if place != binary)
    total, operations = sum(shares.values()), ROUNDS * PER_ROUND.get(arguments.operation, 16)
    print(f"{total / operations:8.1f}  100.0 %  {arguments.operation}")
    for name, cost in shares.most_common():
        if cost * 500 >= total:
            print(f"{cost / operations:8.1f}  {cost * 100 / total:5.1f} %  {name}")


if __name__ == "__main__":
    main()
