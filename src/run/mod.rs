//! `sanlab run`: puts a program on a node.
//!
//! Place: asks the emulator for the node's channel, prepares environment and descriptor, enters the node's namespaces where it has any,
//! and becomes the program.
//! Invariants: after `exec` nothing of us is left but the channel, so process id, signals, terminal and exit status are the program's own; a run
//! that tells something at its end has us as its [`parent`]. Failures of our own end with 125, a missing program with 127, one that
//! cannot be executed with 126.
//! Source: ours, the command-line contract; exit codes as `env` has them. Leaves out: what the library does then.

mod audit;
mod explain;
pub(crate) mod library;
mod parent;
mod symbols;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nic_emu::control::Pong;
use nic_emu::server::UngovernedPolicy;
use nix::sys::resource::{Resource, getrlimit};
use ring_proto::channel;
use rustix::io::FdFlags;
use switch::program as program_file;

use crate::cli;
use crate::cluster;
use crate::control;
use crate::exit::{self, Failure};
use crate::netns;

/// The channel's descriptor lies below this number, and below the program's limit.
const DESCRIPTOR_CEILING: u64 = 4096;

/// Runs a program on a node. Returns only when that failed.
pub(crate) fn run(arguments: &cli::Run) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.cluster.as_deref()).map_err(as_launcher)?;
    cluster.require_running().map_err(as_launcher)?;
    let info = control::ping(&cluster.directory).map_err(launcher)?;
    let Some(node) = info.nodes.iter().find(|node| node.name == arguments.node) else {
        return Err(Failure::new(
            exit::RUN_FAILED,
            format_args!(
                "there is no node `{}` in the cluster `{}`; its nodes: {}",
                arguments.node,
                cluster.name,
                names(&info)
            ),
        ));
    };
    let [name, rest @ ..] = arguments.command.as_slice() else {
        return Err(Failure::new(exit::RUN_FAILED, "there is no program to run"));
    };
    let program = find(name)?;
    let library = library::find().map_err(launcher)?;
    let mut command = Command::new(&program);
    let address = node.addresses.first().map_or("", |address| {
        address
            .split_once('/')
            .map_or(address.as_str(), |(ip, _)| ip)
    });
    command
        .arg0(name)
        .args(rest)
        .env(channel::ENV_CLUSTER, &cluster.name)
        .env(channel::ENV_NODE, &node.name)
        .env(channel::ENV_ADDR, address);
    let telling = explain::Telling::wanted(arguments).map_err(launcher)?;
    let label = program.file_name().unwrap_or(name).to_string_lossy();
    let mut given = Vec::new();
    match program_file::obstacle(&program, &library) {
        None => {
            let (config, fd) = control::channel(&cluster.directory, &node.name, arguments.loopback)
                .map_err(launcher)?;
            let channel = settle(fd).map_err(launcher)?;
            let runtime = program_file::sanitizer(&program);
            let inherited = std::env::var_os("LD_PRELOAD");
            let preload = preload_list(runtime.as_deref(), &library, inherited);
            if runtime.is_some_and(|name| name.starts_with("libtsan")) {
                command.env(TSAN_OPTIONS, tsan_options(std::env::var_os(TSAN_OPTIONS)));
            }
            command
                .env(channel::ENV_CONFIG, config)
                .env(channel::ENV_CHANNEL, channel.as_raw_fd().to_string())
                .env("LD_PRELOAD", preload);
            given.push(channel);
            if let Some(telling) = &telling {
                given.push(telling.hand_over(&mut command).map_err(launcher)?);
            }
        }
        Some(obstacle) => {
            // Of a `sanlab run` around this one.
            command
                .env_remove(channel::ENV_CONFIG)
                .env_remove(channel::ENV_CHANNEL);
            let what = format!(
                "{} is {}: {}",
                obstacle.file.display(),
                obstacle.what,
                name.display()
            );
            let links = match info.ungoverned {
                UngovernedPolicy::Nothing => "",
                UngovernedPolicy::Warn => ", and past every link",
                UngovernedPolicy::Refuse => {
                    return Err(Failure::new(
                        exit::RUN_FAILED,
                        format_args!(
                            "{what} would run past every link, which this cluster refuses (`ungoverned = \"refuse\"`); with `isolation = \"netns\"` it meets them"
                        ),
                    ));
                }
            };
            exit::diagnostic(format_args!(
                "{what} runs over TCP only, without the SAN{links} ({})",
                obstacle.reason.name()
            ));
            if let Some(telling) = &telling {
                telling.note(&label, obstacle.reason);
            }
            let reported = control::note(&cluster.directory, &node.name, &label, obstacle.reason);
            if let Err(error) = reported {
                exit::diagnostic(format_args!("`sanlab stat` will not know of it: {error:#}"));
            }
        }
    }
    netns::enter(&cluster.directory, &node.name).map_err(launcher)?;
    let error = match telling {
        None => command.exec(),
        Some(telling) => match telling.run(command, given, &label) {
            Ok(result) => return result,
            Err(error) => error,
        },
    };
    Err(Failure::new(
        match error.kind() {
            std::io::ErrorKind::NotFound => exit::NOT_FOUND,
            _ => exit::NOT_EXECUTABLE,
        },
        format_args!("cannot execute {}: {error}", program.display()),
    ))
}

