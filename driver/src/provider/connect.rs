//! Connecting: one attempt on the SAN, bounded in time, ended by an FD_CONNECT event.
//!
//! Place: `wsp_connect`; `events` records how it ended.
//! Invariants: the addresses always travel with the request; only an explicit reject is final, everything that does not prove
//! that TCP would fail as well is `TimedOut` or another code that falls back.
//! Source.

use core::net::{SocketAddr, SocketAddrV4};

use ring_proto::admin::{AdminOp, AdminStatus, CmConnect, CmRecord};
use ring_proto::eqe::CmStatus;
use ring_proto::sync::Ordering;
use zerocopy::IntoBytes;

use super::queues::Holder;
use super::socket::{BOUND, CONNECTED, CONNECTING, DISCONNECTED, Sock, pack, unpack};
use super::{Core, code_of};
use crate::error::AdminError;
use crate::function::Locked;
use crate::record::ARENA_IOVA;
use crate::spi::SpSocket;
use crate::wsa::WsaError;

/// Code of a connect that ended with `status`.
pub(crate) fn code_of_status(status: CmStatus) -> Option<WsaError> {
    match status {
        CmStatus::OK => None,
        CmStatus::REJECTED => Some(WsaError::ConnRefused),
        CmStatus::NO_ROUTE => Some(WsaError::NetUnreach),
        // NO_LISTENER is no proof that TCP has none: the server may run without the switch.
        _ => Some(WsaError::TimedOut),
    }
}

impl Core {
    /// `wsp_connect`.
    pub(crate) fn connect(&self, s: SpSocket, name: SocketAddrV4) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        match sock.state() {
            BOUND => {}
            CONNECTING => return Err(WsaError::Already),
            CONNECTED | DISCONNECTED => return Err(WsaError::IsConn),
            _ => return Err(WsaError::Inval),
        }
        if name.port() == 0 || name.ip().is_unspecified() {
            return Err(WsaError::AddrNotAvail);
        }
        // Relaxed: acquired with the state.
        let local = unpack(sock.record.local.load(Ordering::Relaxed));
        if local.ip().is_unspecified() {
            // A connecting companion is always fully qualified.
            return Err(WsaError::Inval);
        }
        let mut locked = sock.function.lock();
        match start(
            &mut locked,
            &sock,
            local,
            name,
            self.config.connect_timeout_ms,
        ) {
            Ok(()) => Err(WsaError::WouldBlock),
            Err(error) => {
                sock.set_state(BOUND);
                Err(match error.status() {
                    Some(AdminStatus::BAD_STATE | AdminStatus::INVALID) => WsaError::Inval,
                    _ => code_of(error),
                })
            }
        }
    }
}

fn start(
    locked: &mut Locked<'_>,
    sock: &Sock<'_>,
    local: SocketAddrV4,
    name: SocketAddrV4,
    timeout_ms: u32,
) -> Result<(), AdminError> {
    let record = sock.record;
    // Relaxed throughout: the lock orders, and the state publishes.
    if record.memory.load(Ordering::Relaxed) == 0 {
        locked.make_queues(sock, Holder::Process)?;
    } else if record.connect_used.load(Ordering::Relaxed) != 0 {
        let qpn = record.qpn.load(Ordering::Relaxed);
        locked.restart_qp(qpn)?;
    }
    record.connect_used.store(1, Ordering::Relaxed);
    record.remote.store(pack(name), Ordering::Relaxed);
    let scratch = sock.scratch().unwrap_or(0);
    let request = CmRecord {
        source: SocketAddr::V4(local).into(),
        destination: SocketAddr::V4(name).into(),
        ..CmRecord::default()
    };
    locked.function.arena().write(scratch, request.as_bytes());
    // Before the command: its end may be filed before it returns.
    sock.set_state(CONNECTING);
    let body = CmConnect {
        record: ARENA_IOVA + scratch,
        qpn: record.qpn.load(Ordering::Relaxed),
        timeout_ms,
    };
    locked.admin(AdminOp::CM_CONNECT, body.to_body()).map(drop)
}

impl Locked<'_> {
    /// Records how a connect ended.
    pub(crate) fn connect_ended(&mut self, sock: &Sock<'_>, status: CmStatus) {
        if sock.state() != CONNECTING {
            return;
        }
        let record = sock.record;
        let error = code_of_status(status);
        // Relaxed: published by the count.
        record
            .connect_error
            .store(error.map_or(0, WsaError::code), Ordering::Relaxed);
        record.connect_detail.store(status.0, Ordering::Relaxed);
        sock.set_state(if error.is_none() { CONNECTED } else { BOUND });
        let count = record.connect_count.load(Ordering::Relaxed).wrapping_add(1);
        // EDGE connect-filed (release): the result. Acquired by who looks whether FD_CONNECT is due.
        record.connect_count.store(count, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// no TCP attempt after one of these.
    fn is_final(code: WsaError) -> bool {
        matches!(
            code,
            WsaError::ConnReset | WsaError::ConnRefused | WsaError::HostUnreach
        )
    }

    #[test]
    fn only_a_reject_is_final() {
        for &status in CmStatus::ALL {
            let code = code_of_status(status);
            assert_eq!(
                code.is_some_and(is_final),
                status == CmStatus::REJECTED,
                "{status}"
            );
            assert_eq!(code.is_none(), status == CmStatus::OK);
        }
        assert_eq!(code_of_status(CmStatus(99)), Some(WsaError::TimedOut));
    }
}
