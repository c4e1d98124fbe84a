//! What a service may ask for, in real containers.

use anyhow::{Context, ensure};
use coracle_tests::board::{Board, coracle, wait_for};
use coracle_tests::image::{Entry, Image};
use coracle_tests::needs;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use serde_json::json;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// Brings a project up whose services are one line each; `APP` is the image.
fn up(board: &Board, services: &str) -> anyhow::Result<()> {
    board.compose(&project(services))?;
    board.coracle(&["up", "-d"]).map(drop)
}

fn project(services: &str) -> String {
    let app = "image: 127.0.0.1:5000/app:1, stop_grace_period: 0s";
    format!("services:\n{}", services.replace("APP", app))
}

/// What a service wrote, once it has ended.
fn words(board: &Board, service: &str) -> anyhow::Result<String> {
    board.wait_for_service(service, "state", json!("exited"))?;
    let text = board.coracle(&["logs", "--no-log-prefix", service])?;
    Ok(text.trim().to_owned())
}

macro_rules! needs_all {
    () => {
        needs!("docker-registry", "skopeo", "nft", "busybox", "ip")
    };
}

#[test]
fn a_process_has_what_its_service_says() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
  env: {APP, command: env, environment: {A: "1", B: "x y"}}
  cwd: {APP, command: pwd, working_dir: /srv/app, user: "1000", read_only: true}
  named: {APP, command: id, user: pump, group_add: ["44"]}
  number: {APP, command: id, user: "4242"}
  pair: {APP, command: id, user: "pump:gpio"}
  host: {APP, command: hostname, hostname: box}
  files: {APP, command: cat /etc/hosts /etc/hostname, extra_hosts: ["gate:192.0.2.1"], hostname: box}
  memory: {APP, command: sh -c 'df -k /t /dev/shm | tail -n +2', tmpfs: ["/t:size=1m"], shm_size: 2m}
  sealed: {APP, command: sh -c 'touch /x || echo sealed', read_only: true}
  caps: {APP, command: grep CapEff /proc/self/status, cap_drop: [ALL], cap_add: [CHOWN]}
  limits: {APP, command: sh -c 'ulimit -n', ulimits: {nofile: {soft: 77, hard: 88}}}
  nnp: {APP, command: grep NoNewPrivs /proc/self/status}
  grows: {APP, command: grep NoNewPrivs /proc/self/status, security_opt: ["no-new-privileges:false"]}
  root: {APP, command: grep Cap /proc/self/status}
  one: {APP, command: grep Cap /proc/self/status, user: "1000", cap_add: [NET_RAW]}
  none: {APP, command: grep Cap /proc/self/status, user: "1000:20"}
  pump: {APP, command: grep Cap /proc/self/status, user: pump}
  tasks: {APP, command: sleep 1000}
  filtered: {APP, command: grep Seccomp /proc/self/status}
  reaped: {APP, command: grep -h Seccomp /proc/1/status /proc/self/status, init: true, security_opt: ["no-new-privileges:false"]}
  grown: {APP, command: "sh -c 'grep Seccomp: /proc/self/status; grep Cap /proc/1/status'", init: true, user: "1000", security_opt: ["no-new-privileges:false"]}
  free: {APP, command: grep Seccomp /proc/self/status, security_opt: ["seccomp:unconfined"]}
  all: {APP, command: grep Seccomp /proc/self/status, privileged: true}
  refused: {APP, command: sh -c 'unshare -U true; unshare -m true; mount -t tmpfs x /tmp', cap_add: [NET_RAW]}
  score: {APP, command: cat /proc/self/oom_score_adj, oom_score_adj: 321}
  terminal: {APP, command: tty, tty: true}
  plain: {APP, command: sh -c 'tty || true'}
  first: {APP, command: cat /proc/1/comm, init: true}
  kernel: {APP, command: cat /proc/sys/net/ipv4/ip_unprivileged_port_start, sysctls: {net.ipv4.ip_unprivileged_port_start: "99"}}
