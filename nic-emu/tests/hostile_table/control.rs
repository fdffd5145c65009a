//! Requests of the control socket: each key of each request with values of other kinds and sizes, and what is answered.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nic_emu::control::{Note, Request, client};
use nic_emu::device::{Distribution, LinkChange, LinkParameters, Topic};
use serde_json::{Map, Value as Json, json};

use crate::harness::{Cluster, PATIENCE};

/// How a line is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// Done, or an object.
    Done,
    /// Refused, because the line is no request.
    NoRequest,
    /// A request, but it names what there is not.
    Refused,
}

use Answer::{Done, NoRequest, Refused};

/// Fields of an object.
fn map(value: Json) -> Map<String, Json> {
    let Json::Object(map) = value else {
        panic!("{value} is no object");
    };
    map
}

/// Requests of each kind, which together have every key. The match does not compile when there is another kind, or another key; the
/// fields of a fault rule are those that the emulator names itself.
fn requests() -> Vec<Request> {
    let change = LinkChange {
        up: Some(true),
        latency_ns: Some(0),
        jitter_ns: Some(0),
        jitter_distribution: Some(Distribution::Uniform),
        loss_ppm: Some(0),
        burst_enter_ppm: Some(0),
        burst_leave_ppm: Some(0),
        burst_loss_ppm: Some(0),
        reorder_ppm: Some(0),
        reorder_ns: Some(0),
        duplicate_ppm: Some(0),
        corrupt_ppm: Some(0),
        bandwidth_bps: Some(0),
        queue_bytes: Some(0),
        mtu_bytes: Some(0),
    };
    let mut all = vec![
        Request::Ping,
        Request::Stat,
        Request::Channel { node: "a".into() },
        Request::Namespaces { node: "a".into() },
        Request::Note(Note {
            node: "a".into(),
            program: "p".into(),
            pid: 7,
            reason: "go_binary".into(),
        }),
        Request::Link {
            from: "a".into(),
            to: "b".into(),
            parameters: LinkParameters::default(),
        },
        Request::LinkChange {
            from: "a".into(),
            to: "b".into(),
            both: true,
            change: map(serde_json::to_value(change).unwrap()),
        },
        Request::Heal,
        Request::Links,
        Request::Port {
            node: "a".into(),
            up: true,
        },
        Request::FaultLs { id: None },
        Request::FaultRm { id: None },
        Request::Advance { ns: 1 },
        Request::Inspect {
            topics: vec![Topic::Qps],
        },
        Request::Recorder { function: Some(1) },
        Request::Capture {
            nodes: vec!["a".into()],
            snaplen: 64,
            ring_bytes: 65_536,
        },
        // Not last: the engine goes on after it.
        Request::Pause,
        Request::Step,
        Request::Continue,
        Request::Shutdown,
    ];
    all.extend(fault_rules().map(|rule| Request::FaultAdd { rule }));
    let kind = |request: &Request| match request {
        Request::Ping => 0,
        Request::Stat => 1,
        Request::Channel { node: _ } => 2,
        Request::Note(Note {
            node: _,
            program: _,
            pid: _,
            reason: _,
        }) => 3,
        Request::Link {
            from: _,
            to: _,
            parameters: _,
        } => 4,
        Request::LinkChange {
            from: _,
            to: _,
            both: _,
            change: _,
        } => 5,
        Request::Heal => 6,
        Request::Links => 7,
        Request::Port { node: _, up: _ } => 8,
        Request::FaultLs { id: _ } => 9,
        Request::FaultRm { id: _ } => 10,
        Request::Inspect { topics: _ } => 11,
        Request::Recorder { function: _ } => 12,
        Request::Pause => 13,
        Request::Step => 14,
        Request::Continue => 15,
        Request::Shutdown => 16,
        Request::FaultAdd { rule: _ } => 17,
        Request::Advance { ns: _ } => 18,
        Request::Namespaces { node: _ } => 19,
        Request::Capture {
            nodes: _,
            snaplen: _,
            ring_bytes: _,
        } => 20,
    };
    let kinds: BTreeSet<_> = all.iter().map(kind).collect();
    assert!(kinds.into_iter().eq(0..21));
    all
}

