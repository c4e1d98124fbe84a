//! Images made to break out, to fill memory or disk, or to be read in two ways; and the good ones that look alike.

use anyhow::{Context, ensure};
use coracle_runtime::image::digest_of;
use coracle_tests::archive::{Archive, Header, gzip, zstd, zstd_zeros};
use coracle_tests::board::{Board, REGISTRY, run};
use coracle_tests::needs;
use coracle_tests::upload::{INDEX, Layer, MANIFEST, Upload};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const UPLOAD: Upload<'_> = Upload { registry: REGISTRY, repository: "app" };

/// An archive that is refused, and what is said of it.
fn archives(canary: &str) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let link = |name: &'static str, target: &str| Archive::new().link(name, target);
    let long = "n".repeat(256);
    let far = "d/".repeat(2_500);
    let deep = format!("{}f", "d/".repeat(300));
    let sized = |size: &[u8]| Archive::new().entry(Header { size: Some(size), ..Header::new(b"big", b'0') }, b"x");
    let extended = |kind, size: &[u8]| {
        Archive::new().entry(Header { size: Some(size), ..Header::new(b"long", kind) }, &[b'n'; 2000])
    };
    let records = |bytes: &[u8]| {
        Archive::new().entry(Header::new(b"PaxHeaders/victim", b'x'), bytes).file("victim", b"x").end()
    };
    let many_links = (0..70_000).fold(Archive::new(), |archive, _| archive.hard("link", "nowhere")).end();
    let held = (0..4_500).fold(Archive::new(), |archive, _| {
        let path = format!("{}/", "p".repeat(250)).repeat(15);
        archive.hard(&format!("{path}l"), &format!("{path}t"))
    });
    vec![
        (
            "upwards",
            Archive::new().file("a/../../canary/x", b"x").end(),
            r#"entry "a/../../canary/x": its path leads upwards"#,
        ),
        ("hard-link-out", Archive::new().hard("h", "../../canary/file").end(), "its path leads upwards"),
        (
            "hard-link-through",
            link("out", canary).hard("h", "out/file").end(),
            r#"entry "h": a hard link through a symbolic link"#,
        ),
        ("hard-link-root", Archive::new().hard("h", "/").end(), "a hard link to the root"),
        (
            "hard-link-folder",
            Archive::new().folder("d", 0o755, (0, 0)).hard("h", "d").end(),
            "a hard link to a folder",
        ),
        (
            "hard-link-nowhere",
            Archive::new().hard("h", "none").end(),
            r#"entry "h": a hard link to a file that is nowhere"#,
        ),
        ("whiteout-nothing", Archive::new().file("d/.wh.", b"").end(), r#"entry "d/.wh.": it hides no name"#),
        ("whiteout-dot", Archive::new().file(".wh..", b"").end(), r#"entry ".wh..": it hides no name"#),
        ("whiteout-dots", Archive::new().file("d/.wh...", b"").end(), r#"entry "d/.wh...": it hides no name"#),
        ("link-loop", link("a", "b").link("b", "a").file("a/x", b"x").end(), "too many symbolic links"),
        (
            "through-a-file",
            Archive::new().file("f", b"x").file("f/x", b"x").end(),
            r#"entry "f/x": its path leads through something that is no folder"#,
        ),
        ("root-is-a-file", Archive::new().entry(Header::new(b".", b'0'), b"x").end(), "the root must be a folder"),
        (
            "size-beyond-the-stream",
            sized(b"00000777777").open_end(),
            r#"entry "big": reading its bytes: unexpected end of file"#,
        ),
        (
            "size-of-tebibytes",
            sized(&[0x80, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0]).end(),
            r#"entry "big": it is larger than 1 TiB"#,
        ),
        ("size-negative", sized(&[0xff; 12]).end(), r#"entry "big": its size is no number"#),
        (
            "size-overflows",
            sized(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).end(),
            "larger than 1 TiB",
        ),
        (
            "size-of-the-record-overflows",
            Archive::new().pax(&[("size", b"99999999999999999999")]).file("f", b"x").end(),
            r#"entry "PaxHeaders/next": a PAX number is no number"#,
        ),
        (
            "bomb-of-one-file",
            sized(b"77777777777").end(),
            r#"entry "big": the layer unpacks to more than 1,000 times its size"#,
        ),
        (
            "long-name-of-100-mib",
            extended(b'L', b"00620000000").end(),
            r#"entry "long": an extended header is larger than 1 MiB"#,
        ),
        ("long-link-of-100-mib", extended(b'K', b"00620000000").end(), "an extended header is larger than 1 MiB"),
        ("records-of-100-mib", extended(b'x', b"00620000000").end(), "an extended header is larger than 1 MiB"),
        (
            "sparse-outside",
            Archive::new().pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"8,2")]).file("hole", b"xy").end(),
            r#"entry "hole": a part is outside of the file"#,
        ),
        (
            "sparse-map-without-an-end",
            Archive::new()
                .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")])
                .file("hole", b"9\n0\n1\n")
                .end(),
            r#"entry "hole": it ends within its map of parts"#,
        ),
        (
            "sparse-of-one-tebibyte",
            Archive::new().pax(&[("GNU.sparse.size", b"9999999999999")]).file("hole", b"").end(),
            r#"entry "hole": it is larger than 1 TiB"#,
        ),
        (
            "nul-in-a-name",
            Archive::new().pax(&[("path", b"a\0b")]).file("f", b"x").end(),
            "a NUL byte in its name",
        ),
        (
            "nul-in-a-link",
            Archive::new().pax(&[("linkpath", b"a\0b")]).link("victim", "x").end(),
            r#"entry "victim": a NUL byte in its name"#,
        ),
        (
            "record-too-long",
            records(b"99 path=x\n"),
            r#"entry "PaxHeaders/victim": a PAX record's length does not fit"#,
        ),
        ("record-of-nothing", records(b"0 a=b\n"), "a PAX record's length does not fit"),
        ("record-without-equals", records(b"7 path\n"), r#"entry "PaxHeaders/victim": a PAX record without ="#),
        (
            "records-without-end",
            (0..20).fold(Archive::new(), |it, _| it.pax(&[("comment", b"x")])).end(),
            "too many extended headers in a row",
        ),
        ("name-too-long", Archive::new().file(&format!("d/{long}"), b"x").end(), "File name too long"),
        ("path-too-long", Archive::new().file(&far, b"x").end(), "longer than 4096 bytes"),
        ("too-deep", Archive::new().file(&deep, b"x").end(), "nested deeper than 256"),
        (
            "overlay-attribute",
            Archive::new()
                .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")])
                .folder("d", 0o755, (0, 0))
                .end(),
            r#"entry "d": an attribute of the overlay's own"#,
        ),
        (
            "whiteout-device",
            Archive::new().entry(Header::new(b"dev/x", b'3'), b"").end(),
            r#"entry "dev/x": a character device 0:0"#,
        ),
        (
            "unknown-type",
            Archive::new().entry(Header::new(b"odd", b'Z'), b"").end(),
            r#"entry "odd": its type is unknown"#,
        ),
        (
            "checksum",
            {
                let mut bytes = Archive::new().file("f", b"x").end();
                bytes[0] = b'g';
                bytes
            },
            r#"entry "g": its header's checksum is wrong"#,
        ),
        ("links-before-targets", many_links, "too many hard links before their targets"),
        ("paths-to-be-held", held.end(), "more than 32 MiB of folders and of hard links"),
    ]
}

/// Layers that are refused for more than their archive.
fn layers() -> Vec<(&'static str, Layer, &'static str)> {
    let plain = Archive::new().file("f", &[b'1'; 5000]).end();
    let diff_id = digest_of(&plain);
    let packed = gzip(&plain);
    let with = |form, blob: Vec<u8>| Layer { form, blob, diff_id: diff_id.clone() };
    let frames = zstd(&plain);
    vec![
        (
            "junk-behind-gzip",
            with("tar+gzip", [&packed[..], b"junk"].concat()),
            "data after the compressed stream",
        ),
        ("gzip-cut", with("tar+gzip", packed[..packed.len() - 6].to_vec()), "end of file"),
        ("zstd-cut", with("tar+zstd", frames[..frames.len() - 40].to_vec()), ""),
        ("zstd-junk", with("tar+zstd", [&frames[..], b"junk"].concat()), "zstd"),
        ("gzip-is-none", with("tar+gzip", plain.clone()), ""),
        (
            "padding-bomb",
            with("tar+zstd", [&zstd(&plain)[..], &zstd_zeros(80 << 20)].concat()),
            "more padding behind the archive than allowed",
        ),
        ("wrong-diff-id", Layer { diff_id: digest_of(b"other"), ..Layer::of(&plain) }, "its diff_id is wrong"),
        (
            "unknown-form",
            with("tar+lzma", packed.clone()),
            r#"layer type "application/vnd.oci.image.layer.v1.tar+lzma" is not supported"#,
        ),
    ]
}

struct Bench {
    board: Board,
    canary: PathBuf,
    before: String,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let mut board = Board::new()?;
        board.start_registry("")?;
        let canary = board.path().join("canary");
        std::fs::create_dir(&canary)?;
        std::fs::write(canary.join("file"), "sings")?;
        board.start_agent()?;
        let before = look(&canary)?;
        Ok(Self { board, canary, before })
    }

    /// A pull that has to be refused, and leaves nothing.
    fn refused(&self, tag: &str, words: &str) -> anyhow::Result<()> {
        let (code, said) = self.board.refused(&["pull", &format!("{REGISTRY}/app:{tag}")])?;
        ensure!(code == 2 && said.lines().count() == 1, "{tag}: {code} {said}");
        ensure!(said.contains(words), "{tag}: {said}");
        ensure!(said.len() < 1_000, "{tag}: {} bytes", said.len());
        let images = self.board.coracle(&["images"])?;
        ensure!(!images.contains(tag), "{tag} is shown: {images}");
        self.nothing_left(tag)
    }

    fn nothing_left(&self, tag: &str) -> anyhow::Result<()> {
        let staging = self.board.data().join("images/staging");
        ensure!(std::fs::read_dir(&staging)?.next().is_none(), "{tag}: staging is not empty");
        ensure!(look(&self.canary)? == self.before, "{tag}: the canary is hurt");
        Ok(())
    }

    /// The files of an image as a process in a container sees them.
    fn merged(&self, tag: &str) -> anyhow::Result<PathBuf> {
        self.board.coracle(&["pull", &format!("{REGISTRY}/app:{tag}")])?;
        self.nothing_left(tag)?;
        let images = self.board.data().join("images");
        let read = |path: PathBuf| -> anyhow::Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
        let names = read(images.join("names.json"))?;
        let digest = names[format!("{REGISTRY}/app:{tag}")].as_str().context("no such name")?.to_owned();
        let record = read(images.join(format!("images/{}.json", digest.trim_start_matches("sha256:"))))?;
        let layers = record["layers"].as_array().context("no layers")?;
        let folders: Vec<String> = layers
            .iter()
            .rev()
            .filter_map(|layer| layer["chain"].as_str())
            .map(|chain| images.join("layers").join(chain.trim_start_matches("sha256:")).display().to_string())
            .collect();
        let parts = ["merged", "upper", "work"].map(|part| self.board.run_folder().join(format!("{part}-{tag}")));
        parts.iter().try_for_each(std::fs::create_dir)?;
        // The topmost folder's attributes are shown; for a container they are copied too.
        std::fs::set_permissions(&parts[1], std::fs::metadata(&folders[0])?.permissions())?;
        let [merged, upper, work] = &parts;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", folders.join(":"), upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(merged))?;
        Ok(merged.clone())
    }
}

