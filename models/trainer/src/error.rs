//! What can go wrong in training. Every message is one line that names the file, and the key, tensor or step in it.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// An error of this crate.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A file or folder could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or folder could not be written; what was there before still is.
    #[error("{}: cannot be written: {source}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A recipe is not TOML, lacks a key, has one that we do not know, or a value of another type.
    #[error("{}:{line}: {why}", path.display())]
    ParseRecipe {
        /// The recipe.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The parser's complaint.
        why: String,
    },
    /// A recipe's value is out of its range.
    #[error("{}: {key} = {found}: must be {allowed}", path.display())]
    InvalidRecipe {
        /// The recipe.
        path: PathBuf,
        /// The key, with its section.
        key: String,
        /// Its value.
        found: String,
        /// What it may be.
        allowed: String,
    },
    /// A safetensors file is damaged, or not one of ours.
    #[error("{}: not usable: {why}", path.display())]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file's tensors are not those of the network.
    #[error("{}: tensor {tensor} {why}", path.display())]
    UnfitTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// In what it differs.
        why: String,
    },
    /// A checkpoint of another stage, or made by another recipe.
    #[error("{}: its {what} is {found}, not {expected}; choose another --out, or the recipe and the [pretrained] weights that made it", path.display())]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the checkpoint has.
        found: String,
        /// What this run has.
        expected: String,
    },
    /// Another process trains in the same folder.
    #[error("{}: another process is training here", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// Loss or gradient is infinite or not a number. The weights are those of the step before.
    #[error("step {step}: the {what} is not finite; samples {batch:?}{}", of(*bucket))]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// Loss or gradient.
        what: &'static str,
        /// The samples that gave it.
        batch: Vec<usize>,
        /// Where samples are numbered by size: that of these, height and width in pixels.
        bucket: Option<[usize; 2]>,
    },
    /// Something that all else needs could not be set up: signals, threads, a schedule, the choice of pictures.
    #[error("cannot {what}: {why}")]
    StartUp {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// It was time to stop in the middle of something; what was done of it is kept.
    #[error("stopped while {what}; run the same command to go on")]
    Interrupted {
        /// What was being done.
        what: &'static str,
    },
    /// A stage needs another one's result.
    #[error("{}: stage {stage} is not finished: train it first", path.display())]
    Unfinished {
        /// The stage's folder.
        path: PathBuf,
        /// The stage.
        stage: &'static str,
    },
    /// A finished model is too much for the repository.
    #[error("{}: the model would take {total} bytes; at most {most} are allowed", path.display())]
    TooLarge {
        /// Where it was to be.
        path: PathBuf,
        /// Its files' bytes.
        total: u64,
        /// What is allowed.
        most: u64,
    },
    /// A network, tokenizer or checkpoint of the model.
    #[error(transparent)]
    Model(#[from] sdxl_models::ModelError),
    /// A computation failed.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

fn of(bucket: Option<[usize; 2]>) -> String {
    bucket.map_or_else(String::new, |[height, width]| format!(" of those of {height}x{width} pixels"))
}

impl TrainError {
    pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::ReadFile { path, source }
    }

    pub(crate) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::WriteFile { path, source }
    }
}
