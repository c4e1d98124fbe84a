//! A compose release on one board, from a real registry.

use anyhow::{Context, ensure};
use coracle_tests::board::{Board, coracle, http, run, wait_for};
use coracle_tests::image::Image;
use coracle_tests::needs;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

const TWO: &str = r#"
services:
  web:
    image: 127.0.0.1:5000/app:1
    stop_grace_period: 0s
    command: sh -c 'mkdir -p /www; echo it is web > /www/index.html; echo serving; exec httpd -f -p 80 -h /www'
    ports: ["8080:80"]
    volumes: ["kept:/kept"]
  client:
    image: 127.0.0.1:5000/app:1
    stop_grace_period: 0s
    command: sh -c 'wget -qO- http://web/ && exec sleep 1000'
    depends_on: [web]
volumes: {kept: {}}
"#;

/// A board with the image in its registry and the project up.
fn up(project: &str) -> anyhow::Result<Board> {
    let board = Board::with_app()?;
    board.compose(project)?;
    board.coracle(&["up", "-d"])?;
    Ok(board)
}

#[test]
fn a_release_is_pulled_started_reached_and_taken_down_without_a_trace() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = up(TWO)?;
    for service in ["web", "client"] {
        assert_eq!(board.service(service)?["state"], "running");
    }
    wait_for("the published port", || Ok(http("127.0.0.1:8080", "/")?.contains("it is web")))?;
    wait_for("the client's log", || Ok(board.coracle(&["logs", "client"])?.contains("client | it is web")))?;
    assert_eq!(board.service("web")?["ports"], json!(["0.0.0.0:8080->80/tcp"]));

    board.coracle(&["down"])?;
    let links = run(Command::new("ip").args(["-o", "link"]))?;
    ensure!(!links.contains("cor"), "interfaces are left: {links}");
    let tables = run(Command::new("nft").args(["list", "tables"]))?;
    ensure!(!tables.contains("coracle"), "rules are left: {tables}");
    let left = |folder: &str| std::fs::read_dir(board.path().join(folder)).map_or(0, Iterator::count);
    assert_eq!([left("data/containers"), left("run/containers"), left("run/files"), left("run/state")], [0; 4]);
    // Named volumes outlive `down`, and go with `down -v`.
    assert!(board.data().join("volumes/demo/kept").exists());
    board.coracle(&["down", "-v"])?;
    assert!(!board.data().join("volumes/demo").exists());
    Ok(())
}

#[test]
fn output_that_nobody_reads_ends_a_command_in_silence() -> anyhow::Result<()> {
    let (reader, writer) = nix::unistd::pipe()?;
    drop(reader);
    let output = Command::new(coracle()).args(["help", "up"]).stdout(writer).output()?;
    ensure!(output.status.code() == Some(141) && output.stderr.is_empty(), "{output:?}");
    Ok(())
}

#[test]
fn a_tag_that_was_moved_is_followed_when_asked_and_the_image_that_lost_it_goes() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = up(TWO)?;
    let images =
        || -> anyhow::Result<usize> { Ok(std::fs::read_dir(board.data().join("images/images"))?.count()) };
    let digest = || -> anyhow::Result<serde_json::Value> { Ok(board.service("web")?["image_digest"].clone()) };
    let first = digest()?;
    board.push(&Image::busybox()?.with("Labels", json!({"edition": "2"})), "app:1")?;
    board.coracle(&["up", "-d"])?;
    assert_eq!(digest()?, first, "nobody asked for another image");
    board.coracle(&["up", "-d", "--pull", "always"])?;
    assert_ne!(digest()?, first);
    wait_for("the image without a name to go", || Ok(images()? == 1))?;
    assert_eq!(board.service("web")?["state"], "running");
    Ok(())
}

#[test]
fn up_again_does_nothing_and_a_changed_file_changes_only_what_changed() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = up(TWO)?;
    let pids = |board: &Board| {
        anyhow::Ok((board.service("web")?["pid"].clone(), board.service("client")?["pid"].clone()))
    };
    let before = pids(&board)?;
    let output = board.output(&["up", "-d"])?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("demo: nothing to do"), "{output:?}");
    assert_eq!(pids(&board)?, before);

    board.compose(&TWO.replace("8080:80", "8081:80"))?;
    board.coracle(&["up", "-d"])?;
    assert_eq!(pids(&board)?, before, "a port is changed without a new container");
    assert!(http("127.0.0.1:8081", "/")?.contains("it is web"));

    board.compose(&TWO.replace("sleep 1000", "sleep 2000"))?;
    board.coracle(&["up", "-d"])?;
    let after = pids(&board)?;
    assert_eq!(after.0, before.0);
    assert_ne!(after.1, before.1);
    Ok(())
}

