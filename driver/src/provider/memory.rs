//! Memory: allocation for the switch, and registration for the NIC.
//!
//! Place: [`SharedMemory`] gives the switch its records, buffers and send rings; the four register functions describe pieces of them.
//! Invariants: only arena memory can be registered. A local registration is a record in the arena that names socket, range and
//! rights, checked on every post; the NIC sees the key of the whole arena. A remote one is a memory region of its own with the QP as
//! owner, so it dies with the connection. DEVIATION: a program's own memory has no descriptor and is copied instead.
//! Hot: `Sock::buffer`. Source.

use core::ptr::NonNull;

use ring_proto::admin::{Access, AdminOp, Body, MrReg, Named};
use ring_proto::ids::FunctionId;
use ring_proto::sync::Ordering;

use super::socket::{CONNECTED, DISCONNECTED, Sock, function_index};
use super::{Core, code_of};
use crate::function::{Locked, high, low};
use crate::record::{ARENA_IOVA, Registration};
use crate::spi::{
    MEM_READ, MEM_WRITE, MemoryHandle, RdmaDescriptor, SharedMemory, SharedRegion, SpBuffer,
    SpSocket,
};
use crate::wsa::WsaError;

const RECORD_LEN: u64 = size_of::<Registration>() as u64;
/// Longest ring that a function gives out of its own memory when there is no more shared with the peer: 64 KiB and what goes with it.
const SHORT_RING: u64 = 96 * 1024;

/// A buffer as the NIC knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolved {
    pub(crate) addr: u64,
    pub(crate) lkey: u32,
}

/// Handle of the record at `offset` in its present life.
fn handle_of(offset: u64, life: u32) -> MemoryHandle {
    MemoryHandle(u64::from(life) << 32 | offset)
}

impl<'a> Sock<'a> {
    /// The record of a handle, when it is a live one of this socket.
    #[inline]
    fn registration(&self, handle: MemoryHandle) -> Option<&'a Registration> {
        let record: &Registration = self.function.arena().record(low(handle.0).into())?;
        // Relaxed: the handle came from the register call, which ordered the record before it.
        let is_live = record.socket.load(Ordering::Relaxed) == self.handle.0
            && record.life.load(Ordering::Relaxed) == high(handle.0);
        is_live.then_some(record)
    }

    /// Checks a buffer against its registration.
    #[inline]
    pub(crate) fn buffer(
        &self,
        buffer: &SpBuffer,
        handle: MemoryHandle,
        access: u32,
    ) -> Result<Resolved, WsaError> {
        let record = self.registration(handle).ok_or(WsaError::Fault)?;
        // Relaxed: see `registration`.
        let offset = record.offset.load(Ordering::Relaxed);
        let len = record.len.load(Ordering::Relaxed);
        let base = self.function.address(offset, len).ok_or(WsaError::Fault)?;
        let within = buffer
            .address
            .as_ptr()
            .addr()
            .checked_sub(base.as_ptr().addr())
            .ok_or(WsaError::Fault)? as u64;
        let fits = within
            .checked_add(buffer.len.into())
            .is_some_and(|end| end <= len);
        if !fits || record.access.load(Ordering::Relaxed) & access != access {
            return Err(WsaError::Fault);
        }
        Ok(Resolved {
            addr: ARENA_IOVA + offset + within,
            lkey: record.lkey.load(Ordering::Relaxed),
        })
    }
}

