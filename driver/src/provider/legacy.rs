//! Legacies: shares of sockets for the next image of a program, or for a process that is no forked child.
//!
//! Place: the switch asks for one before `exec` and its kind; [`super::SanProvider::inherit`] takes one up in the heir, before
//! anything else opens a function there.
//! Invariants: an heir is a holder like a forked child: HOLD_CLONE makes its slot, what is not in the legacy is released from it at
//! once, and its life is a process socket made for it. Functions keep their indices, so handles mean the same in the heir; the
//! function of index 0 always comes along, because processes are named by it.
//! Source. Leaves out: who gets the descriptors across (the preload library).
#![expect(unsafe_code, reason = "takes over inherited descriptors by number")]

use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::admin::{AdminOp, HOLD_LISTENER, HOLD_QP, Hold, HoldClone};
use ring_proto::attach::Attachment;
use ring_proto::ids::{FunctionId, HolderSlot, NodeId};
use ring_proto::sync::Ordering;

use super::Core;
use super::socket::{function_index, handle_of};
use super::startup::clone_parts;
use crate::function::{Function, Share};
use crate::lock::Identity;
use crate::opener::Holding;
use crate::record;
use crate::spi::{Legacy, SpSocket};
use crate::sys::Fd;
use crate::vfio::client::Client;
use crate::wsa::WsaError;

/// Words of one function: index, id, node, vectors, slot, generation, then the numbers of stream, BAR2, kick + 1, arena.
const WORDS: usize = 10;
/// Index of the function that names processes.
const ROOT: u32 = 0;

impl Core {
    /// Makes the legacy; see [`crate::spi::Sharing::bequeath`].
    pub(crate) fn bequeath_sockets(&self, sockets: &[SpSocket]) -> Result<Legacy, WsaError> {
        let mut legacy = Legacy::default();
        let mut holdings = Vec::new();
        let made = self
            .functions()
            .filter(|(index, _)| {
                *index == ROOT || sockets.iter().any(|s| function_index(*s) == *index)
            })
            .try_for_each(|(index, function)| {
                give(index, function, sockets, &mut legacy, &mut holdings)
            })
            .and_then(|()| {
                let life = self.opener.introduce_heir(&holdings);
                life.map_err(|_| WsaError::NetDown)
            });
        match made {
            Ok(life) => {
                legacy.life = life.into_raw();
                Ok(legacy)
            }
            Err(error) => {
                // A slot that no process answers for ends with this one.
                legacy.made.iter().copied().for_each(crate::sys::close);
                Err(error)
            }
        }
    }

    /// Takes up the functions of a legacy whose descriptors this process has under their old numbers.
    pub(crate) fn inherit_functions(&self, words: &[u64]) -> Result<(), WsaError> {
        let (functions, rest) = words.as_chunks::<WORDS>();
        if !rest.is_empty() {
            return Err(WsaError::Inval);
        }
        for function in functions {
            let (index, function) = take(function).ok_or(WsaError::Inval)?;
            let cell = self.functions.get(index).ok_or(WsaError::Inval)?;
            cell.set(function).map_err(|_| WsaError::Inval)?;
        }
        Ok(())
    }

    /// Makes a socket of an inherited function one of this process.
    pub(crate) fn take_up_socket(&self, s: SpSocket) -> Result<(), WsaError> {
        let sock = self.resolve(s)?;
        if self.locals().contains_key(&s) {
            return Ok(());
        }
        let handle = self.upcalls()?.wpu_create_socket_handle(0, s.0)?;
        self.know(s, handle);
        let me = sock.function.identity().word();
        // Relaxed: looked at only when this process is dead.
        sock.record.owner.store(me, Ordering::Relaxed);
        Ok(())
    }
}

