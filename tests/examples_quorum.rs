//! Clusters of etcd and of ZooKeeper that lose and regain their quorum under a partition, as their examples show it.

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::{Lab, netns, programs};

/// Runs an example's script, whose lines must be these.
fn run(lab: &Lab, example: &str, bash: &Path, expected: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = lab.sanlab([""; 0]);
    let sanlab = command.get_program().to_owned();
    let environment: Vec<_> = command
        .get_envs()
        .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
        .collect();
    command = std::process::Command::new(bash);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .arg(root.join("examples").join(example).join("run.sh"))
        .env("SANLAB", sanlab)
        .stdin(std::process::Stdio::null());
    let said = lab.spawn(example, command).succeed();
    let lines: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("== "))
        .collect();
    assert_eq!(lines, expected);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn etcd_loses_and_regains_its_quorum() {
    let Some([bash, _, _]) = programs::find(["bash", "etcd", "etcdctl"]) else {
        return;
    };
    let lab = Lab::patient(
        "etcd_loses_and_regains_its_quorum",
        Duration::from_secs(420),
    );
    if !netns::is_possible(&lab) {
        return;
    }
    let expected = [
        "three members agree",
        "the majority elects another leader and writes",
        "the leader that was cut off refuses to write",
        "without a majority nobody writes",
        "mended, all three write again, and the old leader has what it missed",
    ];
    run(&lab, "etcd", &bash, &expected);
}

#[test]
fn zookeeper_loses_and_regains_its_quorum() {
    let Some([bash, _]) = programs::find(["bash", "java"]) else {
        return;
    };
    let lab = Lab::patient(
        "zookeeper_loses_and_regains_its_quorum",
        Duration::from_secs(420),
    );
    if !netns::is_possible(&lab) || !programs::has_file("/usr/share/java/zookeeper.jar") {
        return;
    }
    let expected = [
        "three servers agree",
        "the server that was cut off stops to serve; the majority writes",
        "without a majority nobody serves",
        "mended, all three serve again, and z1 has what it missed",
    ];
    run(&lab, "zookeeper", &bash, &expected);
}
