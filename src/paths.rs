//! Where clusters keep their sockets and files.
//!
//! Place: every command finds clusters through [`RunDirectory`].
//! Invariants: the run directory and each cluster's directory are ours alone (mode 0700). A cluster's directory is locked (flock on the
//! directory itself) by its emulator for as long as that lives, so an unlocked one is a leftover, whatever its files say; a process id decides only
//! whether to look a second time. Making and cleaning directories happens under a lock on the run directory.
//! Source: ours; XDG base directory specification.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Longest path of a Unix socket, without its final zero: `sun_path` holds 108 bytes.
const SOCKET_PATH_MAX: usize = 107;

/// How long a killed emulator may keep its lock before it counts as running.
const LET_GO_LIMIT: Duration = Duration::from_secs(2);

/// The user's directory of clusters.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
}

/// Proof that this process alone makes and cleans cluster directories.
#[derive(Debug)]
pub(crate) struct RunLock<'a> {
    directory: &'a RunDirectory,
    _lock: File,
}

/// Directory of one cluster, kept locked while this value or a copy of its descriptor lives.
#[derive(Debug)]
pub(crate) struct ClusterHome {
    /// The directory.
    pub(crate) path: PathBuf,
    /// The descriptor that holds the lock; the emulator inherits it.
    pub(crate) lock: File,
}

impl RunDirectory {
    /// The run directory of this user, which need not exist yet.
    pub(crate) fn of_user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = match (variable("SANLAB_RUN_DIR"), variable("XDG_RUNTIME_DIR")) {
            (Some(own), _) => PathBuf::from(own),
            (None, Some(runtime)) => Path::new(&runtime).join("sanlab"),
            (None, None) => PathBuf::from(format!("/tmp/sanlab-{}", nix::unistd::getuid())),
        };
        Self {
            path: std::path::absolute(&path).unwrap_or(path),
        }
    }

    /// A run directory at a place of the caller's choice.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory if it is missing, checks that it is ours alone, and locks it.
    pub(crate) fn lock(&self) -> anyhow::Result<RunLock<'_>> {
        let path = self.path.display();
        match DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
        {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot make the run directory {path} (set SANLAB_RUN_DIR to another one)"
                    )
                });
            }
        }
        self.check_owner()?;
        let lock = File::open(&self.path)
            .with_context(|| format!("cannot open the run directory {path}"))?;
        lock.lock()
            .with_context(|| format!("cannot lock the run directory {path}"))?;
        Ok(RunLock {
            directory: self,
            _lock: lock,
        })
    }

    /// Whether there is a run directory at all; where there is none, no cluster runs.
    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Checks that the directory is ours alone, or can be made; makes nothing.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if fs::symlink_metadata(&self.path).is_ok() {
            return self.check_owner();
        }
        let parent = self.path.ancestors().skip(1).find(|path| path.exists());
        let parent = parent.unwrap_or(Path::new("/"));
        nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK)
            .with_context(|| format!("the run directory {} cannot be made", self.path.display()))
    }

    fn check_owner(&self) -> anyhow::Result<()> {
        let path = self.path.display();
        let metadata = fs::symlink_metadata(&self.path)
            .with_context(|| format!("cannot look at the run directory {path}"))?;
        if !metadata.is_dir() {
            bail!(
                "the run directory {path} is not a directory (set SANLAB_RUN_DIR to another one)"
            );
        }
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            bail!(
                "the run directory {path} belongs to user {}, not to you (set SANLAB_RUN_DIR to another one)",
                metadata.uid()
            );
        }
        if metadata.mode() & 0o077 != 0 {
            bail!("the run directory {path} is open to others (chmod 700 {path})");
        }
        Ok(())
    }
}

impl RunLock<'_> {
    /// Directories of all clusters by name, after the leftovers of crashed emulators have been removed.
    pub(crate) fn clean(&self) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let path = self.directory.path();
        let mut live = Vec::new();
        let entries = fs::read_dir(path)
            .with_context(|| format!("cannot read the run directory {}", path.display()))?;
        for entry in entries {
            let entry = entry
                .with_context(|| format!("cannot read the run directory {}", path.display()))?;
            let Some(name) = cluster_name(&entry.file_name()) else {
                continue;
            };
            match take_settled(&entry.path())? {
                Taken::Leftover(home) => home.remove()?,
                Taken::Live => live.push((name, entry.path())),
                Taken::NotADirectory => {}
            }
        }
        live.sort();
        Ok(live)
    }

    /// Makes and locks the directory of a cluster that must not exist.
    pub(crate) fn make(&self, name: &str) -> anyhow::Result<ClusterHome> {
        let path = self.directory.path().join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let lock = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        lock.try_lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(ClusterHome { path, lock })
    }
}

