//! Readiness of a connection, bit for bit as kernel TCP would show it.
//!
//! Place: poll, select and epoll of the preload library ask after each [`Conn::progress`].
//! Invariants: no token is taken; the answer follows from words that the two directions publish. The mask is that of the kernel's
//! `tcp_poll`, with its shutdown mask and its rule of when a socket is writable. Edge counters grow whenever the kernel would call
//! the socket's wait queue, so an edge-triggered set reports by comparing.
//! Hot: everything here. Source; Linux net/ipv4/tcp.c, `tcp_poll`.

use ring_proto::sync::Ordering;

use super::conn::Conn;
use super::credit;
use super::record::flag;

mod mask {
    pub(super) const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
    pub(super) const OUT: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32;
    pub(super) const PRI: u32 = libc::EPOLLPRI as u32;
    pub(super) const RDHUP: u32 = libc::EPOLLRDHUP as u32;
    pub(super) const HUP: u32 = libc::EPOLLHUP as u32;
    pub(super) const ERR: u32 = libc::EPOLLERR as u32;
}

impl Conn {
    /// The `EPOLL*` bits now.
    #[must_use]
    pub fn readiness(&self) -> u32 {
        let r = self.record.get();
        let flags = r.flags();
        let receive_ended = flags & (flag::FIN_SEEN | flag::READ_SHUT | flag::RESET) != 0;
        let send_ended = flags & (flag::WRITE_SHUT | flag::RESET) != 0;
        let mut bits = 0;
        if receive_ended && send_ended {
            bits |= mask::HUP;
        }
        if receive_ended {
            bits |= mask::IN | mask::RDHUP;
        }
        if flags & (flag::ESTABLISHED | flag::RESET) != 0 {
            if self.is_readable() {
                bits |= mask::IN;
            }
            if send_ended || flags & (flag::GONE | flag::ORPHANED) != 0 || self.is_writable() {
                bits |= mask::OUT;
            }
        }
        if self.has_urgent() {
            bits |= mask::PRI;
        }
        // Relaxed: a hint; `take_error` takes it.
        if r.error.load(Ordering::Relaxed) != 0 || self.has_notice() {
            bits |= mask::ERR;
        }
        bits
    }

    /// Counters that grow with each new readable and writable edge, for edge-triggered sets.
    #[must_use]
    pub fn edge_counter(&self) -> (u64, u64) {
        let r = self.record.get();
        // Relaxed: compared for being equal.
        (
            r.in_edge.load(Ordering::Relaxed),
            r.out_edge.load(Ordering::Relaxed),
        )
    }

    /// Tells that the program found the socket not writable and waits: the next room is an edge, as in the kernel.
    pub fn note_no_space(&self) {
        self.record.get().set(flag::NO_SPACE);
    }

    /// Sets the bytes from which the socket counts as readable (`SO_RCVLOWAT`).
    pub fn set_receive_low_water(&self, bytes: u32) {
        // Relaxed: a limit.
        self.record
            .get()
            .recv_low_water
            .store(bytes, Ordering::Relaxed);
    }

    /// Whether enough bytes are here, or no more can come before some are taken.
    fn is_readable(&self) -> bool {
        let bytes = self.readable_bytes().saturating_sub(self.passed_over());
        let r = self.record.get();
        // Relaxed: limits and estimates.
        let low_water = r.recv_low_water.load(Ordering::Relaxed).max(1) as usize;
        if bytes >= low_water {
            return true;
        }
        let (position, bias) = r.recv_position();
        let peers_credit = credit::available(
            r.reported.load(Ordering::Relaxed),
            position.wrapping_add(bias),
        );
        bytes > 0 && peers_credit < credit::Spend::Data.needs()
    }

    /// The kernel's rule: at least a third of the send buffer is free.
    pub(super) fn is_writable(&self) -> bool {
        let ring = self.send_ring();
        // Relaxed: a limit.
        let limit = self.record.get().send_limit.load(Ordering::Relaxed);
        let room = ring.room(limit);
        room > 0 && room >= ring.used() / 2
    }
}
