//! Companion sockets: handles, records, states, creation and close.
//!
//! Place: every entry of the dispatch table resolves its [`SpSocket`] here; `queues` gives a socket its queues.
//! Invariants: a handle is function index (16 bits), generation (16) and record index (32); a stale one is `NotSock` (R-191). States
//! change as those of Windows Sockets Direct providers do. Queues are taken away only under the function's lock and all three tokens. The record is
//! not freed before the switch called close (R-190), and the switch's handle is closed by the last upcall (R-189).
//! Source: R-54 to R-60, R-186 to R-192.
//!
//! ```text
//! CREATED -bind-> BOUND -listen-> LISTENING
//!                   | ^
//!            connect| |failure        accept: directly CONNECTED
//!                   v |
//!               CONNECTING -> CONNECTED -peer or fault-> DISCONNECTED     any -close-> FREE
//! ```

use core::net::{Ipv4Addr, SocketAddrV4};

use ring_proto::admin::AdminOp;
use ring_proto::sync::Ordering;

use super::flight::FlightKind;
use super::table::socket_record;
use super::{Core, Local, events};
use crate::function::{Function, low};
use crate::lock::{Taken, Token};
use crate::record::{self, Socket};
use crate::spi::{ProtocolInfo, SpSocket, SwitchHandle, WSA_FLAG_OVERLAPPED};
use crate::wsa::WsaError;

pub(crate) const FREE: u32 = 0;
pub(crate) const CREATED: u32 = 1;
pub(crate) const BOUND: u32 = 2;
pub(crate) const LISTENING: u32 = 3;
pub(crate) const CONNECTING: u32 = 4;
pub(crate) const CONNECTED: u32 = 5;
pub(crate) const DISCONNECTED: u32 = 6;
pub(crate) const CLOSING: u32 = 7;

/// Sockets known between two looks for those that others closed.
const SWEEP: usize = 256;

/// A resolved socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sock<'a> {
    pub(crate) function: &'a Function,
    pub(crate) record: &'a Socket,
    pub(crate) index: u32,
    pub(crate) handle: SpSocket,
}

impl<'a> Sock<'a> {
    /// A socket known by its record alone.
    pub(crate) const fn unnamed(function: &'a Function, record: &'a Socket, index: u32) -> Self {
        Self {
            function,
            record,
            index,
            handle: SpSocket(0),
        }
    }
}

/// Composes a handle.
pub(crate) fn handle_of(function: u32, generation: u32, index: u32) -> SpSocket {
    SpSocket(u64::from(function) << 48 | u64::from(generation & 0xffff) << 32 | u64::from(index))
}

/// Index of the function in a handle.
pub(crate) fn function_index(s: SpSocket) -> u32 {
    let [.., a, b] = s.0.to_le_bytes();
    u16::from_le_bytes([a, b]).into()
}

/// Checks the arguments of `wsp_socket` (R-54).
pub(crate) fn check(
    family: i32,
    socket_type: i32,
    protocol: i32,
    info: &ProtocolInfo,
    flags: u32,
) -> Result<(), WsaError> {
    if family != libc::AF_INET {
        return Err(WsaError::AfNoSupport);
    }
    if socket_type != libc::SOCK_STREAM {
        return Err(WsaError::SocktNoSupport);
    }
    if protocol != libc::IPPROTO_TCP {
        return Err(WsaError::ProtoNoSupport);
    }
    if info.family != family || info.socket_type != socket_type || info.protocol != protocol {
        return Err(WsaError::Prototype);
    }
    // A token of a duplicated socket: none was ever given out (R-208).
    if flags & WSA_FLAG_OVERLAPPED == 0 || info.provider_reserved != 0 {
        return Err(WsaError::Inval);
    }
    Ok(())
}

/// Packs an address into a word of a record.
pub(crate) fn pack(name: SocketAddrV4) -> u64 {
    u64::from(name.ip().to_bits()) << 16 | u64::from(name.port())
}

/// Unpacks a word of [`pack`].
pub(crate) fn unpack(word: u64) -> SocketAddrV4 {
    let [port_low, port_high, a, b, c, d, ..] = word.to_le_bytes();
    let ip = Ipv4Addr::from_bits(u32::from_le_bytes([a, b, c, d]));
    SocketAddrV4::new(ip, u16::from_le_bytes([port_low, port_high]))
}

impl<'a> Sock<'a> {
    /// State of the socket.
    #[inline]
    pub(crate) fn state(&self) -> u32 {
        // EDGE socket-state (acquire): what was filed before the change. Released in `set_state`.
        self.record.state.load(Ordering::Acquire)
    }

    /// Changes the state.
    pub(crate) fn set_state(&self, state: u32) {
        // EDGE socket-state (release): addresses, numbers and errors of the record. Acquired in `state`.
        self.record.state.store(state, Ordering::Release);
    }

