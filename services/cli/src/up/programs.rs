//! The services' executables, which are beside `sdxl`'s own.

use anyhow::{Context, bail};
use std::{
    env,
    path::{Path, PathBuf},
};

/// The folder that the executables are in.
#[derive(Clone, Debug)]
pub(super) struct Programs(PathBuf);

impl Programs {
    /// Those beside the running executable.
    pub(super) fn beside_this() -> anyhow::Result<Self> {
        let own = env::current_exe().context("cannot tell where sdxl's own executable is")?;
        // A link to it may be anywhere.
        let own = own.canonicalize().unwrap_or(own);
        let folder = own.parent().context("sdxl's own executable is in no folder")?;
        Ok(Self(folder.to_owned()))
    }

    /// The folder itself.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// The executable `name`, which exists.
    ///
    /// # Errors
    /// Names what is missing, and how to make it.
    pub(super) fn find(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.check(&[name])?;
        Ok(self.0.join(name))
    }

    /// Whether all `names` exist.
    ///
    /// # Errors
    /// Names all that are missing, and how to make them.
    pub(super) fn check(&self, names: &[&str]) -> anyhow::Result<()> {
        let missing: Vec<_> = names.iter().copied().filter(|name| !self.0.join(name).is_file()).collect();
        if !missing.is_empty() {
            bail!(
                "missing beside sdxl in {}: {}; `cargo build` (or `cargo build --release`) in the repository makes them",
                self.0.display(),
                missing.join(", ")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sdxl-vae"), "").unwrap();
        let programs = Programs(folder.path().to_owned());
        assert_eq!(programs.find("sdxl-vae").unwrap(), folder.path().join("sdxl-vae"));
        let error = programs.check(&["sdxl-vae", "sdxl-refiner", "sdxl-base-unet"]).unwrap_err().to_string();
        assert!(error.contains("sdxl-refiner, sdxl-base-unet;"), "{error}");
        assert!(error.contains("cargo build") && !error.contains("sdxl-vae"), "{error}");
        assert!(!error.contains('\n'));
    }
}
