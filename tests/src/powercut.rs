//! What a disk holds when the power goes: from a record of every write, as QEMU's `blklogwrites` keeps it.
//!
//! A disk with a write cache promises one thing: what was written before a flush is there after it. Of what came later
//! each sector may be there or not. So a cut is a flush, everything before it, and some of what follows up to the next.
//!
//! The record is in the format of the kernel's `dm-log-writes` (Documentation/admin-guide/device-mapper/log-writes.rst,
//! drivers/md/dm-log-writes.c): little endian, a super block in the first sector, then for each request a sector that
//! describes it and its data.

use crate::image::{Entry, Image};
use anyhow::{Context, ensure};
use coracle_runtime::image::digest_of;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// First eight bytes of a record.
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// Bytes that sectors are counted in.
const SECTOR: u64 = 512;

const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// A record of writes.
pub struct Record {
    file: File,
    requests: Vec<Request>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    /// Place on the disk in bytes.
    at: u64,
    /// Bytes.
    length: u64,
    /// Place of the data in the record.
    data: u64,
    flags: u64,
}

impl Request {
    fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }
}

/// Of the writes that no flush made safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is there.
    Written,
    /// It is not.
    Lost,
    /// Its first sectors are there.
    Torn,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// When it is none.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        let number = |at: u64| -> anyhow::Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        ensure!(number(0)? == MAGIC, "{}: no record of writes", path.display());
        let (count, sector) = (number(16)?, number(24)? & 0xffff_ffff);
        ensure!(sector >= SECTOR, "sectors of {sector} bytes");
        let (mut requests, mut at) = (Vec::new(), sector);
        for _ in 0..count {
            let flags = number(at + 16)?;
            let length = number(at + 8)? * sector;
            requests.push(Request { at: number(at)? * sector, length, data: at + sector, flags });
            at += sector + if flags & DISCARD == 0 { length } else { 0 };
        }
        Ok(Self { file, requests })
    }

    /// How many requests it has; a cut is before one of them, or after all.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// How many flushes it has.
    pub fn flushes(&self) -> usize {
        self.requests.iter().filter(|request| request.is_flush()).count()
    }

    /// The cut before the flush of a number, counted from 0.
    pub fn before_flush(&self, number: usize) -> usize {
        let mut flushes = self.requests.iter().enumerate().filter(|(_, request)| request.is_flush());
        flushes.nth(number).map_or(self.requests.len(), |(at, _)| at)
    }

    /// The first cut after which `bytes` are at the beginning of what was written.
    ///
    /// # Errors
    /// As the file system says.
    pub fn after(&self, bytes: &[u8]) -> anyhow::Result<Option<usize>> {
        let mut begin = vec![0; bytes.len()];
        for (at, request) in self.requests.iter().enumerate() {
            if request.flags & DISCARD != 0 || request.length < bytes.len() as u64 {
                continue;
            }
            self.file.read_exact_at(&mut begin, request.data)?;
            if begin == bytes {
                return Ok(Some(at + 1));
            }
        }
        Ok(None)
    }

    /// Brings `disk` to a cut: everything before the last flush that is before it, and some of what came after that.
    ///
    /// # Errors
    /// As the file system says.
    pub fn replay(
        &self,
        disk: &File,
        offset: u64,
        cut: usize,
        mut fate: impl FnMut() -> Fate,
    ) -> anyhow::Result<()> {
        let requests = &self.requests[..cut.min(self.requests.len())];
        let safe = requests.iter().rposition(Request::is_flush).unwrap_or(0);
        for (at, request) in requests.iter().enumerate() {
            let kept = match if at < safe { Fate::Written } else { fate() } {
                Fate::Written => request.length,
                Fate::Torn => request.length / SECTOR / 2 * SECTOR,
                Fate::Lost => continue,
            };
            self.copy(disk, offset, Request { length: kept, ..*request })?;
        }
        Ok(())
    }

    fn copy(&self, disk: &File, offset: u64, request: Request) -> anyhow::Result<()> {
        let mut bytes = vec![0; usize::try_from(request.length)?];
        if request.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, request.data)?;
        }
        disk.write_all_at(&bytes, offset + request.at).context("writing a disk")
    }
}

/// An image of a shell's and a layer of `name`'s own, with something of everything.
pub fn image(base: Image, name: &str, release: usize) -> Image {
    let mut files = vec![
        Entry::Folder(format!("srv/{name}"), 0o750),
        Entry::Owner(1000, 20),
        Entry::Folder("kept".into(), 0o700),
        Entry::File("kept/empty".into(), 0o600, Vec::new()),
    ];
    for number in 0..40_usize {
        let bytes = digest_of(format!("{name} {number}").as_bytes()).repeat(1 + number * number).into_bytes();
        files.push(Entry::File(format!("kept/{number}"), 0o640, bytes));
    }
    files.push(Entry::Hard("kept/again".into(), "kept/7".into()));
    files.push(Entry::Link("kept/link".into(), "../srv".into()));
    let mut image = base.layer(files);
    if release > 1 {
        image = image.layer(vec![Entry::File(format!("srv/{name}/release"), 0o644, vec![b'x'; 300_000])]);
    }
    image.with("Cmd", json!(["/bin/sh"]))
}

/// Numbers that look random (Marsaglia, Xorshift RNGs, 2003).
pub struct Numbers(u64);

impl Numbers {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// One from 0 up to and without `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// What becomes of a write that no flush made safe; `clean`: the cache held them all.
    pub fn fate(&mut self, clean: bool) -> Fate {
        match self.below(6) {
            _ if clean => Fate::Lost,
            0 | 1 => Fate::Lost,
            2 => Fate::Torn,
            _ => Fate::Written,
        }
    }
}
