//! A shim that becomes a newer one: the same process, so that its children, their output and their exit codes stay its
//! own, goes on as another program. What it knows is in a file in memory that the other reads.

use super::output::Source;
use super::protocol::{ContainerStatus, ExitStatus, LogRecord, Stream};
use super::ring::{PartialLine, Ring};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Of what follows: raised when a [`Piece`] changes its meaning. A shim with another number goes on as it is.
pub const STATE: u32 = 1;

/// Bytes of a piece: a line of log has 8 KiB at most, and what a command wrote 4 KiB.
const MAX_PIECE: usize = 64 * 1024;

/// What a shim knows, piece by piece: a ring is not in memory twice. Numbers of descriptors are those of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Piece {
    /// First.
    Begin {
        /// [`STATE`].
        state: u32,
        /// Numbers given so far.
        numbers: u64,
        /// The listening socket.
        listener: RawFd,
    },
    /// A container.
    Container(Box<ContainerPiece>),
    /// A line of its log, the oldest first.
    Record {
        /// The container.
        id: String,
        /// The line.
        record: LogRecord,
    },
    /// A line of its log whose end has not come.
    Partial {
        /// The container.
        id: String,
        /// Where it came from.
        stream: Stream,
        /// The line so far.
        line: PartialLine,
    },
    /// A command in a container.
    Exec(Box<ExecPiece>),
    /// A network namespace that is held.
    Namespace {
        /// Its name.
        name: String,
        /// Its descriptor.
        fd: RawFd,
    },
    /// Last: without it the file is not whole.
    End,
}

/// A container, without its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerPiece {
    /// As the agent sees it.
    pub status: ContainerStatus,
    /// Its streams that are open.
    pub sources: Vec<(RawFd, Stream)>,
    /// Its terminal.
    pub terminal: Option<RawFd>,
    /// Its output is kept.
    pub keeps_log: bool,
    /// Its cgroup.
    pub cgroup: String,
    /// First of its own users.
    pub first_user: Option<u32>,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecPiece {
    /// Its number.
    pub number: u64,
    /// Its container.
    pub container: String,
    /// Its process.
    pub pid: i32,
    /// What it wrote.
    pub output: Vec<u8>,
    /// Its streams that are open.
    pub sources: Vec<(RawFd, Stream)>,
    /// How it ended.
    pub exit: Option<ExitStatus>,
    /// When it is killed.
    pub deadline_ns: Option<u64>,
    /// It was.
    pub timed_out: bool,
    /// It is in a cgroup of its own.
    pub contained: bool,
}

/// Writes pieces, and keeps the descriptors that they name open for the program that comes.
pub struct Writer {
    file: BufWriter<File>,
    kept: Kept,
}

impl Writer {
    /// Into a new file in memory.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create(c"coracle-shim", MemFdCreateFlag::MFD_CLOEXEC)?;
        Ok(Self { file: BufWriter::new(file.into()), kept: Kept(Vec::new()) })
    }

    /// One more.
    ///
    /// # Errors
    /// One that is too large, or no memory.
    pub fn write(&mut self, piece: &Piece) -> io::Result<()> {
        let bytes = postcard::to_allocvec(piece).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len()).ok().filter(|&it| it as usize <= MAX_PIECE);
        let length = length.ok_or_else(|| io::Error::other("a piece is too large"))?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&bytes)
    }

    /// A descriptor's number, for a piece: it stays open in the next program.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn keep(&mut self, fd: &OwnedFd) -> io::Result<RawFd> {
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        self.kept.0.push(fd.as_raw_fd());
        Ok(fd.as_raw_fd())
    }

    /// The whole file, for the next program.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn finish(mut self) -> io::Result<(File, Kept)> {
        self.write(&Piece::End)?;
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        fcntl(file.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok((file, self.kept))
    }
}

/// Descriptors that stay open in the next program, and when there is none after all do not stay so in a worker.
pub struct Kept(Vec<RawFd>);

