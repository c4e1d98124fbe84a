//! From limits to the files that set them, for v2 (Documentation/admin-guide/cgroup-v2.rst) and for v1
//! (Documentation/admin-guide/cgroup-v1). Pure.

use crate::container::spec::Limits;
use std::borrow::Cow;

/// One file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The controller that owns it.
    pub controller: Cow<'static, str>,
    /// Name.
    pub file: Cow<'static, str>,
    /// What is written.
    pub value: String,
    /// The field of the compose file, or of the OCI configuration, that asks for it.
    pub field: &'static str,
    /// The kernel may lack it, and the container runs all the same, with a warning.
    pub optional: bool,
}

/// A setting that the kernel must take.
pub fn setting(
    controller: &'static str,
    file: impl Into<Cow<'static, str>>,
    value: impl ToString,
    field: &'static str,
) -> Setting {
    Setting { controller: controller.into(), file: file.into(), value: value.to_string(), field, optional: false }
}

/// Files of the unified hierarchy, in the order in which they are written.
pub fn v2(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory {
        settings.push(setting("memory", "memory.max", or_max(bytes), "mem_limit"));
    }
    if let Some(bytes) = limits.memory_reservation {
        settings.push(setting("memory", "memory.low", or_max(bytes), "mem_reservation"));
    }
    if let Some(total) = limits.memory_swap {
        // v2 counts swap alone.
        let swap = if total < 0 { total } else { total.saturating_sub(limits.memory.unwrap_or(0)).max(0) };
        settings.push(swap_accounting(setting("memory", "memory.swap.max", or_max(swap), "memswap_limit")));
    }
    let cpu = &limits.cpu;
    if let Some(shares) = cpu.shares {
        settings.push(setting("cpu", "cpu.weight", weight(shares), "cpu_shares"));
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = or_max(cpu.quota.filter(|&quota| quota > 0).unwrap_or(-1));
        let value = cpu.period.map_or(quota.clone(), |period| format!("{quota} {period}"));
        settings.push(setting("cpu", "cpu.max", value, "cpus"));
    }
    if let Some(cpus) = &cpu.cpus {
        settings.push(setting("cpuset", "cpuset.cpus", cpus, "cpuset"));
    }
    settings
}

/// Files of the v1 hierarchies, in the order in which they are written.
pub fn v1(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory {
        settings.push(setting("memory", "memory.limit_in_bytes", bytes, "mem_limit"));
    }
    if let Some(bytes) = limits.memory_reservation {
        settings.push(setting("memory", "memory.soft_limit_in_bytes", bytes, "mem_reservation"));
    }
    if let Some(total) = limits.memory_swap {
        let swap = setting("memory", "memory.memsw.limit_in_bytes", total, "memswap_limit");
        settings.push(swap_accounting(swap));
    }
    if let Some(swappiness) = limits.memory_swappiness {
        settings.push(setting("memory", "memory.swappiness", swappiness, "mem_swappiness"));
    }
    if limits.oom_kill_disable {
        settings.push(setting("memory", "memory.oom_control", 1, "oom_kill_disable"));
    }
    let cpu = &limits.cpu;
    if let Some(shares) = cpu.shares {
        settings.push(setting("cpu", "cpu.shares", shares, "cpu_shares"));
    }
    if let Some(period) = cpu.period {
        settings.push(setting("cpu", "cpu.cfs_period_us", period, "cpu_period"));
    }
    if let Some(quota) = cpu.quota {
        settings.push(setting("cpu", "cpu.cfs_quota_us", quota, "cpus"));
    }
    if let Some(cpus) = &cpu.cpus {
        settings.push(setting("cpuset", "cpuset.cpus", cpus, "cpuset"));
    }
    settings
}

/// Tasks of a container whose file says nothing. A board's kernel has 32,768 at most: one that forks without end leaves
/// room for the others, and what it has costs 20 MiB of the kernel's memory.
const DEFAULT_TASKS: i64 = 1024;

/// The limit on tasks, which is the same file on both, and is set last: what makes the container needs tasks too.
pub fn tasks(limits: &Limits) -> Setting {
    setting("pids", "pids.max", or_max(limits.pids.unwrap_or(DEFAULT_TASKS)), "pids_limit")
}

/// Fields that v2 has nothing for.
pub fn without_meaning_on_v2(limits: &Limits) -> Vec<&'static str> {
    let mut fields = Vec::new();
    fields.extend(limits.memory_swappiness.map(|_| "mem_swappiness"));
    fields.extend(limits.oom_kill_disable.then_some("oom_kill_disable"));
    fields
}

/// Kernels of small boards are often built without accounting of swap.
fn swap_accounting(setting: Setting) -> Setting {
    Setting { optional: true, ..setting }
}

/// -1 is `max`.
pub fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// 2 to 262144 of v1 as 1 to 10000 of v2, as runc and crun convert it.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::CpuLimits;

    fn limits() -> Limits {
        Limits {
            memory: Some(64 << 20),
            memory_reservation: Some(32 << 20),
            memory_swap: Some(96 << 20),
            memory_swappiness: Some(0),
            oom_kill_disable: false,
            cpu: CpuLimits {
                shares: Some(512),
                quota: Some(50_000),
                period: Some(100_000),
                cpus: Some("0-1".into()),
            },
            pids: Some(-1),
        }
    }

    fn files(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|it| format!("{}={}", it.file, it.value)).collect()
    }

    #[test]
    fn v2_counts_swap_alone_and_weighs_in_its_own_scale() {
        let wanted = [
            "memory.max=67108864",
            "memory.low=33554432",
            "memory.swap.max=33554432",
            "cpu.weight=20",
            "cpu.max=50000 100000",
            "cpuset.cpus=0-1",
        ];
        assert_eq!(files(&v2(&limits())), wanted);
        assert_eq!(without_meaning_on_v2(&limits()), ["mem_swappiness"]);
    }

    #[test]
    fn v1_counts_memory_and_swap_together_and_takes_the_memory_limit_first() {
        let wanted = [
            "memory.limit_in_bytes=67108864",
            "memory.soft_limit_in_bytes=33554432",
            "memory.memsw.limit_in_bytes=100663296",
            "memory.swappiness=0",
            "cpu.shares=512",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpuset.cpus=0-1",
        ];
        assert_eq!(files(&v1(&limits())), wanted);
    }

    #[test]
    fn unlimited_is_said_in_the_word_of_the_kernel() {
        let limits = Limits { memory: Some(1 << 20), memory_swap: Some(-1), pids: Some(-1), ..Limits::default() };
        assert_eq!(files(&v2(&limits)), ["memory.max=1048576", "memory.swap.max=max"]);
        assert_eq!(tasks(&limits).value, "max");
        assert!(v1(&Limits::default()).is_empty() && v2(&Limits::default()).is_empty());
    }

    #[test]
    fn the_ends_of_the_scale_of_shares_are_the_ends_of_that_of_weights() {
        assert_eq!(
            (weight(0), weight(2), weight(1024), weight(262_144), weight(u64::MAX)),
            (1, 1, 39, 10_000, 10_000)
        );
    }
}
