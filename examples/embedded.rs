//! A driver without hardware, process or thread: two nodes inside this program, an RDMA WRITE between them, and time that passes only
//! when told to.
//!
//! `cargo run --example embedded`

use std::error::Error;
use std::fmt::Write;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use driver::function::Function;
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use nic_emu::Cluster;
use ring_proto::status::Opcode;
use ring_proto::wqe::WqeFlags;

/// What a node needs to talk: a queue pair, its completions, a page of memory.
struct End {
    qp: Qp,
    cq: Cq,
    page: Mr,
}

impl End {
    fn new(cluster: &Cluster, node: &str, rnr_retry: u32) -> Result<Self, Box<dyn Error>> {
        let function = Function::attach(Arc::new(cluster.attach(node)?))?;
        let pd = Pd::new(&function)?;
        let page = pd.register(
            4096,
            Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ,
        )?;
        let mut cq = Cq::new(&function, 64)?;
        let options = QpOptions {
            rnr_retry,
            ..QpOptions::default()
        };
        let qp = Qp::new(&pd, &mut cq, options)?;
        Ok(Self { qp, cq, page })
    }

    /// Posts a signaled work request from the start of the page, and rings.
    fn post(&mut self, opcode: Opcode, len: u32, remote: (u64, u32)) -> Result<(), Box<dyn Error>> {
        let sges = [self.page.sge(0, len)];
        self.qp.post_send(&SendWr {
            wr_id: 1,
            opcode,
            flags: WqeFlags::SIGNALED,
            imm: 0,
            payload: Payload::Sges(&sges),
            remote_addr: remote.0,
            rkey: remote.1,
        })?;
        self.qp.ring();
        Ok(())
    }
}

/// Runs the example and returns what it has to say.
///
/// # Errors
/// Whatever the device or the driver refuses.
pub(crate) fn run() -> Result<String, Box<dyn Error>> {
    let mut told = String::new();
    let cluster = Cluster::embedded().node("a").node("b").seed(7).build()?;
    // Two retries while the receiver is not ready; then a SEND fails.
    let mut a = End::new(&cluster, "a", 2)?;
    let mut b = End::new(&cluster, "b", 7)?;
    a.qp.connect(b.qp.address())?;
    b.qp.connect(a.qp.address())?;

    // The bytes go straight into b's page; b takes no part.
    a.page.write(0, b"written by a");
    a.post(Opcode::RDMA_WRITE, 12, (b.page.addr(), b.page.rkey().0))?;
    let done =
        a.cq.poll()
            .ok_or("the WRITE is done when the doorbell returns")?;
    let mut bytes = [0; 12];
    b.page.read(0, &mut bytes);
    writeln!(
        told,
        "{:?}: {} at {:?}",
        done.opcode,
        done.status,
        cluster.now()
    )?;
    writeln!(told, "b has: {}", String::from_utf8_lossy(&bytes))?;

    // A SEND that nobody receives waits: in virtual time for as long as we like.
    a.post(Opcode::SEND, 12, (0, 0))?;
    let waits = a.cq.poll().is_none();
    writeln!(told, "a SEND without a receive waits: {waits}")?;
    let failed = loop {
        if let Some(failed) = a.cq.poll() {
            break failed;
        }
        if !cluster.advance_to_next_timer() {
            return Err("nothing more will ever happen".into());
        }
    };
    writeln!(told, "SEND: {} / {}", failed.status, failed.syndrome)?;
    let gave_up = cluster.now() > Duration::ZERO && cluster.now() < Duration::from_secs(1);
    writeln!(told, "it gave up within a virtual second: {gave_up}")?;
    let counters = cluster.counters("a")?;
    writeln!(
        told,
        "a's NIC sent {} bytes of payload",
        counters.tx_payload_bytes
    )?;
    Ok(told)
}

fn main() -> Result<(), Box<dyn Error>> {
    std::io::stdout().write_all(run()?.as_bytes())?;
    Ok(())
}
