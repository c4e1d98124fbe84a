//! A profile as a program of the kernel's older virtual machine (Documentation/networking/filter.rst and
//! userspace-api/seccomp_filter.rst). Pure.
//!
//! Numbers are searched by halves: a call costs eight comparisons at most, where a list costs hundreds. Kernels from 5.11
//! on remember which calls are always allowed, and do not even ask.

use super::calls;
use super::profile::{Action, Arch, Argument, Compare, Profile, Rule};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Instructions of one program (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to jump over when it is so.
    pub jump_true: u8,
    /// Instructions to jump over when it is not.
    pub jump_false: u8,
    /// Number, or place in `struct seccomp_data`.
    pub operand: u32,
}

// Operation codes (include/uapi/linux/filter.h of the kernel).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

// Places in `struct seccomp_data`, little endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Calls of x32 programs have this bit (arch/x86/include/uapi/asm/unistd.h of the kernel).
const X32: u32 = 0x4000_0000;

/// Why there is no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It is too long.
    #[error("the system call filter has {0} instructions, the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    /// A call has no such argument.
    #[error("system calls have no argument {0}: they are counted from 0 to 5")]
    Argument(u8),
}

/// A profile as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub program: Cow<'static, [Instruction]>,
    /// As in [`Profile`].
    pub log: bool,
    /// Somebody answers for some calls: loading it gives a descriptor for that (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
    pub notify: bool,
}

impl Filter {
    /// For programs of these processors.
    ///
    /// # Errors
    /// When the kernel would not take it.
    pub fn of(profile: &Profile, arches: &[Arch]) -> Result<Self, CompileError> {
        let notify = profile.rules.iter().any(|rule| rule.action == Action::Notify);
        Ok(Self { program: compile(profile, arches)?.into(), log: profile.log, notify })
    }
}

/// Makes the program for programs of these processors; those of others are ended.
///
/// # Errors
/// When the kernel would not take it.
pub fn compile(profile: &Profile, arches: &[Arch]) -> Result<Vec<Instruction>, CompileError> {
    let mut program = vec![load(ARCHITECTURE)];
    for &arch in arches {
        let block = block(profile, arch)?;
        // The block may be longer than a conditional jump.
        program.push(jump(IF_EQUAL, arch.token(), 1, 0));
        program.push(far(block.len()));
        program.extend(block);
    }
    program.push(answer(Action::KillProcess));
    if program.len() > MAX_INSTRUCTIONS { Err(CompileError::TooLong(program.len())) } else { Ok(program) }
}

fn block(profile: &Profile, arch: Arch) -> Result<Vec<Instruction>, CompileError> {
    let mut of_call: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in profile.rules.iter().filter(|rule| rule.arches.is_empty() || rule.arches.contains(&arch)) {
        for number in rule.calls.iter().filter_map(|call| calls::number(arch, call)) {
            of_call.entry(number).or_default().push(rule);
        }
    }
    // Ranges of numbers with one answer; the next one's first number ends each.
    let mut ranges: Vec<(u32, Vec<Instruction>)> = vec![(0, vec![answer(profile.default)])];
    let mut add = |first: u32, part: Vec<Instruction>| {
        match ranges.last_mut() {
            Some((last_first, last)) if *last_first == first => *last = part,
            Some((_, last)) if *last == part => return,
            _ => ranges.push((first, part)),
        }
        let count = ranges.len();
        // What took the place of another may be as the one before.
        if count > 1 && ranges[count - 1].1 == ranges[count - 2].1 {
            ranges.pop();
        }
    };
    for (&number, rules) in &of_call {
        add(number, part(rules, profile.default, arch)?);
        add(number + 1, vec![answer(profile.default)]);
    }
    let mut block = vec![load(NUMBER)];
    if arch == Arch::X86_64 {
        block.extend([jump(IF_GREATER_OR_EQUAL, X32, 0, 1), answer(Action::Errno(libc::ENOSYS as u16))]);
    }
    block.extend(search(&ranges));
    Ok(block)
}

/// Searches by halves.
fn search(ranges: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    let [.., _] = ranges else { return Vec::new() };
    if let [(_, part)] = ranges {
        return part.clone();
    }
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let (first, below, above) = (above[0].0, search(below), search(above));
    let mut program = match u8::try_from(below.len()) {
        Ok(length) => vec![jump(IF_GREATER_OR_EQUAL, first, length, 0)],
        Err(_) => vec![jump(IF_GREATER_OR_EQUAL, first, 0, 1), far(below.len())],
    };
    program.extend(below);
    program.extend(above);
    program
}

