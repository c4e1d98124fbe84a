//! The kernel's virtual machine, small; programs beside libseccomp's, and our profile beside Podman's.

use super::calls;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};

const ALL: [Arch; 4] = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm];

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(&self, place: u32) -> Option<u32> {
        match place {
            0 => Some(self.number),
            4 => Some(self.arch),
            16..64 => {
                let argument = self.arguments[(place as usize - 16) / 8];
                Some(if place.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 })
            }
            _ => None,
        }
    }
}

/// What the kernel would answer; `None` for a program that it would not take. libseccomp's have the same instructions.
fn run(program: &[Instruction], call: Call) -> Option<u32> {
    let (mut value, mut at) = (0_u32, 0);
    loop {
        let Instruction { code, jump_true, jump_false, operand } = *program.get(at)?;
        at += 1;
        let so = match code {
            0x20 => {
                value = call.word(operand)?;
                continue;
            }
            0x54 => {
                value &= operand;
                continue;
            }
            0x05 => {
                at += operand as usize;
                continue;
            }
            0x06 => return Some(operand),
            0x15 => value == operand,
            0x25 => value > operand,
            0x35 => value >= operand,
            _ => return None,
        };
        at += usize::from(if so { jump_true } else { jump_false });
    }
}

fn answer(profile: &Profile, arch: Arch, name: &str, arguments: [u64; 6]) -> u32 {
    let number = calls::number(arch, name).expect("a call of this processor");
    let program = compile(profile, &[arch]).expect("compiles");
    run(&program, Call { number, arch: arch.token(), arguments }).expect("runs")
}

const ALLOWED: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

#[test]
fn without_a_capability_what_needs_it_is_refused_and_what_is_new_is_unknown() {
    let (plain, admin) = (default_profile(&[]), default_profile(&["SYS_ADMIN"]));
    let of =
        |profile: &Profile, name: &str, first: u64| answer(profile, Arch::X86_64, name, [first, 0, 0, 0, 0, 0]);
    for (name, first, without, with) in [
        ("read", 0, ALLOWED, ALLOWED),
        ("mount", 0, EPERM, ALLOWED),
        ("bpf", 0, EPERM, ALLOWED),
        ("keyctl", 0, EPERM, EPERM),
        ("userfaultfd", 0, EPERM, EPERM),
        ("io_uring_setup", 0, ENOSYS, ENOSYS),
        // A thread, a new user namespace, and both.
        ("clone", 0x3d0f00, ALLOWED, ALLOWED),
        ("clone", 0x1000_0000, EPERM, ALLOWED),
        ("clone", 0x103d_0f00, EPERM, ALLOWED),
        ("clone3", 0, ENOSYS, ALLOWED),
        ("socket", 2, ALLOWED, ALLOWED),
        ("socket", 40, EPERM, EPERM),
        ("socket", 38, EPERM, EPERM),
        ("personality", 0xffff_ffff, ALLOWED, ALLOWED),
        ("personality", 0x40000, EPERM, EPERM),
        ("reboot", 0, EPERM, EPERM),
    ] {
        assert_eq!((of(&plain, name, first), of(&admin, name, first)), (without, with), "{name}");
    }
    // Two capabilities are for it.
    assert_eq!(of(&default_profile(&["BPF"]), "bpf", 0), ALLOWED);
}

#[test]
fn programs_for_another_processor_are_ended_and_older_ones_have_their_own_numbers() {
    let program = compile(&default_profile(&[]), &[Arch::Aarch64, Arch::Arm]).expect("compiles");
    let ask = |arch: Arch, name: &str| {
        let number = calls::number(arch, name).expect("a call");
        run(&program, Call { number, arch: arch.token(), arguments: [0; 6] }).expect("runs")
    };
    assert_eq!([ask(Arch::Aarch64, "openat"), ask(Arch::Arm, "open"), ask(Arch::Arm, "set_tls")], [ALLOWED; 3]);
    assert_eq!(ask(Arch::X86_64, "read"), Action::KillProcess.encode());
    // x32 programs share the token of 64-bit ones.
    let x86 = compile(&default_profile(&[]), &[Arch::X86_64, Arch::X86]).expect("compiles");
    let x32 = Call { number: 0x4000_0000, arch: Arch::X86_64.token(), arguments: [0; 6] };
    assert_eq!(run(&x86, x32), Some(ENOSYS));
}

