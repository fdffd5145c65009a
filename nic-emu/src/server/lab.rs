//! Trouble on purpose: requests about links, ports and faults, and what a cluster is made with or meets by the clock.
//!
//! Place: the reactor hands such requests and events here; the work is done on the engine's thread. Invariants: a request
//! that is refused has changed nothing, and its error names what is wrong. Source: ours (docs/control.md).

use ring_proto::ids::NodeId;

use super::config::{LinkSpec, Trouble};
use super::runtime::{EngineGone, EngineHandle};
use crate::control::connection::Connection;
use crate::control::{
    Done, FaultAdded, Faults, FaultsRemoved, Healed, Links, PortRow, Request, SCHEMA,
};
use crate::device::{Device, LinkChange, NodeInfo};

/// Changes a link that is named.
pub(crate) fn set_link(device: &mut Device, link: &LinkSpec) -> Result<(), String> {
    let (from, to) = (named(device, &link.from)?, named(device, &link.to)?);
    let set = device.change_link(from, to, link.change);
    set.map_err(|error| error.to_string())
}

/// Does what an event says.
pub(crate) fn make(device: &mut Device, trouble: &Trouble) -> Result<(), String> {
    match trouble {
        Trouble::Link { links } => links.iter().try_for_each(|link| set_link(device, link)),
        Trouble::Port { node, up } => {
            let node = named(device, node)?;
            let set = device.set_port(node, *up);
            set.map_err(|error| error.to_string())
        }
        Trouble::Heal => {
            device.heal();
            Ok(())
        }
    }
}

fn named(device: &Device, name: &str) -> Result<NodeId, String> {
    let nodes = device.nodes();
    let found = nodes.iter().find(|node| node.name == name);
    let names = || {
        let all: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
        all.join(", ")
    };
    found
        .map(|node| node.id)
        .ok_or_else(|| format!("there is no node {name:?}; the nodes are {}", names()))
}

/// Finds a node by its name, or says which there are.
pub(crate) type NodeByName<'a> = &'a dyn Fn(&str) -> Result<NodeId, String>;

/// Answers one of them; gives any other request back.
pub(crate) fn answer(
    engine: &EngineHandle,
    cluster: &str,
    node: NodeByName<'_>,
    request: Request,
    connection: &mut Connection,
) -> Result<Option<Request>, EngineGone> {
    let done = match request {
        Request::Link {
            from,
            to,
            parameters,
        } => match ends(node, &from, &to) {
            Ok((from, to)) => {
                let set = move |device: &mut Device| device.set_link(from, to, parameters);
                engine.call(set)?.map_err(|error| error.to_string())
            }
            Err(error) => Err(error),
        },
        Request::LinkChange {
            from,
            to,
            both,
            change,
        } => {
            let change = LinkChange::from_fields(&change).map_err(|error| error.to_string());
            match (ends(node, &from, &to), change) {
                (Ok((from, to)), Ok(change)) => {
                    let set =
                        move |device: &mut Device| device.change_links((from, to), both, change);
                    engine.call(set)?.map_err(|error| error.to_string())
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            }
        }
        Request::Port { node: name, up } => match node(&name) {
            Ok(id) => engine
                .call(move |device| device.set_port(id, up))?
                .map_err(|error| error.to_string()),
            Err(error) => Err(error),
        },
        Request::Heal => {
            let healed = engine.call(Device::heal)?;
            connection.answer(&Healed { ok: true, healed }, Vec::new());
            return Ok(None);
        }
        Request::Links => {
            let look = |device: &mut Device| (device.links(), ports(device));
            let (links, ports) = engine.call(look)?;
            let reply = Links {
                schema: SCHEMA,
                cluster: cluster.to_owned(),
                ports,
                links,
            };
            connection.answer(&reply, Vec::new());
            return Ok(None);
        }
        Request::FaultAdd { rule } => {
            match engine.call(move |device| device.add_fault_fields(&rule))? {
                Ok(id) => connection.answer(&FaultAdded { ok: true, id }, Vec::new()),
                Err(error) => connection.refuse(&error.to_string()),
            }
            return Ok(None);
        }
        Request::FaultLs { id } => {
            let report = engine.call(move |device| device.faults(id))?;
            let reply = Faults {
                schema: SCHEMA,
                cluster: cluster.to_owned(),
                report,
            };
            connection.answer(&reply, Vec::new());
            return Ok(None);
        }
        Request::FaultRm { id } => {
            match engine.call(move |device| device.remove_fault(id))? {
                Ok(removed) => connection.answer(&FaultsRemoved { ok: true, removed }, Vec::new()),
                Err(error) => connection.refuse(&error.to_string()),
            }
            return Ok(None);
        }
        other => return Ok(Some(other)),
    };
    match done {
        Ok(()) => connection.answer(&Done { ok: true }, Vec::new()),
        Err(error) => connection.refuse(&error),
    }
    Ok(None)
}

fn ends(node: NodeByName<'_>, from: &str, to: &str) -> Result<(NodeId, NodeId), String> {
    Ok((node(from)?, node(to)?))
}

fn ports(device: &Device) -> Vec<PortRow> {
    let row = |NodeInfo { id, name, .. }| PortRow {
        node: name,
        up: device.is_port_up(id).unwrap_or(false),
    };
    device.nodes().into_iter().map(row).collect()
}
