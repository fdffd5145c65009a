//! Sockets that are opened and left: device connections, control connections, processes.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nic_emu::control::client;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use ring_proto::channel::{Message, PROCESS};
use ring_proto::{regs, vfio};
use zerocopy::IntoBytes;

use crate::harness::{PATIENCE, RawClient, eventually, send};
use crate::process::Emulator;
use crate::traffic::{Pair, Traffic};

/// The other end hangs up; what it says before is dropped.
fn is_hung_up(mut stream: UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("not hung up: {error}"),
    }
}

#[test]
fn connections_without_a_whole_version_are_ended_after_a_while_and_others_are_not() {
    let emulator = Emulator::start();
    let mut idle = RawClient::attached(&emulator.device("a"));
    let silent = UnixStream::connect(emulator.device("a")).unwrap();
    let mut slow = RawClient::connect(&emulator.device("b"));
    let header = slow.header(vfio::CMD_VERSION, 4);
    slow.send(&header.as_bytes()[..10], &[]).unwrap();
    is_hung_up(silent);
    is_hung_up(slow.stream.try_clone().unwrap());
    assert_eq!(idle.register(regs::MAGIC), regs::MAGIC_VALUE);
    Pair::new(&emulator, 4200).round(1);
    emulator.end_unharmed();
}

#[test]
fn a_flood_of_connections_holds_a_bounded_number_of_descriptors() {
    let emulator = Emulator::start();
    let mut pair = Pair::new(&emulator, 4200);
    let mut crowd = Vec::new();
    for n in 0..900 {
        crowd.push(UnixStream::connect(emulator.device("a")).unwrap());
        if n % 100 == 0 {
            pair.round(n);
        }
    }
    // The oldest make room; the newest are still there.
    is_hung_up(crowd.remove(0));
    let descriptors = || emulator.descriptors();
    eventually("bounded", descriptors, |&n| n < 512 + 64);
    Pair::new(&emulator, 4300).round(2);
    pair.round(3);
    drop(crowd);
    emulator.end_unharmed();
}

#[test]
fn a_flood_of_control_connections_locks_nobody_out() {
    let emulator = Emulator::start();
    let before = emulator.descriptors();
    let traffic = Traffic::start(&emulator, 4200);
    let mut crowd = Vec::new();
    for n in 0..300 {
        let mut stream = UnixStream::connect(emulator.control()).unwrap();
        // Half of a request each: none of them is answered. The oldest may have been ended already.
        let _ = stream.write_all(b"{\"cmd\":");
        crowd.push(stream);
        if n % 50 == 0 {
            client::ping(&emulator.control()).unwrap();
        }
    }
    is_hung_up(crowd.remove(0));
    client::stat(&emulator.control()).unwrap();
    drop(crowd);
    // The traffic's own are four: two connections, two windows, and what belongs to them.
    eventually(
        "given back",
        || emulator.descriptors(),
        |&n| n < before + 32,
    );
    traffic.finish();
    emulator.end_unharmed();
}

#[test]
fn processes_that_introduce_more_processes_are_all_forgotten_at_their_end() {
    let emulator = Emulator::start();
    let before = emulator.descriptors();
    let channel = client::channel(&emulator.control(), "a").unwrap().1;
    let mut processes = Vec::new();
    for _ in 0..1_000 {
        let (kind, flag) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (theirs, ours) = socketpair(AddressFamily::Unix, kind, None, flag).unwrap();
        let message = Message::new(PROCESS, 0, 0, 0);
        // A full channel makes its writer wait, not the emulator.
        let sent = send(
            channel.as_raw_fd(),
            message.as_bytes(),
            &[theirs.as_raw_fd()],
        );
        assert_eq!(sent, Ok(32));
        processes.push(ours);
    }
    let descriptors = || emulator.descriptors();
    eventually("introduced", descriptors, |&n| n >= before + 1_000);
    Pair::new(&emulator, 4200).round(1);
    drop(processes);
    drop(channel);
    eventually("forgotten", descriptors, |&n| n <= before + 8);
    Pair::new(&emulator, 4300).round(2);
    emulator.end_unharmed();
}