impl ClusterHome {
    /// Removes the directory and everything in it.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

enum Taken {
    /// Nobody held the lock; now the caller does.
    Leftover(ClusterHome),
    /// Its emulator lives.
    Live,
    /// No directory of a cluster.
    NotADirectory,
}

fn take(path: &Path) -> anyhow::Result<Taken> {
    let context = || format!("cannot look at {}", path.display());
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(Taken::NotADirectory),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Taken::NotADirectory),
        Err(error) => return Err(error).with_context(context),
    }
    let lock = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Taken::NotADirectory),
        Err(error) => return Err(error).with_context(context),
    };
    match lock.try_lock() {
        Ok(()) => Ok(Taken::Leftover(ClusterHome {
            path: path.to_owned(),
            lock,
        })),
        Err(TryLockError::WouldBlock) => Ok(Taken::Live),
        Err(TryLockError::Error(error)) => Err(error).with_context(context),
    }
}

/// As [`take`], when an emulator that is just ending has let go: the lock outlives a killed process by a moment.
fn take_settled(path: &Path) -> anyhow::Result<Taken> {
    let deadline = Instant::now() + LET_GO_LIMIT;
    loop {
        let taken = take(path)?;
        if !matches!(taken, Taken::Live) || !is_ending(path) || Instant::now() >= deadline {
            return Ok(taken);
        }
        crate::signals::pause(Duration::from_millis(2));
    }
}

/// Whether the emulator that a cluster's directory names has ended, or is about to.
fn is_ending(path: &Path) -> bool {
    let record = fs::read(state_file(path)).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
    let Some(pid) = record["emulator_pid"].as_u64() else {
        return false;
    };
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which may hold anything.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn cluster_name(file_name: &OsStr) -> Option<String> {
    let name = file_name.to_str()?;
    crate::config::is_name(name).then(|| name.to_owned())
}

/// Where the metrics of a cluster are served, when they are.
pub(crate) fn metrics_file(directory: &Path) -> PathBuf {
    directory.join("metrics")
}

/// The control socket of a cluster.
pub(crate) fn control_socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// What `up` asks of the emulator.
pub(crate) fn plan_file(directory: &Path) -> PathBuf {
    directory.join("plan.json")
}

/// What the emulator made of it: process ids and addresses.
pub(crate) fn state_file(directory: &Path) -> PathBuf {
    directory.join("cluster.json")
}

/// Standard error of a detached emulator.
pub(crate) fn log_file(directory: &Path) -> PathBuf {
    directory.join("emulator.log")
}

/// Checks that the sockets of a cluster with these nodes have paths that the kernel takes.
pub(crate) fn check_socket_paths<'a>(
    run: &RunDirectory,
    cluster: &str,
    nodes: impl Iterator<Item = &'a str>,
) -> anyhow::Result<()> {
    for node in nodes {
        let path = run.path().join(cluster).join(node).join("nic0.sock");
        let len = path.as_os_str().as_bytes().len();
        if len > SOCKET_PATH_MAX {
            bail!(
                "the socket path {} has {len} bytes, the kernel takes {SOCKET_PATH_MAX}: choose shorter names or a shorter SANLAB_RUN_DIR",
                path.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A locked cluster directory that names this process as its emulator.
    fn locked(test: &str, pid: u32) -> (RunDirectory, ClusterHome) {
        let path = std::env::temp_dir().join(format!("sl-{}-{test}", std::process::id()));
        let run = RunDirectory::at(path);
        let home = run.lock().unwrap().make("one").unwrap();
        fs::write(
            state_file(&home.path),
            format!("{{\"emulator_pid\": {pid}}}"),
        )
        .unwrap();
        (run, home)
    }

    #[test]
    fn a_lock_of_a_dead_emulator_is_waited_for() {
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let (run, home) = locked("dead", ended.id());
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(home);
        });
        assert_eq!(run.lock().unwrap().clean().unwrap(), []);
        letting_go.join().unwrap();
        assert!(!run.path().join("one").exists());
        fs::remove_dir(run.path()).unwrap();
    }

    #[test]
    fn a_lock_of_a_live_emulator_counts() {
        let (run, home) = locked("live", std::process::id());
        let live = run.lock().unwrap().clean().unwrap();
        assert_eq!(live, [("one".to_owned(), home.path.clone())]);
        home.remove().unwrap();
        fs::remove_dir(run.path()).unwrap();
    }
}
