//! Docker Compose is the judge: what `docker compose config` makes of a file must mean the same to us as the file.
//!
//! `cargo xtask test` fetches the program; without it the test says `skipped`.

use coracle_compose::{LoadOptions, MountSource, NetworkMode, Project, load, parse_str};
use proptest::strategy::{Strategy, ValueTree};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn program() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/docker-compose");
    path.exists().then_some(path)
}

fn options(folder: &Path) -> LoadOptions {
    LoadOptions {
        folder: folder.to_owned(),
        project_name: Some("demo".to_owned()),
        environment: [("FROM_HOST", "h"), ("EMPTY", "")].map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
        allow_binds: vec!["/".into()],
        ..LoadOptions::default()
    }
}

/// What Docker Compose makes of the folder's file, as JSON.
fn judged(program: &Path, folder: &Path) -> Result<String, String> {
    let output = Command::new(program)
        .args(["-p", "demo", "config", "--format", "json"])
        .env_clear()
        .envs(options(folder).environment)
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What both write differently and mean the same; `docs/compose.md` lists it.
fn plain(mut project: Project) -> Project {
    for network in project.networks.values_mut() {
        // Docker Compose writes the name that it gives by itself.
        network.name = None;
    }
    // They leave out volumes that no service mounts.
    let used = |name: &String| {
        let mut mounts = project.services.values().flat_map(|service| &service.mounts);
        mounts.any(|mount| matches!(&mount.source, MountSource::Volume { name: used, .. } if used == name))
    };
    let unused: Vec<String> = project.volumes.keys().filter(|name| !used(name)).cloned().collect();
    unused.iter().for_each(|name| drop(project.volumes.remove(name)));
    for volume in project.volumes.values_mut() {
        volume.name = None;
    }
    // And networks that no service is on.
    let on: BTreeSet<String> = project
        .services
        .values()
        .flat_map(|service| match &service.network {
            NetworkMode::Networks(networks) => networks.keys().cloned().collect(),
            _ => Vec::new(),
        })
        .collect();
    project.networks.retain(|name, _| on.contains(name));
    for service in project.services.values_mut() {
        for mount in &mut service.mounts {
            if let MountSource::Bind { create_host_path, inside_project, .. } = &mut mount.source {
                (*create_host_path, *inside_project) = (true, true);
            }
        }
        // They write the dependency that sharing a network is; for us it is one without being written.
        if let NetworkMode::Service(owner) = &service.network {
            service.depends_on.remove(&owner.clone());
        }
        // They do not write what is false anyway.
        service.tty = service.tty.filter(|&it| it);
        // Nor that there is no limit on tasks, which is nothing for them; we have one without a word.
        service.limits.pids = service.limits.pids.filter(|&it| it > 0);
        service.mounts.sort_by(|a, b| a.target.cmp(&b.target));
        service.ports.sort();
    }
    project
}

/// Their refusals of what we take: a number without quotes where a text stands. Its text is clear.
const LAXER: &[&str] = &["must be a string", "unexpected type int"];

/// Our refusals of what `config` of Docker Compose lets pass, and what is refused later or means nothing.
const STRICTER: &[&str] = &[
    "must be an absolute path",
    "protocol \"sctp\" is not supported",
    "is no restart policy",
    "\"-1s\" is no duration",
    "\"-1\" is no size",
    "\"0:80\" is no port",
    "begins with CMD, CMD-SHELL or NONE",
    "ports: must stand at the service",
];

/// How our reading of a folder's file differs from theirs.
fn difference(program: &Path, case: &Path) -> Option<String> {
    let ours = load(&options(case));
    let theirs = judged(program, case);
    match (ours, theirs) {
        (Ok(ours), Ok(text)) => match parse_str("theirs.json", &text, &options(case)) {
            Ok(again) if plain(again.project.clone()) == plain(ours.project.clone()) => None,
            Ok(again) => Some(format!(
                "ours:\n{}\ntheirs:\n{}",
                coracle_compose::to_yaml(&plain(ours.project)),
                coracle_compose::to_yaml(&plain(again.project))
            )),
            Err(refusals) => Some(format!("their form is refused: {refusals}\n{text}")),
        },
        (Err(_), Err(_)) => None,
        (Ok(_), Err(error)) if LAXER.iter().any(|it| error.contains(it)) => None,
        (Err(refusals), Ok(_)) if STRICTER.iter().any(|it| refusals.to_string().contains(it)) => None,
        (Ok(_), Err(error)) => Some(format!("we accept, they say: {error}")),
        (Err(refusals), Ok(_)) => Some(format!("they accept, we say: {refusals}")),
    }
}

#[test]
fn every_file_of_the_corpus_means_what_docker_compose_says() {
    let Some(program) = program() else {
        println!("skipped: needs target/peers/docker-compose (cargo xtask test fetches it)");
        return;
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(corpus).expect("a corpus").flatten().map(|it| it.path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "{} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| difference(&program, case).map(|it| format!("{}: {it}", case.display())))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Fields of a service and what may stand there: plain forms, every notation, and what is on the border of refusal.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "command",
        &["top", "[]", "[a, \"b c\", 1, true]", "\"sh -c 'echo $$HOME  x'\"", "a\\ b \"c d\"", "''", "null"],
    ),
    ("entrypoint", &["/init", "[\"/a\", \"\"]", "[]", "''"]),
    (
        "environment",
        &[
            "{A: 1, B: \"\", C: , D: true, E: 1.50, F: 0x10, G: 'no'}",
            "[A=1, B=, FROM_HOST, C=x=y, ABSENT]",
            "{A: \"${FROM_HOST}\", B: \"${ABSENT:-d}\", C: \"${EMPTY-d}\", D: \"${EMPTY:+x}${FROM_HOST:+y}\", E: $$x}",
            "{A: \"${ABSENT:-${FROM_HOST:-z}}\", B: \"a${FROM_HOST}b$${c}\"}",
            "[\"A= b \", \"A=2\"]",
            "{A: [x]}",
            "[1]",
        ],
    ),
    (
        "ports",
        &[
            "[80]",
            "[\"80\"]",
            "[\"8080:80\"]",
            "[\"127.0.0.1:8001:80/udp\"]",
            "[\"9090-9091:80-81\"]",
            "[\"3000-3002\"]",
            "[{target: 80, published: \"8081\", protocol: tcp}]",
            "[{target: 80, published: 8082, host_ip: 10.0.0.1, mode: host}]",
            "[\"08083:080\"]",
            "[\"0:80\"]",
            "[\"70000:80\"]",
            "[\"80:80/sctp\"]",
            "[\":80\"]",
            "[\"8000-8001:80\"]",
            "[\"81:80\", \"81:80\"]",
        ],
    ),
    ("expose", &["[80]", "[\"80/udp\", \"1000-1002\"]", "[x]"]),
    (
        "volumes",
        &[
            "[\"data:/data\"]",
            "[\"data:/data:ro\", \"/anonymous\"]",
            "[\"./sub:/sub\"]",
            "[\"/etc/localtime:/etc/localtime:ro\"]",
            "[{type: volume, source: data, target: /d, volume: {nocopy: true}}]",
            "[{type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0o700}}]",
            "[{type: bind, source: ., target: /here, read_only: true}]",
            "[\"data:/data/\"]",
            "[\"missing:/data\"]",
            "[\"data:relative\"]",
        ],
    ),
    ("tmpfs", &["/run", "[/run, \"/tmp:size=64k,mode=1777\"]", "[\"/tmp:size=1g\"]"]),
    (
        "restart",
        &[
            "always", "\"no\"", "no", "on-failure", "\"on-failure:3\"", "unless-stopped", "sometimes",
            "\"on-failure:-1\"",
        ],
    ),
    ("mem_limit", &["64m", "1g", "1048576", "\"1.5gb\"", "64M", "64mb", "6kib", "0", "64x", "-1"]),
    ("mem_reservation", &["8m", "\"512k\""]),
    ("memswap_limit", &["128m", "-1"]),
    ("shm_size", &["2m", "1024", "\"64kb\""]),
    ("cpus", &["0.5", "\".5\"", "2", "\"1.25\"", "0"]),
    ("cpu_shares", &["512", "\"1024\""]),
    ("cpuset", &["0", "\"0,1\"", "\"0-1\""]),
    ("pids_limit", &["10", "-1", "0", "\"20\""]),
    ("oom_score_adj", &["100", "-999"]),
    ("stop_grace_period", &["1s", "1m30s", "\"0s\"", "500ms", "1h1m1s1ms", "1.5s", "10", "-1s", "1d"]),
    ("stop_signal", &["SIGINT", "TERM", "9", "SIGRTMIN+3"]),
    (
        "healthcheck",
        &[
            "{test: [CMD, \"true\"]}",
            "{test: \"curl -f http://x || exit 1\", interval: 1m30s, timeout: 10s, retries: 3, start_period: 40s}",
            "{test: [CMD-SHELL, \"a b\"]}",
            "{disable: true}",
            "{test: NONE}",
            "{test: [NONE]}",
            "{test: [\"true\"]}",
            "{interval: 5s}",
            "{test: \"x\", start_interval: 2s, start_period: 3s}",
            "{test: \"x\", retries: \"4\"}",
        ],
    ),
    ("user", &["root", "1000", "\"1000:1000\"", "\"a:b\""]),
    ("group_add", &["[audio, 44]", "[\"1000\"]"]),
    ("working_dir", &["/srv", "/srv/", "relative"]),
    ("hostname", &["box", "box.example.org"]),
    ("domainname", &["example.org"]),
    ("privileged", &["true", "false", "\"true\"", "yes"]),
    ("read_only", &["true", "\"false\""]),
    ("init", &["true", "false"]),
    ("tty", &["true", "false"]),
    ("stdin_open", &["true"]),
    ("cap_add", &["[NET_ADMIN, SYS_TIME]", "[ALL]", "[CAP_NET_RAW]", "[NET_ADMIN, NET_ADMIN]"]),
    ("cap_drop", &["[ALL]", "[MKNOD]"]),
    (
        "security_opt",
        &[
            "[\"seccomp:unconfined\"]",
            "[\"no-new-privileges:true\"]",
            "[no-new-privileges]",
            "[\"no-new-privileges=true\"]",
        ],
    ),
    (
        "sysctls",
        &["{net.core.somaxconn: 1024}", "[\"net.ipv4.ip_forward=1\"]", "{net.ipv4.tcp_syncookies: \"0\"}"],
    ),
    (
        "ulimits",
        &["{nofile: 1024}", "{nofile: {soft: 10, hard: 20}, nproc: 5}", "{core: -1}", "{nofile: {soft: 30}}"],
    ),
    (
        "extra_hosts",
        &[
            "[\"a:192.0.2.1\"]",
            "{a: 192.0.2.1, b: \"::1\"}",
            "[\"a=192.0.2.1\", \"b=[::1]\"]",
            "[\"gw:host-gateway\"]",
        ],
    ),
    ("dns", &["9.9.9.9", "[9.9.9.9, 1.1.1.1]"]),
    ("dns_search", &["example.org", "[a.example, b.example]"]),
    ("dns_opt", &["[use-vc, \"ndots:2\"]"]),
    ("labels", &["{a: b, c: 1, d: true, e: }", "[a=b, c, \"d=e=f\"]", "{a.b/c: \"x y\"}"]),
    ("devices", &["[\"/dev/null\"]", "[\"/dev/null:/dev/zero2\"]", "[\"/dev/null:/dev/n:rw\"]"]),
    (
        "networks",
        &[
            "[front]",
            "[front, back]",
            "{front: {aliases: [x, y]}}",
            "{front: {ipv4_address: 10.99.1.5}, back: }",
            "[missing]",
            "{front: {priority: 5}}",
        ],
    ),
    ("network_mode", &["host", "none", "\"service:other\"", "bridge"]),
    (
        "depends_on",
        &[
            "[other]",
            "{other: {condition: service_started}}",
            "{other: {condition: service_healthy, restart: true}}",
            "{other: {condition: service_completed_successfully, required: false}}",
            "[absent]",
            "{other: {condition: sometime}}",
        ],
    ),
    ("profiles", &["[]"]),
    ("pull_policy", &["always", "missing", "if_not_present", "never"]),
    ("platform", &["linux/amd64", "linux/arm/v6"]),
    ("x-note", &["{any: [thing]}"]),
    (
        "deploy",
        &[
            "{resources: {limits: {cpus: \"0.50\", memory: 50M, pids: 7}}}",
            "{resources: {reservations: {memory: 20M}}}",
        ],
    ),
];

/// Files in one run: each asks Docker Compose once, some 40 ms. `ORACLE_FILES=5000` for a long one.
const FILES: usize = 300;

/// Fields that a generated service has at most: two that are refused hide each other.
const MAX_FIELDS: usize = 5;

#[test]
fn generated_files_mean_what_docker_compose_says() {
    let Some(program) = program() else {
        println!("skipped: needs target/peers/docker-compose (cargo xtask test fetches it)");
        return;
    };
    let files = std::env::var("ORACLE_FILES").ok().and_then(|it| it.parse().ok()).unwrap_or(FILES);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("sub")).expect("made");
    // Every field once with each of its values, as far as `files` reaches; then some together.
    let alone = FIELDS.iter().flat_map(|field| field.1.iter().map(move |value| vec![(field.0, *value)]));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let together = std::iter::from_fn(|| {
        let fields = proptest::sample::subsequence(FIELDS, 2..=MAX_FIELDS).new_tree(&mut runner).ok()?.current();
        let mut pick = |values: &[&'static str]| {
            proptest::sample::select(values.to_vec()).new_tree(&mut runner).ok().map(|it| it.current())
        };
        fields.into_iter().map(|(name, values)| Some((name, pick(values)?))).collect::<Option<Vec<_>>>()
    });
    let mut wrong = Vec::new();
    for fields in alone.chain(together).take(files) {
        let mut text = String::from("services:\n  it:\n    image: registry.example/it:1\n");
        for (name, value) in &fields {
            text.push_str(&format!("    {name}: {value}\n"));
        }
        text.push_str("  other: {image: \"registry.example/other:1\", healthcheck: {test: \"true\"}}\n");
        text.push_str(
            "volumes: {data: {}}\nnetworks: {front: {ipam: {config: [{subnet: 10.99.1.0/24}]}}, back: {}}\n",
        );
        std::fs::write(folder.path().join("compose.yaml"), &text).expect("written");
        wrong.extend(difference(&program, folder.path()).map(|it| format!("{text}{it}")));
    }
    assert!(wrong.is_empty(), "{} of {files}:\n{}", wrong.len(), wrong.join("\n\n"));
}
