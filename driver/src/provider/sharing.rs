//! Sharing sockets with forked children, and giving up a share.
//!
//! Place: the switch's fork handlers and its close; `wsp_accept`'s sockets are taken from their listener here.
//! Invariants: the NIC keeps one holder slot per process and function; HOLD_CLONE gives the child all holds of its parent before it
//! exists, and its life is its process socket. A process's number is its identity on the function of index 0, which every process that
//! shares any function with it has inherited too. A child never uses what its parent alone owns: process socket, vectors, event
//! objects.
//! What this process alone keeps stands still from before the fork to after it, whatever its other threads do.
//! Source, R-212 (a to b).

use ring_proto::admin::AdminStatus;
use ring_proto::admin::{AdminOp, HOLD_LISTENER, HOLD_QP, Hold, HoldClone, RELEASE_UNLESS_LAST};
use ring_proto::ids::HolderSlot;
use ring_proto::sync::Ordering;

use super::socket::Sock;
use super::startup::clone_parts;
use super::{Core, code_of};
use crate::error::AdminError;
use crate::function::Locked;
use crate::lock::Identity;
use crate::opener::Holding;
use crate::spi::{Legacy, Sharing, SpSocket};
use crate::sys;
use crate::wsa::WsaError;

/// Bit of a number that names a process without any function: its low half is the pid.
const BY_PID: u64 = 1 << 63;

/// A holder slot made for a child that is about to be forked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clone {
    index: u32,
    holding: Holding,
}

impl Core {
    /// Gives up this process's hold on a socket unless it is the last; `Ok(true)` when others hold it still.
    pub(crate) fn release_hold(&self, s: SpSocket) -> Result<bool, WsaError> {
        let sock = self.resolve(s)?;
        let Some(mut hold) = hold_of(&sock) else {
            // Nothing of it is at the device yet: nobody else can have a part in it.
            return Ok(false);
        };
        hold.flags = RELEASE_UNLESS_LAST;
        let mut locked = sock.function.lock();
        if locked.is_ours_alone() {
            return Ok(false);
        }
        let released = locked.admin(AdminOp::RELEASE, hold.to_body());
        drop(locked);
        match released {
            Ok(_) => {
                self.forget(s);
                Ok(true)
            }
            Err(AdminError::Refused { .. }) => Ok(false),
            // Without the NIC there are no holds: the caller closes.
            Err(AdminError::Dead) => Ok(false),
        }
    }
}

impl Core {
    /// Keeps this process's other threads out of what the child gets a copy of.
    fn hold_locks(&self) {
        self.upcalls.hold();
        self.locals.hold();
        self.vectors.hold();
        for (_, function) in self.functions() {
            function.pairs.hold();
            function.attachment().before_fork();
        }
    }

    /// In the parent and in the child.
    fn let_go_locks(&self) {
        for (_, function) in self.functions() {
            function.attachment().after_fork();
            function.pairs.let_go();
        }
        self.vectors.let_go();
        self.locals.let_go();
        self.upcalls.let_go();
        self.opening.let_go();
        self.starts.let_go();
    }
}

impl Locked<'_> {
    /// Whether no other process ever had a hold on anything of this function.
    fn is_ours_alone(&self) -> bool {
        // Relaxed: the lock orders.
        self.function.header().shared.load(Ordering::Relaxed) == 0
    }
}

/// The hold of this process on a socket's QP or listener.
fn hold_of(sock: &Sock<'_>) -> Option<Hold> {
    // Relaxed: acquired with the state.
    let qpn = sock.record.qpn.load(Ordering::Relaxed);
    let listener = sock.record.listener.load(Ordering::Relaxed);
    let (id, kind) = match (qpn, listener) {
        (0, 0) => return None,
        (0, listener) => (listener, HOLD_LISTENER),
        (qpn, _) => (qpn, HOLD_QP),
    };
    Some(Hold {
        id,
        kind,
        slot: Identity::slot_of(sock.function.identity().word()),
        flags: 0,
    })
}

