//! From `linux.resources` of an OCI configuration (runtime-spec, config-linux.md) to the files of cgroups. Pure.

use crate::container::cgroup::devices::{self, Access, Kind, Rule};
use crate::container::cgroup::entry::{CgroupError, Devices, Settings};
use crate::container::cgroup::limits::{Setting, or_max, setting, weight};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};

/// Weight of a block device when v1 counts from 10 to 1000 and v2 from 1 to 10000, as runc and crun convert it.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9_999 / 990
}

impl Settings for LinuxResources {
    fn v1(&self) -> Result<Vec<Setting>, CgroupError> {
        let mut settings = Vec::new();
        if let Some(memory) = self.memory() {
            memory_v1(memory, &mut settings);
        }
        if let Some(cpu) = self.cpu() {
            cpu_v1(cpu, &mut settings);
        }
        if let Some(io) = self.block_io() {
            io_v1(io, &mut settings);
        }
        for limit in self.hugepage_limits().iter().flatten() {
            let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size());
            settings.push(setting("hugetlb", file, limit.limit(), "linux.resources.hugepageLimits"));
        }
        if let Some(network) = self.network() {
            if let Some(class) = network.class_id() {
                settings.push(setting("net_cls", "net_cls.classid", class, "linux.resources.network.classID"));
            }
            for it in network.priorities().iter().flatten() {
                let value = format!("{} {}", it.name(), it.priority());
                settings.push(setting(
                    "net_prio",
                    "net_prio.ifpriomap",
                    value,
                    "linux.resources.network.priorities",
                ));
            }
        }
        settings.extend(rdma(self));
        if self.unified().as_ref().is_some_and(|it| !it.is_empty()) {
            return Err(CgroupError::NoMeaning { field: "linux.resources.unified", version: "v1" });
        }
        Ok(settings)
    }

    fn v2(&self) -> Result<Vec<Setting>, CgroupError> {
        let mut settings = Vec::new();
        if let Some(memory) = self.memory() {
            memory_v2(memory, &mut settings)?;
        }
        if let Some(cpu) = self.cpu() {
            cpu_v2(cpu, &mut settings)?;
        }
        if let Some(io) = self.block_io() {
            io_v2(io, &mut settings)?;
        }
        for limit in self.hugepage_limits().iter().flatten() {
            let file = format!("hugetlb.{}.max", limit.page_size());
            settings.push(setting("hugetlb", file, limit.limit(), "linux.resources.hugepageLimits"));
        }
        if let Some(network) = self.network() {
            if network.class_id().is_some_and(|it| it != 0) {
                return Err(CgroupError::NoMeaning { field: "linux.resources.network.classID", version: "v2" });
            }
            if network.priorities().as_ref().is_some_and(|it| !it.is_empty()) {
                return Err(CgroupError::NoMeaning { field: "linux.resources.network.priorities", version: "v2" });
            }
        }
        settings.extend(rdma(self));
        let mut unified: Vec<_> = self.unified().iter().flatten().collect();
        unified.sort();
        for (file, value) in unified {
            settings.push(unified_setting(file, value)?);
        }
        Ok(settings)
    }
}

/// A file of v2 by its name. The name of a controller stands before the first dot.
fn unified_setting(file: &str, value: &str) -> Result<Setting, CgroupError> {
    let field = "linux.resources.unified";
    let Some((controller, _)) = file.split_once('.').filter(|_| !file.contains('/')) else {
        return Err(CgroupError::Contradiction {
            field,
            reason: format!("{file:?} is no file of a cgroup: write CONTROLLER.NAME"),
        });
    };
    if controller == "cgroup" {
        // Processes, types and freezing are the runtime's.
        return Err(CgroupError::Contradiction { field, reason: format!("{file} is the runtime's own") });
    }
    Ok(Setting {
        controller: controller.to_owned().into(),
        file: file.to_owned().into(),
        value: value.to_owned(),
        field,
        optional: false,
    })
}

