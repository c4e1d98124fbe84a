//! Logs on disk, for services that ask for them (`logging: {driver: local}`): files of bounded size, the newest first.
//!
//! A line is as Kubernetes' Container Runtime Interface has it (`2026-01-02T03:04:05.678901234Z stdout F:17 text`), so
//! other tools can read it; the tag is `F` for the end of a line and `P` for a part, and the record's sequence number.
//! What was written last when the power went may be missing; nothing waits for the disk.

use crate::clock::{parse_rfc3339, rfc3339};
use coracle_runtime::shim::{LogRecord, Stream};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file when the service does not say: small enough for a board with 512 MB of flash, some 10,000 lines.
const DEFAULT_SIZE: u64 = 1024 * 1024;

/// Files when the service does not say.
const DEFAULT_FILES: u32 = 3;

/// Bytes of a line at most; a record is 8 KiB, its head some 50 bytes.
const MAX_LINE: u64 = 16 * 1024;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Bytes of one file.
    pub size: u64,
    /// Number of files.
    pub files: u32,
}

impl Bounds {
    /// As a service asks; `None`: no files.
    pub fn of(logging: &coracle_compose::Logging) -> Option<Self> {
        logging.files.then(|| Self {
            size: logging.max_size.unwrap_or(DEFAULT_SIZE),
            files: logging.max_file.unwrap_or(DEFAULT_FILES),
        })
    }
}

/// Which record was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its sequence number.
    pub sequence: u64,
    /// When it arrived, nanoseconds since 1970: two containers may have records of one number.
    pub unix_ns: u64,
}

/// The files of one service, to be written.
#[derive(Debug)]
pub struct LogFiles {
    folder: PathBuf,
    bounds: Bounds,
    file: File,
    length: u64,
    last: Option<Place>,
}

impl LogFiles {
    /// Opens them; a line that a power cut left unfinished is cut off.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(folder: &Path, bounds: Bounds) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = newest(folder);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let length = end_of_last_line(&mut file)?;
        file.set_len(length)?;
        file.seek(SeekFrom::End(0))?;
        let last = last(folder)?;
        Ok(Self { folder: folder.to_owned(), bounds, file, length, last })
    }

    /// Which record was written last.
    pub fn last(&self) -> Option<Place> {
        self.last
    }

    /// Writes records behind the others.
    ///
    /// # Errors
    /// As the file system says; whole lines of some of them may be written then.
    pub fn append(&mut self, records: &[LogRecord]) -> io::Result<()> {
        let mut text = Vec::new();
        for record in records {
            let before = text.len();
            write_line(&mut text, record);
            if self.length + text.len() as u64 > self.bounds.size && self.length + before as u64 > 0 {
                let next = text.split_off(before);
                self.write(&text)?;
                self.rotate()?;
                text = next;
            }
        }
        self.write(&text)?;
        if let Some(record) = records.last() {
            self.last = Some(Place { sequence: record.sequence, unix_ns: record.unix_ns });
        }
        Ok(())
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(text);
        if written.is_err() {
            // No half line before the next one.
            self.file.set_len(self.length)?;
            self.file.seek(SeekFrom::Start(self.length))?;
        }
        written?;
        self.length += text.len() as u64;
        Ok(())
    }

    /// From the oldest on, so that a crash between two of them loses none but the oldest.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (0..self.bounds.files.saturating_sub(1)).rev() {
            match std::fs::rename(path(&self.folder, number), path(&self.folder, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = File::create(newest(&self.folder))?;
        self.length = 0;
        // There may have been more files before the service's file was changed.
        for number in self.bounds.files.. {
            if std::fs::remove_file(path(&self.folder, number)).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number}.log"))
}

fn newest(folder: &Path) -> PathBuf {
    path(folder, 0)
}

fn end_of_last_line(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MAX_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut end)?;
    Ok(end.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| start + at as u64 + 1))
}

/// The last record that the files hold.
///
/// # Errors
/// As the file system says.
pub fn last(folder: &Path) -> io::Result<Option<Place>> {
    for number in 0..2 {
        let mut file = match File::open(path(folder, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let end = end_of_last_line(&mut file)?;
        let start = end.saturating_sub(MAX_LINE);
        file.seek(SeekFrom::Start(start))?;
        let mut text = Vec::new();
        file.take(end - start).read_to_end(&mut text)?;
        let place = text.split(|&byte| byte == b'\n').rev().find_map(read_line);
        if let Some(record) = place {
            return Ok(Some(Place { sequence: record.sequence, unix_ns: record.unix_ns }));
        }
    }
    Ok(None)
}

fn write_line(text: &mut Vec<u8>, record: &LogRecord) {
    let stream = match record.stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if record.continues { 'P' } else { 'F' };
    text.extend_from_slice(
        format!("{} {stream} {tag}:{} ", rfc3339(record.unix_ns, 9), record.sequence).as_bytes(),
    );
    // A record has no line break; one in a carriage return's place would be another line to other tools.
    text.extend_from_slice(&record.bytes);
    text.push(b'\n');
}

fn read_line(line: &[u8]) -> Option<LogRecord> {
    let mut words = line.splitn(4, |&byte| byte == b' ');
    let mut word = || words.next().and_then(|word| std::str::from_utf8(word).ok());
    let (time, stream, tag) = (word()?, word()?, word()?);
    let (kind, sequence) = tag.split_once(':')?;
    Some(LogRecord {
        sequence: sequence.parse().ok()?,
        unix_ns: parse_rfc3339(time)?,
        stream: match stream {
            "stdout" => Stream::Stdout,
            "stderr" => Stream::Stderr,
            _ => return None,
        },
        continues: kind == "P",
        bytes: words.next()?.to_vec(),
    })
}

/// What the files hold, oldest first. A line that cannot be read is passed over.
pub struct Records {
    files: Vec<File>,
    reader: Option<BufReader<File>>,
}

impl Records {
    /// Opens all files at once: what is rotated meanwhile is read all the same.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut numbers: Vec<u32> = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            entries => entries?
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
                .collect(),
        };
        numbers.sort_unstable();
        let files = numbers.into_iter().filter_map(|number| File::open(path(folder, number)).ok()).collect();
        Ok(Self { files, reader: None })
    }
}

