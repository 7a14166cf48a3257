//! What the stages serve together.

use crate::{
    placement::{Details, FleetStatus, StageInfo},
    store,
};
use sdxl_core::{DenoiserInfo, ModelInfo, StageKind};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What is known of the model that the stages serve together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ModelState {
    /// Of these stages no replica has been ready yet.
    Waiting(Vec<StageKind>),
    /// The stages do not fit together; a line that says where, with both figures.
    Contradiction(String),
    /// All that plans need.
    Known(Arc<Cluster>),
}

/// A model whose stages fit together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cluster {
    /// What plans depend on.
    pub info: ModelInfo,
    /// The base's name for it.
    pub model: String,
    /// A hash over the stages' revisions, in hexadecimal.
    pub revision: String,
    /// Each stage's own words, in a request's order.
    pub stages: Vec<Arc<StageInfo>>,
}

impl Cluster {
    /// What latents and pictures depend on beside the request: the model, and the number formats that it computes in.
    pub(crate) fn computation(&self) -> String {
        let formats = self.stages.iter().map(|stage| stage.dtype.as_str_name());
        std::iter::once(self.revision.as_str()).chain(formats).collect::<Vec<_>>().join(" ")
    }
}

impl ModelState {
    /// Puts together what the fleets of the needed stages say.
    #[must_use]
    pub(crate) fn new(fleets: &[(StageKind, FleetStatus)]) -> Self {
        let missing: Vec<_> =
            fleets.iter().filter(|(_, s)| s.info.is_none()).map(|(kind, _)| *kind).collect();
        if !missing.is_empty() {
            return Self::Waiting(missing);
        }
        let stages: Vec<_> = fleets.iter().filter_map(|(_, status)| status.info.clone()).collect();
        match assemble(&stages) {
            Ok(info) => {
                let base = stages.iter().find(|s| s.stage == StageKind::BaseUnet);
                let model = base.map(|s| s.model.clone()).unwrap_or_default();
                Self::Known(Arc::new(Cluster { info, model, revision: revision(&stages), stages }))
            }
            Err(line) => Self::Contradiction(line),
        }
    }
}

fn assemble(stages: &[Arc<StageInfo>]) -> Result<ModelInfo, String> {
    let (mut encoder, mut base, mut refiner, mut vae) = (None, None, None, None);
    for info in stages {
        match (&info.details, info.stage) {
            (Details::TextEncoder { base, refiner }, _) => encoder = Some((base.clone(), refiner.clone())),
            (Details::Denoiser(details), StageKind::Refiner) => refiner = Some(details.clone()),
            (Details::Denoiser(details), _) => base = Some(details.clone()),
            (Details::Vae(details), _) => vae = Some(details.clone()),
        }
    }
    let (Some((base_conditioner, refiner_conditioner)), Some(base), Some(vae)) = (encoder, base, vae) else {
        return Err("a stage is missing".to_owned());
    };
    let Some(base_conditioner) = base_conditioner else {
        return Err("the text-encoder serves no conditioner for the base".to_owned());
    };
    agree("latent_channels", ("base-unet", base.latent_channels), ("vae", vae.latent_channels))?;
    conditioning(&base_conditioner, ("base-unet", &base))?;
    let refiner = match (refiner_conditioner, refiner) {
        (Some(conditioner), Some(refiner)) => {
            agree(
                "latent_channels",
                ("base-unet", base.latent_channels),
                ("refiner", refiner.latent_channels),
            )?;
            conditioning(&conditioner, ("refiner", &refiner))?;
            Some((conditioner, refiner))
        }
        _ => None,
    };
    Ok(ModelInfo { base_conditioner, base, refiner, vae })
}

fn conditioning(
    conditioner: &sdxl_core::ConditionerInfo,
    (stage, denoiser): (&str, &DenoiserInfo),
) -> Result<(), String> {
    let encoder = "text-encoder";
    agree(
        "cross_attention_dim",
        (encoder, conditioner.cross_attention_dim),
        (stage, denoiser.cross_attention_dim),
    )?;
    agree(
        "pooled_projection_dim",
        (encoder, conditioner.pooled_projection_dim),
        (stage, denoiser.pooled_projection_dim),
    )
}

fn agree(what: &str, one: (&str, u32), other: (&str, u32)) -> Result<(), String> {
    if one.1 == other.1 {
        return Ok(());
    }
    Err(format!(
        "the stages contradict each other: {what} is {} in {} and {} in {}",
        one.1, one.0, other.1, other.0
    ))
}

