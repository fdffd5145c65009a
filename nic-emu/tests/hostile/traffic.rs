//! A well-behaved pair of clients that moves checked data for as long as a test goes on.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use ring_proto::status::{Opcode, WcStatus};
use ring_proto::sync::{AtomicU32, Ordering};

use super::Dice;
use super::harness::PATIENCE;
use super::live::{Live, RawQp, Region, Wc, full, join, wqe};
use super::process::Emulator;

/// Bytes of one message.
const MESSAGE: u32 = 3000;

/// Traffic on threads of its own.
pub(crate) struct Traffic {
    stop: Arc<AtomicU32>,
    thread: JoinHandle<u64>,
}

impl Traffic {
    /// Starts a pair on nodes a and b.
    pub(crate) fn start(emulator: &Emulator, port: u16) -> Self {
        let mut pair = Pair::new(emulator, port);
        let stop = Arc::new(AtomicU32::new(0));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            // Relaxed: nothing else is told by it.
            while asked.load(Ordering::Relaxed) == 0 {
                pair.round(rounds);
                rounds += 1;
            }
            rounds
        });
        Self { stop, thread }
    }

    /// Ends it; every byte was right. Gives the number of rounds, which is not 0.
    pub(crate) fn finish(self) -> u64 {
        self.stop.store(1, Ordering::Relaxed);
        let rounds = self.thread.join().unwrap();
        assert!(rounds > 0, "the well-behaved client got nothing done");
        rounds
    }
}

/// Two connected clients.
pub(crate) struct Pair {
    a: Live,
    b: Live,
    qa: RawQp,
    qb: RawQp,
    from: Region,
    to: Region,
}

impl Pair {
    pub(crate) fn new(emulator: &Emulator, port: u16) -> Self {
        let mut a = Live::attach(&emulator.device("a"));
        let mut b = Live::attach(&emulator.device("b"));
        let (qa, qb) = (a.qp().unwrap(), b.qp().unwrap());
        join((&mut a, qa.qpn), (&mut b, qb.qpn), port).unwrap();
        let from = a.region(2 * u64::from(MESSAGE), full()).unwrap();
        let to = b.region(2 * u64::from(MESSAGE), full()).unwrap();
        Self {
            a,
            b,
            qa,
            qb,
            from,
            to,
        }
    }

    /// A SEND and a WRITE there, a READ back; all of it compared.
    pub(crate) fn round(&mut self, seed: u64) {
        let len = MESSAGE as usize;
        let half = u64::from(MESSAGE);
        let sent = bytes(seed, len);
        self.a.write(self.from.iova, &sent);
        self.b
            .post_recv(&mut self.qb, seed, self.to.sge(0, MESSAGE));
        let send = wqe(Opcode::SEND, seed, self.from.sge(0, MESSAGE));
        self.a.post_send(&mut self.qa, &send);
        let received = await_completion(&self.b, &mut self.qb);
        assert_eq!(
            (received.wr_id, received.status, received.byte_len),
            (seed, WcStatus::SUCCESS, MESSAGE)
        );
        assert_eq!(self.b.read(self.to.iova, len), sent);
        self.done(seed);
        let mut write = wqe(Opcode::RDMA_WRITE, seed, self.from.sge(0, MESSAGE));
        (write.remote_addr, write.rkey) = (self.to.iova + half, self.to.key);
        self.a.post_send(&mut self.qa, &write);
        self.done(seed);
        let mut read = wqe(Opcode::RDMA_READ, seed, self.from.sge(half, MESSAGE));
        (read.remote_addr, read.rkey) = (self.to.iova + half, self.to.key);
        self.a.post_send(&mut self.qa, &read);
        self.done(seed);
        assert_eq!(self.b.read(self.to.iova + half, len), sent);
        assert_eq!(self.a.read(self.from.iova + half, len), sent);
    }

    fn done(&mut self, seed: u64) {
        let wc = await_completion(&self.a, &mut self.qa);
        assert_eq!((wc.wr_id, wc.status), (seed, WcStatus::SUCCESS), "{wc:?}");
    }
}

fn await_completion(live: &Live, qp: &mut RawQp) -> Wc {
    let start = Instant::now();
    loop {
        if let Some(wc) = live.take_wc(qp) {
            return wc;
        }
        assert!(!live.is_failed(), "the well-behaved function failed");
        assert!(start.elapsed() < PATIENCE, "no completion");
        std::thread::yield_now();
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..len.div_ceil(8))
        .flat_map(|_| dice.next().to_le_bytes())
        .take(len)
        .collect()
}
