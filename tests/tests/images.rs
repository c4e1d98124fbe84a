//! Images from a real registry and from files, in every form that skopeo makes, and past everything that breaks.

use anyhow::{Context, ensure};
use coracle_runtime::image::{self, Files, Platform, Reference, Store, digest_of};
use coracle_tests::board::{Board, REGISTRY, run};
use coracle_tests::image::{Entry, Image};
use coracle_tests::needs;
use coracle_tests::proxy::{Fault, Proxy};
use coracle_tests::tree::describe;
use coracle_tests::upload::{Layer, Upload};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

macro_rules! needs_all {
    () => {
        needs!("docker-registry", "skopeo", "busybox", "ip")
    };
}

/// Three layers with links, owners, a removed file and a replaced folder.
fn image() -> anyhow::Result<Image> {
    let noise: Vec<u8> = (0..3_000_000_u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Ok(Image::busybox()?
        .layer(vec![
            Entry::Owner(7, 8),
            Entry::Folder("data".into(), 0o750),
            Entry::File("data/noise".into(), 0o4711, noise),
            Entry::Hard("data/again".into(), "data/noise".into()),
            Entry::Link("data/link".into(), "noise".into()),
            Entry::File(format!("data/{}", "long/".repeat(40) + "name"), 0o600, b"deep".to_vec()),
        ])
        .layer(vec![
            Entry::File("data/.wh.again".into(), 0o600, Vec::new()),
            Entry::Folder("tmp".into(), 0o700),
            Entry::File("tmp/.wh..wh..opq".into(), 0o600, Vec::new()),
        ]))
}

fn layers(board: &Board) -> anyhow::Result<BTreeMap<String, String>> {
    Ok(describe(&board.data().join("images/layers"))?)
}

fn skopeo(board: &Board, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--dest-tls-verify=false", "--src-tls-verify=false"]).args(arguments);
    run(command.current_dir(board.path())).map(drop)
}

#[test]
fn every_form_of_an_image_gives_the_same_files() -> anyhow::Result<()> {
    needs_all!();
    let mut board = Board::new()?;
    board.start_registry("")?;
    image()?.write(&board.path().join("layout"))?;
    let to = |tag: &str| format!("docker://{REGISTRY}/app:{tag}");
    skopeo(&board, &["--format=oci", "oci:layout", &to("oci")])?;
    skopeo(&board, &["--format=v2s2", "oci:layout", &to("docker")])?;
    skopeo(
        &board,
        &["--format=oci", "--dest-compress-format=zstd", "--dest-compress", "oci:layout", &to("zstd")],
    )?;
    skopeo(&board, &["oci:layout", "oci-archive:oci.tar:registry.example/app:archive"])?;
    skopeo(&board, &["oci:layout", "docker-archive:saved.tar:registry.example/app:saved"])?;
    let mut trees = Vec::new();
    board.start_agent()?;
    let layout = board.path().join("layout");
    for arguments in [
        vec!["pull", "127.0.0.1:5000/app:oci"],
        vec!["pull", "127.0.0.1:5000/app:docker"],
        vec!["pull", "127.0.0.1:5000/app:zstd"],
        vec!["import", "../oci.tar"],
        vec!["import", "../saved.tar"],
        vec!["import", "--name", "registry.example/app:folder", layout.to_str().context("a path")?],
    ] {
        std::fs::create_dir_all(board.path().join("demo"))?;
        board.coracle(&arguments)?;
        trees.push((arguments, layers(&board)?));
        board.coracle(&["df", "--free"])?;
        ensure!(layers(&board)?.is_empty(), "df --free removes what nobody wants");
    }
    let (_, first) = &trees[0];
    ensure!(first.len() > 80, "{} files", first.len());
    for (arguments, tree) in &trees {
        ensure!(tree == first, "{arguments:?} gives other files");
    }
    Ok(())
}

/// A program of which only its attributes are there: `Tag_CPU_arch` of the ABI for the Arm Architecture.
fn arm_program(cpu_arch: u8) -> Vec<u8> {
    let attributes = [&b"A\x11\0\0\0aeabi\0\x01\x07\0\0\0\x06"[..], &[cpu_arch]].concat();
    let mut file = vec![0; 52 + 40];
    file[..6].copy_from_slice(b"\x7fELF\x01\x01");
    // Machine, place, size and number of the section headers; kind, place and size of the one.
    for (at, value) in
        [(18, 40), (32, 52), (46, 40), (48, 1), (56, 3), (59, 0x70), (68, 92), (72, attributes.len() as u8)]
    {
        file[at] = value;
    }
    file.extend(attributes);
    file
}

#[test]
fn an_image_whose_program_is_too_new_for_the_processor_is_refused_in_words() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Store::open(&folder.path().join("store"))?;
    let board = Platform { os: "linux".into(), architecture: "arm".into(), variant: "v6".into() };
    // Tag_CPU_arch 7 is ARMv6KZ, 10 ARMv7. The image names no variant, as most do.
    for (cpu_arch, fits) in [(7, true), (10, false)] {
        let layout = folder.path().join(format!("layout-{cpu_arch}"));
        let program = Entry::File("app".into(), 0o755, arm_program(cpu_arch));
        Image::new().layer(vec![program]).with("Cmd", json!(["/app"])).architecture("arm").write(&layout)?;
        let mut files = Files::open(&layout)?;
        let found = files.images(&board)?;
        let name: Reference = format!("app:{cpu_arch}").parse()?;
        let cancel = AtomicBool::new(false);
        let imported = image::import(&store, &mut files, (&name, &found[0].digest), &board, &cancel, &|_| {});
        assert_eq!(store.find(&name)?.is_some(), fits);
        match imported {
            Ok(_) => ensure!(fits),
            Err(error) => {
                let said = error.to_string();
                ensure!(
                    !fits && said.contains("its program /app needs ARMv7; this board is linux/arm/v6"),
                    "{said}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn sparse_files_keep_their_bytes_and_their_holes() -> anyhow::Result<()> {
    needs!("docker-registry", "tar", "ip");
    let mut board = Board::new()?;
    board.start_registry("")?;
    board.start_agent()?;
    std::fs::create_dir_all(board.path().join("demo"))?;
    let path = board.path().join("disk");
    let disk = std::fs::File::create(&path)?;
    disk.set_len(64 << 20)?;
    for part in 0..100 {
        disk.write_all_at(b"data", part * 600_000)?;
    }
    let digest = digest_of(&std::fs::read(&path)?);
    let forms = ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"];
    for (number, form) in forms.iter().enumerate() {
        run(Command::new("tar").args([form, "--sparse", "-cf", "sparse.tar", "disk"]).current_dir(board.path()))?;
        let layer = Layer::of(&std::fs::read(board.path().join("sparse.tar"))?);
        let folder = layer.diff_id.trim_start_matches("sha256:").to_owned();
        let repository = format!("sparse{number}");
        Upload { registry: REGISTRY, repository: &repository }.image("1", &[layer])?;
        board.coracle(&["pull", &format!("{REGISTRY}/{repository}:1")])?;
        let file = board.data().join("images/layers").join(folder).join("disk");
        let blocks = std::fs::metadata(&file)?.blocks();
        ensure!(digest_of(&std::fs::read(&file)?) == digest, "{form}: other bytes");
        ensure!(blocks < 2048, "{form}: {blocks} blocks of 512 bytes");
    }
    Ok(())
}

#[test]
fn credentials_are_sent_where_they_belong_and_never_shown() -> anyhow::Result<()> {
    needs_all!();
    let mut board = Board::new()?;
    // bcrypt of "secret", cost 5.
    std::fs::write(
        board.path().join("htpasswd"),
        "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
    )?;
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}", board.path().join("htpasswd").display());
    board.start_registry(&auth)?;
    image()?.write(&board.path().join("layout"))?;
    skopeo(&board, &["--dest-creds=user:secret", "oci:layout", &format!("docker://{REGISTRY}/app:1")])?;
    let (code, said) = board.refused(&["pull", "127.0.0.1:5000/app:1"])?;
    ensure!(code == 5, "{code} {said}");
    let config = |password: &str| -> anyhow::Result<String> {
        let file = board.path().join("docker.json");
        let auth = base64(format!("user:{password}").as_bytes());
        std::fs::write(&file, json!({"auths": {REGISTRY: {"auth": auth}}}).to_string())?;
        Ok(file.display().to_string())
    };
    let (code, said) =
        board.refused(&["pull", "--docker-config", &config("wrong-secret")?, "127.0.0.1:5000/app:1"])?;
    ensure!(code == 5 && !said.contains("wrong-secret"), "{code} {said}");
    board.coracle(&["pull", "--docker-config", &config("secret")?, "127.0.0.1:5000/app:1"])?;
    ensure!(!board.log("agent.log").contains("secret"), "a password is in the log");
    Ok(())
}

#[test]
fn a_token_server_s_challenge_is_answered() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "busybox", "ip", "openssl");
    let mut board = Board::new()?;
    let server = coracle_tests::token::Server::start(board.path(), "user", "secret")?;
    board.start_registry(&server.registry_config())?;
    image()?.write(&board.path().join("layout"))?;
    skopeo(&board, &["--dest-creds=user:secret", "oci:layout", &format!("docker://{REGISTRY}/app:1")])?;
    let file = board.path().join("docker.json");
    std::fs::write(&file, json!({"auths": {REGISTRY: {"auth": base64(b"user:secret")}}}).to_string())?;
    let config = file.display().to_string();
    let (code, said) = board.refused(&["pull", "--docker-config", &config, "127.0.0.1:5000/app:1"])?;
    ensure!(code == 2 && said.contains("--plain-http 127.0.0.1:5050"), "{code} {said}");
    let allowed = ["pull", "--plain-http", "127.0.0.1:5050"];
    board.coracle(&[&allowed[..], &["--docker-config", &config, "127.0.0.1:5000/app:1"]].concat())?;
    let (code, said) = board.refused(&[&allowed[..], &["127.0.0.1:5000/app:2"]].concat())?;
    ensure!(code == 5, "{code} {said}");
    Ok(())
}

// B5
#[test]
fn a_token_that_dies_within_a_layer_is_renewed_once() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "busybox", "ip", "openssl");
    let mut board = Board::new()?;
    let server = coracle_tests::token::Server::start(board.path(), "user", "secret")?;
    board.start_registry(&server.registry_config())?;
    image()?.write(&board.path().join("layout"))?;
    skopeo(&board, &["--dest-creds=user:secret", "oci:layout", &format!("docker://{REGISTRY}/app:1")])?;
    board.start_agent()?;
    let challenge = "401 U\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:5050/token\",service=\"registry\",error=\"invalid_token\"";
    for (port, times, expected) in [(5401, 1, 0), (5402, usize::MAX, 5)] {
        let address = format!("127.0.0.1:{port}");
        let proxy = Proxy::start(&address, REGISTRY, Fault::CutAndRefuse(10_000, challenge.to_owned(), times))?;
        let file = board.path().join("docker.json");
        std::fs::write(&file, json!({"auths": {&address: {"auth": base64(b"user:secret")}}}).to_string())?;
        let (config, name) = (file.display().to_string(), format!("{address}/app:1"));
        board.coracle(&["df", "--free"])?;
        let output = board.output(&[
            "pull", "--plain-http", &address, "--plain-http", "127.0.0.1:5050", "--docker-config", &config, &name,
        ])?;
        ensure!(output.status.code() == Some(expected), "{times}: {output:?}");
        let heads = proxy.heads();
        let tokens: BTreeSet<&str> = heads
            .iter()
            .flat_map(|head| head.lines())
            .filter(|line| line.to_lowercase().starts_with("authorization:"))
            .collect();
        let ranges = heads.iter().filter(|head| head.to_lowercase().contains("\r\nrange: bytes=10000-")).count();
        ensure!(tokens.len() >= 2 && ranges >= 2, "another token, and the same offset: {heads:?}");
        ensure!(heads.len() < 40, "it ends soon: {} requests", heads.len());
    }
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    coracle_tests::token::base64(bytes, false)
}

