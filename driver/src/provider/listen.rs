//! Listening: the NIC queues connection requests, the record lists those it announced.
//!
//! Place: `wsp_listen`; `events` files requests here, `accept` takes them out.
//! Invariants: the list is a ring of request numbers, changed under the function's lock only; 0 stands for a withdrawn one.
//! A second listen changes the backlog of this list and refuses what is too much; DEVIATION: the NIC keeps the backlog of the first
//! one, so a larger one takes effect only for what is announced already.
//! Source.

use ring_proto::admin::{AdminOp, CmAccept, CmListen, LISTEN_SHARED};
use ring_proto::eqe::CmStatus;
use ring_proto::sync::{AtomicU64, Ordering};

use super::socket::{BOUND, CONNECTED, DISCONNECTED, LISTENING, Sock, unpack};
use super::table::KEY_LISTENER;
use super::{Core, code_of};
use crate::alloc::Links;
use crate::function::{Locked, low};
use crate::lock::Identity;
use crate::record::Socket;
use crate::spi::SpSocket;
use crate::wsa::WsaError;

/// Largest backlog, as Linux has it by default (`net.core.somaxconn`).
const BACKLOG_LIMIT: u32 = 4096;
/// Set in every entry of a request list, so that no entry is 0.
const PRESENT: u64 = 1 << 32;

/// Backlog that a number of `listen` means: as the kernel takes it.
fn effective(backlog: i32) -> u32 {
    match u32::try_from(backlog) {
        Ok(backlog) => backlog.clamp(1, BACKLOG_LIMIT),
        Err(_) => BACKLOG_LIMIT,
    }
}

impl Core {
    /// `wsp_listen`.
    pub(crate) fn listen(&self, s: SpSocket, backlog: i32) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        let backlog = effective(backlog);
        match sock.state() {
            BOUND => start(&mut sock.function.lock(), &sock, backlog),
            LISTENING => {
                let mut locked = sock.function.lock();
                // Relaxed: the lock orders.
                sock.record.backlog.store(backlog, Ordering::Relaxed);
                while locked.request_count(sock.record) > backlog {
                    let Some(request) = locked.take_last_request(sock.record) else {
                        break;
                    };
                    locked.reject(request);
                }
                Ok(())
            }
            CONNECTED | DISCONNECTED => Err(WsaError::IsConn),
            _ => Err(WsaError::Inval),
        }
    }

    /// Ends a listener; what still waits is rejected by the NIC.
    pub(crate) fn stop_listening(&self, locked: &mut Locked<'_>, sock: &Sock<'_>, listener: u32) {
        match locked.admin_on(AdminOp::CM_UNLISTEN, listener) {
            Ok(_) | Err(_) => {} // A dead device has no listeners left.
        }
        // Announcements under way belong to nobody.
        super::events::file(locked);
        locked.leave(sock);
        let places = u64::from(sock.record.request_places.swap(0, Ordering::Relaxed));
        let requests = sock.record.requests.swap(0, Ordering::Relaxed);
        if requests != 0 {
            locked.free(requests, places * 8);
        }
    }
}

fn start(locked: &mut Locked<'_>, sock: &Sock<'_>, backlog: u32) -> Result<(), WsaError> {
    // A listener needs no queues; what `bind` made is given back.
    locked.take_queues(sock);
    let record = sock.record;
    let places = (2 * backlog).next_power_of_two();
    let bytes = u64::from(places) * 8;
    let requests = locked.alloc(bytes).ok_or(WsaError::NoBufs)?;
    locked.function.arena().zero(requests, bytes);
    let body = CmListen {
        local: core::net::SocketAddr::V4(unpack(record.local.load(Ordering::Relaxed))).into(),
        backlog,
        holder: Identity::slot_of(locked.function.identity().word()),
        // TCP has listened on the same address and port before, so who may share it is decided already.
        flags: LISTEN_SHARED,
        reserved: 0,
    };
    let listener = match locked.admin(AdminOp::CM_LISTEN, body.to_body()) {
        Ok([listener, _]) => low(listener),
        Err(error) => {
            locked.free(requests, bytes);
            // `AddrNotAvail` is not among the codes of WSPListen.
            return Err(match code_of(error) {
                WsaError::AddrNotAvail => WsaError::Inval,
                code => code,
            });
        }
    };
    // Relaxed: the lock orders, and the state publishes.
    record.request_consumer.store(0, Ordering::Relaxed);
    record.request_producer.store(0, Ordering::Relaxed);
    record.request_places.store(places, Ordering::Relaxed);
    record.requests.store(requests, Ordering::Relaxed);
    record.backlog.store(backlog, Ordering::Relaxed);
    record.listener.store(listener, Ordering::Relaxed);
    locked.enter(sock, KEY_LISTENER | u64::from(listener));
    sock.set_state(LISTENING);
    Ok(())
}

