//! Noise to latents, and latents to finer latents.

use super::{
    Pipeline,
    encode::Texts,
    error::GenerateError,
    hop::{self, Fault, Placing, Spent},
    reply, watch,
};
use crate::placement::{Fleet, Lease};
use sdxl_core::{ConditioningPlan, DenoisePlan, Start};
use sdxl_proto::{
    MAX_MESSAGE_BYTES, convert,
    v1::{
        self, DType, Tensor, denoise_request, denoise_response::Event,
        denoiser_service_client::DenoiserServiceClient,
    },
};
use std::{ops::Range, sync::Arc, time::Duration};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::{Instrument, Span, field::Empty, info_span, warn};

/// For the end of a stream whose result is there already.
const END_TIMEOUT: Duration = Duration::from_millis(100);

/// One denoiser's part of one picture.
#[derive(Clone, Copy)]
struct Pass<'a> {
    fleet: &'a Fleet,
    plan: &'a DenoisePlan,
    image_index: u32,
    /// Steps that were done on this picture before.
    steps_before: u32,
    latent_pixels: u64,
}

impl Pass<'_> {
    /// Whether nothing is lost by now, should it fail.
    fn is_first(&self) -> bool {
        self.steps_before == 0
    }

    /// Work of a step of which nothing comes from a cache.
    fn whole_step(&self) -> u64 {
        self.latent_pixels * if self.plan.negative.is_some() { 2 } else { 1 }
    }

    /// Outstanding work that these steps take away.
    fn work(&self, steps: Range<u32>) -> u64 {
        self.plan.work(steps, self.latent_pixels)
    }
}

/// How far a pass has come, over all replicas that it was on.
struct Going {
    request: v1::DenoiseRequest,
    /// What the first step started from.
    start: Option<denoise_request::Start>,
    /// The last one, to go on from.
    checkpoint: Option<v1::DenoiseCheckpoint>,
    /// The step that it began at on the present replica, and the first that no replica has done.
    resumed_at: u32,
    next_step: u32,
    steps_repeated: u32,
    /// The first step that is for this call of the pipeline to do.
    first_step: u32,
    /// What the present replica has told of its time.
    told: Spent,
}

impl Going {
    fn new(pass: &Pass<'_>, mut request: v1::DenoiseRequest) -> Self {
        let (start, begin) = (request.start.take(), pass.plan.begin_step);
        Self {
            request,
            start,
            checkpoint: None,
            resumed_at: begin,
            next_step: begin,
            steps_repeated: 0,
            first_step: begin,
            told: Spent::default(),
        }
    }

    /// The request for the replica of `lease`: from the last checkpoint, or from the start if that is of a model that the
    /// stage does not serve any more.
    fn resume(&mut self, lease: &Lease) -> v1::DenoiseRequest {
        self.checkpoint = self.checkpoint.take().filter(|checkpoint| checkpoint.revision == lease.revision());
        self.resumed_at =
            self.checkpoint.as_ref().map_or(self.request.begin_step, |checkpoint| checkpoint.step);
        self.told = Spent::default();
        let start = self.checkpoint.clone().map(denoise_request::Start::Checkpoint);
        v1::DenoiseRequest { start: start.or_else(|| self.start.clone()), ..self.request.clone() }
    }

    /// Whether the present replica has brought it further than to where it began there.
    fn got_on(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.step > self.resumed_at)
    }

    fn work_left(&self, pass: &Pass<'_>) -> u64 {
        let done = self.checkpoint.as_ref().map_or(pass.plan.begin_step, |checkpoint| checkpoint.step);
        pass.work(done..pass.plan.end_step)
    }
}

