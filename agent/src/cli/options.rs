//! Options of all commands, read once.

use crate::paths::Paths;
use crate::supervisor::Mode;
use lexopt::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An option that is not understood, one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage(pub String);

impl From<lexopt::Error> for Usage {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folders of the agent.
    pub paths: Paths,
    /// `-f`, in order.
    pub files: Vec<PathBuf>,
    /// The project's folder.
    pub folder: Option<PathBuf>,
    /// `-p`.
    pub project: Option<String>,
    /// `--profile`.
    pub profiles: Vec<String>,
    /// `--env-file`.
    pub env_files: Vec<PathBuf>,
    /// `--allow-bind`.
    pub allow_binds: Vec<PathBuf>,
    /// `--image SERVICE=REF`.
    pub images: BTreeMap<String, String>,
    /// `--plain-http HOST`.
    pub plain_http: Vec<String>,
    /// `--ca-file`.
    pub ca_files: Vec<PathBuf>,
    /// `--docker-config`.
    pub docker_config: Option<PathBuf>,
    /// `-d`.
    pub detach: bool,
    /// `--wait`: until services run and are healthy.
    pub wait: bool,
    /// `--force-recreate`.
    pub recreate: bool,
    /// `--pull always`.
    pub pull: bool,
    /// `-v`, `--volumes`.
    pub volumes: bool,
    /// `--json`.
    pub json: bool,
    /// `-q`.
    pub quiet: bool,
    /// `--follow`.
    pub follow: bool,
    /// `--since`, nanoseconds since 1970.
    pub since: Option<u64>,
    /// `--until`, nanoseconds since 1970.
    pub until: Option<u64>,
    /// `--tail`.
    pub tail: Option<usize>,
    /// `-t`, `--timestamps`.
    pub timestamps: bool,
    /// `--no-log-prefix`.
    pub no_prefix: bool,
    /// `--name`, of an imported image.
    pub name: Option<String>,
    /// `--services`: names alone.
    pub services: bool,
    /// `--free`.
    pub free: bool,
    /// `--once`: one look in place of a live view.
    pub once: bool,
    /// `-u`.
    pub user: Option<String>,
    /// `-w`.
    pub workdir: Option<String>,
    /// `-e`.
    pub env: Vec<(String, String)>,
    /// `-i`.
    pub interactive: bool,
    /// `-t` of exec, `-T` switches it off.
    pub tty: Option<bool>,
    /// `--own`, of self-update.
    pub own: bool,
    /// `--continue`, of the shim: the descriptor with what it knew as another program.
    pub state: Option<i32>,
    /// `--privileged`.
    pub privileged: bool,
    /// `--supervised`, `--safe` and `--board`, of the agent.
    pub mode: Mode,
    /// Everything that is no option.
    pub rest: Vec<String>,
}

