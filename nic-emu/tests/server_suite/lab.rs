//! Links, ports and faults by the control socket, and docs/control.md as it stands.

use std::fs;
use std::path::Path;

use nic_emu::control::client::{self, ControlError};
use nic_emu::device::LinkChange;
use serde_json::{Map, Value, json};

use super::control::ask;
use super::harness::Cluster;

/// Requests of the page with their answers.
fn examples() -> Vec<(String, Value)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.md");
    let page = fs::read_to_string(path).unwrap();
    let mut all = Vec::new();
    let mut request = None;
    for line in page.lines() {
        if let Some(sent) = line.strip_prefix("-> ") {
            assert_eq!(request.replace(sent.to_owned()), None, "{line}");
        } else if let Some(reply) = line.strip_prefix("<- ") {
            let reply = serde_json::from_str(reply).unwrap_or_else(|e| panic!("{e}: {reply}"));
            all.push((request.take().expect("a request before its answer"), reply));
        }
    }
    all
}

/// Whether two answers say the same, but for process ids, times and what an engine is doing.
fn agree(page: &Value, told: &Value) -> bool {
    match (page, told) {
        (Value::Object(page), Value::Object(told)) => {
            page.get("engine")
                .is_some_and(|engine| engine == &json!({}))
                && told.contains_key("engine")
                || page.len() == told.len()
                    && page.iter().all(|(key, value)| match key.as_str() {
                        "emulator_pid" | "now_ns" | "epoch_ns" => told[key].is_u64(),
                        _ => told.get(key).is_some_and(|other| agree(value, other)),
                    })
        }
        (Value::Array(page), Value::Array(told)) => {
            page.len() == told.len() && page.iter().zip(told).all(|(a, b)| agree(a, b))
        }
        _ => page == told,
    }
}

#[test]
fn every_example_of_the_page_is_answered_as_it_says() {
    let cluster = Cluster::start();
    let all = examples();
    assert!(all.len() > 25, "{} examples", all.len());
    for (request, reply) in all {
        let told = ask(&cluster.control(), &format!("{request}\n"));
        let told: Value = serde_json::from_str(&told).unwrap();
        assert!(
            agree(&reply, &told),
            "{request}\npage: {reply}\ntold: {told}"
        );
    }
}

#[test]
fn single_parameters_change_and_the_others_stay() {
    let cluster = Cluster::start();
    let control = cluster.control();
    let loss = LinkChange {
        loss_ppm: Some(9),
        ..LinkChange::default()
    };
    client::change_link(&control, ("a", "b"), true, loss).unwrap();
    let cut = LinkChange {
        up: Some(false),
        latency_ns: Some(5),
        ..LinkChange::default()
    };
    client::change_link(&control, ("b", "a"), false, cut).unwrap();
    let told = client::links(&control).unwrap();
    let rows: Vec<_> = told
        .links
        .iter()
        .map(|row| {
            let parameters = row.parameters;
            let ends = format!("{}{}", row.from, row.to);
            (
                ends,
                parameters.up,
                parameters.loss_ppm,
                parameters.latency_ns,
            )
        })
        .collect();
    let wanted = [
        ("ab".to_owned(), true, 9, 0),
        ("ba".to_owned(), false, 9, 5),
    ];
    assert_eq!(rows, wanted);
    assert_eq!(client::heal(&control).unwrap(), 1);
    assert_eq!(client::heal(&control).unwrap(), 0);
    assert!(client::links(&control).unwrap().links[1].parameters.up);
}

#[test]
fn wrong_values_are_named_and_change_nothing() {
    let cluster = Cluster::start();
    let control = cluster.control();
    for (change, named) in [
        (
            json!({"up": 1}),
            "field \\\"up\\\" cannot be 1; allowed: true, false",
        ),
        (
            json!({"latency_ns": "1ms"}),
            "\\\"latency_ns\\\" cannot be \\\"1ms\\\"; allowed: whole numbers from 0",
        ),
        (json!({"latency_ns": -1}), "\\\"latency_ns\\\" cannot be -1"),
        (
            json!({"bandwidth_bps": 1.5}),
            "\\\"bandwidth_bps\\\" cannot be 1.5",
        ),
        (
            json!({"loss_ppm": 5, "mtu": 9000}),
            "unknown field \\\"mtu\\\"",
        ),
    ] {
        let request =
            json!({"cmd": "link_change", "from": "a", "to": "b", "both": true, "change": change});
        let told = ask(&control, &format!("{request}\n"));
        let told = told.replace("\\\\\\\"", "\\\"");
        assert!(told.starts_with("{\"ok\":false"), "{told}");
        assert!(told.contains(named), "{change}: {told}");
    }
    assert_eq!(client::links(&control).unwrap().links, []);
    let error = client::port(&control, "c", false).unwrap_err();
    assert!(error.to_string().contains("its nodes are a, b"), "{error}");
}

#[test]
fn ports_go_down_and_come_back() {
    let cluster = Cluster::start();
    let control = cluster.control();
    client::port(&control, "b", false).unwrap();
    let up = |node: usize| client::links(&control).unwrap().ports[node].up;
    assert!(up(0) && !up(1));
    client::port(&control, "b", true).unwrap();
    assert!(up(1));
}

fn rule(fields: Value) -> Map<String, Value> {
    serde_json::from_value(fields).unwrap()
}

#[test]
fn rules_are_added_listed_and_removed() {
    let cluster = Cluster::start();
    let control = cluster.control();
    let add = |fields| client::add_fault(&control, rule(fields));
    let one = add(json!({"at": "doorbell", "action": "drop", "node": "a"})).unwrap();
    let two = add(json!({"at": "packet", "action": "delay", "delay_ns": 5, "every": 3})).unwrap();
    assert_eq!((one, two), (1, 2));
    let told = client::faults(&control, None).unwrap();
    assert_eq!((told.schema, told.report.faults.len()), (1, 2));
    assert_eq!(told.report.faults[1].every, Some(3));
    assert_eq!(client::remove_fault(&control, Some(one)).unwrap(), 1);
    let error = client::remove_fault(&control, Some(one)).unwrap_err();
    assert!(matches!(error, ControlError::Refused(_)), "{error}");
    assert_eq!(client::remove_fault(&control, None).unwrap(), 1);
    let error = add(json!({"at": "wqe", "action": "status", "status": "SUCCESS"})).unwrap_err();
    assert!(error.to_string().contains("REM_OP_ERR"), "{error}");
}
