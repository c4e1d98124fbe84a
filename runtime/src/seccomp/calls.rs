//! Numbers of system calls.

use super::profile::Arch;
use std::sync::OnceLock;
use syscalls::{aarch64, arm, x86, x86_64};

/// ARM's own calls, which no table has (arch/arm/include/uapi/asm/unistd.h of the kernel).
const OF_ARM: [(&str, u32); 5] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
];

/// Calls that have another name there.
const ALIASES: [(Arch, &str, &str); 2] =
    [(Arch::Aarch64, "newfstatat", "fstatat"), (Arch::Arm, "sync_file_range2", "arm_sync_file_range")];

/// The calls of a processor by name, sorted: a profile has hundreds of names, and each is looked for.
fn table(arch: Arch) -> &'static [(&'static str, u32)] {
    static TABLES: [OnceLock<Vec<(&'static str, u32)>>; 4] = [const { OnceLock::new() }; 4];
    let at = match arch {
        Arch::X86_64 => 0,
        Arch::X86 => 1,
        Arch::Aarch64 => 2,
        Arch::Arm => 3,
    };
    TABLES[at].get_or_init(|| {
        let number = |id: i32| u32::try_from(id).unwrap_or(u32::MAX);
        let mut all: Vec<(&str, u32)> = match arch {
            Arch::X86_64 => x86_64::Sysno::iter().map(|it| (it.name(), number(it.id()))).collect(),
            Arch::X86 => x86::Sysno::iter().map(|it| (it.name(), number(it.id()))).collect(),
            Arch::Aarch64 => aarch64::Sysno::iter().map(|it| (it.name(), number(it.id()))).collect(),
            Arch::Arm => arm::Sysno::iter().map(|it| (it.name(), number(it.id()))).chain(OF_ARM).collect(),
        };
        all.sort_unstable();
        all
    })
}

/// The number of a call, if the processor has it.
pub fn number(arch: Arch, name: &str) -> Option<u32> {
    let alias = ALIASES.iter().find(|(there, known, _)| *there == arch && *known == name);
    let name = alias.map_or(name, |(_, _, alias)| *alias);
    let table = table(arch);
    table.binary_search_by_key(&name, |(known, _)| known).ok().map(|at| table[at].1)
}

/// Names of all calls of a processor.
#[cfg(test)]
pub fn names(arch: Arch) -> Vec<&'static str> {
    table(arch).iter().map(|(name, _)| *name).collect()
}
