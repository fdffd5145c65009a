//! The cluster file as types, for the JSON schema that editors and CI take.
//!
//! Place: `sanlab check --schema` prints [`schema`]; the reader in `config` walks a tree instead, for errors with lines. Invariants: both know the
//! same keys, which a test of each table holds them to; what the reader takes the schema takes too. Source: JSON Schema 2020-12, schemars.
//! Leaves out: what one key says about another (names that exist, circles, pairs that stand twice), which only the reader checks.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, schema_for};

/// The schema of a cluster file.
pub(crate) fn schema() -> Schema {
    schema_for!(ClusterFile)
}

/// A cluster of sanlab: nodes, what runs on them, links between them, and what happens when.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, title = "sanlab cluster file")]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct ClusterFile {
    cluster: Option<Cluster>,
    /// At least one.
    #[schemars(length(min = 1))]
    node: Vec<Node>,
    #[schemars(default)]
    link: Vec<Link>,
    #[schemars(default)]
    event: Vec<Event>,
}

/// What holds for the whole cluster.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Cluster {
    /// `sanlab up --name` wins.
    name: Option<Name>,
    /// A node without addresses gets one.
    ip_autoconf: Option<bool>,
    /// A listener on the wildcard address listens on the SAN too.
    wildcard_on_san: Option<bool>,
    /// A connect to a listener whose backlog is full waits, or is refused.
    backlog_full: Option<BacklogFull>,
    /// How long a connect waits for an answer on the SAN before TCP is tried.
    san_connect_limit: Option<Limit>,
    /// Road of a node's connections to itself.
    loopback: Option<Loopback>,
    /// What keeps the nodes apart.
    isolation: Option<Isolation>,
    /// What becomes of traffic between nodes that links cannot govern.
    ungoverned: Option<Ungoverned>,
    /// Decides what links and fault rules draw.
    seed: Option<u64>,
}

/// A node, or as many equal ones as `count` says.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Node {
    name: Name,
    /// Addresses with prefix length, as 127.77.0.1/24.
    addresses: Option<Vec<Address>>,
    /// The cluster's key of this name, for this node.
    ip_autoconf: Option<bool>,
    /// Ports that the host offers, as 127.0.0.1:8080:80.
    publish: Option<Vec<Published>>,
    /// What its programs may take of its NIC together.
    limits: Option<Limits>,
    /// So many equal nodes, name1, name2, ...
    #[schemars(range(min = 1, max = 253))]
    count: Option<u8>,
    /// A program as a list of words, or several as tables.
    run: Option<Run>,
    /// Nodes whose programs must be ready before.
    after: Option<Vec<String>>,
    /// Environment of all its programs.
    env: Option<BTreeMap<String, String>>,
    /// Whether programs that ended start again.
    restart: Option<Restart>,
    /// When its programs are ready.
    ready: Option<Ready>,
    /// Working directory, seen from the cluster file; the node's state folder when absent.
    #[schemars(length(min = 1))]
    dir: Option<String>,
    /// Between SIGTERM and SIGKILL.
    stop_timeout: Option<Time>,
}

/// What the programs of a node may take of its NIC together.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Limits {
    /// Processes that use the NIC; those that inherited it are one.
    #[schemars(range(max = 4096))]
    functions: Option<u32>,
    /// Queue pairs.
    #[schemars(range(max = 32767))]
    qps: Option<u32>,
    /// Completion queues.
    #[schemars(range(max = 32767))]
    cqs: Option<u32>,
    /// Shared receive queues.
    #[schemars(range(max = 32767))]
    srqs: Option<u32>,
    /// Memory regions.
    #[schemars(range(max = 262_144))]
    mrs: Option<u32>,
    /// Memory windows.
    #[schemars(range(max = 65536))]
    mws: Option<u32>,
    /// Protection domains.
    #[schemars(range(max = 4096))]
    pds: Option<u32>,
    /// Pieces of memory that the NIC can reach.
    #[schemars(range(max = 4096))]
    windows: Option<u32>,
    /// Bytes in them.
    memory: Option<Size>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