"#,
    )?;
    let env = words(&board, "env")?;
    for line in ["A=1", "B=x y", "HOME=/root", "PATH="] {
        ensure!(env.contains(line), "{line} in {env}");
    }
    assert_eq!(words(&board, "cwd")?, "/srv/app");
    assert_eq!(words(&board, "named")?, "uid=1000(pump) gid=1000(pump) groups=20(dialout),27(gpio),44,1000(pump)");
    assert_eq!(words(&board, "number")?, "uid=4242 gid=0(root) groups=0(root)");
    assert_eq!(words(&board, "pair")?, "uid=1000(pump) gid=27(gpio) groups=27(gpio)");
    assert_eq!(words(&board, "host")?, "box");
    let files = words(&board, "files")?;
    ensure!(files.contains("192.0.2.1\tgate") && files.ends_with("box"), "{files}");
    let memory = words(&board, "memory")?;
    ensure!(memory.contains("1024") && memory.contains("2048"), "{memory}");
    ensure!(words(&board, "sealed")?.contains("sealed"));
    assert_eq!(words(&board, "caps")?, "CapEff:\t0000000000000001");
    assert_eq!(words(&board, "limits")?, "77");
    assert_eq!(words(&board, "nnp")?, "NoNewPrivs:\t1");
    assert_eq!(words(&board, "grows")?, "NoNewPrivs:\t0");
    // Inheritable, permitted, effective, bounding, ambient; capabilities(7) has the numbers.
    let sets = |service: &str| -> anyhow::Result<Vec<u64>> {
        let text = words(&board, service)?;
        text.split_whitespace().skip(1).step_by(2).map(|set| Ok(u64::from_str_radix(set, 16)?)).collect()
    };
    let default = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31].iter().fold(0, |set, number| set | 1 << number);
    assert_eq!(sets("root")?, [0, default, default, default, 0]);
    assert_eq!(sets("none")?, [0; 5]);
    assert_eq!(sets("one")?, [0, 0, 0, 1 << 13, 0]);
    assert_eq!(sets("pump")?, [0, 0, 0, default, 0]);
    for (service, first, second) in
        [("filtered", "2", "2"), ("reaped", "2", "2"), ("free", "0", "0"), ("all", "0", "0")]
    {
        let text = words(&board, service)?;
        let modes: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("Seccomp:\t")).collect();
        ensure!(modes.first() == Some(&first) && modes.last() == Some(&second), "{service}: {text}");
    }
    let grown = words(&board, "grown")?;
    let sets: Vec<&str> = grown.split_whitespace().skip(1).step_by(2).collect();
    assert_eq!(sets, ["2", &"0".repeat(16), &"0".repeat(16), &"0".repeat(16), &"0".repeat(16), &"0".repeat(16)]);
    let refused = words(&board, "refused")?;
    assert_eq!(
        refused.matches("Operation not permitted").count() + refused.matches("ermission denied").count(),
        3,
        "{refused}"
    );
    let cgroup = board.service("tasks")?["cgroup"].as_str().context("a cgroup")?.to_owned();
    let limit = coracle_runtime::container::cgroup::controller(&cgroup, "pids").join("pids.max");
    assert_eq!(std::fs::read_to_string(limit)?.trim(), "1024");
    assert_eq!(words(&board, "score")?, "321");
    ensure!(words(&board, "terminal")?.starts_with("/dev/"));
    assert_eq!(words(&board, "plain")?, "not a tty");
    ensure!(words(&board, "first")?.contains("coracle-init"));
    assert_eq!(words(&board, "kernel")?, "99");
    Ok(())
}

#[test]
fn exec_has_the_container_s_user_folder_and_groups_and_gives_its_exit_code() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(&board, "  app: {APP, command: sleep 1000, user: pump, working_dir: /tmp, environment: {A: b}}\n")?;
    assert_eq!(board.coracle(&["exec", "app", "pwd"])?.trim(), "/tmp");
    let id = board.coracle(&["exec", "app", "id"])?;
    ensure!(id.contains("uid=1000(pump) gid=1000(pump)") && id.contains("27(gpio)"), "{id}");
    ensure!(board.coracle(&["exec", "-u", "0", "app", "id"])?.starts_with("uid=0(root)"));
    let env = board.coracle(&["exec", "-e", "C=d", "app", "env"])?;
    ensure!(env.contains("A=b") && env.contains("C=d") && env.contains("HOME=/home/pump"), "{env}");
    assert_eq!(board.refused(&["exec", "app", "sh", "-c", "exit 9"])?.0, 9);
    assert_eq!(board.refused(&["exec", "app", "/nothing"])?.0, 127);
    assert_eq!(board.refused(&["exec", "app", "/etc/passwd"])?.0, 126);
    let (_, missing) = board.refused(&["exec", "-w", "/missing", "app", "pwd"])?;
    ensure!(missing.contains("/missing"), "{missing}");
    let (code, nobody) = board.refused(&["exec", "-u", "nobody2", "app", "id"])?;
    ensure!(code == 2 && nobody.contains("nobody2"), "{code} {nobody}");
    Ok(())
}

