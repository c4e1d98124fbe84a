//! The other end: blocking, for the command line.

use super::{Reply, Request};
use crate::engine::Refusal;
use crate::paths::Paths;
use crate::status::Status;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent listens at {0}: start one with `coracle up` or `coracle agent`")]
    NoAgent(String, #[source] std::io::Error),
    /// The connection broke.
    #[error("the agent broke off")]
    Io(#[from] std::io::Error),
    /// The answer is none.
    #[error("the agent's answer is not understood")]
    Answer(#[from] serde_json::Error),
    /// It was not done.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// One request to the agent; iterates over the answers.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
}

impl Agent {
    /// Asks.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn ask(paths: &Paths, request: &Request) -> Result<Self, ClientError> {
        let path = paths.agent_socket();
        let mut stream =
            UnixStream::connect(&path).map_err(|error| ClientError::NoAgent(path.display().to_string(), error))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The next answer; `None` after the last.
    ///
    /// # Errors
    /// A refusal, or a connection that broke.
    pub fn answer(&mut self) -> Result<Option<Reply>, ClientError> {
        let mut line = Vec::new();
        if self.reader.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_slice(&line)? {
            Reply::Done => Ok(None),
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(Some(reply)),
        }
    }

    /// A handle that ends the connection from another thread.
    ///
    /// # Errors
    /// EMFILE.
    pub fn hang_up(&self) -> std::io::Result<UnixStream> {
        self.reader.get_ref().try_clone()
    }

    /// One snapshot.
    ///
    /// # Errors
    /// As [`Agent::ask`] and [`Agent::answer`].
    pub fn status(paths: &Paths) -> Result<Status, ClientError> {
        match Self::ask(paths, &Request::Status)?.answer()? {
            Some(Reply::Status(status)) => Ok(*status),
            _ => Ok(Status::default()),
        }
    }
}
