//! The OCI command line: what runc's users and engines rely on.

use anyhow::{Context, ensure};
use coracle_tests::board::wait_for;
use coracle_tests::bundle::Bundle;
use coracle_tests::needs;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn a_container_goes_through_its_life() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.config["annotations"] = json!({ "who": "test" });
    bundle.script("trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done");
    let pid_file = bundle.path().join("pid");
    bundle.run(&["create", "--pid-file", &pid_file.display().to_string(), &id])?;
    let state = bundle.state()?;
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], id.as_str());
    assert_eq!(state["bundle"], json!(bundle.path()));
    assert_eq!(state["annotations"], json!({ "who": "test" }));
    assert_eq!(state["pid"].to_string(), std::fs::read_to_string(&pid_file)?);
    ensure!(state["ociVersion"].as_str().is_some_and(|it| it.starts_with("1.")));
    let (code, said) = bundle.refused(&["create", &id])?;
    ensure!(code == 1 && said.contains("exist"), "{said}");
    bundle.run(&["start", &id])?;
    assert_eq!(bundle.state()?["status"], "running");
    let (_, said) = bundle.refused(&["start", &id])?;
    ensure!(said.contains("running"), "{said}");
    let (_, said) = bundle.refused(&["delete", &id])?;
    ensure!(said.contains("running"), "{said}");
    let listed = bundle.run(&["list", "--format", "json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    assert_eq!(listed[0]["id"], id.as_str());
    assert_eq!(bundle.run(&["list", "-q"])?, id);
    let processes: Vec<i32> = serde_json::from_str(&bundle.run(&["ps", "--format", "json", &id])?)?;
    ensure!(processes.contains(&(state["pid"].as_i64().context("a pid")? as i32)), "{processes:?}");
    bundle.run(&["kill", &id, "TERM"])?;
    wait_for("the end", || Ok(bundle.state()?["status"] == "stopped"))?;
    let (_, said) = bundle.refused(&["kill", &id, "KILL"])?;
    ensure!(said.contains("not running"), "{said}");
    bundle.run(&["delete", &id])?;
    let (code, said) = bundle.refused(&["state", &id])?;
    ensure!(code == 1 && said.contains("does not exist"), "{said}");
    bundle.refused(&["delete", &id])?;
    bundle.run(&["delete", "--force", &id])?;
    ensure!(bundle.cgroups().is_empty(), "{:?}", bundle.cgroups());
    ensure!(!bundle.root().join(&id).exists());
    Ok(())
}

#[test]
fn without_a_process_it_is_made_and_not_started() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    bundle.config.as_object_mut().context("a document")?.remove("process");
    bundle.run(&["create", &bundle.id])?;
    assert_eq!(bundle.state()?["status"], "created");
    let (_, said) = bundle.refused(&["start", &bundle.id])?;
    ensure!(said.contains("process: is missing"), "{said}");
    assert_eq!(bundle.state()?["status"], "created");
    // Nothing is left of one that cannot be started.
    bundle.run(&["delete", &bundle.id])?;
    ensure!(bundle.refused(&["run", &bundle.id])?.1.contains("process: is missing"));
    ensure!(bundle.run(&["list", "-q"])?.is_empty());
    Ok(())
}

#[test]
fn exit_codes_are_the_programs_own() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    bundle.script("echo out; echo err >&2; exit 7");
    assert_eq!(bundle.run_container()?, (7, "out".to_owned(), "err".to_owned()));
    bundle.script("kill -9 $$; sleep 1");
    bundle.config["linux"]["namespaces"].as_array_mut().context("a list")?.retain(|it| it["type"] != "pid");
    assert_eq!(bundle.run_container()?.0, 137);
    for (args, words) in [
        (&["/nosuch"][..], "no such file or directory"),
        (&["nosuch"], "executable file not found in $PATH"),
        (&["/etc/passwd"], "permission denied"),
    ] {
        bundle.args(args);
        let (code, _, said) = bundle.run_container()?;
        ensure!(code == 1 && said.contains(words), "{args:?}: {code} {said}");
        ensure!(
            bundle.cgroups().is_empty() && !bundle.root().join(&bundle.id).exists(),
            "{args:?} left something"
        );
    }
    Ok(())
}

