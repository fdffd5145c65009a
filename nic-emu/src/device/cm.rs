//! Connection manager: listeners, connection requests, backlogs, and who may connect where.
//!
//! Place: CM_ commands of the admin queue; results come as events. Connecting joins two QPs (`qp::connect_qps`).
//! Invariants: a request has one connector and one listener and ends in exactly one way: accepted, rejected, withdrawn or timed out;
//! whoever waits for the end hears of it. A connector must speak with an address of its own node. Nobody listening is answered at
//! once. Of several listeners the one bound to the address wins over the wildcard; those that share take turns.
//! Source: rdma_cm by name, Berkeley listen semantics for backlog and wildcard. Hot: nothing.
//!
//! ```text
//!   connect --> no listener ----------------------------> REJECTED(NO_LISTENER)
//!           \-> backlog has room --> waiting --> accept -> ESTABLISHED, both QPs RTS
//!            \-> full: beyond --^ when room   \-> reject -> REJECTED
//!                     |                        \-> limit -> REJECTED(TIMED_OUT), listener: WITHDRAWN
//!                     \-> limit -----------------------> REJECTED(BACKLOG_FULL)
//! ```

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ring_proto::admin::{
    AdminStatus, CmAccept, CmConnect, CmListen, CmQuery, CmRecord, LISTEN_SHARED, PRIVATE_DATA,
};
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::status::QpState;
use zerocopy::{FromBytes, IntoBytes};

use super::capture::{CmSaid, CmSays};
use super::cm_link::Notices;
use super::holder::Holders;
use super::qp::{QpRef, RNR_FOREVER};
use super::timer::{Timer, TimerKey};
use super::{BacklogFull, Device};

/// Largest backlog; a larger wish gets this.
const BACKLOG_LIMIT: u32 = 65_536;

/// Where a listener is found: node, address (`None` is the wildcard) and port.
type Endpoint = (NodeId, Option<Ipv4Addr>, u16);

/// A listener of a function.
#[derive(Debug)]
pub(crate) struct Listener {
    endpoint: Endpoint,
    backlog: usize,
    pub(crate) holders: Holders,
    /// Requests the listener knows of.
    waiting: Vec<u64>,
    /// Requests beyond the backlog.
    beyond: VecDeque<u64>,
    /// Accepted QPs that no process has taken.
    pub(crate) held: Vec<u32>,
}

/// Names a listener of any function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListenerRef {
    place: u32,
    function: FunctionId,
    id: u32,
}

/// Listeners of one endpoint.
#[derive(Debug)]
struct Group {
    members: Vec<ListenerRef>,
    next: usize,
    is_shared: bool,
}

/// A connect under way.
#[derive(Debug)]
struct Connect {
    connector: QpRef,
    listener: ListenerRef,
    record: Box<CmRecord>,
    /// Number by which the listening function knows it, once it does.
    request: Option<u32>,
    timer: Option<TimerKey>,
}

/// Listeners and connects of the whole fabric.
#[derive(Debug, Default)]
pub(crate) struct Cm {
    groups: HashMap<Endpoint, Group>,
    connects: HashMap<u64, Connect>,
    /// Messages on impaired links; they share their numbers with the connects.
    pub(crate) notices: Notices,
    last: u64,
}

