//! vfio-user client: one stream, one device function.
//!
//! Place: `function` sets the device up through it (registers, BAR2, windows, vectors); nothing here is on the path of a WQE but
//! [`Attachment::kick`], one write to an eventfd.
//! Invariants: a request is written by one system call and a reply is taken by one, after a look without taking it, so a process
//! that is killed in between leaves the stream at a message boundary; replies with another message id belong to such a process and
//! are dropped. Only a message that was written or read by half makes the stream useless: then it is shut down, which resets the
//! function for all who share it. Message ids are counted in memory that all sharers have, once they are told where; requests of several processes are
//! kept apart by the caller's lock (`function`), those of several threads by the mutex here.
//! Source: vfio-user specification 0.1. Leaves out: DMA_READ/WRITE from the device, migration, dirty pages.
#![expect(unsafe_code, reason = "forms an atomic over shared memory")]

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::OnceLock;

use ring_proto::attach::{AttachError, Attachment, Descriptors};
use ring_proto::regs;
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::uar::BAR2_LEN;
use ring_proto::vfio;
use zerocopy::{FromBytes, IntoBytes};

use crate::fork_lock::ForkLock;
use crate::sys::{self, Errno, Fd, Mapping, Seen};

/// Longest wait for a reply; the device answers within microseconds or is gone.
const REPLY_MS: u32 = 10_000;
/// Room for the longest reply this client asks for.
const REPLY_LEN: usize = 4096;
/// Region numbers from here on name the client's own windows, by their 1 GiB block.
const WINDOW_REGIONS: u32 = 1 << 31;

/// A device function attached over a stream.
#[derive(Debug)]
pub struct Client {
    stream: Fd,
    kick: Option<Fd>,
    bar2: Fd,
    bar2_len: u64,
    /// Messages before there was anybody to share with.
    first: AtomicU32,
    /// The page with the number of messages.
    counter: OnceLock<Mapping>,
    threads: ForkLock<()>,
}

/// A reply: payload behind the header, and descriptors.
struct Reply {
    bytes: [u8; REPLY_LEN],
    len: usize,
    fds: Vec<Fd>,
}

impl Reply {
    fn payload(&self) -> &[u8] {
        &self.bytes[size_of::<vfio::Header>()..self.len]
    }

    fn read<T: FromBytes>(&self, what: &'static str) -> Result<T, AttachError> {
        T::read_from_prefix(self.payload())
            .map(|(value, _)| value)
            .map_err(|_| protocol(what, "a short reply"))
    }
}

