//! Fuzz target of the vfio-user stream: a whole session over a socket, with an engine behind it.
//!
//! Place: [`super::TARGETS`]. Source: vfio-user protocol.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use ring_proto::ids::NodeId;
use ring_proto::vfio::{self, Header};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::{Device, DeviceOptions};
use crate::server::fd_pass::{self, Wait};
use crate::server::log_budget::LogBudget;
use crate::server::vfio::nic::Function;
use crate::server::vfio::session::{Session, Step};
use crate::server::{EngineHandle, EngineThread};

/// Most bytes of one input.
const LIMIT: usize = 16 * 1024;

/// Bytes of a client. The first byte says: bit 0, a sound VERSION goes first; bit 1, the bytes are messages of a length byte, a
/// command byte, a flag byte and a payload, whose headers are made sound.
pub fn stream(data: &[u8]) {
    let Some((&mode, data)) = data.split_first() else {
        return;
    };
    let data = &data[..data.len().min(LIMIT)];
    let engine = engine();
    let Ok((ours, theirs)) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    ) else {
        return;
    };
    let mut session = Session::new(ours, "fuzz".into());
    let mut client = Client {
        socket: theirs,
        pending: Vec::new(),
    };
    let mut open = true;
    let mut say = |bytes: &[u8], fds: &[OwnedFd]| {
        open = open && client.say(&mut session, &engine, bytes, fds);
    };
    if mode & 1 != 0 {
        say(&message(vfio::CMD_VERSION, 0, &[0, 0, 1, 0]), &[]);
    }
    if mode & 2 == 0 {
        for piece in data.chunks(97) {
            say(piece, &[]);
        }
    } else {
        let mut rest = data;
        while let [len, command, flags, more @ ..] = rest {
            let (payload, next) = more.split_at(more.len().min(usize::from(*len)));
            let fds = if flags & 0x80 == 0 { vec![] } else { memory() };
            let bytes = message((*command).into(), (flags & 0x3f).into(), payload);
            say(&bytes, &fds);
            rest = next;
        }
    }
    drop(client);
    session.close().expect("the engine lives");
    let panics = engine.call(|device| device.node_counters()[0].counters.panics);
    assert_eq!(panics, Ok(0), "the device panicked");
}

/// One engine for all inputs.
fn engine() -> EngineHandle {
    static ENGINE: OnceLock<EngineThread> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        let mut device = Device::new(DeviceOptions::default());
        device.add_node("a", &[]);
        EngineThread::start(device).expect("an engine")
    });
    engine.handle()
}

fn message(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        message_id: 1,
        command,
        size: u32::try_from(16 + payload.len()).expect("payloads are short"),
        flags,
        error: 0,
    };
    [header.as_bytes(), payload].concat()
}

/// A descriptor that a DMA_MAP would take.
fn memory() -> Vec<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let sealed = memfd_create(c"fuzz", flags).and_then(|fd| {
        nix::unistd::ftruncate(&fd, 1 << 20)?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        Ok(fd)
    });
    sealed.into_iter().collect()
}

struct Client {
    socket: OwnedFd,
    /// The start of a reply whose end has not come.
    pending: Vec<u8>,
}

impl Client {
    /// Sends, has the session work, and reads the replies. False when the connection is over.
    fn say(
        &mut self,
        session: &mut Session<Function>,
        engine: &EngineHandle,
        bytes: &[u8],
        fds: &[OwnedFd],
    ) -> bool {
        let mut fds = fds;
        let mut sent = 0;
        while sent < bytes.len() {
            match fd_pass::send(self.socket.as_fd(), &bytes[sent..], fds, Wait::No) {
                Ok(n) => {
                    sent += n;
                    fds = &[];
                }
                Err(Errno::EAGAIN) => {}
                Err(_) => return false,
            }
            let mut log = LogBudget::default();
            let mut open = || Function::attach(engine, NodeId(0));
            let step = session
                .ready(&mut open, &mut log)
                .expect("the engine lives");
            self.read_replies();
            if step == Step::Closed {
                return false;
            }
        }
        true
    }

    /// Every reply is whole, and one that a client can tell apart.
    fn read_replies(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(received) = fd_pass::receive(self.socket.as_fd(), &mut buffer, 8, Wait::No) {
            if received.bytes == 0 {
                break;
            }
            self.pending.extend_from_slice(&buffer[..received.bytes]);
        }
        while let Ok((header, _)) = Header::read_from_prefix(&self.pending) {
            let size = usize::try_from(header.size).expect("64 bits");
            assert!((16..=vfio::MAX_MESSAGE).contains(&size), "{header:?}");
            assert_eq!(header.flags & 0xf, vfio::FLAG_REPLY);
            if header.flags & vfio::FLAG_ERROR != 0 {
                assert!(size == 16 && header.error != 0, "{header:?}");
            }
            if self.pending.len() < size {
                break;
            }
            self.pending.drain(..size);
        }
    }
}
