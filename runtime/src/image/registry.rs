//! The registry's side of a pull: manifests, and blobs as streams that go on after a broken connection
//! (OCI distribution-spec; token protocol of the distribution project).

use super::error::Error;
use super::manifest::{ACCEPT, MAX_MANIFEST};
use super::pull::PullOptions;
use super::reference::Reference;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// One answer's body may take this long; then the rest is asked for on a new connection. So a connection that stalls
/// is given up, and a slow one costs a handshake every two minutes. [`PullOptions`] may say otherwise.
pub const BODY: Duration = Duration::from_secs(120);

/// For a connection and its TLS handshake, and for the header of an answer.
const CONNECT: Duration = Duration::from_secs(30);

/// Redirects of one request: registries use one, to their store.
const MAX_REDIRECTS: usize = 5;

/// How often in a row a blob may be resumed without [`PROGRESS`] in between.
const MAX_RESUMES: usize = 5;

/// Bytes that make a connection worth its handshake: below this a link is too bad to go on with.
const PROGRESS: u64 = 256 * 1024;

/// How often a server may send a blob from its beginning again although a part was asked for: each costs the bytes
/// up to the offset once more.
const MAX_RESTARTS: usize = 2;

/// Bytes of a token server's answer.
const MAX_TOKEN_ANSWER: u64 = 256 * 1024;

/// Life of a token that does not say (token specification).
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);

/// Bytes of an error answer that are shown.
const MAX_SHOWN: usize = 300;

/// Where Linux distributions keep the certificate authorities.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A connection to one repository.
pub struct Repository<'a> {
    agent: Agent,
    reference: &'a Reference,
    options: &'a PullOptions,
    authorization: Option<Authorization>,
}

#[derive(Clone)]
struct Authorization {
    header: String,
    expires: Option<Instant>,
}

