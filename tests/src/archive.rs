//! Tar archives byte by byte: what a library would not write.

/// Unit of a tar archive.
const BLOCK: usize = 512;

/// One header; the fields that a test does not name are plain.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Path; more than 100 bytes go into a PAX record.
    pub name: &'a [u8],
    /// `b'0'` is a file, `b'1'` a hard link, `b'2'` a link, `b'5'` a folder (POSIX.1-2017 pax, "ustar").
    pub kind: u8,
    /// Target of a link.
    pub link: &'a [u8],
    /// Mode bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Time in seconds.
    pub mtime: u32,
    /// What the size field says; `None`: the truth.
    pub size: Option<&'a [u8]>,
    /// Device number.
    pub device: (u32, u32),
}

impl<'a> Header<'a> {
    /// Of a kind, with mode 0644 or 0755.
    pub fn new(name: &'a [u8], kind: u8) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self { name, kind, link: b"", mode, owner: (0, 0), mtime: 1_000_000_000, size: None, device: (0, 0) }
    }

    fn bytes(&self, length: usize) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.owner.0).as_bytes());
        put(116, format!("{:07o}", self.owner.1).as_bytes());
        put(124, self.size.unwrap_or(format!("{length:011o}").as_bytes()));
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        put(148, b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// An archive being written.
#[derive(Debug, Clone, Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry.
    #[must_use]
    pub fn entry(mut self, header: Header<'_>, data: &[u8]) -> Self {
        if header.name.len() > 100 {
            self = self.pax(&[("path", header.name)]);
        }
        if header.link.len() > 100 {
            self = self.pax(&[("linkpath", header.link)]);
        }
        self.0.extend_from_slice(&header.bytes(data.len()));
        self.raw(data)
    }

    /// Adds bytes, padded to a block.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(Header::new(name.as_bytes(), b'0'), data)
    }

    /// Adds a folder.
    #[must_use]
    pub fn folder(self, name: &str, mode: u32, owner: (u32, u32)) -> Self {
        self.entry(Header { mode, owner, ..Header::new(name.as_bytes(), b'5') }, b"")
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(Header { link: target.as_bytes(), ..Header::new(name.as_bytes(), b'2') }, b"")
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard(self, name: &str, target: &str) -> Self {
        self.entry(Header { link: target.as_bytes(), ..Header::new(name.as_bytes(), b'1') }, b"")
    }

    /// Adds PAX records for the next entry. The header before an entry has that entry's name in it.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(Header::new(b"PaxHeaders/next", b'x'), &records)
    }

    /// The archive with its two blocks of zeros.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    /// The archive without them.
    pub fn open_end(self) -> Vec<u8> {
        self.0
    }
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// gzip of some bytes, one member.
pub fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default()
}

/// A zstd frame of some bytes, not compressed (RFC 8878 3.1.1).
pub fn zstd(plain: &[u8]) -> Vec<u8> {
    frame(plain.chunks(100_000).map(|chunk| (0, chunk.len(), chunk)))
}

/// A zstd frame of zeros: four bytes for each 128 KiB.
pub fn zstd_zeros(count: usize) -> Vec<u8> {
    const FULL: usize = 128 * 1024;
    let sizes = (0..count.div_ceil(FULL)).map(|block| FULL.min(count - block * FULL));
    frame(sizes.map(|size| (1, size, &[0][..])))
}

/// Blocks of a type (0 raw, 1 one repeated byte) with what they become and what they hold.
fn frame<'a>(blocks: impl Iterator<Item = (u32, usize, &'a [u8])>) -> Vec<u8> {
    // A window of 1 MiB, no checksum, no size.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x50];
    for (kind, size, bytes) in blocks {
        frame.extend_from_slice(&((size as u32) << 3 | kind << 1).to_le_bytes()[..3]);
        frame.extend_from_slice(bytes);
    }
    // The last block, empty.
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}
