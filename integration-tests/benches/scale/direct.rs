//! A client that does without a coordinator: it calls the stages itself, one picture after the other by turns of replicas.
//! What a picture takes with a coordinator and not without is what the coordinator adds.

use super::load::{SPLIT, STEPS};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        self, StageTiming, Tensor, denoise_request::Start, denoise_response::Event,
        denoiser_service_client::DenoiserServiceClient, stage_service_client::StageServiceClient,
        text_encoder_service_client::TextEncoderServiceClient, vae_service_client::VaeServiceClient,
    },
};
use sdxl_runtime::server::MAX_FRAME;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const SIDE: u32 = 1024;
const GUIDANCE: f32 = 5.0;
/// As the coordinator has it by default.
const CHECKPOINT_INTERVAL: u32 = 5;
/// As the coordinator's connections have them.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Connections to all replicas of a cluster.
pub(crate) struct Direct {
    /// By stage: text encoders, bases, refiners, VAEs.
    replicas: [Vec<Channel>; 4],
    turns: [AtomicUsize; 4],
    schedulers: [Option<v1::SchedulerConfig>; 2],
    /// What the refiner makes of an absent negative prompt, which is the same for all pictures, so that a coordinator has
    /// it in its cache.
    negative: v1::TextEmbedding,
}

