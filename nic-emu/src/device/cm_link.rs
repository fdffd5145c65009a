//! The connection manager over impaired links: its messages take the link's time, get lost and are sent again.
//!
//! Place: `cm` and `life` come here where the link between the two nodes is impaired; over a perfect link they act at once.
//! Invariants: a message is sent again until it arrives or nobody waits for it any more; a connect whose request or answer never
//! arrives ends at its limit with TIMED_OUT, and the QP that accepted it hears of the end. A request or answer on its way is in
//! `connecting` of the connector. Source: rdma_cm by behaviour (REQ, REP, REJ, DREQ and their retries); the backoff is that of packets.
//! Hot: nothing. Leaves out: WITHDRAWN and ORPHANED, which are told at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ring_proto::admin::CmRecord;
use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::ids::NodeId;
use ring_proto::status::QpState;

use super::Device;
use super::capture::{CmSaid, CmSays};
use super::packet::backoff_ns;
use super::qp::QpRef;
use super::timer::{Timer, TimerKey};
use crate::capture::record;
use crate::capture::running::Sight;

/// Messages on their way, by number.
pub(crate) type Notices = BTreeMap<u64, Notice>;

/// A message on its way.
#[derive(Debug)]
pub(crate) struct Notice {
    from: NodeId,
    to: NodeId,
    news: News,
    tries: u32,
    /// It is under way; else it waits to be sent again.
    is_sent: bool,
    timer: Option<TimerKey>,
    /// Limit of the connect it belongs to.
    limit: Option<TimerKey>,
}

/// What a message says.
#[derive(Debug)]
enum News {
    Request {
        connector: QpRef,
        record: Box<CmRecord>,
        destination: SocketAddr,
    },
    /// Established, or why not.
    Answer {
        connector: QpRef,
        refusal: Option<CmStatus>,
    },
    /// The connection of `peer` with `gone` is over.
    Gone { peer: QpRef, gone: QpRef },
}

impl Device {
    /// Sends a connection request where the way to its destination is impaired; gives the record back where it is not.
    pub(crate) fn request_over_link(
        &mut self,
        connector: QpRef,
        from: NodeId,
        destination: SocketAddr,
        record: Box<CmRecord>,
        timeout_ms: u32,
    ) -> Option<Box<CmRecord>> {
        let to =
            super::cm::ipv4(destination.ip()).and_then(|address| self.nodes.reached(from, address));
        let Some(to) = to.filter(|&to| self.links.is_impaired(from, to)) else {
            return Some(record);
        };
        let until_ns = (timeout_ms != 0).then(|| {
            let limit_ns = u64::from(timeout_ms) * 1_000_000;
            self.clock.now_ns().saturating_add(limit_ns)
        });
        let news = News::Request {
            connector,
            record,
            destination,
        };
        self.dispatch(from, to, news, until_ns);
        None
    }

    /// Answers a connector from a node: established, or why not.
    pub(crate) fn answer_connector(
        &mut self,
        connector: QpRef,
        from: Option<NodeId>,
        refusal: Option<CmStatus>,
        until_ns: Option<u64>,
    ) {
        let to = self.functions.at(connector.place).map(|own| own.node);
        if let (Some(from), Some(to)) = (from, to)
            && self.links.is_impaired(from, to)
        {
            self.dispatch(from, to, News::Answer { connector, refusal }, until_ns);
            return;
        }
        if let (Some(from), Some(to)) = (from, to)
            && self.captures.is_on()
            && let Some(said) = self.said_by(&News::Answer { connector, refusal })
        {
            self.capture_cm_at_once(from, to, said, None);
        }
        self.answered(connector, refusal);
    }

    fn answered(&mut self, connector: QpRef, refusal: Option<CmStatus>) {
        let (event, code) = match refusal {
            None => {
                let peer = self.qp(connector).and_then(|qp| qp.peer);
                let function = peer.map_or(0, |peer| peer.function.0);
                self.capture_ready(connector, peer);
                (EventType::CM_ESTABLISHED, function)
            }
            Some(status) => (EventType::CM_REJECTED, status.0),
        };
        self.event(connector.place, event, connector.qpn, code);
    }

