//! What a case works with: functions on two ports, connected pairs of QPs, and the passing of time.
//!
//! Place: [`super::run`] makes a [`Rig`] per case. Invariants: everything a case made goes with its rig. Source: ours.
//! Leaves out: judgement, which is the case's.

use std::net::SocketAddr;
use std::rc::Rc;

use ring_proto::admin::{
    Access, AdminOp, AdminStatus, CmAccept, CmConnect, CmListen, CmRecord, Hold,
};
use ring_proto::eqe::EventType;
use ring_proto::status::{Syndrome, WcStatus};
use zerocopy::IntoBytes;

use super::client::{Client, CqId, Qp, QpOptions, Region, Trace, full, low, refused};
use super::target::{Port, Target};
use super::wr::{SendWr, Wc};
use super::{Outcome, Stop, failed, same};

/// The tools of one case.
pub(crate) struct Rig<'a> {
    target: &'a dyn Target,
    trace: Option<Trace>,
}

impl<'a> Rig<'a> {
    pub(super) fn new(target: &'a dyn Target) -> Self {
        Self {
            trace: target.now_ns().map(|_| Trace::default()),
            target,
        }
    }

    pub(super) fn finish(self) -> Vec<String> {
        let lines = self.trace.map(|trace| match Rc::try_unwrap(trace) {
            Ok(lines) => lines.into_inner(),
            Err(shared) => shared.borrow().clone(),
        });
        lines.unwrap_or_default()
    }

    /// An attached function whose admin queue does not run yet.
    pub(crate) fn bare(&self, port: Port) -> Outcome<Client> {
        let name = match port {
            Port::A => "a",
            Port::B => "b",
        };
        Client::bare(
            self.target.attach(port).map_err(refused)?,
            name,
            self.trace.clone(),
            self.target.patience(),
        )
    }

    /// A function that is ready for use.
    pub(crate) fn client(&self, port: Port) -> Outcome<Client> {
        let mut client = self.bare(port)?;
        client.start()?;
        Ok(client)
    }

    /// Functions on both ports with a QP each, connected, in RTS.
    pub(crate) fn pair(&self) -> Outcome<Pair> {
        self.pair_with(QpOptions::default(), QpOptions::default(), 7)
    }

    /// As [`Rig::pair`], with these QPs and receiver-not-ready retries of the first.
    pub(crate) fn pair_with(&self, of_a: QpOptions, of_b: QpOptions, rnr: u32) -> Outcome<Pair> {
        let mut a = self.client(Port::A)?;
        let mut b = self.client(Port::B)?;
        let qa = a.init_qp(of_a)?;
        let qb = b.init_qp(of_b)?;
        let out = a.region(4096, full())?;
        let into = b.region(4096, full())?;
        a.modify_to_rtr(qa.qpn, (b.function, qb.qpn))?;
        b.modify_to_rtr(qb.qpn, (a.function, qa.qpn))?;
        a.modify_to_rts(qa.qpn, rnr)?;
        b.modify_to_rts(qb.qpn, 7)?;
        Ok(Pair {
            a,
            b,
            qa,
            qb,
            out,
            into,
        })
    }

    /// Lets time pass where it is virtual; elsewhere the waits that follow take as long as they take.
    pub(crate) fn pass(&self, ns: u64) {
        self.target.advance(ns);
    }

    /// Lets time pass at once, or skips the case.
    pub(crate) fn pass_virtual(&self, ns: u64) -> Outcome {
        if self.target.advance(ns) {
            Ok(())
        } else {
            Err(Stop::Skipped("needs virtual time"))
        }
    }

    /// Looks for what must not have happened yet; in real time it may have.
    pub(crate) fn while_time_stands(&self, look: impl FnOnce() -> Outcome) -> Outcome {
        match self.target.now_ns() {
            Some(_) => look(),
            None => Ok(()),
        }
    }

    /// Takes a port up or down, or skips the case.
    pub(crate) fn set_port(&self, port: Port, is_up: bool) -> Outcome {
        if self.target.set_port(port, is_up) {
            Ok(())
        } else {
            Err(Stop::Skipped("needs a hand on the ports"))
        }
    }

    /// Skips the case without virtual time.
    pub(crate) fn need_virtual_time(&self) -> Outcome {
        match self.target.now_ns() {
            Some(_) => Ok(()),
            None => Err(Stop::Skipped("needs virtual time")),
        }
    }