impl Pipeline<'_> {
    /// Pure noise to latents, finished or handed on at the split.
    pub(super) async fn base(
        self,
        image_index: u32,
        seed: u64,
        texts: &Texts,
        timings: &mut Vec<v1::StageTiming>,
    ) -> Result<Tensor, GenerateError> {
        let plan = &self.plan.base;
        let start = denoise_request::Start::Noise(v1::SeededNoise { seed, draws_before: 0 });
        let pass = self.pass(&self.fleets.base_unet, plan, image_index, 0);
        self.denoise(pass, self.request(plan, start, texts), timings).await
    }

    /// The base's latents to finer ones. Where they are noised again, the base's noise was the generator's first draw.
    pub(super) async fn refine(
        self,
        plan: &DenoisePlan,
        (image_index, seed): (u32, u64),
        latents: Tensor,
        texts: &Texts,
        timings: &mut Vec<v1::StageTiming>,
    ) -> Result<Tensor, GenerateError> {
        let start = match plan.start {
            Start::NoisedLatents => denoise_request::Start::NoisedLatents(v1::NoisedLatents {
                latents: Some(latents),
                noise: Some(v1::SeededNoise { seed, draws_before: 1 }),
            }),
            Start::Latents | Start::Noise => denoise_request::Start::Latents(latents),
        };
        let pass = self.pass(self.refiners()?, plan, image_index, self.plan.base.steps());
        self.denoise(pass, self.request(plan, start, texts), timings).await
    }

    fn pass<'a>(
        self,
        fleet: &'a Fleet,
        plan: &'a DenoisePlan,
        image_index: u32,
        steps_before: u32,
    ) -> Pass<'a> {
        Pass { fleet, plan, image_index, steps_before, latent_pixels: self.latent_pixels() }
    }

    async fn denoise(
        self,
        pass: Pass<'_>,
        request: v1::DenoiseRequest,
        timings: &mut Vec<v1::StageTiming>,
    ) -> Result<Tensor, GenerateError> {
        let stage = pass.fleet.stage();
        let span = info_span!(
            "denoise",
            stage = %stage,
            replica = Empty,
            image_index = pass.image_index,
            begin_step = pass.plan.begin_step,
            end_step = pass.plan.end_step,
        );
        async {
            let mut going = Going::new(&pass, request);
            if let Some(latents) = self.go_on(pass, &mut going) {
                return Ok(latents);
            }
            let mut placing = Placing::new(self, pass.fleet, going.work_left(&pass), !pass.is_first());
            loop {
                let mut lease = placing.next().await?;
                let replica = Arc::clone(lease.replica());
                let call = Box::pin(self.denoise_on(&mut lease, pass, &mut going));
                match placing.call("sdxl.v1.DenoiserService/Denoise", &replica, call).await {
                    Ok((latents, spent)) => {
                        timings.push(placing.timing(Some(pass.image_index), &spent));
                        self.keep(pass, || v1::DenoiseCheckpoint {
                            revision: lease.revision().to_owned(),
                            step: pass.plan.end_step,
                            latents: Some(latents.clone()),
                            sampler_history: Vec::new(),
                        });
                        return Ok(latents);
                    }
                    Err(fault) => {
                        if going.got_on() {
                            placing.got_on(going.work_left(&pass));
                        }
                        placing.told(going.told);
                        placing.failed(lease.replica(), fault, self.patience)?;
                    }
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn denoise_on(
        self,
        lease: &mut Lease,
        pass: Pass<'_>,
        going: &mut Going,
    ) -> Result<(Tensor, Spent), Fault> {
        let replica = Arc::clone(lease.replica());
        let mut client =
            DenoiserServiceClient::new(replica.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = hop::request(going.resume(lease), self.terms);
        Span::current().record("resumed_at", going.resumed_at);
        let mut events = hop::answer(&replica, client.denoise(request)).await?;
        let mut begun = false;
        loop {
            // The watch begins anew with each message: a timer that is set again costs less than one that wakes the task.
            let event = tokio::select! {
                biased;
                event = events.message() => event.map_err(|status| Fault::Status { status, begun })?,
                how = watch::hanging(&replica) => return Err(Fault::Hangs(how)),
            };
            let Some(event) = event else { break };
            begun = true;
            replica.heard();
            match event.event {
                Some(Event::Progress(progress)) => {
                    let done = self.done(pass, progress.step, progress.steps)?;
                    let time = convert::duration_or_zero(progress.step_time);
                    let together = together(&progress, pass.latent_pixels);
                    // The time is the mean of them, and so has to be the work.
                    let mean = pass.work(done.clone()) / u64::from(progress.steps.max(1));
                    for step in done.clone() {
                        replica.stepped(mean, together, pass.whole_step(), time);
                        lease.done(pass.work(step..step + 1));
                        going.told.step(time);
                    }
                    self.tell(pass, done, lease, going);
                }
                Some(Event::Checkpoint(checkpoint)) => {
                    let checkpoint = self.checkpoint(pass, checkpoint).map_err(Fault::Reply)?;
                    self.keep(pass, || checkpoint.clone());
                    going.checkpoint = Some(checkpoint);
                }
                Some(Event::Result(result)) => {
                    finish(&mut events).await;
                    return self.result(pass, result, going);
                }
                Some(Event::Started(started)) => going.told.queue_time = started.queue_time,
                // Something that a newer replica has to say.
                None => {}
            }
        }
        Err(Fault::Reply("its stream ended without a result".to_owned()))
    }

    /// Keeps a checkpoint for others, where that is wanted.
    fn keep(self, pass: Pass<'_>, checkpoint: impl FnOnce() -> v1::DenoiseCheckpoint) {
        if let Some(kept) = self.kept {
            kept.keep_checkpoint(pass.fleet.stage(), pass.image_index, checkpoint());
        }
    }

    /// Sets out from what was kept of this pass; its latents, if it was finished.
    fn go_on(self, pass: Pass<'_>, going: &mut Going) -> Option<Tensor> {
        let stage = pass.fleet.stage();
        let checkpoint = self.kept?.checkpoint(stage, pass.image_index)?;
        let checkpoint = self
            .checkpoint(pass, checkpoint)
            .inspect_err(|problem| warn!(%stage, "a kept checkpoint is dropped: {problem}"))
            .ok()?;
        let served = pass.fleet.status().borrow().info.as_ref().map(|info| info.revision.clone());
        if served.as_ref() != Some(&checkpoint.revision) {
            warn!(%stage, "a kept checkpoint is dropped: it is of revision {}", checkpoint.revision);
            return None;
        }
        self.skipped(stage, pass.plan, pass.image_index, pass.steps_before, checkpoint.step);
        going.next_step = checkpoint.step;
        going.first_step = checkpoint.step;
        if checkpoint.step == pass.plan.end_step {
            return checkpoint.latents;
        }
        going.checkpoint = Some(checkpoint);
        None
    }

    /// The steps that a replica tells of, which `step` is the last of.
    fn done(self, pass: Pass<'_>, step: u32, steps: u32) -> Result<Range<u32>, Fault> {
        let slice = pass.plan.begin_step..pass.plan.end_step;
        let steps = steps.max(1);
        match step.checked_sub(steps - 1) {
            Some(first) if slice.contains(&first) && slice.contains(&step) => Ok(first..step + 1),
            _ => Err(Fault::Reply(format!("progress.step {step} is not the last of {steps} in {slice:?}"))),
        }
    }

    fn tell(self, pass: Pass<'_>, done: Range<u32>, lease: &Lease, going: &mut Going) {
        let again = going.next_step.saturating_sub(done.start).min(done.len() as u32);
        going.steps_repeated += again;
        let new = done.len() as u32 - again;
        if new == 0 {
            return;
        }
        going.next_step = done.end;
        let stage = pass.fleet.stage();
        self.promise.done(stage, pass.work(done.end - new..done.end));
        self.events.steps(new);
        let done = pass.steps_before + done.end - pass.plan.begin_step;
        self.events.progress(stage, Some(pass.image_index), done, Some(lease.replica().address()));
    }

    /// A checkpoint that can be gone on from.
    fn checkpoint(
        self,
        pass: Pass<'_>,
        mut checkpoint: v1::DenoiseCheckpoint,
    ) -> Result<v1::DenoiseCheckpoint, String> {
        let slice = pass.plan.begin_step..=pass.plan.end_step;
        if !slice.contains(&checkpoint.step) {
            return Err(format!("checkpoint.step {} is not in {slice:?}", checkpoint.step));
        }
        if checkpoint.step < pass.plan.end_step && !pass.plan.kinds().is_whole(checkpoint.step) {
            return Err(format!("checkpoint.step {} takes up what a step before it left", checkpoint.step));
        }
        let latents = checkpoint.latents.take();
        let latents = reply::tensor("checkpoint.latents", latents, &self.latents_shape(), &[DType::F32])?;
        checkpoint.latents = Some(latents);
        Ok(checkpoint)
    }

    fn latents_shape(self) -> [Option<u32>; 3] {
        let (height, width) = self.latent_size();
        [Some(self.model.base.latent_channels), Some(height), Some(width)]
    }

    fn result(
        self,
        pass: Pass<'_>,
        result: v1::DenoiseResult,
        going: &Going,
    ) -> Result<(Tensor, Spent), Fault> {
        let latents = reply::tensor("result.latents", result.latents, &self.latents_shape(), &[DType::F32]);
        let (queue_time, run_time) = (result.queue_time, result.run_time);
        let steps = pass.plan.end_step - going.first_step;
        let spent = Spent { queue_time, run_time, steps, steps_repeated: going.steps_repeated };
        Ok((latents.map_err(Fault::Reply)?, spent))
    }

    fn request(self, plan: &DenoisePlan, start: denoise_request::Start, texts: &Texts) -> v1::DenoiseRequest {
        v1::DenoiseRequest {
            size: Some(self.plan.size.into()),
            scheduler: Some((&plan.scheduler).into()),
            num_inference_steps: plan.num_inference_steps,
            begin_step: plan.begin_step,
            end_step: plan.end_step,
            guidance_scale: plan.guidance_scale,
            guidance_rescale: plan.guidance_rescale,
            conditioning: Some(conditioning(&plan.positive, texts)),
            negative_conditioning: plan.negative.as_ref().map(|negative| conditioning(negative, texts)),
            start: Some(start),
            checkpoint_interval: self.checkpoint_interval,
            // Where nobody hears of each step, it is enough to know how far there is to go back.
            progress_interval: if self.events.tells_progress() { 1 } else { self.checkpoint_interval },
            guidance_steps: plan
                .guidance_steps
                .as_ref()
                .map(|steps| v1::StepRange { begin: steps.start, end: steps.end }),
            deep_cache: plan.deep_cache.map(|(cache, _)| v1::DeepCache {
                cache_interval: cache.cache_interval,
                cache_branch_id: cache.cache_branch_id,
            }),
        }
    }
}

/// What a replica did in a step for all that took it together.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as casts saturate, so may this")]
#[expect(clippy::cast_precision_loss, reason = "a picture has far fewer pixels than an f64 counts")]
fn together(progress: &v1::DenoiseProgress, latent_pixels: u64) -> u64 {
    if progress.batch_work > 0.0 {
        (progress.batch_work * latent_pixels as f64).round() as u64
    } else {
        u64::from(progress.batch_evaluations) * latent_pixels
    }
}

/// Embeddings that are left out are zeros.
fn conditioning(plan: &ConditioningPlan, texts: &Texts) -> v1::Conditioning {
    let text = texts.of(plan.text);
    v1::Conditioning {
        prompt_embeds: text.and_then(|text| text.prompt_embeds.clone()),
        pooled_prompt_embeds: text.and_then(|text| text.pooled_prompt_embeds.clone()),
        original_size: Some(plan.original_size.into()),
        crops_coords_top_left: Some(plan.crops_coords_top_left.into()),
        target_size: Some(plan.target_size.into()),
        aesthetic_score: plan.aesthetic_score,
    }
}

/// Reads the stream to its end, so that the replica sees its call finished and not cancelled. The result is there, so
/// nothing that comes now changes it.
async fn finish(events: &mut Streaming<v1::DenoiseResponse>) {
    let _ = timeout(END_TIMEOUT, events.message()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_together_is_told_in_parts_or_in_evaluations() {
        let progress =
            |batch_work| v1::DenoiseProgress { batch_evaluations: 4, batch_work, ..Default::default() };
        assert_eq!((together(&progress(0.25), 1000), together(&progress(0.0), 1000)), (250, 4000));
    }
}
