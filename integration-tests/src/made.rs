//! Checkpoints, made once from their seed and kept in cargo's target folder.

use crate::process;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

/// A checkpoint folder with `base` and `refiner`.
#[derive(Clone, Debug)]
pub struct Made {
    root: PathBuf,
}

impl Made {
    /// The smallest checkpoint.
    #[must_use]
    pub fn pico() -> Self {
        Self::of("pico", 0)
    }

    /// The model that ships with the project.
    #[must_use]
    pub fn shipped() -> Self {
        Self { root: Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/shapes") }
    }

    /// The checkpoint of `variant` and `seed`, made by `sdxl-checkpoint` unless it is there already. Several test
    /// programs may ask at once; a checkpoint older than the program that makes it is made anew.
    #[must_use]
    pub fn of(variant: &str, seed: u64) -> Self {
        let folder = process::target_dir().join("tmp/checkpoints");
        fs::create_dir_all(&folder).expect("a folder for checkpoints");
        let root = folder.join(format!("{variant}-{seed}"));
        let lock = File::create(folder.join(format!("{variant}-{seed}.lock"))).expect("a lock file");
        lock.lock().expect("the lock");
        if modified(&root) <= modified(&process::binary("sdxl-checkpoint")) {
            let _ = fs::remove_dir_all(&root);
            let half_done = folder.join(format!("{variant}-{seed}.new"));
            let _ = fs::remove_dir_all(&half_done);
            make(variant, seed, &half_done);
            fs::rename(&half_done, &root).expect("the new checkpoint moves into place");
        }
        Self { root }
    }

    /// The folder that holds `base` and `refiner`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The base's pipeline folder.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.root.join("base")
    }

    /// The refiner's pipeline folder.
    #[must_use]
    pub fn refiner(&self) -> PathBuf {
        self.root.join("refiner")
    }
}

fn make(variant: &str, seed: u64, folder: &Path) {
    let seed = seed.to_string();
    let mut command = process::command("sdxl-checkpoint", ["random", "--variant", variant, "--seed", &seed]);
    command.arg("--out").arg(folder);
    let output = process::run(command, Duration::from_secs(300));
    assert!(output.status.success(), "sdxl-checkpoint: {}", String::from_utf8_lossy(&output.stderr));
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}