impl<'a> Locked<'a> {
    fn request_entry(&self, record: &Socket, position: u32) -> Option<&'a AtomicU64> {
        let function = self.function;
        let places = record.request_places.load(Ordering::Relaxed);
        let requests = record.requests.load(Ordering::Relaxed);
        let place = position & places.checked_sub(1)?;
        if requests == 0 {
            return None;
        }
        function.arena().link(requests + 8 * u64::from(place))
    }

    /// Requests in the list, withdrawn ones included.
    pub(crate) fn request_count(&self, record: &Socket) -> u32 {
        let producer = record.request_producer.load(Ordering::Relaxed);
        producer.wrapping_sub(record.request_consumer.load(Ordering::Relaxed))
    }

    /// Files an announced request; false when the list is full.
    pub(crate) fn add_request(&mut self, record: &Socket, request: u32) -> bool {
        let producer = record.request_producer.load(Ordering::Relaxed);
        if self.request_count(record) >= record.request_places.load(Ordering::Relaxed) {
            return false;
        }
        let Some(entry) = self.request_entry(record, producer) else {
            return false;
        };
        entry.store(PRESENT | u64::from(request), Ordering::Relaxed);
        record
            .request_producer
            .store(producer.wrapping_add(1), Ordering::Relaxed);
        let count = record.accept_count.load(Ordering::Relaxed).wrapping_add(1);
        // EDGE request-filed (release): the request. Acquired by who looks whether FD_ACCEPT is due.
        record.accept_count.store(count, Ordering::Release);
        true
    }

    /// Takes out a request that its sender withdrew.
    pub(crate) fn withdraw_request(&mut self, record: &Socket, request: u32) {
        let consumer = record.request_consumer.load(Ordering::Relaxed);
        for distance in 0..self.request_count(record) {
            let Some(entry) = self.request_entry(record, consumer.wrapping_add(distance)) else {
                return;
            };
            if entry.load(Ordering::Relaxed) == PRESENT | u64::from(request) {
                entry.store(0, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Takes the first request out.
    pub(crate) fn take_request(&mut self, record: &Socket) -> Option<u32> {
        while self.request_count(record) > 0 {
            let consumer = record.request_consumer.load(Ordering::Relaxed);
            let entry = self
                .request_entry(record, consumer)?
                .load(Ordering::Relaxed);
            record
                .request_consumer
                .store(consumer.wrapping_add(1), Ordering::Relaxed);
            if entry & PRESENT != 0 {
                return Some(low(entry));
            }
        }
        None
    }

    /// Takes the last request out.
    fn take_last_request(&mut self, record: &Socket) -> Option<u32> {
        while self.request_count(record) > 0 {
            let last = record
                .request_producer
                .load(Ordering::Relaxed)
                .wrapping_sub(1);
            let entry = self.request_entry(record, last)?.load(Ordering::Relaxed);
            record.request_producer.store(last, Ordering::Relaxed);
            if entry & PRESENT != 0 {
                return Some(low(entry));
            }
        }
        None
    }

    /// Puts a request back to the front (CF_DEFER); refuses it when meanwhile the list filled up.
    pub(crate) fn put_back_request(&mut self, record: &Socket, request: u32) {
        let first = record
            .request_consumer
            .load(Ordering::Relaxed)
            .wrapping_sub(1);
        if self.request_count(record) >= record.request_places.load(Ordering::Relaxed) {
            self.reject(request);
            return;
        }
        if let Some(entry) = self.request_entry(record, first) {
            entry.store(PRESENT | u64::from(request), Ordering::Relaxed);
            record.request_consumer.store(first, Ordering::Relaxed);
        }
    }

    /// Refuses a request, for good.
    pub(crate) fn reject(&mut self, request: u32) {
        self.refuse(request, CmStatus::REJECTED);
    }

    /// Refuses a request that there is nothing left for; its peer may try TCP.
    pub(crate) fn turn_away(&mut self, request: u32) {
        self.refuse(request, CmStatus::NO_RESOURCE);
    }

    fn refuse(&mut self, request: u32, status: CmStatus) {
        let body = CmAccept {
            request,
            status: status.0,
            ..Default::default()
        };
        match self.admin(AdminOp::CM_REJECT, body.to_body()) {
            Ok(_) | Err(_) => {} // Withdrawn meanwhile, or the device is gone.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_taken_as_the_kernel_takes_it() {
        assert_eq!(effective(0), 1);
        assert_eq!(effective(5), 5);
        assert_eq!(effective(100_000), BACKLOG_LIMIT);
        assert_eq!(effective(-1), BACKLOG_LIMIT);
    }
}