impl Direct {
    /// To the replicas at these addresses, in the stages' order.
    pub(crate) async fn new(addresses: [Vec<&str>; 4]) -> Self {
        let connect = |address: &&str| {
            let endpoint = Endpoint::from_shared((*address).to_owned()).expect("an address");
            endpoint
                .tcp_nodelay(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(MAX_FRAME)
                .connect_lazy()
        };
        let replicas = addresses.map(|addresses| addresses.iter().map(connect).collect::<Vec<_>>());
        let mut schedulers = [None, None];
        for (scheduler, stage) in schedulers.iter_mut().zip(&replicas[1..3]) {
            let mut client = StageServiceClient::new(stage[0].clone());
            let said = client.get_stage(v1::GetStageRequest {}).await.expect("a ready stage").into_inner();
            let Some(v1::get_stage_response::Details::Denoiser(details)) = said.details else {
                panic!("{said:?} is no denoiser")
            };
            *scheduler = details.scheduler;
        }
        let turns = [const { AtomicUsize::new(0) }; 4];
        let mut direct = Self { replicas, turns, schedulers, negative: v1::TextEmbedding::default() };
        let inputs = vec![text(v1::Conditioner::Refiner, String::new())];
        let encoded = direct.encode(inputs).await.expect("a ready text encoder");
        direct.negative = encoded.embeddings[0].clone();
        direct
    }

    /// The picture that [`super::load::Load`] would ask a coordinator for; what it took at each stage.
    ///
    /// # Errors
    /// That of a stage.
    pub(crate) async fn picture(&self, seed: u64, number: u64) -> Result<Vec<StageTiming>, Status> {
        let mut draws = StdRng::seed_from_u64(seed << 32 | number);
        let steps = draws.random_range(STEPS);
        let prompt = format!("picture {number} of {seed}");
        let mut timings = Vec::new();

        let sent = Instant::now();
        let texts = [v1::Conditioner::Base, v1::Conditioner::Refiner].map(|kind| text(kind, prompt.clone()));
        let encoded = self.encode(texts.to_vec()).await?;
        timings.push(timing(v1::Stage::TextEncoder, sent, encoded.queue_time, encoded.run_time));
        let [of_base, of_refiner] = <[_; 2]>::try_from(encoded.embeddings).expect("as many as asked for");

        let split = (steps as f32 * SPLIT).round() as u32;
        let start = Start::Noise(v1::SeededNoise { seed: draws.random(), draws_before: 0 });
        let base = [conditioning(Some(of_base), None), conditioning(None, None)];
        let request = self.request(0, steps, [0, split], base, start);
        let latents = self.denoise(v1::Stage::BaseUnet, request, &mut timings).await?;
        let refiner = [(of_refiner, 6.0), (self.negative.clone(), 2.5)]
            .map(|(text, score)| conditioning(Some(text), Some(score)));
        let request = self.request(1, steps, [split, steps], refiner, Start::Latents(latents));
        let latents = self.denoise(v1::Stage::Refiner, request, &mut timings).await?;

        let sent = Instant::now();
        let request = v1::DecodeRequest { latents: Some(latents), ..v1::DecodeRequest::default() };
        let mut client = VaeServiceClient::new(self.next(3)).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let decoded = client.decode(request).await?.into_inner();
        timings.push(timing(v1::Stage::Vae, sent, decoded.queue_time, decoded.run_time));
        Ok(timings)
    }

    fn next(&self, stage: usize) -> Channel {
        let turn = self.turns[stage].fetch_add(1, Ordering::Relaxed);
        self.replicas[stage][turn % self.replicas[stage].len()].clone()
    }

    async fn encode(&self, inputs: Vec<v1::TextInput>) -> Result<v1::EncodeResponse, Status> {
        let mut client =
            TextEncoderServiceClient::new(self.next(0)).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(client.encode(v1::EncodeRequest { inputs }).await?.into_inner())
    }

    fn request(
        &self,
        denoiser: usize,
        num_inference_steps: u32,
        [begin_step, end_step]: [u32; 2],
        [conditioning, negative_conditioning]: [v1::Conditioning; 2],
        start: Start,
    ) -> v1::DenoiseRequest {
        v1::DenoiseRequest {
            size: Some(v1::Size { height: SIDE, width: SIDE }),
            scheduler: self.schedulers[denoiser],
            num_inference_steps,
            begin_step,
            end_step,
            guidance_scale: GUIDANCE,
            guidance_rescale: 0.0,
            conditioning: Some(conditioning),
            negative_conditioning: Some(negative_conditioning),
            checkpoint_interval: CHECKPOINT_INTERVAL,
            progress_interval: CHECKPOINT_INTERVAL,
            guidance_steps: None,
            deep_cache: None,
            start: Some(start),
        }
    }

    async fn denoise(
        &self,
        stage: v1::Stage,
        request: v1::DenoiseRequest,
        timings: &mut Vec<StageTiming>,
    ) -> Result<Tensor, Status> {
        let sent = Instant::now();
        let place = if stage == v1::Stage::BaseUnet { 1 } else { 2 };
        let client = DenoiserServiceClient::new(self.next(place));
        let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut events = client.denoise(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Result(result)) = event.event {
                timings.push(timing(stage, sent, result.queue_time, result.run_time));
                events.message().await?;
                return result.latents.ok_or_else(|| Status::internal("no latents"));
            }
        }
        Err(Status::internal("no result"))
    }
}

fn text(conditioner: v1::Conditioner, prompt: String) -> v1::TextInput {
    v1::TextInput { conditioner: conditioner.into(), prompt, ..v1::TextInput::default() }
}

fn conditioning(text: Option<v1::TextEmbedding>, aesthetic_score: Option<f32>) -> v1::Conditioning {
    let size = Some(v1::Size { height: SIDE, width: SIDE });
    let text = text.unwrap_or_default();
    v1::Conditioning {
        prompt_embeds: text.prompt_embeds,
        pooled_prompt_embeds: text.pooled_prompt_embeds,
        original_size: size,
        crops_coords_top_left: Some(v1::CropCoords { top: 0, left: 0 }),
        target_size: size,
        aesthetic_score,
    }
}

fn timing(
    stage: v1::Stage,
    sent: Instant,
    queue_time: Option<prost_types::Duration>,
    run_time: Option<prost_types::Duration>,
) -> StageTiming {
    let total_time = sent.elapsed().try_into().ok();
    StageTiming { stage: stage.into(), queue_time, run_time, total_time, ..StageTiming::default() }
}
