//! Debian packages of other suites, fetched with apt into folders of our own; the system is not touched.

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Packages of some suites.
pub struct Suites {
    folder: PathBuf,
    options: Vec<String>,
}

impl Suites {
    /// Lists the packages of `suites`, kept in `folder`.
    ///
    /// # Errors
    /// When the lists cannot be fetched.
    pub fn open(folder: &Path, suites: &[&str]) -> anyhow::Result<Self> {
        Self::open_for(folder, suites, None)
    }

    /// The same for another architecture, as a machine that has nothing installed.
    ///
    /// # Errors
    /// When the lists cannot be fetched.
    pub fn open_for(folder: &Path, suites: &[&str], architecture: Option<&str>) -> anyhow::Result<Self> {
        let folder = std::path::absolute(folder)?;
        for part in ["lists/partial", "cache/archives/partial", "sources", "preferences"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        let source = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main non-free-firmware\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            mirror(),
            suites.join(" ")
        );
        std::fs::write(folder.join("sources/suites.sources"), source)?;
        let mut options = vec![
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={}", folder.join("sources").display()),
            format!("Dir::State::lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            // The packages are read by us, not by apt's own user.
            "APT::Sandbox::User=root".to_owned(),
            // A list that could not be fetched is an error, not an old list.
            "APT::Update::Error-Mode=any".to_owned(),
        ];
        if let Some(architecture) = architecture {
            let status = folder.join("status");
            std::fs::write(&status, "")?;
            options.extend([
                format!("APT::Architecture={architecture}"),
                format!("APT::Architectures::={architecture}"),
                format!("Dir::State={}", folder.display()),
                format!("Dir::State::status={}", status.display()),
                format!("Dir::Etc::PreferencesParts={}", folder.join("preferences").display()),
                "Acquire::Languages=none".to_owned(),
            ]);
        }
        let suites = Self { folder, options };
        fetch(|| suites.command("apt-get"), &["-q", "update"])?;
        Ok(suites)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.args(self.options.iter().flat_map(|option| ["-o", option])).current_dir(&self.folder);
        command
    }

    /// Versions of a package, the newest first.
    ///
    /// # Errors
    /// When apt cannot be asked.
    pub fn versions(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let output = self.command("apt-cache").args(["madison", name]).output().context("starting apt-cache")?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect())
    }

    /// What a package needs directly.
    ///
    /// # Errors
    /// When apt cannot be asked.
    pub fn depends(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let output = self.command("apt-cache").args(["depends", "--important", name]).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned())).collect())
    }

    /// Downloads packages with all that they need, and unpacks them into one folder. No script of theirs is run.
    ///
    /// # Errors
    /// When they cannot be fetched or unpacked.
    pub fn unpack_all(&self, names: &[&str], into: &Path) -> anyhow::Result<()> {
        let archives = self.folder.join("cache/archives");
        let words = ["-q", "-y", "--no-install-recommends", "--download-only", "install"];
        fetch(|| self.command("apt-get"), &[&words[..], names].concat())?;
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&archives)?.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|it| it == "deb"));
        paths.sort();
        std::fs::create_dir_all(into)?;
        for path in paths {
            run(Command::new("dpkg").arg("-x").arg(&path).arg(into))?;
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Downloads a package (`NAME` or `NAME=VERSION`) and unpacks it into a folder of its own; returns that.
    ///
    /// # Errors
    /// When it cannot be fetched or unpacked.
    pub fn unpack(&self, wanted: &str) -> anyhow::Result<PathBuf> {
        fetch(|| self.command("apt-get"), &["-q", "download", wanted])?;
        let name = wanted.split('=').next().unwrap_or(wanted);
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(&format!("{name}_")))
        };
        let mut archives = std::fs::read_dir(&self.folder)?.flatten().map(|entry| entry.path());
        let archive = archives.find(is_it).with_context(|| format!("no archive of {name} was downloaded"))?;
        let root = self.folder.join(name);
        std::fs::create_dir_all(&root)?;
        run(Command::new("dpkg").arg("-x").arg(&archive).arg(&root))?;
        std::fs::remove_file(archive)?;
        Ok(root)
    }
}

/// The mirror that apt uses here.
fn mirror() -> String {
    let mut files: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    let more = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(more.map(|entry| entry.path()));
    let lines = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect::<Vec<_>>().join("\n");
    let found = lines.lines().find_map(|line| {
        let uri = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
        uri.split_whitespace().find(|word| word.ends_with("/debian") || word.ends_with("/debian/"))
    });
    found.unwrap_or("http://deb.debian.org/debian").to_owned()
}

/// How often something is fetched: names are not resolved for a moment, a mirror is being written to.
const TRIES: u32 = 5;
/// Between two times.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs a command of apt that reads from the network, again when it fails.
fn fetch(command: impl Fn() -> Command, words: &[&str]) -> anyhow::Result<()> {
    for _ in 1..TRIES {
        match run(command().args(words)) {
            Ok(()) => return Ok(()),
            Err(error) => println!("{error:#}; once more in {} s", PAUSE.as_secs()),
        }
        std::thread::sleep(PAUSE);
    }
    run(command().args(words))
}

/// Runs a command that must succeed.
///
/// # Errors
/// When it does not.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
