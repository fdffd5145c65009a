//! Which frames of a capture are kept.
//!
//! Place: `sanlab capture --filter`. Invariants: all terms must hold; a term holds when one of its values does, `!=` when none does. A
//! filter that names what there is not is refused with what there is. Source: ours; the names are those of fault rules.
//!
//! ```text
//!  operation=SEND,ACK and peer=b and fate!=lost
//! ```

use ring_proto::status::Opcode;

use super::error::CaptureError;
use super::record::EVERYBODY;
use super::session::{ATOMIC_RESPONSE, CM_NAMES, FATES, Frame, Medium, PROTOCOLS, Port, RESPONSES};

/// A filter; the default keeps everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    terms: Vec<Term>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Term {
    is_negated: bool,
    values: Vec<Value>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Value {
    From(u16),
    To(u16),
    Peer(u16),
    Inbound(bool),
    Kind(Kind),
    Operation(&'static str),
    Qpn(u32),
    Fate(u8),
}

/// Sorts of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Cm,
    Request,
    Response,
    Ethernet,
}

const KINDS: [(&str, Kind); 4] = [
    ("cm", Kind::Cm),
    ("request", Kind::Request),
    ("response", Kind::Response),
    ("ethernet", Kind::Ethernet),
];

const KEYS: &str = "from, to, peer, dir, kind, operation, qpn, fate";

impl Filter {
    /// Reads a filter for a cluster of these nodes.
    ///
    /// # Errors
    /// [`CaptureError::BadFilter`] names the term that is wrong and what it may be.
    pub fn parse(text: &str, nodes: &[Port]) -> Result<Self, CaptureError> {
        let terms = text
            .split_whitespace()
            .filter(|word| *word != "and")
            .map(|word| term(word, nodes))
            .collect::<Result<_, _>>()?;
        Ok(Self { terms })
    }

    /// Whether a frame is kept.
    #[must_use]
    pub fn keeps(&self, frame: &Frame) -> bool {
        self.terms
            .iter()
            .all(|term| term.values.iter().any(|value| value.holds(frame)) != term.is_negated)
    }
}

impl Value {
    fn holds(&self, frame: &Frame) -> bool {
        let (from, to) = frame.ends;
        match *self {
            Self::From(node) => node == from,
            Self::To(node) => is_at(to, from, node),
            Self::Peer(node) if frame.port == from => is_at(to, from, node),
            Self::Peer(node) => node == from,
            Self::Inbound(is_inbound) => is_inbound == frame.is_inbound,
            Self::Kind(kind) => kind == kind_of(frame),
            Self::Operation(name) => name == frame.operation,
            Self::Qpn(qpn) => qpn == frame.qpns.0 || qpn == frame.qpns.1,
            Self::Fate(bit) => frame.fate & bit != 0,
        }
    }
}

/// Whether a frame goes to this node.
fn is_at(to: u16, from: u16, node: u16) -> bool {
    to == node || to == EVERYBODY && node != from
}

fn kind_of(frame: &Frame) -> Kind {
    let operation = frame.operation;
    let is_response = RESPONSES.iter().any(|(name, _)| *name == operation);
    if frame.medium == Medium::Ethernet {
        Kind::Ethernet
    } else if CM_NAMES.contains(&operation) {
        Kind::Cm
    } else if is_response || operation == ATOMIC_RESPONSE {
        Kind::Response
    } else {
        Kind::Request
    }
}

fn term(word: &str, nodes: &[Port]) -> Result<Term, CaptureError> {
    let bad = |what: String| CaptureError::BadFilter(what);
    let (key, values) = word
        .split_once('=')
        .ok_or_else(|| bad(format!("`{word}` is no KEY=VALUE; keys are {KEYS}")))?;
    let (key, is_negated) = key
        .strip_suffix('!')
        .map_or((key, false), |key| (key, true));
    let values = values
        .split(',')
        .map(|value| {
            one(key, value, nodes)
                .map_err(|allowed| bad(format!("`{word}`: {key} cannot be `{value}`; {allowed}")))
        })
        .collect::<Result<_, _>>()?;
    Ok(Term { is_negated, values })
}

