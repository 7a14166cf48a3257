//! Which replica does what: a fleet per stage, fed by a source of addresses, that follows its replicas' health and
//! gives each unit of work to the one with the least outstanding.

mod fleet;
mod info;
mod kubernetes;
mod probe;
mod replica;
mod source;

pub use fleet::{Census, Fleet, FleetStatus, Near};
pub use info::{Details, StageInfo};
pub use kubernetes::ServiceName;
pub use replica::{Lease, Replica};
pub use source::{Address, DnsName, Endpoint, Source};

use crate::config::Config;
use kube::Client;
use sdxl_core::StageKind;
use std::time::Duration;
use tower::retry::budget::TpsBudget;

/// How long retries count, for the budget of those to come.
const RETRIES_REMEMBERED: Duration = Duration::from_secs(10);

/// The fleets of all stages.
#[derive(Debug)]
pub struct Fleets {
    /// Prompts to embeddings.
    pub text_encoder: Fleet,
    /// Noise to latents.
    pub base_unet: Fleet,
    /// Latents to finer latents, where the cluster has that stage.
    pub refiner: Option<Fleet>,
    /// Latents to pictures.
    pub vae: Fleet,
    /// How much of the work may be repeated, over all requests: an outage must not be made worse by them.
    pub retries: TpsBudget,
}

impl Fleets {
    /// Starts to follow all replicas of `config`, which needs a client of Kubernetes for what is found there. Must be
    /// called in a tokio runtime; ends when dropped.
    #[must_use]
    pub fn start(config: &Config, kubernetes: Option<&Client>) -> Self {
        let fleet = |stage, source: &Source| {
            let near = Near {
                zone: config.zone.clone(),
                connect_timeout: config.connect_timeout,
                tls: config.stage_tls.clone(),
            };
            Fleet::start(stage, source.clone(), kubernetes.cloned(), near)
        };
        Self {
            text_encoder: fleet(StageKind::TextEncoder, &config.text_encoder),
            base_unet: fleet(StageKind::BaseUnet, &config.base_unet),
            refiner: config.refiner.as_ref().map(|source| fleet(StageKind::Refiner, source)),
            vae: fleet(StageKind::Vae, &config.vae),
            retries: TpsBudget::new(RETRIES_REMEMBERED, config.retries_per_second, config.retry_ratio),
        }
    }

    /// Units of work a second of each stage, in a request's order; of a stage without replicas nothing is known.
    #[must_use]
    pub fn speeds(&self) -> [Option<f64>; 4] {
        let refiner = self.refiner.as_ref().and_then(Fleet::speed);
        [self.text_encoder.speed(), self.base_unet.speed(), refiner, self.vae.speed()]
    }

    /// Each fleet, in a request's order.
    pub fn iter(&self) -> impl Iterator<Item = &Fleet> {
        [&self.text_encoder, &self.base_unet].into_iter().chain(&self.refiner).chain([&self.vae])
    }
}
