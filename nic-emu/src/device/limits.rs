//! Limits of a node's NIC: how much all of its functions together may have of each object.
//!
//! Place: whoever makes a node gives them by [`Device::limit_node`]; attaching, mapping and the admin commands that make an object ask here
//! before they do anything. Invariants: a limit refuses the newcomer and takes nothing from anybody; objects of orphans count, because they
//! are there. Without a limit of its own a node has the device's, which hold for each function alone.
//! Source: `max_qp` and its kind in verbs' device attributes, which are of a NIC and not of a process. Hot: nothing.

use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::cq::CQ_LIMIT;
use super::function::{FUNCTIONS_LIMIT, Function, PD_LIMIT};
use super::mr::MR_LIMIT;
use super::mw::MW_LIMIT;
use super::qp::QP_LIMIT;
use super::srq::SRQ_LIMIT;
use super::window::{BYTES_LIMIT, WINDOWS_LIMIT};
use super::{Device, DeviceError};

/// Something that a node may have so much of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Functions: processes that use the NIC, families by fork counted once.
    Functions,
    /// Queue pairs.
    Qps,
    /// Completion queues.
    Cqs,
    /// Shared receive queues.
    Srqs,
    /// Memory regions.
    Mrs,
    /// Memory windows.
    Mws,
    /// Protection domains.
    Pds,
    /// Pieces of memory that clients lend to the device.
    Windows,
    /// Bytes in them.
    Memory,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Functions,
        Self::Qps,
        Self::Cqs,
        Self::Srqs,
        Self::Mrs,
        Self::Mws,
        Self::Pds,
        Self::Windows,
        Self::Memory,
    ];

    /// Its name in cluster files and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Functions => "functions",
            Self::Qps => "qps",
            Self::Cqs => "cqs",
            Self::Srqs => "srqs",
            Self::Mrs => "mrs",
            Self::Mws => "mws",
            Self::Pds => "pds",
            Self::Windows => "windows",
            Self::Memory => "memory",
        }
    }

    /// What one function may have of it, functions apart; no node's limit is higher.
    #[must_use]
    pub const fn most(self) -> u64 {
        match self {
            Self::Functions => FUNCTIONS_LIMIT as u64,
            Self::Qps => QP_LIMIT as u64,
            Self::Cqs => CQ_LIMIT as u64,
            Self::Srqs => SRQ_LIMIT as u64,
            Self::Mrs => MR_LIMIT as u64,
            Self::Mws => MW_LIMIT as u64,
            Self::Pds => PD_LIMIT as u64,
            Self::Windows => WINDOWS_LIMIT as u64,
            Self::Memory => BYTES_LIMIT,
        }
    }

    /// What an admin command makes one more of.
    const fn of_command(op: AdminOp) -> Option<Self> {
        Some(match op {
            AdminOp::PD_ALLOC => Self::Pds,
            AdminOp::MR_REG => Self::Mrs,
            AdminOp::MW_ALLOC => Self::Mws,
            AdminOp::CQ_CREATE => Self::Cqs,
            AdminOp::QP_CREATE | AdminOp::QP_CREATE_SRQ => Self::Qps,
            AdminOp::SRQ_CREATE => Self::Srqs,
            _ => return None,
        })
    }

    /// What a function has of it.
    fn used(self, function: &Function) -> u64 {
        let len = match self {
            Self::Functions => return u64::from(!function.is_detached),
            Self::Memory => return function.windows.bytes(),
            Self::Qps => function.qps.len(),
            Self::Cqs => function.cqs.len(),
            Self::Srqs => function.srqs.len(),
            Self::Mrs => function.regions.table.len(),
            Self::Mws => function.regions.windows.len(),
            Self::Pds => function.pds.len(),
            Self::Windows => function.windows.len(),
        };
        len as u64
    }
}

/// Limits of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(into = "LimitMap", try_from = "LimitMap")]
pub struct Limits([Option<u64>; Resource::ALL.len()]);

/// As JSON has them.
type LimitMap = std::collections::BTreeMap<Resource, u64>;

/// A limit that no device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a limit of {limit} {} is not possible: from 0 to {}", resource.name(), resource.most())]
pub struct BadLimit {
    /// Of what.
    pub resource: Resource,
    /// Asked for.
    pub limit: u64,
}

