//! What reaches the stages.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::{Fake, tensor},
};
use sdxl_proto::v1::{
    self, Conditioner, CropCoords, DenoiseRequest, GenerateRequest, SeededNoise, Size, TextInput,
    denoise_request::Start, refiner::Mode,
};

fn denoised(fake: &Fake) -> Vec<DenoiseRequest> {
    let mut requests: Vec<_> = fake.log.denoises.lock().unwrap().iter().map(|s| s.request.clone()).collect();
    // Pictures are sent at the same time.
    requests.sort_by_key(|request| match &request.start {
        Some(Start::Noise(noise)) => noise.seed,
        Some(Start::NoisedLatents(noised)) => noised.noise.unwrap().seed,
        _ => 0,
    });
    requests
}

fn inputs(fake: &Fake) -> Vec<TextInput> {
    let encodes = fake.log.encodes.lock().unwrap();
    assert_eq!(encodes.len(), 1, "texts are encoded once, in one call");
    encodes[0].request.inputs.clone()
}

fn text(conditioner: Conditioner, prompt: &str, prompt_2: &str, clip_skip: u32) -> TextInput {
    TextInput { conditioner: conditioner.into(), prompt: prompt.into(), prompt_2: prompt_2.into(), clip_skip }
}

#[tokio::test]
async fn the_base_gets_its_slice_its_seed_and_its_conditioning() {
    let cluster = Cluster::start(Layout::default()).await;
    let size = |height, width| Some(Size { height, width });
    let request = GenerateRequest {
        prompt_2: Some("a dog".into()),
        negative_prompt: Some("blur".into()),
        width: 160,
        height: 96,
        num_images: 2,
        guidance_scale: Some(7.5),
        guidance_rescale: Some(0.5),
        clip_skip: 1,
        scheduler: Some(v1::Scheduler { kind: 2, timestep_spacing: Some(3), use_karras_sigmas: None }),
        original_size: size(300, 400),
        crops_coords_top_left: Some(CropCoords { top: 5, left: 6 }),
        negative_original_size: size(10, 20),
        negative_target_size: size(30, 40),
        ..cat()
    };
    let answer = cluster.generate(request).await.unwrap();
    assert_eq!(answer.images.iter().map(|i| i.seed).collect::<Vec<_>>(), [7, 8]);

    let expected = [text(Conditioner::Base, "a cat", "a dog", 1), text(Conditioner::Base, "blur", "", 0)];
    assert_eq!(inputs(&cluster.text_encoder[0]), expected);

    let sent = denoised(&cluster.base_unet[0]);
    assert_eq!(sent.len(), 2);
    for (seed, sent) in [7, 8].into_iter().zip(sent) {
        assert_eq!(sent.start, Some(Start::Noise(SeededNoise { seed, draws_before: 0 })));
        assert_eq!((sent.num_inference_steps, sent.begin_step, sent.end_step), (4, 0, 4));
        assert_eq!((sent.size, sent.guidance_scale, sent.guidance_rescale), (size(96, 160), 7.5, 0.5));
        let scheduler = sent.scheduler.unwrap();
        assert_eq!(
            (scheduler.kind, scheduler.timestep_spacing, scheduler.beta_end),
            (2, Some(3), Some(0.012))
        );
        let positive = sent.conditioning.unwrap();
        assert_eq!(positive.prompt_embeds, Some(tensor(&[77, 64], 1)));
        assert_eq!(positive.pooled_prompt_embeds, Some(tensor(&[32], 1)));
        assert_eq!((positive.original_size, positive.target_size), (size(300, 400), size(96, 160)));
        assert_eq!(positive.crops_coords_top_left, Some(CropCoords { top: 5, left: 6 }));
        assert_eq!(positive.aesthetic_score, None);
        let negative = sent.negative_conditioning.unwrap();
        assert_eq!(negative.prompt_embeds, Some(tensor(&[77, 64], 2)));
        assert_eq!((negative.original_size, negative.target_size), (size(10, 20), size(30, 40)));
    }
    let decodes = cluster.vae[0].log.decodes.lock().unwrap();
    assert_eq!(decodes[0].request.latents, Some(tensor(&[4, 12, 20], 2)), "the base's");
}

#[tokio::test]
async fn an_absent_negative_prompt_is_zeros_and_no_guidance_is_no_negative() {
    let cluster = Cluster::start(Layout::default()).await;
    cluster.generate(cat()).await.unwrap();
    let negative = denoised(&cluster.base_unet[0])[0].negative_conditioning.clone().unwrap();
    assert_eq!((negative.prompt_embeds, negative.pooled_prompt_embeds), (None, None), "zeros are left out");
    assert_eq!(negative.original_size, Some(Size { height: 128, width: 128 }));

    cluster.generate(GenerateRequest { guidance_scale: Some(1.0), ..cat() }).await.unwrap();
    assert_eq!(denoised(&cluster.base_unet[0])[1].negative_conditioning, None);
}

#[tokio::test]
async fn approximations_reach_the_denoisers_as_steps() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let request = GenerateRequest {
        guidance_interval: Some(v1::GuidanceInterval { start: Some(0.25), stop: Some(0.75) }),
        deep_cache: Some(v1::DeepCache { cache_interval: 0, cache_branch_id: 1 }),
        ..refined(Mode::DenoisingSplit(0.8))
    };
    cluster.generate(request).await.unwrap();
    let (base, refiner) = (denoised(&cluster.base_unet[0]), denoised(&cluster.refiner[0]));
    let deep_cache = Some(v1::DeepCache { cache_interval: 3, cache_branch_id: 1 });
    for sent in base.iter().chain(&refiner) {
        assert_eq!(sent.guidance_steps, Some(v1::StepRange { begin: 2, end: 7 }));
        assert_eq!(sent.deep_cache, deep_cache);
    }
    // The refiner's steps are 8 and 9: it has nothing to guide.
    assert_eq!(
        (base[0].negative_conditioning.is_some(), refiner[0].negative_conditioning.is_some()),
        (true, false)
    );

    cluster.generate(cat()).await.unwrap();
    let plain = &denoised(&cluster.base_unet[0])[1];
    assert_eq!((plain.guidance_steps, plain.deep_cache), (None, None));
}

