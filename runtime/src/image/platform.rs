//! Which machine an image is for, and which of several fits this one.

use super::manifest::Descriptor;
use std::fmt;

/// Operating system, architecture and variant, in OCI's words (image-index, `platform`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm`, …
    pub architecture: String,
    /// `v6`, `v7`, …; empty when there is none.
    #[serde(default)]
    pub variant: String,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// Why no manifest of an index fits.
#[derive(Debug, PartialEq, Eq)]
pub enum NoMatch {
    /// The index has attestations only.
    HoldsNoImage,
    /// These platforms are offered.
    Offers(Vec<String>),
}

impl Platform {
    /// This machine. The core decides on 32-bit ARM: an ARMv6 board may run a kernel that calls itself `armv7l`.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        let variant = match architecture {
            "arm" => arm_variant(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            _ => String::new(),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// Variants of images that run here, best first; an empty string is an image that names none.
    fn variants(&self) -> &'static [&'static str] {
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("arm", "v5") => &["v5", ""],
            ("arm", "v6") => &["v6", "v5", ""],
            // An image that names no variant is v7 by default (containerd's platforms rule).
            ("arm", _) => &["v7", "", "v6", "v5"],
            ("arm64", _) => &["v8", ""],
            ("amd64", _) => &["", "v1"],
            _ => &[""],
        }
    }

    /// How well an image for `other` fits, 0 best; `None`: not at all.
    pub fn rank(&self, other: &Platform) -> Option<usize> {
        if other.os != self.os || other.architecture != self.architecture {
            return None;
        }
        self.variants().iter().position(|&variant| variant == other.variant)
    }

    /// The best manifest of an index, whatever its order; else the only one that names no platform. Attestations and
    /// other artifacts are not looked at.
    ///
    /// # Errors
    /// When none fits.
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Result<&'a Descriptor, NoMatch> {
        let images: Vec<(&Descriptor, &Platform)> = manifests
            .iter()
            .filter(|it| it.is_image())
            .filter_map(|it| Some((it, it.platform.as_ref()?)))
            .collect();
        let ranked = images.iter().filter_map(|(it, platform)| Some((self.rank(platform)?, &it.digest, *it)));
        if let Some((_, _, best)) = ranked.min_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1))) {
            return Ok(best);
        }
        // Without a platform it may be an index again, or the configuration will say (image-index.md: it is optional).
        let mut silent = manifests.iter().filter(|it| it.is_image() && it.platform.is_none());
        if let (Some(only), None) = (silent.next(), silent.next()) {
            return Ok(only);
        }
        if images.is_empty() {
            return Err(NoMatch::HoldsNoImage);
        }
        let mut offers: Vec<String> = images.iter().map(|(_, platform)| platform.to_string()).collect();
        offers.sort();
        offers.dedup();
        Err(NoMatch::Offers(offers))
    }
}

/// `v6` or `v7` from the kernel's description of the cores. ARM11 cores of the first Raspberry Pi report
/// "CPU architecture: 7" but are ARMv6; their implementation is named in the model line.
fn arm_variant(cpuinfo: &str) -> String {
    let field = |name: &str| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    let model = field("model name").or_else(|| field("Processor")).unwrap_or_default();
    if model.contains("ARMv6") || field("CPU part") == Some("0xb76") {
        return "v6".to_owned();
    }
    match field("CPU architecture")
        .and_then(|text| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok())
    {
        Some(5) => "v5",
        Some(6) => "v6",
        Some(_) => "v7",
        None => "v6",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arm(variant: &str) -> Platform {
        Platform { os: "linux".into(), architecture: "arm".into(), variant: variant.into() }
    }

    fn entry(name: &str, architecture: &str, variant: &str) -> Descriptor {
        let platform = Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() };
        Descriptor { digest: name.into(), platform: Some(platform), ..Descriptor::default() }
    }

    // moby/moby#37647, moby/moby#41017, containerd/containerd#2293
    #[test]
    fn an_armv6_board_takes_v6_then_v5_then_unnamed_and_never_v7() {
        let mut offers = vec![
            entry("D7", "arm", "v7"),
            entry("D5", "arm", "v5"),
            entry("D6", "arm", "v6"),
            entry("DN", "arm", ""),
            entry("D8", "arm64", "v8"),
        ];
        for expected in ["D6", "D5", "DN"] {
            assert_eq!(arm("v6").choose(&offers).expect("one fits").digest, expected);
            offers.retain(|it| it.digest != expected);
        }
        assert_eq!(
            arm("v6").choose(&offers),
            Err(NoMatch::Offers(vec!["linux/arm/v7".into(), "linux/arm64/v8".into()]))
        );
    }

    #[test]
    fn an_armv7_board_takes_v7_or_unnamed_then_older() {
        let mut offers = vec![
            entry("D5", "arm", "v5"),
            entry("D6", "arm", "v6"),
            entry("DN", "arm", ""),
            entry("D7", "arm", "v7"),
        ];
        for expected in ["D7", "DN", "D6", "D5"] {
            assert_eq!(arm("v7").choose(&offers).expect("one fits").digest, expected);
            offers.retain(|it| it.digest != expected);
        }
    }

    // containerd/containerd#8243, containerd/containerd#10196
    #[test]
    fn attestations_are_never_chosen_and_never_offered() {
        let mut statement = entry("AA", "unknown", "");
        statement.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let artifact = Descriptor { artifact_type: Some("x/y".into()), ..entry("AB", "arm", "v6") };
        assert_eq!(
            arm("v6").choose(&[statement.clone(), artifact.clone(), entry("BB", "arm", "v6")]).expect("BB").digest,
            "BB"
        );
        assert_eq!(arm("v6").choose(&[statement, artifact]), Err(NoMatch::HoldsNoImage));
    }

    #[test]
    fn the_core_decides_not_the_kernel() {
        assert_eq!(
            arm_variant("model name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n"),
            "v6"
        );
        assert_eq!(arm_variant("model name\t: ARMv7 Processor rev 5 (v7l)\nCPU architecture: 7\n"), "v7");
        assert_eq!(arm_variant("CPU architecture: 8\n"), "v7");
        assert_eq!(arm_variant(""), "v6");
    }

    proptest! {
        #[test]
        fn order_in_the_index_does_not_matter(seed in proptest::collection::vec(any::<u8>(), 5), board in 0..2_usize) {
            let board = arm(["v6", "v7"][board]);
            let mut offers =
                vec![entry("D7", "arm", "v7"), entry("DN", "arm", ""), entry("D5", "arm", "v5"), entry("D8", "arm64", "v8"), entry("D6", "arm", "v6")];
            let first = board.choose(&offers).expect("one fits").digest.clone();
            for (index, &byte) in seed.iter().enumerate() { offers.swap(index, byte as usize % 5); }
            prop_assert_eq!(&board.choose(&offers).expect("one fits").digest, &first);
        }
    }
}
