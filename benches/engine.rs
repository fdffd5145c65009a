//! What the NIC's engine takes for a validated RDMA WRITE of 64 bytes, beside bare rings of elements as large as its WQE.
//!
//! Run: `cargo bench --bench engine`. One thread and warm caches: the work itself, without the way of a line from core to core
//! (`sanlab bench rdma write rate` has that). Posting and polling are not timed. Instructions of the same: `cargo test --release --test hot_path`.
#![expect(unsafe_code, reason = "the stage maps doorbells")]

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "../tests/hot_path/stage.rs"]
#[expect(dead_code, reason = "the test measures more of it")]
mod stage;

use stage::{Stage, WRITES};

fn engine(c: &mut Criterion) {
    let mut stage = Stage::new();
    let mut group = c.benchmark_group("64 bytes");
    group.throughput(Throughput::Elements(WRITES.into()));
    group.bench_function("engine: RDMA WRITE, 1 completion in 64", |b| {
        b.iter_custom(|batches| {
            let mut taken = Duration::ZERO;
            for _ in 0..batches {
                stage.post_writes();
                let begin = Instant::now();
                stage.serve_writes();
                taken += begin.elapsed();
                stage.take_writes();
            }
            taken
        });
    });
    group.bench_function("baseline: our ring, in and out", |b| {
        b.iter(|| stage.bare(true))
    });
    group.bench_function("baseline: rtrb, in and out", |b| {
        b.iter(|| stage.bare(false))
    });
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