impl Drop for Kept {
    fn drop(&mut self) {
        for &fd in &self.0 {
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
}

/// Reads what a [`Writer`] wrote.
///
/// # Errors
/// When it is not whole, or of another [`STATE`].
pub fn read(file: File) -> io::Result<Vec<Piece>> {
    let mut file = BufReader::new(file);
    let mut pieces = Vec::new();
    loop {
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PIECE {
            return Err(io::Error::other("a piece is too large"));
        }
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        let piece = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        match (&piece, pieces.is_empty()) {
            (Piece::Begin { state: STATE, .. }, true) => {}
            (_, true) => return Err(io::Error::other("it is of another version")),
            (Piece::End, false) => return Ok(pieces),
            (_, false) => {}
        }
        pieces.push(piece);
    }
}

/// Descriptors of streams, closed in what a worker starts.
///
/// # Errors
/// When one is not open.
pub fn sources(raw: &[(RawFd, Stream)]) -> io::Result<Vec<Source>> {
    raw.iter().map(|&(fd, stream)| Ok(Source { fd: taken(fd)?, stream })).collect()
}

/// A descriptor that the program before kept open.
///
/// # Errors
/// When it is not open.
pub fn taken(fd: RawFd) -> io::Result<OwnedFd> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(crate::sys::own(fd))
}

/// Writes a log's lines.
///
/// # Errors
/// As [`Writer::write`].
pub fn write_ring(writer: &mut Writer, id: &str, ring: &Ring) -> io::Result<()> {
    for record in ring.records() {
        writer.write(&Piece::Record { id: id.to_owned(), record: record.clone() })?;
    }
    for (stream, line) in ring.partial_lines() {
        writer.write(&Piece::Partial { id: id.to_owned(), stream, line: line.clone() })?;
    }
    Ok(())
}

/// Whether a file is there that may be run.
///
/// # Errors
/// What is in the way.
pub fn is_runnable(program: &str) -> io::Result<()> {
    let metadata = std::fs::metadata(program)?;
    rustix::fs::access(program, rustix::fs::Access::EXEC_OK)?;
    if metadata.is_file() { Ok(()) } else { Err(io::Error::other("it is no file")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(bytes: &[u8]) -> File {
        let mut file: File = memfd_create(c"test", MemFdCreateFlag::MFD_CLOEXEC).expect("a file in memory").into();
        file.write_all(bytes).expect("written");
        file.rewind().expect("at its begin");
        file
    }

    fn written(pieces: &[Piece]) -> Vec<u8> {
        let mut writer = Writer::new().expect("a file in memory");
        pieces.iter().for_each(|piece| writer.write(piece).expect("written"));
        let (mut file, _kept) = writer.finish().expect("whole");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        bytes
    }

    fn begin() -> Piece {
        Piece::Begin { state: STATE, numbers: 7, listener: 3 }
    }

    #[test]
    fn what_is_not_whole_or_of_another_version_is_refused() {
        let mut ring = Ring::default();
        ring.write(Stream::Stdout, 5, b"one\ntwo\nthree");
        let mut pieces = vec![begin()];
        pieces.extend(ring.records().map(|record| Piece::Record { id: "a".into(), record: record.clone() }));
        for (stream, line) in ring.partial_lines() {
            pieces.push(Piece::Partial { id: "a".into(), stream, line: line.clone() });
        }
        assert_eq!(pieces.len(), 4);
        let bytes = written(&pieces);
        assert_eq!(read(file(&bytes)).expect("whole"), pieces);
        for length in 0..bytes.len() {
            assert!(read(file(&bytes[..length])).is_err(), "{length} of {}", bytes.len());
        }
        assert!(read(file(&written(&pieces[1..]))).is_err(), "it has no begin");
        let other = Piece::Begin { state: STATE + 1, numbers: 7, listener: 3 };
        assert!(read(file(&written(&[other]))).is_err());
    }

    #[test]
    fn descriptors_stay_open_for_the_next_program_and_only_for_it() {
        let (reader, _writer) = super::super::output::pipe().expect("a pipe");
        let closes = || fcntl(reader.as_raw_fd(), FcntlArg::F_GETFD).expect("open") != 0;
        let mut writer = Writer::new().expect("a file in memory");
        writer.keep(&reader).expect("kept");
        assert!(!closes());
        drop(writer);
        assert!(closes(), "there was no next program");
    }

    proptest! {
        // Each is some hundred KiB of log: enough to have lost lines.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_log_goes_on_as_it_was(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 0..60)) {
            let mut ring = Ring::default();
            for chunk in &chunks {
                ring.write(Stream::Stderr, 1, chunk);
            }
            let mut again = Ring::again(ring.next(), ring.dropped());
            ring.records().for_each(|record| again.put(record.clone()));
            for (stream, line) in ring.partial_lines() {
                again.put_partial(stream, line.clone());
            }
            for ring in [&mut ring, &mut again] {
                ring.write(Stream::Stderr, 2, b"more\n");
            }
            prop_assert_eq!(ring.page(0), again.page(0));
            prop_assert_eq!((ring.next(), ring.dropped()), (again.next(), again.dropped()));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(file(&bytes));
            let mut framed = written(&[begin()]);
            framed.truncate(framed.len() - 5);
            framed.extend((bytes.len() as u32).to_le_bytes());
            framed.extend(&bytes);
            let _ = read(file(&framed));
        }
    }
}
