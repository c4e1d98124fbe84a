//! Options of the OCI command line, as runc has them.

pub use crate::cli::options::Usage;
use crate::cli::options::{absolute, text};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where states are, when nothing else is said.
const DEFAULT_ROOT: &str = "/run/coracle-oci";

/// What was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The command.
    pub command: String,
    /// `--root`.
    pub root: PathBuf,
    /// `--log`.
    pub log: Option<PathBuf>,
    /// `--log-format json`.
    pub log_json: bool,
    /// `--debug`.
    pub debug: bool,
    /// `--bundle`.
    pub bundle: PathBuf,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// `--no-subreaper`.
    pub no_subreaper: bool,
    /// `--keep`.
    pub keep: bool,
    /// `--detach`.
    pub detach: bool,
    /// `--force`.
    pub force: bool,
    /// `--all`.
    pub all: bool,
    /// `--quiet`.
    pub quiet: bool,
    /// `--format`.
    pub format: String,
    /// `--stats`.
    pub stats: bool,
    /// `--interval`, seconds.
    pub interval: u64,
    /// `--rootless`.
    pub rootless: bool,
    /// `--process`.
    pub process: Option<PathBuf>,
    /// `--resources`.
    pub resources: Option<PathBuf>,
    /// `--cwd`.
    pub cwd: Option<String>,
    /// `--env`.
    pub env: Vec<String>,
    /// `--tty`.
    pub tty: bool,
    /// `--user`.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub groups: Vec<u32>,
    /// `--cap`.
    pub capabilities: Vec<String>,
    /// `--no-new-privs`.
    pub no_new_privileges: bool,
    /// `--apparmor`.
    pub apparmor: Option<String>,
    /// `--cgroup`.
    pub cgroup: Option<String>,
    /// `--ignore-paused`.
    pub ignore_paused: bool,
    /// Limits of `update`, by the option's name.
    pub limits: Vec<(String, String)>,
    /// Everything that is no option.
    pub rest: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            command: String::new(),
            root: DEFAULT_ROOT.into(),
            log: None,
            log_json: false,
            debug: false,
            bundle: ".".into(),
            console_socket: None,
            pid_file: None,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            systemd_cgroup: false,
            no_subreaper: false,
            keep: false,
            detach: false,
            force: false,
            all: false,
            quiet: false,
            format: "table".to_owned(),
            stats: false,
            interval: 5,
            rootless: false,
            process: None,
            resources: None,
            cwd: None,
            env: Vec::new(),
            tty: false,
            user: None,
            groups: Vec::new(),
            capabilities: Vec::new(),
            no_new_privileges: false,
            apparmor: None,
            cgroup: None,
            ignore_paused: false,
            limits: Vec::new(),
            rest: Vec::new(),
        }
    }
}

/// Commands.
pub const COMMANDS: &[&str] = &[
    "create", "start", "state", "kill", "delete", "exec", "run", "list", "ps", "update", "pause", "resume",
    "events", "features", "spec", "help", "version",
];

/// Limits that `update` takes.
const LIMITS: &[&str] = &[
    "blkio-weight", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share", "cpu-idle", "cpu-rt-period",
    "cpu-rt-runtime", "cpuset-cpus", "cpuset-mems", "memory", "memory-reservation", "memory-swap", "pids-limit",
];

/// Options that name what is not to be had, and why.
const REFUSED: &[(&str, &str)] = &[
    ("kernel-memory", "the kernel has no such limit since 5.4"),
    ("kernel-memory-tcp", "write it as --resources, for cgroup v1"),
    ("l3-cache-schema", "Intel RDT is not supported"),
    ("mem-bw-schema", "Intel RDT is not supported"),
    ("process-label", "SELinux labels of processes are not supported"),
    ("criu", "checkpoints are not supported"),
];

impl Options {
    /// Reads the command line. Options for all commands may stand before and behind the command.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse<I>(arguments: I) -> Result<Self, Usage>
    where
        I: IntoIterator<Item = OsString>,
    {
        let mut options = Self::default();
        let mut arguments = lexopt::Parser::from_args(arguments);
        while let Some(argument) = arguments.next()? {
            match argument {
                Value(command) if options.command.is_empty() => {
                    options.command = command.to_string_lossy().into_owned();
                    if !COMMANDS.contains(&options.command.as_str()) {
                        return Err(Usage(format!("there is no command {:?}", options.command)));
                    }
                }
                Value(value) => {
                    options.rest.push(value.to_string_lossy().into_owned());
                    // Behind the container stands the command with its own options.
                    if options.command == "exec" {
                        let raw = arguments.raw_args()?;
                        options.rest.extend(raw.map(|it| it.to_string_lossy().into_owned()));
                    }
                }
                Long(name) => {
                    let name = name.to_owned();
                    options.long(&name, &mut arguments)?;
                }
                Short(letter) => options.short(letter, &mut arguments)?,
            }
        }
        Ok(options)
    }

