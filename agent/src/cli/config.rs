//! `config` and `plan`: what a project is, and what would be done for it.

use super::options::Options;
use super::progress::explain;
use super::{Done, Failed, table, up};
use crate::control::{Agent, Reply, Request};
use crate::exit::Code;
use coracle_compose::LoadOptions;
use coracle_runtime::image::Platform;
use std::path::{Path, PathBuf};

/// How the compose file is read.
pub fn load_options(options: &Options) -> Result<LoadOptions, Failed> {
    let folder = options.project_folder();
    let profiles = std::env::var("COMPOSE_PROFILES").unwrap_or_default();
    let mut profiles: Vec<String> = profiles.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect();
    profiles.extend(options.profiles.iter().cloned());
    Ok(LoadOptions {
        files: absolute(&options.files),
        env_files: absolute(&options.env_files),
        folder,
        project_name: options.project.clone().or_else(|| std::env::var("COMPOSE_PROJECT_NAME").ok()),
        profiles,
        environment: std::env::vars().collect(),
        allow_binds: options.allow_binds.clone(),
        images: options.images.clone(),
        machine: Some(Platform::of_this_machine().to_string()),
    })
}

pub fn config(options: &Options) -> Done {
    let mut options = options.clone();
    up::take_folder(&mut options);
    let loaded = up::load(&options)?;
    for service in &loaded.needs_builder {
        eprintln!("warning: services.{service}: needs a builder: `up` wants an image");
    }
    if !options.quiet {
        match options.json {
            true => say!("{}", coracle_compose::to_json(&loaded.project)),
            false => say_part!("{}", coracle_compose::to_yaml(&loaded.project)),
        }
    }
    Ok(Code::Done)
}

pub fn plan(options: &Options) -> Done {
    let mut options = options.clone();
    up::take_folder(&mut options);
    let loaded = up::load(&options)?;
    let project = loaded.project.name.clone();
    let wanted = Box::new(up::wanted(&options, loaded)?);
    let started_here = up::ensure_agent(&options.paths)?;
    let answer = Agent::ask(&options.paths, &Request::Plan { wanted }).and_then(|mut agent| agent.answer());
    if started_here {
        Agent::ask(&options.paths, &Request::Shutdown)?.answer()?;
    }
    let (plan, preflight) = match answer? {
        Some(Reply::Planned { plan, preflight }) => (plan, preflight),
        _ => return Err(Failed::new(Code::Internal, "the agent gave an answer of another kind")),
    };
    if options.json {
        let document = serde_json::json!({ "plan": plan, "preflight": preflight });
        say!("{document}");
        return Ok(Code::Done);
    }
    for step in plan.steps.iter().filter(|step| step.concerns(&project)) {
        say!("{}: {}", step.action, step.why);
        if !step.waits.is_empty() {
            say!("    {}", explain(step));
        }
    }
    for problem in &plan.problems {
        say!("{problem}");
    }
    if plan.steps.is_empty() && plan.problems.is_empty() {
        say!("{project}: nothing to do");
    }
    for image in &preflight.images {
        say!("download {}: {}", image.name, table::bytes(image.to_download));
    }
    if !preflight.images.is_empty() {
        say!(
            "download {}, needs about {}, {} may be used",
            table::bytes(preflight.to_download),
            table::bytes(preflight.space_needed),
            table::bytes(preflight.space_available)
        );
    }
    Ok(if plan.problems.is_empty() { Code::Done } else { Code::Configuration })
}

fn absolute(files: &[PathBuf]) -> Vec<PathBuf> {
    files.iter().map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone())).collect()
}

/// True for something that is a path rather than an image's name.
pub fn is_path(text: &str) -> bool {
    text.starts_with(['.', '/']) || Path::new(text).is_dir()
}
