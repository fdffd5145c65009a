//! `sanlab link`, `partition`, `heal`, `port`: how packets fare between nodes.
//!
//! Place: the command line names two nodes or a direction, the emulator does the rest. Invariants: a change of several directions is one
//! request each, and the first that is refused ends the command. Source: ours; the look follows `ip link` and `tc qdisc`.

use nic_emu::control::client;
use nic_emu::control::{Links, SCHEMA};
use nic_emu::device::{Distribution, LinkChange, LinkParameters, LinkRow};
use serde_json::json;

use super::{answer, refused, running, socket};
use crate::cli;
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::units;

/// Two nodes, in one direction or in both.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ends {
    from: String,
    to: String,
    both: bool,
}

impl Ends {
    /// `a b` for both directions, `'a->b'` for one.
    fn of(words: &[String]) -> Result<Self, Failure> {
        let how = "name two nodes: `a b` for both directions, `'a->b'` (quoted) or `a:b` for one";
        match words {
            [one] => {
                let ends = one.split_once("->").or_else(|| one.split_once(':'));
                match ends.map(|(from, to)| (from.trim(), to.trim())) {
                    Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Self {
                        from: from.into(),
                        to: to.into(),
                        both: false,
                    }),
                    _ => Err(Failure::usage(format_args!(
                        "`{one}` is no direction; {how}"
                    ))),
                }
            }
            [from, to] => Ok(Self {
                from: from.clone(),
                to: to.clone(),
                both: true,
            }),
            _ => Err(Failure::usage(how)),
        }
    }

    fn text(&self) -> String {
        let arrow = if self.both { "<->" } else { "->" };
        format!("{} {arrow} {}", self.from, self.to)
    }
}

/// `sanlab link …`.
pub(crate) fn link(arguments: &cli::Link) -> Result<(), Failure> {
    match &arguments.command {
        cli::LinkCommand::Show(arguments) => show(arguments),
        cli::LinkCommand::Set(arguments) => set(arguments),
        cli::LinkCommand::Down(arguments) => cut(arguments, false),
        cli::LinkCommand::Up(arguments) => cut(arguments, true),
    }
}

fn show(arguments: &cli::LinkShow) -> Result<(), Failure> {
    let ends = match arguments.ends.as_slice() {
        [] => None,
        words => Some(Ends::of(words)?),
    };
    let cluster = running(arguments.cluster.as_deref())?;
    let mut links = client::links(&socket(&cluster)).map_err(refused)?;
    if let Some(ends) = ends {
        for node in [&ends.from, &ends.to] {
            known_node(&links, node)?;
        }
        keep(&mut links, &ends);
    }
    answer(arguments.json, &links, &render(&links))
}

fn known_node(links: &Links, node: &str) -> Result<(), Failure> {
    let names: Vec<&str> = links.ports.iter().map(|port| port.node.as_str()).collect();
    if names.contains(&node) {
        return Ok(());
    }
    Err(Failure::new(
        crate::exit::FAILED,
        format_args!(
            "cluster {} has no node \"{node}\"; its nodes are {}",
            links.cluster,
            names.join(", ")
        ),
    ))
}

/// Keeps the directions that are meant, and makes rows of those that were always perfect.
fn keep(links: &mut Links, ends: &Ends) {
    let mut wanted = vec![(ends.from.clone(), ends.to.clone())];
    if ends.both {
        wanted.push((ends.to.clone(), ends.from.clone()));
    }
    let known = std::mem::take(&mut links.links);
    links.links = wanted
        .into_iter()
        .map(|(from, to)| {
            let row = known
                .iter()
                .find(|row| (&row.from, &row.to) == (&from, &to));
            row.cloned().unwrap_or_else(|| LinkRow {
                from,
                to,
                parameters: LinkParameters::default(),
                counters: nic_emu::device::LinkCounters::default(),
            })
        })
        .collect();
    links
        .ports
        .retain(|port| port.node == ends.from || port.node == ends.to);
}

