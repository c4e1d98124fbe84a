//! Kernel modules without kmod: which one drives a device, and in what order it is loaded.
//!
//! The image has an index of the modules that are in it, made when it is built (`cargo xtask image`):
//!
//! ```text
//! m NAME PATH [NEEDED-NAME …]     a module, and those that are loaded before it, in that order
//! a PATTERN NAME                  a pattern of device or file system names that it is for (modules.alias)
//! e NAME                          loaded at boot, whatever devices there are
//! ```
//!
//! The kernel asks for modules too, by the name of a file system, protocol or cipher: it runs the program in
//! `/proc/sys/kernel/modprobe`, which is this one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Where modules and their index are, for a kernel's release.
pub fn folder(release: &str) -> PathBuf {
    Path::new("/lib/modules").join(release)
}

/// Name of the index in that folder.
pub const INDEX: &str = "modules.coracle";

/// Longest index, in bytes: Debian's own files for all of its modules are 2 MB.
pub const MAX_INDEX: u64 = 4 * 1024 * 1024;

/// A module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    path: PathBuf,
    needs: Vec<String>,
}

/// What modules there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    modules: BTreeMap<String, Module>,
    /// Pattern and module, in the order of the file: the first that fits is not the only one.
    aliases: Vec<(String, String)>,
    early: Vec<String>,
}

/// Names are written with `-` or `_`; the kernel has `_`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

impl Index {
    /// Reads the text. Lines that are none are passed over: what they would have told is missed by whoever needs it.
    pub fn parse(text: &str) -> Self {
        let mut index = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("m"), Some(name), Some(path)) if !path.starts_with('/') && !path.contains("..") => {
                    let needs = words.map(normal).collect();
                    index.modules.insert(normal(name), Module { path: path.into(), needs });
                }
                (Some("a"), Some(pattern), Some(name)) => {
                    index.aliases.push((pattern.to_owned(), normal(name)));
                }
                (Some("e"), Some(name), None) => index.early.push(normal(name)),
                _ => {}
            }
        }
        index
    }

    /// Those that are loaded at boot.
    pub fn early(&self) -> impl Iterator<Item = &str> {
        self.early.iter().map(String::as_str)
    }

    /// Modules for a name: of a module itself, or of what it is for (`pci:v…`, `fs-ext4`, `of:N…`).
    pub fn for_name(&self, name: &str) -> Vec<&str> {
        if let Some((own, _)) = self.modules.get_key_value(&normal(name)) {
            return vec![own];
        }
        let fits = |pattern: &str| fits(pattern.as_bytes(), name.as_bytes());
        let mut found: Vec<&str> = Vec::new();
        for (_, module) in self.aliases.iter().filter(|(pattern, _)| fits(pattern)) {
            if !found.contains(&module.as_str()) {
                found.push(module);
            }
        }
        found
    }

    /// The files to load for a module, those that it needs first; `None`: it is not here.
    pub fn order(&self, name: &str) -> Option<Vec<(&str, &Path)>> {
        let (name, module) = self.modules.get_key_value(&normal(name))?;
        let needed = module.needs.iter().map(|name| self.modules.get_key_value(name));
        let all: Option<Vec<_>> = needed.chain([Some((name, module))]).collect();
        Some(all?.into_iter().map(|(name, module)| (name.as_str(), module.path.as_path())).collect())
    }
}

/// Whether a shell pattern fits a text: `*`, `?`, and sets as `[a-f]`, which is all that modules have.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`: where the pattern goes on, and how much of the text the star has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match one(&pattern[p..], text[t]) {
            Some(Step::Star) => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(Step::Letter(length)) => {
                p += length;
                t += 1;
            }
            None => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    (p, t) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&letter| letter == b'*')
}

enum Step {
    Star,
    /// The letter fits so much of the pattern.
    Letter(usize),
}

fn one(pattern: &[u8], letter: u8) -> Option<Step> {
    match pattern {
        [b'*', ..] => Some(Step::Star),
        [b'?', ..] => Some(Step::Letter(1)),
        [b'[', set @ ..] => {
            let end = set.iter().position(|&it| it == b']')?;
            let mut members = &set[..end];
            let mut found = false;
            while let Some((&first, rest)) = members.split_first() {
                let range = match rest {
                    [b'-', last, ..] => Some(*last),
                    _ => None,
                };
                found |= (first..=range.unwrap_or(first)).contains(&letter);
                members = if range.is_some() { &rest[2..] } else { rest };
            }
            found.then_some(Step::Letter(end + 2))
        }
        [own, ..] if *own == letter => Some(Step::Letter(1)),
        _ => None,
    }
}

/// Parameters of a module on the kernel's command line: `MODULE.KEY=VALUE`.
pub fn parameters(name: &str, command_line: &str) -> String {
    let own = |word: &&str| word.split_once('.').is_some_and(|(module, _)| normal(module) == name);
    let words = command_line.split_whitespace().filter(own);
    words.filter_map(|word| word.split_once('.')).map(|(_, rest)| rest).collect::<Vec<_>>().join(" ")
}

