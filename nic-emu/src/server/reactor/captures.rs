//! Captures that a control request starts and the end of its connection ends.
//!
//! Place: part of [`Reactor`]. Invariants: the engine's part and the wire's part of a capture start and end together. Source: ours.

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use ring_proto::ids::NodeId;

use super::{Reactor, Source};
use crate::capture::running::Wanted;
use crate::capture::{CaptureError, Geometry, Writer};
use crate::control::CaptureReply;
use crate::device::Device;
use crate::server::runtime::EngineGone;
use crate::server::stat::node_entries;

/// Numbers of a capture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capture {
    /// In the engine.
    san: u32,
    /// On the wire.
    ethernet: Option<u32>,
}

/// The answer, with its descriptors; or why there is no capture.
type Started = Result<(CaptureReply, Vec<OwnedFd>), String>;

impl Reactor {
    /// Starts a capture; it ends when the other end of the connection that is made for it does.
    pub(super) fn capture(
        &mut self,
        nodes: &[String],
        snaplen: u32,
        ring_bytes: u64,
    ) -> Result<Started, EngineGone> {
        let ids = match self.captured(nodes) {
            Ok(ids) => ids,
            Err(error) => return Ok(Err(error)),
        };
        let made = self.rings(&ids, snaplen, ring_bytes);
        let (ring, (writer, file), ethernet) = match made {
            Ok(made) => made,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let pair = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        );
        let (ours, theirs) = match pair {
            Ok(pair) => pair,
            Err(errno) => return Ok(Err(format!("cannot make a connection: {errno}"))),
        };
        let ports = ids.iter().map(|id| id.0).collect();
        let start = move |device: &mut Device| {
            let id = device.start_capture(&ids, snaplen, writer)?;
            Ok((id, device.now_ns(), device.is_time_virtual()))
        };
        let started: Result<_, CaptureError> = self.engine.handle().call(start)?;
        let (san, now_ns, is_virtual) = match started {
            Ok(started) => started,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut fds = vec![file, theirs];
        let mut capture = Capture {
            san,
            ethernet: None,
        };
        if let (Some(wire), Some((wanted, writer, file))) = (&self.ethernet, ethernet) {
            match wire.start(wanted, writer) {
                Ok(id) => capture.ethernet = Some(id),
                Err(error) => {
                    self.stop_capture(capture)?;
                    return Ok(Err(error.to_string()));
                }
            }
            fds.push(file);
        }
        let source = Source::Capture {
            socket: ours,
            capture,
        };
        if let Err(errno) = self.add(source) {
            self.stop_capture(capture)?;
            return Ok(Err(format!("cannot watch a connection: {errno}")));
        }
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let wall_ns = u64::try_from(since_1970.as_nanos()).unwrap_or(0);
        let reply = CaptureReply {
            ok: true,
            cluster: self.config.name.clone(),
            nodes: node_entries(&self.config),
            ports,
            epoch_ns: if is_virtual {
                0
            } else {
                wall_ns.saturating_sub(now_ns)
            },
            now_ns,
            ring,
            ethernet: capture.ethernet.is_some(),
        };
        Ok(Ok((reply, fds)))
    }

    /// Ends both parts of a capture.
    pub(super) fn stop_capture(&self, capture: Capture) -> Result<(), EngineGone> {
        if let (Some(wire), Some(id)) = (&self.ethernet, capture.ethernet) {
            wire.stop(id);
        }
        let id = capture.san;
        self.engine
            .handle()
            .call(move |device| device.stop_capture(id))
    }

    /// Nodes that a request names; all when it names none.
    fn captured(&self, nodes: &[String]) -> Result<Vec<NodeId>, String> {
        if nodes.is_empty() {
            let all = 0..u16::try_from(self.config.nodes.len()).unwrap_or(u16::MAX);
            return Ok(all.map(NodeId).collect());
        }
        let named: Result<Vec<_>, _> = nodes.iter().map(|name| self.node(name)).collect();
        let mut ids = named?;
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// A ring for what the engine sees, and one for what the wire sees where there is one.
    #[expect(clippy::type_complexity, reason = "taken apart where it is made")]
    fn rings(
        &self,
        ids: &[NodeId],
        snaplen: u32,
        ring_bytes: u64,
    ) -> Result<
        (
            Geometry,
            (Writer, OwnedFd),
            Option<(Wanted, Writer, OwnedFd)>,
        ),
        CaptureError,
    > {
        let count = u32::try_from(self.config.nodes.len()).unwrap_or(u32::MAX);
        let geometry = Geometry::new(ring_bytes, count)?;
        let wanted = Wanted::new(ids, snaplen)?;
        let ethernet = match self.ethernet {
            Some(_) => {
                let (writer, file) = Writer::new(geometry)?;
                Some((wanted, writer, file))
            }
            None => None,
        };
        Ok((geometry, Writer::new(geometry)?, ethernet))
    }
}
