//! Cluster channels, process sockets, holders and telemetry.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nic_emu::control::{Stat, client};
use nix::fcntl::SealFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::uio::pwrite;
use ring_proto::channel::{HOLDER, Message, OPEN_FUNCTION, PROCESS, TELEMETRY};
use ring_proto::telemetry::{self, Entry, Header, LIVE, ROAD_SAN, Reason};
use ring_proto::{regs, uar};
use zerocopy::{FromZeros, IntoBytes};

use super::harness::{Cluster, RawClient, eventually, memfd, sealed, send};

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// One end of a channel or process socket, as a program holds it.
struct Talker(OwnedFd);

impl Talker {
    fn channel(cluster: &Cluster) -> Self {
        Self(client::channel(&cluster.control(), "a").unwrap().1)
    }

    fn say(&self, kind: u16, [a, b, c]: [u32; 3], fd: Option<&OwnedFd>) {
        let message = Message::new(kind, a, b, c);
        let fds: Vec<_> = fd.map(AsRawFd::as_raw_fd).into_iter().collect();
        assert_eq!(send(self.0.as_raw_fd(), message.as_bytes(), &fds), Ok(32));
    }

    /// Introduces a process and returns its end of the process socket.
    fn process(&self) -> Talker {
        let (theirs, ours) = pair(SockType::SeqPacket);
        self.say(PROCESS, [0; 3], Some(&theirs));
        Talker(ours)
    }

    fn open_function(&self) -> RawClient {
        let (theirs, ours) = pair(SockType::Stream);
        self.say(OPEN_FUNCTION, [0; 3], Some(&theirs));
        let mut client = RawClient::over(UnixStream::from(ours));
        client.version().unwrap();
        client
    }

    fn hold(&self, function: u32, slot: u32, generation: u32) {
        self.say(HOLDER, [function, slot, generation], None);
    }

    fn tell(&self, file: &OwnedFd) {
        self.say(TELEMETRY, [0; 3], Some(file));
    }

    /// Gives this end to a real process that does nothing with it, and keeps none.
    fn into_child(self) -> Child {
        Command::new("sleep")
            .arg("100000")
            .stdin(Stdio::from(self.0))
            .spawn()
            .unwrap()
    }
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The live generation of a holder slot, as clients see it.
fn generation(client: &mut RawClient, slot: u64) -> u32 {
    let bytes = client
        .read_region(regs::REGION_BAR2, uar::HOLDERS_BASE + 4 * slot, 4)
        .unwrap();
    u32::from_le_bytes(bytes.try_into().unwrap())
}

/// Waits until everything sent before has been read: a function opened on the same socket answers.
fn settle(talker: &Talker) {
    drop(talker.open_function());
}

/// Holds a slot of the cluster's only function and waits until the server has acted on it.
fn hold_first(process: &Talker) -> RawClient {
    let function = process.open_function();
    process.hold(1, 0, 1);
    settle(process);
    function
}

fn telemetry_file(fill: impl FnOnce(&mut Header), entries: &[Entry]) -> OwnedFd {
    let file = sealed(telemetry::LEN as u64);
    let mut header = Header::new_zeroed();
    header.magic = telemetry::MAGIC;
    header.pid = 4711;
    header.program[..4].copy_from_slice(b"prog");
    header.entries_used = entries.len() as u64;
    fill(&mut header);
    pwrite(&file, header.as_bytes(), 0).unwrap();
    pwrite(&file, entries.as_bytes(), 400).unwrap();
    file
}

fn entry() -> Entry {
    let local: SocketAddr = "127.77.9.1:80".parse().unwrap();
    let remote: SocketAddr = "127.77.9.2:4000".parse().unwrap();
    Entry {
        state: LIVE,
        road: ROAD_SAN,
        local: local.into(),
        remote: remote.into(),
        tx_bytes: 10,
        rx_bytes: 20,
        accepted: 0,
        taken: 0,
        unsent: 0,
        flow: 0,
    }
}

fn stat(cluster: &Cluster) -> Stat {
    client::stat(&cluster.control()).unwrap()
}

#[test]
fn a_function_opened_over_a_process_socket_is_one_of_the_node() {
    let cluster = Cluster::start();
    let (config, channel) = client::channel(&cluster.control(), "b").unwrap();
    assert_eq!((config.node.as_str(), config.node_id), ("b", 2));
    let process = Talker(channel).process();
    let mut function = process.open_function();
    assert_eq!(function.register(regs::MAGIC), regs::MAGIC_VALUE);
    assert_eq!(function.register(regs::NODE), 1);
    assert_eq!(stat(&cluster).nodes[1].counters.functions, 1);
    // It outlives the process socket: the stream alone is its life.
    drop(process);
    assert_eq!(function.register(regs::MAGIC), regs::MAGIC_VALUE);
    drop(function);
    let functions = || stat(&cluster).nodes[1].counters.functions;
    eventually("detached", functions, |&n| n == 0);
}

#[test]
fn a_killed_process_gives_up_its_holder_slot() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let process = channel.process();
    let mut function = hold_first(&process);
    assert_eq!(generation(&mut function, 0), 1);
    let child = process.into_child();
    assert_eq!(generation(&mut function, 0), 1);
    kill(child);
    eventually(
        "released",
        || generation(&mut function, 0),
        |&generation| generation == 0,
    );
    assert_eq!(function.register(regs::MAGIC), regs::MAGIC_VALUE);
}

