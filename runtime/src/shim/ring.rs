//! The bounded log of one container: newest bytes stay, oldest are dropped and counted.

use super::protocol::{LogPage, LogRecord, MAX_PAGE, Stream};
use std::collections::VecDeque;

/// Bytes of log kept per container. Covers the seconds an agent needs to come back for a service that writes
/// 64 KiB/s, and lets `logs` show some thousand lines without flash. Allocated only as far as a container writes.
pub const RING_BYTES: usize = 256 * 1024;

/// What a record costs beside its bytes, counted against [`RING_BYTES`] so that empty lines are bounded as well.
const RECORD_COST: usize = std::mem::size_of::<LogRecord>();

/// Longest record in bytes: a line that is longer goes on in the next record, marked `continues`.
const MAX_RECORD: usize = 8 * 1024;

/// Log of one container.
#[derive(Debug, Default)]
pub struct Ring {
    records: VecDeque<LogRecord>,
    cost: usize,
    next: u64,
    dropped: u64,
    partial: [PartialLine; 2],
}

/// A line whose end has not come yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartialLine {
    bytes: Vec<u8>,
    started_unix_ns: u64,
    continues: bool,
}

impl Ring {
    /// Takes bytes that were read from `stream` at `unix_ns`, and cuts them into lines.
    pub fn write(&mut self, stream: Stream, unix_ns: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let partial = &mut self.partial[stream as usize];
            if partial.bytes.is_empty() {
                partial.started_unix_ns = unix_ns;
            }
            let room = MAX_RECORD - partial.bytes.len();
            let (line, rest, ends) = match bytes.iter().take(room).position(|&byte| byte == b'\n') {
                Some(end) => (&bytes[..end], &bytes[end + 1..], true),
                None => {
                    let cut = room.min(bytes.len());
                    (&bytes[..cut], &bytes[cut..], false)
                }
            };
            partial.bytes.extend_from_slice(line);
            bytes = rest;
            if ends || partial.bytes.len() == MAX_RECORD {
                self.close_partial(stream, ends);
            }
        }
    }

    /// Closes the lines that were never ended, when their stream is.
    pub fn finish(&mut self, stream: Stream) {
        if !self.partial[stream as usize].bytes.is_empty() {
            self.close_partial(stream, true);
        }
        self.partial[stream as usize] = PartialLine::default();
    }

    fn close_partial(&mut self, stream: Stream, ends: bool) {
        let partial = &mut self.partial[stream as usize];
        let record = LogRecord {
            sequence: self.next,
            unix_ns: partial.started_unix_ns,
            stream,
            continues: partial.continues,
            bytes: std::mem::take(&mut partial.bytes),
        };
        partial.continues = !ends;
        self.next += 1;
        self.cost += RECORD_COST + record.bytes.len();
        self.records.push_back(record);
        while self.cost > RING_BYTES {
            let Some(oldest) = self.records.pop_front() else {
                break;
            };
            self.cost -= RECORD_COST + oldest.bytes.len();
            self.dropped += oldest.bytes.len() as u64;
        }
    }

    /// Records from `from` on, as many as one packet takes.
    pub fn page(&self, from: u64) -> LogPage {
        let first = self.records.front().map_or(self.next, |record| record.sequence);
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut page =
            LogPage { next: from.max(first).min(self.next), dropped: self.dropped, ..LogPage::default() };
        let mut bytes = 0;
        for record in self.records.iter().skip(skip) {
            bytes += RECORD_COST + record.bytes.len();
            if bytes > MAX_PAGE && !page.records.is_empty() {
                break;
            }
            page.next = record.sequence + 1;
            page.records.push(record.clone());
        }
        page
    }

    /// One that was written before: its next number, and what it dropped. Its records are put into it in their order.
    pub fn again(next: u64, dropped: u64) -> Self {
        Self { next, dropped, ..Self::default() }
    }

    /// Puts a record back.
    pub fn put(&mut self, record: LogRecord) {
        self.cost += RECORD_COST + record.bytes.len();
        self.records.push_back(record);
    }

    /// Puts a line back whose end has not come.
    pub fn put_partial(&mut self, stream: Stream, line: PartialLine) {
        self.partial[stream as usize] = line;
    }

    /// All records, the oldest first.
    pub fn records(&self) -> impl Iterator<Item = &LogRecord> {
        self.records.iter()
    }

    /// Lines whose end has not come.
    pub fn partial_lines(&self) -> impl Iterator<Item = (Stream, &PartialLine)> {
        [Stream::Stdout, Stream::Stderr]
            .into_iter()
            .zip(&self.partial)
            .filter(|(_, line)| **line != PartialLine::default())
    }

    /// Sequence number of the record that will be written next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(ring: &Ring) -> Vec<String> {
        ring.page(0).records.iter().map(|r| String::from_utf8_lossy(&r.bytes).into_owned()).collect()
    }

    #[test]
    fn lines_are_kept_whole_across_reads() {
        let mut ring = Ring::default();
        ring.write(Stream::Stdout, 1, b"one\ntw");
        ring.write(Stream::Stderr, 2, b"err\n");
        ring.write(Stream::Stdout, 3, b"o\n\n");
        assert_eq!(lines(&ring), ["one", "err", "two", ""]);
        assert_eq!(ring.page(0).records[2].unix_ns, 1, "a line's time is that of its first byte");
    }

    #[test]
    fn unfinished_line_is_closed_at_the_end_of_its_stream() {
        let mut ring = Ring::default();
        ring.write(Stream::Stdout, 1, b"no newline");
        assert!(lines(&ring).is_empty());
        ring.finish(Stream::Stdout);
        assert_eq!(lines(&ring), ["no newline"]);
    }

    #[test]
    fn long_line_continues_in_the_next_record() {
        let mut ring = Ring::default();
        ring.write(Stream::Stdout, 1, &vec![b'x'; MAX_RECORD + 5]);
        ring.write(Stream::Stdout, 1, b"\ny\n");
        let page = ring.page(0);
        let shape: Vec<_> = page.records.iter().map(|r| (r.bytes.len(), r.continues)).collect();
        assert_eq!(shape, [(MAX_RECORD, false), (5, true), (1, false)]);
    }

    #[test]
    fn oldest_bytes_are_dropped_and_counted() {
        let mut ring = Ring::default();
        for number in 0..10_000 {
            ring.write(Stream::Stdout, number, format!("{number:0100}\n").as_bytes());
        }
        assert!(ring.cost <= RING_BYTES);
        assert_eq!(ring.dropped(), (10_000 - ring.records.len() as u64) * 100);
        assert_eq!(ring.page(0).records[0].sequence, ring.records[0].sequence);
    }

    proptest! {
        #[test]
        fn every_byte_is_kept_or_counted(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 0..80)) {
            let mut ring = Ring::default();
            let mut written = 0_u64;
            for chunk in &chunks {
                written += chunk.iter().filter(|&&byte| byte != b'\n').count() as u64;
                ring.write(Stream::Stdout, 0, chunk);
            }
            ring.finish(Stream::Stdout);
            let (mut from, mut kept) = (0, 0_u64);
            loop {
                let page = ring.page(from);
                if page.records.is_empty() { break; }
                kept += page.records.iter().map(|r| r.bytes.len() as u64).sum::<u64>();
                from = page.next;
            }
            prop_assert_eq!(kept + ring.dropped(), written);
            prop_assert!(ring.cost <= RING_BYTES);
        }
    }
}
