//! Projects as a user writes them: what they mean, and what is refused.

use coracle_compose::{
    Condition, LoadOptions, Loaded, MountSource, NetworkMode, Refusals, Restart, Service, load, parse_str,
};
use std::path::Path;

fn options(variables: &[(&str, &str)]) -> LoadOptions {
    LoadOptions {
        folder: "/srv/demo".into(),
        environment: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..LoadOptions::default()
    }
}

fn read(text: &str) -> Result<Loaded, Refusals> {
    parse_str("compose.yaml", text, &options(&[("K", "secret")]))
}

fn service(text: &str) -> Service {
    let text = format!("services:\n  s:\n    image: app:1\n{text}");
    let loaded = read(&text).unwrap_or_else(|refusals| panic!("{refusals}"));
    loaded.project.services["s"].clone()
}

fn refusal(text: &str) -> String {
    match read(text) {
        Err(refusals) => refusals.to_string(),
        Ok(loaded) => panic!("accepted: {:?}", loaded.project),
    }
}

// docker/compose#3672, docker/compose#8097, kubernetes/kompose#320
#[test]
fn words_are_those_of_yaml_1_2_and_numbers_those_of_compose() {
    let text = "services:\n  job:\n    image: app:1\n    restart: no\n    environment: {AUTO: yes, FLAG: off, N: n, \
        LEVEL: 010, VER: 1.10, BIG: 12345678901234567890, DAY: 2024-01-02, E: 1e3}\n    labels: {on: \"1\", y: no}\n";
    let loaded = read(text).unwrap_or_else(|refusals| panic!("{refusals}"));
    let job = &loaded.project.services["job"];
    assert_eq!(job.restart, Restart::No);
    let environment: Vec<_> =
        job.environment.iter().map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or("-"))).collect();
    let expected = [
        ("AUTO", "yes"),
        ("BIG", "12345678901234567890"),
        ("DAY", "2024-01-02"),
        ("E", "1000"),
        ("FLAG", "off"),
        ("LEVEL", "8"),
        ("N", "n"),
        ("VER", "1.1"),
    ];
    assert_eq!(environment, expected);
    assert_eq!(job.labels.keys().collect::<Vec<_>>(), ["on", "y"]);
    let warned: Vec<_> =
        loaded.warnings.iter().map(|it| it.field.rsplit('.').next().unwrap_or_default()).collect();
    assert_eq!(warned, ["LEVEL", "VER", "E"]);
}

#[test]
fn restart_false_is_refused_with_the_way_out() {
    let line = refusal("services:\n  s:\n    image: app:1\n    restart: false\n");
    assert_eq!(line, "compose.yaml:4: services.s.restart: is no restart policy: write no");
}

// compose-spec/compose-go#738, docker/compose#12717, docker/docs#20850
#[test]
fn file_modes_mean_the_same_however_they_are_written() {
    let text = "services:\n  s:\n    image: app:1\n    secrets:\n      - {source: k, target: /k1, mode: 0400}\n      \
        - {source: k, target: /k2, mode: 0o400}\n      - {source: k, target: /k3, mode: \"0400\"}\n      \
        - {source: k, target: /k4, mode: 256}\n      - {source: k, target: /k5, mode: 400}\n      - k\n\
        secrets: {k: {environment: K}}\n";
    let loaded = read(text).unwrap_or_else(|refusals| panic!("{refusals}"));
    let secrets = &loaded.project.services["s"].secrets;
    let modes: Vec<u32> = secrets.iter().map(|secret| secret.mode).collect();
    assert_eq!(modes, [0o400, 0o400, 0o400, 0o400, 0o620, 0o444]);
    assert_eq!(secrets[5].target, "/run/secrets/k");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(!format!("{:?}", loaded.project).contains("secret\""), "a secret's value is not shown");
}

// docker/compose#11740, compose-spec/compose-go#654, docker/compose#7955
#[test]
fn a_variable_without_value_unsets_what_files_and_images_say() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("dev.env"), "KEY=\"fallback\"\nZONE=eu\nBARE\n").expect("written");
    let text =
        "services:\n  s: {image: \"app:1\", env_file: dev.env, environment: {KEY: , ZONE: null, EMPTY: \"\"}}\n";
    let environment = |variables| {
        let options = LoadOptions { folder: folder.path().into(), ..options(variables) };
        let loaded = parse_str("compose.yaml", text, &options).unwrap_or_else(|refusals| panic!("{refusals}"));
        loaded.project.services["s"].environment.clone()
    };
    let alone = environment(&[]);
    assert_eq!(alone["KEY"], None);
    assert_eq!(alone["ZONE"], None);
    assert_eq!(alone["EMPTY"].as_deref(), Some(""));
    assert!(!alone.contains_key("BARE"), "a name alone in a file leaves the image's value");
    assert_eq!(environment(&[("ZONE", "us")])["ZONE"].as_deref(), Some("us"));
}

