//! Answers to callers.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::Script,
};
use sdxl_core::StageKind;
use sdxl_proto::v1::{
    GenerateRequest, Size, Stage, WarningCode, generate_stream_response::Event, refiner::Mode,
};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_types::StatusExt;

#[tokio::test]
async fn wrong_fields_are_all_named() {
    let cluster = Cluster::start(Layout::default()).await;
    let request = GenerateRequest {
        width: 7,
        height: 4096,
        num_images: 17,
        guidance_scale: Some(f32::NAN),
        clip_skip: 9,
        image_format: 99,
        ..cat()
    };
    for status in [
        cluster.generate(request.clone()).await.unwrap_err(),
        cluster.client().generate_stream(request).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::InvalidArgument);
        let mut fields: Vec<_> = status
            .get_details_bad_request()
            .unwrap()
            .field_violations
            .into_iter()
            .map(|violation| violation.field)
            .collect();
        fields.sort();
        assert_eq!(fields, ["clip_skip", "guidance_scale", "height", "image_format", "num_images", "width"]);
    }
    assert_eq!(cluster.text_encoder[0].log.encodes.lock().unwrap().len(), 0, "no stage was asked");
}

#[tokio::test]
async fn a_refiner_that_is_not_there_is_a_failed_precondition() {
    let cluster = Cluster::start(Layout::default()).await;
    let status = cluster.generate(refined(Mode::Strength(0.5))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("refiner: "), "{}", status.message());
}

#[tokio::test]
async fn a_request_without_refiner_skips_it() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    cluster.generate(cat()).await.unwrap();
    assert_eq!((cluster.base_unet[0].denoises(), cluster.refiner[0].denoises()), (1, 0));
}

#[tokio::test]
async fn a_seed_is_drawn_and_reported() {
    let cluster = Cluster::start(Layout::default()).await;
    let unseeded = GenerateRequest { seed: None, num_images: 2, ..cat() };
    let first = cluster.generate(unseeded.clone()).await.unwrap().images;
    assert_eq!(first[1].seed, first[0].seed.wrapping_add(1));
    let second = cluster.generate(unseeded).await.unwrap().images;
    assert_ne!(first[0].seed, second[0].seed);
}

#[tokio::test]
async fn lost_text_and_untrained_sizes_are_warned_of() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let request = GenerateRequest {
        prompt: "a catCUT on a mat".into(),
        prompt_2: Some("a dogCUT in a bog".into()),
        negative_prompt: Some("a catCUT on a mat".into()),
        width: 192,
        height: 96,
        ..refined(Mode::DenoisingSplit(0.5))
    };
    let answer = cluster.generate(request).await.unwrap();
    let warnings: Vec<_> = answer
        .warnings
        .iter()
        .map(|w| (w.code(), w.field.as_str(), w.truncated_text.as_str(), w.nearest_size))
        .collect();
    let nearest = Some(Size { height: 96, width: 160 });
    let expected = [
        (WarningCode::PromptTruncated, "prompt", " on a mat", None),
        (WarningCode::PromptTruncated, "prompt_2", " in a bog", None),
        (WarningCode::PromptTruncated, "negative_prompt", " on a mat", None),
        (WarningCode::SizeOutsideBuckets, "width", "", nearest),
    ];
    assert_eq!(warnings, expected);
    assert!(answer.warnings[3].message.contains("96x160"), "{}", answer.warnings[3].message);
    assert!(cluster.generate(cat()).await.unwrap().warnings.is_empty());
}

#[tokio::test]
async fn a_text_that_two_fields_share_is_warned_of_for_each() {
    let cluster = Cluster::start(Layout::default()).await;
    let text = "a catCUT on a mat".to_owned();
    let request = GenerateRequest { prompt: text.clone(), negative_prompt: Some(text), ..cat() };
    let fields: Vec<_> =
        cluster.generate(request).await.unwrap().warnings.into_iter().map(|w| w.field).collect();
    assert_eq!(fields, ["prompt", "negative_prompt"]);
    assert_eq!(cluster.text_encoder[0].log.encodes.lock().unwrap()[0].request.inputs.len(), 1);
}

