//! Telemetry records: whatever a process writes there, it is a wrong line of its own in `stat` and no more.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nic_emu::control::{Stat, client};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::uio::pwrite;
use ring_proto::admin::SockAddr;
use ring_proto::channel::{Message, PROCESS, TELEMETRY};
use ring_proto::telemetry::{self, ENTRIES, Entry, Header, LIVE, ROAD_SAN};
use zerocopy::{FromZeros, IntoBytes};

use crate::harness::{Cluster, eventually, sealed, send};
use crate::table::Value::{Flip, Is, Last};
use crate::table::{Row, nest, run};

/// What `stat` says of a process with one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    /// Totals and the connection.
    All,
    /// Its totals, no connection.
    Totals,
    /// Nothing.
    Nothing,
}

use Shown::{All, Nothing, Totals};

/// Writes a file, hands it in as a new process, asks.
fn stat(header: &[u8], entry: &[u8]) -> Stat {
    let cluster = Cluster::start();
    let channel = client::channel(&cluster.control(), "a").unwrap().1;
    let pair = || {
        let (kind, flag) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        socketpair(AddressFamily::Unix, kind, None, flag).unwrap()
    };
    let say = |socket: &OwnedFd, kind, fd: &OwnedFd| {
        let message = Message::new(kind, 0, 0, 0);
        let sent = send(socket.as_raw_fd(), message.as_bytes(), &[fd.as_raw_fd()]);
        assert_eq!(sent, Ok(32));
    };
    let file = sealed(telemetry::LEN as u64);
    pwrite(&file, header, 0).unwrap();
    pwrite(&file, entry, i64::try_from(header.len()).unwrap()).unwrap();
    let (theirs, process) = pair();
    say(&channel, PROCESS, &theirs);
    drop(theirs);
    say(&process, TELEMETRY, &file);
    // A child that ends at once: when its own file counts, the one before does.
    let (theirs, child) = pair();
    say(&process, PROCESS, &theirs);
    let mark = sealed(telemetry::LEN as u64);
    let mut marked = Header::new_zeroed();
    (marked.magic, marked.tcp_connections) = (telemetry::MAGIC, 1000);
    pwrite(&mark, marked.as_bytes(), 0).unwrap();
    say(&child, TELEMETRY, &mark);
    let ask = || client::stat(&cluster.control()).unwrap();
    eventually("told", ask, |stat| stat.totals[0].tcp_connections >= 1000)
}

fn header() -> Header {
    let mut header = Header::new_zeroed();
    header.magic = telemetry::MAGIC;
    header.pid = 4711;
    header.program[..4].copy_from_slice(b"prog");
    (header.san_tx_bytes, header.san_rx_bytes) = (10, 20);
    header.san_connections = 1;
    header.entries_used = 1;
    header
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
        accepted: 10,
        taken: 20,
        unsent: 3,
        flow: 5,
    }
}

/// What is shown holds together, whatever it says.
fn shown(stat: &Stat) -> Shown {
    for connection in &stat.connections {
        assert!(!connection.program.chars().any(char::is_control));
        assert!(["san", "tcp"].contains(&connection.road.as_str()));
    }
    let totals = &stat.totals[0];
    let has_totals = totals.san_rx_bytes != 0 || totals.san_tx_bytes != 0;
    match (has_totals, stat.connections.len()) {
        (true, 1) => All,
        (true, 0) => Totals,
        (false, 0) => Nothing,
        (_, n) => panic!("{n} connections, totals {totals:?}"),
    }
}