#[test]
fn exec_on_a_terminal_has_its_size_passes_keys_and_gives_it_back() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(&board, "  app: {APP, command: sleep 1000}\n")?;
    let pty = openpty(Some(&Winsize { ws_row: 31, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }), None)?;
    let before = tcgetattr(&pty.slave)?;
    let script =
        "stty size; trap 'echo now; stty size' WINCH; while read -r line; do echo said $line; done; exit 7";
    let mut command = Command::new(coracle());
    command.arg("exec").arg("--data").arg(board.data()).arg("--run").arg(board.run_folder());
    command.args(["-t", "app", "sh", "-c", script]).current_dir(board.path().join("demo"));
    for end in ["stdin", "stdout", "stderr"] {
        let slave = pty.slave.try_clone()?;
        match end {
            "stdin" => command.stdin(slave),
            "stdout" => command.stdout(slave),
            _ => command.stderr(slave),
        };
    }
    let mut child = command.spawn()?;
    let mut terminal = std::fs::File::from(pty.master);
    let mut shown = String::new();
    let mut wait_for_text = |terminal: &mut std::fs::File, text: &str| {
        wait_for(text, || {
            let mut buffer = [0; 1000];
            let mut ready = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(10_u8))? > 0 {
                let count = terminal.read(&mut buffer)?;
                shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            Ok(shown.contains(text))
        })
        .with_context(|| format!("{shown:?}"))
    };
    wait_for_text(&mut terminal, "31 100")?;
    ensure!(tcgetattr(&pty.slave)? != before, "keys are passed as they come");
    terminal.write_all(b"hello\r")?;
    wait_for_text(&mut terminal, "said hello")?;
    coracle_runtime::terminal::set_size(pty.slave.as_fd(), 44, 55)?;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGWINCH)?;
    // The shell runs its trap after the line that it waits for.
    terminal.write_all(b"again\r")?;
    wait_for_text(&mut terminal, "44 55")?;
    terminal.write_all(b"\x04")?;
    assert_eq!(child.wait()?.code(), Some(7));
    ensure!(tcgetattr(&pty.slave)? == before, "the terminal is as it was");
    Ok(())
}

// D6
#[test]
fn a_program_that_cannot_be_run_is_one_clear_line() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let image = Image::busybox()?.layer(vec![
        Entry::File("a.sh".into(), 0o755, b"echo hi\n".to_vec()),
        Entry::File("b.sh".into(), 0o644, b"#!/bin/sh\necho hi\n".to_vec()),
        Entry::File("c.sh".into(), 0o755, b"#!/bin/sh\r\necho hi\r\n".to_vec()),
    ]);
    board.push(&image, "app:1")?;
    up(
        &board,
        "  a: {APP, command: /a.sh}\n  b: {APP, command: /b.sh}\n  c: {APP, command: /c.sh}\n  d: {APP, command: nothing}\n",
    )?;
    for (service, code, why) in
        [("a", 126, "#!"), ("b", 126, "not executable"), ("c", 127, "line ends"), ("d", 127, "not found")]
    {
        let exit = &board.service(service)?["exits"][0];
        assert_eq!(exit["code"], code, "{exit}");
        ensure!(exit["detail"].as_str().unwrap_or_default().contains(why), "{service}: {exit}");
    }
    Ok(())
}

// D5
#[test]
fn a_new_volume_holds_what_the_image_has_there_and_is_kept() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let image = Image::busybox()?.layer(vec![
        Entry::Owner(999, 999),
        Entry::Folder("data".into(), 0o700),
        Entry::File("data/file".into(), 0o640, b"from the image".to_vec()),
        Entry::Hard("data/again".into(), "data/file".into()),
        Entry::Link("data/link".into(), "file".into()),
    ]);
    board.push(&image, "db:1")?;
    let services = r#"
  db: {image: "127.0.0.1:5000/db:1", stop_grace_period: 0s, user: "999", command: sh -c 'stat -c "%u:%g %a %h %N" /data /data/*; cat /data/link; echo more >> /data/file', volumes: ["v:/data"]}
  probe: {APP, command: stat -c "%u:%g %a" /data, volumes: ["v:/data:ro"], depends_on: [db]}
