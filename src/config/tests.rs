//! Tests of cluster files: one row per mistake, with the line and the words that must show it.

use super::*;

fn parse(text: &str) -> Result<ClusterPlan, ConfigError> {
    ClusterPlan::parse(Path::new("lab.toml"), text)
}

#[test]
fn a_whole_file_is_read() {
    let plan = parse(
        "[cluster]\nname = \"lab\"\nip_autoconf = false\nwildcard_on_san = false\nbacklog_full = \"refuse\"\nsan_connect_limit = \"3 s\"\nloopback = \"san\"\n\
         [[node]]\nname = \"a\"\naddresses = [\"127.77.5.1/24\", \"127.77.5.2\"]\n[[node]]\nname = \"b\"\nip_autoconf = true\n",
    )
    .unwrap();
    assert_eq!(plan.name.as_deref(), Some("lab"));
    assert!(!plan.wildcard_on_san);
    assert_eq!(plan.backlog_full, BacklogFull::Refuse);
    assert_eq!(plan.san_connect_limit_ms, Some(3_000));
    assert_eq!(plan.loopback, Loopback::San);
    assert_eq!(plan.nodes[0].addresses[1].to_string(), "127.77.5.2/24");
    assert!(!plan.nodes[0].ip_autoconf);
    assert!(plan.nodes[1].ip_autoconf);
    assert_eq!(plan.static_subnets(), [5]);
}

#[test]
fn printed_configuration_is_a_file_of_the_same_meaning() {
    let text = "[cluster]\nbacklog_full = \"refuse\"\nsan_connect_limit = \"2min\"\nloopback = \"san\"\n[[node]]\nname = \"a\"\naddresses = [\"127.77.5.1/24\"]\n[[node]]\nname = \"b\"\nip_autoconf = false\n";
    let plan = parse(text).unwrap();
    let mut again = parse(&plan.to_toml("x")).unwrap();
    assert_eq!(again.name.take().as_deref(), Some("x"));
    assert_eq!(again, plan);
}

#[test]
fn json_says_the_same() {
    let json =
        r#"{"cluster": {"name": "lab"}, "node": [{"name": "a", "addresses": ["127.77.0.1/24"]}]}"#;
    let plan = ClusterPlan::parse(Path::new("lab.json"), json).unwrap();
    assert_eq!(plan.nodes[0].addresses[0].to_string(), "127.77.0.1/24");
    let error = ClusterPlan::parse(
        Path::new("lab.json"),
        r#"{"node": [{"name": "a", "x": 1}]}"#,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("unknown key `x` in node[0]"),
        "{error}"
    );
}

#[test]
fn mistakes_name_file_line_key_and_what_is_allowed() {
    let node = "[[node]]\nname = \"a\"\n";
    let cases: &[(&str, usize, &[&str])] = &[
        (
            "[cluster]\nnmae = \"x\"\n",
            2,
            &["`nmae`", "`name`, `ip_autoconf`"],
        ),
        (
            "clutser = 1\n",
            1,
            &["`clutser`", "`cluster`, `node`, `link`"],
        ),
        (
            "[[node]]\nname = \"a\"\nlatency = \"1 ms\"\n",
            3,
            &["`latency`", "node[0]"],
        ),
        (
            "[cluster]\nip_autoconf = \"yes\"\n",
            2,
            &["cluster.ip_autoconf", "a string", "true or false"],
        ),
        (
            "[cluster]\nbacklog_full = \"drop\"\n",
            2,
            &["cluster.backlog_full", "\"hold\" or \"refuse\""],
        ),
        (
            "[cluster]\nsan_connect_limit = \"0 s\"\n",
            2,
            &["cluster.san_connect_limit", "\"1 ms\" to \"60 min\""],
        ),
        (
            "[cluster]\nsan_connect_limit = \"10 h\"\n",
            2,
            &["\"10 h\""],
        ),
        ("[cluster]\nsan_connect_limit = 10\n", 2, &["an integer"]),
        (
            "[cluster]\nloopback = \"lan\"\n",
            2,
            &["cluster.loopback", "\"tcp\" or \"san\""],
        ),
        ("[cluster]\nname = \"a b\"\n", 2, &["cluster.name", "`a b`"]),
        ("[[node]]\naddresses = []\n", 1, &["node[0]", "no `name`"]),
        (
            "[[node]]\nname = \"a\"\naddresses = [\"10.0.0.1/24\"]\n",
            3,
            &["10.0.0.1", "127.77.0.0/16", "isolation = \"netns\""],
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [\"127.77.0.300\"]\n",
            3,
            &["127.77.0.300", "no IPv4 address"],
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [\"127.77.0.1/33\"]\n",
            3,
            &["between 16 and 30"],
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [\"127.77.0.254/24\"]\n",
            3,
            &["between 1 and 253"],
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [7]\n",
            3,
            &["an integer"],
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [\n  \"127.77.0.1/24\",\n  \"127.77.0.1/24\"]\n",
            5,
            &["stands twice"],
        ),
        (
            "[[node]]\nname = \"a\"\n[[node]]\nname = \"a\"\n",
            3,
            &["`a`", "node[0]"],
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [\"127.77.0.1\"]\n[[node]]\nname = \"b\"\naddresses = [\"127.77.0.1\"]\n",
            4,
            &["127.77.0.1", "`a`"],
        ),
        ("[[node]]\nname = \"a\"\nname = \"b\"\n", 3, &["duplicate"]),
        ("[cluster\n", 1, &[]),
    ];
    for (text, line, words) in cases {
        let with_node = if text.contains("[[node]]") {
            (*text).to_owned()
        } else {
            format!("{text}{node}")
        };
        let error = parse(&with_node).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("lab.toml:{line}: ")),
            "{text:?} -> {error}"
        );
        for word in *words {
            assert!(error.contains(word), "{text:?} -> {error} lacks {word:?}");
        }
    }
}

#[test]
fn a_file_without_nodes_is_refused() {
    assert!(parse("").unwrap_err().to_string().contains("[[node]]"));
}

#[test]
fn assigned_addresses_follow_the_order_and_avoid_static_ones() {
    let plan = parse(
        "[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\naddresses = [\"127.77.9.3/24\"]\n[[node]]\nname = \"c\"\n\
         [[node]]\nname = \"d\"\nip_autoconf = false\n",
    )
    .unwrap();
    let nodes = plan.resolve(Some(9));
    let shown: Vec<String> = nodes
        .iter()
        .map(|node| {
            node.addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        })
        .collect();
    assert_eq!(
        shown,
        ["127.77.9.1/24", "127.77.9.3/24", "127.77.9.4/24", ""]
    );
}
