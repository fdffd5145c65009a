//! Fuzz target of everything else that peers hand in as bytes: telemetry files, channel messages, control requests, cluster files.
//!
//! Place: [`super::TARGETS`]. Source: ring_proto::{telemetry, channel}, [`crate::control`].

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::uio::pwrite;
use ring_proto::telemetry;

use crate::control::{NodeConfig, Request, Stat};
use crate::server::ClusterConfig;
use crate::server::channel::{self, Next};
use crate::server::fd_pass::{self, Wait};
use crate::server::telemetry::Telemetry;

/// The first byte picks the kind.
pub fn records(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => telemetry(data),
        1 => channel(data),
        _ => control(data),
    }
}

/// Contents of a telemetry file: what comes out is bounded and printable.
fn telemetry(data: &[u8]) {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let Ok(file) = memfd_create(c"fuzz", flags) else {
        return;
    };
    let data = &data[..data.len().min(telemetry::LEN)];
    let len = i64::try_from(telemetry::LEN).expect("small");
    let sealed = nix::unistd::ftruncate(&file, len)
        .and_then(|()| fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)))
        .and_then(|_| pwrite(&file, data, 0));
    if sealed.is_err() {
        return;
    }
    let Ok(mut telemetry) = Telemetry::new(file) else {
        return;
    };
    let before = *telemetry.totals();
    let report = telemetry.report();
    assert!(report.connections.len() <= telemetry::ENTRIES);
    assert!(!report.program.chars().any(char::is_control));
    assert_eq!(*telemetry.totals(), before);
}

/// Packets of a channel, 32 bytes each, the first byte of a packet being the number of descriptors with it.
fn channel(data: &[u8]) {
    let pair = |kind| socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC);
    let Ok((ours, theirs)) = pair(SockType::SeqPacket) else {
        return;
    };
    for packet in data.chunks(33).take(16) {
        let (&count, packet) = packet.split_first().expect("chunks are not empty");
        let fds: Vec<OwnedFd> = (0..count % 3)
            .filter_map(|_| pair(SockType::Stream).ok())
            .map(|(one, _)| one)
            .collect();
        if fd_pass::send(theirs.as_fd(), packet, &fds, Wait::No).is_err() {
            return;
        }
        assert!(!matches!(channel::next(ours.as_fd()), Next::End));
    }
    drop(theirs);
    assert!(matches!(channel::next(ours.as_fd()), Next::End));
}

/// A line of the control socket: what is understood is understood again.
fn control(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_vec(&request).expect("requests are plain");
        let again: Request = serde_json::from_slice(&text).expect("our own words");
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }
    if let Ok(config) = serde_json::from_slice::<ClusterConfig>(data) {
        // Sound or not: it is told, and nothing is touched.
        let _ = config.check();
    }
    let _ = serde_json::from_slice::<NodeConfig>(data);
    let _ = serde_json::from_slice::<Stat>(data);
}
