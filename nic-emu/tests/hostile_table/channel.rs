//! Messages of process sockets and of the cluster channel: every kind by what it brings about.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nic_emu::control::client;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::uio::pwrite;
use ring_proto::channel::{HOLDER, Message, OPEN_FUNCTION, PROCESS, TELEMETRY};
use ring_proto::telemetry::{self, Entry, Header, LIVE};
use ring_proto::{regs, uar};
use zerocopy::{FromZeros, IntoBytes};

use crate::harness::{Cluster, RawClient, eventually, sealed, send};
use crate::table::Value::{Flip, Is, Last};
use crate::table::{Field, Row, Value, run};

/// Whether a message was acted on. One that was not leaves the socket as useful as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    Done,
    Ignored,
}

use Effect::{Done, Ignored};

type Values = &'static [(Value, Effect)];

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// Sends a message of 32 bytes with at most one descriptor.
fn say(socket: &OwnedFd, bytes: &[u8], fd: Option<&OwnedFd>) {
    let fds: Vec<_> = fd.map(AsRawFd::as_raw_fd).into_iter().collect();
    assert_eq!(send(socket.as_raw_fd(), bytes, &fds), Ok(bytes.len()));
}

/// A cluster with a process on node a.
struct Scene {
    cluster: Cluster,
    process: OwnedFd,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::start();
        let channel = client::channel(&cluster.control(), "a").unwrap().1;
        let (theirs, process) = pair(SockType::SeqPacket);
        let message = Message::new(PROCESS, 0, 0, 0);
        say(&channel, message.as_bytes(), Some(&theirs));
        Self { cluster, process }
    }

    /// A function, opened over a socket: what was said on it before has been acted on when this returns.
    fn open(&self, socket: &OwnedFd) -> RawClient {
        let (theirs, ours) = pair(SockType::Stream);
        let message = Message::new(OPEN_FUNCTION, 0, 0, 0);
        say(socket, message.as_bytes(), Some(&theirs));
        drop(theirs);
        let mut function = RawClient::over(UnixStream::from(ours));
        function.version().unwrap();
        assert_eq!(function.register(regs::MAGIC), regs::MAGIC_VALUE);
        function
    }
}

fn fields() -> Vec<Field> {
    fields!(Message {
        magic,
        version,
        kind,
        a,
        b,
        c,
        reserved
    })
}

/// The rows that all kinds share, with those of the arguments.
fn rows(kind: Values, arguments: [Values; 3]) -> [Row<'static, Effect>; 7] {
    let [a, b, c] = arguments;
    [
        (
            "magic",
            &[
                (Is(0), Ignored),
                (Flip(1), Ignored),
                (Flip(1 << 31), Ignored),
            ],
        ),
        (
            "version",
            &[(Is(0), Ignored), (Is(2), Ignored), (Is(0xffff), Ignored)],
        ),
        ("kind", kind),
        ("a", a),
        ("b", b),
        ("c", c),
        (
            "reserved",
            &[(Is(1), Ignored), (Is(1 << 32), Ignored), (Last(1), Ignored)],
        ),
    ]
}

/// Arguments that a kind has no use for.
const UNUSED: [Values; 3] = [&[(Is(0xffff_ffff), Done)]; 3];

/// Sends a changed message with its descriptor, whatever it has become; the socket serves on.
fn told(scene: &Scene, message: &[u8], fd: Option<&OwnedFd>) {
    say(&scene.process, message, fd);
    drop(scene.open(&scene.process));
}

#[test]
fn process() {
    let kinds: Values = &[
        (Is(0), Ignored),
        (Is(2), Ignored),
        (Is(3), Ignored),
        (Is(4), Ignored),
        (Is(5), Ignored),
        (Is(0xffff), Ignored),
    ];
    run(
        "PROCESS",
        &fields(),
        &rows(kinds, UNUSED),
        &Done,
        |change| {
            let scene = Scene::new();
            let mut message = Message::new(PROCESS, 0, 0, 0);
            change.apply(message.as_mut_bytes());
            let (theirs, ours) = pair(SockType::SeqPacket);
            told(&scene, message.as_bytes(), Some(&theirs));
            drop(theirs);
            // A socket that nobody took is hung up by now.
            let nothing = Message::new(HOLDER, 0, 0, 0);
            if send(ours.as_raw_fd(), nothing.as_bytes(), &[]).is_err() {
                return Ignored;
            }
            drop(scene.open(&ours));
            Done
        },
    );
}

