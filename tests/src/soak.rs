//! Thousands of creates, and an agent that is killed all the time: nothing may hang, leak, change or be lost.

use crate::board::{Board, REGISTRY, coracle, run, wait_for};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Services of one round: every fifth has a program that is not there.
const SERVICES: usize = 20;

/// Lines that each container writes.
const LINES: usize = 20;

/// Longest time from an order to the agent's death: the slowest round takes about as long.
const LONGEST_LIFE_MS: u64 = 400;

/// `timeout` says this of a command that it had to end.
const TIMED_OUT: [i32; 2] = [124, 137];

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Containers that are made.
    pub creates: usize,
    /// Times that the agent is killed.
    pub kills: usize,
    /// What decides when it is killed.
    pub seed: u64,
}

/// What went wrong, one line each.
#[derive(Debug, Default)]
pub struct Found {
    /// Commands that did not end in time.
    pub hangs: Vec<String>,
    /// What is left when everything was taken down.
    pub leaks: Vec<String>,
    /// Containers that are others than before the agent was killed.
    pub restarted: Vec<String>,
    /// Lines and exit codes that are not told.
    pub lost: Vec<String>,
    /// Containers that were made.
    pub creates: usize,
    /// Those of them whose program could not be run.
    pub failing: usize,
}

/// Runs it on a board that has `app:1` in its registry and an agent.
///
/// # Errors
/// When the board itself does not work.
pub fn soak(board: &Board, extent: Extent) -> anyhow::Result<Found> {
    let mut soak = Soak { board, found: Found::default(), dice: extent.seed | 1 };
    // Files and folders that come with the first use are no leaks.
    soak.round(0)?;
    soak.down("demo")?;
    board.coracle(&["pull", &format!("{REGISTRY}/app:1")])?;
    let before = Left::look(board)?;
    for round in 1.. {
        if soak.found.creates >= extent.creates {
            break;
        }
        soak.round(round)?;
    }
    soak.down("demo")?;
    soak.kills(extent.kills)?;
    for project in ["steady", "other"] {
        soak.down(project)?;
    }
    board.coracle(&["pull", &format!("{REGISTRY}/app:1")])?;
    soak.found.leaks = Left::look_until(board, &before)?;
    Ok(soak.found)
}

struct Soak<'a> {
    board: &'a Board,
    found: Found,
    dice: u64,
}

/// A service's end as it must be told.
fn code_of(round: usize, number: usize) -> usize {
    match number % 5 {
        4 => 127,
        _ => (round * 7 + number) % 100,
    }
}

/// A short-lived service.
fn service(round: usize, number: usize) -> String {
    let code = code_of(round, number);
    let command = match number % 5 {
        4 => "[/not/there]".to_owned(),
        _ => format!("[sh, -c, 'for n in $$(seq {LINES}); do echo {round} {number} $$n; done; exit {code}']"),
    };
    format!(
        "  s{number}: {{image: \"{REGISTRY}/app:1\", command: {command}, restart: \"no\", stop_grace_period: 0s, environment: {{ROUND: \"{round}\"}}}}\n"
    )
}

