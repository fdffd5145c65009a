//! One vfio-user connection: assembles messages, has them done, sends the replies.
//!
//! Place: a control loop calls [`Session::ready`] whenever epoll says so. Invariants: at most one message and [`vfio::MAX_FDS`]
//! descriptors are kept for input, at most [`CONGESTED`] bytes and one more reply for output; a client that does not read its
//! replies is not read from until it does; a message is read exactly to its end, so descriptors belong to the message they came
//! with. The device is opened at VERSION and closed by [`Session::close`].
//! Source: vfio-user protocol, sections on framing and pipelining.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use ring_proto::vfio::{self, Header};
use tracing::{debug, warn};
use zerocopy::{FromBytes, IntoBytes};

use super::message::{self, Frame, HEADER_LEN, Request};
use super::{Device, DeviceGone, Failure, Reply, Unmap, WindowRequest, irqs, regions};
use crate::server::epoll::Interest;
use crate::server::fd_pass::{self, Wait};
use crate::server::log_budget::{LogBudget, now_ns};

/// Output bytes above which no further message is read.
const CONGESTED: usize = 64 * 1024;
/// Descriptors in output above which no further message is read.
const CONGESTED_FDS: usize = 8;
/// Messages done in one go before other connections get their turn.
const BATCH: usize = 32;

/// Whether a connection goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Waiting for this.
    Open(Interest),
    /// It is over: [`Session::close`] it.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Session<D> {
    socket: OwnedFd,
    /// Where the client came in, for log lines.
    entry: String,
    device: Option<D>,
    input: Input,
    output: Output,
    /// No more input is taken; the connection ends when the output is out.
    closing: bool,
}

/// The message that is arriving.
#[derive(Debug, Default)]
struct Input {
    header: [u8; HEADER_LEN],
    header_filled: usize,
    payload: Vec<u8>,
    payload_filled: usize,
    fds: Vec<OwnedFd>,
    lost_fds: bool,
}

/// Replies that wait for room in the socket.
#[derive(Debug, Default)]
struct Output {
    replies: VecDeque<Outgoing>,
    bytes: usize,
    fds: usize,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// What reading brought.
enum Arrived {
    /// A whole message lies in the input.
    Message(Header, Frame),
    /// Not yet.
    Nothing,
    /// The client is gone.
    End,
}

impl<D: Device> Session<D> {
    /// A session on a fresh socket, which log lines call `entry`.
    pub(crate) fn new(socket: OwnedFd, entry: String) -> Self {
        Self {
            socket,
            entry,
            device: None,
            input: Input::default(),
            output: Output::default(),
            closing: false,
        }
    }

    /// The device, once VERSION opened it.
    pub(crate) fn device(&self) -> Option<&D> {
        self.device.as_ref()
    }

    /// Reads, works and writes as far as that goes without waiting. `open` makes the device.
    pub(crate) fn ready(
        &mut self,
        open: &mut dyn FnMut() -> Result<D, Failure>,
        log: &mut LogBudget,
    ) -> Result<Step, DeviceGone> {
        for _ in 0..BATCH {
            if self.closing || self.output.is_congested() {
                break;
            }
            match self.input.receive(&self.socket) {
                Ok(Arrived::Message(header, frame)) => self.handle(&header, frame, open, log)?,
                Ok(Arrived::Nothing) => break,
                Ok(Arrived::End) => {
                    // What was answered so far may still be read by a client that closed one direction.
                    let _ = self.output.flush(&self.socket);
                    return Ok(Step::Closed);
                }
                Err(errno) => {
                    debug!(%errno, "device connection broke");
                    return Ok(Step::Closed);
                }
            }
        }
        if let Err(errno) = self.output.flush(&self.socket) {
            debug!(%errno, "device connection broke");
            return Ok(Step::Closed);
        }
        if self.closing && self.output.replies.is_empty() {
            return Ok(Step::Closed);
        }
        Ok(Step::Open(Interest {
            read: !self.closing && !self.output.is_congested(),
            write: !self.output.replies.is_empty(),
        }))
    }

    /// Closes the device; the connection closes with the value.
    pub(crate) fn close(mut self) -> Result<(), DeviceGone> {
        self.device.as_mut().map_or(Ok(()), Device::close)
    }

    fn handle(
        &mut self,
        header: &Header,
        frame: Frame,
        open: &mut dyn FnMut() -> Result<D, Failure>,
        log: &mut LogBudget,
    ) -> Result<(), DeviceGone> {
        let fds = mem::take(&mut self.input.fds);
        let lost_fds = mem::take(&mut self.input.lost_fds);
        let result = match frame {
            Frame::Ignored(_) => return Ok(()),
            Frame::Broken(errno) => {
                self.closing = true;
                Err(Failure::Refused(errno))
            }
            // More descriptors than the announced limit, or none left in this process: the message is not what it was meant to be.
            Frame::Command(_) if lost_fds => Err(Errno::EMFILE.into()),
            Frame::Command(_) => {
                let payload = mem::take(&mut self.input.payload);
                let result = self.command(header.command, &payload, fds, open);
                self.input.payload = payload;
                result
            }
        };
        let reply = match result {
            Ok(reply) => Some(Outgoing::reply(header, reply)),
            Err(Failure::Gone) => return Err(DeviceGone),
            Err(Failure::Refused(errno)) => {
                if let Some(held_back) = log.spend(now_ns()) {
                    warn!(
                        entry = self.entry,
                        device = self.device.as_ref().map(Device::describe),
                        command = message::name(header.command),
                        %errno,
                        held_back,
                        "refused a device message"
                    );
                }
                Some(Outgoing::error(header, errno))
            }
        };
        // A broken frame is told in any case: nothing in it can be believed, the flag included.
        let wants_reply = header.flags & vfio::FLAG_NO_REPLY == 0 || self.closing;
        if let Some(reply) = reply.filter(|_| wants_reply) {
            self.output.push(reply);
        }
        Ok(())
    }

