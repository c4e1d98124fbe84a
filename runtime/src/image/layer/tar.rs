//! A tar reader for layers: ustar, GNU long names, PAX (POSIX.1-2017 pax, "ustar Interchange Format"), and sparse files
//! in the four forms that GNU tar writes ("Storing Sparse Files" of its manual).
//!
//! Strict where readers differ from each other, because a difference lets a scanner and a board see different files:
//! PAX records are framed by their length, NUL bytes in names are refused, a global header ends with its archive.

use std::io::{self, Read};

/// Size of a header and the unit of padding.
const BLOCK: usize = 512;

/// Bytes of one PAX header or GNU long name. Extended attributes are at most 64 KiB each; this takes a dozen.
const MAX_EXTENDED: u64 = 1024 * 1024;

/// Bytes of a path (`PATH_MAX`, linux/limits.h).
const MAX_PATH: usize = 4096;

/// Bytes of one file: far above what any board holds, far below what arithmetic can overflow on.
const MAX_FILE: u64 = 1 << 40;

/// Extended headers in a row before one entry; real archives have two.
const MAX_CHAIN: usize = 16;

/// Extended attributes of one entry. The list of their names is at most 64 KiB (`XATTR_LIST_MAX`, linux/limits.h): as
/// many as there are of the longest.
const MAX_XATTRS: usize = 256;

/// Parts with data of one sparse file: a map of 256 KiB in memory.
const MAX_PARTS: usize = 16 * 1024;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its bytes follow.
    File,
    /// A hard link to this path.
    HardLink(Vec<u8>),
    /// A symbolic link with this text.
    SymLink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A folder.
    Folder,
    /// A FIFO.
    Fifo,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of the file. They follow, those of a sparse file's `parts` only.
    pub size: u64,
    /// Of a sparse file: where it has data, in ascending order. The rest is holes.
    pub parts: Option<Vec<Part>>,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A part of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Why an archive is refused; names the entry when there is one.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes are no archive, or break a rule.
    #[error("entry {entry:?}: {reason}")]
    Bad {
        /// Path, as far as it is known.
        entry: String,
        /// The rule.
        reason: &'static str,
    },
    /// The stream failed.
    #[error("reading the archive")]
    Read(#[from] io::Error),
}

impl TarError {
    /// With the header's own name where the entry's is not known yet: archivers put the entry's into it.
    fn of(self, header: &[u8; BLOCK]) -> Self {
        match self {
            Self::Bad { entry, reason } if entry.is_empty() => bad(&ustar_path(header), reason),
            error => error,
        }
    }
}

fn bad(entry: &[u8], reason: &'static str) -> TarError {
    TarError::Bad { entry: String::from_utf8_lossy(entry).chars().take(200).collect(), reason }
}

/// Fields that extended headers set.
#[derive(Debug, Default, Clone)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<Sparse>,
}

/// What PAX records say of a sparse file, versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone)]
struct Sparse {
    /// Version 1: the map stands before the data.
    map_in_data: bool,
    /// Offsets and lengths in turn.
    map: Vec<u64>,
    size: Option<u64>,
}

/// Reads entries one after the other.
pub struct Archive<R> {
    stream: R,
    /// Bytes of the present entry not read yet, and of its padding.
    left: u64,
    padding: u64,
    global: Extended,
    ended: bool,
}

impl<R: Read> Archive<R> {
    /// Begins at the stream's start.
    pub fn new(stream: R) -> Self {
        Self { stream, left: 0, padding: 0, global: Extended::default(), ended: false }
    }

