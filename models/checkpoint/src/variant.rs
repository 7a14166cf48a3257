//! The networks' dimensions, and the config files that say them.

use serde_json::{Value, json};

use crate::{Component, Pipeline};

/// A size of checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The smallest that has every kind of block: 3 million parameters in the base denoiser.
    Pico,
    /// Deeper: other depths and head counts at each level.
    Nano,
    /// Wider: widths that are no powers of two.
    Micro,
    /// SDXL's own dimensions: 2.57 billion parameters in the base denoiser alone.
    Sdxl,
}

struct Dimensions {
    /// Hidden size, layers and heads of the first text encoder.
    text_encoder: [usize; 3],
    /// The same of the second.
    text_encoder_2: [usize; 3],
    projection_dim: usize,
    unet: UnetDimensions<3>,
    refiner: UnetDimensions<4>,
    addition_time_embed_dim: usize,
    vae: [usize; 4],
}

struct UnetDimensions<const N: usize> {
    block_out_channels: [usize; N],
    transformer_layers_per_block: [usize; N],
    attention_head_dim: [usize; N],
}

impl Variant {
    fn dimensions(self) -> Dimensions {
        let unet = |block_out_channels, transformer_layers_per_block, attention_head_dim| UnetDimensions {
            block_out_channels,
            transformer_layers_per_block,
            attention_head_dim,
        };
        let refiner = |block_out_channels, depth, attention_head_dim| UnetDimensions {
            block_out_channels,
            transformer_layers_per_block: [depth; 4],
            attention_head_dim,
        };
        match self {
            Self::Pico => Dimensions {
                text_encoder: [32, 2, 4],
                text_encoder_2: [32, 3, 4],
                projection_dim: 32,
                unet: unet([32, 64, 64], [1, 1, 2], [2, 2, 4]),
                refiner: refiner([32, 64, 64, 64], 2, [2, 2, 4, 4]),
                addition_time_embed_dim: 32,
                vae: [32, 32, 32, 64],
            },
            Self::Nano => Dimensions {
                text_encoder: [32, 3, 4],
                text_encoder_2: [64, 4, 4],
                projection_dim: 64,
                unet: unet([32, 64, 128], [1, 2, 3], [2, 4, 8]),
                refiner: refiner([32, 64, 64, 64], 4, [2, 4, 4, 4]),
                addition_time_embed_dim: 32,
                vae: [32, 32, 64, 64],
            },
            Self::Micro => Dimensions {
                text_encoder: [64, 4, 4],
                text_encoder_2: [96, 5, 4],
                projection_dim: 80,
                unet: unet([64, 128, 192], [1, 1, 2], [4, 8, 6]),
                refiner: refiner([64, 96, 128, 128], 2, [4, 6, 8, 8]),
                addition_time_embed_dim: 64,
                vae: [32, 64, 96, 96],
            },
            Self::Sdxl => Dimensions {
                text_encoder: [768, 12, 12],
                text_encoder_2: [1280, 32, 20],
                projection_dim: 1280,
                unet: unet([320, 640, 1280], [1, 2, 10], [5, 10, 20]),
                refiner: refiner([384, 768, 1536, 1536], 4, [6, 12, 24, 24]),
                addition_time_embed_dim: 256,
                vae: [128, 256, 512, 512],
            },
        }
    }

    /// The `config.json` of a network; null for components that have none.
    pub(crate) fn config(self, pipeline: Pipeline, component: Component, sample_size: u32) -> Value {
        let d = self.dimensions();
        match (component, pipeline) {
            (Component::TextEncoder, _) => {
                text_encoder(d.text_encoder, d.text_encoder[0], "CLIPTextModel", "quick_gelu")
            }
            (Component::TextEncoder2, _) => {
                text_encoder(d.text_encoder_2, d.projection_dim, "CLIPTextModelWithProjection", "gelu")
            }
            (Component::Unet, Pipeline::Base) => {
                let mut config = unet(&d.unet, sample_size);
                config["down_block_types"] =
                    json!(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]);
                config["up_block_types"] = json!(["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]);
                conditioning(&mut config, &d, d.text_encoder[0] + d.text_encoder_2[0], 6);
                config
            }
            (Component::Unet, Pipeline::Refiner) => {
                let mut config = unet(&d.refiner, sample_size);
                config["down_block_types"] =
                    json!(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]);
                config["up_block_types"] =
                    json!(["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]);
                conditioning(&mut config, &d, d.text_encoder_2[0], 5);
                config
            }
            (Component::Vae, _) => vae(d.vae, sample_size),
            (Component::Scheduler | Component::Tokenizer | Component::Tokenizer2, _) => Value::Null,
        }
    }
}

fn text_encoder(
    [hidden_size, layers, heads]: [usize; 3],
    projection_dim: usize,
    class: &str,
    hidden_act: &str,
) -> Value {
    json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": hidden_act,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection_dim,
        "vocab_size": 49408,
    })
}

fn unet<const N: usize>(d: &UnetDimensions<N>, sample_size: u32) -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "attention_head_dim": d.attention_head_dim.as_slice(),
        "block_out_channels": d.block_out_channels.as_slice(),
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": sample_size,
        "transformer_layers_per_block": d.transformer_layers_per_block.as_slice(),
        "use_linear_projection": true,
    })
}

fn conditioning(config: &mut Value, d: &Dimensions, cross_attention_dim: usize, time_ids: usize) {
    config["addition_time_embed_dim"] = json!(d.addition_time_embed_dim);
    config["cross_attention_dim"] = json!(cross_attention_dim);
    config["projection_class_embeddings_input_dim"] =
        json!(time_ids * d.addition_time_embed_dim + d.projection_dim);
}

fn vae(block_out_channels: [usize; 4], sample_size: u32) -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.19.0",
        "act_fn": "silu",
        "block_out_channels": block_out_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "force_upcast": true,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 8 * sample_size,
        "scaling_factor": 0.13025,
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
    })
}

/// SDXL's `scheduler_config.json`.
pub(crate) fn scheduler_config() -> Value {
    json!({
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0",
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