/// Rules that together have every field.
fn fault_rules() -> impl Iterator<Item = Map<String, Json>> {
    [
        json!({"at": "wqe", "action": "status", "status": "REM_OP_ERR", "node": "a", "function": 1, "qpn": 1, "opcode": "SEND", "nth": 1}),
        json!({"at": "packet", "action": "delay", "delay_ns": 5, "every": 2, "count": 3}),
        json!({"at": "packet", "action": "drop", "ppm": 5, "seed": 7}),
        json!({"at": "call", "action": "fail", "code": "WSAENOBUFS", "call": "wsp_bind"}),
    ]
    .into_iter()
    .map(map)
}

/// Values that a string is not.
const NO_STRING: &[(&str, Answer)] = &[
    ("null", NoRequest),
    ("7", NoRequest),
    ("true", NoRequest),
    ("[]", NoRequest),
    ("{}", NoRequest),
];
const NO_NODE: &[(&str, Answer)] = &[
    ("\"\"", Refused),
    ("\"c\"", Refused),
    ("\"a\\u0000\"", Refused),
    ("\"../a\"", Refused),
];
const NO_U64: &[(&str, Answer)] = &[
    ("null", NoRequest),
    ("-1", NoRequest),
    ("1.5", NoRequest),
    ("1e3", NoRequest),
    ("18446744073709551616", NoRequest),
    ("\"1\"", NoRequest),
    ("[1]", NoRequest),
];
const NO_U32: &[(&str, Answer)] = &[("4294967296", NoRequest)];
/// Those of an object whose fields the emulator looks at itself: an error names the field.
const BAD_NUMBER: &[(&str, Answer)] = &[
    ("-1", Refused),
    ("1.5", Refused),
    ("18446744073709551616", Refused),
    ("\"1\"", Refused),
    ("[1]", Refused),
    ("{}", Refused),
];
const BAD_U32: &[(&str, Answer)] = &[("4294967296", Refused)];
const BAD_STRING: &[(&str, Answer)] = &[
    ("7", Refused),
    ("true", Refused),
    ("[]", Refused),
    ("{}", Refused),
    ("\"\"", Refused),
    ("\"nothing\"", Refused),
];
const NO_BOOLEAN: &[(&str, Answer)] =
    &[("null", NoRequest), ("1", NoRequest), ("\"no\"", NoRequest)];
/// Parts per million.
const PPM: &[(&str, Answer)] = &[
    ("1000000", Done),
    ("1000001", Refused),
    ("4294967295", Refused),
];

/// Bytes that no link can have as its MTU.
const MTU: &[(&str, Answer)] = &[
    ("1", Refused),
    ("575", Refused),
    ("9217", Refused),
    ("4294967295", Refused),
];