#[tokio::test]
async fn a_split_hands_the_latents_on_as_they_are() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let answer = cluster.generate(refined(Mode::DenoisingSplit(0.8))).await.unwrap();
    let expected = [
        text(Conditioner::Base, "a cat", "", 0),
        text(Conditioner::Refiner, "a cat", "", 0),
        text(Conditioner::Refiner, "", "", 0),
    ];
    assert_eq!(inputs(&cluster.text_encoder[0]), expected);
    let base = &denoised(&cluster.base_unet[0])[0];
    assert_eq!((base.num_inference_steps, base.begin_step, base.end_step), (10, 0, 8));
    let refiner = denoised(&cluster.refiner[0])[0].clone();
    assert_eq!((refiner.num_inference_steps, refiner.begin_step, refiner.end_step), (10, 8, 10));
    assert_eq!(refiner.start, Some(Start::Latents(tensor(&[4, 16, 16], 2))), "the base's");
    let (positive, negative) = (refiner.conditioning.unwrap(), refiner.negative_conditioning.unwrap());
    assert_eq!(positive.prompt_embeds, Some(tensor(&[77, 40], 2)));
    assert_eq!(negative.prompt_embeds, Some(tensor(&[77, 40], 3)), "the refiner encodes an empty one");
    assert_eq!((positive.aesthetic_score, negative.aesthetic_score), (Some(6.0), Some(2.5)));
    let decodes = cluster.vae[0].log.decodes.lock().unwrap();
    assert_eq!(decodes[0].request.latents, Some(tensor(&[4, 16, 16], 3)), "the refiner's");

    let timings: Vec<_> = answer.timings.iter().map(|t| (t.stage(), t.image_index, t.steps)).collect();
    let expected = [
        (v1::Stage::TextEncoder, None, 0),
        (v1::Stage::BaseUnet, Some(0), 8),
        (v1::Stage::Refiner, Some(0), 2),
        (v1::Stage::Vae, Some(0), 0),
    ];
    assert_eq!(timings, expected);
    let base = &answer.timings[1];
    assert_eq!(base.replica, cluster.base_unet[0].address.to_string());
    assert_eq!((base.queue_time, base.run_time), (crate::fake::time(1), crate::fake::time(5)));
    assert!(base.total_time.is_some());
}

#[tokio::test]
async fn a_strength_noises_the_latents_with_the_generators_second_draw() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let request = GenerateRequest { num_images: 2, ..refined(Mode::Strength(0.3)) };
    cluster.generate(request).await.unwrap();
    let base = denoised(&cluster.base_unet[0]);
    assert_eq!((base[0].begin_step, base[0].end_step), (0, 10));
    let refiner = denoised(&cluster.refiner[0]);
    for (seed, sent) in [7, 8].into_iter().zip(refiner) {
        assert_eq!((sent.num_inference_steps, sent.begin_step, sent.end_step), (10, 7, 10));
        let expected = v1::NoisedLatents {
            latents: Some(tensor(&[4, 16, 16], 2)),
            noise: Some(SeededNoise { seed, draws_before: 1 }),
        };
        assert_eq!(sent.start, Some(Start::NoisedLatents(expected)));
    }
}

#[tokio::test]
async fn format_and_quality_reach_the_decoder() {
    let cluster = Cluster::start(Layout::default()).await;
    let jpeg = GenerateRequest { image_format: v1::ImageFormat::Jpeg.into(), quality: 33, ..cat() };
    let answer = cluster.generate(jpeg).await.unwrap();
    assert_eq!(answer.images[0].media_type, "image/jpeg");
    let decodes = cluster.vae[0].log.decodes.lock().unwrap();
    assert_eq!((decodes[0].request.image_format(), decodes[0].request.quality), (v1::ImageFormat::Jpeg, 33));
}

#[tokio::test]
async fn the_callers_trace_goes_through_and_comes_back() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut request = tonic::Request::new(refined(Mode::DenoisingSplit(0.5)));
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let answer = cluster.client().generate(request).await.unwrap().into_inner();
    assert_eq!(answer.trace_id, trace);
    let mut parents = Vec::new();
    for (fake, of) in [
        (&cluster.text_encoder[0], 0),
        (&cluster.base_unet[0], 1),
        (&cluster.refiner[0], 1),
        (&cluster.vae[0], 2),
    ] {
        let metadata = match of {
            0 => fake.log.encodes.lock().unwrap()[0].metadata.clone(),
            1 => fake.log.denoises.lock().unwrap()[0].metadata.clone(),
            _ => fake.log.decodes.lock().unwrap()[0].metadata.clone(),
        };
        let parent = metadata.get("traceparent").unwrap().to_str().unwrap().to_owned();
        assert!(parent.contains(trace), "{parent}");
        assert!(!parents.contains(&parent), "each hop has a span of its own");
        parents.push(parent);
    }
    let other = cluster.generate(cat()).await.unwrap().trace_id;
    assert_eq!(other.len(), 32);
    assert!(other != trace && other != "0".repeat(32), "without a caller's a trace begins: {other}");
}
