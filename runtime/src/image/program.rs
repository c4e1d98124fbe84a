//! The program that an image starts, found in its layers, and whether this processor can run it: images that name no
//! variant are built for what their builder had, and end with an illegal instruction on an older board.

use super::arm::{self, Attributes, Version};
use super::config::{DEFAULT_PATH, ImageConfig};
use super::platform::Platform;
use crate::beneath::names;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Links that are followed, as the kernel does (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Scripts that are interpreted by scripts, as the kernel does (execve(2)).
const MAX_SCRIPTS: usize = 5;

/// Bytes of a script's first line (`BINPRM_BUF_SIZE`).
const FIRST_LINE: u64 = 256;

/// Says why the image's program does not run on this processor; `None`: it does, or nothing is known against it. `layers`
/// are folders, topmost first.
pub fn unfit(config: &ImageConfig, layers: &[PathBuf], platform: &Platform) -> Option<String> {
    if platform.architecture != "arm" {
        return None;
    }
    let newest = match platform.variant.as_str() {
        "v5" => Version::V5,
        "v6" => Version::V6K,
        _ => Version::V7,
    };
    let (program, needs) = needs(config, &Layers(layers))?;
    (needs.version > newest).then(|| {
        let program = crate::untrusted::one_line(&program.to_string_lossy());
        format!("its program {program} needs {}; this board is {platform}", name_of(needs.version))
    })
}

fn name_of(version: Version) -> &'static str {
    match version {
        Version::V5 => "ARMv5",
        Version::V6 | Version::V6K => "ARMv6",
        Version::V6T2 => "ARMv6 with Thumb-2",
        Version::V7 => "ARMv7",
        Version::V8 => "ARMv8",
    }
}

/// The first program that the kernel would load, and what it says of itself.
fn needs(config: &ImageConfig, layers: &Layers<'_>) -> Option<(PathBuf, Attributes)> {
    let words = config.entrypoint.iter().chain(&config.cmd);
    let mut program = PathBuf::from(words.into_iter().next()?);
    for _ in 0..MAX_SCRIPTS {
        let file = File::open(find(config, layers, &program)?).ok()?;
        let mut line = Vec::new();
        (&file).take(FIRST_LINE).read_to_end(&mut line).ok()?;
        let Some(rest) = line.strip_prefix(b"#!") else {
            return Some((program, arm::attributes(&file).ok()??));
        };
        let rest = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let interpreter = rest.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())?;
        program = PathBuf::from(OsStr::from_bytes(interpreter));
    }
    None
}

/// Where a program's file is, as execvp(3) looks for it.
fn find(config: &ImageConfig, layers: &Layers<'_>, program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return layers.file(&Path::new(&config.working_dir).join(program));
    }
    let own = config.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
    own.unwrap_or(DEFAULT_PATH).split(':').find_map(|folder| layers.file(&Path::new(folder).join(program)))
}

/// Layers as the kernel's overlay shows them, topmost first.
struct Layers<'a>(&'a [PathBuf]);

enum Shown {
    Folder(Vec<usize>),
    Other(usize, Metadata),
}

impl Layers<'_> {
    /// The file that a path shows, with links followed inside the image.
    fn file(&self, path: &Path) -> Option<PathBuf> {
        let mut todo: Vec<OsString> = names(path).rev().collect();
        // The folder so far, and for it and each one above, the layers that it is in.
        let mut at = PathBuf::new();
        let mut folders: Vec<Vec<usize>> = vec![(0..self.0.len()).collect()];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                if at.pop() {
                    folders.pop();
                }
                continue;
            }
            let next = at.join(&name);
            match self.look(folders.last()?, &next)? {
                Shown::Folder(layers) => {
                    folders.push(layers);
                    at = next;
                }
                Shown::Other(layer, metadata) if metadata.is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    let target = std::fs::read_link(self.0[layer].join(&next)).ok()?;
                    if target.is_absolute() {
                        at.clear();
                        folders.truncate(1);
                    }
                    todo.extend(names(&target).rev());
                }
                Shown::Other(layer, metadata) if metadata.is_file() && todo.is_empty() => {
                    return Some(self.0[layer].join(next));
                }
                Shown::Other(..) => return None,
            }
        }
        None
    }

    /// What the layers of a folder show under a name in it (Documentation/filesystems/overlayfs.rst).
    fn look(&self, layers: &[usize], path: &Path) -> Option<Shown> {
        let mut folder = Vec::new();
        for &layer in layers {
            let Ok(metadata) = std::fs::symlink_metadata(self.0[layer].join(path)) else { continue };
            let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
            if metadata.is_dir() {
                folder.push(layer);
                if is_opaque(&self.0[layer].join(path)) {
                    break;
                }
            } else if is_whiteout || !folder.is_empty() {
                break;
            } else {
                return Some(Shown::Other(layer, metadata));
            }
        }
        (!folder.is_empty()).then_some(Shown::Folder(folder))
    }
}

