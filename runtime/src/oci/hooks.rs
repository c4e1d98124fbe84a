//! Hooks of a container (runtime-spec config.md, POSIX-platform Hooks): programs of the engine's at six moments.
//!
//! Each gets the state on its standard input, and is killed with all that it started when its time is up.

use super::error::OciError;
use super::state::Status;
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds of a hook that sets no limit: engines' hooks are done in moments, and one that hangs would hold the start
/// for ever.
const DEFAULT_LIMIT: Duration = Duration::from_secs(300);

/// The moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Deprecated form of the next.
    Prestart,
    /// Namespaces are there; runs outside.
    CreateRuntime,
    /// As before; runs in the container's mount namespace, before its root is changed.
    CreateContainer,
    /// Before the program; runs inside.
    StartContainer,
    /// After the program was let run; runs outside.
    Poststart,
    /// After the container was deleted; runs outside.
    Poststop,
}

impl Moment {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

impl Moment {
    /// What the container is then. Prestart hooks are of the time when they ran between `create` and `start`.
    pub(super) fn status(self) -> Status {
        match self {
            Self::CreateRuntime | Self::CreateContainer => Status::Creating,
            Self::Prestart | Self::StartContainer => Status::Created,
            Self::Poststart => Status::Running,
            Self::Poststop => Status::Stopped,
        }
    }
}

/// Hooks of a moment, as the configuration has them.
pub fn of(config: &Value, moment: Moment) -> &[Value] {
    config["hooks"][moment.name()].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Runs the hooks of a moment in order, until one fails. `env` is for hooks that set none.
///
/// # Errors
/// Which hook failed, and how.
pub fn run(config: &Value, moment: Moment, state: &Value, env: &[(String, String)]) -> Result<(), OciError> {
    for (number, hook) in of(config, moment).iter().enumerate() {
        run_one(hook, state, env).map_err(|reason| OciError::Hook { kind: moment.name(), number, reason })?;
    }
    Ok(())
}

/// Runs all hooks of a moment; what fails is said and does not matter (runtime.md, Lifecycle).
pub fn run_all(config: &Value, moment: Moment, state: &Value) {
    for (number, hook) in of(config, moment).iter().enumerate() {
        if let Err(reason) = run_one(hook, state, &[]) {
            tracing::warn!(hook = moment.name(), number, %reason, "a hook failed");
        }
    }
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array().map(|all| all.iter().filter_map(Value::as_str).collect())
}

fn run_one(hook: &Value, state: &Value, env: &[(String, String)]) -> Result<(), String> {
    let path = hook["path"].as_str().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(format!("path {path:?} is not absolute"));
    }
    let limit = match &hook["timeout"] {
        Value::Null => DEFAULT_LIMIT,
        timeout => {
            let seconds = timeout.as_u64().filter(|seconds| *seconds > 0);
            Duration::from_secs(seconds.ok_or_else(|| format!("timeout {timeout} is not 1 or more seconds"))?)
        }
    };
    let mut command = Command::new(path);
    if let Some((name, arguments)) = strings(&hook["args"]).as_deref().and_then(<[&str]>::split_first) {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    match strings(&hook["env"]) {
        Some(variables) => {
            command.envs(variables.into_iter().filter_map(|it| it.split_once('=')));
        }
        None => {
            command.envs(env.iter().map(|(name, value)| (name, value)));
        }
    }
    // A group of its own, so that all of it can be killed.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|error| format!("{path}: {error}"))?;
    let group = Pid::from_raw(child.id() as i32);
    let deadline = Instant::now() + limit;
    // A pipe takes this much at once (pipe(7)); a hook that reads nothing does not hold us.
    let text = state.to_string();
    let told = match child.stdin.take() {
        Some(mut stdin) => tell(&mut stdin, text.as_bytes(), deadline),
        None => Ok(()),
    };
    let status = told.and_then(|()| wait(group, deadline));
    if status.is_err() {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = waitpid(group, None);
    }
    match status? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(format!("{path}: exit status {code}")),
        WaitStatus::Signaled(_, signal, _) => Err(format!("{path}: killed by {signal}")),
        _ => Err(format!("{path}: ended in no known way")),
    }
}

/// Writes the state; a hook that does not read it is none the worse.
fn tell(stdin: &mut std::process::ChildStdin, mut text: &[u8], deadline: Instant) -> Result<(), String> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(std::os::fd::AsRawFd::as_raw_fd(stdin), nix::fcntl::FcntlArg::F_SETFL(flags))
        .map_err(|errno| errno.to_string())?;
    while !text.is_empty() {
        match stdin.write(text) {
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ready(stdin.as_fd(), PollFlags::POLLOUT, deadline)?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn wait(child: Pid, deadline: Instant) -> Result<WaitStatus, String> {
    match sys::open_process(child.as_raw()) {
        Ok(process) => ready(process.as_fd(), PollFlags::POLLIN, deadline)?,
        // Before Linux 5.3 there is nothing to wait on with a limit but looking again and again.
        Err(_) => loop {
            let flags = nix::sys::wait::WaitPidFlag::WNOHANG;
            match waitpid(child, Some(flags)).map_err(|errno| errno.to_string())? {
                WaitStatus::StillAlive if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                WaitStatus::StillAlive => return Err("its time is up".to_owned()),
                status => return Ok(status),
            }
        },
    }
    waitpid(child, None).map_err(|errno| errno.to_string())
}

fn ready(fd: std::os::fd::BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> Result<(), String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("its time is up".to_owned());
        }
        let limit = PollTimeout::try_from(left.min(Duration::from_secs(60)) + Duration::from_millis(1))
            .unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, events)], limit) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hook(script: &str, timeout: Value) -> Result<(), String> {
        let mut hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"] });
        hook["timeout"] = timeout;
        run(&json!({ "hooks": { "prestart": [hook] } }), Moment::Prestart, &json!({ "id": "x" }), &[])
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_reads_the_state_and_has_its_own_variables() {
        assert_eq!(
            hook(r#"read state; [ "$state" = '{"id":"x"}' ] && [ "$A" = b ] || [ -z "$HOME" ]"#, json!(9)),
            Ok(())
        );
        assert_eq!(hook("exit 0", json!(null)), Ok(()), "it need not read");
    }

    #[test]
    fn a_hook_that_fails_says_how() {
        assert_eq!(
            hook("exit 3", json!(9)),
            Err("error running prestart hook #0: /bin/sh: exit status 3".to_owned())
        );
        assert!(hook("kill -9 $$", json!(9)).is_err_and(|it| it.contains("killed by SIGKILL")));
        assert!(hook("", json!(0)).is_err_and(|it| it.contains("timeout 0")));
    }

    #[test]
    fn a_hook_whose_time_is_up_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("late");
        let began = Instant::now();
        let failed = hook(&format!("(sleep 3; touch {}) & sleep 60", file.display()), json!(1));
        assert!(failed.is_err_and(|it| it.contains("its time is up")));
        assert!(began.elapsed() < Duration::from_secs(3));
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!file.exists(), "what it started is killed too");
    }
}
