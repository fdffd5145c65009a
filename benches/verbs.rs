//! Messages through the device: embedded in this thread, and served by an engine thread, beside a Unix socket pair.
//!
//! Run: `cargo bench --bench verbs`. A round trip is one 64-byte SEND each way. Both ends belong to this thread, which polls and yields;
//! the engine thread yields too, so two cores or one give different numbers. Say which machine a number is of.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use driver::cq::Wc;
use driver::function::Function;
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use driver::vfio::client::Client;
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;

use nic_emu::server::{DeviceSocket, NodeSpec, Server};
use ring_proto::attach::Attachment;
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::wqe::WqeFlags;

/// Bytes of a message in a round trip.
const LEN: u32 = 64;
/// Messages of a batch.
const BATCH: u32 = 16;
/// Bytes of a long message.
const LONG: u32 = 64 * 1024;

struct End {
    qp: Qp,
    cq: Cq,
    memory: Mr,
}

impl End {
    fn new(attachment: Arc<dyn Attachment>) -> Self {
        let function = Function::attach(attachment).expect("our own device");
        let pd = Pd::new(&function).expect("a protection domain");
        let memory = pd.register(2 * LONG, Access::LOCAL_WRITE).expect("memory");
        let mut cq = Cq::new(&function, 64).expect("a CQ");
        let qp = Qp::new(&pd, &mut cq, QpOptions::default()).expect("a QP");
        Self { qp, cq, memory }
    }

    fn post_recv(&mut self, len: u32) {
        let sges = [self.memory.sge(LONG, len)];
        self.qp.post_recv(1, &sges).expect("room in the queue");
    }

    fn post_send(&mut self, len: u32) {
        let sges = [self.memory.sge(0, len)];
        let wr = SendWr {
            wr_id: 2,
            opcode: Opcode::SEND,
            flags: WqeFlags::SIGNALED,
            imm: 0,
            payload: Payload::Sges(&sges),
            remote_addr: 0,
            rkey: 0,
        };
        self.qp.post_send(&wr).expect("room in the queue");
    }

    fn wait(&mut self) -> Wc {
        loop {
            if let Some(wc) = self.cq.poll() {
                assert_eq!(wc.status, WcStatus::SUCCESS);
                return wc;
            }
            thread::yield_now();
        }
    }
}

/// `count` messages one way; returns when both ends know of the last one.
fn one_way(from: &mut End, to: &mut End, count: u32, len: u32) {
    for _ in 0..count {
        to.post_recv(len);
    }
    to.qp.ring();
    for _ in 0..count {
        from.post_send(len);
    }
    from.qp.ring();
    for _ in 0..count {
        to.wait();
    }
    for _ in 0..count {
        from.wait();
    }
}

fn measure(c: &mut Criterion, name: &str, attach: impl Fn() -> Arc<dyn Attachment>) {
    let mut near = End::new(attach());
    let mut far = End::new(attach());
    near.qp.connect(far.qp.address()).expect("a QP in INIT");
    far.qp.connect(near.qp.address()).expect("a QP in INIT");
    let mut group = c.benchmark_group(name);
    group.bench_function("round trip, 64 bytes", |b| {
        b.iter(|| {
            one_way(&mut near, &mut far, 1, LEN);
            one_way(&mut far, &mut near, 1, LEN);
        });
    });
    group.throughput(Throughput::Elements(BATCH.into()));
    group.bench_function("batch of 16, 64 bytes each", |b| {
        b.iter(|| one_way(&mut near, &mut far, BATCH, LEN));
    });
    group.throughput(Throughput::Bytes(LONG.into()));
    group.bench_function("one message of 64 KiB", |b| {
        b.iter(|| one_way(&mut near, &mut far, 1, LONG));
    });
    group.finish();
}

fn embedded(c: &mut Criterion) {
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
    measure(c, "embedded device", || {
        Arc::new(device.attach(node).expect("room for a function"))
    });
}

fn threaded(c: &mut Criterion) {
    let directory = std::env::temp_dir().join(format!("sanlab-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the socket");
    let path = directory.join("nic0.sock");
    let node = NodeSpec {
        name: "a".to_owned(),
        addresses: Vec::new(),
        limits: nic_emu::device::Limits::default(),
    };
    let server = Server::start_devices(vec![DeviceSocket {
        node,
        path: path.clone(),
    }])
    .expect("a device server");
    let stop = server.stop_handle();
    let server = thread::spawn(move || server.run());
    measure(c, "device behind vfio-user", || {
        Arc::new(Client::connect(&path).expect("the server accepts"))
    });
    stop.stop();
    server
        .join()
        .expect("the server does not panic")
        .expect("the server ends well");
    std::fs::remove_dir_all(&directory).expect("our own directory");
}

fn baseline(c: &mut Criterion) {
    let (mut near, mut far) = UnixStream::pair().expect("a socket pair");
    let mut buffer = [0; LEN as usize];
    c.benchmark_group("baseline: Unix socket pair, same thread")
        .bench_function("round trip, 64 bytes", |b| {
            b.iter(|| {
                near.write_all(&[1; LEN as usize]).expect("room");
                far.read_exact(&mut buffer).expect("64 bytes");
                far.write_all(&buffer).expect("room");
                near.read_exact(&mut buffer).expect("64 bytes");
            });
        });
}

criterion_group!(benches, embedded, threaded, baseline);
criterion_main!(benches);
