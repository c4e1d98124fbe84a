//! What machines of 32 bits get wrong: times after 2038, files over 4 GiB, ids of 32 bits. The same tests run as ARMv6
//! (`cargo xtask test --target arm-unknown-linux-musleabihf`).

use crate::image::unpack;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// 2106-02-07T06:28:16Z, one second more than 32 bits hold without a sign.
const LATE: i64 = 1 << 32;

/// A file's length.
const LONG: u64 = 5 << 30;

/// The largest number of a user: one more means "none" (chown(2)).
const LAST_USER: u32 = u32::MAX - 1;

fn times(path: &Path) -> (i64, u64) {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).expect("it is there");
    (stat.st_mtime as i64, stat.st_size as u64)
}

/// A file system whose inodes have no room for late times says another time than it was given.
fn keeps_late_times(folder: &Path) -> bool {
    let probe = folder.join("probe");
    std::fs::write(&probe, "").expect("written");
    let time = Timespec { tv_sec: LATE, tv_nsec: 0 };
    let set = rustix::fs::utimensat(
        CWD,
        &probe,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::empty(),
    );
    let kept = set.is_ok() && times(&probe).0 == LATE;
    std::fs::remove_file(&probe).expect("removed");
    if !kept {
        println!("skipped: this file system has no times after 2038");
    }
    kept
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let digits = (1..5).find(|digits| (rest + digits).to_string().len() == *digits).expect("a length");
    format!("{} {key}={value}\n", rest + digits)
}

fn header(name: &str, kind: u8, size: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// An archive of one file, whose PAX records say more of it than the header can.
fn archive(name: &str, records: &[(&str, String)], data: &[u8]) -> Vec<u8> {
    let records: String = records.iter().map(|(key, value)| record(key, value)).collect();
    let mut all = Vec::new();
    for (name, kind, data) in [("x", b'x', records.as_bytes()), (name, b'0', data)] {
        all.extend(header(name, kind, data.len()));
        all.extend(data);
        all.resize(all.len().next_multiple_of(512), 0);
    }
    all.resize(all.len() + 1024, 0);
    all
}

#[test]
fn layers_keep_late_times_long_files_and_large_ids() {
    let folder = tempfile::tempdir().expect("a folder");
    if !keeps_late_times(folder.path()) {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let own = rustix::process::geteuid().as_raw();
    let user = if root { LAST_USER } else { own };
    let map = format!("{},5,{LONG},0", LONG - 5);
    let records = [
        ("mtime", format!("{LATE}.5")),
        ("uid", user.to_string()),
        ("gid", if root { LAST_USER } else { rustix::process::getegid().as_raw() }.to_string()),
        ("GNU.sparse.name", "long".to_owned()),
        ("GNU.sparse.size", LONG.to_string()),
        ("GNU.sparse.map", map),
    ];
    let target = folder.path().join("layer");
    std::fs::create_dir(&target).expect("made");
    unpack(&archive("long", &records, b"hello")[..], &target, &[], 4096).expect("unpacked");
    let file = target.join("long");
    let stat = rustix::fs::statat(CWD, &file, AtFlags::empty()).expect("it is there");
    assert_eq!((times(&file), stat.st_uid), ((LATE, LONG), user));
    // As files are opened below folders of others.
    let opened = crate::beneath::open(
        std::fs::File::open(&target).expect("opened"),
        Path::new("long"),
        OFlags::RDONLY,
        Mode::empty(),
    );
    let mut end = [0; 5];
    std::fs::File::from(opened.expect("opened")).read_exact_at(&mut end, LONG - 5).expect("read");
    assert_eq!(&end, b"hello");
}

#[test]
fn copies_keep_late_times_and_long_files() {
    let folder = tempfile::tempdir().expect("a folder");
    if !keeps_late_times(folder.path()) || !rustix::process::geteuid().is_root() {
        println!("skipped: owners are root's to give");
        return;
    }
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::create_dir(&from).expect("made");
    std::fs::create_dir(&to).expect("made");
    std::fs::write(from.join("late"), "x").expect("written");
    std::os::unix::fs::chown(from.join("late"), Some(LAST_USER), Some(LAST_USER)).expect("given");
    let time = Timespec { tv_sec: LATE, tv_nsec: 0 };
    let late = Timestamps { last_access: time, last_modification: time };
    for name in ["late", "."] {
        rustix::fs::utimensat(CWD, from.join(name), &late, AtFlags::empty()).expect("set");
    }
    crate::container::copy_tree(&from, &to).expect("copied");
    let stat = rustix::fs::statat(CWD, to.join("late"), AtFlags::empty()).expect("it is there");
    assert_eq!((times(&to.join("late")).0, stat.st_uid), (LATE, LAST_USER));
}
