//! Edits of others' sources, for builds that their publishers do not test. Each is a patch as it would be sent to them,
//! in `xtask/patches/`; what it changes must be found exactly once, so that a new version is looked at and not guessed.

use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A published crate that is edited.
struct Edited {
    name: &'static str,
    version: &'static str,
    patches: &'static [&'static str],
}

const CRATES: &[Edited] = &[
    Edited {
        name: "libcontainer",
        version: "0.7.0",
        patches: &[
            include_str!("../patches/libcontainer-0.7.0-devpts-magic.patch"),
            include_str!("../patches/libcontainer-0.7.0-32-bit-ids.patch"),
            include_str!("../patches/libcontainer-0.7.0-intel-rdt.patch"),
            include_str!("../patches/libcontainer-0.7.0-json-values.patch"),
        ],
    },
    Edited {
        name: "oci-spec",
        version: "0.10.0",
        patches: &[
            include_str!("../patches/oci-spec-0.10.0-cpu-affinity.patch"),
            include_str!("../patches/oci-spec-0.10.0-json-values.patch"),
        ],
    },
];

/// The standard library's: 32-bit musl has had a clock of 64 bits since 1.2, and std asks glibc's alone.
pub const STD: &str = include_str!("../patches/std-1.95-musl-time64.patch");

/// Where edited copies are.
const FOLDER: &str = "target/edited";

/// Makes edited copies of the crates, and returns the value of cargo's `--config` that has it take them. Overriding by
/// `paths` leaves `Cargo.lock` as it is, which `[patch]` would not.
///
/// # Errors
/// When a crate is not in the dependency tree in this version, or a patch does not fit.
pub fn config() -> anyhow::Result<String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = tree["packages"].as_array().context("cargo metadata has no packages")?;
    let mut paths = Vec::new();
    for edited in CRATES {
        let Edited { name, version, patches } = edited;
        let is_it = |package: &&serde_json::Value| package["name"] == *name && package["version"] == *version;
        let package = packages.iter().find(is_it);
        let package =
            package.with_context(|| format!("{name} {version} is not in Cargo.lock: look at xtask/patches"))?;
        let manifest = Path::new(package["manifest_path"].as_str().context("a manifest's path")?);
        let source = manifest.parent().context("a folder")?;
        let copy = std::path::absolute(Path::new(FOLDER).join(format!("{name}-{version}")))?;
        copy_edited(source, &copy, patches).with_context(|| format!("editing {name} {version}"))?;
        paths.push(copy);
    }
    Ok(format!("paths={}", serde_json::to_string(&paths)?))
}

/// A copy of a folder with patches applied; one that is there already and is the same is left, so that nothing is built
/// again.
fn copy_edited(source: &Path, copy: &Path, patches: &[&str]) -> anyhow::Result<()> {
    let stamp = copy.with_extension("stamp");
    let wanted = patches.concat();
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) && copy.exists() {
        return Ok(());
    }
    if copy.exists() {
        std::fs::remove_dir_all(copy)?;
    }
    copy_folder(source, copy)?;
    for patch in patches {
        apply(copy, patch)?;
    }
    Ok(std::fs::write(stamp, wanted)?)
}

fn copy_folder(source: &Path, copy: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(copy)?;
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let to = copy.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// One place of one file.
#[derive(Debug, PartialEq, Eq)]
struct Hunk {
    file: PathBuf,
    before: String,
    after: String,
}

/// Applies a unified patch to a folder. Line numbers do not count: a place is found by its text.
///
/// # Errors
/// A place that is not there exactly once.
pub fn apply(folder: &Path, patch: &str) -> anyhow::Result<()> {
    let hunks = parse(patch)?;
    ensure!(!hunks.is_empty(), "the patch changes nothing");
    let mut texts: BTreeMap<PathBuf, String> = BTreeMap::new();
    for hunk in hunks {
        let path = folder.join(&hunk.file);
        let text = match texts.remove(&path) {
            Some(text) => text,
            None => std::fs::read_to_string(&path).with_context(|| path.display().to_string())?,
        };
        let edited = replace_once(&text, &hunk.before, &hunk.after);
        texts.insert(path, edited.with_context(|| format!("{}: look at the patch", hunk.file.display()))?);
    }
    // All places of a file or none.
    texts.iter().try_for_each(|(path, text)| Ok(std::fs::write(path, text)?))
}

/// Whether a patch was applied to a folder.
pub fn is_applied(folder: &Path, patch: &str) -> bool {
    let there = |hunk: &Hunk| {
        let text = std::fs::read_to_string(folder.join(&hunk.file)).unwrap_or_default();
        text.matches(&hunk.after).count() == 1
    };
    parse(patch).is_ok_and(|hunks| hunks.iter().all(there))
}

fn replace_once(text: &str, before: &str, after: &str) -> anyhow::Result<String> {
    let count = text.matches(before).count();
    ensure!(count == 1, "found {count} times, not once:\n{before}");
    Ok(text.replacen(before, after, 1))
}

fn parse(patch: &str) -> anyhow::Result<Vec<Hunk>> {
    let (mut hunks, mut file, mut inside) = (Vec::new(), PathBuf::new(), false);
    for line in patch.lines() {
        if let Some(path) = line.strip_prefix("+++ b/") {
            (file, inside) = (PathBuf::from(path), false);
        } else if line.starts_with("@@ ") {
            hunks.push(Hunk { file: file.clone(), before: String::new(), after: String::new() });
            inside = true;
        } else if let Some(hunk) = hunks.last_mut().filter(|_| inside && !line.starts_with("--- ")) {
            let (sign, rest) = line.split_at_checked(1).unwrap_or((" ", ""));
            for (wanted, text) in [("-", &mut hunk.before), ("+", &mut hunk.after)] {
                if sign == wanted || sign == " " {
                    text.push_str(rest);
                    text.push('\n');
                }
            }
            ensure!(matches!(sign, " " | "-" | "+"), "no line of a patch: {line:?}");
        } else {
            inside = false;
        }
    }
    Ok(hunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Why.\n\n--- a/src/x.rs\n+++ b/src/x.rs\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n@@ -9 +9 @@\n-nine\n+9\n";

    #[test]
    fn a_place_is_found_by_its_text_and_must_be_there_once() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("src")).expect("made");
        let file = folder.path().join("src/x.rs");
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        write("zero\none\ntwo\nthree\nfour\nnine\n");
        assert!(!is_applied(folder.path(), PATCH));
        apply(folder.path(), PATCH).expect("fits");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "zero\none\n2\nthree\nfour\n9\n");
        assert!(is_applied(folder.path(), PATCH));
        for text in ["one\n2\nthree\nnine\n", "one\ntwo\nthree\none\ntwo\nthree\nnine\n"] {
            write(text);
            let refused = format!("{:#}", apply(folder.path(), PATCH).expect_err("does not fit"));
            assert!(refused.contains("src/x.rs") && refused.contains("not once"), "{refused}");
        }
        assert!(apply(folder.path(), "nothing\n").is_err());
    }

    #[test]
    fn our_patches_are_patches_with_their_reasons() {
        for patch in CRATES.iter().flat_map(|edited| edited.patches).chain([&STD]) {
            assert!(!parse(patch).expect("a patch").is_empty());
            assert!(patch.starts_with("Subject: "), "it says why");
        }
    }
}
