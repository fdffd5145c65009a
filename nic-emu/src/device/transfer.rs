//! Executing a send WQE: checks on both ends, one copy, the receiver's completion.
//!
//! Place: `serve` hands a fetched [`SendWork`] in, [`Device::execute`] says how it went; the requester's completion is `serve`'s. This is
//! the long way, on which every failure gets its name; `burst` spares WQEs that meet none of them.
//! Invariants: no byte moves before every key and bound of both ends was checked; keys are looked up again in each turn of a long
//! message, so what is deregistered or unmapped in between is not touched; pointers never outlive the turn. A message waits for a
//! posted receive before its first byte. At most one copy between the two memories.
//! Hot: everything here. Source: verbs RC semantics (IBA vol. 1, chapter 9: responder errors); syndromes ours.
//!
//! | requester sees | when | responder |
//! |---|---|---|
//! | LOC_PROT_ERR + LKEY_… | own SGE | nothing |
//! | REM_ACCESS_ERR + RKEY_… | peer's region refuses | ERR + QP_ACCESS event |
//! | LOC_QP_OP_ERR + NO_INITIATOR_DEPTH | READ or atomic with max_rd_atomic 0 | nothing |
//! | REM_INV_REQ_ERR + NO_RESPONDER_DEPTH | READ or atomic to max_dest_rd_atomic 0 | ERR + QP_REQ_ERR event |
//! | REM_INV_REQ_ERR + QP_NO_ACCESS | peer's QP does not allow the operation | ERR + QP_ACCESS event |
//! | REM_INV_REQ_ERR + ATOMIC_MISALIGNED | atomic at an odd address | ERR + QP_ACCESS event |
//! | REM_INV_REQ_ERR + RECV_TOO_SHORT | message longer than the receive | receive LOC_LEN_ERR, ERR |
//! | REM_OP_ERR + RECV_BAD_WQE | receive malformed or its keys wrong | receive LOC_QP_OP_ERR / LOC_ACCESS_ERR, ERR |
//! | REM_ACCESS_ERR + INV_… | key of SEND_WITH_INV cannot be invalidated | receive MW_BIND_ERR, ERR |
//! | RETRY_EXC_ERR + PORT_DOWN | a port stays down for longer than the retries last | nothing |
//! | RETRY_EXC_ERR + PEER_GONE / PEER_IN_ERROR | no peer, or it is in ERR | nothing |
//!
//! An orphan takes SENDs and WRITEs as a kernel takes bytes for a process that died before reading: they complete and go nowhere, so
//! that the READs posted behind them are served. DEVIATION: hardware has no orphans.
#![expect(
    unsafe_code,
    reason = "copies payload between checked places in client mappings"
)]

use ring_proto::admin::Access;
use ring_proto::copy;
use ring_proto::cqe::{CQE_IMM, CQE_INV, CQE_SOLICITED};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::{Sge, WqeFlags};

use super::Device;
use super::cq::Completed;
use super::fault::FaultPoint;
use super::mr::Regions;
use super::qp::QpRef;
use super::queue::{RecvWork, SendWork};

/// How a turn of a WQE ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// It is complete.
    Done,
    /// It goes on in the next turn.
    More,
    /// It waits for the peer.
    Hold(Hold),
    /// It failed.
    Failed(WcStatus, Syndrome),
}

/// What a WQE waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// A posted receive.
    Receive,
    /// The peer to be connected.
    Connection,
    /// A port that is down.
    Port,
    /// What a fault rule says.
    Fault,
}

/// The peer as a request meets it.
enum Meeting {
    Ready,
    /// Ready, and this is the first request that reaches it in RTR.
    First,
    Orphan,
    NotYet,
    Gone(Syndrome),
}