// docker/compose#9806, docker/compose#9716, docker/compose#12005
#[test]
fn dollars_quotes_and_braces_follow_the_specification() {
    let folder = tempfile::tempdir().expect("a folder");
    let variables = "H1='$2y$05$abc'\nH2=\"a\\$b\"\nH3=\"$2y$05$abc\"\n";
    std::fs::write(folder.path().join(".env"), variables).expect("written");
    std::fs::write(folder.path().join("s.env"), "\nOWN=${GONE}\n").expect("written");
    let text = "services:\n  s:\n    image: app:1\n    env_file: s.env\n    command: echo \"$$HOME\"\n    \
        environment:\n      V1: \"${H1}|${H2}|$$2y$$05\"\n      V2: \"{{ ${A:-a} }} ${A:-${B:-b}}/x ${A-}|${A:+set} pre-${M:-{}}-post\"\n";
    std::fs::write(folder.path().join("compose.yaml"), text).expect("written");
    let options = LoadOptions { folder: folder.path().into(), ..LoadOptions::default() };
    let loaded = load(&options).unwrap_or_else(|refusals| panic!("{refusals}"));
    let service = &loaded.project.services["s"];
    assert_eq!(service.environment["V1"].as_deref(), Some("$2y$05$abc|a$b|$2y$05"));
    assert_eq!(service.environment["V2"].as_deref(), Some("{{ a }} b/x | pre-{}-post"));
    assert_eq!(service.command.as_deref(), Some(["echo".to_owned(), "$HOME".to_owned()].as_slice()));
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let folder = folder.path().display();
    assert_eq!(
        warnings,
        [
            format!("{folder}/.env:3: H3: variable abc is not set and is taken as empty"),
            format!(
                "{folder}/compose.yaml:4: services.s.env_file: {folder}/s.env:2: variable GONE is not set and is taken as empty"
            )
        ]
    );
}

// docker/compose#5272, compose-spec/compose-spec#309, compose-spec/compose-go#182
#[test]
fn null_empty_and_absent_commands_are_three_things() {
    assert_eq!(service("    entrypoint: \n    command: null\n").entrypoint, None);
    let cleared = service("    entrypoint: \"\"\n    command: []\n");
    assert_eq!((cleared.entrypoint, cleared.command), (Some(vec![]), Some(vec![])));
    let words = service("    command: sh -c 'a > $$F'\n").command.expect("set");
    assert_eq!(words, ["sh", "-c", "a > $F"]);
}

#[test]
fn binds_outside_the_project_need_to_be_allowed_by_name() {
    let text = |source: &str| format!("services:\n  s:\n    image: app:1\n    volumes: [\"{source}:/x\"]\n");
    let inside = service("    volumes: [\"./data:/x:ro\"]\n");
    assert!(
        matches!(&inside.mounts[0].source, MountSource::Bind { path, inside_project: true, .. } if path == Path::new("/srv/demo/data"))
    );
    for source in ["/etc", "../other", "./../../etc"] {
        assert!(refusal(&text(source)).contains("--allow-bind"), "{source}");
    }
    assert!(refusal(&text("/var/run/docker.sock")).contains("no Docker engine"));
    let allowed = LoadOptions { allow_binds: vec!["/etc".into()], ..options(&[]) };
    parse_str("f", &text("/etc/ssl"), &allowed).unwrap_or_else(|refusals| panic!("{refusals}"));
}

#[test]
fn a_link_in_the_project_does_not_open_the_host() {
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink("/etc", folder.path().join("link")).expect("linked");
    let options = LoadOptions { folder: folder.path().into(), ..LoadOptions::default() };
    let text = "services:\n  s: {image: \"app:1\", volumes: [\"./link/ssl:/x\"]}\n";
    assert!(parse_str("f", text, &options).is_err());
}

#[test]
fn conditions_networks_and_health_checks_are_read() {
    let text = "services:\n  web:\n    image: a\n    depends_on: {db: {condition: service_healthy}}\n    \
        networks: {front: {aliases: [www]}}\n  db:\n    image: b\n    healthcheck: {test: \"true\", interval: 1m30s}\n    \
        network_mode: none\nnetworks: {front: {}}\n";
    let loaded = read(text).unwrap_or_else(|refusals| panic!("{refusals}"));
    let web = &loaded.project.services["web"];
    assert_eq!(web.depends_on["db"].condition, Condition::ServiceHealthy);
    assert!(matches!(&web.network, NetworkMode::Networks(it) if it["front"].aliases == ["www"]));
    assert_eq!(loaded.project.services["db"].network, NetworkMode::None);
    assert!(!loaded.project.networks.contains_key("default"), "nobody uses it");
}