#[test]
fn containers_logs_and_exit_codes_outlive_a_killed_agent() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = up(r#"
services:
  long: {image: "127.0.0.1:5000/app:1", stop_grace_period: 0s, command: sh -c 'i=0; while true; do echo line $$i; i=$$((i+1)); sleep 0.05; done'}
  short: {image: "127.0.0.1:5000/app:1", stop_grace_period: 0s, command: sh -c 'sleep 2; echo last words; exit 7'}
"#)?;
    let pid = board.service("long")?["pid"].clone();
    let agent = nix::unistd::Pid::from_raw(board.agent_pid()?);
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL)?;
    std::thread::sleep(std::time::Duration::from_millis(2500));
    board.coracle(&["up", "-d"])?;
    assert_eq!(board.service("long")?["pid"], pid);
    let logs = board.coracle(&["logs", "--no-log-prefix", "long"])?;
    let lines: Vec<&str> = logs.lines().collect();
    ensure!(lines.len() > 40, "{} lines", lines.len());
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {number}"), "no line is lost");
    }
    let short = board.service("short")?;
    // `up` starts what failed once more; its first end is remembered.
    assert_eq!(short["exits"][0]["code"], 7);
    assert!(board.coracle(&["logs", "short"])?.contains("last words"));
    Ok(())
}

#[test]
fn another_program_takes_the_shims_place_and_nothing_of_the_services_is_lost() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = up(r#"
services:
  long:
    image: "127.0.0.1:5000/app:1"
    stop_grace_period: 0s
    command: sh -c 'mkdir -p /www; httpd -p 80 -h /www; i=0; while true; do echo line $$i; i=$$((i+1)); printf .; sleep 0.05; echo; done'
    ports: ["8080:80"]
  short:
    image: "127.0.0.1:5000/app:1"
    stop_grace_period: 0s
    command: sh -c 'until test -e /end; do sleep 0.1; done; echo last words; exit 7'
"#)?;
    let shim = || -> anyhow::Result<i64> {
        let status: serde_json::Value = serde_json::from_str(&board.coracle(&["status"])?)?;
        status["shim_pid"].as_i64().context("no shim")
    };
    wait_for("its port", || Ok(http("127.0.0.1:8080", "/").is_ok()))?;
    let (pid, before) = (board.service("long")?["pid"].clone(), shim()?);
    // A program of another version: the same with a byte more.
    let next = board.path().join("next/coracle");
    std::fs::create_dir_all(next.parent().context("a folder")?)?;
    std::fs::copy(coracle(), &next)?;
    std::io::Write::write_all(&mut std::fs::File::options().append(true).open(&next)?, b"\n")?;
    let mut asleep = board.command(&["exec", "long", "sh", "-c", "sleep 3; echo woken"]);
    let asleep = asleep.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(500));

    board.kill_agent()?;
    board.start_agent_as(&next, &[])?;
    assert_eq!(shim()?, before, "it is the same process");
    let runs = std::fs::metadata(format!("/proc/{before}/exe"))?.len();
    assert_eq!(runs, std::fs::metadata(&next)?.len(), "it is the other program");
    let kept: Vec<_> = std::fs::read_dir(format!("/proc/{before}/fd"))?.flatten().map(|it| it.path()).collect();
    let state =
        kept.iter().filter(|it| std::fs::read_link(it).is_ok_and(|it| it.starts_with("/memfd:coracle-shim")));
    assert_eq!(state.count(), 0, "what it was given is let go");

    assert_eq!(board.service("long")?["pid"], pid);
    http("127.0.0.1:8080", "/").context("its port is published")?;
    assert_eq!(board.coracle(&["exec", "long", "echo", "there"])?, "there\n");
    board.coracle(&["exec", "short", "touch", "/end"])?;
    board.wait_for_service("short", "state", json!("exited"))?;
    assert_eq!(board.service("short")?["exit_code"], 7);
    assert!(board.coracle(&["logs", "short"])?.contains("last words"));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let logs = board.coracle(&["logs", "--no-log-prefix", "long"])?;
    let lines: Vec<&str> = logs.lines().collect();
    ensure!(lines.len() > 40, "{} lines", lines.len());
    for (number, line) in lines.iter().enumerate() {
        let wanted = if number % 2 == 0 { format!("line {}", number / 2) } else { ".".to_owned() };
        assert_eq!(*line, wanted, "no line is lost, torn or there twice");
    }
    // A command of before ends where it was; nobody is left who waits for it.
    drop(asleep.wait_with_output()?);
    board.coracle(&["restart", "long"])?;
    wait_for("its port: its network outlived the program that held it", || {
        Ok(http("127.0.0.1:8080", "/").is_ok())
    })?;
    Ok(())
}

