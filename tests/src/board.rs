//! One device in namespaces of its own.

use crate::image::Image;
use anyhow::{Context, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest wait for something that takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest time for one command.
const LONGEST: Duration = Duration::from_secs(60);

/// Where the registry listens, in the board's own network.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// Why this machine cannot run a test that needs root and some tools.
pub fn missing(tools: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let found = |tool: &&&str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|folder| Path::new(folder).join(tool).exists())
    };
    tools.iter().find(|tool| !found(tool)).map(|tool| format!("needs {tool}"))
}

/// The `coracle` program, built when it is not.
pub fn coracle() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            // Whoever has built it already says where it is.
            if let Some(program) = std::env::var_os("CORACLE_PROGRAM") {
                return program.into();
            }
            let mut folder = std::env::current_exe().expect("a test has a program");
            folder.pop();
            if folder.ends_with("deps") {
                folder.pop();
            }
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--locked", "-p", "coracle"]).current_dir(env!("CARGO_MANIFEST_DIR"));
            // Build scripts that look at these would run again for every test.
            for (name, _) in std::env::vars_os() {
                let name = name.to_string_lossy();
                if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                    build.env_remove(&*name);
                }
            }
            if folder.ends_with("release") {
                build.arg("--release");
            }
            assert!(build.status().is_ok_and(|status| status.success()), "coracle does not build");
            folder.join("coracle")
        })
        .clone()
}

/// A device: its folders, and the processes that the test started.
pub struct Board {
    folder: tempfile::TempDir,
    registry: Option<Child>,
}

impl Board {
    /// Moves this thread into namespaces of its own and makes the folders.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn new() -> anyhow::Result<Self> {
        coracle();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("making namespaces")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("separating mounts")?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        // /sys shows the network namespace that it was mounted in.
        let folder = tempfile::Builder::new().prefix("coracle-").tempdir()?;
        let run_folder = folder.path().join("run");
        std::fs::create_dir(&run_folder)?;
        mount(Some("tmpfs"), &run_folder, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("mounting tmpfs")?;
        Ok(Self { folder, registry: None })
    }

    /// One with a registry that has busybox as `app:1`.
    ///
    /// # Errors
    /// As [`Board::new`], [`Board::start_registry`] and [`Board::push`].
    pub fn with_app() -> anyhow::Result<Self> {
        let mut board = Self::new()?;
        board.start_registry("")?;
        board.push(&Image::busybox()?, "app:1")?;
        Ok(board)
    }

    /// The board's own folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The agent's data folder.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The agent's run folder.
    pub fn run_folder(&self) -> PathBuf {
        self.path().join("run")
    }