#[test]
fn a_command_runs_inside_with_what_the_container_has() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 39 }],
    });
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    bundle.config["process"]["oomScoreAdj"] = json!(321);
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bundle.args(&["sleep", "1000"]);
    bundle.run(&["run", "--detach", &id])?;
    let pid = bundle.state()?["pid"].to_string();
    let told = "ulimit -n; grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; mkdir /tmp/x; pwd; readlink /proc/1/ns/net";
    let output = bundle.output(&["exec", "--cwd", "/tmp", &id, "sh", "-c", told])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let net = std::fs::read_link(format!("/proc/{pid}/ns/net"))?.display().to_string();
    for words in ["100\n", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000020000420", "/tmp\n", &net] {
        ensure!(said.contains(words), "{words:?} is missing: {said}");
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("Directory not empty"), "39 is ENOTEMPTY: {said}");
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim(), "321");
    let machine = bundle.run(&["exec", &id, "busybox", "uname", "-m"])?;
    ensure!(machine.starts_with('i') || machine.starts_with("armv"), "{machine}");
    // Variables, user, groups, capabilities.
    let said = bundle.run(&[
        "exec",
        "-e",
        "A=1",
        "-u",
        "7:8",
        "-g",
        "9",
        "--cap",
        "CAP_CHOWN",
        &id,
        "sh",
        "-c",
        "id; echo $A; grep CapBnd /proc/self/status",
    ])?;
    ensure!(said.contains("uid=7 gid=8 groups=8,9") || said.contains("groups=9"), "{said}");
    ensure!(said.contains("\n1\n") && said.contains("CapBnd:\t0000000020000421"), "{said}");
    // A process document.
    let file = bundle.path().join("process.json");
    let process = json!({ "args": ["sh", "-c", "echo $B; exit 9"], "cwd": "/", "env": ["B=2", "PATH=/bin"], "user": {"uid": 0, "gid": 0} });
    std::fs::write(&file, process.to_string())?;
    let output = bundle.output(&["exec", "--process", &file.display().to_string(), &id])?;
    assert_eq!((output.status.code(), &*output.stdout), (Some(9), &b"2\n"[..]));
    // Detached, with a file for its number.
    let pid_file = bundle.path().join("exec.pid");
    bundle.run(&["exec", "-d", "--pid-file", &pid_file.display().to_string(), &id, "sleep", "500"])?;
    let pid = std::fs::read_to_string(&pid_file)?;
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim(), "sleep");
    // A process document of another form.
    for text in [
        "7",
        "[]",
        "null",
        "{}",
        r#"{"args": "ls"}"#,
        r#"{"args": ["ls"], "cwd": "/", "capabilities": "all"}"#,
        r#"{"args": ["ls"], "cwd": "/", "user": 7}"#,
        r#"{"args": ["ls"], "cwd": "/", "rlimits": {"a": 1}}"#,
        r#"{"args": ["ls"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": [1]}"#,
    ] {
        std::fs::write(&file, text)?;
        let (_, said) = bundle.refused(&["exec", "--process", &file.display().to_string(), &id])?;
        ensure!(said.contains("process") && !said.contains("panicked"), "{text}: {said}");
    }
    let (code, said) = bundle.refused(&["exec", &id, "nosuch"])?;
    ensure!(code == 255 && said.contains("executable file not found in $PATH"), "{code} {said}");
    let (code, said) = bundle.refused(&["exec", "--user", "root", &id, "true"])?;
    ensure!(code == 1 && said.contains("--user root"), "{said}");
    // Deleting takes it along, though its parent is not the container's.
    bundle.run(&["delete", "--force", &id])?;
    ensure!(!Path::new(&format!("/proc/{pid}/cmdline")).exists(), "the command goes with its container");
    let (_, said) = bundle.refused(&["exec", &id, "true"])?;
    ensure!(said.contains("does not exist"), "{said}");
    Ok(())
}

#[test]
fn hooks_run_in_their_order_place_and_time() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let log = bundle.path().join("log");
    std::fs::write(&log, "")?;
    std::fs::write(bundle.path().join("rootfs/log"), "")?;
    let outside = |kind: &str| {
        let script = format!(
            r#"state=$(cat); s=$(echo "$state" | tr -d ' "' | tr , '\n' | grep -E '^.?status' | tr -d '{{}}'); echo "{kind} $s $(readlink /proc/self/ns/mnt)" >> {}"#,
            log.display()
        );
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 10 }])
    };
    let inside = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo startContainer $(id -u) >> /log"] }]);
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["hooks"] = json!({
        "prestart": outside("prestart"), "createRuntime": outside("createRuntime"),
        "createContainer": outside("createContainer"), "startContainer": inside,
        "poststart": outside("poststart"), "poststop": outside("poststop"),
    });
    bundle.script("cat /log; readlink /proc/self/ns/mnt");
    let (code, said, beside) = bundle.run_container()?;
    ensure!(code == 0, "{said} {beside}");
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("startContainer 0"));
    let inside = lines.next().context("the container's namespace")?;
    let own = std::fs::read_link("/proc/thread-self/ns/mnt")?.display().to_string();
    let text = std::fs::read_to_string(&log)?;
    let order: Vec<(&str, &str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?, words.next()?))
        })
        .collect();
    let own = own.as_str();
    assert_eq!(
        order,
        [
            ("prestart", "status:created", own),
            ("createRuntime", "status:creating", own),
            ("createContainer", "status:creating", inside),
            ("poststart", "status:running", own),
            ("poststop", "status:stopped", own),
        ]
    );
    // One that fails undoes what was made; one whose time is up is killed.
    for (kind, hook, words) in [
        ("createRuntime", json!([{ "path": "/bin/false" }]), "createRuntime hook #0"),
        ("prestart", json!([{ "path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }]), "its time is up"),
        ("createContainer", json!([{ "path": "/no/such" }]), "createContainer hook #0"),
        ("startContainer", json!([{ "path": "/bin/false" }]), "startContainer hook #0"),
        ("createRuntime", json!([{ "path": "relative" }]), "not absolute"),
        ("poststart", json!([{ "path": "/bin/true" }, { "path": "/bin/false" }]), "poststart hook #1"),
    ] {
        std::fs::write(&log, "")?;
        bundle.config["hooks"] = json!({ "poststop": outside("poststop") });
        bundle.config["hooks"][kind] = hook;
        let (code, _, said) = bundle.run_container()?;
        ensure!(code == 1 && said.contains(words), "{kind}: {code} {said}");
        ensure!(std::fs::read_to_string(&log)?.starts_with("poststop "), "{kind}: poststop ends what was begun");
        ensure!(bundle.cgroups().is_empty() && !bundle.root().join(&bundle.id).exists(), "{kind} left something");
    }
    // After the end nothing can be undone: a failure is said.
    bundle.config["hooks"] = json!({ "poststop": [{ "path": "/bin/false" }, { "path": "/bin/false" }] });
    bundle.script("exit 0");
    let (code, _, said) = bundle.run_container()?;
    ensure!(code == 0 && said.matches("a hook failed").count() == 2, "{code} {said}");
    Ok(())
}

#[test]
fn descriptors_logs_and_keyrings_are_as_asked() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.script("ls /proc/self/fd; cat <&3");
    let (read, write) = nix::unistd::pipe()?;
    std::fs::File::from(write).write_all(b"through\n")?;
    let command = |arguments: &[&str]| -> anyhow::Result<std::process::Output> {
        // The shell puts the pipe where the runtime looks for it.
        let line = format!("exec \"$@\" 3<&{}", read.as_raw_fd());
        let mut command = bundle.command(arguments);
        let words: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect();
        command = std::process::Command::new("bash");
        command.args(["-c", &line, "bash"]).args(words).current_dir(bundle.path()).stdin(Stdio::null());
        Ok(command.output()?)
    };
    let output = command(&["run", "--preserve-fds", "1", &id])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("through"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    // 0, 1, 2, the handed-down one, and that of `ls` itself.
    assert_eq!(said.split_whitespace().filter(|it| it.parse::<u32>().is_ok()).count(), 5, "{said}");
    let (_, said) = bundle.refused(&["run", "--preserve-fds", "200", &id])?;
    ensure!(said.contains("--preserve-fds 200: descriptor"), "{said}");
    // Without it none is left open but its own.
    bundle.script("ls /proc/self/fd");
    let (_, said, _) = bundle.run_container()?;
    assert_eq!(said.split_whitespace().count(), 4, "{said}");
    // Logs for programs, in either place.
    let log = bundle.path().join("log.json");
    let path = log.display().to_string();
    bundle.args(&["/nosuch"]);
    bundle.refused(&["--log", &path, "--log-format", "json", "create", &id])?;
    bundle.refused(&["create", "--log", &path, "--log-format=json", &id])?;
    let text = std::fs::read_to_string(&log)?;
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        ensure!(line["level"] == "error" && line["time"].is_string(), "{line}");
        ensure!(line["msg"].as_str().is_some_and(|it| it.contains("no such file or directory")), "{line}");
    }
    // A session keyring of its own.
    bundle.script("cat /proc/keys 2>/dev/null; grep -c . /proc/key-users");
    bundle.config["linux"]["maskedPaths"] = json!([]);
    let (_, said, _) = bundle.run_container()?;
    ensure!(!Path::new("/proc/keys").exists() || said.contains(&format!("_ses.{id}")), "{said}");
    Ok(())
}

#[test]
fn a_terminal_is_sent_where_it_is_asked_for() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "height": 31, "width": 77 });
    bundle.script("stty size; test -t 0 && test -t 2 && tty; read line; echo got $line");
    let (code, said) = bundle.refused(&["create", &id])?;
    ensure!(code == 1 && said.contains("--console-socket"), "{said}");
    let socket = bundle.path().join("console");
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    bundle.run(&["create", "--console-socket", &socket.display().to_string(), &id])?;
    let (connection, _) = listener.accept()?;
    let terminal = receive(&connection)?.context("a terminal")?;
    bundle.run(&["start", &id])?;
    let mut terminal = std::fs::File::from(terminal);
    terminal.write_all(b"words\n")?;
    let mut said = String::new();
    wait_for("the answer", || {
        let mut buffer = [0; 256];
        // EIO: the program has ended.
        let count = terminal.read(&mut buffer).unwrap_or(0);
        said.push_str(&String::from_utf8_lossy(&buffer[..count]));
        Ok(said.contains("got words"))
    })?;
    ensure!(said.contains("31 77") && said.contains("/dev/"), "{said}");
    Ok(())
}