    /// The next entry; `None` at the end: two zero blocks, or a clean end on a block border.
    ///
    /// # Errors
    /// When the archive breaks a rule or the stream fails.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        let mut extended = self.global.clone();
        let mut pending = false;
        for _ in 0..MAX_CHAIN {
            let Some(header) = self.header()? else {
                return if pending {
                    Err(bad(b"", "the archive ends after an extended header"))
                } else {
                    Ok(None)
                };
            };
            match header[156] {
                b'x' => {
                    let records = self.extended_bytes(&header)?;
                    parse_pax(&records, &mut extended).map_err(|error| error.of(&header))?;
                }
                b'g' => {
                    let records = self.extended_bytes(&header)?;
                    parse_pax(&records, &mut self.global).map_err(|error| error.of(&header))?;
                    if self.global.sparse.is_some() {
                        return Err(bad(b"", "a global header makes all files sparse"));
                    }
                    extended = self.global.clone();
                }
                b'L' => extended.path = Some(trimmed(&self.extended_bytes(&header)?)),
                b'K' => extended.link = Some(trimmed(&self.extended_bytes(&header)?)),
                _ => return self.entry(&header, extended).map(Some),
            }
            pending = true;
        }
        Err(bad(b"", "too many extended headers in a row"))
    }

    /// Reads bytes of the present entry.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        match self.stream.read(&mut buffer[..room])? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }

    /// The stream, for what comes behind the archive.
    pub fn into_inner(self) -> R {
        self.stream
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let total = self.left + self.padding;
        let skipped = io::copy(&mut (&mut self.stream).take(total), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped == total { Ok(()) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => filled += count,
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, &byte)| u64::from(if (148..156).contains(&at) { b' ' } else { byte }))
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(bad(&trimmed(&block[..100]), "its header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    fn extended_bytes(&mut self, header: &[u8; BLOCK]) -> Result<Vec<u8>, TarError> {
        let refuse = |reason| bad(&ustar_path(header), reason);
        let size = number(&header[124..136]).ok_or_else(|| refuse("an extended header has no size"))?;
        if size > MAX_EXTENDED {
            return Err(refuse("an extended header is larger than 1 MiB"));
        }
        let mut bytes = Vec::new();
        (&mut self.stream).take(size).read_to_end(&mut bytes)?;
        self.padding = padding(size);
        if bytes.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.skip()?;
        Ok(bytes)
    }

    fn entry(&mut self, header: &[u8; BLOCK], extended: Extended) -> Result<Entry, TarError> {
        let path = extended.path.unwrap_or_else(|| ustar_path(header));
        let field =
            |range: std::ops::Range<usize>, reason| number(&header[range]).ok_or_else(|| bad(&path, reason));
        let link = extended.link.unwrap_or_else(|| trimmed(&header[157..257]));
        if path.is_empty() || path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(bad(&path, "its name is empty or longer than 4096 bytes"));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(bad(&path, "a NUL byte in its name"));
        }
        let device = || -> Result<(u32, u32), TarError> {
            let part =
                |range| field(range, "its device number is none").map(|it| u32::try_from(it).unwrap_or(u32::MAX));
            Ok((part(329..337)?, part(337..345)?))
        };
        let kind = match header[156] {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::SymLink(link),
            b'3' => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            _ => return Err(bad(&path, "its type is unknown")),
        };
        let size = match extended.size {
            Some(size) => size,
            None => field(124..136, "its size is no number")?,
        };
        if size > MAX_FILE {
            return Err(bad(&path, "it is larger than 1 TiB"));
        }
        let stored = if kind == Kind::File { size } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        let (size, parts) = match (header[156], extended.sparse) {
            (b'S', _) => self.gnu_sparse(header, &path).map(|(size, parts)| (size, Some(parts)))?,
            (_, Some(_)) if kind != Kind::File => return Err(bad(&path, "it is sparse, but no file")),
            (_, Some(sparse)) => self.pax_sparse(sparse, &path).map(|(size, parts)| (size, Some(parts)))?,
            (_, None) => (stored, None),
        };
        let id = |set: Option<u32>, range, reason| match set {
            Some(id) => Ok(id),
            None => field(range, reason)
                .and_then(|id| u32::try_from(id).map_err(|_| bad(&path, "its owner is out of range"))),
        };
        Ok(Entry {
            kind,
            size,
            parts,
            mode: field(100..108, "its mode is no number")? as u32 & 0o7777,
            uid: id(extended.uid, 108..116, "its owner is no number")?,
            gid: id(extended.gid, 116..124, "its group is no number")?,
            mtime: extended.mtime.unwrap_or((number(&header[136..148]).unwrap_or(0) as i64, 0)),
            xattrs: extended.xattrs,
            path,
        })
    }

    /// The old GNU form: the map stands in the header and in blocks behind it.
    fn gnu_sparse(&mut self, header: &[u8; BLOCK], path: &[u8]) -> Result<(u64, Vec<Part>), TarError> {
        let size = number(&header[483..495]).ok_or_else(|| bad(path, "its size is no number"))?;
        let mut map = Vec::new();
        let mut add = |fields: &[u8]| -> Result<(), TarError> {
            // An unused place begins with NUL.
            for field in fields.chunks_exact(12).take_while(|field| field[0] != 0) {
                map.push(number(field).ok_or_else(|| bad(path, "its map of parts holds no number"))?);
            }
            if map.len() > 2 * MAX_PARTS { Err(bad(path, "it has more than 16,384 parts")) } else { Ok(()) }
        };
        add(&header[386..482])?;
        let mut goes_on = header[482] != 0;
        while goes_on {
            let mut block = [0; BLOCK];
            self.stream.read_exact(&mut block)?;
            add(&block[..504])?;
            goes_on = block[504] != 0;
        }
        parts_of(&map, size, self.left, path).map(|parts| (size, parts))
    }

    fn pax_sparse(&mut self, mut sparse: Sparse, path: &[u8]) -> Result<(u64, Vec<Part>), TarError> {
        if sparse.map_in_data {
            let count = self.line(path)?;
            if count > MAX_PARTS as u64 {
                return Err(bad(path, "it has more than 16,384 parts"));
            }
            sparse.map = (0..2 * count).map(|_| self.line(path)).collect::<Result<_, _>>()?;
            // The data begin with the next block.
            let rest = (self.left + self.padding) % BLOCK as u64;
            if rest > self.left {
                return Err(bad(path, "it ends within its map of parts"));
            }
            self.left -= io::copy(&mut (&mut self.stream).take(rest), &mut io::sink())?;
        }
        let size = sparse.size.ok_or_else(|| bad(path, "a sparse file without a size"))?;
        parts_of(&sparse.map, size, self.left, path).map(|parts| (size, parts))
    }

    /// A decimal number and a newline, of the present entry's bytes.
    fn line(&mut self, path: &[u8]) -> Result<u64, TarError> {
        let mut value = 0_u64;
        for place in 0..=20 {
            let mut byte = [0];
            if self.read_data(&mut byte)? == 0 {
                return Err(bad(path, "it ends within its map of parts"));
            }
            match byte[0] {
                b'\n' if place > 0 => return Ok(value),
                digit @ b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|it| it.checked_add((digit - b'0').into()));
                    value = next.ok_or_else(|| bad(path, "its map of parts holds no number"))?;
                }
                _ => break,
            }
        }
        Err(bad(path, "its map of parts holds no number"))
    }
}

