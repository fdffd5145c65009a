//! Arguments of the commands that look: capture, topo, top, metrics.
//!
//! Place: part of [`super::Cli`]; `capture`, `topo` and `top` take them. Invariants: those of [`super`].

use std::path::PathBuf;

use clap::Args;

use super::Choice;
use crate::units;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab capture -o all.pcapng                            every node, until Ctrl-C
  sanlab capture a -o a.pcapng -c 1000
  sanlab capture a -o - | tshark -r -                     or wireshark -k -i -
  sanlab capture a b -o x.pcapng --filter 'kind=cm,response fate!=lost'

Frames are RoCEv2 with what the link did to each in its comment, and in
namespace mode those of the nodes' eth0 too; connections of a captured node
go by packets meanwhile, on perfect links too. Filters have
terms KEY=VALUE[,VALUE] and KEY!=VALUE, all of which must hold: from, to and
peer (nodes), dir (in, out), kind (cm, request, response, ethernet), operation
(SEND, RDMA_WRITE, ACK, REQ, ..., TCP, ARP), qpn, fate (lost, cut, held, doubled, damaged).")]
pub(crate) struct Capture {
    /// Nodes whose ports are captured [default: all].
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// The pcapng file; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Keep frames that fit, as `peer=b operation=SEND`.
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) filter: String,
    /// Keep so many bytes of each frame.
    #[arg(short, long, value_name = "BYTES", default_value_t = 65_535, value_parser = clap::value_parser!(u32).range(64..=65_535))]
    pub(crate) snaplen: u32,
    /// End after so many frames.
    #[arg(short, long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Room for frames that are not written yet, as `64 MiB`; what finds none is dropped and counted.
    #[arg(long, value_name = "SIZE", default_value = "16 MiB", value_parser = units::size_bytes)]
    pub(crate) ring: u64,
    /// The cluster [default: the only one that runs].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab topo
  sanlab topo lab2 --svg lab2.svg
  sanlab topo --json | jq '.links[] | select(.a_to_b.up | not)'

Every node is linked with each other one; links that are perfect and carry
no connection are not listed.")]
pub(crate) struct Topo {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Draw it into this file; `-` is standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub(crate) svg: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab top
  sanlab top lab2 --interval 250

Keys: 1 to 5 or Tab for nodes, links, connections, queues and findings, s and
r to sort, / to filter, p to stand still, ? for the others, q to end.")]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Milliseconds between two looks.
    #[arg(short, long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(250..=60_000))]
    pub(crate) interval: u64,
}

/// Arguments of the process that serves metrics.
#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// Directory of the cluster; standard input is the listening socket.
    pub(crate) directory: PathBuf,
    /// The emulator, with which it ends.
    #[arg(long)]
    pub(crate) emulator: u32,
}