#[test]
fn a_terminal_in_the_foreground_is_joined_with_ours() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    let log = bundle.path().join("log");
    let hook = format!("grep SigBlk /proc/self/status > {}", log.display());
    bundle.config["hooks"] =
        json!({ "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/usr/bin:/bin"] }] });
    bundle.config["process"]["terminal"] = json!(true);
    bundle.script("stty size; until stty size | grep '33 99'; do sleep 0.05; done; read line; echo got $line; grep SigBlk /proc/self/status; exit 5");
    let size = nix::pty::Winsize { ws_row: 20, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None)?;
    let mut said = String::new();
    let mut master = std::fs::File::from(pty.master.try_clone()?);
    // One description: a wait ends though nothing comes.
    nix::fcntl::fcntl(master.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let mut hears = |words: &str| {
        wait_for(words, || {
            let mut buffer = [0; 1024];
            let count = master.read(&mut buffer).unwrap_or(0);
            said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            ensure!(said.contains(words), "{said:?}");
            Ok(true)
        })
    };
    let mut command = bundle.command(&["run", &id]);
    let slave = || pty.slave.try_clone();
    let mut child = command.stdin(slave()?).stdout(slave()?).stderr(slave()?).spawn()?;
    hears("20 60")?;
    coracle_runtime::terminal::set_size(std::os::fd::AsFd::as_fd(&pty.master), 33, 99)?;
    // `timeout` keeps its command in a group of its own, which the terminal does not know; so it is told by hand.
    for pid in std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))?.split_whitespace() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse()?), nix::sys::signal::Signal::SIGWINCH)?;
    }
    hears("33 99")?;
    std::fs::File::from(pty.master.try_clone()?).write_all(b"words\n")?;
    hears("got words")?;
    hears("SigBlk:\t0000000000000000")?;
    assert_eq!(child.wait()?.code(), Some(5));
    assert_eq!(
        std::fs::read_to_string(&log)?.trim(),
        "SigBlk:\t0000000000000000",
        "hooks are born without a mask"
    );
    ensure!(bundle.cgroups().is_empty() && !bundle.root().join(&id).exists());
    Ok(())
}

fn receive(socket: &std::os::unix::net::UnixStream) -> anyhow::Result<Option<std::os::fd::OwnedFd>> {
    use std::os::fd::{AsFd, IntoRawFd};
    Ok(coracle_runtime::terminal::receive(socket.as_fd().try_clone_to_owned()?.into_raw_fd())?)
}