/// Loads modules, each once.
#[derive(Debug)]
pub struct Loader<'a> {
    index: &'a Index,
    folder: &'a Path,
    command_line: &'a str,
    /// Those that were tried.
    tried: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    /// Modules of `folder`.
    pub fn new(index: &'a Index, folder: &'a Path, command_line: &'a str) -> Self {
        Self { index, folder, command_line, tried: BTreeSet::new() }
    }

    /// How many it has loaded or tried.
    pub fn count(&self) -> usize {
        self.tried.len()
    }

    /// Loads all that are for a name, with what they need; how many there are.
    ///
    /// # Errors
    /// The last that could not be loaded. All were tried.
    pub fn load(&mut self, name: &str) -> io::Result<usize> {
        let modules = self.index.for_name(name);
        let mut result = Ok(modules.len());
        for module in modules {
            for (name, path) in self.index.order(module).unwrap_or_default() {
                if !self.tried.insert(name.to_owned()) {
                    continue;
                }
                if let Err(error) = load(&self.folder.join(path), &parameters(name, self.command_line)) {
                    result = Err(io::Error::new(error.kind(), format!("{name}: {error}")));
                }
            }
        }
        result
    }
}

/// Loads one file. One that is loaded already is no error.
fn load(path: &Path, parameters: &str) -> io::Result<()> {
    /// linux/module.h: the kernel unpacks it (Linux 5.17).
    const COMPRESSED: i32 = 4;
    let packed = path.extension().is_some_and(|it| it == "xz" || it == "zst" || it == "gz");
    let parameters = CString::new(parameters)?;
    let file = File::open(path)?;
    match rustix::system::finit_module(file.as_fd(), &parameters, if packed { COMPRESSED } else { 0 }) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        loaded => Ok(loaded?),
    }
}

/// Names of the devices that there are, as `modalias` files below `/sys/devices` have them (coldplug).
pub fn device_names(sys: &Path) -> BTreeSet<String> {
    /// Folders below each other: a USB device behind three hubs is at 14.
    const DEEPEST: usize = 32;
    fn walk(folder: &Path, depth: usize, names: &mut BTreeSet<String>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            // Links lead up again.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEEPEST {
                walk(&entry.path(), depth + 1, names);
            } else if kind.is_file() && entry.file_name() == "modalias" {
                let text = crate::files::read_text(entry.path(), 4096).unwrap_or_default();
                names.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
            }
        }
    }
    let mut names = BTreeSet::new();
    walk(&sys.join("devices"), 0, &mut names);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
m virtio_blk kernel/drivers/block/virtio_blk.ko.xz virtio_ring virtio
m virtio kernel/drivers/virtio/virtio.ko.xz virtio_ring
m virtio-ring kernel/drivers/virtio/virtio_ring.ko.xz
m lost kernel/lost.ko missing
m bad /etc/passwd
m worse ../x.ko
a virtio:d00000002v* virtio_blk
a fs-ext4 ext4
a virtio:d* virtio
e lost
nonsense
a onlyone
";

    #[test]
    fn a_device_is_driven_by_what_fits_its_name() {
        let index = Index::parse(TEXT);
        assert_eq!(index.for_name("virtio:d00000002v00001AF4"), ["virtio_blk", "virtio"]);
        assert_eq!(index.for_name("virtio-blk"), ["virtio_blk"]);
        assert_eq!(index.for_name("pci:v0000"), [""; 0]);
        assert_eq!(index.early().collect::<Vec<_>>(), ["lost"]);
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let index = Index::parse(TEXT);
        let names = |name: &str| {
            index.order(name).map(|all| all.into_iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names("virtio_blk").expect("it is here"), ["virtio_ring", "virtio", "virtio_blk"]);
        assert_eq!(names("lost"), None, "it needs what is not here");
        assert_eq!(names("bad"), None);
        assert_eq!(names("worse"), None);
    }

    #[test]
    fn patterns_are_those_of_the_shell() {
        for (pattern, text) in [
            ("usb:v0424pEC00d*dc*", "usb:v0424pEC00d0200dcFFdscFF"),
            ("of:N*T*Cbrcm,bcm2835-sdhost", "of:NmmcT(null)Cbrcm,bcm2835-sdhost"),
            ("cpu:type:x86,ven*fam*mod*:feature:*00[8-9A]2*", "cpu:type:x86,ven0000fam0017mod0031:feature:,0082,"),
            ("a?c", "abc"),
            ("*", ""),
        ] {
            assert!(fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [("a?c", "ac"), ("a*b", "a"), ("[a-c]", "d"), ("a", "ab"), ("[a", "a")] {
            assert!(!fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn parameters_are_on_the_command_line() {
        let line = "quiet snd-usb.index=1 snd_usb.vid=2 coracle.data=/dev/x root=/dev/y";
        assert_eq!(parameters("snd_usb", line), "index=1 vid=2");
        assert_eq!(parameters("ext4", line), "");
    }

    #[test]
    fn devices_tell_their_names() {
        let sys = tempfile::tempdir().expect("a folder");
        let device = sys.path().join("devices/pci0/0000:00:01.0");
        std::fs::create_dir_all(&device).expect("made");
        std::fs::write(device.join("modalias"), "pci:v1\n").expect("written");
        std::os::unix::fs::symlink(sys.path(), device.join("subsystem")).expect("linked");
        assert_eq!(device_names(sys.path()), BTreeSet::from(["pci:v1".to_owned()]));
    }

    proptest! {
        #[test]
        fn a_text_fits_itself_and_what_has_stars_in_it(text in "[a-z:0-9,]{0,40}", at in 0..40_usize) {
            prop_assert!(fits(text.as_bytes(), text.as_bytes()));
            let at = at.min(text.len());
            let pattern = format!("{}*{}", &text[..at], &text[(at + 3).min(text.len())..]);
            prop_assert!(fits(pattern.as_bytes(), text.as_bytes()), "{pattern}");
        }

        #[test]
        fn no_pattern_and_no_index_makes_it_panic(pattern in any::<Vec<u8>>(), text in any::<Vec<u8>>(), index in ".{0,200}") {
            fits(&pattern, &text);
            let index = Index::parse(&index);
            index.for_name("x");
        }
    }
}