#[test]
fn refusals_name_line_field_and_way_out() {
    let one = |body: &str| refusal(&format!("services:\n  s:\n    image: app:1\n    {body}\n"));
    assert_eq!(one("imgae: x"), "compose.yaml:4: services.s.imgae: is not known; did you mean image?");
    assert!(one("networks: [x]").contains("network x is not defined"));
    assert!(one("volumes: [v:/x]").contains("volume v is not defined"));
    assert!(one("depends_on: [t]").contains("service t is not defined"));
    assert!(one("runtime: nvidia").contains("this machine cannot run it"));
    assert!(one("scale: 2").contains("one container"));
    assert!(one("env_file: missing.env").contains("required: false"));
    assert!(one("sysctls: {vm.swappiness: 1}").contains("whole machine"));
    assert!(one("userns_mode: keep-id").contains("userns_mode"));
    let own_users = |more: &str| one(&format!("userns_mode: auto\n    {more}"));
    assert!(own_users("privileged: true").starts_with("compose.yaml:5: services.s.privileged: means nothing"));
    assert!(own_users("cap_add: [CHOWN, NET_ADMIN]").contains("services.s.cap_add: NET_ADMIN means nothing"));
    assert!(own_users("cap_add: [ALL]").contains("write userns_mode: host"));
    assert!(
        refusal("services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n")
            .contains("a -> b -> a")
    );
    assert!(
        refusal("services:\n  a: {image: x, ports: [\"80:80\"]}\n  b: {image: x, ports: [\"80:81\"]}\n")
            .contains("published by a")
    );
    assert!(refusal("services: {s: {}}\n").contains("neither image nor build"));
    assert!(refusal("secrets: {k: {environment: NOT_SET}}\n").contains("is not set"));
}

#[test]
fn a_service_with_only_build_is_taken_and_named() {
    let loaded = read("services:\n  s: {build: .}\n").unwrap_or_else(|refusals| panic!("{refusals}"));
    assert_eq!(loaded.needs_builder, ["s"]);
}

#[test]
fn a_port_on_an_address_that_cannot_answer_is_warned_about() {
    let ports = "[\"[::1]:8081:81\", \"[::]:8082:82\", \"127.0.0.1:8083:83\"]";
    let loaded = read(&format!("services:\n  s: {{image: a, ports: {ports}}}\n")).expect("accepted");
    let fields: Vec<_> = loaded.warnings.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["services.s.ports[0]"]);
}

#[test]
fn harmless_fields_warn_and_extensions_do_not() {
    let text = "version: \"3\"\nx-a: 1\nservices:\n  s: {image: a, container_name: c, x-b: 2}\n";
    let loaded = read(text).unwrap_or_else(|refusals| panic!("{refusals}"));
    let fields: Vec<_> = loaded.warnings.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["version", "services.s.container_name"]);
}

/// One file with every field that is taken.
const EVERYTHING: &str = include_str!("everything.yaml");

#[test]
fn what_config_prints_reads_back_as_the_same_project() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("here")).expect("made");
    std::fs::write(folder.path().join("key"), "k").expect("written");
    let options = LoadOptions { folder: folder.path().into(), ..options(&[("FROM_HOST", "a$b")]) };
    let first = parse_str("everything.yaml", EVERYTHING, &options).unwrap_or_else(|it| panic!("{it}")).project;
    for text in [coracle_compose::to_yaml(&first), coracle_compose::to_json(&first)] {
        let again = parse_str("printed.yaml", &text, &options).unwrap_or_else(|it| panic!("{it}\n{text}")).project;
        assert_eq!(again, first, "{text}");
    }
    assert!(!coracle_compose::to_yaml(&first).contains("a$$b"), "a secret's value is not printed");
}

#[test]
fn the_documentation_has_a_row_for_every_field() {
    let page = include_str!("../../docs/compose.md");
    for field in coracle_compose::field_names() {
        assert!(page.contains(&format!("`{field}`")), "docs/compose.md has no row for {field}");
    }
}

#[test]
fn a_key_that_is_too_long_for_its_line_prints_as_what_is_read_again() {
    let key = "k".repeat(2_000);
    let text = format!("name: a\nservices: {{s: {{image: \"i:1\", labels: {{? {key} : v, b: c}}}}}}\n");
    let options = LoadOptions { folder: "/nowhere".into(), ..LoadOptions::default() };
    let loaded = parse_str("f", &text, &options).expect("accepted");
    let printed = coracle_compose::to_yaml(&loaded.project);
    assert_eq!(parse_str("f", &printed, &options).expect("read again").project, loaded.project);
    assert_eq!(loaded.project.services["s"].labels[&key], "v");
}

#[test]
fn a_limit_of_0_is_no_limit_wherever_it_stands() {
    let text = "name: a\nservices: {s: {image: \"i:1\", deploy: {resources: {limits: {memory: 00M, cpus: \"0\", pids: 0}}}}}\n";
    let options = LoadOptions { folder: "/nowhere".into(), ..LoadOptions::default() };
    let loaded = parse_str("f", text, &options).expect("accepted");
    let limits = &loaded.project.services["s"].limits;
    assert_eq!((limits.memory, limits.nano_cpus, limits.pids), (None, None, Some(-1)));
}