#[test]
fn every_known_call_has_a_rule_or_is_newer_than_the_profile() {
    // What goes through asynchronous rings no filter sees. Then calls that came lately, that no kernel ever had, and
    // that are known under another name.
    let newer: BTreeSet<&str> = "io_uring_enter io_uring_register io_uring_setup \
        file_getattr getxattrat listmount listxattrat lsm_get_self_attr lsm_list_modules lsm_set_self_attr mseal \
        open_tree_attr removexattrat setxattrat statmount uprobe uretprobe file_setattr \
        afs_syscall ftime getpmsg gtty idle lock mpx prof profil putpmsg r#break security stty tuxcall ulimit usr26 \
        usr32 vserver fstatat"
        .split_whitespace()
        .collect();
    let profile = default_profile(&[]);
    let mut missing = BTreeSet::new();
    for arch in ALL {
        let ruled: BTreeSet<&str> =
            profile.rules.iter().flat_map(|rule| rule.calls.iter().map(String::as_str)).collect();
        missing.extend(calls::names(arch).into_iter().filter(|it| !ruled.contains(it) && !newer.contains(it)));
    }
    assert!(missing.is_empty(), "{missing:?}");
}

fn compares() -> impl Strategy<Value = Compare> {
    let value = arguments;
    prop_oneof![
        value().prop_map(Compare::Equal),
        value().prop_map(Compare::NotEqual),
        value().prop_map(Compare::Less),
        value().prop_map(Compare::LessOrEqual),
        value().prop_map(Compare::Greater),
        value().prop_map(Compare::GreaterOrEqual),
        (value(), value()).prop_map(|(mask, value)| Compare::MaskedEqual { mask, value }),
    ]
}

fn arguments() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, Just(u64::MAX), Just(1 << 32), Just((1 << 32) + 1), any::<u64>()]
}

fn holds(compare: Compare, argument: u64) -> bool {
    match compare {
        Compare::Equal(value) => argument == value,
        Compare::NotEqual(value) => argument != value,
        Compare::Less(value) => argument < value,
        Compare::LessOrEqual(value) => argument <= value,
        Compare::Greater(value) => argument > value,
        Compare::GreaterOrEqual(value) => argument >= value,
        Compare::MaskedEqual { mask, value } => argument & mask == value,
    }
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let name = prop_oneof![Just("read"), Just("write"), Just("clone"), Just("socket"), Just("statx")];
    let argument = (0..3_u8, compares()).prop_map(|(index, compare)| Argument { index, compare });
    let action = prop_oneof![Just(Action::Allow), (1..5_u16).prop_map(Action::Errno), Just(Action::Log)];
    let rule = (proptest::collection::vec(name, 1..3), proptest::collection::vec(argument, 0..3), action)
        .prop_map(|(names, arguments, action)| Rule { arguments, ..Rule::of(&names.join(" "), action) });
    proptest::collection::vec(rule, 0..8)
}

proptest! {
    #[test]
    fn a_program_answers_as_the_first_rule_that_fits(
        rules in rules(),
        name in prop_oneof![Just("read"), Just("clone"), Just("socket"), Just("statx"), Just("getpid")],
        arguments in [arguments(), arguments(), arguments()],
    ) {
        let profile = Profile { default: Action::Errno(38), rules, log: false };
        let fits = |rule: &&Rule| {
            rule.calls.iter().any(|it| it == name)
                && rule.arguments.iter().all(|it| holds(it.compare, arguments[usize::from(it.index)]))
        };
        let wanted = profile.rules.iter().find(fits).map_or(profile.default, |rule| rule.action);
        let [first, second, third] = arguments;
        for arch in [Arch::X86_64, Arch::Aarch64] {
            prop_assert_eq!(answer(&profile, arch, name, [first, second, third, 0, 0, 0]), wanted.encode());
        }
    }
}

/// Debian's own python has libseccomp's bindings, where they are installed.
const PYTHON: &str = "/usr/bin/python3";

/// Reads profiles, a line each, and writes libseccomp's programs for them in hexadecimal; then the numbers of calls.
const LIBSECCOMP: &str = r#"
import json, os, sys, tempfile
import seccomp as s
arches = {"X86_64": s.Arch.X86_64, "X86": s.Arch.X86, "Aarch64": s.Arch.AARCH64, "Arm": s.Arch.ARM}
def action(it):
    known = {"allow": s.ALLOW, "log": s.LOG, "kill": s.KILL_PROCESS, "thread": s.KILL, "trap": s.TRAP}
    known |= {"trace": s.TRACE(7), "notify": s.NOTIFY}
    return known[it] if it in known else s.ERRNO(int(it))
