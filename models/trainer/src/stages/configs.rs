//! The networks that a recipe describes, as the config files that the finished model has.

use std::path::Path;

use sdxl_models::{text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig};
use serde_json::{Value, json};

use crate::{
    TrainError,
    recipe::{Denoiser, Recipe},
    vocabulary,
};

/// The version of diffusers whose files these are.
const DIFFUSERS: &str = "0.42.1";
/// Pixels of a latent's side.
const LATENT: usize = 8;

/// `text_encoder/config.json`: CLIP-L's kind.
#[must_use]
pub fn text_encoder_json(recipe: &Recipe) -> Value {
    let encoder = &recipe.text_encoder;
    let mut config = clip_json(recipe, [encoder.hidden_size, encoder.layers, encoder.heads]);
    config["architectures"] = json!(["CLIPTextModel"]);
    config["hidden_act"] = json!("quick_gelu");
    config["projection_dim"] = json!(encoder.hidden_size);
    config
}

/// `text_encoder_2/config.json`: OpenCLIP-bigG's kind, which pools. The refiner has it too.
#[must_use]
pub fn text_encoder_2_json(recipe: &Recipe) -> Value {
    let encoder = &recipe.text_encoder_2;
    let mut config = clip_json(recipe, [encoder.hidden_size, encoder.layers, encoder.heads]);
    config["architectures"] = json!(["CLIPTextModelWithProjection"]);
    config["hidden_act"] = json!("gelu");
    config["projection_dim"] = json!(encoder.projection_dim);
    config
}

fn clip_json(recipe: &Recipe, [hidden_size, layers, heads]: [usize; 3]) -> Value {
    json!({
        "attention_dropout": 0.0,
        // The ids are those of SDXL's files: 2 stands for "pool at the greatest id".
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": vocabulary::LENGTH,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        // transformers 5 would else compute in f16, as the weights are stored, beside a denoiser in f32.
        "torch_dtype": "float32",
        "vocab_size": recipe.model.vocab_size,
    })
}

/// `unet/config.json` of the base: attention at every level but the largest, to the states of both text encoders.
#[must_use]
pub fn unet_json(recipe: &Recipe) -> Value {
    let levels = recipe.base.block_out_channels.len();
    let width = recipe.text_encoder.hidden_size + recipe.text_encoder_2.hidden_size;
    denoiser_json(recipe, &recipe.base, |level| (1..levels).contains(&level), [width, 6])
}

/// `unet/config.json` of the refiner: no attention at the smallest level either; the second encoder alone.
#[must_use]
pub fn refiner_unet_json(recipe: &Recipe) -> Value {
    let levels = recipe.refiner.block_out_channels.len();
    let width = recipe.text_encoder_2.hidden_size;
    denoiser_json(recipe, &recipe.refiner, |level| (1..levels - 1).contains(&level), [width, 5])
}

fn denoiser_json(
    recipe: &Recipe,
    denoiser: &Denoiser,
    has_attention: impl Fn(usize) -> bool,
    [cross_attention_dim, time_ids]: [usize; 2],
) -> Value {
    let levels = 0..denoiser.block_out_channels.len();
    let block = |level, cross, plain| if has_attention(level) { cross } else { plain };
    let down: Vec<&str> =
        levels.clone().map(|level| block(level, "CrossAttnDownBlock2D", "DownBlock2D")).collect();
    let up: Vec<&str> = levels.rev().map(|level| block(level, "CrossAttnUpBlock2D", "UpBlock2D")).collect();
    let added = recipe.text_encoder_2.projection_dim + time_ids * denoiser.addition_time_embed_dim;
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": denoiser.addition_time_embed_dim,
        "attention_head_dim": denoiser.attention_head_dim,
        "block_out_channels": denoiser.block_out_channels,
        "cross_attention_dim": cross_attention_dim,
        "down_block_types": down,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": denoiser.layers_per_block,
        "norm_eps": 1e-5,
        "norm_num_groups": denoiser.norm_num_groups,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": added,
        "sample_size": recipe.data.sample_size / LATENT,
        "transformer_layers_per_block": denoiser.transformer_layers_per_block,
        "up_block_types": up,
        "use_linear_projection": true,
    })
}

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