    /// An endpoint of a port with a port number nobody else uses, or skips the case.
    pub(crate) fn endpoint(&self, port: Port) -> Outcome<SocketAddr> {
        match self.target.address(port) {
            Some(address) => Ok(SocketAddr::new(address.into(), self.target.fresh_port())),
            None => Err(Stop::Skipped("needs the addresses of the ports")),
        }
    }

    /// A number for a port that nobody listens on.
    pub(crate) fn fresh_port(&self) -> u16 {
        self.target.fresh_port()
    }

    /// Two functions connected through the connection manager.
    pub(crate) fn cm_pair(&self) -> Outcome<Pair> {
        let at = self.endpoint(Port::B)?;
        let from = self.endpoint(Port::A)?;
        let mut a = self.client(Port::A)?;
        let mut b = self.client(Port::B)?;
        let qa = a.init_qp(QpOptions::default())?;
        let qb = b.init_qp(QpOptions::default())?;
        let out = a.region(4096, full())?;
        let into = b.region(4096, full())?;
        b.listen(at, 8)?;
        a.connect(qa.qpn, from, at, 0, b"")?;
        let (_, _, request) = b.event_of(EventType::CM_REQUEST)?;
        b.accept(request, qb.qpn, 0)?;
        a.expect_event(EventType::CM_ESTABLISHED, qa.qpn, b.function)?;
        Ok(Pair {
            a,
            b,
            qa,
            qb,
            out,
            into,
        })
    }
}

/// Two functions with a connected QP and a region each.
pub(crate) struct Pair {
    pub(crate) a: Client,
    pub(crate) b: Client,
    pub(crate) qa: Qp,
    pub(crate) qb: Qp,
    /// Region of a.
    pub(crate) out: Region,
    /// Region of b.
    pub(crate) into: Region,
}

impl Pair {
    /// A WQE of a, posted and rung.
    pub(crate) fn post(&mut self, wr: &SendWr) {
        self.a.send(&mut self.qa, wr);
    }

    /// Receives of b into its region from the start, `len` bytes each, wr_ids from 100 on.
    pub(crate) fn receives(&mut self, count: u64, len: u32) {
        for n in 0..count {
            let sge = self.into.sge(n * u64::from(len), len);
            self.b.recv(&mut self.qb, 100 + n, &[sge]);
        }
    }

    pub(crate) fn a_wc(&mut self) -> Outcome<Wc> {
        self.a.wc(self.qa.send_cq)
    }

    pub(crate) fn b_wc(&mut self) -> Outcome<Wc> {
        self.b.wc(self.qb.recv_cq)
    }

    /// The next completion of a is a success of this work request.
    pub(crate) fn a_done(&mut self, wr_id: u64) -> Outcome<Wc> {
        let wc = self.a_wc()?;
        done(&wc, wr_id)?;
        Ok(wc)
    }

    pub(crate) fn b_done(&mut self, wr_id: u64) -> Outcome<Wc> {
        let wc = self.b_wc()?;
        done(&wc, wr_id)?;
        Ok(wc)
    }

    /// The next completion of a is this error, and its QP is in ERR.
    pub(crate) fn a_fails(&mut self, status: WcStatus, syndrome: Syndrome) -> Outcome {
        let wc = self.a_wc()?;
        fails(&wc, status, syndrome)?;
        self.a
            .expect_state(self.qa.qpn, ring_proto::status::QpState::ERR)
    }

    /// The next completion of b is this error, and its QP is in ERR.
    pub(crate) fn b_fails(&mut self, status: WcStatus, syndrome: Syndrome) -> Outcome {
        let wc = self.b_wc()?;
        fails(&wc, status, syndrome)?;
        self.b
            .expect_state(self.qb.qpn, ring_proto::status::QpState::ERR)
    }

    /// A WQE of a that fails with this error.
    pub(crate) fn refused(&mut self, wr: &SendWr, status: WcStatus, syndrome: Syndrome) -> Outcome {
        self.post(wr);
        self.a_fails(status, syndrome)
    }

    /// Writes bytes at the start of a's region.
    pub(crate) fn fill(&self, bytes: &[u8]) -> Outcome {
        self.a.memory.write(self.out.iova, bytes)
    }

