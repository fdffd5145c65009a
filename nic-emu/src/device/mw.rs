//! Memory windows and invalidation: keys to a part of a region that come and go without the region.
//!
//! Place: BIND_MW, LOCAL_INV and SEND_WITH_INV from `transfer`, MW_ALLOC, MW_DEALLOC and MW_BIND from the admin queue; a remote access
//! whose key is no region's comes here from [`Regions::remote`].
//! Invariants: a window has no memory of its own, it reaches that of its region, which counts its windows and cannot be deregistered
//! while it has some; keys of windows and of regions never meet (bit 31); a type 2 window serves one QP and ends with it.
//! Hot: nothing; access through a window costs one more look-up. Source: verbs memory windows of types 1 and 2B
//! (`ibv_bind_mw`, IBA vol. 1, chapter 10). Leaves out: zero-based windows.
//!
//! ```text
//!   MW_ALLOC --> free --BIND_MW (new tag)--> bound --LOCAL_INV / SEND_WITH_INV / end of its QP--> free     type 2
//!   MW_ALLOC --> free --MW_BIND (next tag)-> bound --MW_BIND (next tag)--> bound or, with length 0, free   type 1
//! ```

use ring_proto::admin::{Access, AdminStatus, MwAlloc, MwBind};
use ring_proto::ids;
use ring_proto::status::{Opcode, Syndrome, WcStatus};

use super::Device;
use super::admin::Results;
use super::inspect::{self, MwRow};
use super::mr::Regions;
use super::qp::QpRef;
use super::queue::SendWork;
use super::transfer::Step;

/// Most windows of a function.
pub(crate) const MW_LIMIT: u32 = 1 << 16;
/// Bit of a key that tells windows from regions, whose indices are below it.
const MW_KEY: u32 = 1 << 31;
/// What a window can allow.
const REMOTE: Access = Access::REMOTE_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC);

const _: () = assert!(ids::key(super::mr::MR_LIMIT, u8::MAX) < MW_KEY);

/// A memory window.
#[derive(Debug)]
pub(crate) struct Mw {
    pdn: u32,
    /// Type 2: bound by WQE, to one QP. Otherwise type 1.
    is_type_2: bool,
    bound: Option<Binding>,
}

/// What a bound window shows.
#[derive(Clone, Copy, Debug)]
struct Binding {
    lkey: u32,
    iova: u64,
    len: u64,
    access: Access,
    /// The QP of a type 2 window; 0 for type 1.
    qpn: u32,
}

impl Regions {
    /// As [`Regions::remote`], for a key that is no region's.
    #[cold]
    pub(crate) fn remote_through_window(
        &self,
        rkey: u32,
        addr: u64,
        len: u64,
        pdn: u32,
        qpn: u32,
        need: Access,
    ) -> Result<*mut u8, Syndrome> {
        let mw = self.window(rkey).ok_or(Syndrome::RKEY_UNKNOWN)?;
        if mw.pdn != pdn {
            return Err(Syndrome::RKEY_PD_MISMATCH);
        }
        let bound = mw.bound.ok_or(Syndrome::KEY_INVALIDATED)?;
        if bound.qpn != 0 && bound.qpn != qpn {
            return Err(Syndrome::RKEY_WRONG_QP);
        }
        let within = addr
            .checked_sub(bound.iova)
            .ok_or(Syndrome::RKEY_OUT_OF_BOUNDS)?;
        if within > bound.len || len > bound.len - within {
            return Err(Syndrome::RKEY_OUT_OF_BOUNDS);
        }
        if !bound.access.contains(need) {
            return Err(Syndrome::RKEY_NO_ACCESS);
        }
        let region = self
            .table
            .find(bound.lkey)
            .ok_or(Syndrome::KEY_INVALIDATED)?;
        // The bounds of the window lie in the region: checked when it was bound.
        let memory = region.memory.ok_or_else(|| region.without_memory())?;
        Ok(memory.at(addr - region.iova))
    }

    /// Where a bound window begins.
    pub(crate) fn window_start(&self, key: u32) -> Option<u64> {
        Some(self.window(key)?.bound?.iova)
    }

