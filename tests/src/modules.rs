//! Kernel modules for an image: which files, and the index that `coracle init` reads (`init/src/modules.rs` has its form).

use anyhow::{Context, ensure};
use object::{Object, ObjectSection};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a module says of itself (`.modinfo`).
#[derive(Debug, Default, PartialEq, Eq)]
struct Module {
    path: PathBuf,
    needs: Vec<String>,
    aliases: Vec<String>,
}

/// Chosen modules with all that they need.
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The index's text.
    pub index: String,
    /// Files, below the folder of modules.
    pub files: BTreeSet<PathBuf>,
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Chooses modules of a kernel: `wanted` are names, or folders below `kernel/` that are taken whole; `early` are those
/// that are loaded at every boot. Names that the kernel has built in are passed over.
///
/// # Errors
/// A name that the kernel does not have at all, or a file that cannot be read.
pub fn choose(folder: &Path, wanted: &[&str], early: &[&str]) -> anyhow::Result<Chosen> {
    let mut files = BTreeMap::new();
    find(folder, Path::new(""), &mut files)?;
    let built_in = std::fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let built_in: BTreeSet<String> = built_in.lines().filter_map(|line| name_of(Path::new(line))).collect();
    let mut order: Vec<(String, Module)> = Vec::new();
    for name in wanted.iter().chain(early) {
        if let Some(below) = name.strip_suffix('/') {
            let below = Path::new("kernel").join(below);
            let names: Vec<String> =
                files.iter().filter(|(_, path)| path.starts_with(&below)).map(|(name, _)| name.clone()).collect();
            ensure!(!names.is_empty(), "the kernel has no modules in {}", below.display());
            for name in names {
                take(folder, &name, &files, &built_in, &mut order)?;
            }
        } else {
            take(folder, &normal(name), &files, &built_in, &mut order)?;
        }
    }
    let by_name: BTreeMap<&String, &Module> = order.iter().map(|(name, module)| (name, module)).collect();
    let mut index = String::new();
    for (name, module) in &order {
        let mut needs = Vec::new();
        all_needs(name, &by_name, &mut needs);
        needs.retain(|it| it != name);
        let needs = needs.iter().map(|it| format!(" {it}")).collect::<String>();
        index.push_str(&format!("m {name} {}{needs}\n", module.path.display()));
    }
    for (name, module) in &order {
        for alias in module.aliases.iter().filter(|it| !it.contains(char::is_whitespace)) {
            index.push_str(&format!("a {alias} {name}\n"));
        }
    }
    for name in early.iter().map(|it| normal(it)).filter(|name| by_name.contains_key(name)) {
        index.push_str(&format!("e {name}\n"));
    }
    Ok(Chosen { index, files: order.into_iter().map(|(_, module)| module.path).collect() })
}

/// What is needed, in the order of loading.
fn all_needs(name: &str, modules: &BTreeMap<&String, &Module>, needs: &mut Vec<String>) {
    if needs.iter().any(|it| it == name) {
        return;
    }
    for need in modules.get(&name.to_owned()).into_iter().flat_map(|module| &module.needs) {
        all_needs(need, modules, needs);
    }
    needs.push(name.to_owned());
}

fn take(
    folder: &Path,
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    built_in: &BTreeSet<String>,
    order: &mut Vec<(String, Module)>,
) -> anyhow::Result<()> {
    if built_in.contains(name) || order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let path = files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
    let module = read(folder, path, files).with_context(|| path.display().to_string())?;
    order.push((name.to_owned(), Module { path: module.path, needs: Vec::new(), aliases: module.aliases }));
    let at = order.len() - 1;
    for need in module.needs {
        take(folder, &need, files, built_in, order)?;
        if !built_in.contains(&need) {
            order[at].1.needs.push(need);
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(normal(name))
}

fn find(root: &Path, below: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            find(root, &path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn read(folder: &Path, path: &Path, files: &BTreeMap<String, PathBuf>) -> anyhow::Result<Module> {
    let file = folder.join(path);
    let bytes = match path.extension() {
        Some(packed) if packed == "xz" => unpack(&file)?,
        _ => std::fs::read(&file)?,
    };
    let elf = object::File::parse(&*bytes)?;
    let section = elf.section_by_name(".modinfo").context("it says nothing of itself")?.data()?.to_vec();
    let mut module = Module { path: path.to_owned(), ..Module::default() };
    for text in section.split(|&byte| byte == 0).filter_map(|text| std::str::from_utf8(text).ok()) {
        match text.split_once('=') {
            Some(("depends", names)) => {
                module.needs.extend(names.split(',').filter(|it| !it.is_empty()).map(normal));
            }
            // What is to be there before it, though it does not call it.
            Some(("softdep", text)) => {
                let pre = text.split("post:").next().unwrap_or_default();
                let names = pre.strip_prefix("pre:").unwrap_or_default().split_whitespace().map(normal);
                // Ciphers by kinds (`crypto-…`), of which there may be none.
                module.needs.extend(names.filter(|name| files.contains_key(name)));
            }
            Some(("alias", alias)) => module.aliases.push(alias.to_owned()),
            _ => {}
        }
    }
    Ok(module)
}

fn unpack(file: &Path) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("xz").arg("-dc").arg(file).output().context("starting xz")?;
    ensure!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Signatures of modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    /// For machines whose firmware verifies the kernel, which then takes no other modules.
    Kept,
    /// The kernel looks at each signature before it loads the module, 0.1 s on an ARM1176; where nothing verifies the
    /// kernel, or the file system that both are on, that shows nothing.
    LeftOut,
}

/// Copies chosen modules and their index to `target`, which becomes `/lib/modules/RELEASE`. Packed ones are unpacked: the
/// file system that they go to packs in a way that is read faster.
///
/// # Errors
/// As the file system says.
pub fn copy(folder: &Path, chosen: &Chosen, signatures: Signatures, target: &Path) -> anyhow::Result<()> {
    for file in &chosen.files {
        let to = target.join(file);
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        let packed = file.extension().is_some_and(|it| it == "xz");
        let mut bytes = if packed { unpack(&folder.join(file))? } else { std::fs::read(folder.join(file))? };
        if signatures == Signatures::LeftOut {
            let length = without_signature(&bytes).len();
            bytes.truncate(length);
        }
        std::fs::write(if packed { to.with_extension("") } else { to }, bytes)?;
    }
    Ok(std::fs::write(target.join("modules.coracle"), chosen.index.replace(".ko.xz", ".ko"))?)
}

/// A module without the signature at its end: the signature, its description of 12 bytes, of which the last four are its
/// length, and a mark (kernel documentation, admin-guide/module-signing; include/linux/module_signature.h).
fn without_signature(module: &[u8]) -> &[u8] {
    let parts = || {
        let rest = module.strip_suffix(b"~Module signature appended~\n")?;
        let (rest, description) = rest.split_last_chunk::<12>()?;
        let length = u32::from_be_bytes(*description.last_chunk()?);
        rest.get(..rest.len().checked_sub(usize::try_from(length).ok()?)?)
    };
    parts().unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::without_signature;

    #[test]
    fn a_signature_is_left_out_and_nothing_else() {
        let signed =
            |length: u8| [b"module", &b"abc"[..], &[0; 11], &[length], b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(&signed(3)), b"module");
        for odd in [b"module".to_vec(), signed(200), b"~Module signature appended~\n".to_vec()] {
            assert_eq!(without_signature(&odd), odd);
        }
    }
}
