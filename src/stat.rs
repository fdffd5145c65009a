//! `sanlab stat`: what the NICs and the connections of a cluster have done.
//!
//! Place: prints the emulator's own answer, as tables or as the JSON object that it is.
//! Invariants: nothing is computed here; a member that is missing shows as nothing.
//! Source: ours; the tables follow `ss` and `ip -s`.

use std::time::Duration;

use nic_emu::device::Finding;
use serde_json::Value;

use crate::cli;
use crate::cluster::{self, Cluster};
use crate::control;
use crate::exit::Failure;
use crate::objects::Objects;
use crate::output::{self, Table};
use crate::signals::{StopSignals, Waited};

/// Shows the counters, connections and fall-backs of a cluster, or the objects of its NICs.
pub(crate) fn stat(arguments: &cli::Stat) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.choice.name())?;
    if let Some(interval) = arguments.watch {
        return watch(&cluster, arguments, interval);
    }
    cluster.require_running()?;
    if !arguments.json {
        return output::answer(&text(&cluster, arguments)?);
    }
    let mut stat = look(&cluster, arguments.node.as_deref())?;
    if let Some(objects) = objects(&cluster, arguments)? {
        stat["objects"] = objects.to_json()?;
    }
    output::json(&stat)
}

fn watch(cluster: &Cluster, arguments: &cli::Stat, interval: Duration) -> Result<(), Failure> {
    /// Cursor home, then erase what is below.
    const CLEAR: &str = "\x1b[H\x1b[2J";
    let stop = StopSignals::catch()?;
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    loop {
        let text = text(cluster, arguments)?;
        if is_terminal {
            output::answer(&format!("{CLEAR}{text}"))?;
        } else {
            output::answer(&format!("{text}\n"))?;
        }
        if stop.wait(&[], Some(interval))? == Waited::Stop {
            return Ok(());
        }
    }
}

/// The answer for people.
fn text(cluster: &Cluster, arguments: &cli::Stat) -> Result<String, Failure> {
    // Asked in any case: it knows which nodes there are.
    let stat = look(cluster, arguments.node.as_deref())?;
    Ok(match objects(cluster, arguments)? {
        Some(objects) => objects.render(),
        None => render(&stat),
    })
}

fn objects<'a>(
    cluster: &Cluster,
    arguments: &'a cli::Stat,
) -> Result<Option<Objects<'a>>, Failure> {
    let parts = arguments.objects.as_deref();
    parts
        .map(|parts| Objects::look(cluster, parts, arguments.node.as_deref()))
        .transpose()
}

fn look(cluster: &Cluster, node: Option<&str>) -> Result<Value, Failure> {
    let mut stat = control::stat(&cluster.directory)?;
    if let Some(node) = node {
        keep_node(&mut stat, node)?;
    }
    Ok(stat)
}

/// Drops what belongs to other nodes.
fn keep_node(stat: &mut Value, node: &str) -> Result<(), Failure> {
    let nodes = rows(stat, "nodes");
    let names: Vec<_> = nodes.iter().map(|row| word(row, "name")).collect();
    if !names.iter().any(|name| name == node) {
        let (cluster, names) = (word(stat, "cluster"), names.join(", "));
        let text = format_args!("cluster {cluster} has no node {node}; its nodes are {names}");
        return Err(Failure::usage(text));
    }
    for (list, key) in [
        ("nodes", "name"),
        ("connections", "node"),
        ("totals", "node"),
        ("fallbacks", "node"),
        ("ungoverned", "node"),
        ("findings", "node"),
    ] {
        if let Some(rows) = stat[list].as_array_mut() {
            rows.retain(|row| row[key] == node);
        }
    }
    Ok(())
}

