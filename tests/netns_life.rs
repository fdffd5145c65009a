//! Namespace mode: what a node is, that nothing of it stays behind, and what is said where the machine forbids it.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, like the tests"
)]

mod harness;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Cluster, Lab, Peer, kernel, netns, programs, wait_until};

/// Namespaces of a node, as links of /proc show them.
fn namespaces(cluster: &Cluster<'_>, node: &str) -> Vec<String> {
    let shown = cluster
        .run(
            node,
            [
                "readlink",
                "/proc/self/ns/net",
                "/proc/self/ns/mnt",
                "/proc/self/ns/uts",
            ],
        )
        .output()
        .unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    shown.lines().map(str::to_owned).collect()
}

/// Whether any process is in one of these namespaces, or has a descriptor of one.
fn somebody_holds(namespaces: &HashSet<String>) -> bool {
    let links = |directory: PathBuf| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| std::fs::read_link(entry.path()).ok())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut held = processes.flat_map(|process| {
        links(process.path().join("ns")).chain(links(process.path().join("fd")))
    });
    held.any(|link| namespaces.contains(link.to_string_lossy().as_ref()))
}

fn mounts_below(directory: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(directory.to_str().unwrap())
}

#[test]
fn a_node_is_a_machine_of_its_own() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("a_node_is_a_machine_of_its_own");
    if !netns::is_possible(&lab) {
        return;
    }
    let cluster = netns::up(&lab, &["alpha", "beta"], "");
    let script = "
import errno, os, socket
print(socket.gethostname())
print(socket.gethostbyname('alpha'), socket.gethostbyname('beta'))
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', 80)); s.listen(1)
c = socket.create_connection(('127.0.0.1', 80)); s.accept()
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try: socket.socket(socket.AF_INET, kind).connect(('192.0.2.1', 9))
    except OSError as error: print(errno.errorcode[error.errno])
print(os.getcwd())
";
    for node in ["alpha", "beta"] {
        let ran = cluster
            .run(node, [&python])
            .args(["-c", script])
            .current_dir(lab.directory())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let said = String::from_utf8(ran.stdout).unwrap();
        let place = lab.directory().canonicalize().unwrap();
        let expected = format!(
            "{node}\n{} {}\nENETUNREACH\nENETUNREACH\n{}\n",
            cluster.address("alpha"),
            cluster.address("beta"),
            place.display()
        );
        assert_eq!(said, expected);
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(
        !["alpha", "beta"].contains(&host.trim()),
        "the host kept its name"
    );
}

