//! Hurts good inputs and feeds them to a reader: the part of fuzzing that needs no special compiler.
//!
//! The same targets run under libFuzzer (`fuzz/`). Here the sequence is always the same, so a failure comes back; a
//! slow machine sees a shorter part of it.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// Longest time of one campaign: some of them in each run of the tests are bearable.
const TIME: Duration = Duration::from_secs(3);

/// Longest time for one input. All of them take milliseconds; a machine that is busy may stand still for a while.
const SLOWEST: Duration = Duration::from_secs(10);

/// Bytes that the process may grow by. Inputs are some KiB, and what a reader may hold for them has bounds of at most
/// some dozen MiB; other tests run beside.
const MEMORY: u64 = 512 * 1024 * 1024;

/// Longest input.
const LONGEST: usize = 256 * 1024;

/// Numbers at which lengths break.
const NUMBERS: [u64; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// Feeds `consume` with the seeds and then with what becomes of them: at most `rounds` inputs, or as many as fit into
/// `MUTATE_SECONDS` of the environment.
///
/// # Panics
/// When `consume` does, with the input; when one input takes too long, or all together too much memory.
pub fn campaign(seeds: &[Vec<u8>], words: &[&[u8]], rounds: usize, consume: impl Fn(&[u8])) {
    let before = peak_memory();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let start = Instant::now();
    for seed in seeds {
        feed(seed, &consume);
    }
    let longer = std::env::var("MUTATE_SECONDS").ok().and_then(|it| it.parse().ok()).map(Duration::from_secs);
    let (rounds, time) = longer.map_or((rounds, TIME), |time| (usize::MAX, time));
    for _ in 0..rounds {
        if start.elapsed() > time {
            break;
        }
        let mut input = seeds[dice.below(seeds.len())].clone();
        for _ in 0..=dice.below(4) {
            hurt(&mut input, seeds, words, &mut dice);
        }
        input.truncate(LONGEST);
        feed(&input, &consume);
    }
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < MEMORY, "the process grew by {grown} bytes");
}

fn feed(input: &[u8], consume: &impl Fn(&[u8])) {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| consume(input)));
    if let Err(panic) = result {
        println!("input ({} bytes): b\"{}\"", input.len(), input.escape_ascii());
        resume_unwind(panic);
    }
    let time = start.elapsed();
    assert!(time < SLOWEST, "{time:?} for b\"{}\"", input.escape_ascii());
}

/// Peak of this process's memory in bytes (`VmHWM`, proc_pid_status(5)); 0 where there is none.
fn peak_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Does one thing to an input.
fn hurt(input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&[u8]], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() - at + 1).min(64);
    match dice.below(15) {
        0 | 1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = [0, 1, b'\n', b' ', b'/', b'.', 0x7f, 0x80, 0xff][dice.below(9)];
            }
        }
        3 => input.truncate(at),
        4 => drop(input.drain(at..end)),
        5 => {
            let copied = input[at..end].to_vec();
            insert(input, at, &copied);
        }
        6 => {
            let many = vec![dice.next() as u8; dice.below(5000)];
            insert(input, at, &many);
        }
        7 => {
            let other = &seeds[dice.below(seeds.len())];
            input.truncate(at);
            input.extend_from_slice(&other[dice.below(other.len() + 1)..]);
        }
        8 | 9 if !words.is_empty() => {
            let word = words[dice.below(words.len())];
            if dice.below(2) == 0 {
                insert(input, at, word);
            } else {
                let end = input.len().min(at + word.len());
                input.splice(at..end, word.iter().copied());
            }
        }
        10 | 11 => binary_number(input, at, dice),
        12 => text_number(input, at, dice),
        _ => line(input, words, dice),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

/// Writes a number that breaks lengths over one, two, four or eight bytes.
fn binary_number(input: &mut [u8], at: usize, dice: &mut Dice) {
    let width = 1 << dice.below(4);
    let number = dice.number(input.len());
    let bytes = if dice.below(2) == 0 {
        number.to_le_bytes()[..width].to_vec()
    } else {
        number.to_be_bytes()[8 - width..].to_vec()
    };
    for (place, byte) in input.iter_mut().skip(at).zip(bytes) {
        *place = byte;
    }
}

/// Replaces the digits at or behind `at` by another number.
fn text_number(input: &mut Vec<u8>, at: usize, dice: &mut Dice) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|it| at + it) else { return };
    let length = input[start..].iter().take_while(|it| it.is_ascii_digit()).count();
    let number = dice.number(input.len());
    let text = match dice.below(4) {
        0 => format!("{number:o}"),
        1 => format!("-{number}"),
        2 => format!("{number:0length$o}"),
        _ => number.to_string(),
    };
    input.splice(start..start + length, text.bytes());
}

/// Drops, doubles or swaps lines, or replaces what stands behind a colon.
fn line(input: &mut Vec<u8>, words: &[&[u8]], dice: &mut Dice) {
    let mut lines: Vec<Vec<u8>> = input.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let (at, other) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.below(5) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other].clone()),
        2 => lines.swap(at, other),
        _ => {
            let colon = lines[at].windows(2).position(|it| it == b": ");
            if let (Some(colon), false) = (colon, words.is_empty()) {
                lines[at].truncate(colon + 2);
                lines[at].extend_from_slice(words[dice.below(words.len())]);
            }
        }
    }
    *input = lines.join(&b'\n');
}

/// A sequence that looks random and is always the same (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize {
        (self.next() >> 16) as usize % count
    }

    /// A number that breaks lengths: a border, or near the input's own length.
    fn number(&mut self, length: usize) -> u64 {
        match self.below(4) {
            0 => (length as u64).wrapping_add(self.below(3) as u64).wrapping_sub(1),
            1 => self.next(),
            _ => NUMBERS[self.below(NUMBERS.len())],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn inputs() -> Vec<Vec<u8>> {
        let seen = RefCell::new(Vec::new());
        campaign(&[b"a: 1\nb: 22\n".to_vec()], &[b"word"], 500, |input| seen.borrow_mut().push(input.to_vec()));
        seen.into_inner()
    }

    #[test]
    fn a_campaign_is_the_same_each_time_and_hurts_its_seed() {
        let first = inputs();
        assert_eq!(first, inputs());
        let different: std::collections::BTreeSet<_> = first.iter().collect();
        assert!(different.len() > 300, "{} different inputs", different.len());
        assert!(different.iter().any(|it| it.windows(4).any(|it| it == b"word")));
    }

    #[test]
    #[should_panic(expected = "found")]
    fn a_panic_of_the_reader_is_passed_on() {
        campaign(&[b"seed".to_vec()], &[], 500, |input| assert!(input != b"see", "found"));
    }
}
