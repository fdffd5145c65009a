"""A replicated log under partitions, losses and faults: `pytest examples/pytest`."""

import json
import pathlib
import subprocess
import sys

import pytest

import sanlab

REPLICA = pathlib.Path(__file__).with_name("replica.py")


@pytest.fixture
def cluster():
    with sanlab.up() as cluster:
        for node, role in [("a", ["primary"]), ("b", ["follower", "a"])]:
            program = cluster.run(node, ["python3", REPLICA, *role], stdout=subprocess.PIPE, text=True)
            assert program.stdout.readline() == "listening\n"
            # The SAN listens a moment after the kernel does.
            sanlab.eventually(lambda: cluster.counter(node, "listeners") > 0)
        append(cluster, "first")
        sanlab.eventually(lambda: read(cluster, "b") == ["first"])
        yield cluster


def append(cluster, line):
    return json.loads(cluster.output("c", ["python3", REPLICA, "append", "a", line]))


def read(cluster, node):
    return json.loads(cluster.output("c", ["python3", REPLICA, "read", node]))


def test_follower_falls_behind_in_a_partition_and_catches_up(cluster):
    with cluster.partition("a", "b"):
        before = cluster.links()["a", "b"]["counters"]["lost"]
        assert append(cluster, "second") == 2
        # The primary has sent it, and the link has lost it.
        sanlab.eventually(lambda: cluster.links()["a", "b"]["counters"]["lost"] > before)
        assert read(cluster, "a") == ["first", "second"]
        assert read(cluster, "b") == ["first"]
    sanlab.eventually(lambda: read(cluster, "b") == ["first", "second"])
    assert cluster.fallbacks() == {}


def test_one_way_partition_holds_the_answers_back_alone(cluster):
    with cluster.partition("b", "a", both=False):
        append(cluster, "second")
        # It arrives, although no acknowledge comes back.
        sanlab.eventually(lambda: read(cluster, "b") == ["first", "second"])
    assert cluster.links()["b", "a"]["counters"]["lost"] > 0


def test_log_is_whole_over_a_bad_link_and_faults(cluster):
    cluster.link("a", "b", latency_ns=200_000, loss_ppm=20_000, duplicate_ppm=20_000)
    with cluster.fault("packet", "corrupt", node="a", every=3) as fault:
        for number in range(5):
            append(cluster, f"line {number}")
        sanlab.eventually(lambda: len(read(cluster, "b")) == 6)
    assert read(cluster, "b") == read(cluster, "a")
    assert fault.fired() > 0
    assert cluster.counter("a", "retransmitted_packets") > 0


def test_refusals_name_what_would_be_right(cluster):
    with pytest.raises(sanlab.Refused, match="its nodes are a, b, c"):
        cluster.link("a", "z", loss_ppm=1)
    with pytest.raises(sanlab.Refused, match="latency_ns"):
        cluster.link("a", "b", latency="1ms")
    with pytest.raises(sanlab.Refused, match="allowed: delay, drop, duplicate, corrupt"):
        with cluster.fault("packet", "explode"):
            pass


def test_client_needs_the_standard_library_alone():
    code = "import sys, sanlab; sys.exit(any(name in sys.modules for name in ('pytest', 'requests')))"
    subprocess.run([sys.executable, "-c", code], cwd=REPLICA.parent, check=True)


def test_a_killed_program_of_the_cluster_file_comes_back(tmp_path):
    file = tmp_path / "lab.toml"
    file.write_text('[[node]]\nname = "a"\nrestart = "always"\nrun = ["sh", "-c", "seq 20000; exec sleep 600"]\n')
    with sanlab.up(file) as cluster:
        (first,) = cluster.programs()
        assert first["ready"] and first["state"] == "running"
        cluster.node("a", "kill")
        sanlab.eventually(lambda: cluster.programs()[0]["pid"] not in (None, first["pid"]))
        with pytest.raises(sanlab.Refused, match="allowed: kill, poweroff"):
            cluster.node("a", "explode")
