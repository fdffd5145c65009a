//! Telemetry files, channel messages, and what is said on the control socket.
//!
//! Place: [`super::seeds`]. Source: ours.

use ring_proto::channel::{self, Message};
use ring_proto::telemetry;
use zerocopy::IntoBytes;

use super::Seed;

pub(super) fn records(seeds: &mut Vec<Seed>) {
    let mut header: telemetry::Header = zerocopy::FromZeros::new_zeroed();
    header.magic = telemetry::MAGIC;
    header.pid = 7;
    header.san_tx_bytes = 9;
    header.entries_used = 1;
    header.program[..4].copy_from_slice(b"prog");
    let entry = telemetry::Entry {
        state: telemetry::LIVE,
        road: telemetry::ROAD_SAN,
        local: std::net::SocketAddr::from(([10, 0, 0, 1], 9)).into(),
        remote: std::net::SocketAddr::from(([10, 0, 0, 2], 9)).into(),
        tx_bytes: 5,
        rx_bytes: 6,
        accepted: 7,
        taken: 4,
        unsent: 2,
        flow: 3 | (1 << 32),
    };
    let file = [header.as_bytes(), entry.as_bytes()].concat();
    seeds.push(("telemetry", "file".into(), file));
    seeds.push(("telemetry", "header".into(), header.as_bytes().to_vec()));
    header.entries_used = u64::MAX;
    let lie = [header.as_bytes(), &[1; 800]].concat();
    seeds.push(("telemetry", "lie".into(), lie));
    for (name, kind, fds) in [
        ("process", channel::PROCESS, 1),
        ("open_function", channel::OPEN_FUNCTION, 1),
        ("holder", channel::HOLDER, 0),
        ("telemetry_message", channel::TELEMETRY, 1),
    ] {
        let message = Message::new(kind, 1, 2, 3);
        let bytes = [&[fds], message.as_bytes()].concat();
        seeds.push(("channel", name.into(), bytes));
    }
    for (name, text) in [
        ("ping", r#"{"cmd":"ping"}"#),
        ("inspect", r#"{"cmd":"inspect","topics":["qps"]}"#),
        ("recorder", r#"{"cmd":"recorder","function":1}"#),
        (
            "link",
            r#"{"cmd":"link","from":"a","to":"b","parameters":{"up":true,"latency_ns":1,"loss_ppm":1}}"#,
        ),
        ("ask_channel", r#"{"cmd":"channel","node":"a"}"#),
        (
            "note",
            r#"{"cmd":"note","node":"a","program":"p","pid":7,"reason":"go_binary"}"#,
        ),
        (
            "cluster",
            r#"{"name":"c","dir":"/d","nodes":[{"name":"a","addresses":["127.77.0.1/24"]}]}"#,
        ),
    ] {
        seeds.push(("control", name.into(), [&[0xff], text.as_bytes()].concat()));
    }
}