    /// Starts Debian's registry, with extra lines in its configuration.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_registry(&mut self, extra: &str) -> anyhow::Result<()> {
        let config = self.path().join("registry.yml");
        let storage = self.path().join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n{extra}",
            storage.display()
        );
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(self.path().join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting docker-registry")?;
        self.registry = Some(child);
        wait_for("the registry", || Ok(TcpStream::connect(REGISTRY).is_ok()))
    }

    /// Puts an image into the registry; its full name.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn push(&self, image: &Image, name: &str) -> anyhow::Result<String> {
        let layout = tempfile::tempdir_in(self.path())?;
        image.write(layout.path())?;
        let target = format!("{REGISTRY}/{name}");
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}", layout.path().display()))
            .arg(format!("docker://{target}")))?;
        Ok(target)
    }

    /// Process id of the registry.
    pub fn registry_pid(&self) -> Option<u32> {
        self.registry.as_ref().map(Child::id)
    }

    /// Writes a compose file into the project folder.
    ///
    /// # Errors
    /// As the file system says.
    pub fn compose(&self, text: &str) -> anyhow::Result<()> {
        let folder = self.path().join("demo");
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("compose.yaml"), text)?)
    }

    /// A command line of this board, in its project folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // A command that hangs is killed, and fails the test.
        let mut command = Command::new("timeout");
        command.arg("--kill-after=5").arg(LONGEST.as_secs().to_string()).arg(coracle());
        let (name, rest) = arguments.split_first().expect("a command");
        command.arg(name).arg("--data").arg(self.data()).arg("--run").arg(self.run_folder());
        if matches!(*name, "up" | "plan" | "pull") {
            command.args(["--plain-http", REGISTRY]);
        }
        let folder = self.path().join("demo");
        command.args(rest).current_dir(if folder.exists() { folder } else { self.path().to_owned() });
        command.stdin(Stdio::null());
        command
    }

    /// Starts an agent and waits until it answers; it ends with the board.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_agent(&self) -> anyhow::Result<()> {
        self.start_agent_with(&[])
    }

    /// As [`Board::start_agent`], with variables of the environment.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_agent_with(&self, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        self.start_agent_as(&coracle(), environment)
    }

    /// As [`Board::start_agent_with`], as another program.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_agent_as(&self, program: &Path, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.run_folder().join("agent.log"))?;
        let mut command = Command::new(program);
        command.arg("agent").arg("--data").arg(self.data()).arg("--run").arg(self.run_folder());
        command.envs(environment.iter().copied());
        // Not waited for: it is ended by `shutdown`, or killed by the test.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        wait_for("the agent", || Ok(self.output(&["status"])?.status.success()))
            .with_context(|| self.log("agent.log"))
    }

    /// The folders of this board in the cgroup hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let run = self.run_folder();
        let digest = coracle_runtime::image::digest_of(run.as_os_str().as_encoded_bytes());
        let name = format!("coracle-{}", &digest["sha256:".len()..][..8]);
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|it| it.path());
        let names = [name.clone(), format!("{name}.privileged")];
        let roots = roots.chain(["/sys/fs/cgroup".into()]);
        let all = roots.flat_map(|root: PathBuf| names.clone().map(|name| root.join(name)));
        all.filter(|folder| folder.is_dir()).collect()
    }

    /// Kills every agent of this board, found by the folder in its arguments, and waits for their end: until then they
    /// hold the lock.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn kill_agent(&self) -> anyhow::Result<()> {
        let mark = self.data().display().to_string();
        let mut killed = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            let is_agent =
                words.contains(&mark) && words.contains("coracle\0agent\0") && !words.starts_with("timeout");
            let pid = entry.file_name().to_string_lossy().parse::<i32>();
            if let (true, Ok(pid)) = (is_agent, pid) {
                // Ended meanwhile: then it need not be killed.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                killed.push(entry.path());
            }
        }
        // Nobody may wait for it: then its last thread stays as a zombie.
        let ended = |path: &PathBuf| {
            let threads = std::fs::read_dir(path.join("task")).map_or(0, Iterator::count);
            let state = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            threads == 0 || threads == 1 && state.contains(") Z ")
        };
        wait_for("the agents' end", || Ok(killed.iter().all(ended)))
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.command(arguments).output().context("running coracle")
    }

    /// Runs a command that must succeed; what it printed.
    ///
    /// # Errors
    /// When it fails, with everything that helps to see why.
    pub fn coracle(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.output(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        bail!(
            "coracle {}: {}\n{}{}\nagent: {}\nshim: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log("agent.log"),
            self.log("shim.log")
        )
    }

    /// Runs a command that must fail; its exit code and what it said.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
        let output = self.output(arguments)?;
        ensure!(!output.status.success(), "coracle {} succeeded", arguments.join(" "));
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// A service's status as `ps --json` tells it.
    ///
    /// # Errors
    /// When there is none.
    pub fn service(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        let text = self.coracle(&["ps", "--json"])?;
        let document: serde_json::Value = serde_json::from_str(&text)?;
        let service = document["services"].get(name).with_context(|| format!("no service {name} in {text}"))?;
        Ok(service.clone())
    }

    /// Waits until a service's field has a value.
    ///
    /// # Errors
    /// When it never has.
    pub fn wait_for_service(&self, name: &str, field: &str, value: serde_json::Value) -> anyhow::Result<()> {
        wait_for(&format!("{name}.{field} = {value}"), || Ok(self.service(name)?[field] == value))
    }

    /// A file of the run folder, for messages.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.run_folder().join(name)).unwrap_or_default()
    }

    /// The agent's process id.
    ///
    /// # Errors
    /// When none answers.
    pub fn agent_pid(&self) -> anyhow::Result<i32> {
        let text = self.coracle(&["inspect"])?;
        let document: serde_json::Value = serde_json::from_str(&text)?;
        document["agent"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no agent")
    }
}

impl Drop for Board {
    /// Ends everything that was started, also when the test failed.
    fn drop(&mut self) {
        let end = |arguments: &[&str]| {
            let output = self.command(arguments).output();
            // 124: `timeout` ended it.
            if output.as_ref().is_ok_and(|it| it.status.code() == Some(124)) {
                println!("hung: {arguments:?} {output:?}\n{}\n{}", self.log("agent.log"), self.log("shim.log"));
            }
        };
        for project in ["demo", "other"] {
            end(&["down", "-p", project]);
        }
        end(&["shutdown"]);
        if let Some(registry) = &mut self.registry {
            let _ = registry.kill();
            let _ = registry.wait();
        }
        for folder in self.cgroups() {
            let _ = std::fs::remove_dir(folder);
        }
        let _ = nix::mount::umount(&self.run_folder());
    }
}

/// What a web server answers.
///
/// # Errors
/// When it does not.
pub fn http(host: &str, path: &str) -> anyhow::Result<String> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // At once: a server may answer, and close, as soon as it has the first line.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Runs a command that must succeed.
///
/// # Errors
/// With what it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks until something holds.
///
/// # Errors
/// When it never does.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < PATIENCE {
        match holds() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match last {
        Some(error) => Err(error.context(format!("waiting for {what}"))),
        None => bail!("waited in vain for {what}"),
    }
}
