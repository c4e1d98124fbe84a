//! The initial ramdisk: an archive that the kernel unpacks into memory (kernel documentation,
//! driver-api/early-userspace/buffer-format.rst). The same files give the same bytes.

use anyhow::Context;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// An archive in the format `newc`.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    number: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.number += 1;
        let fields =
            [self.number, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// All below a folder, in the order of names.
    ///
    /// # Errors
    /// As the file system says.
    pub fn tree(&mut self, root: &Path, below: &str) -> anyhow::Result<()> {
        let mut names: Vec<_> = std::fs::read_dir(root.join(below))?.collect::<Result<_, _>>()?;
        names.sort_by_key(std::fs::DirEntry::file_name);
        for entry in names {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            let (kind, mode) = (entry.file_type()?, entry.metadata()?.permissions().mode() & 0o7777);
            if kind.is_dir() {
                self.entry(&name, FOLDER | mode, (0, 0), b"");
                self.tree(root, &name)?;
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path())?;
                self.entry(&name, LINK | 0o777, (0, 0), target.to_str().context("a link's target")?.as_bytes());
            } else if kind.is_file() {
                self.entry(&name, FILE | mode, (0, 0), &std::fs::read(entry.path())?);
            }
        }
        Ok(())
    }

    /// A character device.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, DEVICE | 0o600, (major, minor), b"");
    }

    /// The archive, packed.
    ///
    /// # Errors
    /// When there is no gzip.
    pub fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        use std::io::Write;
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        // No kernel is without it.
        let mut gzip = Command::new("gzip")
            .args(["-9", "-n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting gzip")?;
        let mut input = gzip.stdin.take().context("a pipe")?;
        let bytes = self.bytes;
        let writer = std::thread::spawn(move || input.write_all(&bytes));
        let output = gzip.wait_with_output()?;
        writer.join().map_err(|_| anyhow::anyhow!("writing to gzip"))??;
        Ok(output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_cpio_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).expect("made");
        std::fs::create_dir(&to).expect("made");
        std::fs::write(from.join("a/b/file"), "content").expect("written");
        std::os::unix::fs::symlink("b/file", from.join("a/link")).expect("linked");
        let archive = || {
            let mut archive = Archive::default();
            archive.tree(&from, "").expect("read");
            archive.finish().expect("packed")
        };
        let packed = archive();
        assert_eq!(packed, archive(), "the same files, the same bytes");
        std::fs::write(folder.path().join("packed"), packed).expect("written");
        let unpack = "zcat ../packed | busybox cpio -i -d 2> /dev/null";
        let status = Command::new("sh").args(["-c", unpack]).current_dir(&to).status();
        if !status.is_ok_and(|it| it.success()) {
            println!("skipped: there is no busybox");
            return;
        }
        assert_eq!(std::fs::read_to_string(to.join("a/link")).expect("read"), "content");
    }
}
