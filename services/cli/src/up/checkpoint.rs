//! Which model a cluster serves: the one that was named, the one that ships with the project, or a small random one
//! that is made once and kept.

use super::{args::UpArgs, programs::Programs};
use crate::{console, failure::Failure, terminal::TerminalArgs};
use anyhow::{Context, anyhow, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::process::Command;

/// What makes random checkpoints.
const MAKER: &str = "sdxl-checkpoint";
/// Where the shipped model is in the repository, and in an installation beside the executables.
const SHIPPED: &str = "models/shapes";
/// The random model's name in the cache. Another version may make other weights.
const RANDOM: &str = concat!("random-micro-seed0-", env!("CARGO_PKG_VERSION"));
/// The file that makes a folder a pipeline's.
const INDEX: &str = "model_index.json";

/// The folders of a base and perhaps its refiner, in diffusers' layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) base: PathBuf,
    pub(super) refiner: Option<PathBuf>,
}

impl Model {
    /// `root/base` and `root/refiner`, where there is a base.
    fn in_folder(root: &Path) -> Option<Self> {
        let (base, refiner) = (root.join("base"), root.join("refiner"));
        base.join(INDEX)
            .is_file()
            .then(|| Self { base, refiner: refiner.join(INDEX).is_file().then_some(refiner) })
    }
}

/// Finds the model that `args` mean, and makes it if it has to.
///
/// # Errors
/// Bad input where a folder is not there; [`Failure::Failed`] where the random model cannot be made.
pub(super) async fn find(
    args: &UpArgs,
    terminal: &TerminalArgs,
    programs: &Programs,
) -> Result<Model, Failure> {
    let mut model = match &args.base {
        Some(base) => {
            check("--base", base)?;
            if let Some(refiner) = &args.refiner {
                check("--refiner", refiner)?;
            }
            Model { base: base.clone(), refiner: args.refiner.clone() }
        }
        None => match shipped(programs.folder()) {
            Some(model) => model,
            None => random(args, terminal, programs).await?,
        },
    };
    if args.no_refiner {
        model.refiner = None;
    }
    Ok(model)
}

fn check(flag: &str, folder: &Path) -> Result<(), Failure> {
    if folder.join(INDEX).is_file() {
        return Ok(());
    }
    let fault = if folder.is_dir() { "holds no model_index.json" } else { "is no folder" };
    Err(Failure::bad_input(format!(
        "{flag}: {} {fault}; a diffusers pipeline's folder is needed",
        folder.display()
    )))
}

/// The shipped model of the repository or installation that `folder` is in.
fn shipped(folder: &Path) -> Option<Model> {
    folder.ancestors().find_map(|root| Model::in_folder(&root.join(SHIPPED)))
}

async fn random(args: &UpArgs, terminal: &TerminalArgs, programs: &Programs) -> anyhow::Result<Model> {
    let cache = args.cache_dir.clone().or_else(|| terminal.cache_dir());
    let cache = cache
        .context("there is no --base, and no home folder to keep a random model in: give --cache-dir")?;
    let folder = cache.join(RANDOM);
    let model = match Model::in_folder(&folder) {
        Some(model) => model,
        None => make(&cache, &folder, programs).await?,
    };
    console::note(format_args!(
        "no --base: serving the random model in {}; it draws noise-like textures, whatever the prompt",
        folder.display()
    ));
    Ok(model)
}

/// Makes the random model beside its place and moves it there whole, so that there is never half of one.
async fn make(cache: &Path, folder: &Path, programs: &Programs) -> anyhow::Result<Model> {
    let maker = programs.find(MAKER)?;
    console::note(format_args!("making a small random model in {}, once", folder.display()));
    fs::create_dir_all(cache).with_context(|| format!("cannot make the folder {}", cache.display()))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".random-")
        .tempdir_in(cache)
        .with_context(|| format!("cannot write to {}", cache.display()))?;
    let made = Command::new(&maker)
        .args(["random", "--variant", "micro", "--seed", "0", "--sample-size", "32", "--out"])
        .arg(unfinished.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", maker.display()))?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it says nothing");
        bail!("{MAKER} failed ({}): {last}", made.status);
    }
    let moved = fs::rename(unfinished.path(), folder);
    match (Model::in_folder(folder), moved) {
        (Some(model), Ok(())) => {
            let _ = unfinished.keep(); // it is not there any more
            Ok(model)
        }
        // Another sdxl was faster.
        (Some(model), Err(_)) => Ok(model),
        (None, Err(error)) => Err(anyhow!("cannot move the random model to {}: {error}", folder.display())),
        (None, Ok(())) => Err(anyhow!("{MAKER} made no base/{INDEX} in {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(INDEX), "{}").unwrap();
    }

    #[test]
    fn the_shipped_model_is_found_from_the_build_folder() {
        let root = tempfile::tempdir().unwrap();
        let build = root.path().join("target/debug");
        fs::create_dir_all(&build).unwrap();
        assert_eq!(shipped(&build), None);
        let shipped_folder = root.path().join(SHIPPED);
        pipeline(&shipped_folder.join("base"));
        let base = shipped_folder.join("base");
        assert_eq!(shipped(&build), Some(Model { base: base.clone(), refiner: None }));
        pipeline(&shipped_folder.join("refiner"));
        let refiner = Some(shipped_folder.join("refiner"));
        assert_eq!(shipped(&build), Some(Model { base, refiner }));
    }

    #[test]
    fn a_folder_that_is_no_model_is_bad_input() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check("--base", folder.path()).unwrap_err().code(), 2);
        assert_eq!(check("--base", &folder.path().join("none")).unwrap_err().code(), 2);
        pipeline(folder.path());
        assert!(check("--base", folder.path()).is_ok());
    }
}
