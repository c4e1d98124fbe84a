//! The partitions of a board: found by name, checked, grown, mounted.

use crate::partition::{self, Growth, SECTOR};
use crate::settings::Source;
use crate::sys;
use rustix::mount::{MountFlags, mount};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Bytes at the begin of a device in which names are.
const HEAD: usize = 4096;

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its node.
    pub node: PathBuf,
    /// The disk that it is a part of, and its number there.
    pub part_of: Option<(PathBuf, u32)>,
}

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// ext4, or one of its forerunners.
    Ext4(Ext4),
    /// FAT, with its name.
    Fat(String),
    /// squashfs.
    Squashfs,
    /// EROFS.
    Erofs,
}

/// What an ext4 file system says of itself (kernel documentation, filesystems/ext4: The Super Block).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    /// Its name.
    pub label: String,
    /// Its blocks.
    pub blocks: u64,
    /// Bytes of one.
    pub block_size: u64,
    /// The kernel found it damaged.
    pub has_errors: bool,
}

impl Content {
    /// From the first bytes; `None`: nothing that is known.
    pub fn of(head: &[u8]) -> Option<Self> {
        let text = |at: usize, length: usize| {
            let bytes = head.get(at..at + length).unwrap_or_default();
            let end = bytes.iter().position(|&it| it == 0).unwrap_or(length.min(bytes.len()));
            String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
        };
        let number = |at: usize, length: usize| {
            let bytes = head.get(at..at + length).unwrap_or_default();
            bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        if number(0x438, 2) == 0xef53 {
            // More than 16 TiB is on no board, so the high half of the count counts only where the field is in use.
            let high = if number(0x460, 4) & 0x80 != 0 { number(0x550, 4) } else { 0 };
            return Some(Self::Ext4(Ext4 {
                label: text(0x478, 16),
                blocks: high << 32 | number(0x404, 4),
                block_size: 1024_u64.checked_shl(number(0x418, 4) as u32).filter(|&it| it <= 65_536)?,
                has_errors: number(0x43a, 2) & 2 != 0,
            }));
        }
        match (head.get(..4), number(0x400, 4)) {
            (Some(b"hsqs"), _) => return Some(Self::Squashfs),
            (_, 0xe0f5_e1e2) => return Some(Self::Erofs),
            _ => {}
        }
        if number(510, 2) == 0xaa55 {
            if text(0x52, 5) == "FAT32" {
                return Some(Self::Fat(text(0x47, 11)));
            }
            if text(0x36, 3) == "FAT" {
                return Some(Self::Fat(text(0x2b, 11)));
            }
        }
        None
    }

    fn label(&self) -> &str {
        match self {
            Self::Ext4(ext4) => &ext4.label,
            Self::Fat(label) => label,
            Self::Squashfs | Self::Erofs => "",
        }
    }

    /// The kernel's name for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ext4(_) => "ext4",
            Self::Fat(_) => "vfat",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

/// Reads what is on a device.
///
/// # Errors
/// When it cannot be read.
pub fn content(node: &Path) -> io::Result<Option<Content>> {
    let mut head = Vec::with_capacity(HEAD);
    File::open(node)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(Content::of(&head))
}

/// Looks for a device. Two of the same name: the first by the kernel's name, which is the internal one on boards.
pub fn find(sys: &Path, source: &Source, boot: &Source) -> Option<Device> {
    if let Source::Partition(number) = source {
        // Not by itself again.
        let boot = Some(boot).filter(|it| !matches!(it, Source::Partition(_)))?;
        let (disk, _) = find(sys, boot, boot)?.part_of?;
        let disk = disk.to_str()?;
        let part = if disk.ends_with(|it: char| it.is_ascii_digit()) { "p" } else { "" };
        return find(sys, &Source::Device(format!("{disk}{part}{number}")), boot);
    }
    let class = sys.join("class/block");
    let mut names: Vec<String> = std::fs::read_dir(&class)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "zram", "dm-"].iter().any(|kind| name.starts_with(kind)))
        .collect();
    names.sort();
    let fits = |name: &&String| {
        let node = Path::new("/dev").join(name);
        match source {
            Source::Device(path) => Path::new(path) == node,
            Source::Label(label) => {
                content(&node).ok().flatten().is_some_and(|it| !label.is_empty() && it.label() == label)
            }
            Source::PartitionLabel(label) => {
                let text = crate::files::read_text(class.join(name).join("uevent"), 4096).unwrap_or_default();
                text.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(label))
            }
            Source::Partition(_) => false,
        }
    };
    let name = names.iter().find(fits)?;
    Some(Device { node: Path::new("/dev").join(name), part_of: part_of(&class, name) })
}

/// `/sys/class/block/vda4` leads to `…/block/vda/vda4`, which has a file `partition`.
fn part_of(class: &Path, name: &str) -> Option<(PathBuf, u32)> {
    let folder = class.join(name).canonicalize().ok()?;
    let number = crate::files::read_text(folder.join("partition"), 32).ok()?.trim().parse().ok()?;
    let disk = folder.parent()?.file_name()?;
    Some((Path::new("/dev").join(disk), number))
}