/// Checks a map: in ascending order, inside of the file, and as many bytes as are stored.
fn parts_of(map: &[u64], size: u64, stored: u64, path: &[u8]) -> Result<Vec<Part>, TarError> {
    if size > MAX_FILE {
        return Err(bad(path, "it is larger than 1 TiB"));
    }
    let (mut end, mut sum) = (0, 0);
    let mut parts = Vec::with_capacity(map.len() / 2);
    for pair in map.chunks(2) {
        let &[offset, length] = pair else { return Err(bad(path, "its map of parts has an odd number")) };
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
        end = next.ok_or_else(|| bad(path, "a part is outside of the file or over another"))?;
        sum += length;
        parts.push(Part { offset, length });
    }
    if sum == stored { Ok(parts) } else { Err(bad(path, "its parts are not what is stored")) }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn trimmed(field: &[u8]) -> Vec<u8> {
    field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

fn ustar_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = trimmed(&header[..100]);
    let prefix = if &header[257..263] == b"ustar\0" { trimmed(&header[345..500]) } else { Vec::new() };
    if prefix.is_empty() { name } else { [prefix, name].join(&b'/') }
}

/// A number: octal text, or base 256 when the first bit is set (GNU). Empty is 0.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first == 0x80 {
        return rest.iter().try_fold(0_u64, |value, &byte| value.checked_mul(256)?.checked_add(byte.into()));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Reads PAX records: `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record. A later record wins.
fn parse_pax(mut bytes: &[u8], extended: &mut Extended) -> Result<(), TarError> {
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .take(20)
            .position(|&byte| byte == b' ')
            .ok_or_else(|| bad(b"", "a PAX record has no length"))?;
        let length: usize =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(bad(b"", "a PAX record's length does not fit"));
        }
        let record = &bytes[space + 1..length - 1];
        let equals =
            record.iter().position(|&byte| byte == b'=').ok_or_else(|| bad(b"", "a PAX record without ="))?;
        set_pax(&record[..equals], &record[equals + 1..], extended)?;
        bytes = &bytes[length..];
    }
    Ok(())
}

fn set_pax(key: &[u8], value: &[u8], extended: &mut Extended) -> Result<(), TarError> {
    let refuse = |reason| bad(b"", reason);
    let text = || std::str::from_utf8(value).map_err(|_| refuse("a PAX number is no number"));
    let parse = || -> Result<u64, TarError> { text()?.parse().map_err(|_| refuse("a PAX number is no number")) };
    let id = || parse().and_then(|id| u32::try_from(id).map_err(|_| refuse("an owner is out of range")));
    match key {
        b"path" => extended.path = Some(value.to_vec()),
        b"linkpath" => extended.link = Some(value.to_vec()),
        b"size" => extended.size = Some(parse()?),
        b"uid" => extended.uid = Some(id()?),
        b"gid" => extended.gid = Some(id()?),
        b"mtime" => extended.mtime = Some(pax_time(text()?).ok_or_else(|| refuse("a PAX time is no number"))?),
        _ if key.starts_with(b"GNU.sparse.") => {
            let sparse = extended.sparse.get_or_insert_default();
            match &key[b"GNU.sparse.".len()..] {
                b"major" => sparse.map_in_data = parse()? == 1,
                b"minor" if parse()? == 0 => {}
                // Version 0 has no number; 1.0 is the last.
                b"minor" => return Err(refuse("a sparse file of an unknown version")),
                b"name" => extended.path = Some(value.to_vec()),
                b"size" | b"realsize" => sparse.size = Some(parse()?),
                b"numblocks" => {}
                b"offset" | b"numbytes" => {
                    let is_offset = key.ends_with(b"offset");
                    if is_offset != sparse.map.len().is_multiple_of(2) {
                        return Err(refuse("its map of parts has an odd number"));
                    }
                    sparse.map.push(parse()?);
                }
                b"map" => {
                    let numbers = text()?.split(',').filter(|it| !it.is_empty()).map(str::parse);
                    let map = numbers.collect::<Result<Vec<u64>, _>>();
                    sparse.map = map.map_err(|_| refuse("its map of parts holds no number"))?;
                }
                _ => return Err(refuse("an unknown record of a sparse file")),
            }
            if sparse.map.len() > 2 * MAX_PARTS {
                return Err(refuse("it has more than 16,384 parts"));
            }
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                extended.xattrs.retain(|(known, _)| known != name);
                if extended.xattrs.len() == MAX_XATTRS {
                    return Err(bad(b"", "more than 256 extended attributes"));
                }
                extended.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// Seconds with a fraction; times before 1970 are negative.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some((seconds.parse().ok()?, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    // dragonflyoss/nydus#2022, golang/go#32264, libarchive/libarchive#752
    #[test]
    fn pax_records_are_framed_by_length_not_by_newline() {
        let mut extended = Extended::default();
        let evil = b"x\n21 linkpath=/etc/bad\n";
        let records = [record("SCHILY.xattr.user.note", evil), record("SCHILY.xattr.user.raw", b"a\0b")].concat();
        parse_pax(&records, &mut extended).expect("accepted");
        assert_eq!(extended.link, None);
        assert_eq!(
            extended.xattrs,
            [(b"user.note".to_vec(), evil.to_vec()), (b"user.raw".to_vec(), b"a\0b".to_vec())]
        );
    }

    #[test]
    fn broken_pax_records_are_refused() {
        for records in [&b"99 path=x\n"[..], b"7 path\n", b"x path=y\n", b"10 path=xy", b"0 a=b\n"] {
            assert!(parse_pax(records, &mut Extended::default()).is_err(), "{}", records.escape_ascii());
        }
    }

    #[test]
    fn attributes_of_one_entry_are_counted() {
        let many: Vec<u8> =
            (0..=MAX_XATTRS).flat_map(|it| record(&format!("SCHILY.xattr.user.{it}"), b"")).collect();
        let error = parse_pax(&many, &mut Extended::default()).expect_err("refused");
        assert!(error.to_string().contains("more than 256 extended attributes"), "{error}");
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"9"), None);
    }

    /// What GNU tar 1.34 made of three files: 30 parts of 100 bytes, a hole of 1 MiB, and a plain one.
    const SPARSE: [&[u8]; 4] = [
        include_bytes!("../../../tests/corpus/sparse/gnu.tar.gz"),
        include_bytes!("../../../tests/corpus/sparse/pax-0.0.tar.gz"),
        include_bytes!("../../../tests/corpus/sparse/pax-0.1.tar.gz"),
        include_bytes!("../../../tests/corpus/sparse/pax-1.0.tar.gz"),
    ];

    #[test]
    fn sparse_files_of_every_form_have_their_bytes_where_they_belong() {
        let mut disk = vec![0; 3 << 20];
        for part in 0..30 {
            let start = part * 65_536 + 4_096;
            disk[start..start + 100].fill(b'A' + (part % 26) as u8);
        }
        for packed in SPARSE {
            let mut archive = Archive::new(flate2::read::GzDecoder::new(packed));
            let mut files = Vec::new();
            while let Some(entry) = archive.next_entry().expect("an entry") {
                let mut bytes = vec![0; entry.size as usize];
                for part in entry.parts.unwrap_or(vec![Part { offset: 0, length: entry.size }]) {
                    let mut part = &mut bytes[part.offset as usize..][..part.length as usize];
                    while !part.is_empty() {
                        let count = archive.read_data(part).expect("read");
                        assert!(count > 0);
                        part = &mut part[count..];
                    }
                }
                files.push((String::from_utf8(entry.path).expect("a name"), bytes));
            }
            let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["disk.img", "hole", "plain"]);
            assert!(files[0].1 == disk && files[1].1 == vec![0; 1 << 20] && files[2].1 == b"plain\n");
        }
    }

    #[test]
    fn a_map_of_parts_that_does_not_fit_is_refused() {
        let refused =
            |map: &[u64], size, stored| parts_of(map, size, stored, b"f").expect_err("refused").to_string();
        assert!(refused(&[0, 5, 4, 1], 10, 6).contains("over another"));
        assert!(refused(&[0, 11], 10, 11).contains("outside of the file"));
        assert!(refused(&[u64::MAX, 2], 10, 2).contains("outside of the file"));
        assert!(refused(&[0], 10, 0).contains("odd number"));
        assert!(refused(&[0, 5], 10, 6).contains("not what is stored"));
        assert!(refused(&[], u64::MAX, 0).contains("1 TiB"));
        assert!(parts_of(&[0, 5, 5, 0, 7, 3], 10, 8, b"f").is_ok());
        for (key, value) in [("minor", "1"), ("map", "0,x"), ("numbytes", "1"), ("other", "")] {
            let records = record(&format!("GNU.sparse.{key}"), value.as_bytes());
            assert!(parse_pax(&records, &mut Extended::default()).is_err(), "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next_entry() {}
        }

        #[test]
        fn any_pax_header_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse_pax(&bytes, &mut Extended::default());
        }
    }
}