#[test]
fn a_connection_that_breaks_is_resumed_inside_the_layer() -> anyhow::Result<()> {
    needs_all!();
    let mut board = Board::new()?;
    board.start_registry("")?;
    board.push(&image()?, "app:1")?;
    let proxy = Proxy::start("127.0.0.1:5001", REGISTRY, Fault::CutBodyAfter(400_000))?;
    board.coracle(&["pull", "--plain-http", "127.0.0.1:5001", "127.0.0.1:5001/app:1"])?;
    ensure!(proxy.ranges() >= 3, "{} range requests", proxy.ranges());
    Ok(())
}

#[test]
fn what_a_registry_answers_decides_the_exit_code() -> anyhow::Result<()> {
    needs_all!();
    let mut board = Board::new()?;
    board.start_registry("")?;
    board.push(&image()?, "app:1")?;
    let cases = [(404, 3), (403, 5), (500, 4), (429, 4)];
    for (number, (status, code)) in cases.into_iter().enumerate() {
        let address = format!("127.0.0.1:{}", 5010 + number);
        let _proxy = Proxy::start(&address, REGISTRY, Fault::Status(status))?;
        let (is, said) = board.refused(&["pull", "--plain-http", &address, &format!("{address}/app:1")])?;
        ensure!(is == code && said.lines().count() == 1, "{status}: {is} {said}");
    }
    let (is, said) = board.refused(&["pull", "--plain-http", "127.0.0.1:5099", "127.0.0.1:5099/app:1"])?;
    ensure!(is == 4, "{is} {said}");
    let (is, said) = board.refused(&["pull", "127.0.0.1:5098/app:1"])?;
    ensure!(is == 4 || is == 2, "{is} {said}");
    let flipped = Proxy::start("127.0.0.1:5020", REGISTRY, Fault::FlipByteAt(300_000))?;
    let (is, said) = board.refused(&["pull", "--plain-http", "127.0.0.1:5020", "127.0.0.1:5020/app:1"])?;
    ensure!(is == 2, "{is} {said}");
    drop(flipped);
    let images = board.data().join("images");
    ensure!(std::fs::read_dir(images.join("staging"))?.next().is_none(), "staging is empty after failures");
    Ok(())
}

