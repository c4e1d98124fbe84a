//! `tree FOLDER...`: one digest over everything that makes each folder what it is.
#![forbid(unsafe_code)]

use coracle_tests::tree;
use std::io::Write;
use std::path::Path;

fn main() -> anyhow::Result<()> {
    for folder in std::env::args().skip(1) {
        let described = format!("{:?}", tree::describe(Path::new(&folder))?);
        let digest = coracle_runtime::image::digest_of(described.as_bytes());
        writeln!(std::io::stdout(), "{digest} {folder}")?;
    }
    Ok(())
}
