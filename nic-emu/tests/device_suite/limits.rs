//! Limits of a node: of all its functions together, and of no other node's.

use nic_emu::device::{DeviceError, LimitRow, Limits, Resource, Topic, WindowRequest};
use ring_proto::admin::{AdminOp, AdminStatus, Body, MwAlloc};
use ring_proto::regs;

use crate::client::{BASE, CQ_DEPTH, Client, MEMORY, RQ_DEPTH, SQ_DEPTH, device, full};

fn limits(of: &[(Resource, u64)]) -> Limits {
    let mut limits = Limits::default();
    for &(resource, limit) in of {
        limits.set(resource, limit).unwrap();
    }
    limits
}

#[test]
fn queue_pairs_of_a_node_are_counted_over_its_functions() {
    let (mut device, a, b) = device();
    device.limit_node(a, limits(&[(Resource::Qps, 2)]));
    let mut one = Client::attach(&mut device, a);
    let mut two = Client::attach(&mut device, a);
    let mut other = Client::attach(&mut device, b);
    let first = one.qp(&mut device);
    let _second = two.qp(&mut device);
    let cq = two.cq(&mut device, CQ_DEPTH);
    let pdn = two.pdn;
    let plan = two.plan_qp((SQ_DEPTH, RQ_DEPTH), cq.0, pdn, full());
    let refused = two.status(&mut device, AdminOp::QP_CREATE, plan.to_body());
    assert_eq!(refused, AdminStatus::NO_RESOURCE);
    // Of another node, as many as it likes.
    for _ in 0..3 {
        other.qp(&mut device);
    }
    assert_eq!(
        one.named(&mut device, AdminOp::QP_DESTROY, first.qpn),
        AdminStatus::OK
    );
    two.ok(&mut device, AdminOp::QP_CREATE, plan.to_body());
    let rows = device.inspect(&[Topic::Limits]).limits;
    let row = |node: &str, used, limit| LimitRow {
        node: node.into(),
        resource: Resource::Qps,
        used,
        limit,
    };
    assert!(rows.contains(&row("a", 2, Some(2))), "{rows:?}");
    assert!(rows.contains(&row("b", 3, None)), "{rows:?}");
}

#[test]
fn every_object_of_a_command_has_its_limit() {
    let (mut device, a, _) = device();
    let mut client = Client::attach(&mut device, a);
    let mut used: Vec<(Resource, u64)> = Vec::new();
    for row in device.inspect(&[Topic::Limits]).limits {
        if row.node == "a" {
            used.push((row.resource, row.used));
        }
    }
    device.limit_node(a, limits(&used));
    let cq = client.plan_cq(CQ_DEPTH).to_body();
    let pdn = client.pdn;
    let region = client.plan_region(4096, pdn, full()).to_body();
    let srq = client.plan_srq(RQ_DEPTH, pdn).to_body();
    for (op, body) in [
        (AdminOp::PD_ALLOC, Body::default()),
        (AdminOp::CQ_CREATE, cq),
        (AdminOp::MR_REG, region),
        (AdminOp::SRQ_CREATE, srq),
        (AdminOp::MW_ALLOC, MwAlloc { pdn, kind: 1 }.to_body()),
    ] {
        let refused = client.status(&mut device, op, body);
        assert_eq!(refused, AdminStatus::NO_RESOURCE, "{op}");
        device.limit_node(a, Limits::default());
        client.ok(&mut device, op, body);
        device.limit_node(a, limits(&used));
    }
}

#[test]
fn registers_tell_the_limits_of_the_node() {
    let (mut device, a, b) = device();
    device.limit_node(a, limits(&[(Resource::Qps, 4), (Resource::Mws, 0)]));
    let (one, other) = (device.attach(a).unwrap(), device.attach(b).unwrap());
    let mut read = |function, register| device.read_register(function, register, 4).unwrap();
    assert_eq!((read(one, regs::MAX_QP), read(one, regs::MAX_MW)), (4, 0));
    assert_eq!(read(one, regs::MAX_CQ), Resource::Cqs.most());
    assert_eq!(read(other, regs::MAX_QP), Resource::Qps.most());
}

#[test]
fn functions_windows_and_their_bytes_are_limited() {
    let (mut device, a, _) = device();
    let three_quarters = MEMORY + MEMORY / 2;
    device.limit_node(
        a,
        limits(&[(Resource::Functions, 2), (Resource::Memory, three_quarters)]),
    );
    let one = Client::attach(&mut device, a);
    let function = device.attach(a).unwrap();
    let window = |iova, len| WindowRequest {
        fd: None,
        offset: 0,
        iova,
        len,
        read: false,
        write: false,
    };
    let refused = device.map(function, window(BASE, MEMORY));
    assert!(
        matches!(refused, Err(DeviceError::Limit { what: "memory", limit }) if limit == three_quarters),
        "{refused:?}"
    );
    device.map(function, window(BASE, MEMORY / 2)).unwrap();
    let refused = device.attach(a);
    assert!(
        matches!(
            refused,
            Err(DeviceError::Limit {
                what: "functions",
                limit: 2
            })
        ),
        "{refused:?}"
    );
    device.limit_node(a, limits(&[(Resource::Windows, 2)]));
    let refused = device.map(function, window(2 * BASE + 2 * MEMORY, 4096));
    assert!(
        matches!(
            refused,
            Err(DeviceError::Limit {
                what: "windows",
                ..
            })
        ),
        "{refused:?}"
    );
    device.detach(one.function);
    device
        .map(function, window(2 * BASE + 2 * MEMORY, 4096))
        .unwrap();
}
