//! Events: taking them from the event queue, filing them into socket records, and setting this process's event objects.
//!
//! Place: `wsp_event_select`, `wsp_enum_network_events`, `Waiting::progress`; also every operation that must not miss what the NIC
//! has said already.
//! Invariants: whoever finds events files them for the whole family, under the function's lock; an event object belongs to one
//! process, which compares the counts of its sockets' records with what it has seen. Result before signal, drain before look.
//! Source.

use std::os::fd::RawFd;

use ring_proto::eqe::{CmStatus, EventType};
use ring_proto::sync::Ordering;

use super::Core;
use super::socket::{CONNECTING, LISTENING, Sock};
use super::table::{KEY_LISTENER, KEY_QP};
use crate::eq::Event;
use crate::function::{Function, Locked};
use crate::record::Socket;
use crate::spi::{FD_ACCEPT, FD_CONNECT, NetworkEvents, SpSocket};
use crate::sys;
use crate::wsa::WsaError;

/// Event object of one socket in this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registration {
    /// eventfd, which is the switch's.
    object: Option<RawFd>,
    mask: u32,
    /// Bits recorded and not asked for yet.
    recorded: u32,
    accepts_seen: u32,
    connects_seen: u32,
}

impl Registration {
    /// Records what is new; returns whether the object must be set.
    fn look(&mut self, record: &Socket) -> bool {
        let mut new = 0;
        // EDGE request-filed (acquire): the request.
        let accepts = record.accept_count.load(Ordering::Acquire);
        if self.accepts_seen != accepts {
            self.accepts_seen = accepts;
            new |= FD_ACCEPT;
        }
        // EDGE connect-filed (acquire): the result.
        let connects = record.connect_count.load(Ordering::Acquire);
        if self.connects_seen != connects {
            self.connects_seen = connects;
            new |= FD_CONNECT;
        }
        self.recorded |= new;
        new & self.mask != 0
    }

    fn set(&self) {
        if let Some(object) = self.object {
            sys::signal(object);
        }
    }

    /// A child's copy: the object is its parent's.
    pub(crate) fn forget_object(&mut self) {
        self.object = None;
    }
}

/// Files all events that wait; returns whether any came.
pub(crate) fn file(locked: &mut Locked<'_>) -> bool {
    let mut any = false;
    while let Some(event) = locked.peek_event() {
        file_one(locked, event);
        // Filing again is harmless, so the event goes only now.
        locked.event_done();
        any = true;
    }
    if any {
        let filed = &locked.function.header().events_filed;
        let count = filed.load(Ordering::Relaxed).wrapping_add(1);
        // EDGE events-filed (release): the records. Acquired in `progress`.
        filed.store(count, Ordering::Release);
    }
    any
}

fn file_one(locked: &mut Locked<'_>, event: Event) {
    let function = locked.function;
    let kind = match event.kind {
        EventType::CM_REQUEST | EventType::CM_WITHDRAWN => KEY_LISTENER,
        _ => KEY_QP,
    };
    let found = locked.by_key(kind | u64::from(event.source));
    let sock = found.map(|(record, index)| Sock {
        function,
        record,
        index,
        handle: SpSocket(0),
    });
    match (event.kind, sock) {
        (EventType::CM_REQUEST, Some(sock)) => {
            // The NIC announces no more than the backlog, which fits twice: a full list means that requests came back too often.
            let is_filed = sock.state() == LISTENING && locked.add_request(sock.record, event.code);
            if !is_filed {
                locked.reject(event.code);
            }
        }
        (EventType::CM_WITHDRAWN, Some(sock)) => locked.withdraw_request(sock.record, event.code),
        (EventType::CM_ESTABLISHED, Some(sock)) => {
            // Relaxed: published by the state.
            let peer = &sock.record.peer_function;
            peer.store(event.code, Ordering::Relaxed);
            locked.connect_ended(&sock, CmStatus::OK);
        }
        (EventType::CM_REJECTED, Some(sock)) => {
            locked.connect_ended(&sock, CmStatus(event.code));
        }
        (EventType::CM_DISCONNECTED, Some(sock)) => sock.end(WsaError::ConnReset),
        (EventType::QP_FATAL | EventType::QP_ACCESS, Some(sock)) => sock.end(WsaError::ConnAborted),
        (EventType::CM_ORPHANED, Some(sock)) => {
            // EDGE orphaned (release): nothing but the flag. Acquired in `Waiting::link`.
            sock.record.orphaned.store(1, Ordering::Release);
        }
        (EventType::CQ_ERROR, _) => {
            let records: Vec<_> = locked.all_records().collect();
            for (record, index) in records {
                // Relaxed: the lock orders.
                if record.cqn.load(Ordering::Relaxed) == event.source {
                    let sock = Sock {
                        function,
                        record,
                        index,
                        handle: SpSocket(0),
                    };
                    sock.end(WsaError::ConnAborted);
                }
            }
        }
        (EventType::DEVICE_FATAL, _) => function.mark_dead(),
        // Ports, and events of objects that are closed already.
        _ => {}
    }
}

