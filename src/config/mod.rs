//! Cluster files: what a cluster shall be, checked as far as the file alone can tell.
//!
//! Place: `up` reads a file into a [`ClusterPlan`]; the emulator process turns the plan into addresses ([`ClusterPlan::resolve`]).
//! Invariants: holding a [`ClusterPlan`] proves that names are well formed and differ, that addresses differ and lie in 127.77.0.0/16
//! unless namespaces keep the nodes apart, and that every value is one we act on. Parsing touches nothing but the file.
//! Source: ours, docs/cluster.md; `ip_autoconf` after R-27, `wildcard_on_san` after R-33, `backlog_full` after R-83.
//! Leaves out: faults.

mod isolation;
mod limits;
pub(crate) mod links;
pub(crate) mod programs;
mod read;
pub(crate) mod schema;
mod tree;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nic_emu::device::Limits;
use nic_emu::server::{BacklogFull, LabConfig, Loopback, NodeAddress, NodeSpec, UngovernedPolicy};
use serde::{Deserialize, Serialize};

pub(crate) use isolation::{Isolation, Publish};
use links::{EventPlan, LinkPlan};
use programs::{NodeKeys, ProgramPlan};
use read::{Fault, boolean, choice, duration_ms, fault, name, number, table, unknown, wrong_kind};
use tree::{Entry, Node, Value};

/// Longest name of a cluster or node.
const NAME_MAX: usize = 32;
/// Last octet that the claim on a subnet occupies.
pub(crate) const CLAIM_HOST: u8 = 254;

/// A cluster as its file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ClusterPlan {
    /// Name in the file.
    pub(crate) name: Option<String>,
    /// Whether a wildcard listener also listens on the SAN.
    pub(crate) wildcard_on_san: bool,
    /// What happens to connects beyond a listener's backlog.
    pub(crate) backlog_full: BacklogFull,
    /// Time a connect gets on the SAN before TCP is tried; the switch's own when absent.
    pub(crate) san_connect_limit_ms: Option<u64>,
    /// Road of a node's connections to itself.
    pub(crate) loopback: Loopback,
    /// What keeps the nodes apart.
    #[serde(default)]
    pub(crate) isolation: Isolation,
    /// What becomes of traffic that links cannot govern, in loopback mode.
    #[serde(default)]
    pub(crate) ungoverned: UngovernedPolicy,
    /// Decides what links and fault rules draw.
    pub(crate) seed: u64,
    /// The nodes, in the file's order.
    pub(crate) nodes: Vec<NodePlan>,
    /// Links that are not perfect.
    pub(crate) links: Vec<LinkPlan>,
    /// What changes later, in the order of the times.
    pub(crate) events: Vec<EventPlan>,
}

/// A node as the file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct NodePlan {
    /// Name.
    pub(crate) name: String,
    /// Static addresses.
    pub(crate) addresses: Vec<NodeAddress>,
    /// Whether an address is assigned when there is no static one.
    pub(crate) ip_autoconf: bool,
    /// Ports that the host offers, in namespace mode.
    #[serde(default)]
    pub(crate) publish: Vec<Publish>,
    /// What its programs may take of its NIC together.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// The equal nodes that it is one of.
    pub(crate) group: Option<Group>,
    /// What runs on it.
    pub(crate) programs: Vec<ProgramPlan>,
    /// Nodes whose programs must be ready before its own start.
    pub(crate) after: Vec<String>,
}

/// Equal nodes that one table stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Its name, in front of the number in theirs.
    pub(crate) name: String,
    /// How many there are.
    pub(crate) count: u8,
    /// Which of them it is, from 1.
    pub(crate) index: u8,
}

/// What is wrong with a cluster file, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