for line in sys.stdin:
    it = json.loads(line)
    arch = arches[it["arch"]]
    if "names" in it:
        print(json.dumps([s.resolve_syscall(arch, name) for name in it["names"]]))
        continue
    f = s.SyscallFilter(action(it["default"]))
    f.remove_arch(s.Arch.NATIVE)
    f.add_arch(arch)
    for name, act, arguments in it["rules"]:
        f.add_rule_exactly(action(act), name, *[s.Arg(a, getattr(s, op), x, y) for a, op, x, y in arguments])
    with tempfile.TemporaryFile() as out:
        f.export_bpf(out)
        out.seek(0)
        print(out.read().hex())
"#;

/// What the script answers to each line; `None` where libseccomp is not installed.
fn ask_libseccomp(lines: &[serde_json::Value]) -> Option<Vec<String>> {
    let known = Command::new(PYTHON).args(["-c", "import seccomp"]).stderr(Stdio::null()).status();
    if !known.is_ok_and(|it| it.success()) {
        println!("skipped: libseccomp's python3-seccomp is not installed");
        return None;
    }
    let mut input = tempfile::tempfile().expect("a file");
    lines.iter().for_each(|line| writeln!(input, "{line}").expect("written"));
    input.rewind().expect("rewound");
    let output = Command::new(PYTHON).args(["-c", LIBSECCOMP]).stdin(input).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn calls_have_the_numbers_that_libseccomp_knows() {
    let lines = ALL.map(|arch| serde_json::json!({"arch": format!("{arch:?}"), "names": all_names()}));
    let Some(answers) = ask_libseccomp(&lines) else { return };
    for (arch, answer) in ALL.into_iter().zip(answers) {
        let theirs: Vec<i64> = serde_json::from_str(&answer).expect("numbers");
        let mut compared = 0;
        for (name, theirs) in all_names().into_iter().zip(theirs) {
            // Less than 0: it is newer than their table, or there is none on this processor. Calls that 32-bit PCs make
            // through socketcall(2) and ipc(2) have those numbers.
            let through =
                arch == Arch::X86 && [102, 117].contains(&theirs) && !["socketcall", "ipc"].contains(&name);
            if theirs >= 0 && !through {
                assert_eq!(calls::number(arch, name), u32::try_from(theirs).ok(), "{name} on {arch:?}");
                compared += 1;
            }
        }
        assert!(compared > 280, "{compared} calls of {arch:?}");
    }
}

/// Names of the tables of all processors, and those of our own rules.
fn all_names() -> Vec<&'static str> {
    let names: BTreeSet<&str> =
        ALL.into_iter().flat_map(calls::names).chain(["newfstatat", "sync_file_range2"]).collect();
    names.into_iter().filter(|name| !["r#break", "fstatat"].contains(name)).collect()
}

/// Numbers that look random (Marsaglia, Xorshift RNGs, 2003).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }

    /// Near each other and near the ends, so that comparisons are equal now and then.
    fn value(&mut self, wide: bool) -> u64 {
        let random = self.next();
        let value = self.one(&[0, 1, 2, 3, 0xff, 0xffff_fffe, 0xffff_ffff, 1 << 31, random & 0xffff_ffff]);
        let upper = if wide { self.one(&[0, 0, 1, 2, 0xffff_ffff]) } else { 0 };
        value | upper << 32
    }
}

