//! Functions: as many as the device has places for, and as the process has descriptors for.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::{RawClient, eventually};
use crate::operations;
use crate::process::Emulator;
use crate::traffic::{Pair, Traffic};

/// Functions of a device, as docs/device.md has it.
const LIMIT: usize = 4096;

#[test]
fn functions_run_out_with_a_refusal_and_come_back() {
    // Each connection is a descriptor here, and four in the emulator.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let mut crowd = Vec::new();
    let wanted = if operations(0, 1) == 1 { LIMIT } else { 300 };
    let refusal = loop {
        let mut client = RawClient::connect(&emulator.device("b"));
        match client.version() {
            Ok(_) => crowd.push(client),
            Err(errno) => break Some(errno),
        }
        assert!(crowd.len() <= LIMIT, "no limit");
        if crowd.len() == wanted && wanted < LIMIT {
            break None;
        }
    };
    match refusal {
        // The traffic has two.
        Some(Errno::ENOSPC) => assert_eq!(crowd.len() + 2, LIMIT),
        // Where descriptors are scarcer, they are the limit.
        Some(errno) => assert!(matches!(errno, Errno::EMFILE | Errno::ENFILE), "{errno}"),
        None => {}
    }
    println!("{} functions, then {refusal:?}", crowd.len());
    drop(crowd);
    let functions = || emulator.counters("b").functions;
    eventually("given back", functions, |&n| n == 1);
    Pair::new(&emulator, 4300).round(1);
    traffic.finish();
    emulator.end_unharmed();
}
