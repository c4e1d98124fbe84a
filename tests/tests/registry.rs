//! A registry that stalls, lies and sends elsewhere: a pull recovers with the right files, or ends soon and says why.

use anyhow::ensure;
use coracle_runtime::image::digest_of;
use coracle_tests::archive::Archive;
use coracle_tests::board::{Board, REGISTRY};
use coracle_tests::needs;
use coracle_tests::proxy::{Fault, Proxy};
use coracle_tests::upload::{Layer, Upload};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest time for a pull that fails: resumes are bounded, and an answer has one second here.
const SOON: Duration = Duration::from_secs(15);

const LAYER: usize = 1_000_000;

fn board() -> anyhow::Result<Board> {
    let mut board = Board::new()?;
    board.start_registry("")?;
    let noise: Vec<u8> = (0..LAYER as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let plain = Archive::new().file("noise", &noise).end();
    let layer = Layer { form: "tar", diff_id: digest_of(&plain), blob: plain };
    Upload { registry: REGISTRY, repository: "app" }.image("1", &[layer])?;
    board.start_agent_with(&[("CORACLE_REGISTRY_TIMEOUT", "1")])?;
    Ok(board)
}

/// A pull through a proxy: exit code, what was said, and how long it took.
fn pull(board: &Board, address: &str, more: &[&str]) -> anyhow::Result<(i32, String, Duration)> {
    let start = Instant::now();
    let name = format!("{address}/app:1");
    let output = board.output(&[&["pull", "--plain-http", address], more, &[&name]].concat())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code().unwrap_or(-1), said, start.elapsed()))
}

fn staging_is_empty(board: &Board) -> anyhow::Result<()> {
    let staging = board.data().join("images/staging");
    ensure!(std::fs::read_dir(staging)?.next().is_none(), "staging is not empty");
    Ok(())
}

/// The one file of the image, by its digest.
fn noise(folder: &Path) -> anyhow::Result<Vec<String>> {
    let layers = std::fs::read_dir(folder.join("images/layers"))?;
    layers.map(|layer| Ok(digest_of(&std::fs::read(layer?.path().join("noise"))?))).collect()
}

#[test]
fn a_registry_that_stumbles_still_gives_the_right_files() -> anyhow::Result<()> {
    needs!("docker-registry", "ip");
    let board = board()?;
    board.coracle(&["pull", "127.0.0.1:5000/app:1"])?;
    let right = noise(&board.data())?;
    let faults = [
        ("stalls twice", Fault::StallAfter(300_000, 2)),
        ("ignores ranges once", Fault::CutAndIgnoreRange(400_000)),
        ("cuts again and again", Fault::CutBodyAfter(270_000)),
        ("says longer", Fault::Longer(1000)),
        ("redirects within itself", Fault::Redirect("http://127.0.0.1:5000{path}".into())),
    ];
    for (number, (what, fault)) in faults.into_iter().enumerate() {
        board.coracle(&["df", "--free"])?;
        ensure!(noise(&board.data())?.is_empty(), "nothing is left of the pull before");
        let address = format!("127.0.0.1:{}", 5100 + number);
        let _proxy = Proxy::start(&address, REGISTRY, fault)?;
        let (code, said, time) = pull(&board, &address, &["--plain-http", REGISTRY])?;
        ensure!(code == 0 && noise(&board.data())? == right, "{what}: {code} after {time:?}: {said}");
        staging_is_empty(&board)?;
    }
    Ok(())
}

#[test]
fn a_registry_that_lies_is_given_up_soon_with_one_line() -> anyhow::Result<()> {
    needs!("docker-registry", "ip");
    let board = board()?;
    let lines = |text: &str| Fault::Lines(text.to_owned());
    let to = |text: &str| Fault::Redirect(text.to_owned());
    let basic = "401 U\r\nWWW-Authenticate: Basic realm=\"r\"";
    let bearer = "401 U\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:5216/token\",service=\"s\"";
    let faults = [
        (4, "timeout", Fault::StallAfter(1000, usize::MAX)),
        (4, "disconnected", Fault::CutBodyAfter(1000)),
        (4, "the connection closed early", Fault::Longer(-(LAYER as isize))),
        (4, "another range than was asked for", Fault::CutAndShiftRange(400_000)),
        (4, "too many redirects", to("http://127.0.0.1:5204{path}")),
        (4, "a redirect to something else than http or https", to("file:///etc/passwd")),
        (2, "evil.example is not reached over plain HTTP", to("http://evil.example/blob")),
        (4, "a redirect without Location", lines("302 F")),
        (4, "header", Fault::EndlessHeader),
        (2, "its manifest is larger than 4194304 bytes", Fault::EndlessManifest),
        (5, "wants name and password", lines(basic)),
        (5, "403", lines("403 F")),
        (3, "not found in the registry", lines("404 F")),
        (4, "the registry answered 429", lines("429 F\r\nRetry-After: 7")),
        (4, "the registry answered 503", lines("503 F\r\nRetry-After: soon")),
        (5, "418", lines("418 F")),
        (5, "the token server 127.0.0.1:5216 answered 401", lines(bearer)),
        (5, "credentials of a kind that is not supported", lines("401 U\r\nWWW-Authenticate: Negotiate")),
    ];
    let mut wrong = Vec::new();
    for (number, (expected, words, fault)) in faults.into_iter().enumerate() {
        let what = format!("{number} {fault:?}");
        let address = format!("127.0.0.1:{}", 5200 + number);
        let _proxy = Proxy::start(&address, REGISTRY, fault)?;
        let (code, said, time) = pull(&board, &address, &[])?;
        if code != expected || said.lines().count() != 1 || !said.contains(words) || time > SOON {
            wrong.push(format!("{what}: {code} {said} after {time:?}"));
        }
        staging_is_empty(&board)?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(noise(&board.data())?.is_empty(), "no layer was taken");
    board.coracle(&["pull", "127.0.0.1:5000/app:1"]).map(drop)
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() -> anyhow::Result<()> {
    needs!("docker-registry", "ip");
    let board = board()?;
    let file = board.path().join("docker.json");
    let auth = coracle_tests::token::base64(b"user:secret", false);
    std::fs::write(&file, format!(r#"{{"auths": {{"127.0.0.1:5300": {{"auth": "{auth}"}}}}}}"#))?;
    let other = Proxy::start("127.0.0.1:5301", REGISTRY, Fault::CutBodyAfter(usize::MAX / 2))?;
    let away = Proxy::start("127.0.0.1:5302", REGISTRY, Fault::Redirect("http://127.0.0.1:5301{path}".into()))?;
    // Asks for name and password, then passes to the one that redirects.
    let door = Proxy::start("127.0.0.1:5300", "127.0.0.1:5302", Fault::AskPassword)?;
    let config = file.display().to_string();
    let more = ["--plain-http", "127.0.0.1:5301", "--docker-config", &config];
    let (code, said, _) = pull(&board, "127.0.0.1:5300", &more)?;
    ensure!(code == 0, "{code} {said}");
    let sent =
        |proxy: &Proxy| proxy.heads().iter().filter(|it| it.to_lowercase().contains("authorization:")).count();
    ensure!(sent(&door) > 0 && sent(&away) > 0, "they are sent where they belong");
    ensure!(sent(&other) == 0 && !other.heads().is_empty(), "and not to another port: {:?}", other.heads());
    Ok(())
}