#[test]
fn sixty_four_nodes_come_and_go_without_a_trace() {
    let Some([ping]) = programs::find(["ping"]) else {
        return;
    };
    let lab = Lab::patient("sixty_four_nodes_come_and_go", Duration::from_secs(240));
    if !netns::is_possible(&lab) {
        return;
    }
    let names: Vec<_> = (1..=64).map(|k| format!("n{k}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let cluster = netns::up(&lab, &names, "");
    let pinged = cluster
        .run("n1", [&ping])
        .args(["-c", "1", "n64"])
        .output()
        .unwrap();
    assert!(pinged.status.success(), "{pinged:?}");
    let mut seen = HashSet::new();
    for node in &names {
        seen.extend(namespaces(&cluster, node));
    }
    assert_eq!(seen.len(), 3 * names.len(), "each node has its own");
    assert!(somebody_holds(&seen), "the emulator holds them");
    drop(cluster);
    // The kernel gives numbers out again: another test's nodes may have some of them for a while.
    wait_until(|| !somebody_holds(&seen));
    assert!(!mounts_below(lab.directory()));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn a_killed_emulator_leaves_nothing_behind() {
    let lab = Lab::new("a_killed_emulator_leaves_nothing_behind");
    if !netns::is_possible(&lab) {
        return;
    }
    let mut cluster = netns::up(&lab, &["a", "b"], "");
    let mut seen: HashSet<_> = namespaces(&cluster, "a").into_iter().collect();
    seen.extend(namespaces(&cluster, "b"));
    kernel::kill_9(cluster.emulator_pid());
    assert!(!cluster.up.wait().success());
    wait_until(|| !somebody_holds(&seen));
    assert!(!mounts_below(lab.directory()));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

/// The same command by somebody who has no privilege over namespaces; as it is where that is so already.
fn without_privileges(lab: &Lab, setpriv: &Path, arguments: &[&str]) -> Command {
    let own = lab.sanlab(arguments);
    let mut command = Command::new(setpriv);
    // Whoever has none of them must not try to drop them.
    if nix::unistd::geteuid().is_root() {
        command.args(["--inh-caps=-all", "--bounding-set=-sys_admin,-net_admin"]);
    }
    command.arg(own.get_program()).args(own.get_args());
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(std::process::Stdio::null());
    command
}

#[test]
fn without_root_the_nodes_live_in_a_user_namespace() {
    let Some([setpriv, ping]) = programs::find(["setpriv", "ping"]) else {
        return;
    };
    let lab = Lab::new("without_root_the_nodes_live_in_a_user_namespace");
    if !netns::is_possible(&lab) || !netns::has_user_namespaces(&lab) {
        return;
    }
    let file = netns::file(&lab, &["a", "b"], "");
    let file = file.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = without_privileges(&lab, &setpriv, arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["up", "--detach", file]);
    let user = run(&["run", "--node", "a", "--", "readlink", "/proc/self/ns/user"]);
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(user.trim(), own.to_str().unwrap());
    let id = run(&["run", "--node", "a", "--", "id", "-u"]);
    assert_eq!(id.trim(), nix::unistd::geteuid().to_string());
    let ping = ping.to_str().unwrap();
    run(&["run", "--node", "a", "--", ping, "-c", "1", "b"]);
    run(&["down"]);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn a_machine_that_forbids_it_is_told_in_one_line_with_a_remedy() {
    let Some([unshare, setpriv, shell]) = programs::find(["unshare", "setpriv", "sh"]) else {
        return;
    };
    let lab = Lab::new("a_machine_that_forbids_it_is_told_in_one_line");
    if !netns::is_possible(&lab) || !netns::has_user_namespaces(&lab) {
        return;
    }
    let file = netns::file(&lab, &["a"], "");
    // Each in a user namespace, where the test may hide a device and forbid namespaces to itself alone.
    let cases = [
        (
            "mount -t tmpfs none /dev/net",
            "",
            ["/dev/net/tun", "modprobe tun"],
        ),
        (
            "echo 0 > /proc/sys/user/max_user_namespaces",
            "--bounding-set=-sys_admin,-net_admin",
            ["user namespace", "sysctl user.max_user_namespaces"],
        ),
    ];
    for (forbid, drop, words) in cases {
        let script = format!(
            "{forbid} && exec '{}' --inh-caps=-all {drop} '{}' up '{}'",
            setpriv.display(),
            env!("CARGO_BIN_EXE_sanlab"),
            file.display()
        );
        let output = Command::new(&unshare)
            .args(["--user", "--map-root-user", "--mount"])
            .arg(&shell)
            .args(["-c", &script])
            .env("SANLAB_RUN_DIR", lab.run_directory())
            .env_remove("LD_PRELOAD")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(lab.leftovers(), Vec::<String>::new());
    }
}

/// An address of the host's loopback interface that no other test process has.
fn own_loopback() -> std::net::Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    std::net::Ipv4Addr::new(127, 128 | (high & 0x3f), middle, low)
}

#[test]
fn the_host_reaches_published_ports_and_has_them_back_afterwards() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::patient("the_host_reaches_published_ports", Duration::from_secs(120));
    if !netns::is_possible(&lab) {
        return;
    }
    let ip = own_loopback();
    let publish = format!("publish = [\"{ip}:8080:80\", \"{ip}:8081:81\"]");
    let file = netns::file(&lab, &["quiet", "server"], &publish);
    let file = file.to_str().unwrap();
    let cluster = lab.up_with(&[file]);
    let mut server = Peer::start(&lab, "server", cluster.run("server", [&python]));
    server.expect("listen l 0.0.0.0 80", "listening 0.0.0.0 80");
    let mut clients = Vec::new();
    for number in 0..3 {
        let mut client = Peer::start_unhooked(&lab, "client", &python);
        client.expect(
            &format!("connect c {ip} 8080"),
            &format!("connected {ip} 8080"),
        );
        let accepted = server.ask(&format!("accept s{number} l"));
        assert!(accepted.starts_with("accepted "), "{accepted}");
        clients.push(client);
    }
    let client = &mut clients[1];
    client.post("send c 3000000");
    server.expect("recv s1 3000000", "received 3000000 right more");
    assert_eq!(client.answer(), "sent 3000000");
    // One way ends, the other goes on.
    client.expect("shutdown c", "shut");
    server.expect("drain s1", "received 0 right eof");
    server.expect("send s1 2000", "sent 2000");
    server.expect("close s1", "closed");
    client.expect("drain c", "received 2000 right eof");
    // Nobody listens behind the other port.
    client.expect(
        &format!("connect d {ip} 8081"),
        &format!("connected {ip} 8081"),
    );
    let ended = client.ask("drain d");
    assert!(ended.starts_with("received 0 right "), "{ended}");

    // A port that somebody has is an error, and nothing is started.
    let said = lab.fail(1, &["up", "--name", "other", file]);
    assert!(
        said.contains(&format!("{ip}:8080")) && said.contains("node server"),
        "{said}"
    );
    drop((clients, server, cluster));
    for port in [8080, 8081] {
        let free = std::net::TcpListener::bind((ip, port));
        assert!(free.is_ok(), "{free:?}");
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn proxies_of_a_killed_emulator_end_too() {
    let lab = Lab::new("proxies_of_a_killed_emulator_end_too");
    if !netns::is_possible(&lab) {
        return;
    }
    let ip = own_loopback();
    let publish = format!("publish = [\"{ip}:8090:80\"]");
    let file = netns::file(&lab, &["a"], &publish);
    let mut cluster = lab.up_with(&[file.to_str().unwrap()]);
    let seen: HashSet<_> = namespaces(&cluster, "a").into_iter().collect();
    kernel::kill_9(cluster.emulator_pid());
    assert!(!cluster.up.wait().success());
    wait_until(|| std::net::TcpListener::bind((ip, 8090)).is_ok());
    wait_until(|| !somebody_holds(&seen));
}
