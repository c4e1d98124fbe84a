//! Growing the last partition of a disk to the disk's end, in MBR and GPT tables. Pure: what is to be written is data.
//!
//! Images are as small as their content; cards are not. Every write is in an order in which power may be cut after any:
//! the table is then the old one or the new one. In GPT there is a moment when the first copy's sums are wrong; the other
//! is complete by then, and the kernel takes it when `gpt` is on its command line.

use std::io;

/// Bytes of a sector, for MBR and GPT on what boards have (SD, eMMC, virtio).
pub const SECTOR: u64 = 512;

/// Sectors that stay free at the end: GPT's second copy has 33, and growth by less is not worth a write.
const SLACK: u64 = 2048;

/// Logical partitions in a row: a chain that is longer has a loop.
const MAX_LOGICAL: usize = 16;

/// Entries of a GPT; the specification has 128.
const MAX_ENTRIES: u64 = 1024;

type Sector = [u8; SECTOR as usize];

/// How a partition is to grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// First sector of the partition.
    pub start: u64,
    /// Its sectors, when it has grown.
    pub length: u64,
    /// Sectors to write, in this order, each synced before the next.
    pub writes: Vec<(u64, Vec<u8>)>,
}

/// Why a table is not touched.
#[derive(Debug)]
pub enum Unfit {
    /// The disk cannot be read.
    Io(io::Error),
    /// It is not understood.
    Table(&'static str),
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Table(reason) => f.write_str(reason),
        }
    }
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How partition `number` can grow on a disk of so many sectors; `None`: it has all the room there is.
///
/// # Errors
/// A table that is broken, or in which another partition follows.
pub fn grow(
    read: &mut dyn FnMut(u64) -> io::Result<Sector>,
    number: u32,
    disk_sectors: u64,
) -> Result<Option<Growth>, Unfit> {
    let first = read(0)?;
    if first[510..] != [0x55, 0xaa] {
        return Err(Unfit::Table("there is no partition table"));
    }
    if (0..4).any(|entry| Entry::of(&first, entry).kind == 0xee) {
        gpt(read, number, disk_sectors)
    } else {
        mbr(read, first, number, disk_sectors)
    }
}

/// An entry of an MBR, or of a logical partition's.
#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u8,
    start: u32,
    length: u32,
}

const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

impl Entry {
    fn of(sector: &Sector, entry: usize) -> Self {
        let at = 446 + 16 * entry;
        Self { kind: sector[at + 4], start: u32_at(sector, at + 8), length: u32_at(sector, at + 12) }
    }

