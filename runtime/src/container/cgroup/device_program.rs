//! Rules for device nodes as a program that the kernel runs at each open and mknod (`BPF_PROG_TYPE_CGROUP_DEVICE`;
//! include/uapi/linux/bpf.h of the kernel). Pure.

use super::devices::{Access, Kind, Rule};

/// Rules of one program: each has at most nine instructions, and kernels before 5.2 take 4,096 instructions.
pub const MAX_RULES: usize = 400;

/// One instruction of the kernel's virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    /// Instructions to jump over, or bytes from a register's address.
    offset: i16,
    immediate: i32,
}

// Big-endian machines have the fields the other way round; nobody puts them on a board any more.
const _: () = assert!(cfg!(target_endian = "little"));

impl Instruction {
    /// As it lies in memory (`struct bpf_insn`).
    pub fn encode(self) -> u64 {
        u64::from(self.code)
            | u64::from(self.registers) << 8
            | u64::from(self.offset as u16) << 16
            | u64::from(self.immediate as u32) << 32
    }
}

// Operation codes (include/uapi/linux/bpf_common.h and bpf.h).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb4;
const AND_NUMBER: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers. The context comes in the first, the answer goes out in the zeroth.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// A program that allows what a rule allows whole, and nothing else.
pub fn allow(rules: &[Rule]) -> Vec<Instruction> {
    program(rules, true)
}

/// A program that forbids what a rule names in part, and nothing else.
pub fn forbid(rules: &[Rule]) -> Vec<Instruction> {
    program(rules, false)
}

fn program(rules: &[Rule], allows: bool) -> Vec<Instruction> {
    // `struct bpf_cgroup_dev_ctx`: kind in the lower half of the first word, access in the upper one.
    let mut program = vec![
        load(KIND, 0),
        Instruction { code: MOVE, registers: ACCESS | KIND << 4, offset: 0, immediate: 0 },
        with_number(AND_NUMBER, KIND, 0xffff),
        with_number(SHIFT_RIGHT, ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules {
        program.extend(part(*rule, allows));
    }
    program.extend(answer(!allows));
    program
}

/// Instructions of one rule: answers when it fits, and goes on behind itself when it does not.
fn part(rule: Rule, allows: bool) -> Vec<Instruction> {
    let kind = match rule.kind {
        Kind::Block => 1,
        Kind::Character => 2,
    };
    let bits = |access: Access| i32::from(access.bits());
    let mut part = vec![with_number(JUMP_UNLESS_EQUAL, KIND, kind)];
    if rule.access != Access::ALL {
        let mask = if allows { bits(Access::ALL) & !bits(rule.access) } else { bits(rule.access) };
        part.push(Instruction { code: MOVE, registers: SCRATCH | ACCESS << 4, offset: 0, immediate: 0 });
        part.push(with_number(AND_NUMBER, SCRATCH, mask));
        part.push(with_number(if allows { JUMP_UNLESS_EQUAL } else { JUMP_IF_EQUAL }, SCRATCH, 0));
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        // Device numbers have at most 20 bits.
        let number = number.map(|it| i32::try_from(it).unwrap_or(i32::MAX));
        part.extend(number.map(|it| with_number(JUMP_UNLESS_EQUAL, register, it)));
    }
    part.extend(answer(allows));
    let end = part.len();
    for (at, instruction) in part.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL) {
            instruction.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
        }
    }
    part
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: register | CONTEXT << 4, offset, immediate: 0 }
}

fn with_number(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn answer(allowed: bool) -> [Instruction; 2] {
    [with_number(MOVE_NUMBER, ANSWER, i32::from(allowed)), with_number(EXIT, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::super::devices::every_container;
    use super::*;
    use proptest::prelude::*;

    /// What the kernel's virtual machine would answer.
    fn run(program: &[Instruction], context: [u32; 3]) -> Option<u64> {
        let (mut registers, mut at) = ([0_u64; 11], 0);
        loop {
            let Instruction { code, registers: pair, offset, immediate } = *program.get(at)?;
            let (to, from) = (usize::from(pair & 0xf), usize::from(pair >> 4));
            let word = |register: u64| register & 0xffff_ffff;
            at += 1;
            match code {
                LOAD_WORD if from == 1 => registers[to] = context[usize::try_from(offset).ok()? / 4].into(),
                MOVE => registers[to] = registers[from],
                MOVE_NUMBER => registers[to] = u64::from(immediate as u32),
                AND_NUMBER => registers[to] = word(registers[to]) & u64::from(immediate as u32),
                SHIFT_RIGHT => registers[to] = word(registers[to]) >> immediate,
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {
                    if (registers[to] == immediate as i64 as u64) == (code == JUMP_IF_EQUAL) {
                        at += usize::try_from(offset).ok()?;
                    }
                }
                EXIT => return Some(registers[0]),
                _ => return None,
            }
        }
    }

    fn fits(rule: &Rule, kind: Kind, (major, minor): (u32, u32)) -> bool {
        rule.kind == kind && rule.major.is_none_or(|it| it == major) && rule.minor.is_none_or(|it| it == minor)
    }

    fn asked(kind: Kind, access: u8, (major, minor): (u32, u32)) -> [u32; 3] {
        let kind = if kind == Kind::Block { 1 } else { 2 };
        [u32::from(access) << 16 | kind, major, minor]
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Block), Just(Kind::Character)]
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let number = || proptest::option::of(prop_oneof![0..4_u32, Just(0xfff)]);
        let access = "[rwm]{1,3}".prop_map(|letters| Access::parse(&letters).expect("letters"));
        let rule = (kinds(), number(), number(), access).prop_map(|(kind, major, minor, access)| Rule {
            kind,
            major,
            minor,
            access,
        });
        proptest::collection::vec(rule, 0..12)
    }

    proptest! {
        #[test]
        fn a_program_answers_as_its_rules_say(
            rules in rules(), kind in kinds(), access in 1..8_u8, numbers in (0..5_u32, 0..5_u32)
        ) {
            let context = asked(kind, access, numbers);
            let fitting: Vec<&Rule> = rules.iter().filter(|rule| fits(rule, kind, numbers)).collect();
            let allowed = fitting.iter().any(|rule| access & !rule.access.bits() == 0);
            prop_assert_eq!(run(&allow(&rules), context), Some(u64::from(allowed)));
            let forbidden = fitting.iter().any(|rule| access & rule.access.bits() != 0);
            prop_assert_eq!(run(&forbid(&rules), context), Some(u64::from(!forbidden)));
        }
    }

    #[test]
    fn the_largest_program_is_taken_by_every_kernel() {
        let rule = Rule::node(Kind::Block, 0xfff, 0xf_ffff, Access::parse("r").expect("a letter"));
        assert!(allow(&vec![rule; MAX_RULES]).len() <= 4096);
    }

    #[test]
    fn a_program_begins_with_reading_what_is_asked() {
        let program = allow(&every_container().collect::<Vec<_>>());
        // A rule with a kind, a major and a minor number has five instructions, one without a minor number four.
        assert_eq!(program.len(), 6 + 7 * 5 + 4 + 2);
        assert_eq!(run(&program, asked(Kind::Character, 0b111, (1, 3))), Some(1));
        assert_eq!(run(&program, asked(Kind::Character, 0b010, (1, 1))), Some(0));
        assert_eq!(run(&program, asked(Kind::Block, 0b010, (1, 3))), Some(0));
        assert_eq!(run(&program, asked(Kind::Character, 0b001, (5, 1))), Some(0));
    }
}