fn render(links: &Links) -> String {
    let mut text = String::new();
    let mut table = Table::new(&[
        "FROM",
        "TO",
        "STATE",
        "LATENCY",
        "JITTER",
        "LOSS",
        "REORDER",
        "DUPLICATE",
        "CORRUPT",
        "BANDWIDTH",
        "QUEUE",
        "MTU",
        ">SENT",
        ">DELIVERED",
        ">LOST",
        ">DROPPED",
    ]);
    for row in &links.links {
        let p = row.parameters;
        let reorder = match p.reorder_ppm {
            0 => "0".into(),
            ppm => format!(
                "{} by {}",
                units::show_share(ppm),
                units::show_time(p.reorder_ns)
            ),
        };
        table.row([
            row.from.clone(),
            row.to.clone(),
            if p.up { "up" } else { "down" }.into(),
            units::show_time(p.latency_ns),
            jitter(&p),
            loss(&p),
            reorder,
            units::show_share(p.duplicate_ppm),
            units::show_share(p.corrupt_ppm),
            if p.bandwidth_bps == 0 {
                "no limit".into()
            } else {
                units::show_rate(p.bandwidth_bps)
            },
            units::show_queue(p.queue_bytes),
            mtu(&p),
            output::count(row.counters.sent),
            output::count(row.counters.delivered),
            output::count(row.counters.lost),
            output::count(row.counters.dropped),
        ]);
    }
    if table.is_empty() {
        text.push_str("every link is perfect\n");
    } else {
        text.push_str(&table.render(""));
    }
    let down: Vec<&str> = links
        .ports
        .iter()
        .filter(|port| !port.up)
        .map(|port| port.node.as_str())
        .collect();
    if !down.is_empty() {
        text.push_str(&format!("\nports down: {}\n", down.join(", ")));
    }
    text
}

/// The MTU, and what an RDMA packet carries.
fn mtu(of: &LinkParameters) -> String {
    match of.mtu_bytes {
        0 => "-".into(),
        mtu => format!("{mtu} (RDMA {})", of.path_mtu()),
    }
}

fn jitter(of: &LinkParameters) -> String {
    let time = units::show_time(of.jitter_ns);
    match of.jitter_distribution {
        Distribution::Uniform => time,
        other => format!("{time} {}", other.name()),
    }
}

/// Losses; of bursts how often they begin, how long they last and what they take.
fn loss(of: &LinkParameters) -> String {
    let loss = units::show_share(of.loss_ppm);
    if of.burst_enter_ppm == 0 {
        return loss;
    }
    let [enter, leave, share] =
        [of.burst_enter_ppm, of.burst_leave_ppm, of.burst_loss_ppm].map(units::show_share);
    format!("{loss}, bursts {enter}/{leave}/{share}")
}

fn set(arguments: &cli::LinkSet) -> Result<(), Failure> {
    let ends = Ends::of(&arguments.ends)?;
    let mut change = LinkChange {
        up: None,
        latency_ns: arguments.latency,
        jitter_ns: arguments.jitter,
        jitter_distribution: arguments.jitter_distribution,
        loss_ppm: arguments.loss,
        burst_enter_ppm: arguments.burst_enter,
        burst_leave_ppm: arguments.burst_leave,
        burst_loss_ppm: arguments.burst_loss,
        reorder_ppm: arguments.reorder,
        reorder_ns: arguments.reorder_by,
        duplicate_ppm: arguments.duplicate,
        corrupt_ppm: arguments.corrupt,
        bandwidth_bps: arguments.bandwidth,
        queue_bytes: arguments.queue,
        mtu_bytes: arguments.mtu,
    };
    if change == LinkChange::default() && !arguments.perfect {
        return Err(Failure::usage(
            "nothing to set; give --latency, --jitter, --jitter-distribution, --loss, --burst-enter, --burst-leave, --burst-loss, --reorder, --duplicate, --corrupt, --bandwidth, --queue, --mtu or --perfect",
        ));
    }
    if arguments.perfect {
        change = change.or(LinkChange::all(LinkParameters::default()));
    }
    apply(arguments.cluster.as_deref(), &ends, change)?;
    done(arguments.json, &ends, "set")
}

