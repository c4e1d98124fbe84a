//! `self-update`: another program for agent and shim of a board, without a reboot, and without a stop of what runs.
//!
//! The program lies on the data partition; the image's own stays as it is. The first process starts the agent from there
//! and goes back to the image's when it fails again and again; the agent takes the shim along.

use super::options::Options;
use super::{Done, Failed};
use crate::control::Agent;
use crate::exit::Code;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of a program; ours has 6 MiB.
const MAX_PROGRAM: u64 = 64 << 20;

/// For saying its version, on a slow board with a slow card.
const LONGEST_VERSION: Duration = Duration::from_secs(20);

/// Until the agent answers again: it ends, starts, and takes the shim along.
const LONGEST_START: Duration = Duration::from_secs(90);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Bytes of what it says of itself.
const MAX_VERSION: u64 = 256;

pub fn self_update(options: &Options) -> Done {
    let program = Path::new(coracle_init::RELEASED);
    if !Path::new(coracle_init::LACKS).exists() {
        let reason = "no board with an image of ours: put the program where the old one is, and restart the agent";
        return Err(Failed::new(Code::Configuration, reason));
    }
    let version = match options.rest.as_slice() {
        [file] if !options.own => Some(take(Path::new(file), program)?),
        [] if options.own => {
            put_aside(program)?;
            None
        }
        _ => return Err(Failed::new(Code::Configuration, "self-update takes one FILE, or --own")),
    };
    let before = Agent::status(&options.paths).map(|status| status.pid).unwrap_or_default();
    kill(Pid::from_raw(1), Signal::SIGHUP).map_err(std::io::Error::from)?;
    let begun = Instant::now();
    loop {
        std::thread::sleep(LOOK_AGAIN);
        let now = Agent::status(&options.paths).map(|status| status.pid).unwrap_or_default();
        if now != 0 && now != before && is_released(now, program) == version.is_some() {
            say!("the agent is {} now", version.as_deref().unwrap_or("the image's own"));
            return Ok(Code::Done);
        }
        if version.is_some() && !program.exists() {
            let reason = "it failed again and again, and the image's own program is in its place again";
            return Err(Failed::new(Code::Internal, reason));
        }
        if begun.elapsed() > LONGEST_START {
            let reason = "the agent did not come up as that program; the kernel's log has what it said";
            return Err(Failed::new(Code::Internal, reason));
        }
    }
}

/// Puts a program in its place, once it has run here; what it says of itself.
fn take(file: &Path, program: &Path) -> Result<String, Failed> {
    let folder = program.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let beside = program.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let taken = copy(file, &beside).and_then(|()| version(&beside));
    let version = taken.inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
    std::fs::rename(&beside, program)?;
    File::open(folder)?.sync_all()?;
    Ok(version)
}

fn copy(from: &Path, to: &Path) -> Result<(), Failed> {
    let named = |error: std::io::Error| Failed::new(Code::Configuration, format!("{}: {error}", from.display()));
    let source = File::open(from).map_err(named)?;
    let length = source.metadata().map_err(named)?.len();
    if length > MAX_PROGRAM {
        let reason = format!("{}: {length} bytes, and a program has {MAX_PROGRAM} at most", from.display());
        return Err(Failed::new(Code::Configuration, reason));
    }
    let mut target = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(to)?;
    std::io::copy(&mut source.take(MAX_PROGRAM), &mut target)?;
    Ok(target.sync_all()?)
}

/// Runs it, so that one for another processor, or none of ours, is refused before anything is stopped.
fn version(program: &Path) -> Result<String, Failed> {
    let refused = |reason: String| Failed::new(Code::Configuration, format!("it is no program of ours: {reason}"));
    let mut command = Command::new(program);
    command.arg("version").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| refused(error.to_string()))?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if begun.elapsed() > LONGEST_VERSION => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(refused("it does not say its version".to_owned()));
            }
            None => std::thread::sleep(LOOK_AGAIN / 10),
        }
    };
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        let _ = output.take(MAX_VERSION).read_to_string(&mut said);
    }
    let said = said.trim();
    match status.success() && said.starts_with("coracle ") && !said.contains(|it: char| it.is_control()) {
        true => Ok(said.to_owned()),
        false => Err(refused(format!("asked for its version, it ended with {status}"))),
    }
}

/// The image's own counts again.
fn put_aside(program: &Path) -> Result<(), Failed> {
    match std::fs::remove_file(program) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed?;
            Ok(File::open(program.parent().unwrap_or(Path::new("/")))?.sync_all()?)
        }
    }
}

fn is_released(pid: u32, program: &Path) -> bool {
    let place = |path: &Path| std::fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    let runs = place(Path::new(&format!("/proc/{pid}/exe")));
    runs.is_some() && runs == place(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, text: &str) -> std::path::PathBuf {
        let path = folder.join("script");
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Another test's child may have the file open for a moment, as its parent had.
    fn tried(file: &Path, program: &Path) -> Result<String, Failed> {
        loop {
            match take(file, program) {
                Err(failed) if failed.message.contains("busy") => {}
                taken => return taken,
            }
        }
    }

    #[test]
    fn a_program_that_does_not_say_what_it_is_is_refused_and_nothing_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program/coracle");
        for (bad, told) in [
            ("#!/bin/sh\necho busybox 1\n", "it ended with exit status: 0"),
            ("#!/bin/sh\necho coracle 2; exit 3\n", "exit status: 3"),
            ("\x7fELF of another processor", "it is no program of ours"),
            ("", "it is no program of ours"),
        ] {
            let Err(failed) = tried(&script(folder.path(), bad), &program) else { panic!("{bad} was taken") };
            assert!(failed.message.contains(told), "{}", failed.message);
            assert_eq!(std::fs::read_dir(folder.path().join("program")).expect("listed").count(), 0);
        }
        let Err(failed) = take(&folder.path().join("none"), &program) else { panic!("nothing was taken") };
        assert!(failed.message.contains("none: "), "{}", failed.message);
    }

    #[test]
    fn one_that_does_takes_the_place_of_the_last_and_is_put_aside_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program/coracle");
        for number in 1..3 {
            let good = script(folder.path(), &format!("#!/bin/sh\necho coracle {number}\n"));
            let Ok(version) = tried(&good, &program) else { panic!("it was refused") };
            assert_eq!(version, format!("coracle {number}"));
        }
        assert!(std::fs::read_to_string(&program).expect("there").contains("coracle 2"));
        assert!(put_aside(&program).is_ok() && put_aside(&program).is_ok() && !program.exists());
    }
}
