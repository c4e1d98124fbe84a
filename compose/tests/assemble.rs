//! Several files become one project.

use coracle_compose::{HealthTest, LoadOptions, Loaded, MountSource, Refusals, load};
use std::path::{Path, PathBuf};

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    folder
}

fn read(folder: &Path, files: &[&str]) -> Result<Loaded, Refusals> {
    load(&LoadOptions {
        folder: folder.to_owned(),
        files: files.iter().map(PathBuf::from).collect(),
        project_name: Some("demo".to_owned()),
        ..LoadOptions::default()
    })
}

#[test]
fn an_override_is_laid_over_field_by_field() {
    let folder = folder(&[
        (
            "compose.yaml",
            r#"
services:
  web:
    image: web:1
    command: [a, b]
    environment: {A: "1", B: "2"}
    ports: ["8080:80"]
    volumes: ["data:/data", "other:/other"]
    dns: 192.0.2.1
    depends_on: [db]
    healthcheck: {test: [CMD, /a], retries: 3}
  db: {image: db:1}
volumes: {data: {}, other: {}}
"#,
        ),
        (
            "compose.override.yaml",
            r#"
services:
  web:
    command: [c]
    environment: [B=3, C=4]
    ports: ["8080:80", "8081:81"]
    volumes: ["other:/data:ro"]
    dns: [192.0.2.2]
    depends_on: {db: {condition: service_healthy}}
    healthcheck: {test: [CMD, /b]}
"#,
        ),
    ]);
    let project = read(folder.path(), &[]).expect("accepted").project;
    let web = &project.services["web"];
    assert_eq!(web.image.as_deref(), Some("web:1"));
    assert_eq!(web.command.as_deref(), Some(&["c".to_owned()][..]));
    let environment: Vec<String> = web
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={}", value.clone().unwrap_or_default()))
        .collect();
    assert_eq!(environment, ["A=1", "B=3", "C=4"]);
    assert_eq!(web.ports.len(), 2);
    assert_eq!(web.mounts.len(), 2);
    let data = web.mounts.iter().find(|mount| mount.target == "/data").expect("a mount");
    assert!(data.read_only && matches!(&data.source, MountSource::Volume { name, .. } if name == "other"));
    assert_eq!(web.dns, ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(web.depends_on["db"].condition, coracle_compose::Condition::ServiceHealthy);
    let check = web.healthcheck.as_ref().expect("a check");
    assert_eq!((check.test.clone(), check.retries), (Some(HealthTest::Exec(vec!["/b".to_owned()])), Some(3)));
}

#[test]
fn a_service_extends_one_of_another_file_whose_paths_count_from_there() {
    let folder = folder(&[
        (
            "compose.yaml",
            "services:\n  web:\n    extends: {file: base/common.yaml, service: app}\n    environment: {B: own}\n",
        ),
        (
            "base/common.yaml",
            "services:\n  app: {extends: root, env_file: app.env, volumes: [\"./files:/files\"], environment: {B: theirs}}\n  root: {image: root:1, init: true}\n",
        ),
        ("base/app.env", "FROM=file\n"),
        ("base/files/x", ""),
    ]);
    let project = read(folder.path(), &[]).expect("accepted").project;
    let web = &project.services["web"];
    assert_eq!((web.image.as_deref(), web.init), (Some("root:1"), Some(true)));
    assert_eq!(web.environment["B"].as_deref(), Some("own"));
    assert_eq!(web.environment["FROM"].as_deref(), Some("file"));
    let MountSource::Bind { path, inside_project, .. } = &web.mounts[0].source else { panic!("a bind mount") };
    assert!(path.ends_with("base/files") && *inside_project, "{path:?}");
    assert_eq!(project.services.len(), 1, "what is extended is no service of the project");
}

#[test]
fn included_files_bring_their_resources_and_their_own_variables() {
    let folder = folder(&[
        ("compose.yaml", "include: [sub/compose.yaml]\nservices: {web: {image: web:1, depends_on: [db]}}\n"),
        (
            "sub/compose.yaml",
            "services: {db: {image: \"db:${TAG}\", volumes: [\"data:/data\"]}}\nvolumes: {data: {}}\n",
        ),
        ("sub/.env", "TAG=7\n"),
    ]);
    let project = read(folder.path(), &[]).expect("accepted").project;
    assert_eq!(project.services["db"].image.as_deref(), Some("db:7"));
    assert!(project.volumes.contains_key("data"));
}

#[test]
fn a_refusal_names_the_file_that_it_stands_in() {
    let folder = folder(&[
        ("compose.yaml", "services: {web: {image: web:1}}\n"),
        ("more.yaml", "services:\n  web:\n    prots: [\"80\"]\n"),
    ]);
    let refusals = read(folder.path(), &["compose.yaml", "more.yaml"]).expect_err("refused");
    let text = refusals.to_string();
    assert!(text.contains("more.yaml:3: services.web.prots"), "{text}");
}

#[test]
fn circles_and_conflicts_are_refused() {
    let folder = folder(&[
        ("circle.yaml", "services: {a: {extends: b}, b: {extends: a}}\n"),
        ("conflict.yaml", "include: [other.yaml]\nservices: {db: {image: db:1}}\n"),
        ("other.yaml", "services: {db: {image: db:2}}\n"),
        ("missing.yaml", "services: {a: {extends: nobody}}\n"),
        ("itself.yaml", "include: [itself.yaml]\nservices: {a: {image: a:1}}\n"),
    ]);
    for (file, why) in [
        ("circle.yaml", "extend each other"),
        ("conflict.yaml", "services.db is defined here and in the included file"),
        ("missing.yaml", "no service \"nobody\" to extend"),
        ("itself.yaml", "more than 64 files"),
    ] {
        let text = read(folder.path(), &[file]).expect_err("refused").to_string();
        assert!(text.contains(why), "{file}: {text}");
    }
}
