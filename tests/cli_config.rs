//! Cluster files through the command: mistakes start nothing, and what the file says is in force.

mod harness;

use harness::Lab;

#[test]
fn a_mistake_is_one_line_with_file_line_and_key_and_starts_nothing() {
    let lab = Lab::new("a_mistake_is_one_line_with_file_line_and_key_and_starts_nothing");
    let cases = [
        (
            "[cluster]\nlatency = \"1 ms\"\n[[node]]\nname = \"a\"\n",
            ":2:",
            "unknown key `latency`",
        ),
        (
            "[cluster]\nloopback = \"lan\"\n[[node]]\nname = \"a\"\n",
            ":2:",
            "\"tcp\" or \"san\"",
        ),
        (
            "[[node]]\nname = \"a\"\naddresses = [\"192.168.0.1/24\"]\n",
            ":3:",
            "isolation = \"netns\"",
        ),
        (
            "[[node]]\nname = \"a\"\n[[node]]\nname = \"a\"\n",
            ":3:",
            "`a`",
        ),
        ("[[node]\n", ":1:", ""),
    ];
    for (text, line, words) in cases {
        let file = lab.write("bad.toml", text);
        let said = lab.fail(2, &["up", file.to_str().unwrap()]);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.contains(&format!("bad.toml{line}")) && said.contains(words),
            "{said}"
        );
        assert_eq!(lab.leftovers(), [""; 0]);
    }
    let said = lab.fail(2, &["up", "no-such-file.toml"]);
    assert!(said.contains("no-such-file.toml"), "{said}");
    let said = lab.fail(2, &["up", "--name", "../up"]);
    assert!(said.contains("`../up`"), "{said}");
}

#[test]
fn the_name_of_the_file_holds_unless_the_option_is_given() {
    let lab = Lab::new("the_name_of_the_file_holds_unless_the_option_is_given");
    let file = lab.write(
        "lab.toml",
        "[cluster]\nname = \"lab\"\n[[node]]\nname = \"solo\"\n",
    );
    let file = file.to_str().unwrap();
    assert_eq!(lab.up_with(&[file]).name, "lab");
    assert_eq!(lab.up_with(&[file, "--name", "other"]).name, "other");
}

#[test]
fn a_nic_without_address_is_shown_as_such() {
    let lab = Lab::new("a_nic_without_address_is_shown_as_such");
    let file = lab.write(
        "bare.toml",
        "[cluster]\nip_autoconf = false\n[[node]]\nname = \"bare\"\n[[node]]\nname = \"own\"\nip_autoconf = true\n",
    );
    let cluster = lab.up_with(&[file.to_str().unwrap()]);
    let row = cluster.row();
    assert_eq!(row["nodes"][0]["addresses"].as_array().unwrap().len(), 0);
    assert_eq!(row["nodes"][1]["addresses"].as_array().unwrap().len(), 1);
    assert!(lab.succeed(&["ls"]).contains("bare (no address)"));
    assert!(cluster.up.stdout().contains("no address"));
}

#[test]
fn json_files_are_cluster_files_too() {
    let lab = Lab::new("json_files_are_cluster_files_too");
    let file = lab.write(
        "lab.json",
        r#"{"cluster": {"name": "j"}, "node": [{"name": "x"}]}"#,
    );
    assert_eq!(lab.up_with(&[file.to_str().unwrap()]).name, "j");
}

#[test]
fn the_example_files_start() {
    let lab = Lab::new("the_example_files_start");
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let file = examples.join("three-nodes.toml");
    let cluster = lab.up_with(&[file.to_str().unwrap()]);
    assert_eq!(cluster.row()["nodes"].as_array().unwrap().len(), 3);
    drop(cluster);
    let printed = lab.succeed(&[
        "up",
        "--print-config",
        examples.join("addresses.toml").to_str().unwrap(),
    ]);
    assert!(printed.contains("127.77.20.11/24"), "{printed}");
}

#[test]
fn a_socket_path_that_is_too_long_names_its_remedy() {
    let lab = Lab::new("a_socket_path_that_is_too_long_names_its_remedy");
    let long = lab.directory().join("x".repeat(120));
    let output = lab
        .sanlab(["up"])
        .env("SANLAB_RUN_DIR", &long)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("107") && said.contains("SANLAB_RUN_DIR"),
        "{said}"
    );
    assert!(!long.exists());
}