#[test]
fn verdicts_are_those_of_libseccomp() {
    const PROFILES: usize = 200;
    const CALLS: usize = 600;
    let names =
        ["read", "write", "clone", "statx", "openat", "ioctl", "prctl", "futex", "close", "getpid", "execve"];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut lines, mut profiles) = (Vec::new(), Vec::new());
    for _ in 0..PROFILES {
        let arch = numbers.one(&ALL);
        let actions = [
            ("allow", Action::Allow),
            ("1", Action::Errno(1)),
            ("log", Action::Log),
            ("kill", Action::KillProcess),
            ("thread", Action::KillThread),
            ("trap", Action::Trap),
            ("trace", Action::Trace(7)),
            ("notify", Action::Notify),
        ];
        let (mut theirs, mut rules) = (Vec::new(), Vec::new());
        for name in names {
            // libseccomp gives a call without conditions its one answer, whatever else is said of it: so one action each.
            let (word, action) = numbers.one(&actions);
            // libseccomp 2.5 joins several rules with 64-bit inequalities wrongly (an argument of 0x180000000 is less than
            // itself beside another rule): what several of them mean, the property test above says.
            let unequal = numbers.next().is_multiple_of(2);
            for _ in 0..if unequal { 1 } else { numbers.next() % 4 } {
                let mut arguments = Vec::new();
                let mut words = Vec::new();
                for index in 0..6_u8 {
                    if !numbers.next().is_multiple_of(4) {
                        continue;
                    }
                    let (first, second) = (numbers.value(arch.is_64_bit()), numbers.value(arch.is_64_bit()));
                    let (op, compare, pair) =
                        match if unequal { numbers.next() % 7 } else { [0, 6][(numbers.next() % 2) as usize] } {
                            0 => ("EQ", Compare::Equal(first), (first, 0)),
                            1 => ("NE", Compare::NotEqual(first), (first, 0)),
                            2 => ("LT", Compare::Less(first), (first, 0)),
                            3 => ("LE", Compare::LessOrEqual(first), (first, 0)),
                            4 => ("GT", Compare::Greater(first), (first, 0)),
                            5 => ("GE", Compare::GreaterOrEqual(first), (first, 0)),
                            _ => (
                                "MASKED_EQ",
                                Compare::MaskedEqual { mask: first, value: first & second },
                                (first, first & second),
                            ),
                        };
                    words.push(serde_json::json!([index, op, pair.0, pair.1]));
                    arguments.push(Argument { index, compare });
                }
                let rule = Rule { arguments, ..Rule::of(name, action) };
                if !rules.contains(&rule) {
                    theirs.push(serde_json::json!([name, word, words]));
                    rules.push(rule);
                }
            }
        }
        lines.push(serde_json::json!({"arch": format!("{arch:?}"), "default": "38", "rules": theirs}));
        profiles.push((arch, Profile { default: Action::Errno(38), rules, log: false }));
    }
    let Some(answers) = ask_libseccomp(&lines) else { return };
    let mut compared = 0;
    for ((arch, profile), answer) in profiles.iter().zip(answers) {
        let theirs = decode(&answer);
        let ours = compile(profile, &[*arch]).expect("compiles");
        for _ in 0..CALLS {
            let name = numbers.one(&names);
            let number = if numbers.next().is_multiple_of(8) {
                numbers.next() as u32 & 0x3ff
            } else {
                calls::number(*arch, name).expect("a call")
            };
            let arguments = [0; 6].map(|_: u64| numbers.value(arch.is_64_bit()));
            let call = Call { number, arch: arch.token(), arguments };
            let of_call: Vec<_> = profile.rules.iter().filter(|rule| rule.calls[0] == name).collect();
            assert_eq!(run(&ours, call), run(&theirs, call), "{name} {call:x?} of {of_call:x?}");
            compared += 1;
        }
    }
    assert_eq!(compared, PROFILES * CALLS);
}

/// `struct sock_filter`s from hexadecimal digits.
fn decode(digits: &str) -> Vec<Instruction> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits");
    let bytes: Vec<u8> = digits.as_bytes().chunks(2).map(byte).collect();
    bytes
        .chunks(8)
        .map(|it| Instruction {
            code: u16::from_le_bytes([it[0], it[1]]),
            jump_true: it[2],
            jump_false: it[3],
            operand: u32::from_le_bytes([it[4], it[5], it[6], it[7]]),
        })
        .collect()
}

/// Podman's default profile, as Debian's package has it.
const PODMAN: &str = "/usr/share/containers/seccomp.json";