#[test]
fn a_child_of_the_family_holds_until_it_ends_though_its_parent_ended_first() {
    let cluster = Cluster::start();
    let parent = Talker::channel(&cluster).process();
    let mut function = parent.open_function();
    let child = parent.process();
    child.hold(1, 0, 1);
    settle(&child);
    kill(parent.into_child());
    let child = child.into_child();
    assert_eq!(generation(&mut function, 0), 1);
    kill(child);
    eventually(
        "released",
        || generation(&mut function, 0),
        |&generation| generation == 0,
    );
}

#[test]
fn what_was_sent_before_the_end_is_acted_on_before_the_end_is() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let parent = channel.process();
    let mut function = parent.open_function();
    // Child and grandchild introduced, one holding, and all of it gone before the server may have looked.
    let child = parent.process();
    let grandchild = child.process();
    drop(child);
    grandchild.tell(&telemetry_file(|h| h.san_tx_bytes = 5, &[]));
    grandchild.hold(1, 0, 1);
    drop(grandchild);
    eventually(
        "released",
        || generation(&mut function, 0),
        |&generation| generation == 0,
    );
    assert_eq!(stat(&cluster).totals[0].san_tx_bytes, 5);
}

#[test]
fn strangers_cannot_end_the_holds_of_others() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let process = channel.process();
    let mut function = hold_first(&process);
    let stranger = channel.process();
    for generation in [0, 1, 2, u32::MAX] {
        stranger.hold(1, 0, generation);
        stranger.hold(1, u32::MAX, generation);
        stranger.hold(77, 0, generation);
    }
    settle(&stranger);
    let file = telemetry_file(|h| h.san_connections = 1, &[]);
    stranger.tell(&file);
    drop(stranger);
    // Its telemetry is folded after its holds are dropped.
    let folded = || stat(&cluster).totals[0].san_connections;
    eventually("folded", folded, |&n| n == 1);
    assert_eq!(generation(&mut function, 0), 1);
}

#[test]
fn telemetry_is_shown_while_the_process_lives_and_folded_when_it_ends() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let process = channel.process();
    let fill = |header: &mut Header| {
        (header.san_tx_bytes, header.san_rx_bytes) = (100, 200);
        (header.tcp_connections, header.san_connections) = (1, 2);
        header.fallbacks[Reason::NoSanListener as usize] = 3;
    };
    process.tell(&telemetry_file(fill, &[entry()]));
    let live = || stat(&cluster).connections;
    let seen = eventually("seen", live, |connections| !connections.is_empty());
    let connection = &seen[0];
    assert_eq!(
        (connection.pid, connection.program.as_str()),
        (4711, "prog")
    );
    assert_eq!(connection.local, "127.77.9.1:80");
    assert_eq!(connection.remote, "127.77.9.2:4000");
    assert_eq!(
        (connection.road.as_str(), connection.node.as_str()),
        ("san", "a")
    );
    assert_eq!((connection.tx_bytes, connection.rx_bytes), (10, 20));
    let before = stat(&cluster);
    kill(process.into_child());
    let gone = eventually("gone", || stat(&cluster), |s| s.connections.is_empty());
    assert_eq!(gone.totals, before.totals);
    assert_eq!(gone.totals[0].san_rx_bytes, 200);
    let fallback = &gone.fallbacks[0];
    assert_eq!(
        (fallback.reason.as_str(), fallback.count),
        ("no_san_listener", 3)
    );
}

