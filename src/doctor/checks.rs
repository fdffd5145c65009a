//! The checks of `sanlab doctor`, one function each.
//!
//! Place: [`all`] runs them in the order in which a reader needs them: what clusters need, then what single features need.
//! Invariants: a setting that cannot be read is reported as unknown, never as well.
//! Source: memfd_create(2), user_namespaces(7), ptrace(2) and its Yama section, io_uring_setup(2), unix(7), proc(5).

use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nic_emu::server::sandbox::Walls;
use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::Check;
use crate::paths::RunDirectory;
use crate::run::library;

/// Bytes of the sparse memory that a program's NIC function maps.
const ARENA_LEN: u64 = 1 << 30;
/// Descriptors below which busy servers run short.
const DESCRIPTORS: u64 = 4096;

/// Runs every check.
pub(super) fn all() -> Vec<Check> {
    vec![
        sealed_memory(),
        sparse_memory(),
        loopback_addresses(),
        run_directory(),
        preload_library(),
        cores(),
        descriptors(),
        sandbox(),
        user_namespaces(),
        tun_device(),
        node_namespaces(),
        ptrace_scope(),
        io_uring(),
        container(),
        kernel(),
    ]
}

fn sealed_memory() -> Check {
    const NAME: &str = "sealed memory";
    let sealed = memfd_create(
        "sanlab-doctor",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .and_then(|fd| {
        ftruncate(&fd, 4096)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)
    });
    match sealed {
        Ok(()) => Check::ok(NAME, "memfd_create with seals works"),
        Err(error) => Check::fail(
            NAME,
            format!("memfd_create with seals fails: {error}"),
            "use Linux 5.11 or later, and a sandbox or container whose seccomp profile allows memfd_create and F_ADD_SEALS",
        ),
    }
}

fn sparse_memory() -> Check {
    const NAME: &str = "sparse memory";
    let overcommit = setting("/proc/sys/vm/overcommit_memory");
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).unwrap_or((u64::MAX, u64::MAX));
    if limit < 4 * ARENA_LEN {
        return Check::fail(
            NAME,
            format!(
                "the address space is limited to {}",
                crate::output::bytes(limit)
            ),
            "raise it: `ulimit -v unlimited`",
        );
    }
    match overcommit.as_deref() {
        Some("2") => Check::warn(
            NAME,
            "vm.overcommit_memory is 2, so each program's 1 GiB of sparse memory counts in full",
            "as root: `sysctl vm.overcommit_memory=0`",
        ),
        Some(_) => Check::ok(
            NAME,
            "no limit in the way of 1 GiB of sparse memory a program",
        ),
        None => Check::warn(
            NAME,
            "vm.overcommit_memory cannot be read",
            "mount /proc, or see that the setting is 0 or 1",
        ),
    }
}

fn loopback_addresses() -> Check {
    const NAME: &str = "node addresses";
    match UdpSocket::bind((Ipv4Addr::new(127, 77, 0, CHECK_HOST), 0)) {
        Ok(_) => Check::ok(NAME, "127.77.0.0/16 is on the loopback interface"),
        Err(error) => Check::fail(
            NAME,
            format!("an address in 127.77.0.0/16 cannot be bound: {error}"),
            "bring the loopback interface up with 127.0.0.1/8: as root `ip link set lo up`",
        ),
    }
}

/// Last number of an address that no cluster hands out.
const CHECK_HOST: u8 = 255 - 1;

fn run_directory() -> Check {
    const NAME: &str = "run directory";
    let run = RunDirectory::of_user();
    let path = run.path();
    if let Err(error) = run.check() {
        return Check::fail(
            NAME,
            format!("{error:#}"),
            "set SANLAB_RUN_DIR to a directory of your own",
        );
    }
    // A cluster, a node and a socket with names of usual length come behind it.
    let len = path.as_os_str().as_bytes().len();
    if len > 107 - "/default/node-10/nic0.sock".len() {
        return Check::warn(
            NAME,
            format!(
                "{} has {len} bytes, which leaves little for the 107 of a socket's path",
                path.display()
            ),
            "set SANLAB_RUN_DIR to a shorter path",
        );
    }
    Check::ok(NAME, path.display().to_string())
}

fn preload_library() -> Check {
    const NAME: &str = "preload library";
    match library::find() {
        Ok(path) => Check::ok(NAME, path.display().to_string()),
        Err(error) => Check::fail(
            NAME,
            format!("{error:#}"),
            "build it: `cargo build --release`",
        ),
    }
}

fn cores() -> Check {
    const NAME: &str = "cores";
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() == 1 => Check::warn(
            NAME,
            "1 core for this process: everything works, programs and emulator take turns",
            "for figures worth comparing give it 2 or more cores (taskset, cpuset, `--cpus` of the container)",
        ),
        Ok(cores) => Check::ok(NAME, format!("{cores} cores for this process")),
        Err(error) => Check::warn(
            NAME,
            format!("unknown: {error}"),
            "mount /proc and /sys, so that the number of cores can be read",
        ),
    }
}

fn descriptors() -> Check {
    const NAME: &str = "descriptors";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < DESCRIPTORS => Check::warn(
            NAME,
            format!("a program may open {soft} descriptors (hard limit {hard})"),
            format!(
                "for servers with many connections: `ulimit -n {}`",
                hard.min(DESCRIPTORS)
            ),
        ),
        Ok((soft, _)) => Check::ok(NAME, format!("a program may open {soft} descriptors")),
        Err(error) => Check::warn(
            NAME,
            format!("unknown: {error}"),
            "see that getrlimit is allowed in this sandbox",
        ),
    }
}

fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    let tried = crate::emulator::own_binary().and_then(|program| {
        Ok(Command::new(program)
            .arg("__probe-user-namespace")
            .stdin(Stdio::null())
            .output()?)
    });
    let said = match tried {
        Ok(output) if output.status.success() => {
            return Check::ok(NAME, "can be made, for `isolation = \"netns\"`");
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("{error:#}"),
    };
    Check::warn(
        NAME,
        format!("cannot be made: {said} (without root needed for `isolation = \"netns\"`)"),
        crate::netns::remedy(),
    )
}

fn sandbox() -> Check {
    const NAME: &str = "sandbox";
    let tried = crate::emulator::own_binary().and_then(|program| {
        let output = Command::new(program)
            .arg("__probe-sandbox")
            .stdin(Stdio::null())
            .output()?;
        Ok(serde_json::from_slice::<Walls>(&output.stdout)?)
    });
    let walls = match tried {
        Ok(walls) => walls,
        Err(error) => {
            return Check::warn(
                NAME,
                format!("cannot be tried: {error:#}"),
                "if clusters do not start either: `sanlab up --sandbox=off`",
            );
        }
    };
    let parts = [
        (
            walls.capabilities,
            "capabilities",
            "a kernel that lets a process drop its own",
        ),
        (
            walls.files,
            "files",
            "Linux 5.13 or later with landlock in its list of security modules (`lsm=landlock,...` on the kernel's command line)",
        ),
        (
            walls.system_calls,
            "system calls",
            "a kernel with CONFIG_SECCOMP_FILTER, and a container whose own profile allows seccomp()",
        ),
    ];
    let names = |is_given_up: bool| {
        let these = parts.iter().filter(|part| part.0 == is_given_up);
        these.map(|part| part.1).collect::<Vec<_>>().join(", ")
    };
    let missing = parts.iter().filter(|part| !part.0).map(|part| part.2);
    let remedy = missing.collect::<Vec<_>>().join("; ");
    if remedy.is_empty() {
        Check::ok(NAME, format!("the emulator gives up: {}", names(true)))
    } else {
        Check::warn(
            NAME,
            format!(
                "the emulator cannot give up: {}; clusters run all the same",
                names(false)
            ),
            remedy,
        )
    }
}

fn tun_device() -> Check {
    const NAME: &str = "/dev/net/tun";
    const PURPOSE: &str = "needed for `isolation = \"netns\"`";
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::ok(NAME, "can be opened"),
        Err(error) => Check::warn(
            NAME,
            format!("{error} ({PURPOSE})"),
            crate::netns::tun_remedy(error.kind()),
        ),
    }
}

fn node_namespaces() -> Check {
    const NAME: &str = "node namespaces";
    match crate::netns::probe() {
        Ok(true) => Check::ok(
            NAME,
            "`isolation = \"netns\"` works, in a user namespace of its own",
        ),
        Ok(false) => Check::ok(NAME, "`isolation = \"netns\"` works"),
        Err(error) => {
            let said = format!("{error:#}");
            // The helper's line ends with its remedy.
            let (what, remedy) = said.split_once("; ").unwrap_or((&said, ""));
            let remedy = match remedy {
                "" => crate::netns::remedy(),
                remedy => remedy.to_owned(),
            };
            Check::warn(
                NAME,
                format!("{what} (for `isolation = \"netns\"`)"),
                remedy,
            )
        }
    }
}

fn ptrace_scope() -> Check {
    const NAME: &str = "ptrace scope";
    match setting("/proc/sys/kernel/yama/ptrace_scope").as_deref() {
        None => Check::ok(
            NAME,
            "no Yama: processes of one user may look at each other",
        ),
        Some("0") => Check::ok(NAME, "0: processes of one user may look at each other"),
        Some(value) => Check::warn(
            NAME,
            format!("{value}: a debugger attaches to its own children only; clusters do not mind"),
            "to attach gdb or strace to a running program, as root: `sysctl kernel.yama.ptrace_scope=0`",
        ),
    }
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    match setting("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("2") => Check::ok(
            NAME,
            "switched off on this machine; programs under sanlab do not get it either",
        ),
        _ => Check::ok(
            NAME,
            "programs under sanlab are answered ENOSYS, because it would pass the switch by",
        ),
    }
}

fn container() -> Check {
    const NAME: &str = "restrictions";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.map_or("unknown", str::trim)
    };
    let is_container = ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|file| Path::new(file).exists());
    let place = if is_container {
        "in a container"
    } else {
        "no container"
    };
    let seccomp = match field("Seccomp:") {
        "0" => "no seccomp filter",
        "1" | "2" => "seccomp filter",
        _ => "seccomp unknown",
    };
    let privileges = match field("NoNewPrivs:") {
        "1" => "no new privileges",
        _ => "set-id programs get their rights",
    };
    Check::ok(NAME, format!("{place}, {seccomp}, {privileges}"))
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = setting("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (5, 11) {
        return Check::warn(
            NAME,
            format!("Linux {release}"),
            "sanlab is tested on Linux 5.11 and later",
        );
    }
    Check::ok(NAME, format!("Linux {release}"))
}

/// A setting of the kernel, without its line end.
fn setting(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