volumes: {v: {}}
"#;
    up(&board, services)?;
    let db = words(&board, "db")?;
    for line in [
        "999:999 700",
        "999:999 640 2 /data/file",
        "999:999 640 2 /data/again",
        "'/data/link' -> 'file'",
        "from the image",
    ] {
        ensure!(db.contains(line) || db.replace('\'', "").contains(&line.replace('\'', "")), "{line:?} in {db}");
    }
    assert_eq!(words(&board, "probe")?, "999:999 700");
    board.coracle(&["down"])?;
    up(&board, &services.replace("echo more", "echo again"))?;
    ensure!(words(&board, "db")?.contains("from the imagemore"), "the volume outlives down and a new container");
    Ok(())
}

// D4
#[test]
fn mount_points_that_are_links_or_missing_are_made_inside_the_root() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let image = Image::busybox()?.layer(vec![
        Entry::Link("etc/resolv.conf".into(), "/tmp/none/r".into()),
        Entry::Folder("run".into(), 0o755),
        Entry::Folder("var".into(), 0o755),
        Entry::Link("var/run".into(), "/run".into()),
        Entry::Link("conf".into(), "/real/conf".into()),
    ]);
    board.push(&image, "app:1")?;
    board.compose(&project(
        r#"
  s: {APP, read_only: true, tmpfs: [/conf/stack], volumes: ["v:/var/run/x"], secrets: [k], command: sh -c 'cat /run/secrets/k; readlink /conf /etc/resolv.conf; mount | cut -d" " -f3; cat /etc/resolv.conf'}
volumes: {v: {}}
secrets: {k: {environment: K}}
"#,
    ))?;
    let mut command = board.command(&["up", "-d"]);
    let output = command.env("K", "the secret").output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = words(&board, "s")?;
    for line in ["the secret", "/real/conf", "/tmp/none/r", "/real/conf/stack", "/run/x", "nameserver 10."] {
        ensure!(text.contains(line), "{line} in {text}");
    }
    Ok(())
}

#[test]
fn logs_that_are_kept_in_files_outlive_agent_shim_and_container_within_their_bounds() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let services = |text: &str| {
        format!(
            r#"
  kept: {{APP, command: sh -c 'for n in $$(seq 1 400); do echo {text} $$n; done; exec sleep 1000', logging: {{driver: local}}}}
  small: {{APP, command: sh -c 'for n in $$(seq 1 9000); do echo {text} $$n; done; exec sleep 1000', logging: {{driver: local, options: {{max-size: 32k, max-file: 2}}}}}}
  ring: {{APP, command: sh -c 'echo {text}; exec sleep 1000'}}
  none: {{APP, command: sh -c 'echo {text}; exec sleep 1000', logging: {{driver: none}}}}
"#
        )
    };
    let lines = |arguments: &[&str]| -> anyhow::Result<Vec<String>> {
        let text = board.coracle(&[&["logs", "--no-log-prefix"], arguments].concat())?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let all = |text: &str| (1..=400).map(|it| format!("{text} {it}")).collect::<Vec<_>>();
    up(&board, &services("first"))?;
    wait_for("the first lines", || Ok(lines(&["kept"])? == all("first")))?;
    // Another container of the same service, at once: nothing of the first one's log is lost.
    up(&board, &services("second"))?;
    let both = [all("first"), all("second")].concat();
    wait_for("both", || Ok(lines(&["kept"])? == both))?;
    assert_eq!(lines(&["--tail", "401", "kept"])?, both[399..]);
    assert_eq!(lines(&["ring"])?, ["second"]);
    assert_eq!(lines(&["none"])?, [""; 0]);
    let folder = board.data().join("logs/demo:small");
    wait_for("the small files", || Ok(std::fs::read_to_string(folder.join("0.log"))?.contains(" second 9000\n")))?;
    let sizes: Vec<u64> =
        std::fs::read_dir(&folder)?.flatten().map(|it| it.metadata().map_or(0, |it| it.len())).collect();
    ensure!(sizes.len() == 2 && sizes.iter().all(|&size| size <= 32 * 1024), "{sizes:?}");
    // An agent that was killed writes nothing twice.
    board.kill_agent()?;
    board.start_agent()?;
    assert_eq!(lines(&["kept"])?, both);
    // As after a boot: the shim's memory is gone.
    wait_for("the files", || {
        Ok(std::fs::read_to_string(board.data().join("logs/demo:kept/0.log"))?.lines().count() == 800)
    })?;
    board.coracle(&["stop"])?;
    board.coracle(&["shutdown"])?;
    wait_for("its end", || Ok(!board.output(&["status"])?.status.success()))?;
    for folder in ["containers", "state"] {
        std::fs::remove_dir_all(board.run_folder().join(folder))?;
    }
    board.start_agent()?;
    assert_eq!(lines(&["kept"])?, both);
    assert_eq!(lines(&["ring"])?, [""; 0]);
    ensure!(board.coracle(&["df"])?.contains("demo/kept"));
    board.coracle(&["start", "kept"])?;
    wait_for("the third", || Ok(lines(&["kept"])? == [both.clone(), all("second")].concat()))?;
    board.coracle(&["down"])?;
    wait_for("the files to go", || Ok(std::fs::read_dir(board.data().join("logs"))?.count() == 0))?;
    Ok(())
}