impl Iterator for Records {
    type Item = LogRecord;

    fn next(&mut self) -> Option<LogRecord> {
        loop {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => self.reader.insert(BufReader::new(self.files.pop()?)),
            };
            let mut line = Vec::new();
            // A disk that fails ends a file; the others may be read.
            let count = reader.take(MAX_LINE).read_until(b'\n', &mut line).unwrap_or(0);
            if count == 0 {
                self.reader = None;
                continue;
            }
            if line.pop() == Some(b'\n')
                && let Some(record) = read_line(&line)
            {
                return Some(record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(sequence: u64, text: &[u8]) -> LogRecord {
        let stream = if sequence.is_multiple_of(3) { Stream::Stderr } else { Stream::Stdout };
        LogRecord {
            sequence,
            unix_ns: 1_000_000_007 * sequence,
            stream,
            continues: sequence % 5 == 4,
            bytes: text.to_vec(),
        }
    }

    fn open(folder: &Path, size: u64, files: u32) -> LogFiles {
        LogFiles::open(folder, Bounds { size, files }).expect("opened")
    }

    fn read(folder: &Path) -> Vec<LogRecord> {
        Records::open(folder).expect("opened").collect()
    }

    #[test]
    fn files_stay_within_their_bounds_and_hold_the_newest_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = open(folder.path(), 1_000, 3);
        for sequence in 0..200 {
            files.append(&[record(sequence, b"some text")]).expect("written");
        }
        let sizes: Vec<u64> = (0..4)
            .filter_map(|number| std::fs::metadata(path(folder.path(), number)).ok().map(|it| it.len()))
            .collect();
        assert!(sizes.len() == 3 && sizes.iter().all(|&size| size <= 1_000), "{sizes:?}");
        let kept = read(folder.path());
        assert!(kept.len() > 30, "{}", kept.len());
        let first = kept[0].sequence;
        assert_eq!(kept, (first..200).map(|sequence| record(sequence, b"some text")).collect::<Vec<_>>());
        // Fewer files from now on.
        let mut files = open(folder.path(), 1_000, 1);
        files.append(&vec![record(200, b"more"); 20]).expect("written");
        assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 1);
    }

    #[test]
    fn a_line_that_was_cut_off_is_gone_and_the_next_stands_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = open(folder.path(), 10_000, 2);
        files.append(&[record(1, b"one"), record(2, b"two")]).expect("written");
        assert_eq!(files.last(), Some(Place { sequence: 2, unix_ns: 2_000_000_014 }));
        let whole = std::fs::read(newest(folder.path())).expect("read");
        for cut in 0..whole.len() {
            std::fs::write(newest(folder.path()), &whole[..cut]).expect("cut");
            let mut files = open(folder.path(), 10_000, 2);
            let left = u64::from(whole[..cut].contains(&b'\n'));
            assert_eq!(files.last().map(|it| it.sequence).unwrap_or_default(), left);
            files.append(&[record(9, b"nine")]).expect("written");
            let numbers: Vec<u64> = read(folder.path()).iter().map(|it| it.sequence).collect();
            assert_eq!(numbers, if left == 1 { vec![1, 9] } else { vec![9] });
        }
    }

    #[test]
    fn what_is_no_line_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut text = b"\0\0\0\nnonsense\n2026-01-01T00:00:00Z stdout F:x text\n".to_vec();
        write_line(&mut text, &record(7, b"seven"));
        std::fs::write(newest(folder.path()), text).expect("written");
        assert_eq!(read(folder.path()), [record(7, b"seven")]);
    }

    proptest! {
        #[test]
        fn every_record_is_read_back(
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>().prop_filter("a line", |it| *it != b'\n'), 0..300), 0..20),
            size in 64_u64..4_000,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let records: Vec<_> = texts.iter().enumerate().map(|(at, text)| record(at as u64, text)).collect();
            open(folder.path(), size, 1_000).append(&records).expect("written");
            prop_assert_eq!(read(folder.path()), records);
        }
    }
}
