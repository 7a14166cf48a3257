//! Writes the finished model in the folders that diffusers and the services load: `base`, and `refiner` if there is one.

mod pipeline;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use pipeline::Pipeline;

use crate::{TrainError, recipe::Recipe, store::Snapshot, tensor_file};

/// The most that all files may take, in bytes: the model is kept in the repository, and cloned with it.
pub const MOST_BYTES: u64 = 24_000_000;
/// Both pipelines' folders.
const PIPELINES: [&str; 2] = ["base", "refiner"];

/// The finished networks, each under its own tensors' names without a prefix.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The first text encoder.
    pub text_encoder: Snapshot,
    /// The second, which both pipelines have.
    pub text_encoder_2: Snapshot,
    /// The base denoiser.
    pub unet: Snapshot,
    /// The refiner's denoiser.
    pub refiner: Option<Snapshot>,
    /// The autoencoder, which both pipelines have.
    pub vae: Snapshot,
    /// What makes its latents of unit deviation.
    pub scaling_factor: f64,
}

/// What was written: `base/unet` and the like with their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(Vec<(String, u64)>);

impl Sizes {
    /// Bytes of all files.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    fn check(&self, out: &Path, most: u64) -> Result<(), TrainError> {
        let total = self.total();
        if total <= most {
            return Ok(());
        }
        Err(TrainError::TooLarge { path: out.to_owned(), total, most })
    }
}

/// A table, its last line the total.
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bytes) in &self.0 {
            writeln!(f, "{name:<24} {:>8.3} MB", *bytes as f64 / 1e6)?;
        }
        write!(f, "{:<24} {:>8.3} MB", "together", self.total() as f64 / 1e6)
    }
}

/// Writes `parts` to `out/base` and `out/refiner`, weights in f16, in place of what is there: all of it or nothing, and
/// nothing that does not read back as the recipe's networks.
///
/// # Errors
/// A tensor is not one of the recipe's networks, or is infinite in f16; the files are more than [`MOST_BYTES`], or
/// cannot be written.
pub fn export(recipe: &Recipe, parts: &Parts, out: &Path) -> Result<Sizes, TrainError> {
    fs::create_dir_all(out).map_err(TrainError::writing(out))?;
    let work = tempfile::Builder::new().prefix(".export-").tempdir_in(out);
    let work = work.map_err(TrainError::writing(out))?;
    let new = work.path().join("new");
    let mut sizes = Sizes(Pipeline::base(recipe, parts)?.write(&new)?);
    if let Some(refiner) = Pipeline::refiner(recipe, parts)? {
        sizes.0.extend(refiner.write(&new)?);
    }
    sizes.check(out, MOST_BYTES)?;
    if let Err(Unreplaced { source, is_undone }) = replace(&new, &work.path().join("old"), out) {
        if !is_undone {
            let _ = work.keep(); // the old model is in there
        }
        return Err(TrainError::WriteFile { path: out.to_owned(), source });
    }
    Ok(sizes)
}

/// Why a model could not take the place of another.
struct Unreplaced {
    source: io::Error,
    /// Whether all is as it was.
    is_undone: bool,
}

/// Moves the pipelines in `new` to `out`, and what `out` has of them to `old`; all back again where that fails.
fn replace(new: &Path, old: &Path, out: &Path) -> Result<(), Unreplaced> {
    let mut moved = Vec::<[PathBuf; 2]>::new();
    let mut swap = || -> io::Result<()> {
        fs::create_dir(old)?;
        for name in PIPELINES {
            for (from, to) in [(out, old), (new, out)] {
                let (from, to) = (from.join(name), to.join(name));
                // A model without a refiner takes the place of one that has it.
                if from.exists() {
                    fs::rename(&from, &to)?;
                    moved.push([from, to]);
                }
            }
        }
        tensor_file::sync_folder(&out.join(PIPELINES[0]))
    };
    swap().map_err(|source| {
        let is_undone = moved.iter().rev().all(|[from, to]| fs::rename(to, from).is_ok());
        Unreplaced { source, is_undone }
    })
}

#[cfg(test)]
mod tests;
