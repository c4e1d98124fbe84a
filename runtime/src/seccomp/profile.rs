//! A profile: what the kernel answers to which call. Pure.

/// Processors that a program can be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit PC.
    X86_64,
    /// 32-bit PC.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI).
    Arm,
}

impl Arch {
    /// That of this machine's kernel, and then those of older programs that it runs too. Empty: none that is known.
    pub fn of_this_machine() -> &'static [Self] {
        Self::of(std::env::consts::ARCH)
    }

    /// As [`Arch::of_this_machine`], of a processor by Rust's name for it.
    pub fn of(name: &str) -> &'static [Self] {
        match name {
            "x86_64" => &[Self::X86_64, Self::X86],
            "aarch64" => &[Self::Aarch64, Self::Arm],
            "arm" => &[Self::Arm],
            _ => &[],
        }
    }

    /// `AUDIT_ARCH_*` (include/uapi/linux/audit.h of the kernel).
    pub fn token(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Registers have 64 bits.
    pub fn is_64_bit(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }
}

/// What the kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The call.
    Allow,
    /// Answers with this number in place of the call.
    Errno(u16),
    /// Ends the process with SIGSYS.
    KillProcess,
    /// Ends the thread with SIGSYS.
    KillThread,
    /// Sends SIGSYS.
    Trap,
    /// The call, and a line in the log.
    Log,
    /// Leaves the answer to a tracer, which is told this number (`PTRACE_GETEVENTMSG`); without one the answer is ENOSYS.
    Trace(u16),
    /// Leaves the answer to who has the filter's descriptor (seccomp_unotify(2)).
    Notify,
}

impl Action {
    /// `SECCOMP_RET_*` (include/uapi/linux/seccomp.h of the kernel).
    pub fn encode(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Errno(number) => 0x0005_0000 | u32::from(number),
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Log => 0x7ffc_0000,
            Self::Trace(number) => 0x7ff0_0000 | u32::from(number),
            Self::Notify => 0x7fc0_0000,
        }
    }
}

/// A question about one argument, as an unsigned number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// It is this.
    Equal(u64),
    /// It is not this.
    NotEqual(u64),
    /// It is less.
    Less(u64),
    /// It is this or less.
    LessOrEqual(u64),
    /// It is more.
    Greater(u64),
    /// It is this or more.
    GreaterOrEqual(u64),
    /// Its bits of the mask are these.
    MaskedEqual {
        /// The bits that count.
        mask: u64,
        /// What they must be.
        value: u64,
    },
}

/// A question about an argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Which, from 0; at most 5.
    pub index: u8,
    /// The question.
    pub compare: Compare,
}

/// Calls that get one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names. One that a processor does not have is passed over there.
    pub calls: Vec<String>,
    /// All must be so.
    pub arguments: Vec<Argument>,
    /// The answer.
    pub action: Action,
    /// Only there; empty: everywhere.
    pub arches: Vec<Arch>,
}

impl Rule {
    /// The calls of a list of words get an answer, whatever their arguments.
    pub fn of(calls: &str, action: Action) -> Self {
        let calls = calls.split_whitespace().map(str::to_owned).collect();
        Self { calls, arguments: Vec::new(), action, arches: Vec::new() }
    }
}

/// Rules, of which the first that fits a call decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// When none fits.
    pub default: Action,
    /// In their order.
    pub rules: Vec<Rule>,
    /// The kernel writes down every answer but "allowed" (`SECCOMP_FILTER_FLAG_LOG`, seccomp(2); Linux 4.14).
    pub log: bool,
}
