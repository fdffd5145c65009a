//! What goes into a package besides programs: manual pages, completions for shells, the schema of cluster files.
//!
//! Place: a hidden command that `.ci/package` runs. Invariants: all of it is made from the same command line and types that the programs have.
//! Source: clap_mangen, clap_complete.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{self, Cli};
use crate::config::schema;
use crate::exit::Failure;

/// Writes everything into a directory.
pub(crate) fn pages(arguments: &cli::Pages) -> Result<(), Failure> {
    let to = &arguments.directory;
    write(to)
        .with_context(|| format!("cannot write into {}", to.display()))
        .map_err(Failure::from)
}

fn write(to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    clap_mangen::generate_to(visible(Cli::command()), to)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut visible(Cli::command()), "sanlab", to)?;
    }
    let schema = serde_json::to_string_pretty(schema::schema().as_value())?;
    fs::write(to.join("sanlab.schema.json"), schema + "\n")?;
    Ok(())
}

/// The command without those that are only for itself.
fn visible(command: clap::Command) -> clap::Command {
    let parts: Vec<clap::Command> = command
        .get_subcommands()
        .filter(|part| !part.is_hide_set())
        .cloned()
        .collect();
    let empty = clap::Command::new("sanlab")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .after_help(command.get_after_help().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .subcommand_required(true);
    empty.subcommands(parts)
}