/// Calls that Podman's profile allows (with all arguments 0) to who has these capabilities.
fn allowed_by_podman(profile: &serde_json::Value, arch: Arch, capabilities: &[&str]) -> BTreeSet<String> {
    let words = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let name_of_arch = match arch {
        Arch::X86_64 => "amd64",
        Arch::X86 => "x86",
        Arch::Aarch64 => "arm64",
        Arch::Arm => "arm",
    };
    let has = |name: &String| capabilities.iter().any(|it| name.strip_prefix("CAP_") == Some(it));
    let mut allowed = BTreeSet::new();
    for entry in profile["syscalls"].as_array().expect("entries") {
        let (includes, excludes) = (&entry["includes"], &entry["excludes"]);
        let arches = words(&includes["arches"]);
        let here = arches.is_empty() || arches.iter().any(|it| it == name_of_arch);
        let granted = words(&includes["caps"]).iter().all(has) && !words(&excludes["caps"]).iter().any(has);
        // Each condition of theirs on 0: equal to 0 is so, not equal to something is so.
        let zero = entry["args"].as_array().into_iter().flatten().all(|it| match it["op"].as_str() {
            Some("SCMP_CMP_EQ") => it["value"] == 0,
            Some("SCMP_CMP_NE") => it["value"] != 0,
            _ => false,
        });
        if here && granted && zero && entry["action"] == "SCMP_ACT_ALLOW" {
            allowed.extend(words(&entry["names"]).into_iter().filter(|it| calls::number(arch, it).is_some()));
        }
    }
    allowed
}

/// Allowed by Podman's profile and not by ours: why, and which.
const STRICTER: &[(&str, &str)] = &[
    (
        "Docker's rule: who has no SYS_ADMIN makes no mounts and namespaces; Podman's lets user namespaces make them, \
         whose code is where most of the kernel's holes were",
        "clone3 fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree setns syslog umount umount2 unshare",
    ),
    ("nobody needs it in a container, the root stays where it is", "pivot_root"),
    ("keys are not in a namespace", "keyctl"),
    (
        "Docker's rule: it is what a capability is for (SYS_BOOT, SYS_NICE, SYS_PTRACE)",
        "get_mempolicy mbind pidfd_getfd reboot set_mempolicy",
    ),
    ("gone since Linux 2.6", "query_module"),
];

/// Allowed by our profile and not by Podman's.
const LOOSER: &[(&str, &str)] = &[
    (
        "newer than the profile of Debian 12, and what a newer libc asks for first",
        "cachestat fchmodat2 futex_requeue futex_wait futex_waitv futex_wake map_shadow_stack",
    ),
    (
        "beside one that is allowed: the same with 64-bit times, from pipes, for a home node",
        "io_pgetevents io_pgetevents_time64 quotactl_fd set_mempolicy_home_node vmsplice",
    ),
    ("32-bit programs have it too, since Linux 4.12", "arch_prctl"),
];

#[test]
fn what_differs_from_the_profile_of_podman_has_a_reason() {
    let Ok(text) = std::fs::read(PODMAN) else {
        println!("skipped: {PODMAN} is not there (golang-github-containers-common)");
        return;
    };
    let podman: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let capabilities =
        ["SYS_ADMIN", "SYS_PTRACE", "SYS_NICE", "SYS_TIME", "SYS_CHROOT", "SYS_MODULE", "DAC_READ_SEARCH"];
    let sets: Vec<Vec<&str>> = std::iter::once(Vec::new()).chain(capabilities.map(|it| vec![it])).collect();
    let listed = |list: &[(&str, &'static str)]| -> BTreeSet<&str> {
        list.iter().flat_map(|(_, calls)| calls.split_whitespace()).collect()
    };
    let (mut stricter, mut looser) = (BTreeSet::new(), BTreeSet::new());
    for arch in ALL {
        for set in &sets {
            let theirs = allowed_by_podman(&podman, arch, set);
            let program = compile(&default_profile(set), &[arch]).expect("compiles");
            for name in all_names() {
                let Some(number) = calls::number(arch, name) else { continue };
                let call = Call { number, arch: arch.token(), arguments: [0; 6] };
                match (run(&program, call) == Some(ALLOWED), theirs.contains(name)) {
                    (true, false) => drop(looser.insert(name)),
                    (false, true) => drop(stricter.insert(name)),
                    _ => {}
                }
            }
        }
    }
    assert_eq!((stricter, looser), (listed(STRICTER), listed(LOOSER)));
}

fn read(text: &str, capabilities: &[&str], kernel: (u32, u32)) -> Result<(Profile, Vec<Arch>), String> {
    json::Reader { capabilities, kernel, arches: &[Arch::X86_64, Arch::X86], notify: false }.read(text)
}

#[test]
fn a_profile_in_the_form_of_docker_says_what_it_says_there() {
    let text = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X32"]}],
        "syscalls": [
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
             "comment": "no namespaces", "includes": {}, "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]}},
            {"name": "read", "action": "SCMP_ACT_LOG", "args": null},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["bpf", "timerfd"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_BPF"]}},
            {"names": ["close"], "action": "SCMP_ACT_KILL", "includes": {"arches": ["arm"]}},
            {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 5, "value": 1, "op": "SCMP_CMP_NE"}]},
            {"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}
        ]
    }"#;
    let of = |capabilities: &[&str], kernel, name: &str, first| {
        let (profile, arches) = read(text, capabilities, kernel).expect("reads");
        // 32-bit programs are not named.
        assert_eq!(arches, [Arch::X86_64]);
        answer(&profile, Arch::X86_64, name, [first, 0, 0, 0, 0, 0])
    };
    let new = (6, 1);
    assert_eq!(of(&[], new, "clone", 0), ALLOWED);
    assert_eq!(of(&[], new, "clone", 0x1000_0000), ENOSYS);
    assert_eq!(of(&["SYS_ADMIN"], new, "clone", 0), ENOSYS);
    assert_eq!(of(&[], new, "read", 0), Action::Log.encode());
    assert_eq!([of(&[], new, "ptrace", 0), of(&[], (4, 7), "ptrace", 0)], [ALLOWED, ENOSYS]);
    assert_eq!([of(&["BPF"], new, "bpf", 0), of(&[], new, "bpf", 0)], [ALLOWED, EPERM]);
    assert_eq!(of(&[], new, "close", 0), ENOSYS);
    assert_eq!(of(&[], new, "getpid", 0), ALLOWED);
}

