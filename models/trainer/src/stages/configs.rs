//! The networks that a recipe describes, as the config files that the finished model has.

use std::path::Path;

use sdxl_models::{text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig};
use serde_json::{Value, json};

use crate::{
    TrainError,
    recipe::{Denoiser, Recipe},
};

/// The version of diffusers whose files these are.
const DIFFUSERS: &str = "0.42.1";

/// `vae/config.json`.
#[must_use]
pub fn vae_json(recipe: &Recipe, scaling_factor: f64) -> Value {
    let vae = &recipe.vae;
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": vae.block_out_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; vae.block_out_channels.len()],
        "force_upcast": false,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": vae.layers_per_block,
        "norm_num_groups": vae.norm_num_groups,
        "out_channels": 3,
        "sample_size": recipe.data.sample_size,
        "scaling_factor": scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; vae.block_out_channels.len()],
    })
}

/// The autoencoder.
///
/// # Errors
/// The recipe asks for what the networks do not have.
pub fn vae(recipe: &Recipe, scaling_factor: f64) -> Result<VaeConfig, TrainError> {
    Ok(VaeConfig::from_json(&vae_json(recipe, scaling_factor).to_string(), Path::new("vae/config.json"))?)
}
