//! A virtual machine with Debian's kernel and nothing else: cgroup v2 alone, whatever this machine has.
//!
//! Its root is in memory. It has the program, busybox and what a test gives it, runs one script as its first process,
//! and everything that this writes is the answer.

use crate::board::{coracle, run};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Memory in MiB: the root, the image and what the services use.
const MEMORY: &str = "512";

/// Where the kernel is kept for the next time.
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest");

/// What the kernel does not have built in, in an order in which each comes after those it needs: for containers, for
/// disks and for the network.
const MODULES: &[&str] = &[
    "fs/overlayfs/overlay.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/block/loop.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

/// A virtual machine that is to be started.
#[derive(Debug, Clone)]
pub struct Guest {
    kernel: Kernel,
    files: Vec<(PathBuf, String)>,
    programs: Vec<PathBuf>,
    arguments: Vec<String>,
    longest: Duration,
    systemd: bool,
}

impl Guest {
    /// One with nothing but the program. It may have to fetch a kernel, so it comes before a namespace of the test's own.
    ///
    /// # Errors
    /// When there is no kernel.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            kernel: kernel()?,
            files: Vec::new(),
            programs: Vec::new(),
            arguments: vec!["-nic".into(), "none".into()],
            // Every instruction is translated, because not every machine lends its own virtualisation.
            longest: Duration::from_secs(300),
            systemd: false,
        })
    }

    /// Gives it a file or folder, as `/given/NAME`.
    #[must_use]
    pub fn give(mut self, from: &Path, name: &str) -> Self {
        self.files.push((from.to_owned(), name.to_owned()));
        self
    }

    /// Gives it a program of this machine with its libraries, in `/bin`.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.programs.push(path.to_owned());
        self
    }

    /// Debian's systemd as its first process, which runs the script as a service and has no other.
    #[must_use]
    pub fn systemd(mut self) -> Self {
        // The second does the work of the first before a service runs, since systemd 254.
        let programs = ["systemd", "systemd-executor"].map(|name| Path::new(SYSTEMD).join(name));
        self.programs.extend(programs.into_iter().filter(|path| path.exists()));
        self.systemd = true;
        self.program(Path::new("/usr/bin/systemctl"))
    }

    /// A network on which this machine's loopback is 10.0.2.2 (QEMU's user network).
    #[must_use]
    pub fn network(mut self) -> Self {
        self.arguments = vec!["-nic".into(), "user,model=virtio-net-pci".into()];
        self
    }

    /// More of QEMU's own words, such as disks.
    #[must_use]
    pub fn arguments(mut self, words: &[&str]) -> Self {
        self.arguments.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Longest life.
    #[must_use]
    pub fn longest(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// Runs a script in it; what it wrote.
    ///
    /// # Errors
    /// When the machine cannot be made, or does not reach the script's end.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        self.fill(&root, &self.kernel.modules, script)?;
        let initrd = folder.path().join("initrd");
        let pack = "find . | busybox cpio -o -H newc > ../initrd";
        run(Command::new("sh").args(["-c", pack]).current_dir(&root))?;
        let output = Command::new("timeout")
            .args(["--kill-after=5", &self.longest.as_secs().to_string()])
            .args(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", MEMORY, "-smp", "2", "-nographic", "-no-reboot", "-kernel"])
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=ttyS0 loglevel=1 panic=-1 cgroup_no_v1=all systemd.show_status=0"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .output()
            .context("starting qemu-system-x86_64")?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let said = text.split_once("SCRIPT BEGINS\n").and_then(|(_, rest)| rest.split_once("SCRIPT ENDS\n"));
        let errors = String::from_utf8_lossy(&output.stderr);
        said.map(|(said, _)| said.to_owned()).with_context(|| format!("{}: {text}\n{errors}", output.status))
    }

    fn fill(&self, root: &Path, modules: &Path, script: &str) -> anyhow::Result<()> {
        for folder in ["bin", "etc", "lib", "lib64", "proc", "modules", "newroot", "given"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
        for program in [coracle()].iter().chain(&self.programs) {
            copy(program, &root.join("bin").join(program.file_name().context("a name")?))?;
            for library in libraries(program)? {
                let target = root.join(library.strip_prefix("/").unwrap_or(&library));
                std::fs::create_dir_all(target.parent().context("a folder")?)?;
                copy(&library, &target)?;
            }
        }
        for (number, module) in MODULES.iter().enumerate() {
            copy(&modules.join(module), &root.join(format!("modules/{number:02}.ko")))?;
        }
        for (from, to) in &self.files {
            run(Command::new("cp").arg("-a").arg(from).arg(root.join("given").join(to)))?;
        }
        if self.systemd {
            let units = root.join("etc/systemd/system");
            std::fs::create_dir_all(&units)?;
            std::fs::write(units.join("default.target"), "[Unit]\nWants=script.service\n")?;
            std::fs::write(units.join("script.service"), SERVICE)?;
            write_script(&root.join("init"), &INIT.replace("/newroot /script", "/newroot /bin/systemd"))?;
            return write_script(&root.join("script"), &format!("{ENVIRONMENT}{BEGIN}{script}{FINISH}"));
        }
        write_script(&root.join("init"), INIT)?;
        write_script(&root.join("script"), &format!("{ENVIRONMENT}{PREPARE}{BEGIN}{script}{FINISH}"))
    }
}

#[derive(Debug, Clone)]
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// Debian's kernel for clouds: the smallest with virtio and cgroup v2.
fn kernel() -> anyhow::Result<Kernel> {
    std::fs::create_dir_all(KERNEL)?;
    let folder = Path::new(KERNEL).canonicalize()?;
    // Tests that run side by side fetch it once.
    let lock = std::fs::File::open(&folder)?;
    let _lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("waiting for the kernel's package")?;
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
cp -a /bin /etc /lib /lib64 /given /script /newroot
ln -s . /newroot/usr
mkdir /newroot/proc /newroot/sys /newroot/dev /newroot/run /newroot/tmp /newroot/var
umount /proc
exec switch_root /newroot /script
";

const ENVIRONMENT: &str = "#!/bin/sh
export PATH=/bin HOME=/ RUST_BACKTRACE=0
echo 'root:x:0:0::/:/bin/sh' > /etc/passwd
";

const PREPARE: &str = "
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
if ip link set eth0 up 2> /dev/null; then ip addr add 10.0.2.15/24 dev eth0; fi
";

const BEGIN: &str = "
echo 'SCRIPT BEGINS'
";

/// Where Debian has systemd's own programs.
const SYSTEMD: &str = "/usr/lib/systemd";

/// Nothing of a usual machine is there to come before it.
const SERVICE: &str = "[Unit]
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/script
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/console
";

const FINISH: &str = "
echo 'SCRIPT ENDS'
poweroff -f
";

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
