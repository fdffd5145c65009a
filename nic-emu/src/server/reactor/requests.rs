//! What control requests ask of the loop itself; the rest goes on to [`lab`] and [`inspect`].
//!
//! Place: the loop calls [`Reactor::answer`] for each whole request of a connection. Invariants: every request is answered or refused with
//! what is wrong; nothing has changed when it is refused.
//! Source: ours; docs/control.md.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use ring_proto::ids::NodeId;
use ring_proto::telemetry::Reason;
use tracing::info;

use super::super::channel::Channel;
use super::super::runtime::EngineGone;
use super::super::spaces::NamespaceKind;
use super::super::stat::node_entries;
use super::super::{inspect, lab};
use super::{Reactor, Source, live};
use crate::control::connection::Connection;
use crate::control::{
    ChannelReply, Done, Namespaces, NodeConfig, Note, Pong, ProviderEntry, Request,
};
use crate::device::Device;

/// Id and name of the one provider that is compiled in.
const PROVIDER: (&str, &str) = ("5a1ab000-0000-4000-8000-000000000001", "sanlab");

impl Reactor {
    /// Answers one request.
    pub(super) fn answer(
        &mut self,
        connection: &mut Connection,
        request: Request,
    ) -> Result<(), EngineGone> {
        match request {
            Request::Ping => connection.answer(
                &Pong {
                    ok: true,
                    cluster: self.config.name.clone(),
                    emulator_pid: std::process::id(),
                    nodes: node_entries(&self.config),
                    ungoverned: self.config.lab.ungoverned,
                },
                Vec::new(),
            ),
            Request::Stat => {
                let look = |device: &mut Device| (device.node_counters(), device.findings());
                let (counters, findings) = self.engine.handle().call(look)?;
                let processes: Vec<_> = self.sources.iter_mut().filter_map(live).collect();
                let stat = self
                    .ledger
                    .stat(&self.config, &counters, &processes, findings);
                connection.answer(&stat, Vec::new());
            }
            Request::Channel { node } => match self.make_channel(&node) {
                Ok((config, fd)) => {
                    connection.answer(&ChannelReply { ok: true, config }, vec![fd]);
                }
                Err(error) => connection.refuse(&error),
            },
            Request::Namespaces { node } => match self.namespaces_of(&node) {
                Ok((kinds, fds)) => {
                    connection.answer(&Namespaces { ok: true, kinds }, fds);
                }
                Err(error) => connection.refuse(&error),
            },
            Request::Capture {
                nodes,
                snaplen,
                ring_bytes,
            } => match self.capture(&nodes, snaplen, ring_bytes)? {
                Ok((reply, fds)) => connection.answer(&reply, fds),
                Err(error) => connection.refuse(&error),
            },
            Request::Note(note) => match self.note(&note) {
                Ok(()) => connection.answer(&Done { ok: true }, Vec::new()),
                Err(error) => connection.refuse(&error),
            },
            Request::Shutdown => {
                info!("asked to end by a control request");
                self.stopping = true;
                connection.answer(&Done { ok: true }, Vec::new());
            }
            other => {
                let engine = self.engine.handle();
                let name = &self.config.name;
                let node = |name: &str| self.node(name);
                let left = lab::answer(&engine, name, &node, other, connection)?;
                if let Some(request) = left {
                    inspect::answer(&engine, name, request, connection)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn node(&self, name: &str) -> Result<NodeId, String> {
        let found = (0u16..)
            .zip(&self.config.nodes)
            .find(|(_, node)| node.name == name);
        found.map(|(id, _)| NodeId(id)).ok_or_else(|| {
            let names: Vec<_> = self.config.nodes.iter().map(|n| n.name.as_str()).collect();
            format!(
                "cluster {} has no node {name:?}; its nodes are {}",
                self.config.name,
                names.join(", ")
            )
        })
    }

    /// What a program enters to be on a node: nothing in loopback mode.
    fn namespaces_of(&self, name: &str) -> Result<(Vec<NamespaceKind>, Vec<OwnedFd>), String> {
        let node = self.node(name)?;
        let own = self.namespaces.get(usize::from(node.0));
        let mut found = (Vec::new(), Vec::new());
        for namespace in own.into_iter().flatten() {
            let fd = namespace.fd.try_clone();
            let fd = fd.map_err(|error| format!("cannot hand out a namespace: {error}"))?;
            found.0.push(namespace.kind);
            found.1.push(fd);
        }
        Ok(found)
    }

    /// Makes a cluster channel; our end is watched from now on.
    fn make_channel(&mut self, name: &str) -> Result<(NodeConfig, OwnedFd), String> {
        let node = self.node(name)?;
        let broken = |errno: Errno| format!("cannot make a channel: {errno}");
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(broken)?;
        self.add(Source::Channel(Channel { socket: ours, node }))
            .map_err(broken)?;
        let nodes = node_entries(&self.config);
        let config = NodeConfig {
            cluster: self.config.name.clone(),
            node: name.to_owned(),
            node_id: u32::from(node.0) + 1,
            addresses: nodes
                .iter()
                .find(|entry| entry.name == name)
                .map(|entry| entry.addresses.clone())
                .unwrap_or_default(),
            subnet: self.config.subnet,
            wildcard_on_san: self.config.wildcard_on_san,
            san_connect_limit_ms: self.config.san_connect_limit_ms,
            loopback: self.config.loopback,
            ungoverned: self.config.lab.ungoverned,
            nodes,
            providers: vec![ProviderEntry {
                id: PROVIDER.0.into(),
                name: PROVIDER.1.into(),
                enabled: true,
            }],
        };
        Ok((config, theirs))
    }

    fn note(&mut self, note: &Note) -> Result<(), String> {
        let node = self.node(&note.node)?;
        let reason = Reason::ALL
            .into_iter()
            .find(|reason| reason.name() == note.reason)
            .ok_or_else(|| format!("{:?} is no reason of the closed list", note.reason))?;
        self.ledger.note(&self.config, node, reason, note);
        Ok(())
    }
}
