//! The board that an agent runs on, where the image is ours: what its first process found missing, and what its owner
//! wrote into `config.json` on the boot partition.

use crate::durable;
use serde_json::{Map, Value};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes of `config.json`: keys and certificates of an owner take some dozen KiB.
const MAX_CONFIG: u64 = 256 * 1024;

/// Bytes of other files, of some lines each.
const MAX_SMALL: u64 = 16 * 1024;

/// Letters of a host's name (RFC 1123, section 2.1; RFC 1035, section 2.3.4 for one label).
const MAX_HOSTNAME: usize = 63;

/// Where a board's own files are.
#[derive(Debug, Clone)]
pub struct Device {
    /// Partition with `config.json` and `device-type.json`.
    pub boot: PathBuf,
    /// Partition with the device's identity.
    pub state: PathBuf,
    /// What the first process found missing, a line each.
    pub lacks: PathBuf,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            boot: coracle_init::BOOT.into(),
            state: coracle_init::STATE.into(),
            lacks: coracle_init::LACKS.into(),
        }
    }
}

/// What `config.json` says that counts here. Keys of others' are left alone.
#[derive(Debug, Default, PartialEq, Eq)]
struct Config {
    hostname: Option<String>,
    device_type: Option<String>,
}

impl Device {
    /// Takes what the owner says, and tells what is wrong with the board, in words. `set_name` names the host.
    pub fn take_up(&self, set_name: impl FnOnce(&str) -> io::Result<()>) -> Vec<String> {
        let mut lacks = match read(&self.lacks, MAX_SMALL) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => vec![format!("{}: {error}", self.lacks.display())],
        };
        let path = self.boot.join("config.json");
        match config(&path) {
            Ok(config) => {
                if let Some(name) = &config.hostname
                    && let Err(error) = self.take_hostname(name, set_name)
                {
                    lacks.push(format!("{}: hostname: {error}", path.display()));
                }
                lacks.extend(self.other_board(&config));
            }
            // What it said before is kept.
            Err(reason) => lacks.push(format!("{}: {reason}", path.display())),
        }
        for lack in &lacks {
            tracing::error!(lack, "this board is not as it should be");
        }
        lacks
    }

    /// An empty name is given up at the next boot, for one of the device's own.
    fn take_hostname(&self, name: &str, set_name: impl FnOnce(&str) -> io::Result<()>) -> io::Result<()> {
        let kept = self.state.join("hostname");
        if read(&kept, MAX_SMALL).unwrap_or_default().trim() == name {
            return Ok(());
        }
        durable::write(&kept, format!("{name}\n").as_bytes(), 0o644)?;
        if name.is_empty() { Ok(()) } else { set_name(name) }
    }

    /// An owner who downloaded an image for another board.
    fn other_board(&self, config: &Config) -> Option<String> {
        let wanted = config.device_type.as_deref()?;
        let text = read(&self.boot.join("device-type.json"), MAX_SMALL).ok()?;
        let document: Value = serde_json::from_str(&text).ok()?;
        let own = document.get("slug")?.as_str()?;
        let path = self.boot.join("config.json");
        (own != wanted).then(|| {
            format!("{}: deviceType: it is for {wanted:?}, and this image is for {own:?}", path.display())
        })
    }
}

fn read(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let count = std::fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if count as u64 > most {
        return Err(io::Error::other(format!("more than {most} bytes")));
    }
    Ok(text)
}

/// One that is not there says nothing.
fn config(path: &Path) -> Result<Config, String> {
    let text = match read(path, MAX_CONFIG) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
        read => read.map_err(|error| error.to_string())?,
    };
    // As editors of other systems begin it.
    let text = text.trim_start_matches('\u{feff}');
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{name}: a text is wanted")),
    };
    let config = Config { hostname: text("hostname")?, device_type: text("deviceType")? };
    match &config.hostname {
        Some(name) if !is_hostname(name) => Err(format!(
            "hostname: letters, digits and hyphens are wanted, {MAX_HOSTNAME} at most, no hyphen at an end"
        )),
        _ => Ok(config),
    }
}

/// Or empty.
fn is_hostname(name: &str) -> bool {
    let letters = name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
    name.len() <= MAX_HOSTNAME && letters && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    struct Made {
        folder: tempfile::TempDir,
        device: Device,
        names: RefCell<Vec<String>>,
    }

    impl Made {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let device = Device {
                boot: folder.path().into(),
                state: folder.path().into(),
                lacks: folder.path().join("lacks"),
            };
            std::fs::write(folder.path().join("device-type.json"), r#"{"slug":"raspberry-pi"}"#).expect("written");
            Self { folder, device, names: RefCell::default() }
        }

        fn with(&self, config: &[u8]) -> Vec<String> {
            std::fs::write(self.folder.path().join("config.json"), config).expect("written");
            self.device.take_up(|name| {
                self.names.borrow_mut().push(name.to_owned());
                Ok(())
            })
        }

        fn kept(&self) -> String {
            std::fs::read_to_string(self.folder.path().join("hostname")).unwrap_or_default()
        }
    }

    #[test]
    fn a_name_is_taken_once_and_given_up() {
        let made = Made::new();
        assert_eq!(made.device.take_up(|_| panic!("no name")), Vec::<String>::new(), "no file is no mistake");
        let config = "\u{feff}{ \"hostname\": \"pump-1\", \"deviceType\": \"raspberry-pi\", \"other\": [1] }";
        assert_eq!(made.with(config.as_bytes()), Vec::<String>::new());
        assert_eq!(made.with(config.as_bytes()), Vec::<String>::new());
        assert_eq!(
            (made.names.borrow().as_slice(), made.kept().as_str()),
            (&["pump-1".to_owned()][..], "pump-1\n")
        );
        assert_eq!(made.with(br#"{"hostname":""}"#), Vec::<String>::new());
        assert_eq!((made.names.borrow().len(), made.kept().as_str()), (1, "\n"));
    }

    #[test]
    fn a_broken_file_is_told_by_name_and_what_was_known_stays() {
        let made = Made::new();
        made.with(br#"{"hostname":"pump-1"}"#);
        std::fs::write(&made.device.lacks, "data: none\n").expect("written");
        for (bad, told) in [
            (&b"{\"hostname\": \"pump-2\""[..], "EOF"),
            (b"[]", "expected a map"),
            (b"\xff\xfe", "UTF-8"),
            (br#"{"hostname":7}"#, "hostname: a text"),
            (br#"{"hostname":"-x"}"#, "hostname: letters"),
            (br#"{"hostname":"a\nb"}"#, "hostname: letters"),
            (br#"{"deviceType":"raspberrypi3"}"#, "\"raspberrypi3\", and this image is for \"raspberry-pi\""),
            (&vec![b' '; MAX_CONFIG as usize + 1], "more than 262144 bytes"),
        ] {
            let lacks = made.with(bad);
            assert_eq!(lacks.len(), 2, "{lacks:?}");
            assert_eq!(lacks[0], "data: none");
            assert!(lacks[1].contains("config.json: ") && lacks[1].contains(told), "{lacks:?}");
        }
        assert_eq!((made.names.borrow().len(), made.kept().as_str()), (1, "pump-1\n"));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic_or_take_a_name_that_is_none(config in proptest::collection::vec(any::<u8>(), 0..200),
            name in ".{0,70}") {
            let made = Made::new();
            made.with(&config);
            made.with(serde_json::json!({ "hostname": name }).to_string().as_bytes());
            for name in made.names.borrow().iter() {
                prop_assert!(is_hostname(name) && !name.is_empty());
            }
        }
    }
}