impl Limits {
    /// The node's own limit, if it has one.
    #[must_use]
    pub const fn of(&self, resource: Resource) -> Option<u64> {
        self.0[resource as usize]
    }

    /// Sets one.
    ///
    /// # Errors
    /// [`BadLimit`] above [`Resource::most`].
    pub const fn set(&mut self, resource: Resource, limit: u64) -> Result<(), BadLimit> {
        if limit > resource.most() {
            return Err(BadLimit { resource, limit });
        }
        self.0[resource as usize] = Some(limit);
        Ok(())
    }

    /// Those that are set.
    pub fn iter(&self) -> impl Iterator<Item = (Resource, u64)> + '_ {
        let all = Resource::ALL.into_iter();
        all.filter_map(|resource| Some((resource, self.of(resource)?)))
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl From<Limits> for LimitMap {
    fn from(limits: Limits) -> Self {
        limits.iter().collect()
    }
}

impl TryFrom<LimitMap> for Limits {
    type Error = BadLimit;

    fn try_from(map: LimitMap) -> Result<Self, BadLimit> {
        let mut limits = Self::default();
        for (resource, limit) in map {
            limits.set(resource, limit)?;
        }
        Ok(limits)
    }
}

/// What a node has of something, and may have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitRow {
    /// Name of the node.
    pub node: String,
    /// Of what.
    pub resource: Resource,
    /// What its functions have now.
    pub used: u64,
    /// What they may have together, where the node has a limit of its own.
    pub limit: Option<u64>,
}

impl Device {
    /// Gives a node limits of its own, in place of those it had. What its functions have beyond them stays theirs.
    pub fn limit_node(&mut self, node: NodeId, limits: Limits) {
        self.nodes.set_limits(node, limits);
    }

    /// Whether a node may have `more` of something.
    pub(crate) fn may_have(
        &self,
        node: NodeId,
        resource: Resource,
        more: u64,
    ) -> Result<(), DeviceError> {
        let limit = self.nodes.find(node).and_then(|n| n.limits.of(resource));
        let Some(limit) = limit else {
            return Ok(());
        };
        match self.used(node, resource).checked_add(more) {
            Some(all) if all <= limit => Ok(()),
            _ => Err(DeviceError::Limit {
                what: resource.name(),
                limit,
            }),
        }
    }

    /// Whether the node of a function may have what an admin command makes.
    pub(crate) fn may_execute(&self, place: u32, op: AdminOp) -> Result<(), AdminStatus> {
        let function = self.functions.at(place);
        let (Some(function), Some(resource)) = (function, Resource::of_command(op)) else {
            return Ok(());
        };
        self.may_have(function.node, resource, 1)
            .map_err(|_| AdminStatus::NO_RESOURCE)
    }

    /// What a register of a function says of the most it may have.
    pub(crate) fn shown_limit(&self, node: NodeId, resource: Resource) -> u64 {
        let own = self.nodes.find(node).and_then(|n| n.limits.of(resource));
        own.unwrap_or(resource.most())
    }

    /// Rows of every node.
    pub(crate) fn limit_rows(&self) -> Vec<LimitRow> {
        let row = |id, node: &super::node::Node, resource| LimitRow {
            node: node.name.clone(),
            resource,
            used: self.used(id, resource),
            limit: node.limits.of(resource),
        };
        let nodes = self.nodes.iter();
        nodes
            .flat_map(|(id, node)| Resource::ALL.map(|resource| row(id, node, resource)))
            .collect()
    }

    fn used(&self, node: NodeId, resource: Resource) -> u64 {
        let own = self.functions.iter().filter(|(_, f)| f.node == node);
        own.map(|(_, function)| resource.used(function)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_survive_json_and_impossible_ones_are_named() {
        let mut limits = Limits::default();
        assert!(limits.is_empty());
        limits.set(Resource::Qps, 4).unwrap();
        limits.set(Resource::Memory, 0).unwrap();
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(text, r#"{"qps":4,"memory":0}"#);
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
        let error = serde_json::from_str::<Limits>(r#"{"qps":32768}"#).unwrap_err();
        assert!(error.to_string().contains("from 0 to 32767"), "{error}");
        assert!(serde_json::from_str::<Limits>(r#"{"cores":1}"#).is_err());
    }

    #[test]
    fn places_of_limits_are_those_of_the_list() {
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource as usize, index, "{}", resource.name());
        }
    }
}