    /// Ends an established connection; the first code stays (R-194).
    pub(crate) fn end(&self, code: WsaError) {
        // Relaxed: published by the state.
        let sticky = &self.record.sticky;
        // The first code stays.
        let first = sticky.compare_exchange(0, code.code(), Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.note(FlightKind::Ended, Some(code), 0);
        }
        // EDGE socket-state (release): the code. Acquired in `state`.
        let state = &self.record.state;
        match state.compare_exchange(
            CONNECTED,
            DISCONNECTED,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            Ok(_) | Err(_) => {} // It ended before, or is being closed.
        }
    }

    /// Code that ended the connection.
    pub(crate) fn sticky(&self) -> Option<WsaError> {
        // Relaxed: acquired with the state.
        WsaError::from_code(self.record.sticky.load(Ordering::Relaxed))
    }

    /// Doorbell slot of the QP.
    #[inline]
    pub(crate) const fn qp_slot(&self) -> u32 {
        record::SOCKET_SLOTS + 2 * self.index
    }

    /// Doorbell slot of the CQ.
    #[inline]
    pub(crate) const fn cq_slot(&self) -> u32 {
        self.qp_slot() + 1
    }

    /// Takes a token of this socket.
    #[inline]
    pub(crate) fn take(&self, token: Token<'_>) -> Taken {
        let function = self.function;
        token.take(function.identity(), |owner| function.is_alive(owner))
    }

    /// Fails unless data may be posted.
    #[inline]
    pub(crate) fn must_be_connected(&self) -> Result<(), WsaError> {
        match self.state() {
            CONNECTED if self.function.is_dead() => Err(WsaError::NetDown),
            CONNECTED => Ok(()),
            DISCONNECTED => Err(self.sticky().unwrap_or(WsaError::ConnAborted)),
            _ => Err(WsaError::NotConn),
        }
    }
}