    /// Every memory window, as a row of an inspection.
    pub(crate) fn mw_rows(&self, function: u32, node: &str) -> impl Iterator<Item = MwRow> {
        self.windows.iter().map(move |(key, mw)| {
            let bound = mw.bound;
            MwRow {
                function,
                node: node.to_owned(),
                key: key | MW_KEY,
                kind: if mw.is_type_2 { 2 } else { 1 },
                pdn: mw.pdn,
                is_bound: bound.is_some(),
                mr_key: bound.map_or(0, |bound| bound.lkey),
                iova: bound.map_or(0, |bound| bound.iova),
                len: bound.map_or(0, |bound| bound.len),
                access: inspect::access_names(bound.map_or(Access::empty(), |bound| bound.access)),
                qpn: bound.map_or(0, |bound| bound.qpn),
            }
        })
    }

    fn window(&self, key: u32) -> Option<&Mw> {
        (key & MW_KEY != 0).then(|| self.windows.find(key & !MW_KEY))?
    }

    fn window_mut(&mut self, key: u32) -> Option<&mut Mw> {
        (key & MW_KEY != 0).then(|| self.windows.find_mut(key & !MW_KEY))?
    }

    /// Checks what a window is to show of its region.
    fn check_binding(&self, wanted: &Binding, pdn: u32, qpn: u32) -> Result<(), Syndrome> {
        if wanted.len == 0 {
            return Err(Syndrome::MW_ZERO_LENGTH);
        }
        if !REMOTE.contains(wanted.access) {
            return Err(Syndrome::MW_BAD_RIGHTS);
        }
        let region = self.table.find(wanted.lkey).ok_or(Syndrome::LKEY_UNKNOWN)?;
        if region.pdn != pdn {
            return Err(Syndrome::LKEY_PD_MISMATCH);
        }
        if region.owner_qpn != 0 && region.owner_qpn != qpn {
            return Err(Syndrome::RKEY_WRONG_QP);
        }
        if region.is_invalidated {
            return Err(Syndrome::KEY_INVALIDATED);
        }
        if !region.access.contains(Access::MW_BIND) {
            return Err(Syndrome::MW_BIND_NOT_ALLOWED);
        }
        if region.place(wanted.iova, wanted.len).is_none() {
            return Err(Syndrome::LKEY_OUT_OF_BOUNDS);
        }
        // Source: ibv_bind_mw: a window that peers may change needs a region that may be changed locally.
        let changes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        if wanted.access.intersects(changes) && !region.access.contains(Access::LOCAL_WRITE) {
            return Err(Syndrome::MW_NEEDS_LOCAL_WRITE);
        }
        Ok(())
    }

    /// Takes a window's region from it.
    fn unbind(&mut self, key: u32) {
        let bound = self.window_mut(key).and_then(|mw| mw.bound.take());
        if let Some(region) = bound.and_then(|bound| self.table.find_mut(bound.lkey)) {
            region.windows -= 1;
        }
    }

    /// Binds a window under another tag; returns its new key.
    fn bind(&mut self, key: u32, tag: u8, binding: Binding) -> Option<u32> {
        let number = self.windows.retag(key & !MW_KEY, tag)?;
        if let Some(region) = self.table.find_mut(binding.lkey) {
            region.windows += 1;
        }
        self.windows.find_mut(number)?.bound = Some(binding);
        Some(number | MW_KEY)
    }

    /// Unbinds the type 2 windows of a QP that ends or starts anew.
    pub(crate) fn qp_ended(&mut self, qpn: u32) {
        if self.windows.len() == 0 {
            return;
        }
        let keys: Vec<_> = self
            .windows
            .iter()
            .filter(|(_, mw)| mw.bound.is_some_and(|bound| bound.qpn == qpn))
            .map(|(number, _)| number | MW_KEY)
            .collect();
        for key in keys {
            self.unbind(key);
        }
    }