/// SDXL's `scheduler/scheduler_config.json`.
#[must_use]
pub fn scheduler_json() -> Value {
    json!({
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
        "use_karras_sigmas": false,
    })
}

/// `model_index.json` of the base.
#[must_use]
pub fn index_json() -> Value {
    let mut index = shared_index();
    index["_class_name"] = json!("StableDiffusionXLPipeline");
    index["force_zeros_for_empty_prompt"] = json!(true);
    index["text_encoder"] = json!(["transformers", "CLIPTextModel"]);
    index["tokenizer"] = json!(["transformers", "CLIPTokenizer"]);
    index
}

/// `model_index.json` of the refiner, which has the second encoder only.
#[must_use]
pub fn refiner_index_json() -> Value {
    let mut index = shared_index();
    index["_class_name"] = json!("StableDiffusionXLImg2ImgPipeline");
    index["force_zeros_for_empty_prompt"] = json!(false);
    index["requires_aesthetics_score"] = json!(true);
    index["text_encoder"] = json!([null, null]);
    index["tokenizer"] = json!([null, null]);
    index
}

fn shared_index() -> Value {
    json!({
        "_diffusers_version": DIFFUSERS,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// The first text encoder.
///
/// # Errors
/// The recipe asks for what the networks do not have.
pub fn text_encoder(recipe: &Recipe) -> Result<ClipTextConfig, TrainError> {
    let text = text_encoder_json(recipe).to_string();
    Ok(ClipTextConfig::from_json(&text, Path::new("text_encoder/config.json"))?)
}

/// The second text encoder.
///
/// # Errors
/// As [`text_encoder`].
pub fn text_encoder_2(recipe: &Recipe) -> Result<ClipTextConfig, TrainError> {
    let text = text_encoder_2_json(recipe).to_string();
    Ok(ClipTextConfig::from_json(&text, Path::new("text_encoder_2/config.json"))?)
}

/// The base denoiser.
///
/// # Errors
/// As [`text_encoder`].
pub fn unet(recipe: &Recipe) -> Result<UnetConfig, TrainError> {
    Ok(UnetConfig::from_json(&unet_json(recipe).to_string(), Path::new("base/unet/config.json"))?)
}

/// The refiner.
///
/// # Errors
/// As [`text_encoder`].
pub fn refiner_unet(recipe: &Recipe) -> Result<UnetConfig, TrainError> {
    Ok(UnetConfig::from_json(&refiner_unet_json(recipe).to_string(), Path::new("refiner/unet/config.json"))?)
}

/// The autoencoder.
///
/// # Errors
/// As [`text_encoder`].
pub fn vae(recipe: &Recipe, scaling_factor: f64) -> Result<VaeConfig, TrainError> {
    Ok(VaeConfig::from_json(&vae_json(recipe, scaling_factor).to_string(), Path::new("vae/config.json"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denoisers_have_the_shape_of_sdxls() {
        let shipped = include_str!("../../../recipes/shapes.toml");
        let recipe = Recipe::parse(shipped, Path::new("shapes.toml")).unwrap();
        let [base, refiner] = [unet_json(&recipe), refiner_unet_json(&recipe)];
        let [plain, cross] = ["DownBlock2D", "CrossAttnDownBlock2D"];
        assert_eq!(base["down_block_types"], json!([plain, cross, cross]));
        assert_eq!(refiner["down_block_types"], json!([plain, cross, cross, plain]));
        let [plain, cross] = ["UpBlock2D", "CrossAttnUpBlock2D"];
        assert_eq!(base["up_block_types"], json!([cross, cross, plain]));
        assert_eq!(refiner["up_block_types"], json!([plain, cross, cross, plain]));
        let (first, second) = (text_encoder(&recipe).unwrap(), text_encoder_2(&recipe).unwrap());
        let [base, refiner] = [unet(&recipe).unwrap(), refiner_unet(&recipe).unwrap()];
        assert_eq!(base.cross_attention_dim, first.hidden_size + second.hidden_size);
        assert_eq!(refiner.cross_attention_dim, second.hidden_size);
        assert_eq!(base.pooled_projection_dim(false), second.projection_dim);
        assert_eq!(refiner.pooled_projection_dim(true), second.projection_dim);
        assert_eq!(base.sample_size, Some(recipe.data.sample_size / LATENT));
    }
}