impl Soak<'_> {
    fn dice(&mut self, below: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.dice >> 33) % below
    }

    /// Runs a command; false when it hung.
    fn order(&mut self, arguments: &[&str]) -> anyhow::Result<bool> {
        let output = self.board.output(arguments)?;
        self.ended(&arguments.join(" "), output.status.code())
    }

    fn ended(&mut self, what: &str, code: Option<i32>) -> anyhow::Result<bool> {
        let hung = code.is_none_or(|code| TIMED_OUT.contains(&code));
        if hung {
            self.found.hangs.push(format!("{what}: {code:?}"));
        }
        Ok(!hung)
    }

    fn down(&mut self, project: &str) -> anyhow::Result<()> {
        self.order(&["down", "-v", "-p", project]).map(drop)
    }

    /// All services made anew; what they wrote and how they ended is read.
    fn round(&mut self, round: usize) -> anyhow::Result<()> {
        let mut text = String::from("services:\n");
        (0..SERVICES).for_each(|number| text.push_str(&service(round, number)));
        self.board.compose(&text)?;
        // Some of them cannot be run: `up` says so with its exit code.
        self.order(&["up", "-d"])?;
        self.found.creates += SERVICES;
        self.found.failing += SERVICES / 5;
        let numbers: Vec<usize> = (0..SERVICES).collect();
        self.check("demo", round, &numbers)
    }

    /// Lines and exit codes of some short-lived services.
    fn check(&mut self, project: &str, round: usize, numbers: &[usize]) -> anyhow::Result<()> {
        let mut services = Value::Null;
        let ended = wait_for("the services' end", || {
            let document: Value = serde_json::from_str(&self.board.coracle(&["status"])?)?;
            services = document["projects"][project]["services"].clone();
            // An order that was just taken may not have been begun: those of the round before are exited, too.
            let idle = ["steps", "running"].iter().all(|it| document[it].as_array().is_some_and(Vec::is_empty));
            Ok(idle && numbers.iter().all(|number| services[format!("s{number}")]["state"] == "exited"))
        });
        if let Err(error) = ended {
            self.found.hangs.push(format!("round {round}: {error}: {services}"));
            return Ok(());
        }
        let text = self.board.coracle(&["logs", "--json", "-p", project])?;
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)?;
            let (service, text) = (line["service"].as_str(), line["text"].as_str());
            let of_service = lines.entry(service.context("a service")?.to_owned()).or_default();
            of_service.push(text.context("a text")?.to_owned());
        }
        for &number in numbers {
            let name = format!("s{number}");
            let code = &services[&name]["exit_code"];
            if *code != code_of(round, number) {
                self.found.lost.push(format!("round {round}, {name}: exit code {code}"));
            }
            let wanted = if number % 5 == 4 { 0 } else { LINES };
            let wanted: Vec<String> = (1..=wanted).map(|line| format!("{round} {number} {line}")).collect();
            let is = lines.remove(&name).unwrap_or_default();
            if is != wanted {
                self.found.lost.push(format!("round {round}, {name}: {} lines of {}", is.len(), wanted.len()));
            }
        }
        Ok(())
    }

    /// Kills the agent while it works, and looks whether everything goes on.
    fn kills(&mut self, count: usize) -> anyhow::Result<()> {
        let app = format!("image: \"{REGISTRY}/app:1\", stop_grace_period: 0s");
        let steady = format!(
            "name: steady\nservices:\n  \
             writer: {{{app}, command: [sh, -c, 'n=0; while :; do n=$$((n+1)); echo $$n; sleep 0.2; done']}}\n  \
             checked: {{{app}, command: sleep 100000, healthcheck: {{test: \"true\", interval: 500ms}}}}\n  \
             mounted: {{{app}, command: sleep 100000, volumes: [\"data:/data\"], ports: [\"8080:80\"]}}\nvolumes: {{data: {{}}}}\n"
        );
        self.board.compose(&steady)?;
        self.order(&["up", "-d"])?;
        let running = self.running()?;
        ensure!(running.len() == 3, "three services run: {running:?}");
        for kill in 1..=count {
            self.kill(kill, &running)?;
        }
        let text = self.board.coracle(&["logs", "--no-log-prefix", "-p", "steady", "writer"])?;
        let mut next = text.lines().next().and_then(|line| line.parse::<u64>().ok()).unwrap_or(0);
        for line in text.lines() {
            if line.parse() != Ok(next) {
                self.found.lost.push(format!("writer: {line:?} where {next} was expected"));
                break;
            }
            next += 1;
        }
        ensure!(next > 1, "the writer writes");
        Ok(())
    }

    fn kill(&mut self, kill: usize, running: &BTreeMap<String, (String, i64)>) -> anyhow::Result<()> {
        let numbers = [0, 1, 4];
        let mut text = String::from("name: other\nservices:\n");
        numbers.iter().for_each(|&number| text.push_str(&service(kill, number)));
        self.board.compose(&text)?;
        let mut orders = vec![self.spawn(&["up", "-d"])?];
        if kill.is_multiple_of(3) {
            orders.push(self.spawn(&["logs", "-p", "steady", "writer"])?);
        }
        std::thread::sleep(Duration::from_millis(self.dice(LONGEST_LIFE_MS)));
        self.board.kill_agent()?;
        for mut order in orders {
            // It may have been done, or have lost the agent; it must end.
            let status = order.wait()?;
            self.ended("an order whose agent was killed", status.code())?;
        }
        self.board.start_agent()?;
        let target = std::fs::read_to_string(self.board.data().join("target.json")).unwrap_or_default();
        if !target.contains(&format!("\"ROUND\":\"{kill}\"")) {
            self.order(&["up", "-d"])?;
        }
        self.found.creates += numbers.len();
        self.found.failing += 1;
        self.check("other", kill, &numbers)?;
        let now = self.running()?;
        for (service, before) in running {
            let is = now.get(service);
            if is != Some(before) {
                self.found.restarted.push(format!("kill {kill}: {service} was {before:?} and is {is:?}"));
            }
        }
        Ok(())
    }

    fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.board.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting coracle")
    }

    /// Container and process of each steady service.
    fn running(&self) -> anyhow::Result<BTreeMap<String, (String, i64)>> {
        let document: Value = serde_json::from_str(&self.board.coracle(&["ps", "--json", "-p", "steady"])?)?;
        let services = document["services"].as_object().context("services")?;
        let running = services.iter().filter_map(|(name, it)| {
            Some((name.clone(), (it["container"].as_str()?.to_owned(), it["pid"].as_i64()?)))
        });
        Ok(running.collect())
    }
}

