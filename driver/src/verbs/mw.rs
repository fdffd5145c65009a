//! Memory windows: keys to a part of a region that come and go without the region.
//!
//! Place: programs and tests -> here -> admin queue (type 1) or the QP's send queue (type 2).
//! Invariants: the key that [`Mw::rkey`] gives is the one that the NIC has once the binding has completed.
//! Source: verbs `ibv_alloc_mw`, `ibv_bind_mw`, `IBV_WR_BIND_MW`; docs/device.md, "Memory windows". Hot: nothing.

use std::sync::Arc;

use ring_proto::admin::{Access, AdminOp, MwAlloc, MwBind};
use ring_proto::ids::{self, Rkey};
use ring_proto::status::Opcode;
use ring_proto::wqe::{BindWqe, WqeFlags};

use super::{Mr, Pd, PdInner, Qp};
use crate::error::{AdminError, FunctionError, PostError};
use crate::function::low;

/// How a window is bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MwType {
    /// By command, for every QP of the protection domain.
    Type1,
    /// By WQE, for that QP alone.
    Type2,
}

/// A memory window; deallocated when dropped.
#[derive(Debug)]
pub struct Mw {
    pd: Arc<PdInner>,
    rkey: Rkey,
}

impl Pd {
    /// Allocates a memory window, not bound.
    ///
    /// # Errors
    /// [`FunctionError::Admin`] when the device refuses.
    pub fn alloc_mw(&self, kind: MwType) -> Result<Mw, FunctionError> {
        let body = MwAlloc {
            pdn: self.inner.pdn.0,
            kind: match kind {
                MwType::Type1 => 1,
                MwType::Type2 => 2,
            },
        };
        let mut locked = self.inner.function.lock();
        let [rkey, _] = locked.admin(AdminOp::MW_ALLOC, body.to_body())?;
        drop(locked);
        Ok(Mw {
            pd: Arc::clone(&self.inner),
            rkey: Rkey(low(rkey)),
        })
    }
}

impl Mw {
    /// Key of the window: that of the latest binding.
    #[must_use]
    pub const fn rkey(&self) -> Rkey {
        self.rkey
    }

    /// Binds a type 1 window to `len` bytes from `offset` of a region, also when it is bound; returns its new key.
    ///
    /// # Errors
    /// The device's refusal.
    pub fn bind(
        &mut self,
        mr: &Mr,
        offset: u32,
        len: u32,
        access: Access,
    ) -> Result<Rkey, AdminError> {
        self.command(MwBind {
            addr: mr.addr() + u64::from(offset),
            len: len.into(),
            rkey: self.rkey.0,
            lkey: mr.lkey().0,
            access: access.bits(),
            reserved: 0,
        })
    }

    /// Takes the region from a type 1 window.
    ///
    /// # Errors
    /// The device's refusal.
    pub fn unbind(&mut self) -> Result<Rkey, AdminError> {
        self.command(MwBind {
            rkey: self.rkey.0,
            ..MwBind::default()
        })
    }

    fn command(&mut self, body: MwBind) -> Result<Rkey, AdminError> {
        let mut locked = self.pd.function.lock();
        let [rkey, _] = locked.admin(AdminOp::MW_BIND, body.to_body())?;
        self.rkey = Rkey(low(rkey));
        Ok(self.rkey)
    }
}

impl Drop for Mw {
    fn drop(&mut self) {
        let mut locked = self.pd.function.lock();
        match locked.admin_on(AdminOp::MW_DEALLOC, self.rkey.0) {
            Ok(_) | Err(_) => {} // A dead device has no objects left.
        }
    }
}

impl Qp {
    /// Writes a BIND_MW of a type 2 window to `len` bytes from `offset` of a region, under the next tag; returns the new key, good for
    /// the peer once the binding has completed. The NIC sees it after [`Qp::ring`].
    ///
    /// # Errors
    /// As [`Qp::post_atomic`]. The window keeps its key then.
    pub fn post_bind(
        &mut self,
        wr_id: u64,
        flags: WqeFlags,
        mw: &mut Mw,
        mr: &Mr,
        (offset, len): (u32, u32),
        access: Access,
    ) -> Result<Rkey, PostError> {
        let (index, tag) = ids::key_parts(mw.rkey.0);
        let new_rkey = Rkey(ids::key(index, tag.wrapping_add(1)));
        let wqe = BindWqe {
            opcode: Opcode::BIND_MW.0,
            flags: flags.bits(),
            blocks: 1,
            new_rkey: new_rkey.0,
            wr_id,
            addr: mr.addr() + u64::from(offset),
            rkey: mw.rkey.0,
            len: len.into(),
            lkey: mr.lkey().0,
            access: access.bits(),
            ..BindWqe::default()
        };
        self.post_block(zerocopy::transmute!(wqe))?;
        mw.rkey = new_rkey;
        Ok(new_rkey)
    }
}