/// The answer to one call: the first rule whose arguments fit.
fn part(rules: &[&Rule], default: Action, arch: Arch) -> Result<Vec<Instruction>, CompileError> {
    let mut part = Vec::new();
    for rule in rules {
        let mut questions = Vec::new();
        for argument in &rule.arguments {
            questions.extend(question(*argument, arch)?);
        }
        questions.push(Step::Plain(answer(rule.action)));
        let end = questions.len();
        for (at, step) in questions.into_iter().enumerate() {
            let over = u8::try_from(end - at - 1).unwrap_or(u8::MAX);
            part.push(match step {
                Step::Plain(instruction) => instruction,
                Step::NextIf(code, operand, otherwise) => jump(code, operand, over, otherwise),
                Step::NextUnless(code, operand, otherwise) => jump(code, operand, otherwise, over),
            });
        }
        if rule.arguments.is_empty() {
            return Ok(part);
        }
    }
    part.push(answer(default));
    Ok(part)
}

/// An instruction of a question, or a jump to the next rule when it is (or is not) so; else over so many instructions.
enum Step {
    Plain(Instruction),
    NextIf(u16, u32, u8),
    NextUnless(u16, u32, u8),
}

fn question(argument: Argument, arch: Arch) -> Result<Vec<Step>, CompileError> {
    use Step::{NextIf, NextUnless, Plain};
    if argument.index > 5 {
        return Err(CompileError::Argument(argument.index));
    }
    let place = ARGUMENTS + 8 * u32::from(argument.index);
    let (low, high) = (load(place), load(place + 4));
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    let wide = arch.is_64_bit();
    let and = |mask: u32| Plain(Instruction { code: AND, jump_true: 0, jump_false: 0, operand: mask });
    let mut steps = Vec::new();
    // The upper half decides unless it is the same.
    let mut begin = |upper: [Step; 2]| {
        if wide {
            steps.push(Plain(high));
            steps.extend(upper);
        }
    };
    match argument.compare {
        Compare::Equal(value) => {
            let (lower, upper) = halves(value);
            if wide {
                steps.extend([Plain(high), NextUnless(IF_EQUAL, upper, 0)]);
            }
            steps.extend([Plain(low), NextUnless(IF_EQUAL, lower, 0)]);
        }
        Compare::NotEqual(value) => {
            let (lower, upper) = halves(value);
            if wide {
                steps.extend([Plain(high), Plain(jump(IF_EQUAL, upper, 0, 2))]);
            }
            steps.extend([Plain(low), NextIf(IF_EQUAL, lower, 0)]);
        }
        Compare::Greater(value) => {
            let (lower, upper) = halves(value);
            begin([Plain(jump(IF_GREATER, upper, 3, 0)), NextUnless(IF_EQUAL, upper, 0)]);
            steps.extend([Plain(low), NextUnless(IF_GREATER, lower, 0)]);
        }
        Compare::GreaterOrEqual(value) => {
            let (lower, upper) = halves(value);
            begin([Plain(jump(IF_GREATER, upper, 3, 0)), NextUnless(IF_EQUAL, upper, 0)]);
            steps.extend([Plain(low), NextUnless(IF_GREATER_OR_EQUAL, lower, 0)]);
        }
        Compare::Less(value) => {
            let (lower, upper) = halves(value);
            begin([NextIf(IF_GREATER, upper, 0), Plain(jump(IF_EQUAL, upper, 0, 2))]);
            steps.extend([Plain(low), NextIf(IF_GREATER_OR_EQUAL, lower, 0)]);
        }
        Compare::LessOrEqual(value) => {
            let (lower, upper) = halves(value);
            begin([NextIf(IF_GREATER, upper, 0), Plain(jump(IF_EQUAL, upper, 0, 2))]);
            steps.extend([Plain(low), NextIf(IF_GREATER, lower, 0)]);
        }
        Compare::MaskedEqual { mask, value } => {
            let ((low_mask, high_mask), (lower, upper)) = (halves(mask), halves(value));
            if wide {
                steps.extend([Plain(high), and(high_mask), NextUnless(IF_EQUAL, upper, 0)]);
            }
            steps.extend([Plain(low), and(low_mask), NextUnless(IF_EQUAL, lower, 0)]);
        }
    }
    Ok(steps)
}

fn load(place: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, operand: place }
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

fn far(over: usize) -> Instruction {
    Instruction { code: JUMP, jump_true: 0, jump_false: 0, operand: u32::try_from(over).unwrap_or(u32::MAX) }
}

fn answer(action: Action) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, operand: action.encode() }
}