impl<'a> Repository<'a> {
    /// Prepares the client; nothing is sent yet.
    ///
    /// # Errors
    /// When a certificate file cannot be read.
    pub fn new(reference: &'a Reference, options: &'a PullOptions) -> Result<Self, Error> {
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(roots(options)?)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT.min(options.timeout)))
            .timeout_recv_response(Some(CONNECT.min(options.timeout)))
            .timeout_recv_body(Some(options.timeout))
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, reference, options, authorization: None })
    }

    /// A manifest by tag or digest: its bytes and media type.
    ///
    /// # Errors
    /// Not found, refused, or the network.
    pub fn manifest(&mut self, wanted: &str) -> Result<Vec<u8>, Error> {
        let what = format!("manifest {wanted}");
        let mut response = self.get(&format!("manifests/{wanted}"), &what, 0)?;
        let mut bytes = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_MANIFEST + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.network(&what, &error.to_string()))?;
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(Error::bad(
                self.reference.to_string(),
                format!("its manifest is larger than {MAX_MANIFEST} bytes"),
            ));
        }
        Ok(bytes)
    }

    /// A blob as a stream of exactly `size` bytes, resumed by itself.
    pub fn blob(&mut self, digest: &str, size: u64) -> Blob<'_, 'a> {
        Blob {
            repository: self,
            digest: digest.to_owned(),
            size,
            offset: 0,
            body: None,
            resumes: 0,
            resumed_at: 0,
            restarts: 0,
            failure: None,
        }
    }

    fn base(&self) -> Result<String, Error> {
        let host = self.reference.registry_host();
        let plain = self.options.allows_plain(host);
        let scheme = if plain { "http" } else { "https" };
        Ok(format!("{scheme}://{host}/v2/{}/", self.reference.repository()))
    }

    /// Sends a GET with the present credentials, renews them once on 401, and follows redirects.
    fn get(&mut self, path: &str, what: &str, offset: u64) -> Result<Response<Body>, Error> {
        let url = format!("{}{path}", self.base()?);
        if self.authorization.as_ref().is_some_and(|it| it.expires.is_some_and(|end| end <= Instant::now())) {
            self.authorization = None;
        }
        let mut renewed = false;
        loop {
            let response = self.send(&url, what, offset, true)?;
            match response.status() {
                StatusCode::UNAUTHORIZED if !renewed => {
                    renewed = true;
                    self.authorize(&response, what)?;
                }
                status if status.is_redirection() => return self.follow(&url, response, what, offset),
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(response);
                }
                _ => return Err(self.refusal(response, what)),
            }
        }
    }

    fn send(&self, url: &str, what: &str, offset: u64, authorized: bool) -> Result<Response<Body>, Error> {
        let mut request =
            self.agent.get(url).header(header::ACCEPT, ACCEPT).header(header::ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| authorized) {
            request = request.header(header::AUTHORIZATION, &authorization.header);
        }
        request.call().map_err(|error| self.network(what, &error.to_string()))
    }

    /// Follows redirects: without our credentials on another host, never from https to http unless allowed by name.
    fn follow(
        &self,
        from: &str,
        mut response: Response<Body>,
        what: &str,
        offset: u64,
    ) -> Result<Response<Body>, Error> {
        let origin = origin(from);
        let mut url = from.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| self.network(what, "a redirect without Location"))?;
            let next = join(&url, location)
                .ok_or_else(|| self.network(what, "a redirect to something else than http or https"))?;
            let host = authority(&next);
            if next.starts_with("http://") && !self.options.allows_plain(host) {
                return Err(Error::PlainHttp(host.to_owned()));
            }
            url = next;
            response = self.send(&url, what, offset, self::origin(&url) == origin)?;
            if !response.status().is_redirection() {
                return match response.status() {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                        Ok(response)
                    }
                    _ => Err(self.refusal(response, what)),
                };
            }
        }
        Err(self.network(what, "too many redirects"))
    }

    /// Answers a 401's challenge: a token from its realm, or name and password.
    fn authorize(&mut self, response: &Response<Body>, what: &str) -> Result<(), Error> {
        let challenges =
            response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|it| it.to_str().ok());
        let credentials = self.options.credentials(self.reference.registry())?;
        for challenge in challenges {
            let (scheme, fields) = parse_challenge(challenge);
            if scheme.eq_ignore_ascii_case("bearer") {
                let realm = fields.iter().find(|it| it.0 == "realm").map(|it| it.1.clone()).unwrap_or_default();
                self.authorization = Some(self.token(&realm, &fields, credentials.as_deref(), what)?);
                return Ok(());
            }
            if scheme.eq_ignore_ascii_case("basic") {
                let credentials = credentials.ok_or_else(|| {
                    self.refused(
                        what,
                        "it wants name and password: log in first (docker login, or a docker config file)",
                    )
                })?;
                self.authorization = Some(Authorization { header: format!("Basic {credentials}"), expires: None });
                return Ok(());
            }
        }
        Err(self.refused(what, "it wants credentials of a kind that is not supported"))
    }

    fn token(
        &self,
        realm: &str,
        fields: &[(String, String)],
        credentials: Option<&str>,
        what: &str,
    ) -> Result<Authorization, Error> {
        let host = authority(realm);
        let plain = realm.starts_with("http://");
        if plain && !self.options.allows_plain(host) {
            return Err(Error::PlainHttp(host.to_owned()));
        }
        if !plain && !realm.starts_with("https://") {
            return Err(self.refused(what, "its token server is no URL"));
        }
        let mut url = format!("{realm}{}", if realm.contains('?') { '&' } else { '?' });
        let scope = format!("repository:{}:pull", self.reference.repository());
        let service = fields.iter().find(|it| it.0 == "service").map(|it| it.1.as_str());
        for (name, value) in [("service", service.unwrap_or_default()), ("scope", scope.as_str())] {
            url.push_str(&format!("{name}={}&", escape(value)));
        }
        let mut request = self.agent.get(url.trim_end_matches('&'));
        if let Some(credentials) = credentials {
            request = request.header(header::AUTHORIZATION, format!("Basic {credentials}"));
        }
        let mut response = request
            .call()
            .map_err(|error| self.network(&format!("token for {what} from {host}"), &error.to_string()))?;
        if response.status() != StatusCode::OK {
            let reason = format!("the token server {host} answered {}", response.status());
            return Err(if response.status().is_server_error() {
                self.network(what, &reason)
            } else {
                self.refused(what, &reason)
            });
        }
        let arrived = Instant::now();
        let mut text = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_TOKEN_ANSWER).read_to_end(&mut text);
        read.map_err(|error| self.network(what, &error.to_string()))?;
        let answer: TokenAnswer = serde_json::from_slice(&text)
            .map_err(|_| self.refused(what, &format!("the token server {host} gave no token")))?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| token.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
        let token = token.ok_or_else(|| self.refused(what, &format!("the token server {host} gave no token")))?;
        // By the monotonic clock: the board's date may be 1970, and `issued_at` means nothing then.
        let life = answer.expires_in.map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs);
        Ok(Authorization { header: format!("Bearer {token}"), expires: arrived.checked_add(life) })
    }

    fn refusal(&self, mut response: Response<Body>, what: &str) -> Error {
        let status = response.status();
        let mut text = Vec::new();
        // An answer that cannot be read adds nothing.
        let _ = response.body_mut().as_reader().take(MAX_SHOWN as u64).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
        match status.as_u16() {
            404 => Error::NotFound { image: self.reference.to_string() },
            429 | 500.. => {
                let after = response
                    .headers()
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                Error::Busy {
                    registry: self.reference.registry().to_owned(),
                    what: what.to_owned(),
                    status: status.as_u16(),
                    retry_after: after.map(Duration::from_secs),
                }
            }
            code => self.refused(what, &format!("{code} {text}")),
        }
    }

    fn refused(&self, what: &str, reason: &str) -> Error {
        Error::Refused {
            registry: self.reference.registry().to_owned(),
            what: what.to_owned(),
            reason: reason.escape_default().to_string(),
        }
    }

    fn network(&self, what: &str, reason: &str) -> Error {
        Error::Network {
            registry: self.reference.registry().to_owned(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

#[derive(serde::Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// A blob being read. Errors are kept whole in `failure`; the reader's own error is only a sign.
pub struct Blob<'r, 'a> {
    repository: &'r mut Repository<'a>,
    digest: String,
    size: u64,
    offset: u64,
    body: Option<ureq::BodyReader<'static>>,
    resumes: usize,
    resumed_at: u64,
    restarts: usize,
    failure: Option<Error>,
}

impl Blob<'_, '_> {
    /// What ended the stream early.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    fn open(&mut self) -> Result<(), Error> {
        let what = format!("blob {}", self.digest);
        let response = self.repository.get(&format!("blobs/{}", self.digest), &what, self.offset)?;
        let encoded = response.headers().get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
        if encoded {
            return Err(self
                .repository
                .network(&what, "the server re-coded the blob although identity was asked for"));
        }
        let status = response.status();
        if self.offset == 0 || status == StatusCode::OK {
            if self.offset > 0 {
                self.restarts += 1;
                if self.restarts > MAX_RESTARTS {
                    return Err(self
                        .repository
                        .network(&what, "the server sends the whole blob instead of the rest, again and again"));
                }
            }
            let skip = self.offset;
            let mut body = response.into_body().into_reader();
            let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
            if skipped.map_err(|error| self.repository.network(&what, &error.to_string()))? != skip {
                return Err(self.repository.network(&what, "the connection closed before the offset"));
            }
            self.body = Some(body);
            return Ok(());
        }
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let expected = format!("bytes {}-{}/{}", self.offset, self.size - 1, self.size);
        if status != StatusCode::PARTIAL_CONTENT || range != Some(expected.as_str()) {
            return Err(self
                .repository
                .network(&what, "the server answered with another range than was asked for"));
        }
        self.body = Some(response.into_body().into_reader());
        Ok(())
    }

    /// Notes a broken connection; false when it was one too many.
    fn may_resume(&mut self, reason: &str) -> bool {
        self.body = None;
        if self.offset - self.resumed_at >= PROGRESS {
            self.resumes = 0;
        }
        self.resumed_at = self.offset;
        self.resumes += 1;
        if self.resumes > MAX_RESUMES {
            self.failure = Some(self.repository.network(&format!("blob {}", self.digest), reason));
        }
        self.resumes <= MAX_RESUMES
    }
}

impl Read for Blob<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let failed = || io::Error::other("the download failed");
        while self.offset < self.size {
            if self.body.is_none() {
                match self.open() {
                    Ok(()) => {}
                    Err(error) if matches!(error, Error::Network { .. }) && self.offset > 0 => {
                        if !self.may_resume(&error.to_string()) {
                            return Err(failed());
                        }
                        continue;
                    }
                    Err(error) => {
                        self.failure = Some(error);
                        return Err(failed());
                    }
                }
            }
            let Some(body) = &mut self.body else {
                return Err(failed());
            };
            let room = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX).min(buffer.len());
            match body.read(&mut buffer[..room]) {
                Ok(0) if self.may_resume("the connection closed early") => {}
                Ok(0) => return Err(failed()),
                Ok(count) => {
                    self.offset += count as u64;
                    return Ok(count);
                }
                Err(error) if self.may_resume(&error.to_string()) => {}
                Err(_) => return Err(failed()),
            }
        }
        // A body longer than its descriptor says is stopped here: one byte more is one too many.
        if let Some(mut body) = self.body.take()
            && matches!(body.read(&mut [0]), Ok(1))
        {
            self.failure = Some(Error::bad(format!("blob {}", self.digest), "is longer than its descriptor says"));
            return Err(failed());
        }
        Ok(0)
    }
}

