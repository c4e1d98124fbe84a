//! A proxy before a registry that does one thing wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What it does wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Closes the connection after this many bytes of a blob.
    CutBodyAfter(usize),
    /// The same, and sends the whole blob when a part is asked for.
    CutAndIgnoreRange(usize),
    /// The same, and answers with another part than was asked for.
    CutAndShiftRange(usize),
    /// The same, and answers so many requests for the rest with these lines.
    CutAndRefuse(usize, String, usize),
    /// Sends nothing more after this many bytes of a blob, and keeps the connection; so often.
    StallAfter(usize, usize),
    /// Says that a blob is so many bytes longer than it is.
    Longer(isize),
    /// Answers every request with this status.
    Status(u16),
    /// Answers every request with these lines and nothing else.
    Lines(String),
    /// Answers requests for blobs with a redirect there; `{path}` is what was asked for.
    Redirect(String),
    /// Wants name and password, any.
    AskPassword,
    /// A header without an end.
    EndlessHeader,
    /// A manifest without an end.
    EndlessManifest,
    /// Changes one byte of each blob that is long enough.
    FlipByteAt(usize),
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    ranges: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at `address` for `registry`, in this thread's network.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start(address: &str, registry: &'static str, fault: Fault) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let (ranges, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let way =
            Way { registry, fault, ranges: Arc::clone(&ranges), heads: Arc::clone(&heads), end: Arc::clone(&end) };
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let way = way.clone();
                        // A client that leaves is what some tests want.
                        std::thread::spawn(move || drop(way.pass(stream)));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { ranges, heads, end, thread: Some(thread) })
    }

    /// Every request so far, as it came.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Range requests so far.
    pub fn ranges(&self) -> usize {
        self.ranges.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Way {
    registry: &'static str,
    fault: Fault,
    ranges: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
}

impl Way {
    fn pass(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(Duration::from_secs(2)))?;
        let head = read_head(&mut client)?;
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
        let path = head.split(' ').nth(1).unwrap_or_default();
        let is_blob = path.contains("/blobs/");
        let has_range = head.to_ascii_lowercase().contains("\r\nrange:");
        let before = self.ranges.fetch_add(usize::from(has_range), Ordering::Relaxed);
        match &self.fault {
            Fault::Status(status) => {
                return write!(
                    client,
                    "HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
            Fault::Lines(lines) => {
                return write!(client, "HTTP/1.1 {lines}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            Fault::CutAndRefuse(_, lines, times) if has_range && before < *times => {
                return write!(client, "HTTP/1.1 {lines}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            Fault::AskPassword if !head.to_ascii_lowercase().contains("\r\nauthorization:") => {
                let lines = "401 U\r\nWWW-Authenticate: Basic realm=\"r\"";
                return write!(client, "HTTP/1.1 {lines}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            Fault::Redirect(to) if is_blob => {
                let to = to.replace("{path}", path);
                return write!(
                    client,
                    "HTTP/1.1 307 T\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
            Fault::EndlessHeader => {
                write!(client, "HTTP/1.1 200 OK\r\n")?;
                return self.forever(|| write!(client, "X-More: {}\r\n", "x".repeat(1000)));
            }
            Fault::EndlessManifest if !is_blob => {
                write!(client, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
                return self.forever(|| client.write_all(&[b' '; 65536]));
            }
            _ => {}
        }
        let whole = matches!(self.fault, Fault::CutAndIgnoreRange(_));
        let mut answer = self.ask(&head, whole)?;
        let body = answer.windows(4).position(|it| it == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        // Configurations come as blobs too, and are small.
        if is_blob && answer.len() - body > 1000 {
            match self.fault {
                Fault::CutAndRefuse(count, ..) if !has_range => answer.truncate(body + count),
                Fault::CutBodyAfter(count) => answer.truncate(body + count),
                Fault::CutAndIgnoreRange(count) if !has_range => answer.truncate(body + count),
                Fault::CutAndShiftRange(count) if !has_range => answer.truncate(body + count),
                Fault::CutAndShiftRange(_) => {
                    change_header(&mut answer, body, "content-range", |it| it.replacen("bytes ", "bytes 1", 1))
                }
                Fault::StallAfter(count, times) if before < times => {
                    client.write_all(&answer[..answer.len().min(body + count)])?;
                    client.flush()?;
                    return self.forever(|| client.take_error().map(drop));
                }
                Fault::Longer(by) => change_header(&mut answer, body, "content-length", |it| {
                    it.trim().parse::<usize>().unwrap_or(0).saturating_add_signed(by).to_string()
                }),
                Fault::FlipByteAt(at) => {
                    if let Some(byte) = answer.get_mut(body + at) {
                        *byte ^= 0x55;
                    }
                }
                _ => {}
            }
        }
        client.write_all(&answer)
    }

    /// What the registry answers.
    fn ask(&self, head: &str, whole: bool) -> std::io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(self.registry)?;
        let dropped = |line: &&str| {
            let line = line.to_ascii_lowercase();
            !(line.starts_with("connection:") || whole && line.starts_with("range:"))
        };
        let asked: Vec<&str> = head.trim_end().split("\r\n").filter(dropped).collect();
        write!(server, "{}\r\nConnection: close\r\n\r\n", asked.join("\r\n"))?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }

    /// Does something until the client leaves or the proxy ends.
    fn forever(&self, mut deed: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        while !self.end.load(Ordering::Relaxed) {
            deed()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Changes one field of an answer's header.
fn change_header(answer: &mut Vec<u8>, body: usize, name: &str, change: impl Fn(&str) -> String) {
    let head = String::from_utf8_lossy(&answer[..body]).into_owned();
    let lines = head.split("\r\n").map(|line| match line.split_once(": ") {
        Some((field, value)) if field.eq_ignore_ascii_case(name) => format!("{field}: {}", change(value)),
        _ => line.to_owned(),
    });
    let changed = lines.collect::<Vec<_>>().join("\r\n");
    answer.splice(..body, changed.into_bytes());
}

/// A request or response up to its empty line.
fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16384 {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
