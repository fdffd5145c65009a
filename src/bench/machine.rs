//! The machine that figures are of, and what about it spoils figures.
//!
//! Place: head of every [`super::Report`]. Invariants: only reads /proc and /sys; what cannot be read is absent, not guessed.
//! Source: proc(5), sysfs-devices-system-cpu.

use std::fs;

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: Option<String>,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Threads that share a core with another one, as in `0-1`.
    pub smt_siblings: Option<String>,
    /// NUMA nodes.
    pub numa_nodes: Option<usize>,
    /// Frequency governor of the first processor.
    pub governor: Option<String>,
    /// Whether a hypervisor is underneath.
    pub hypervisor: bool,
    /// Kernel.
    pub kernel: Option<String>,
    /// Whether this program is built without optimisation.
    pub debug_build: bool,
    /// Programs that wanted to run, on average over the last minute.
    pub load: Option<f64>,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let cpu0 = "/sys/devices/system/cpu/cpu0";
        let siblings = line(&format!("{cpu0}/topology/thread_siblings_list"));
        let nodes = fs::read_dir("/sys/devices/system/node")
            .ok()
            .map(|entries| {
                let names = entries.flatten().map(|entry| entry.file_name());
                names
                    .filter(|name| {
                        let digits = name.to_str().and_then(|name| name.strip_prefix("node"));
                        digits.is_some_and(|digits| digits.parse::<u32>().is_ok())
                    })
                    .count()
            });
        Self {
            cpu: field("model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            smt_siblings: siblings.filter(|list| list.contains([',', '-'])),
            numa_nodes: nodes.filter(|&nodes| nodes > 0),
            governor: line(&format!("{cpu0}/cpufreq/scaling_governor")),
            hypervisor: field("flags")
                .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
            kernel: line("/proc/sys/kernel/osrelease"),
            debug_build: cfg!(debug_assertions),
            load: line("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
        }
    }

    /// Lines for people: what it is, and what to be careful about.
    #[must_use]
    pub fn to_text(&self) -> String {
        let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        let mut text = format!(
            "machine  {}, {} processor{}{}, kernel {}\n",
            known(&self.cpu),
            self.cpus,
            if self.cpus == 1 { "" } else { "s" },
            if self.hypervisor { ", virtual" } else { "" },
            known(&self.kernel),
        );
        for warning in self.warnings() {
            text.push_str(&format!("careful  {warning}\n"));
        }
        text
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.debug_build {
            warnings.push(
                "built without optimisation: no figure says anything; build with --release"
                    .to_owned(),
            );
        }
        if self.cpus < 2 {
            warnings.push("one processor: both sides share it, whatever --place says".to_owned());
        }
        if let Some(load) = self.load
            && self.cpus > 0
            && load > 0.5
        {
            warnings.push(format!(
                "load {load:.1}: other programs run; trust the ratios before the values"
            ));
        }
        if self.hypervisor {
            warnings.push("a virtual machine: tails may be those of its host".to_owned());
        }
        if let Some(siblings) = &self.smt_siblings {
            warnings.push(format!(
                "processors {siblings} are threads of one core: sides on them share its caches"
            ));
        }
        if let Some(governor) = self
            .governor
            .as_deref()
            .filter(|&name| name != "performance")
        {
            warnings.push(format!(
                "frequency governor {governor}: short runs start slowly"
            ));
        }
        warnings
    }
}

fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn what_spoils_a_figure_is_said() {
        let quiet = Machine {
            cpus: 8,
            governor: Some("performance".into()),
            load: Some(0.1),
            ..Machine::default()
        };
        assert_eq!(quiet.to_text().lines().count(), 1);
        let loud = Machine {
            cpus: 1,
            hypervisor: true,
            load: Some(7.0),
            smt_siblings: Some("0-1".into()),
            governor: Some("powersave".into()),
            debug_build: true,
            ..quiet
        };
        assert_eq!(loud.to_text().lines().count(), 7);
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_processor() {
        let here = Machine::look();
        assert!(here.kernel.is_some() && here.cpus >= 1);
    }
}
