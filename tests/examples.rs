//! The examples with cluster files, as their pages tell to run them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod harness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Lab, programs, wait_until};
use serde_json::Value;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// A program on a node; what it says.
fn on(lab: &Lab, node: &str, words: &[&str]) -> String {
    let said = lab.succeed(&[&["run", "--node", node, "--"], words].concat());
    said.trim().to_owned()
}

#[test]
fn a_redis_replica_falls_behind_a_cut_and_catches_up() {
    if programs::find(["redis-server", "redis-cli"]).is_none() {
        return;
    }
    let lab = Lab::patient(
        "a_redis_replica_falls_behind_a_cut_and_catches_up",
        Duration::from_secs(180),
    );
    lab.succeed(&["up", "--wait", text(&example("redis/cluster.toml"))]);
    let get = |node: &str| on(&lab, node, &["redis-cli", "get", "key"]);
    let set = |value: &str| {
        assert_eq!(
            on(&lab, "primary", &["redis-cli", "set", "key", value]),
            "OK"
        )
    };
    set("one");
    for replica in ["replica1", "replica2"] {
        wait_until(|| get(replica) == "one");
    }
    let syncs = || {
        on(
            &lab,
            "primary",
            &["sh", "-c", "redis-cli info stats | grep sync_full"],
        )
    };
    let before = syncs();
    lab.succeed(&["partition", "primary", "replica1"]);
    set("two");
    wait_until(|| get("replica2") == "two");
    assert_eq!(get("replica1"), "one");
    lab.succeed(&["heal"]);
    wait_until(|| get("replica1") == "two");
    // On the connection it had.
    assert_eq!(syncs(), before);
    let stat = lab.json(&["stat", "--json"]);
    for row in stat["totals"].as_array().unwrap() {
        assert!(row["san_connections"].as_u64() > Some(0), "{stat:#}");
    }
    lab.succeed(&["down"]);
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn nginx_goes_on_without_the_backend_that_has_no_power() {
    if programs::find(["nginx", "python3", "curl"]).is_none() {
        return;
    }
    let lab = Lab::patient(
        "nginx_goes_on_without_the_backend_that_has_no_power",
        Duration::from_secs(180),
    );
    lab.succeed(&["up", "--wait", text(&example("nginx/cluster.toml"))]);
    let ask = || {
        on(
            &lab,
            "front",
            &["curl", "-sS", "--max-time", "50", "http://front:8080/"],
        )
    };
    for backend in ["backend1", "backend2", "backend3"] {
        wait_until(|| ask() == backend);
    }
    lab.succeed(&["node", "poweroff", "backend2"]);
    for _ in 0..12 {
        let name = ask();
        assert!(name == "backend1" || name == "backend3", "{name}");
    }
    lab.succeed(&["node", "restart", "backend2"]);
    wait_until(|| ask() == "backend2");
    lab.succeed(&["down"]);
    assert_eq!(lab.leftovers(), [""; 0]);
}

/// The matrix that the nodes have told; each row once.
fn matrix(artifacts: &Path, count: usize) -> Vec<Vec<u64>> {
    (1..=count)
        .map(|node| {
            let log = std::fs::read_to_string(artifacts.join(format!("logs/n{node}.log"))).unwrap();
            let row = log
                .lines()
                .find_map(|line| line.strip_prefix(&format!("row {node} ")));
            let row = row.unwrap_or_else(|| panic!("{log}"));
            row.split(' ').map(|word| word.parse().unwrap()).collect()
        })
        .collect()
}

fn stat_of(artifacts: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(artifacts.join("stat.json")).unwrap()).unwrap()
}

#[test]
fn sixteen_nodes_exchange_with_each_other_and_no_byte_is_missing() {
    if programs::find(["python3"]).is_none() {
        return;
    }
    let lab = Lab::patient(
        "sixteen_nodes_exchange_with_each_other",
        Duration::from_secs(300),
    );
    let out = lab.directory().join("out");
    lab.succeed(&[
        "up",
        text(&example("alltoall/cluster.toml")),
        "--artifacts",
        text(&out),
    ]);
    let matrix = matrix(&out, 16);
    for (at, row) in matrix.iter().enumerate() {
        for (from, &bytes) in row.iter().enumerate() {
            let wanted = if at == from { 0 } else { 8 * 16 * 1024 };
            assert_eq!(bytes, wanted, "from {from} to {at}: {matrix:?}");
        }
    }
    let stat = stat_of(&out);
    for row in stat["totals"].as_array().unwrap() {
        let san = row["san_connections"].as_u64().unwrap();
        // To and from each other one, and from the one that says when.
        let wanted = if row["node"] == "start" { 16 } else { 31 };
        let tcp = row["tcp_connections"].as_u64().unwrap();
        assert!(san > 0 && san + tcp == wanted, "{stat:#}");
    }
    assert_eq!(lab.leftovers(), [""; 0]);
}