#[test]
fn freezing_and_limits_change_while_it_runs() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 40 });
    bundle.args(&["sleep", "1000"]);
    bundle.run(&["run", "-d", &id])?;
    let file = |name: &str| -> anyhow::Result<String> {
        let folders = bundle.cgroups();
        let found = folders.iter().map(|it| it.join(name)).find(|it| it.exists());
        Ok(std::fs::read_to_string(found.with_context(|| format!("{name} in {folders:?}"))?)?.trim().to_owned())
    };
    assert_eq!(file("pids.max")?, "40");
    bundle.run(&["update", "--pids-limit", "50", "--cpu-share", "512", &id])?;
    assert_eq!(file("pids.max")?, "50");
    let limits = bundle.path().join("limits.json");
    std::fs::write(&limits, json!({ "pids": { "limit": 60 } }).to_string())?;
    bundle.run(&["update", "--resources", &limits.display().to_string(), &id])?;
    assert_eq!(file("pids.max")?, "60");
    let (_, said) = bundle.refused(&["update", "--memory", "many", &id])?;
    ensure!(said.contains("--memory many"), "{said}");
    let stats: Value = serde_json::from_str(&bundle.run(&["events", "--stats", &id])?)?;
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["data"]["pids"], json!({ "current": 1, "limit": 60 }));
    bundle.run(&["pause", &id])?;
    assert_eq!(bundle.state()?["status"], "paused");
    let (_, said) = bundle.refused(&["exec", &id, "true"])?;
    ensure!(said.contains("paused"), "{said}");
    let (_, said) = bundle.refused(&["pause", &id])?;
    ensure!(said.contains("paused"), "{said}");
    bundle.run(&["resume", &id])?;
    assert_eq!(bundle.state()?["status"], "running");
    bundle.run(&["exec", &id, "true"])?;
    bundle.run(&["pause", &id])?;
    bundle.run(&["kill", &id, "KILL"])?;
    wait_for("the end of a frozen container", || Ok(bundle.state()?["status"] == "stopped"))?;
    Ok(())
}

#[test]
fn a_create_that_is_killed_at_any_moment_leaves_what_delete_removes() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.args(&["sleep", "1000"]);
    let mut made = 0;
    for round in 0..25_u64 {
        let mut command = bundle.command(&["create", &id]);
        // `timeout` hands a kill on to nobody: the program itself is started.
        let words: Vec<_> = command.get_args().skip(2).map(ToOwned::to_owned).collect();
        command = std::process::Command::new(&words[0]);
        command.args(&words[1..]).current_dir(bundle.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(std::time::Duration::from_micros(round * round * 100));
        child.kill()?;
        child.wait()?;
        // A worker may be at work for a moment still.
        std::thread::sleep(std::time::Duration::from_millis(50));
        made += u32::from(bundle.root().join(&id).exists());
        bundle.run(&["delete", "--force", &id])?;
        ensure!(!bundle.root().join(&id).exists(), "round {round}");
    }
    ensure!(made > 5, "too few were begun to tell: {made}");
    wait_for("the end of everything", || Ok(bundle.cgroups().is_empty()))?;
    Ok(())
}

#[test]
fn a_cgroup_of_others_is_neither_taken_nor_emptied() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let (id, other) = (bundle.id.clone(), format!("{}-other", bundle.id));
    bundle.args(&["sleep", "1000"]);
    bundle.run(&["run", "-d", &id])?;
    let pid = bundle.state()?["pid"].to_string();
    // The same path in its configuration.
    let (code, said) = bundle.refused(&["create", &other])?;
    ensure!(code == 1 && said.contains("run in it"), "{said}");
    assert_eq!(bundle.state()?["status"], "running", "the first one is killed");
    ensure!(Path::new(&format!("/proc/{pid}")).exists() && !bundle.root().join(&other).exists());
    bundle.run(&["exec", &id, "true"])?;
    Ok(())
}

/// Changes one field of a configuration, runs a script in it, and compares what it prints.
fn seen(change: &[(&str, Value)], script: &str) -> anyhow::Result<String> {
    let mut bundle = Bundle::new()?;
    for (pointer, value) in change {
        let (parent, name) = pointer.rsplit_once('/').context("a pointer")?;
        let parent = bundle.config.pointer_mut(parent).with_context(|| format!("{pointer} has no parent"))?;
        match parent {
            Value::Array(all) => all.push(value.clone()),
            parent => parent[name] = value.clone(),
        }
    }
    bundle.says(script)
}

