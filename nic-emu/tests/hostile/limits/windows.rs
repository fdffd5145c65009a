//! Windows: in number and in bytes.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use ring_proto::vfio;
use zerocopy::IntoBytes;

use crate::harness::{RawClient, sealed};
use crate::process::Emulator;
use crate::traffic::{Pair, Traffic};

/// Maps the same file again and again; how often, and the refusal.
fn map_until_refused(client: &mut RawClient, len: u64) -> (u64, Errno) {
    let memory = sealed(len);
    let mut mapped = 0;
    loop {
        match client.map(Some(memory.as_raw_fd()), mapped * len, len) {
            Ok(()) => mapped += 1,
            Err(errno) => return (mapped, errno),
        }
        assert!(mapped < 100_000, "no limit");
    }
}

fn unmap_all(client: &mut RawClient) {
    let unmap = vfio::DmaUnmap {
        argsz: 24,
        flags: vfio::DMA_UNMAP_ALL,
        address: 0,
        size: 0,
    };
    client
        .call(vfio::CMD_DMA_UNMAP, unmap.as_bytes(), &[])
        .unwrap();
}

#[test]
fn windows_run_out_in_bytes_as_in_number() {
    let emulator = Emulator::start();
    let mut greedy = RawClient::attached(&emulator.device("a"));
    // A sparse file as large as one window may be: address space, no memory.
    let (mapped, refusal) = map_until_refused(&mut greedy, 1 << 40);
    assert!(
        matches!(refusal, Errno::ENOSPC | Errno::ENOMEM),
        "{refusal}"
    );
    assert!(mapped > 0);
    Pair::new(&emulator, 4200).round(1);
    // What is unmapped can be mapped again, as often.
    unmap_all(&mut greedy);
    assert_eq!(map_until_refused(&mut greedy, 1 << 40), (mapped, refusal));
    drop(greedy);
    Pair::new(&emulator, 4300).round(2);
    emulator.end_unharmed();
}

#[test]
fn windows_run_out_in_number_for_their_function_alone() {
    let emulator = Emulator::start();
    let before = emulator.descriptors();
    let traffic = Traffic::start(&emulator, 4200);
    let mut greedy = RawClient::attached(&emulator.device("a"));
    let (mapped, refusal) = map_until_refused(&mut greedy, 4096);
    // Each keeps its descriptor: where those are scarce, they are the limit.
    match refusal {
        Errno::ENOSPC => assert_eq!(mapped, 4096),
        errno => assert_eq!(errno, Errno::EMFILE),
    }
    if refusal == Errno::ENOSPC {
        Pair::new(&emulator, 4300).round(1);
    }
    unmap_all(&mut greedy);
    assert_eq!(map_until_refused(&mut greedy, 4096), (mapped, refusal));
    drop(greedy);
    traffic.finish();
    let gone = || emulator.descriptors();
    crate::harness::eventually("given back", gone, |&n| n <= before + 4);
    Pair::new(&emulator, 4400).round(2);
    emulator.end_unharmed();
}
