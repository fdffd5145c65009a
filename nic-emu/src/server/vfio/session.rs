//! One vfio-user connection: assembles messages, has them done, sends the replies.
//!
//! Place: the control thread calls [`Session::ready`] whenever epoll says so. Invariants: at most one message and [`vfio::MAX_FDS`]
//! descriptors are kept for input, at most [`CONGESTED`] bytes and one more reply for output; a client that does not read its
//! replies is not read from until it does; a message is read exactly to its end, so descriptors belong to the message they came
//! with. The function is attached at VERSION and detached by [`Session::close`].
//! Source: vfio-user protocol, sections on framing and pipelining.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::vfio::{self, Header};
use tracing::{debug, warn};
use zerocopy::{FromBytes, IntoBytes};

use super::message::{self, Frame, HEADER_LEN, Request};
use super::{Failure, Function, Reply, dma, irqs, regions};
use crate::server::epoll::Interest;
use crate::server::fd_pass::{self, Wait};
use crate::server::log_budget::{LogBudget, now_ns};
use crate::server::runtime::{EngineGone, EngineHandle};

/// Output bytes above which no further message is read.
const CONGESTED: usize = 64 * 1024;
/// Descriptors in output above which no further message is read.
const CONGESTED_FDS: usize = 8;
/// Messages done in one go before other connections get their turn.
const BATCH: usize = 32;

/// What a session needs of its surroundings.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) engine: &'a EngineHandle,
    pub(crate) log: &'a mut LogBudget,
}

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
pub(crate) struct Session {
    socket: OwnedFd,
    node: NodeId,
    function: Option<Function>,
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

impl Session {
    /// A session on a fresh socket of `node`.
    pub(crate) fn new(socket: OwnedFd, node: NodeId) -> Self {
        Self {
            socket,
            node,
            function: None,
            input: Input::default(),
            output: Output::default(),
            closing: false,
        }
    }

    /// The function, once VERSION attached it.
    pub(crate) fn function(&self) -> Option<FunctionId> {
        self.function.as_ref().map(|function| function.id)
    }

    /// Reads, works and writes as far as that goes without waiting.
    pub(crate) fn ready(&mut self, context: &mut Context<'_>) -> Result<Step, EngineGone> {
        for _ in 0..BATCH {
            if self.closing || self.output.is_congested() {
                break;
            }
            match self.input.receive(&self.socket) {
                Ok(Arrived::Message(header, frame)) => self.handle(&header, frame, context)?,
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

    /// Detaches the function; the connection closes with the value.
    pub(crate) fn close(self, engine: &EngineHandle) -> Result<(), EngineGone> {
        self.function
            .map_or(Ok(()), |function| engine.detach(function.id))
    }

    fn handle(
        &mut self,
        header: &Header,
        frame: Frame,
        context: &mut Context<'_>,
    ) -> Result<(), EngineGone> {
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
                let result = self.command(header.command, &payload, fds, context);
                self.input.payload = payload;
                result
            }
        };
        let reply = match result {
            Ok(reply) => Some(Outgoing::reply(header, reply)),
            Err(Failure::Gone(gone)) => return Err(gone),
            Err(Failure::Refused(errno)) => {
                if let Some(held_back) = context.log.spend(now_ns()) {
                    warn!(
                        node = self.node.0,
                        function = self.function().map(|f| f.0),
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
        context: &Context<'_>,
    ) -> Result<Reply, Failure> {
        let engine = context.engine;
        let request = message::parse(command, payload, fds.len());
        let Some(function) = &mut self.function else {
            // The first message has to be a VERSION that we speak; otherwise there is nothing to go on with.
            let Ok(Request::Version(minor)) = request else {
                self.closing = true;
                return Err(request.err().unwrap_or(Errno::EINVAL).into());
            };
            let attached = engine
                .attach(self.node)?
                .inspect_err(|_| self.closing = true)?;
            debug!(
                node = self.node.0,
                function = attached.0,
                "function attached"
            );
            self.function = Some(Function::new(attached));
            return Ok(Reply::bytes(message::version_reply(minor)));
        };
        match request? {
            Request::Version(_) => Err(Errno::EINVAL.into()),
            Request::DmaMap(map) => dma::map(engine, function.id, &map, fds.into_iter().next()),
            Request::DmaUnmap(unmap) => dma::unmap(engine, function.id, &unmap),
            Request::DeviceInfo => Ok(regions::device_info()),
            Request::RegionInfo { index } => function.region_info(engine, index),
            Request::RegionIoFds { index, argsz } => function.region_io_fds(engine, index, argsz),
            Request::IrqInfo { index } => irqs::info(index),
            Request::SetIrqs {
                index,
                start,
                count,
                action,
            } => irqs::set(engine, function.id, index, start, count, action, fds),
            Request::RegionRead {
                region,
                offset,
                count,
            } => function.region_read(engine, region, offset, count),
            Request::RegionWrite {
                region,
                offset,
                data,
            } => function.region_write(engine, region, offset, data),
            Request::RegionWriteMulti(entries) => function.region_write_multi(engine, &entries),
            Request::Reset => {
                function.reset(engine)?;
                Ok(Reply::default())
            }
        }
    }
}

impl AsFd for Session {
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
