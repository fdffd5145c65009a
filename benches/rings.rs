//! Single operations of the shared-memory contract, beside what the standard library offers for the same job.
//!
//! Run: `cargo bench --bench rings`. One thread: what a batch costs when its lines are in the cache.
#![expect(
    unsafe_code,
    reason = "makes ring and doorbell views over private memory"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::mpsc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring_proto::arm;
use ring_proto::copy;
use ring_proto::doorbell;
use ring_proto::index::Depth;
use ring_proto::shared::{Bar2, CqeRing, WqeRing};
use ring_proto::sync::Ordering;
use ring_proto::uar;

/// Page-aligned zeroed memory.
struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(len: u64) -> Self {
        let len = usize::try_from(len).expect("some megabytes");
        let layout = Layout::from_size_align(len, 4096).expect("a power of two");
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("some megabytes are free");
        Self { base, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

fn rings(c: &mut Criterion) {
    let depth = Depth::new(64).expect("a power of two");
    let memory = Memory::new(2 * WqeRing::bytes(depth));
    // SAFETY: 1. aligned, and more than long enough for 64 blocks. 2. only this view touches the first half.
    let wqes = unsafe { WqeRing::new(memory.base.cast(), depth) };
    let half = usize::try_from(WqeRing::bytes(depth)).expect("4 KiB");
    // SAFETY: the second half of the allocation.
    let second = unsafe { memory.base.add(half) };
    // SAFETY: 1. aligned, and longer than 64 CQEs. 2. only this view touches the second half.
    let cqes = unsafe { CqeRing::new(second.cast(), depth) };

    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(1));
    let mut position = 0_u32;
    group.bench_function("write a WQE block", |b| {
        b.iter(|| {
            wqes.write(black_box(position), black_box(&[7; 8]));
            position = position.wrapping_add(1);
        });
    });
    group.bench_function("snapshot a WQE block", |b| {
        b.iter(|| {
            position = position.wrapping_add(1);
            wqes.snapshot(black_box(position))
        });
    });
    position = 0;
    group.bench_function("publish and take a CQE", |b| {
        b.iter(|| {
            let phase = u64::from(depth.phase(position)) << 56;
            cqes.publish(position, black_box(&[1, 2, 3, phase]));
            let taken = cqes.published(black_box(position));
            position = position.wrapping_add(1);
            taken
        });
    });
    group.bench_function("look at an empty CQ", |b| {
        b.iter(|| cqes.published(black_box(position)));
    });
    let (sender, receiver) = mpsc::channel::<[u64; 4]>();
    group.bench_function("baseline: mpsc send and try_recv", |b| {
        b.iter(|| {
            sender
                .send(black_box([1, 2, 3, 4]))
                .expect("the receiver lives");
            receiver.try_recv()
        });
    });
    group.finish();
}

fn doorbells(c: &mut Criterion) {
    let memory = Memory::new(uar::BAR2_LEN);
    // SAFETY: 1. page aligned, of that length, and freed after the last use. 2. only the view touches it.
    let bar = unsafe { Bar2::new(memory.base) };
    let line = bar.line(70);
    let bits = bar.dirty_bits(70);
    let mut producer = 0_u32;

    let mut group = c.benchmark_group("doorbell");
    group.bench_function("ring, the NIC knows of the slot", |b| {
        b.iter(|| {
            producer = producer.wrapping_add(1);
            doorbell::ring(line.sq_producer(), black_box(producer), bits, bar.parked())
        });
    });
    group.bench_function("ring and take", |b| {
        b.iter(|| {
            producer = producer.wrapping_add(1);
            let kick = doorbell::ring(line.sq_producer(), black_box(producer), bits, bar.parked());
            let uars = doorbell::take(bits.uars);
            let slots = doorbell::take(bits.slots);
            doorbell::after_take();
            (
                kick,
                uars,
                slots,
                line.sq_producer().load(Ordering::Acquire),
            )
        });
    });
    group.bench_function("look at a function without news", |b| {
        b.iter(|| (0..8).any(|word| doorbell::is_marked(bar.uar_dirty(black_box(word)))));
    });
    group.bench_function("arm", |b| {
        b.iter(|| arm::arm(line.arm_vectors(), line.arm_sequence(), black_box(1), 1));
    });
    group.bench_function("fire, nobody sleeps", |b| {
        line.arm_vectors().store(0, Ordering::Relaxed);
        b.iter(|| arm::fire(black_box(line.arm_vectors())));
    });
    group.finish();
}

fn copies(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    for len in [64_usize, 4096, 65_536] {
        let source = vec![1_u8; len];
        let mut target = vec![0_u8; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter(|| {
                let (to, from) = (black_box(target.as_mut_ptr()), black_box(source.as_ptr()));
                // SAFETY: 1. both are `len` bytes long. 2. they are different allocations. 3. no other thread knows of them.
                unsafe { copy::copy(to, from, len) };
            });
        });
        group.bench_function(format!("baseline: memcpy, {len} bytes"), |b| {
            b.iter(|| black_box(&mut target).copy_from_slice(black_box(&source)));
        });
    }
    group.finish();
}

criterion_group!(benches, rings, doorbells, copies);
criterion_main!(benches);