impl Core {
    /// The socket of a handle.
    #[inline]
    pub(crate) fn resolve(&self, s: SpSocket) -> Result<Sock<'_>, WsaError> {
        let function = self
            .function_at(function_index(s))
            .ok_or(WsaError::NotSock)?;
        let index = low(s.0);
        let record = socket_record(function, index).ok_or(WsaError::NotSock)?;
        let sock = Sock {
            function,
            record,
            index,
            handle: s,
        };
        // Relaxed: acquired with the state.
        let generation = record.generation.load(Ordering::Relaxed);
        let is_free = matches!(sock.state(), FREE | CLOSING);
        if is_free || handle_of(function_index(s), generation, index) != s {
            return Err(WsaError::NotSock);
        }
        Ok(sock)
    }

    /// The function of an index.
    #[inline]
    pub(crate) fn function_at(&self, index: u32) -> Option<&Function> {
        Some(self.functions.get(usize::try_from(index).ok()?)?.get()?)
    }

    /// `wsp_socket`: record, then the switch's handle, then our own descriptor (R-55 to R-57).
    pub(crate) fn create(&self) -> Result<SpSocket, WsaError> {
        let upcalls = self.upcalls()?;
        let (index, function) = self.open_own()?;
        let sock = self.new_socket(index, function)?;
        match upcalls.wpu_create_socket_handle(0, sock.handle.0) {
            Ok(handle) => {
                self.know(sock.handle, handle);
                Ok(sock.handle)
            }
            Err(_) => {
                function.lock().free_record(sock.record, sock.index);
                Err(WsaError::NoBufs)
            }
        }
    }

    /// A record in a new life.
    pub(crate) fn new_socket<'a>(
        &self,
        function_index: u32,
        function: &'a Function,
    ) -> Result<Sock<'a>, WsaError> {
        let mut locked = function.lock();
        let mut made = locked.new_record();
        if made.is_none() {
            locked.sweep();
            made = locked.new_record();
        }
        drop(locked);
        let (record, index) = made.ok_or(WsaError::Mfile)?;
        // Relaxed: written by this thread.
        let generation = record.generation.load(Ordering::Relaxed);
        Ok(Sock {
            function,
            record,
            index,
            handle: handle_of(function_index, generation, index),
        })
    }

    /// Remembers the switch's handle of a socket.
    pub(crate) fn know(&self, s: SpSocket, handle: SwitchHandle) {
        let local = Local {
            handle,
            upcalls: 0,
            is_closed: false,
            events: events::Registration::default(),
        };
        let mut locals = self.locals();
        locals.insert(s, local);
        let is_due = locals.len().is_multiple_of(SWEEP);
        drop(locals);
        if is_due {
            self.forget_taken();
        }
    }

    /// Forgets sockets that this process accepted and another one of the family took and closed.
    fn forget_taken(&self) {
        let known: Vec<SpSocket> = self.locals().keys().copied().collect();
        for s in known {
            if self.resolve(s).is_err() {
                self.forget(s);
            }
        }
    }

    /// The switch no longer knows the socket in this process: closes its handle, now or after the last upcall.
    pub(crate) fn forget(&self, s: SpSocket) {
        let mut locals = self.locals();
        let Some(local) = locals.get_mut(&s) else {
            return;
        };
        local.is_closed = true;
        if local.upcalls > 0 {
            return;
        }
        let handle = local.handle;
        locals.remove(&s);
        drop(locals);
        self.close_handle(handle);
    }

    /// The last upcall of a socket.
    pub(crate) fn close_handle(&self, handle: SwitchHandle) {
        if let Ok(upcalls) = self.upcalls() {
            match upcalls.wpu_close_socket_handle(handle) {
                Ok(()) | Err(_) => {} // A switch that does not know it any more needs no notice.
            }
        }
    }

    /// `wsp_close_socket`: abortive, every slot finished when it returns (R-186, R-187).
    pub(crate) fn close(&self, s: SpSocket, with_upcalls: bool) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        let record = sock.record;
        let mut locked = sock.function.lock();
        // Once more under the lock: of two closers one finds a stale handle.
        let sock = self.resolve(s)?;
        let before = sock.state();
        let tokens = [&record.send_token, &record.recv_token, &record.poll_token].map(Token::new);
        for token in tokens {
            sock.take(token);
        }
        sock.set_state(CLOSING);
        // Relaxed: the lock orders.
        let qpn = record.qpn.load(Ordering::Relaxed);
        if before == CONNECTING {
            match locked.admin_on(AdminOp::CM_CANCEL, qpn) {
                Ok(_) | Err(_) => {} // It ended by itself meanwhile.
            }
        }
        let listener = record.listener.swap(0, Ordering::Relaxed);
        if listener != 0 {
            self.stop_listening(&mut locked, &sock, listener);
        }
        // The QP first: what had completed before is reported as it was.
        let keeps_queues = locked.end_connection(&sock);
        locked.drop_registrations(&sock);
        // The memory stays the switch's, which gives it back when it has read the slots.
        locked.drop_allocations(record, false);
        let mut notices = Vec::new();
        sock.drain_completions(&mut |notice| notices.push(notice));
        sock.abort_all(WsaError::OperationAborted, &mut |notice| {
            notices.push(notice)
        });
        if keeps_queues {
            locked.keep_queues(&sock, qpn);
        } else {
            locked.take_queues(&sock);
        }
        for token in tokens {
            token.give();
        }
        locked.free_record(record, sock.index);
        drop(locked);
        if with_upcalls {
            for notice in notices {
                self.notify(s, sock.function, notice);
            }
        }
        self.forget(s);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spi::TCP_INFO;

    #[test]
    fn addresses_survive_packing() {
        let name = SocketAddrV4::new(Ipv4Addr::new(127, 77, 3, 254), 65_535);
        assert_eq!(unpack(pack(name)), name);
    }

    #[test]
    fn a_handle_names_function_generation_and_record() {
        let s = handle_of(3, 0x1_0002, 77);
        assert_eq!((function_index(s), low(s.0)), (3, 77));
        assert_eq!(s.0 >> 32 & 0xffff, 2);
    }

    #[test]
    fn wrong_arguments_of_wsp_socket_have_their_codes() {
        let ok = (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let ask = |(family, kind, protocol), info: &ProtocolInfo, flags| {
            check(family, kind, protocol, info, flags)
        };
        assert_eq!(ask(ok, &TCP_INFO, 1), Ok(()));
        assert_eq!(
            ask((libc::AF_INET6, ok.1, ok.2), &TCP_INFO, 1),
            Err(WsaError::AfNoSupport)
        );
        assert_eq!(
            ask((ok.0, libc::SOCK_DGRAM, ok.2), &TCP_INFO, 1),
            Err(WsaError::SocktNoSupport)
        );
        assert_eq!(
            ask((ok.0, ok.1, libc::IPPROTO_UDP), &TCP_INFO, 1),
            Err(WsaError::ProtoNoSupport)
        );
        let other = ProtocolInfo {
            family: libc::AF_INET6,
            ..TCP_INFO
        };
        assert_eq!(ask(ok, &other, 1), Err(WsaError::Prototype));
        assert_eq!(ask(ok, &TCP_INFO, 0), Err(WsaError::Inval));
        let token = ProtocolInfo {
            provider_reserved: 1,
            ..TCP_INFO
        };
        assert_eq!(ask(ok, &token, 1), Err(WsaError::Inval));
    }
}
