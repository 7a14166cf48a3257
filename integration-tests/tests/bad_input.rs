//! Requests that cannot be served: each is refused with the field, its value and what is allowed.

use integration_tests::{Clients, Cluster, ClusterConfig, Made, fox, refused_fields};
use sdxl_proto::v1::{
    self, CropCoords, GenerateRequest, Refiner, Scheduler, SchedulerKind, Size, refiner::Mode,
};
use std::sync::LazyLock;
use tonic::{Code, Status};

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(&ClusterConfig::new(&Made::pico())));

/// A wrong request, the field at fault, and words that its description holds: the value and what is allowed.
type Case = (GenerateRequest, &'static str, &'static [&'static str]);

fn with(change: impl FnOnce(&mut GenerateRequest)) -> GenerateRequest {
    let mut request = fox();
    change(&mut request);
    request
}

fn refined(mode: Option<Mode>) -> GenerateRequest {
    with(|r| r.refiner = Some(Refiner { mode, ..Default::default() }))
}

fn guided(start: Option<f32>, stop: Option<f32>) -> GenerateRequest {
    with(|r| r.guidance_interval = Some(v1::GuidanceInterval { start, stop }))
}

fn cached(cache_interval: u32, cache_branch_id: u32) -> GenerateRequest {
    with(|r| r.deep_cache = Some(v1::DeepCache { cache_interval, cache_branch_id }))
}

fn scheduled(kind: i32, timestep_spacing: Option<i32>) -> GenerateRequest {
    with(|r| r.scheduler = Some(Scheduler { kind, timestep_spacing, ..Default::default() }))
}

fn cases() -> Vec<Case> {
    let sides = &["multiple of 8", "64", "2048"];
    let nothing = Size { height: 0, width: 5 };
    let far = CropCoords { top: 1, left: 70_000 };
    vec![
        (with(|r| r.width = 100), "width", &["100", "multiple of 8 in 64..=2048"]),
        (with(|r| r.height = 1001), "height", &["1001", "multiple of 8 in 64..=2048"]),
        (with(|r| r.width = 56), "width", sides),
        (with(|r| r.height = 2056), "height", sides),
        (with(|r| r.height = u32::MAX), "height", sides),
        (with(|r| r.num_inference_steps = 1001), "num_inference_steps", &["1001", "1..=1000"]),
        (with(|r| r.num_images = 17), "num_images", &["17", "1..=16"]),
        (with(|r| r.guidance_scale = Some(f32::NAN)), "guidance_scale", &["NaN", "finite", "at least 0"]),
        (with(|r| r.guidance_scale = Some(f32::INFINITY)), "guidance_scale", &["inf", "finite"]),
        (with(|r| r.guidance_scale = Some(-1.0)), "guidance_scale", &["-1", "at least 0"]),
        (with(|r| r.guidance_rescale = Some(f32::NAN)), "guidance_rescale", &["NaN", "finite"]),
        (with(|r| r.guidance_rescale = Some(-0.5)), "guidance_rescale", &["-0.5"]),
        (guided(Some(-0.1), None), "guidance_interval.start", &["-0.1", "0..=1"]),
        (guided(None, Some(f32::NAN)), "guidance_interval.stop", &["NaN", "0..=1"]),
        (guided(Some(0.5), Some(0.5)), "guidance_interval", &["0.5", "below"]),
        (guided(Some(0.01), Some(0.02)), "guidance_interval", &["0.01..0.02", "no step"]),
        (cached(1, 0), "deep_cache.cache_interval", &["1 ", "2..=20"]),
        (cached(21, 0), "deep_cache.cache_interval", &["21", "2..=20"]),
        (cached(3, u32::MAX), "deep_cache.cache_branch_id", &["0..=", "skip connections"]),
        (refined(Some(Mode::DenoisingSplit(0.0))), "refiner.denoising_split", &["0 ", "between 0 and 1"]),
        (refined(Some(Mode::DenoisingSplit(1.0))), "refiner.denoising_split", &["1 ", "between 0 and 1"]),
        (refined(Some(Mode::DenoisingSplit(f32::NAN))), "refiner.denoising_split", &["NaN"]),
        (refined(Some(Mode::Strength(1.5))), "refiner.strength", &["1.5", "between 0 and 1"]),
        (refined(Some(Mode::Strength(-0.25))), "refiner.strength", &["-0.25", "between 0 and 1"]),
        (refined(None), "refiner.mode", &["denoising_split", "strength"]),
        (with(|r| r.quality = 101), "quality", &["101", "0..=100"]),
        (with(|r| r.clip_skip = 2), "clip_skip", &["2", "0..=1"]),
        (with(|r| r.clip_skip = u32::MAX), "clip_skip", &["0..=1"]),
        (scheduled(99, None), "scheduler.kind", &["99", "SCHEDULER_KIND_EULER", "SCHEDULER_KIND_DDIM"]),
        (scheduled(-7, None), "scheduler.kind", &["-7"]),
        (scheduled(1, Some(42)), "scheduler.timestep_spacing", &["42", "TIMESTEP_SPACING_TRAILING"]),
        (with(|r| r.image_format = 77), "image_format", &["77", "IMAGE_FORMAT_PNG"]),
        (with(|r| r.original_size = Some(nothing)), "original_size.height", &["0 ", "1..="]),
        (with(|r| r.negative_target_size = Some(nothing)), "negative_target_size.height", &["0 ", "1..="]),
        (with(|r| r.crops_coords_top_left = Some(far)), "crops_coords_top_left.left", &["70000", "0..="]),
        (with(|r| r.prompt = "x".repeat(40_000)), "prompt", &["40000", "32768"]),
    ]
}

/// What is wrong with `status` as a refusal of `field` alone that says `words` of it.
fn flaw(status: &Status, field: &str, words: &[&str]) -> Option<String> {
    let refused = refused_fields(status);
    let named: Vec<_> = refused.iter().map(|(field, _)| field.as_str()).collect();
    let fine = status.code() == Code::InvalidArgument
        && named == [field]
        && words.iter().all(|word| refused[0].1.contains(word))
        && status.message().contains(field)
        && !status.message().contains('\n');
    (!fine).then(|| format!("{field} {words:?}: {:?} {named:?} {}", status.code(), status.message()))
}

fn assert_refused(status: &Status, field: &str, words: &[&str]) {
    assert_eq!(flaw(status, field, words), None);
}

#[tokio::test]
async fn each_wrong_field_is_named() {
    let mut images = CLUSTER.clients().images();
    let mut flaws = Vec::new();
    for (request, field, words) in cases() {
        flaws.extend(flaw(&images.generate(request.clone()).await.unwrap_err(), field, words));
        let streamed = match images.generate_stream(request).await {
            Ok(answer) => answer.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        flaws.extend(flaw(&streamed, field, words));
    }
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
    images.generate(fox()).await.expect("the cluster serves on");
}

#[tokio::test]
async fn all_wrong_fields_are_named_at_once() {
    let request = with(|r| (r.width, r.num_images, r.quality) = (7, 99, 200));
    let status = CLUSTER.clients().images().generate(request).await.unwrap_err();
    let fields: Vec<_> = refused_fields(&status).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["width", "num_images", "quality"]);
}

#[tokio::test]
async fn a_refiner_that_is_not_there_is_a_failed_precondition() {
    let config = ClusterConfig { refiner: None, ..ClusterConfig::new(&Made::pico()) };
    let cluster = Cluster::start(&config);
    let mut images = cluster.clients().images();
    let status = images.generate(refined(Some(Mode::Strength(0.5)))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    images.generate(fox()).await.expect("without one there is a picture");
}

#[tokio::test]
async fn what_the_caller_may_not_have_meant_is_a_warning() {
    let request = with(|r| r.prompt = format!("{} the very last words", "one two three four ".repeat(25)));
    let answer = CLUSTER.clients().images().generate(request).await.unwrap().into_inner();
    let warning = |code: v1::WarningCode| answer.warnings.iter().find(|w| w.code() == code).cloned();
    let truncated = warning(v1::WarningCode::PromptTruncated).expect("the prompt is too long");
    assert_eq!(truncated.field, "prompt");
    assert!(truncated.truncated_text.ends_with("the very last words"), "{truncated:?}");
    assert!(
        !truncated.truncated_text.starts_with("one two three four one two three four one"),
        "{truncated:?}"
    );
    let size = warning(v1::WarningCode::SizeOutsideBuckets).expect("64 x 64 is no bucket");
    assert_eq!(size.nearest_size, Some(Size { height: 1024, width: 1024 }));
}

/// Numbers that are fine one by one and overflow together.
#[tokio::test]
async fn a_result_that_is_not_finite_is_an_internal_error_that_names_the_step() {
    let request = with(|r| r.guidance_scale = Some(3e38));
    let status = CLUSTER.clients().images().generate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(status.message().contains("step 0"), "{status}");
}

fn tensor(shape: &[u32], bytes: usize) -> v1::Tensor {
    v1::Tensor { shape: shape.to_vec(), dtype: v1::DType::F32.into(), data: vec![0; bytes].into() }
}

#[tokio::test]
async fn a_vae_refuses_tensors_that_do_not_fit() {
    let clients = Clients::new(CLUSTER.vaes[0].address());
    let decode = |latents: Option<v1::Tensor>| {
        let mut vae = clients.vae();
        async move { vae.decode(v1::DecodeRequest { latents, ..Default::default() }).await.unwrap_err() }
    };
    let status = decode(Some(tensor(&[4, 8, 8], 12))).await;
    assert_refused(&status, "latents.data", &["12 bytes", "[4, 8, 8]", "1024"]);
    let huge = decode(Some(tensor(&[u32::MAX; 4], 8))).await;
    assert_refused(&huge, "latents.data", &["8 bytes"]);
    assert_refused(&decode(None).await, "latents", &["absent"]);
    for shape in [&[3, 8, 8][..], &[8, 8], &[4, 8, 0], &[1, 4, 8, 8], &[4, 8192, 1]] {
        let bytes = usize::try_from(shape.iter().product::<u32>()).unwrap() * 4;
        let status = decode(Some(tensor(shape, bytes))).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{shape:?}: {status}");
        assert!(refused_fields(&status)[0].0.starts_with("latents"), "{shape:?}: {status}");
    }
    let unknown = v1::Tensor { dtype: 9, ..tensor(&[4, 8, 8], 1024) };
    assert_refused(&decode(Some(unknown)).await, "latents.dtype", &["9"]);
    let mut nan = tensor(&[4, 8, 8], 0);
    nan.data = f32::NAN.to_le_bytes().repeat(256).into();
    let status = decode(Some(nan)).await;
    assert!(
        matches!(status.code(), Code::Internal | Code::InvalidArgument),
        "never a black picture: {status}"
    );
    let fine = v1::DecodeRequest { latents: Some(tensor(&[4, 8, 8], 1024)), ..Default::default() };
    clients.vae().decode(fine).await.expect("the stage serves on");
}

fn denoise() -> v1::DenoiseRequest {
    let size = Some(Size { height: 64, width: 64 });
    let conditioning = v1::Conditioning {
        prompt_embeds: Some(tensor(&[77, 64], 77 * 64 * 4)),
        pooled_prompt_embeds: Some(tensor(&[32], 128)),
        original_size: size,
        crops_coords_top_left: Some(CropCoords::default()),
        target_size: size,
        aesthetic_score: None,
    };
    v1::DenoiseRequest {
        size,
        scheduler: Some(v1::SchedulerConfig { kind: SchedulerKind::Euler.into(), ..Default::default() }),
        num_inference_steps: 2,
        begin_step: 0,
        end_step: 2,
        guidance_scale: 1.0,
        guidance_rescale: 0.0,
        conditioning: Some(conditioning),
        negative_conditioning: None,
        checkpoint_interval: 0,
        progress_interval: 0,
        guidance_steps: None,
        deep_cache: None,
        start: Some(v1::denoise_request::Start::Latents(tensor(&[4, 8, 8], 1024))),
    }
}

/// Runs a denoise call to its end.
async fn denoised(request: v1::DenoiseRequest) -> Result<(), Status> {
    let clients = Clients::new(CLUSTER.base_unets[0].address());
    let mut events = clients.denoiser().denoise(request).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn a_denoiser_refuses_what_does_not_fit() {
    type Change = fn(&mut v1::DenoiseRequest);
    let cases: [(&str, Change); 12] = [
        ("conditioning", |r| r.conditioning = None),
        ("conditioning.prompt_embeds.data", |r| {
            r.conditioning.as_mut().unwrap().prompt_embeds = Some(tensor(&[77, 64], 12));
        }),
        ("conditioning.prompt_embeds.shape", |r| {
            r.conditioning.as_mut().unwrap().prompt_embeds = Some(tensor(&[77, 32], 77 * 32 * 4));
        }),
        ("conditioning.pooled_prompt_embeds.shape", |r| {
            r.conditioning.as_mut().unwrap().pooled_prompt_embeds = Some(tensor(&[33], 132));
        }),
        ("negative_conditioning", |r| r.guidance_scale = 5.0),
        ("latents.shape", |r| r.start = Some(v1::denoise_request::Start::Latents(tensor(&[4, 8, 9], 1152)))),
        ("latents.data", |r| r.start = Some(v1::denoise_request::Start::Latents(tensor(&[4, 8, 8], 1020)))),
        ("start", |r| r.start = None),
        ("end_step", |r| r.end_step = 3),
        ("begin_step", |r| r.begin_step = 3),
        ("guidance_scale", |r| r.guidance_scale = f32::NAN),
        ("size.width", |r| {
            r.size = Some(Size { height: 64, width: 63 });
            r.start = Some(v1::denoise_request::Start::Noise(v1::SeededNoise::default()));
        }),
    ];
    for (field, change) in cases {
        let mut request = denoise();
        change(&mut request);
        let status = denoised(request).await.expect_err(field);
        assert_refused(&status, field, &[]);
    }
    denoised(v1::DenoiseRequest { begin_step: 2, ..denoise() })
        .await
        .expect("no steps give the latents back");
    denoised(denoise()).await.expect("the stage serves on");
}

#[tokio::test]
async fn latents_that_are_not_finite_end_in_an_error() {
    for value in [f32::NAN, f32::INFINITY, 3e38] {
        let mut request = denoise();
        let data = value.to_le_bytes().repeat(256).into();
        let latents = v1::Tensor { data, ..tensor(&[4, 8, 8], 0) };
        request.start = Some(v1::denoise_request::Start::Latents(latents));
        let status = denoised(request).await.expect_err("never latents");
        assert!(status.message().contains("finite"), "{value}: {status}");
        assert!(matches!(status.code(), Code::Internal | Code::InvalidArgument), "{value}: {status}");
    }
}