    fn set_length(sector: &mut Sector, entry: usize, length: u32) {
        let at = 446 + 16 * entry + 12;
        sector[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|it| it.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn mbr(
    read: &mut dyn FnMut(u64) -> io::Result<Sector>,
    mut first: Sector,
    number: u32,
    disk_sectors: u64,
) -> Result<Option<Growth>, Unfit> {
    // The table's numbers have 32 bits: 2 TiB.
    let end = disk_sectors.min(u64::from(u32::MAX));
    let is_last = |own: u64| (0..4).all(|entry| u64::from(Entry::of(&first, entry).start) <= own);
    let too_small = |start: u64, length: u64| start + length + SLACK < end;
    if let 1..=4 = number {
        let at = number as usize - 1;
        let own = Entry::of(&first, at);
        let (start, length) = (u64::from(own.start), u64::from(own.length));
        if own.kind == 0 || start == 0 || !is_last(start) {
            return Err(Unfit::Table("the partition is not the last one"));
        }
        if !too_small(start, length) {
            return Ok(None);
        }
        Entry::set_length(&mut first, at, (end - start) as u32);
        return Ok(Some(Growth { start, length: end - start, writes: vec![(0, first.to_vec())] }));
    }
    let outer = (0..4).find(|&entry| EXTENDED.contains(&Entry::of(&first, entry).kind));
    let outer = outer.ok_or(Unfit::Table("there is no extended partition"))?;
    let base = u64::from(Entry::of(&first, outer).start);
    if !is_last(base) {
        return Err(Unfit::Table("the extended partition is not the last one"));
    }
    // Each logical partition has a table of its own: where it is, and where the next one's is.
    let (mut place, mut chain) = (base, Vec::new());
    loop {
        let sector = read(place)?;
        if sector[510..] != [0x55, 0xaa] || chain.len() >= MAX_LOGICAL {
            return Err(Unfit::Table("the logical partitions' tables are broken"));
        }
        let next = Entry::of(&sector, 1);
        chain.push((place, sector));
        if !EXTENDED.contains(&next.kind) || next.length == 0 {
            break;
        }
        place = base + u64::from(next.start);
    }
    if number as usize != 4 + chain.len() {
        return Err(Unfit::Table("the partition is not the last one"));
    }
    let Some((place, mut own)) = chain.pop() else { return Err(Unfit::Table("there is no such partition")) };
    let entry = Entry::of(&own, 0);
    let (start, length) = (place + u64::from(entry.start), u64::from(entry.length));
    if entry.kind == 0 || place >= end || start >= end {
        return Err(Unfit::Table("there is no such partition"));
    }
    if !too_small(start, length) {
        return Ok(None);
    }
    // From the outside in: what is around it is never smaller than what is inside.
    Entry::set_length(&mut first, outer, (end - base) as u32);
    let mut writes = vec![(0, first.to_vec())];
    if let Some((before, mut sector)) = chain.pop() {
        Entry::set_length(&mut sector, 1, (end - place) as u32);
        writes.push((before, sector.to_vec()));
    }
    Entry::set_length(&mut own, 0, (end - start) as u32);
    writes.push((place, own.to_vec()));
    Ok(Some(Growth { start, length: end - start, writes }))
}

/// UEFI specification 2.10, 5.3: GUID Partition Table.
fn gpt(
    read: &mut dyn FnMut(u64) -> io::Result<Sector>,
    number: u32,
    disk_sectors: u64,
) -> Result<Option<Growth>, Unfit> {
    let broken = Unfit::Table("the GPT is broken");
    let mut header = read(1)?;
    let size = u32_at(&header, 12) as usize;
    if &header[..8] != b"EFI PART" || !(92..=512).contains(&size) || u32_at(&header, 16) != sum(&header, size) {
        return Err(broken);
    }
    let (table, count, each) =
        (u64_at(&header, 72), u64::from(u32_at(&header, 80)), u64::from(u32_at(&header, 84)));
    if each != 128 || count == 0 || count > MAX_ENTRIES || table < 2 {
        return Err(broken);
    }
    let sectors = (count * each).div_ceil(SECTOR);
    let mut entries = Vec::new();
    for sector in 0..sectors {
        entries.extend(read(table + sector)?);
    }
    if crc32fast::hash(&entries[..(count * each) as usize]) != u32_at(&header, 88) {
        return Err(broken);
    }
    let at = number.checked_sub(1).map(|it| u64::from(it) * each).filter(|&at| at < count * each);
    let at = at.ok_or(Unfit::Table("there is no such partition"))? as usize;
    let (start, last) = (u64_at(&entries, at + 32), u64_at(&entries, at + 40));
    let ends = entries.chunks_exact(each as usize).map(|entry| u64_at(entry, 40));
    if start == 0 || ends.max() != Some(last) || last < start {
        return Err(Unfit::Table("the partition is not the last one"));
    }
    // The second copy: entries, then the header in the last sector.
    let Some(usable) = disk_sectors.checked_sub(sectors + 2) else { return Err(broken) };
    if last + SLACK >= usable {
        return Ok(None);
    }
    entries[at + 40..at + 48].copy_from_slice(&usable.to_le_bytes());
    let set = |header: &mut Sector, at: usize, value: u64| {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    let entries_sum = crc32fast::hash(&entries[..(count * each) as usize]);
    header[88..92].copy_from_slice(&entries_sum.to_le_bytes());
    set(&mut header, 32, disk_sectors - 1);
    set(&mut header, 48, usable);
    let with_sum = |mut header: Sector| {
        let sum = sum(&header, size);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    };
    let mut second = header;
    set(&mut second, 24, disk_sectors - 1);
    set(&mut second, 32, 1);
    set(&mut second, 72, usable + 1);
    let writes = vec![
        (usable + 1, entries.clone()),
        (disk_sectors - 1, with_sum(second).to_vec()),
        (table, entries),
        (1, with_sum(header).to_vec()),
    ];
    Ok(Some(Growth { start, length: usable - start + 1, writes }))
}

/// Of a header, with its own sum taken as zero.
fn sum(header: &Sector, size: usize) -> u32 {
    let mut bytes = header[..size].to_vec();
    bytes[16..20].fill(0);
    crc32fast::hash(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    /// A disk with a table that sfdisk(8) made, of so many MiB, then enlarged.
    fn disk(script: &str, mib: u64, grown: u64) -> Option<Vec<u8>> {
        use std::io::Write;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let file = std::fs::File::create(&path).expect("made");
        file.set_len(mib << 20).expect("sized");
        let sfdisk = Command::new("sfdisk").arg("-q").arg(&path).stdin(Stdio::piped()).spawn();
        let Ok(mut sfdisk) = sfdisk else {
            println!("skipped: there is no sfdisk");
            return None;
        };
        sfdisk.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("told");
        assert!(sfdisk.wait().expect("ended").success());
        file.set_len(grown << 20).expect("enlarged");
        Some(std::fs::read(path).expect("read"))
    }

    fn sector(disk: &[u8], at: u64) -> io::Result<Sector> {
        let at = (at * SECTOR) as usize;
        let bytes = disk.get(at..at + SECTOR as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.try_into().map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }

    fn grow_all(disk: &[u8], number: u32) -> Result<Option<Growth>, Unfit> {
        grow(&mut |at| sector(disk, at), number, disk.len() as u64 / SECTOR)
    }

    /// Lines of sfdisk's dump for the partitions, and what it complains of.
    fn dump(disk: &[u8]) -> (Vec<String>, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        std::fs::write(&path, disk).expect("written");
        let said = |argument: &str| {
            let output = Command::new("sfdisk").arg(argument).arg(&path).output().expect("sfdisk");
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            text.into_owned()
        };
        let lines = said("--dump");
        let lines = lines.lines().filter(|line| line.contains("start=")).map(|line| {
            line.split_once(" : ").map_or(line, |(_, rest)| rest).split_whitespace().collect::<String>()
        });
        (lines.collect(), said("--verify"))
    }

    const MBR: &str = "label: dos\nstart=2048,size=4096,type=c\nstart=6144,size=4096,type=83\nstart=10240,size=4096,type=83\nstart=14336,type=f\nstart=16384,size=2048,type=83\nstart=20480,type=83\n";
    const GPT: &str =
        "label: gpt\nstart=2048,size=4096,name=boot\nstart=6144,size=4096,name=a\nstart=10240,name=data\n";

    /// All tables that a power cut can leave.
    fn cuts(disk: &[u8], growth: &Growth) -> Vec<Vec<u8>> {
        let mut states = vec![disk.to_vec()];
        for (at, bytes) in &growth.writes {
            let mut next = states.last().expect("one").clone();
            let at = (at * SECTOR) as usize;
            next[at..at + bytes.len()].copy_from_slice(bytes);
            states.push(next);
        }
        states
    }

    #[test]
    fn the_last_partition_grows_to_the_end_whatever_the_table() {
        for (script, number, wanted) in [(MBR, 6, (64 << 11) - 20480), (GPT, 3, (64 << 11) - 34 - 10240 + 1)] {
            let Some(before) = disk(script, 16, 64) else { return };
            let growth = grow_all(&before, number).expect("understood").expect("there is room");
            let states = cuts(&before, &growth);
            let after = states.last().expect("written");
            let (lines, complaints) = dump(after);
            let own = format!("size={}", growth.length);
            assert!(lines[number as usize - 1].contains(&own), "{lines:?} {growth:?}");
            assert!(complaints.contains("No errors detected"), "{complaints}");
            assert!(growth.length <= wanted && growth.length + 2048 > wanted, "{} {wanted}", growth.length);
            let others = |lines: &[String]| {
                lines
                    .iter()
                    .filter(|it| !it.contains("size=") || it.contains("type=83") || it.contains("name="))
                    .count()
            };
            assert_eq!(others(&lines), others(&dump(&before).0));
            assert_eq!(grow_all(after, number).expect("understood"), None, "once is enough");
        }
    }

    #[test]
    fn after_a_power_cut_it_grows_again() {
        for (script, number) in [(MBR, 6), (GPT, 3)] {
            let Some(before) = disk(script, 16, 64) else { return };
            let growth = grow_all(&before, number).expect("understood").expect("there is room");
            for (writes, state) in cuts(&before, &growth).iter().enumerate() {
                match grow_all(state, number) {
                    Ok(Some(again)) => assert_eq!((again.start, again.length), (growth.start, growth.length)),
                    Ok(None) => assert_eq!(writes, growth.writes.len()),
                    // Between the first copy's entries and its header: the kernel takes the second copy then.
                    Err(Unfit::Table(reason)) => {
                        assert_eq!((script, writes, reason), (GPT, 3, "the GPT is broken"))
                    }
                    Err(error) => panic!("{error}"),
                }
                let (lines, _) = dump(state);
                assert_eq!(lines.len(), dump(&before).0.len(), "no partition is lost after {writes} writes");
            }
        }
    }

    #[test]
    fn a_partition_that_others_follow_is_left() {
        for (script, number) in [(MBR, 1), (MBR, 5), (MBR, 7), (GPT, 1), (GPT, 9), (GPT, 0), (GPT, 2000)] {
            let Some(before) = disk(script, 16, 64) else { return };
            assert!(matches!(grow_all(&before, number), Err(Unfit::Table(_))), "{script} {number}");
        }
        assert!(matches!(grow_all(&vec![0; 1 << 20], 1), Err(Unfit::Table("there is no partition table"))));
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(noise in proptest::collection::vec((0..1000_usize, any::<u8>()), 0..20), gpt in any::<bool>(), number in 0..9_u32) {
            // Tables as ours, hurt.
            let mut disk = vec![0_u8; 40 * SECTOR as usize];
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            disk[450] = if gpt { 0xee } else { 0x0f };
            disk[454] = 2;
            disk[1022..1024].copy_from_slice(&[0x55, 0xaa]);
            disk[2 * 512 + 510..2 * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
            disk[512..520].copy_from_slice(b"EFI PART");
            disk[524] = 92;
            for (at, value) in noise {
                disk[446 + at] = value;
            }
            let header: Sector = disk[512..1024].try_into().expect("a sector");
            let sum = sum(&header, 92);
            disk[528..532].copy_from_slice(&sum.to_le_bytes());
            let _ = grow_all(&disk, number);
        }
    }
}