impl Device {
    /// Works on a WQE for one turn.
    #[inline]
    pub(crate) fn execute(&mut self, at: QpRef, work: &mut SendWork, bytes_left: &mut u32) -> Step {
        if work.is_local() {
            return self.execute_local(at, work);
        }
        let Some((own, qp)) = self.end(at) else {
            return gone();
        };
        let Some(peer) = qp.peer else {
            return gone();
        };
        if self.is_cut(at, peer) {
            return Step::Hold(Hold::Port);
        }
        let fetches = work.fetches();
        let local = match check_sges(&own.regions, qp.pdn, work.sges(), work.total(), fetches) {
            Ok(straight) => straight,
            Err(syndrome) => return Step::Failed(WcStatus::LOC_PROT_ERR, syndrome),
        };
        match self.meet(at, peer) {
            Meeting::Ready => {}
            Meeting::First => self.note_established(peer),
            Meeting::Orphan if fetches => {}
            Meeting::Orphan => {
                self.count_bytes(at.place, None, work.total() - work.done);
                return Step::Done;
            }
            Meeting::NotYet => {
                if let Some(other) = self.qp_mut(peer) {
                    other.waiter = Some(at);
                }
                return Step::Hold(Hold::Connection);
            }
            Meeting::Gone(syndrome) => {
                return Step::Failed(WcStatus::RETRY_EXC_ERR, syndrome);
            }
        }
        if fetches && let Some(step) = self.check_depth(at, peer) {
            return step;
        }
        let takes_receive = work.takes_receive();
        let receive = if takes_receive {
            match self.find_receive(at, peer, work) {
                Ok(straight) => straight,
                Err(step) => return step,
            }
        } else {
            None
        };
        let invalidates = work.opcode() == Opcode::SEND_WITH_INV;
        if invalidates && let Err(syndrome) = self.check_remote_invalidate(peer, work.imm()) {
            self.receive_failed(peer, WcStatus::MW_BIND_ERR, syndrome);
            return Step::Failed(WcStatus::REM_ACCESS_ERR, syndrome);
        }
        let moved = match work.opcode() {
            Opcode::SEND | Opcode::SEND_WITH_IMM | Opcode::SEND_WITH_INV => {
                self.send(at, peer, work, local, receive, *bytes_left)
            }
            Opcode::RDMA_READ => self.rdma(at, peer, work, local, Access::REMOTE_READ, *bytes_left),
            Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
                self.atomic(peer, work, local)
            }
            _ => self.rdma(at, peer, work, local, Access::REMOTE_WRITE, *bytes_left),
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err((status, syndrome)) => return Step::Failed(status, syndrome),
        };
        work.done += moved;
        // An atomic is not cut at the end of a turn.
        *bytes_left = bytes_left.saturating_sub(moved);
        if fetches {
            self.count_bytes(peer.place, Some(at.place), moved);
        } else {
            self.count_bytes(at.place, Some(peer.place), moved);
        }
        if work.done < work.total() {
            return Step::More;
        }
        if invalidates {
            self.remote_invalidate(peer, work.imm());
        }
        if takes_receive {
            self.receive_done(at, peer, work);
        }
        Step::Done
    }

    /// How the peer stands to a request.
    #[inline]
    fn meet(&self, at: QpRef, peer: QpRef) -> Meeting {
        let Some(other) = self.qp(peer) else {
            return Meeting::Gone(Syndrome::PEER_GONE);
        };
        match other.state {
            QpState::RESET | QpState::INIT => Meeting::NotYet,
            _ if other.peer != Some(at) => Meeting::Gone(Syndrome::PEER_GONE),
            _ if other.is_orphan => Meeting::Orphan,
            QpState::RTR if !other.is_established => Meeting::First,
            QpState::RTR | QpState::RTS | QpState::SQD => Meeting::Ready,
            _ => Meeting::Gone(Syndrome::PEER_IN_ERROR),
        }
    }

    /// Fetches and checks the receive that a message goes into; it is then in `receiving` of the peer.
    #[inline]
    pub(crate) fn find_receive(
        &mut self,
        at: QpRef,
        peer: QpRef,
        work: &SendWork,
    ) -> Result<Straight, Step> {
        if self.faults.has(FaultPoint::Receive) && self.fault_receive(at, peer, work.opcode().0) {
            return Err(Step::Hold(Hold::Receive));
        }
        let Some(function) = self.functions.at_mut(peer.place) else {
            return Err(gone());
        };
        let bar = function.bar;
        let Some(other) = function.qps.find_mut(peer.qpn) else {
            return Err(gone());
        };
        match other.fetch_receive(&bar) {
            Ok(true) => {}
            Ok(false) => {
                other.waiter = Some(at);
                return Err(Step::Hold(Hold::Receive));
            }
            Err(_) if other.srqn != 0 => {
                self.fetch_shared(at, peer)?;
                // It is in `receiving` now.
                return self.find_receive(at, peer, work);
            }
            Err(syndrome) => {
                self.fail_qp(peer, syndrome);
                return Err(Step::Failed(
                    WcStatus::RETRY_EXC_ERR,
                    Syndrome::PEER_IN_ERROR,
                ));
            }
        }
        let Some(receive) = &other.receiving else {
            return Err(gone());
        };
        if receive.syndrome != Syndrome::NONE {
            let syndrome = receive.syndrome;
            self.receive_failed(peer, WcStatus::LOC_QP_OP_ERR, syndrome);
            return Err(Step::Failed(WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE));
        }
        if work.opcode() == Opcode::RDMA_WRITE_WITH_IMM {
            // The bytes go elsewhere; the receive only tells of them.
            return Ok(None);
        }
        if u64::from(work.total()) > receive.capacity {
            self.receive_failed(peer, WcStatus::LOC_LEN_ERR, Syndrome::RECV_TOO_SHORT);
            return Err(Step::Failed(
                WcStatus::REM_INV_REQ_ERR,
                Syndrome::RECV_TOO_SHORT,
            ));
        }
        let (pdn, total) = (other.recv_pdn, work.total());
        match check_sges(&function.regions, pdn, receive.sges(), total, true) {
            Ok(straight) => Ok(straight),
            Err(syndrome) => {
                self.receive_failed(peer, WcStatus::LOC_ACCESS_ERR, syndrome);
                Err(Step::Failed(WcStatus::REM_OP_ERR, Syndrome::RECV_BAD_WQE))
            }
        }
    }

    /// Moves a part of a SEND.
    #[inline]
    fn send(
        &self,
        at: QpRef,
        peer: QpRef,
        work: &SendWork,
        local: Straight,
        receive: Straight,
        limit: u32,
    ) -> Result<u32, (WcStatus, Syndrome)> {
        let (total, done) = (work.total(), work.done);
        if let (Some(from), Some(to)) = (local, receive) {
            return Ok(move_straight(to, from, done, total, limit));
        }
        let internal = (WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);
        let (other, peer_qp) = self.end(peer).ok_or(internal)?;
        let target = Side::List {
            regions: &other.regions,
            pdn: peer_qp.recv_pdn,
            sges: peer_qp.receiving.as_ref().map_or(&[], RecvWork::sges),
            write: true,
        };
        let source = self.local_side(at, work, local, false).ok_or(internal)?;
        move_bytes(&source, &target, done, total, limit)
            .map_err(|syndrome| (WcStatus::LOC_PROT_ERR, syndrome))
    }

    /// The requester's end of a copy.
    #[inline]
    pub(crate) fn local_side<'a>(
        &'a self,
        at: QpRef,
        work: &'a SendWork,
        local: Straight,
        write: bool,
    ) -> Option<Side<'a>> {
        if let Some(bytes) = work.inline() {
            return Some(Side::Private(bytes));
        }
        if let Some(memory) = local {
            return Some(Side::Flat {
                memory,
                len: work.total(),
            });
        }
        let (own, qp) = self.end(at)?;
        Some(Side::List {
            regions: &own.regions,
            pdn: qp.pdn,
            sges: work.sges(),
            write,
        })
    }

    /// Moves a part of an RDMA WRITE or READ.
    #[inline]
    fn rdma(
        &mut self,
        at: QpRef,
        peer: QpRef,
        work: &SendWork,
        local: Straight,
        need: Access,
        limit: u32,
    ) -> Result<u32, (WcStatus, Syndrome)> {
        let internal = (WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);
        let (other, peer_qp) = self.end(peer).ok_or(internal)?;
        let checked = if !peer_qp.access.contains(need) {
            Err((WcStatus::REM_INV_REQ_ERR, Syndrome::QP_NO_ACCESS))
        } else if work.total() == 0 {
            let (pdn, rkey) = (peer_qp.pdn, work.rkey());
            match other.regions.remote_key(rkey, pdn, peer.qpn, need) {
                Ok(()) => return Ok(0),
                Err(syndrome) => Err((WcStatus::REM_ACCESS_ERR, syndrome)),
            }
        } else {
            other
                .regions
                .remote(
                    work.rkey(),
                    work.remote_addr(),
                    u64::from(work.total()),
                    peer_qp.pdn,
                    peer.qpn,
                    need,
                )
                .map_err(|syndrome| (WcStatus::REM_ACCESS_ERR, syndrome))
        };
        let remote = match checked {
            Ok(memory) => Side::Flat {
                memory,
                len: work.total(),
            },
            Err((status, syndrome)) => {
                self.access_fault(peer, syndrome);
                return Err((status, syndrome));
            }
        };
        let local = self
            .local_side(at, work, local, need == Access::REMOTE_READ)
            .ok_or(internal)?;
        let (source, target) = if need == Access::REMOTE_READ {
            (&remote, &local)
        } else {
            (&local, &remote)
        };
        move_bytes(source, target, work.done, work.total(), limit)
            .map_err(|syndrome| (WcStatus::LOC_PROT_ERR, syndrome))
    }

    #[inline]
    pub(crate) fn end(&self, at: QpRef) -> Option<(&super::function::Function, &super::qp::Qp)> {
        let function = self.functions.at(at.place)?;
        let qp = function.qps.find(at.qpn)?;
        Some((function, qp))
    }

    /// A request broke the rules of the responder.
    pub(crate) fn access_fault(&mut self, peer: QpRef, syndrome: Syndrome) {
        if self.qp(peer).is_some_and(|qp| qp.is_orphan) {
            return;
        }
        if self.qp_to_err(peer) {
            self.event(
                peer.place,
                EventType::QP_ACCESS,
                peer.qpn,
                u32::from(syndrome.0),
            );
        }
    }

    #[inline]
    pub(crate) fn receive_done(&mut self, at: QpRef, peer: QpRef, work: &SendWork) {
        let Some(other) = self.qp_mut(peer) else {
            return;
        };
        let Some(receive) = other.receiving.take() else {
            return;
        };
        let cqn = other.recv_cqn;
        let entry = receive_entry(work, (receive.wr_id(), receive.end), at.qpn, peer.qpn);
        self.complete(peer.place, cqn, &entry);
    }

    /// The peer's receive cannot take its message.
    pub(crate) fn receive_failed(&mut self, peer: QpRef, status: WcStatus, syndrome: Syndrome) {
        let Some(other) = self.qp_mut(peer) else {
            return;
        };
        let Some(receive) = other.receiving.take() else {
            return;
        };
        let cqn = other.recv_cqn;
        let entry = Completed {
            wr_id: receive.wr_id(),
            byte_len: 0,
            imm: 0,
            qpn: peer.qpn,
            opcode: WcOpcode::RECV.0,
            src_qpn_flags: 0,
            wqe_counter: receive.end,
            status,
            syndrome,
        };
        self.complete(peer.place, cqn, &entry);
        self.qp_to_err(peer);
    }

    #[inline]
    pub(crate) fn count_bytes(&mut self, from: u32, to: Option<u32>, bytes: u32) {
        let bytes = u64::from(bytes);
        if let Some(function) = self.functions.at_mut(from) {
            function.tx_bytes += bytes;
            self.nodes.counters(function.node).tx_payload_bytes += bytes;
        }
        if let Some(function) = to.and_then(|place| self.functions.at(place)) {
            self.nodes.counters(function.node).rx_payload_bytes += bytes;
        }
    }
}