    /// b's region starts with these bytes.
    pub(crate) fn arrived(&self, bytes: &[u8]) -> Outcome {
        let seen = self.b.memory.read(self.into.iova, bytes.len())?;
        same("bytes at the responder", seen.as_slice(), bytes)
    }

    /// Both CQs of the pair as ids.
    pub(crate) fn cqs(&self) -> (CqId, CqId) {
        (self.qa.send_cq, self.qb.recv_cq)
    }
}

/// A success of this work request.
pub(crate) fn done(wc: &Wc, wr_id: u64) -> Outcome {
    if (wc.wr_id, wc.status, wc.syndrome) == (wr_id, WcStatus::SUCCESS, Syndrome::NONE) {
        Ok(())
    } else {
        failed(format!("not the success of {wr_id}: {wc:?}"))
    }
}

/// This error.
pub(crate) fn fails(wc: &Wc, status: WcStatus, syndrome: Syndrome) -> Outcome {
    if (wc.status, wc.syndrome) == (status, syndrome) {
        Ok(())
    } else {
        failed(format!("not {status} / {syndrome}: {wc:?}"))
    }
}

impl Client {
    pub(crate) fn listen(&mut self, at: SocketAddr, backlog: u32) -> Outcome<u32> {
        match self.try_listen(at, backlog, 0)? {
            (AdminStatus::OK, listener) => Ok(listener),
            (status, _) => failed(format!("CM_LISTEN on {at} answered {status}")),
        }
    }

    pub(crate) fn try_listen(
        &mut self,
        at: SocketAddr,
        backlog: u32,
        flags: u32,
    ) -> Outcome<(AdminStatus, u32)> {
        let body = CmListen {
            local: at.into(),
            backlog,
            holder: 0,
            flags,
            reserved: 0,
        };
        let (status, result) = self.admin(AdminOp::CM_LISTEN, body.to_body())?;
        Ok((status, low(result[0])))
    }

    pub(crate) fn connect(
        &mut self,
        qpn: u32,
        from: SocketAddr,
        to: SocketAddr,
        timeout_ms: u32,
        private: &[u8],
    ) -> Outcome {
        let status = self.try_connect(qpn, from, to, timeout_ms, private)?;
        same("answer of CM_CONNECT", status, AdminStatus::OK)
    }

    pub(crate) fn try_connect(
        &mut self,
        qpn: u32,
        from: SocketAddr,
        to: SocketAddr,
        timeout_ms: u32,
        private: &[u8],
    ) -> Outcome<AdminStatus> {
        let mut record = CmRecord {
            source: from.into(),
            destination: to.into(),
            private_len: u32::try_from(private.len()).unwrap_or(u32::MAX),
            ..CmRecord::default()
        };
        for (place, byte) in record.private_data.iter_mut().zip(private) {
            *place = *byte;
        }
        let at = self.record_at()?;
        self.memory.write(at, record.as_bytes())?;
        let body = CmConnect {
            record: at,
            qpn,
            timeout_ms,
        };
        Ok(self.admin(AdminOp::CM_CONNECT, body.to_body())?.0)
    }

    pub(crate) fn accept(&mut self, request: u32, qpn: u32, listener: u32) -> Outcome {
        let status = self.try_accept(request, qpn, listener)?;
        same("answer of CM_ACCEPT", status, AdminStatus::OK)
    }

    pub(crate) fn try_accept(
        &mut self,
        request: u32,
        qpn: u32,
        listener: u32,
    ) -> Outcome<AdminStatus> {
        let body = CmAccept {
            request,
            qpn,
            listener,
            status: 0,
        };
        Ok(self.admin(AdminOp::CM_ACCEPT, body.to_body())?.0)
    }

    /// HOLD or RELEASE.
    pub(crate) fn hold(
        &mut self,
        op: AdminOp,
        id: u32,
        kind: u32,
        slot: u32,
        flags: u32,
    ) -> Outcome<(AdminStatus, u32)> {
        let body = Hold {
            id,
            kind,
            slot,
            flags,
        };
        let (status, result) = self.admin(op, body.to_body())?;
        Ok((status, low(result[0])))
    }

    /// A region that peers may use as `access` says, filled with one byte.
    pub(crate) fn filled(&mut self, len: usize, access: Access, byte: u8) -> Outcome<Region> {
        let region = self.region(len as u64, access)?;
        self.memory.write(region.iova, &vec![byte; len])?;
        Ok(region)
    }
}