#[test]
fn a_pull_that_is_killed_at_any_moment_leaves_whole_layers_and_goes_on() -> anyhow::Result<()> {
    needs_all!();
    let mut board = Board::new()?;
    board.start_registry("")?;
    board.push(&image()?, "app:1")?;
    board.coracle(&["pull", "127.0.0.1:5000/app:1"])?;
    let whole = layers(&board)?;
    std::fs::remove_dir_all(board.data())?;
    let mut seed = 7_u64;
    let mut finished = 0;
    for _ in 0..ROUNDS {
        let mut agent = board.command(&["agent"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut pull = board.command(&["pull", "127.0.0.1:5000/app:1"]);
        let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(20 + (seed >> 33) % 160));
        board.kill_agent()?;
        finished += usize::from(pull.wait()?.success());
        agent.wait()?;
        for (path, line) in layers(&board).unwrap_or_default() {
            ensure!(whole.get(&path) == Some(&line), "{path} is {line}");
        }
        if finished > ROUNDS / 4 {
            std::fs::remove_dir_all(board.data())?;
            finished = 0;
        }
    }
    board.coracle(&["pull", "127.0.0.1:5000/app:1"])?;
    ensure!(layers(&board)? == whole, "the last pull makes it whole");
    Ok(())
}

/// Kills; each takes about a tenth of a second.
const ROUNDS: usize = 150;