/// What the receiver's CQE says of a message that has arrived; the receive is named by its `wr_id` and the position behind it.
#[inline]
pub(crate) fn receive_entry(
    work: &SendWork,
    (wr_id, end): (u64, u32),
    src_qpn: u32,
    qpn: u32,
) -> Completed {
    // What `imm` of the completion stands for, if anything.
    let (opcode, imm_flag) = match work.opcode() {
        Opcode::SEND => (WcOpcode::RECV, 0),
        Opcode::SEND_WITH_IMM => (WcOpcode::RECV, CQE_IMM),
        Opcode::SEND_WITH_INV => (WcOpcode::RECV, CQE_INV),
        _ => (WcOpcode::RECV_RDMA_WITH_IMM, CQE_IMM),
    };
    let mut src_qpn_flags = src_qpn | imm_flag;
    if work.has(WqeFlags::SOLICITED) {
        src_qpn_flags |= CQE_SOLICITED;
    }
    Completed {
        wr_id,
        byte_len: work.total(),
        imm: if imm_flag == 0 { 0 } else { work.imm() },
        qpn,
        opcode: opcode.0,
        src_qpn_flags,
        wqe_counter: end,
        status: WcStatus::SUCCESS,
        syndrome: Syndrome::NONE,
    }
}

fn gone() -> Step {
    Step::Failed(WcStatus::RETRY_EXC_ERR, Syndrome::PEER_GONE)
}

