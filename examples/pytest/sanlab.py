"""Clusters of emulated SAN nodes from Python: one file, standard library only.

    import sanlab

    with sanlab.up() as cluster:
        server = cluster.run("a", ["python3", "server.py"])
        with cluster.partition("a", "b"):
            ...                                  # nothing passes between a and b
        cluster.link("a", "b", latency_ns=1_000_000, loss_ppm=1_000)
        with cluster.fault("packet", "drop", node="a", every=10) as fault:
            ...
        print(fault.fired(), cluster.counter("a", "retransmitted_packets"))

Everything but `up` and `run` is a request to the emulator's control socket: docs/control.md has every field. What the emulator refuses is
a `Refused` with its text. The `sanlab` command is $SANLAB, else the one on the PATH.
"""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time

__all__ = ["Cluster", "Fault", "Refused", "connect", "eventually", "up"]

PATIENCE = 60.0


class Refused(Exception):
    """The emulator refused a request; the text names what is wrong and what would be right."""


def command():
    """The `sanlab` command."""
    found = os.environ.get("SANLAB") or shutil.which("sanlab")
    if not found:
        raise FileNotFoundError("no `sanlab` on the PATH; name it in $SANLAB")
    return found


@contextlib.contextmanager
def up(file=None):
    """A cluster of its own in a run directory of its own: the one in a cluster file, else nodes a, b and c. Gone behind the `with`."""
    with tempfile.TemporaryDirectory(prefix="sl-") as directory:
        environment = {**os.environ, "SANLAB_RUN_DIR": directory}
        words = [command(), "up"] + ([str(file)] if file else [])
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        drain = None
        try:
            for line in process.stdout:
                if line == "ready\n":
                    break
            else:
                raise RuntimeError(f"`sanlab up` ended with {process.wait()}")
            # Programs of the file go on talking; nobody reads it here, and nobody may have to wait for a reader.
            drain = threading.Thread(target=collections.deque, args=(process.stdout, 0))
            drain.start()
            (place,) = pathlib.Path(directory).glob("*/control.sock")
            cluster = Cluster(place, environment)
            try:
                yield cluster
            finally:
                cluster.end_programs()
        finally:
            process.terminate()
            process.wait(PATIENCE)
            if drain:
                drain.join(PATIENCE)
            process.stdout.close()


def connect(place):
    """A cluster that runs: its directory, or its control socket."""
    place = pathlib.Path(place)
    return Cluster(place / "control.sock" if place.is_dir() else place)


class Cluster:
    """A running cluster."""

    def __init__(self, control, environment=None):
        self._control = str(control)
        self._environment = environment or {**os.environ, "SANLAB_RUN_DIR": str(pathlib.Path(control).parents[1])}
        self._programs = []
        self.name = self.ask("ping")["cluster"]

    def ask(self, cmd, **fields):
        """Sends one request and returns the answer."""
        return self._ask(self._control, cmd, fields)

    def _ask(self, path, cmd, fields):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(PATIENCE)
            stream.connect(path)
            stream.sendall(json.dumps({"cmd": cmd, **fields}).encode() + b"\n")
            with stream.makefile("rb") as reader:
                answer = json.loads(reader.readline())
        if answer.get("ok") is False:
            raise Refused(answer["error"])
        return answer

    # ---- programs ----

    def run(self, node, words, **options):
        """Starts a program on a node; a `subprocess.Popen`, which ends with the cluster at the latest."""
        words = [command(), "run", "--cluster", self.name, "--node", node, "--", *map(str, words)]
        program = subprocess.Popen(words, env=self._environment, **options)
        self._programs.append(program)
        return program

    def output(self, node, words, **options):
        """Runs a program on a node to its end; what it wrote to standard output."""
        with self.run(node, words, stdout=subprocess.PIPE, text=True, **options) as program:
            text, _ = program.communicate(timeout=PATIENCE)
        if program.returncode:
            raise subprocess.CalledProcessError(program.returncode, words, text)
        return text

    def end_programs(self):
        """Ends what `run` started."""
        for program in self._programs:
            if program.poll() is None:
                program.kill()
            program.wait(PATIENCE)
        self._programs.clear()

    # ---- programs of the cluster file ----

    def programs(self):
        """Rows of the programs that the file has under `run`: `node`, `state`, `ready`, `pid`, `exit_code`, ..."""
        return self._ask(self._keeper(), "programs", {})["programs"]

    def node(self, name, action):
        """Does something to a node of the file: `kill`, `poweroff`, `freeze`, `thaw` or `restart`."""
        self._ask(self._keeper(), "node", {"node": name, "action": action})

    def _keeper(self):
        return str(pathlib.Path(self._control).with_name("programs.sock"))

    # ---- links ----

    def link(self, one, other, both=True, **change):
        """Changes parameters of a link, in both directions or from `one` to `other`: `latency_ns`, `loss_ppm`, ..."""
        self.ask("link_change", **{"from": one, "to": other, "both": both, "change": change})

    def links(self):
        """Directions that are or were anything but perfect, by (from, to)."""
        return {(row["from"], row["to"]): row for row in self.ask("links")["links"]}

    @contextlib.contextmanager
    def partition(self, one, other, both=True):
        """Cuts the link between two nodes, or the direction from `one` to `other`; mends it behind the `with`."""
        self.link(one, other, both, up=False)
        try:
            yield
        finally:
            self.link(one, other, both, up=True)

    def heal(self):
        """Mends every cut; how many directions there were."""
        return self.ask("heal")["healed"]

    @contextlib.contextmanager
    def unplugged(self, node):
        """Takes the cable from a node's NIC; puts it back behind the `with`."""
        self.ask("port", node=node, up=False)
        try:
            yield
        finally:
            self.ask("port", node=node, up=True)

    # ---- faults ----

    @contextlib.contextmanager
    def fault(self, at, action, **fields):
        """A fault rule for the time of the `with`: `delay_ns`, `status`, `code`, `node`, `opcode`, `nth`, `every`, `ppm`, `count`, ..."""
        rule = Fault(self, self.ask("fault_add", at=at, action=action, **fields)["id"])
        try:
            yield rule
        finally:
            with contextlib.suppress(Refused):
                self.ask("fault_rm", id=rule.id)

    # ---- what it is and did ----

    def stat(self):
        """The object of `sanlab stat --json`."""
        return self.ask("stat")

    def counter(self, node, name):
        """A counter of a node's NIC."""
        (row,) = [row for row in self.stat()["nodes"] if row["name"] == node]
        return row["counters"][name]

    def fallbacks(self):
        """How often connections took TCP, by (node, reason)."""
        return {(row["node"], row["reason"]): row["count"] for row in self.stat()["fallbacks"]}


class Fault:
    """A fault rule in force."""

    def __init__(self, cluster, number):
        self._cluster = cluster
        self.id = number

    def log(self):
        """Its faults so far, oldest first; also when it is removed."""
        return self._cluster.ask("fault_ls", id=self.id)["log"]

    def fired(self):
        """How many of its faults are in the log."""
        return len(self.log())


def eventually(condition):
    """Waits until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came true")
        time.sleep(0.005)
