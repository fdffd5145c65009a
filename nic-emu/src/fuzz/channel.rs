//! Fuzz target of the packets of cluster channels and process sockets.
//!
//! Place: [`super::TARGETS`]. Source: ring_proto::channel.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::server::channel::{self, Next};
use crate::server::fd_pass::{self, Wait};

/// Packets of a channel, 32 bytes each, the first byte of a packet being the number of descriptors with it.
pub fn channel(data: &[u8]) {
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