impl<'a> Locked<'a> {
    /// All registrations of a socket: offset and record.
    fn registrations(
        &self,
        sock: &Sock<'a>,
    ) -> impl Iterator<Item = (u64, &'a Registration)> + use<'a> {
        let arena = sock.function.arena();
        // Relaxed throughout: the lock orders.
        let mut next = sock.record.registrations.load(Ordering::Relaxed);
        core::iter::from_fn(move || {
            let offset = next;
            let record: &Registration = (offset != 0).then(|| arena.record(offset))??;
            next = record.next.load(Ordering::Relaxed);
            Some((offset, record))
        })
    }

    fn add_registration(
        &mut self,
        sock: &Sock<'_>,
        (offset, len): (u64, u64),
        access: u32,
        (lkey, rkey): (u32, u32),
    ) -> Option<MemoryHandle> {
        let at = self.alloc(RECORD_LEN)?;
        let record: &Registration = self.function.arena().record(at)?;
        let life = record.life.load(Ordering::Relaxed).wrapping_add(1);
        record.offset.store(offset, Ordering::Relaxed);
        record.len.store(len, Ordering::Relaxed);
        record.access.store(access, Ordering::Relaxed);
        record.count.store(1, Ordering::Relaxed);
        record.lkey.store(lkey, Ordering::Relaxed);
        record.rkey.store(rkey, Ordering::Relaxed);
        record.life.store(life, Ordering::Relaxed);
        record.socket.store(sock.handle.0, Ordering::Relaxed);
        let first = &sock.record.registrations;
        record
            .next
            .store(first.load(Ordering::Relaxed), Ordering::Relaxed);
        first.store(at, Ordering::Relaxed);
        Some(handle_of(at, life))
    }

    fn drop_registration(&mut self, sock: &Sock<'a>, offset: u64) {
        let mut link = &sock.record.registrations;
        for (at, record) in self.registrations(sock) {
            if at == offset {
                link.store(record.next.load(Ordering::Relaxed), Ordering::Relaxed);
                record.socket.store(0, Ordering::Relaxed);
                self.free(offset, RECORD_LEN);
                return;
            }
            link = &record.next;
        }
    }

    /// After this the peer can no longer reach the memory.
    fn revoke(&mut self, record: &Registration) {
        let lkey = record.lkey.load(Ordering::Relaxed);
        match self.admin_on(AdminOp::MR_DEREG, lkey) {
            Ok(_) | Err(_) => {} // A dead device has no regions left.
        }
    }

    /// The commands that keep the peer of a socket out of all its memory.
    pub(crate) fn revocations(&self, sock: &Sock<'a>) -> impl Iterator<Item = (AdminOp, Body)> {
        self.registrations(sock)
            .filter(|(_, record)| record.rkey.load(Ordering::Relaxed) != 0)
            .map(|(_, record)| {
                let id = record.lkey.load(Ordering::Relaxed);
                (AdminOp::MR_DEREG, Named { id, reserved: 0 }.to_body())
            })
    }

    /// Drops all registrations of a socket that is being closed; the peer is kept out already.
    pub(crate) fn drop_registrations(&mut self, sock: &Sock<'a>) {
        loop {
            let first = sock.record.registrations.load(Ordering::Relaxed);
            if first == 0 {
                return;
            }
            self.drop_registration(sock, first);
            // A list that somebody wrote over is cut off instead of followed for ever.
            if sock.record.registrations.load(Ordering::Relaxed) == first {
                sock.record.registrations.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Core {
    /// Arguments that both register functions check.
    fn range<'a>(
        &'a self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<(Sock<'a>, u64, u32), WsaError> {
        let sock = self.resolve(s)?;
        if !matches!(sock.state(), CONNECTED | DISCONNECTED) {
            return Err(WsaError::NotConn);
        }
        if len == 0 || access == 0 || access & !(MEM_READ | MEM_WRITE) != 0 {
            return Err(WsaError::Inval);
        }
        let (offset, lkey) = sock
            .function
            .locate(buffer, len as u64)
            .ok_or(WsaError::Fault)?;
        Ok((sock, offset, lkey.0))
    }

    /// `wsp_register_memory`.
    pub(crate) fn register(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<MemoryHandle, WsaError> {
        let (sock, offset, lkey) = self.range(s, buffer, len, access)?;
        let range = (offset, len as u64);
        let mut locked = sock.function.lock();
        if let Some((at, record)) = locked.same(&sock, range, access, false) {
            return Ok(handle_of(at, record.life.load(Ordering::Relaxed)));
        }
        locked
            .add_registration(&sock, range, access, (lkey, 0))
            .ok_or(WsaError::NoBufs)
    }

    /// `wsp_deregister_memory`.
    pub(crate) fn deregister(&self, s: SpSocket, handle: MemoryHandle) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        let mut locked = sock.function.lock();
        let offset = u64::from(low(handle.0));
        let record = sock
            .registration(handle)
            .filter(|record| record.rkey.load(Ordering::Relaxed) == 0)
            .ok_or(WsaError::Inval)?;
        let count = record.count.load(Ordering::Relaxed);
        if count > 1 {
            record.count.store(count - 1, Ordering::Relaxed);
            return Ok(());
        }
        if sock.uses(handle.0) {
            return Err(WsaError::Inval);
        }
        locked.drop_registration(&sock, offset);
        Ok(())
    }

    /// `wsp_register_rdma_memory`.
    pub(crate) fn register_rdma(
        &self,
        s: SpSocket,
        buffer: NonNull<u8>,
        len: usize,
        access: u32,
    ) -> Result<RdmaDescriptor, WsaError> {
        let (sock, offset, _) = self.range(s, buffer, len, access)?;
        let range = (offset, len as u64);
        let mut locked = sock.function.lock();
        let descriptor = |rkey| RdmaDescriptor {
            addr: ARENA_IOVA + offset,
            len: len as u64,
            rkey,
            access,
        };
        if let Some((_, record)) = locked.same(&sock, range, access, true) {
            return Ok(descriptor(record.rkey.load(Ordering::Relaxed)));
        }
        let mut rights = Access::empty();
        rights.set(Access::REMOTE_READ, access & MEM_READ != 0);
        // As in verbs, what the peer may write the owner may write as well.
        rights.set(
            Access::REMOTE_WRITE | Access::LOCAL_WRITE,
            access & MEM_WRITE != 0,
        );
        let region = MrReg {
            addr: ARENA_IOVA + offset,
            len: len as u64,
            pdn: sock.function.header().pdn.load(Ordering::Relaxed),
            access: rights.bits(),
            owner_qpn: sock.record.qpn.load(Ordering::Relaxed),
            reserved: 0,
        };
        let [keys, _] = locked
            .admin(AdminOp::MR_REG, region.to_body())
            .map_err(code_of_region)?;
        match locked.add_registration(&sock, range, access, (low(keys), high(keys))) {
            Some(_) => Ok(descriptor(high(keys))),
            None => {
                match locked.admin_on(AdminOp::MR_DEREG, low(keys)) {
                    Ok(_) | Err(_) => {} // A dead device has no regions left.
                }
                Err(WsaError::NoBufs)
            }
        }
    }

    /// `wsp_deregister_rdma_memory`.
    pub(crate) fn deregister_rdma(
        &self,
        s: SpSocket,
        descriptor: &RdmaDescriptor,
    ) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        let mut locked = sock.function.lock();
        let (offset, record) = locked
            .registrations(&sock)
            .find(|(_, record)| {
                descriptor.rkey != 0
                    && record.rkey.load(Ordering::Relaxed) == descriptor.rkey
                    && ARENA_IOVA + record.offset.load(Ordering::Relaxed) == descriptor.addr
                    && record.len.load(Ordering::Relaxed) == descriptor.len
            })
            .ok_or(WsaError::Inval)?;
        let count = record.count.load(Ordering::Relaxed);
        if count > 1 {
            record.count.store(count - 1, Ordering::Relaxed);
        } else {
            locked.revoke(record);
            locked.drop_registration(&sock, offset);
        }
        Ok(())
    }
}

/// Only these codes exist for a registration.
fn code_of_region(error: crate::error::AdminError) -> WsaError {
    match code_of(error) {
        WsaError::AddrNotAvail => WsaError::Inval,
        code => code,
    }
}

impl<'a> Locked<'a> {
    /// A registration of the same range and rights, counted once more.
    fn same(
        &mut self,
        sock: &Sock<'a>,
        (offset, len): (u64, u64),
        access: u32,
        is_remote: bool,
    ) -> Option<(u64, &'a Registration)> {
        let found = self.registrations(sock).find(|(_, record)| {
            record.offset.load(Ordering::Relaxed) == offset
                && record.len.load(Ordering::Relaxed) == len
                && record.access.load(Ordering::Relaxed) == access
                && (record.rkey.load(Ordering::Relaxed) != 0) == is_remote
        })?;
        let count = &found.1.count;
        count.store(
            count.load(Ordering::Relaxed).saturating_add(1),
            Ordering::Relaxed,
        );
        Some(found)
    }
}

impl SharedMemory for Core {
    fn alloc(&self, s: SpSocket, len: u64) -> Option<SharedRegion> {
        let function = self.function_at(function_index(s))?;
        let mut locked = function.lock();
        let offset = locked.alloc_or_sweep(len)?;
        if let Ok(sock) = self.resolve(s) {
            locked.list_allocation(&sock, offset, len);
        }
        Some(SharedRegion { offset, len })
    }

    fn free(&self, s: SpSocket, region: SharedRegion) {
        let Some(function) = self.function_at(function_index(s)) else {
            return;
        };
        let mut locked = function.lock();
        if let Ok(sock) = self.resolve(s) {
            locked.unlist_allocation(&sock, region.offset);
        }
        locked.free_any(region.offset, region.len);
    }

    fn alloc_ring(&self, s: SpSocket, len: u64) -> Option<SharedRegion> {
        let sock = self.resolve(s).ok()?;
        let mut locked = sock.function.lock();
        let peer = locked.peer_of(&sock);
        let shared = peer.and_then(|peer| locked.alloc_ring(peer, len));
        let offset = match shared {
            Some(offset) => offset,
            // A full pair arena: who asks for much asks for less first. The function's own memory is what the buffers of all its
            // connections come from.
            None if peer.is_some() && len > SHORT_RING => return None,
            // Without a pair arena the ring works as well; it only can never be granted.
            None => locked.alloc_or_sweep(len)?,
        };
        locked.list_allocation(&sock, offset, len);
        Some(SharedRegion { offset, len })
    }

    fn free_ring(&self, s: SpSocket, region: SharedRegion) {
        // Both kinds are told apart by their offsets.
        self.free(s, region);
    }

    fn at(&self, s: SpSocket, offset: u64) -> Option<NonNull<u8>> {
        self.function_at(function_index(s))?.address(offset, 1)
    }
}

impl<'a> Locked<'a> {
    /// Function of a connected socket's peer.
    fn peer_of(&mut self, sock: &Sock<'a>) -> Option<FunctionId> {
        let known = &sock.record.peer_function;
        if known.load(Ordering::Relaxed) == 0 {
            let qpn = sock.record.qpn.load(Ordering::Relaxed);
            let [_, peer] = self.admin_on(AdminOp::QP_QUERY, qpn).ok()?;
            known.store(low(peer), Ordering::Relaxed);
        }
        Some(FunctionId(known.load(Ordering::Relaxed))).filter(|peer| peer.0 != 0)
    }
}
