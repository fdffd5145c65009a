//! Provider calls that are to fail by a fault rule of the emulator.
//!
//! Place: each call of the dispatch table that sets something up asks here first. Invariants: without a rule the answer is one load of
//! the NIC's summary page; with one the device decides, counts and logs. Calls that move data never ask.
//! Source: docs/device.md, "ProviderCall"; docs/control.md, "Faults".

use ring_proto::admin::{AdminOp, ProviderCall};
use ring_proto::sync::Ordering;

use super::{Core, socket};
use crate::function::{Function, low};
use crate::spi::SpSocket;
use crate::wsa::WsaError;

/// Fails when a rule says so.
pub(super) fn pass(function: &Function, call: ProviderCall) -> Result<(), WsaError> {
    // Relaxed: a hint to ask; the answer comes by the admin queue.
    let calls = function.bar().call_faults().load(Ordering::Relaxed);
    if calls & 1 << call.0 == 0 {
        return Ok(());
    }
    ask(function, call)
}

#[cold]
fn ask(function: &Function, call: ProviderCall) -> Result<(), WsaError> {
    let asked = function.lock().admin_on(AdminOp::CALL_FAULT, call.0.into());
    match asked {
        Ok([0, _]) => Ok(()),
        Ok([code, _]) => Err(WsaError::from_code(low(code)).unwrap_or(WsaError::NetDown)),
        // A device that does not know the command has no rules; one that is dead is the call's own affair.
        Err(_) => Ok(()),
    }
}

impl Core {
    /// As [`pass`], for a call on a socket.
    pub(super) fn pass(&self, s: SpSocket, call: ProviderCall) -> Result<(), WsaError> {
        let index = usize::try_from(socket::function_index(s)).unwrap_or(usize::MAX);
        match self.functions.get(index).and_then(|cell| cell.get()) {
            Some(function) => pass(function, call),
            // The call itself says what is wrong with the handle.
            None => Ok(()),
        }
    }
}
