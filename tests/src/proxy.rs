//! A proxy before a registry that does one thing wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What it does wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Closes the connection after this many bytes of a blob.
    CutBodyAfter(usize),
    /// Answers every request but the first look with this status.
    Status(u16),
    /// Changes one byte of each blob that is long enough.
    FlipByteAt(usize),
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    ranges: Arc<AtomicUsize>,
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
        let (counter, ended) = (Arc::clone(&ranges), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that leaves is what some tests want.
                    Ok((stream, _)) => drop(pass(stream, registry, fault, &counter)),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { ranges, end, thread: Some(thread) })
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

fn pass(mut client: TcpStream, registry: &str, fault: Fault, ranges: &AtomicUsize) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    let head = read_head(&mut client)?;
    let lower = head.to_ascii_lowercase();
    ranges.fetch_add(usize::from(lower.contains("\r\nrange:")), Ordering::Relaxed);
    if let Fault::Status(status) = fault {
        return write!(client, "HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut server = TcpStream::connect(registry)?;
    let lines = head.trim_end().split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let asked: Vec<&str> = lines.collect();
    write!(server, "{}\r\nConnection: close\r\n\r\n", asked.join("\r\n"))?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|it| it == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    if lower.starts_with("get /v2/") && lower.contains("/blobs/") {
        match fault {
            Fault::CutBodyAfter(count) => answer.truncate(body + count),
            Fault::FlipByteAt(at) => {
                if let Some(byte) = answer.get_mut(body + at) {
                    *byte ^= 0x55;
                }
            }
            Fault::Status(_) => {}
        }
    }
    client.write_all(&answer)
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
