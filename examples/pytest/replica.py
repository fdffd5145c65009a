"""A replicated log: a primary takes lines, followers keep a copy.

    replica.py primary                     takes lines from clients and hands them to followers, in order
    replica.py follower PRIMARY            copies the log of the primary, and answers reads
    replica.py append NODE LINE            one line more; prints how long the log is then
    replica.py read NODE                   prints the log as that node knows it

One request and one answer a connection, each a line of JSON. A follower keeps one connection to the primary, asks for what comes behind
the last line it has, and asks again from there when the connection has ended.
"""

import json
import socket
import sys
import threading
import time

PORT = 7400


class Log:
    """Lines, and who waits for more of them."""

    def __init__(self):
        self.lines = []
        self.more = threading.Condition()

    def append(self, line):
        with self.more:
            self.lines.append(line)
            self.more.notify_all()
            return len(self.lines)

    def behind(self, length):
        """Lines behind the first `length`, once there are any."""
        with self.more:
            self.more.wait_for(lambda: len(self.lines) > length)
            return self.lines[length:]


def say(stream, message):
    stream.sendall(json.dumps(message).encode() + b"\n")


def serve(log):
    listener = socket.create_server(("0.0.0.0", PORT))
    print("listening", flush=True)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=answer, args=(log, stream), daemon=True).start()


def answer(log, stream):
    with stream, stream.makefile("rb") as reader:
        request = json.loads(reader.readline())
        if "append" in request:
            say(stream, log.append(request["append"]))
        elif "follow" in request:
            length = request["follow"]
            while True:
                lines = log.behind(length)
                for line in lines:
                    say(stream, line)
                length += len(lines)
        else:
            say(stream, log.lines)


def follow(log, primary):
    while True:
        try:
            with socket.create_connection((primary, PORT)) as stream, stream.makefile("rb") as reader:
                say(stream, {"follow": len(log.lines)})
                for line in reader:
                    log.append(json.loads(line))
        except OSError:
            pass
        time.sleep(0.05)


def ask(node, request):
    with socket.create_connection((node, PORT)) as stream, stream.makefile("rb") as reader:
        say(stream, request)
        print(json.dumps(json.loads(reader.readline())))


def main(role, *words):
    if role == "primary":
        serve(Log())
    elif role == "follower":
        log = Log()
        threading.Thread(target=follow, args=(log, words[0]), daemon=True).start()
        serve(log)
    elif role == "append":
        ask(words[0], {"append": words[1]})
    elif role == "read":
        ask(words[0], {"read": True})
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
