//! A cluster with the real emulator, served by a thread of the test.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use nic_emu::control::{self, Stat, client};
use nic_emu::server::{ClusterConfig, Server, StopHandle};

use crate::harness::{Cluster, Scratch, library};

/// A running emulator.
pub(crate) struct Emulator {
    cluster: Cluster,
    socket: PathBuf,
    stop: StopHandle,
    thread: Option<JoinHandle<()>>,
    _scratch: Scratch,
}

/// What a program of a node inherits.
pub(crate) struct Seat {
    /// Value of `SANLAB_CONFIG`.
    pub(crate) config: String,
    /// The channel.
    pub(crate) channel: OwnedFd,
}

impl Emulator {
    /// Serves two nodes, n1 and n2.
    pub(crate) fn start(name: &str) -> Self {
        let scratch = Scratch::new(&format!("emulator-{name}"));
        let cluster = Cluster::claim();
        let dir = scratch.path().join("run");
        let node = |k| {
            format!(
                r#"{{"name":"n{k}","addresses":["{}/24"]}}"#,
                cluster.address(k)
            )
        };
        let text = format!(
            r#"{{"name":"test","dir":{:?},"subnet":{},"nodes":[{},{}]}}"#,
            dir,
            cluster.subnet(),
            node(1),
            node(2)
        );
        let config: ClusterConfig = serde_json::from_str(&text).unwrap();
        let server = Server::start(&config).unwrap();
        let stop = server.stop_handle();
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self {
            cluster,
            socket: dir.join(control::SOCKET_NAME),
            stop,
            thread: Some(thread),
            _scratch: scratch,
        }
    }

    /// A seat for a program of node `k`.
    pub(crate) fn seat(&self, k: u8) -> Seat {
        let (config, channel) = client::channel(&self.socket, &format!("n{k}")).unwrap();
        Seat {
            config: serde_json::to_string(&config).unwrap(),
            channel,
        }
    }

    /// A program on node 1, which may start a peer on node 2 out of `PEER_*`.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let (own, peer) = (self.seat(1), self.seat(2));
        let mut command = Command::new(program);
        command
            .env("LD_PRELOAD", library())
            .env("SANLAB_CONFIG", own.config)
            .env("SANLAB_CHANNEL", CHANNEL.to_string())
            .env("PEER_CONFIG", peer.config)
            .env("PEER_CHANNEL", PEER_CHANNEL.to_string())
            .env("ADDR", self.cluster.address(1))
            .env("PEER_ADDR", self.cluster.address(2))
            .stdin(Stdio::null());
        inherit(&mut command, own.channel, CHANNEL);
        inherit(&mut command, peer.channel, PEER_CHANNEL);
        command
    }

    /// Counters and totals.
    pub(crate) fn stat(&self) -> Stat {
        client::stat(&self.socket).unwrap()
    }

    /// Ends the emulator.
    pub(crate) fn stop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where programs find their channels: out of the way of what they open.
const CHANNEL: RawFd = 900;
const PEER_CHANNEL: RawFd = 901;

/// Leaves a descriptor to a program under a number.
fn inherit(command: &mut Command, fd: OwnedFd, number: RawFd) {
    let leave = move || {
        // SAFETY: takes no pointer; allowed between fork and exec.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(leave) };
}

/// The names of the programs of `tests/native/c`.
pub(crate) fn sources() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/native/c");
    fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".c").map(str::to_owned)
        })
        .collect()
}
