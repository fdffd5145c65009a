//! Cluster channels and process sockets: how programs introduce their processes and open functions.
//!
//! Place: the control thread reads both kinds of socket through [`next`] and acts on what it says.
//! Invariants: a message that is not sound, or carries the wrong descriptors, changes nothing; descriptors of refused messages are
//! closed; a process answers for holder slots of its own family's functions alone, so a confused process cannot end the connections
//! of a stranger.
//! Source: ours (ring_proto::channel, docs/device.md, section "Cluster channel"). Leaves out: replies, there are none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::SockType;
use ring_proto::channel::{HOLDER, Message, OPEN_FUNCTION, PROCESS, TELEMETRY};
use ring_proto::ids::{FunctionId, HolderSlot, NodeId};
use zerocopy::FromBytes;

use super::fd_pass::{self, Wait};
use super::telemetry::Telemetry;

/// Most holder slots one process may answer for: far above what forks make.
const HOLDER_LIMIT: usize = 1 << 16;

/// A process and its descendants by fork: they share functions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FamilyId(pub(crate) u64);

/// Channel of one `sanlab run`.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) socket: OwnedFd,
    pub(crate) node: NodeId,
}

/// A process as its socket shows it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) socket: OwnedFd,
    pub(crate) node: NodeId,
    pub(crate) family: FamilyId,
    pub(crate) telemetry: Option<Box<Telemetry>>,
    /// Slots it answers for: released when it ends.
    holders: Vec<Holder>,
}

/// A holder slot of a function with the generation of its present life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Holder {
    pub(crate) function: FunctionId,
    pub(crate) slot: HolderSlot,
    pub(crate) generation: u32,
}

impl Process {
    /// A process that has just introduced itself.
    pub(crate) fn new(socket: OwnedFd, node: NodeId, family: FamilyId) -> Self {
        Self {
            socket,
            node,
            family,
            telemetry: None,
            holders: Vec::new(),
        }
    }

    /// Notes a slot; false when it answers for too many.
    pub(crate) fn add_holder(&mut self, holder: Holder) -> bool {
        if self.holders.contains(&holder) {
            return true;
        }
        if self.holders.len() == HOLDER_LIMIT {
            return false;
        }
        self.holders.push(holder);
        true
    }

