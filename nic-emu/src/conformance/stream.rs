//! A small blocking vfio-user client: one stream, one function.
//!
//! Place: [`super::target::SocketTarget`] attaches cases through it. Invariants: one request at a time; a reply is believed only with
//! its own message id and command; nothing waits longer than its limit. Source: vfio-user specification 0.1. Leaves out: sharing with
//! forked children, windows of others, DMA by message; the client of `driver` has them.
#![expect(
    unsafe_code,
    reason = "borrows descriptor numbers that the Attachment trait passes raw"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::regs;
use ring_proto::vfio::{self, Header};
use zerocopy::{FromBytes, IntoBytes};

use crate::server::fd_pass::{self, Wait};

/// Longest reply that is asked for.
const REPLY_LIMIT: usize = 4096;
const CAPABILITIES: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":8}}\0";

/// An attached function.
#[derive(Debug)]
pub(crate) struct Stream {
    io: Mutex<Io>,
    bar2: OwnedFd,
    bar2_len: u64,
    kick: Option<OwnedFd>,
}

#[derive(Debug)]
struct Io {
    stream: UnixStream,
    next_id: u16,
}

/// Payload and descriptors of a reply.
type Reply = (Vec<u8>, Vec<OwnedFd>);

fn system(what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |error| AttachError::System {
        what,
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn parse<T: FromBytes>(what: &'static str, payload: &[u8]) -> Result<T, AttachError> {
    T::read_from_prefix(payload)
        .map(|(value, _)| value)
        .map_err(|_| AttachError::Protocol {
            what,
            detail: "a short reply",
        })
}

fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

impl Stream {
    /// Connects to a device socket, agrees on the version, fetches doorbells and kick.
    pub(crate) fn attach(path: &Path, limit: Duration) -> Result<Self, AttachError> {
        let stream = UnixStream::connect(path).map_err(system("connect"))?;
        stream
            .set_read_timeout(Some(limit))
            .map_err(system("setsockopt"))?;
        stream
            .set_write_timeout(Some(limit))
            .map_err(system("setsockopt"))?;
        let mut io = Io { stream, next_id: 0 };
        let version = vfio::Version {
            major: vfio::VERSION_MAJOR,
            minor: vfio::VERSION_MINOR,
        };
        let payload = [version.as_bytes(), CAPABILITIES].concat();
        let (reply, _) = io.call(vfio::CMD_VERSION, "VERSION", &payload, &[])?;
        let theirs: vfio::Version = parse("VERSION", &reply)?;
        if theirs.major != vfio::VERSION_MAJOR {
            return Err(AttachError::Protocol {
                what: "VERSION",
                detail: "another major version",
            });
        }
        let what = "DEVICE_GET_REGION_INFO";
        let ask = vfio::RegionInfo {
            argsz: argsz::<vfio::RegionInfo>(),
            index: regs::REGION_BAR2,
            ..Default::default()
        };
        let (reply, mut fds) =
            io.call(vfio::CMD_DEVICE_GET_REGION_INFO, what, ask.as_bytes(), &[])?;
        let info: vfio::RegionInfo = parse(what, &reply)?;
        let bar2 = fds.pop().ok_or(AttachError::Protocol {
            what,
            detail: "no descriptor for BAR2",
        })?;
        let ask = vfio::RegionIoFds {
            argsz: argsz::<vfio::RegionIoFds>() + 8 * argsz::<vfio::SubRegionIoEventFd>(),
            index: regs::REGION_BAR0,
            ..Default::default()
        };
        let what = "DEVICE_GET_REGION_IO_FDS";
        let kick = match io.call(
            vfio::CMD_DEVICE_GET_REGION_IO_FDS,
            what,
            ask.as_bytes(),
            &[],
        ) {
            // One entry, one descriptor: the kick register. With anything else the register itself serves.
            Ok((_, mut fds)) if fds.len() == 1 => fds.pop(),
            Ok(_) | Err(AttachError::Refused { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            io: Mutex::new(io),
            bar2,
            bar2_len: info.size,
            kick,
        })
    }

    fn call(
        &self,
        command: u16,
        what: &'static str,
        payload: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Reply, AttachError> {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        io.call(command, what, payload, fds)
    }
}

impl Io {
    fn call(
        &mut self,
        command: u16,
        what: &'static str,
        payload: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Reply, AttachError> {
        self.next_id = self.next_id.wrapping_add(1);
        let size = size_of::<Header>() + payload.len();
        let header = Header {
            message_id: self.next_id,
            command,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            flags: 0,
            error: 0,
        };
        let message = [header.as_bytes(), payload].concat();
        match fd_pass::send(self.stream.as_fd(), &message, fds, Wait::Yes) {
            Ok(sent) if sent == size => {}
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => {
                return Err(AttachError::Disconnected { what });
            }
            Err(errno) => return Err(system("sendmsg")(errno.into())),
        }
        let mut fds = Vec::new();
        let mut bytes = [0; size_of::<Header>()];
        self.fill(what, &mut bytes, &mut fds)?;
        let answer: Header = parse(what, &bytes)?;
        let len = usize::try_from(answer.size)
            .ok()
            .and_then(|size| size.checked_sub(size_of::<Header>()))
            .filter(|&len| len <= REPLY_LIMIT);
        let expected = answer.message_id == header.message_id
            && answer.command == command
            && answer.flags & 0xf == vfio::FLAG_REPLY;
        let (Some(len), true) = (len, expected) else {
            return Err(AttachError::Protocol {
                what,
                detail: "a message out of step",
            });
        };
        let mut payload = vec![0; len];
        self.fill(what, &mut payload, &mut fds)?;
        if answer.flags & vfio::FLAG_ERROR != 0 {
            return Err(AttachError::Refused {
                what,
                errno: i32::try_from(answer.error).unwrap_or(libc::EPROTO),
            });
        }
        Ok((payload, fds))
    }

    fn fill(
        &self,
        what: &'static str,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), AttachError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match fd_pass::receive(self.stream.as_fd(), rest, vfio::MAX_FDS, Wait::Yes) {
                Ok(received) if received.bytes == 0 => {
                    return Err(AttachError::Disconnected { what });
                }
                Ok(received) => {
                    filled += received.bytes;
                    fds.extend(received.fds);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET | Errno::EAGAIN) => {
                    return Err(AttachError::Disconnected { what });
                }
                Err(errno) => return Err(system("recvmsg")(errno.into())),
            }
        }
        Ok(())
    }
}

/// An own descriptor for what a number stands for.
fn duplicate(fd: RawFd) -> Result<OwnedFd, AttachError> {
    if fd < 0 {
        return Err(AttachError::System {
            what: "dup",
            errno: libc::EBADF,
        });
    }
    // SAFETY: not -1; the borrow ends with this call, and a number that is not open only makes the duplication fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map_err(system("dup"))
}

impl Attachment for Stream {
    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError> {
        let what = "REGION_READ";
        let ask = vfio::RegionAccess {
            offset,
            region: regs::REGION_BAR0,
            count: len,
        };
        let (reply, _) = self.call(vfio::CMD_REGION_READ, what, ask.as_bytes(), &[])?;
        let wanted = usize::try_from(len).unwrap_or(usize::MAX);
        let data = reply.get(size_of::<vfio::RegionAccess>()..).unwrap_or(&[]);
        let mut value = [0; 8];
        match (value.get_mut(..wanted), data.get(..wanted)) {
            (Some(value), Some(data)) => value.copy_from_slice(data),
            _ => {
                return Err(AttachError::Protocol {
                    what,
                    detail: "a short reply",
                });
            }
        }
        Ok(u64::from_le_bytes(value))
    }

    fn write_register(&self, offset: u64, len: u32, value: u64) -> Result<(), AttachError> {
        let ask = vfio::RegionAccess {
            offset,
            region: regs::REGION_BAR0,
            count: len,
        };
        let bytes = value.to_le_bytes();
        let wanted = usize::try_from(len).unwrap_or(8).min(8);
        let payload = [ask.as_bytes(), &bytes[..wanted]].concat();
        self.call(vfio::CMD_REGION_WRITE, "REGION_WRITE", &payload, &[])
            .map(drop)
    }

    fn bar2(&self) -> Result<(RawFd, u64), AttachError> {
        Ok((self.bar2.as_raw_fd(), self.bar2_len))
    }

    fn dma_map(
        &self,
        fd: RawFd,
        offset: u64,
        iova: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), AttachError> {
        let ask = vfio::DmaMap {
            argsz: argsz::<vfio::DmaMap>(),
            flags: vfio::DMA_READ | if writable { vfio::DMA_WRITE } else { 0 },
            offset,
            address: iova,
            size: len,
        };
        self.call(
            vfio::CMD_DMA_MAP,
            "DMA_MAP",
            ask.as_bytes(),
            &[duplicate(fd)?],
        )
        .map(drop)
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError> {
        let ask = vfio::DmaUnmap {
            argsz: argsz::<vfio::DmaUnmap>(),
            flags: 0,
            address: iova,
            size: len,
        };
        self.call(vfio::CMD_DMA_UNMAP, "DMA_UNMAP", ask.as_bytes(), &[])
            .map(drop)
    }

    fn set_vector(&self, index: u8, eventfd: Option<RawFd>) -> Result<(), AttachError> {
        let ask = vfio::IrqSet {
            argsz: argsz::<vfio::IrqSet>(),
            flags: vfio::IRQ_SET_ACTION_TRIGGER | vfio::IRQ_SET_DATA_EVENTFD,
            index: regs::IRQ_MSIX,
            start: u32::from(index),
            count: 1,
        };
        let fds = match eventfd {
            Some(fd) => vec![duplicate(fd)?],
            None => Vec::new(),
        };
        self.call(
            vfio::CMD_DEVICE_SET_IRQS,
            "DEVICE_SET_IRQS",
            ask.as_bytes(),
            &fds,
        )
        .map(drop)
    }

    fn kick(&self) {
        match &self.kick {
            // A counter that is full wakes too.
            Some(kick) => drop(nix::unistd::write(kick, &1u64.to_ne_bytes())),
            // A device that is gone cannot be woken; the next message tells.
            None => drop(self.write_register(regs::KICK, 4, 1)),
        }
    }

    fn hangup_fd(&self) -> Option<RawFd> {
        let io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        Some(io.stream.as_raw_fd())
    }
}
