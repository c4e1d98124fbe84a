//! The root slot: read-only, with nothing of a distribution but what has a reason. Each file's reason is in
//! `usr/share/coracle/manifest`.

use super::board::{Board, COMMON, EARLY, RADIO, Table};
use anyhow::{Context, ensure};
use object::{Object, ObjectSection};
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Debian packages that files are taken from.
pub const PACKAGES: &[&str] = &[
    "nftables", "e2fsprogs", "ca-certificates", "network-manager", "dbus-daemon", "wpasupplicant",
    "wireless-regdb",
];

/// Files that are taken, and why. Libraries come with the programs that need them.
const TAKEN: &[(&str, &str)] = &[
    ("usr/sbin/nft", "firewall rules of services"),
    ("usr/sbin/e2fsck", "file systems that the kernel found damaged"),
];

/// Of the network, in images that have one. `*` stands for the architecture's or the version's folder.
const NETWORK: &[(&str, &str)] = &[
    ("usr/sbin/NetworkManager", "the network's links, addresses and names"),
    ("usr/lib/*/NetworkManager/*/libnm-device-plugin-wifi.so", "NetworkManager's part for radios"),
    ("usr/libexec/nm-daemon-helper", "names of hosts that NetworkManager asks for"),
    ("usr/bin/dbus-daemon", "how NetworkManager is talked to"),
    ("usr/sbin/wpa_supplicant", "keys of radios; runs where there is one"),
    ("usr/lib/*/libgcc_s.so.1", "glibc loads it when a thread ends"),
];

/// Files that are no programs.
const NETWORK_FILES: &[(&str, &str, &str)] = &[
    ("usr/share/dbus-1/system.conf", "usr/share/dbus-1/system.conf", "who may talk on the bus"),
    (
        "usr/share/dbus-1/system.d/org.freedesktop.NetworkManager.conf",
        "usr/share/dbus-1/system.d/org.freedesktop.NetworkManager.conf",
        "who may talk to NetworkManager",
    ),
    (
        "usr/share/dbus-1/system.d/wpa_supplicant.conf",
        "usr/share/dbus-1/system.d/wpa_supplicant.conf",
        "who may talk to wpa_supplicant",
    ),
    ("usr/lib/firmware/regulatory.db-debian", "usr/lib/firmware/regulatory.db", "what radios may send where"),
    ("usr/lib/firmware/regulatory.db.p7s-debian", "usr/lib/firmware/regulatory.db.p7s", "its signature"),
];

/// `NetworkManager.conf(5)`. Only root talks to it; names of hosts are the agent's; what services have is theirs.
const NETWORK_SETTINGS: &str = "\
[main]
plugins=keyfile
auth-polkit=root-only
dhcp=internal
rc-manager=unmanaged
systemd-resolved=false
hostname-mode=none

[keyfile]
unmanaged-devices=interface-name:cor-*;interface-name:corv*

[logging]
backend=syslog
level=WARN
";

/// What a root is made from.
pub struct Parts<'a> {
    /// The board.
    pub board: &'a Board,
    /// `coracle` for it.
    pub program: &'a Path,
    /// The kernel's modules.
    pub modules: &'a Path,
    /// Debian's packages, unpacked.
    pub packages: &'a Path,
    /// Firmware of radios: a package's folder, and files below its `usr/lib/firmware`.
    pub firmware: &'a [(PathBuf, &'a str)],
    /// With NetworkManager.
    pub network: bool,
    /// Modules beside the board's own.
    pub more: &'a [&'a str],
    /// Whoever builds the image adds these.
    pub add: Option<&'a Path>,
    /// Seconds since 1970.
    pub epoch: u64,
}

/// Number of the bus's user and group.
const BUS: u32 = 100;

struct Tree<'a> {
    root: &'a Path,
    packages: &'a Path,
    manifest: BTreeMap<String, String>,
}

