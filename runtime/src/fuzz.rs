//! What fuzzing feeds: everything here that reads what a stranger wrote. See `fuzz/README.md`.
//!
//! Each function panics when what must hold does not.

use crate::image::{
    self, Compression, Document, Platform, Reference, choose, decompressed, parse_config, parse_manifest,
};
use crate::network::dns::{self, Answer, Zone};
use crate::seccomp::{self, Arch};
use crate::shim::{decode_reply, decode_request};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that are read of a stream at most: more shows nothing new.
const ENOUGH: u64 = 8 * 1024 * 1024;

/// Name of an image: what is accepted prints as what is read again as the same.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
            // Both become part of a URL.
            let url = [reference.registry(), reference.repository(), reference.wanted()].concat();
            assert!(url.bytes().all(|it| it.is_ascii_graphic() && !b"?#%\\".contains(&it)), "{url}");
        }
        Err(error) => one_line(&error.to_string()),
    }
}

/// Manifest or index: what is accepted has digests that are safe as file names and sizes that can be added.
pub fn manifest(data: &[u8]) {
    let platform = Platform { os: "linux".into(), architecture: "arm".into(), variant: "v6".into() };
    let digests: Vec<String> = match parse_manifest("image", data) {
        Ok(Document::Manifest(manifest)) => {
            let mut sizes = manifest.layers.iter().map(|layer| layer.size);
            assert!(sizes.try_fold(0_u64, u64::checked_add).is_some(), "sizes overflow");
            manifest.layers.into_iter().map(|layer| layer.digest).chain([manifest.config.digest]).collect()
        }
        Ok(Document::Index(entries)) => {
            match choose("image", &platform, &entries) {
                Ok(chosen) => assert!(entries.contains(chosen)),
                Err(error) => one_line(&error.to_string()),
            }
            entries.into_iter().map(|entry| entry.digest).collect()
        }
        Err(error) => return one_line(&error.to_string()),
    };
    for digest in digests {
        let hex = digest.strip_prefix("sha256:").expect("sha256");
        assert!(hex.len() == 64 && hex.bytes().all(|it| it.is_ascii_hexdigit()), "{digest}");
    }
}

/// Configuration of an image: what is accepted survives being kept.
pub fn config(data: &[u8]) {
    match parse_config("image", data) {
        Ok(config) => {
            let kept = serde_json::to_vec(&config).expect("a document");
            assert_eq!(serde_json::from_slice::<image::ImageConfig>(&kept).expect("read again"), config);
        }
        Err(error) => one_line(&error.to_string()),
    }
}

/// System call profile: what is accepted becomes a program whose every jump lands inside it.
pub fn profile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let arches = &[Arch::X86_64, Arch::X86];
    let reader = seccomp::Reader { capabilities: &["SYS_ADMIN"], kernel: (6, 1), arches, notify: true };
    match reader.read(text) {
        Ok((profile, arches)) => {
            let Ok(program) = seccomp::compile(&profile, &arches) else { return };
            for (at, instruction) in program.iter().enumerate() {
                let far = if instruction.code == 5 { instruction.operand as usize } else { 0 };
                let over = far.max(instruction.jump_true.max(instruction.jump_false).into());
                assert!(at + over + usize::from(instruction.code != 6) < program.len(), "{at}: {instruction:?}");
            }
        }
        Err(reason) => one_line(&reason),
    }
}

/// Configuration of a bundle: refused in one line, or decided about in the same way when it is read again.
pub fn bundle(data: &[u8]) {
    match crate::oci::decide(data) {
        Ok(config) => assert_eq!(crate::oci::decide(config.to_string().as_bytes()), Ok(config)),
        Err(reason) => one_line(&reason),
    }
}

/// A program's file: what it says of the processor, nothing, or one line.
pub fn program(data: &[u8]) {
    if let Err(reason) = image::arm::attributes(data) {
        one_line(&reason);
    }
}

/// Compressed stream: an end or an error.
pub fn stream(data: &[u8]) {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let stream = decompressed(compression, data).take(ENOUGH);
        // Both ends are fine; not to end, or to panic, is not.
        let _ = std::io::copy(&mut { stream }, &mut std::io::sink());
    }
}