#[test]
fn what_the_process_is_to_be_is_seen_inside() -> anyhow::Result<()> {
    needs!("busybox");
    let all = json!(["CAP_KILL", "CAP_CHOWN"]);
    for (change, script, wanted) in [
        (vec![("/process/env", json!(["PATH=/bin", "A=b c"]))], "echo $A", "b c"),
        (vec![("/process/cwd", json!("/tmp"))], "pwd", "/tmp"),
        (vec![("/root/readonly", json!(false)), ("/process/cwd", json!("/made/here"))], "pwd", "/made/here"),
        (
            vec![("/process/user", json!({ "uid": 5, "gid": 6, "additionalGids": [7, 8] }))],
            "id",
            "uid=5 gid=6 groups=7,8",
        ),
        (vec![("/process/user", json!({ "uid": 0, "gid": 0, "umask": 63 }))], "umask", "0077"),
        (
            vec![("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 }]))],
            "ulimit -c; ulimit -Hc",
            "0\n8",
        ),
        (vec![("/process/oomScoreAdj", json!(77))], "cat /proc/self/oom_score_adj", "77"),
        (vec![("/process/noNewPrivileges", json!(false))], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0"),
        (
            vec![(
                "/process/capabilities",
                json!({ "bounding": all, "permitted": all, "effective": all, "inheritable": all, "ambient": ["CAP_KILL"] }),
            )],
            "grep Cap /proc/self/status | tr '\\n' ' '",
            "CapInh:\t0000000000000021 CapPrm:\t0000000000000021 CapEff:\t0000000000000021 CapBnd:\t0000000000000021 CapAmb:\t0000000000000020",
        ),
        (vec![("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }))], "ionice", "idle"),
        (
            vec![("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 5 }))],
            "cut -d ' ' -f 19,41 /proc/self/stat",
            "5 3",
        ),
        (
            vec![("/hostname", json!("box")), ("/domainname", json!("example"))],
            "hostname; cat /proc/sys/kernel/domainname",
            "box\nexample",
        ),
        (vec![("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))], "cat /proc/sys/net/ipv4/ip_forward", "1"),
        (
            vec![("/linux/personality", json!({ "domain": "LINUX32" }))],
            "uname -m | sed 's/i.86/32/; s/armv.*/32/'",
            "32",
        ),
        (vec![("/linux/maskedPaths", json!(["/proc/version", "/etc"]))], "cat /proc/version; ls /etc", ""),
        (
            vec![("/root/readonly", json!(false)), ("/linux/readonlyPaths", json!(["/etc"]))],
            "touch /etc/x 2>/dev/null || echo no",
            "no",
        ),
        (vec![("/root/readonly", json!(true))], "touch /x 2>/dev/null || echo no", "no"),
        (vec![("/root/readonly", json!(false))], "touch /x && echo yes", "yes"),
        (
            vec![
                ("/linux/namespaces/-", json!({ "type": "time" })),
                ("/linux/timeOffsets", json!({ "boottime": { "secs": 100_000_000 } })),
            ],
            "cut -d . -f 1 /proc/uptime | grep -c '^1[0-9]\\{8\\}$'",
            "1",
        ),
    ] {
        let said = seen(&change, script).with_context(|| format!("{change:?}"))?;
        assert_eq!(said.trim(), wanted, "{change:?}");
    }
    Ok(())
}

#[test]
fn mounts_and_devices_are_seen_inside() -> anyhow::Result<()> {
    needs!("busybox");
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("file"), "shown")?;
    let source = folder.path().display().to_string();
    let bind = |options: &[&str]| json!({ "destination": "/new/place", "type": "bind", "source": source, "options": options });
    let tmpfs = |options: &[&str]| json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": options });
    let cgroup_bound = json!([{ "type": "mount" }, { "type": "pid" }, { "type": "uts" }, { "type": "ipc" }, { "type": "network" }]);
    for (change, script, wanted) in [
        (
            vec![("/root/readonly", json!(false)), ("/mounts/-", bind(&["rbind", "ro"]))],
            "cat /new/place/file; touch /new/place/x 2>/dev/null || echo no",
            "shownno",
        ),
        (
            vec![("/root/readonly", json!(false)), ("/mounts/-", bind(&["bind", "rw"]))],
            "touch /new/place/y && echo yes",
            "yes",
        ),
        (
            vec![("/mounts/-", tmpfs(&["nosuid", "size=64k", "mode=700"]))],
            "ls /etc | wc -l; stat -c %a /etc",
            "0\n700",
        ),
        (
            vec![("/mounts/-", tmpfs(&["nosuid", "size=64k", "tmpcopyup"]))],
            "ls /etc; grep ' /etc ' /proc/mounts | cut -d ' ' -f 1",
            "passwd\ntmpfs",
        ),
        (
            vec![],
            "grep -c . /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | grep -v ':0' | sort -u | wc -l | grep -c '[1-9]'",
            "1",
        ),
        (
            vec![("/linux/namespaces", cgroup_bound)],
            "cat /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null | grep -c '^1$'",
            "1",
        ),
        (
            vec![(
                "/linux/devices",
                json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 420, "uid": 3, "gid": 4 }]),
            )],
            "head -c 3 /dev/mine | od -An -tx1 | tr -d ' '; stat -c '%a %u %g' /dev/mine",
            "000000\n644 3 4",
        ),
        (
            vec![
                ("/linux/devices", json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 }])),
                (
                    "/process/capabilities",
                    json!({ "bounding": ["CAP_MKNOD"], "permitted": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"] }),
                ),
            ],
            "(: < /dev/fuse) 2>/dev/null || echo no; mknod /dev/other c 10 200 2>/dev/null || echo no; mknod /dev/null2 c 1 3 && echo yes",
            "no\nno\nyes",
        ),
    ] {
        let said = seen(&change, script).with_context(|| format!("{change:?}"))?;
        assert_eq!(said.trim(), wanted, "{change:?}");
    }
    Ok(())
}

#[test]
fn a_user_namespace_maps_the_containers_root_to_somebody() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    bundle.config["linux"]["namespaces"].as_array_mut().context("a list")?.push(json!({ "type": "user" }));
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    std::fs::set_permissions(bundle.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let said = bundle.says("id -u; cat /proc/self/uid_map | tr -s ' '")?;
    assert_eq!(said, "0\n 0 100000 1000");
    bundle.args(&["sleep", "1000"]);
    bundle.run(&["run", "-d", &bundle.id])?;
    let pid = bundle.state()?["pid"].to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Uid:\t100000"), "{status}");
    // A command is in it too, with all that the container's root is.
    let exec = |words: &[&str]| -> anyhow::Result<String> {
        let said = bundle.run(&[&["exec"], words].concat())?;
        Ok(said.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(exec(&[&bundle.id, "cat", "/proc/self/uid_map"])?, "0 100000 1000");
    assert_eq!(exec(&[&bundle.id, "id", "-u"])?, "0");
    assert_eq!(exec(&["--user", "7:8", &bundle.id, "id"])?, "uid=7 gid=8");
    let (_, said) = bundle.refused(&["exec", "--user", "5000", &bundle.id, "true"])?;
    ensure!(said.contains("process.user.uid"), "{said}");
    Ok(())
}

#[test]
fn a_mount_shows_files_with_the_owners_that_it_is_told() -> anyhow::Result<()> {
    needs!("busybox");
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("file"), "shown")?;
    std::os::unix::fs::chown(folder.path().join("file"), Some(7), Some(8))?;
    let map = |inside: u32, size: u32| json!([{ "containerID": 0, "hostID": inside, "size": size }]);
    let mount = |option: &str, groups: serde_json::Value| {
        json!({ "destination": "/new", "type": "bind", "source": folder.path(), "options": [option, "ro"],
                "uidMappings": map(1000, 100), "gidMappings": groups })
    };
    for option in ["bind", "rbind"] {
        let change = [("/root/readonly", json!(false)), ("/mounts/-", mount(option, map(2000, 100)))];
        let script = "stat -c %u:%g /new/file; cat /new/file; touch /new/x 2> /dev/null || echo no";
        assert_eq!(seen(&change, script)?.trim(), "1007:2008\nshownno", "{option}");
    }
    let mut bundle = Bundle::new()?;
    bundle.config["mounts"].as_array_mut().context("a list")?.push(mount("bind", json!([])));
    let (_, said) = bundle.refused(&["run", &bundle.id])?;
    ensure!(said.contains("uidMappings and gidMappings are wanted together"), "{said}");
    Ok(())
}

/// Takes descriptors of filters, and answers mkdir and mkdirat with EL3HLT until it is killed; says what it was told.
const ANSWERS: &str = r#"
import array, fcntl, json, os, socket, struct, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen(4)
print("listens", flush=True)
while True:
    connection, _ = listening.accept()
    text, control, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(4))
    numbers = array.array("i")
    numbers.frombytes(control[0][2])
    print(json.dumps(json.loads(text)), flush=True)
    if os.fork() == 0:
        while True:
            call = bytearray(80)
            try:
                fcntl.ioctl(numbers[0], 0xC0502100, call)
                fcntl.ioctl(numbers[0], 0xC0182101, struct.pack("=QqiI", struct.unpack_from("=Q", call)[0], 0, -46, 0))
            except OSError:
                os._exit(0)
    os.close(numbers[0])
"#;

#[test]
fn calls_that_are_left_to_somebody_else_are_answered_by_them() -> anyhow::Result<()> {
    needs!("busybox", "python3");
    let mut bundle = Bundle::new()?;
    let socket = bundle.path().join("answers");
    let mut command = Command::new("python3");
    command.args(["-c", ANSWERS]).arg(&socket).stdout(Stdio::piped()).process_group(0);
    let mut answers = command.spawn()?;
    let mut lines = BufReader::new(answers.stdout.take().context("its output")?).lines();
    let mut line = || -> anyhow::Result<String> { Ok(lines.next().context("it has ended")??) };
    assert_eq!(line()?, "listens");
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "of mine",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" },
                     { "names": ["getpgid"], "action": "SCMP_ACT_TRACE", "errnoRet": 5 }] });
    bundle.config["linux"]["seccomp"] = filter;
    bundle.config["root"]["readonly"] = json!(false);
    let said = bundle.says("mkdir /x 2>&1; grep ^Seccomp: /proc/self/status")?;
    ensure!(said.contains("Level 3 halted") && said.contains("Seccomp:\t2"), "{said}");
    let told: Value = serde_json::from_str(&line()?)?;
    assert_eq!(told["fds"], json!(["seccompFd"]));
    assert_eq!((&told["metadata"], &told["state"]["status"]), (&json!("of mine"), &json!("creating")));
    assert_eq!((&told["state"]["id"], &told["state"]["pid"]), (&json!(bundle.id), &told["pid"]));
    // A command has a descriptor of its own; the container's is not asked.
    bundle.args(&["sleep", "1000"]);
    bundle.run(&["run", "-d", &bundle.id])?;
    let container: Value = serde_json::from_str(&line()?)?;
    let (code, said) = bundle.refused(&["exec", &bundle.id, "mkdir", "/y"])?;
    ensure!(code == 1 && said.contains("Level 3 halted"), "{code} {said}");
    let command: Value = serde_json::from_str(&line()?)?;
    ensure!(command["pid"] != container["pid"] && command["state"]["pid"] == container["pid"], "{command}");
    assert_eq!(command["state"]["status"], "running");
    // Nobody listens: it does not run.
    nix::sys::signal::killpg(Pid::from_raw(answers.id() as i32), Signal::SIGKILL)?;
    answers.wait()?;
    ensure!(bundle.refused(&["exec", &bundle.id, "true"])?.1.contains("linux.seccomp.listenerPath"));
    ensure!(bundle.run(&["ps", &bundle.id])?.lines().count() == 2, "only the container's own is there");
    bundle.run(&["delete", "--force", &bundle.id])?;
    let (_, said) = bundle.refused(&["run", &bundle.id])?;
    ensure!(said.contains("linux.seccomp.listenerPath"), "{said}");
    Ok(())
}

#[test]
fn what_cannot_be_kept_is_refused_whole_before_anything_is_made() -> anyhow::Result<()> {
    needs!("busybox");
    for (pointer, value, words) in [
        ("/linux/intelRdt", json!({ "closID": "a" }), "linux.intelRdt.closID"),
        ("/linux/resources/rdma", json!({ "mlx5": { "hcaHandles": 1 } }), "rdma controller"),
        ("/linux/resources/unified", json!({ "no_such.thing": "1" }), "linux.resources.unified"),
        ("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "linux.seccomp"),
        ("/linux/cgroupsPath", json!("/../up"), "linux.cgroupsPath"),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }]), "process.rlimits"),
        ("/process/capabilities", json!({ "bounding": ["CAP_NONE"] }), "CAP_NONE"),
        ("/linux/sysctl", json!({ "kernel.panic": "1" }), "linux.sysctl"),
        ("/linux/rootfsPropagation", json!("everywhere"), "linux.rootfsPropagation"),
        ("/root/path", json!("nowhere"), "root.path"),
        ("/windows", json!({ "layerFolders": ["a"] }), "windows"),
    ] {
        let mut bundle = Bundle::new()?;
        let (parent, name) = pointer.rsplit_once('/').context("a pointer")?;
        bundle.config.pointer_mut(parent).context("a parent")?[name] = value;
        let (code, _, said) = bundle.run_container()?;
        ensure!(code == 1 && said.contains(words), "{pointer}: {code} {said}");
        ensure!(
            bundle.cgroups().is_empty() && !bundle.root().join(&bundle.id).exists(),
            "{pointer} left something"
        );
    }
    // Not JSON, too deep, too large.
    let mut bundle = Bundle::new()?;
    bundle.config = Value::Null;
    for text in ["{".to_owned(), "[".repeat(100_000), format!("{{\"a\": \"{}\"}}", "x".repeat(5 << 20))] {
        std::fs::write(bundle.path().join("config.json"), text)?;
        let (code, said) = bundle.refused(&["create", &bundle.id])?;
        ensure!(code == 1 && said.contains("config.json: ") && said.len() < 600, "{said}");
    }
    Ok(())
}