/// Makes the tree.
///
/// # Errors
/// What is missing.
pub fn make(parts: &Parts<'_>, root: &Path) -> anyhow::Result<()> {
    let mut tree = Tree { root, packages: parts.packages, manifest: BTreeMap::new() };
    for folder in [
        "dev", "proc", "sys", "run", "tmp", "root", "etc/coracle", "etc/ssl/certs", "mnt/boot", "mnt/state",
        "mnt/data", "usr/bin", "usr/sbin", "usr/lib", "usr/share/coracle", "var/lib", "var/log", "var/tmp",
    ] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    // Programs of 64 bits ask for their loader in `lib64`.
    for (name, target) in [("bin", "bin"), ("sbin", "sbin"), ("lib", "lib"), ("lib64", "lib")] {
        tree.link(name, &format!("usr/{target}"), "paths as everywhere")?;
    }
    tree.link("var/run", "../run", "paths as everywhere")?;
    std::fs::copy(parts.program, root.join("usr/bin/coracle"))?;
    tree.note("usr/bin/coracle", "it is what this is about");
    for name in ["init", "modprobe"] {
        tree.link(&format!("usr/sbin/{name}"), "../bin/coracle", "coracle's other names")?;
    }
    tree.configuration(parts)?;
    let release = parts.modules.file_name().context("a release")?;
    let radio: &[&str] = if parts.network { RADIO } else { &[] };
    let wanted: Vec<&str> = COMMON
        .iter()
        .chain(radio)
        .chain(parts.board.early)
        .chain(parts.board.modules)
        .chain(parts.more)
        .copied()
        .collect();
    let chosen = coracle_tests::modules::choose(parts.modules, &wanted, EARLY)?;
    let place = PathBuf::from("usr/lib/modules").join(release);
    coracle_tests::modules::copy(parts.modules, &chosen, parts.board.signatures, &root.join(&place))?;
    tree.note(&place.to_string_lossy(), "drivers of boards, containers and their network");
    for (file, reason) in TAKEN {
        tree.take(file, reason)?;
    }
    if parts.network {
        tree.network(parts)?;
    }
    if let Some(add) = parts.add {
        crate::debian::run(std::process::Command::new("cp").arg("-a").arg(add.join(".")).arg(root))?;
    }
    let manifest: String = tree.manifest.iter().map(|(file, reason)| format!("{file}\t{reason}\n")).collect();
    Ok(std::fs::write(root.join("usr/share/coracle/manifest"), manifest)?)
}

impl Tree<'_> {
    fn note(&mut self, file: &str, reason: &str) {
        self.manifest.entry(file.to_owned()).or_insert_with(|| reason.to_owned());
    }

    fn link(&mut self, name: &str, target: &str, reason: &str) -> anyhow::Result<()> {
        symlink(target, self.root.join(name)).with_context(|| name.to_owned())?;
        self.note(name, reason);
        Ok(())
    }

    fn write(&mut self, name: &str, text: &str, reason: &str) -> anyhow::Result<()> {
        std::fs::write(self.root.join(name), text)?;
        self.note(name, reason);
        Ok(())
    }

    fn configuration(&mut self, parts: &Parts<'_>) -> anyhow::Result<()> {
        // The fourth of an MBR is the one that holds the others.
        let state = if parts.board.table == Table::Mbr { 5 } else { 4 };
        let settings = format!(
            "# What this image is; the kernel's command line is stronger (coracle.KEY=VALUE).\nbuilt={}\n\
             state=LABEL=coracle-state,PARTITION={state}\ndata=LABEL=coracle-data,PARTITION={}\n",
            parts.epoch,
            state + 1
        );
        self.write("etc/coracle/image.conf", &settings, "settings of the first process")?;
        self.write("etc/machine-id", "", "the device's own is mounted over it")?;
        let users = format!(
            "root:x:0:0:root:/root:/sbin/nologin\nmessagebus:x:{BUS}:{BUS}:D-Bus:/nonexistent:/sbin/nologin\n"
        );
        self.write("etc/passwd", &users, "names of users")?;
        // The last is named in wpa_supplicant's policy; nobody is in it.
        let groups = format!("root:x:0:\ntty:x:5:\nmessagebus:x:{BUS}:\nnetdev:x:{}:\n", BUS + 1);
        self.write("etc/group", &groups, "names of groups")?;
        self.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", "the name of this machine")?;
        self.write("etc/nsswitch.conf", "hosts: files dns\n", "where programs of glibc look for names")?;
        let names = if parts.network { "../run/NetworkManager/resolv.conf" } else { "../run/resolv.conf" };
        self.link("etc/resolv.conf", names, "servers of names, as the network tells")?;
        self.link("etc/mtab", "../proc/self/mounts", "what older programs read")?;
        let folder = self.packages.join("usr/share/ca-certificates/mozilla");
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        files.sort();
        ensure!(files.len() > 50, "{}: only {} certificates", folder.display(), files.len());
        let texts: Result<Vec<String>, _> = files.iter().map(std::fs::read_to_string).collect();
        self.write(
            "etc/ssl/certs/ca-certificates.crt",
            &texts?.concat(),
            "who vouches for servers (ca-certificates)",
        )
    }

    fn network(&mut self, parts: &Parts<'_>) -> anyhow::Result<()> {
        for folder in
            ["etc/NetworkManager/conf.d", "etc/NetworkManager/system-connections", "var/lib/NetworkManager"]
        {
            std::fs::create_dir_all(self.root.join(folder))?;
        }
        for (pattern, reason) in NETWORK {
            self.take(&self.one(pattern)?, reason)?;
        }
        for (from, to, reason) in NETWORK_FILES {
            self.copy(&self.packages.join(from), to, reason)?;
        }
        self.write("etc/NetworkManager/NetworkManager.conf", NETWORK_SETTINGS, "settings of NetworkManager")?;
        for (package, pattern) in parts.firmware {
            let below = package.join("usr/lib/firmware");
            let found = matching(&below, pattern)?;
            ensure!(!found.is_empty(), "{} has no firmware {pattern}", package.display());
            for file in found {
                self.copy(&below.join(&file), &format!("usr/lib/firmware/{file}"), "firmware of a radio")?;
            }
        }
        Ok(())
    }

    /// The one file of the packages that fits.
    fn one(&self, pattern: &str) -> anyhow::Result<String> {
        let mut found = matching(self.packages, pattern)?;
        ensure!(found.len() == 1, "{pattern} fits {found:?}");
        Ok(found.remove(0))
    }

    fn copy(&mut self, from: &Path, name: &str, reason: &str) -> anyhow::Result<()> {
        let to = self.root.join(name);
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o644))?;
        self.note(name, reason);
        Ok(())
    }

    /// Takes a program with the libraries that it needs.
    fn take(&mut self, file: &str, reason: &str) -> anyhow::Result<()> {
        let (from, to) = (self.packages.join(file), self.root.join(file));
        if to.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755))?;
        self.note(file, reason);
        let bytes = std::fs::read(&from)?;
        let elf = object::File::parse(&*bytes).with_context(|| file.to_owned())?;
        let mut needed: Vec<String> = needed(&elf)?;
        if let Some(loader) = elf.section_by_name(".interp") {
            let path = String::from_utf8_lossy(loader.data()?).trim_end_matches('\0').to_owned();
            needed.push(path.rsplit('/').next().unwrap_or_default().to_owned());
        }
        for name in needed {
            let found = self.find(&name).with_context(|| format!("{file} needs {name}"))?;
            self.take(&found, &format!("needed by {file}"))?;
            if name.starts_with("ld-") {
                // It is asked for by this name.
                let beside = self.root.join("usr/lib").join(&name);
                if !beside.exists() {
                    symlink(Path::new("/").join(&found), beside)?;
                }
            }
        }
        Ok(())
    }

    /// A library of the packages.
    fn find(&self, name: &str) -> Option<String> {
        let folders = ["usr/lib", "lib"];
        let mut all = Vec::new();
        for folder in folders {
            all.push(folder.to_owned());
            for entry in std::fs::read_dir(self.packages.join(folder)).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains("-linux-gnu") {
                    all.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
                }
            }
        }
        let found =
            all.into_iter().map(|folder| format!("{folder}/{name}")).find(|it| self.packages.join(it).exists())?;
        // Merged: `lib` is `usr/lib` here.
        Some(found.strip_prefix("lib/").map_or(found.clone(), |rest| format!("usr/lib/{rest}")))
    }
}

