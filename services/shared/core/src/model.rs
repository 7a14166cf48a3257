//! What the stages say of their checkpoint, as far as a plan depends on it.

use crate::{
    scheduler::SchedulerConfig,
    size::{MAX_SIDE, MIN_SIDE, SDXL_BUCKETS, SIDE_MULTIPLE, Size},
};
use std::fmt;

/// A kind of server that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StageKind {
    /// Prompts to embeddings.
    TextEncoder,
    /// Noise to latents.
    BaseUnet,
    /// Latents to finer latents.
    Refiner,
    /// Latents to pictures.
    Vae,
}

impl StageKind {
    /// Every stage, in a request's order.
    pub const ALL: [Self; 4] = [Self::TextEncoder, Self::BaseUnet, Self::Refiner, Self::Vae];

    /// The stage's name in flags, logs and charts, as `base-unet`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text-encoder",
            Self::BaseUnet => "base-unet",
            Self::Refiner => "refiner",
            Self::Vae => "vae",
        }
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose conditioning a text is encoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conditioner {
    /// The base's: both encoders.
    Base,
    /// The refiner's: the second only.
    Refiner,
}

/// One conditioner of the text encoder stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionerInfo {
    /// Layers of the shallowest encoder.
    pub num_hidden_layers: u32,
    /// Width of `prompt_embeds`.
    pub cross_attention_dim: u32,
    /// Width of `pooled_prompt_embeds`.
    pub pooled_projection_dim: u32,
    /// Whether an absent negative prompt is zeros rather than an encoded "".
    pub force_zeros_for_empty_prompt: bool,
}

impl ConditionerInfo {
    /// The greatest `clip_skip`: `hidden_states` holds one entry more than there are layers, and diffusers takes entry
    /// `-(clip_skip + 2)`.
    #[must_use]
    pub fn max_clip_skip(&self) -> u32 {
        self.num_hidden_layers.saturating_sub(1)
    }
}

/// A denoiser stage.
#[derive(Clone, Debug, PartialEq)]
pub struct DenoiserInfo {
    /// Channels of latents.
    pub latent_channels: u32,
    /// The default picture's side in latents.
    pub sample_size: u32,
    /// Whether it is conditioned by an aesthetic score in place of `target_size`.
    pub requires_aesthetics_score: bool,
    /// Width of `prompt_embeds`.
    pub cross_attention_dim: u32,
    /// Width of `pooled_prompt_embeds`.
    pub pooled_projection_dim: u32,
    /// The checkpoint's scheduler.
    pub scheduler: SchedulerConfig,
    /// The checkpoint's own list of training sizes; may be empty.
    pub training_buckets: Vec<Size>,
    /// By `cache_branch_id`, what an evaluation from the cache costs of a whole one, 0 to 1; empty for a denoiser that
    /// caches nothing.
    pub cache_branch_costs: Vec<f32>,
    /// Whether guidance may be on in some steps only.
    pub guidance_steps: bool,
}

/// The VAE stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaeInfo {
    /// Channels of latents.
    pub latent_channels: u32,
    /// Pixels a latent.
    pub vae_scale_factor: u32,
}

/// What a cluster serves.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The base's conditioner.
    pub base_conditioner: ConditionerInfo,
    /// The base UNet.
    pub base: DenoiserInfo,
    /// The refiner with its conditioner, if the cluster has both.
    pub refiner: Option<(ConditionerInfo, DenoiserInfo)>,
    /// The autoencoder.
    pub vae: VaeInfo,
}

impl ModelInfo {
    /// The picture made where a request names no size: the UNet's `sample_size`, within what is served.
    #[must_use]
    pub fn default_size(&self) -> Size {
        let side = self.base.sample_size.saturating_mul(self.vae.vae_scale_factor).clamp(MIN_SIDE, MAX_SIDE);
        let side = side - side % SIDE_MULTIPLE;
        Size::new(side, side)
    }

    /// The sizes that the model was trained at: the checkpoint's list, the paper's for a model of SDXL's own size, or
    /// the default size alone.
    #[must_use]
    pub fn training_buckets(&self) -> Vec<Size> {
        if !self.base.training_buckets.is_empty() {
            self.base.training_buckets.clone()
        } else if self.default_size() == Size::new(1024, 1024) {
            SDXL_BUCKETS.to_vec()
        } else {
            vec![self.default_size()]
        }
    }
}
