//! Numbers of system calls.

use super::profile::Arch;
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

/// The number of a call, if the processor has it.
pub fn number(arch: Arch, name: &str) -> Option<u32> {
    let alias = ALIASES.iter().find(|(there, known, _)| *there == arch && *known == name);
    let name = alias.map_or(name, |(_, _, alias)| *alias);
    let number = match arch {
        Arch::X86_64 => name.parse().ok().map(|call: x86_64::Sysno| call.id()),
        Arch::X86 => name.parse().ok().map(|call: x86::Sysno| call.id()),
        Arch::Aarch64 => name.parse().ok().map(|call: aarch64::Sysno| call.id()),
        Arch::Arm => name.parse().ok().map(|call: arm::Sysno| call.id()),
    };
    let number = number.and_then(|it| u32::try_from(it).ok());
    let of_arm = || OF_ARM.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    number.or_else(|| if arch == Arch::Arm { of_arm() } else { None })
}

/// Names of all calls of a processor.
#[cfg(test)]
pub fn names(arch: Arch) -> Vec<&'static str> {
    match arch {
        Arch::X86_64 => x86_64::Sysno::iter().map(|it| it.name()).collect(),
        Arch::X86 => x86::Sysno::iter().map(|it| it.name()).collect(),
        Arch::Aarch64 => aarch64::Sysno::iter().map(|it| it.name()).collect(),
        Arch::Arm => arm::Sysno::iter().map(|it| it.name()).chain(OF_ARM.map(|(name, _)| name)).collect(),
    }
}