/// Layer as a tar archive, as it is and with the headers' checksums put right: nothing outside of its folder changes.
pub fn layer(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let canary = folder.path().join("canary");
    let lower = folder.path().join("lower");
    std::fs::create_dir_all(lower.join("usr/lib")).expect("made");
    std::fs::create_dir(&canary).expect("made");
    std::fs::write(canary.join("file"), "sings").expect("written");
    std::fs::write(lower.join("usr/lib/file"), "lower").expect("written");
    for (link, target) in
        [("out", canary.as_path()), ("up", Path::new("../canary")), ("lib", Path::new("usr/lib"))]
    {
        std::os::unix::fs::symlink(target, lower.join(link)).expect("linked");
    }
    let before = (look(&canary), look(&lower));
    for (number, bytes) in [data.to_vec(), with_checksums(data)].iter().enumerate() {
        let root = folder.path().join(format!("root{number}"));
        std::fs::create_dir(&root).expect("made");
        if let Err(error) = image::unpack(&bytes[..], &root, std::slice::from_ref(&lower), bytes.len() as u64) {
            one_line(&error.to_string());
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 3 + number, "something beside");
        assert!((look(&canary), look(&lower)) == before, "something outside changed");
    }
}

/// Every file below: path, mode, owner, links, size, change time.
fn look(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let of_itself = std::fs::symlink_metadata(&next).expect("looked at");
        found.push(format!("{} {:o} {}", next.display(), of_itself.mode(), of_itself.ctime_nsec()));
        for entry in std::fs::read_dir(&next).expect("read") {
            let path = entry.expect("an entry").path();
            let is = std::fs::symlink_metadata(&path).expect("looked at");
            if is.is_dir() {
                folders.push(path);
            } else {
                let line = (is.mode(), is.uid(), is.nlink(), is.len(), is.ctime(), is.ctime_nsec());
                found.push(format!("{} {line:?}", path.display()));
            }
        }
    }
    found.sort();
    found
}