    /// Whether a QP may invalidate a key, for its own client or (`remote`) for its peer.
    fn check_invalidate(&self, key: u32, pdn: u32, qpn: u32, remote: bool) -> Result<(), Syndrome> {
        if let Some(mw) = self.window(key) {
            if mw.pdn != pdn {
                return Err(Syndrome::INV_PD_MISMATCH);
            }
            if !mw.is_type_2 {
                return Err(Syndrome::INV_NOT_ALLOWED);
            }
            let bound = mw.bound.ok_or(Syndrome::INV_NOT_VALID)?;
            if bound.qpn != qpn {
                return Err(Syndrome::INV_WRONG_QP);
            }
            return Ok(());
        }
        let region = self.table.find(key).ok_or(Syndrome::INV_UNKNOWN_KEY)?;
        if region.pdn != pdn {
            return Err(Syndrome::INV_PD_MISMATCH);
        }
        if region.owner_qpn != 0 && region.owner_qpn != qpn {
            return Err(Syndrome::INV_WRONG_QP);
        }
        // DEVIATION: hardware lets LOCAL_INV end fast-register regions only. As there, what MR_REG made is not for the peer to end.
        if remote {
            return Err(Syndrome::INV_NOT_ALLOWED);
        }
        if region.is_invalidated {
            return Err(Syndrome::INV_NOT_VALID);
        }
        if region.windows != 0 {
            return Err(Syndrome::INV_REGION_BOUND);
        }
        Ok(())
    }

    /// Invalidates a key that was checked.
    fn invalidate(&mut self, key: u32) {
        if key & MW_KEY != 0 {
            self.unbind(key);
        } else if let Some(region) = self.table.find_mut(key) {
            region.is_invalidated = true;
            region.memory = None;
        }
    }
}

impl Device {
    /// Executes a WQE that has no peer: LOCAL_INV, BIND_MW.
    #[cold]
    pub(crate) fn execute_local(&mut self, at: QpRef, work: &SendWork) -> Step {
        let Some(pdn) = self.qp(at).map(|qp| qp.pdn) else {
            return Step::Failed(WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);
        };
        let Some(function) = self.functions.at_mut(at.place) else {
            return Step::Failed(WcStatus::GENERAL_ERR, Syndrome::INTERNAL_ERROR);
        };
        let regions = &mut function.regions;
        let done = if work.opcode() == Opcode::LOCAL_INV {
            regions
                .check_invalidate(work.imm(), pdn, at.qpn, false)
                .map(|()| regions.invalidate(work.imm()))
        } else {
            bind_type_2(regions, work, pdn, at.qpn)
        };
        if done.is_ok() && self.diagnosis.validator.is_some() {
            if work.opcode() == Opcode::LOCAL_INV {
                self.validate_invalidated(at.place, work.imm());
            } else {
                self.validate_deregistered(at.place, work.bind().rkey);
            }
        }
        match done {
            Ok(()) => Step::Done,
            // Source: IBA's memory management operation error, which verbs calls MW_BIND_ERR.
            Err(syndrome) => Step::Failed(WcStatus::MW_BIND_ERR, syndrome),
        }
    }

    /// Whether a SEND_WITH_INV may invalidate its key at the receiver.
    #[cold]
    pub(crate) fn check_remote_invalidate(&self, peer: QpRef, key: u32) -> Result<(), Syndrome> {
        let (function, qp) = self.end(peer).ok_or(Syndrome::INTERNAL_ERROR)?;
        function
            .regions
            .check_invalidate(key, qp.pdn, peer.qpn, true)
    }

    /// Invalidates the key of a SEND_WITH_INV that has arrived.
    #[cold]
    pub(crate) fn remote_invalidate(&mut self, peer: QpRef, key: u32) {
        if let Some(function) = self.functions.at_mut(peer.place) {
            function.regions.invalidate(key);
        }
    }

    /// MW_ALLOC.
    pub(crate) fn alloc_mw(&mut self, place: u32, wanted: MwAlloc) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        if !(1..=2).contains(&wanted.kind) {
            return Err(AdminStatus::INVALID);
        }
        let pd = function
            .pds
            .find_mut(wanted.pdn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        let number = function
            .regions
            .windows
            .insert_with(|_| Mw {
                pdn: wanted.pdn,
                is_type_2: wanted.kind == 2,
                bound: None,
            })
            .ok_or(AdminStatus::NO_RESOURCE)?;
        pd.users += 1;
        Ok([u64::from(number | MW_KEY), 0])
    }

