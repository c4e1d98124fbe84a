//! What the image and the kernel's command line say to the first process. Pure.

/// When this program was built, in seconds since 1970.
const BUILT: &str = env!("CORACLE_BUILT");

/// Where the image says it: `KEY=VALUE`, one a line.
pub const FILE: &str = "/etc/coracle/image.conf";

/// Before a key on the kernel's command line.
const PREFIX: &str = "coracle.";

/// Longest text of the file, in bytes: it has ten lines.
pub const MAX_FILE: u64 = 16 * 1024;

/// How something is found among the block devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `LABEL=…`: the file system's name.
    Label(String),
    /// `PARTLABEL=…`: the partition's name (GPT).
    PartitionLabel(String),
    /// `PARTITION=N`: that partition of the disk that has the boot partition.
    Partition(u32),
    /// `/dev/…`
    Device(String),
}

impl Source {
    fn parse(text: &str) -> Option<Self> {
        /// Bytes of a name; file systems have 16 at most, GPT 36 letters.
        const MAX: usize = 128;
        if text.len() > MAX {
            return None;
        }
        match text.split_once('=') {
            Some(("LABEL", name)) if !name.is_empty() => Some(Self::Label(name.to_owned())),
            Some(("PARTLABEL", name)) if !name.is_empty() => Some(Self::PartitionLabel(name.to_owned())),
            Some(("PARTITION", number)) => {
                number.parse().ok().filter(|it| (1..=128).contains(it)).map(Self::Partition)
            }
            None if text.starts_with("/dev/") && !text.contains("..") => Some(Self::Device(text.to_owned())),
            _ => None,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(name) => write!(f, "LABEL={name}"),
            Self::PartitionLabel(name) => write!(f, "PARTLABEL={name}"),
            Self::Partition(number) => write!(f, "PARTITION={number}"),
            Self::Device(path) => f.write_str(path),
        }
    }
}

/// All that can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `built`: seconds since 1970 at which the image was built; the clock is never before.
    pub built_unix_s: u64,
    /// `data`: the partition for images, volumes and containers; where a damaged one is that has lost its name comes
    /// after it.
    pub data: Vec<Source>,
    /// `state`: the partition for what is the device's own: clock, seed, identity.
    pub state: Vec<Source>,
    /// `boot`: the partition with `config.json`.
    pub boot: Source,
    /// `root`: the slots, the wanted one first. For the initial ramdisk.
    pub roots: Vec<Source>,
    /// `watchdog`: seconds without a sign of life; 0: it is left alone.
    pub watchdog_s: u32,
    /// `zram`: compressed swap, in per cent of the memory; 0: none.
    pub zram_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let label = |name: &str| Source::Label(name.to_owned());
        Self {
            built_unix_s: BUILT.parse().unwrap_or(0),
            data: vec![label("coracle-data")],
            state: vec![label("coracle-state")],
            boot: label("CORACLE"),
            roots: vec![Source::Partition(2), Source::Partition(3)],
            // Boards' hardware has 15 to 128 s; drivers round.
            watchdog_s: 60,
            zram_percent: 50,
        }
    }
}

/// What was not understood: it is said, and the board boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored(pub String);

impl Settings {
    /// From the image's file and the kernel's command line, which is stronger.
    pub fn read(file: &str, command_line: &str) -> (Self, Vec<Ignored>) {
        let (mut settings, mut ignored) = (Self::default(), Vec::new());
        let lines = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let words = command_line.split_whitespace().filter_map(|word| word.strip_prefix(PREFIX));
        for word in lines.chain(words) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if let Err(reason) = settings.set(key.trim(), value.trim()) {
                let shown: String = word.chars().filter(|it| !it.is_control()).take(80).collect();
                ignored.push(Ignored(format!("{shown}: {reason}")));
            }
        }
        (settings, ignored)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        const SOURCE: &str = "LABEL=NAME, PARTLABEL=NAME, PARTITION=NUMBER or /dev/NAME is wanted";
        let source = || Source::parse(value).ok_or(SOURCE);
        let sources = || value.split(',').map(Source::parse).collect::<Option<Vec<_>>>().ok_or(SOURCE);
        let number = |most: u32| match value.parse() {
            Ok(number) if number <= most => Ok(number),
            _ => Err("a number is wanted that is not too large"),
        };
        match key {
            "built" => {
                let built: u64 = value.parse().map_err(|_| "seconds since 1970 are wanted")?;
                // An image is not older than the program in it.
                self.built_unix_s = self.built_unix_s.max(built);
            }
            "data" => self.data = sources()?,
            "state" => self.state = sources()?,
            "boot" => self.boot = source()?,
            "root" => self.roots = sources()?,
            "watchdog" => self.watchdog_s = number(3600)?,
            "zram" => self.zram_percent = number(200)?,
            _ => return Err("there is no such setting"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_stronger_than_the_image() {
        let file = "# board\nbuilt=4000000000\nwatchdog=15\n\ndata = LABEL=d,PARTITION=6\n";
        let (settings, ignored) =
            Settings::read(file, "console=ttyS0 quiet coracle.watchdog=0 coracle.root=/dev/vda2,PARTLABEL=b");
        assert_eq!(ignored, []);
        assert_eq!(settings.built_unix_s, 4_000_000_000);
        assert!(Settings::default().built_unix_s > 1_700_000_000, "the program knows its own age");
        assert_eq!(settings.watchdog_s, 0);
        assert_eq!(settings.data, [Source::Label("d".into()), Source::Partition(6)]);
        assert_eq!(settings.roots, [Source::Device("/dev/vda2".into()), Source::PartitionLabel("b".into())]);
        assert_eq!(settings.state, Settings::default().state);
    }

    #[test]
    fn what_is_not_understood_is_told_and_changes_nothing() {
        let words = "coracle.data=vda2 coracle.watchdog=-1 coracle.zram=1000 coracle.root=LABEL=a,b coracle.x coracle.built=now coracle.boot=/dev/../etc";
        let (settings, ignored) = Settings::read("nonsense\n", words);
        assert_eq!(settings, Settings::default());
        assert_eq!(ignored.len(), 8, "{ignored:?}");
        assert!(ignored[1].0.starts_with("data=vda2: LABEL=NAME"), "{ignored:?}");
    }
}