fn launcher(error: anyhow::Error) -> Failure {
    Failure::from(error).with_code(exit::RUN_FAILED)
}

/// A command without a name and without a single cluster is a usage error everywhere; the rest are failures of the launcher.
fn as_launcher(failure: Failure) -> Failure {
    if failure.is_usage() {
        failure
    } else {
        failure.with_code(exit::RUN_FAILED)
    }
}

fn names(info: &Pong) -> String {
    let names: Vec<&str> = info.nodes.iter().map(|node| node.name.as_str()).collect();
    names.join(", ")
}

/// The file of a program, as a shell finds it.
fn find(name: &OsStr) -> Result<PathBuf, Failure> {
    let has_directory = name.as_encoded_bytes().contains(&b'/');
    let file = if has_directory {
        Some(PathBuf::from(name))
    } else {
        program_file::find_in_path(name).or_else(|| file_in_path(name))
    };
    let Some(file) = file.filter(|file| file.exists()) else {
        let place = if has_directory { "" } else { " in PATH" };
        return Err(Failure::new(
            exit::NOT_FOUND,
            format_args!("there is no program `{}`{place}", name.display()),
        ));
    };
    if !program_file::is_executable(&file) {
        return Err(Failure::new(
            exit::NOT_EXECUTABLE,
            format_args!("{} is not an executable file", file.display()),
        ));
    }
    Ok(file)
}

/// A file of this name in PATH that cannot be executed, to say so instead of "not found".
fn file_in_path(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// Moves the channel to the highest free number that stays out of the program's way, and lets the program inherit it.
fn settle(channel: OwnedFd) -> anyhow::Result<OwnedFd> {
    let (soft, _) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the descriptor limit")?;
    let ceiling = i32::try_from(soft.min(DESCRIPTOR_CEILING)).unwrap_or(i32::MAX);
    for number in (3..ceiling).rev() {
        let Ok(copy) = rustix::io::fcntl_dupfd_cloexec(&channel, number) else {
            // Nothing is free from here on; look lower.
            continue;
        };
        if copy.as_raw_fd() == number {
            rustix::io::fcntl_setfd(&copy, FdFlags::empty())
                .context("cannot hand over the channel")?;
            return Ok(copy);
        }
    }
    anyhow::bail!("no descriptor below {ceiling} is free for the channel; raise `ulimit -n`")
}

/// What ThreadSanitizer reads.
const TSAN_OPTIONS: &str = "TSAN_OPTIONS";

/// ThreadSanitizer sees calls of a library that was built without it, and not the order its atomics make; and it ends a child that
/// has threads, of which ours is one. What the user says comes later and wins.
fn tsan_options(inherited: Option<OsString>) -> OsString {
    let mut options = OsString::from("ignore_noninstrumented_modules=1:die_after_fork=0");
    if let Some(inherited) = inherited {
        options.push(":");
        options.push(inherited);
    }
    options
}

/// Our library in front of what the user preloads, once; a sanitizer's runtime insists on being the first of all.
fn preload_list(runtime: Option<&str>, library: &Path, inherited: Option<OsString>) -> OsString {
    let mut list = OsString::new();
    if let Some(runtime) = runtime {
        list.push(runtime);
        list.push(":");
    }
    list.push(library);
    let inherited = inherited.unwrap_or_default();
    let others = inherited
        .as_encoded_bytes()
        .split(|byte| matches!(byte, b' ' | b':'))
        .filter(|path| !path.is_empty() && *path != library.as_os_str().as_encoded_bytes());
    for other in others {
        list.push(":");
        list.push(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(other));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_comes_first_and_once() {
        let library = Path::new("/x/lib.so");
        assert_eq!(preload_list(None, library, None), "/x/lib.so");
        let kept = preload_list(None, library, Some("/a.so /x/lib.so:/b.so".into()));
        assert_eq!(kept, "/x/lib.so:/a.so:/b.so");
        let list = preload_list(Some("libasan.so.8"), library, None);
        assert_eq!(list, "libasan.so.8:/x/lib.so");
    }

    #[test]
    fn what_the_user_tells_a_sanitizer_comes_last() {
        let options = tsan_options(Some("die_after_fork=1".into()));
        let options = options.to_str().unwrap();
        assert!(options.ends_with(":die_after_fork=1"), "{options}");
    }

    #[test]
    fn the_channel_lies_just_below_the_ceiling_and_is_inherited() {
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let settled = settle(end.into()).unwrap();
        let number = settled.as_raw_fd();
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(u64::try_from(number).unwrap() < soft.min(DESCRIPTOR_CEILING));
        assert!(number > 64, "{number}");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & 0o2_000_000, 0, "close-on-exec: {info}");
    }

    #[test]
    fn missing_and_unexecutable_programs_differ() {
        let code = |name: &str| format!("{:?}", find(OsStr::new(name)).unwrap_err());
        assert!(code("sanlab-no-such-program").contains("code: 127"));
        assert!(code("/etc/passwd").contains("code: 126"));
        assert!(code("/etc/no-such-program").contains("code: 127"));
        assert!(find(OsStr::new("sh")).is_ok());
    }
}
