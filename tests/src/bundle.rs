//! Bundles for the OCI command line: busybox as root file system, and a configuration that a test changes.

use crate::board::coracle;
use crate::image::TOOLS;
use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Seconds for one command.
const LONGEST: &str = "30";

/// A runtime with a folder of states, and one bundle.
pub struct Bundle {
    folder: tempfile::TempDir,
    /// The configuration that the next command finds.
    pub config: Value,
    /// Unique on this machine, for names of containers and cgroups.
    pub id: String,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for (_, name) in self.containers() {
            let _ = self.output(&["delete", "--force", &name]);
        }
    }
}

impl Bundle {
    /// Moves this thread into a mount namespace of its own and makes a bundle.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn new() -> anyhow::Result<Self> {
        coracle();
        unshare(CloneFlags::CLONE_NEWNS).context("making a namespace")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let folder = tempfile::Builder::new().prefix("coracle-oci-").tempdir()?;
        let id = folder.path().file_name().unwrap_or_default().to_string_lossy().replace('.', "");
        busybox(&folder.path().join("rootfs"))?;
        let mut bundle = Self { folder, config: Value::Null, id };
        bundle.run(&["spec", "--bundle", &bundle.path().display().to_string()])?;
        let text = std::fs::read(bundle.path().join("config.json"))?;
        bundle.config = serde_json::from_slice(&text)?;
        bundle.config["process"]["terminal"] = json!(false);
        bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
        Ok(bundle)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of states.
    pub fn root(&self) -> PathBuf {
        self.path().join("states")
    }

    /// Sets the program.
    pub fn args(&mut self, args: &[&str]) {
        self.config["process"]["args"] = json!(args);
    }

    /// A shell script as the program.
    pub fn script(&mut self, script: &str) {
        self.args(&["/bin/sh", "-c", script]);
    }

    /// A command of the runtime.
    pub fn command(&self, arguments: &[&str]) -> Command {
        if !self.config.is_null() {
            // A test whose bundle cannot be written fails in the next line.
            let _ = std::fs::write(self.path().join("config.json"), self.config.to_string());
        }
        let mut command = Command::new("timeout");
        command.args(["-k5", LONGEST]);
        // Another runtime may be asked the same.
        match std::env::var_os("OCI_RUNTIME") {
            Some(other) => command.arg(other),
            None => command.arg(coracle()).arg("oci"),
        };
        command.arg("--root").arg(self.root()).args(arguments).current_dir(self.path());
        command.stdin(Stdio::null());
        command
    }

    /// What a command says and how it ends. Output goes through files: a container that is left running keeps a pipe
    /// open.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let open = || tempfile::tempfile_in(self.path());
        let (mut out, mut err) = (open()?, open()?);
        let status = self.command(arguments).stdout(out.try_clone()?).stderr(err.try_clone()?).status()?;
        let read = |file: &mut std::fs::File| -> std::io::Result<Vec<u8>> {
            use std::io::{Read, Seek};
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        Ok(Output { status, stdout: read(&mut out)?, stderr: read(&mut err)? })
    }

    /// Runs a command that must succeed; what it printed.
    ///
    /// # Errors
    /// With what it said.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {:?} {said}", output.status.code());
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Runs the container in the foreground; its exit code, what it printed, and what was said beside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_container(&self) -> anyhow::Result<(i32, String, String)> {
        let output = self.output(&["run", &self.id])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// What a script in the container prints; it must end well.
    ///
    /// # Errors
    /// With what was said.
    pub fn says(&mut self, script: &str) -> anyhow::Result<String> {
        self.script(script);
        let (code, out, err) = self.run_container()?;
        ensure!(code == 0, "{script}: {code} {out} {err}");
        Ok(out)
    }

    /// Runs a command that must fail; its code and what it said.
    ///
    /// # Errors
    /// When it does not.
    pub fn refused(&self, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
        let output = self.output(arguments)?;
        ensure!(!output.status.success(), "{arguments:?} succeeded");
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        Ok((output.status.code().unwrap_or(-1), said))
    }

    /// The state of the container.
    ///
    /// # Errors
    /// When there is none.
    pub fn state(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.run(&["state", &self.id])?)?)
    }

    fn containers(&self) -> Vec<(PathBuf, String)> {
        let entries = std::fs::read_dir(self.root()).into_iter().flatten().flatten();
        entries.map(|it| (it.path(), it.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Folders of the bundle's cgroup that are there.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|it| it.path());
        let roots = roots.chain(["/sys/fs/cgroup".into()]);
        roots.map(|root: PathBuf| root.join(&self.id)).filter(|it| it.is_dir()).collect()
    }
}

/// A root file system with busybox.
///
/// # Errors
/// When there is none on this machine.
pub fn busybox(rootfs: &Path) -> anyhow::Result<()> {
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
        std::fs::create_dir_all(rootfs.join(folder))?;
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("package busybox-static")?;
    for tool in TOOLS {
        let link = rootfs.join("bin").join(tool);
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}