/// The tables of a stat object.
pub(crate) fn render(stat: &Value) -> String {
    let mut text = format!(
        "cluster {}, emulator process {}\n\n",
        word(stat, "cluster"),
        number(stat, "emulator_pid")
    );
    text.push_str(&nodes(stat).render(""));
    section(&mut text, "connections", &connections(stat));
    section(&mut text, "since the start", &totals(stat));
    section(&mut text, "connections that took TCP", &fallbacks(stat));
    section(&mut text, "out of the switch's reach", &ungoverned(stat));
    for finding in rows(stat, "findings") {
        let finding = serde_json::from_value::<Finding>(finding.clone())
            .map_or_else(|_| finding.to_string(), |finding| finding.to_string());
        text.push_str(&format!("\nfinding: {finding}\n"));
    }
    text
}

fn section(text: &mut String, title: &str, table: &Table) {
    if table.is_empty() {
        text.push_str(&format!("\n{title}: none\n"));
    } else {
        text.push_str(&format!("\n{title}:\n{}", table.render("")));
    }
}

fn nodes(stat: &Value) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "ADDRESSES",
        ">SENT",
        ">RECEIVED",
        ">WQES",
        ">CQES",
        ">KICKS",
        ">PARKS",
        ">ERRORS",
        ">QPS",
        ">CQS",
        ">MRS",
        ">FUNCTIONS",
    ]);
    for node in rows(stat, "nodes") {
        let counters = &node["counters"];
        let counts = [
            "wqes",
            "cqes",
            "kicks",
            "parks",
            "errors",
            "qps",
            "cqs",
            "mrs",
            "functions",
        ];
        let mut cells = vec![
            word(node, "name"),
            control::addresses_text(&words(node, "addresses")),
            output::bytes(number(counters, "tx_payload_bytes")),
            output::bytes(number(counters, "rx_payload_bytes")),
        ];
        cells.extend(counts.map(|key| output::count(number(counters, key))));
        table.row(cells);
    }
    table
}

fn connections(stat: &Value) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "ROAD",
        "LOCAL",
        "REMOTE",
        ">SENT",
        ">RECEIVED",
        "PROGRAM",
        ">PID",
        "MODE",
        "WHY TCP",
    ]);
    for connection in rows(stat, "connections") {
        let mut cells: Vec<String> = ["node", "road", "local", "remote"]
            .map(|key| word(connection, key))
            .into();
        cells.extend(["tx_bytes", "rx_bytes"].map(|key| output::bytes(number(connection, key))));
        cells.push(word(connection, "program"));
        cells.push(number(connection, "pid").to_string());
        cells.extend(["mode", "reason"].map(|key| word(connection, key)));
        table.row(cells);
    }
    table
}

fn totals(stat: &Value) -> Table {
    let mut table = Table::new(&[
        "NODE",
        ">SAN CONNECTIONS",
        ">SENT",
        ">RECEIVED",
        ">TCP CONNECTIONS",
    ]);
    for total in rows(stat, "totals") {
        table.row([
            word(total, "node"),
            output::count(number(total, "san_connections")),
            output::bytes(number(total, "san_tx_bytes")),
            output::bytes(number(total, "san_rx_bytes")),
            output::count(number(total, "tcp_connections")),
        ]);
    }
    table
}

fn fallbacks(stat: &Value) -> Table {
    let mut table = Table::new(&["NODE", "REASON", ">COUNT", "MEANING"]);
    for fallback in rows(stat, "fallbacks") {
        let reason = word(fallback, "reason");
        let meaning = meaning(&reason).to_owned();
        table.row([
            word(fallback, "node"),
            reason,
            output::count(number(fallback, "count")),
            meaning,
        ]);
    }
    table
}

fn ungoverned(stat: &Value) -> Table {
    let mut table = Table::new(&["NODE", ">PID", "PROGRAM", "WHAT"]);
    for program in rows(stat, "ungoverned") {
        table.row([
            word(program, "node"),
            number(program, "pid").to_string(),
            word(program, "program"),
            word(program, "what"),
        ]);
    }
    table
}