impl ClusterPlan {
    /// The cluster that runs without a file: nodes a, b and c.
    pub(crate) fn built_in() -> Self {
        let node = |name: &str| NodePlan {
            name: name.to_owned(),
            addresses: Vec::new(),
            ip_autoconf: true,
            publish: Vec::new(),
            limits: Limits::default(),
            group: None,
            programs: Vec::new(),
            after: Vec::new(),
        };
        Self {
            name: None,
            wildcard_on_san: true,
            backlog_full: BacklogFull::Hold,
            san_connect_limit_ms: None,
            loopback: Loopback::Tcp,
            isolation: Isolation::Loopback,
            ungoverned: UngovernedPolicy::Warn,
            seed: 0,
            nodes: ["a", "b", "c"].map(node).into(),
            links: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Reads a cluster file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.to_owned(),
            line: None,
            message: format!("cannot read the cluster file: {error}"),
        })?;
        Self::parse(path, &text)
    }

    /// Parses the text of a cluster file; a path that ends in `.json` holds JSON.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let is_json = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let root = if is_json {
            tree::parse_json(text)
        } else {
            tree::parse_toml(text)
        };
        let root = root.map_err(|error| ConfigError {
            file: path.to_owned(),
            line: error.line,
            message: error.message,
        })?;
        read_plan(&root).map_err(|fault| ConfigError {
            file: path.to_owned(),
            line: fault.line,
            message: fault.message,
        })
    }

    /// Third octets of all static addresses, each once, in the file's order.
    pub(crate) fn static_subnets(&self) -> Vec<u8> {
        let mut subnets = Vec::new();
        for address in self.nodes.iter().flat_map(|node| &node.addresses) {
            let subnet = address.ip.octets()[2];
            if !subnets.contains(&subnet) {
                subnets.push(subnet);
            }
        }
        subnets
    }

    /// Whether a node waits for an address to be assigned.
    pub(crate) fn wants_assignment(&self) -> bool {
        self.nodes.iter().any(NodePlan::wants_assignment)
    }

    /// Assigns addresses in 127.77.`subnet`.0/24, in namespace mode in the network of the first static address or the default one: node k gets
    /// host k, or the next free one.
    pub(crate) fn resolve(&self, subnet: Option<u8>) -> Vec<NodeSpec> {
        let mut taken: Vec<Ipv4Addr> = self
            .nodes
            .iter()
            .flat_map(|node| node.addresses.iter().map(|address| address.ip))
            .collect();
        let network = match self.isolation {
            Isolation::Loopback => subnet.map(|subnet| NodeAddress {
                ip: Ipv4Addr::new(127, 77, subnet, 0),
                prefix: 24,
            }),
            Isolation::Netns => {
                let mut given = self.nodes.iter().flat_map(|node| &node.addresses);
                Some(given.next().copied().unwrap_or(isolation::DEFAULT_NETWORK))
            }
        };
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate() {
            let mut addresses = node.addresses.clone();
            if let (true, Some(network)) = (node.wants_assignment(), network) {
                let own = index + 1;
                let hosts = (own..usize::from(CLAIM_HOST)).chain(1..own);
                let mut free = hosts
                    .filter_map(|host| isolation::host_of(network, host))
                    .filter(|ip| !taken.contains(ip));
                if let Some(ip) = free.next() {
                    taken.push(ip);
                    addresses.push(NodeAddress { ip, ..network });
                }
            }
            nodes.push(NodeSpec {
                name: node.name.clone(),
                addresses,
                limits: node.limits,
            });
        }
        nodes
    }

    /// Whether any node has a program.
    pub(crate) fn has_programs(&self) -> bool {
        self.nodes.iter().any(|node| !node.programs.is_empty())
    }

    /// What the emulator does to its links.
    pub(crate) fn lab(&self) -> LabConfig {
        LabConfig {
            seed: self.seed,
            ungoverned: match self.isolation {
                Isolation::Loopback => self.ungoverned,
                Isolation::Netns => UngovernedPolicy::Nothing,
            },
            links: self.links.iter().flat_map(LinkPlan::directions).collect(),
            events: self
                .events
                .iter()
                .filter_map(EventPlan::of_fabric)
                .collect(),
        }
    }

    /// The configuration as a cluster file.
    pub(crate) fn to_toml(&self, name: &str) -> String {
        let mut text = format!(
            "[cluster]\nname = \"{name}\"\nwildcard_on_san = {}\nbacklog_full = \"{}\"\nloopback = \"{}\"\n",
            self.wildcard_on_san,
            backlog_name(self.backlog_full),
            loopback_name(self.loopback)
        );
        if self.isolation != Isolation::Loopback {
            text.push_str(&format!("isolation = \"{}\"\n", self.isolation.word()));
        }
        text.push_str(isolation::ungoverned_line(self.ungoverned));
        if let Some(limit_ms) = self.san_connect_limit_ms {
            text.push_str(&format!("san_connect_limit = \"{limit_ms} ms\"\n"));
        }
        if self.seed != 0 {
            text.push_str(&format!("seed = {}\n", self.seed));
        }
        for node in self.nodes.iter().filter(|node| node.is_written()) {
            let addresses: Vec<String> = node
                .addresses
                .iter()
                .map(|address| format!("\"{address}\""))
                .collect();
            text.push_str(&format!(
                "\n[[node]]\nname = \"{}\"\naddresses = [{}]\nip_autoconf = {}\n",
                node.written_name(),
                addresses.join(", "),
                node.ip_autoconf
            ));
            if !node.publish.is_empty() {
                let ports: Vec<_> = node.publish.iter().map(|p| format!("\"{p}\"")).collect();
                text.push_str(&format!("publish = [{}]\n", ports.join(", ")));
            }
            text.push_str(&limits::to_toml(&node.limits));
            text.push_str(&programs::to_toml(node));
        }
        for link in &self.links {
            text.push_str(&link.to_toml());
        }
        for event in &self.events {
            text.push_str(&links::event_to_toml(event));
        }
        text
    }
}

