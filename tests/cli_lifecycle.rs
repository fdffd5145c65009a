//! `up`, `down` and `ls` from beginning to end: nothing is left, whatever way a cluster ends.

mod harness;

use harness::{Lab, Process, kernel, wait_until};
use nix::sys::signal::Signal;

#[test]
fn up_prints_ready_and_sigint_leaves_nothing() {
    let lab = Lab::new("up_prints_ready_and_sigint_leaves_nothing");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut cluster = lab.up();
        assert_eq!(cluster.name, "default");
        let emulator = cluster.emulator_pid();
        cluster.up.signal(signal);
        assert!(cluster.up.wait().success());
        assert!(!kernel::is_alive(emulator));
        assert_eq!(lab.leftovers(), [""; 0]);
    }
}

#[test]
fn ready_means_that_every_node_accepts() {
    let lab = Lab::new("ready_means_that_every_node_accepts");
    let cluster = lab.up();
    for node in ["a", "b", "c"] {
        let socket = cluster.directory().join(node).join("nic0.sock");
        std::os::unix::net::UnixStream::connect(socket).unwrap();
    }
    let row = cluster.row();
    assert_eq!(row["state"], "running");
    assert_eq!(row["nodes"].as_array().unwrap().len(), 3);
}

#[test]
fn down_ends_a_cluster_in_the_foreground_with_its_up() {
    let lab = Lab::new("down_ends_a_cluster_in_the_foreground_with_its_up");
    let mut cluster = lab.up();
    let (emulator, up) = (cluster.emulator_pid(), cluster.up.pid());
    lab.succeed(&["down"]);
    assert!(!kernel::is_alive(emulator));
    assert!(!kernel::is_alive(up));
    assert_eq!(lab.leftovers(), [""; 0]);
    assert!(cluster.up.wait().success());
}