#[test]
fn open_function() {
    let kinds: Values = &[
        (Is(0), Ignored),
        (Is(1), Ignored),
        (Is(2), Ignored),
        (Is(4), Ignored),
        (Is(5), Ignored),
        (Is(0xffff), Ignored),
    ];
    run(
        "OPEN_FUNCTION",
        &fields(),
        &rows(kinds, UNUSED),
        &Done,
        |change| {
            let scene = Scene::new();
            let mut message = Message::new(OPEN_FUNCTION, 0, 0, 0);
            change.apply(message.as_mut_bytes());
            let (theirs, ours) = pair(SockType::Stream);
            told(&scene, message.as_bytes(), Some(&theirs));
            drop(theirs);
            let function = RawClient::over(UnixStream::from(ours));
            if function.send(&[0], &[]).is_err() {
                return Ignored;
            }
            Done
        },
    );
}

#[test]
fn telemetry_of_a_process() {
    let kinds: Values = &[
        (Is(0), Ignored),
        (Is(1), Ignored),
        (Is(3), Ignored),
        (Is(4), Ignored),
        (Is(5), Ignored),
        (Is(0xffff), Ignored),
    ];
    run(
        "TELEMETRY",
        &fields(),
        &rows(kinds, UNUSED),
        &Done,
        |change| {
            let scene = Scene::new();
            let file = sealed(telemetry::LEN as u64);
            let mut header = Header::new_zeroed();
            (header.magic, header.san_tx_bytes) = (telemetry::MAGIC, 5);
            pwrite(&file, header.as_bytes(), 0).unwrap();
            let mut message = Message::new(TELEMETRY, 0, 0, 0);
            change.apply(message.as_mut_bytes());
            told(&scene, message.as_bytes(), Some(&file));
            let stat = client::stat(&scene.cluster.control()).unwrap();
            if stat.totals[0].san_tx_bytes == 5 {
                Done
            } else {
                Ignored
            }
        },
    );
}

#[test]
fn holder() {
    // No descriptor comes along, so any other kind is unsound.
    let kinds: Values = &[
        (Is(0), Ignored),
        (Is(1), Ignored),
        (Is(2), Ignored),
        (Is(3), Ignored),
        (Is(5), Ignored),
        (Is(0xffff), Ignored),
    ];
    let function: Values = &[
        (Is(0), Ignored),
        (Is(99), Ignored),
        (Is(0xffff_ffff), Ignored),
    ];
    let slot: Values = &[
        (Is(1), Ignored),
        (Is(65_536), Ignored),
        (Is(0xffff_ffff), Ignored),
    ];
    let generation: Values = &[
        (Is(0), Ignored),
        (Is(2), Ignored),
        (Is(0xffff_ffff), Ignored),
    ];
    let rows = rows(kinds, [function, slot, generation]);
    run("HOLDER", &fields(), &rows, &Done, |change| {
        let scene = Scene::new();
        let mut function = scene.open(&scene.process);
        let mut message = Message::new(HOLDER, 1, 0, 1);
        change.apply(message.as_mut_bytes());
        told(&scene, message.as_bytes(), None);
        let Scene { cluster, process } = scene;
        // Its connection is shown while it lives; its holds are dropped before that ends.
        say_telemetry(&process);
        drop(process);
        let stat = || client::stat(&cluster.control()).unwrap();
        eventually("the end", stat, |stat| {
            stat.totals[0].san_tx_bytes == 7 && stat.connections.is_empty()
        });
        let bytes = function
            .read_region(regs::REGION_BAR2, uar::HOLDERS_BASE, 4)
            .unwrap();
        let generation = u32::from_le_bytes(bytes.try_into().unwrap());
        if generation == 0 { Done } else { Ignored }
    });
}

/// Hands in telemetry with a live connection.
fn say_telemetry(process: &OwnedFd) {
    let file = sealed(telemetry::LEN as u64);
    let mut header = Header::new_zeroed();
    (header.magic, header.san_tx_bytes, header.entries_used) = (telemetry::MAGIC, 7, 1);
    let address: SocketAddr = "127.77.9.1:80".parse().unwrap();
    let entry = Entry {
        state: LIVE,
        local: address.into(),
        remote: address.into(),
        ..Entry::default()
    };
    pwrite(&file, header.as_bytes(), 0).unwrap();
    pwrite(&file, entry.as_bytes(), HEADER_LEN).unwrap();
    let message = Message::new(TELEMETRY, 0, 0, 0);
    say(process, message.as_bytes(), Some(&file));
}

const HEADER_LEN: i64 = size_of::<Header>() as i64;
