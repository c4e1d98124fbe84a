//! Docker Compose is the judge: what `docker compose config` makes of a file must mean the same to us as the file.
//!
//! `cargo xtask test` fetches the program; without it the test says `skipped`.

use coracle_compose::{LoadOptions, MountSource, NetworkMode, Project, load, parse_str};
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
        service.mounts.sort_by(|a, b| a.target.cmp(&b.target));
        service.ports.sort();
    }
    project
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
    let mut wrong = Vec::new();
    for case in cases {
        let ours = load(&options(&case));
        let theirs = judged(&program, &case);
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match (ours, theirs) {
            (Ok(ours), Ok(text)) => {
                let again = parse_str("theirs.json", &text, &options(&case));
                match again {
                    Ok(again) if plain(again.project.clone()) == plain(ours.project.clone()) => {}
                    Ok(again) => wrong.push(format!(
                        "{name}:\nours:\n{}\ntheirs:\n{}",
                        coracle_compose::to_yaml(&plain(ours.project)),
                        coracle_compose::to_yaml(&plain(again.project))
                    )),
                    Err(refusals) => wrong.push(format!("{name}: their form is refused: {refusals}\n{text}")),
                }
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => wrong.push(format!("{name}: we accept, they say: {error}")),
            (Err(refusals), Ok(_)) => wrong.push(format!("{name}: they accept, we say: {refusals}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
