//! Benchmarks, each paired with its peer in the same run: `cargo xtask bench NAME [--json FILE]`.
//!
//! Rounds alternate between the subjects, so that what else the machine does meets all of them. Figures are medians;
//! the JSON has the spread.

mod allocations;
mod figure;
mod idle;
mod plan;
mod podman;
mod pull;
mod runtime;
mod soak;
mod start;

use anyhow::{Context, bail};
use figure::Report;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name =
        arguments.next().context("which benchmark: pull, start, up10, plan, idle, soak, create, exec, oci")?;
    let mut arguments: Vec<String> = arguments.collect();
    let file = match arguments.iter().position(|it| it == "--json") {
        Some(at) if at + 1 < arguments.len() => arguments.drain(at..at + 2).nth(1),
        Some(_) => bail!("--json takes a file"),
        None => None,
    };
    if let Some(other) = arguments.first().filter(|_| name != "soak") {
        bail!("{other:?} is no option: --json FILE");
    }
    let figures = match name.as_str() {
        "pull" => pull::run()?,
        "start" => start::one()?,
        "up10" => start::ten()?,
        "plan" => plan::run()?,
        "idle" => idle::run()?,
        "soak" => soak::run(arguments.into_iter())?,
        "create" => runtime::create()?,
        "exec" => runtime::exec()?,
        "oci" => runtime::oci_run()?,
        other => bail!("there is no benchmark {other:?}: pull, start, up10, plan, idle, soak, create, exec, oci"),
    };
    let report = Report { bench: name, machine: figure::machine(), figures };
    report.print();
    match file {
        Some(file) => Ok(std::fs::write(file, report.to_json().to_string())?),
        None => Ok(()),
    }
}
