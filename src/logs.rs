//! `sanlab logs`: what programs said, with their node's name in front.
//!
//! Place: [`Show`] is also what `up` in the foreground prints with. Invariants: lines of programs stand as they came; colours only for a terminal
//! that wants them. Source: ours; the look follows compose tools, NO_COLOR is from no-color.org.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use rustix::fs::inotify;

use crate::cli;
use crate::cluster::{self, Cluster};
use crate::exit::{FAILED, Failure};
use crate::keeper::log::{self, Entry, Reader, Stream};
use crate::output;
use crate::signals::{StopSignals, Waited};

/// Colours of the nodes in turn.
const COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightRed,
];

/// Longest time without a look at whether the cluster still runs.
const LOOK: Duration = Duration::from_millis(500);

/// Shows the log of a cluster.
pub(crate) fn logs(arguments: &cli::Logs) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.cluster.as_deref())?;
    let names = node_names(&cluster);
    if let Some(unknown) = arguments.nodes.iter().find(|name| !names.contains(name)) {
        return Err(Failure::new(
            FAILED,
            format_args!(
                "there is no node `{unknown}`; the nodes are {}",
                names.join(", ")
            ),
        ));
    }
    let mut reader = Reader::open(&cluster.directory).map_err(|error| {
        Failure::new(
            FAILED,
            format_args!(
                "the cluster `{}` has no log of programs ({error}); `run` in a `[[node]]` of its file makes one",
                cluster.name
            ),
        )
    })?;
    let stop = match arguments.follow {
        true => Some(StopSignals::catch()?),
        false => None,
    };
    let mut show = Show::new(names, arguments.no_color);
    show.with_times = arguments.timestamps;
    show.as_json = arguments.json;
    show.only.clone_from(&arguments.nodes);
    let watch = Watch::of(&cluster.directory)?;
    let mut entries = reader.older();
    entries.extend(reader.take().context("cannot read the log")?);
    entries.retain(|entry| show.is_wanted(entry));
    let first = arguments
        .tail
        .map_or(0, |tail| entries.len().saturating_sub(tail));
    show.print(&entries[first..])?;
    let Some(stop) = stop else {
        return Ok(());
    };
    loop {
        match stop.wait(&[watch.fd.as_fd()], Some(LOOK))? {
            Waited::Stop => return Ok(()),
            Waited::Ready(_) => watch.drain(),
            Waited::TimedOut => {}
        }
        let is_over = !cluster.directory.exists();
        show.print(&reader.take().context("cannot read the log")?)?;
        if is_over {
            return Ok(());
        }
    }
}

fn node_names(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.record.iter().flat_map(|record| &record.nodes);
    nodes.map(|node| node.name.clone()).collect()
}

/// A descriptor that is readable when the log has grown.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) fd: OwnedFd,
}

impl Watch {
    pub(crate) fn of(directory: &std::path::Path) -> anyhow::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).context("cannot watch the log")?;
        // The directory: the file in it changes when it has reached its limit.
        let wanted = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        inotify::add_watch(&fd, directory, wanted)
            .with_context(|| format!("cannot watch {}", log::path(directory).display()))?;
        Ok(Self { fd })
    }

    /// Takes what has come; the file itself tells what is new.
    pub(crate) fn drain(&self) {
        let mut space = [std::mem::MaybeUninit::uninit(); 4096];
        while rustix::io::read(&self.fd, &mut space).is_ok_and(|(read, _)| !read.is_empty()) {}
    }
}

/// How lines are shown.
#[derive(Debug)]
pub(crate) struct Show {
    names: Vec<String>,
    width: usize,
    has_colors: bool,
    with_times: bool,
    as_json: bool,
    only: Vec<String>,
}

impl Show {
    /// For the nodes of a cluster; colours when standard output is a terminal and nobody objects.
    pub(crate) fn new(names: Vec<String>, no_color: bool) -> Self {
        let is_wished = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            width: names
                .iter()
                .map(String::len)
                .max()
                .unwrap_or(0)
                .max("sanlab".len()),
            has_colors: !no_color && is_wished && std::io::stdout().is_terminal(),
            names,
            with_times: false,
            as_json: false,
            only: Vec::new(),
        }
    }

    fn is_wanted(&self, entry: &Entry) -> bool {
        self.only.is_empty()
            || entry
                .node
                .as_ref()
                .is_some_and(|node| self.only.contains(node))
    }

    /// Prints lines.
    pub(crate) fn print(&self, entries: &[Entry]) -> Result<(), Failure> {
        let mut text = String::new();
        for entry in entries.iter().filter(|entry| self.is_wanted(entry)) {
            self.line(entry, &mut text);
        }
        match text.is_empty() {
            true => Ok(()),
            false => output::answer(&text),
        }
    }

    fn line(&self, entry: &Entry, text: &mut String) {
        if self.as_json {
            text.push_str(&serde_json::to_string(entry).unwrap_or_default());
            text.push('\n');
            return;
        }
        if self.with_times {
            let at = UNIX_EPOCH + Duration::from_millis(entry.at_ms);
            // Writing to a string cannot fail.
            let _ = write!(text, "{} ", humantime::format_rfc3339_millis(at));
        }
        let name = entry.node.as_deref().unwrap_or("sanlab");
        let style = match self.names.iter().position(|other| other == name) {
            Some(at) if self.has_colors => COLORS[at % COLORS.len()].on_default(),
            None if self.has_colors => Style::new().bold(),
            _ => Style::new(),
        };
        let quiet = match entry.stream {
            Stream::Lab if self.has_colors => Style::new().dimmed(),
            _ => Style::new(),
        };
        let program = match (entry.stream, &entry.program) {
            (Stream::Lab, Some(program)) => format!("{program} "),
            _ => String::new(),
        };
        let width = self.width;
        // As above.
        let _ = writeln!(
            text,
            "{style}{name:width$} |{style:#} {quiet}{program}{}{quiet:#}",
            entry.text
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: Option<&str>, stream: Stream, text: &str) -> Entry {
        Entry {
            at_ms: 1_000,
            node: node.map(str::to_owned),
            program: Some("redis".to_owned()),
            stream,
            text: text.to_owned(),
        }
    }

    #[test]
    fn each_line_has_its_node_in_front_and_colours_only_where_wanted() {
        let mut show = Show::new(vec!["a".into(), "long-name".into()], true);
        let mut text = String::new();
        show.line(&entry(Some("a"), Stream::Stdout, "hello"), &mut text);
        show.line(&entry(Some("a"), Stream::Lab, "ended with 0"), &mut text);
        assert_eq!(text, "a         | hello\na         | redis ended with 0\n");
        show.has_colors = true;
        text.clear();
        show.line(&entry(Some("long-name"), Stream::Stdout, "hi"), &mut text);
        assert_eq!(text, "\u{1b}[33mlong-name |\u{1b}[0m hi\n");
        show.has_colors = false;
        show.with_times = true;
        text.clear();
        show.line(&entry(None, Stream::Stdout, "x"), &mut text);
        assert_eq!(text, "1970-01-01T00:00:01.000Z sanlab    | x\n");
    }
}
