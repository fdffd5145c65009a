//! libFuzzer around the decoder of the session protocol: what a peer's switch may send.
//!
//! Place: `.ci/fuzz` runs it. Invariants: whatever is decoded keeps the bounds that its type promises. Source: docs/session.md.
#![no_main]

use switch::session::message::{
    Body, HEADER_LEN, MAX_BUFFER, MAX_HEAD, MAX_RECEIVES, MAX_RING, MIN_BUFFER, MIN_RECEIVES,
    MIN_RING, Message,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The receiver copies at most the longest head; the length is the completion's.
    let Ok(message) = Message::decode(&data[..data.len().min(MAX_HEAD)], data.len()) else {
        return;
    };
    match message.body {
        Body::Data { len, .. } => {
            assert_eq!(len as usize, data.len() - HEADER_LEN);
            assert!(len > 0);
        }
        Body::Hello(hello) | Body::HelloAck(hello) => {
            assert!((MIN_BUFFER..=MAX_BUFFER).contains(&hello.buffer_len));
            assert!((MIN_RECEIVES..=MAX_RECEIVES).contains(&hello.receives));
            assert!((MIN_RING..=MAX_RING).contains(&hello.ring_len));
            let end = u64::from(hello.data_offset) + hello.ring_len;
            assert!(end <= hello.ring.len && hello.ring.addr.checked_add(hello.ring.len).is_some());
        }
        Body::Credit | Body::Fin => assert_eq!(data.len(), HEADER_LEN),
        Body::Abort { .. } => assert_eq!(data.len(), HEADER_LEN),
    }
});