impl NodePlan {
    fn wants_assignment(&self) -> bool {
        self.ip_autoconf && self.addresses.is_empty()
    }

    /// Whether a cluster file has a table for it, which the first of equal nodes has for all.
    fn is_written(&self) -> bool {
        self.group.as_ref().is_none_or(|group| group.index == 1)
    }

    /// The name in that table.
    fn written_name(&self) -> &str {
        self.group.as_ref().map_or(&self.name, |group| &group.name)
    }
}

/// The word for it in a cluster file.
const fn backlog_name(backlog_full: BacklogFull) -> &'static str {
    match backlog_full {
        BacklogFull::Hold => "hold",
        BacklogFull::Refuse => "refuse",
    }
}

/// The word for it in a cluster file.
const fn loopback_name(loopback: Loopback) -> &'static str {
    match loopback {
        Loopback::Tcp => "tcp",
        Loopback::San => "san",
    }
}

/// Whether a text can be the name of a cluster or node: it becomes the name of a directory.
pub(crate) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.len() <= NAME_MAX
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// What a name may look like, for messages.
pub(crate) const NAME_RULE: &str =
    "up to 32 letters, digits, `-` and `_`, the first a letter or digit";

fn read_plan(root: &Node) -> Result<ClusterPlan, Fault> {
    let mut plan = ClusterPlan {
        nodes: Vec::new(),
        ..ClusterPlan::built_in()
    };
    let mut autoconf = true;
    let entries = table(root, "the file")?;
    // `[cluster]` may stand behind the nodes; its values hold for all of them.
    for entry in entries.iter().filter(|entry| entry.key == "cluster") {
        autoconf = read_cluster(&entry.node, &mut plan)?;
    }
    // Where the table of each node stands: its number and line.
    let mut places: Vec<(usize, Option<usize>)> = Vec::new();
    for entry in entries {
        match entry.key.as_str() {
            "cluster" => {}
            "node" => {
                let Value::Array(nodes) = &entry.node.value else {
                    return fault(
                        entry.line,
                        "`node` must be an array of tables: write `[[node]]`".to_owned(),
                    );
                };
                for (index, node) in nodes.iter().enumerate() {
                    for one in read_node(node, index, autoconf, plan.isolation)? {
                        plan.nodes.push(one);
                        places.push((index, node.line));
                    }
                }
            }
            "link" | "event" => {}
            _ => return unknown(entry, "the file", &["cluster", "node", "link", "event"]),
        }
    }
    if plan.nodes.is_empty() {
        return fault(
            None,
            "there is no node: add `[[node]]` with a `name`".to_owned(),
        );
    }
    if plan.nodes.len() >= usize::from(CLAIM_HOST) {
        return fault(None, format!("more than {} nodes", CLAIM_HOST - 1));
    }
    check_different(&plan, &places)?;
    programs::settle_order(&mut plan.nodes, &places)?;
    // Both name nodes, wherever they stand in the file.
    let names: Vec<String> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    for entry in entries {
        match entry.key.as_str() {
            "link" => plan.links = links::read_links(entry, &names)?,
            "event" => plan.events = links::read_events(entry, &plan.nodes)?,
            _ => {}
        }
    }
    Ok(plan)
}