#[test]
fn lies_in_telemetry_harm_nobody() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    for _ in 0..3 {
        let process = channel.process();
        let fill = |header: &mut Header| {
            (header.san_tx_bytes, header.pid) = (u64::MAX, u64::MAX);
            header.entries_used = u64::MAX;
            header.program = [0xff; 64];
            header.fallbacks = [u64::MAX; 32];
        };
        let mut bad = entry();
        bad.local.family = 77;
        process.tell(&telemetry_file(fill, &[entry(), bad]));
        // Only the first counts.
        process.tell(&telemetry_file(|h| h.san_rx_bytes = 1, &[]));
        settle(&process);
    }
    let full = |s: &Stat| s.totals[0].san_tx_bytes == u64::MAX && s.connections.is_empty();
    let stat = eventually("folded", || stat(&cluster), full);
    assert_eq!(stat.totals[0].san_rx_bytes, 0);
    assert_eq!(stat.fallbacks.len(), Reason::ALL.len());
}

#[test]
fn files_that_could_block_or_kill_the_reader_are_not_taken() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let (pipe, _write) = nix::unistd::pipe().unwrap();
    for file in [
        pipe,
        memfd(telemetry::LEN as u64, SealFlag::empty()),
        sealed(4096),
        std::fs::File::open("/dev/zero").unwrap().into(),
    ] {
        let process = channel.process();
        process.tell(&file);
        settle(&process);
    }
    assert!(stat(&cluster).connections.is_empty());
}

#[test]
fn nonsense_on_a_shared_channel_cuts_nobody_off() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let raw = channel.0.as_raw_fd();
    let (stream, _other) = pair(SockType::Stream);
    let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
    for _ in 0..100 {
        send(raw, &[], &[]).unwrap();
        send(raw, &[0xff; 32], &[]).unwrap();
        send(raw, &[0xff; 1000], &[]).unwrap();
        send(raw, &[0; 5], &[stream.as_raw_fd()]).unwrap();
        channel.say(PROCESS, [0; 3], None);
        channel.say(PROCESS, [0; 3], Some(&stream));
        channel.say(PROCESS, [0; 3], Some(&tcp));
        channel.say(OPEN_FUNCTION, [0; 3], Some(&stream));
        channel.hold(1, 0, 1);
        channel.say(99, [0; 3], None);
    }
    let process = channel.process();
    let mut function = process.open_function();
    assert_eq!(function.register(regs::MAGIC), regs::MAGIC_VALUE);
    // A process socket takes nonsense as calmly.
    send(process.0.as_raw_fd(), &[0xff; 1000], &[]).unwrap();
    process.say(OPEN_FUNCTION, [0; 3], Some(&tcp));
    assert_eq!(
        process.open_function().register(regs::MAGIC),
        regs::MAGIC_VALUE
    );
}

#[test]
fn sockets_that_their_maker_keeps_reading_or_made_blocking_hold_up_nobody() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    let process = channel.process();
    // The process keeps both ends: the server's end never hangs up by itself, and its flags are not the server's.
    let (theirs, ours) = pair(SockType::Stream);
    process.say(OPEN_FUNCTION, [0; 3], Some(&theirs));
    let mut client = RawClient::over(UnixStream::from(ours));
    client.version().unwrap();
    client.send(&[1, 2, 3], &[]).unwrap();
    assert_eq!(stat(&cluster).nodes[0].counters.functions, 1);
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let functions = || stat(&cluster).nodes[0].counters.functions;
    eventually("detached", functions, |&n| n == 0);
    drop(theirs);
}

#[test]
fn hundreds_of_processes_come_and_go() {
    let cluster = Cluster::start();
    let channel = Talker::channel(&cluster);
    for _ in 0..3 {
        let processes: Vec<_> = (0..100).map(|_| channel.process()).collect();
        for process in &processes {
            process.tell(&telemetry_file(|h| h.tcp_connections = 1, &[]));
        }
    }
    let folded = || stat(&cluster).totals[0].tcp_connections;
    eventually("folded", folded, |&n| n == 300);
}
