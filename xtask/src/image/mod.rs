//! `cargo xtask image --board SLUG`: a bootable disk image from our program and Debian's packages.
//!
//! ```text
//! 1  boot    FAT: kernel, initial ramdisk, device tree, config.json
//! 2  root A  squashfs: modules, coracle, what a board needs beside it     3  root B  the same
//! 5  state   ext4: clock, seed, identity (4 in a GPT)
//! 6  data    ext4: images, volumes, containers; grows at the first boot (5 in a GPT)
//! ```

pub mod board;
mod card;
pub mod ramdisk;
mod root;
mod unified;

use crate::debian::{Suites, run};
use crate::{cross, install};
use anyhow::Context;
use board::{Board, Start};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is fetched and made.
const FOLDER: &str = "target/image";

/// Debian packages that build images.
const TOOLS: &[&str] = &["squashfs-tools", "mtools", "dosfstools", "fdisk", "e2fsprogs", "xz-utils"];

/// A finished image, and what a machine without firmware starts it with.
#[derive(Debug)]
pub struct Image {
    /// The disk.
    pub disk: PathBuf,
    /// The kernel, as on its boot partition.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub ramdisk: PathBuf,
    /// The device tree.
    pub device_tree: Option<PathBuf>,
    /// Bytes of the root file system.
    pub root_bytes: u64,
}

/// What an image is to have.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// A folder whose files are put into the root on top.
    pub add: Option<&'a Path>,
    /// A folder with a project and, in `images`, its images.
    pub preload: Option<&'a Path>,
    /// NetworkManager, with what it needs.
    pub network: bool,
    /// Modules beside the board's own.
    pub modules: &'a [&'a str],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { add: None, preload: None, network: true, modules: &[] }
    }
}

/// Builds it. `name`: of its folder, beside others.
///
/// # Errors
/// What cannot be fetched or built.
pub fn build(board: &Board, options: Options<'_>, name: &str) -> anyhow::Result<Image> {
    install::packages(TOOLS)?;
    if board.start == Start::Bios {
        install::packages(&["syslinux", "faketime"])?;
    }
    let program = cross::build(board.target)?;
    let folder = std::path::absolute(Path::new(FOLDER).join(board.slug))?;
    std::fs::create_dir_all(&folder)?;
    let suites = Suites::open_for(&folder.join("debian"), &["stable"], Some(board.architecture))?;
    let kernel = kernel(board, &suites, &folder)?;
    let packages = packages(&suites, &folder)?;
    let work = folder.join(name);
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    let epoch = epoch()?;
    let boot = work.join("boot");
    std::fs::create_dir(&boot)?;
    let ramdisk = ramdisk(board, &program, &kernel, &work.join("ramdisk"))?;
    match board.start {
        Start::Files | Start::Loader | Start::Bios => {
            std::fs::copy(&kernel.image, boot.join("vmlinuz"))?;
            std::fs::write(boot.join("initrd.img"), ramdisk)?;
            std::fs::write(boot.join("cmdline.txt"), format!("{}\n", board.command_line))?;
        }
        Start::Uefi { stub, program } => {
            let stub = unpacked(&suites, &folder, "systemd-boot-efi")?.join("usr/lib/systemd/boot/efi").join(stub);
            let stub = std::fs::read(&stub).with_context(|| stub.display().to_string())?;
            let kernel = std::fs::read(&kernel.image)?;
            let sections: [(&str, &[u8]); 3] =
                [(".cmdline", board.command_line.as_bytes()), (".linux", &kernel), (".initrd", &ramdisk)];
            std::fs::create_dir_all(boot.join("EFI/BOOT"))?;
            std::fs::write(boot.join("EFI/BOOT").join(program), unified::join(&stub, &sections)?)?;
        }
    }
    std::fs::write(boot.join("device-type.json"), format!("{{\"slug\":\"{}\"}}\n", board.slug))?;
    std::fs::create_dir(boot.join("system-connections"))?;
    for (package, file, name) in board.loader {
        let from = unpacked(&suites, &folder, package)?.join(file);
        std::fs::copy(&from, boot.join(name)).with_context(|| from.display().to_string())?;
    }
    if let Some((name, text)) = board.loader_settings {
        let path = boot.join(name);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        std::fs::write(path, text.replace("WORDS", board.command_line))?;
    }
    let raw = match board.raw {
        Some((package, file, place)) => Some((unpacked(&suites, &folder, package)?.join(file), place)),
        None => None,
    };
    for tree in device_trees(board, &kernel)? {
        std::fs::copy(kernel.trees.join(&tree), boot.join(&tree))?;
    }
    let tree = work.join("root");
    let mut firmware = Vec::new();
    for (package, file) in board.firmware {
        firmware.push((unpacked(&suites, &folder, package)?, *file));
    }
    let parts = root::Parts {
        board,
        program: &program,
        modules: &kernel.modules,
        packages: &packages,
        firmware: &firmware,
        network: options.network,
        more: options.modules,
        add: options.add,
        epoch,
    };
    root::make(&parts, &tree)?;
    let root = work.join("root.squashfs");
    let time = epoch.to_string();
    let words = [
        "-noappend", "-quiet", "-no-progress", "-all-root", "-comp", "zstd", "-Xcompression-level", "19",
        "-mkfs-time", &time, "-all-time", &time,
    ];
    run(Command::new("mksquashfs").env_remove("SOURCE_DATE_EPOCH").arg(&tree).arg(&root).args(words))?;
    let disk = work.join("disk.img");
    card::write(
        &card::Parts {
            boot: &boot,
            root: &root,
            preload: options.preload,
            raw: raw.as_ref().map(|(file, place)| (file.as_path(), *place)),
            syslinux: board.start == Start::Bios,
            table: board.table,
            epoch,
        },
        &work,
        &disk,
    )?;
    Ok(Image {
        kernel: boot.join("vmlinuz"),
        ramdisk: boot.join("initrd.img"),
        device_tree: board.device_trees.first().map(|tree| boot.join(tree)),
        root_bytes: std::fs::metadata(&root)?.len(),
        disk,
    })
}