#[test]
fn an_agent_that_is_killed_at_any_moment_finds_the_same_containers_and_leaks_nothing() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = up(TWO)?;
    let web = board.service("web")?["pid"].clone();
    let mut seed = 3_u64;
    for round in 0..KILLS {
        // A change is under way: one service is made anew each time.
        board.compose(&TWO.replace("sleep 1000", &format!("sleep {}", 2000 + round)))?;
        let mut change = board.command(&["up", "-d"]);
        let mut change = change.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(std::time::Duration::from_millis((seed >> 33) % 200));
        board.kill_agent()?;
        change.wait()?;
    }
    board.coracle(&["up", "-d"])?;
    ensure!(board.service("web")?["pid"] == web, "what did not change runs on\n{}", board.log("agent.log"));
    assert_eq!(board.service("client")?["state"], "running");
    board.coracle(&["down", "-v"])?;
    let links = run(Command::new("ip").args(["-o", "link"]))?;
    ensure!(!links.contains("cor"), "interfaces are left: {links}");
    let left = |folder: &str| std::fs::read_dir(board.path().join(folder)).map_or(0, Iterator::count);
    assert_eq!([left("data/containers"), left("run/containers"), left("run/files"), left("run/state")], [0; 4]);
    let shim = serde_json::from_str::<serde_json::Value>(&board.coracle(&["status"])?)?["shim_pid"].clone();
    let open = std::fs::read_dir(format!("/proc/{shim}/fd"))?.count();
    ensure!(open < 16, "the shim holds {open} descriptors");
    let left: Vec<_> = board
        .cgroups()
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.path())
        .collect();
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    Ok(())
}

/// Each takes about a fifth of a second.
const KILLS: usize = 25;

/// Documents of a data folder: everything that the agent writes for itself.
fn documents(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !["layers", "upper", "work", "_data"].contains(&name.as_str()) {
            found.extend(documents(&path)?);
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

// F1: not by a cut, which leaves none, but by a disk that lies, or by hand.
#[test]
fn a_document_that_is_broken_is_put_aside_and_made_again() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "busybox", "ip");
    let board = Board::with_app()?;
    let all = "image: \"127.0.0.1:5000/app:1\", network_mode: none, command: sleep 1000, stop_grace_period: 0s";
    board.compose(&format!(
        "services:\n  one: {{{all}, volumes: [\"kept:/kept\"]}}\n  two: {{{all}}}\nvolumes: {{kept: {{}}}}\n"
    ))?;
    board.coracle(&["up", "-d"])?;
    let mut seen = 0;
    for path in documents(&board.data())? {
        for kept in [0, 2] {
            // What is made again may have another name.
            let Ok(whole) = std::fs::read(&path) else { continue };
            if path.ends_with("target.json") {
                // It has a whole one before it.
                board.coracle(&["stop", "two"])?;
                board.coracle(&["start", "two"])?;
            }
            let before = board.service("one")?["pid"].clone();
            board.kill_agent()?;
            std::fs::write(&path, &whole[..whole.len() * kept / 3])?;
            let cut = format!("{} cut to {kept} thirds", path.display());
            board.start_agent().with_context(|| cut.clone())?;
            if path.ends_with("target.json") {
                // What was wanted before is wanted: nothing is lost.
                board.wait_for_service("one", "state", "running".into()).with_context(|| cut.clone())?;
                ensure!(board.service("one")?["pid"] == before, "{cut}");
            }
            board.coracle(&["up", "-d"]).with_context(|| cut.clone())?;
            for service in ["one", "two"] {
                board.wait_for_service(service, "state", "running".into()).with_context(|| cut.clone())?;
            }
            seen += 1;
        }
    }
    ensure!(seen > 10, "{seen} documents");
    // Space is held again for the one that must be written on a full disk.
    ensure!(board.data().join("target.reserve").metadata()?.len() > 100_000);
    Ok(())
}

#[test]
fn what_is_preloaded_runs_without_a_registry_and_is_taken_once() -> anyhow::Result<()> {
    needs!("nft", "busybox", "ip");
    let board = Board::new()?;
    let folder = board.path().join("preload");
    Image::busybox()?.named("registry.test/app:9").write(&folder.join("images/app"))?;
    let path = folder.display().to_string();
    let compose = |text: &str| std::fs::write(folder.join("compose.yaml"), text);
    board.start_agent()?;
    // What cannot be taken is left for the next boot.
    compose("name: demo\nservices: {web: {image: registry.test/app:9, pull_policy: never, colour: red}}\n")?;
    let refused = board.output(&["preload", &path])?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("colour"),
        "{refused:?}"
    );
    ensure!(folder.join("images/app").exists(), "the images are gone");
    let right = "name: demo\nservices: {web: {image: registry.test/app:9, pull_policy: never, command: sleep 1000, network_mode: none, stop_grace_period: 0s}}\n";
    compose(right)?;
    // As after a power cut between two of its steps.
    std::fs::create_dir_all(folder.join(".images-taken/other"))?;
    board.coracle(&["preload", &path])?;
    wait_for("the service", || Ok(board.service("web")?["state"] == "running"))?;
    let left: Vec<_> = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["compose.yaml"]);
    // At the next boot what the owner decided since stays.
    board.coracle(&["down", "-p", "demo"])?;
    board.coracle(&["preload", &path])?;
    let asked = board.output(&["ps", "-p", "demo"])?;
    ensure!(String::from_utf8_lossy(&asked.stderr).contains("no project demo"), "it came back: {asked:?}");
    Ok(())
}
