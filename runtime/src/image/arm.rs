//! What a program for 32-bit ARM says of the processor that it needs: the section `.ARM.attributes` of its file (Addenda
//! to, and Errata in, the ABI for the Arm Architecture, "Build attributes"). Pure.

/// Instruction set, the oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Before ARMv6: every board has it.
    V5,
    /// ARMv6.
    V6,
    /// ARMv6K and KZ: ARM1176, the processor of Raspberry Pi 1 and Zero.
    V6K,
    /// ARMv6 with Thumb-2, which ARM1176 lacks.
    V6T2,
    /// ARMv7.
    V7,
    /// ARMv8 and later.
    V8,
}

/// What a program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Its newest instructions.
    pub version: Version,
    /// It has NEON instructions (`Tag_Advanced_SIMD_arch`).
    pub simd: bool,
    /// Floating point numbers are passed in registers of their own (`Tag_ABI_VFP_args`).
    pub hard_float: bool,
}

/// `EM_ARM` (elf.h).
const MACHINE: u16 = 40;
/// `SHT_ARM_ATTRIBUTES`.
const SECTION: u32 = 0x7000_0003;
/// Size of a section header in a 32-bit file.
const HEADER: usize = 40;

// Tags of the vendor "aeabi".
const TAG_FILE: u64 = 1;
const TAG_CPU_RAW_NAME: u64 = 4;
const TAG_CPU_NAME: u64 = 5;
const TAG_CPU_ARCH: u64 = 6;
const TAG_ADVANCED_SIMD_ARCH: u64 = 12;
const TAG_ABI_VFP_ARGS: u64 = 28;
const TAG_COMPATIBILITY: u64 = 32;

/// Size of a file's own header in a 32-bit file.
const FILE_HEADER: usize = 52;
/// Section headers that are looked at: programs have some thirty.
const MAX_SECTIONS: usize = 1000;
/// Bytes of attributes: tool chains write some fifty.
const MAX_ATTRIBUTES: usize = 4096;

/// A file of which parts are read.
pub trait Parts {
    /// So many bytes from a place on.
    ///
    /// # Errors
    /// A file that ends before, or cannot be read.
    fn part(&self, offset: u64, length: usize) -> Result<Vec<u8>, String>;
}

impl Parts for [u8] {
    fn part(&self, offset: u64, length: usize) -> Result<Vec<u8>, String> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = self.get(begin..begin.saturating_add(length));
        part.map(<[u8]>::to_vec).ok_or_else(|| format!("it ends before {offset}"))
    }
}

impl Parts for std::fs::File {
    fn part(&self, offset: u64, length: usize) -> Result<Vec<u8>, String> {
        use std::os::unix::fs::FileExt;
        let mut part = vec![0; length];
        self.read_exact_at(&mut part, offset).map(|()| part).map_err(|error| error.to_string())
    }
}

/// Reads them; `None` when the file is no program for 32-bit ARM, or says nothing.
///
/// # Errors
/// A file whose parts lie outside of it.
pub fn attributes(file: &(impl Parts + ?Sized)) -> Result<Option<Attributes>, String> {
    // Shorter files are scripts at best.
    let Ok(header) = file.part(0, FILE_HEADER) else { return Ok(None) };
    // 32 bits, little endian.
    if !header.starts_with(b"\x7fELF\x01\x01") || number::<2>(&header, 18)? as u16 != MACHINE {
        return Ok(None);
    }
    let (first, size) = (number::<4>(&header, 32)?, number::<2>(&header, 46)? as usize);
    let count = number::<2>(&header, 48)? as usize;
    if count == 0 {
        return Ok(None);
    }
    if size != HEADER || count > MAX_SECTIONS {
        return Err(format!("{count} section headers of {size} bytes"));
    }
    let headers = file.part(first, count * size)?;
    for header in headers.chunks_exact(HEADER) {
        if number::<4>(header, 4)? as u32 != SECTION {
            continue;
        }
        let (offset, length) = (number::<4>(header, 16)?, number::<4>(header, 20)? as usize);
        if length > MAX_ATTRIBUTES {
            return Err(format!("{length} bytes of attributes"));
        }
        return section_of(&file.part(offset, length)?).map(Some);
    }
    Ok(None)
}

/// A number of some bytes, little endian.
fn number<const BYTES: usize>(file: &[u8], at: usize) -> Result<u64, String> {
    let bytes = file.get(at..at.saturating_add(BYTES)).ok_or_else(|| format!("it ends before {at}"))?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn section_of(section: &[u8]) -> Result<Attributes, String> {
    let mut said = Attributes { version: Version::V5, simd: false, hard_float: false };
    // `A` is the version of the format.
    let Some((b'A', mut rest)) = section.split_first() else {
        return Err("attributes of another format".to_owned());
    };
    while !rest.is_empty() {
        let vendor = take(&mut rest)?;
        let end = vendor.iter().position(|byte| *byte == 0).ok_or("a vendor's name has no end")?;
        if &vendor[..end] == b"aeabi" {
            of_vendor(&vendor[end + 1..], &mut said)?;
        }
    }
    Ok(said)
}

/// A part that begins with its own length, of four bytes, which count.
fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let length = number::<4>(rest, 0)? as usize;
    let part = rest.get(4..length).ok_or("a part of the attributes is longer than all")?;
    *rest = &rest[length..];
    Ok(part)
}