#[test]
fn a_profile_of_the_project_decides_which_system_calls_are_made() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let folder = board.path().join("demo");
    std::fs::create_dir_all(&folder)?;
    let profile = |action: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": ["mkdir", "mkdirat"], "action": "{action}", "errnoRet": 28}}]}}"#
        )
    };
    std::fs::write(folder.join("profile.json"), profile("SCMP_ACT_ERRNO"))?;
    let text = "  s: {APP, command: sh -c 'mkdir /x; sleep 1000', security_opt: [\"seccomp:./profile.json\"]}\n";
    up(&board, text)?;
    let said = || board.coracle(&["logs", "--no-log-prefix", "s"]);
    wait_for("the answer", || Ok(said()?.contains("No space left on device")))?;
    // A command has the same.
    let exec = board.output(&["exec", "-T", "s", "mkdir", "/y"])?;
    ensure!(String::from_utf8_lossy(&exec.stderr).contains("No space left"), "{exec:?}");
    let pid = board.service("s")?["pid"].clone();
    std::fs::write(folder.join("profile.json"), profile("SCMP_ACT_NOTIFY"))?;
    for command in [&["config"][..], &["up", "-d"]] {
        let (code, refused) = board.refused(command)?;
        ensure!(
            code == 2 && refused.contains("services.s.security_opt: seccomp profile: syscalls[0].action"),
            "{refused}"
        );
    }
    assert_eq!(board.service("s")?["pid"], pid, "nothing that runs was changed");
    // Another profile is another container.
    std::fs::write(folder.join("profile.json"), profile("SCMP_ACT_ALLOW"))?;
    board.coracle(&["up", "-d"])?;
    ensure!(board.service("s")?["pid"] != pid);
    board.coracle(&["exec", "-T", "s", "mkdir", "/z"]).map(drop)
}

#[test]
fn users_of_its_own_are_the_machines_for_nobody_else_and_files_keep_their_numbers() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let shared = board.path().join("demo/shared");
    std::fs::create_dir_all(&shared)?;
    let services = r#"
  s: {APP, userns_mode: auto, command: sleep 1000, volumes: ["v:/data", "./shared:/shared"], tmpfs: ["/t:mode=755"], secrets: [k], devices: ["/dev/zero:/dev/mine"]}
  other: {APP, userns_mode: auto, init: true, user: pump, command: sleep 1000}
  plain: {APP, command: sleep 1000, volumes: ["v:/data"]}
  terminal: {APP, userns_mode: auto, tty: true, command: "sh -c 'tty; stat -c %u $$(tty) /dev/console'"}
