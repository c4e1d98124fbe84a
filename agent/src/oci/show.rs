//! What the OCI command line prints.

use super::Problem;
use super::options::Options;
use crate::cli::table;
use crate::clock::rfc3339;
use coracle_runtime::oci::{self, State, statistics};
use serde_json::{Value, json};
use std::time::Duration;

/// The text of `--help`.
pub const HELP: &str = "\
coracle-oci: an OCI runtime, with the options of runc

  coracle oci [--root FOLDER] [--log FILE] [--log-format text|json] [--debug] COMMAND [OPTION...]

  create ID     make a container from a bundle   --bundle, -b  --console-socket  --pid-file  --preserve-fds N
                                                 --no-pivot  --no-new-keyring  --systemd-cgroup
  start ID      let its program run
  run ID        create, start, wait, delete      as create, and --detach, -d  --keep  --no-subreaper
  exec ID ...   run a command in it              --process, -p FILE  --tty, -t  --env, -e  --user, -u UID[:GID]
                                                 --additional-gids, -g  --cwd  --cap, -c  --no-new-privs  --detach, -d
                                                 --apparmor  --cgroup  --ignore-paused  and those of create
  state ID      its state, as JSON
  kill ID [SIG] send a signal (SIGTERM)          --all, -a
  delete ID     remove what has ended            --force, -f
  list          all containers                   --format, -f table|json  --quiet, -q
  ps ID         its processes                    --format, -f table|json
  pause ID, resume ID
  update ID     change limits                    --resources, -r FILE  --memory  --cpu-quota  --pids-limit  ...
  events ID     statistics, again and again      --stats (once)  --interval 5s
  features      what this runtime can do, as JSON
  spec          write a config.json              --bundle, -b  --rootless

Examples:
  coracle oci spec -b /tmp/box && coracle oci run -b /tmp/box box
  podman --runtime /usr/bin/coracle-oci --cgroup-manager cgroupfs run --rm alpine true
";

/// `state`.
pub fn state(options: &Options) -> Result<(), Problem> {
    let state = oci::state(&options.root, options.id(1)?)?;
    say!("{:#}", document(&state));
    Ok(())
}

/// The state as runc shows it: the specification's, and who and when.
fn document(state: &State) -> Value {
    let mut document = state.document(state.status());
    document["rootfs"] = json!(state.rootfs);
    document["created"] = json!(rfc3339(state.created_unix_ns, 9));
    document["owner"] = json!(owner(state.owner));
    document
}

/// A user's name, where there is one.
fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

/// `list`.
pub fn list(options: &Options) -> Result<(), Problem> {
    let states = oci::list(&options.root)?;
    if options.quiet {
        states.iter().for_each(|state| say!("{}", state.id));
        return Ok(());
    }
    match options.format.as_str() {
        "json" => say!("{}", json!(states.iter().map(document).collect::<Vec<_>>())),
        "table" => {
            let row = |state: &State| {
                // One look at the process: what it is and its number belong together.
                let document = document(state);
                let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
                let pid = document["pid"].to_string();
                vec![state.id.clone(), pid, text("status"), text("bundle"), text("created"), text("owner")]
            };
            let rows: Vec<Vec<String>> = states.iter().map(row).collect();
            table::print(&["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], &rows);
        }
        other => return Err(Problem::new(1, format!("--format {other}: table or json"))),
    }
    Ok(())
}

/// `ps`: the machine's own `ps`, less everybody else.
pub fn processes(options: &Options) -> Result<(), Problem> {
    let pids = oci::processes(&options.root, options.id(usize::MAX)?)?;
    if options.format == "json" {
        say!("{}", json!(pids));
        return Ok(());
    }
    let more: Vec<&str> = options.rest[1..].iter().map(String::as_str).filter(|it| *it != "--").collect();
    let arguments = if more.is_empty() { vec!["-ef"] } else { more };
    let output = std::process::Command::new("ps")
        .args(&arguments)
        .output()
        .map_err(|error| Problem::new(1, format!("ps: {error}; --format json needs no program")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|it| it == "PID");
    let column = column.ok_or_else(|| Problem::new(1, "ps shows no column PID"))?;
    say!("{head}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|it| it.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            say!("{line}");
        }
    }
    Ok(())
}

/// `events`.
pub fn events(options: &Options) -> Result<(), Problem> {
    let id = options.id(1)?;
    let mut kills = None;
    loop {
        let state = oci::state(&options.root, id)?;
        if matches!(state.status(), oci::Status::Stopped) {
            return match options.stats {
                true => Err(Problem::new(1, format!("container {id:?} does not run"))),
                false => Ok(()),
            };
        }
        let now = coracle_runtime::container::cgroup::oom_kills(&state.cgroup);
        if kills.replace(now).is_some_and(|before| before < now) {
            say!("{}", json!({ "type": "oom", "id": id }));
        }
        say!("{}", json!({ "type": "stats", "id": id, "data": statistics::read(&state.cgroup) }));
        if options.stats {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(options.interval));
    }
}