enum Run {
    /// One program.
    Command(Command),
    /// Several.
    Programs(Vec<Program>),
}

/// A program and its arguments.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Command(#[schemars(length(min = 1))] Vec<String>);

/// A program of a node with keys of its own.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Program {
    command: Command,
    /// Added to the node's.
    env: Option<BTreeMap<String, String>>,
    restart: Option<Restart>,
    ready: Option<Ready>,
    #[schemars(length(min = 1))]
    dir: Option<String>,
    stop_timeout: Option<Time>,
}

/// When a program is ready: exactly one of tcp, command, output and exit.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, extend("oneOf" = [
    { "required": ["tcp"] }, { "required": ["command"] }, { "required": ["output"] }, { "required": ["exit"] }
]))]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Ready {
    /// A process of the node listens on this port.
    #[schemars(range(min = 1, max = 65535))]
    tcp: Option<u16>,
    /// This command, run on the node, exits with 0.
    command: Option<Command>,
    /// A line that it writes has this text.
    #[schemars(length(min = 1))]
    output: Option<String>,
    /// It has ended with 0.
    #[schemars(extend("const" = true))]
    exit: Option<bool>,
    /// A program that is not ready by then ends the start.
    timeout: Option<Time>,
}

/// How packets fare between two nodes.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Link {
    a: String,
    b: String,
    /// What differs in that direction.
    a_to_b: Option<Parameters>,
    /// What differs in that direction.
    b_to_a: Option<Parameters>,
    #[schemars(flatten)]
    both: Parameters,
}

/// Parameters of a link.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Parameters {
    /// False: cut.
    up: Option<bool>,
    /// Of each direction.
    bandwidth: Option<Rate>,
    /// What waits for a limited bandwidth at most; a packet that finds no room is dropped.
    queue: Option<QueueLength>,
    /// Longest IP packet; holds for both directions.
    #[schemars(range(min = 576, max = 9216))]
    mtu: Option<u32>,
    /// Time on the way.
    latency: Option<Time>,
    /// Largest extra time on the way.
    jitter: Option<Time>,
    /// How often which extra time comes.
    jitter_distribution: Option<JitterDistribution>,
    /// Packets lost; between bursts, where there are bursts.
    loss: Option<Share>,
    /// Packets that begin a burst of losses (Gilbert-Elliott).
    burst_enter: Option<Share>,
    /// Packets that end it.
    burst_leave: Option<Share>,
    /// Packets lost in a burst.
    burst_loss: Option<Share>,
    /// Packets held back, so that later ones overtake them.
    reorder: Option<Share>,
    /// Longest time that a packet is held back.
    reorder_by: Option<Time>,
    /// Packets that arrive twice.
    duplicate: Option<Share>,
    /// Packets that arrive damaged, which is found.
    corrupt: Option<Share>,
}

/// What happens by the clock.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, extend("not" = { "required": ["link", "node"] }, "allOf" = [
    { "if": { "properties": { "action": { "const": "set" } } }, "then": { "required": ["set", "link"] }, "else": { "not": { "required": ["set"] } } },
    { "if": { "properties": { "action": { "enum": ["kill", "poweroff", "freeze", "thaw", "restart"] } } }, "then": { "required": ["node"] } },
    { "if": { "properties": { "action": { "enum": ["partition", "heal"] } } }, "then": { "not": { "required": ["node"] } } },
    { "if": { "properties": { "action": { "const": "partition" } } }, "then": { "required": ["link"] } },
    { "if": { "properties": { "action": { "enum": ["down", "up"] } } }, "then": { "anyOf": [{ "required": ["link"] }, { "required": ["node"] }] } }
]))]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
struct Event {
    /// Time since all is ready.
    at: Time,
    /// ["a", "b"] for both directions, "a->b" for one.
    link: Option<Ends>,
    /// A node's port or programs.
    node: Option<String>,
    action: Action,
    /// For `action = "set"`.
    set: Option<Parameters>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "its fields are read by the derive alone")]