/// Everything below a folder, with what changes when somebody writes.
fn look(folder: &Path) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for path in [folder.to_owned(), folder.join("file")] {
        let is = std::fs::symlink_metadata(&path)?;
        lines.push(format!("{:o} {} {} {}.{}", is.mode(), is.nlink(), is.len(), is.ctime(), is.ctime_nsec()));
    }
    ensure!(std::fs::read_dir(folder)?.count() == 1 && std::fs::read(folder.join("file"))? == b"sings", "hurt");
    Ok(lines.join("\n"))
}

fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn a_hostile_image_is_refused_in_one_line_and_leaves_nothing() -> anyhow::Result<()> {
    needs!("docker-registry", "ip", "mount");
    let bench = Bench::new()?;
    let good = Layer::of(&Archive::new().file("good", b"1").end());
    for (tag, plain, words) in archives(&bench.canary.display().to_string()) {
        UPLOAD.image(tag, &[good.clone(), Layer::of(&plain)])?;
        bench.refused(tag, words)?;
    }
    for (tag, layer, words) in layers() {
        UPLOAD.image(tag, &[good.clone(), layer])?;
        bench.refused(tag, words)?;
    }
    UPLOAD.image("good", std::slice::from_ref(&good))?;
    // A layer that is here already would not be fetched.
    let image = UPLOAD.image("other", &[Layer::of(&Archive::new().file("other", b"1").end())])?;
    for (tag, manifest, words) in manifests(&image)? {
        UPLOAD.manifest(tag, MANIFEST, &manifest)?;
        bench.refused(tag, words)?;
    }
    nested_indexes("nested", 5)?;
    bench.refused("nested", "indexes are nested too deep")?;
    nested_indexes("index-of-index", 2)?;
    bench.merged("index-of-index")?;
    let merged = bench.merged("good")?;
    ensure!(names(&merged)? == ["good"], "the next good image is whole");
    let mode = std::fs::metadata(bench.board.data())?.permissions().mode();
    ensure!(
        mode & 0o077 == 0,
        "others of this machine could reach setuid programs and devices of images: {mode:o}"
    );
    Ok(())
}

