//! Fuzz target of the control socket: what a client says on a connection, and the objects that both sides parse.
//!
//! Place: [`super::TARGETS`]. Source: [`crate::control`], docs/cluster.md.

use std::os::fd::AsFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::control::connection::{Connection, LINE_LIMIT, Step};
use crate::control::{Done, NodeConfig, Request, Stat};
use crate::server::ClusterConfig;
use crate::server::fd_pass::{self, Wait};

/// Bytes of a client, as they come in pieces of a size that the first byte gives; then the same bytes as the other objects.
pub fn control(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    connection(data, usize::from(piece).max(1));
    if let Ok(config) = serde_json::from_slice::<ClusterConfig>(data) {
        // Sound or not: it is told, and nothing is touched.
        let _ = config.check();
    }
    let _ = serde_json::from_slice::<NodeConfig>(data);
    let _ = serde_json::from_slice::<Stat>(data);
}

/// A connection ends with one reply of one line, whatever comes.
fn connection(data: &[u8], piece: usize) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok((ours, theirs)) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags) else {
        return;
    };
    let mut connection = Connection::new(ours);
    let mut is_over = false;
    let data = &data[..data.len().min(2 * LINE_LIMIT)];
    for piece in data.chunks(piece).chain([&b"\n"[..]]) {
        if fd_pass::send(theirs.as_fd(), piece, &[], Wait::No) != Ok(piece.len()) {
            break;
        }
        match connection.ready() {
            Step::Request(request) => {
                understood(&request);
                connection.answer(&Done { ok: true }, Vec::new());
                assert!(matches!(connection.ready(), Step::Closed));
                is_over = true;
                break;
            }
            Step::Closed => {
                is_over = true;
                break;
            }
            Step::Open(_) => {}
        }
    }
    assert!(is_over, "a line waits for more");
    let mut reply = [0; 4096];
    let received = fd_pass::receive(theirs.as_fd(), &mut reply, 0, Wait::No).expect("a reply");
    let reply = &reply[..received.bytes];
    assert_eq!(reply.iter().filter(|&&byte| byte == b'\n').count(), 1);
    let reply: serde_json::Value = serde_json::from_slice(reply).expect("our own words");
    assert!(reply["ok"].is_boolean());
}

/// What is understood is understood again.
fn understood(request: &Request) {
    let text = serde_json::to_vec(request).expect("requests are plain");
    let again: Request = serde_json::from_slice(&text).expect("our own words");
    assert_eq!(again, *request);
}