#[tokio::test]
async fn a_stream_tells_each_step_then_the_pictures_then_the_rest() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let request = GenerateRequest { num_images: 2, ..refined(Mode::DenoisingSplit(0.8)) };
    let (events, error) = cluster.stream(request).await;
    assert!(error.is_none(), "{error:?}");
    for picture in [0, 1] {
        let steps: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Progress(p) if p.image_index == Some(picture) => Some((p.stage(), p.steps_done)),
                _ => None,
            })
            .collect();
        let mut expected: Vec<_> = (1..=8).map(|step| (Stage::BaseUnet, step)).collect();
        expected.extend([(Stage::Refiner, 9), (Stage::Refiner, 10), (Stage::Vae, 10)]);
        assert_eq!(steps, expected);
    }
    let progress = |event: &Event| match event {
        Event::Progress(progress) => Some(progress.clone()),
        _ => None,
    };
    let first = progress(&events[0]).unwrap();
    assert_eq!((first.stage(), first.image_index, first.steps_done), (Stage::TextEncoder, None, 0));
    assert!(events.iter().filter_map(progress).all(|p| p.steps_total == 10 && !p.replica.is_empty()));
    let images: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Image(image) => Some((image.image_index, image.image.as_ref().unwrap().seed)),
            _ => None,
        })
        .collect();
    assert_eq!(images.len(), 2);
    assert!(images.contains(&(0, 7)) && images.contains(&(1, 8)));
    let Some(Event::Summary(summary)) = events.last() else { panic!("{:?}", events.last()) };
    assert_eq!((summary.timings.len(), summary.trace_id.len()), (7, 32));
}

#[tokio::test]
async fn a_deadline_goes_with_every_hop_and_ends_the_request() {
    let slow = Script::new(StageKind::BaseUnet).step_time(Duration::from_secs(60));
    let cluster = Cluster::start(Layout::bases([slow])).await;
    let mut request = tonic::Request::new(cat());
    request.set_timeout(Duration::from_millis(400));
    let began = Instant::now();
    let (_, error) = cluster.stream(request).await;
    let (elapsed, status) = (began.elapsed(), error.unwrap());
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "the deadline passed after 0 of 4 steps");
    assert!((Duration::from_millis(300)..Duration::from_millis(900)).contains(&elapsed), "{elapsed:?}");
    cluster.base_unet[0].running(0).await;
    let base = cluster.base_unet[0].log.denoises.lock().unwrap()[0].metadata.clone();
    let encoder = cluster.text_encoder[0].log.encodes.lock().unwrap()[0].metadata.clone();
    for metadata in [base, encoder] {
        let left = sdxl_runtime::Deadline::from_metadata(&metadata).unwrap().remaining();
        assert!(left > Duration::ZERO && left <= Duration::from_millis(400), "{left:?}");
    }
}

#[tokio::test]
async fn without_a_deadline_none_is_handed_on() {
    let cluster = Cluster::start(Layout::default()).await;
    cluster.generate(cat()).await.unwrap();
    assert!(cluster.base_unet[0].log.denoises.lock().unwrap()[0].metadata.get("grpc-timeout").is_none());
}

#[tokio::test]
async fn more_requests_than_allowed_are_refused_at_once() {
    let slow = Script::new(StageKind::BaseUnet).step_time(Duration::from_secs(60));
    let cluster = Cluster::start(Layout { max_requests: 1, ..Layout::bases([slow]) }).await;
    let mut client = cluster.client();
    let running = tokio::spawn(async move { client.generate(cat()).await });
    cluster.base_unet[0].running(1).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    running.abort();
    cluster.base_unet[0].running(0).await;
    let (events, _) = {
        let mut request = tonic::Request::new(cat());
        request.set_timeout(Duration::from_millis(200));
        cluster.stream(request).await
    };
    assert!(!events.is_empty(), "the slot was given back");
}
