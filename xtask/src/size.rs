//! `cargo xtask size`: what each crate adds to the program.
//!
//! A build that keeps its symbols is the same program: they are not loaded. Code of a generic function counts for the
//! crate that it is about, wherever it was made: `<serde_json::Map as Clone>` is serde_json's, `<Vec<T> as Clone>` std's.

use anyhow::Context;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::BTreeMap;
use std::path::Path;

/// Crates of the table; the rest is one row.
const ROWS: usize = 40;

/// Crates that come with the compiler, in one row.
const STANDARD: &[&str] =
    &["std", "core", "alloc", "compiler_builtins", "hashbrown", "std_detect", "panic_abort", "adler2", "gimli"];

/// Bytes of code by crate, and of the file's parts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sizes {
    code: BTreeMap<String, u64>,
    sections: BTreeMap<String, u64>,
}

/// Prints the table of a program that has its symbols.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn print(program: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(program).with_context(|| program.display().to_string())?;
    let sizes = Sizes::read(&bytes)?;
    print!("{}", sizes.table());
    Ok(())
}

impl Sizes {
    fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let file = object::File::parse(bytes)?;
        let mut sizes = Self::default();
        let mut text = 0;
        for section in file.sections() {
            if section.kind() == SectionKind::Text {
                text += section.size();
            }
            let loaded = matches!(
                section.kind(),
                SectionKind::Text | SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString
            ) || section.name().is_ok_and(|it| it.starts_with(".rel") || it.starts_with(".ARM.ex"));
            if loaded {
                *sizes.sections.entry(section.name()?.to_owned()).or_default() += section.size();
            }
        }
        // Several names may be at one place.
        let mut places = BTreeMap::new();
        for symbol in file.symbols().filter(|it| it.kind() == SymbolKind::Text && it.size() > 0) {
            places.insert(symbol.address() & !1, (symbol.size(), symbol.name()?.to_owned()));
        }
        anyhow::ensure!(!places.is_empty(), "it has no symbols: it is to be built with strip=false");
        let mut named = 0;
        for (size, name) in places.into_values() {
            named += size;
            *sizes.code.entry(crate_of(&name)).or_default() += size;
        }
        *sizes.code.entry("(without a name)".to_owned()).or_default() += text.saturating_sub(named);
        Ok(sizes)
    }

    fn table(&self) -> String {
        let kib = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0);
        let total: u64 = self.code.values().sum();
        let mut rows: Vec<(&String, &u64)> = self.code.iter().collect();
        rows.sort_by_key(|&(name, &size)| (std::cmp::Reverse(size), name));
        let mut text = "| crate | code, KiB | share |\n|---|---:|---:|\n".to_owned();
        let mut row = |name: &str, size: u64| {
            let share = 100.0 * size as f64 / total.max(1) as f64;
            text.push_str(&format!("| {name} | {} | {share:.1} % |\n", kib(size)));
        };
        let (shown, rest) = rows.split_at(rows.len().min(ROWS));
        shown.iter().for_each(|(name, size)| row(name, **size));
        row(&format!("{} more", rest.len()), rest.iter().map(|(_, size)| **size).sum());
        row("all code", total);
        text.push_str("\n| section | KiB |\n|---|---:|\n");
        for (name, &size) in &self.sections {
            text.push_str(&format!("| `{name}` | {} |\n", kib(size)));
        }
        text
    }
}

/// The crate that a function is of: the first name in it.
fn crate_of(symbol: &str) -> String {
    let Ok(name) = rustc_demangle::try_demangle(symbol) else { return "(C and assembler)".to_owned() };
    let name = format!("{name:#}");
    let own = |text: &str| {
        let end = text.find("::")?;
        let start = text[..end].rfind(|it: char| !it.is_alphanumeric() && it != '_').map_or(0, |at| at + 1);
        Some(text[start..end].to_owned())
    };
    // `<T as Trait>`: of the type, unless that is nobody's (`<u8 as a::Trait>`, `<&T as …>`).
    let subject = name.strip_prefix('<').and_then(|rest| rest.split_once(" as ")).map(|(subject, _)| subject);
    let found = match subject.and_then(own) {
        Some(owner) if !STANDARD.contains(&owner.as_str()) => Some(owner),
        // The trait's: `<Vec<u8> as postcard::Flavor>` is postcard's.
        _ => own(name.split_once(" as ").map_or(name.as_str(), |(_, rest)| rest)),
    };
    let found = found.unwrap_or_else(|| "std".to_owned());
    if STANDARD.contains(&found.as_str()) { "std".to_owned() } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_of_the_crate_that_it_is_about() {
        let of = |path: &str| {
            let parts: String = path.split("::").map(|part| format!("{}{part}", part.len())).collect();
            crate_of(&format!("_ZN{parts}17h0123456789abcdefE"))
        };
        assert_eq!(of("serde_json::de::parse"), "serde_json");
        assert_eq!(of("core::fmt::write"), "std");
        assert_eq!(of("_$LT$tokio..Task$u20$as$u20$core..Drop$GT$::drop"), "tokio");
        assert_eq!(of("_$LT$alloc..Vec$u20$as$u20$serde..Serialize$GT$::serialize"), "serde");
        assert_eq!(of("_$LT$alloc..Vec$LT$T$GT$$u20$as$u20$core..clone..Clone$GT$::clone"), "std");
        assert_eq!(of("_$LT$$RF$T$u20$as$u20$core..fmt..Debug$GT$::fmt"), "std");
        assert_eq!(crate_of("memcpy"), "(C and assembler)");
    }

    #[test]
    fn a_program_of_this_machine_is_read_whole() {
        let bytes = std::fs::read("/proc/self/exe").expect("this program");
        let sizes = Sizes::read(&bytes).expect("it has symbols");
        let code: u64 = sizes.code.values().sum();
        assert!(sizes.code.contains_key("std") && sizes.code.contains_key("xtask"), "{sizes:?}");
        assert!(code < bytes.len() as u64 && code > 100_000, "{code}");
        assert!(sizes.table().contains("| all code | "));
    }
}