/// Everything that may be left behind.
#[derive(Debug, Default, PartialEq)]
struct Left {
    things: BTreeSet<String>,
    descriptors: BTreeMap<&'static str, usize>,
}

impl Left {
    fn look(board: &Board) -> anyhow::Result<Self> {
        let document: Value = serde_json::from_str(&board.coracle(&["status"])?)?;
        let pid = |name: &str| document[name].as_i64().with_context(|| format!("no {name}"));
        let pids = [("agent", pid("pid")?), ("shim", pid("shim_pid")?)];
        let mut left = Self::default();
        for (name, pid) in pids {
            let process = PathBuf::from(format!("/proc/{pid}"));
            left.descriptors.insert(name, std::fs::read_dir(process.join("fd"))?.count());
            for line in std::fs::read_to_string(process.join("mountinfo"))?.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                left.things.insert(format!("{name}'s mount {}", words[4..].join(" ")));
            }
            for child in children(pid) {
                left.things.insert(format!("{name}'s child {child}"));
            }
        }
        // The agent's clients and the agent itself come and go.
        left.things.retain(|it| !it.contains("child coracle "));
        for line in run(Command::new("ip").args(["-o", "link"]))?.lines() {
            left.things.insert(format!("link {}", line.split(':').nth(1).unwrap_or_default().trim()));
        }
        for line in run(Command::new("nft").args(["list", "ruleset"]))?.lines() {
            left.things.insert(format!("rule {}", line.trim()));
        }
        for folder in board.cgroups() {
            left.walk("cgroup", &folder, true);
        }
        for folder in [board.run_folder(), board.data()] {
            left.walk("file", &folder, false);
        }
        Ok(left)
    }

    fn walk(&mut self, kind: &str, folder: &Path, only_folders: bool) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|it| it.is_dir());
            if is_folder || !only_folders {
                self.things.insert(format!("{kind} {}", path.display()));
            }
            if is_folder && !path.ends_with("images/layers") {
                self.walk(kind, &path, only_folders);
            }
        }
    }

    /// What is there now and was not before. What was done last may need a moment to be gone.
    fn look_until(board: &Board, before: &Self) -> anyhow::Result<Vec<String>> {
        let mut leaks = Vec::new();
        let clean = wait_for("nothing to be left", || {
            let now = Self::look(board)?;
            leaks = now.things.difference(&before.things).cloned().collect();
            for (name, count) in &now.descriptors {
                let old = before.descriptors[name];
                if *count > old {
                    leaks.push(format!("{name}: {count} descriptors, {old} before"));
                }
            }
            Ok(leaks.is_empty())
        });
        if clean.is_ok() {
            leaks.clear();
        }
        Ok(leaks)
    }
}

/// Names and states of a process's children.
fn children(parent: i64) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // PID (NAME) STATE PPID …: the name may hold anything.
        let Some((front, rest)) = stat.rsplit_once(") ") else { continue };
        let mut words = rest.split(' ');
        let (state, ppid) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if ppid == parent.to_string() {
            let name = front.split_once('(').map_or("", |(_, name)| name);
            found.push(format!("{name} {state}"));
        }
    }
    found
}

/// The program is built before anything is measured.
///
/// # Errors
/// As [`Board::new`] and what follows it.
pub fn board() -> anyhow::Result<Board> {
    coracle();
    let board = Board::with_app()?;
    board.start_agent()?;
    Ok(board)
}