impl Cm {
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Device {
    /// CM_LISTEN.
    pub(crate) fn listen(&mut self, place: u32, wanted: CmListen) -> Result<[u64; 2], AdminStatus> {
        let local = SocketAddr::try_from(wanted.local).map_err(|_| AdminStatus::INVALID)?;
        if wanted.flags & !LISTEN_SHARED != 0 || local.port() == 0 {
            return Err(AdminStatus::INVALID);
        }
        let is_shared = wanted.flags & LISTEN_SHARED != 0;
        let function = self.own(place)?;
        if !function.holders.is_live(wanted.holder) {
            return Err(AdminStatus::NO_OBJECT);
        }
        let (node, id) = (function.node, function.id);
        let address = match ipv4(local.ip()) {
            Some(address) if address.is_unspecified() => None,
            Some(address) if self.nodes.is_own(node, address) => Some(address),
            _ => return Err(AdminStatus::BAD_NODE_ADDRESS),
        };
        let endpoint = (node, address, local.port());
        if let Some(group) = self.cm.groups.get(&endpoint)
            && !(group.is_shared && is_shared)
        {
            return Err(AdminStatus::BUSY);
        }
        let backlog = wanted.backlog.clamp(1, BACKLOG_LIMIT) as usize;
        let listener = self
            .own_mut(place)?
            .listeners
            .insert_with(|_| Listener {
                endpoint,
                backlog,
                holders: Holders::of(wanted.holder),
                waiting: Vec::new(),
                beyond: VecDeque::new(),
                held: Vec::new(),
            })
            .ok_or(AdminStatus::NO_RESOURCE)?;
        let member = ListenerRef {
            place,
            function: id,
            id: listener,
        };
        self.cm
            .groups
            .entry(endpoint)
            .or_insert_with(|| Group {
                members: Vec::new(),
                next: 0,
                is_shared,
            })
            .members
            .push(member);
        Ok([listener.into(), 0])
    }

    /// CM_UNLISTEN.
    pub(crate) fn unlisten(&mut self, place: u32, id: u32) -> Result<[u64; 2], AdminStatus> {
        self.own(place)?
            .listeners
            .find(id)
            .ok_or(AdminStatus::NO_OBJECT)?;
        self.close_listener(place, id);
        Ok([0, 0])
    }

    /// Ends a listener: requests are rejected, accepted QPs that nobody took are disconnected.
    pub(crate) fn close_listener(&mut self, place: u32, id: u32) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let owner = function.id;
        let Some(listener) = function.listeners.remove(id) else {
            return;
        };
        if let Some(group) = self.cm.groups.get_mut(&listener.endpoint) {
            group
                .members
                .retain(|member| !(member.function == owner && member.id == id));
            if group.members.is_empty() {
                self.cm.groups.remove(&listener.endpoint);
            }
        }
        for connect in listener.waiting.into_iter().chain(listener.beyond) {
            self.end_connect(connect, Some(CmStatus::REJECTED), false);
        }
        for qpn in listener.held {
            self.destroy_qp(QpRef {
                place,
                function: owner,
                qpn,
            });
        }
    }

    /// CM_CONNECT.
    pub(crate) fn connect(
        &mut self,
        place: u32,
        wanted: CmConnect,
    ) -> Result<[u64; 2], AdminStatus> {
        let connector = self.living_qp(place, wanted.qpn)?;
        let function = self.own(place)?;
        let node = function.node;
        let mut bytes = [0u8; size_of::<CmRecord>()];
        function.windows.read(wanted.record, &mut bytes)?;
        let mut record =
            Box::new(CmRecord::read_from_bytes(&bytes).map_err(|_| AdminStatus::INVALID)?);
        let source = SocketAddr::try_from(record.source).map_err(|_| AdminStatus::INVALID)?;
        let destination =
            SocketAddr::try_from(record.destination).map_err(|_| AdminStatus::INVALID)?;
        let private_len = record.private_len as usize;
        if record.reserved != 0 || private_len > PRIVATE_DATA || destination.port() == 0 {
            return Err(AdminStatus::INVALID);
        }
        let to = ipv4(destination.ip()).and_then(|address| self.nodes.reached(node, address));
        // An alias is no address to speak from to anybody else.
        let is_own = ipv4(source.ip()).is_some_and(|own| {
            self.nodes.is_own(node, own) && (to == Some(node) || !self.nodes.is_alias(node, own))
        });
        if !is_own {
            return Err(AdminStatus::BAD_NODE_ADDRESS);
        }
        self.ready_to_connect(connector)?;
        record.peer_function = connector.function.0;
        record.peer_qpn = connector.qpn;
        if let Some(unused) = record.private_data.get_mut(private_len..) {
            unused.fill(0);
        }
        if !self.nodes.is_port_up(node) {
            self.answer_connector(connector, None, Some(CmStatus::PORT_DOWN), None);
            return Ok([0, 0]);
        }
        let timeout_ms = wanted.timeout_ms;
        let Some(record) = self.request_over_link(connector, node, destination, record, timeout_ms)
        else {
            return Ok([0, 0]);
        };
        if let Some(to) = to.filter(|&to| self.nodes.is_port_up(to)) {
            let said = CmSaid {
                says: CmSays::Request,
                by: Some(connector),
                to: None,
            };
            self.capture_cm_at_once(node, to, said, Some(&record));
        }
        match self.find_listener(node, destination) {
            Ok(listener) => self.request(connector, listener, record, timeout_ms),
            Err(status) => self.answer_connector(connector, to, Some(status), None),
        }
        Ok([0, 0])
    }

