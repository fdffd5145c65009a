//! The seed page "Creating and Binding SAN Sockets", requirement by requirement, over recording doubles.
//!
//! Each test is named by its number in the reference; docs/wsd.md maps numbers, code and tests.

mod choosing;
mod companion;
mod provider;
#[expect(dead_code, reason = "each test file uses its own part of the world")]
#[path = "../world/mod.rs"]
mod world;

use core::net::Ipv4Addr;

const WILDCARD: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn one() -> [u8; 4] {
    1_i32.to_ne_bytes()
}

fn send_all(socket: &switch::SwitchSocket, bytes: &[u8]) {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let conn = socket.conn().expect("established");
    assert_eq!(conn.send(&[part], 0), Ok(bytes.len()));
}

fn receive(socket: &switch::SwitchSocket, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut have = 0;
    for _ in 0..1000 {
        let part = libc::iovec {
            iov_base: bytes[have..].as_mut_ptr().cast(),
            iov_len: len - have,
        };
        match socket.conn().expect("established").recv(&[part], 0) {
            Ok(0) => panic!("end of stream after {have} bytes"),
            Ok(more) => have += more,
            Err(libc::EAGAIN) => {}
            Err(errno) => panic!("errno {errno} after {have} bytes"),
        }
        if have == len {
            return bytes;
        }
    }
    panic!("only {have} of {len} bytes came");
}

fn receive_error(socket: &switch::SwitchSocket) -> i32 {
    let mut byte = [0_u8; 1];
    let part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    for _ in 0..1000 {
        match socket.conn().expect("established").recv(&[part], 0) {
            Err(libc::EAGAIN) => {}
            Err(errno) => return errno,
            Ok(n) => panic!("{n} bytes where an error should be"),
        }
    }
    panic!("no error comes");
}