/// Manifests that the registry takes and we do not.
fn manifests(good: &Value) -> anyhow::Result<Vec<(&'static str, Value, &'static str)>> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest
    };
    let large = UPLOAD.blob(&[b' '; 5 << 20])?;
    let layer = good["layers"][0].clone();
    Ok(vec![
        (
            "layers-257",
            with(&|it| it["layers"] = vec![layer.clone(); 257].into()),
            "257 layers, at most 256 are taken",
        ),
        ("layers-too-many", with(&|it| it["layers"] = vec![layer.clone(); 2].into()), "2 layers, but 1 diff_ids"),
        ("layer-size", with(&|it| it["layers"][0]["size"] = json!(1_u64 << 62)), "at most 1 TiB is taken"),
        ("layer-is-longer", with(&|it| it["layers"][0]["size"] = json!(20)), "is longer than its descriptor says"),
        (
            "config-large",
            with(&|it| it["config"] = json!({"mediaType": "c", "digest": large, "size": 5 << 20})),
            "its configuration is larger than 4194304 bytes",
        ),
        (
            "config-is-longer",
            with(&|it| it["config"] = json!({"mediaType": "c", "digest": large, "size": 100})),
            "is longer than its descriptor says",
        ),
        (
            "config-is-none",
            with(&|it| it["config"] = json!({"mediaType": "c", "digest": layer["digest"], "size": layer["size"]})),
            "configuration: ",
        ),
        (
            "artifact",
            with(&|it| it["artifactType"] = "a/b\u{1b}[2J\nx".into()),
            r"an artifact of type a/b\u{1b}[2J\nx",
        ),
    ])
}