enum Ends {
    /// Both directions.
    Both([String; 2]),
    /// One direction.
    One(#[schemars(regex(pattern = "->"))] String),
}

/// How often which extra time comes.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "its names are read by the derive alone")]
enum JitterDistribution {
    Uniform,
    Normal,
    Pareto,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "its variants are read by the derive alone")]
enum Action {
    Set,
    Down,
    Up,
    Partition,
    Heal,
    Kill,
    Poweroff,
    Freeze,
    Thaw,
    Restart,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "its variants are read by the derive alone")]
enum BacklogFull {
    Hold,
    Refuse,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "its variants are read by the derive alone")]
enum Loopback {
    Tcp,
    San,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "its variants are read by the derive alone")]
enum Isolation {
    Loopback,
    Netns,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "its variants are read by the derive alone")]
enum Ungoverned {
    Warn,
    Refuse,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[expect(dead_code, reason = "its variants are read by the derive alone")]
enum Restart {
    No,
    OnFailure,
    Always,
}

/// Letters, digits, - and _, the first a letter or digit.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Name(#[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"))] String);

/// An IPv4 address with its prefix length, as 127.77.0.1/24.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Address(#[schemars(regex(pattern = "^([0-9]{1,3}\\.){3}[0-9]{1,3}(/[0-9]{1,2})?$"))] String);

/// A port of the host and one of the node, as 127.0.0.1:8080:80.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Published(#[schemars(regex(pattern = "^([0-9.]+:)?[0-9]{1,5}:[0-9]{1,5}$"))] String);

/// A time with its unit: 25 us, 1 ms, 2 s, 1 min 30 s, or 0.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Time(#[schemars(regex(pattern = "^\\s*(0|([0-9]+\\s*[a-z]+\\s*)+)\\s*$"))] String);

/// A time from 1 ms to 60 min, in ms, s or min.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Limit(#[schemars(regex(pattern = "^[0-9]+\\s*(ms|s|min)\\s*$"))] String);

/// A share: 0.1 %, 250 ppm, or 0.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Share(#[schemars(regex(pattern = "^\\s*(0|[0-9]+(\\.[0-9]*)?\\s*(%|ppm))\\s*$"))] String);

/// A size: 4 GiB, 64 MiB, 1 MB.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Size(
    #[schemars(regex(pattern = "^\\s*[0-9]+(\\.[0-9]*)?\\s*[kKmMgGtTpP]?[iI]?[bB]?\\s*$"))] String,
);

/// The length of a queue: 64 KiB, 1 MB, or `no limit`.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct QueueLength(
    #[schemars(regex(
        pattern = "^\\s*(no limit|0*[1-9][0-9]*(\\.[0-9]*)?\\s*[kKMGTPmgtp]?[iI]?[bB]?)\\s*$"
    ))]
    String,
);

