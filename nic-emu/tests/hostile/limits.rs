//! Resources that run out: each has a limit and a clear refusal, and at each a well-behaved client still works.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use ring_proto::admin::{AdminOp, AdminStatus, Body, MrReg, QueueCreate};
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::{regs, uar, vfio};
use zerocopy::IntoBytes;

use super::harness::{PATIENCE, RawClient, eventually, sealed};
use super::live::{BASE, HEAP, Live, everything};
use super::operations;
use super::process::Emulator;
use super::traffic::{Pair, Traffic};

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
fn a_storm_of_doorbells_on_every_slot_starves_nobody() {
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let stop = Arc::new(AtomicU32::new(0));
    let storm = {
        let stormer = Live::attach(&emulator.device("a"));
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut rung = 0u64;
            // Relaxed: nothing else is told by it.
            while stop.load(Ordering::Relaxed) == 0 {
                for slot in (1..uar::SLOTS).step_by(7) {
                    stormer.mark(slot);
                    rung += 1;
                }
                stormer.kick();
            }
            rung
        })
    };
    let mut pair = Pair::new(&emulator, 4300);
    for n in 0..operations(100, 5_000) {
        pair.round(n);
    }
    stop.store(1, Ordering::Relaxed);
    let rung = storm.join().unwrap();
    println!(
        "storm: {rung} doorbells beside {} checked rounds",
        traffic.finish()
    );
    emulator.end_unharmed();
}

/// Repeats a command until it is refused; how often it succeeded.
fn until_refused(live: &mut Live, op: AdminOp, mut body: impl FnMut(u32) -> Body) -> u32 {
    let mut made = 0;
    loop {
        match live.answer(op, body(made)).unwrap() {
            (AdminStatus::OK, _) => made += 1,
            (status, _) => {
                assert_eq!(status, AdminStatus::NO_RESOURCE, "{op} number {made}");
                return made;
            }
        }
    }
}

#[test]
fn objects_run_out_at_the_announced_limits_for_their_function_alone() {
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let mut greedy = Live::attach(&emulator.device("a"));
    // One PD is there already.
    let pds = until_refused(&mut greedy, AdminOp::PD_ALLOC, |_| Body::default());
    assert_eq!(pds + 1, greedy.raw.register(regs::MAX_PD));
    if operations(0, 1) == 1 {
        let pdn = greedy.pdn();
        let regions = until_refused(&mut greedy, AdminOp::MR_REG, |_| {
            MrReg {
                addr: BASE + HEAP,
                len: 64,
                pdn,
                access: everything().bits(),
                ..MrReg::default()
            }
            .to_body()
        });
        assert_eq!(regions, greedy.raw.register(regs::MAX_MR));
        let most = greedy.raw.register(regs::MAX_CQ);
        for n in 0..most {
            let cq = QueueCreate {
                ring: BASE + HEAP,
                depth: 16,
                slot: uar::SLOTS - 1 - n,
            };
            // The EQ has a slot of its own, and so has the admin queue.
            let (status, _) = greedy.answer(AdminOp::CQ_CREATE, cq.to_body()).unwrap();
            let is_left = n < most - 1;
            assert_eq!(status == AdminStatus::OK, is_left, "{n}: {status}");
        }
    }
    // Its next life starts from nothing.
    greedy.restart().unwrap();
    greedy.qp().unwrap();
    Pair::new(&emulator, 4300).round(1);
    traffic.finish();
    emulator.end_unharmed();
}

#[test]
fn windows_run_out_in_bytes_as_in_number() {
    let emulator = Emulator::start();
    let mut greedy = RawClient::attached(&emulator.device("a"));
    // A sparse file as large as one window may be, mapped again and again: address space, no memory.
    let huge = 1 << 40;
    let memory = sealed(huge);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&memory);
    let mut mapped = 0u64;
    let refusal = loop {
        match greedy.map(Some(fd), mapped * huge, huge) {
            Ok(()) => mapped += 1,
            Err(errno) => break errno,
        }
        assert!(mapped < 4096);
    };
    assert!(
        matches!(refusal, Errno::ENOSPC | Errno::ENOMEM),
        "{refusal}"
    );
    assert!(mapped > 0);
    Pair::new(&emulator, 4200).round(1);
    drop(greedy);
    Pair::new(&emulator, 4300).round(2);
    emulator.end_unharmed();
}
