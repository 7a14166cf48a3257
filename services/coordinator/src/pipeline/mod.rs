//! One request's way through the stages: its texts are encoded once, then each picture is denoised, refined and decoded
//! on its own, wherever there is least to do.
//!
//! All of it is one future: dropping it drops every call that is under way, which tells the replicas at once.

mod decode;
mod denoise;
mod encode;
mod error;
mod events;
mod hop;
mod kept;
mod reply;
mod times;
mod watch;

pub(crate) use encode::Lookups;
pub use error::GenerateError;
pub(crate) use events::{Events, Item, message};
pub(crate) use kept::{Kept, Part, Piece, Unsaved};

use crate::{
    admission::Promise,
    cache::EmbeddingCache,
    placement::{Fleet, Fleets},
};
use encode::Texts;
use futures::future::try_join_all;
use sdxl_core::{DenoisePlan, ModelInfo, Plan, StageKind};
use sdxl_proto::v1;
use sdxl_runtime::Terms;
use std::time::{Duration, Instant};

/// So much before the deadline the work is given up, so that the answer is ours and still gets through.
const EARLIER: Duration = Duration::from_millis(5);

/// A plan at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pipeline<'a> {
    /// Who does it.
    pub(crate) fleets: &'a Fleets,
    /// Texts that were encoded before.
    pub(crate) cache: &'a EmbeddingCache,
    /// What they serve.
    pub(crate) model: &'a ModelInfo,
    /// What is to be done.
    pub(crate) plan: &'a Plan,
    /// Its deadline, whose it is and how it hurries.
    pub(crate) terms: &'a Terms,
    /// What it was promised, which gets less as it is done.
    pub(crate) promise: &'a Promise,
    /// Steps from one checkpoint to the next.
    pub(crate) checkpoint_interval: u32,
    /// How long work that was begun waits where no replica takes it.
    pub(crate) patience: Duration,
    /// Where its work is kept and may have been begun, if it is to outlive this coordinator.
    pub(crate) kept: Option<&'a Kept>,
    /// Where it is told.
    pub(crate) events: &'a Events,
    /// When the request arrived, from which its timings count.
    pub(crate) arrived: Instant,
}

/// What is known when all pictures are done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// In the order of the pictures, each in the order of its stages.
    pub(crate) timings: Vec<v1::StageTiming>,
    /// What the caller may not have meant.
    pub(crate) warnings: Vec<v1::Warning>,
    /// What the cache knew of its texts.
    pub(crate) cache: Lookups,
    /// From the request's arrival to its texts' being there.
    pub(crate) texts_after: Duration,
}

impl<'a> Pipeline<'a> {
    /// Makes the pictures, which come out as events.
    ///
    /// # Errors
    /// The first failure of any picture; the others are given up.
    pub(crate) async fn run(self) -> Result<Outcome, GenerateError> {
        let work = Box::pin(self.all());
        let Some(deadline) = self.terms.deadline else { return work.await };
        let end = deadline.instant().checked_sub(EARLIER).unwrap_or_else(Instant::now);
        tokio::time::timeout_at(end.into(), work).await.unwrap_or_else(|_| {
            let pictures = u32::try_from(self.plan.seeds.len()).unwrap_or(u32::MAX);
            Err(GenerateError::Deadline {
                steps_done: self.events.steps_done(),
                steps_total: self.plan.steps().saturating_mul(pictures),
            })
        })
    }

    async fn all(self) -> Result<Outcome, GenerateError> {
        let encoded = self.encode().await?;
        let texts_after = self.arrived.elapsed();
        let texts = encoded.texts;
        let pictures = (0_u32..).zip(&self.plan.seeds).map(|(i, seed)| self.picture(i, *seed, &texts));
        let timings = try_join_all(pictures).await?;
        let timings = encoded.timings.into_iter().chain(timings.into_iter().flatten()).collect();
        Ok(Outcome { timings, warnings: self.warnings(&texts), cache: encoded.cache, texts_after })
    }

    async fn picture(
        self,
        index: u32,
        seed: u64,
        texts: &Texts,
    ) -> Result<Vec<v1::StageTiming>, GenerateError> {
        if let Some(image) = self.kept.and_then(|kept| kept.image(index)) {
            self.skipped(StageKind::BaseUnet, &self.plan.base, index, 0, self.plan.base.end_step);
            if let Some(plan) = &self.plan.refiner {
                self.skipped(StageKind::Refiner, plan, index, self.plan.base.steps(), plan.end_step);
            }
            self.promise.done(StageKind::Vae, self.latent_pixels());
            self.events.image(index, image).await?;
            return Ok(Vec::new());
        }
        let mut timings = Vec::with_capacity(3);
        let mut latents = self.base(index, seed, texts, &mut timings).await?;
        if let Some(plan) = &self.plan.refiner {
            latents = self.refine(plan, (index, seed), latents, texts, &mut timings).await?;
        }
        let image = self.decode(index, seed, latents, &mut timings).await?;
        if let Some(kept) = self.kept {
            kept.keep_image(index, image.clone());
        }
        self.events.image(index, image).await?;
        Ok(timings)
    }

    /// A stage's part of a picture was done up to the step `end` before, by whoever had the request then.
    fn skipped(self, stage: StageKind, plan: &DenoisePlan, image_index: u32, steps_before: u32, end: u32) {
        let steps = end - plan.begin_step;
        if steps == 0 {
            return;
        }
        self.promise.done(stage, plan.work(plan.begin_step..end, self.latent_pixels()));
        self.events.steps(steps);
        self.events.progress(stage, Some(image_index), steps_before + steps, None);
    }

    fn refiners(self) -> Result<&'a Fleet, GenerateError> {
        self.fleets.refiner.as_ref().ok_or(GenerateError::NoReplica { stage: StageKind::Refiner })
    }

    /// Of the pictures' latents.
    fn latent_size(self) -> (u32, u32) {
        latent_size(self.plan, self.model)
    }

    fn latent_pixels(self) -> u64 {
        latent_pixels(self.plan, self.model)
    }
}

fn latent_size(plan: &Plan, model: &ModelInfo) -> (u32, u32) {
    let scale = model.vae.vae_scale_factor.max(1);
    (plan.size.height / scale, plan.size.width / scale)
}

/// How many pixels a picture's latents have: what most work is counted in.
pub(crate) fn latent_pixels(plan: &Plan, model: &ModelInfo) -> u64 {
    let (height, width) = latent_size(plan, model);
    u64::from(height) * u64::from(width)
}
