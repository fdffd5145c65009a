//! Namespace mode for a user who is not root and has no entry in /etc/subuid: what works, and what `doctor` and `up` say where it does not.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::{Lab, netns, programs};

/// Number of the user, who needs no account: the machine's `nobody`.
const USER: u32 = 65534;

const ANSWER: &str = "
import socket
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 80))
listener.listen()
print('listening', flush=True)
peer, _ = listener.accept()
while data := peer.recv(65536):
    peer.sendall(data)
";
const ASK: &str = "
import os, socket
peer = socket.create_connection(('b', 80))
peer.sendall(b'x' * 5000)
left = 5000
while left:
    left -= len(peer.recv(left))
print('uid', os.getuid(), 'host', socket.gethostname())
try:
    os.setuid(1)
except OSError as error:
    print('setuid', error.strerror)
";

/// The user's world: a home and a runtime directory of their own, and a copy of the program where they may read it.
struct User<'a> {
    lab: &'a Lab,
    binary: PathBuf,
    setpriv: PathBuf,
    unshare: PathBuf,
}

impl<'a> User<'a> {
    fn new(lab: &'a Lab, setpriv: PathBuf, unshare: PathBuf) -> Self {
        let open = |path: &Path| {
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, mode).unwrap();
        };
        let root = lab.directory();
        open(root);
        for name in ["bin", "home", "runtime"] {
            std::fs::create_dir(root.join(name)).unwrap();
            open(&root.join(name));
        }
        let built = Path::new(env!("CARGO_BIN_EXE_sanlab"));
        let library = "libsanlab_preload.so";
        let beside = built.parent().unwrap();
        let found = [beside.join("deps").join(library), beside.join(library)];
        let found = found.iter().find(|path| path.exists()).unwrap();
        let binary = root.join("bin/sanlab");
        std::fs::copy(built, &binary).unwrap();
        std::fs::copy(found, root.join("bin").join(library)).unwrap();
        let user = Self {
            lab,
            binary,
            setpriv,
            unshare,
        };
        if is_root() {
            for name in ["home", "runtime"] {
                chown(root.join(name), Some(USER), Some(USER)).unwrap();
            }
        }
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(root.join("runtime"), closed).unwrap();
        user
    }

    /// `sanlab` as that user; with `tun`, where /dev/net/tun has this mode.
    fn sanlab(&self, tun: Option<&str>, arguments: &[&str]) -> Command {
        let root = self.lab.directory();
        let mut words: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
        if is_root() {
            if let Some(mode) = tun {
                let script = format!(
                    "mount -t tmpfs none /dev/net && mknod -m {mode} /dev/net/tun c 10 200 && exec \"$@\""
                );
                add(&[
                    self.unshare.to_str().unwrap(),
                    "--mount",
                    "sh",
                    "-c",
                    &script,
                    "sh",
                ]);
            }
            add(&[
                self.setpriv.to_str().unwrap(),
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ]);
        }
        add(&[self.binary.to_str().unwrap()]);
        add(arguments);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", root.join("home"))
            .env("XDG_RUNTIME_DIR", root.join("runtime"))
            .current_dir(root.join("home"))
            .stdin(Stdio::null());
        command
    }

    fn output(&self, tun: Option<&str>, arguments: &[&str]) -> Output {
        self.sanlab(tun, arguments).output().unwrap()
    }

    fn succeed(&self, tun: Option<&str>, arguments: &[&str]) -> String {
        let output = self.output(tun, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `doctor` says of one thing: its status and its words.
    fn doctor(&self, tun: &str, name: &str) -> (String, String) {
        let output = self.output(Some(tun), &["doctor", "--json"]);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let rows = said["checks"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        (row["status"].as_str().unwrap().to_owned(), row.to_string())
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_user_who_is_not_root_has_the_wire_the_san_and_captures() {
    let Some([setpriv, unshare, ping, python, tshark]) =
        programs::find(["setpriv", "unshare", "ping", "python3", "tshark"])
    else {
        return;
    };
    let lab = Lab::new("a_user_who_is_not_root_has_the_wire_the_san_and_captures");
    if !netns::is_possible(&lab) || !netns::has_user_namespaces(&lab) {
        return;
    }
    let user = User::new(&lab, setpriv, unshare);
    let file = netns::file(&lab, &["a", "b"], "");
    let open = Some("666");
    for check in ["user namespaces", "/dev/net/tun", "node namespaces"] {
        let (status, said) = user.doctor("666", check);
        assert_eq!(status, "ok", "{said}");
    }
    let (_, said) = user.doctor("666", "node namespaces");
    assert!(said.contains("in a user namespace of its own"), "{said}");

    user.succeed(open, &["up", "--detach", file.to_str().unwrap()]);
    let run = |node: &str, words: &[&str]| {
        let all = [&["run", "--node", node, "--"], words].concat();
        user.sanlab(None, &all)
    };
    let output = |node: &str, words: &[&str]| {
        let output = run(node, words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let seen = lab.directory().join("home/seen.pcapng");
    let to = seen.to_str().unwrap();
    let mut capture = lab.spawn("capture", user.sanlab(None, &["capture", "-o", to]));
    harness::wait_until(|| {
        assert!(capture.is_running(), "{}", capture.stderr());
        capture.stderr().contains("Ctrl-C ends it")
    });
    output("a", &[ping.to_str().unwrap(), "-c", "1", "b"]);
    let python = python.to_str().unwrap();
    let mut answering = lab.spawn("answer", run("b", &[python, "-c", ANSWER]));
    answering.wait_output("listening");
    let said = output("a", &[python, "-c", ASK]);
    answering.succeed();
    let id = if is_root() {
        USER
    } else {
        nix::unistd::geteuid().as_raw()
    };
    assert!(said.contains(&format!("uid {id} host a\n")), "{said}");
    // The namespace knows nobody else.
    assert!(said.contains("setuid Invalid argument"), "{said}");
    let map = output("a", &["cat", "/proc/self/uid_map"]);
    let map: Vec<_> = map.split_whitespace().map(str::to_owned).collect();
    assert_eq!(map, [id.to_string(), id.to_string(), "1".to_owned()]);
    let stat = user.succeed(None, &["stat", "--json"]);
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    let total = &stat["totals"][0];
    assert!(
        total["san_connections"].as_u64() > Some(0) && total["node"] == "a",
        "{stat:#}"
    );
    capture.signal(nix::sys::signal::Signal::SIGINT);
    assert!(capture.wait().success(), "{}", capture.stderr());
    for filter in ["icmp.type == 8", "infiniband"] {
        let read = Command::new(&tshark)
            .args(["-n", "-r", to, "-Y", filter])
            .output()
            .unwrap();
        assert!(!read.stdout.is_empty(), "{filter}: {read:?}");
    }
    user.succeed(None, &["down"]);
    let left = std::fs::read_dir(lab.directory().join("runtime/sanlab")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_user_who_may_not_open_the_device_is_told_so_with_the_remedy() {
    let Some([setpriv, unshare]) = programs::find(["setpriv", "unshare"]) else {
        return;
    };
    let lab = Lab::new("a_user_who_may_not_open_the_device_is_told_so_with_the_remedy");
    if !netns::is_possible(&lab) || !netns::has_user_namespaces(&lab) {
        return;
    }
    if !is_root() {
        return programs::skip(format_args!("only root can close a device"));
    }
    let user = User::new(&lab, setpriv, unshare);
    let file = netns::file(&lab, &["a"], "");
    for check in ["/dev/net/tun", "node namespaces"] {
        let (status, said) = user.doctor("600", check);
        assert_eq!(status, "warn", "{said}");
        assert!(
            said.contains("Permission denied") && said.contains("chmod 666 /dev/net/tun"),
            "{said}"
        );
    }
    let (status, said) = user.doctor("600", "user namespaces");
    assert_eq!(status, "ok", "{said}");
    let output = user.output(Some("600"), &["up", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("chmod 666 /dev/net/tun"), "{said}");
    // Loopback mode needs none of it.
    user.succeed(Some("600"), &["up", "--detach"]);
    user.succeed(None, &["run", "--node", "a", "--", "true"]);
    user.succeed(None, &["down"]);
}