fn read_cluster(node: &Node, plan: &mut ClusterPlan) -> Result<bool, Fault> {
    let mut autoconf = true;
    for entry in table(node, "`cluster`")? {
        match entry.key.as_str() {
            "name" => plan.name = Some(name(entry, "cluster.name")?),
            "ip_autoconf" => autoconf = boolean(entry, "cluster.ip_autoconf")?,
            "wildcard_on_san" => plan.wildcard_on_san = boolean(entry, "cluster.wildcard_on_san")?,
            "backlog_full" => {
                plan.backlog_full =
                    match choice(entry, "cluster.backlog_full", &["hold", "refuse"])? {
                        "hold" => BacklogFull::Hold,
                        _ => BacklogFull::Refuse,
                    };
            }
            "isolation" => {
                plan.isolation = match choice(entry, "cluster.isolation", &Isolation::WORDS)? {
                    "netns" => Isolation::Netns,
                    _ => Isolation::Loopback,
                };
            }
            "ungoverned" => plan.ungoverned = isolation::read_ungoverned(entry)?,
            "seed" => plan.seed = number(entry, "cluster.seed")?,
            "san_connect_limit" => {
                plan.san_connect_limit_ms = Some(duration_ms(entry, "cluster.san_connect_limit")?);
            }
            "loopback" => {
                plan.loopback = match choice(entry, "cluster.loopback", &["tcp", "san"])? {
                    "san" => Loopback::San,
                    _ => Loopback::Tcp,
                };
            }
            _ => {
                return unknown(
                    entry,
                    "`cluster`",
                    &[
                        "name",
                        "ip_autoconf",
                        "wildcard_on_san",
                        "backlog_full",
                        "san_connect_limit",
                        "loopback",
                        "isolation",
                        "ungoverned",
                        "seed",
                    ],
                );
            }
        }
    }
    Ok(autoconf)
}

/// The nodes of one table: one, or as many equal ones as it says.
fn read_node(
    node: &Node,
    index: usize,
    autoconf: bool,
    isolation: Isolation,
) -> Result<Vec<NodePlan>, Fault> {
    let path = |key: &str| format!("node[{index}].{key}");
    let mut node_name = None;
    let mut addresses = Vec::new();
    let mut ip_autoconf = autoconf;
    let mut publish = Vec::new();
    let mut limits = Limits::default();
    let mut count = None;
    let mut keys = NodeKeys::default();
    for entry in table(node, &format!("node[{index}]"))? {
        match entry.key.as_str() {
            "name" => node_name = Some(name(entry, &path("name"))?),
            "ip_autoconf" => ip_autoconf = boolean(entry, &path("ip_autoconf"))?,
            "addresses" => addresses = read_addresses(entry, &path("addresses"), isolation)?,
            "publish" => publish = isolation::read_publish(entry, &path("publish"), isolation)?,
            "limits" => limits = limits::read(entry, &path("limits"))?,
            "count" => count = Some((read_count(entry, &path("count"))?, entry.line)),
            _ if keys.take(entry) => {}
            _ => {
                let mut known = vec![
                    "name",
                    "addresses",
                    "ip_autoconf",
                    "publish",
                    "limits",
                    "count",
                ];
                known.extend(NodeKeys::NAMES);
                return unknown(entry, &format!("node[{index}]"), &known);
            }
        }
    }
    let Some(node_name) = node_name else {
        return fault(
            node.line,
            format!("node[{index}] has no `name` ({NAME_RULE})"),
        );
    };
    let (programs, after) = keys.read(&format!("node[{index}]"))?;
    let one = NodePlan {
        name: node_name,
        addresses,
        ip_autoconf,
        publish,
        limits,
        group: None,
        programs,
        after,
    };
    let Some((count, line)) = count else {
        return Ok(vec![one]);
    };
    if !one.addresses.is_empty() || !one.publish.is_empty() {
        return fault(
            line,
            format!(
                "{}: equal nodes cannot have `addresses` or `publish`, which differ",
                path("count")
            ),
        );
    }
    if one.name.len() + 3 > NAME_MAX {
        return fault(
            line,
            format!(
                "{}: the name `{}` has no room for a number behind it",
                path("count"),
                one.name
            ),
        );
    }
    let member = |index: u8| NodePlan {
        name: format!("{}{index}", one.name),
        group: Some(Group {
            name: one.name.clone(),
            count,
            index,
        }),
        ..one.clone()
    };
    Ok((1..=count).map(member).collect())
}