    fn short(&mut self, letter: char, arguments: &mut lexopt::Parser) -> Result<(), Usage> {
        let name = match (self.command.as_str(), letter) {
            ("", 'h') | (_, 'h') => "help",
            ("", 'v') => "version",
            ("create" | "run" | "spec", 'b') => "bundle",
            ("run" | "exec", 'd') => "detach",
            ("delete", 'f') => "force",
            ("kill", 'a') => "all",
            ("list" | "ps", 'f') => "format",
            ("list", 'q') => "quiet",
            ("exec", 'e') => "env",
            ("exec", 't') => "tty",
            ("exec", 'u') => "user",
            ("exec", 'g') => "additional-gids",
            ("exec", 'p') => "process",
            ("exec", 'c') => "cap",
            ("update", 'r') => "resources",
            _ => return Err(Usage(format!("invalid option '-{letter}'"))),
        };
        self.long(name, arguments)
    }

    fn long(&mut self, name: &str, arguments: &mut lexopt::Parser) -> Result<(), Usage> {
        if let Some((_, why)) = REFUSED.iter().find(|(known, _)| *known == name) {
            return Err(Usage(format!("--{name}: {why}")));
        }
        if self.command == "update" && LIMITS.contains(&name) {
            self.limits.push((name.to_owned(), text(arguments)?));
            return Ok(());
        }
        let path = |arguments: &mut lexopt::Parser| -> Result<PathBuf, Usage> { Ok(arguments.value()?.into()) };
        match name {
            "help" => self.command = "help".to_owned(),
            "version" => self.command = "version".to_owned(),
            "root" => self.root = absolute(path(arguments)?),
            "log" => self.log = Some(path(arguments)?),
            "log-format" => {
                self.log_json = match text(arguments)?.as_str() {
                    "json" => true,
                    "text" => false,
                    other => return Err(Usage(format!("--log-format {other}: json or text"))),
                }
            }
            "debug" => self.debug = flag(arguments)?,
            "rootless" if self.command == "spec" => self.rootless = flag(arguments)?,
            // What it would change, runc finds out by itself too.
            "rootless" => drop(text(arguments)?),
            "bundle" => self.bundle = path(arguments)?,
            "console-socket" => self.console_socket = Some(path(arguments)?),
            "pid-file" => self.pid_file = Some(absolute(path(arguments)?)),
            "preserve-fds" => self.preserve_fds = number(name, arguments)?,
            "no-pivot" => self.no_pivot = flag(arguments)?,
            "no-new-keyring" => self.no_new_keyring = flag(arguments)?,
            "systemd-cgroup" => self.systemd_cgroup = flag(arguments)?,
            "no-subreaper" => self.no_subreaper = flag(arguments)?,
            "keep" => self.keep = flag(arguments)?,
            "detach" => self.detach = flag(arguments)?,
            "force" => self.force = flag(arguments)?,
            "all" => self.all = flag(arguments)?,
            "quiet" => self.quiet = flag(arguments)?,
            "format" => self.format = text(arguments)?,
            "stats" => self.stats = flag(arguments)?,
            "interval" => self.interval = seconds(&text(arguments)?)?,
            "process" => self.process = Some(path(arguments)?),
            "resources" => self.resources = Some(path(arguments)?),
            "cwd" => self.cwd = Some(text(arguments)?),
            "env" => self.env.push(text(arguments)?),
            "tty" => self.tty = flag(arguments)?,
            "user" => self.user = Some(user(&text(arguments)?)?),
            "additional-gids" => self.groups.push(number(name, arguments)?),
            "cap" => self.capabilities.push(capability(&text(arguments)?)),
            "no-new-privs" => self.no_new_privileges = flag(arguments)?,
            "apparmor" => self.apparmor = Some(text(arguments)?),
            "cgroup" => self.cgroup = Some(text(arguments)?),
            "ignore-paused" => self.ignore_paused = flag(arguments)?,
            _ => return Err(Usage(format!("invalid option '--{name}'"))),
        }
        Ok(())
    }

    /// The container, which a command takes as its first word.
    ///
    /// # Errors
    /// When there is none, or more words follow than `most`.
    pub fn id(&self, most: usize) -> Result<&str, Usage> {
        match self.rest.first() {
            Some(id) if self.rest.len() <= most => Ok(id),
            Some(_) => Err(Usage(format!("{} takes at most {most} words", self.command))),
            None => Err(Usage(format!("{} takes a container ID", self.command))),
        }
    }
}

