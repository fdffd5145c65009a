//! Provider calls that fail: how the provider learns of them.
//!
//! Place: each function's summary page shows which calls a rule may be about; a provider that sees its call there asks by CALL_FAULT, and
//! the rule sees the occasion. Invariants: without rules the page shows 0 and nobody asks. Codes are Windows Sockets' numbers.
//! Source: Winsock headers for the numbers; calls by the names of Windows Sockets Direct. Hot: nothing.

use ring_proto::admin::{AdminStatus, ProviderCall};
use ring_proto::sync::Ordering;

use super::{FaultAction, FaultPoint};
use crate::device::Device;

/// Calls by the names that the provider's functions have.
pub(super) const CALLS: [(&str, u8); 8] = [
    ("wsp_socket", ProviderCall::WSP_SOCKET.0),
    ("wsp_bind", ProviderCall::WSP_BIND.0),
    ("wsp_listen", ProviderCall::WSP_LISTEN.0),
    ("wsp_event_select", ProviderCall::WSP_EVENT_SELECT.0),
    ("wsp_accept", ProviderCall::WSP_ACCEPT.0),
    ("wsp_connect", ProviderCall::WSP_CONNECT.0),
    ("wsp_set_sock_opt", ProviderCall::WSP_SET_SOCK_OPT.0),
    ("wsp_get_sock_opt", ProviderCall::WSP_GET_SOCK_OPT.0),
];

/// Codes that a call may fail with.
const CODES: [(&str, u32); 22] = [
    ("WSAEACCES", 10013),
    ("WSAEFAULT", 10014),
    ("WSAEINVAL", 10022),
    ("WSAEMFILE", 10024),
    ("WSAEWOULDBLOCK", 10035),
    ("WSAENOTSOCK", 10038),
    ("WSAENOPROTOOPT", 10042),
    ("WSAEPROTONOSUPPORT", 10043),
    ("WSAEOPNOTSUPP", 10045),
    ("WSAEAFNOSUPPORT", 10047),
    ("WSAEADDRINUSE", 10048),
    ("WSAEADDRNOTAVAIL", 10049),
    ("WSAENETDOWN", 10050),
    ("WSAENETUNREACH", 10051),
    ("WSAECONNABORTED", 10053),
    ("WSAECONNRESET", 10054),
    ("WSAENOBUFS", 10055),
    ("WSAETIMEDOUT", 10060),
    ("WSAECONNREFUSED", 10061),
    ("WSAEHOSTUNREACH", 10065),
    ("WSAEPROCLIM", 10067),
    ("WSASYSNOTREADY", 10091),
];

/// Windows Sockets codes that a call may fail with, by name.
#[must_use]
pub fn call_codes() -> &'static [(&'static str, u32)] {
    &CODES
}

pub(super) fn code_name(code: u32) -> Option<&'static str> {
    let found = CODES.iter().find(|&&(_, number)| number == code);
    found.map(|&(name, _)| name)
}

pub(super) fn code_number(name: &str) -> Option<u32> {
    let found = CODES.iter().find(|&&(known, _)| known == name);
    found.map(|&(_, number)| number)
}

pub(super) fn code_names() -> String {
    CODES.map(|(name, _)| name).join(", ")
}

impl Device {
    /// CALL_FAULT: whether a provider call of a function is to fail, and with which code.
    pub(crate) fn ask_call_fault(
        &mut self,
        place: u32,
        call: u32,
    ) -> Result<[u64; 2], AdminStatus> {
        let call = u8::try_from(call).ok().map(ProviderCall);
        let call = call.filter(|call| call.name().is_some());
        let call = call.ok_or(AdminStatus::INVALID)?;
        let met = self.meet_fault(FaultPoint::Call, place, 0, call.0);
        self.publish_call_faults();
        Ok(match met {
            Some(FaultAction::Fail { code }) => [code.into(), 0],
            _ => [0, 0],
        })
    }

    /// Shows each function which of its provider calls rules may be about.
    pub(crate) fn publish_call_faults(&self) {
        for (_, function) in self.functions.iter() {
            let rules = self.faults.rules.iter().filter(|rule| {
                rule.rule.at == FaultPoint::Call
                    && !rule.is_spent()
                    && rule.concerns(function.node, function.id, 0)
            });
            let calls = rules.fold(0, |calls, rule| {
                calls | rule.opcode.map_or(u32::MAX, |call| 1 << call)
            });
            // Relaxed: who sees a bit asks; what the answer depends on is the device's alone.
            function.bar.call_faults().store(calls, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CALLS, ProviderCall};

    #[test]
    fn every_call_has_its_name() {
        assert_eq!(CALLS.len(), ProviderCall::ALL.len());
        for (name, number) in CALLS {
            let known = ProviderCall(number).name().unwrap();
            assert_eq!(known.to_lowercase(), name);
        }
    }
}
