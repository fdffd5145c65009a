//! Single operations of the driver, of the session protocol, and of the look-up that every hook begins with.
//!
//! Run: `cargo bench --bench operations`. One thread and warm caches. Instructions of the driver's: `cargo test --release --test hot_path`; the
//! engine's operations are in the bench of that name, those of the shared memory in `rings`.
#![expect(unsafe_code, reason = "the stage maps doorbells")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use switch::place::Shape;
use switch::session::message::{HEADER_LEN, Header, Message, kind};
use switch::table::Table;
use switch::tcp::Endpoint;

#[path = "../tests/hot_path/stage.rs"]
mod stage;

use stage::{BATCH, Stage, WRITES};

/// Times one step of a round; the rest of it is not counted.
fn timed<M: criterion::measurement::Measurement<Value = Duration>>(
    group: &mut BenchmarkGroup<'_, M>,
    name: &str,
    mut round: impl FnMut() -> Duration,
) {
    group.bench_function(name, |b| {
        b.iter_custom(|rounds| (0..rounds).map(|_| round()).sum());
    });
}

fn driver(c: &mut Criterion) {
    let mut stage = Stage::new();
    let mut group = c.benchmark_group("driver");
    group.throughput(Throughput::Elements(WRITES.into()));
    timed(
        &mut group,
        "post RDMA WRITEs of 64 bytes, ring once",
        || {
            let begin = Instant::now();
            stage.post_writes();
            let taken = begin.elapsed();
            stage.serve_writes();
            stage.take_writes();
            taken
        },
    );
    group.throughput(Throughput::Elements((2 * BATCH).into()));
    timed(&mut group, "poll completions", || {
        stage.leave_completions();
        let begin = Instant::now();
        stage.take_completions();
        begin.elapsed()
    });
    group.finish();
}

fn session(c: &mut Criterion) {
    let header = Header {
        kind: kind::DATA,
        sequence: 7,
        payload_len: 64,
        stream_offset: 1 << 20,
        credit_total: 100,
        ..Header::default()
    };
    let bytes = header.encode();
    let mut group = c.benchmark_group("session");
    group.bench_function("encode a DATA header", |b| {
        b.iter(|| black_box(&header).encode())
    });
    group.bench_function("decode a DATA header", |b| {
        b.iter(|| Message::decode(black_box(&bytes), HEADER_LEN + 64));
    });
    group.finish();
}

fn hooks(c: &mut Criterion) {
    static TABLE: Table = Table::new();
    const SOCKET: i32 = 5;
    let inserted = TABLE.insert(SOCKET, &Endpoint::new(Shape::default()), None);
    assert!(inserted.is_some(), "an empty table has room");
    drop(inserted);
    let mut group = c.benchmark_group("hook");
    group.bench_function("look up a descriptor that is none of ours", |b| {
        b.iter(|| TABLE.peek(black_box(SOCKET + 1)).is_some());
    });
    group.bench_function("look up a socket", |b| {
        b.iter(|| TABLE.peek(black_box(SOCKET)).is_some());
    });
    group.bench_function("look up a socket and hold it", |b| {
        b.iter(|| TABLE.get(black_box(SOCKET)).is_some());
    });
    group.finish();
}

criterion_group!(benches, driver, session, hooks);
criterion_main!(benches);