/// Adds a function to a legacy, with holds on `sockets` alone.
fn give(
    index: u32,
    function: &Arc<Function>,
    sockets: &[SpSocket],
    legacy: &mut Legacy,
    holdings: &mut Vec<Holding>,
) -> Result<(), WsaError> {
    if function.is_dead() {
        return Err(WsaError::NetDown);
    }
    let descriptors = function
        .attachment()
        .descriptors()
        .ok_or(WsaError::OpNotSupp)?;
    let (slot, generation) = clone_for(index, function, sockets)?;
    let memory = function.memory().map_err(|_| WsaError::NetDown)?.into_raw();
    legacy.made.push(memory);
    legacy.lent.extend([descriptors.stream, descriptors.bar2]);
    legacy.lent.extend(descriptors.kick);
    let number = |fd: RawFd| u64::from(fd.unsigned_abs());
    legacy.words.extend([
        u64::from(index),
        u64::from(function.id().0),
        u64::from(function.node().0),
        u64::from(function.vector_limit()),
        u64::from(slot),
        u64::from(generation),
        number(descriptors.stream),
        number(descriptors.bar2),
        descriptors.kick.map_or(0, |kick| number(kick) + 1),
        number(memory),
    ]);
    holdings.push(Holding {
        function: function.id(),
        slot: HolderSlot(slot),
        generation,
    });
    Ok(())
}

/// Makes a holder slot with our holds on `sockets` and no others.
fn clone_for(
    index: u32,
    function: &Function,
    sockets: &[SpSocket],
) -> Result<(u32, u32), WsaError> {
    let mut locked = function.lock();
    let body = HoldClone {
        from: Identity::slot_of(function.identity().word()),
        reserved: 0,
    };
    // As before a fork: an heir uses none of them, but its hold would keep them.
    locked.drop_spares();
    let [word, _] = locked
        .admin(AdminOp::HOLD_CLONE, body.to_body())
        .map_err(super::code_of)?;
    // Relaxed: looked at under the lock.
    function.header().shared.store(1, Ordering::Relaxed);
    let (slot, generation) = clone_parts(word);
    let records: Vec<_> = locked.all_records().collect();
    for (record, number) in records {
        // Relaxed throughout: the lock orders.
        let life = record.generation.load(Ordering::Relaxed);
        if sockets.contains(&handle_of(index, life, number)) {
            continue;
        }
        let (id, kind) = match record.qpn.load(Ordering::Relaxed) {
            0 => (record.listener.load(Ordering::Relaxed), HOLD_LISTENER),
            qpn => (qpn, HOLD_QP),
        };
        let hold = Hold {
            id,
            kind,
            slot,
            flags: 0,
        };
        if id != 0 {
            match locked.admin(AdminOp::RELEASE, hold.to_body()) {
                Ok(_) | Err(_) => {} // Others of the family hold sockets that we do not, and so neither does the clone.
            }
        }
    }
    Ok((slot, generation))
}

/// The function that `WORDS` words tell of.
fn take(words: &[u64; WORDS]) -> Option<(usize, Arc<Function>)> {
    let half = |at: usize| words.get(at).and_then(|&word| u32::try_from(word).ok());
    let inherited = |number: u32| -> Option<Fd> {
        let number = RawFd::try_from(number).ok()?;
        // An heir is told of descriptors that it has; any other number is answered EBADF by all that follows.
        // SAFETY: the giver left the number to this library.
        let fd = unsafe { Fd::from_raw(number) };
        fd.close_on_exec().ok()?;
        Some(fd)
    };
    let share = Share {
        id: FunctionId(half(1)?),
        node: NodeId(u16::try_from(half(2)?).ok()?),
        vectors: half(3)?,
        slot: half(4)?,
        generation: half(5)?,
    };
    let stream = inherited(half(6)?)?;
    let bar2 = inherited(half(7)?)?;
    let kick = match half(8)? {
        0 => None,
        kick => Some(inherited(kick - 1)?),
    };
    let memory = inherited(half(9)?)?;
    let client = Client::share(stream, bar2, kick, memory.raw(), record::STREAM).ok()?;
    let attachment: Arc<dyn Attachment> = Arc::new(client);
    let function = Function::share(attachment, &memory, &share).ok()?;
    Some((usize::try_from(half(0)?).ok()?, function))
}
