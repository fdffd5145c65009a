//! Requests to the kernel's network configuration, and its answers.
//!
//! Place: [`super::interface`] says what it wants of links and addresses. Invariants: one request, one acknowledge; a refusal is its errno.
//! Source: netlink(7), rtnetlink(7). Leaves out: answers that are more than an acknowledge.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const HEADER: usize = 16;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const ERROR: u16 = 0x2;
/// Make it, and do not mind when it is there.
pub(super) const CREATE: u16 = 0x400 | 0x100;

/// A socket to the network configuration of this thread's network namespace.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

/// A request in the making.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// A request of this kind, with its fixed part.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST | ACKNOWLEDGE).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("attributes of a few bytes");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

impl Netlink {
    pub(super) fn open() -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let family = AddressFamily::Netlink;
        let socket = socket(family, SockType::Raw, flags, SockProtocol::NetlinkRoute);
        Ok(Self(socket.context("cannot open a netlink socket")?))
    }

    /// Makes a request, and waits for what becomes of it.
    pub(super) fn ask(&self, request: Request) -> Result<(), Errno> {
        let Request(mut bytes) = request;
        let len = u32::try_from(bytes.len()).expect("requests of a few bytes");
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        let kernel = NetlinkAddr::new(0, 0);
        let fd = self.0.as_raw_fd();
        sendto(fd, &bytes, &kernel, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let len = recv(fd, &mut answer, MsgFlags::empty())?;
        outcome(&answer[..len])
    }
}

/// What an answer says.
fn outcome(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|word| word.try_into().ok());
    let error = answer
        .get(HEADER..HEADER + 4)
        .and_then(|word| word.try_into().ok());
    let (Some(kind), Some(error)) = (kind.map(u16::from_ne_bytes), error.map(i32::from_ne_bytes))
    else {
        return Err(Errno::EBADMSG);
    };
    match (kind, error) {
        (ERROR, 0) => Ok(()),
        (ERROR, error) => Err(Errno::from_raw(error.saturating_neg())),
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_words() {
        let request = Request::new(16, CREATE, &[0; 16]).attribute(1, &[1, 2, 3, 4, 5, 6]);
        let bytes = request.0;
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(bytes[32..34], 10u16.to_ne_bytes());
        assert_eq!(bytes[36..], [1, 2, 3, 4, 5, 6, 0, 0]);
    }

    #[test]
    fn refusals_are_their_errno() {
        let answer = |kind: u16, error: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            outcome(&bytes)
        };
        assert_eq!(answer(ERROR, 0), Ok(()));
        assert_eq!(answer(ERROR, -libc::EPERM), Err(Errno::EPERM));
        assert_eq!(answer(17, 0), Err(Errno::EBADMSG));
        assert_eq!(outcome(&[]), Err(Errno::EBADMSG));
    }
}