/// What a reason means, for people.
pub(crate) fn meaning(reason: &str) -> &'static str {
    match reason {
        "loopback" => "the node spoke to itself",
        "off_subnet" => "the other end is on no subnet of the cluster",
        "bind_not_san" => "the socket was bound to an address of no NIC",
        "option" => "the socket has an option or use that the SAN does not carry",
        "no_provider" => "the node has no SAN provider, or its NIC no address",
        "sp_socket" => "the provider had no companion socket to give",
        "sp_bind" => "the provider refused the bind",
        "sp_setsockopt" => "the provider refused a socket option",
        "sp_listen" => "the provider refused to listen",
        "sp_event_select" => "the provider refused to report events",
        "sp_connect" => "the provider refused the connect",
        "no_san_listener" => "nobody listens there on the SAN",
        "san_timeout" => "nobody answered on the SAN in time",
        "backlog_full" => "the listener's backlog stayed full",
        "provider_down" => "the emulator was gone",
        "link_down" => "the NIC's port was down",
        "static_binary" => "the program is statically linked",
        "go_binary" => "the program makes its system calls itself (Go)",
        "setid_binary" => "the program runs with other rights than its caller",
        "musl_binary" => "the program is linked against musl",
        "old_glibc" => "the program's glibc is too old for the library",
        "link_cut" => "the link was cut, and the connect failed",
        "datagrams" => "datagrams to another node, which meet no link",
        "peer_limit" => "the other node's NIC had nothing left for it",
        _ => "",
    }
}

fn rows<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn words(value: &Value, key: &str) -> Vec<String> {
    rows(value, key)
        .iter()
        .filter_map(|word| Some(word.as_str()?.to_owned()))
        .collect()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_proto::telemetry::Reason;
    use serde_json::json;

    #[test]
    fn every_reason_has_a_meaning_here_and_on_the_page() {
        let page = include_str!("../docs/cluster.md");
        for reason in Reason::ALL {
            let (name, meaning) = (reason.name(), meaning(reason.name()));
            assert_ne!(meaning, "", "{name}");
            let row = format!("| `{name}` | {meaning} |");
            assert!(page.contains(&row), "docs/cluster.md lacks {row}");
        }
    }

    #[test]
    fn tables_show_what_the_object_holds() {
        let stat = json!({
            "cluster": "lab", "emulator_pid": 7,
            "nodes": [{"name": "a", "addresses": [], "counters": {"tx_payload_bytes": 2048, "wqes": 3}}],
            "connections": [{"node": "a", "pid": 9, "program": "curl", "local": "127.77.0.1:5", "remote": "127.77.0.2:6",
                "road": "tcp", "reason": "no_san_listener", "tx_bytes": 1, "rx_bytes": 2}],
            "fallbacks": [{"node": "a", "reason": "no_san_listener", "count": 4}],
        });
        let text = render(&stat);
        for part in [
            "cluster lab",
            "2.00 KiB",
            "127.77.0.2:6",
            "nobody listens there",
            "since the start: none",
            "no address",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_node_keeps_what_is_its_own() {
        let of = |node| json!([{"node": node}]);
        let stat = json!({
            "cluster": "lab", "nodes": [{"name": "a"}, {"name": "b"}], "connections": [{"node": "a"}, {"node": "b"}],
            "totals": of("a"), "fallbacks": of("b"), "ungoverned": of("a"), "findings": of("b"),
        });
        let mut of_a = stat.clone();
        keep_node(&mut of_a, "a").unwrap();
        let expected = json!({
            "cluster": "lab", "nodes": [{"name": "a"}], "connections": of("a"),
            "totals": of("a"), "fallbacks": [], "ungoverned": of("a"), "findings": [],
        });
        assert_eq!(of_a, expected);
        assert!(keep_node(&mut stat.clone(), "x").unwrap_err().is_usage());
    }

    #[test]
    fn an_answer_of_another_shape_is_shown_as_nothing() {
        for stat in [
            json!(null),
            json!({"nodes": 3, "connections": [1]}),
            json!([]),
        ] {
            assert!(render(&stat).starts_with("cluster "));
        }
    }
}
