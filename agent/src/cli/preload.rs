//! `preload`: takes what whoever built a board's image put beside the data: images, and the project that they are for.
//!
//! Each step may be done twice. The images are put aside by one rename when the agent has the project; until then all is
//! done again at the next boot, after that never.

use super::options::Options;
use super::{Done, Failed, up, view};
use crate::control::{Agent, Reply, Request};
use crate::exit::Code;
use std::path::Path;
use std::time::Duration;

/// Archives and layouts, one for each image or for several, as `import` takes them.
const IMAGES: &str = "images";
/// The same, taken.
const TAKEN: &str = ".images-taken";

/// Looks for the agent, which is started by others, and the pause between two: 20 s, as for a board's first boot.
const TRIES: u32 = 200;
const TRY_PAUSE: Duration = Duration::from_millis(100);

pub fn preload(options: &Options) -> Done {
    let [folder] = options.rest.as_slice() else {
        return Err(Failed::new(Code::Configuration, "preload takes one folder"));
    };
    let folder = std::path::absolute(folder)?;
    let (images, taken) = (folder.join(IMAGES), folder.join(TAKEN));
    remove(&taken)?;
    if images.exists() {
        wait_for_agent(options)?;
        import_all(options, &images)?;
        hand_over(options, &folder)?;
        std::fs::rename(&images, &taken)?;
        std::fs::File::open(&folder)?.sync_all()?;
    }
    remove(&taken)?;
    Ok(Code::Done)
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn wait_for_agent(options: &Options) -> Result<(), Failed> {
    for _ in 0..TRIES {
        if Agent::status(&options.paths).is_ok() {
            return Ok(());
        }
        std::thread::sleep(TRY_PAUSE);
    }
    Err(Failed::new(Code::Internal, "no agent answers; `preload` starts none"))
}

fn import_all(options: &Options, images: &Path) -> Result<(), Failed> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(images)? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let code = view::show_pull(options, &Request::Import { path: path.clone(), name: None })?;
        if code != Code::Done {
            return Err(Failed::new(code, format!("{} was not taken", path.display())));
        }
    }
    Ok(())
}

/// The agent keeps the project from now on, and starts it when it can.
fn hand_over(options: &Options, folder: &Path) -> Result<(), Failed> {
    let mut options = options.clone();
    options.rest.clear();
    options.folder = Some(folder.to_owned());
    let wanted = up::wanted(&options, up::load(&options)?)?;
    let request = Request::Up { wanted: Box::new(wanted), recreate: options.recreate, pull: options.pull };
    match Agent::ask(&options.paths, &request)?.answer()? {
        Some(Reply::Taken { .. }) => Ok(()),
        _ => Err(Failed::new(Code::Internal, "the agent gave an answer of another kind")),
    }
}