fn roots(options: &PullOptions) -> Result<RootCerts, Error> {
    let mut certificates = Vec::new();
    let mut add = |path: &Path| -> io::Result<()> {
        let pem = std::fs::read(path)?;
        for item in ureq::tls::parse_pem(&pem) {
            if let Ok(ureq::tls::PemItem::Certificate(certificate)) = item {
                certificates.push(certificate);
            }
        }
        Ok(())
    };
    if let Some(path) = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()) {
        add(path).map_err(Error::store("reading", path))?;
    }
    for path in &options.ca_files {
        add(path).map_err(|error| Error::Setting(format!("CA file {}: {error}", path.display())))?;
    }
    let certificates: Vec<Certificate<'static>> = certificates;
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let after = url.find("://").map_or(0, |at| at + 3);
    url[after..].find('/').map_or(url, |at| &url[..after + at])
}

/// Host and port.
fn authority(url: &str) -> &str {
    let origin = origin(url);
    origin.split_once("://").map_or(origin, |(_, authority)| authority)
}

/// Resolves a Location against the URL that was asked (RFC 3986 5.2, without dot segments). `None`: not HTTP.
fn join(base: &str, location: &str) -> Option<String> {
    if let Some((scheme, rest)) = location.split_once(':')
        && !scheme.contains(['/', '?', '#'])
    {
        let scheme = scheme.to_ascii_lowercase();
        let known = matches!(scheme.as_str(), "http" | "https") && rest.starts_with("//");
        return known.then(|| format!("{scheme}:{rest}"));
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}://{rest}", base.split_once("://")?.0));
    }
    if location.starts_with('/') {
        return Some(format!("{}{location}", origin(base)));
    }
    let path = base.split(['?', '#']).next()?;
    Some(format!("{}/{location}", path.rsplit_once('/')?.0))
}

