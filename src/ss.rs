//! `sanlab ss`: the connections of a cluster, one a line, as ss(8) shows a machine's.
//!
//! Place: asks the emulator for what the programs tell, and the kernel for the state and queues of connections on TCP.
//! Invariants: a filter that nothing fits is an empty answer, not a failure. What nobody knows shows as `-`, or null.
//! Source: ss(8); proc_net_tcp of the kernel's documentation. Leaves out: listeners, of which the programs tell nothing.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::cli;
use crate::cluster;
use crate::control;
use crate::exit::Failure;
use crate::output::{self, Table};

/// Lists connections.
pub(crate) fn ss(arguments: &cli::Ss) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.choice.name())?;
    cluster.require_running()?;
    let mut stat = control::stat(&cluster.directory)?;
    let kernels = Kernels::read();
    let rows: Vec<Value> = match stat["connections"].take() {
        Value::Array(all) => all,
        _ => Vec::new(),
    };
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|row| kernels.complete(row))
        .filter(|row| fits(arguments, row))
        .collect();
    if arguments.json {
        return output::json(&json!({
            "schema": stat["schema"], "cluster": stat["cluster"], "connections": rows,
        }));
    }
    output::answer(&render(&rows, arguments.processes, !arguments.no_header))
}

fn fits(arguments: &cli::Ss, row: &Value) -> bool {
    let is = |key: &str, wanted: Option<&str>| {
        let value = row[key].as_str().unwrap_or_default();
        wanted.is_none_or(|wanted| value.eq_ignore_ascii_case(wanted))
    };
    let port = |key: &str| port_of(row[key].as_str().unwrap_or_default());
    let has_port = |wanted| port("local") == Some(wanted) || port("remote") == Some(wanted);
    is("node", arguments.node.as_deref())
        && is("state", arguments.state.as_deref())
        && is("road", arguments.road.as_deref())
        && arguments.port.is_none_or(has_port)
}

fn port_of(name: &str) -> Option<u16> {
    name.rsplit_once(':')?.1.parse().ok()
}

fn render(rows: &[Value], has_processes: bool, has_titles: bool) -> String {
    let mut titles = vec![
        "NODE", "STATE", "ROAD", ">RECV-Q", ">SEND-Q", ">CREDITS", "MODE", "LOCAL", "REMOTE",
    ];
    if has_processes {
        titles.push("PROCESS");
    }
    titles.push("WHY TCP");
    let mut table = Table::new(&titles);
    for row in rows {
        let word = |key: &str| match row[key].as_str() {
            None | Some("") => "-".to_owned(),
            Some(word) => word.to_owned(),
        };
        let count = |key: &str| {
            row[key]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |n| n.to_string())
        };
        let mut cells = vec![word("node"), word("state"), word("road")];
        cells.extend(["recv_queue", "send_queue", "credits"].map(count));
        cells.extend(["mode", "local", "remote"].map(word));
        if has_processes {
            cells.push(format!("{}/{}", word("program"), count("pid")));
        }
        cells.push(word("reason"));
        table.row(cells);
    }
    let text = table.render("");
    if has_titles {
        text
    } else {
        text.split_once('\n')
            .map_or("", |(_, rest)| rest)
            .to_owned()
    }
}

/// What the kernel shows of TCP connections on this machine's loopback: state and queues, by both ports.
struct Kernels {
    by_ports: HashMap<(u16, u16), (&'static str, u64, u64)>,
}

impl Kernels {
    fn read() -> Self {
        let mut by_ports = HashMap::new();
        for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
            // A kernel without IPv6 has no such file.
            let text = std::fs::read_to_string(file).unwrap_or_default();
            by_ports.extend(text.lines().filter_map(parse));
        }
        Self { by_ports }
    }

    /// Adds what the kernel knows to a connection on TCP. Addresses differ where they are placed, so the pair of ports decides.
    fn complete(&self, mut row: Value) -> Value {
        let port = |key: &str| port_of(row[key].as_str().unwrap_or_default());
        if row["road"] == "tcp"
            && let (Some(local), Some(remote)) = (port("local"), port("remote"))
            && let Some(&(state, send_queue, recv_queue)) = self.by_ports.get(&(local, remote))
        {
            row["state"] = state.into();
            row["send_queue"] = send_queue.into();
            row["recv_queue"] = recv_queue.into();
        }
        row
    }
}

type Known = ((u16, u16), (&'static str, u64, u64));

/// A line of /proc/net/tcp: `sl local remote st tx:rx …`, numbers in hexadecimal.
fn parse(line: &str) -> Option<Known> {
    let mut words = line.split_whitespace().skip(1);
    let mut port = || u16::from_str_radix(words.next()?.rsplit_once(':')?.1, 16).ok();
    let ports = (port()?, port()?);
    let state = match u8::from_str_radix(words.next()?, 16).ok()? {
        1 => "ESTAB",
        2 => "SYN-SENT",
        3 => "SYN-RECV",
        4 | 5 => "FIN-WAIT",
        6 => "TIME-WAIT",
        7 => "CLOSE",
        8 => "CLOSE-WAIT",
        9 => "LAST-ACK",
        11 => "CLOSING",
        // A listener has no peer.
        _ => return None,
    };
    let (sending, receiving) = words.next()?.split_once(':')?;
    let queue = |text| u64::from_str_radix(text, 16).ok();
    Some((ports, (state, queue(sending)?, queue(receiving)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read_and_titles_and_listeners_are_not() {
        let line = "   1: 0100007F:1F90 0200007F:C350 08 00000010:0000000A 00:00000000 00000000 0 0 1 1 0 20 4 30 10 -1";
        assert_eq!(parse(line), Some(((8080, 50000), ("CLOSE-WAIT", 16, 10))));
        for line in [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0 100 0 0 10 0",
            "",
            "0: x:y",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn what_nobody_knows_is_a_dash_and_titles_can_be_left_out() {
        let row = json!({"node": "a", "road": "tcp", "local": "127.77.0.1:1", "remote": "127.77.0.2:2", "reason": "option",
            "program": "p", "pid": 7});
        let text = render(std::slice::from_ref(&row), true, true);
        assert!(text.starts_with("NODE"), "{text}");
        let bare = render(&[row], true, false);
        let words: Vec<&str> = bare.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "a",
                "-",
                "tcp",
                "-",
                "-",
                "-",
                "-",
                "127.77.0.1:1",
                "127.77.0.2:2",
                "p/7",
                "option"
            ]
        );
    }
}
