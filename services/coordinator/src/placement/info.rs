//! What a replica says of itself.

use sdxl_core::{Conditioner, ConditionerInfo, DenoiserInfo, StageKind, VaeInfo};
use sdxl_proto::{
    convert,
    v1::{self, get_stage_response::Details as WireDetails},
};

/// A replica's own words, checked as far as they stand for themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct StageInfo {
    /// Its stage.
    pub stage: StageKind,
    /// The checkpoint's name.
    pub model: String,
    /// A hash of configs and weights.
    pub revision: String,
    /// As "cpu".
    pub device: String,
    /// What its networks compute in.
    pub dtype: v1::DType,
    /// What plans depend on.
    pub details: Details,
}

/// What plans depend on, by stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Details {
    /// The conditioners that a text encoder serves.
    TextEncoder {
        /// For the base.
        base: Option<ConditionerInfo>,
        /// For the refiner.
        refiner: Option<ConditionerInfo>,
    },
    /// Of base and refiner.
    Denoiser(DenoiserInfo),
    /// Of the autoencoder.
    Vae(VaeInfo),
}

impl StageInfo {
    /// Whether both give the same bytes for the same work, on the same kind of device, and take the same work.
    #[must_use]
    pub fn computes_as(&self, other: &Self) -> bool {
        (&self.revision, self.dtype, self.work()) == (&other.revision, other.dtype, other.work())
    }

    /// The details, and how many branches there are for step caching; what each costs is an estimate, which no byte depends on.
    fn work(&self) -> (Details, usize) {
        match &self.details {
            Details::Denoiser(info) => {
                let rest = DenoiserInfo { cache_branch_costs: Vec::new(), ..info.clone() };
                (Details::Denoiser(rest), info.cache_branch_costs.len())
            }
            other => (other.clone(), 0),
        }
    }

    /// Checks an answer of `GetStage` from a replica that should be of `stage`.
    ///
    /// # Errors
    /// A line that says what does not fit.
    pub fn new(stage: StageKind, answer: v1::GetStageResponse) -> Result<Self, String> {
        let kind = convert::stage_kind(answer.stage()).ok_or("it does not say which stage it is")?;
        if kind != stage {
            return Err(format!("it is a {kind}, not a {stage}"));
        }
        if answer.revision.is_empty() {
            return Err("it does not say which model revision it serves".to_owned());
        }
        let dtype = answer.dtype();
        let details = match (stage, answer.details) {
            (StageKind::TextEncoder, Some(WireDetails::TextEncoder(details))) => Details::TextEncoder {
                base: convert::conditioner_info(&details, Conditioner::Base),
                refiner: convert::conditioner_info(&details, Conditioner::Refiner),
            },
            (StageKind::BaseUnet | StageKind::Refiner, Some(WireDetails::Denoiser(details))) => {
                Details::Denoiser(denoiser(&details)?)
            }
            (StageKind::Vae, Some(WireDetails::Vae(details))) => Details::Vae(vae(&details)?),
            _ => return Err(format!("it does not give the details of a {stage}")),
        };
        Ok(Self {
            stage,
            model: answer.model,
            revision: answer.revision,
            device: answer.device,
            dtype,
            details,
        })
    }
}

/// More skip connections than any network of the kind has.
const MAX_BRANCHES: usize = 64;

fn denoiser(details: &v1::DenoiserDetails) -> Result<DenoiserInfo, String> {
    let info = DenoiserInfo::try_from(details).map_err(|error| error.to_string())?;
    in_range("latent_channels", info.latent_channels, 64)?;
    in_range("sample_size", info.sample_size, 1024)?;
    if info.training_buckets.iter().any(|size| size.height == 0 || size.width == 0) {
        return Err("training_buckets holds a size without area".to_owned());
    }
    let costs = &info.cache_branch_costs;
    if costs.len() > MAX_BRANCHES || !costs.iter().all(|cost| (0.0..=1.0).contains(cost)) {
        return Err(format!("cache_branch_costs are not up to {MAX_BRANCHES} numbers in 0..=1"));
    }
    Ok(info)
}

fn vae(details: &v1::VaeDetails) -> Result<VaeInfo, String> {
    let info = VaeInfo::from(details);
    in_range("latent_channels", info.latent_channels, 64)?;
    in_range("vae_scale_factor", info.vae_scale_factor, 64)?;
    Ok(info)
}

fn in_range(field: &str, value: u32, max: u32) -> Result<(), String> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(format!("{field} {value} is not in 1..={max}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(scale: u32) -> v1::GetStageResponse {
        v1::GetStageResponse {
            stage: v1::Stage::Vae.into(),
            model: "m".into(),
            revision: "r".into(),
            details: Some(WireDetails::Vae(v1::VaeDetails { latent_channels: 4, vae_scale_factor: scale })),
            ..Default::default()
        }
    }

    #[test]
    fn a_replica_of_another_stage_is_named() {
        let error = StageInfo::new(StageKind::BaseUnet, answer(8)).unwrap_err();
        assert_eq!(error, "it is a vae, not a base-unet");
    }

    #[test]
    fn numbers_that_a_plan_would_divide_by_are_checked() {
        assert!(StageInfo::new(StageKind::Vae, answer(8)).is_ok());
        let error = StageInfo::new(StageKind::Vae, answer(0)).unwrap_err();
        assert_eq!(error, "vae_scale_factor 0 is not in 1..=64");
    }

    fn base(costs: &[f32]) -> Result<StageInfo, String> {
        let details = v1::DenoiserDetails {
            latent_channels: 4,
            sample_size: 128,
            scheduler: Some((&sdxl_core::SchedulerConfig::new(sdxl_core::SchedulerKind::Euler)).into()),
            cache_branch_costs: costs.to_vec(),
            ..Default::default()
        };
        let answer = v1::GetStageResponse {
            stage: v1::Stage::BaseUnet.into(),
            details: Some(WireDetails::Denoiser(details)),
            ..answer(8)
        };
        StageInfo::new(StageKind::BaseUnet, answer)
    }

    #[test]
    fn costs_that_work_is_counted_by_are_checked() {
        for wrong in [&[0.5, f32::NAN][..], &[-0.1], &[1.5], &[f32::INFINITY], &[0.5; 65]] {
            assert_eq!(base(wrong).unwrap_err(), "cache_branch_costs are not up to 64 numbers in 0..=1");
        }
    }

    #[test]
    fn estimates_do_not_tell_replicas_apart_and_what_they_take_does() {
        let info = base(&[0.25, 0.5]).unwrap();
        assert!(info.computes_as(&base(&[0.3, 0.6]).unwrap()));
        assert!(!info.computes_as(&base(&[0.25]).unwrap()) && !info.computes_as(&base(&[]).unwrap()));
    }

    #[test]
    fn details_of_another_stage_or_none_are_refused() {
        let details = WireDetails::TextEncoder(v1::TextEncoderDetails::default());
        let wrong = v1::GetStageResponse { details: Some(details), ..answer(8) };
        assert!(StageInfo::new(StageKind::Vae, wrong).unwrap_err().contains("details of a vae"));
        let unknown = v1::GetStageResponse { stage: 99, ..answer(8) };
        assert!(StageInfo::new(StageKind::Vae, unknown).is_err());
    }
}
