//! What the owner of a device decides for it, whatever runs there: `settings.json` in the data folder.

use crate::paths::Paths;
use coracle_runtime::container::Loss;
use serde::Deserialize;
use std::io::Read;

/// Bytes of the file: a few names.
const MAX_BYTES: u64 = 64 * 1024;

/// The settings. Without the file, or where it says nothing, nothing is given up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What services do without where the kernel lacks it.
    pub accepted_losses: Vec<Loss>,
}

impl Settings {
    /// Reads them anew: whoever changes the file wants it to count for the next start.
    ///
    /// # Errors
    /// The file and what is wrong with it; then nothing of it counts.
    pub fn read(paths: &Paths) -> Result<Self, String> {
        let path = paths.settings();
        let failed = |reason: String| format!("{}: {reason}", path.display());
        let mut text = Vec::new();
        match std::fs::File::open(&path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(|error| failed(error.to_string()))?,
        };
        if text.len() as u64 > MAX_BYTES {
            return Err(failed(format!("larger than {MAX_BYTES} bytes")));
        }
        serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_whole_or_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = Paths { data: folder.path().into(), run: folder.path().into() };
        assert_eq!(Settings::read(&paths), Ok(Settings::default()));
        let read = |text: &str| {
            std::fs::write(paths.settings(), text).expect("written");
            Settings::read(&paths)
        };
        let accepted = Settings { accepted_losses: vec![Loss::Memory, Loss::Seccomp] };
        assert_eq!(read(r#"{"accepted_losses": ["memory", "seccomp"]}"#), Ok(accepted));
        for (text, named) in [
            (r#"{"accepted_losses": ["all"]}"#, "unknown variant `all`"),
            (r#"{"acepted_losses": []}"#, "unknown field `acepted_losses`"),
            ("[", "EOF"),
        ] {
            let refused = read(text).expect_err("refused");
            assert!(refused.contains("settings.json") && refused.contains(named), "{refused}");
        }
        assert!(read(&" ".repeat(70_000)).expect_err("refused").contains("larger"));
    }
}