/// A value, or what it may be.
fn one(key: &str, value: &str, nodes: &[Port]) -> Result<Value, String> {
    let node = || {
        let found = (0u16..).zip(nodes).find(|(_, port)| port.name == value);
        found.map(|(node, _)| node).ok_or_else(|| {
            let names: Vec<_> = nodes.iter().map(|port| port.name.as_str()).collect();
            format!("nodes are {}", names.join(", "))
        })
    };
    let among = |names: Vec<&'static str>| {
        let found = names.iter().copied().find(|name| *name == value);
        found.ok_or_else(|| format!("allowed: {}", names.join(", ")))
    };
    Ok(match key {
        "from" => Value::From(node()?),
        "to" => Value::To(node()?),
        "peer" => Value::Peer(node()?),
        "dir" => Value::Inbound(among(vec!["in", "out"])? == "in"),
        "kind" => {
            let name = among(KINDS.map(|(name, _)| name).into())?;
            let found = KINDS.into_iter().find(|(known, _)| *known == name);
            Value::Kind(found.map_or(Kind::Cm, |(_, kind)| kind))
        }
        "operation" => {
            let requests = Opcode::ALL.iter().filter_map(|opcode| opcode.name());
            let responses = RESPONSES.map(|(name, _)| name);
            let all = requests
                .chain(responses)
                .chain([ATOMIC_RESPONSE])
                .chain(CM_NAMES)
                .chain(PROTOCOLS);
            Value::Operation(among(all.collect())?)
        }
        "qpn" => {
            let digits = value.strip_prefix("0x");
            let number = digits.map_or_else(|| value.parse(), |hex| u32::from_str_radix(hex, 16));
            Value::Qpn(number.map_err(|_| "a number, as 17 or 0x11".to_owned())?)
        }
        "fate" => {
            let name = among(FATES.map(|(name, ..)| name).into())?;
            let found = FATES.into_iter().find(|(known, ..)| *known == name);
            Value::Fate(found.map_or(0, |(_, bit, ..)| bit))
        }
        _ => return Err(format!("keys are {KEYS}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<Port> {
        ["a", "b"]
            .map(|name| Port {
                name: name.to_owned(),
                addresses: Vec::new(),
            })
            .into()
    }

    #[test]
    fn terms_choose_what_they_name() {
        let frame = Frame {
            at_ns: 0,
            medium: Medium::San,
            port: 0,
            is_inbound: true,
            ends: (1, 0),
            operation: "SEND",
            qpns: (0x11, 5),
            fate: super::super::record::DAMAGED,
            bytes: Vec::new(),
            whole_len: 0,
        };
        for (text, keeps) in [
            ("", true),
            ("peer=b", true),
            ("peer=a", false),
            ("from=b and to=a", true),
            ("from=a,b dir=in", true),
            ("dir!=in", false),
            ("kind=request operation=ACK,SEND", true),
            ("kind!=request,cm", false),
            ("qpn=17", true),
            ("qpn=0x5 fate=damaged,lost", true),
            ("fate=lost", false),
        ] {
            let filter = Filter::parse(text, &nodes()).unwrap();
            assert_eq!(filter.keeps(&frame), keeps, "{text}");
        }
        let broadcast = Frame {
            medium: Medium::Ethernet,
            is_inbound: false,
            ends: (0, EVERYBODY),
            operation: "ARP",
            ..frame
        };
        for (text, keeps) in [
            ("kind=ethernet operation=ARP", true),
            ("kind=request", false),
            ("to=b peer=b", true),
            ("to=a", false),
            ("peer=a", false),
            ("from=a", true),
            ("operation=TCP,UDP", false),
        ] {
            let filter = Filter::parse(text, &nodes()).unwrap();
            assert_eq!(filter.keeps(&broadcast), keeps, "{text}");
        }
    }

    #[test]
    fn a_wrong_term_is_named_with_what_it_may_be() {
        for (text, says) in [
            ("peer", "`peer` is no KEY=VALUE"),
            ("peer=z", "nodes are a, b"),
            ("dir=up", "allowed: in, out"),
            ("operation=JUMP", "RDMA_WRITE"),
            ("qpn=x", "a number"),
            ("color=red", "keys are from"),
        ] {
            let error = Filter::parse(text, &nodes()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
