//! Profiles as files, in the form of Docker's (also Podman's): JSON with conditions on capabilities, processors and
//! kernels (moby `profiles/seccomp`; OCI runtime-spec config-linux.md, Seccomp). Pure.

use super::profile::{Action, Arch, Argument, Compare, Profile, Rule};
use crate::untrusted::one_line;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Bytes of a file: Docker's default has 15 KiB.
pub const MAX_BYTES: usize = 256 * 1024;

/// For whom a profile is read.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    /// Capabilities of the process, without `CAP_`.
    pub capabilities: &'a [&'a str],
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// Processors whose programs this machine runs, its own first.
    pub arches: &'a [Arch],
    /// There is somebody who answers for calls that are left to them.
    pub notify: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Entry>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(rename = "defaultErrno")]
    _default_errno: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
    #[serde(rename = "errno")]
    _errno: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Reader<'_> {
    /// Reads a profile, and the processors that it is for.
    ///
    /// # Errors
    /// The field and why, one line.
    pub fn read(&self, text: &str) -> Result<(Profile, Vec<Arch>), String> {
        self.read_file(text).map_err(|reason| one_line(&reason))
    }

    /// As [`Reader::read`], of a document that was read before, and whose size was looked at.
    ///
    /// # Errors
    /// The field and why, one line.
    pub fn read_value(&self, document: &serde_json::Value) -> Result<(Profile, Vec<Arch>), String> {
        let file = File::deserialize(document).map_err(|error| error.to_string());
        file.and_then(|file| self.check(&file)).map_err(|reason| one_line(&reason))
    }

    fn read_file(&self, text: &str) -> Result<(Profile, Vec<Arch>), String> {
        if text.len() > MAX_BYTES {
            return Err(format!("larger than {MAX_BYTES} bytes"));
        }
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        self.check(&file)
    }

    fn check(&self, file: &File) -> Result<(Profile, Vec<Arch>), String> {
        if let Some(flag) = file.flags.iter().find(|flag| *flag != "SECCOMP_FILTER_FLAG_LOG") {
            return Err(format!("flags: {flag} is not supported: leave it out"));
        }
        let default = action(&file.default_action, file.default_errno_ret)
            .map_err(|reason| format!("defaultAction: {reason}"))?;
        if default == Action::Notify {
            // The program's own start would wait for the answer, and every exit.
            return Err("defaultAction: SCMP_ACT_NOTIFY is for calls that are named".to_owned());
        }
        let mut rules = Vec::new();
        for (number, entry) in file.syscalls.iter().enumerate() {
            let rule = self.rule(entry).map_err(|reason| format!("syscalls[{number}].{reason}"))?;
            rules.extend(rule);
        }
        // As libseccomp has it: what is said of a call whatever its arguments decides, wherever it stands.
        rules.sort_by_key(|rule: &Rule| !rule.arguments.is_empty());
        // No other flag is taken.
        Ok((Profile { default, rules, log: !file.flags.is_empty() }, self.arches(file)))
    }

    fn arches(&self, file: &File) -> Vec<Arch> {
        if file.architectures.is_empty() && file.arch_map.is_empty() {
            return self.arches.to_vec();
        }
        let Some((&own, older)) = self.arches.split_first() else { return Vec::new() };
        let is = |name: &String, arch: Arch| *name == name_of(arch);
        let listed = |arch: Arch| {
            let maps = file.arch_map.iter().filter(|map| is(&map.architecture, own));
            let mut subs = maps.flat_map(|map| map.sub_architectures.iter().flatten());
            file.architectures.iter().any(|name| is(name, arch)) || subs.any(|name| is(name, arch))
        };
        std::iter::once(own).chain(older.iter().copied().filter(|arch| listed(*arch))).collect()
    }

    fn rule(&self, entry: &Entry) -> Result<Option<Rule>, String> {
        let action = action(&entry.action, entry.errno_ret).map_err(|reason| format!("action: {reason}"))?;
        if action == Action::Notify && !self.notify {
            let action = &entry.action;
            return Err(format!(
                "action: {action} needs a process that answers (listenerPath): use SCMP_ACT_ERRNO"
            ));
        }
        let mut arguments = Vec::new();
        for (number, condition) in entry.args.iter().flatten().enumerate() {
            let compare = compare(condition).map_err(|reason| format!("args[{number}].{reason}"))?;
            arguments.push(Argument { index: condition.index, compare });
        }
        let calls: Vec<String> = entry.names.iter().chain(&entry.name).cloned().collect();
        if calls.is_empty() {
            return Err("names: no call is named".to_owned());
        }
        if !self.applies(&entry.includes, true)? || self.applies(&entry.excludes, false)? {
            return Ok(None);
        }
        let known = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm];
        let named = |names: &[String], arch: &Arch| names.iter().any(|name| name == short_name_of(*arch));
        let arches: Vec<Arch> = known
            .into_iter()
            .filter(|arch| entry.includes.arches.is_empty() || named(&entry.includes.arches, arch))
            .filter(|arch| !named(&entry.excludes.arches, arch))
            .collect();
        Ok((!arches.is_empty()).then_some(Rule { calls, arguments, action, arches }))
    }

    /// `includes` are so when each is; of `excludes` one is enough.
    fn applies(&self, filter: &Filter, all: bool) -> Result<bool, String> {
        let has = |name: &String| self.capabilities.iter().any(|it| name.strip_prefix("CAP_") == Some(it));
        let mut answers: Vec<bool> = filter.caps.iter().map(has).collect();
        if let Some(version) = &filter.min_kernel {
            let number = |text: Option<&str>| text.and_then(|it| it.parse::<u32>().ok());
            let mut parts = version.split('.');
            let wanted = number(parts.next()).zip(number(parts.next()));
            let wanted = wanted.ok_or_else(|| format!("minKernel: {version:?} is no version: write 4.8"))?;
            answers.push(self.kernel >= wanted);
        }
        Ok(if all { answers.iter().all(|it| *it) } else { answers.iter().any(|it| *it) })
    }
}

fn name_of(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::X86 => "SCMP_ARCH_X86",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        Arch::Arm => "SCMP_ARCH_ARM",
    }
}

fn short_name_of(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::X86 => "x86",
        Arch::Aarch64 => "arm64",
        Arch::Arm => "arm",
    }
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        // The kernel takes numbers up to MAX_ERRNO (include/linux/err.h).
        "SCMP_ACT_ERRNO" => match errno.unwrap_or(libc::EPERM as u16) {
            errno @ 0..=4095 => Action::Errno(errno),
            errno => return Err(format!("errnoRet {errno} is more than 4095")),
        },
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_NOTIFY" => Action::Notify,
        _ => return Err(format!("{name:?} is not known: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, …")),
    })
}

fn compare(condition: &Condition) -> Result<Compare, String> {
    if condition.index > 5 {
        return Err(format!("index: {}: arguments are counted from 0 to 5", condition.index));
    }
    let value = condition.value;
    Ok(match condition.op.as_str() {
        "SCMP_CMP_EQ" => Compare::Equal(value),
        "SCMP_CMP_NE" => Compare::NotEqual(value),
        "SCMP_CMP_LT" => Compare::Less(value),
        "SCMP_CMP_LE" => Compare::LessOrEqual(value),
        "SCMP_CMP_GT" => Compare::Greater(value),
        "SCMP_CMP_GE" => Compare::GreaterOrEqual(value),
        "SCMP_CMP_MASKED_EQ" => Compare::MaskedEqual { mask: value, value: condition.value_two },
        op => return Err(format!("op: {op:?} is not known: SCMP_CMP_EQ, SCMP_CMP_NE, …")),
    })
}
