//! Names of images, as people write them (distribution reference grammar) and in full.

use std::fmt;
use std::str::FromStr;

/// Longest name part (distribution specification: 255 characters with the registry's name).
const MAX_NAME: usize = 255;

/// Longest tag (distribution specification).
const MAX_TAG: usize = 128;

/// Registry of a name that has none; Docker's rule.
const DEFAULT_REGISTRY: &str = "docker.io";

/// The name of an image: registry, repository, tag or digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image name {name:?}: {reason}")]
pub struct ReferenceError {
    name: String,
    reason: &'static str,
}

impl Reference {
    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where the registry's interface is: Docker's registry answers under another name.
    pub fn registry_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// Repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What is asked of the registry: the digest, else the tag.
    pub fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The digest, when the name has one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(name: &str) -> Result<Self, ReferenceError> {
        let refuse = |reason| ReferenceError { name: name.chars().take(MAX_NAME).collect(), reason };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (name, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(refuse("the digest must be sha256: and 64 hex digits"));
        }
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(
                "a tag has letters, digits, `_`, `.`, `-`, at most 128, and begins with none of `.-`",
            ));
        }
        let (registry, repository) = split_registry(path);
        if !is_registry(&registry) {
            return Err(refuse("the registry must be a host name with an optional port"));
        }
        if repository.len() + registry.len() > MAX_NAME || !repository.split('/').all(is_component) {
            return Err(refuse(
                "a repository has lower-case letters and digits, with `.`, `_`, `-` between, and `/`",
            ));
        }
        let tag = tag.or(if digest.is_none() { Some("latest") } else { None }).map(str::to_owned);
        Ok(Self { registry, repository, tag, digest: digest.map(str::to_owned) })
    }
}

/// The first part is a registry when it looks like a host: with a dot or port, or `localhost`.
fn split_registry(path: &str) -> (String, String) {
    match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            let registry = if first == "index.docker.io" { DEFAULT_REGISTRY } else { first };
            let library = registry == DEFAULT_REGISTRY && !rest.contains('/');
            (registry.to_owned(), if library { format!("library/{rest}") } else { rest.to_owned() })
        }
        Some(_) => (DEFAULT_REGISTRY.to_owned(), path.to_owned()),
        None => (DEFAULT_REGISTRY.to_owned(), format!("library/{path}")),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => (host, Some(port)),
        _ => (text, None),
    };
    let host_ok = if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        address.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
    };
    host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_component(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    ends(text.bytes().next())
        && ends(text.bytes().next_back())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(name: &str) -> String {
        name.parse::<Reference>().map_or_else(|error| format!("refused: {error}"), |it| it.to_string())
    }

    #[test]
    fn short_names_are_completed_as_docker_does() {
        assert_eq!(full("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("team/app:1"), "docker.io/team/app:1");
        assert_eq!(full("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(full("host:5000/a/b:tag"), "host:5000/a/b:tag");
        assert_eq!(full("[::1]:5000/a"), "[::1]:5000/a:latest");
    }

    #[test]
    fn digests_are_kept_beside_tags() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(full(&format!("h.example/a@{digest}")), format!("h.example/a@{digest}"));
        let both: Reference = format!("h.example/a:1@{digest}").parse().expect("accepted");
        assert_eq!(both.wanted(), digest);
    }

    #[test]
    fn other_names_are_refused() {
        for name in
            ["", ":1", "UPPER", "a//b", "a@sha256:12", "a:b c", "a/../b", "h.example:99999/a", "-a", "a@md5:00"]
        {
            assert!(full(name).starts_with("refused"), "{name} became {}", full(name));
        }
    }

    proptest! {
        #[test]
        fn a_full_name_is_read_again_as_itself(name in "[a-z0-9.:/@_-]{0,60}|.{0,40}") {
            if let Ok(reference) = name.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().expect("read again"), reference);
            }
        }
    }
}