impl Sharing for Core {
    fn before_fork(&self) -> Result<(), WsaError> {
        // First of all: a function that is being opened would be in the child by half, and its holds not at all.
        self.starts.hold();
        self.opening.hold();
        let mut clones = Vec::new();
        for (index, function) in self.functions() {
            if function.is_dead() {
                continue;
            }
            let body = HoldClone {
                from: Identity::slot_of(function.identity().word()),
                reserved: 0,
            };
            let mut locked = function.lock();
            // The child will use none of them, but its hold would keep them.
            locked.drop_spares();
            let cloned = locked.admin(AdminOp::HOLD_CLONE, body.to_body());
            // Relaxed: looked at under the lock.
            function.header().shared.store(1, Ordering::Relaxed);
            drop(locked);
            // A function that cannot be shared is lost to the child, not to this process.
            if let Ok([word, _]) = cloned {
                let (slot, generation) = clone_parts(word);
                clones.push(Clone {
                    index,
                    holding: Holding {
                        function: function.id(),
                        slot: HolderSlot(slot),
                        generation,
                    },
                });
            }
        }
        let holdings: Vec<Holding> = clones.iter().map(|clone| clone.holding).collect();
        let told = self.opener.before_fork(&holdings);
        if told.is_err() {
            clones.clear();
        }
        *self.fork.lock() = clones;
        self.hold_locks();
        told.map_err(|_| WsaError::NetDown)
    }

    fn after_fork_in_parent(&self, _: bool) {
        self.let_go_locks();
        // With the child's end gone too, the hang-up takes back what was cloned for a fork that failed.
        self.opener.after_fork_in_parent();
        self.fork.lock().clear();
    }

    fn after_fork_in_child(&self) {
        self.let_go_locks();
        self.opener.after_fork_in_child();
        let clones = core::mem::take(&mut *self.fork.lock());
        for (index, function) in self.functions() {
            match clones.iter().find(|clone| clone.index == index) {
                Some(clone) => function.adopt(clone.holding.slot.0, clone.holding.generation),
                None => function.disown(),
            }
        }
        self.disown_functions();
        self.forget_vectors();
        for local in self.locals().values_mut() {
            local.upcalls = 0;
            local.events.forget_object();
        }
    }

    fn release(&self, s: SpSocket) -> Result<bool, WsaError> {
        self.release_hold(s)
    }

    fn take_from_listener(&self, s: SpSocket, listener: SpSocket) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        let listening = self.resolve(listener)?;
        let body = Hold {
            id: sock.record.qpn.load(Ordering::Relaxed),
            kind: HOLD_QP,
            slot: Identity::slot_of(sock.function.identity().word()),
            flags: listening.record.listener.load(Ordering::Relaxed),
        };
        let mut locked = sock.function.lock();
        // Without others to end the QP meanwhile, nothing can be answered that is not known.
        let moved = if locked.is_ours_alone() {
            locked.admin_later(AdminOp::HOLD, body.to_body())
        } else {
            locked.admin(AdminOp::HOLD, body.to_body()).map(drop)
        };
        moved.map_err(|error| match error.status() {
            Some(AdminStatus::NO_OBJECT) => WsaError::ConnReset,
            _ => code_of(error),
        })?;
        // Relaxed: the lock orders.
        sock.record.untaken.store(0, Ordering::Relaxed);
        drop(locked);
        let me = sock.function.identity().word();
        // Relaxed: looked at only when this process is dead.
        sock.record.owner.store(me, Ordering::Relaxed);
        if !self.locals().contains_key(&s) {
            // Accepted by another process of the family: its switch has a handle, ours has none yet.
            let handle = self.upcalls()?.wpu_create_socket_handle(0, s.0)?;
            self.know(s, handle);
        }
        Ok(())
    }

    fn self_id(&self) -> u64 {
        match self.root() {
            Some(function) => u64::from(function.identity().word()),
            None => BY_PID | u64::from(sys::pid()),
        }
    }

    fn is_alive(&self, id: u64) -> bool {
        let [a, b, c, d, ..] = id.to_le_bytes();
        let word = u32::from_le_bytes([a, b, c, d]);
        if id & BY_PID != 0 {
            return sys::process_exists(word);
        }
        self.root().is_some_and(|function| function.is_alive(word))
    }

    fn bequeath(&self, sockets: &[SpSocket]) -> Result<Legacy, WsaError> {
        self.bequeath_sockets(sockets)
    }

    fn take_up(&self, s: SpSocket) -> Result<(), WsaError> {
        self.take_up_socket(s)
    }
}
