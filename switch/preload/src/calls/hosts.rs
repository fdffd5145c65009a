//! Names of the cluster's nodes, for programs that resolve host names.
//!
//! Place: `exports::hosts` -> here. A node's name is looked up here and passed on to the C library as the node's address in digits, so
//! that hints, families, ports and who owns the answer stay the library's; then the name is put where the digits stand.
//! Invariants: made once, never freed: answers may point at the names. A node's name comes before whatever the machine knows by it.
//! Source: getaddrinfo(3), gethostbyname(3), getnameinfo(3), gethostname(2), uname(2). Leaves out: what asks a name server by itself.
#![expect(unsafe_code, reason = "reads names and addresses of the program")]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::net::Ipv4Addr;
use std::ffi::CString;

use libc::{sockaddr, socklen_t};
use switch::NodeConfig;
use switch::sys::Name;

use crate::runtime;

/// Names of all nodes.
#[derive(Debug)]
pub(crate) struct Hosts {
    own: CString,
    hosts: Vec<Host>,
}

/// A node that has an address.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: CString,
    /// Its first address in digits.
    pub(crate) digits: CString,
    addresses: Vec<Ipv4Addr>,
}

impl Hosts {
    /// The nodes of a configuration. Names that a C string cannot hold are nobody's.
    pub(crate) fn new(config: &NodeConfig) -> Self {
        let hosts = config.nodes.iter().filter_map(|node| {
            let addresses: Vec<Ipv4Addr> = node.addresses.iter().map(|a| a.address).collect();
            Some(Host {
                name: CString::new(node.name.as_str()).ok()?,
                digits: CString::new(addresses.first()?.to_string()).ok()?,
                addresses,
            })
        });
        Self {
            own: CString::new(config.node.as_str()).unwrap_or_default(),
            hosts: hosts.collect(),
        }
    }

    fn named(&self, name: &[u8]) -> Option<&Host> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let mut hosts = self.hosts.iter();
        hosts.find(|h| h.name.as_bytes().eq_ignore_ascii_case(name))
    }

    fn at(&self, address: Ipv4Addr) -> Option<&Host> {
        self.hosts.iter().find(|h| h.addresses.contains(&address))
    }
}

/// The node of this name.
///
/// # Safety
/// `name` is null or a C string.
pub(crate) unsafe fn named(name: *const c_char) -> Option<&'static Host> {
    let runtime = runtime::get()?;
    if name.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    runtime.hosts.named(name.to_bytes())
}

/// The node with this address, IPv4 or v4-mapped.
///
/// # Safety
/// `address` has `len` bytes.
pub(crate) unsafe fn at(address: *const sockaddr, len: socklen_t) -> Option<&'static Host> {
    let runtime = runtime::get()?;
    // SAFETY: by the caller's promise.
    let address = unsafe { Name::read(address.cast(), len) }?;
    match address.ip().to_canonical() {
        core::net::IpAddr::V4(address) => runtime.hosts.at(address),
        core::net::IpAddr::V6(_) => None,
    }
}

/// The node with these four bytes as its address, as `gethostbyaddr` gets them.
///
/// # Safety
/// `address` has `len` bytes.
pub(crate) unsafe fn at_bytes(
    address: *const c_void,
    len: socklen_t,
    family: c_int,
) -> Option<&'static Host> {
    let runtime = runtime::get()?;
    if family != libc::AF_INET || len != 4 {
        return None;
    }
    // SAFETY: by the caller's promise; four bytes may lie anywhere.
    let bytes: [u8; 4] = unsafe { address.cast::<[u8; 4]>().read_unaligned() };
    runtime.hosts.at(Ipv4Addr::from(bytes))
}

/// Name of this node, as its programs' host name.
pub(crate) fn own() -> Option<&'static CStr> {
    let runtime = runtime::get()?;
    Some(runtime.hosts.own.as_c_str()).filter(|own| !own.is_empty())
}

/// Copies a name into `room` bytes, with its final zero where that fits. Whether all of it fits.
///
/// # Safety
/// `to` has `room` bytes.
pub(crate) unsafe fn put(name: &CStr, to: *mut c_char, room: usize) -> bool {
    let bytes = name.to_bytes_with_nul();
    let count = bytes.len().min(room);
    // SAFETY: `count` is not more than either has.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, count) };
    count == bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        let config = r#"{"cluster":"lab","node":"b","node_id":2,"nodes":[
            {"name":"a","addresses":["127.77.3.1/24","127.77.9.1/24"]},
            {"name":"b","addresses":["127.77.3.2/24"]},{"name":"bare","addresses":[]}]}"#;
        Hosts::new(&NodeConfig::from_json(config).unwrap())
    }

    #[test]
    fn nodes_are_found_by_name_in_any_case_and_by_address() {
        let hosts = hosts();
        let digits = |name: &[u8]| hosts.named(name).map(|h| h.digits.to_str().unwrap());
        assert_eq!(digits(b"a"), Some("127.77.3.1"));
        assert_eq!(digits(b"B."), Some("127.77.3.2"));
        for unknown in [&b""[..], b".", b"ab", b"bare", b"localhost", b"a.."] {
            assert_eq!(digits(unknown), None, "{unknown:?}");
        }
        let name = |address| hosts.at(address).map(|h| h.name.to_str().unwrap());
        assert_eq!(name(Ipv4Addr::new(127, 77, 9, 1)), Some("a"));
        assert_eq!(name(Ipv4Addr::new(127, 77, 3, 9)), None);
    }

    #[test]
    fn a_name_that_does_not_fit_is_cut() {
        let mut room = [c_char::MAX; 3];
        // SAFETY: the room has three bytes.
        assert!(!unsafe { put(c"abc", room.as_mut_ptr(), room.len()) });
        assert_eq!(room, [97, 98, 99]);
        // SAFETY: as above.
        assert!(unsafe { put(c"ab", room.as_mut_ptr(), room.len()) });
        assert_eq!(room, [97, 98, 0]);
    }
}