volumes: {v: {}}
secrets: {k: {file: ./k}}
"#;
    std::fs::write(board.path().join("demo/k"), "the secret")?;
    std::fs::set_permissions(board.path().join("demo/k"), std::fs::Permissions::from_mode(0o600))?;
    up(&board, services)?;
    let pid =
        |service: &str| -> anyhow::Result<i64> { board.service(service)?["pid"].as_i64().context("a process id") };
    // First number of the range, and the user that the process is for the machine.
    let range = |service: &str| -> anyhow::Result<(u32, u32)> {
        let map = std::fs::read_to_string(format!("/proc/{}/uid_map", pid(service)?))?;
        let words: Vec<&str> = map.split_whitespace().collect();
        ensure!(words.len() == 3 && words[0] == "0" && words[2] == "65536", "{map}");
        let user = std::fs::metadata(format!("/proc/{}", pid(service)?))?.uid();
        Ok((words[1].parse()?, user))
    };
    let ((first, user), (other, _)) = (range("s")?, range("other")?);
    ensure!(first >= 0x8_0000 && user == first && other.abs_diff(first) >= 65536, "{first} {other}");
    let inside = |service: &str, command: &str| board.coracle(&["exec", "-T", service, "sh", "-c", command]);
    // What it makes is root's on disk, as without.
    assert_eq!(
        inside("s", "touch /made /data/made /shared/made /t/made && cat /run/secrets/k && id -u")?,
        "the secret0\n"
    );
    assert_eq!(
        inside("s", "touch /data/given && chown 1000:27 /data/given && stat -c %u:%g /data/given")?,
        "1000:27\n"
    );
    assert_eq!(inside("plain", "stat -c %u:%g /data/made /data/given")?, "0:0\n1000:27\n");
    assert_eq!(std::fs::metadata(shared.join("made"))?.uid(), 0);
    assert_eq!(
        inside("s", "stat -c %u / /made /bin/busybox /dev /dev/null /dev/mine /t /run/secrets/k /etc/hosts")?,
        "0\n".repeat(9)
    );
    // A user of the image's.
    let as_user = |command: &str| board.coracle(&["exec", "-T", "-u", "pump", "s", "sh", "-c", command]);
    assert_eq!(as_user("id -u; touch /t/mine 2> /dev/null || echo refused")?, "1000\nrefused\n");
    let reaper = pid("other")?;
    let task = std::fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children"))?;
    let status = std::fs::metadata(format!("/proc/{}", task.trim()))?;
    assert_eq!(status.uid(), other + 1000, "below the reaper");
    // What is not its own is nobody's.
    assert_eq!(inside("s", "stat -c %u /sys/kernel")?, "65534\n");
    let (first_line, beyond) = (format!("0 {first} 65536"), inside("s", "chown 70000 /t/made || echo refused")?);
    assert_eq!(beyond, "refused\n");
    let map = inside("s", "cat /proc/self/uid_map")?;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>().join(" "), first_line, "a command has the same users");
    assert_eq!(words(&board, "terminal")?.replace('\r', ""), "/dev/pts/0\n0\n0");
    // A service that no longer has its own finds its files again.
    up(&board, &services.replace("s: {APP, userns_mode: auto", "s: {APP"))?;
    assert_eq!(
        inside("s", "stat -c %u:%g /data/made /data/given; cat /proc/self/uid_map | tr -s ' '")?,
        "0:0\n1000:27\n 0 0 4294967295\n"
    );
    Ok(())
}