#[test]
fn podman_drives_it() -> anyhow::Result<()> {
    needs!("busybox", "podman", "conmon");
    let bundle = Bundle::new()?;
    // In this mount namespace there is one hierarchy, or several: podman does not like both.
    let _ = nix::mount::umount("/sys/fs/cgroup/unified");
    let link = bundle.path().join("coracle-oci");
    std::os::unix::fs::symlink(coracle_tests::board::coracle(), &link)?;
    let archive = bundle.path().join("box.tar");
    coracle_tests::board::run(
        std::process::Command::new("tar")
            .args(["-C"])
            .arg(bundle.path().join("rootfs"))
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    )?;
    // A path of a socket has at most 107 bytes.
    let folder = tempfile::Builder::new().prefix("pod").tempdir()?;
    let podman = |arguments: &[&str]| -> anyhow::Result<(i32, String)> {
        let mut command = std::process::Command::new("timeout");
        command.args(["--kill-after=5", "60", "podman"]);
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(folder.path().join(name));
        }
        command.arg("--runtime").arg(&link);
        command.args(["--cgroup-manager=cgroupfs", "--storage-driver=vfs", "--events-backend=none"]);
        let output = command.args(arguments).stdin(Stdio::null()).output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code().unwrap_or(-1), said.trim().to_owned()))
    };
    let good = |arguments: &[&str]| -> anyhow::Result<String> {
        let (code, said) = podman(arguments)?;
        ensure!(code == 0, "{arguments:?}: {code} {said}");
        Ok(said)
    };
    const LIMITS: [&str; 4] =
        ["--ulimit=nofile=512:512", "--ulimit=nproc=512:512", "--net=none", "--stop-timeout=1"];
    let run = |arguments: &[&str]| podman(&[&["run"][..], &LIMITS, arguments].concat());
    good(&["import", &archive.display().to_string(), "box"])?;
    let (code, said) = run(&["--rm", "box", "sh", "-c", "grep Seccomp: /proc/self/status; id -u; exit 3"])?;
    ensure!(code == 3 && said == "Seccomp:\t2\n0", "{code} {said}");
    let (code, said) = run(&[
        "-d",
        "--name=one",
        "--memory=64m",
        "box",
        "sh",
        "-c",
        "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done",
    ])?;
    ensure!(code == 0, "{said}");
    let (code, said) = podman(&["exec", "one", "sh", "-c", "echo inside; exit 4"])?;
    ensure!(code == 4 && said == "inside", "{code} {said}");
    ensure!(good(&["exec", "-t", "one", "sh", "-c", "test -t 0 && echo tty"])?.contains("tty"));
    good(&["pause", "one"])?;
    ensure!(good(&["ps", "--all", "--format={{.Status}}"])?.starts_with("Paused"));
    good(&["unpause", "one"])?;
    ensure!(good(&["ps", "--format={{.Status}}"])?.starts_with("Up"));
    good(&["update", "--memory=32m", "one"])?;
    ensure!(good(&["top", "one"])?.contains("while"));
    ensure!(good(&["logs", "one"])?.contains("up"));
    good(&["stop", "one"])?;
    ensure!(good(&["ps", "--all", "--format={{.Status}}"])?.starts_with("Exited (5)"));
    good(&["start", "one"])?;
    good(&["rm", "--force", "--time=0", "one"])?;
    let (code, said) = run(&["--rm", "box", "/nosuch"])?;
    ensure!(code == 127, "{code} {said}");
    let (code, said) = run(&["--rm", "box", "/etc/passwd"])?;
    ensure!(code == 126, "{code} {said}");
    let (code, said) = run(&["--rm", "-t", "box", "tty"])?;
    ensure!(code == 0 && said.contains("/dev/"), "{code} {said}");
    let (code, said) = run(&["--rm", "--tmpfs=/etc", "box", "cat", "/etc/passwd"])?;
    ensure!(code == 0 && said.contains("root"), "{code} {said}");
    let (code, said) =
        run(&["--rm", "--read-only", "--user=7:8", "--cap-drop=all", "box", "sh", "-c", "id; touch /x"])?;
    ensure!(code == 1 && said.contains("uid=7(7) gid=8(8)") && said.contains("Read-only"), "{code} {said}");
    Ok(())
}