#[test]
fn a_detached_cluster_outlives_its_up_until_down() {
    let lab = Lab::new("a_detached_cluster_outlives_its_up_until_down");
    let said = lab.succeed(&["up", "--detach", "--name", "far"]);
    assert!(said.ends_with("ready\n"), "{said}");
    let list = lab.json(&["ls", "--json"]);
    assert_eq!(list["schema"], 1);
    assert_eq!(list["clusters"][0]["name"], "far");
    assert_eq!(list["clusters"][0]["state"], "running");
    let emulator = u32::try_from(list["clusters"][0]["emulator_pid"].as_u64().unwrap()).unwrap();
    assert!(kernel::is_alive(emulator));
    lab.succeed(&["down", "far"]);
    assert!(!kernel::is_alive(emulator));
    assert_eq!(lab.leftovers(), [""; 0]);
    assert_eq!(
        lab.json(&["ls", "--json"])["clusters"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn a_name_that_runs_already_is_refused_and_left_alone() {
    let lab = Lab::new("a_name_that_runs_already_is_refused_and_left_alone");
    let cluster = lab.up_with(&["--name", "twice"]);
    let emulator = cluster.emulator_pid();
    let said = lab.fail(1, &["up", "--name", "twice"]);
    assert!(
        said.contains("`twice` runs already") && said.contains("sanlab down twice"),
        "{said}"
    );
    assert_eq!(cluster.emulator_pid(), emulator);
}

#[test]
fn clusters_side_by_side_have_subnets_of_their_own() {
    let lab = Lab::new("clusters_side_by_side_have_subnets_of_their_own");
    let clusters: Vec<_> = ["one", "two", "three"]
        .iter()
        .map(|name| lab.up_with(&["--name", name]))
        .collect();
    let mut subnets: Vec<u8> = clusters
        .iter()
        .map(|cluster| cluster.address("a").octets()[2])
        .collect();
    subnets.sort_unstable();
    subnets.dedup();
    assert_eq!(subnets.len(), 3);

    let said = lab.fail(2, &["stat"]);
    for name in ["one", "two", "three"] {
        assert!(said.contains(name), "{said}");
    }
    lab.succeed(&["down", "two"]);
    let names: Vec<String> = lab.json(&["ls", "--json"])["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["one", "three"]);
}

#[test]
fn static_addresses_in_use_by_another_cluster_are_refused() {
    let lab = Lab::new("static_addresses_in_use_by_another_cluster_are_refused");
    let first = lab.up_with(&["--name", "first"]);
    let taken = first.address("a");
    let file = lab.write(
        "second.toml",
        &format!("[[node]]\nname = \"x\"\naddresses = [\"{taken}/24\"]\n"),
    );
    let said = lab.fail(1, &["up", "--name", "second", file.to_str().unwrap()]);
    assert!(
        said.contains(&format!("127.77.{}.0/24 is in use", taken.octets()[2])),
        "{said}"
    );
    assert_eq!(lab.leftovers(), ["first"]);
}

#[test]
fn leftovers_of_a_killed_emulator_are_cleaned_by_the_next_command() {
    let lab = Lab::new("leftovers_of_a_killed_emulator_are_cleaned_by_the_next_command");
    lab.succeed(&["up", "--detach"]);
    let list = lab.json(&["ls", "--json"]);
    let emulator = u32::try_from(list["clusters"][0]["emulator_pid"].as_u64().unwrap()).unwrap();
    kernel::kill_9(emulator);
    assert_eq!(lab.leftovers(), ["default"]);
    let cluster = lab.up();
    assert_ne!(cluster.emulator_pid(), emulator);
    drop(cluster);

    lab.succeed(&["up", "--detach"]);
    let list = lab.json(&["ls", "--json"]);
    kernel::kill_9(u32::try_from(list["clusters"][0]["emulator_pid"].as_u64().unwrap()).unwrap());
    assert_eq!(
        lab.json(&["ls", "--json"])["clusters"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn a_killed_emulator_ends_its_up_with_an_error_and_nothing_left() {
    let lab = Lab::new("a_killed_emulator_ends_its_up_with_an_error_and_nothing_left");
    let mut cluster = lab.up();
    cluster.kill_emulator();
    let status = cluster.up.wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        cluster.up.stderr().contains("signal: 9"),
        "{}",
        cluster.up.stderr()
    );
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn a_killed_up_takes_its_emulator_with_it() {
    let lab = Lab::new("a_killed_up_takes_its_emulator_with_it");
    let mut cluster = lab.up();
    let emulator = cluster.emulator_pid();
    cluster.up.kill();
    wait_until(|| !kernel::is_alive(emulator));
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn down_ends_an_emulator_that_does_not_answer() {
    let lab = Lab::new("down_ends_an_emulator_that_does_not_answer");
    lab.succeed(&["up", "--detach"]);
    let list = lab.json(&["ls", "--json"]);
    let emulator = u32::try_from(list["clusters"][0]["emulator_pid"].as_u64().unwrap()).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(emulator).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    lab.succeed(&["down"]);
    assert!(!kernel::is_alive(emulator));
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn a_detached_emulator_stays_in_the_session_and_heeds_no_hang_up() {
    let lab = Lab::new("a_detached_emulator_stays_in_the_session_and_heeds_no_hang_up");
    lab.succeed(&["up", "--detach"]);
    let list = lab.json(&["ls", "--json"]);
    let emulator = i32::try_from(list["clusters"][0]["emulator_pid"].as_u64().unwrap()).unwrap();
    let pid = nix::unistd::Pid::from_raw(emulator);
    // The kernel shares the processors among sessions: the NIC belongs to that of the programs.
    let session = nix::unistd::getsid(Some(pid)).unwrap();
    assert_eq!(session, nix::unistd::getsid(None).unwrap());
    // Keys of the terminal go to another group.
    assert_eq!(nix::unistd::getpgid(Some(pid)).unwrap(), pid);
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    // It answers, so it lives.
    assert_eq!(lab.json(&["stat", "--json"])["emulator_pid"], emulator);
    lab.succeed(&["down"]);
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn without_a_cluster_commands_say_how_to_start_one() {
    let lab = Lab::new("without_a_cluster_commands_say_how_to_start_one");
    for command in [
        &["stat"][..],
        &["down"],
        &["run", "--node", "a", "--", "true"],
    ] {
        let said = lab.fail(2, command);
        assert!(said.contains("sanlab up"), "{said}");
    }
    let said = lab.fail(1, &["down", "nowhere"]);
    assert!(said.contains("`nowhere`"), "{said}");
    assert_eq!(
        lab.json(&["ls", "--json"])["clusters"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn a_run_directory_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new("a_run_directory_open_to_others_is_refused");
    std::fs::create_dir(lab.run_directory()).unwrap();
    std::fs::set_permissions(lab.run_directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = lab.fail(1, &["up"]);
    assert!(said.contains("chmod 700"), "{said}");
}

#[test]
fn directories_and_sockets_are_for_their_user_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let lab = Lab::new("directories_and_sockets_are_for_their_user_alone");
    let cluster = lab.up();
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(lab.run_directory()), 0o700);
    assert_eq!(mode(cluster.directory()), 0o700);
    assert_eq!(mode(cluster.directory().join("control.sock")), 0o600);
    assert_eq!(mode(cluster.directory().join("a/nic0.sock")), 0o600);
}

#[test]
fn a_subnet_in_which_a_program_of_an_ended_cluster_listens_is_left_alone() {
    let lab = Lab::new("a_subnet_in_which_a_program_of_an_ended_cluster_listens_is_left_alone");
    let first = lab.up_with(&["--name", "first"]);
    let address = first.address("a");
    // A program that goes on listening after its cluster.
    let _listener = std::net::TcpListener::bind((address, 0)).unwrap();
    drop(first);
    let second = lab.up_with(&["--name", "second"]);
    assert_ne!(second.address("a"), address);
}

#[test]
fn of_many_starts_with_one_name_exactly_one_succeeds() {
    let lab = Lab::new("of_many_starts_with_one_name_exactly_one_succeeds");
    let starts: Vec<_> = (0..6)
        .map(|number| lab.spawn(&format!("start{number}"), lab.sanlab(["up", "--detach"])))
        .collect();
    starts.iter().for_each(Process::may_fail);
    let mut ready = 0;
    for mut start in starts {
        if start.wait().success() {
            ready += 1;
        } else {
            assert!(
                start.stderr().contains("`default` runs already"),
                "{}",
                start.stderr()
            );
        }
    }
    assert_eq!(ready, 1);
    assert_eq!(kernel::emulators_below(lab.directory()).len(), 1);
    lab.succeed(&["down"]);
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn starts_at_once_with_names_of_their_own_all_succeed() {
    let lab = Lab::new("starts_at_once_with_names_of_their_own_all_succeed");
    let names: Vec<String> = (0..6).map(|number| format!("c{number}")).collect();
    let starts: Vec<_> = names
        .iter()
        .map(|name| lab.spawn(name, lab.sanlab(["up", "--detach", "--name", name])))
        .collect();
    for start in starts {
        start.succeed();
    }
    let list = lab.json(&["ls", "--json"]);
    let rows = list["clusters"].as_array().unwrap();
    let mut addresses: Vec<&str> = rows
        .iter()
        .map(|row| row["nodes"][0]["addresses"][0].as_str().unwrap())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), names.len());
    for name in &names {
        lab.succeed(&["down", name]);
    }
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn the_emulator_confines_itself_unless_told_not_to() {
    let lab = Lab::new("the_emulator_confines_itself_unless_told_not_to");
    lab.succeed(&["up", "--detach", "--name", "shut"]);
    lab.succeed(&["up", "--detach", "--name", "open", "--sandbox=off"]);
    let of_all_threads = |pid: u32, field: &str| -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let of_one = |task: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with(field));
            line.unwrap()[field.len() + 1..].trim().to_owned()
        };
        tasks.map(of_one).collect()
    };
    let list = lab.json(&["ls", "--json"]);
    for cluster in list["clusters"].as_array().unwrap() {
        let pid = u32::try_from(cluster["emulator_pid"].as_u64().unwrap()).unwrap();
        let is_shut = cluster["name"] == "shut";
        let filters = of_all_threads(pid, "Seccomp_filters");
        assert!(filters.len() >= 2, "control and engine thread");
        // A container may have set filters of its own.
        let inherited = &of_all_threads(std::process::id(), "Seccomp_filters")[0];
        let is_as_ours = filters.iter().all(|count| count == inherited);
        assert_eq!(!is_as_ours, is_shut, "{filters:?}");
        if is_shut {
            let capabilities = of_all_threads(pid, "CapEff");
            assert!(
                capabilities
                    .iter()
                    .all(|set| set.trim_matches('0').is_empty())
            );
            assert!(
                of_all_threads(pid, "NoNewPrivs")
                    .iter()
                    .all(|set| set == "1")
            );
        }
    }
    for name in ["shut", "open"] {
        lab.succeed(&["down", name]);
    }
    assert_eq!(lab.leftovers(), [""; 0]);
}