fn read_count(entry: &Entry, path: &str) -> Result<u8, Fault> {
    let count = u8::try_from(number(entry, path)?).ok();
    match count.filter(|count| (1..CLAIM_HOST).contains(count)) {
        Some(count) => Ok(count),
        None => fault(
            entry.node.line.or(entry.line),
            format!(
                "{path}: how many equal nodes there are, from 1 to {}",
                CLAIM_HOST - 1
            ),
        ),
    }
}

fn read_addresses(
    entry: &Entry,
    path: &str,
    isolation: Isolation,
) -> Result<Vec<NodeAddress>, Fault> {
    let Value::Array(items) = &entry.node.value else {
        return wrong_kind(entry, path, "an array of addresses, as [\"127.77.0.1/24\"]");
    };
    let mut addresses: Vec<NodeAddress> = Vec::with_capacity(items.len());
    for item in items {
        let line = item.line.or(entry.line);
        let Value::Text(text) = &item.value else {
            return fault(
                line,
                format!(
                    "{path}: {} where an address as \"127.77.0.1/24\" belongs",
                    item.value.kind()
                ),
            );
        };
        match isolation.read_address(text) {
            Ok(address) if addresses.iter().any(|other| other.ip == address.ip) => {
                return fault(
                    line,
                    format!("{path}: the address {} stands twice", address.ip),
                );
            }
            Ok(address) => addresses.push(address),
            Err(message) => return fault(line, format!("{path}: {message}")),
        }
    }
    Ok(addresses)
}

fn check_different(plan: &ClusterPlan, places: &[(usize, Option<usize>)]) -> Result<(), Fault> {
    let place = |at: usize| places.get(at).copied().unwrap_or_default();
    for (at, node) in plan.nodes.iter().enumerate() {
        let (index, line) = place(at);
        for (other_at, other) in plan.nodes[..at].iter().enumerate() {
            let (other_index, _) = place(other_at);
            let is_group = |node: &NodePlan, name: &str| {
                node.group.as_ref().is_some_and(|group| group.name == name)
            };
            if index != other_index
                && (is_group(node, &other.name)
                    || is_group(other, &node.name)
                    || is_group(other, node.written_name()))
            {
                return fault(
                    line,
                    format!(
                        "node[{index}].name: `{}` is the name of node[{other_index}] too",
                        node.written_name()
                    ),
                );
            }
            if other.name == node.name {
                return fault(
                    line,
                    format!(
                        "node[{index}].name: `{}` is the name of node[{other_index}] too",
                        node.name
                    ),
                );
            }
            let shared = node
                .addresses
                .iter()
                .find(|address| other.addresses.iter().any(|theirs| theirs.ip == address.ip));
            if let Some(address) = shared {
                return fault(
                    line,
                    format!(
                        "node[{index}].addresses: {} is an address of node `{}` too",
                        address.ip, other.name
                    ),
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