    /// Whether a QP is free to be connected.
    fn ready_to_connect(&self, at: QpRef) -> Result<(), AdminStatus> {
        match self.qp(at) {
            Some(qp) if qp.state == QpState::INIT && qp.connecting.is_none() => Ok(()),
            Some(_) => Err(AdminStatus::BAD_STATE),
            None => Err(AdminStatus::NO_OBJECT),
        }
    }

    /// The listener whose turn it is at a destination, as seen from a node.
    pub(crate) fn find_listener(
        &mut self,
        from: NodeId,
        destination: SocketAddr,
    ) -> Result<ListenerRef, CmStatus> {
        let address = ipv4(destination.ip()).ok_or(CmStatus::NO_ROUTE)?;
        let node = self
            .nodes
            .reached(from, address)
            .ok_or(CmStatus::NO_ROUTE)?;
        if !self.nodes.is_port_up(node) {
            return Err(CmStatus::PORT_DOWN);
        }
        let port = destination.port();
        let specific = (node, Some(address), port);
        let endpoint = if self.cm.groups.contains_key(&specific) {
            specific
        } else {
            (node, None, port)
        };
        let group = self
            .cm
            .groups
            .get_mut(&endpoint)
            .ok_or(CmStatus::NO_LISTENER)?;
        let turn = group.next % group.members.len().max(1);
        group.next = turn + 1;
        group
            .members
            .get(turn)
            .copied()
            .ok_or(CmStatus::NO_LISTENER)
    }

    /// Brings a request to a listener, or puts it behind its backlog.
    pub(crate) fn request(
        &mut self,
        connector: QpRef,
        at: ListenerRef,
        record: Box<CmRecord>,
        timeout_ms: u32,
    ) {
        let Some(listener) = self.listener_mut(at) else {
            self.answer_connector(connector, None, Some(CmStatus::NO_LISTENER), None);
            return;
        };
        let is_full = listener.waiting.len() >= listener.backlog;
        if is_full && self.options.backlog_full == BacklogFull::Refuse {
            let from = self.functions.at(at.place).map(|function| function.node);
            self.answer_connector(connector, from, Some(CmStatus::REJECTED), None);
            return;
        }
        let id = self.cm.next_id();
        // 0: only the connector ends it.
        let timer = (timeout_ms != 0).then(|| {
            let limit_ns = u64::from(timeout_ms) * 1_000_000;
            let until = self.clock.now_ns().saturating_add(limit_ns);
            self.timers.set(until, Timer::Connect(id))
        });
        self.cm.connects.insert(
            id,
            Connect {
                connector,
                listener: at,
                record,
                request: None,
                timer,
            },
        );
        if let Some(qp) = self.qp_mut(connector) {
            qp.connecting = Some(id);
        }
        if let Some(listener) = self.listener_mut(at) {
            listener.beyond.push_back(id);
        }
        self.fill_backlog(at);
    }

