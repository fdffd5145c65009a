//! Socket addresses in the kernel's form.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use core::ptr;

/// A socket address in the kernel's form.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct Name {
    bytes: [u8; ROOM],
    /// Bytes in use, or after a call the bytes the kernel would have written.
    pub len: u32,
}

/// Bytes of the longest address of any family: `struct sockaddr_storage`.
const ROOM: usize = 128;
/// Bytes of an IPv6 address.
const IP_ROOM: u32 = 28;

/// `sizeof(struct sockaddr_storage)`.
const LONGEST: u32 = 128;

impl Name {
    /// Room for an address of any IP family.
    #[must_use]
    pub const fn room() -> Self {
        Self {
            bytes: [0; ROOM],
            len: IP_ROOM,
        }
    }

    /// Room for an address of any family.
    #[must_use]
    pub const fn wide_room() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 128,
        }
    }

    /// Address of the bytes, for a C function that reads them.
    #[must_use]
    pub const fn const_pointer(&self) -> *const libc::sockaddr {
        self.bytes.as_ptr().cast()
    }

    /// Address of the bytes, for a C function that writes them.
    pub const fn pointer(&mut self) -> *mut libc::sockaddr {
        self.bytes.as_mut_ptr().cast()
    }

    /// Address of the length, for a C function that writes it.
    pub const fn len_pointer(&mut self) -> *mut u32 {
        &raw mut self.len
    }

    /// Copies the bytes out as [`Self::write`] does, of whatever family they are.
    ///
    /// # Safety
    /// As of [`Self::write`].
    pub unsafe fn copy_out(&self, address: *mut u8, len: *mut u32) {
        if address.is_null() || len.is_null() {
            return;
        }
        // SAFETY: `len` is valid by the caller's promise.
        let room = unsafe { len.read_unaligned() } as usize;
        let count = room.min(self.len as usize).min(ROOM);
        // SAFETY: `count` is at most the room that the caller promises and at most ROOM.
        unsafe { ptr::copy_nonoverlapping(self.bytes.as_ptr(), address, count) };
        // SAFETY: as above.
        unsafe { len.write_unaligned(self.len) };
    }

    /// Reads an address as a program passes it. `None` for other families and for lengths that the kernel would refuse.
    ///
    /// # Safety
    /// `address` is null or readable for `len` bytes.
    #[must_use]
    pub unsafe fn read(address: *const u8, len: u32) -> Option<SocketAddr> {
        let mut name = Self::room();
        let wanted = (len as usize).min(IP_ROOM as usize);
        // Longer than any address of the kernel.
        if address.is_null() || wanted < 2 || len > LONGEST {
            return None;
        }
        // SAFETY: the source is readable by the caller's promise, the room is longer, and they cannot overlap: `name` is new.
        unsafe { ptr::copy_nonoverlapping(address, name.bytes.as_mut_ptr(), wanted) };
        name.len = len;
        name.decode()
    }

    /// Writes an address as the kernel would: cut at `*len`, which then tells the whole length.
    ///
    /// # Safety
    /// `address` and `len` are both null, or `len` is valid and `address` is writable for `*len` bytes.
    pub unsafe fn write(from: SocketAddr, address: *mut u8, len: *mut u32) {
        // SAFETY: by the caller's promise.
        unsafe { Self::from(from).copy_out(address, len) };
    }

    /// Address of the bytes, for a system call.
    #[must_use]
    pub fn address(&self) -> usize {
        ptr::from_ref(&self.bytes).expose_provenance()
    }

    /// The address, `None` for other families or a length too short for its family.
    #[must_use]
    pub fn decode(&self) -> Option<SocketAddr> {
        let b = &self.bytes;
        let port = u16::from_be_bytes([b[2], b[3]]);
        match i32::from(u16::from_ne_bytes([b[0], b[1]])) {
            libc::AF_INET if self.len >= 16 => {
                let ip = Ipv4Addr::new(b[4], b[5], b[6], b[7]);
                Some(SocketAddrV4::new(ip, port).into())
            }
            // The kernel accepts the form without a scope id too (RFC 2133).
            libc::AF_INET6 if self.len >= 24 => {
                let flow = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
                let mut ip = [0; 16];
                ip.copy_from_slice(&b[8..24]);
                let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Name {
    fn from(from: SocketAddr) -> Self {
        let mut name = Self::room();
        let family = match from {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        // Families are below 2^16.
        name.bytes[0..2].copy_from_slice(&u16::try_from(family).unwrap_or(0).to_ne_bytes());
        name.bytes[2..4].copy_from_slice(&from.port().to_be_bytes());
        match from {
            SocketAddr::V4(v4) => {
                name.bytes[4..8].copy_from_slice(&v4.ip().octets());
                name.len = 16;
            }
            SocketAddr::V6(v6) => {
                name.bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                name.bytes[8..24].copy_from_slice(&v6.ip().octets());
                name.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        name
    }
}

/// The IPv4 address inside: of an IPv4 address itself, or of a v4-mapped one.
#[must_use]
pub const fn inner_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip() {
        for text in [
            "127.0.0.1:80",
            "0.0.0.0:0",
            "[::1]:65535",
            "[::ffff:127.77.0.1]:6379",
            "[fe80::1%3]:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Name::from(address).decode(), Some(address));
        }
    }

    #[test]
    fn short_and_foreign_names_are_none() {
        let mut name = Name::from(SocketAddr::from(([127, 0, 0, 1], 80)));
        name.len = 15;
        assert_eq!(name.decode(), None);
        let unix = [1_u8, 0, b'/', b'x'];
        // SAFETY: pointer and length of an array.
        assert_eq!(unsafe { Name::read(unix.as_ptr(), 4) }, None);
        // SAFETY: a null pointer is not read.
        assert_eq!(unsafe { Name::read(ptr::null(), 16) }, None);
    }

    #[test]
    fn written_names_are_cut_but_tell_their_length() {
        let mut bytes = [0xff_u8; 8];
        let mut len = 4_u32;
        let address = SocketAddr::from(([1, 2, 3, 4], 0x0506));
        // SAFETY: room of at least `len` bytes.
        unsafe { Name::write(address, bytes.as_mut_ptr(), &raw mut len) };
        assert_eq!(len, 16);
        assert_eq!(bytes[..6], [2, 0, 5, 6, 0xff, 0xff]);
    }
}