/// The memory of a gather list, when that is one straight piece.
pub(crate) type Straight = Option<*mut u8>;

/// Checks the SGEs of a list that a message of `total` bytes reaches.
#[inline]
pub(crate) fn check_sges(
    regions: &Regions,
    pdn: u32,
    sges: &[Sge],
    total: u32,
    write: bool,
) -> Result<Straight, Syndrome> {
    match sges {
        [sge] if total != 0 => regions.local(*sge, pdn, write).map(Some),
        [] => Ok(None),
        _ => check_list(regions, pdn, sges, total, write),
    }
}

/// As [`check_sges`]: SGEs up to the one that the message ends in; of one without bytes only the key counts.
#[inline(never)]
fn check_list(
    regions: &Regions,
    pdn: u32,
    sges: &[Sge],
    total: u32,
    write: bool,
) -> Result<Straight, Syndrome> {
    let mut left = u64::from(total);
    for sge in sges {
        if sge.len == 0 {
            regions.local_key(sge.lkey, pdn, write)?;
            continue;
        }
        if left == 0 {
            break;
        }
        regions.local(*sge, pdn, write)?;
        let Some(rest) = left.checked_sub(sge.len.into()) else {
            break;
        };
        left = rest;
    }
    Ok(None)
}

/// One end of a copy.
pub(crate) enum Side<'a> {
    /// Bytes of the device's own copy of a WQE.
    Private(&'a [u8]),
    /// A gather list of one QP.
    List {
        regions: &'a Regions,
        pdn: u32,
        sges: &'a [Sge],
        write: bool,
    },
    /// A remote range, checked in this turn.
    Flat { memory: *mut u8, len: u32 },
}

