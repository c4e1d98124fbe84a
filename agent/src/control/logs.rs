//! Log lines of a project's services, in order of their arrival.

use super::server::Answers;
use super::{LogLine, LogRequest, Reply};
use crate::engine::{Handle, Refusal, keeper};
use crate::exit::Code;
use crate::logfile::{Place as Last, Records};
use crate::status::Status;
use coracle_runtime::shim::{Client, LogRecord, Stream};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Lines between the thread that reads files and the connection, some KiB each at most.
const QUEUE: usize = 64;

/// Where a reader is in each container's log.
#[derive(Default)]
struct Places(BTreeMap<String, Place>);

#[derive(Default)]
struct Place {
    next: u64,
    dropped: u64,
}

pub async fn answer(
    handle: &Handle,
    request: &LogRequest,
    answers: &mut Answers,
) -> std::io::Result<Result<(), Refusal>> {
    let mut logs = handle.logs.clone();
    let mut status = handle.status.clone();
    let known = status.borrow().projects.get(&request.project).cloned();
    let unknown = match &known {
        None => Some(format!("there is no project {}", request.project)),
        Some(project) => {
            let missing = request.services.iter().find(|service| !project.services.contains_key(*service));
            missing.map(|service| format!("project {} has no service {service}", request.project))
        }
    };
    if let Some(reason) = unknown {
        return Ok(Err(Refusal::new(Code::NotFound, reason)));
    }
    let mut places = Places::default();
    let mut tail = request.tail;
    let (mut kept, last) = kept_lines(handle, request, answers).await?;
    let client = handle.client.borrow().clone();
    for (service, id) in containers(&status.borrow(), request).0 {
        // A container that is not in the shim has no more than its files.
        if let Ok(next) = keeper::after(&client, &id, last.get(&service).copied()).await {
            places.0.insert(id, Place { next, dropped: 0 });
        }
    }
    loop {
        logs.mark_unchanged();
        status.mark_unchanged();
        let (containers, goes_on) = containers(&status.borrow(), request);
        let client = handle.client.borrow().clone();
        let mut lines = Vec::new();
        for (service, id) in &containers {
            let place = places.0.entry(id.clone()).or_default();
            let known = kept.remove(service).unwrap_or_default();
            lines.extend(new_lines(&client, service, id, place, request, (known, tail)).await);
        }
        // Of services that have no container now.
        lines.extend(std::mem::take(&mut kept).into_values().flatten());
        tail = None;
        lines.sort_by_key(|line| line.unix_ns);
        for line in lines {
            answers.send(&Reply::Log(line)).await?;
        }
        if !request.follow || !goes_on {
            return Ok(Ok(()));
        }
        let gone = tokio::select! {
            changed = logs.changed() => changed.is_err(),
            changed = status.changed() => changed.is_err(),
        };
        if gone {
            return Ok(Ok(()));
        }
    }
}

/// The containers of the wanted services; false when none runs and none will.
fn containers(status: &Status, request: &LogRequest) -> (Vec<(String, String)>, bool) {
    let Some(project) = status.projects.get(&request.project) else { return (Vec::new(), false) };
    let wanted =
        project.services.iter().filter(|(name, _)| request.services.is_empty() || request.services.contains(name));
    let wanted: Vec<_> = wanted.collect();
    let goes_on = wanted.iter().any(|(_, service)| service.state == "running")
        || status.steps.iter().any(|step| step.concerns(&request.project));
    let containers = wanted
        .into_iter()
        .filter(|(_, service)| !service.container.is_empty())
        .map(|(name, service)| (name.clone(), service.container.clone()));
    (containers.collect(), goes_on)
}

/// The last lines of each service that are in files, when only last lines are wanted; all others are sent at once. And
/// what each service's files end with.
async fn kept_lines(
    handle: &Handle,
    request: &LogRequest,
    answers: &mut Answers,
) -> std::io::Result<(BTreeMap<String, VecDeque<LogLine>>, BTreeMap<String, Last>)> {
    let mut folders = BTreeMap::new();
    if let Some(project) = handle.status.borrow().projects.get(&request.project) {
        for (name, service) in &project.services {
            let wanted = request.services.is_empty() || request.services.contains(name);
            if wanted && service.log_files.is_some() {
                folders.insert(name.clone(), handle.paths.log_folder(&request.project, name));
            }
        }
    }
    let mut tails: BTreeMap<String, VecDeque<LogLine>> = BTreeMap::new();
    if folders.is_empty() {
        return Ok((tails, BTreeMap::new()));
    }
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let reader = tokio::task::spawn_blocking({
        let request = request.clone();
        move || read_files(folders, &request, &sender)
    });
    while let Some(line) = receiver.recv().await {
        let Some(tail) = request.tail else {
            answers.send(&Reply::Log(line)).await?;
            continue;
        };
        let lines = tails.entry(line.service.clone()).or_default();
        lines.push_back(line);
        if lines.len() > tail {
            lines.pop_front();
        }
    }
    let last = reader.await.map_err(std::io::Error::other)??;
    Ok((tails, last))
}

/// Reads the files of some services, merged by time; what each ends with.
fn read_files(
    folders: BTreeMap<String, PathBuf>,
    request: &LogRequest,
    sender: &mpsc::Sender<LogLine>,
) -> std::io::Result<BTreeMap<String, Last>> {
    let mut services = Vec::new();
    for (name, folder) in folders {
        services.push((name, Records::open(&folder)?.peekable()));
    }
    let mut last = BTreeMap::new();
    loop {
        let heads = services.iter_mut().enumerate();
        let oldest = heads.filter_map(|(at, (_, records))| Some((records.peek()?.unix_ns, at))).min();
        let Some((name, records)) = oldest.map(|(_, at)| &mut services[at]) else { return Ok(last) };
        let Some(record) = records.next() else { return Ok(last) };
        last.insert(name.clone(), Last { sequence: record.sequence, unix_ns: record.unix_ns });
        if let Some(line) = line(name, record, 0, request)
            && sender.blocking_send(line).is_err()
        {
            // Nobody reads any more.
            return Ok(last);
        }
    }
}

/// Everything from a place on behind what is known; with `tail`, only the last lines.
async fn new_lines(
    client: &Client,
    service: &str,
    id: &str,
    place: &mut Place,
    request: &LogRequest,
    (mut lines, tail): (VecDeque<LogLine>, Option<usize>),
) -> Vec<LogLine> {
    // A container that is not in the shim has no log.
    while let Ok(page) = client.read_log(id, place.next).await {
        let (end, dropped) = (page.next == place.next || page.records.is_empty(), page.dropped - place.dropped);
        place.dropped = page.dropped;
        place.next = page.next;
        for (number, record) in page.records.into_iter().enumerate() {
            let dropped = if number == 0 { dropped } else { 0 };
            lines.extend(line(service, record, dropped, request));
            if tail.is_some_and(|tail| lines.len() > tail) {
                lines.pop_front();
            }
        }
        if end {
            break;
        }
    }
    lines.into()
}

fn line(service: &str, record: LogRecord, dropped: u64, request: &LogRequest) -> Option<LogLine> {
    let wanted = request.since.is_none_or(|since| record.unix_ns >= since)
        && request.until.is_none_or(|until| record.unix_ns <= until);
    wanted.then(|| LogLine {
        service: service.to_owned(),
        unix_ns: record.unix_ns,
        stderr: record.stream == Stream::Stderr,
        text: String::from_utf8_lossy(&record.bytes).into_owned(),
        continues: record.continues,
        dropped,
    })
}