/// Loads a filter by which the kernel knows no filters, and becomes the program.
const WITHOUT_FILTERS: &str = r#"
import os, sys, seccomp
f = seccomp.SyscallFilter(seccomp.ALLOW)
f.add_rule(seccomp.ERRNO(38), "seccomp")
f.load()
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn what_the_kernel_lacks_is_refused_by_name_until_the_device_accepts_that_loss() -> anyhow::Result<()> {
    needs_all!();
    const PYTHON: &str = "/usr/bin/python3";
    let bindings = Command::new(PYTHON).args(["-c", "import seccomp"]).stderr(Stdio::null()).status();
    if !bindings.is_ok_and(|status| status.success()) {
        println!("skipped: python3-seccomp is not installed");
        return Ok(());
    }
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        println!("skipped: controllers of cgroup v2 cannot be taken away from one test");
        return Ok(());
    }
    let board = Board::with_app()?;
    // Seen by this test alone.
    for controller in ["devices", "pids"] {
        umount2(&Path::new("/sys/fs/cgroup").join(controller), MntFlags::MNT_DETACH)?;
    }
    let mut agent = Command::new(PYTHON);
    agent.args(["-c", WITHOUT_FILTERS]).arg(coracle()).args(["agent", "--data"]).arg(board.data());
    agent.arg("--run").arg(board.run_folder()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    agent.spawn()?;
    wait_for("the agent", || Ok(board.output(&["status"])?.status.success()))?;
    board.compose(&project("  s: {APP, command: \"sh -c 'grep Seccomp: /proc/self/status; sleep 1000'\"}\n"))?;
    let accept = |losses: &[&str]| {
        let text = json!({ "accepted_losses": losses }).to_string();
        std::fs::write(board.data().join("settings.json"), text)
    };
    for (accepted, missing) in [(&[][..], "seccomp"), (&["seccomp"], "devices"), (&["devices", "seccomp"], "pids")]
    {
        accept(accepted)?;
        let (_, said) = board
            .refused(&["up", "-d"])
            .with_context(|| format!("{} {}", board.log("shim.log"), board.log("agent.log")))?;
        let way_out = format!("to run services without it, write {missing:?} into accepted_losses");
        ensure!(said.contains(&way_out), "{missing}: {said}");
        ensure!(board.service("s")?["pid"].is_null(), "not even for a moment");
        board.coracle(&["down"])?;
    }
    accept(&["pids", "devices", "seccomp"])?;
    board.coracle(&["up", "-d"])?;
    wait_for("its word", || Ok(board.coracle(&["logs", "s"])?.contains("Seccomp:")))?;
    let shim = board.log("shim.log");
    for loss in ["seccomp", "devices", "pids"] {
        ensure!(shim.contains(&format!("loss=\"{loss}\"")), "{loss} is said: {shim}");
    }
    // A command of it too.
    board.coracle(&["exec", "-T", "s", "true"]).map(drop)
}

// F2
#[test]
fn memory_that_ran_out_is_told_from_an_exit() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
  eater: {APP, mem_limit: 16m, command: tail /dev/zero}
  killed: {APP, mem_limit: 16m, command: sleep 1000}
  stopped: {APP, mem_limit: 16m, command: "sh -c 'trap : TERM; while :; do sleep 1; done'"}
  failed: {APP, command: sh -c 'exit 137'}
  parent: {APP, mem_limit: 16m, command: sh -c 'tail /dev/zero; sleep 1000'}
  orphan: {APP, mem_limit: 16m, command: sh -c 'tail /dev/zero; exit 1'}
  checked: {APP, mem_limit: 16m, command: sleep 1000, healthcheck: {test: tail /dev/zero, interval: 1s}}
"#,
    )?;
    // Nobody asks, and nothing else happens: the kernel tells.
    board.wait_for_service("parent", "oom_kills", json!(1))?;
    let parent = board.service("parent")?;
    ensure!(parent["state"] == "running" && parent["last_oom_kill"].is_u64(), "{parent}");
    let killed = board.service("killed")?["pid"].as_i64().context("a pid")?;
    kill(Pid::from_raw(i32::try_from(killed)?), Signal::SIGKILL)?;
    board.coracle(&["stop", "stopped"])?;
    for (service, reason, code, kills) in
        [("killed", "killed", 137, 0), ("stopped", "stopped", 137, 0), ("orphan", "exited", 1, 1)]
    {
        board.wait_for_service(service, "state", json!("exited"))?;
        let last = board.service(service)?["exits"][0].clone();
        ensure!(
            last["reason"] == reason && last["code"] == code && last["oom_kills"] == kills,
            "{service}: {last}"
        );
    }
    board.wait_for_service("eater", "state", json!("exited"))?;
    board.wait_for_service("failed", "state", json!("exited"))?;
    assert_eq!(board.service("eater")?["exits"][0]["reason"], "oom");
    assert_eq!(board.service("eater")?["exits"][0]["code"], 137);
    assert_eq!(board.service("failed")?["exits"][0]["reason"], "exited");
    board.wait_for_service("checked", "health", json!("unhealthy"))?;
    let said = board.service("checked")?["health_output"].clone();
    ensure!(said.as_str().is_some_and(|it| it.starts_with("out of memory, limit 16.0 MiB, peak 1")), "{said}");
    let command = board.output(&["exec", "-T", "parent", "tail", "/dev/zero"])?;
    let said = String::from_utf8_lossy(&command.stderr);
    ensure!(command.status.code() == Some(137) && said.contains("out of memory: limit 16.0 MiB"), "{command:?}");
    let shown = board.coracle(&["ps"])?;
    for words in [
        "exited 137, out of memory: limit 16.0 MiB, peak 1",
        " killed for want of memory, last ",
        "exited 1, 1 killed",
    ] {
        ensure!(shown.contains(words), "{words}: {shown}");
    }
    Ok(())
}

