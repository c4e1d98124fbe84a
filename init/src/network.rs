//! What NetworkManager finds when it is started: its folders on the state partition, the connections that somebody put
//! on the boot partition, and a `/sys` that says that there is no udev. All of it in a mount namespace of its own.

use crate::boot::{BOOT, STATE};
use crate::files;
use crate::log::complain;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the bus is spoken to.
const BUS: &str = "/run/dbus/system_bus_socket";

/// The bus is there in a moment, or has to be started again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Connections for this boot (NetworkManager.conf(5), section keyfile).
const CONNECTIONS: &str = "/run/NetworkManager/system-connections";

/// How those begin that are of the boot partition.
const OURS: &str = "boot-";

/// Connections on a boot partition: one an uplink, some more in words that somebody keeps there.
const MOST_CONNECTIONS: usize = 64;
/// Bytes of one; with certificates in it a connection has some KiB.
const MAX_CONNECTION: u64 = 64 * 1024;

/// Makes all that, and becomes the program.
pub fn exec(program: &str, arguments: &[&str]) -> u8 {
    // What is missing is said; without it there may be a network still.
    for (what, done) in [
        ("folders of NetworkManager", prepare()),
        ("connections of the boot partition", take_connections(&Path::new(BOOT).join("system-connections"))),
    ] {
        if let Err(error) = done {
            complain(format_args!("{what}: {error}"));
        }
    }
    let begun = Instant::now();
    while !Path::new(BUS).exists() && begun.elapsed() < LONGEST_WAIT {
        std::thread::sleep(LOOK_AGAIN);
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    complain(format_args!("{program}: {error}"));
    127
}

fn prepare() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is unmounted outside is unmounted here too.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    for (folder, target) in [
        ("NetworkManager", "/var/lib/NetworkManager"),
        ("system-connections", "/etc/NetworkManager/system-connections"),
    ] {
        let folder = Path::new(STATE).join(folder);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        mount_bind(&folder, target)?;
    }
    // Where it can be written, NetworkManager waits for udev's word about each link; there is none.
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount("/sys", MountFlags::BIND | MountFlags::RDONLY | closed, c"")?)
}

/// Copies connections to where NetworkManager reads them, and only root can. The boot partition shows them to all, and
/// has them as somebody's editor wrote them.
fn take_connections(from: &Path) -> io::Result<()> {
    let to = Path::new(CONNECTIONS);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    remove_ours(to)?;
    copy_connections(from, to)
}

/// What was taken when NetworkManager was started before; what others put there for this boot is theirs.
fn remove_ours(to: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(to)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(OURS) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn copy_connections(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(reason) = refusal(&name, entry.metadata()?.len()) {
            complain(format_args!("system-connections/{name}: {reason}"));
        } else if entry.file_type()?.is_file() && !is_passed_over(&name) {
            names.push(name);
        }
    }
    names.sort();
    if names.len() > MOST_CONNECTIONS {
        complain(format_args!(
            "system-connections: of {} files the first {MOST_CONNECTIONS} are taken",
            names.len()
        ));
    }
    for name in names.iter().take(MOST_CONNECTIONS) {
        let text = normal(&files::read_text(from.join(name), MAX_CONNECTION)?);
        // There only files with this end are taken.
        let end = if name.ends_with(".nmconnection") { "" } else { ".nmconnection" };
        let path = to.join(format!("{OURS}{name}{end}"));
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn refusal(name: &str, bytes: u64) -> Option<String> {
    (bytes > MAX_CONNECTION && !is_passed_over(name))
        .then(|| format!("it has {bytes} bytes, a connection has {MAX_CONNECTION} at most; it is passed over"))
}

/// Examples, what editors leave, and what other systems put beside a file.
fn is_passed_over(name: &str) -> bool {
    name.starts_with(['.', '_']) || [".ignore", "~", ".bak", ".txt"].iter().any(|end| name.ends_with(end))
}

/// Without what editors of other systems put in: a mark at the beginning, another end of lines.
fn normal(text: &str) -> String {
    text.trim_start_matches('\u{feff}').replace("\r\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn connections_are_taken_as_any_editor_wrote_them_for_root_alone() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let write = |name: &str, text: &[u8]| std::fs::write(from.path().join(name), text).expect("written");
        write("home", b"\xef\xbb\xbf[connection]\r\nid=home\r\n");
        write("work.nmconnection", b"[connection]\nid=work\n");
        for passed_over in ["sample.ignore", ".hidden", "home~", "._home", "README.txt"] {
            write(passed_over, b"[connection]\n");
        }
        write("large", &vec![b'#'; 100_000]);
        std::fs::create_dir(from.path().join("folder")).expect("made");
        copy_connections(from.path(), to.path()).expect("copied");
        let mut names: Vec<_> = std::fs::read_dir(to.path()).expect("listed").flatten().collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        let names: Vec<_> = names
            .iter()
            .map(|it| (it.file_name(), it.metadata().expect("there").permissions().mode() & 0o777))
            .collect();
        assert_eq!(names, [("boot-home.nmconnection".into(), 0o600), ("boot-work.nmconnection".into(), 0o600)]);
        let text = std::fs::read_to_string(to.path().join("boot-home.nmconnection")).expect("read");
        assert_eq!(text, "[connection]\nid=home\n");
        std::fs::write(to.path().join("other.nmconnection"), "").expect("written");
        remove_ours(to.path()).expect("removed");
        assert_eq!(std::fs::read_dir(to.path()).expect("listed").count(), 1, "another's stays");
    }

    #[test]
    fn more_connections_than_a_board_has_are_cut_and_none_is_fine() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        for number in 0..100 {
            std::fs::write(from.path().join(format!("c{number}")), "").expect("written");
        }
        copy_connections(from.path(), to.path()).expect("copied");
        assert_eq!(std::fs::read_dir(to.path()).expect("listed").count(), MOST_CONNECTIONS);
        copy_connections(&from.path().join("none"), to.path()).expect("nothing is wrong");
    }
}