    /// Shows the listener as many requests as its backlog has room for.
    fn fill_backlog(&mut self, at: ListenerRef) {
        while let Some(function) = self.functions.at_mut(at.place)
            && let Some(listener) = function.listeners.find_mut(at.id)
            && listener.waiting.len() < listener.backlog
            && let Some(id) = listener.beyond.pop_front()
        {
            listener.waiting.push(id);
            let mut request = function.next_request;
            while request == 0 || function.requests.contains_key(&request) {
                request = request.wrapping_add(1);
            }
            function.next_request = request.wrapping_add(1);
            function.requests.insert(request, id);
            if let Some(connect) = self.cm.connects.get_mut(&id) {
                connect.request = Some(request);
            }
            self.event(at.place, EventType::CM_REQUEST, at.id, request);
        }
    }

    fn listener_mut(&mut self, at: ListenerRef) -> Option<&mut Listener> {
        let function = self.functions.at_mut(at.place)?;
        if function.id != at.function {
            return None;
        }
        function.listeners.find_mut(at.id)
    }

    /// Takes a connect out of all lists. The connector hears `status`, the listener that the request is gone if `tell_listener`.
    fn end_connect(
        &mut self,
        id: u64,
        status: Option<CmStatus>,
        tell_listener: bool,
    ) -> Option<Connect> {
        let connect = self.cm.connects.remove(&id)?;
        if let Some(key) = connect.timer {
            self.timers.cancel(key);
        }
        if let Some(qp) = self.qp_mut(connect.connector) {
            qp.connecting = None;
        }
        let at = connect.listener;
        if let Some(listener) = self.listener_mut(at) {
            listener.waiting.retain(|&other| other != id);
            listener.beyond.retain(|&other| other != id);
        }
        if let Some(request) = connect.request {
            let is_known = self
                .functions
                .at_mut(at.place)
                .filter(|function| function.id == at.function)
                .is_some_and(|function| function.requests.remove(&request).is_some());
            if is_known && tell_listener {
                self.withdraw_event(at.place, at.id, request);
            }
        }
        if let Some(status) = status {
            // What the connector's own end decides needs no way.
            let from = self
                .functions
                .at(at.place)
                .filter(|_| !tell_listener)
                .map(|function| function.node);
            let until_ns = connect.timer.map(|(until_ns, _)| until_ns);
            self.answer_connector(connect.connector, from, Some(status), until_ns);
        }
        self.fill_backlog(at);
        Some(connect)
    }

    /// The functions of a connect: who asks, and who is asked.
    pub(crate) fn connect_functions(&self, id: u64) -> (Option<FunctionId>, Option<FunctionId>) {
        self.cm.connects.get(&id).map_or((None, None), |connect| {
            (
                Some(connect.connector.function),
                Some(connect.listener.function),
            )
        })
    }

    /// A connect has reached its limit.
    pub(crate) fn connect_timer(&mut self, id: u64) {
        if self.limit_on_way(id) {
            return;
        }
        let Some(connect) = self.cm.connects.get(&id) else {
            return;
        };
        let status = if connect.request.is_some() {
            CmStatus::TIMED_OUT
        } else {
            CmStatus::BACKLOG_FULL
        };
        self.end_connect(id, Some(status), true);
    }

    /// Withdraws the connect of a QP, if there is one.
    pub(crate) fn withdraw_connect_of(&mut self, at: QpRef) -> bool {
        let Some(id) = self.qp(at).and_then(|qp| qp.connecting) else {
            return false;
        };
        self.withdraw_on_way(at, id) || self.end_connect(id, None, true).is_some()
    }

    /// CM_CANCEL.
    pub(crate) fn cancel(&mut self, place: u32, qpn: u32) -> Result<[u64; 2], AdminStatus> {
        let at = self.living_qp(place, qpn)?;
        if self.withdraw_connect_of(at) {
            Ok([0, 0])
        } else {
            Err(AdminStatus::BAD_STATE)
        }
    }

