//! Noise to latents, and latents to finer latents.

use super::{
    Pipeline,
    encode::Texts,
    error::GenerateError,
    hop::{self, Fault, Placing, Spent},
    reply,
};
use crate::placement::{Fleet, Lease};
use sdxl_core::{ConditioningPlan, DenoisePlan, Start};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        self, DType, Tensor, denoise_request, denoise_response::Event,
        denoiser_service_client::DenoiserServiceClient,
    },
};
use std::time::Duration;
use tokio::time::timeout;
use tonic::Streaming;
use tracing::{Instrument, field::Empty, info_span};

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
    /// Outstanding work that a step takes away.
    work_per_step: u64,
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
        let evaluations = plan.evaluations() / u64::from(plan.steps().max(1));
        let work_per_step = evaluations * self.latent_pixels();
        Pass { fleet, plan, image_index, steps_before, work_per_step }
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
            otel.kind = "client",
            stage = %stage,
            replica = Empty,
            image_index = pass.image_index,
            begin_step = pass.plan.begin_step,
            end_step = pass.plan.end_step,
        );
        async {
            let work = u64::from(pass.plan.steps()) * pass.work_per_step;
            let mut placing = Placing::new(pass.fleet, work, self.deadline);
            loop {
                let mut lease = placing.next()?;
                match self.denoise_on(&mut lease, pass, request.clone()).await {
                    Ok((latents, spent)) => {
                        timings.push(placing.timing(Some(pass.image_index), &spent));
                        return Ok(latents);
                    }
                    Err(fault) => placing.failed(lease.replica(), fault)?,
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
        request: v1::DenoiseRequest,
    ) -> Result<(Tensor, Spent), Fault> {
        let mut client = DenoiserServiceClient::new(lease.replica().channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = hop::request(request, self.deadline);
        let mut events = client.denoise(request).await.map_err(Fault::refused)?.into_inner();
        let mut begun = false;
        while let Some(event) = events.message().await.map_err(|status| Fault::Status { status, begun })? {
            begun = true;
            match event.event {
                Some(Event::Progress(progress)) => {
                    lease.done(pass.work_per_step);
                    self.tell(pass, progress.step, lease)?;
                }
                Some(Event::Result(result)) => {
                    finish(&mut events).await;
                    return self.result(pass, result);
                }
                // Begun, or something that a newer replica has to say.
                Some(Event::Started(_) | Event::Checkpoint(_)) | None => {}
            }
        }
        Err(Fault::Reply("its stream ended without a result".to_owned()))
    }

    fn tell(self, pass: Pass<'_>, step: u32, lease: &Lease) -> Result<(), Fault> {
        let slice = pass.plan.begin_step..pass.plan.end_step;
        if !slice.contains(&step) {
            return Err(Fault::Reply(format!("progress.step {step} is not in {slice:?}")));
        }
        self.events.step();
        let done = pass.steps_before + step - slice.start + 1;
        let replica = lease.replica().address().to_string();
        self.events.progress(pass.fleet.stage(), Some(pass.image_index), done, replica);
        Ok(())
    }

    fn result(self, pass: Pass<'_>, result: v1::DenoiseResult) -> Result<(Tensor, Spent), Fault> {
        let (height, width) = self.latent_size();
        let shape = [Some(self.model.base.latent_channels), Some(height), Some(width)];
        let latents =
            reply::tensor("result.latents", result.latents, &shape, &[DType::F32]).map_err(Fault::Reply)?;
        let spent =
            Spent { queue_time: result.queue_time, run_time: result.run_time, steps: pass.plan.steps() };
        Ok((latents, spent))
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
            checkpoint_interval: 0,
        }
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
