//! `tree FOLDER...`: one digest over everything that makes each folder what it is.
#![forbid(unsafe_code)]

use coracle_tests::tree;
use std::io::Write;
use std::path::Path;

fn main() -> anyhow::Result<()> {
    for folder in std::env::args().skip(1) {
        let digest = coracle_runtime::image::digest_of(tree::describe(Path::new(&folder))?.as_bytes());
        writeln!(std::io::stdout(), "{digest} {folder}")?;
    }
    Ok(())
}