/// An index in an index in an index …
fn nested_indexes(tag: &str, depth: usize) -> anyhow::Result<()> {
    let bytes = |document: &Value| serde_json::to_vec(document).map(|it| it.len());
    let mut inner = UPLOAD.image("innermost", &[Layer::of(&Archive::new().end())])?;
    let mut kind = MANIFEST;
    for _ in 0..depth {
        let digest = UPLOAD.manifest(tag, kind, &inner)?;
        let entry = json!({"mediaType": kind, "digest": digest, "size": bytes(&inner)?});
        inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        kind = INDEX;
    }
    UPLOAD.manifest(tag, kind, &inner).map(drop)
}

#[test]
fn a_blob_that_was_exchanged_in_the_registry_is_refused() -> anyhow::Result<()> {
    needs!("docker-registry", "ip", "mount");
    let bench = Bench::new()?;
    let image = UPLOAD.image("exchanged", &[Layer::of(&Archive::new().file("f", b"1").end())])?;
    let digest = image["layers"][0]["digest"].as_str().context("a digest")?;
    let hex = digest.trim_start_matches("sha256:");
    let place = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    let other = gzip(&Archive::new().file("f", b"2").end());
    std::fs::write(bench.board.path().join(place), &other)?;
    let mut same_size = image.clone();
    same_size["layers"][0]["size"] = json!(other.len());
    UPLOAD.manifest("exchanged", MANIFEST, &same_size)?;
    bench.refused("exchanged", &format!("layer {digest}: its digest is wrong"))
}