fn memory_v1(memory: &LinuxMemory, settings: &mut Vec<Setting>) {
    let mut set = |file: &'static str, value: Option<i64>, field| {
        settings.extend(value.map(|value| setting("memory", file, value, field)));
    };
    set("memory.limit_in_bytes", memory.limit().filter(|it| *it != 0), "linux.resources.memory.limit");
    set("memory.memsw.limit_in_bytes", memory.swap().filter(|it| *it != 0), "linux.resources.memory.swap");
    set("memory.soft_limit_in_bytes", memory.reservation(), "linux.resources.memory.reservation");
    set("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp(), "linux.resources.memory.kernelTCP");
    let swappiness = memory.swappiness().and_then(|it| i64::try_from(it).ok());
    set("memory.swappiness", swappiness, "linux.resources.memory.swappiness");
    let disabled = memory.disable_oom_killer().filter(|it| *it).map(|_| 1);
    set("memory.oom_control", disabled, "linux.resources.memory.disableOOMKiller");
}

fn memory_v2(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|it| *it != 0);
    if let Some(limit) = limit {
        settings.push(setting("memory", "memory.max", or_max(limit), "linux.resources.memory.limit"));
    }
    if let Some(total) = memory.swap().filter(|it| *it != 0) {
        let field = "linux.resources.memory.swap";
        // v2 counts swap alone.
        let swap = match limit {
            _ if total < 0 => -1,
            Some(limit) if limit >= 0 && total >= limit => total - limit,
            Some(limit) if limit < 0 => -1,
            Some(limit) => {
                let reason = format!("{total} is memory and swap together, and less than memory.limit, {limit}");
                return Err(CgroupError::Contradiction { field, reason });
            }
            None => {
                let reason = "is memory and swap together, so memory.limit is wanted too".to_owned();
                return Err(CgroupError::Contradiction { field, reason });
            }
        };
        settings.push(setting("memory", "memory.swap.max", or_max(swap), field));
    }
    if let Some(reservation) = memory.reservation().filter(|it| *it != 0) {
        let field = "linux.resources.memory.reservation";
        settings.push(setting("memory", "memory.low", or_max(reservation), field));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(CgroupError::NoMeaning { field: "linux.resources.memory.disableOOMKiller", version: "v2" });
    }
    if memory.swappiness().is_some() {
        return Err(CgroupError::NoMeaning { field: "linux.resources.memory.swappiness", version: "v2" });
    }
    if memory.kernel_tcp().is_some_and(|it| it != 0) {
        return Err(CgroupError::NoMeaning { field: "linux.resources.memory.kernelTCP", version: "v2" });
    }
    Ok(())
}

fn cpu_v1(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let mut set = |controller, file: &'static str, value: Option<String>, field| {
        settings.extend(value.map(|value| setting(controller, file, value, field)));
    };
    let shares = cpu.shares().filter(|it| *it != 0).map(|it| it.to_string());
    set("cpu", "cpu.shares", shares, "linux.resources.cpu.shares");
    let period = cpu.period().filter(|it| *it != 0).map(|it| it.to_string());
    set("cpu", "cpu.cfs_period_us", period, "linux.resources.cpu.period");
    let quota = cpu.quota().filter(|it| *it != 0).map(|it| it.to_string());
    set("cpu", "cpu.cfs_quota_us", quota, "linux.resources.cpu.quota");
    set("cpu", "cpu.cfs_burst_us", cpu.burst().map(|it| it.to_string()), "linux.resources.cpu.burst");
    let period = cpu.realtime_period().filter(|it| *it != 0).map(|it| it.to_string());
    set("cpu", "cpu.rt_period_us", period, "linux.resources.cpu.realtimePeriod");
    let runtime = cpu.realtime_runtime().filter(|it| *it != 0).map(|it| it.to_string());
    set("cpu", "cpu.rt_runtime_us", runtime, "linux.resources.cpu.realtimeRuntime");
    set("cpu", "cpu.idle", cpu.idle().map(|it| it.to_string()), "linux.resources.cpu.idle");
    set("cpuset", "cpuset.cpus", named(cpu.cpus()), "linux.resources.cpu.cpus");
    set("cpuset", "cpuset.mems", named(cpu.mems()), "linux.resources.cpu.mems");
}