/// The rows: request and key, and what the values of the key are answered with.
fn rows(request: &str, key: &str) -> Option<Vec<(&'static str, Answer)>> {
    let lists: &[&[(&str, Answer)]] = match (request, key) {
        (_, "cmd") => &[
            NO_STRING,
            &[
                ("\"\"", NoRequest),
                ("\"reboot\"", NoRequest),
                ("\"Ping\"", NoRequest),
            ],
        ],
        ("channel" | "namespaces" | "note" | "port", "node")
        | ("link" | "link_change", "from" | "to") => &[NO_STRING, NO_NODE],
        ("port", "up") | ("link_change", "both") => &[NO_BOOLEAN, &[("false", Done)]],
        ("link_change", "change") => &[&[
            ("null", NoRequest),
            ("7", NoRequest),
            ("[]", NoRequest),
            ("{\"speed\":1}", Refused),
        ]],
        ("link_change.change", "up") => &[&[("1", Refused), ("\"no\"", Refused), ("false", Done)]],
        (
            "link_change.change",
            "latency_ns" | "jitter_ns" | "reorder_ns" | "bandwidth_bps" | "queue_bytes",
        ) => &[BAD_NUMBER],
        ("link_change.change", "mtu_bytes") => &[BAD_NUMBER, BAD_U32, MTU],
        ("link_change.change", key) if key.ends_with("_ppm") => &[BAD_NUMBER, BAD_U32, PPM],
        ("link_change.change", "jitter_distribution") => &[&[
            ("7", Refused),
            ("\"gaussian\"", Refused),
            ("\"\"", Refused),
            ("\"pareto\"", Done),
        ]],
        ("fault_add", "at" | "action" | "node" | "opcode" | "call" | "status" | "code") => {
            &[BAD_STRING]
        }
        ("fault_add", "function" | "qpn") => &[BAD_NUMBER, BAD_U32, &[("4294967295", Done)]],
        ("fault_add", "nth" | "every" | "count" | "delay_ns") => &[
            BAD_NUMBER,
            &[("0", Refused), ("18446744073709551615", Done)],
        ],
        ("fault_add", "ppm") => &[BAD_NUMBER, BAD_U32, PPM, &[("0", Refused)]],
        ("fault_add", "seed") => &[BAD_NUMBER, &[("0", Done), ("18446744073709551615", Done)]],
        // The cluster's time is real.
        ("advance", "ns") => &[NO_U64, &[("0", Refused), ("18446744073709551615", Refused)]],
        // Without a number: all.
        ("fault_ls" | "fault_rm", "id") => &[
            NO_U32,
            &[
                ("-1", NoRequest),
                ("1.5", NoRequest),
                ("\"1\"", NoRequest),
                ("7", Refused),
                ("null", Done),
            ],
        ],
        ("note", "program") => &[NO_STRING, &[("\"\\u001b[2J\"", Done), ("\"\"", Done)]],
        ("note", "pid") => &[NO_U64, NO_U32, &[("0", Done), ("4294967295", Done)]],
        ("note", "reason") => &[NO_STRING, &[("\"\"", Refused), ("\"bad luck\"", Refused)]],
        ("link", "parameters") => &[&[
            ("null", NoRequest),
            ("7", NoRequest),
            ("{}", Done),
            ("{\"speed\":1}", NoRequest),
        ]],
        ("link.parameters", "up") => &[&[
            ("null", NoRequest),
            ("1", NoRequest),
            ("\"no\"", NoRequest),
            ("false", Done),
        ]],
        (
            "link.parameters",
            "latency_ns" | "jitter_ns" | "reorder_ns" | "bandwidth_bps" | "queue_bytes",
        ) => &[NO_U64],
        ("link.parameters", "mtu_bytes") => &[NO_U64, NO_U32, MTU],
        ("link.parameters", key) if key.ends_with("_ppm") => &[NO_U64, NO_U32, PPM],
        ("link.parameters", "jitter_distribution") => &[&[
            ("null", NoRequest),
            ("7", NoRequest),
            ("\"gaussian\"", NoRequest),
            ("\"normal\"", Done),
        ]],
        ("inspect", "topics") => &[&[
            ("null", NoRequest),
            ("\"qps\"", NoRequest),
            ("[7]", NoRequest),
            ("[\"nothing\"]", NoRequest),
            ("[]", Done),
            ("[\"qps\",\"qps\"]", Done),
        ]],
        ("recorder", "function") => &[
            NO_U32,
            &[
                ("-1", NoRequest),
                ("1.5", NoRequest),
                ("\"1\"", NoRequest),
                // Of all; of one that is not there, nothing.
                ("null", Done),
                ("4294967295", Done),
            ],
        ],
        ("capture", "nodes") => &[&[
            ("null", NoRequest),
            ("\"a\"", NoRequest),
            ("[7]", NoRequest),
            ("[\"z\"]", Refused),
            ("[\"a\",\"a\"]", Done),
            ("[]", Done),
        ]],
        ("capture", "snaplen") => &[
            NO_U64,
            NO_U32,
            &[("0", Refused), ("63", Refused), ("65536", Refused)],
        ],
        ("capture", "ring_bytes") => &[
            NO_U64,
            &[
                ("0", Refused),
                ("65535", Refused),
                ("268435457", Refused),
                ("18446744073709551615", Refused),
            ],
        ],
        _ => return None,
    };
    Some(lists.concat())
}

/// Says a line, and hears how it is answered.
fn ask(socket: &Path, line: &str) -> Answer {
    let reply = reply(socket, line);
    if reply["ok"] != json!(false) {
        return Done;
    }
    let error = reply["error"].as_str().unwrap();
    assert!(!error.is_empty());
    if error.starts_with("not a request: ") {
        NoRequest
    } else {
        Refused
    }
}

fn reply(socket: &Path, line: &str) -> Json {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    stream.write_all(b"\n").unwrap();
    let mut reply = String::new();
    // Up to its end alone: behind a line that was not read to its end the connection is reset.
    BufReader::new(stream).read_line(&mut reply).unwrap();
    assert!(reply.ends_with('\n'), "{reply}");
    serde_json::from_str(&reply).unwrap()
}