    /// CM_ACCEPT.
    pub(crate) fn accept(&mut self, place: u32, wanted: CmAccept) -> Result<[u64; 2], AdminStatus> {
        if wanted.status != 0 {
            return Err(AdminStatus::INVALID);
        }
        let at = self.living_qp(place, wanted.qpn)?;
        self.ready_to_connect(at)?;
        let function = self.own(place)?;
        let id = *function
            .requests
            .get(&wanted.request)
            .ok_or(AdminStatus::NO_OBJECT)?;
        if wanted.listener != 0 {
            function
                .listeners
                .find(wanted.listener)
                .ok_or(AdminStatus::NO_OBJECT)?;
        }
        let connect = self
            .end_connect(id, None, false)
            .ok_or(AdminStatus::NO_OBJECT)?;
        let connector = connect.connector;
        let mut own_record = connect.record;
        let mut its_record = own_record.clone();
        own_record.peer_function = connector.function.0;
        own_record.peer_qpn = connector.qpn;
        its_record.peer_function = at.function.0;
        its_record.peer_qpn = at.qpn;
        for (qp, record) in [(at, own_record), (connector, its_record)] {
            if let Some(qp) = self.qp_mut(qp) {
                qp.record = Some(record);
                qp.rnr_retry = RNR_FOREVER;
            }
        }
        if wanted.listener != 0 {
            if let Some(qp) = self.qp_mut(at) {
                qp.holders.clear();
                qp.listener = Some(wanted.listener);
            }
            if let Some(listener) = self.own_mut(place)?.listeners.find_mut(wanted.listener) {
                listener.held.push(wanted.qpn);
            }
        }
        self.connect_qps(at, connector);
        let from = self.functions.at(place).map(|function| function.node);
        let until_ns = connect.timer.map(|(until_ns, _)| until_ns);
        self.answer_connector(connector, from, None, until_ns);
        Ok([connector.function.0.into(), 0])
    }

    /// CM_REJECT.
    pub(crate) fn reject(&mut self, place: u32, wanted: CmAccept) -> Result<[u64; 2], AdminStatus> {
        if wanted.qpn != 0 || wanted.listener != 0 {
            return Err(AdminStatus::INVALID);
        }
        let status = match CmStatus(wanted.status) {
            CmStatus::OK => CmStatus::REJECTED,
            told @ (CmStatus::REJECTED | CmStatus::NO_RESOURCE) => told,
            _ => return Err(AdminStatus::INVALID),
        };
        let id = *self
            .own(place)?
            .requests
            .get(&wanted.request)
            .ok_or(AdminStatus::NO_OBJECT)?;
        self.end_connect(id, Some(status), false);
        Ok([0, 0])
    }

    /// CM_QUERY.
    pub(crate) fn query_cm(
        &mut self,
        place: u32,
        wanted: CmQuery,
    ) -> Result<[u64; 2], AdminStatus> {
        let function = self.own(place)?;
        let record = match wanted.kind {
            0 => {
                let id = function
                    .requests
                    .get(&wanted.id)
                    .ok_or(AdminStatus::NO_OBJECT)?;
                let connect = self.cm.connects.get(id).ok_or(AdminStatus::NO_OBJECT)?;
                &connect.record
            }
            1 => {
                let qp = function.qps.find(wanted.id).ok_or(AdminStatus::NO_OBJECT)?;
                qp.record.as_ref().ok_or(AdminStatus::BAD_STATE)?
            }
            _ => return Err(AdminStatus::INVALID),
        };
        function.windows.write(wanted.buffer, record.as_bytes())?;
        Ok([0, 0])
    }
}

/// The IPv4 address that an address means to the fabric; `::` is the wildcard like `0.0.0.0`.
pub(crate) fn ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) if address.is_unspecified() => Some(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}
