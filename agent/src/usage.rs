//! What a container uses, read from its cgroup and from /proc.

use coracle_runtime::container::cgroup;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What a cgroup uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Processor time since it was made.
    pub cpu: Duration,
    /// Bytes.
    pub memory: u64,
    /// Bytes that it may use.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub tasks: u64,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// On the host.
    pub pid: i32,
    /// Real user id.
    pub user: u32,
    /// Resident bytes.
    pub memory: u64,
    /// Program and arguments.
    pub command: String,
}

/// Limits from here on mean none: v1 writes the largest page-aligned number.
const NO_LIMIT: u64 = 1 << 60;

/// Reads what a cgroup uses; what the kernel does not count is 0.
pub fn read(path: &str) -> Usage {
    let number = |controller: &str, file: &str| -> Option<u64> {
        let path = cgroup::controller(path, controller).join(file);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    if cgroup::is_v2() {
        let stat = std::fs::read_to_string(cgroup::controller(path, "cpu").join("cpu.stat")).unwrap_or_default();
        let usec = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        return Usage {
            cpu: Duration::from_micros(usec.unwrap_or(0)),
            memory: number("memory", "memory.current").unwrap_or(0),
            memory_limit: number("memory", "memory.max"),
            tasks: number("pids", "pids.current").unwrap_or(0),
        };
    }
    Usage {
        cpu: Duration::from_nanos(number("cpuacct", "cpuacct.usage").unwrap_or(0)),
        memory: number("memory", "memory.usage_in_bytes").unwrap_or(0),
        memory_limit: number("memory", "memory.limit_in_bytes").filter(|&limit| limit < NO_LIMIT),
        tasks: number("pids", "pids.current").unwrap_or(0),
    }
}

/// The processes of a cgroup and of those below it.
pub fn processes(path: &str) -> Vec<Process> {
    cgroup::all_processes(path).into_iter().filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let folder = Path::new("/proc").join(pid.to_string());
    let status = std::fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let user = field("Uid:").and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let memory = field("VmRSS:").and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    let command = std::fs::read(folder.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
    let command = if command.is_empty() { field("Name:").unwrap_or_default().to_owned() } else { command };
    Some(Process { pid, user, memory: memory * 1024, command })
}