fn of_vendor(mut rest: &[u8], said: &mut Attributes) -> Result<(), String> {
    while !rest.is_empty() {
        // Tag and length, both counted in.
        let before = rest.len();
        let tag = uleb128(&mut rest)?;
        let length = (number::<4>(rest, 0)? as usize).saturating_sub(before - rest.len());
        let part = rest.get(4..length).ok_or("a part of the attributes is longer than all")?;
        rest = &rest[length..];
        if tag == TAG_FILE {
            of_file(part, said)?;
        }
    }
    Ok(())
}

fn of_file(mut rest: &[u8], said: &mut Attributes) -> Result<(), String> {
    while !rest.is_empty() {
        match uleb128(&mut rest)? {
            TAG_CPU_ARCH => {
                said.version = match uleb128(&mut rest)? {
                    0..=5 => Version::V5,
                    6 => Version::V6,
                    7 | 9 => Version::V6K,
                    8 => Version::V6T2,
                    10..=13 => Version::V7,
                    _ => Version::V8,
                }
            }
            TAG_ADVANCED_SIMD_ARCH => said.simd = uleb128(&mut rest)? != 0,
            TAG_ABI_VFP_ARGS => said.hard_float = uleb128(&mut rest)? == 1,
            TAG_COMPATIBILITY => {
                uleb128(&mut rest)?;
                text(&mut rest)?;
            }
            // Odd tags from 32 on are texts, and two of those below.
            tag if tag == TAG_CPU_RAW_NAME || tag == TAG_CPU_NAME || tag > 32 && tag % 2 == 1 => text(&mut rest)?,
            _ => drop(uleb128(&mut rest)?),
        }
    }
    Ok(())
}

fn text(rest: &mut &[u8]) -> Result<(), String> {
    let end = rest.iter().position(|byte| *byte == 0).ok_or("a text has no end")?;
    *rest = &rest[end + 1..];
    Ok(())
}

/// Seven bits a byte, the lowest first.
fn uleb128(rest: &mut &[u8]) -> Result<u64, String> {
    let mut value: u64 = 0;
    for shift in (0..63).step_by(7) {
        let (byte, after) = rest.split_first().ok_or("a number has no end")?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long".to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program whose only section are these attributes of its file.
    pub fn program(tags: &[u8]) -> Vec<u8> {
        let mut of_file = vec![1];
        of_file.extend((tags.len() as u32 + 5).to_le_bytes());
        of_file.extend(tags);
        let mut section = vec![b'A'];
        section.extend((of_file.len() as u32 + 10).to_le_bytes());
        section.extend(b"aeabi\0");
        section.extend(of_file);
        let mut file = vec![0; 52];
        file[..6].copy_from_slice(b"\x7fELF\x01\x01");
        file[18] = MACHINE as u8;
        file[32..36].copy_from_slice(&52_u32.to_le_bytes());
        (file[46], file[48]) = (HEADER as u8, 1);
        let mut header = [0; HEADER];
        header[4..8].copy_from_slice(&SECTION.to_le_bytes());
        header[16..20].copy_from_slice(&(52 + HEADER as u32).to_le_bytes());
        header[20..24].copy_from_slice(&(section.len() as u32).to_le_bytes());
        file.extend(header);
        file.extend(section);
        file
    }

    #[test]
    fn a_program_says_what_it_needs() {
        // Tag_conformance, Tag_CPU_name, Tag_CPU_arch v6KZ, Tag_FP_arch VFPv2, Tag_ABI_VFP_args.
        let v6 = program(b"\x432.09\0\x05arm1176jzf-s\0\x06\x07\x0a\x02\x1c\x01");
        let wanted = Attributes { version: Version::V6K, simd: false, hard_float: true };
        assert_eq!(attributes(&v6[..]), Ok(Some(wanted)));
        let v7 = program(b"\x06\x0a\x0a\x03\x0c\x01\x20\x00gnu\0\x1c\x01");
        assert_eq!(
            attributes(&v7[..]),
            Ok(Some(Attributes { version: Version::V7, simd: true, hard_float: true }))
        );
        assert_eq!(
            attributes(&program(b"\x06\x04")[..]),
            Ok(Some(Attributes { version: Version::V5, simd: false, hard_float: false }))
        );
        assert!(Version::V6K < Version::V6T2 && Version::V6T2 < Version::V7);
    }

    #[test]
    fn other_files_say_nothing_and_broken_ones_are_refused() {
        assert_eq!(attributes(&b"#!/bin/sh\n"[..]), Ok(None));
        assert_eq!(attributes(&b"\x7fELF\x02\x01"[..]), Ok(None));
        let whole = program(b"\x06\x0a");
        for end in 20..whole.len() {
            let _ = attributes(&whole[..end]);
        }
        assert!(attributes(&whole[..whole.len() - 1]).is_err());
        assert!(attributes(&program(b"\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")[..]).is_err());
        assert!(attributes(&program(b"\x05no end")[..]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_file_panics(tags in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60), at in 0_usize..200, byte in proptest::prelude::any::<u8>()) {
            let mut file = program(&tags);
            let at = at % file.len();
            file[at] = byte;
            let _ = attributes(&file[..]);
        }
    }
}