/// Puts right the checksum of every block that could be a header: else hardly a change gets past it.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        // Kinds of entries stand where only headers have them.
        if b"01234567LKSxg\0".contains(&block[156]) && (block[257..].starts_with(b"ustar") || block[0] != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// DNS message: an answer has the question's number, says that it is one, and repeats the question.
pub fn dns(data: &[u8]) {
    let address = Ipv4Addr::new(10, 209, 1, 2);
    let range = crate::network::subnet::Range::new(Ipv4Addr::new(10, 209, 1, 0), 24);
    let zone = Zone { names: [("db".into(), vec![address])].into(), range: Some(range), ..Zone::default() };
    let Answer::Reply(reply) = dns::answer(data, &zone) else { return };
    assert_eq!(reply[..2], data[..2], "the number");
    assert_eq!(reply[2] & 0x80, 0x80, "an answer");
    assert!(reply.len() <= data.len() + 64, "{} bytes for {}", reply.len(), data.len());
    match reply[4..6] {
        [0, 0] => assert_eq!(reply.len(), 12, "nothing without a question"),
        _ => {
            let end = 12 + data[12..].iter().position(|&byte| byte == 0).expect("the name's end") + 5;
            assert_eq!(reply[12..end], data[12..end], "the question");
        }
    }
}

/// Packet between agent and shim, both ways: what is read is written as what is read again as the same.
pub fn packet(data: &[u8]) {
    if let Ok(request) = decode_request(data) {
        let again = postcard::to_allocvec(&request).expect("encoded");
        assert_eq!(decode_request(&again).as_ref(), Ok(&request));
    }
    if let Ok(reply) = decode_reply(data) {
        let again = postcard::to_allocvec(&reply).expect("encoded");
        assert_eq!(decode_reply(&again).as_ref(), Ok(&reply));
    }
}

/// What a person is told is one line of bearable length.
fn one_line(text: &str) {
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "{text:?}");
    assert!(text.len() < 2_000, "{} bytes", text.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::{Event, FromShim, LogPage, LogRecord, Reply, Request, Stream, ToShim};
    use coracle_mutate::campaign;
    use std::time::Duration;

    #[test]
    fn a_name_that_was_hurt_is_refused_or_printed_in_full() {
        let digest = format!("a.example/b/c:1@sha256:{}", "0a".repeat(32));
        let seeds = ["nginx", "host:5000/a/b:tag", "[::1]:5000/a", "index.docker.io/x", &digest];
        let words: [&[u8]; 8] =
            [b"@sha256:", b"..", b"//", b"localhost/", b":", b"A", b"%2f", "\u{e9}".as_bytes()];
        campaign(&seeds.map(|it| it.as_bytes().to_vec()), &words, 100_000, reference);
    }

    /// A manifest, an index and a configuration.
    fn documents() -> [Vec<u8>; 3] {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"c","digest":"{digest}","size":7}},
"layers":[{{"mediaType":"{layer}","digest":"{digest}","size":1000}},
{{"mediaType":"{layer}","digest":"{digest}","size":2000}}]}}"#
        );
        let entry = |variant: &str| {
            format!(
                r#"{{"digest":"{digest}","size":9,"platform":{{"os":"linux","architecture":"arm","variant":"{variant}"}},"annotations":{{"a":"b"}}}}"#
            )
        };
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, entry("v6"), entry("v7"));
        let config = format!(
            r#"{{"os":"linux","architecture":"arm","variant":null,"config":{{"Env":["A=b"],"Cmd":["sh"],
"Entrypoint":null,"User":"1:2","WorkingDir":"/w","Volumes":{{"/v":{{}}}},"ExposedPorts":{{"80/tcp":{{}}}},
"StopSignal":"SIGINT","Labels":{{"a":"b"}},"Healthcheck":{{"Test":["CMD","x"],"Interval":1000000000,"Retries":3}}}},
"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x"}}]}}"#
        );
        [manifest, index, config].map(String::into_bytes)
    }

    const JSON_WORDS: [&[u8]; 14] = [
        b"null", b"[]", b"{}", b"\"\"", b"-1", b"1e400", b"18446744073709551615", b"\\u0000", b"\\n", b"[[[[[[[[",
        b"\"layers\":", b"\"manifests\":", b"sha256:", b"../..",
    ];

    #[test]
    fn a_manifest_that_was_hurt_is_refused_in_one_line_or_safe_to_follow() {
        campaign(&documents()[..2], &JSON_WORDS, 40_000, manifest);
    }

    #[test]
    fn a_configuration_that_was_hurt_is_refused_in_one_line_or_survives_being_kept() {
        campaign(&documents()[2..], &JSON_WORDS, 30_000, config);
    }

    #[test]
    fn a_profile_that_was_hurt_is_refused_in_one_line_or_becomes_a_whole_program() {
        let seed = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [{"names": ["read", "clone"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
                {"index": 5, "value": 1, "op": "SCMP_CMP_GE"}],
                "includes": {"caps": ["CAP_SYS_ADMIN"], "minKernel": "4.8"}, "excludes": {"arches": ["arm"]}}]}"#;
        let words =
            [&JSON_WORDS[..], &[b"SCMP_ACT_ALLOW", b"SCMP_CMP_LT", b"SCMP_ACT_NOTIFY", b"write", b"4294967296"]]
                .concat();
        campaign(&[seed.to_vec()], &words, 30_000, profile);
    }

    #[test]
    fn a_bundle_that_was_hurt_is_refused_in_one_line_or_decided_about() {
        let mut whole = crate::oci::template::config(false);
        whole["linux"]["resources"] = serde_json::json!({
            "devices": [{ "allow": true, "type": "c", "major": 1, "minor": -1, "access": "rwm" }],
            "memory": { "limit": 1 << 30, "swap": -1, "reservation": 5 }, "pids": { "limit": 7 },
            "cpu": { "shares": 3, "quota": 5000, "period": 10000, "cpus": "0-1" },
            "blockIO": { "weight": 10, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 600 }] },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 5 }], "unified": { "memory.high": "9" },
        });
        whole["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/s",
            "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_NOTIFY", "args": [{ "index": 1, "value": 2, "op": "SCMP_CMP_LT" }] }] });
        let map = serde_json::json!([{ "containerID": 0, "hostID": 1, "size": 2 }]);
        let mount = serde_json::json!({ "destination": "/m", "type": "bind", "source": "/s", "options": ["rbind", "ro"],
            "uidMappings": map, "gidMappings": map });
        whole["mounts"].as_array_mut().expect("a list").push(mount);
        whole["hooks"] = serde_json::json!({ "prestart": [{ "path": "/x", "args": ["x"], "timeout": 1 }] });
        let plain = crate::oci::template::config(true);
        let seeds = [whole, plain].map(|config| config.to_string().into_bytes());
        for seed in &seeds {
            assert!(crate::oci::decide(seed).is_ok(), "{:?}", crate::oci::decide(seed));
        }
        let words = [
            &JSON_WORDS[..],
            &[
                b"\"linux\":", b"\"process\":", b"\"user\"", b"\"rbind\"", b"\"ridmap\"", b"-9223372036854775808",
                b"\"path\":",
            ],
        ]
        .concat();
        campaign(&seeds, &words, 10_000, bundle);
    }

    #[test]
    fn a_program_that_was_hurt_says_something_or_nothing() {
        let tags = b"\x432.09\0\x05arm1176jzf-s\0\x06\x07\x0a\x02\x20\x00gnu\0\x1c\x01";
        let seeds = [image::arm::tests::program(tags), image::arm::tests::program(b"")];
        campaign(&seeds, &[&[0xff; 4], &[0x80; 9], b"\0\0\0\0", b"A", b"aeabi\0"], 200_000, program);
    }

    const BUSY: &[u8] = include_bytes!("../tests/corpus/layers/everything.tar");

    #[test]
    fn the_layer_that_is_hurt_is_a_good_one() {
        let folder = tempfile::tempdir().expect("a folder");
        match image::unpack(BUSY, folder.path(), &[], BUSY.len() as u64) {
            Ok(unpacked) => assert_eq!(unpacked.entries, 18),
            // Owners and whiteouts need root.
            Err(error) => assert!(!nix::unistd::geteuid().is_root(), "{error:?}"),
        }
    }

    const SPARSE: [&[u8]; 2] = [
        include_bytes!("../tests/corpus/sparse/gnu.tar.gz"),
        include_bytes!("../tests/corpus/sparse/pax-1.0.tar.gz"),
    ];

    /// Without most of its data: short inputs are hurt where it matters.
    fn sparse(packed: &[u8]) -> Vec<u8> {
        let mut archive = Vec::new();
        decompressed(Compression::Gzip, packed).read_to_end(&mut archive).expect("unpacked");
        archive.truncate(16 * 1024);
        archive
    }

    #[test]
    fn a_layer_that_was_hurt_changes_nothing_outside_of_its_folder() {
        let words: [&[u8]; 18] = [
            b"../",
            b"/",
            b"out/file",
            b"up/file",
            b"lib/x",
            b".wh.file",
            b".wh..wh..opq",
            b"/proc/self/root/",
            b"30 path=../../../canary/file\n",
            b"25 linkpath=../up/../x/y\n",
            b"12 size=999\n",
            b"22 GNU.sparse.major=1\n",
            b"30 GNU.sparse.realsize=999999\n",
            b"26 GNU.sparse.map=0,9,8,7\n",
            b"S",
            b"ustar\0",
            b"x",
            b"\0",
        ];
        let seeds = [BUSY.to_vec(), sparse(SPARSE[0]), sparse(SPARSE[1])];
        campaign(&seeds, &words, 4_000, layer);
    }

    #[test]
    fn a_compressed_stream_that_was_hurt_ends() {
        let seeds = [
            include_bytes!("../tests/corpus/layers/two-members.gz").to_vec(),
            include_bytes!("../tests/corpus/layers/two-frames.zst").to_vec(),
        ];
        campaign(
            &seeds,
            &[&[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]],
            20_000,
            stream,
        );
    }

    #[test]
    fn a_question_that_was_hurt_is_answered_under_its_own_number_or_not_at_all() {
        let mut seeds = Vec::new();
        for name in [&b"\x02db\0"[..], b"\x012\x011\x03209\x0210\x07in-addr\x04arpa\0", b"\x07example\x03org\0"] {
            for kind in [1, 12, 28] {
                seeds.push([&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, kind, 0, 1]].concat());
            }
        }
        campaign(&seeds, &[b"\x02db", &[0xc0, 12], &[63; 64]], 200_000, dns);
    }

    #[test]
    fn a_packet_that_was_hurt_is_refused_or_means_the_same_on_both_sides() {
        let id = "demo-web-1-abc".to_owned();
        let timeout = Duration::from_secs(5);
        let requests = [
            Request::Hello { version: 1 },
            Request::Start { id: id.clone(), timeout },
            Request::Exec { id: id.clone(), spec: b"{}".to_vec(), timeout, limit: Some(timeout) },
            Request::ReadLog { id: id.clone(), from: 3 },
        ];
        let record = LogRecord {
            sequence: 1,
            unix_ns: 2,
            stream: Stream::Stderr,
            continues: true,
            bytes: b"line".to_vec(),
        };
        let page = LogPage { records: vec![record; 3], next: 4, dropped: 5, ended: false };
        let replies = [
            FromShim::Reply { sequence: 1, reply: Reply::Log(page) },
            FromShim::Reply { sequence: 2, reply: Reply::Namespaces(vec![id.clone(), id.clone()]) },
            FromShim::Event(Event::Ended { id }),
        ];
        let seeds = requests
            .into_iter()
            .map(|request| postcard::to_allocvec(&ToShim { sequence: 300, request }))
            .chain(replies.iter().map(postcard::to_allocvec))
            .collect::<Result<Vec<_>, _>>()
            .expect("encoded");
        campaign(&seeds, &[&[0xff; 9], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x80, 0]], 100_000, packet);
    }
}