/// Options that take a service list or folder behind them.
impl Options {
    /// Reads the options of a command; `None`: help is wanted.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(command: &str, mut arguments: lexopt::Parser) -> Result<Option<Self>, Usage> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("data") => options.paths.data = absolute(arguments.value()?.into()),
                Long("run") => options.paths.run = absolute(arguments.value()?.into()),
                Long("file") => options.files.push(arguments.value()?.into()),
                Short('f') if command != "logs" => options.files.push(arguments.value()?.into()),
                Long("follow") | Short('f') => options.follow = true,
                Short('p') | Long("project-name") => options.project = Some(text(&mut arguments)?),
                Long("project-directory") => options.folder = Some(arguments.value()?.into()),
                Long("profile") => options.profiles.push(text(&mut arguments)?),
                Long("env-file") => options.env_files.push(arguments.value()?.into()),
                Long("allow-bind") => options.allow_binds.push(absolute(arguments.value()?.into())),
                Long("image") => {
                    let (service, image) = pair(&mut arguments, "--image takes SERVICE=REFERENCE")?;
                    options.images.insert(service, image);
                }
                Long("plain-http") => options.plain_http.push(text(&mut arguments)?),
                Long("ca-file") => options.ca_files.push(absolute(arguments.value()?.into())),
                Long("docker-config") => options.docker_config = Some(absolute(arguments.value()?.into())),
                Short('d') | Long("detach") => options.detach = true,
                Long("wait") => (options.wait, options.detach) = (true, true),
                Long("force-recreate") => options.recreate = true,
                Long("pull") => options.pull = pull(&text(&mut arguments)?)?,
                Short('v') | Long("volumes") => options.volumes = true,
                Long("json") => options.json = true,
                Short('q') | Long("quiet") => options.quiet = true,
                Long("since") => options.since = Some(moment(&text(&mut arguments)?)?),
                Long("until") => options.until = Some(moment(&text(&mut arguments)?)?),
                Long("tail") | Short('n') => options.tail = tail(&text(&mut arguments)?)?,
                Long("timestamps") => options.timestamps = true,
                Short('t') if command == "exec" => options.tty = Some(true),
                Short('t') => options.timestamps = true,
                Long("tty") => options.tty = Some(true),
                Short('T') | Long("no-tty") => options.tty = Some(false),
                Short('i') | Long("interactive") => options.interactive = true,
                Long("no-log-prefix") => options.no_prefix = true,
                Long("name") => options.name = Some(text(&mut arguments)?),
                Long("services") => options.services = true,
                Long("free") => options.free = true,
                Long("once") | Long("no-stream") => options.once = true,
                Short('u') | Long("user") => options.user = Some(text(&mut arguments)?),
                Short('w') | Long("workdir") => options.workdir = Some(text(&mut arguments)?),
                Short('e') | Long("env") => {
                    options.env.push(pair(&mut arguments, "--env takes NAME=VALUE")?);
                }
                Long("supervised") => options.mode.supervised = true,
                Long("safe") => options.mode.safe = true,
                Long("board") => options.mode.board = true,
                Long("own") => options.own = true,
                Long("continue") => options.state = Some(arguments.value()?.parse()?),
                Long("privileged") => options.privileged = true,
                Value(value) => {
                    options.rest.push(value.to_string_lossy().into_owned());
                    // What follows the service is the command's own.
                    if command == "exec" {
                        let raw = arguments.raw_args()?;
                        options.rest.extend(raw.map(|it| it.to_string_lossy().into_owned()));
                    }
                }
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Some(options))
    }

    /// The project's folder: named, else that of the first file, else this one.
    pub fn project_folder(&self) -> PathBuf {
        let folder = self.folder.clone().unwrap_or_else(|| match self.files.first() {
            Some(file) => coracle_compose::folder_of(file),
            None => PathBuf::from("."),
        });
        absolute(folder)
    }
}

pub(crate) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

pub(crate) fn text(arguments: &mut lexopt::Parser) -> Result<String, Usage> {
    Ok(arguments.value()?.to_string_lossy().into_owned())
}

fn pair(arguments: &mut lexopt::Parser, otherwise: &str) -> Result<(String, String), Usage> {
    let text = text(arguments)?;
    let (name, value) = text.split_once('=').ok_or_else(|| Usage(otherwise.to_owned()))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn pull(policy: &str) -> Result<bool, Usage> {
    match policy {
        "always" => Ok(true),
        "missing" | "policy" => Ok(false),
        other => Err(Usage(format!("--pull {other}: always, missing or policy"))),
    }
}

fn tail(text: &str) -> Result<Option<usize>, Usage> {
    match text {
        "all" => Ok(None),
        number => number.parse().map(Some).map_err(|_| Usage(format!("--tail {text}: a number or `all`"))),
    }
}

/// A date and time (RFC 3339, UTC), seconds since 1970, or how long ago (`10m`, `1h30m`).
fn moment(text: &str) -> Result<u64, Usage> {
    const SECOND: u64 = 1_000_000_000;
    if let Some(unix_ns) = crate::clock::parse_rfc3339(text) {
        return Ok(unix_ns);
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(seconds.saturating_mul(SECOND));
    }
    let ago = coracle_compose::parse_duration(text)
        .map_err(|_| Usage(format!("{text:?} is no time: write 10m, or 2026-01-31T12:00:00Z")))?;
    let now = crate::clock::unix_now().saturating_mul(SECOND);
    Ok(now.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX)))
}

/// True for a folder, as `up FOLDER` takes it.
pub fn is_folder(text: &str) -> bool {
    text == "." || text.contains('/') || Path::new(text).is_dir()
}
