//! Which device nodes a container may use, as rules. Pure.
//!
//! The device controller of v1 takes them as they are printed (Documentation/admin-guide/cgroup-v1/devices.rst); for v2
//! they become a program ([`super::device_program`]).

use std::fmt;

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block device.
    Block,
    /// Character device.
    Character,
}

/// What may be done: some of making a node, reading and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Everything.
    pub const ALL: Self = Self(0b111);

    /// Letters and bits, as in `BPF_DEVCG_ACC_*` (include/uapi/linux/bpf.h of the kernel).
    const LETTERS: [(char, u8); 3] = [('r', 0b010), ('w', 0b100), ('m', 0b001)];

    /// From some of `r`, `w`, `m`; no letter is everything, as in a `devices` entry.
    pub fn parse(letters: &str) -> Option<Self> {
        if letters.is_empty() {
            return Some(Self::ALL);
        }
        let bit = |letter| Self::LETTERS.iter().find(|(known, _)| *known == letter).map(|(_, bit)| *bit);
        letters.chars().map(bit).try_fold(0, |bits, bit| Some(bits | bit?)).map(Self)
    }

    /// With making a node. A node that may not be written is made like any other: its numbers decide what it is good
    /// for, not who made it.
    pub fn and_make(self) -> Self {
        Self(self.0 | 0b001)
    }

    /// Both together.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Less the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Nothing.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits, as in `BPF_DEVCG_ACC_*`.
    pub fn bits(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::LETTERS.iter().filter(|(_, bit)| self.0 & bit != 0).try_for_each(|(letter, _)| write!(f, "{letter}"))
    }
}

/// Device nodes and what may be done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Kind.
    pub kind: Kind,
    /// Major number; `None`: each.
    pub major: Option<u32>,
    /// Minor number; `None`: each.
    pub minor: Option<u32>,
    /// What may be done.
    pub access: Access,
}

/// Largest major and minor number (`MINORBITS`, include/linux/kdev_t.h of the kernel).
const MAX_NUMBERS: (u32, u32) = (0xfff, 0xf_ffff);

impl Rule {
    /// From `c 1:3 rwm`; `a` is one rule for each kind. On v1 the kernel takes `a` for everything, whatever stands
    /// behind it, so it is never passed on.
    pub fn parse(text: &str) -> Option<Vec<Self>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [kind, numbers, access] = words.as_slice() else { return None };
        let kinds: &[Kind] = match *kind {
            "a" => &[Kind::Block, Kind::Character],
            "b" => &[Kind::Block],
            "c" => &[Kind::Character],
            _ => return None,
        };
        let number = |text: &str, most: u32| match text {
            "*" => Some(None),
            text => text.parse().ok().filter(|number| *number <= most).map(Some),
        };
        let (major, minor) = numbers.split_once(':')?;
        let (major, minor) = (number(major, MAX_NUMBERS.0)?, number(minor, MAX_NUMBERS.1)?);
        let access = Access::parse(access)?;
        Some(kinds.iter().map(|&kind| Self { kind, major, minor, access }).collect())
    }

    /// Both are about the same node.
    pub fn is_node_of(self, other: Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// One node.
    pub fn node(kind: Kind, major: u32, minor: u32, access: Access) -> Self {
        Self { kind, major: Some(major), minor: Some(minor), access }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Block { 'b' } else { 'c' };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |it| it.to_string());
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// What no service may use that is not privileged, whatever it is granted: the machine's memory and its ports, which
/// are the whole machine.
pub const FORBIDDEN: [Rule; 3] = [memory(1), memory(2), memory(4)];

const fn memory(minor: u32) -> Rule {
    Rule { kind: Kind::Character, major: Some(1), minor: Some(minor), access: Access::ALL }
}

/// Device nodes that every container may use: null, zero, full, random, urandom, tty, ptmx and its own terminals.
pub fn every_container() -> impl Iterator<Item = Rule> {
    const NODES: [(u32, Option<u32>); 8] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(2)),
        (136, None),
    ];
    NODES.into_iter().map(|(major, minor)| Rule {
        kind: Kind::Character,
        major: Some(major),
        minor,
        access: Access::ALL,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Vec<String>> {
        Rule::parse(text).map(|rules| rules.iter().map(Rule::to_string).collect())
    }

    #[test]
    fn rules_are_read_and_printed_as_the_kernel_takes_them() {
        assert_eq!(read("c 1:3 mr"), Some(vec!["c 1:3 rm".into()]));
        assert_eq!(read("b 7:* rwm"), Some(vec!["b 7:* rwm".into()]));
        // On v1 `a` would be everything, whatever stands behind it.
        assert_eq!(read("a 1:3 r"), Some(vec!["b 1:3 r".into(), "c 1:3 r".into()]));
        for broken in
            ["", "c 1:3", "d 1:3 r", "c 1 r", "c 4096:0 r", "c 1:1048576 r", "c 1:3 x", "c -1:3 r", "c 1:3 r w"]
        {
            assert_eq!(read(broken), None, "{broken}");
        }
        assert_eq!(every_container().map(|rule| rule.to_string()).last().as_deref(), Some("c 136:* rwm"));
    }
}