/// Builds it twice: the same files give the same image.
///
/// # Errors
/// Where they differ.
pub fn compare(board: &Board) -> anyhow::Result<()> {
    let (one, other) = (build(board, Options::default(), "image")?, build(board, Options::default(), "again")?);
    run(Command::new("cmp").arg(&one.disk).arg(&other.disk))?;
    println!(
        "{}: twice the same bytes; root slot {:.1} MiB",
        board.slug,
        one.root_bytes as f64 / f64::from(1 << 20)
    );
    Ok(())
}

/// The time in everything that has one: of the last commit.
fn epoch() -> anyhow::Result<u64> {
    let output = Command::new("git").args(["log", "-1", "--format=%ct"]).output().context("starting git")?;
    let text = String::from_utf8(output.stdout)?;
    text.trim().parse().context("the last commit has no time")
}

/// Debian's kernel of a board.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel itself.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
    trees: PathBuf,
}

/// Fetches it.
///
/// # Errors
/// When it cannot be fetched.
pub fn kernel_of(board: &Board) -> anyhow::Result<Kernel> {
    let folder = std::path::absolute(Path::new(FOLDER).join(board.slug))?;
    std::fs::create_dir_all(&folder)?;
    kernel(board, &Suites::open_for(&folder.join("debian"), &["stable"], Some(board.architecture))?, &folder)
}

fn kernel(board: &Board, suites: &Suites, folder: &Path) -> anyhow::Result<Kernel> {
    let needs = suites.depends(board.kernel)?;
    let package = needs.iter().find(|name| name.starts_with("linux-image-"));
    let package = package.with_context(|| format!("{} needs no kernel: {needs:?}", board.kernel))?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let root = unpacked(suites, folder, package)?;
    let modules = ["usr/lib/modules", "lib/modules"].map(|it| root.join(it).join(&release));
    let modules = modules.into_iter().find(|it| it.exists()).context("the kernel has no modules")?;
    let image = root.join(format!("boot/vmlinuz-{release}"));
    Ok(Kernel { image, modules, trees: root.join(format!("usr/lib/linux-image-{release}")) })
}

/// Names of its device trees, the emulated machine's first.
fn device_trees(board: &Board, kernel: &Kernel) -> anyhow::Result<Vec<String>> {
    let Some(first) = board.device_trees.first() else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&kernel.trees).with_context(|| kernel.trees.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if board.device_trees.iter().any(|begin| name.starts_with(begin)) {
            names.push(name);
        }
    }
    anyhow::ensure!(names.iter().any(|it| it == first), "the kernel has no device tree {first}");
    names.sort_by_key(|name| (name != first, name.clone()));
    Ok(names)
}

/// One package without what it needs, unpacked.
fn unpacked(suites: &Suites, folder: &Path, package: &str) -> anyhow::Result<PathBuf> {
    let stamp = folder.join(format!("{package}.unpacked"));
    let root = folder.join("debian").join(package);
    if !stamp.exists() {
        println!("fetching {package}");
        suites.unpack(package)?;
        std::fs::write(&stamp, "")?;
    }
    Ok(root)
}

/// Packages that parts of the root are taken from, unpacked.
fn packages(suites: &Suites, folder: &Path) -> anyhow::Result<PathBuf> {
    let into = folder.join("packages");
    let stamp = folder.join("packages.unpacked");
    let wanted = root::PACKAGES.join(" ");
    if std::fs::read_to_string(&stamp).is_ok_and(|it| it == wanted) {
        return Ok(into);
    }
    let _ = std::fs::remove_dir_all(&into);
    println!("fetching {wanted}");
    suites.unpack_all(root::PACKAGES, &into)?;
    std::fs::write(stamp, wanted)?;
    Ok(into)
}

fn ramdisk(board: &Board, program: &Path, kernel: &Kernel, tree: &Path) -> anyhow::Result<Vec<u8>> {
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "etc/coracle", "sbin"] {
        std::fs::create_dir_all(tree.join(folder))?;
    }
    std::fs::copy(program, tree.join("init"))?;
    std::os::unix::fs::symlink("../init", tree.join("sbin/modprobe"))?;
    std::fs::write(tree.join("etc/coracle/initial-ramdisk"), "")?;
    let release = kernel.modules.file_name().context("a release")?;
    let chosen = coracle_tests::modules::choose(&kernel.modules, board.early, &[])?;
    coracle_tests::modules::copy(
        &kernel.modules,
        &chosen,
        board.signatures,
        &tree.join("lib/modules").join(release),
    )?;
    let mut archive = ramdisk::Archive::default();
    archive.tree(tree, "")?;
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.finish()
}
