//! Accepting: the condition function decides, then the request gets a QP or a refusal.
//!
//! Place: `wsp_accept`, called by the switch's service thread on FD_ACCEPT.
//! Invariants: neither outcome shows at the peer before the condition function answered; it runs on the caller's thread and
//! without any lock; the accepted QP is held by its listener until `take_from_listener` moves it; the event object is reset before
//! success and set again while requests wait.
//! Source.

use core::net::{SocketAddr, SocketAddrV4};

use ring_proto::admin::{AdminOp, AdminStatus, CmAccept, CmQuery, CmRecord, SockAddr};
use ring_proto::sync::Ordering;
use zerocopy::{FromZeros, IntoBytes};

use super::queues::Holder;
use super::socket::{CONNECTED, LISTENING, Sock, function_index, pack};
use super::{Core, code_of};
use crate::error::AdminError;
use crate::function::{Locked, low};
use crate::record::ARENA_IOVA;
use crate::spi::{Accepted, ConnectionRequest, SpSocket, Verdict};
use crate::wsa::WsaError;

impl Core {
    /// `wsp_accept`.
    pub(crate) fn accept(
        &self,
        s: SpSocket,
        condition: &mut dyn FnMut(&ConnectionRequest) -> Verdict,
    ) -> Result<Accepted, WsaError> {
        let listening = self.resolve(s)?;
        if listening.state() != LISTENING {
            return Err(WsaError::Inval);
        }
        if listening.function.is_dead() {
            return Err(WsaError::NetDown);
        }
        let (request, asked) = {
            let mut locked = listening.function.lock();
            super::events::file(&mut locked);
            let request = locked
                .take_request(listening.record)
                .ok_or(WsaError::WouldBlock)?;
            (request, query(&mut locked, request))
        };
        let done = match asked.map(|asked| (asked, condition(&asked))) {
            Ok((asked, Verdict::Accept)) => self.accept_request(&listening, request, asked),
            Ok((_, Verdict::Reject)) => {
                listening.function.lock().reject(request);
                Err(WsaError::ConnRefused)
            }
            Ok((_, Verdict::Defer)) => {
                let mut locked = listening.function.lock();
                locked.put_back_request(listening.record, request);
                Err(WsaError::TryAgain)
            }
            Err(code) => Err(code),
        };
        self.accept_again(s, listening.record);
        done
    }

    fn accept_request(
        &self,
        listening: &Sock<'_>,
        request: u32,
        asked: ConnectionRequest,
    ) -> Result<Accepted, WsaError> {
        let function = listening.function;
        let refuse = |code| {
            function.lock().turn_away(request);
            code
        };
        let upcalls = self.upcalls()?;
        let sock = self
            .new_socket(function_index(listening.handle), function)
            .map_err(refuse)?;
        let handle = match upcalls.wpu_create_socket_handle(0, sock.handle.0) {
            Ok(handle) => handle,
            Err(_) => {
                function.lock().free_record(sock.record, sock.index);
                return Err(refuse(WsaError::NoBufs));
            }
        };
        let mut locked = function.lock();
        match connect(&mut locked, listening, &sock, request, asked) {
            Ok(()) => {
                drop(locked);
                self.know(sock.handle, handle);
                Ok(Accepted {
                    socket: sock.handle,
                    request: asked,
                })
            }
            Err(error) => {
                let code = match error.status() {
                    // The peer gave up before the verdict.
                    Some(AdminStatus::NO_OBJECT | AdminStatus::BAD_STATE) => WsaError::ConnReset,
                    Some(AdminStatus::NO_RESOURCE) => {
                        locked.turn_away(request);
                        WsaError::NoBufs
                    }
                    _ => code_of(error),
                };
                locked.take_queues(&sock);
                locked.free_record(sock.record, sock.index);
                drop(locked);
                self.close_handle(handle);
                Err(code)
            }
        }
    }
}

/// Asks the NIC for both addresses of a request.
fn query(locked: &mut Locked<'_>, request: u32) -> Result<ConnectionRequest, WsaError> {
    let len = size_of::<CmRecord>() as u64;
    let buffer = locked.alloc(len).ok_or(WsaError::NoBufs)?;
    let body = CmQuery {
        buffer: ARENA_IOVA + buffer,
        id: request,
        kind: 0,
    };
    let asked = locked.admin(AdminOp::CM_QUERY, body.to_body());
    let mut record = CmRecord::new_zeroed();
    locked.function.arena().read(buffer, record.as_mut_bytes());
    locked.free(buffer, len);
    match asked {
        Ok(_) => {}
        Err(AdminError::Dead) => return Err(WsaError::NetDown),
        Err(AdminError::Refused { .. }) => return Err(WsaError::ConnReset),
    }
    let v4 = |name: SockAddr| match SocketAddr::try_from(name) {
        Ok(SocketAddr::V4(name)) => Ok(name),
        // The peer's provider speaks IPv4 only; anything else comes from a driver of another kind.
        Ok(SocketAddr::V6(_)) | Err(_) => Err(WsaError::ConnReset),
    };
    let names: Result<(SocketAddrV4, SocketAddrV4), WsaError> =
        v4(record.source).and_then(|caller| Ok((caller, v4(record.destination)?)));
    match names {
        Ok((caller, callee)) => Ok(ConnectionRequest { caller, callee }),
        Err(code) => {
            locked.reject(request);
            Err(code)
        }
    }
}

/// Gives the request its QP.
fn connect(
    locked: &mut Locked<'_>,
    listening: &Sock<'_>,
    sock: &Sock<'_>,
    request: u32,
    asked: ConnectionRequest,
) -> Result<(), AdminError> {
    locked.make_queues(sock, Holder::Listener)?;
    let record = sock.record;
    // Relaxed: the lock orders, and the state publishes.
    record.local.store(pack(asked.callee), Ordering::Relaxed);
    record.remote.store(pack(asked.caller), Ordering::Relaxed);
    let body = CmAccept {
        request,
        qpn: record.qpn.load(Ordering::Relaxed),
        listener: listening.record.listener.load(Ordering::Relaxed),
        status: 0,
    };
    let [peer, _] = locked.admin(AdminOp::CM_ACCEPT, body.to_body())?;
    record.peer_function.store(low(peer), Ordering::Relaxed);
    record.untaken.store(1, Ordering::Relaxed);
    sock.set_state(CONNECTED);
    Ok(())
}