    fn command(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        open: &mut dyn FnMut() -> Result<D, Failure>,
    ) -> Result<Reply, Failure> {
        let request = message::parse(command, payload, fds.len());
        let Some(device) = &mut self.device else {
            // The first message has to be a VERSION that we speak; otherwise there is nothing to go on with.
            let Ok(Request::Version(minor)) = request else {
                self.closing = true;
                return Err(request.err().unwrap_or(Errno::EINVAL).into());
            };
            self.device = Some(open().inspect_err(|_| self.closing = true)?);
            return Ok(Reply::bytes(message::version_reply(minor)));
        };
        match request? {
            Request::Version(_) => Err(Errno::EINVAL.into()),
            Request::DmaMap(map) => {
                device.map(WindowRequest {
                    fd: fds.into_iter().next(),
                    offset: map.offset,
                    iova: map.address,
                    len: map.size,
                    read: map.flags & vfio::DMA_READ != 0,
                    write: map.flags & vfio::DMA_WRITE != 0,
                })?;
                Ok(Reply::default())
            }
            Request::DmaUnmap(unmap) => {
                device.unmap(if unmap.flags == vfio::DMA_UNMAP_ALL {
                    Unmap::All
                } else {
                    Unmap::Range {
                        address: unmap.address,
                        size: unmap.size,
                    }
                })?;
                // The reply repeats the request.
                Ok(Reply::bytes(unmap.as_bytes()))
            }
            Request::DeviceInfo => Ok(regions::device_info(device)),
            Request::RegionInfo { index } => regions::info(device, index),
            Request::RegionIoFds { index, argsz } => regions::io_fds(device, index, argsz),
            Request::IrqInfo { index } => irqs::info(device, index),
            Request::SetIrqs {
                index,
                start,
                count,
                action,
            } => irqs::set(device, index, start, count, action, fds),
            Request::RegionRead {
                region,
                offset,
                count,
            } => regions::read(device, region, offset, count),
            Request::RegionWrite {
                region,
                offset,
                data,
            } => regions::write(device, region, offset, data),
            Request::RegionWriteMulti(entries) => regions::write_multi(device, &entries),
            Request::Reset => {
                device.reset()?;
                Ok(Reply::default())
            }
        }
    }
}

impl<D> AsFd for Session<D> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Input {
    /// Reads on, never past the end of one message.
    fn receive(&mut self, socket: &OwnedFd) -> Result<Arrived, Errno> {
        loop {
            let header_done = self.header_filled == HEADER_LEN;
            if header_done {
                let header = Header::read_from_bytes(&self.header)
                    .expect("the buffer has the size of a header");
                let frame = message::frame(&header);
                let len = match frame {
                    Frame::Command(len) | Frame::Ignored(len) => len,
                    Frame::Broken(_) => 0,
                };
                // Bounded by `frame`.
                self.payload.resize(len, 0);
                if self.payload_filled == len {
                    self.header_filled = 0;
                    self.payload_filled = 0;
                    if matches!(frame, Frame::Ignored(_)) {
                        self.fds.clear();
                        self.lost_fds = false;
                    }
                    return Ok(Arrived::Message(header, frame));
                }
            }
            let (buffer, filled) = if header_done {
                (&mut self.payload[..], &mut self.payload_filled)
            } else {
                (&mut self.header[..], &mut self.header_filled)
            };
            let room = vfio::MAX_FDS - self.fds.len();
            let received =
                match fd_pass::receive(socket.as_fd(), &mut buffer[*filled..], room, Wait::No) {
                    Err(Errno::EAGAIN) => return Ok(Arrived::Nothing),
                    other => other?,
                };
            if received.bytes == 0 {
                return Ok(Arrived::End);
            }
            *filled += received.bytes;
            self.fds.extend(received.fds);
            self.lost_fds |= received.lost_fds;
        }
    }
}

impl Output {
    fn is_congested(&self) -> bool {
        self.bytes > CONGESTED || self.fds > CONGESTED_FDS
    }

    fn push(&mut self, reply: Outgoing) {
        self.bytes += reply.bytes.len();
        self.fds += reply.fds.len();
        self.replies.push_back(reply);
    }

    /// Sends as much as fits.
    fn flush(&mut self, socket: &OwnedFd) -> Result<(), Errno> {
        while let Some(reply) = self.replies.front_mut() {
            let rest = &reply.bytes[reply.sent..];
            let sent = match fd_pass::send(socket.as_fd(), rest, &reply.fds, Wait::No) {
                Err(Errno::EAGAIN) => return Ok(()),
                other => other?,
            };
            // Descriptors travel with the first byte.
            self.fds -= mem::take(&mut reply.fds).len();
            self.bytes -= sent;
            reply.sent += sent;
            if reply.sent == reply.bytes.len() {
                self.replies.pop_front();
            }
        }
        Ok(())
    }
}

impl Outgoing {
    fn reply(to: &Header, reply: Reply) -> Self {
        let header = message::reply_header(to, reply.payload.len());
        Self {
            bytes: [header.as_bytes(), &reply.payload].concat(),
            sent: 0,
            fds: reply.fds,
        }
    }

    fn error(to: &Header, errno: Errno) -> Self {
        Self {
            bytes: message::error_header(to, errno).as_bytes().to_vec(),
            sent: 0,
            fds: Vec::new(),
        }
    }
}