#[test]
fn paths_through_links_stay_inside_of_the_image() -> anyhow::Result<()> {
    needs!("docker-registry", "ip", "mount");
    let bench = Bench::new()?;
    let canary = bench.canary.display().to_string();
    let up = format!("{}{}", "../".repeat(20), canary.trim_start_matches('/'));
    let first = Archive::new()
        .link("out", &canary)
        .link("up", &up)
        .link("proc-root", "/proc/self/root")
        .file("out/same-layer", b"1")
        .file("/absolute", b"1")
        .link("file-link", &format!("{canary}/file"))
        .hard("hard-to-link", "file-link")
        .file("twice", b"first")
        .file("twice", b"second")
        .folder("changes", 0o700, (0, 0))
        .file("changes/gone", b"1")
        .file("changes", b"now a file")
        .end();
    let second = Archive::new()
        .file("out/next-layer", b"2")
        .file("up/upwards", b"2")
        .file("out/.wh.file", b"")
        .file("out/.wh.same-layer", b"")
        .file("file-link", b"replaced")
        .file("proc-root/inside", b"2")
        .end();
    UPLOAD.image("links", &[Layer::of(&first), Layer::of(&second)])?;
    let merged = bench.merged("links")?;
    let inside = merged.join(canary.trim_start_matches('/'));
    ensure!(names(&inside)? == ["next-layer", "upwards"], "{:?}", names(&inside)?);
    ensure!(std::fs::read(merged.join("absolute"))? == b"1", "an absolute path is one of the image");
    ensure!(std::fs::read(merged.join("file-link"))? == b"replaced", "a link is replaced, not followed");
    ensure!(std::fs::read_link(merged.join("hard-to-link"))?.starts_with(&canary), "a hard link to a link");
    ensure!(std::fs::read(merged.join("twice"))? == b"second", "the later entry wins");
    ensure!(std::fs::read(merged.join("changes"))? == b"now a file", "the later entry wins");
    ensure!(std::fs::read(merged.join("proc/self/root/inside"))? == b"2", "/proc of the image is a folder of it");
    bench.nothing_left("links")
}

// Cases C1 to C6: opencontainers/umoci#224, containerd/containerd#1723, opencontainers/image-spec#1204,
// containers/storage#217, rust-lang/flate2-rs#178, dragonflyoss/nydus#2022.
#[test]
fn layers_mean_what_the_image_specification_says() -> anyhow::Result<()> {
    needs!("docker-registry", "ip", "mount");
    let bench = Bench::new()?;
    whiteouts(&bench)?;
    hard_links_to_lower_layers(&bench)?;
    parents_that_are_not_named(&bench)?;
    attributes(&bench)?;
    streams_in_pieces(&bench)?;
    records(&bench)
}

