//! What is known of a container between two commands: `ROOT/ID/`, on a tmpfs where there is one.
//!
//! ```text
//! state.json   who and where; written beside and renamed
//! config.json  the configuration as it was given
//! bundle/      what libcontainer reads, and runtime/: what it writes
//! start        a FIFO: a byte lets the program run
//! report       a FIFO: says why it cannot, and ends when it runs
//! ```

use super::error::{MAX_ID, OciError, io};
use crate::container::cgroup;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Bytes of a state: names, paths and annotations, which a configuration bounds.
const MAX_STATE: u64 = 2 * super::bundle::MAX_CONFIG;

/// A container's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the specification that the configuration follows.
    pub oci_version: String,
    /// Its name.
    pub id: String,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// Annotations of the configuration.
    pub annotations: BTreeMap<String, String>,
    /// Nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// User who made it.
    pub owner: u32,
    /// Path of its cgroup.
    pub cgroup: String,
    /// The scope of systemd's that its cgroup is in.
    #[serde(default)]
    pub scope: Option<String>,
    /// The process; 0 while it is made.
    pub pid: i32,
    /// When the process began, in the kernel's ticks since boot: another one with the same number is another one.
    pub begun: u64,
    /// The program was let run.
    pub started: bool,
    /// Its configuration has a process.
    #[serde(default = "yes")]
    pub startable: bool,
    /// It has a system call filter.
    #[serde(default)]
    pub filtered: bool,
    /// The configuration's hooks, as `{"hooks": …}`, when it has some: the rest of it is read for commands alone.
    #[serde(default)]
    pub hooks: Value,
}

fn yes() -> bool {
    true
}

/// What a container is (runtime.md, State), and paused as runc has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    Creating,
    /// It waits for `start`.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Stopped,
}

impl Status {
    /// As in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl State {
    /// What it is now.
    pub fn status(&self) -> Status {
        if self.pid == 0 {
            return Status::Creating;
        }
        if begin_of(self.pid) != Some(self.begun) {
            return Status::Stopped;
        }
        if cgroup::is_frozen(&self.cgroup) {
            return Status::Paused;
        }
        if self.started { Status::Running } else { Status::Created }
    }

    /// The state document (runtime.md, State).
    pub fn document(&self, status: Status) -> Value {
        let mut document = json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status.name(),
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        document["pid"] = json!(if status == Status::Stopped { 0 } else { self.pid });
        document
    }
}

