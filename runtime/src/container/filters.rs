//! System call filters for processes: the default's are part of this program, those of profiles are compiled once and
//! kept in a folder by what they were made from.

use super::spec::{ProcessSpec, Seccomp};
use crate::seccomp::{self, Arch, Filter, Instruction, MAX_INSTRUCTIONS, Reader};
use serde_json::Value;
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Programs that are kept: a device has a few profiles, and each program may be 32 KiB of memory.
const MAX_KEPT: usize = 16;

/// Bytes of an instruction in a file, as in `struct sock_filter`.
const INSTRUCTION: usize = 8;

/// Filters of one folder, which is root's alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filters<'a> {
    /// Where they are kept; made when the folder around it is there.
    pub folder: &'a Path,
}

impl Filters<'_> {
    /// What a service's process gets; `None`: nothing.
    ///
    /// # Errors
    /// What its profile has wrong, one line.
    pub fn of(&self, process: &ProcessSpec) -> Result<Option<Filter>, String> {
        let capabilities: Vec<&str> = process.granted().iter().map(String::as_str).collect();
        match &process.seccomp {
            Seccomp::Unconfined => Ok(None),
            Seccomp::Default => {
                known_arches()?;
                seccomp::default_filter(&capabilities).map(Some).map_err(|error| error.to_string())
            }
            Seccomp::Profile(text) => self.get(text, &capabilities, false, |reader| reader.read(text)).map(Some),
        }
    }

    /// The filter of a document in the form of the OCI specification's; `notify`: somebody answers for calls that it
    /// leaves to them.
    ///
    /// # Errors
    /// The field and why, one line.
    pub fn of_document(&self, document: &Value, capabilities: &[&str], notify: bool) -> Result<Filter, String> {
        self.get(&document.to_string(), capabilities, notify, |reader| reader.read_value(document))
    }

    fn get(
        &self,
        text: &str,
        capabilities: &[&str],
        notify: bool,
        read: impl FnOnce(&Reader<'_>) -> Result<(seccomp::Profile, Vec<Arch>), String>,
    ) -> Result<Filter, String> {
        let reader = Reader { capabilities, kernel: kernel_version(), arches: known_arches()?, notify };
        let path = self.folder.join(name(text, &reader));
        if let Some(filter) = load(&path) {
            return Ok(filter);
        }
        let (profile, arches) = read(&reader)?;
        let filter = Filter::of(&profile, &arches).map_err(|error| error.to_string())?;
        if let Err(error) = self.keep(&path, &filter) {
            // It is made again next time.
            tracing::debug!(path = %path.display(), %error, "the filter is not kept");
        }
        Ok(filter)
    }

    /// Whole or not at all. The file system is in memory: after a power cut nothing is there.
    fn keep(&self, path: &Path, filter: &Filter) -> std::io::Result<()> {
        match DirBuilder::new().mode(0o700).create(self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let kept: Vec<PathBuf> = std::fs::read_dir(self.folder)?.flatten().map(|entry| entry.path()).collect();
        if kept.len() >= MAX_KEPT {
            // Profiles that changed so often are being written just now.
            for old in kept {
                let _ = std::fs::remove_file(old);
            }
        }
        let beside = self.folder.join(format!("new-{}", std::process::id()));
        std::fs::write(&beside, encode(filter))?;
        std::fs::rename(&beside, path)
    }
}

/// Named by everything that decides what the program is.
fn name(text: &str, reader: &Reader<'_>) -> String {
    let (major, minor) = reader.kernel;
    let arches: Vec<u32> = reader.arches.iter().map(|arch| arch.token()).collect();
    let capabilities = reader.capabilities.join(" ");
    let compiler = env!("CORACLE_FILTER_COMPILER");
    let notify = reader.notify;
    let named = format!("{compiler} {major}.{minor} {arches:x?} {notify} {capabilities}\0{text}");
    crate::image::digest_of(named.as_bytes()).trim_start_matches("sha256:").to_owned()
}

fn encode(filter: &Filter) -> Vec<u8> {
    let mut bytes = vec![u8::from(filter.log) | u8::from(filter.notify) << 1];
    for it in filter.program.iter() {
        bytes.extend(it.code.to_le_bytes());
        bytes.extend([it.jump_true, it.jump_false]);
        bytes.extend(it.operand.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Filter> {
    let (&flags, program) = bytes.split_first()?;
    if flags > 3 || program.is_empty() || program.len() % INSTRUCTION != 0 {
        return None;
    }
    let instruction = |it: &[u8]| {
        let &[code_low, code_high, jump_true, jump_false, a, b, c, d] = it else { return None };
        let code = u16::from_le_bytes([code_low, code_high]);
        Some(Instruction { code, jump_true, jump_false, operand: u32::from_le_bytes([a, b, c, d]) })
    };
    let program: Option<Vec<Instruction>> = program.chunks_exact(INSTRUCTION).map(instruction).collect();
    Some(Filter { program: program?.into(), log: flags & 1 != 0, notify: flags & 2 != 0 })
}

/// `None` when it is not there, or not of the form of one.
fn load(path: &Path) -> Option<Filter> {
    let mut bytes = Vec::new();
    let most = 1 + MAX_INSTRUCTIONS * INSTRUCTION;
    File::open(path).ok()?.take(most as u64 + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() > most { None } else { decode(&bytes) }
}

fn known_arches() -> Result<&'static [Arch], String> {
    let arches = Arch::of_this_machine();
    match arches.is_empty() {
        true => {
            Err("the system calls of this processor are not known: leave it out (seccomp=unconfined)".to_owned())
        }
        false => Ok(arches),
    }
}

/// Major and minor version of this kernel; 0.0 when it says something else.
fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map_while(|it| it.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn profile(call: &str) -> Value {
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{ "names": [call], "action": "SCMP_ACT_ERRNO" },
                             { "names": ["reboot"], "action": "SCMP_ACT_KILL", "includes": { "caps": ["CAP_SYS_BOOT"] } }] })
    }

    fn count(folder: &Path) -> usize {
        std::fs::read_dir(folder).map_or(0, |entries| entries.count())
    }

    #[test]
    fn a_profile_is_compiled_once_and_what_is_kept_is_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("filters");
        let filters = Filters { folder: &path };
        let first = filters.of_document(&profile("chroot"), &["CHOWN"], false).expect("a filter");
        let unread = |_: &Reader<'_>| Err("is not read again".to_owned());
        let again = filters.get(&profile("chroot").to_string(), &["CHOWN"], false, unread).expect("kept");
        assert_eq!(again, first);
        assert!(again.log);
        let other = filters.of_document(&profile("chroot"), &["SYS_BOOT"], false).expect("a filter");
        assert_ne!(other, first, "other capabilities, another program");
        filters.of_document(&profile("mount"), &["CHOWN"], false).expect("a filter");
        assert_eq!(count(&path), 3);
        let left = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] });
        assert!(filters.of_document(&left, &[], true).is_ok_and(|filter| filter.notify));
        assert!(filters.of_document(&left, &[], true).is_ok_and(|filter| filter.notify), "kept as such");
        let nobody = filters.of_document(&left, &[], false).expect_err("nobody answers");
        assert!(nobody.starts_with("syscalls[0].action"), "{nobody}");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_broken_is_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let filters = Filters { folder: folder.path() };
        let errnos = |number: usize| {
            let rules = json!([{ "names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": number }]);
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules })
        };
        for number in 0..3 * MAX_KEPT {
            filters.of_document(&errnos(number), &[], false).expect("a filter");
            assert!(count(folder.path()) <= MAX_KEPT);
        }
        let whole = filters.of_document(&errnos(0), &[], false).expect("a filter");
        for entry in std::fs::read_dir(folder.path()).expect("read").flatten() {
            std::fs::write(entry.path(), "no program").expect("written");
        }
        assert_eq!(filters.of_document(&errnos(0), &[], false).expect("a filter"), whole);
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0; 8]), None);
        assert_eq!(decode(&[4; 9]), None);
    }

    #[test]
    fn without_a_place_to_keep_them_they_are_made_each_time() {
        let filters = Filters { folder: Path::new("/proc/none") };
        assert!(filters.of_document(&profile("chroot"), &[], false).is_ok());
        assert!(filters.of_document(&json!({ "defaultAction": "?" }), &[], false).is_err());
    }
}
