//! `redis-server` with `redis-cli` and `redis-benchmark` between nodes.

mod harness;

use std::path::Path;

use harness::{Cluster, Lab, Process, Road, programs, wait_until};

const PORT: u16 = 6379;

#[test]
fn redis_cli_reads_back_what_it_wrote_also_across_a_fork() {
    let Some([server, cli]) = programs::find(["redis-server", "redis-cli"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("redis_cli_reads_back_what_it_wrote_also_across_a_fork");
        let cluster = lab.up_on(road).audited();
        let _server = start(&lab, &cluster, &server, "a");
        let ask = |node: &str, words: &[&str]| ask(&lab, &cluster, &cli, node, words);
        assert_eq!(ask("b", &["ping"]), "PONG");
        assert_eq!(ask("b", &["set", "key", "value"]), "OK");
        assert_eq!(ask("c", &["get", "key"]), "value");
        let large = "x".repeat(100_000);
        assert_eq!(ask("c", &["set", "large", &large]), "OK");
        assert_eq!(ask("b", &["get", "large"]), large);

        // The server forks, with its connections open, and writes from the child.
        let before = ask("b", &["lastsave"]);
        let changed = || ask("b", &["info", "persistence"]).contains("rdb_bgsave_in_progress:0");
        assert!(ask("b", &["bgsave"]).contains("Background saving started"));
        wait_until(|| {
            changed() && ask("b", &["info", "persistence"]).contains("rdb_last_bgsave_status:ok")
        });
        assert!(ask("b", &["lastsave"]) >= before);
        assert_eq!(ask("b", &["get", "key"]), "value");
        cluster.assert_road(road, &["a", "b", "c"]);
    }
}

#[test]
fn redis_benchmark_with_fifty_clients_and_pipelines_ends_without_an_error() {
    let Some([server, benchmark]) = programs::find(["redis-server", "redis-benchmark"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab =
            Lab::new("redis_benchmark_with_fifty_clients_and_pipelines_ends_without_an_error");
        let cluster = lab.up_on(road).audited();
        let _server = start(&lab, &cluster, &server, "a");
        let mut command = cluster.run("b", [benchmark.as_os_str(), "-h".as_ref()]);
        command.arg(cluster.address("a").to_string()).args([
            "-c",
            "50",
            "-P",
            "16",
            "-n",
            "100000",
            "-t",
            "set,get,lpush,lrange_100",
            "--csv",
        ]);
        let said = lab.spawn("benchmark", command).succeed();
        for test in ["SET", "GET", "LPUSH", "LRANGE_100"] {
            assert!(said.contains(&format!("\"{test}")), "{said}");
        }
        assert!(!said.to_lowercase().contains("error"), "{said}");
        cluster.assert_road(road, &["a", "b"]);
    }
}

#[test]
fn servers_on_equal_ports_of_two_nodes_do_not_meet() {
    let Some([server, cli]) = programs::find(["redis-server", "redis-cli"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("servers_on_equal_ports_of_two_nodes_do_not_meet");
        let cluster = lab.up_on(road).audited();
        let _servers = [
            start(&lab, &cluster, &server, "a"),
            start(&lab, &cluster, &server, "b"),
        ];
        for node in ["a", "b"] {
            let address = cluster.address(node).to_string();
            let mut command = cluster.run("c", [cli.as_os_str(), "-h".as_ref()]);
            command.args([&address, "set", "who", node]);
            assert_eq!(lab.spawn("cli", command).succeed().trim(), "OK");
        }
        for node in ["a", "b"] {
            // Without -h: the client asks 127.0.0.1, which is its own node.
            let mut command = cluster.run(node, [cli.as_os_str()]);
            command.args(["get", "who"]);
            assert_eq!(lab.spawn("cli", command).succeed().trim(), node);
        }
    }
}

#[test]
fn a_replica_follows_is_killed_and_catches_up() {
    let Some([server, cli]) = programs::find(["redis-server", "redis-cli"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_replica_follows_is_killed_and_catches_up");
        let cluster = lab.up_on(road).audited();
        let _primary = start(&lab, &cluster, &server, "a");
        let at = |node: &str, words: &[&str]| ask_at(&lab, &cluster, &cli, node, words);
        // Without the wait for more replicas, five seconds by default.
        at("a", &["config", "set", "repl-diskless-sync-delay", "0"]);
        at(
            "a",
            &[
                "eval",
                "for i = 1, 20000 do redis.call('set', i, string.rep(i, 20)) end",
                "0",
            ],
        );
        let follows = || {
            let [primary, replica] = ["a", "b"].map(|node| at(node, &["dbsize"]));
            primary == replica
        };
        for round in 0..2 {
            let mut replica =
                start_with(&lab, &cluster, &server, "b", &["--replicaof", "a", "6379"]);
            wait_until(follows);
            assert_eq!(at("b", &["get", "777"]), "777".repeat(20));
            // The stream of writes, after the copy of the whole.
            at("a", &["set", "late", &round.to_string()]);
            wait_until(|| at("b", &["get", "late"]) == round.to_string());
            replica.kill();
            at("a", &["set", &format!("meanwhile{round}"), "x"]);
            wait_until(|| at("a", &["info", "replication"]).contains("connected_slaves:0"));
        }
        cluster.assert_road(road, &["b", "c"]);
    }
}

fn start(lab: &Lab, cluster: &Cluster<'_>, server: &Path, node: &str) -> Process {
    start_with(lab, cluster, server, node, &[])
}

fn start_with(
    lab: &Lab,
    cluster: &Cluster<'_>,
    server: &Path,
    node: &str,
    options: &[&str],
) -> Process {
    let directory = lab.directory().join(format!("redis-{node}"));
    std::fs::create_dir_all(&directory).expect("a directory");
    let mut command = cluster.run(node, [server]);
    command
        .args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--protected-mode",
            "no",
            "--dir",
        ])
        .arg(&directory)
        .args(options);
    let process = lab.spawn(&format!("redis-{node}"), command);
    cluster.wait_listening(node, PORT);
    process
}

fn ask(lab: &Lab, cluster: &Cluster<'_>, cli: &Path, node: &str, words: &[&str]) -> String {
    let mut command = cluster.run(node, [cli.as_os_str(), "-h".as_ref()]);
    command.arg(cluster.address("a").to_string()).args(words);
    lab.spawn("cli", command).succeed().trim().to_owned()
}

/// Asks the server of a node, from node c.
fn ask_at(lab: &Lab, cluster: &Cluster<'_>, cli: &Path, node: &str, words: &[&str]) -> String {
    let mut command = cluster.run("c", [cli.as_os_str(), "-h".as_ref()]);
    command.arg(node).args(words);
    lab.spawn("cli", command).succeed().trim().to_owned()
}