/// A text with one key's value replaced by a text, which need not be JSON that fits.
fn replaced(object: &Map<String, Json>, key: &str, value: &str) -> String {
    let members: Vec<_> = object
        .iter()
        .map(|(name, old)| {
            let value = if name == key {
                value.to_owned()
            } else {
                old.to_string()
            };
            format!("{}:{value}", json!(name))
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Checks every key of an object; `whole` makes the line of it.
fn check(socket: &Path, what: &str, object: &Map<String, Json>, whole: &dyn Fn(&str) -> String) {
    let mut wrong = Vec::new();
    for (key, old) in object {
        let Some(rows) = rows(what, key) else {
            wrong.push(format!("{what}: no row for {key}"));
            continue;
        };
        for (value, expected) in rows {
            let line = whole(&replaced(object, key, value));
            let answer = ask(socket, &line);
            // So that no rule meets the one before.
            client::remove_fault(socket, None).unwrap();
            if answer != expected {
                wrong.push(format!("{line}: {answer:?}, not {expected:?}"));
            }
        }
        if let Json::Object(inner) = old {
            let whole = |text: &str| whole(&replaced(object, key, text));
            check(socket, &format!("{what}.{key}"), inner, &whole);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn requests_key_by_key() {
    let cluster = Cluster::start();
    for request in requests() {
        let Json::Object(object) = serde_json::to_value(&request).unwrap() else {
            panic!("{request:?} is no object");
        };
        let what = object["cmd"].as_str().unwrap();
        check(&cluster.control(), what, &object, &str::to_owned);
        // A key that is left out is one that may be.
        for key in object.keys() {
            let mut less = object.clone();
            less.remove(key);
            let answer = ask(&cluster.control(), &Json::Object(less).to_string());
            let expected = match (what, key.as_str()) {
                ("fault_add", "at" | "action" | "status" | "delay_ns" | "code") => Refused,
                ("fault_add", key) if key != "cmd" => Done,
                (_, "parameters" | "both" | "topics" | "function" | "id") => Done,
                ("capture", "nodes" | "snaplen" | "ring_bytes") => Done,
                _ => NoRequest,
            };
            assert_eq!(answer, expected, "{what} without {key}");
            client::remove_fault(&cluster.control(), None).unwrap();
        }
        client::ping(&cluster.control()).unwrap();
    }
}

#[test]
fn each_field_of_a_fault_rule_has_a_row() {
    let cluster = Cluster::start();
    let line = r#"{"cmd":"fault_add","at":"wqe","action":"qp_err","nothing":1}"#;
    let reply = reply(&cluster.control(), line);
    let error = reply["error"].as_str().unwrap();
    // "unknown field …; allowed: at, action, …": every name in the list is one of the samples'.
    let (_, allowed) = error.rsplit_once(": ").unwrap();
    let known: BTreeSet<_> = fault_rules()
        .flat_map(|rule| rule.into_iter())
        .map(|(key, _)| key)
        .collect();
    let named: BTreeSet<_> = allowed.split(", ").map(str::to_owned).collect();
    assert_eq!(named, known, "{error}");
}

#[test]
fn lines_that_are_no_requests() {
    let cluster = Cluster::start();
    let deep = "[".repeat(8000);
    let many = format!(
        "{{\"cmd\":\"inspect\",\"topics\":[{}\"qps\"]}}",
        "\"qps\",".repeat(2000)
    );
    for (line, expected) in [
        ("", NoRequest),
        ("{", NoRequest),
        ("null", NoRequest),
        ("\"ping\"", NoRequest),
        ("[\"ping\"]", NoRequest),
        ("{\"cmd\":\"ping\"", NoRequest),
        ("{\"cmd\":\"ping\"}}", NoRequest),
        ("{\"cmd\":\"ping\",\"cmd\":\"stat\"}", NoRequest),
        ("{\"cmd\":\"ping\"}\u{0}", NoRequest),
        ("{\"cmd\":\"\u{fffd}\"}", NoRequest),
        (&deep, NoRequest),
        (&many, Done),
        (" {\"cmd\" : \"ping\"} ", Done),
    ] {
        let told = ask(&cluster.control(), line);
        assert_eq!(told, expected, "{}", &line[..line.len().min(60)]);
    }
    let long = "x".repeat(16 * 1024);
    assert_eq!(ask(&cluster.control(), &long), Refused);
    client::ping(&cluster.control()).unwrap();
}
