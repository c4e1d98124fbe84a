//! Where the kernel's cgroup hierarchies are mounted: one for everything (v2), or several with some controllers each.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// v1 controllers that a container has a cgroup in.
const V1_CONTROLLERS: &[&str] = &[
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "net_cls", "net_prio", "perf_event",
    "pids",
];

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Mount point.
    pub mount: PathBuf,
    /// Names of its v1 controllers; empty: this is the unified hierarchy.
    pub controllers: Vec<String>,
}

/// The mounted hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// In the order of their mounting.
    pub all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// From the text of `/proc/self/mountinfo` (proc(5)).
    pub fn parse(mountinfo: &[u8]) -> Self {
        let all = mountinfo.split(|&byte| byte == b'\n').filter_map(hierarchy).collect();
        Self { all }
    }

    /// As mounted now.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn read() -> std::io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// The unified hierarchy, when it is the one with the controllers: not the empty one beside those of v1.
    pub fn unified(&self) -> Option<&Path> {
        let v1 = self.v1().next().is_some();
        self.all.iter().find(|it| it.controllers.is_empty() && !v1).map(|it| it.mount.as_path())
    }

    /// Hierarchies of v1 with controllers that matter to a container.
    pub fn v1(&self) -> impl Iterator<Item = &Hierarchy> {
        self.all.iter().filter(|it| !it.controllers.is_empty())
    }

    /// The mount point of a v1 controller.
    pub fn of_controller(&self, controller: &str) -> Option<&Path> {
        self.v1().find(|it| it.controllers.iter().any(|name| name == controller)).map(|it| it.mount.as_path())
    }
}

/// `36 35 98:0 /root /mount options fields - type source super-options`
fn hierarchy(line: &[u8]) -> Option<Hierarchy> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mount = unescape(fields.nth(4)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
    let controllers = match kind {
        b"cgroup2" => Vec::new(),
        b"cgroup" => {
            let options = String::from_utf8_lossy(options);
            let known: Vec<String> =
                options.split(',').filter(|name| V1_CONTROLLERS.contains(name)).map(str::to_owned).collect();
            // A named hierarchy without controllers is its owner's affair.
            (!known.is_empty()).then_some(known)?
        }
        _ => return None,
    };
    Some(Hierarchy { mount: PathBuf::from(OsString::from_vec(mount)), controllers })
}

/// Spaces and the like are written as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_is_v1_and_its_named_and_unified_hierarchies_are_left_alone() {
        let text = b"30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct\n\
            34 30 0:30 / /my\\040cgroups/memory rw - cgroup none rw,memory\n";
        let found = Hierarchies::parse(text);
        assert_eq!(found.unified(), None);
        assert_eq!(found.v1().count(), 2);
        assert_eq!(found.of_controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.of_controller("memory"), Some(Path::new("/my cgroups/memory")));
        assert_eq!(found.of_controller("pids"), None);
    }

    #[test]
    fn alone_the_unified_hierarchy_has_the_controllers() {
        let found = Hierarchies::parse(b"31 30 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 none rw,nsdelegate\n");
        assert_eq!(found.unified(), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(found.v1().count(), 0);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Hierarchies::parse(&bytes);
        }
    }
}