/// Grows a partition that is the last of its disk; its new size in bytes, or `None` when it has all the room.
///
/// # Errors
/// When the table is not understood, or cannot be written.
pub fn grow_partition(device: &Device) -> Result<Option<u64>, partition::Unfit> {
    let Some((disk, number)) = &device.part_of else { return Ok(None) };
    let mut file = File::options().read(true).write(true).open(disk)?;
    let sectors = sys::device_size(file.as_fd())? / SECTOR;
    let mut read = |at: u64| {
        let mut sector = [0; SECTOR as usize];
        (&file).seek(SeekFrom::Start(at * SECTOR))?;
        (&file).read_exact(&mut sector)?;
        Ok(sector)
    };
    let Some(Growth { start, length, writes }) = partition::grow(&mut read, *number, sectors)? else {
        return Ok(None);
    };
    for (at, bytes) in writes {
        file.seek(SeekFrom::Start(at * SECTOR))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
    }
    let number = i32::try_from(*number).unwrap_or_default();
    sys::resize_partition(file.as_fd(), number, start * SECTOR, length * SECTOR)?;
    Ok(Some(length * SECTOR))
}

/// Mounts a device's file system.
///
/// # Errors
/// What the kernel says, or that nothing is known of what is on it.
pub fn mount_device(node: &Path, target: &Path, read_only: bool) -> io::Result<Content> {
    let content = content(node)?.ok_or_else(|| io::Error::other("there is no file system on it that is known"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let flags = if read_only { flags | MountFlags::RDONLY } else { flags };
    let options = match content {
        // Every half minute is what a card can bear; what must not be lost is synced.
        Content::Ext4(_) => c"commit=30,errors=remount-ro",
        Content::Fat(_) => c"umask=077",
        Content::Squashfs | Content::Erofs => c"",
    };
    std::fs::create_dir_all(target)?;
    mount(node, target, content.kind(), flags, options)?;
    Ok(content)
}

/// Lets a mounted ext4 file system have all of its device; true when it grew.
///
/// # Errors
/// What the file system says.
pub fn grow_file_system(node: &Path, target: &Path, ext4: &Ext4) -> io::Result<bool> {
    let blocks = sys::device_size(File::open(node)?.as_fd())? / ext4.block_size;
    if blocks <= ext4.blocks {
        return Ok(false);
    }
    sys::resize_ext4(File::open(target)?.as_fd(), blocks)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn made(program: &str, arguments: &[&str]) -> Option<Option<Content>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        File::create(&path).expect("made").set_len(8 << 20).expect("sized");
        match Command::new(program).args(arguments).arg(&path).output() {
            Ok(output) if output.status.success() => Some(content(&path).expect("read")),
            _ => {
                println!("skipped: {program} is not there");
                None
            }
        }
    }

    #[test]
    fn file_systems_tell_their_names() {
        if let Some(content) = made("mke2fs", &["-q", "-t", "ext4", "-b", "1024", "-L", "coracle-data"]) {
            let wanted = Ext4 { label: "coracle-data".into(), blocks: 8192, block_size: 1024, has_errors: false };
            assert_eq!(content, Some(Content::Ext4(wanted)));
        }
        if let Some(content) = made("mkfs.vfat", &["-n", "CORACLE"]) {
            assert_eq!(content, Some(Content::Fat("CORACLE".into())));
        }
        assert_eq!(Content::of(b"hsqs"), Some(Content::Squashfs));
        assert_eq!(Content::of(&[0; HEAD]), None);
    }

    #[test]
    fn a_partition_knows_its_disk() {
        let sys = tempfile::tempdir().expect("a folder");
        let part = sys.path().join("devices/x/block/mmcblk0/mmcblk0p6");
        std::fs::create_dir_all(&part).expect("made");
        std::fs::write(part.join("partition"), "6\n").expect("written");
        std::fs::write(part.join("uevent"), "MAJOR=179\nPARTNAME=coracle-data\n").expect("written");
        let class = sys.path().join("class/block");
        std::fs::create_dir_all(&class).expect("made");
        std::os::unix::fs::symlink(&part, class.join("mmcblk0p6")).expect("linked");
        let label = Source::PartitionLabel("coracle-data".into());
        let device = find(sys.path(), &label, &label).expect("found");
        let same = find(sys.path(), &Source::Partition(6), &label);
        assert_eq!(same.as_ref(), Some(&device), "beside the boot partition");
        assert_eq!(find(sys.path(), &Source::Partition(7), &label), None);
        assert_eq!(device.node, Path::new("/dev/mmcblk0p6"));
        assert_eq!(device.part_of, Some(("/dev/mmcblk0".into(), 6)));
        assert_eq!(find(sys.path(), &Source::PartitionLabel("coracle".into()), &label), None);
    }

    proptest! {
        #[test]
        fn no_content_makes_it_panic(mut head in proptest::collection::vec(any::<u8>(), 0..HEAD)) {
            Content::of(&head);
            if head.len() > 0x43a {
                head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
                Content::of(&head);
            }
        }
    }
}
