//! What a container may try against its machine: denied, and each shown to work where the defence is taken away.

use anyhow::{Context, ensure};
use coracle_tests::bundle::Bundle;
use coracle_tests::skip_without;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Names the attacker's program, on boards that have no compiler.
const ATTACKER: &str = "CORACLE_ATTACKER";

/// Why nothing can be tried here.
fn lacks() -> Option<String> {
    let compiled = std::env::var_os(ATTACKER).is_some();
    coracle_tests::board::missing(if compiled { &["busybox"] } else { &["busybox", "cc"] })
}

/// A bundle with the attacker in it, and the default system call filter.
fn bundle() -> anyhow::Result<Bundle> {
    let mut bundle = Bundle::new()?;
    let program = bundle.path().join("rootfs/bin/attack");
    match std::env::var_os(ATTACKER) {
        Some(built) => drop(std::fs::copy(built, &program)?),
        None => {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("attack.c");
            let built = Command::new("cc").args(["-O1", "-static", "-o"]).arg(&program).arg(&source).status();
            ensure!(built.is_ok_and(|status| status.success()), "attack.c does not build");
        }
    }
    bundle.config["linux"]["seccomp"] = filter();
    bundle.config["root"]["readonly"] = json!(false);
    // What the agent gives to a service that asks for nothing.
    grant(&mut bundle, coracle_runtime::container::DEFAULT_CAPABILITIES);
    Ok(bundle)
}

/// The agent's default, of the calls that are tried here.
fn filter() -> Value {
    let denied = [
        "add_key", "bpf", "keyctl", "mount", "open_by_handle_at", "request_key", "umount2", "unshare",
        "userfaultfd",
    ];
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    })
}

fn grant(bundle: &mut Bundle, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": names, "permitted": names, "effective": names });
}

/// Everything that keeps a container in is taken away.
fn undefended(bundle: &mut Bundle) {
    bundle.config["linux"].as_object_mut().expect("linux").remove("seccomp");
    bundle.config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    grant(bundle, coracle_runtime::container::CAPABILITIES);
    for mount in bundle.config["mounts"].as_array_mut().expect("mounts") {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|it| it != "ro");
        }
    }
}

fn attack(bundle: &mut Bundle, words: &[&str]) -> anyhow::Result<String> {
    bundle.args(&[&["attack"], words].concat());
    let (_, out, err) = bundle.run_container()?;
    ensure!(!out.is_empty(), "{words:?}: {err}");
    Ok(out)
}

#[test]
fn what_the_kernel_offers_is_denied() -> anyhow::Result<()> {
    skip_without!(lacks());
    let node = |bundle: &Bundle| -> anyhow::Result<()> {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let path = bundle.path().join("rootfs/outside");
        Ok(mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 229))?)
    };
    let cgroup = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => "/sys/fs/cgroup/cgroup.procs",
        false => "/sys/fs/cgroup/pids/cgroup.procs",
    };
    for words in [
        &["open", "/outside"][..],
        &["mknod"],
        &["mount"],
        &["remount"],
        &["unshare"],
        &["keyring"],
        &["bpf"],
        &["userfaultfd"],
        &["handle"],
        &["write", "/proc/sys/kernel/core_pattern"],
        &["write", "/proc/sysrq-trigger"],
        &["open", "/proc/kcore"],
        &["write", "/sys/kernel/uevent_helper"],
        &["write", cgroup],
    ] {
        let kernels =
            |path: &&str| (path.starts_with("/sys/k") || path.starts_with("/proc")) && !Path::new(path).exists();
        if words[1..].iter().any(kernels) {
            println!("{words:?}: skipped: this kernel has no such file");
            continue;
        }
        let mut closed = bundle()?;
        node(&closed)?;
        let said = attack(&mut closed, words)?;
        // An empty file in place of the machine's memory is open to all.
        let harmless = words[1..] == ["/proc/kcore"] && said == "yes";
        if harmless {
            closed.script("wc -c < /proc/kcore");
            assert_eq!(closed.run_container()?.1, "0", "/proc/kcore shows the machine's memory");
        } else {
            ensure!(said != "yes", "{words:?} succeeds");
        }
        let mut open = bundle()?;
        node(&open)?;
        undefended(&mut open);
        let said = attack(&mut open, words)?;
        assert_eq!(said, "yes", "{words:?} is no attack: it fails without a defence");
    }
    Ok(())
}

