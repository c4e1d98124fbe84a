//! Figures: medians with their spread.

use serde_json::{Value, json};

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its name in the JSON.
    pub name: &'static str,
    /// Median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Rounds.
    pub runs: usize,
    /// Smallest of the rounds.
    pub min: f64,
    /// Largest of the rounds.
    pub max: f64,
}

/// What a benchmark found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its name.
    pub bench: String,
    /// Where it ran.
    pub machine: String,
    /// What it found.
    pub figures: Vec<Figure>,
}

impl Figure {
    /// The median of some rounds.
    pub fn of(name: &'static str, unit: &'static str, rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
        let end = |at: Option<&f64>| at.copied().unwrap_or(f64::NAN);
        Self { name, value: middle, unit, runs: sorted.len(), min: end(sorted.first()), max: end(sorted.last()) }
    }

    /// The median of the ratios of rounds that ran side by side.
    pub fn ratio(name: &'static str, ours: &[f64], theirs: &[f64]) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Self::of(name, "ratio", &ratios)
    }
}

impl Report {
    /// For a person.
    pub fn print(&self) {
        println!("{} on {}", self.bench, self.machine);
        for it in &self.figures {
            println!(
                "  {:<24}{:>12.3} {:<10} ({} runs, {:.3} to {:.3})",
                it.name, it.value, it.unit, it.runs, it.min, it.max
            );
        }
    }

    /// For a program.
    pub fn to_json(&self) -> Value {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|it| {
                json!({
                    "name": it.name, "value": it.value, "unit": it.unit, "runs": it.runs, "min": it.min, "max": it.max,
                })
            })
            .collect();
        json!({ "bench": self.bench, "machine": self.machine, "figures": figures })
    }
}

/// Processor, number of cores and kernel.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |it| it.1);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{model}, {cores} cores, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}