/// What a container looks like from within, line by line.
const LOOK_AROUND: &str = r#"
while read id parent dev root point options rest; do echo "$point $options ${rest#*- }" | sed 's/,size=[0-9]*k\?//; s/,inode64//; s/ r[ow]\(,[^ ]*\)\?$/ \1/'; done < /proc/self/mountinfo | sed 's#^\(/proc/[^ ]*\|/sys/firmware\) ro.* tmpfs tmpfs.*#\1 masked#; s#^\(/proc/[^ ]*\) ro[^ ]* proc.*#\1 read-only#' | sort
grep -E 'Cap|NoNew|Seccomp|Groups|Umask|Uid|Gid' /proc/self/status
ls -l /dev | sed 's/ [A-Z][a-z][a-z] .*[0-9] / /' | grep -v total; ls /dev/pts
cat /proc/self/limits; env | sort; pwd; ls /proc/self/fd | wc -l; hostname; umask
cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/domainname; sed 's/coracle-oci-.*//' /proc/self/cgroup
for path in /proc/kcore /proc/keys /sys/firmware /proc/timer_list /proc/scsi; do ls -l $path 2>&1 | head -n 1 | sed 's/ [A-Z][a-z][a-z] .*[0-9] / /'; done
touch /proc/sys/x /sys/x /x 2>&1; readlink /proc/1/exe; cut -d ' ' -f 6 /proc/1/stat; cat /proc/1/comm
for ns in ipc uts net pid mnt cgroup; do readlink /proc/self/ns/$ns | tr -d '0-9'; done
"#;