    /// Gives up all slots, for the end of the process.
    pub(crate) fn take_holders(&mut self) -> Vec<Holder> {
        std::mem::take(&mut self.holders)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A sound message.
#[derive(Debug)]
pub(crate) enum Request {
    /// A process; the socket is a SEQPACKET one.
    Process(OwnedFd),
    /// Its telemetry.
    Telemetry(Box<Telemetry>),
    /// A stream that will speak vfio-user.
    OpenFunction(OwnedFd),
    /// It answers for a slot.
    Holder(Holder),
}

/// What a socket had to say.
#[derive(Debug)]
pub(crate) enum Next {
    /// A message.
    Request(Request),
    /// A message that is ignored, with the reason.
    Unsound(&'static str),
    /// Nothing now.
    Nothing,
    /// Every holder of the other end is gone, and all it sent has been read.
    End,
}

/// Reads the next message of a channel or process socket.
pub(crate) fn next(socket: BorrowedFd<'_>) -> Next {
    let mut bytes = [0; size_of::<Message>()];
    let mut received = match fd_pass::receive(socket, &mut bytes, 1, Wait::No) {
        Ok(received) => received,
        Err(Errno::EAGAIN) => return Next::Nothing,
        // ECONNRESET: the other end went with messages of ours unread. There are none, but it is the end all the same.
        Err(_) => return Next::End,
    };
    if received.bytes == 0 {
        // An empty packet reads like the end; only the kernel's flag tells them apart.
        return if fd_pass::is_hung_up(socket) {
            Next::End
        } else {
            Next::Unsound("empty packet")
        };
    }
    let Ok(message) = Message::read_from_bytes(&bytes[..received.bytes]) else {
        return Next::Unsound("wrong length");
    };
    if received.truncated || !message.is_sound() {
        return Next::Unsound("wrong length, magic, version or reserved field");
    }
    if received.lost_fds {
        return Next::Unsound("more than one descriptor, or none to spare");
    }
    match request(&message, received.fds.pop()) {
        Ok(request) => Next::Request(request),
        Err(reason) => Next::Unsound(reason),
    }
}

fn request(message: &Message, fd: Option<OwnedFd>) -> Result<Request, &'static str> {
    match (message.kind, fd) {
        (PROCESS, Some(fd)) if fd_pass::is_unix_socket(fd.as_fd(), SockType::SeqPacket) => {
            Ok(Request::Process(fd))
        }
        (PROCESS, _) => Err("PROCESS without a SEQPACKET socket"),
        (TELEMETRY, Some(fd)) => Telemetry::new(fd)
            .map(|telemetry| Request::Telemetry(Box::new(telemetry)))
            .map_err(|_| "TELEMETRY without a sealed memfd of full size"),
        (TELEMETRY, None) => Err("TELEMETRY without a descriptor"),
        (OPEN_FUNCTION, Some(fd)) if fd_pass::is_unix_socket(fd.as_fd(), SockType::Stream) => {
            Ok(Request::OpenFunction(fd))
        }
        (OPEN_FUNCTION, _) => Err("OPEN_FUNCTION without a stream socket"),
        (HOLDER, None) => Ok(Request::Holder(Holder {
            function: FunctionId(message.a),
            slot: HolderSlot(message.b),
            generation: message.c,
        })),
        (HOLDER, Some(_)) => Err("HOLDER with a descriptor"),
        _ => Err("unknown kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, socketpair};
    use zerocopy::IntoBytes;

    fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn told(bytes: &[u8], fds: Vec<OwnedFd>) -> Next {
        let (ours, theirs) = pair(SockType::SeqPacket);
        fd_pass::send(theirs.as_fd(), bytes, &fds, Wait::No).unwrap();
        next(ours.as_fd())
    }

    #[test]
    fn sound_messages_are_understood() {
        let (socket, _other) = pair(SockType::SeqPacket);
        let message = Message::new(PROCESS, 0, 0, 0);
        assert!(matches!(
            told(message.as_bytes(), vec![socket]),
            Next::Request(Request::Process(_))
        ));
        let (stream, _other) = pair(SockType::Stream);
        let message = Message::new(OPEN_FUNCTION, 0, 0, 0);
        assert!(matches!(
            told(message.as_bytes(), vec![stream]),
            Next::Request(Request::OpenFunction(_))
        ));
        let Next::Request(Request::Holder(holder)) =
            told(Message::new(HOLDER, 7, 8, 9).as_bytes(), vec![])
        else {
            panic!("HOLDER refused");
        };
        let wanted = (FunctionId(7), HolderSlot(8), 9);
        assert_eq!((holder.function, holder.slot, holder.generation), wanted);
    }

    #[test]
    fn unsound_messages_change_nothing() {
        let fd = || pair(SockType::Stream).0;
        let good = Message::new(HOLDER, 1, 0, 1);
        let mut bad_magic = good;
        bad_magic.magic = 0;
        let mut bad_version = good;
        bad_version.version = 9;
        let mut bad_reserved = good;
        bad_reserved.reserved[2] = 1;
        let mut long = good.as_bytes().to_vec();
        long.push(0);
        for (bytes, fds) in [
            (bad_magic.as_bytes().to_vec(), vec![]),
            (bad_version.as_bytes().to_vec(), vec![]),
            (bad_reserved.as_bytes().to_vec(), vec![]),
            (good.as_bytes()[..31].to_vec(), vec![]),
            (long, vec![]),
            (good.as_bytes().to_vec(), vec![fd()]),
            (Message::new(PROCESS, 0, 0, 0).as_bytes().to_vec(), vec![]),
            (
                Message::new(PROCESS, 0, 0, 0).as_bytes().to_vec(),
                vec![fd()],
            ),
            (Message::new(TELEMETRY, 0, 0, 0).as_bytes().to_vec(), vec![]),
            (
                Message::new(TELEMETRY, 0, 0, 0).as_bytes().to_vec(),
                vec![fd()],
            ),
            (
                Message::new(OPEN_FUNCTION, 0, 0, 0).as_bytes().to_vec(),
                vec![fd(), fd()],
            ),
            (Message::new(99, 0, 0, 0).as_bytes().to_vec(), vec![]),
        ] {
            let next = told(&bytes, fds);
            assert!(matches!(next, Next::Unsound(_)), "{next:?}");
        }
    }

    #[test]
    fn an_empty_packet_is_not_the_end_and_the_end_is() {
        let (ours, theirs) = pair(SockType::SeqPacket);
        assert!(matches!(next(ours.as_fd()), Next::Nothing));
        fd_pass::send(theirs.as_fd(), &[], &[], Wait::No).unwrap();
        assert!(matches!(next(ours.as_fd()), Next::Unsound(_)));
        let last = Message::new(HOLDER, 1, 0, 1);
        fd_pass::send(theirs.as_fd(), last.as_bytes(), &[], Wait::No).unwrap();
        drop(theirs);
        assert!(matches!(next(ours.as_fd()), Next::Request(_)));
        assert!(matches!(next(ours.as_fd()), Next::End));
    }
}