/// A process of the machine.
struct Victim(Child);

impl Victim {
    fn start() -> anyhow::Result<Self> {
        Ok(Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_of_the_machine_are_out_of_reach() -> anyhow::Result<()> {
    skip_without!(lacks());
    let victim = Victim::start()?;
    let pid = victim.0.id().to_string();
    for what in ["ptrace", "memory"] {
        let shared = |bundle: &mut Bundle| -> anyhow::Result<()> {
            // With the machine's processes in sight.
            let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
            namespaces.retain(|it| it["type"] != "pid");
            Ok(())
        };
        let mut closed = bundle()?;
        shared(&mut closed)?;
        ensure!(attack(&mut closed, &[what, &pid])? != "yes", "{what} succeeds");
        let mut open = bundle()?;
        shared(&mut open)?;
        undefended(&mut open);
        assert_eq!(attack(&mut open, &[what, &pid])?, "yes", "{what} is no attack");
    }
    Ok(())
}

// CVE-2019-5736
#[test]
fn the_runtimes_own_program_cannot_be_overwritten() -> anyhow::Result<()> {
    skip_without!(lacks());
    let mut bundle = bundle()?;
    let id = bundle.id.clone();
    let log = std::fs::File::create(bundle.path().join("said"))?;
    bundle.args(&["attack", "overwrite"]);
    // Even with all that an attacker could wish for.
    undefended(&mut bundle);
    bundle.command(&["run", "--detach", &id]).stdout(log).status()?;
    for _ in 0..50 {
        // The interpreter of this script is whatever runs it.
        std::fs::write(bundle.path().join("rootfs/bin/trap"), "#!/proc/self/exe\n")?;
        std::fs::set_permissions(
            bundle.path().join("rootfs/bin/trap"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let _ = bundle.output(&["exec", &id, "true"])?;
        let _ = bundle.output(&["exec", &id, "/bin/trap"])?;
        if bundle.state()?["status"] == "stopped" {
            break;
        }
    }
    let said = std::fs::read_to_string(bundle.path().join("said"))?;
    ensure!(said.starts_with("held\n"), "the attacker did not get hold of the program: no attack ({said:?})");
    ensure!(said.contains("Read-only file system"), "{said}");
    // A program that nobody protects.
    let attacker = bundle.path().join("rootfs/bin/attack");
    // By this name it knows what to do.
    let victim = bundle.path().join("busybox");
    std::fs::copy("/bin/busybox", &victim)?;
    // Until it is that program, it is the shell's.
    let (victim, attacker) = (victim.display(), attacker.display());
    let script = format!(
        "{victim} sleep 1 & until [ \"$(readlink /proc/$!/exe)\" = {victim} ]; do :; done; exec {attacker} overwrite"
    );
    let output = Command::new("timeout")
        .args(["30", "unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", &script])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.ends_with("yes\n"), "no attack: {said} {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

// CVE-2024-21626
#[test]
fn no_descriptor_and_no_working_folder_leads_out() -> anyhow::Result<()> {
    skip_without!(lacks());
    let mut closed = bundle()?;
    ensure!(attack(&mut closed, &["escape"])? != "yes", "a descriptor of the machine's is left open");
    // One that is handed down on purpose leads out: the attack is one.
    let outside = closed.path().join("machine");
    std::fs::create_dir_all(outside.join("etc"))?;
    std::fs::write(outside.join("etc/hostname-of-the-machine"), "")?;
    closed.args(&["attack", "escape"]);
    let mut command = closed.command(&["run", "--preserve-fds", "1", &closed.id]);
    let line = format!("exec \"$@\" 3< {}", outside.display());
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect();
    command = Command::new("sh");
    command.args(["-c", &line, "sh"]).args(words).current_dir(closed.path()).stdin(Stdio::null());
    let output = command.output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "yes\n", "{}", String::from_utf8_lossy(&output.stderr));
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/7/../..", "/x/../proc/1/root"] {
        let mut bundle = bundle()?;
        bundle.config["process"]["cwd"] = json!(cwd);
        bundle.args(&["pwd"]);
        let (code, _, said) = bundle.run_container()?;
        ensure!(code == 1 && said.contains("/proc"), "{cwd}: {code} {said}");
    }
    Ok(())
}

// CVE-2025-31133, CVE-2025-52565, CVE-2025-52881
#[test]
fn places_that_change_while_they_are_mounted_on_lead_nowhere_else() -> anyhow::Result<()> {
    skip_without!(lacks());
    let mut closed = bundle()?;
    let (volume, outside) = (closed.path().join("volume"), closed.path().join("outside"));
    for folder in [&volume.join("place"), &outside] {
        std::fs::create_dir_all(folder)?;
    }
    // From the container's root this leads inside, from the machine's outside.
    std::os::unix::fs::symlink(&outside, volume.join("link"))?;
    let attacker = Command::new(closed.path().join("rootfs/bin/attack"))
        .arg("exchange")
        .args([volume.join("place"), volume.join("link")])
        .spawn()?;
    let attacker = Victim(attacker);
    let mounts = closed.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["bind"] }));
    mounts.push(json!({ "destination": "/volume/place/deep", "type": "tmpfs", "source": "tmpfs", "options": [] }));
    closed.args(&["true"]);
    let mut made = 0;
    for _ in 0..120 {
        made += u32::from(closed.run_container()?.0 == 0);
        ensure!(std::fs::read_dir(&outside)?.next().is_none(), "something was made outside");
    }
    ensure!(made > 0, "it was never mounted: nothing was shown");
    // Who makes it by its path is led outside soon.
    let mut hits = 0;
    for _ in 0..20_000 {
        let _ = std::fs::create_dir(volume.join("place/naive"));
        hits += u32::from(std::fs::remove_dir(outside.join("naive")).is_ok());
    }
    ensure!(hits > 0, "no attack: nobody was led astray");
    drop(attacker);
    Ok(())
}

#[test]
fn images_whose_system_places_are_links_change_nothing_outside() -> anyhow::Result<()> {
    skip_without!(lacks());
    for (link, target) in [
        ("proc", "/outside"),
        ("dev", "/outside"),
        ("sys", "/outside"),
        ("etc", "/outside"),
        ("dev/null", "/outside/null"),
        ("dev/ptmx", "/outside/ptmx"),
        ("dev/console", "/outside/console"),
        ("dev/fd", "/outside"),
        ("tmp", "../../../../../../outside"),
    ] {
        let mut bundle = bundle()?;
        let rootfs = bundle.path().join("rootfs");
        let outside = bundle.path().join("outside");
        std::fs::create_dir(&outside)?;
        let target = target.replace("/outside", &outside.display().to_string());
        let place = rootfs.join(link);
        let _ = std::fs::remove_dir_all(&place);
        std::os::unix::fs::symlink(&target, &place).with_context(|| link.to_owned())?;
        if link.starts_with("dev/") {
            // The image's own /dev, without a tmpfs over it.
            bundle.config["mounts"]
                .as_array_mut()
                .context("mounts")?
                .retain(|it| !it["destination"].as_str().is_some_and(|it| it.starts_with("/dev")));
        }
        let mounts = bundle.config["mounts"].as_array_mut().context("mounts")?;
        mounts.push(json!({ "destination": "/etc/hosts", "type": "bind", "source": "/etc/hostname", "options": ["bind", "ro"] }));
        mounts.push(json!({ "destination": "/tmp/a/b", "type": "tmpfs", "source": "tmpfs", "options": [] }));
        bundle.args(&["true"]);
        let _ = bundle.run_container()?;
        let made: Vec<_> = std::fs::read_dir(&outside)?.flatten().map(|it| it.file_name()).collect();
        ensure!(made.is_empty(), "{link}: {made:?} was made outside");
    }
    Ok(())
}

#[test]
fn a_terminal_that_is_lent_takes_no_input_from_inside() -> anyhow::Result<()> {
    skip_without!(lacks());
    let pty = nix::pty::openpty(None, None)?;
    let mut closed = bundle()?;
    closed.args(&["attack", "inject"]);
    let output = closed.command(&["run", &closed.id]).stdin(pty.slave.try_clone()?).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).trim() != "yes", "input was made up");
    // Whose terminal it is may.
    let attacker = closed.path().join("rootfs/bin/attack");
    let output = Command::new("setsid").arg("-c").arg(attacker).arg("inject").stdin(pty.slave).output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "yes", "no attack");
    Ok(())
}
