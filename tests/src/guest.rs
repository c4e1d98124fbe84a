//! A virtual machine with Debian's kernel and nothing else: cgroup v2 alone, whatever this machine has.
//!
//! Its root is in memory. It has the program, busybox and what a test gives it, runs one script as its first process,
//! and everything that this writes is the answer.

use crate::board::{coracle, run};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest life in seconds: every instruction is translated, because not every machine lends its own virtualisation.
const LONGEST: &str = "300";

/// Memory in MiB: the root, the image and what the services use.
const MEMORY: &str = "512";

/// Where the kernel is kept for the next time.
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest");

/// What the kernel does not have built in and containers need.
const MODULES: &[&str] = &["fs/overlayfs/overlay.ko"];

/// Files that a test gives: where from, and where to.
pub type Files<'a> = &'a [(PathBuf, &'a str)];

/// Runs a script in a new machine; what it wrote.
///
/// # Errors
/// When the machine cannot be made, or does not reach the script's end.
pub fn run_in_guest(script: &str, files: Files<'_>) -> anyhow::Result<String> {
    let kernel = kernel()?;
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root");
    fill(&root, &kernel.modules, script, files)?;
    let initrd = folder.path().join("initrd");
    let pack = "find . | busybox cpio -o -H newc > ../initrd";
    run(Command::new("sh").args(["-c", pack]).current_dir(&root))?;
    let output = Command::new("timeout")
        .args(["--kill-after=5", LONGEST, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", MEMORY, "-smp", "2", "-nographic", "-no-reboot", "-nic", "none", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", "console=ttyS0 loglevel=1 panic=-1 cgroup_no_v1=all"])
        .stdin(Stdio::null())
        .output()
        .context("starting qemu-system-x86_64")?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let said = text.split_once("SCRIPT BEGINS\n").and_then(|(_, rest)| rest.split_once("SCRIPT ENDS\n"));
    let errors = String::from_utf8_lossy(&output.stderr);
    said.map(|(said, _)| said.to_owned()).with_context(|| format!("{}: {text}\n{errors}", output.status))
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// Debian's kernel for clouds: the smallest with virtio and cgroup v2.
fn kernel() -> anyhow::Result<Kernel> {
    std::fs::create_dir_all(KERNEL)?;
    let folder = Path::new(KERNEL).canonicalize()?;
    let package = run(Command::new("apt-cache").args(["depends", "--important", "linux-image-cloud-amd64"]))?;
    let name = package
        .split_whitespace()
        .find(|word| {
            word.strip_prefix("linux-image-").is_some_and(|it| it.starts_with(|it: char| it.is_ascii_digit()))
        })
        .context("there is no kernel among Debian's packages: apt-get update")?;
    let version = name.trim_start_matches("linux-image-");
    let root = folder.join(name);
    if !root.exists() {
        let beside = folder.join("new");
        let _ = std::fs::remove_dir_all(&beside);
        std::fs::create_dir(&beside)?;
        let download = ["-q", "-o", "APT::Sandbox::User=root", "download", name];
        run(Command::new("apt-get").args(download).current_dir(&beside))?;
        let archive = std::fs::read_dir(&beside)?.flatten().map(|it| it.path());
        let archive = archive.into_iter().find(|path| path.extension().is_some_and(|it| it == "deb"));
        run(Command::new("dpkg")
            .arg("-x")
            .arg(archive.context("no package was downloaded")?)
            .arg(beside.join("root")))?;
        std::fs::rename(beside.join("root"), &root)?;
    }
    Ok(Kernel {
        image: root.join(format!("boot/vmlinuz-{version}")),
        modules: root.join(format!("lib/modules/{version}/kernel")),
    })
}

/// First process: a root that can be left (pivot_root(2) cannot leave the first one), then the script.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
for module in /modules/*; do insmod $module; done
mount -t tmpfs -o size=70% tmpfs /newroot
cp -a /bin /lib /lib64 /given /script /newroot
mkdir /newroot/proc /newroot/sys /newroot/dev /newroot/run /newroot/tmp /newroot/etc
umount /proc
exec switch_root /newroot /script
";

const PREPARE: &str = "#!/bin/sh
export PATH=/bin HOME=/ RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
echo 'root:x:0:0::/:/bin/sh' > /etc/passwd
echo 'SCRIPT BEGINS'
";

const FINISH: &str = "
echo 'SCRIPT ENDS'
poweroff -f
";

fn fill(root: &Path, modules: &Path, script: &str, files: Files<'_>) -> anyhow::Result<()> {
    for folder in ["bin", "lib", "lib64", "proc", "modules", "newroot", "given"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    let program = coracle();
    copy(&program, &root.join("bin/coracle"))?;
    for library in libraries(&program)? {
        let target = root.join(library.strip_prefix("/").unwrap_or(&library));
        std::fs::create_dir_all(target.parent().context("a folder")?)?;
        copy(&library, &target)?;
    }
    for module in MODULES {
        let path = modules.join(module);
        copy(&path, &root.join("modules").join(path.file_name().context("a name")?))?;
    }
    for (from, to) in files {
        run(Command::new("cp").arg("-a").arg(from).arg(root.join("given").join(to)))?;
    }
    write_script(&root.join("init"), INIT)?;
    write_script(&root.join("script"), &format!("{PREPARE}{script}{FINISH}"))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).map(drop).with_context(|| format!("copying {}", from.display()))
}

fn write_script(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

/// Shared libraries of a program, and what loads them.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let text = run(Command::new("ldd").arg(program))?;
    let found = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    // `/lib` may be a link to `/usr/lib`; the loader is asked for by its old name.
    let found: BTreeSet<PathBuf> =
        found.map(|path| if path.starts_with("/usr") { strip(&path) } else { path }).collect();
    ensure!(found.iter().all(|path| path.exists()), "{found:?}");
    Ok(found)
}

fn strip(path: &Path) -> PathBuf {
    path.strip_prefix("/usr").map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
}