fn cut(arguments: &cli::LinkEnds, up: bool) -> Result<(), Failure> {
    let ends = Ends::of(&arguments.ends)?;
    let change = LinkChange {
        up: Some(up),
        ..LinkChange::default()
    };
    apply(arguments.cluster.as_deref(), &ends, change)?;
    done(arguments.json, &ends, if up { "up" } else { "down" })
}

/// `sanlab partition …`.
pub(crate) fn partition(arguments: &cli::LinkEnds) -> Result<(), Failure> {
    cut(arguments, false)
}

fn apply(cluster: Option<&str>, ends: &Ends, change: LinkChange) -> Result<(), Failure> {
    let cluster = running(cluster)?;
    client::change_link(&socket(&cluster), (&ends.from, &ends.to), ends.both, change)
        .map_err(refused)
}

fn done(is_json: bool, ends: &Ends, what: &str) -> Result<(), Failure> {
    let object = json!({
        "schema": SCHEMA, "from": ends.from, "to": ends.to, "both": ends.both, "done": what,
    });
    answer(is_json, &object, &format!("{}: {what}\n", ends.text()))
}

/// `sanlab heal …`.
pub(crate) fn heal(arguments: &cli::Heal) -> Result<(), Failure> {
    if arguments.ends.is_empty() {
        let cluster = running(arguments.cluster.as_deref())?;
        let healed = client::heal(&socket(&cluster)).map_err(refused)?;
        let text = match healed {
            0 => "no link was cut\n".to_owned(),
            1 => "1 direction healed\n".to_owned(),
            several => format!("{several} directions healed\n"),
        };
        return answer(
            arguments.json,
            &json!({"schema": SCHEMA, "healed": healed}),
            &text,
        );
    }
    let ends = Ends::of(&arguments.ends)?;
    let change = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    apply(arguments.cluster.as_deref(), &ends, change)?;
    done(arguments.json, &ends, "healed")
}

/// `sanlab port …`.
pub(crate) fn port(arguments: &cli::Port) -> Result<(), Failure> {
    let cluster = running(arguments.cluster.as_deref())?;
    let up = arguments.state == cli::PortState::Up;
    client::port(&socket(&cluster), &arguments.node, up).map_err(refused)?;
    let word = if up { "up" } else { "down" };
    answer(
        arguments.json,
        &json!({"schema": SCHEMA, "node": arguments.node, "up": up}),
        &format!("port of {}: {word}\n", arguments.node),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(words: &[&str]) -> Result<String, Failure> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        Ends::of(&words).map(|ends| ends.text())
    }

    #[test]
    fn directions_are_named_in_three_ways() {
        assert_eq!(ends(&["a", "b"]).unwrap(), "a <-> b");
        for one in ["a->b", "a -> b", "a:b"] {
            assert_eq!(ends(&[one]).unwrap(), "a -> b");
        }
        // What a shell leaves of an arrow that was not quoted.
        for wrong in [
            &["a-"][..],
            &["a"],
            &["->b"],
            &["a:"],
            &[],
            &["a", "b", "c"],
        ] {
            let failure = ends(wrong).unwrap_err();
            assert!(failure.is_usage());
            assert!(format!("{failure:?}").contains("quoted"), "{failure:?}");
        }
    }

    #[test]
    fn a_table_has_units_and_says_when_all_is_well() {
        let mut links = Links {
            schema: 1,
            cluster: "lab".into(),
            ports: vec![nic_emu::control::PortRow {
                node: "a".into(),
                up: false,
            }],
            links: Vec::new(),
        };
        assert_eq!(render(&links), "every link is perfect\n\nports down: a\n");
        let both = Ends {
            from: "a".into(),
            to: "b".into(),
            both: true,
        };
        keep(&mut links, &both);
        links.links[0].parameters = LinkParameters {
            up: false,
            latency_ns: 1_500_000,
            loss_ppm: 1_000,
            reorder_ppm: 20_000,
            reorder_ns: 3_000,
            bandwidth_bps: 10_000_000_000,
            ..LinkParameters::default()
        };
        let text = render(&links);
        for part in [
            "down",
            "1ms 500us",
            "0.1 %",
            "2 % by 3us",
            "10 Gbit/s",
            "no limit",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.lines().count(), 3 + 2, "{text}");
    }
}
