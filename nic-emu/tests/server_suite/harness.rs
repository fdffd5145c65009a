//! Servers in the test's own process, raw clients, and waiting with a watchdog.

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nic_emu::device::Counters;
use nic_emu::server::{
    BacklogFull, ClusterConfig, DebugConfig, EngineHandle, Loopback, NodeSpec, ServeError, Server,
    StopHandle,
};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::vfio::{self, Header};
use zerocopy::{FromBytes, IntoBytes};

/// How long a condition may take before the test fails: far above anything a loaded machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; dumps `state` when it never does.
pub(crate) fn eventually<T: std::fmt::Debug>(
    what: &str,
    mut state: impl FnMut() -> T,
    mut condition: impl FnMut(&T) -> bool,
) -> T {
    let start = Instant::now();
    loop {
        let now = state();
        if condition(&now) {
            return now;
        }
        assert!(start.elapsed() < PATIENCE, "never {what}; at last: {now:?}");
        std::thread::yield_now();
    }
}

/// A directory of the test's own, gone at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nic-emu-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A cluster of nodes a and b, served by threads of this process.
pub(crate) struct Cluster {
    pub(crate) scratch: Scratch,
    pub(crate) engine: EngineHandle,
    stop: StopHandle,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

pub(crate) fn config(dir: &Path) -> ClusterConfig {
    let node = |name: &str, address: &str| NodeSpec {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        limits: nic_emu::device::Limits::default(),
    };
    ClusterConfig {
        name: "test".into(),
        dir: dir.join("run"),
        nodes: vec![node("a", "127.77.9.1/24"), node("b", "127.77.9.2/24")],
        subnet: Some(9),
        wildcard_on_san: true,
        backlog_full: BacklogFull::Hold,
        san_connect_limit_ms: None,
        loopback: Loopback::Tcp,
        debug: DebugConfig::default(),
        lab: nic_emu::server::LabConfig::default(),
    }
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::start_with(DebugConfig::default())
    }

    pub(crate) fn start_with(debug: DebugConfig) -> Self {
        let scratch = Scratch::new();
        let config = ClusterConfig {
            debug,
            ..config(scratch.path())
        };
        let server = Server::start(&config).unwrap();
        Self {
            engine: server.engine(),
            stop: server.stop_handle(),
            thread: Some(std::thread::spawn(move || server.run())),
            scratch,
        }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.path().join("run")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.dir().join("control.sock")
    }

    pub(crate) fn device(&self, node: &str) -> PathBuf {
        self.dir().join(node).join("nic0.sock")
    }

    /// An attached raw client on node a.
    pub(crate) fn client(&self) -> RawClient {
        RawClient::attached(&self.device("a"))
    }

    /// Counters of node a.
    pub(crate) fn counters(&self) -> Counters {
        self.engine
            .call(|device| device.node_counters()[0].counters)
            .unwrap()
    }

    /// Waits for the server's own end.
    pub(crate) fn join(&mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap().unwrap();
            }
        }
    }
}

/// A client that can send anything.
pub(crate) struct RawClient {
    pub(crate) stream: UnixStream,
    next_id: u16,
}