#[test]
fn header_of_a_file() {
    let fields = fields!(Header {
        magic,
        pid,
        program,
        san_tx_bytes,
        san_rx_bytes,
        tcp_connections,
        san_connections,
        entries_used,
        fallbacks,
        reserved
    });
    let rows: [Row<'_, Shown>; 10] = [
        (
            "magic",
            &[
                (Is(0), Nothing),
                (Flip(1), Nothing),
                (Flip(1 << 63), Nothing),
            ],
        ),
        ("pid", &[(Is(0), All), (Is(u64::MAX), All)]),
        (
            "program",
            // Empty, commands to a terminal, no UTF-8, no zero at its end.
            &[
                (Is(0), All),
                (Is(u64::from_le_bytes(*b"\x1b[2J\x07\n\r\x7f")), All),
                (Is(u64::MAX), All),
                (Last(b'x'), All),
            ],
        ),
        ("san_tx_bytes", &[(Is(0), All), (Is(u64::MAX), All)]),
        ("san_rx_bytes", &[(Is(0), All), (Is(u64::MAX), All)]),
        ("tcp_connections", &[(Is(u64::MAX), All)]),
        ("san_connections", &[(Is(0), All), (Is(u64::MAX), All)]),
        (
            "entries_used",
            &[
                (Is(0), Totals),
                (Is(ENTRIES as u64), All),
                (Is(ENTRIES as u64 + 1), All),
                (Is(u64::MAX), All),
            ],
        ),
        ("fallbacks", &[(Is(u64::MAX), All), (Last(0xff), All)]),
        ("reserved", &[(Is(1), All), (Last(0xff), All)]),
    ];
    run("Header", &fields, &rows, &All, |change| {
        let mut header = header();
        change.apply(header.as_mut_bytes());
        shown(&stat(header.as_bytes(), entry().as_bytes()))
    });
}

#[test]
fn entry_of_a_file() {
    let fields = fields!(Entry {
        state,
        road,
        local,
        remote,
        tx_bytes,
        rx_bytes,
        accepted,
        taken,
        unsent,
        flow
    });
    let address = fields!(SockAddr {
        family,
        port,
        reserved,
        addr
    });
    let fields = nest(fields, "local", 1, &address);
    let fields = nest(fields, "remote", 1, &address);
    let mut rows: Vec<Row<'_, Shown>> = vec![
        (
            "state",
            &[(Is(0), Totals), (Is(2), Totals), (Is(u64::MAX), Totals)],
        ),
        (
            "road",
            // Kernel TCP, no road, unknown reasons and modes.
            &[
                (Is(0), All),
                (Is(2), Totals),
                (Is(0xff), Totals),
                (Is(1 | 0xff << 8), All),
                (Is(1 | 0xff << 16), All),
                (Is(1 | 0xff << 56), All),
            ],
        ),
        ("tx_bytes", &[(Is(0), All), (Is(u64::MAX), All)]),
        ("rx_bytes", &[(Is(0), All), (Is(u64::MAX), All)]),
        ("accepted", &[(Is(0), All), (Is(u64::MAX), All)]),
        ("taken", &[(Is(0), All), (Is(u64::MAX), All)]),
        ("unsent", &[(Is(0), All), (Is(u64::MAX), All)]),
        // No credits, unknown states.
        (
            "flow",
            &[(Is(0), All), (Is(0xff << 32), All), (Is(u64::MAX), All)],
        ),
    ];
    let names: Vec<_> = fields.iter().map(|field| field.name.clone()).collect();
    for name in &names {
        let values: &[_] = match name.split_once('.') {
            Some((_, "family")) => &[(Is(0), Totals), (Is(5), Totals), (Is(0xffff), Totals)],
            Some((_, "port")) => &[(Is(0), All), (Is(0xffff), All)],
            Some((_, "reserved")) => &[(Is(1), Totals), (Is(1 << 31), Totals)],
            Some((_, "addr")) => &[(Is(0), All), (Last(1), Totals)],
            _ => continue,
        };
        rows.push((name, values));
    }
    run("Entry", &fields, &rows, &All, |change| {
        let mut entry = entry();
        change.apply(entry.as_mut_bytes());
        shown(&stat(header().as_bytes(), entry.as_bytes()))
    });
}
