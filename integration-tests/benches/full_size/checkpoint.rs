//! Weights that both sides load.

use integration_tests::{Made, process};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A checkpoint with random weights of SDXL's full size in float16, made once: 7 GB with everything.
pub(crate) fn full_size() -> PathBuf {
    let folder = process::target_dir().join("bench/sdxl");
    let base = folder.join("base");
    if !base.join("done").exists() {
        eprintln!("making random weights of SDXL's full size in {} ...", folder.display());
        let mut command = Command::new(process::binary("sdxl-checkpoint"));
        command.args(["random", "--variant", "sdxl", "--seed", "0", "--dtype", "f16", "--no-refiner"]);
        let status = command.arg("--out").arg(&folder).status().expect("sdxl-checkpoint runs");
        assert!(status.success(), "sdxl-checkpoint failed");
        fs::write(base.join("done"), "").expect("the checkpoint's folder");
    }
    base
}

/// The model that ships with the project.
pub(crate) fn shipped() -> PathBuf {
    Made::shipped().base()
}

/// MiB of a component's weights as they are computed with, from files in float16.
pub(crate) fn weights_mib(component: &Path, dtype: &str) -> f64 {
    let files = fs::read_dir(component).expect("a component's folder");
    let is_weights = |path: &Path| path.extension().is_some_and(|extension| extension == "safetensors");
    let paths = files.map(|file| file.expect("a file").path()).filter(|path| is_weights(path));
    let bytes: u64 = paths.map(|path| fs::metadata(path).expect("a file").len()).sum();
    let widened = if dtype == "f32" { 2.0 } else { 1.0 };
    bytes as f64 * widened / f64::from(1 << 20)
}
