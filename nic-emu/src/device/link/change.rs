//! Links from outside: changes of single parameters, cuts, and what each direction is and did.
//!
//! Place: the control socket and embedded programs call [`Device::change_link`], [`Device::heal`] and [`Device::links`].
//! Invariants: a change that is refused changes nothing. Source: ours (docs/control.md). Hot: nothing.

use std::net::Ipv4Addr;

use ring_proto::admin::AdminStatus;
use ring_proto::ids::NodeId;
use ring_proto::sync::Ordering;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::random::MILLION;
use super::{Distribution, LinkCounters, LinkParameters, MTU_BYTES, is_mtu};
use crate::device::fields::{FieldError, Fields};
use crate::device::{Device, DeviceError};

/// New values of some parameters of a direction; the others stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkChange {
    /// False cuts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
    /// As in [`LinkParameters`], like those below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_ns: Option<u64>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_distribution: Option<Distribution>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_enter_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_leave_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_loss_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reorder_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reorder_ns: Option<u64>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt_ppm: Option<u32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_bps: Option<u64>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes: Option<u64>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
}

/// Parameters in the order of the page.
const FIELDS: [&str; 15] = [
    "up",
    "latency_ns",
    "jitter_ns",
    "jitter_distribution",
    "loss_ppm",
    "burst_enter_ppm",
    "burst_leave_ppm",
    "burst_loss_ppm",
    "reorder_ppm",
    "reorder_ns",
    "duplicate_ppm",
    "corrupt_ppm",
    "bandwidth_bps",
    "queue_bytes",
    "mtu_bytes",
];

impl LinkChange {
    /// Reads the fields of a request.
    pub(crate) fn from_fields(fields: &Map<String, Value>) -> Result<Self, FieldError> {
        let fields = Fields::new(fields, &FIELDS)?;
        Ok(Self {
            up: fields.flag("up")?,
            latency_ns: fields.number("latency_ns")?,
            jitter_ns: fields.number("jitter_ns")?,
            jitter_distribution: Distribution::from_field(&fields, "jitter_distribution")?,
            loss_ppm: fields.small("loss_ppm", MILLION)?,
            burst_enter_ppm: fields.small("burst_enter_ppm", MILLION)?,
            burst_leave_ppm: fields.small("burst_leave_ppm", MILLION)?,
            burst_loss_ppm: fields.small("burst_loss_ppm", MILLION)?,
            reorder_ppm: fields.small("reorder_ppm", MILLION)?,
            reorder_ns: fields.number("reorder_ns")?,
            duplicate_ppm: fields.small("duplicate_ppm", MILLION)?,
            corrupt_ppm: fields.small("corrupt_ppm", MILLION)?,
            bandwidth_bps: fields.number("bandwidth_bps")?,
            queue_bytes: fields.number("queue_bytes")?,
            mtu_bytes: read_mtu(&fields)?,
        })
    }

    /// The change that leaves nothing as it was.
    #[must_use]
    pub fn all(of: LinkParameters) -> Self {
        let LinkParameters {
            up,
            latency_ns,
            jitter_ns,
            jitter_distribution,
            loss_ppm,
            burst_enter_ppm,
            burst_leave_ppm,
            burst_loss_ppm,
            reorder_ppm,
            reorder_ns,
            duplicate_ppm,
            corrupt_ppm,
            bandwidth_bps,
            queue_bytes,
            mtu_bytes,
        } = of;
        Self {
            up: Some(up),
            latency_ns: Some(latency_ns),
            jitter_ns: Some(jitter_ns),
            jitter_distribution: Some(jitter_distribution),
            loss_ppm: Some(loss_ppm),
            burst_enter_ppm: Some(burst_enter_ppm),
            burst_leave_ppm: Some(burst_leave_ppm),
            burst_loss_ppm: Some(burst_loss_ppm),
            reorder_ppm: Some(reorder_ppm),
            reorder_ns: Some(reorder_ns),
            duplicate_ppm: Some(duplicate_ppm),
            corrupt_ppm: Some(corrupt_ppm),
            bandwidth_bps: Some(bandwidth_bps),
            queue_bytes: Some(queue_bytes),
            mtu_bytes: Some(mtu_bytes),
        }
    }

