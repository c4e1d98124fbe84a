//! `--systemd-cgroup`: the container's cgroup in a scope of systemd's.
//!
//! Where systemd is the first process the cgroups are its own, and who wants a part of them asks it
//! (<https://systemd.io/CGROUP_DELEGATION/>). It hands over what is *below* the scope's folder, so the container has a
//! cgroup of its own in there, and its limits are nobody else's to change (`systemctl daemon-reload` writes those of the
//! scope itself anew).
//!
//! ```text
//! SLICE/UNIT.scope/begin       a placeholder, until the container is made: a scope begins with a process
//! SLICE/UNIT.scope/container   the container
//! ```
//!
//! **Invariant.** A scope ends by itself when nothing runs in it, so one that is forgotten leaves nothing behind.

mod message;

use super::error::{OciError, errno, io};
use crate::container::cgroup;
use crate::sys;
use message::{HEAD, Head, Refusal, Value};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getppid};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where systemd speaks with root (systemctl(1) does it so).
const SOCKET: &str = "/run/systemd/private";

/// There where systemd is the first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// The container's cgroup in the scope.
const CONTAINER: &str = "container";

/// The placeholder's.
const BEGIN: &str = "begin";

/// How long systemd is waited for, as in runc: a machine that starts many services at once is slow.
const LONGEST: Duration = Duration::from_secs(30);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a scope of the same name is waited for that is about to go.
const GOING: Duration = Duration::from_secs(2);

/// Bytes of a unit's name (systemd.unit(5)).
const MAX_UNIT: usize = 255;

/// Bytes of what the placeholder says: written and read at once (pipe(7), `PIPE_BUF`).
const MAX_WORD: usize = 4096;

/// Annotations that set properties of the scope, in the form that runc takes.
const PROPERTY: &str = "org.systemd.property.";

/// Properties that are not for a configuration to set.
const OURS: &[&str] = &["CollectMode", "Delegate", "PIDs", "Slice"];

/// A scope that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    unit: String,
    properties: Vec<(String, Value)>,
}

impl Wanted {
    /// From `linux.cgroupsPath`, which is `SLICE:PREFIX:NAME` here, and the annotations.
    ///
    /// # Errors
    /// The field that is refused, and why.
    pub fn parse(
        path: Option<&Path>,
        id: &str,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<Self, OciError> {
        let refused = |reason: String| OciError::Refused { field: "linux.cgroupsPath".to_owned(), reason };
        let ours = PathBuf::from(format!(":coracle:{id}"));
        let text = path.filter(|path| !path.as_os_str().is_empty()).unwrap_or(&ours).to_string_lossy();
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            let form = "SLICE:PREFIX:NAME (system.slice:engine:name)";
            return Err(refused(format!("{text:?}: with --systemd-cgroup it has the form {form}")));
        };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        if !is_slice(slice) {
            return Err(refused(format!("{slice:?} is no name of a slice (a-b.slice)")));
        }
        if name.ends_with(".slice") {
            return Err(refused(format!("{name:?} is a slice, where no processes can be")));
        }
        let dash = if prefix.is_empty() { "" } else { "-" };
        let unit = format!("{prefix}{dash}{name}.scope");
        if name.is_empty() || unit.len() > MAX_UNIT || !unit.bytes().all(is_letter) {
            let rule = "letters, digits and `:_.-@\\` are taken";
            return Err(refused(format!("{unit:?} is no name of a unit: {rule}, {MAX_UNIT} at most")));
        }
        let text = |text: &str| Value::Text(text.to_owned());
        let mut properties = BTreeMap::from([
            ("CollectMode".to_owned(), text("inactive-or-failed")),
            ("DefaultDependencies".to_owned(), Value::Flag(false)),
            ("Delegate".to_owned(), Value::Flag(true)),
            ("Description".to_owned(), Value::Text(format!("container {id}"))),
            ("Slice".to_owned(), text(slice)),
        ]);
        for (key, value) in annotations.into_iter().flatten() {
            if let Some(name) = key.strip_prefix(PROPERTY) {
                let (name, value) = property(name, value).map_err(|reason| OciError::Refused {
                    field: format!("annotations.{}", crate::untrusted::one_line(key)),
                    reason,
                })?;
                properties.insert(name, value);
            }
        }
        Ok(Self { unit, properties: properties.into_iter().collect() })
    }

