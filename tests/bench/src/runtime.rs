//! Making containers, beside crun and runc and beside the least that the kernel's work costs.

use crate::figure::Figure;
use anyhow::{Context, ensure};
use coracle_runtime::container::cgroup::device_program;
use coracle_runtime::container::cgroup::devices;
use coracle_runtime::oci::bundle::Bundle as Loaded;
use coracle_runtime::oci::{self, Change, Create, Exec};
use coracle_runtime::seccomp::{self, Arch};
use coracle_tests::bundle::Bundle;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Rounds of each subject, after one that fills caches.
const ROUNDS: usize = 60;

/// Name of the folder of all states.
const STATES: &str = "states";

/// Where the peers are put by `cargo xtask bench`.
const PEERS: &str = "target/peers";

/// A bundle as `crun spec` writes it, with the default system call filter, in a view of cgroup v2 alone.
struct Ground {
    bundle: Bundle,
    crun: PathBuf,
}

impl Ground {
    fn new(program: &[&str]) -> anyhow::Result<Self> {
        let crun = std::path::absolute(Path::new(PEERS).join("crun"))?;
        ensure!(crun.exists(), "no {}: call this through `cargo xtask bench`", crun.display());
        let mut bundle = Bundle::new()?;
        umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).context("hiding this machine's cgroups")?;
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .context("mounting cgroup2")?;
        bundle.args(program);
        bundle.config["linux"]["seccomp"] = profile()?;
        // Each subject has a name of its own, and its cgroup by it.
        bundle.config["linux"].as_object_mut().context("linux")?.remove("cgroupsPath");
        bundle.config["root"]["path"] = json!(bundle.path().join("rootfs"));
        std::fs::write(bundle.path().join("config.json"), bundle.config.to_string())?;
        // States are in memory, as in /run of every machine.
        let states = bundle.path().join(STATES);
        std::fs::create_dir(&states)?;
        mount(Some("tmpfs"), &states, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mounting tmpfs")?;
        Ok(Self { bundle, crun })
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.bundle.path().join(name)
    }

    /// Milliseconds of a command that must succeed.
    fn time(&self, program: &Path, words: &[&str]) -> anyhow::Result<f64> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        if name.starts_with("coracle") {
            command.arg("oci");
        }
        command.arg("--root").arg(self.folder(STATES).join(name.clone())).args(words);
        command.current_dir(self.bundle.path()).stdin(Stdio::null()).stdout(Stdio::null());
        // No pipe: a container that stays would hold it.
        let begin = Instant::now();
        let status = command.status()?;
        let passed = milliseconds(begin);
        ensure!(status.success(), "{name} {words:?} failed");
        Ok(passed)
    }
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

/// Podman's default profile, in the form of the OCI specification, for the capabilities of `crun spec`.
fn profile() -> anyhow::Result<serde_json::Value> {
    let path = "/usr/share/containers/seccomp.json";
    let text = std::fs::read(path).with_context(|| format!("{path} (package golang-github-containers-common)"))?;
    let mut profile: serde_json::Value = serde_json::from_slice(&text)?;
    let has = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let entries = profile["syscalls"].as_array_mut().context("syscalls")?;
    entries.retain(|entry| {
        let (includes, excludes) = (&entry["includes"], &entry["excludes"]);
        let granted = |caps: &serde_json::Value| names(caps).iter().all(|it| has.contains(&it.as_str()));
        let arches = names(&includes["arches"]);
        granted(&includes["caps"])
            && (arches.is_empty() || arches.iter().any(|it| it == here))
            && !names(&excludes["caps"]).iter().any(|it| has.contains(&it.as_str()))
            && !names(&excludes["arches"]).iter().any(|it| it == here)
    });
    for entry in entries {
        let entry = entry.as_object_mut().context("an entry")?;
        for name in ["includes", "excludes", "comment", "errno"] {
            entry.remove(name);
        }
        if entry.get("args").is_none_or(|args| args.as_array().is_none_or(Vec::is_empty)) {
            entry.remove("args");
        }
    }
    let document = profile.as_object_mut().context("a profile")?;
    for name in ["archMap", "defaultErrno"] {
        document.remove(name);
    }
    let arches =
        if here == "amd64" { json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]) } else { json!(["SCMP_ARCH_AARCH64"]) };
    document.insert("architectures".to_owned(), arches);
    Ok(profile)
}