/// When a process began, `None` when it is gone or only waits to be reaped (proc(5), stat).
pub fn begin_of(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets too.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Name of the folder of compiled filters beside the containers': no container can have it.
const FILTERS: &str = "@filters";

/// The folder of a container.
#[derive(Debug, Clone)]
pub struct Home {
    /// `ROOT/ID`.
    pub folder: PathBuf,
    id: String,
}

impl Home {
    /// The folder of `id` below `root`.
    ///
    /// # Errors
    /// When it is no name.
    pub fn of(root: &Path, id: &str) -> Result<Self, OciError> {
        let good = |it: u8| it.is_ascii_alphanumeric() || b"_+-.".contains(&it);
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(good) || matches!(id, "." | "..") {
            return Err(OciError::InvalidId(crate::untrusted::one_line(id)));
        }
        Ok(Self { folder: root.join(id), id: id.to_owned() })
    }

    /// Where compiled filters are kept, for all containers.
    pub(crate) fn filters(&self) -> PathBuf {
        self.folder.with_file_name(FILTERS)
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// When it is there already.
    pub fn make(&self) -> Result<(), OciError> {
        let root = self.folder.parent().unwrap_or(&self.folder);
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(io("making", root))?;
        match std::fs::DirBuilder::new().mode(0o711).create(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(OciError::Exists(self.id.clone()))
            }
            made => made.map_err(io("making", &self.folder)),
        }
    }

    /// Held while a command changes what the container is, so that two do not.
    ///
    /// # Errors
    /// When the container is not there.
    pub fn lock(&self) -> Result<Flock<File>, OciError> {
        let file = File::open(&self.folder).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => OciError::DoesNotExist(self.id.clone()),
            _ => io("opening", &self.folder)(error),
        })?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io("locking", &self.folder)(errno.into()))
    }

    /// Reads the record.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn read(&self) -> Result<State, OciError> {
        let path = self.folder.join("state.json");
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_STATE).read_to_end(&mut text)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(OciError::DoesNotExist(self.id.clone()));
            }
            read => read.map_err(io("reading", &path))?,
        };
        serde_json::from_slice(&text).map_err(|error| OciError::Unreadable { path, reason: error.to_string() })
    }

    /// Writes the record, old or new.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, state: &State) -> Result<(), OciError> {
        self.write_file("state.json", &serde_json::to_vec(state).unwrap_or_default())
    }

    /// Writes a file of the folder.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_file(&self, name: &str, content: &[u8]) -> Result<(), OciError> {
        let (beside, path) = (self.folder.join(format!("{name}.new")), self.folder.join(name));
        std::fs::write(&beside, content).map_err(io("writing", &beside))?;
        std::fs::rename(&beside, &path).map_err(io("writing", &path))
    }

    /// The configuration as it was given.
    ///
    /// # Errors
    /// When it is gone.
    pub fn config(&self) -> Result<Value, OciError> {
        let path = self.folder.join("config.json");
        let text = std::fs::read(&path).map_err(io("reading", &path))?;
        serde_json::from_slice(&text).map_err(|error| OciError::Unreadable { path, reason: error.to_string() })
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// As the file system says.
    pub fn remove(&self) -> Result<(), OciError> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("removing", &self.folder)(error)),
            _ => Ok(()),
        }
    }
}

/// All containers below `root`, by name. One that cannot be read is left out.
///
/// # Errors
/// When the folder cannot be read; none is no error.
pub fn list(root: &Path) -> Result<Vec<State>, OciError> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("reading", root))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut states: Vec<State> = names.filter_map(|name| Home::of(root, &name).ok()?.read().ok()).collect();
    states.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(MAX_ID + 1)] {
            assert!(matches!(Home::of(Path::new("/r"), bad), Err(OciError::InvalidId(_))), "{bad}");
        }
        assert_eq!(Home::of(Path::new("/r"), "a_b+c-d.e").expect("a name").folder, Path::new("/r/a_b+c-d.e"));
    }

    #[test]
    fn a_process_is_known_by_its_begin_too() {
        let own = std::process::id() as i32;
        let begun = begin_of(own).expect("it runs");
        let state = State {
            oci_version: "1.2.0".to_owned(),
            id: "a".to_owned(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            annotations: BTreeMap::new(),
            created_unix_ns: 0,
            owner: 0,
            cgroup: "/no-such-cgroup".to_owned(),
            scope: None,
            pid: own,
            begun,
            started: true,
            startable: true,
            filtered: false,
            hooks: Value::Null,
        };
        assert_eq!(state.status(), Status::Running);
        assert_eq!(State { begun: begun + 1, ..state.clone() }.status(), Status::Stopped);
        assert_eq!(State { started: false, ..state.clone() }.status(), Status::Created);
        assert_eq!(State { pid: 0, ..state }.status(), Status::Creating);
    }

    #[test]
    fn a_folder_is_made_once_and_its_record_is_read_back() {
        let root = tempfile::tempdir().expect("a folder");
        let home = Home::of(root.path(), "a").expect("a name");
        assert!(matches!(home.read(), Err(OciError::DoesNotExist(_))));
        home.make().expect("made");
        assert!(matches!(home.make(), Err(OciError::Exists(_))));
        assert!(list(root.path()).expect("listed").is_empty(), "without a record it is none yet");
    }
}
