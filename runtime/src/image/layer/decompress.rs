//! Compressed layers as plain streams: all gzip members, all zstd frames, nothing behind them.

use crate::image::manifest::Compression;
use flate2::bufread::GzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

/// Bytes of compressed input that are held.
const INPUT: usize = 32 * 1024;

/// Bytes of a zstd window: what RFC 8878 3.1.1.1.2 asks decoders to support at least. Larger ones would not fit the
/// memory that a pull may take.
const MAX_WINDOW: u64 = 8 * 1024 * 1024;

/// Decodes `stream`.
pub fn decompressed<'a>(compression: Compression, stream: impl Read + 'a) -> Box<dyn Read + 'a> {
    let input = BufReader::with_capacity(INPUT, stream);
    match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(Gzip { member: Some(GzDecoder::new(input)) }),
        Compression::Zstd => Box::new(Zstd { state: ZstdState::Between(input) }),
    }
}

/// A stream of members, one after the other (RFC 1952 2.2).
struct Gzip<R: BufRead> {
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput if error.to_string().contains("header") => {
                    io::Error::new(io::ErrorKind::InvalidData, "no gzip stream, or data after it")
                }
                _ => error,
            })?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let mut input = self.member.take().map(GzDecoder::into_inner).ok_or(io::ErrorKind::UnexpectedEof)?;
            match input.fill_buf()?.first() {
                None => {}
                Some(0x1f) => self.member = Some(GzDecoder::new(input)),
                Some(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "data after the compressed stream"));
                }
            }
        }
        Ok(0)
    }
}

/// A stream of frames, one after the other.
struct Zstd<R: BufRead> {
    state: ZstdState<R>,
}

type Frame<R> = StreamingDecoder<Chain<Cursor<[u8; 4]>, R>, FrameDecoder>;

enum ZstdState<R: BufRead> {
    Between(R),
    Frame(Box<Frame<R>>),
    Ended,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, ZstdState::Ended) {
                ZstdState::Ended => return Ok(0),
                ZstdState::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    self.state = next_frame(input)?;
                }
                ZstdState::Frame(mut frame) => {
                    let count = frame.read(buffer)?;
                    if count > 0 || buffer.is_empty() {
                        self.state = ZstdState::Frame(frame);
                        return Ok(count);
                    }
                    self.state = ZstdState::Between(frame.into_inner().into_inner().1);
                }
            }
        }
    }
}

/// Begins the next frame, or steps over a skippable one (RFC 8878 3.1.2).
fn next_frame<R: BufRead>(mut input: R) -> io::Result<ZstdState<R>> {
    let mut magic = [0; 4];
    input.read_exact(&mut magic)?;
    if magic[1..] == [0x2a, 0x4d, 0x18] && magic[0] & 0xf0 == 0x50 {
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        let skipped = io::copy(&mut (&mut input).take(length), &mut io::sink())?;
        return if skipped == length {
            Ok(ZstdState::Between(input))
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        };
    }
    let source = Cursor::new(magic).chain(input);
    match StreamingDecoder::new_with_max_window_size(source, MAX_WINDOW) {
        Ok(frame) => Ok(ZstdState::Frame(Box::new(frame))),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))),
    }
}