impl Side<'_> {
    /// The longest straight piece at byte `at` of the message.
    #[inline]
    fn piece(&self, at: u32) -> Result<(*mut u8, u32), Syndrome> {
        match self {
            Self::Private(bytes) => {
                let rest = bytes.get(at as usize..).ok_or(Syndrome::BAD_TOTAL)?;
                let len = u32::try_from(rest.len()).map_err(|_| Syndrome::BAD_TOTAL)?;
                // Only ever a source: `move_bytes` gets private bytes as `source` alone.
                Ok((rest.as_ptr().cast_mut(), len))
            }
            Self::List {
                regions,
                pdn,
                sges,
                write,
            } => {
                let mut before = u64::from(at);
                for sge in *sges {
                    let len = u64::from(sge.len);
                    if before < len {
                        let memory = regions.local(*sge, *pdn, *write)?;
                        let within = usize::try_from(before).map_err(|_| Syndrome::BAD_TOTAL)?;
                        let rest = u32::try_from(len - before).map_err(|_| Syndrome::BAD_TOTAL)?;
                        return Ok((memory.wrapping_add(within), rest));
                    }
                    before -= len;
                }
                Err(Syndrome::BAD_TOTAL)
            }
            Self::Flat { memory, len } => {
                let rest = len.checked_sub(at).ok_or(Syndrome::BAD_TOTAL)?;
                Ok((memory.wrapping_add(at as usize), rest))
            }
        }
    }
}