/// Whether a name fits; each `*` stands for any letters, or none.
fn fits(name: &str, pattern: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(name) = name.strip_prefix(begin) else { return false };
    (0..=name.len()).filter_map(|at| name.get(at..)).any(|name| fits(name, rest))
}

/// Files below a folder whose path fits a pattern; each part may have `*`.
fn matching(folder: &Path, pattern: &str) -> anyhow::Result<Vec<String>> {
    let mut found = vec![String::new()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for above in found {
            let name = |name: &str| if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
            if !part.contains('*') {
                next.extend(Some(name(part)).filter(|it| folder.join(it).exists()));
                continue;
            }
            for entry in std::fs::read_dir(folder.join(&above))? {
                let entry = entry?.file_name().to_string_lossy().into_owned();
                next.extend(fits(&entry, part).then(|| name(&entry)));
            }
        }
        found = next;
    }
    found.sort();
    Ok(found)
}

/// `DT_NEEDED`.
fn needed(elf: &object::File<'_>) -> anyhow::Result<Vec<String>> {
    /// elf(5)
    const DT_NEEDED: u64 = 1;
    let (Some(dynamic), Some(strings)) = (elf.section_by_name(".dynamic"), elf.section_by_name(".dynstr")) else {
        return Ok(Vec::new());
    };
    let (dynamic, strings) = (dynamic.data()?, strings.data()?);
    let word = if elf.is_64() { 8 } else { 4 };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    let mut names = Vec::new();
    for entry in dynamic.chunks_exact(2 * word) {
        if number(&entry[..word]) == DT_NEEDED {
            let at = usize::try_from(number(&entry[word..]))?;
            let text = strings.get(at..).unwrap_or_default().split(|&byte| byte == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(text).into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stand_for_any_letters() {
        for (name, pattern, wanted) in [
            ("rtl8192cufw.bin", "rtl8*u*", true),
            ("rtl8192.bin", "rtl8*u*", false),
            ("rtl8u", "rtl8*u*", true),
            ("a", "a", true),
            ("ab", "a", false),
            ("a", "a*", true),
            ("ab.txt", "a*.txt", true),
            ("ab.txt.bin", "a*.txt", false),
        ] {
            assert_eq!(fits(name, pattern), wanted, "{name} {pattern}");
        }
    }
}
