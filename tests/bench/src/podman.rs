//! The peer: Debian's podman with crun, in folders of its own.

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// With a store of its own below `folder`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // crun refuses a v1 hierarchy with an empty v2 one beside it; in this mount namespace there is none.
        let _ = nix::mount::umount("/sys/fs/cgroup/unified");
        Ok(Self { folder: folder.to_owned() })
    }

    /// A podman command.
    pub fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.folder.join("root"))
            .arg("--runroot")
            .arg(self.folder.join("run"))
            .args([
                "--cgroup-manager=cgroupfs",
                "--storage-driver=overlay",
                "--events-backend=file",
                "--runtime=crun",
            ])
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    /// Runs one that must succeed.
    ///
    /// # Errors
    /// With what it said.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command().args(arguments).output().context("running podman")?;
        ensure!(
            output.status.success(),
            "podman {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let _ = self.run(&["rm", "-f", "-t", "0", "-a"]);
        let _ = self.run(&["rmi", "-f", "-a"]);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.clear();
        for part in ["root/overlay", "root"] {
            let _ = nix::mount::umount(&self.folder.join(part));
        }
    }
}