fn named(list: &Option<String>) -> Option<String> {
    list.clone().filter(|it| !it.is_empty())
}

fn cpu_v2(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<(), CgroupError> {
    if cpu.realtime_runtime().is_some_and(|it| it != 0) {
        return Err(CgroupError::NoMeaning { field: "linux.resources.cpu.realtimeRuntime", version: "v2" });
    }
    if cpu.realtime_period().is_some_and(|it| it != 0) {
        return Err(CgroupError::NoMeaning { field: "linux.resources.cpu.realtimePeriod", version: "v2" });
    }
    // An idle group has no weight.
    if let Some(idle) = cpu.idle() {
        settings.push(setting("cpu", "cpu.idle", idle, "linux.resources.cpu.idle"));
    }
    if let Some(shares) = cpu.shares().filter(|it| *it != 0) {
        settings.push(setting("cpu", "cpu.weight", weight(shares), "linux.resources.cpu.shares"));
    }
    let quota = cpu.quota().filter(|it| *it != 0);
    let period = cpu.period().filter(|it| *it != 0);
    if quota.is_some() || period.is_some() {
        let quota = or_max(quota.filter(|&it| it > 0).unwrap_or(-1));
        let value = period.map_or(quota.clone(), |period| format!("{quota} {period}"));
        settings.push(setting("cpu", "cpu.max", value, "linux.resources.cpu.quota"));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(setting("cpu", "cpu.max.burst", burst, "linux.resources.cpu.burst"));
    }
    if let Some(cpus) = named(cpu.cpus()) {
        settings.push(setting("cpuset", "cpuset.cpus", cpus, "linux.resources.cpu.cpus"));
    }
    if let Some(mems) = named(cpu.mems()) {
        settings.push(setting("cpuset", "cpuset.mems", mems, "linux.resources.cpu.mems"));
    }
    Ok(())
}

/// The four lists of rates, with the files of v1 and the keys of v2's `io.max`.
fn rates(io: &LinuxBlockIo) -> [(&Option<Vec<LinuxThrottleDevice>>, &'static str, &'static str, &'static str); 4] {
    [
        (
            io.throttle_read_bps_device(),
            "blkio.throttle.read_bps_device",
            "rbps",
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        (
            io.throttle_write_bps_device(),
            "blkio.throttle.write_bps_device",
            "wbps",
            "linux.resources.blockIO.throttleWriteBpsDevice",
        ),
        (
            io.throttle_read_iops_device(),
            "blkio.throttle.read_iops_device",
            "riops",
            "linux.resources.blockIO.throttleReadIOPSDevice",
        ),
        (
            io.throttle_write_iops_device(),
            "blkio.throttle.write_iops_device",
            "wiops",
            "linux.resources.blockIO.throttleWriteIOPSDevice",
        ),
    ]
}

fn io_v1(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = io.weight().filter(|it| *it != 0) {
        settings.push(setting("blkio", "blkio.bfq.weight", weight, "linux.resources.blockIO.weight"));
    }
    if let Some(weight) = io.leaf_weight().filter(|it| *it != 0) {
        settings.push(setting("blkio", "blkio.leaf_weight", weight, "linux.resources.blockIO.leafWeight"));
    }
    for it in io.weight_device().iter().flatten() {
        let field = "linux.resources.blockIO.weightDevice";
        if let Some(weight) = it.weight() {
            let value = format!("{}:{} {weight}", it.major(), it.minor());
            settings.push(setting("blkio", "blkio.bfq.weight_device", value, field));
        }
        if let Some(weight) = it.leaf_weight() {
            let value = format!("{}:{} {weight}", it.major(), it.minor());
            settings.push(setting("blkio", "blkio.leaf_weight_device", value, field));
        }
    }
    for (devices, file, _, field) in rates(io) {
        for it in devices.iter().flatten() {
            let value = format!("{}:{} {}", it.major(), it.minor(), it.rate());
            settings.push(setting("blkio", file, value, field));
        }
    }
}

fn io_v2(io: &LinuxBlockIo, settings: &mut Vec<Setting>) -> Result<(), CgroupError> {
    if io.leaf_weight().is_some_and(|it| it != 0) {
        return Err(CgroupError::NoMeaning { field: "linux.resources.blockIO.leafWeight", version: "v2" });
    }
    if let Some(weight) = io.weight().filter(|it| *it != 0) {
        settings.push(setting("io", "io.weight", io_weight(weight), "linux.resources.blockIO.weight"));
    }
    for it in io.weight_device().iter().flatten() {
        let field = "linux.resources.blockIO.weightDevice";
        if it.leaf_weight().is_some_and(|it| it != 0) {
            return Err(CgroupError::NoMeaning { field, version: "v2" });
        }
        if let Some(weight) = it.weight() {
            let value = format!("{}:{} {}", it.major(), it.minor(), io_weight(weight));
            settings.push(setting("io", "io.weight", value, field));
        }
    }
    for (devices, _, key, field) in rates(io) {
        for it in devices.iter().flatten() {
            let value = format!("{}:{} {key}={}", it.major(), it.minor(), it.rate());
            settings.push(setting("io", "io.max", value, field));
        }
    }
    Ok(())
}

/// The same file on both.
fn rdma(resources: &LinuxResources) -> Vec<Setting> {
    let mut adapters: Vec<_> = resources.rdma().iter().flatten().collect();
    adapters.sort_by_key(|(name, _)| *name);
    let value = |name: &str, it: &oci_spec::runtime::LinuxRdma| {
        let mut value = name.to_owned();
        for (key, number) in [("hca_handle", it.hca_handles()), ("hca_object", it.hca_objects())] {
            if let Some(number) = number {
                value.push_str(&format!(" {key}={number}"));
            }
        }
        value
    };
    adapters
        .into_iter()
        .map(|(name, it)| setting("rdma", "rdma.max", value(name, it), "linux.resources.rdma"))
        .collect()
}

/// The limit on tasks; 0 is none, as in runc and crun.
pub fn tasks(resources: &LinuxResources) -> Option<Setting> {
    let limit = resources.pids().as_ref()?.limit();
    let value = if limit == 0 { -1 } else { limit };
    Some(setting("pids", "pids.max", or_max(value), "linux.resources.pids.limit"))
}

/// What a list of rules comes to: each changes what those before it said, and at first every device is forbidden.
/// Nodes that every container has stay allowed, and are the only ones that may be made without a rule for it.
///
/// # Errors
/// A rule that cannot be kept, by its number.
pub fn device_access(rules: &[LinuxDeviceCgroup]) -> Result<Devices, CgroupError> {
    let mut devices = Devices::Only(Vec::new());
    for (number, rule) in rules.iter().enumerate() {
        let refused = |reason: String| CgroupError::Contradiction {
            field: "linux.resources.devices",
            reason: format!("rule {number}: {reason}"),
        };
        let letters = rule.access().as_deref().unwrap_or_default();
        let access =
            Access::parse(letters).ok_or_else(|| refused(format!("access {letters:?} is not some of r, w, m")))?;
        let part = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| refused(format!("{number} is no number"))),
        };
        let (major, minor) = (part(rule.major())?, part(rule.minor())?);
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(Kind::Block),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Character),
            Some(LinuxDeviceType::P) => return Err(refused("a FIFO is no device".to_owned())),
        };
        let Some(kind) = kind else {
            // As on v1: `a` is everything, whatever stands beside it.
            devices = if rule.allow() { Devices::AllBut(Vec::new()) } else { Devices::Only(Vec::new()) };
            continue;
        };
        apply(&mut devices, Rule { kind, major, minor, access }, rule.allow()).map_err(refused)?;
    }
    match &mut devices {
        Devices::Only(rules) => rules.extend(devices::every_container()),
        Devices::AllBut(rules) => {
            rules.retain(|rule| !devices::every_container().any(|it| it.is_node_of(*rule)));
            // Nothing but `a` allowed, and nothing taken back: no program is needed.
            if rules.is_empty() {
                devices = Devices::All;
            }
        }
        Devices::All => {}
    }
    Ok(devices)
}

