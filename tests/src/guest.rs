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

/// A newer QEMU than this machine's, where `cargo xtask test` has put one.
pub const EMULATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest/qemu-system-x86_64");

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

/// A kernel that stands still for two minutes ends and says where, instead of holding the test until its time is over.
const STANDSTILL: &str = "watchdog_thresh=60 softlockup_panic=1";

/// A virtual machine that is to be started.
#[derive(Debug, Clone)]
pub struct Guest {
    kernel: Kernel,
    files: Vec<(PathBuf, String)>,
    programs: Vec<PathBuf>,
    arguments: Vec<String>,
    longest: Duration,
    first: First,
    /// More on the kernel's command line.
    words: String,
    /// More programs that `coracle init` keeps running.
    kept: String,
}

/// The first process.
#[derive(Debug, Clone, PartialEq, Eq)]
enum First {
    /// The script itself.
    Script,
    /// systemd, which runs the script as a service.
    Systemd,
    /// `coracle init`, which runs it as a program of the image's; these modules are its to load.
    Init(Vec<&'static str>),
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
            first: First::Script,
            words: String::new(),
            kept: String::new(),
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
        self.first = First::Systemd;
        self.program(Path::new("/usr/bin/systemctl"))
    }

    /// `coracle init` as its first process, on what it finds: disks, a network, a watchdog. The script is one of the
    /// programs that it keeps running; `modules` are there beside those that every test needs, and nothing has loaded any.
    #[must_use]
    pub fn init(mut self, modules: &[&'static str]) -> Self {
        self.first = First::Init(modules.to_vec());
        self
    }

    /// More words for the kernel's command line.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.words = words.to_owned();
        self
    }

    /// One more program that `coracle init` keeps running, as a line of `/etc/coracle/programs`.
    #[must_use]
    pub fn keeps(mut self, line: &str) -> Self {
        self.kept = format!("{line}\n");
        self
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
        let (text, ended) = self.start(script)?;
        let said = text.split_once("SCRIPT BEGINS\n").and_then(|(_, rest)| rest.split_once("SCRIPT ENDS\n"));
        said.map(|(said, _)| said.to_owned()).with_context(|| format!("{ended}: {text}"))
    }

    /// Runs a script that the machine's reset ends; what it wrote.
    ///
    /// # Errors
    /// When the machine cannot be made, or is not reset.
    pub fn run_until_reset(&self, script: &str) -> anyhow::Result<String> {
        let (text, ended) = self.start(script)?;
        ensure!(ended == "exit status: 0" && !text.contains("SCRIPT ENDS"), "{ended}: {text}");
        let said = text.split_once("SCRIPT BEGINS\n").map(|(_, said)| said.to_owned());
        said.with_context(|| format!("the script was not reached: {text}"))
    }

    /// What it wrote, and how it ended.
    fn start(&self, script: &str) -> anyhow::Result<(String, String)> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        self.fill(&root, &self.kernel.modules, script)?;
        let initrd = folder.path().join("initrd");
        let pack = "find . | busybox cpio -o -H newc > ../initrd";
        run(Command::new("sh").args(["-c", pack]).current_dir(&root))?;
        let output = Command::new("timeout")
            .args(["--kill-after=5", &self.longest.as_secs().to_string()])
            .arg(if Path::new(EMULATOR).exists() { EMULATOR } else { "qemu-system-x86_64" })
            .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", MEMORY, "-smp", "2", "-nographic", "-no-reboot", "-kernel"])
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 loglevel=1 panic=-1 {STANDSTILL} cgroup_no_v1=all systemd.show_status=0 {}",
                self.words
            ))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .output()
            .context("starting qemu-system-x86_64")?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let text = text + &String::from_utf8_lossy(&output.stderr);
        Ok((text, output.status.to_string()))
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
        if let First::Init(more) = &self.first {
            return self.fill_for_init(root, more, script);
        }
        if self.first == First::Systemd {
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

impl Guest {
    fn fill_for_init(&self, root: &Path, more: &[&str], script: &str) -> anyhow::Result<()> {
        let kernel = self.kernel.modules.parent().context("a folder of modules")?;
        let wanted: Vec<&str> =
            ["overlay", "virtio_pci", "virtio_blk", "virtio_net"].iter().chain(more).copied().collect();
        // A watchdog in software has no device that would call for it.
        let early = ["overlay"].into_iter().chain(more.contains(&"softdog").then_some("softdog"));
        let chosen = crate::modules::choose(kernel, &wanted, &early.collect::<Vec<_>>())?;
        let release = kernel.file_name().context("a release")?;
        crate::modules::copy(
            kernel,
            &chosen,
            crate::modules::Signatures::Kept,
            &root.join("lib/modules").join(release),
        )?;
        let _ = std::fs::remove_dir_all(root.join("modules"));
        std::fs::create_dir_all(root.join("modules"))?;
        std::fs::create_dir_all(root.join("sbin"))?;
        for name in ["init", "modprobe"] {
            std::os::unix::fs::symlink("/bin/coracle", root.join("sbin").join(name))?;
        }
        let settings = root.join("etc/coracle");
        std::fs::create_dir_all(&settings)?;
        std::fs::write(settings.join("programs"), format!("script /script\n{}", self.kept))?;
        std::fs::write(root.join("etc/machine-id"), "")?;
        let init = INIT.replace("for module in /modules/*; do insmod $module; done\n", "");
        let init =
            init.replace("cp -a /bin", "cp -a /sbin /bin").replace("/newroot /script", "/newroot /sbin/init");
        write_script(&root.join("init"), &init)?;
        let begin = format!("{ENVIRONMENT}exec > /dev/console 2>&1\n{BEGIN}");
        write_script(
            &root.join("script"),
            &format!("{begin}{script}\necho 'SCRIPT ENDS'\nkill -USR2 1; sleep 1000\n"),
        )
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