    /// This change, and where it says nothing the other one.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            up: self.up.or(other.up),
            latency_ns: self.latency_ns.or(other.latency_ns),
            jitter_ns: self.jitter_ns.or(other.jitter_ns),
            jitter_distribution: self.jitter_distribution.or(other.jitter_distribution),
            loss_ppm: self.loss_ppm.or(other.loss_ppm),
            burst_enter_ppm: self.burst_enter_ppm.or(other.burst_enter_ppm),
            burst_leave_ppm: self.burst_leave_ppm.or(other.burst_leave_ppm),
            burst_loss_ppm: self.burst_loss_ppm.or(other.burst_loss_ppm),
            reorder_ppm: self.reorder_ppm.or(other.reorder_ppm),
            reorder_ns: self.reorder_ns.or(other.reorder_ns),
            duplicate_ppm: self.duplicate_ppm.or(other.duplicate_ppm),
            corrupt_ppm: self.corrupt_ppm.or(other.corrupt_ppm),
            bandwidth_bps: self.bandwidth_bps.or(other.bandwidth_bps),
            queue_bytes: self.queue_bytes.or(other.queue_bytes),
            mtu_bytes: self.mtu_bytes.or(other.mtu_bytes),
        }
    }

    fn applied(self, to: LinkParameters) -> LinkParameters {
        LinkParameters {
            up: self.up.unwrap_or(to.up),
            latency_ns: self.latency_ns.unwrap_or(to.latency_ns),
            jitter_ns: self.jitter_ns.unwrap_or(to.jitter_ns),
            jitter_distribution: self.jitter_distribution.unwrap_or(to.jitter_distribution),
            loss_ppm: self.loss_ppm.unwrap_or(to.loss_ppm),
            burst_enter_ppm: self.burst_enter_ppm.unwrap_or(to.burst_enter_ppm),
            burst_leave_ppm: self.burst_leave_ppm.unwrap_or(to.burst_leave_ppm),
            burst_loss_ppm: self.burst_loss_ppm.unwrap_or(to.burst_loss_ppm),
            reorder_ppm: self.reorder_ppm.unwrap_or(to.reorder_ppm),
            reorder_ns: self.reorder_ns.unwrap_or(to.reorder_ns),
            duplicate_ppm: self.duplicate_ppm.unwrap_or(to.duplicate_ppm),
            corrupt_ppm: self.corrupt_ppm.unwrap_or(to.corrupt_ppm),
            bandwidth_bps: self.bandwidth_bps.unwrap_or(to.bandwidth_bps),
            queue_bytes: self.queue_bytes.unwrap_or(to.queue_bytes),
            mtu_bytes: self.mtu_bytes.unwrap_or(to.mtu_bytes),
        }
    }
}

fn read_mtu(fields: &Fields<'_>) -> Result<Option<u32>, FieldError> {
    let Some(number) = fields.number("mtu_bytes")? else {
        return Ok(None);
    };
    let mtu = u32::try_from(number).ok().filter(|&bytes| is_mtu(bytes));
    let allowed = || format!("0, or {} to {}", MTU_BYTES.start(), MTU_BYTES.end());
    mtu.map(Some)
        .ok_or_else(|| FieldError::value("mtu_bytes", number, allowed()))
}

/// A direction of a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkRow {
    /// Node that packets come from.
    pub from: String,
    /// Node that they go to.
    pub to: String,
    /// How it treats them.
    pub parameters: LinkParameters,
    /// What became of them.
    pub counters: LinkCounters,
}

impl Device {
    /// Changes some parameters of the packets from one node to another, from now on; the same rules as for [`Device::set_link`].
    ///
    /// # Errors
    /// As [`Device::set_link`].
    pub fn change_link(
        &mut self,
        from: NodeId,
        to: NodeId,
        change: LinkChange,
    ) -> Result<(), DeviceError> {
        let parameters = change.applied(self.link(from, to));
        self.set_link(from, to, parameters)
    }

    /// Changes both directions of a link, or one that `both` is false for.
    ///
    /// # Errors
    /// As [`Device::set_link`]; [`DeviceError::OneWayMtu`] for an MTU that the way back would not have.
    pub fn change_links(
        &mut self,
        (from, to): (NodeId, NodeId),
        both: bool,
        change: LinkChange,
    ) -> Result<(), DeviceError> {
        let other = self.link(to, from).mtu_bytes;
        if !both && change.mtu_bytes.is_some_and(|mtu| mtu != other) {
            return Err(DeviceError::OneWayMtu);
        }
        self.change_link(from, to, change)?;
        if both {
            self.change_link(to, from, change)?;
        }
        Ok(())
    }

    /// LINK_QUERY: which directions of the link between a function's node and the owner of an address are cut.
    pub(crate) fn query_link(&self, place: u32, address: u32) -> Result<[u64; 2], AdminStatus> {
        let own = self.own(place)?.node;
        let other = self.nodes.reached(own, Ipv4Addr::from_bits(address));
        let other = other.ok_or(AdminStatus::BAD_NODE_ADDRESS)?;
        let (there, back) = (self.links.is_cut(own, other), self.links.is_cut(other, own));
        Ok([u64::from(there) | u64::from(back) << 1, 0])
    }

    /// Shows each function how many cuts touch its node.
    pub(crate) fn publish_link_cuts(&self) {
        for (_, function) in self.functions.iter() {
            let touches = |&(from, to): &(NodeId, NodeId)| {
                (from == function.node || to == function.node) && self.links.is_cut(from, to)
            };
            let cuts = self.links.all.keys().filter(|ends| touches(ends)).count();
            let cuts = u32::try_from(cuts).unwrap_or(u32::MAX);
            // Relaxed: who sees one asks; the answer is the device's.
            function.bar.link_cuts().store(cuts, Ordering::Relaxed);
        }
    }

    /// Mends every cut direction, what else it does to packets stays; how many there were.
    pub fn heal(&mut self) -> usize {
        let cut: Vec<_> = self
            .links
            .all
            .iter()
            .filter(|(_, link)| !link.parameters.up)
            .map(|(&ends, _)| ends)
            .collect();
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        for &(from, to) in &cut {
            self.change_link(from, to, up)
                .expect("its nodes exist, and nothing else changes");
        }
        cut.len()
    }

    /// Directions that are or were anything but perfect or carried frames of the wire, in the order of their nodes.
    #[must_use]
    pub fn links(&self) -> Vec<LinkRow> {
        let ends = self.links.table.ends();
        ends.into_iter()
            .map(|(from, to)| LinkRow {
                from: self.node_name(from),
                to: self.node_name(to),
                parameters: self.link(from, to),
                counters: self.link_counters(from, to),
            })
            .collect()
    }
}