/// A rate: 10 Gbit/s, 125 MB/s, or 0 for no limit.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "its field is read by the derive alone")]
struct Rate(
    #[schemars(regex(
        pattern = "^\\s*(0|[0-9]+(\\.[0-9]*)?\\s*([kMGT]?(bit/s|bps)|[kKMGTP]?i?B?/s))\\s*$"
    ))]
    String,
);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jsonschema::Validator;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::ClusterPlan;

    fn validator() -> Validator {
        jsonschema::validator_for(schema().as_value()).unwrap()
    }

    /// Keys that the schema has in the definition of this name; at its top without one.
    fn keys(definition: Option<&str>) -> Vec<String> {
        let schema = schema();
        let root = schema.as_value();
        let table = definition.map_or(root, |name| &root["$defs"][name]);
        let mut keys: Vec<String> = table["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        keys.sort();
        keys
    }

    /// Keys that the reader names when it meets one that it does not know.
    fn known(text: &str) -> Vec<String> {
        let error = ClusterPlan::parse(Path::new("x.toml"), text)
            .unwrap_err()
            .to_string();
        let list = error
            .rsplit_once("the keys are ")
            .unwrap_or_else(|| panic!("{error}"))
            .1;
        let mut keys: Vec<String> = list
            .split(", ")
            .map(|key| key.trim_matches('`').to_owned())
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn reader_and_schema_know_the_same_keys() {
        let nodes = "[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n";
        let cases = [
            (None, "strange = 1\n".to_owned()),
            (Some("Cluster"), "[cluster]\nstrange = 1\n".to_owned()),
            (
                Some("Node"),
                "[[node]]\nname = \"a\"\nstrange = 1\n".to_owned(),
            ),
            (
                Some("Limits"),
                "[[node]]\nname = \"a\"\nlimits = { strange = 1 }\n".to_owned(),
            ),
            (
                Some("Program"),
                "[[node]]\nname = \"a\"\nrun = [{ strange = 1 }]\n".to_owned(),
            ),
            (
                Some("Ready"),
                "[[node]]\nname = \"a\"\nrun = [\"x\"]\nready = { strange = 1 }\n".to_owned(),
            ),
            (Some("Link"), format!("{nodes}[[link]]\nstrange = 1\n")),
            (
                Some("Parameters"),
                format!("{nodes}[[link]]\na_to_b = {{ strange = 1 }}\n"),
            ),
            (Some("Event"), format!("{nodes}[[event]]\nstrange = 1\n")),
        ];
        for (definition, text) in cases {
            assert_eq!(keys(definition), known(&text), "{definition:?}");
        }
    }

    fn as_json(text: &str) -> Option<Value> {
        let table: toml::Table = text.parse().ok()?;
        serde_json::to_value(table).ok()
    }

    #[test]
    fn what_the_reader_takes_the_schema_takes() {
        let validator = validator();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut files: Vec<_> = std::fs::read_dir(&examples)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        for directory in files.clone() {
            files.extend(
                std::fs::read_dir(directory)
                    .into_iter()
                    .flatten()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        files.retain(|file| file.extension().is_some_and(|end| end == "toml"));
        assert!(files.len() >= 2, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let plan = ClusterPlan::read(&file).unwrap_or_else(|error| panic!("{error}"));
            for text in [text, plan.to_toml("x")] {
                let value = as_json(&text).unwrap();
                let error = validator
                    .validate(&value)
                    .err()
                    .map(|error| error.to_string());
                assert_eq!(error, None, "{}: {text}", file.display());
            }
        }
        let value = json!({"node": [{"name": "a", "run": [{"command": ["x"]}], "ready": {"tcp": 1}}, {"name": "b", "limits": {"qps": 4, "memory": "1.5 GiB"}}],
            "link": [{"a": "a", "b": "b", "bandwidth": "1.5 Mbit/s", "loss": "0", "queue": "64 KiB", "mtu": 9000, "jitter_distribution": "pareto", "burst_enter": "0.1 %", "b_to_a": {"up": false, "latency": "1 min 3 s"}}],
            "event": [{"at": "0", "action": "heal"}, {"at": "1 s", "link": ["a", "b"], "action": "down"}, {"at": "1 s", "node": "a", "action": "kill"}]});
        assert_eq!(
            validator
                .validate(&value)
                .err()
                .map(|error| error.to_string()),
            None
        );
    }

    #[test]
    fn most_wrong_files_are_wrong_for_the_schema_too() {
        let validator = validator();
        let corpus = include_str!("../../tests/wrong_clusters.txt");
        let (mut refused, mut all) = (0, 0);
        let mut taken = Vec::new();
        for case in corpus.split("\n=== ").skip(1) {
            let (error, text) = case.split_once('\n').unwrap();
            // What is no TOML at all is for the parser.
            let Some(value) = as_json(text) else {
                continue;
            };
            all += 1;
            let is_refused = !validator.is_valid(&value);
            refused += u32::from(is_refused);
            if !is_refused {
                taken.push(error);
            }
            // Keys and kinds are what a schema is for.
            let is_for_schema = error.contains("unknown key")
                || error.contains("must be a table")
                || error.contains("must be an array")
                || error.contains("has no `name`");
            assert!(is_refused || !is_for_schema, "{error}\n{text}");
        }
        assert!(refused * 3 >= all * 2, "{refused} of {all}; not {taken:#?}");
    }
}