/// Percent-encodes a query value.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                escaped.push(byte.into())
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Scheme and fields of a challenge (RFC 9110 11.6.1): `Bearer realm="…",service="…"`.
fn parse_challenge(text: &str) -> (&str, Vec<(String, String)>) {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text, ""));
    let mut fields = Vec::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, left) = after.split_once(',').unwrap_or((after, ""));
                (value.trim().to_owned(), left)
            }
        };
        fields.push((name.trim_matches([' ', ',']).to_ascii_lowercase(), value));
        rest = left;
    }
    (scheme, fields)
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, char)| char)),
            char => value.push(char),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read_with_commas_in_quotes() {
        let (scheme, fields) =
            parse_challenge(r#"Bearer realm="https://a.example/t",service="r", scope="repository:a/b:pull,push""#);
        assert_eq!(scheme, "Bearer");
        let fields: Vec<_> = fields.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(
            fields,
            [("realm", "https://a.example/t"), ("service", "r"), ("scope", "repository:a/b:pull,push")]
        );
    }

    #[test]
    fn locations_are_resolved_against_the_request() {
        let base = "https://r.example:5000/prefix/v2/a/blobs/x?y";
        assert_eq!(join(base, "/b?s=1").as_deref(), Some("https://r.example:5000/b?s=1"));
        assert_eq!(join(base, "up").as_deref(), Some("https://r.example:5000/prefix/v2/a/blobs/up"));
        assert_eq!(join(base, "//s.example/b").as_deref(), Some("https://s.example/b"));
        assert_eq!(join(base, "HTTP://s.example/b").as_deref(), Some("http://s.example/b"));
        assert_eq!(
            join(base, "b/sha256:00?u=http://x").as_deref(),
            Some("https://r.example:5000/prefix/v2/a/blobs/b/sha256:00?u=http://x")
        );
        for other in ["file:///etc/shadow", "ftp://s.example/b", "https:b", "javascript:x"] {
            assert_eq!(join(base, other), None, "{other}");
        }
        assert_eq!(authority("https://s.example:1/b"), "s.example:1");
    }

    proptest! {
        #[test]
        fn any_challenge_is_read(text in ".{0,80}") { let _ = parse_challenge(&text); }
        #[test]
        fn any_location_is_read(text in ".{0,40}") { let _ = join("https://h/v2/", &text); }
    }
}