    /// Asks systemd for it.
    ///
    /// # Errors
    /// When systemd is not there, or does not make it.
    pub fn make(&self) -> Result<Scope, OciError> {
        let failed = |reason: String| OciError::Usage(format!("--systemd-cgroup: {}: {reason}", self.unit));
        if !Path::new(BOOTED).exists() {
            return Err(failed(format!("systemd is not the first process here: there is no {BOOTED}")));
        }
        if !cgroup::is_v2() {
            return Err(failed("cgroup v1 is mounted; without this option it works there".to_owned()));
        }
        let (heard, say) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(errno("making a pipe"))?;
        let parent = nix::unistd::getpid();
        let child = sys::fork_worker(|| {
            // Signals to the command's group are not for it. And it outlives the command until the scope has begun: of
            // a process that is about to end systemd makes a scope that was never filled, and so never ends.
            let _ = nix::unistd::setsid();
            let held = self.hold();
            let _ = nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL));
            let (good, word) = match held {
                Ok(cgroup) => (b'+', cgroup),
                Err(reason) => (b'-', reason),
            };
            let mut word = [&[good], word.as_bytes()].concat();
            word.truncate(MAX_WORD);
            let told = nix::unistd::write(&say, &word);
            // For a command that ended before the signal of its end was asked for, nothing is held.
            while good == b'+' && told.is_ok() && getppid() == parent {
                nix::unistd::pause();
            }
            0
        })
        .map_err(errno("forking"))?;
        drop(say);
        let mut scope = Scope { unit: self.unit.clone(), cgroup: String::new(), placeholder: child };
        let mut word = [0; MAX_WORD];
        let count = File::from(heard).read(&mut word).map_err(io("hearing of", Path::new(&self.unit)))?;
        match word[..count].split_first() {
            Some((b'+', cgroup)) => {
                scope.cgroup = String::from_utf8_lossy(cgroup).into_owned();
                Ok(scope)
            }
            Some((_, reason)) => Err(failed(String::from_utf8_lossy(reason).into_owned())),
            None => Err(failed("who was to begin it ended without a word".to_owned())),
        }
    }

    /// Begins the scope with this process; its cgroup.
    fn hold(&self) -> Result<String, String> {
        let mut properties = self.properties.clone();
        properties.push(("PIDs".to_owned(), Value::Pids(vec![std::process::id()])));
        let call = message::start_transient_unit(&self.unit, &properties);
        let begun = Instant::now();
        loop {
            match ask(&call).map_err(|error| format!("asking systemd ({SOCKET}): {error}"))? {
                Ok(()) => break,
                // A container of this name was here a moment ago.
                Err(refusal) if refusal.name.ends_with(".UnitExists") && begun.elapsed() < GOING => {
                    std::thread::sleep(PAUSE);
                }
                Err(refusal) => return Err(format!("systemd does not make it: {}", refusal.reason)),
            }
        }
        let cgroup = loop {
            // Moved by systemd, and into what it says itself.
            let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
            let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
            if own.rsplit('/').next() == Some(&self.unit) {
                break own.to_owned();
            }
            if begun.elapsed() > LONGEST {
                return Err(format!("systemd has not made it after {} s", LONGEST.as_secs()));
            }
            std::thread::sleep(PAUSE);
        };
        // Aside: controllers are handed down only from a cgroup without processes.
        let aside = cgroup::controller(&cgroup, BEGIN).join(BEGIN);
        // One can be left of a scope before (`wait_until_gone`).
        std::fs::create_dir_all(&aside)
            .and_then(|()| std::fs::write(aside.join("cgroup.procs"), "0"))
            .map_err(|error| format!("{}: {error}", aside.display()))?;
        Ok(cgroup)
    }
}

/// Slices are named by the way to them: `a-b.slice` is in `a.slice`; `-.slice` is the root (systemd.slice(5)).
fn is_slice(name: &str) -> bool {
    let Some(way) = name.strip_suffix(".slice") else { return false };
    name.len() <= MAX_UNIT
        && name.bytes().all(is_letter)
        && (way == "-" || way.split('-').all(|part| !part.is_empty()))
}