    /// Tells the peer that a connection is over, where the link is impaired; false where it can be told at once.
    pub(crate) fn end_over_link(&mut self, gone: QpRef, peer: QpRef) -> bool {
        if !self.links.is_used || self.qp(peer).is_none_or(|other| other.is_orphan) {
            return false;
        }
        let node = |at: QpRef| self.functions.at(at.place).map(|function| function.node);
        let (Some(from), Some(to)) = (node(gone), node(peer)) else {
            return false;
        };
        if !self.links.is_impaired(from, to) {
            return false;
        }
        self.dispatch(from, to, News::Gone { peer, gone }, None);
        true
    }

    fn dispatch(&mut self, from: NodeId, to: NodeId, news: News, until_ns: Option<u64>) {
        let id = self.cm.next_id();
        if let News::Request { connector, .. } | News::Answer { connector, .. } = &news
            && let Some(qp) = self.qp_mut(*connector)
        {
            qp.connecting = Some(id);
        }
        let limit = until_ns.map(|until| self.timers.set(until, Timer::Connect(id)));
        self.cm.notices.insert(
            id,
            Notice {
                from,
                to,
                news,
                tries: 0,
                is_sent: false,
                timer: None,
                limit,
            },
        );
        self.notice_timer(id);
    }

    /// A message arrives, or is sent (again).
    pub(crate) fn notice_timer(&mut self, id: u64) {
        let Some(notice) = self.cm.notices.get_mut(&id) else {
            return;
        };
        notice.timer = None;
        if notice.is_sent {
            self.capture_notice(id, true, 0);
            if let Some(notice) = self.take_notice(id) {
                self.deliver(notice);
            }
            return;
        }
        if let News::Gone { peer, gone } = notice.news
            && self.qp(peer).is_none_or(|other| other.peer != Some(gone))
        {
            // It has found out by itself.
            self.take_notice(id);
            return;
        }
        let now_ns = self.clock.now_ns();
        let Some(notice) = self.cm.notices.get_mut(&id) else {
            return;
        };
        let way = (notice.from, notice.to);
        let arrival = self.links.draw_notice(way, now_ns);
        let fate = if arrival.is_none() { record::LOST } else { 0 };
        notice.is_sent = arrival.is_some();
        let at_ns = arrival.unwrap_or_else(|| now_ns.saturating_add(backoff_ns(notice.tries)));
        notice.tries = notice.tries.saturating_add(1);
        notice.timer = Some(self.timers.set(at_ns, Timer::Notice(id)));
        self.capture_notice(id, false, fate);
    }

    /// What a message is to captures; `None` for what no adapter says.
    fn said_by(&self, news: &News) -> Option<CmSaid> {
        Some(match news {
            News::Request { connector, .. } => CmSaid {
                says: CmSays::Request,
                by: Some(*connector),
                to: None,
            },
            News::Answer {
                connector,
                refusal: None,
            } => CmSaid {
                says: CmSays::Reply,
                by: self.qp(*connector)?.peer,
                to: Some(*connector),
            },
            News::Answer {
                refusal: Some(CmStatus::NO_ROUTE | CmStatus::PORT_DOWN | CmStatus::TIMED_OUT),
                ..
            } => return None,
            News::Answer {
                connector,
                refusal: Some(status),
            } => CmSaid {
                says: CmSays::Refusal(*status),
                by: None,
                to: Some(*connector),
            },
            News::Gone { peer, gone } => CmSaid {
                says: CmSays::Disconnect,
                by: Some(*gone),
                to: Some(*peer),
            },
        })
    }

    /// A message on its way is seen.
    fn capture_notice(&mut self, id: u64, is_inbound: bool, fate: u8) {
        if !self.captures.is_on() {
            return;
        }
        let Some(notice) = self.cm.notices.get(&id) else {
            return;
        };
        let Some(said) = self.said_by(&notice.news) else {
            return;
        };
        let record = match &notice.news {
            News::Request { record, .. } => Some(record.clone()),
            _ => None,
        };
        let sight = Sight {
            at_ns: self.clock.now_ns(),
            from: notice.from,
            to: notice.to,
            is_inbound,
            fate,
            flipped: None,
        };
        self.capture_cm(sight, said, record.as_deref());
    }

