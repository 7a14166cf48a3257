//! What stages say of themselves.

use super::{WireError, conditioner};
use crate::v1;
use sdxl_core::{Conditioner, ConditionerInfo, DenoiserInfo, SchedulerConfig, Size, VaeInfo};

impl From<&DenoiserInfo> for v1::DenoiserDetails {
    fn from(info: &DenoiserInfo) -> Self {
        Self {
            latent_channels: info.latent_channels,
            sample_size: info.sample_size,
            requires_aesthetics_score: info.requires_aesthetics_score,
            cross_attention_dim: info.cross_attention_dim,
            pooled_projection_dim: info.pooled_projection_dim,
            scheduler: Some((&info.scheduler).into()),
            training_buckets: info.training_buckets.iter().map(|size| (*size).into()).collect(),
            cache_branch_costs: info.cache_branch_costs.clone(),
            guidance_steps: info.guidance_steps,
        }
    }
}

impl TryFrom<&v1::DenoiserDetails> for DenoiserInfo {
    type Error = WireError;

    fn try_from(details: &v1::DenoiserDetails) -> Result<Self, WireError> {
        let scheduler = details.scheduler.as_ref().ok_or_else(|| WireError::missing("denoiser.scheduler"))?;
        Ok(Self {
            latent_channels: details.latent_channels,
            sample_size: details.sample_size,
            requires_aesthetics_score: details.requires_aesthetics_score,
            cross_attention_dim: details.cross_attention_dim,
            pooled_projection_dim: details.pooled_projection_dim,
            scheduler: SchedulerConfig::try_from(scheduler)?,
            training_buckets: details.training_buckets.iter().map(|size| Size::from(*size)).collect(),
            cache_branch_costs: details.cache_branch_costs.clone(),
            guidance_steps: details.guidance_steps,
        })
    }
}

impl From<&VaeInfo> for v1::VaeDetails {
    fn from(info: &VaeInfo) -> Self {
        Self { latent_channels: info.latent_channels, vae_scale_factor: info.vae_scale_factor }
    }
}

impl From<&v1::VaeDetails> for VaeInfo {
    fn from(details: &v1::VaeDetails) -> Self {
        Self { latent_channels: details.latent_channels, vae_scale_factor: details.vae_scale_factor }
    }
}

/// One conditioner of the text encoder stage, for the wire.
#[must_use]
pub fn conditioner_details(which: Conditioner, info: &ConditionerInfo) -> v1::ConditionerDetails {
    v1::ConditionerDetails {
        conditioner: v1::Conditioner::from(which).into(),
        num_hidden_layers: info.num_hidden_layers,
        cross_attention_dim: info.cross_attention_dim,
        pooled_projection_dim: info.pooled_projection_dim,
        force_zeros_for_empty_prompt: info.force_zeros_for_empty_prompt,
    }
}

/// The conditioner `which` among a text encoder's, if it serves that one.
#[must_use]
pub fn conditioner_info(details: &v1::TextEncoderDetails, which: Conditioner) -> Option<ConditionerInfo> {
    let details = details.conditioners.iter().find(|c| conditioner(c.conditioner()) == Some(which))?;
    Some(ConditionerInfo {
        num_hidden_layers: details.num_hidden_layers,
        cross_attention_dim: details.cross_attention_dim,
        pooled_projection_dim: details.pooled_projection_dim,
        force_zeros_for_empty_prompt: details.force_zeros_for_empty_prompt,
    })
}