/// The C program, with the same device program and filter.
struct Floor {
    child: Child,
    order: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    fn start(ground: &Ground) -> anyhow::Result<Self> {
        let program = ground.folder("floor");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("floor.c");
        let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).status();
        ensure!(built.is_ok_and(|status| status.success()), "floor.c does not build (packages gcc, libc6-dev)");
        let rules: Vec<_> = devices::every_container().collect();
        let words = device_program::allow(&rules).into_iter().map(device_program::Instruction::encode);
        let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        std::fs::write(ground.folder("devices"), bytes)?;
        let capabilities = ["AUDIT_WRITE", "KILL", "NET_BIND_SERVICE"];
        let reader = seccomp::Reader {
            capabilities: &capabilities,
            kernel: (6, 0),
            arches: Arch::of_this_machine(),
            notify: false,
        };
        let (profile, arches) =
            reader.read_value(&ground.bundle.config["linux"]["seccomp"]).map_err(anyhow::Error::msg)?;
        let filter = seccomp::compile(&profile, &arches)?;
        let bytes = filter.iter().flat_map(|it| {
            let mut bytes = it.code.to_ne_bytes().to_vec();
            bytes.extend([it.jump_true, it.jump_false]);
            bytes.extend(it.operand.to_ne_bytes());
            bytes
        });
        std::fs::write(ground.folder("filter"), bytes.collect::<Vec<u8>>())?;
        let mut child = Command::new(&program)
            .arg(ground.folder("rootfs"))
            .args([ground.folder("devices"), ground.folder("filter")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let order = child.stdin.take().context("its input")?;
        let answers = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, order, answers })
    }

    fn round(&mut self) -> anyhow::Result<f64> {
        self.order.write_all(b"\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the floor says {line:?}"))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Times of subjects that take turns, one list for each; the first turn fills caches.
fn rounds<const N: usize>(mut turn: impl FnMut() -> anyhow::Result<[f64; N]>) -> anyhow::Result<[Vec<f64>; N]> {
    turn()?;
    let mut all = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        all.iter_mut().zip(turn()?).for_each(|(all, time)| all.push(time));
    }
    Ok(all)
}

/// Create, start, exit and delete in this process.
pub fn create() -> anyhow::Result<Vec<Figure>> {
    let ground = Ground::new(&["true"])?;
    let mut floor = Floor::start(&ground)?;
    let root = ground.folder(STATES).join("own");
    let ours = || -> anyhow::Result<f64> {
        let begin = Instant::now();
        let bundle = Loaded::load(ground.bundle.path())?;
        let state = oci::create(&order(&root, "one", &bundle))?;
        oci::start(&root, "one")?;
        let code = oci::reap(state.pid, true).unwrap_or(255);
        oci::delete(&root, "one", false)?;
        let passed = milliseconds(begin);
        ensure!(code == 0, "the program ended with {code}");
        Ok(passed)
    };
    let all = rounds(|| {
        Ok([
            ours()?,
            ground.time(&ground.crun, &["run", "peer"])?,
            ground.time(Path::new("runc"), &["run", "peer"])?,
            floor.round()?,
        ])
    })?;
    let peak = peak(&ours)?;
    let [mine, crun, runc, least] = &all;
    Ok(vec![
        Figure::ratio("vs_crun", mine, crun),
        Figure::ratio("vs_runc", mine, runc),
        Figure::ratio("vs_floor", mine, least),
        Figure::of("coracle_ms", "ms", mine),
        Figure::of("crun_ms", "ms", crun),
        Figure::of("runc_ms", "ms", runc),
        Figure::of("floor_ms", "ms", least),
        Figure::of("peak_over_idle_mib", "MiB", &[peak]),
    ])
}

fn order<'a>(root: &'a Path, id: &'a str, bundle: &'a Loaded) -> Create<'a> {
    Create {
        root,
        id,
        bundle,
        console_socket: None,
        pid_file: None,
        preserve_fds: 0,
        no_pivot: false,
        no_new_keyring: false,
        systemd_cgroup: false,
        helper: Path::new("/proc/self/exe"),
    }
}