/// `--force` and `--force=true`, as Go's flags have it.
fn flag(arguments: &mut lexopt::Parser) -> Result<bool, Usage> {
    match arguments.optional_value().map(|it| it.to_string_lossy().into_owned()).as_deref() {
        None | Some("true" | "1" | "t") => Ok(true),
        Some("false" | "0" | "f") => Ok(false),
        Some(other) => Err(Usage(format!("{other:?} is not true or false"))),
    }
}

fn number(name: &str, arguments: &mut lexopt::Parser) -> Result<u32, Usage> {
    let text = text(arguments)?;
    text.parse().map_err(|_| Usage(format!("--{name} {text}: is no number")))
}

/// `5s`, `2m`; a number alone is seconds.
fn seconds(text: &str) -> Result<u64, Usage> {
    let wrong = || Usage(format!("--interval {text}: write 5s"));
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => coracle_compose::parse_duration(text).map_err(|_| wrong())?.as_secs(),
    };
    if seconds == 0 { Err(wrong()) } else { Ok(seconds) }
}

/// `UID[:GID]`.
fn user(text: &str) -> Result<(u32, Option<u32>), Usage> {
    let wrong = || Usage(format!("--user {text}: write UID or UID:GID, as numbers"));
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let group = group.map(|it| it.parse().map_err(|_| wrong())).transpose()?;
    Ok((user.parse().map_err(|_| wrong())?, group))
}

fn capability(name: &str) -> String {
    let name = name.to_uppercase();
    if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

/// A signal by number or name.
///
/// # Errors
/// When there is none of that name.
pub fn signal(text: &str) -> Result<i32, Usage> {
    let wrong = || Usage(format!("{text:?} is no signal"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // signal(7): real-time signals are counted from both ends, and the C library keeps the first two.
    let from = |base: i32, rest: &str| match rest {
        "" => Ok(base),
        rest => rest.parse::<i32>().map(|it| base + it).map_err(|_| wrong()),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        from(34, rest)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        from(64, rest)?
    } else {
        let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().map_err(|_| wrong())?;
        signal as i32
    };
    if (1..=64).contains(&number) { Ok(number) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(OsString::from)).map_err(|usage| usage.0)
    }

    #[test]
    fn options_for_all_commands_stand_before_or_behind_the_command() {
        let wanted =
            parse("--root /r --log /l --log-format json create --bundle /b --pid-file /p --preserve-fds 2 c1");
        let other = parse("create --root=/r -b /b c1 --log=/l --log-format=json --preserve-fds=2 --pid-file=/p");
        assert_eq!(wanted, other);
        let wanted = wanted.expect("understood");
        assert_eq!((wanted.command.as_str(), wanted.id(1)), ("create", Ok("c1")));
        assert_eq!((wanted.root, wanted.log_json, wanted.preserve_fds), ("/r".into(), true, 2));
    }

    #[test]
    fn what_follows_the_container_is_the_command_of_exec() {
        let options = parse("exec -t -u 5:6 --env A=1 -e B=2 --cap kill c1 ls --all -u").expect("understood");
        assert_eq!(options.rest, ["c1", "ls", "--all", "-u"]);
        assert_eq!((options.user, options.tty), (Some((5, Some(6))), true));
        assert_eq!(options.capabilities, ["CAP_KILL"]);
        assert_eq!(parse("exec c1 -- ls").expect("understood").rest, ["c1", "--", "ls"]);
    }

    #[test]
    fn flags_take_a_value_as_in_go() {
        assert!(parse("delete --force=true c1").expect("understood").force);
        assert!(!parse("delete --force=false c1").expect("understood").force);
        assert!(parse("delete --force=maybe c1").is_err());
        assert!(parse("--systemd-cgroup create c1").expect("understood").systemd_cgroup);
        assert!(!parse("--systemd-cgroup=false create c1").expect("understood").systemd_cgroup);
    }

    #[test]
    fn what_is_not_to_be_had_is_refused_by_name() {
        assert!(parse("update --l3-cache-schema x c1").is_err_and(|it| it.contains("Intel RDT")));
        assert!(parse("checkpoint c1").is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+1", 35), ("RTMAX-1", 63), ("0", 0)]
        {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for bad in ["", "SIGX", "65", "-1", "RTMIN+99"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_command_line_panics(words in proptest::collection::vec("-{0,2}[a-z=:,0-9-]{0,12}", 0..8)) {
            let _ = Options::parse(words.into_iter().map(OsString::from));
        }
    }
}
