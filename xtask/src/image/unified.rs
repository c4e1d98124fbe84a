//! A unified kernel image: kernel, initial ramdisk and command line as one program for UEFI (UAPI Group specification
//! UKI; Microsoft PE/COFF). The stub at its beginning is systemd's.

use anyhow::{Context, ensure};

/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// Bytes of a row in the table of sections.
const ROW: usize = 40;

fn number<const N: usize>(bytes: &[u8], at: usize) -> anyhow::Result<usize> {
    let found = bytes.get(at..at + N).context("the stub ends too early")?;
    Ok(found.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
}

/// The stub with more sections behind its own.
///
/// # Errors
/// A stub that is no PE32+ program, or has no room for more sections in its table.
pub fn join(stub: &[u8], sections: &[(&str, &[u8])]) -> anyhow::Result<Vec<u8>> {
    let header = number::<4>(stub, 0x3c)?;
    ensure!(stub.get(header..header + 4) == Some(b"PE\0\0"), "the stub is no PE program");
    let coff = header + 4;
    let (count, optional) = (number::<2>(stub, coff + 2)?, coff + 20);
    let table = optional + number::<2>(stub, coff + 16)?;
    ensure!(number::<2>(stub, optional)? == 0x20b, "the stub is no PE32+ program");
    let (in_memory, in_file) = (number::<4>(stub, optional + 32)?, number::<4>(stub, optional + 36)?);
    ensure!(in_memory.is_power_of_two() && in_file.is_power_of_two(), "the stub's sections have odd places");
    let room = number::<4>(stub, optional + 60)?;
    ensure!(
        table + (count + sections.len()) * ROW <= room,
        "the stub has no room for {} sections",
        sections.len()
    );
    let mut address = 0;
    for row in 0..count {
        let row = table + row * ROW;
        address = address.max(number::<4>(stub, row + 12)? + number::<4>(stub, row + 8)?);
    }
    let mut image = stub.to_vec();
    for (at, (name, content)) in sections.iter().enumerate() {
        ensure!(name.len() <= 8, "{name}: sections have short names");
        address = address.next_multiple_of(in_memory);
        image.resize(image.len().next_multiple_of(in_file), 0);
        let place = image.len();
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(in_file), 0);
        let stored = image.len() - place;
        let row = table + (count + at) * ROW;
        image[row..row + ROW].fill(0);
        image[row..row + name.len()].copy_from_slice(name.as_bytes());
        let fields = [(8, content.len()), (12, address), (16, stored), (20, place)];
        for (field, value) in fields {
            image[row + field..][..4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
        }
        image[row + 36..][..4].copy_from_slice(&READ_ONLY_DATA.to_le_bytes());
        address += content.len();
    }
    let all = u16::try_from(count + sections.len())?;
    image[coff + 2..][..2].copy_from_slice(&all.to_le_bytes());
    let size = u32::try_from(address.next_multiple_of(in_memory))?;
    image[optional + 56..][..4].copy_from_slice(&size.to_le_bytes());
    // The checksum, which firmware does not look at.
    image[optional + 64..][..4].fill(0);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSection};

    /// The least program: headers, one section.
    fn stub(room: u32) -> Vec<u8> {
        let mut stub = vec![0; 0x600];
        let put = |stub: &mut Vec<u8>, at: usize, bytes: &[u8]| stub[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut stub, 0, b"MZ");
        put(&mut stub, 0x3c, &0x40_u32.to_le_bytes());
        put(&mut stub, 0x40, b"PE\0\0");
        put(&mut stub, 0x44, &0x8664_u16.to_le_bytes());
        put(&mut stub, 0x46, &1_u16.to_le_bytes());
        put(&mut stub, 0x54, &240_u16.to_le_bytes());
        put(&mut stub, 0x58, &0x20b_u16.to_le_bytes());
        put(&mut stub, 0x58 + 32, &0x1000_u32.to_le_bytes());
        put(&mut stub, 0x58 + 36, &0x200_u32.to_le_bytes());
        put(&mut stub, 0x58 + 60, &room.to_le_bytes());
        put(&mut stub, 0x58 + 108, &16_u32.to_le_bytes());
        let row = 0x58 + 240;
        put(&mut stub, row, b".text");
        for (field, value) in [(8, 0x10_u32), (12, 0x1000), (16, 0x200), (20, 0x400)] {
            put(&mut stub, row + field, &value.to_le_bytes());
        }
        stub
    }

    #[test]
    fn sections_are_where_the_table_says_and_do_not_overlap() {
        let (long, short) = (vec![7; 5000], b"console=ttyS0".to_vec());
        let image = join(&stub(0x400), &[(".cmdline", &short), (".linux", &long)]).expect("joined");
        let file = object::File::parse(&*image).expect("a program");
        let section = |name: &str| file.section_by_name(name).expect("a section");
        for (name, content) in [(".cmdline", &short), (".linux", &long)] {
            let data = section(name).data().expect("data");
            assert!(data.starts_with(content) && section(name).size() >= content.len() as u64, "{name}");
        }
        let mut places: Vec<_> = file.sections().map(|it| (it.address(), it.address() + it.size())).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:x?}");
        assert!(places.iter().all(|(begin, _)| begin % 0x1000 == 0), "{places:x?}");
    }

    #[test]
    fn what_is_no_stub_is_refused() {
        let one: &[(&str, &[u8])] = &[(".linux", b"x")];
        assert!(join(b"MZ", one).is_err() && join(&[0; 0x600], one).is_err());
        assert!(join(&stub(0x400)[..0x60], one).is_err());
        let error = join(&stub(0x170), one).expect_err("no room").to_string();
        assert!(error.contains("no room"), "{error}");
    }
}
