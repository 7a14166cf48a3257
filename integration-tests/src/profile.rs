//! A profile of a small model for the simulated engine.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file with a profile, which goes when this is dropped.
#[derive(Debug)]
pub struct Profile {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Profile {
    /// Pictures of up to 128 x 128, up to four in a batch; a step of one picture takes `step` seconds.
    ///
    /// # Panics
    /// Where the file cannot be written.
    #[must_use]
    pub fn quick(step: f64) -> Self {
        let folder = tempfile::tempdir().expect("a folder for a profile");
        let path = folder.path().join("quick.toml");
        let text = include_str!("quick.toml").replace("STEP", &step.to_string());
        fs::write(&path, text).expect("a profile");
        Self { path, _folder: folder }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
