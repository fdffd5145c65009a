//! Memory regions: the table behind lkeys and rkeys.
//!
//! Place: every SGE of every WQE passes [`Regions::local`] or [`Regions::remote`] before a byte moves.
//! Invariants: an entry's memory is in one window of the same function; when the window goes, the entry stays but has no memory.
//! A key of another function is looked up here like any other number and misses (or names what this function itself registered).
//! Operations of no bytes have no range, but a key that they name is checked by `local_key` and `remote_key`.
//! Hot: `local`, `remote`: one indexed load, one tag compare, then the checks in the order of the syndromes.
//! Source: `ibv_reg_mr`; owner QPN is ours. Leaves out: zero-based regions; windows have `mw`.

use ring_proto::admin::Access;
use ring_proto::status::Syndrome;
use ring_proto::wqe::Sge;

use super::mw::{MW_LIMIT, Mw};
use super::table::Table;
use super::window::HostPtr;

/// Most regions of a function.
pub(crate) const MR_LIMIT: u32 = 1 << 18;

/// A registered region.
#[derive(Debug)]
pub(crate) struct Mr {
    /// First byte.
    pub(crate) iova: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Protection domain.
    pub(crate) pdn: u32,
    /// Rights.
    pub(crate) access: Access,
    /// The one QP through which a peer may reach it, or 0.
    pub(crate) owner_qpn: u32,
    /// The memory; `None` without file, after the window went, or after invalidation.
    pub(crate) memory: Option<HostPtr>,
    /// Memory windows bound to it.
    pub(crate) windows: u32,
    /// It was invalidated and can only be deregistered.
    pub(crate) is_invalidated: bool,
}

/// Regions of one function.
#[derive(Debug)]
pub(crate) struct Regions {
    /// By lkey, which equals the rkey.
    pub(crate) table: Table<Mr>,
    /// Memory windows, by key without the bit that tells them from regions.
    pub(crate) windows: Table<Mw>,
}

impl Regions {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            table: Table::new(MR_LIMIT, seed),
            windows: Table::new(MW_LIMIT, seed),
        }
    }

    /// Address of an SGE's memory, when a QP of `pdn` may read (or `write`) all of it.
    #[inline]
    pub(crate) fn local(&self, sge: Sge, pdn: u32, write: bool) -> Result<*mut u8, Syndrome> {
        let mr = self.table.find(sge.lkey).ok_or(Syndrome::LKEY_UNKNOWN)?;
        if mr.pdn != pdn {
            return Err(Syndrome::LKEY_PD_MISMATCH);
        }
        let within = mr
            .place(sge.addr, u64::from(sge.len))
            .ok_or(Syndrome::LKEY_OUT_OF_BOUNDS)?;
        if write && !mr.access.contains(Access::LOCAL_WRITE) {
            return Err(Syndrome::LKEY_NO_ACCESS);
        }
        let memory = mr.memory.ok_or_else(|| mr.without_memory())?;
        Ok(memory.at(within))
    }

    /// Address of a remote range, when the peer of QP `qpn` in `pdn` may use it for `need`.
    #[inline]
    pub(crate) fn remote(
        &self,
        rkey: u32,
        addr: u64,
        len: u64,
        pdn: u32,
        qpn: u32,
        need: Access,
    ) -> Result<*mut u8, Syndrome> {
        let Some(mr) = self.table.find(rkey) else {
            return self.remote_through_window(rkey, addr, len, pdn, qpn, need);
        };
        if mr.pdn != pdn {
            return Err(Syndrome::RKEY_PD_MISMATCH);
        }
        if mr.owner_qpn != 0 && mr.owner_qpn != qpn {
            return Err(Syndrome::RKEY_WRONG_QP);
        }
        let within = mr.place(addr, len).ok_or(Syndrome::RKEY_OUT_OF_BOUNDS)?;
        if !mr.access.contains(need) {
            return Err(Syndrome::RKEY_NO_ACCESS);
        }
        let memory = mr.memory.ok_or_else(|| mr.without_memory())?;
        Ok(memory.at(within))
    }

    /// Checks the key of a local SGE of no bytes: as [`Regions::local`], whatever its address. Key 0 names nothing.
    // DEVIATION: verbs leaves this key alone, and IBA has the responder leave the R_Key of an RDMA request of no bytes alone (C9-88).
    #[cold]
    pub(crate) fn local_key(&self, lkey: u32, pdn: u32, write: bool) -> Result<(), Syndrome> {
        if lkey == 0 {
            return Ok(());
        }
        let addr = self.table.find(lkey).map_or(0, |mr| mr.iova);
        let sge = Sge { addr, len: 0, lkey };
        self.local(sge, pdn, write).map(drop)
    }

    /// Checks the key of a remote operation of no bytes: as [`Regions::remote`], whatever its address. Key 0 names nothing.
    // Stricter than IBA, as above.
    #[cold]
    pub(crate) fn remote_key(
        &self,
        rkey: u32,
        pdn: u32,
        qpn: u32,
        need: Access,
    ) -> Result<(), Syndrome> {
        if rkey == 0 {
            return Ok(());
        }
        let of_region = self.table.find(rkey).map(|mr| mr.iova);
        let addr = of_region.or_else(|| self.window_start(rkey)).unwrap_or(0);
        self.remote(rkey, addr, 0, pdn, qpn, need).map(drop)
    }

    /// Drops every region and memory window.
    pub(crate) fn clear(&mut self) {
        self.windows.clear();
        self.table.clear();
    }

    /// Takes the memory of every region in a window that goes away.
    pub(crate) fn forget(&mut self, iova: u64, len: u64) {
        for (_, mr) in self.table.iter_mut() {
            if mr.iova >= iova && mr.iova - iova < len {
                mr.memory = None;
            }
        }
    }
}

impl Mr {
    /// Why there is no memory.
    #[cold]
    pub(crate) fn without_memory(&self) -> Syndrome {
        if self.is_invalidated {
            Syndrome::KEY_INVALIDATED
        } else {
            Syndrome::WINDOW_GONE
        }
    }

    /// Offset of a range in the region, when it lies inside.
    #[inline]
    pub(crate) fn place(&self, addr: u64, len: u64) -> Option<u64> {
        let within = addr.checked_sub(self.iova)?;
        (within <= self.len && len <= self.len - within).then_some(within)
    }
}