/// Changes what is said of a node. An exception from a rule with `*` has no form in the kernel's lists, so it is
/// refused, as runc does.
fn apply(devices: &mut Devices, rule: Rule, allow: bool) -> Result<(), String> {
    let (rules, adds) = match devices {
        Devices::Only(rules) => (rules, allow),
        Devices::AllBut(rules) => (rules, !allow),
        Devices::All => return Ok(()),
    };
    let wider = |it: &Rule| {
        it.kind == rule.kind
            && !it.is_node_of(rule)
            && (it.major.is_none() || it.major == rule.major)
            && (it.minor.is_none() || it.minor == rule.minor)
    };
    let known = rules.iter().position(|it| it.is_node_of(rule));
    if adds {
        match known {
            Some(at) => rules[at].access = rules[at].access.with(rule.access),
            None => rules.push(rule),
        }
        return Ok(());
    }
    if rules.iter().any(wider) {
        return Err(format!("{rule} takes a part of an earlier rule with `*` back, which cgroups cannot"));
    }
    // What an exception with `*` covers goes with it.
    let covers = |it: &Rule| {
        it.kind == rule.kind
            && rule.major.is_none_or(|major| it.major == Some(major))
            && rule.minor.is_none_or(|minor| it.minor == Some(minor))
    };
    for it in rules.iter_mut().filter(|it| covers(it)) {
        it.access = it.access.without(rule.access);
    }
    rules.retain(|it| !it.access.is_empty());
    Ok(())
}