#[test]
fn a_profile_that_cannot_be_kept_is_refused_by_the_name_of_its_field() {
    let entry = |entry: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{entry}]}}"#);
    for (text, words) in [
        ("{".to_owned(), "EOF"),
        ("{}".to_owned(), "missing field `defaultAction`"),
        (r#"{"defaultAction": "allow"}"#.to_owned(), "defaultAction: \"allow\" is not known"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#.to_owned(),
            "unknown field `listenerPath`",
        ),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC"]}"#.to_owned(), "flags: "),
        (entry(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#), "syscalls[0].action: SCMP_ACT_NOTIFY"),
        (entry(r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#), "syscalls[0].names: no call"),
        (entry(r#"{"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#), "errnoRet 4096"),
        (
            entry(
                r#"{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            ),
            "syscalls[0].args[0].index: 6",
        ),
        (
            entry(
                r#"{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "EQ"}]}"#,
            ),
            "syscalls[0].args[0].op: \"EQ\"",
        ),
        (
            entry(r#"{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "x"}}"#),
            "minKernel: \"x\"",
        ),
        (" ".repeat(json::MAX_BYTES + 1), "larger than 262144 bytes"),
    ] {
        let said = read(&text, &[], (6, 1)).expect_err("refused");
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn podman_s_own_profile_is_read_and_gives_its_verdicts() {
    let Ok(text) = std::fs::read_to_string(PODMAN) else {
        println!("skipped: {PODMAN} is not there (golang-github-containers-common)");
        return;
    };
    let parsed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for capabilities in [&[][..], &["SYS_ADMIN"], &["SYS_TIME", "SYS_PTRACE"]] {
        let (profile, arches) = read(&text, capabilities, (6, 1)).expect("reads");
        assert_eq!(arches, [Arch::X86_64, Arch::X86]);
        let allowed = allowed_by_podman(&parsed, Arch::X86_64, capabilities);
        let program = compile(&profile, &arches).expect("compiles");
        for name in all_names() {
            let Some(number) = calls::number(Arch::X86_64, name) else { continue };
            let call = Call { number, arch: Arch::X86_64.token(), arguments: [0; 6] };
            assert_eq!(run(&program, call) == Some(ALLOWED), allowed.contains(name), "{name}");
        }
    }
}

proptest! {
    #[test]
    fn any_profile_is_answered(text in "[{}\\[\\]\",:a-zA-Z0-9_]{0,200}|.{0,100}") {
        let _ = read(&text, &[], (6, 1));
    }
}

#[test]
fn a_profile_says_whether_its_answers_are_written_down() {
    let reader = Reader { capabilities: &[], kernel: (6, 0), arches: &[Arch::X86_64], notify: false };
    let log = |flags: &str| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "flags": {flags}}}"#);
        let (profile, arches) = reader.read(&text).expect("a profile");
        Filter::of(&profile, &arches).expect("a filter").log
    };
    assert_eq!((log("[]"), log(r#"["SECCOMP_FILTER_FLAG_LOG"]"#)), (false, true));
}