fn whiteouts(bench: &Bench) -> anyhow::Result<()> {
    let below =
        Archive::new().file("srv/old", b"1").file("srv/sub/x", b"1").file("cfg", b"lower").file("gone", b"1");
    let above = Archive::new()
        .file("srv/sub/new", b"2")
        .file("srv/.wh..wh..opq", b"")
        .file("cfg", b"upper")
        .file(".wh.cfg", b"")
        .file(".wh.gone", b"")
        .file(".wh.never-there", b"")
        .file(".wh..wh.plnk", b"");
    UPLOAD.image("c1", &[Layer::of(&below.end()), Layer::of(&above.end())])?;
    let merged = bench.merged("c1")?;
    ensure!(names(&merged)? == ["cfg", "srv"], "{:?}", names(&merged)?);
    ensure!(names(&merged.join("srv"))? == ["sub"] && names(&merged.join("srv/sub"))? == ["new"], "opaque");
    ensure!(std::fs::read(merged.join("cfg"))? == b"upper", "a whiteout hides lower layers only");
    Ok(())
}

fn hard_links_to_lower_layers(bench: &Bench) -> anyhow::Result<()> {
    let one = Header { mode: 0o640, owner: (7, 0), ..Header::new(b"opt/a", b'0') };
    let first = Layer::of(&Archive::new().entry(one, b"one").end());
    let second = Layer::of(&Archive::new().file("opt/a", b"two").end());
    let links = Layer::of(&Archive::new().hard("opt/b", "opt/a").hard("z/l", "z/t").file("z/t", b"t").end());
    UPLOAD.image("c2-one", &[first, links.clone()])?;
    UPLOAD.image("c2-two", &[second, links])?;
    let (two, one) = (bench.merged("c2-two")?, bench.merged("c2-one")?);
    let is = std::fs::metadata(one.join("opt/b"))?;
    ensure!((is.mode() & 0o7777, is.uid()) == (0o640, 7), "the lower file's attributes");
    ensure!(
        std::fs::read(one.join("opt/b"))? == b"one" && std::fs::read(two.join("opt/b"))? == b"two",
        "each its own"
    );
    let inode = |name: &str| std::fs::metadata(one.join(name)).map(|it| it.ino());
    ensure!(inode("z/l")? == inode("z/t")?, "a link before its target");
    Ok(())
}

fn parents_that_are_not_named(bench: &Bench) -> anyhow::Result<()> {
    let below =
        Archive::new().folder("./", 0o555, (0, 0)).folder("tmp", 0o1777, (0, 0)).folder("home", 0o750, (1000, 0));
    let above = Archive::new().file("tmp/job", b"x").file("home/u/f", b"x").file("late/f", b"x").folder(
        "late/",
        0o700,
        (5, 5),
    );
    let above = Layer::of(&above.end());
    UPLOAD.image("c3", &[Layer::of(&below.end()), above.clone()])?;
    UPLOAD.image("c3-no-root", &[above])?;
    let merged = bench.merged("c3")?;
    let is = |path: &str| -> anyhow::Result<(u32, u32)> {
        let is = std::fs::metadata(merged.join(path))?;
        Ok((is.mode() & 0o7777, is.uid()))
    };
    for (path, mode, owner) in
        [("", 0o555, 0), ("tmp", 0o1777, 0), ("home", 0o750, 1000), ("home/u", 0o755, 0), ("late", 0o700, 5)]
    {
        ensure!(is(path)? == (mode, owner), "/{path} is {:o} of {}", is(path)?.0, is(path)?.1);
    }
    let root = std::fs::metadata(bench.merged("c3-no-root")?)?.mode();
    ensure!(root & 0o7777 == 0o755, "a root that nobody names is {root:o}");
    Ok(())
}