/// Letters of a unit's name (systemd.unit(5)).
fn is_letter(letter: u8) -> bool {
    letter.is_ascii_alphanumeric() || b":_.-@\\".contains(&letter)
}

/// A property from an annotation: a value as GVariant writes it.
fn property(name: &str, text: &str) -> Result<(String, Value), String> {
    if name.len() > MAX_UNIT || name.is_empty() || !name.bytes().all(|it| it.is_ascii_alphabetic()) {
        return Err("is no name of a property".to_owned());
    }
    if OURS.contains(&name) {
        return Err("is set by the runtime".to_owned());
    }
    let value = value(text.trim()).ok_or_else(|| {
        format!(
            "{}: true, false, a number (uint32, int64, uint64 before it) or a text in quotes is taken",
            crate::untrusted::one_line(text)
        )
    })?;
    // systemd has times in microseconds; runc takes seconds for those names that unit files have.
    match (name.strip_suffix("Sec"), value) {
        (Some(stem), value) if !name.ends_with("USec") => {
            let seconds = match value {
                Value::I32(number) => u64::try_from(number).ok(),
                Value::U32(number) => Some(number.into()),
                Value::I64(number) => u64::try_from(number).ok(),
                Value::U64(number) => Some(number),
                _ => None,
            };
            let microseconds = seconds.and_then(|it| it.checked_mul(1_000_000));
            let microseconds = microseconds.ok_or_else(|| format!("{text}: seconds are wanted"))?;
            Ok((format!("{stem}USec"), Value::U64(microseconds)))
        }
        (_, value) => Ok((name.to_owned(), value)),
    }
}

fn value(text: &str) -> Option<Value> {
    let quoted = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(inside) = quoted('\'').or_else(|| quoted('"')) {
        let plain = !inside.contains(['\'', '"', '\\', '\0']);
        return plain.then(|| Value::Text(inside.to_owned()));
    }
    match text.split_once(' ') {
        None if text == "true" => Some(Value::Flag(true)),
        None if text == "false" => Some(Value::Flag(false)),
        None => text.parse().ok().map(Value::I32),
        Some(("int32", number)) => number.parse().ok().map(Value::I32),
        Some(("uint32", number)) => number.parse().ok().map(Value::U32),
        Some(("int64", number)) => number.parse().ok().map(Value::I64),
        Some(("uint64", number)) => number.parse().ok().map(Value::U64),
        Some(_) => None,
    }
}

/// Says one thing to systemd and hears what it says to it.
fn ask(call: &[u8]) -> std::io::Result<Result<(), Refusal>> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut socket = UnixStream::connect(SOCKET)?;
    socket.set_read_timeout(Some(LONGEST))?;
    socket.set_write_timeout(Some(LONGEST))?;
    // "Authentication protocol": who we are the kernel tells; 30 is the number 0, root, in hexadecimal letters.
    socket.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.extend(byte);
        if line.len() > MAX_WORD {
            return Err(invalid("it says no word"));
        }
    }
    if !line.starts_with(b"OK ") {
        return Err(invalid("it does not know who asks"));
    }
    socket.write_all(call)?;
    loop {
        let mut head = [0; HEAD];
        socket.read_exact(&mut head)?;
        let head = Head::parse(&head).ok_or_else(|| invalid("what it says is no message"))?;
        let mut rest = vec![0; head.rest];
        socket.read_exact(&mut rest)?;
        if let Some(answer) = head.answer(&rest) {
            return Ok(answer);
        }
    }
}

/// A scope that has begun. It goes on as long as something runs in it; this holds it until there is.
#[derive(Debug)]
pub struct Scope {
    unit: String,
    /// The scope's own cgroup.
    cgroup: String,
    placeholder: Pid,
}

impl Scope {
    /// The cgroup that the container is to have.
    pub fn container(&self) -> String {
        format!("{}/{CONTAINER}", self.cgroup)
    }

