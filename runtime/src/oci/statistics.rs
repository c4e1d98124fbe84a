//! What a container uses, from the files of its cgroups, in the form of runc's `events`.

use crate::container::cgroup::{controller, is_v2};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Nanoseconds of a microsecond.
const MICROSECOND: u64 = 1000;

/// The numbers of now; what the kernel does not count is left out.
pub fn read(cgroup: &str) -> Value {
    let folder = |name: &str| controller(cgroup, name);
    match is_v2() {
        true => unified(&folder("memory")),
        false => json!({
            "cpu": cpu_v1(&folder("cpu"), &folder("cpuacct")),
            "memory": memory_v1(&folder("memory")),
            "pids": pids(&folder("pids")),
        }),
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Lines of a name and a number.
fn table(path: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn pids(folder: &Path) -> Value {
    json!({ "current": number(&folder.join("pids.current")), "limit": number(&folder.join("pids.max")).unwrap_or(0) })
}

fn unified(folder: &Path) -> Value {
    let cpu = table(&folder.join("cpu.stat"));
    let time = |name: &str| cpu.get(name).map(|it| it * MICROSECOND);
    let memory = |name: &str| number(&folder.join(name));
    json!({
        "cpu": {
            "usage": { "total": time("usage_usec"), "kernel": time("system_usec"), "user": time("user_usec") },
            "throttling": {
                "periods": cpu.get("nr_periods"), "throttledPeriods": cpu.get("nr_throttled"),
                "throttledTime": time("throttled_usec"),
            },
        },
        "memory": {
            "usage": {
                "usage": memory("memory.current"), "max": memory("memory.peak"),
                "limit": memory("memory.max").unwrap_or(u64::MAX),
                "failcnt": table(&folder.join("memory.events")).get("max"),
            },
            "swap": {
                "usage": memory("memory.swap.current"), "limit": memory("memory.swap.max").unwrap_or(u64::MAX),
            },
            "raw": table(&folder.join("memory.stat")),
        },
        "pids": pids(folder),
        "pressure": {
            "cpu": pressure(&folder.join("cpu.pressure")),
            "memory": pressure(&folder.join("memory.pressure")),
            "io": pressure(&folder.join("io.pressure")),
        },
    })
}

/// Pressure stall information (Documentation/accounting/psi.rst); `null` where the kernel counts none.
fn pressure(path: &Path) -> Value {
    let Ok(text) = std::fs::read_to_string(path) else { return Value::Null };
    let mut found = json!({});
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(kind) = words.next() else { continue };
        let numbers: BTreeMap<&str, f64> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(name, number)| Some((name, number.parse().ok()?)))
            .collect();
        found[kind] = json!(numbers);
    }
    found
}

fn cpu_v1(cpu: &Path, accounting: &Path) -> Value {
    let throttling = table(&cpu.join("cpu.stat"));
    let each = std::fs::read_to_string(accounting.join("cpuacct.usage_percpu")).unwrap_or_default();
    let each: Vec<u64> = each.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    json!({
        "usage": {
            "total": number(&accounting.join("cpuacct.usage")), "percpu": each,
            "kernel": number(&accounting.join("cpuacct.usage_sys")),
            "user": number(&accounting.join("cpuacct.usage_user")),
        },
        "throttling": {
            "periods": throttling.get("nr_periods"), "throttledPeriods": throttling.get("nr_throttled"),
            "throttledTime": throttling.get("throttled_time"),
        },
    })
}

fn memory_v1(folder: &Path) -> Value {
    let usage = |prefix: &str| {
        let of = |name: &str| number(&folder.join(format!("{prefix}{name}")));
        json!({
            "usage": of("usage_in_bytes"), "max": of("max_usage_in_bytes"), "limit": of("limit_in_bytes"),
            "failcnt": of("failcnt"),
        })
    };
    json!({
        "usage": usage("memory."), "swap": usage("memory.memsw."), "kernel": usage("memory.kmem."),
        "raw": table(&folder.join("memory.stat")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_unified_hierarchy_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            ("cpu.stat", "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_periods 0\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nmax 3\noom 1\n"),
            ("pids.current", "2\n"),
            ("pids.max", "9\n"),
            ("memory.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 total=3\n"),
        ] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let read = unified(folder.path());
        assert_eq!(read["cpu"]["usage"]["total"], 7000);
        assert_eq!(read["memory"]["usage"]["usage"], 4096);
        assert_eq!(read["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(read["memory"]["usage"]["failcnt"], 3);
        assert_eq!(read["pids"], json!({"current": 2, "limit": 9}));
        assert_eq!(read["pressure"]["memory"]["some"]["avg10"], 1.5);
        assert_eq!(read["pressure"]["memory"]["full"]["total"], 3.0);
        assert_eq!(read["pressure"]["cpu"], Value::Null);
    }
}
