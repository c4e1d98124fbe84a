//! The program of the demo's two images: `clock` tells the time, `page` asks the clock and shows what it said.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["clock"] => serve(|| Ok(format!("it is {} seconds since 1970\n", seconds()))),
        ["page", clock] => serve(|| Ok(format!("Hello from a container. The clock says: {}", ask(clock)?))),
        ["ask", address] => {
            print!("{}", ask(address)?);
            Ok(())
        }
        _ => {
            eprintln!("usage: hello clock | hello page CLOCK:PORT | hello ask HOST:PORT");
            std::process::exit(2)
        }
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

/// Answers every HTTP request on port 80.
fn serve(answer: impl Fn() -> std::io::Result<String>) -> std::io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:80")?;
    println!("listening on port 80");
    for stream in listener.incoming() {
        if let Err(error) = respond(stream?, &answer) {
            eprintln!("a request failed: {error}");
        }
    }
    Ok(())
}

fn respond(mut stream: TcpStream, answer: &impl Fn() -> std::io::Result<String>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    // All of the request is read: closing with some of it unread would reset the connection.
    let mut lines = BufReader::new(stream.try_clone()?.take(8192)).lines();
    println!("{}", lines.next().unwrap_or(Ok(String::new()))?);
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let (status, text) = match answer() {
        Ok(text) => ("200 OK", text),
        Err(error) => ("502 Bad Gateway", format!("the clock does not answer: {error}\n")),
    };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

/// The body of what `address` answers.
fn ask(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("no good answer: {}", text.lines().next().unwrap_or_default()))),
    }
}