fn is_opaque(folder: &Path) -> bool {
    let mut value = [0; 1];
    let read = rustix::fs::lgetxattr(folder, super::layer::OPAQUE, &mut value[..]);
    read.is_ok_and(|length| length == 1) && value == *b"y"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::arm::tests::program;
    use std::os::unix::fs::symlink;

    /// Two layers, the upper one first.
    fn layers() -> (tempfile::TempDir, [PathBuf; 2]) {
        let folder = tempfile::tempdir().expect("a folder");
        let layers = ["upper", "lower"].map(|name| folder.path().join(name));
        for path in ["upper/bin", "lower/bin", "lower/usr/local/bin", "upper/opt"] {
            std::fs::create_dir_all(folder.path().join(path)).expect("made");
        }
        let write =
            |path: &str, content: &[u8]| std::fs::write(folder.path().join(path), content).expect("written");
        write("lower/bin/sh", &program(b"\x06\x0a"));
        write("upper/bin/old", &program(b"\x06\x07"));
        write("lower/usr/local/bin/run", b"#! /bin/sh -e\nexec app\n");
        write("upper/opt/app", b"#!/opt/app\n");
        symlink("/../bin/../bin/sh", folder.path().join("upper/opt/link")).expect("linked");
        symlink("loop", folder.path().join("upper/opt/loop")).expect("linked");
        (folder, layers)
    }

    fn config(words: &[&str], working_dir: &str) -> ImageConfig {
        let cmd = words.iter().map(|&word| word.to_owned()).collect();
        ImageConfig { cmd, working_dir: working_dir.to_owned(), ..ImageConfig::default() }
    }

    fn board(variant: &str) -> Platform {
        Platform { os: "linux".into(), architecture: "arm".into(), variant: variant.into() }
    }

    #[test]
    fn a_program_that_is_too_new_is_named_with_what_it_needs() {
        let (_folder, layers) = layers();
        let says = |words: &[&str], cwd: &str, variant: &str| unfit(&config(words, cwd), &layers, &board(variant));
        let wanted = Some("its program /bin/sh needs ARMv7; this board is linux/arm/v6".to_owned());
        assert_eq!(says(&["/bin/sh", "-c", "x"], "", "v6"), wanted);
        assert_eq!(says(&["run"], "", "v6"), wanted, "a script of the search path, by its interpreter");
        assert!(says(&["./link"], "/opt", "v6").expect("unfit").starts_with("its program ./link needs ARMv7"));
        assert_eq!(says(&["/bin/sh"], "", "v7"), None);
        assert_eq!(says(&["/bin/old"], "", "v6"), None);
        let other = Platform { architecture: "amd64".into(), ..board("") };
        assert_eq!(unfit(&config(&["/bin/sh"], ""), &layers, &other), None);
    }

    #[test]
    fn what_is_not_found_or_goes_in_circles_is_nothing_against_it() {
        let (_folder, layers) = layers();
        for words in [&["/none"][..], &["/opt/loop"], &["/opt/app"], &["/opt"], &["../../../etc/passwd"], &[]] {
            assert_eq!(unfit(&config(words, "/opt"), &layers, &board("v6")), None, "{words:?}");
        }
    }

    #[test]
    fn what_an_upper_layer_hides_is_not_there() {
        let (folder, layers) = layers();
        let of = |path: &str| Layers(&layers).file(Path::new(path));
        assert_eq!(of("/bin/sh"), Some(layers[1].join("bin/sh")));
        assert_eq!(of("bin/../bin/old"), Some(layers[0].join("bin/old")));
        // A file hides a folder.
        std::fs::write(folder.path().join("upper/usr"), "").expect("written");
        assert_eq!(of("/usr/local/bin/run"), None);
        let opaque = rustix::fs::lsetxattr(
            folder.path().join("upper/bin"),
            crate::image::layer::OPAQUE,
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        if opaque.is_err() {
            println!("skipped: trusted attributes need root and a file system that keeps them");
            return;
        }
        assert_eq!(of("/bin/sh"), None);
    }
}
