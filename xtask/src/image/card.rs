//! A disk image from its partitions. The same parts give the same bytes.

use super::board::Table;
use crate::debian::run;
use anyhow::{Context, ensure};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// Of the boot partition: kernel, initial ramdisk and room for the next ones.
const BOOT_MIB: u64 = 128;
/// Of each root slot.
const ROOT_MIB: u64 = 64;
/// Of the device's own small files.
const STATE_MIB: u64 = 16;
/// Of the data partition, until it grows on the board.
const DATA_MIB: u64 = 64;
/// Of the smallest image. QEMU's SD cards have a size that is a power of two.
const CARD_MIB: u64 = 512;

/// Names that file systems are told, so that they do not roll dice; the board's own identity is made at its first boot.
const STATE_UUID: &str = "c0ac1e00-0000-4000-8000-000000000005";
const DATA_UUID: &str = "c0ac1e00-0000-4000-8000-000000000006";

/// What is put together.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Folder that becomes the boot partition.
    pub boot: &'a Path,
    /// Root file system, for both slots.
    pub root: &'a Path,
    /// Folder whose content is on the data partition, as `preload`.
    pub preload: Option<&'a Path>,
    /// A loader before the first partition, and its place in bytes.
    pub raw: Option<(&'a Path, u64)>,
    /// The boot partition has SYSLINUX in its first sector.
    pub syslinux: bool,
    /// Partition table.
    pub table: Table,
    /// Seconds since 1970 that every time in it is.
    pub epoch: u64,
}

/// Writes the image; `work` is for what is made on the way.
///
/// # Errors
/// A tool that is missing or fails, or a part that is too large.
pub fn write(parts: &Parts<'_>, work: &Path, image: &Path) -> anyhow::Result<()> {
    let root_size = std::fs::metadata(parts.root)?.len();
    ensure!(root_size <= ROOT_MIB * MIB, "the root has {} MiB, a slot {ROOT_MIB}", root_size / MIB);
    let boot = fat(parts, work)?;
    let state = ext4(work, "coracle-state", STATE_UUID, STATE_MIB, None, parts.epoch)?;
    let content = parts.preload.map(|preload| preloaded(preload, work, parts.epoch)).transpose()?;
    // Room for what is made from it, before the partition has grown.
    let data_mib = content.as_ref().map_or(DATA_MIB, |(_, bytes)| DATA_MIB + 2 * bytes.div_ceil(MIB));
    let content = content.as_ref().map(|(folder, _)| folder.as_path());
    let data = ext4(work, "coracle-data", DATA_UUID, data_mib, content, parts.epoch)?;
    let sizes = [BOOT_MIB, ROOT_MIB, ROOT_MIB, STATE_MIB, data_mib];
    let gap = match parts.table {
        Table::Gpt => 0,
        // In front of each logical partition is its table.
        Table::Mbr => 1,
    };
    let mut starts = Vec::new();
    let mut at = 1;
    for (number, size) in sizes.iter().enumerate() {
        at += if number >= 3 { gap } else { 0 };
        starts.push(at);
        at += size;
    }
    let beside = image.with_extension("new");
    let mut disk = File::create(&beside)?;
    // The table ends here; the rest of the card is room to grow.
    disk.set_len((at + 1) * MIB)?;
    sfdisk(parts.table, &starts, &sizes, &beside)?;
    if let Some((loader, place)) = parts.raw {
        let end = place + std::fs::metadata(loader)?.len();
        ensure!(end <= starts[0] * MIB, "{} ends in the first partition", loader.display());
        disk.seek(SeekFrom::Start(place))?;
        copy_sparse(loader, &mut disk)?;
    }
    let files: [&Path; 5] = [&boot, parts.root, parts.root, &state, &data];
    for (file, start) in files.into_iter().zip(starts) {
        disk.seek(SeekFrom::Start(start * MIB))?;
        copy_sparse(file, &mut disk)?;
    }
    disk.set_len((at + 1).next_power_of_two().max(CARD_MIB) * MIB)?;
    disk.sync_all()?;
    Ok(std::fs::rename(beside, image)?)
}

fn copy_sparse(from: &Path, to: &mut File) -> anyhow::Result<()> {
    use std::io::Read;
    let mut from = File::open(from)?;
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        if piece[..count].iter().all(|&byte| byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(count)?))?;
        } else {
            to.write_all(&piece[..count])?;
        }
    }
}