/// Copies bytes `[done, total)` of a message, at most `limit` of them; returns how many.
#[inline]
pub(crate) fn move_bytes(
    source: &Side<'_>,
    target: &Side<'_>,
    done: u32,
    total: u32,
    limit: u32,
) -> Result<u32, Syndrome> {
    let goal = (total - done).min(limit);
    let mut moved = 0;
    while moved < goal {
        let (from, from_len) = source.piece(done + moved)?;
        let (to, to_len) = target.piece(done + moved)?;
        let len = from_len.min(to_len).min(goal - moved);
        if len == 0 {
            return Err(Syndrome::BAD_TOTAL);
        }
        copy_piece(to, from, len as usize);
        moved += len;
    }
    Ok(moved)
}

/// Copies bytes `[done, total)` of a message between two straight pieces, at most `limit` of them; returns how many.
#[inline]
fn move_straight(to: *mut u8, from: *mut u8, done: u32, total: u32, limit: u32) -> u32 {
    let len = (total - done).min(limit);
    let at = done as usize;
    copy_piece(to.wrapping_add(at), from.wrapping_add(at), len as usize);
    len
}

/// Copies one piece; pieces of one client's memory may overlap, then through a private buffer.
#[inline]
pub(crate) fn copy_piece(to: *mut u8, from: *const u8, len: usize) {
    if to.addr().abs_diff(from.addr()) < len {
        copy_overlapping(to, from, len);
        return;
    }
    // SAFETY: 1. `Regions::local` and `Regions::remote` proved both pieces inside regions whose mapping is there, writable for the
    //         target, and nothing unmaps within a turn; a private source is a live slice of at least `len` bytes.
    //         2. Checked above. (The same pages mapped at two places are two ranges for the program; their owner gets a mix.)
    //         3. Window memory has no references; a private source is the device's alone.
    unsafe { copy::copy(to, from, len) };
}

/// Copies one piece onto an overlapping one, part by part.
#[cold]
#[inline(never)]
fn copy_overlapping(to: *mut u8, from: *const u8, len: usize) {
    let mut buffer = [0u8; 4096];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(buffer.len());
        // SAFETY: 1. As in `copy_piece` for the part [done, done + part) of the source; the buffer holds `part` bytes. 2. The buffer
        //         is on our stack. 3. As in `copy_piece`; the buffer is private.
        unsafe { copy::copy(buffer.as_mut_ptr(), from.wrapping_add(done), part) };
        // SAFETY: as the line before, with the target in place of the source.
        unsafe { copy::copy(to.wrapping_add(done), buffer.as_ptr(), part) };
        done += part;
    }
}