    /// MW_DEALLOC.
    pub(crate) fn dealloc_mw(&mut self, place: u32, key: u32) -> Result<Results, AdminStatus> {
        let function = self.own_mut(place)?;
        let pdn = function
            .regions
            .window(key)
            .ok_or(AdminStatus::NO_OBJECT)?
            .pdn;
        function.regions.unbind(key);
        function.regions.windows.remove(key & !MW_KEY);
        if let Some(pd) = function.pds.find_mut(pdn) {
            pd.users -= 1;
        }
        self.validate_deregistered(place, key);
        Ok([0, 0])
    }

    /// MW_BIND: binds a type 1 window anew, or unbinds it.
    pub(crate) fn bind_mw(&mut self, place: u32, wanted: MwBind) -> Result<Results, AdminStatus> {
        let regions = &mut self.own_mut(place)?.regions;
        let mw = regions.window(wanted.rkey).ok_or(AdminStatus::NO_OBJECT)?;
        if mw.is_type_2 {
            return Err(AdminStatus::UNSUPPORTED);
        }
        let [tag, ..] = wanted.rkey.wrapping_add(1).to_le_bytes();
        if wanted.len == 0 {
            if wanted.addr != 0 || wanted.lkey != 0 || wanted.access != 0 {
                return Err(AdminStatus::INVALID);
            }
            regions.unbind(wanted.rkey);
            let number = regions.windows.retag(wanted.rkey & !MW_KEY, tag);
            let number = number.ok_or(AdminStatus::NO_OBJECT)?;
            self.validate_deregistered(place, wanted.rkey);
            return Ok([u64::from(number | MW_KEY), 0]);
        }
        let binding = Binding {
            lkey: wanted.lkey,
            iova: wanted.addr,
            len: wanted.len,
            access: Access::from_bits(wanted.access).ok_or(AdminStatus::INVALID)?,
            qpn: 0,
        };
        let pdn = mw.pdn;
        regions
            .check_binding(&binding, pdn, 0)
            .map_err(bind_status)?;
        regions.unbind(wanted.rkey);
        let key = regions.bind(wanted.rkey, tag, binding);
        self.validate_deregistered(place, wanted.rkey);
        Ok([key.ok_or(AdminStatus::NO_OBJECT)?.into(), 0])
    }
}

/// BIND_MW.
fn bind_type_2(regions: &mut Regions, work: &SendWork, pdn: u32, qpn: u32) -> Result<(), Syndrome> {
    let wqe = work.bind();
    let mw = regions.window(wqe.rkey).ok_or(Syndrome::MW_UNKNOWN)?;
    if !mw.is_type_2 {
        return Err(Syndrome::MW_WRONG_TYPE);
    }
    if mw.pdn != pdn {
        return Err(Syndrome::MW_PD_MISMATCH);
    }
    if mw.bound.is_some() {
        return Err(Syndrome::MW_STILL_BOUND);
    }
    let (index, old_tag) = ids::key_parts(wqe.rkey);
    let (new_index, tag) = ids::key_parts(wqe.new_rkey);
    // A present tag again would bring copies of the old key back to life. Ours: verbs leaves that to the consumer.
    if index != new_index || tag == old_tag {
        return Err(Syndrome::MW_KEY_NOT_FRESH);
    }
    let binding = Binding {
        lkey: wqe.lkey,
        iova: wqe.addr,
        len: wqe.len,
        access: Access::from_bits(wqe.access).ok_or(Syndrome::MW_BAD_RIGHTS)?,
        qpn,
    };
    regions.check_binding(&binding, pdn, qpn)?;
    regions
        .bind(wqe.rkey, tag, binding)
        .map(drop)
        .ok_or(Syndrome::MW_UNKNOWN)
}

/// Why MW_BIND is refused.
fn bind_status(syndrome: Syndrome) -> AdminStatus {
    match syndrome {
        Syndrome::LKEY_UNKNOWN => AdminStatus::NO_OBJECT,
        Syndrome::LKEY_OUT_OF_BOUNDS => AdminStatus::BAD_ADDRESS,
        Syndrome::RKEY_WRONG_QP
        | Syndrome::MW_BIND_NOT_ALLOWED
        | Syndrome::MW_NEEDS_LOCAL_WRITE => AdminStatus::NO_ACCESS,
        Syndrome::KEY_INVALIDATED => AdminStatus::BAD_STATE,
        _ => AdminStatus::INVALID,
    }
}