fn sfdisk(table: Table, starts: &[u64], sizes: &[u64], disk: &Path) -> anyhow::Result<()> {
    let sectors = |mib: u64| mib * MIB / SECTOR;
    let names = ["boot", "coracle-a", "coracle-b", "coracle-state", "coracle-data"];
    let mut script = match table {
        Table::Mbr => "label: dos\nlabel-id: 0xc0ac1e00\n".to_owned(),
        Table::Gpt => "label: gpt\nlabel-id: C0AC1E00-0000-4000-8000-000000000000\n".to_owned(),
    };
    for (number, name) in names.iter().enumerate() {
        if table == Table::Mbr && number == 3 {
            script.push_str(&format!("start={},type=f\n", sectors(starts[3] - 1)));
        }
        let place = format!("start={},size={}", sectors(starts[number]), sectors(sizes[number]));
        let more = match (table, number) {
            (Table::Mbr, 0) => "type=c,bootable".to_owned(),
            (Table::Mbr, _) => "type=83".to_owned(),
            (Table::Gpt, _) => {
                let kind = if number == 0 { "U" } else { "L" };
                format!("type={kind},name={name},uuid=C0AC1E00-0000-4000-8000-00000000010{number}")
            }
        };
        script.push_str(&format!("{place},{more}\n"));
    }
    let mut sfdisk = Command::new("sfdisk").arg("-q").arg(disk).stdin(Stdio::piped()).spawn().context("sfdisk")?;
    sfdisk.stdin.take().context("a pipe")?.write_all(script.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk refuses:\n{script}");
    Ok(())
}

fn fat(parts: &Parts<'_>, work: &Path) -> anyhow::Result<PathBuf> {
    let file = work.join("boot.fat");
    let _ = std::fs::remove_file(&file);
    let size = (BOOT_MIB * 1024).to_string();
    // Where it begins on the disk, for code that finds its own rest there.
    let begin = (MIB / SECTOR).to_string();
    let words = ["--invariant", "-F", "32", "-n", "CORACLE", "-h", &begin, "-C"];
    run(Command::new("mkfs.vfat").args(words).arg(&file).arg(size))?;
    let mut names: Vec<PathBuf> = std::fs::read_dir(parts.boot)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    let touch = format!("find {} -exec touch -h -d @{} {{}} +", parts.boot.display(), parts.epoch);
    run(Command::new("sh").arg("-c").arg(touch))?;
    let mut copy = Command::new("mcopy");
    copy.env("TZ", "UTC").args(["-s", "-m", "-i"]).arg(&file).args(names).arg("::");
    run(&mut copy)?;
    if parts.syslinux {
        // It writes files with the time of day; of that there is one.
        let time =
            Command::new("date").args(["-u", "+%F %T", "-d", &format!("@{}", parts.epoch)]).output()?.stdout;
        let time = String::from_utf8(time)?;
        let mut install = Command::new("faketime");
        install.env("TZ", "UTC").args(["-f", time.trim(), "syslinux", "--install"]).arg(&file);
        run(&mut install)?;
    }
    Ok(file)
}

/// The content of the data partition: a copy of what is to be preloaded; and its bytes.
fn preloaded(preload: &Path, work: &Path, epoch: u64) -> anyhow::Result<(PathBuf, u64)> {
    let folder = work.join("data");
    std::fs::create_dir(&folder)?;
    ensure!(preload.join("images").is_dir(), "{}: there is no folder `images` in it", preload.display());
    let to = folder.join("preload");
    run(Command::new("cp").args(["-R", "--no-preserve=all"]).arg(preload).arg(&to))?;
    run(Command::new("find").arg(&folder).args(["-exec", "touch", "-h", "-d", &format!("@{epoch}"), "{}", "+"]))?;
    let bytes = std::process::Command::new("du").args(["-s", "-B1"]).arg(&folder).output()?.stdout;
    let bytes = String::from_utf8_lossy(&bytes).split_whitespace().next().and_then(|it| it.parse().ok());
    Ok((folder, bytes.context("du")?))
}

/// The kernel's own time of change is copied from this machine; nothing else can set it.
fn same_times(file: &Path, content: &Path, epoch: u64) -> anyhow::Result<()> {
    let found = Command::new("find").arg(".").current_dir(content).output()?.stdout;
    let mut commands = String::new();
    for path in String::from_utf8(found)?.lines() {
        let path = path.strip_prefix('.').context("a path")?;
        ensure!(!path.contains(['"', '\\']), "{path}: a name without quotes, please");
        let path = if path.is_empty() { "/" } else { path };
        for (field, value) in [("ctime", format!("@{epoch}")), ("ctime_extra", "0".to_owned())] {
            commands.push_str(&format!("set_inode_field \"{path}\" {field} {value}\n"));
        }
    }
    let script = file.with_extension("debugfs");
    std::fs::write(&script, commands)?;
    run(Command::new("debugfs").arg("-w").arg("-f").arg(script).arg(file).stderr(Stdio::null()))
}

fn ext4(
    work: &Path,
    label: &str,
    uuid: &str,
    mib: u64,
    content: Option<&Path>,
    epoch: u64,
) -> anyhow::Result<PathBuf> {
    let file = work.join(label);
    let _ = std::fs::remove_file(&file);
    File::create(&file)?.set_len(mib * MIB)?;
    // Room in its tables for the largest card (64 GiB) is what growing needs; inode tables are made when they are used.
    let extended = format!("hash_seed={uuid},lazy_itable_init=1,resize=64g,root_owner=0:0");
    let words = [
        "-q",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-m",
        "1",
        "-O",
        "^orphan_file,^metadata_csum_seed",
        "-L",
        label,
        "-U",
        uuid,
        "-E",
        &extended,
    ];
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("E2FSPROGS_FAKE_TIME", epoch.to_string()).env("SOURCE_DATE_EPOCH", epoch.to_string());
    mke2fs.args(words).args(content.into_iter().flat_map(|content| [Path::new("-d"), content]));
    run(mke2fs.arg(&file))?;
    content.map_or(Ok(()), |content| same_times(&file, content, epoch))?;
    Ok(file)
}