/// What either kind of cgroups would be set to, and the device program; an error when none takes it.
#[cfg(any(test, fuzzing))]
pub(super) fn decide(resources: &LinuxResources) -> Result<(), CgroupError> {
    tasks(resources);
    device_access(resources.devices().as_deref().unwrap_or_default())?;
    let (v1, v2) = (resources.v1(), resources.v2());
    v1.or(v2).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(text: &str) -> LinuxResources {
        serde_json::from_str(text).expect("resources")
    }

    fn files(settings: Result<Vec<Setting>, CgroupError>) -> Vec<String> {
        settings.expect("settings").iter().map(|it| format!("{}={}", it.file, it.value)).collect()
    }

    const ALL: &str = r#"{
        "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
        "cpu": {"shares": 1024, "quota": 20000, "period": 100000, "burst": 10, "cpus": "0", "mems": "0"},
        "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
        "rdma": {"mlx5": {"hcaHandles": 3, "hcaObjects": 4}}, "pids": {"limit": 32}
    }"#;

    #[test]
    fn every_resource_has_its_file_on_v2() {
        assert_eq!(
            files(resources(ALL).v2()),
            [
                "memory.max=1000",
                "memory.swap.max=500",
                "memory.low=500",
                "cpu.weight=39",
                "cpu.max=20000 100000",
                "cpu.max.burst=10",
                "cpuset.cpus=0",
                "cpuset.mems=0",
                "io.weight=4950",
                "io.max=8:0 rbps=7",
                "hugetlb.2MB.max=9",
                "rdma.max=mlx5 hca_handle=3 hca_object=4",
            ]
        );
        assert_eq!(tasks(&resources(ALL)).map(|it| it.value).as_deref(), Some("32"));
    }

    #[test]
    fn every_resource_has_its_file_on_v1() {
        assert_eq!(
            files(resources(ALL).v1()),
            [
                "memory.limit_in_bytes=1000",
                "memory.memsw.limit_in_bytes=1500",
                "memory.soft_limit_in_bytes=500",
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=20000",
                "cpu.cfs_burst_us=10",
                "cpuset.cpus=0",
                "cpuset.mems=0",
                "blkio.bfq.weight=500",
                "blkio.throttle.read_bps_device=8:0 7",
                "hugetlb.2MB.limit_in_bytes=9",
                "rdma.max=mlx5 hca_handle=3 hca_object=4",
            ]
        );
    }

    #[test]
    fn what_the_other_version_alone_has_is_refused_by_name() {
        for (text, field) in [
            (r#"{"memory": {"swappiness": 1}}"#, "linux.resources.memory.swappiness"),
            (r#"{"memory": {"disableOOMKiller": true}}"#, "linux.resources.memory.disableOOMKiller"),
            (r#"{"memory": {"swap": 5}}"#, "linux.resources.memory.swap"),
            (r#"{"memory": {"limit": 6, "swap": 5}}"#, "linux.resources.memory.swap"),
            (r#"{"cpu": {"realtimeRuntime": 5}}"#, "linux.resources.cpu.realtimeRuntime"),
            (r#"{"network": {"classID": 5}}"#, "linux.resources.network.classID"),
            (r#"{"unified": {"cgroup.freeze": "1"}}"#, "linux.resources.unified"),
            (r#"{"unified": {"../x.y": "1"}}"#, "linux.resources.unified"),
        ] {
            let refused = resources(text).v2().expect_err(text).to_string();
            assert!(refused.starts_with(field), "{refused}");
        }
        let refused = resources(r#"{"unified": {"memory.high": "1"}}"#).v1().expect_err("v2 only").to_string();
        assert!(refused.starts_with("linux.resources.unified: cgroup v1"), "{refused}");
        assert_eq!(files(resources(r#"{"unified": {"memory.high": "1"}}"#).v2()), ["memory.high=1"]);
    }

    fn access(text: &str) -> Result<Devices, CgroupError> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(text).expect("rules");
        device_access(&rules)
    }

    fn own(text: &str) -> Vec<String> {
        match access(text).expect("access") {
            Devices::Only(rules) => {
                let usual = devices::every_container().count();
                rules[..rules.len() - usual].iter().map(Rule::to_string).collect()
            }
            Devices::AllBut(rules) => rules.iter().map(|it| format!("not {it}")).collect(),
            Devices::All => vec!["all".to_owned()],
        }
    }

    #[test]
    fn later_device_rules_change_earlier_ones() {
        assert_eq!(own("[]"), Vec::<String>::new());
        assert_eq!(own(r#"[{"allow": false, "access": "rwm"}]"#), Vec::<String>::new());
        assert_eq!(own(r#"[{"allow": true, "access": "rwm"}]"#), ["all"]);
        let rules = r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229},
            {"allow": true, "type": "b", "major": 8, "access": "r"}, {"allow": true, "type": "b", "major": 8, "access": "w"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "m"}]"#;
        assert_eq!(own(rules), ["c 10:229 rw", "b 8:* rw"]);
        let rules = r#"[{"allow": true}, {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]"#;
        assert_eq!(own(rules), ["not c 10:229 w"]);
        // Null is everybody's.
        assert_eq!(own(r#"[{"allow": true}, {"allow": false, "type": "c", "major": 1, "minor": 3}]"#), ["all"]);
    }

    #[test]
    fn a_part_of_a_wider_rule_cannot_be_taken_back() {
        let rules =
            r#"[{"allow": true, "type": "b", "major": 8}, {"allow": false, "type": "b", "major": 8, "minor": 1}]"#;
        let refused = access(rules).expect_err("a hole").to_string();
        assert!(refused.starts_with("linux.resources.devices: rule 1"), "{refused}");
        assert!(access(r#"[{"allow": true, "type": "c", "access": "x"}]"#).is_err());
    }
}