fn revision(stages: &[Arc<StageInfo>]) -> String {
    let mut hash = Sha256::new();
    for stage in stages {
        // Neither name nor revision holds a line break, so that no two lists give the same bytes.
        hash.update(format!("{} {}\n", stage.stage, stage.revision.escape_default()));
    }
    store::hex(&hash.finalize())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sdxl_core::{ConditionerInfo, SchedulerConfig, SchedulerKind, VaeInfo};
    use sdxl_proto::v1::DType;

    pub(crate) fn conditioner(cross_attention_dim: u32) -> ConditionerInfo {
        ConditionerInfo {
            num_hidden_layers: 4,
            cross_attention_dim,
            pooled_projection_dim: 32,
            force_zeros_for_empty_prompt: true,
        }
    }

    fn denoiser(cross_attention_dim: u32, latent_channels: u32) -> Details {
        Details::Denoiser(DenoiserInfo {
            latent_channels,
            sample_size: 16,
            requires_aesthetics_score: false,
            cross_attention_dim,
            pooled_projection_dim: 32,
            scheduler: SchedulerConfig::new(SchedulerKind::Euler),
            training_buckets: Vec::new(),
            cache_branch_costs: vec![0.25],
            guidance_steps: true,
        })
    }

    fn of(stage: StageKind, revision: &str, details: Details) -> (StageKind, FleetStatus) {
        let info = StageInfo {
            stage,
            model: format!("{stage} model"),
            revision: revision.into(),
            device: "cpu".into(),
            dtype: DType::F32,
            details,
        };
        (stage, FleetStatus { info: Some(Arc::new(info)), ready: 1 })
    }

    fn fleets() -> Vec<(StageKind, FleetStatus)> {
        let encoder = Details::TextEncoder { base: Some(conditioner(64)), refiner: Some(conditioner(40)) };
        vec![
            of(StageKind::TextEncoder, "t", encoder),
            of(StageKind::BaseUnet, "b", denoiser(64, 4)),
            of(StageKind::Refiner, "r", denoiser(40, 4)),
            of(StageKind::Vae, "v", Details::Vae(VaeInfo { latent_channels: 4, vae_scale_factor: 8 })),
        ]
    }

    fn line(fleets: &[(StageKind, FleetStatus)]) -> String {
        match ModelState::new(fleets) {
            ModelState::Contradiction(line) => line,
            other => panic!("{other:?}"),
        }
    }

    fn known(fleets: &[(StageKind, FleetStatus)]) -> Arc<Cluster> {
        match ModelState::new(fleets) {
            ModelState::Known(cluster) => cluster,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stages_that_fit_make_a_model() {
        let cluster = known(&fleets());
        assert!(cluster.info.refiner.is_some());
        assert_eq!((cluster.model.as_str(), cluster.stages.len()), ("base-unet model", 4));
        let without: Vec<_> = fleets().into_iter().filter(|(kind, _)| *kind != StageKind::Refiner).collect();
        assert!(known(&without).info.refiner.is_none());
    }

    #[test]
    fn the_revision_depends_on_each_stages() {
        let all = known(&fleets()).revision.clone();
        assert_eq!(all.len(), 64);
        assert_eq!(all, known(&fleets()).revision);
        for i in 0..4 {
            let mut changed = fleets();
            let (kind, status) = &changed[i];
            changed[i] = of(*kind, "new", status.info.as_ref().unwrap().details.clone());
            assert_ne!(known(&changed).revision, all);
        }
    }

    #[test]
    fn a_refiner_without_its_conditioner_is_none() {
        let mut fleets = fleets();
        let encoder = Details::TextEncoder { base: Some(conditioner(64)), refiner: None };
        fleets[0] = of(StageKind::TextEncoder, "t", encoder);
        assert!(known(&fleets).info.refiner.is_none());
    }

    #[test]
    fn contradictions_are_told_with_both_figures() {
        let mut wrong = fleets();
        wrong[1] = of(StageKind::BaseUnet, "b", denoiser(64, 8));
        let prefix = "the stages contradict each other: ";
        assert_eq!(line(&wrong), format!("{prefix}latent_channels is 8 in base-unet and 4 in vae"));
        wrong[1] = of(StageKind::BaseUnet, "b", denoiser(96, 4));
        let expected = format!("{prefix}cross_attention_dim is 64 in text-encoder and 96 in base-unet");
        assert_eq!(line(&wrong), expected);
        let mut wrong = fleets();
        wrong[2] = of(StageKind::Refiner, "r", denoiser(41, 4));
        let expected = format!("{prefix}cross_attention_dim is 40 in text-encoder and 41 in refiner");
        assert_eq!(line(&wrong), expected);
        wrong[0] = of(StageKind::TextEncoder, "t", Details::TextEncoder { base: None, refiner: None });
        assert_eq!(line(&wrong), "the text-encoder serves no conditioner for the base");
    }

    #[test]
    fn stages_that_were_never_seen_are_waited_for() {
        let mut fleets = fleets();
        fleets[1].1 = FleetStatus::default();
        fleets[3].1 = FleetStatus::default();
        let expected = ModelState::Waiting(vec![StageKind::BaseUnet, StageKind::Vae]);
        assert_eq!(ModelState::new(&fleets), expected);
    }
}
