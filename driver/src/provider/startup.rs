//! Start and clean-up of the provider, and opening of device functions.
//!
//! Place: `wsp_startup_ex`, `wsp_cleanup`; `socket` opens this process's function with its first socket.
//! Invariants: starts are counted, the last clean-up really cleans; sockets still open then are reset without notification
//! a new start works at once. An inherited function never serves new sockets: its opener's family shares it.
//! Source.

use std::sync::Arc;

use ring_proto::ids::HolderSlot;
use ring_proto::sync::Ordering;

use super::Core;
use crate::function::{Function, low};
use crate::lock::Identity;
use crate::opener::Holding;
use crate::record::{RECV_DEPTH, SEND_DEPTH};
use crate::spi::{ProtocolInfo, SpSocket, StartupData, TCP_INFO, Upcalls, WSD_VERSION};
use crate::wsa::WsaError;

/// Name of the provider in logs and tables.
const NAME: &str = "sanlab";

/// `wsp_startup_ex`.
pub(crate) fn start(
    core: &Arc<Core>,
    version: u16,
    caller: &ProtocolInfo,
    upcalls: Arc<dyn Upcalls>,
) -> Result<StartupData, WsaError> {
    let [major, minor] = version.to_le_bytes();
    let [needed_major, needed_minor] = WSD_VERSION.to_le_bytes();
    if (major, minor) < (needed_major, needed_minor) {
        return Err(WsaError::VerNotSupported);
    }
    // The switch is known by TCP/IP's protocol information; nobody else may use this provider.
    if *caller != TCP_INFO {
        return Err(WsaError::SysNotReady);
    }
    let mut starts = core.starts.lock();
    *starts = starts.checked_add(1).ok_or(WsaError::ProcLim)?;
    *core.upcalls.lock() = Some(upcalls);
    Ok(StartupData {
        version: WSD_VERSION,
        name: NAME,
        send_depth: SEND_DEPTH,
        recv_depth: RECV_DEPTH,
        memory: Arc::<Core>::clone(core),
        waiting: Arc::<Core>::clone(core),
        sharing: Some(Arc::<Core>::clone(core)),
    })
}

impl Core {
    /// `wsp_cleanup`.
    pub(crate) fn cleanup(&self) -> Result<(), WsaError> {
        let is_last = {
            let mut starts = self.starts.lock();
            *starts = starts.checked_sub(1).ok_or(WsaError::NotInitialised)?;
            *starts == 0
        };
        if !is_last {
            return Ok(());
        }
        let open: Vec<SpSocket> = self.locals().keys().copied().collect();
        for s in open {
            // Sockets that others of the family hold live on with them.
            if !matches!(self.release_hold(s), Ok(true)) {
                match self.close(s, false) {
                    Ok(()) | Err(_) => {} // It was closed meanwhile.
                }
            }
        }
        // A start that came meanwhile keeps its upcalls.
        let starts = self.starts.lock();
        if *starts == 0 {
            *self.upcalls.lock() = None;
        }
        Ok(())
    }

    /// The function for new sockets, opened when there is none or the one there was is dead.
    pub(crate) fn open_own(&self) -> Result<(u32, &Function), WsaError> {
        let usable = || {
            self.own_function()
                .filter(|(_, function)| !function.is_dead())
        };
        if let Some((index, function)) = usable() {
            return Ok((index, function));
        }
        let _opening = self.opening.lock();
        if let Some((index, function)) = usable() {
            return Ok((index, function));
        }
        let (index, cell) = (0_u32..)
            .zip(&self.functions)
            .find(|(_, cell)| cell.get().is_none())
            .ok_or(WsaError::Mfile)?;
        let attachment = self.opener.open().map_err(|error| starved(error.errno()))?;
        let function = Function::attach(attachment).map_err(|error| starved(error.errno()))?;
        let me = function.identity().word();
        self.opener
            .hold(Holding {
                function: function.id(),
                slot: HolderSlot(Identity::slot_of(me)),
                generation: function.generation(),
            })
            .map_err(|_| WsaError::NetDown)?;
        let function: &Function = cell.get_or_init(|| function);
        // Relaxed: the cell orders its content.
        self.own.store(index + 1, Ordering::Relaxed);
        Ok((index, function))
    }

    /// Forgets which function serves new sockets: a child opens its own.
    pub(crate) fn disown_functions(&self) {
        // Relaxed: a freshly forked child has one thread.
        self.own.store(0, Ordering::Relaxed);
    }

    /// Number of a process among all sharers; see `sharing`.
    pub(crate) fn root(&self) -> Option<&Function> {
        self.functions.first()?.get().map(|function| &**function)
    }
}

/// Code of an opening that failed: a node whose limits are reached has no more functions to give now, and may have some later.
const fn starved(errno: i32) -> WsaError {
    match errno {
        libc::ENOSPC | libc::ENOMEM => WsaError::NoBufs,
        _ => WsaError::NetDown,
    }
}

/// Splits the result of HOLD_CLONE.
pub(crate) const fn clone_parts(word: u64) -> (u32, u32) {
    (low(word), crate::function::high(word))
}