fn attributes(bench: &Bench) -> anyhow::Result<()> {
    let capability = [&b"\x01\0\0\x02\0\x20"[..], &[0; 14]].concat();
    let ping = Header { mode: 0o4755, owner: (5, 6), mtime: 2000, ..Header::new(b"d/ping", b'0') };
    let layer = Archive::new()
        .entry(Header { mtime: 1000, ..Header::new(b"d", b'5') }, b"")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.n", b"1")])
        .entry(ping, b"x");
    UPLOAD.image("c4", &[Layer::of(&layer.end())])?;
    let merged = bench.merged("c4")?;
    let check = |time: i64| -> anyhow::Result<()> {
        let is = std::fs::metadata(merged.join("d/ping"))?;
        ensure!((is.mode() & 0o7777, is.uid(), is.gid(), is.mtime()) == (0o4755, 5, 6, time), "{is:?}");
        ensure!(attribute(&merged.join("d/ping"), "security.capability")? == capability, "capabilities");
        Ok(())
    };
    check(2000)?;
    ensure!(std::fs::metadata(merged.join("d"))?.mtime() == 1000, "a folder's time is set last");
    // A copy up keeps them.
    run(Command::new("touch").args(["-d", "@3000"]).arg(merged.join("d/ping")))?;
    check(3000)
}

/// An extended attribute's bytes.
fn attribute(path: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut value = vec![0; 65536];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn streams_in_pieces(bench: &Bench) -> anyhow::Result<()> {
    let open = Archive::new().file("f", &[b'1'; 5000]);
    let plain = [open.clone().end(), vec![0; 20480]].concat();
    let (front, back) = plain.split_at(700);
    let skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello";
    let forms = [
        ("c5-gzip", "tar+gzip", [gzip(front), gzip(back)].concat(), &plain),
        ("c5-zstd", "tar+zstd", [&zstd(front)[..], skippable, &zstd(back), skippable].concat(), &plain),
        ("c5-plain", "tar", plain.clone(), &plain),
        ("c5-no-end", "tar+gzip", gzip(&open.clone().open_end()), &open.open_end()),
    ];
    for (tag, form, blob, plain) in forms {
        UPLOAD.image(tag, &[Layer { form, blob, diff_id: digest_of(plain) }])?;
        let merged = bench.merged(tag)?;
        ensure!(std::fs::read(merged.join("f"))? == [b'1'; 5000], "{tag}");
        // The next form is unpacked anew.
        run(Command::new("umount").arg(&merged))?;
        bench.board.coracle(&["df", "--free"])?;
    }
    Ok(())
}

fn records(bench: &Bench) -> anyhow::Result<()> {
    let evil = b"x\n21 linkpath=/etc/bad\n";
    let global = Header::new(b"pax_global_header", b'g');
    let first = Archive::new()
        .entry(global, b"24 path=from-the-global\n")
        .pax(&[("path", b"ln"), ("SCHILY.xattr.user.note", evil), ("SCHILY.xattr.trusted.note", evil)])
        .link("x", "good")
        .pax(&[("path", b"first"), ("path", b"bin"), ("uid", b"70000"), ("SCHILY.xattr.user.raw", b"a\0b")])
        .file("x", b"x");
    let second = Archive::new().entry(Header::new(b"caf\xe9", b'0'), b"x");
    UPLOAD.image("c6", &[Layer::of(&first.end()), Layer::of(&second.end())])?;
    let merged = bench.merged("c6")?;
    ensure!(std::fs::read_link(merged.join("ln"))?.as_os_str() == "good", "a value's tail is no record");
    ensure!(attribute(&merged.join("ln"), "trusted.note")? == evil, "a value with newlines");
    ensure!(attribute(&merged.join("bin"), "user.raw")? == b"a\0b", "a value with NUL");
    ensure!(std::fs::metadata(merged.join("bin"))?.uid() == 70_000, "records win over headers");
    let found: BTreeMap<Vec<u8>, ()> =
        std::fs::read_dir(&merged)?.flatten().map(|entry| (entry.file_name().into_encoded_bytes(), ())).collect();
    let expected = [&b"bin"[..], b"caf\xe9", b"ln"];
    ensure!(found.keys().map(Vec::as_slice).eq(expected), "{found:?}");
    Ok(())
}