#[test]
fn our_launcher_and_libcontainer_make_the_same_container() -> anyhow::Result<()> {
    needs!("busybox");
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["chroot"], "action": "SCMP_ACT_ERRNO" }] });
    let volume = tempfile::tempdir()?;
    let bind = json!({ "destination": "/tmp/v", "type": "bind", "source": volume.path(), "options": ["rbind", "rprivate", "nosuid", "nodev", "noexec", "ro"] });
    let tmpfs = json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=750", "size=64k"] });
    let shapes: Vec<Vec<(&str, Value)>> = vec![
        vec![],
        vec![("/process/noNewPrivileges", json!(false)), ("/linux/seccomp", seccomp.clone())],
        vec![
            ("/process/user", json!({ "uid": 5, "gid": 6, "additionalGids": [7], "umask": 23 })),
            ("/linux/seccomp", seccomp),
        ],
        vec![
            ("/root/readonly", json!(false)),
            ("/mounts/-", bind),
            ("/mounts/-", tmpfs),
            ("/process/cwd", json!("/tmp")),
        ],
        vec![
            ("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" })),
            ("/domainname", json!("d")),
            ("/process/oomScoreAdj", json!(5)),
        ],
        vec![("/process/capabilities", Value::Null)],
        vec![("/linux/namespaces", json!([{ "type": "mount" }, { "type": "pid" }, { "type": "uts" }]))],
    ];
    for (number, shape) in shapes.iter().enumerate() {
        let ours = seen(shape, LOOK_AROUND)?;
        let mut other = shape.clone();
        // Changes nothing, and our launcher does not know it.
        other.push(("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 4 })));
        let theirs = seen(&other, LOOK_AROUND)?;
        for (line, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
            assert_eq!(ours, theirs, "shape {number}, line {line}");
        }
        assert_eq!(ours.lines().count(), theirs.lines().count(), "shape {number}");
    }
    Ok(())
}

#[test]
fn a_namespace_of_another_kind_is_not_joined() -> anyhow::Result<()> {
    needs!("busybox");
    for (kind, path) in [
        ("network", "/proc/self/ns/mnt"),
        ("ipc", "/proc/self/ns/mnt"),
        ("uts", "/proc/self/ns/net"),
        ("pid", "/proc/self/ns/mnt"),
        ("cgroup", "/proc/self/ns/mnt"),
        ("mount", "/proc/self/ns/net"),
    ] {
        let mut bundle = Bundle::new()?;
        let before = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
        namespaces.retain(|it| it["type"] != kind);
        namespaces.push(json!({ "type": kind, "path": path }));
        let (code, _, said) = bundle.run_container()?;
        ensure!(code == 1 && !said.is_empty(), "{kind} as {path}: {code} {said}");
        let after = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        assert_eq!(before, after, "{kind} as {path} changed the machine's mounts");
    }
    Ok(())
}

#[test]
fn a_command_of_the_rarer_shape_goes_through_libcontainer() -> anyhow::Result<()> {
    needs!("busybox");
    let mut bundle = Bundle::new()?;
    let id = bundle.id.clone();
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    bundle.args(&["sleep", "1000"]);
    bundle.run(&["run", "-d", &id])?;
    let output = bundle.output(&["exec", &id, "sh", "-c", "ionice; grep Seccomp: /proc/self/status; exit 4"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(4) && said.starts_with("idle\nSeccomp:\t2"), "{output:?}");
    let (code, said) = bundle.refused(&["exec", &id, "nosuch"])?;
    ensure!(code == 255 && said.contains("executable file not found"), "{said}");
    // One of the usual shape has no state of libcontainer's for it.
    let mut usual = Bundle::new()?;
    usual.args(&["sleep", "1000"]);
    usual.run(&["run", "-d", &usual.id])?;
    let file = usual.path().join("process.json");
    std::fs::write(
        &file,
        json!({ "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 },
        "ioPriority": { "class": "IOPRIO_CLASS_IDLE", "priority": 0 } })
        .to_string(),
    )?;
    let (code, said) = usual.refused(&["exec", "--process", &file.display().to_string(), &usual.id])?;
    ensure!(code == 255 && said.contains("an I/O priority"), "{said}");
    Ok(())
}
