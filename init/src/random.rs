//! The seed of the kernel's random numbers: saved, and used once.
//!
//! A board without a random number generator has little that nobody could guess in its first second. What the last run
//! saved counts as good only when that run ended in order, and it is gone before it is used: two boots never share one.

use crate::sys::{SEED, add_entropy};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const RANDOM: &str = "/dev/urandom";

/// Takes the seed that is there, and saves a new one that counts for nothing until [`save`] does it again at the end.
/// True when it counted.
///
/// # Errors
/// As the file system or the kernel says; whatever was read has been removed.
pub fn load(seed: &Path, clean: &Path) -> io::Result<bool> {
    let mut bytes = [0; SEED];
    let read = File::open(seed).and_then(|mut file| file.read_exact(&mut bytes)).is_ok();
    let counts = read && clean.exists();
    // Gone on the disk before it is used.
    let _ = std::fs::remove_file(clean);
    let _ = std::fs::remove_file(seed);
    if let Some(folder) = seed.parent() {
        File::open(folder)?.sync_all()?;
    }
    if read {
        let mut random = File::options().write(true).open(RANDOM)?;
        if counts {
            add_entropy(random.as_fd(), &bytes)?;
        } else {
            random.write_all(&bytes)?;
        }
    }
    write_seed(seed)?;
    Ok(counts)
}

/// Saves a seed at the end of an orderly run.
///
/// # Errors
/// As the file system says.
pub fn save(seed: &Path, clean: &Path) -> io::Result<()> {
    write_seed(seed)?;
    crate::files::replace(clean, b"")
}

fn write_seed(seed: &Path) -> io::Result<()> {
    let mut bytes = [0; SEED];
    File::open(RANDOM)?.read_exact(&mut bytes)?;
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(seed)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_never_used_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let (seed, clean) = (folder.path().join("seed"), folder.path().join("clean"));
        let read = || std::fs::read(&seed).expect("a seed");
        assert!(!load(&seed, &clean).expect("a first boot"));
        let first = read();
        // Power was cut: it is mixed in, and does not count.
        assert!(!load(&seed, &clean).expect("a second"));
        assert_ne!(read(), first);
        save(&seed, &clean).expect("saved");
        assert!(clean.exists() && read().len() == SEED);
        let saved = read();
        match load(&seed, &clean) {
            Ok(counted) => assert!(counted),
            // Whoever runs the test may not tell the kernel, or an emulator of its calls does not know this one; what is
            // on disk is the same.
            Err(error) => {
                use io::ErrorKind::{PermissionDenied, Unsupported};
                assert!(matches!(error.kind(), PermissionDenied | Unsupported), "{error}");
            }
        }
        assert!(!clean.exists());
        assert!(std::fs::read(&seed).map_or(true, |now| now != saved), "the old one is gone");
    }
}