impl Core {
    /// `wsp_event_select`.
    pub(crate) fn event_select(
        &self,
        s: SpSocket,
        object: Option<RawFd>,
        mask: u32,
    ) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        if mask & !(FD_ACCEPT | FD_CONNECT) != 0 {
            return Err(WsaError::Inval);
        }
        let mut locals = self.locals();
        let local = locals.get_mut(&s).ok_or(WsaError::NotSock)?;
        local.events.object = object.filter(|_| mask != 0);
        local.events.mask = mask;
        let new = local.events.look(sock.record);
        // What is recorded already is signalled at once.
        if new || local.events.recorded & mask != 0 {
            local.events.set();
        }
        Ok(())
    }

    /// `wsp_enum_network_events`.
    pub(crate) fn enum_network_events(
        &self,
        s: SpSocket,
        object: Option<RawFd>,
    ) -> Result<NetworkEvents, WsaError> {
        let sock = self.resolve(s)?;
        self.file_events(sock.function);
        let mut locals = self.locals();
        let local = locals.get_mut(&s).ok_or(WsaError::NotSock)?;
        local.events.look(sock.record);
        // The object is set under the same lock, so it is not set while nothing is recorded, and need not be drained.
        if local.events.recorded & local.events.mask != 0
            && let Some(object) = object
        {
            sys::drain(object);
            local.events.look(sock.record);
        }
        let events = local.events.recorded & local.events.mask;
        local.events.recorded &= !events;
        drop(locals);
        let mut answer = NetworkEvents {
            events,
            ..NetworkEvents::default()
        };
        if events & FD_CONNECT != 0 {
            // Relaxed: acquired with the count.
            let error = sock.record.connect_error.load(Ordering::Relaxed);
            answer.connect_error = WsaError::from_code(error);
            answer.connect_detail = sock.record.connect_detail.load(Ordering::Relaxed);
        }
        if events & FD_ACCEPT != 0 && sock.function.is_dead() {
            answer.accept_error = Some(WsaError::NetDown);
        }
        Ok(answer)
    }

    /// Resets a listener's object before an accept returns, and sets it again while requests wait.
    pub(crate) fn accept_again(&self, s: SpSocket, record: &Socket) {
        let mut locals = self.locals();
        let Some(local) = locals.get_mut(&s) else {
            return;
        };
        // EDGE request-filed (acquire): who files later than this look sets the object itself, after us.
        record.accept_count.load(Ordering::Acquire);
        let producer = record.request_producer.load(Ordering::Relaxed);
        let more = producer != record.request_consumer.load(Ordering::Relaxed);
        if let Some(object) = local.events.object {
            sys::drain(object);
        }
        if more {
            local.events.recorded |= FD_ACCEPT;
        } else {
            local.events.recorded &= !FD_ACCEPT;
        }
        if local.events.recorded & local.events.mask != 0 {
            local.events.set();
        }
    }

    /// Files the events of a function, if any wait.
    pub(crate) fn file_events(&self, function: &Function) -> bool {
        function.has_event() && file(&mut function.lock())
    }

    /// Files what all functions have to say and sets this process's objects.
    pub(crate) fn progress_events(&self) -> bool {
        let mut any = false;
        for (index, function) in self.functions() {
            any |= self.file_events(function);
            let Some(seen) = usize::try_from(index)
                .ok()
                .and_then(|i| self.events_seen.get(i))
            else {
                continue;
            };
            // EDGE events-filed (acquire): records that other processes filed.
            let filed = function.header().events_filed.load(Ordering::Acquire);
            // A dead device files nothing any more, but ends what was under way.
            let wanted = filed.wrapping_mul(2) | u32::from(function.is_dead());
            // Relaxed: this process's own memory.
            any |= seen.swap(wanted, Ordering::Relaxed) != wanted;
        }
        if any {
            self.set_objects();
        }
        any
    }

    fn set_objects(&self) {
        let sockets: Vec<SpSocket> = {
            let locals = self.locals();
            let wants = locals
                .iter()
                .filter(|(_, local)| local.events.object.is_some());
            wants.map(|(&s, _)| s).collect()
        };
        for s in sockets {
            let Ok(sock) = self.resolve(s) else {
                continue;
            };
            if sock.function.is_dead() && sock.state() == CONNECTING {
                // Nobody answers any more: TCP may.
                sock.function
                    .lock()
                    .connect_ended(&sock, CmStatus::PORT_DOWN);
            }
            if let Some(local) = self.locals().get_mut(&s)
                && local.events.look(sock.record)
            {
                local.events.set();
            }
        }
    }
}
