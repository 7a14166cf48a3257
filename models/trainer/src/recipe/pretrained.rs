//! Finished networks that a recipe begins with instead of nothing: an autoencoder, a base.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Recipe, Stage};
use crate::{TrainError, digest, stages::configs};

const VAE: &str = "pretrained.vae";
const BASE: &str = "pretrained.base";
/// What a config says beside what the network is: where it comes from, how it is stored and run, what it was trained at.
const BESIDE: [&str; 11] = [
    "_class_name",
    "_diffusers_version",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "force_upcast",
    "pad_token_id",
    "sample_size",
    "scaling_factor",
    "torch_dtype",
];

/// `[pretrained]`: folders in the published layout, relative to the recipe's own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Folders {
    /// An autoencoder's.
    vae: Option<PathBuf>,
    /// A base pipeline's, for its denoiser and text encoders.
    base: Option<PathBuf>,
}

/// The weights of finished networks where training begins, with their digests: a run goes on only where it began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pretrained {
    /// The autoencoder. Its encoder stays as it is if the recipe gives it no steps.
    pub vae: Option<Component>,
    /// What makes its latents of unit deviation, as its config says.
    pub scaling_factor: Option<f64>,
    /// `unet`, `text_encoder` and `text_encoder_2`: none, or all three.
    pub base: Vec<Component>,
}

/// A network's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its folder's name in a pipeline.
    pub name: &'static str,
    /// The safetensors file.
    pub weights: PathBuf,
    /// SHA-256 of the file.
    digest: String,
}

impl Folders {
    pub(super) fn has_vae(&self) -> bool {
        self.vae.is_some()
    }

    /// Looks the weights up; networks must be those that `recipe`, the file at `path`, describes.
    pub(super) fn open(self, recipe: &Recipe, path: &Path) -> Result<Pretrained, TrainError> {
        let Self { vae, base } = self;
        if base.is_some() && (vae.is_none() || recipe.vae.steps > 0) {
            let found =
                if vae.is_none() { "absent".to_owned() } else { format!("trained for {}", recipe.vae.steps) };
            // A denoiser knows the latents of one encoder alone.
            let allowed = "there, with vae.steps = 0, beside pretrained.base".to_owned();
            return Err(TrainError::InvalidRecipe {
                path: path.to_owned(),
                key: VAE.to_owned(),
                found,
                allowed,
            });
        }
        let mut pretrained = Pretrained::default();
        if let Some(folder) = vae {
            let own = Finished { recipe: path, key: VAE, folder: &folder, part: None };
            let file = "diffusion_pytorch_model.safetensors";
            let (component, config) = own.open("vae", file, &configs::vae_json(recipe, 1.0))?;
            let factor = config.get("scaling_factor").and_then(Value::as_f64).filter(|factor| *factor > 0.0);
            if factor.is_none() {
                return Err(own.unfit("without a scaling_factor", "with one"));
            }
            (pretrained.vae, pretrained.scaling_factor) = (Some(component), factor);
        }
        let Some(folder) = base else { return Ok(pretrained) };
        for (name, file, expected) in [
            ("unet", "diffusion_pytorch_model.safetensors", configs::unet_json(recipe)),
            ("text_encoder", "model.safetensors", configs::text_encoder_json(recipe)),
            ("text_encoder_2", "model.safetensors", configs::text_encoder_2_json(recipe)),
        ] {
            let own = Finished { recipe: path, key: BASE, folder: &folder, part: Some(name) };
            pretrained.base.push(own.open(name, file, &expected)?.0);
        }
        Ok(pretrained)
    }
}

impl Pretrained {
    /// Of those that a stage's weights depend on.
    pub(super) fn digests(&self, stage: Stage) -> Vec<[&str; 2]> {
        let base: &[Component] =
            if matches!(stage, Stage::Vae | Stage::VaeDecoder) { &[] } else { &self.base };
        self.vae.iter().chain(base).map(|component| [component.name, &component.digest]).collect()
    }
}

/// A folder that a recipe names.
struct Finished<'a> {
    recipe: &'a Path,
    key: &'static str,
    folder: &'a Path,
    /// The folder in it that is meant.
    part: Option<&'static str>,
}

impl Finished<'_> {
    /// The weights in a file, and the config beside it, which must say of the network what `expected` does.
    fn open(
        &self,
        name: &'static str,
        file: &str,
        expected: &Value,
    ) -> Result<(Component, Value), TrainError> {
        let mut folder =
            self.recipe.parent().map_or_else(|| self.folder.to_owned(), |own| own.join(self.folder));
        folder.extend(self.part);
        let read = |file: &str| {
            fs::read(folder.join(file)).map_err(|error| {
                self.unfit(&format!("whose {file} cannot be read: {error}"), "that is finished")
            })
        };
        let config: Value = serde_json::from_slice(&read("config.json")?).map_err(|error| {
            self.unfit(&format!("whose config.json is not JSON: {error}"), "that is finished")
        })?;
        let differs = |(key, value): &(&String, &Value)| {
            !BESIDE.contains(&key.as_str()) && config.get(key.as_str()) != Some(*value)
        };
        if let Some((key, value)) = expected.as_object().into_iter().flatten().find(differs) {
            let found = config.get(key).unwrap_or(&Value::Null);
            return Err(
                self.unfit(&format!("with {key} {found}"), &format!("with {value}, as the recipe has it"))
            );
        }
        let digest = digest::hex(&Sha256::digest(read(file)?));
        Ok((Component { name, weights: folder.join(file), digest }, config))
    }

    fn unfit(&self, found: &str, allowed: &str) -> TrainError {
        let part = self.part.map(|part| format!("/{part}")).unwrap_or_default();
        TrainError::InvalidRecipe {
            path: self.recipe.to_owned(),
            key: self.key.to_owned(),
            found: format!("{}{part}, {}", self.folder.display(), found),
            allowed: format!("a network {allowed}"),
        }
    }
}