// F4
#[test]
fn a_dependency_that_will_not_come_is_told_and_a_repaired_one_is_followed() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let services = r#"
  web: {APP, command: sleep 1000, depends_on: {db: {condition: service_healthy}, job: {condition: service_completed_successfully}}}
  db: {APP, command: sh -c 'exit 3', healthcheck: {test: "true", interval: 200ms}}
  job: {APP, command: sh -c 'echo ran; exit 0'}
"#;
    board.compose(&project(services))?;
    let (code, said) = board.refused(&["up", "-d"])?;
    ensure!(code == 7 && said.contains("web waits for db: exited 3, will not be restarted"), "{code} {said}");
    assert_eq!(board.service("web")?["state"], "absent");
    up(&board, &services.replace("sh -c 'exit 3'", "sleep 1000"))?;
    assert_eq!(board.service("web")?["state"], "running");
    let job = board.coracle(&["logs", "--no-log-prefix", "job"])?;
    assert_eq!(job.trim(), "ran", "a job that ended well is not run again");
    board.compose(&project(&services.replace(r#", healthcheck: {test: "true", interval: 200ms}"#, "")))?;
    let (code, said) = board.refused(&["up", "-d"])?;
    ensure!(code == 2 && said.contains("db has no health check"), "{code} {said}");
    assert_eq!(board.service("web")?["state"], "running", "a refusal changes nothing");
    Ok(())
}

#[test]
fn restart_policies_hold_and_their_pauses_grow() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
  always: {APP, restart: always, command: sh -c 'exit 0'}
  twice: {APP, restart: "on-failure:2", command: sh -c 'echo try; exit 4'}
  never: {APP, command: sh -c 'exit 5'}
"#,
    )?;
    wait_for("three tries", || Ok(board.coracle(&["logs", "--no-log-prefix", "twice"])?.lines().count() == 3))?;
    wait_for("a restart", || Ok(board.service("always")?["restarts"].as_u64() >= Some(2)))?;
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let twice = board.service("twice")?;
    assert_eq!((twice["state"].clone(), twice["restarts"].clone()), (json!("exited"), json!(2)));
    assert_eq!(board.service("never")?["restarts"], 0);
    let always = board.service("always")?;
    let exits: Vec<u64> =
        always["exits"].as_array().into_iter().flatten().filter_map(|exit| exit["at_ns"].as_u64()).collect();
    ensure!(exits[2] - exits[1] > exits[1] - exits[0] + 200_000_000, "{exits:?}");
    Ok(())
}

// F3
#[test]
fn a_hanging_check_is_killed_whole_and_leaves_nothing() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
  s: {APP, command: sleep 1000, healthcheck: {test: "sleep 998 & setsid sleep 997 & yes; wait", interval: 100ms, timeout: 300ms, retries: 3}}
  good: {APP, command: sleep 1000, healthcheck: {test: "true", interval: 100ms}}
"#,
    )?;
    board.wait_for_service("good", "health", json!("healthy"))?;
    board.wait_for_service("s", "health", json!("unhealthy"))?;
    wait_for("ten rounds", || Ok(board.service("s")?["health_failures"].as_u64() >= Some(10)))?;
    let top = board.coracle(&["top", "s"])?;
    // Between two rounds nothing of the last is left; during one there are the reaper and its four.
    ensure!(top.lines().count() <= 8, "{top}");
    Ok(())
}

#[test]
fn stop_start_and_restart_keep_the_container() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(&board, "  app: {APP, restart: always, command: sh -c 'echo begin; touch /mark; sleep 1000'}\n")?;
    let before = board.service("app")?;
    board.coracle(&["stop", "app"])?;
    assert_eq!(board.service("app")?["state"], "exited");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!(board.service("app")?["state"], "exited", "stopped by hand stays stopped");
    board.coracle(&["start", "app"])?;
    board.coracle(&["restart", "app"])?;
    let after = board.service("app")?;
    assert_eq!(after["container"], before["container"]);
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(board.coracle(&["exec", "app", "ls", "/mark"])?.trim(), "/mark");
    wait_for("three lines", || {
        Ok(board.coracle(&["logs", "--no-log-prefix", "app"])?.matches("begin").count() == 3)
    })?;
    Ok(())
}