/// A reply with its descriptors.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl RawClient {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, next_id: 1 }
    }

    pub(crate) fn attached(path: &Path) -> Self {
        let mut client = Self::connect(path);
        client.version().unwrap();
        client
    }

    pub(crate) fn version(&mut self) -> Result<Reply, Errno> {
        self.call(vfio::CMD_VERSION, &version_payload(), &[])
    }

    /// A header for a message with this payload.
    pub(crate) fn header(&mut self, command: u16, payload: usize) -> Header {
        self.next_id = self.next_id.wrapping_add(1);
        Header {
            message_id: self.next_id,
            command,
            size: u32::try_from(16 + payload).unwrap(),
            flags: 0,
            error: 0,
        }
    }

    pub(crate) fn send(&self, bytes: &[u8], fds: &[RawFd]) -> Result<usize, Errno> {
        send(self.stream.as_raw_fd(), bytes, fds)
    }

    pub(crate) fn command(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) {
        let header = self.header(command, payload.len());
        let bytes = [header.as_bytes(), payload].concat();
        assert_eq!(self.send(&bytes, fds), Ok(bytes.len()));
    }

    /// Sends a command and takes its reply.
    pub(crate) fn call(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[RawFd],
    ) -> Result<Reply, Errno> {
        self.command(command, payload, fds);
        let reply = self.reply().expect("the connection ended");
        assert_eq!(reply.header.message_id, self.next_id);
        assert_eq!(reply.header.command, command);
        if reply.header.flags & vfio::FLAG_ERROR != 0 {
            assert!(reply.payload.is_empty());
            return Err(Errno::from_raw(i32::try_from(reply.header.error).unwrap()));
        }
        Ok(reply)
    }

    /// The next reply, `None` at the end of the connection.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        let mut fds = Vec::new();
        let mut header = [0; 16];
        if !self.fill(&mut header, &mut fds) {
            return None;
        }
        let header = Header::read_from_bytes(&header).unwrap();
        assert_eq!(header.flags & 0xf, vfio::FLAG_REPLY);
        let mut payload = vec![0; header.size as usize - 16];
        assert!(self.fill(&mut payload, &mut fds), "reply cut short");
        Some(Reply {
            header,
            payload,
            fds,
        })
    }

    fn fill(&mut self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            match receive(self.stream.as_raw_fd(), &mut buffer[filled..], fds) {
                Ok(0) | Err(Errno::ECONNRESET) => return false,
                Ok(n) => filled += n,
                Err(Errno::EINTR) => {}
                Err(errno) => panic!("no reply: {errno}"),
            }
        }
        true
    }

    /// Whether the connection has ended, replies before that being dropped.
    pub(crate) fn ends(&mut self) -> bool {
        while self.reply().is_some() {}
        true
    }

    pub(crate) fn read_region(
        &mut self,
        region: u32,
        offset: u64,
        count: u32,
    ) -> Result<Vec<u8>, Errno> {
        let access = vfio::RegionAccess {
            offset,
            region,
            count,
        };
        let reply = self.call(vfio::CMD_REGION_READ, access.as_bytes(), &[])?;
        assert_eq!(&reply.payload[..16], access.as_bytes());
        Ok(reply.payload[16..].to_vec())
    }

    pub(crate) fn write_region(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        let access = vfio::RegionAccess {
            offset,
            region,
            count: u32::try_from(data.len()).unwrap(),
        };
        let payload = [access.as_bytes(), data].concat();
        self.call(vfio::CMD_REGION_WRITE, &payload, &[]).map(drop)
    }

    pub(crate) fn register(&mut self, offset: u64) -> u32 {
        let bytes = self.read_region(0, offset, 4).unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    pub(crate) fn map(&mut self, fd: Option<RawFd>, iova: u64, size: u64) -> Result<(), Errno> {
        let map = vfio::DmaMap {
            argsz: 32,
            flags: vfio::DMA_READ | vfio::DMA_WRITE,
            offset: 0,
            address: iova,
            size,
        };
        let fds: Vec<_> = fd.into_iter().collect();
        self.call(vfio::CMD_DMA_MAP, map.as_bytes(), &fds).map(drop)
    }

    pub(crate) fn region_info(
        &mut self,
        index: u32,
    ) -> Result<(vfio::RegionInfo, Vec<OwnedFd>), Errno> {
        let info = vfio::RegionInfo {
            argsz: 32,
            index,
            ..Default::default()
        };
        let reply = self.call(vfio::CMD_DEVICE_GET_REGION_INFO, info.as_bytes(), &[])?;
        let info = vfio::RegionInfo::read_from_bytes(&reply.payload).unwrap();
        Ok((info, reply.fds))
    }

    pub(crate) fn set_irqs(
        &mut self,
        flags: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: &[RawFd],
    ) -> Result<(), Errno> {
        let set = vfio::IrqSet {
            argsz: u32::try_from(20 + data.len()).unwrap(),
            flags,
            index: 2,
            start,
            count,
        };
        let payload = [set.as_bytes(), data].concat();
        self.call(vfio::CMD_DEVICE_SET_IRQS, &payload, fds)
            .map(drop)
    }
}

pub(crate) fn version_payload() -> Vec<u8> {
    let mut payload = vec![0, 0, 1, 0];
    payload.extend_from_slice(b"{\"capabilities\":{\"max_msg_fds\":8}}\0");
    payload
}

pub(crate) fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> Result<usize, Errno> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let iov = [IoSlice::new(bytes)];
    sendmsg::<()>(socket, &iov, control, MsgFlags::MSG_NOSIGNAL, None)
}

#[expect(unsafe_code, reason = "received descriptor numbers become owned")]
pub(crate) fn receive(
    socket: RawFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Errno> {
    let mut space = cmsg_space!([RawFd; 32]);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket, &mut iov, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control {
            // SAFETY: the kernel just made these descriptors for us.
            fds.extend(
                rights
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(message.bytes)
}

/// A memfd of `len` bytes with seals.
pub(crate) fn memfd(len: u64, seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
    let fd = memfd_create(c"test", flags).unwrap();
    nix::unistd::ftruncate(&fd, i64::try_from(len).unwrap()).unwrap();
    if !seals.is_empty() {
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }
    fd
}

pub(crate) fn sealed(len: u64) -> OwnedFd {
    memfd(len, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)
}

/// Counter of an eventfd, 0 when it has not been written.
pub(crate) fn eventfd_count(fd: RawFd) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let line = text.lines().find(|l| l.starts_with("eventfd-count:"));
    let count = line.and_then(|l| l.split_whitespace().nth(1)).unwrap();
    u64::from_str_radix(count, 16).unwrap()
}

/// Tells that a test is skipped for want of a program; fails when the caller demands all of them.
pub(crate) fn skip(program: &str, error: &std::io::Error) {
    let is_demanded = std::env::var_os("SANLAB_REQUIRE_PROGRAMS").is_some_and(|v| v == "1");
    assert!(!is_demanded, "{program}: {error}");
    let _ = writeln!(std::io::stderr(), "skipped: {program}: {error}");
}