/// A command in a running container, from here.
pub fn exec() -> anyhow::Result<Vec<Figure>> {
    let ground = Ground::new(&["sleep", "1000"])?;
    let root = ground.folder(STATES).join("own");
    let bundle = Loaded::load(ground.bundle.path())?;
    oci::create(&order(&root, "one", &bundle))?;
    oci::start(&root, "one")?;
    ground.time(&ground.crun, &["run", "--detach", "crun"])?;
    ground.time(Path::new("runc"), &["run", "--detach", "runc"])?;
    let ours = || -> anyhow::Result<f64> {
        let begin = Instant::now();
        let change = Change { args: vec!["true".to_owned()], ..Change::default() };
        let pid = oci::exec(&Exec {
            root: &root,
            id: "one",
            change,
            console_socket: None,
            pid_file: None,
            preserve_fds: 0,
            ignore_paused: false,
            cgroup: None,
        })?;
        let code = oci::reap(pid, true).unwrap_or(255);
        let passed = milliseconds(begin);
        ensure!(code == 0, "the command ended with {code}");
        Ok(passed)
    };
    let all = rounds(|| {
        Ok([
            ours()?,
            ground.time(&ground.crun, &["exec", "crun", "true"])?,
            ground.time(Path::new("runc"), &["exec", "runc", "true"])?,
        ])
    })?;
    let peak = peak(&ours)?;
    oci::delete(&root, "one", true)?;
    ground.time(&ground.crun, &["delete", "--force", "crun"])?;
    ground.time(Path::new("runc"), &["delete", "--force", "runc"])?;
    let [mine, crun, runc] = &all;
    Ok(vec![
        Figure::ratio("vs_crun", mine, crun),
        Figure::ratio("vs_runc", mine, runc),
        Figure::of("coracle_ms", "ms", mine),
        Figure::of("crun_ms", "ms", crun),
        Figure::of("runc_ms", "ms", runc),
        Figure::of("peak_over_idle_mib", "MiB", &[peak]),
    ])
}

/// `coracle oci run` as a process.
pub fn oci_run() -> anyhow::Result<Vec<Figure>> {
    let ground = Ground::new(&["true"])?;
    let program = coracle_tests::board::coracle();
    let all = rounds(|| {
        Ok([
            ground.time(&program, &["run", "one"])?,
            ground.time(&ground.crun, &["run", "peer"])?,
            ground.time(Path::new("runc"), &["run", "peer"])?,
        ])
    })?;
    let [mine, crun, runc] = &all;
    Ok(vec![
        Figure::ratio("vs_crun", mine, crun),
        Figure::ratio("vs_runc", mine, runc),
        Figure::of("coracle_ms", "ms", mine),
        Figure::of("crun_ms", "ms", crun),
        Figure::of("runc_ms", "ms", runc),
    ])
}

/// MiB above the beginning in rounds of their own: who looks needs a processor.
fn peak(ours: &dyn Fn() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let sampler = Sampler::start()?;
    for _ in 0..ROUNDS {
        ours()?;
    }
    sampler.end()
}

/// A process that looks at this one's private memory, and at its children's of the same program, again and again.
struct Sampler {
    child: Child,
}

impl Sampler {
    /// As a shell script: a thread would keep this process from forking.
    fn start() -> anyhow::Result<Self> {
        let script = r#"
            me=$1; exe=$(readlink /proc/$me/exe)
            sum() {
                total=0
                for pid in $me $(cat /proc/$me/task/$me/children); do
                    [ "$pid" = $$ ] && continue
                    [ "$(readlink /proc/$pid/exe)" = "$exe" ] || continue
                    while read name kib unit; do [ "$name" = Pss_Anon: ] && total=$((total + kib)); done < /proc/$pid/smaps_rollup
                done
            } 2> /dev/null
            sum; idle=$total; peak=$total
            trap 'echo $((peak - idle)); exit' TERM
            while [ -d /proc/$me ]; do sum; [ $total -gt $peak ] && peak=$total; done
        "#;
        let child = Command::new("bash")
            .args(["-c", script, "sampler", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child })
    }

    /// MiB of the peak above the beginning.
    fn end(self) -> anyhow::Result<f64> {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        let output = self.child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let kib: f64 = text.trim().parse().with_context(|| format!("the sampler says {text:?}"))?;
        Ok(kib / 1024.0)
    }
}
