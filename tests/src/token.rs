//! A token server as registries expect it (distribution's token authentication), with ES256 and a key made by openssl.

use crate::board::run;
use anyhow::{Context, anyhow};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ADDRESS: &str = "127.0.0.1:5050";

/// A running token server; it ends with the test's process.
#[derive(Debug)]
pub struct Server {
    certificate: PathBuf,
}

struct Signer {
    key: EcdsaKeyPair,
    certificate: String,
    credentials: String,
}

impl Server {
    /// Starts it in this thread's network.
    ///
    /// # Errors
    /// When the key cannot be made or the address is taken.
    pub fn start(folder: &Path, user: &str, password: &str) -> anyhow::Result<Self> {
        let (pem, pkcs8) = (folder.join("token.key"), folder.join("token.der"));
        let (certificate, der) = (folder.join("token.crt"), folder.join("token.crt.der"));
        let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments));
        let path = |path: &Path| path.display().to_string();
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=token",
            "-keyout",
            &path(&pem),
            "-out",
            &path(&certificate),
        ])?;
        openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", &path(&pem), "-outform", "DER", "-out", &path(&pkcs8)])?;
        openssl(&["x509", "-in", &path(&certificate), "-outform", "DER", "-out", &path(&der)])?;
        let key = std::fs::read(&pkcs8)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &SystemRandom::new())
            .map_err(|error| anyhow!("the key: {error}"))?;
        let credentials = base64(format!("{user}:{password}").as_bytes(), false);
        let signer = Signer { key, certificate: base64(&std::fs::read(&der)?, false), credentials };
        let listener = TcpListener::bind(ADDRESS).context("listening")?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that leaves needs no token.
                let _ = signer.answer(stream);
            }
        });
        Ok(Self { certificate })
    }

    /// Lines for the registry's configuration.
    pub fn registry_config(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"http://{ADDRESS}/token\", service: registry, issuer: tests, rootcertbundle: {}}}}}",
            self.certificate.display()
        )
    }
}

impl Signer {
    fn answer(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16384 {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let known = head.contains(&format!("Basic {}", self.credentials));
        let scope = head
            .split([' ', '&', '?'])
            .find_map(|part| part.strip_prefix("scope="))
            .map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ","))
            .unwrap_or_default();
        let token = self.token(&scope, known)?;
        let body = json!({ "token": token, "expires_in": 300 }).to_string();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        Ok(())
    }

    /// A token (JWT) with what `scope` asks for, or with nothing for a stranger.
    fn token(&self, scope: &str, known: bool) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut access = Vec::new();
        if let (true, [kind, name, actions]) = (known, scope.split(':').collect::<Vec<_>>().as_slice()) {
            access.push(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}));
        }
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]}).to_string();
        let claims = json!({
            "iss": "tests", "sub": "user", "aud": "registry", "jti": now.to_string(), "access": access,
            "iat": now, "nbf": now - 10, "exp": now + 300,
        });
        let signed =
            format!("{}.{}", base64(header.as_bytes(), true), base64(claims.to_string().as_bytes(), true));
        let signature =
            self.key.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|error| anyhow!("signing: {error}"))?;
        Ok(format!("{signed}.{}", base64(signature.as_ref(), true)))
    }
}

/// Base64 (RFC 4648), section 5's alphabet without padding for URLs.
pub fn base64(bytes: &[u8], url: bool) -> String {
    let alphabet: &[u8; 64] = if url {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    } else {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    };
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number =
            chunk.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(alphabet[(number >> (18 - 6 * place) & 63) as usize]));
        }
        if !url {
            text.push_str(&"="[..].repeat(3 - chunk.len()));
        }
    }
    text
}