fn protocol(what: &'static str, detail: &'static str) -> AttachError {
    AttachError::Protocol { what, detail }
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> AttachError {
    move |errno| AttachError::System {
        what,
        errno: errno.raw_os_error(),
    }
}

impl Client {
    /// Connects to a device socket of the file system and attaches.
    ///
    /// # Errors
    /// [`AttachError::System`] when nobody listens there; else as [`Client::attach`].
    pub fn connect(path: &Path) -> Result<Self, AttachError> {
        Self::attach(sys::connect_path(path).map_err(system("connect"))?)
    }

    /// Agrees on version and capabilities over a connected stream, and fetches doorbells and kick.
    ///
    /// # Errors
    /// As the [`Attachment`] methods.
    pub fn attach(stream: Fd) -> Result<Self, AttachError> {
        // A place holder until BAR2 is known: the stream itself, never handed out.
        let placeholder = stream.duplicate().map_err(system("fcntl"))?;
        let mut client = Self {
            stream,
            kick: None,
            bar2: placeholder,
            bar2_len: 0,
            first: AtomicU32::new(0),
            counter: OnceLock::new(),
            threads: ForkLock::new(()),
        };
        client.negotiate()?;
        let (fd, len) = client.region_fd(regs::REGION_BAR2)?;
        if len != BAR2_LEN {
            return Err(protocol("BAR2", "another size"));
        }
        client.bar2 = fd;
        client.bar2_len = len;
        client.kick = client.kick_fd()?;
        Ok(client)
    }

    /// Uses the attachment of another process or of an earlier program image, whose messages are counted in `memory` at `offset`.
    ///
    /// # Errors
    /// [`AttachError::System`].
    pub fn share(
        stream: Fd,
        bar2: Fd,
        kick: Option<Fd>,
        memory: RawFd,
        offset: u64,
    ) -> Result<Self, AttachError> {
        let client = Self {
            stream,
            kick,
            bar2,
            bar2_len: BAR2_LEN,
            first: AtomicU32::new(0),
            counter: OnceLock::new(),
            threads: ForkLock::new(()),
        };
        client.count_in(memory, offset)?;
        Ok(client)
    }

    fn negotiate(&self) -> Result<(), AttachError> {
        const CAPABILITIES: &[u8] =
            b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":4096}}\0";
        let version = vfio::Version {
            major: vfio::VERSION_MAJOR,
            minor: vfio::VERSION_MINOR,
        };
        let what = "VERSION";
        let reply = self.call(
            vfio::CMD_VERSION,
            what,
            &[version.as_bytes(), CAPABILITIES],
            &[],
        )?;
        let theirs: vfio::Version = reply.read(what)?;
        if theirs.major != vfio::VERSION_MAJOR {
            return Err(protocol(what, "another major version"));
        }
        let what = "DEVICE_GET_INFO";
        let ask = vfio::DeviceInfo {
            argsz: argsz::<vfio::DeviceInfo>(),
            ..Default::default()
        };
        let info: vfio::DeviceInfo = self
            .call(vfio::CMD_DEVICE_GET_INFO, what, &[ask.as_bytes()], &[])?
            .read(what)?;
        if info.flags & vfio::DEVICE_PCI == 0 || info.num_regions <= regs::REGION_BAR2 {
            return Err(protocol(what, "no PCI device with a BAR2"));
        }
        Ok(())
    }

    fn region(&self, index: u32) -> Result<(vfio::RegionInfo, Reply), AttachError> {
        let what = "DEVICE_GET_REGION_INFO";
        let ask = vfio::RegionInfo {
            argsz: argsz::<vfio::RegionInfo>(),
            index,
            ..Default::default()
        };
        let reply = self.call(
            vfio::CMD_DEVICE_GET_REGION_INFO,
            what,
            &[ask.as_bytes()],
            &[],
        )?;
        let info: vfio::RegionInfo = reply.read(what)?;
        if info.index != index {
            return Err(protocol(what, "another region"));
        }
        Ok((info, reply))
    }

    fn region_fd(&self, index: u32) -> Result<(Fd, u64), AttachError> {
        let (info, mut reply) = self.region(index)?;
        let fd = reply
            .fds
            .pop()
            .ok_or_else(|| protocol("DEVICE_GET_REGION_INFO", "no descriptor"))?;
        if info.offset != 0 {
            return Err(protocol("DEVICE_GET_REGION_INFO", "doorbells at an offset"));
        }
        Ok((fd, info.size))
    }

    /// The eventfd behind the kick register, when the device offers one.
    fn kick_fd(&self) -> Result<Option<Fd>, AttachError> {
        let what = "DEVICE_GET_REGION_IO_FDS";
        let ask = vfio::RegionIoFds {
            argsz: argsz::<vfio::RegionIoFds>() + 8 * argsz::<vfio::SubRegionIoEventFd>(),
            index: regs::REGION_BAR0,
            ..Default::default()
        };
        let asked = self.call(
            vfio::CMD_DEVICE_GET_REGION_IO_FDS,
            what,
            &[ask.as_bytes()],
            &[],
        );
        let mut reply = match asked {
            Ok(reply) => reply,
            // Without one the trapped register serves.
            Err(AttachError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let list: vfio::RegionIoFds = reply.read(what)?;
        let entries = &reply.payload()[size_of::<vfio::RegionIoFds>()..];
        let mut index = None;
        for chunk in entries
            .chunks_exact(size_of::<vfio::SubRegionIoEventFd>())
            .take(usize::try_from(list.count).unwrap_or(0))
        {
            let Ok(entry) = vfio::SubRegionIoEventFd::read_from_bytes(chunk) else {
                break;
            };
            if entry.offset == regs::KICK && entry.kind == 0 {
                index = usize::try_from(entry.fd_index).ok();
            }
        }
        Ok(index
            .filter(|&index| index < reply.fds.len())
            .map(|index| reply.fds.swap_remove(index)))
    }

    fn next_id(&self) -> u16 {
        let counter = match self.counter.get() {
            // SAFETY: the mapping is page aligned, at least 4 bytes long, and lives as long as `self`; all sharers reach the word
            // only through this atomic.
            Some(page) => unsafe { AtomicU32::from_ptr(page.base().as_ptr().cast()) },
            None => &self.first,
        };
        // Relaxed: the number names a message and publishes nothing.
        let [a, b, ..] = counter.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// Sends one command and waits for its reply.
    fn call(
        &self,
        command: u16,
        what: &'static str,
        parts: &[&[u8]],
        fds: &[RawFd],
    ) -> Result<Reply, AttachError> {
        let _threads = self.threads.lock();
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let size = size_of::<vfio::Header>() + payload;
        let header = vfio::Header {
            message_id: self.next_id(),
            command,
            size: u32::try_from(size).map_err(|_| protocol(what, "a request too long"))?,
            flags: 0,
            error: 0,
        };
        let mut all: [&[u8]; 4] = [header.as_bytes(), &[], &[], &[]];
        for (slot, part) in all[1..].iter_mut().zip(parts) {
            *slot = part;
        }
        match sys::send_message(self.stream.raw(), &all[..=parts.len()], fds) {
            Ok(sent) if sent == size => {}
            Ok(_) => return Err(self.broken(what)),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                return Err(AttachError::Disconnected { what });
            }
            Err(errno) => return Err(system("sendmsg")(errno)),
        }
        self.reply(&header, what)
    }

    /// Takes messages until the reply to `asked` is among them.
    fn reply(&self, asked: &vfio::Header, what: &'static str) -> Result<Reply, AttachError> {
        let deadline = sys::now_ns() + u64::from(REPLY_MS) * 1_000_000;
        loop {
            let header = self.peek_message(deadline, what)?;
            let len = usize::try_from(header.size).map_err(|_| self.broken(what))?;
            let mut bytes = [0; REPLY_LEN];
            if len > REPLY_LEN || len < size_of::<vfio::Header>() {
                return Err(self.broken(what));
            }
            let (got, fds) = sys::recv_message(self.stream.raw(), &mut bytes[..len])
                .map_err(system("recvmsg"))?;
            if got != len {
                return Err(self.broken(what));
            }
            if header.flags & 0xf != vfio::FLAG_REPLY || header.message_id != asked.message_id {
                continue; // Asked for by a process that is dead: `fds` close here.
            }
            if header.command != asked.command {
                return Err(self.broken(what));
            }
            if header.flags & vfio::FLAG_ERROR != 0 {
                return Err(AttachError::Refused {
                    what,
                    errno: i32::try_from(header.error).unwrap_or(libc::EPROTO),
                });
            }
            return Ok(Reply { bytes, len, fds });
        }
    }

    /// Waits until a whole message lies in the stream, and reads its header without taking it.
    fn peek_message(&self, deadline: u64, what: &'static str) -> Result<vfio::Header, AttachError> {
        let gone = AttachError::Disconnected { what };
        let mut buffer = [0; REPLY_LEN];
        loop {
            let left = deadline.saturating_sub(sys::now_ns()) / 1_000_000;
            let left = u32::try_from(left).unwrap_or(REPLY_MS);
            if left == 0 {
                // A device that does not answer is as good as gone, and a late reply would confuse nobody: it is dropped by id.
                return Err(gone);
            }
            let seen = sys::wait_readable(self.stream.raw(), left).map_err(system("poll"))?;
            let waiting = match sys::peek(self.stream.raw(), &mut buffer) {
                Ok(0) | Err(Errno::CONNRESET) => return Err(gone),
                Ok(waiting) => waiting,
                Err(errno) => return Err(system("recv")(errno)),
            };
            if let Ok((header, _)) = vfio::Header::read_from_prefix(&buffer[..waiting]) {
                let size = usize::try_from(header.size).unwrap_or(usize::MAX);
                if size <= waiting || size > REPLY_LEN {
                    return Ok(header);
                }
            }
            if seen == Seen::HungUp {
                return Err(gone); // The rest will never come.
            }
            sys::yield_now();
        }
    }

    /// The stream is out of step: nobody can use it any more.
    fn broken(&self, what: &'static str) -> AttachError {
        sys::shut_down(self.stream.raw());
        protocol(what, "a message out of step")
    }
}

fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("wire structures are small")
}

impl Attachment for Client {
    fn descriptors(&self) -> Option<Descriptors> {
        Some(Descriptors {
            stream: self.stream.raw(),
            bar2: self.bar2.raw(),
            kick: self.kick.as_ref().map(Fd::raw),
        })
    }

    fn count_in(&self, memory: RawFd, offset: u64) -> Result<(), AttachError> {
        let page = Mapping::new(memory, offset, 4096, true).map_err(system("mmap"))?;
        // Numbers of earlier messages may come again: their replies were taken long ago.
        match self.counter.set(page) {
            Ok(()) | Err(_) => Ok(()), // Told twice: the first place is as good.
        }
    }

    fn before_fork(&self) {
        self.threads.hold();
    }

    fn after_fork(&self) {
        self.threads.let_go();
    }

    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError> {
        let what = "REGION_READ";
        let ask = vfio::RegionAccess {
            offset,
            region: regs::REGION_BAR0,
            count: len,
        };
        let reply = self.call(vfio::CMD_REGION_READ, what, &[ask.as_bytes()], &[])?;
        let data = &reply.payload()[size_of::<vfio::RegionAccess>().min(reply.payload().len())..];
        let mut value = [0; 8];
        let wanted = usize::try_from(len).unwrap_or(usize::MAX);
        match (value.get_mut(..wanted), data.get(..wanted)) {
            (Some(value), Some(data)) => value.copy_from_slice(data),
            _ => return Err(protocol(what, "a short reply")),
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
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(8);
        let parts: [&[u8]; 2] = [ask.as_bytes(), &bytes[..wanted]];
        self.call(vfio::CMD_REGION_WRITE, "REGION_WRITE", &parts, &[])
            .map(drop)
    }

    fn bar2(&self) -> Result<(RawFd, u64), AttachError> {
        Ok((self.bar2.raw(), self.bar2_len))
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
        self.call(vfio::CMD_DMA_MAP, "DMA_MAP", &[ask.as_bytes()], &[fd])
            .map(drop)
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError> {
        let ask = vfio::DmaUnmap {
            argsz: argsz::<vfio::DmaUnmap>(),
            flags: 0,
            address: iova,
            size: len,
        };
        self.call(vfio::CMD_DMA_UNMAP, "DMA_UNMAP", &[ask.as_bytes()], &[])
            .map(drop)
    }

    fn window(&self, iova: u64) -> Result<(RawFd, u64, u64), AttachError> {
        let block = u32::try_from(iova >> 30)
            .ok()
            .filter(|&block| block < WINDOW_REGIONS)
            .ok_or_else(|| protocol("a window", "an address beyond all windows"))?;
        let (info, mut reply) = self.region(WINDOW_REGIONS | block)?;
        let fd = reply
            .fds
            .pop()
            .ok_or_else(|| protocol("DEVICE_GET_REGION_INFO", "no descriptor"))?;
        Ok((fd.into_raw(), info.offset, info.size))
    }

    fn set_vector(&self, index: u8, eventfd: Option<RawFd>) -> Result<(), AttachError> {
        let ask = vfio::IrqSet {
            argsz: argsz::<vfio::IrqSet>(),
            // DATA_EVENTFD without a descriptor disconnects the vector.
            flags: vfio::IRQ_SET_ACTION_TRIGGER | vfio::IRQ_SET_DATA_EVENTFD,
            index: regs::IRQ_MSIX,
            start: u32::from(index),
            count: 1,
        };
        self.call(
            vfio::CMD_DEVICE_SET_IRQS,
            "DEVICE_SET_IRQS",
            &[ask.as_bytes()],
            eventfd.as_slice(),
        )
        .map(drop)
    }

    fn kick(&self) {
        match &self.kick {
            Some(kick) => sys::signal(kick.raw()),
            None => match self.write_register(regs::KICK, 4, 1) {
                Ok(()) | Err(_) => {} // A device that is gone cannot be woken; its end shows by its hang-up.
            },
        }
    }

    fn hangup_fd(&self) -> Option<RawFd> {
        Some(self.stream.raw())
    }
}