    /// A connector has heard that it is connected, and says so.
    fn capture_ready(&mut self, connector: QpRef, peer: Option<QpRef>) {
        let node = |at: QpRef| self.functions.at(at.place).map(|function| function.node);
        if self.captures.is_on()
            && let Some(from) = node(connector)
            && let Some(to) = peer.and_then(node)
        {
            let said = CmSaid {
                says: CmSays::Ready,
                by: Some(connector),
                to: peer,
            };
            self.capture_cm_at_once(from, to, said, None);
        }
    }

    /// A QP ends its connection with its peer, at once.
    pub(crate) fn capture_end(&mut self, at: QpRef, peer: QpRef) {
        let node = |at: QpRef| self.functions.at(at.place).map(|function| function.node);
        if self.captures.is_on()
            && let (Some(from), Some(to)) = (node(at), node(peer))
        {
            let mut said = CmSaid {
                says: CmSays::Disconnect,
                by: Some(at),
                to: Some(peer),
            };
            self.capture_cm_at_once(from, to, said, None);
            said = CmSaid {
                says: CmSays::Disconnected,
                by: Some(peer),
                to: Some(at),
            };
            self.capture_cm_at_once(to, from, said, None);
        }
    }

    /// Takes a message off its way, with its timers.
    fn take_notice(&mut self, id: u64) -> Option<Notice> {
        let notice = self.cm.notices.remove(&id)?;
        for key in [notice.timer, notice.limit].into_iter().flatten() {
            self.timers.cancel(key);
        }
        if let News::Request { connector, .. } | News::Answer { connector, .. } = &notice.news
            && let Some(qp) = self.qp_mut(*connector)
        {
            qp.connecting = None;
        }
        Some(notice)
    }

    fn deliver(&mut self, notice: Notice) {
        match notice.news {
            News::Request {
                connector,
                record,
                destination,
            } => {
                let until_ns = notice.limit.map(|(at_ns, _)| at_ns);
                match self.find_listener(notice.from, destination) {
                    Ok(listener) => {
                        let left_ms = until_ns.map_or(0, |until_ns| {
                            let left_ns = until_ns.saturating_sub(self.clock.now_ns());
                            u32::try_from(left_ns.div_ceil(1_000_000).max(1)).unwrap_or(u32::MAX)
                        });
                        self.request(connector, listener, record, left_ms);
                    }
                    Err(status) => {
                        self.answer_connector(connector, Some(notice.to), Some(status), until_ns);
                    }
                }
            }
            News::Answer { connector, refusal } => self.answered(connector, refusal),
            News::Gone { peer, gone } => {
                if self.qp(peer).is_some_and(|other| other.peer == Some(gone)) {
                    let said = CmSaid {
                        says: CmSays::Disconnected,
                        by: Some(peer),
                        to: Some(gone),
                    };
                    self.capture_cm_at_once(notice.to, notice.from, said, None);
                    self.peer_ended(peer);
                }
            }
        }
    }

    /// The limit of a connect whose request or answer is on its way; false when there is none of that number.
    pub(crate) fn limit_on_way(&mut self, id: u64) -> bool {
        let Some(notice) = self.take_notice(id) else {
            return false;
        };
        if let News::Request { connector, .. } | News::Answer { connector, .. } = notice.news {
            self.give_back(connector, &notice.news);
            self.answered(connector, Some(CmStatus::TIMED_OUT));
        }
        true
    }

    /// Withdraws the connect of a QP whose request or answer is on its way; false when there is none of that number.
    pub(crate) fn withdraw_on_way(&mut self, at: QpRef, id: u64) -> bool {
        let Some(notice) = self.take_notice(id) else {
            return false;
        };
        self.give_back(at, &notice.news);
        true
    }

    /// A QP that was accepted and never heard of it is as it was before; who accepted it hears of the end.
    fn give_back(&mut self, connector: QpRef, news: &News) {
        if !matches!(news, News::Answer { refusal: None, .. }) {
            return;
        }
        self.unlink(connector);
        self.close_ends(connector, false);
        if let Some(qp) = self.qp_mut(connector)
            && qp.state == QpState::RTS
        {
            qp.state = QpState::INIT;
        }
    }
}