/// Address of a node without its prefix length.
fn cluster_address(stat: &Value, node: &str) -> String {
    let mut rows = stat["nodes"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["name"] == node);
    let address = row
        .and_then(|row| row["addresses"][0].as_str())
        .unwrap_or_default();
    address.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn twenty_four_partitions_at_random_damage_nothing() {
    if programs::find(["python3"]).is_none() {
        return;
    }
    const NODES: u64 = 5;
    let lab = Lab::patient(
        "twenty_four_partitions_at_random_damage_nothing",
        Duration::from_secs(300),
    );
    let (out, stop) = (lab.directory().join("out"), lab.directory().join("stop"));
    let script = example("alltoall/alltoall.py");
    let file = lab.write(
        "cluster.toml",
        &format!(
            "[cluster]\nseed = 24\nsan_connect_limit = \"60 s\"\n[[node]]\nname = \"n\"\ncount = {NODES}\nready = {{ tcp = 7100 }}\n\
             env = {{ BLOCKS = \"4\", UNTIL = \"{}\" }}\nrun = [\"python3\", \"-u\", \"{}\"]\n\
             [[node]]\nname = \"start\"\nafter = [\"n\"]\nenv = {{ NODES = \"{NODES}\" }}\nrun = [\"python3\", \"{}\"]\n",
            text(&stop),
            text(&script),
            text(&example("alltoall/start.py"))
        ),
    );
    let mut up = lab.spawn(
        "up",
        lab.sanlab(["up", text(&file), "--artifacts", text(&out)]),
    );
    up.wait_output("ready\n");
    // Every node has its connections to and from each other one, and that from the one that says when.
    wait_until(|| {
        assert!(up.is_running(), "{}", up.stdout());
        let stat = lab.json(&["stat", "--json"]);
        let rows = stat["totals"].as_array().unwrap().clone();
        let has_all = |row: &&Value| row["san_connections"].as_u64() >= Some(2 * (NODES - 1) + 1);
        rows.iter()
            .filter(|row| row["node"] != "start")
            .all(|row| has_all(&row))
    });
    let mut draw = 24_u64;
    let mut next = |below: u64| {
        draw = draw
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % below
    };
    for _ in 0..24 {
        let (a, step) = (next(NODES), 1 + next(NODES - 1));
        let ends = [
            format!("n{}", a + 1),
            format!("n{}", (a + step) % NODES + 1),
        ];
        let both = next(2) == 0;
        let way = format!("{}:{}", ends[0], ends[1]);
        let words: Vec<&str> = match both {
            true => vec![&ends[0], &ends[1]],
            false => vec![&way],
        };
        // What its sender could not get rid of: a cut in this direction lets it grow to the limit of the send buffer.
        let waiting = || {
            let stat = lab.json(&["stat", "--json"]);
            let rows = stat["connections"].as_array().unwrap().clone();
            let remote = format!("{}:7100", cluster_address(&stat, &ends[1]));
            let row = rows
                .iter()
                .find(|row| row["node"] == ends[0].as_str() && row["remote"] == remote.as_str());
            row.and_then(|row| row["send_queue"].as_u64()).unwrap_or(0)
        };
        lab.succeed(&[&["partition"], words.as_slice()].concat());
        // It has met the traffic.
        wait_until(|| {
            assert!(up.is_running(), "{}", up.stdout());
            waiting() > 100_000
        });
        lab.succeed(&["heal"]);
    }
    std::fs::write(&stop, "").unwrap();
    assert!(up.wait().success(), "{}{}", up.stdout(), up.stderr());
    for (at, row) in matrix(&out, 5).iter().enumerate() {
        for (from, &bytes) in row.iter().enumerate() {
            assert!(
                at == from || bytes >= 4 * 16 * 1024,
                "from {from} to {at}: {row:?}"
            );
        }
    }
    // Cuts make NICs repeat themselves, and fail nothing.
    let stat = stat_of(&out);
    let sum = |key: &str| -> u64 {
        let rows = stat["nodes"].as_array().unwrap();
        rows.iter()
            .filter_map(|row| row["counters"][key].as_u64())
            .sum()
    };
    assert!(sum("retransmitted_packets") > 0, "{stat:#}");
    assert_eq!(lab.leftovers(), [""; 0]);
}
