//! The port of a node: up or down, and who hears of it.
//!
//! Place: whoever owns the device calls [`Device::set_port`]; `transfer` asks before each turn of a WQE, `cm` before each connect.
//! Invariants: nothing crosses a port that is down, not even to its own node; a request waits as long as the transport's retries last
//! and goes on when the port comes back. Each change is one event to every function of the node.
//! Source: verbs port events and LinkDown by name. Hot: [`Device::is_cut`], one load while all ports are up.
//! Leaves out: links between two nodes.

use ring_proto::eqe::EventType;
use ring_proto::ids::NodeId;

use super::qp::QpRef;
use super::transfer::Hold;
use super::{Device, DeviceError};

impl Device {
    /// Takes the port of a node up or down. Its functions get PORT_UP or PORT_DOWN when that changes something.
    ///
    /// # Errors
    /// [`DeviceError::NoNode`].
    pub fn set_port(&mut self, node: NodeId, is_up: bool) -> Result<(), DeviceError> {
        if !self
            .nodes
            .set_port(node, is_up)
            .ok_or(DeviceError::NoNode(node))?
        {
            return Ok(());
        }
        self.links.table.set_port(node, is_up);
        let event = if is_up {
            EventType::PORT_UP
        } else {
            EventType::PORT_DOWN
        };
        let places: Vec<_> = self
            .functions
            .iter()
            .filter(|(_, function)| function.node == node)
            .map(|(place, _)| place)
            .collect();
        for place in places {
            self.event(place, event, 0, node.0.into());
        }
        if is_up {
            let waiting: Vec<_> = self
                .functions
                .iter()
                .flat_map(|(place, function)| {
                    let waits = |qp: &super::qp::Qp| qp.is_held && qp.hold_kind == Hold::Port;
                    function
                        .qps
                        .iter()
                        .filter(move |(_, qp)| waits(qp))
                        .map(move |(qpn, _)| QpRef {
                            place,
                            function: function.id,
                            qpn,
                        })
                })
                .collect();
            for at in waiting {
                self.activate(at);
            }
        }
        self.settle();
        Ok(())
    }

    /// Whether the port of a node is up.
    ///
    /// # Errors
    /// [`DeviceError::NoNode`].
    pub fn is_port_up(&self, node: NodeId) -> Result<bool, DeviceError> {
        self.nodes
            .find(node)
            .map(|found| found.is_port_up)
            .ok_or(DeviceError::NoNode(node))
    }

    /// Whether a port that is down lies between two QPs.
    #[inline]
    pub(crate) fn is_cut(&self, at: QpRef, peer: QpRef) -> bool {
        self.nodes.some_port_is_down()
            && [at, peer].iter().any(|end| {
                self.functions
                    .at(end.place)
                    .is_some_and(|function| !self.nodes.is_port_up(function.node))
            })
    }
}