    /// Its cgroup, above which all is systemd's.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = kill(self.placeholder, Signal::SIGKILL);
        while waitpid(self.placeholder, None) == Err(nix::errno::Errno::EINTR) {}
        if !self.cgroup.is_empty() {
            let folder = cgroup::controller(&self.cgroup, BEGIN).join(BEGIN);
            if let Err(error) = std::fs::remove_dir(&folder) {
                tracing::debug!(unit = self.unit, %error, "the placeholder's cgroup stays until the scope ends");
            }
        }
    }
}

/// Waits until systemd has removed the scope of a container that was removed, so that its name is free. Bounded.
///
/// systemd tries once: a folder that goes away below it at that moment makes it leave the rest, and forget it.
pub fn wait_until_gone(scope: &str) {
    let folder = cgroup::controller(scope, "");
    let begun = Instant::now();
    while folder.exists() {
        // The placeholder's is ours. A cgroup with a process in it is not removed by this.
        let _ = std::fs::remove_dir(folder.join(BEGIN));
        if begun.elapsed() > GOING {
            if let Err(error) = std::fs::remove_dir(&folder) {
                tracing::warn!(scope, %error, "systemd has not removed it yet");
            }
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<(String, String), String> {
        let wanted = Wanted::parse(Some(Path::new(path)), "c1", None).map_err(|error| error.to_string())?;
        let slice = wanted.properties.iter().find(|(name, _)| name == "Slice").expect("a slice");
        let Value::Text(slice) = &slice.1 else { panic!("{slice:?}") };
        Ok((wanted.unit.clone(), slice.clone()))
    }

    #[test]
    fn a_path_names_a_slice_and_a_scope() {
        let names = |unit: &str, slice: &str| Ok((unit.to_owned(), slice.to_owned()));
        assert_eq!(parse("machine.slice:libpod:0a"), names("libpod-0a.scope", "machine.slice"));
        assert_eq!(parse("a-b.slice::x"), names("x.scope", "a-b.slice"));
        assert_eq!(parse("-.slice:p:x"), names("p-x.scope", "-.slice"));
        assert_eq!(parse("::x"), names("x.scope", "system.slice"));
        assert_eq!(parse(""), names("coracle-c1.scope", "system.slice"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "/a/b", "a:b", "a:b:c:d", "machine:p:x", "a--b.slice:p:x", "a/b.slice:p:x", "..slice:p:",
            "s.slice:p:", "s.slice:p:a/b", "s.slice:p:a b", "s.slice:p:x.slice",
        ] {
            let said = parse(bad).expect_err(bad);
            assert!(said.starts_with("config.json: linux.cgroupsPath: "), "{bad}: {said}");
        }
        assert!(parse(&format!("s.slice:p:{}", "x".repeat(250))).is_err());
    }

    #[test]
    fn annotations_set_properties_of_the_scope() {
        let read = |name: &str, text: &str| property(name, text).ok();
        let is = |name: &str, value: Value| Some((name.to_owned(), value));
        assert_eq!(read("KillSignal", "37"), is("KillSignal", Value::I32(37)));
        assert_eq!(read("TimeoutStopUSec", "uint64 10000000"), is("TimeoutStopUSec", Value::U64(10_000_000)));
        assert_eq!(read("TimeoutStopSec", "10"), is("TimeoutStopUSec", Value::U64(10_000_000)));
        assert_eq!(read("Documentation", "'man:a'"), is("Documentation", Value::Text("man:a".to_owned())));
        assert_eq!(read("SendSIGHUP", "true"), is("SendSIGHUP", Value::Flag(true)));
        for (name, text) in [
            ("PIDs", "1"),
            ("Slice", "'a.slice'"),
            ("a b", "1"),
            ("", "1"),
            ("KillSignal", "[1]"),
            ("KillSignal", "byte 1"),
            ("X", "'a'b'"),
            ("TimeoutStopSec", "-1"),
            ("TimeoutStopSec", "'a'"),
        ] {
            assert_eq!(read(name, text), None, "{name} {text}");
        }
    }

    #[test]
    fn without_systemd_it_says_so() {
        if Path::new(BOOTED).exists() {
            println!("skipped: systemd is the first process here");
            return;
        }
        let error = Wanted::parse(None, "c1", None).and_then(|it| it.make()).expect_err("no systemd").to_string();
        assert!(error.contains("systemd is not the first process here"), "{error}");
    }
}
