//! Changing any field of a request changes what comes back.

use integration_tests::{Cluster, ClusterConfig, Made, fox};
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};
use sdxl_proto::v1::{
    CropCoords, DeepCache, GenerateRequest, GuidanceInterval, ImageFormat, Refiner, Scheduler, SchedulerKind,
    Size, TimestepSpacing, refiner::Mode,
};
use std::collections::BTreeSet;

/// A field, a request, and the same request with another value of that field.
type Case = (&'static str, GenerateRequest, GenerateRequest);

/// Every field set that changes the picture, so that each can be changed alone.
fn full() -> GenerateRequest {
    GenerateRequest {
        prompt_2: Some("ink on paper".to_owned()),
        negative_prompt: Some("dogs".to_owned()),
        negative_prompt_2: Some("colour".to_owned()),
        guidance_scale: Some(6.0),
        guidance_rescale: Some(0.3),
        scheduler: Some(scheduler()),
        original_size: Some(size(500, 600)),
        target_size: Some(size(700, 800)),
        negative_original_size: Some(size(300, 400)),
        negative_target_size: Some(size(900, 1000)),
        crops_coords_top_left: Some(CropCoords { top: 10, left: 20 }),
        negative_crops_coords_top_left: Some(CropCoords { top: 30, left: 40 }),
        num_inference_steps: 6,
        guidance_interval: interval(0.2, 0.8),
        deep_cache: cached(2, 1),
        ..fox()
    }
}

fn interval(start: f32, stop: f32) -> Option<GuidanceInterval> {
    Some(GuidanceInterval { start: Some(start), stop: Some(stop) })
}

fn cached(cache_interval: u32, cache_branch_id: u32) -> Option<DeepCache> {
    Some(DeepCache { cache_interval, cache_branch_id })
}

fn scheduler() -> Scheduler {
    Scheduler {
        kind: SchedulerKind::Euler.into(),
        timestep_spacing: Some(TimestepSpacing::Trailing.into()),
        use_karras_sigmas: Some(false),
    }
}

fn split() -> Refiner {
    Refiner {
        mode: Some(Mode::DenoisingSplit(0.5)),
        num_inference_steps: 8,
        aesthetic_score: Some(6.5),
        negative_aesthetic_score: Some(2.0),
    }
}

fn size(height: u32, width: u32) -> Size {
    Size { height, width }
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

/// Two requests that are alike but for what `change` does.
fn case(field: &'static str, change: impl FnOnce(&mut GenerateRequest)) -> Case {
    let mut changed = full();
    change(&mut changed);
    (field, full(), changed)
}

fn refined(field: &'static str, from: Refiner, to: Refiner) -> Case {
    let with = |refiner| GenerateRequest { refiner: Some(refiner), ..full() };
    (field, with(from), with(to))
}

/// The request's own fields.
fn plain() -> Vec<Case> {
    let jpeg = |quality| GenerateRequest { image_format: ImageFormat::Jpeg.into(), quality, ..full() };
    let webp = |quality| GenerateRequest { image_format: ImageFormat::Webp.into(), quality, ..full() };
    vec![
        case("prompt", |r| r.prompt = "a grey fox".to_owned()),
        case("prompt_2", |r| r.prompt_2 = text("oil on canvas")),
        case("prompt_2", |r| r.prompt_2 = None),
        case("negative_prompt", |r| r.negative_prompt = text("cats")),
        case("negative_prompt", |r| r.negative_prompt = text("")),
        case("negative_prompt", |r| r.negative_prompt = None),
        case("negative_prompt_2", |r| r.negative_prompt_2 = text("greys")),
        case("negative_prompt_2", |r| r.negative_prompt_2 = None),
        case("width", |r| r.width = 72),
        case("height", |r| r.height = 72),
        case("num_inference_steps", |r| r.num_inference_steps = 7),
        case("num_images", |r| r.num_images = 2),
        case("guidance_scale", |r| r.guidance_scale = Some(6.5)),
        case("guidance_scale", |r| r.guidance_scale = Some(1.0)),
        case("guidance_rescale", |r| r.guidance_rescale = Some(0.4)),
        case("guidance_rescale", |r| r.guidance_rescale = None),
        case("guidance_interval", |r| r.guidance_interval = None),
        case("guidance_interval.start", |r| r.guidance_interval = interval(0.4, 0.8)),
        case("guidance_interval.stop", |r| r.guidance_interval = interval(0.2, 1.0)),
        case("deep_cache", |r| r.deep_cache = None),
        case("deep_cache.cache_interval", |r| r.deep_cache = cached(4, 1)),
        case("deep_cache.cache_branch_id", |r| r.deep_cache = cached(2, 2)),
        case("seed", |r| r.seed = Some(6)),
        case("clip_skip", |r| r.clip_skip = 1),
        case("image_format", |r| r.image_format = ImageFormat::Jpeg.into()),
        case("image_format", |r| r.image_format = ImageFormat::Webp.into()),
        ("quality", jpeg(50), jpeg(90)),
        ("quality", webp(50), webp(90)),
    ]
}

/// The numbers that the network is conditioned by, one by one.
fn conditioning() -> Vec<Case> {
    vec![
        case("original_size.height", |r| r.original_size = Some(size(510, 600))),
        case("original_size.width", |r| r.original_size = Some(size(500, 610))),
        case("original_size", |r| r.original_size = None),
        case("target_size.height", |r| r.target_size = Some(size(710, 800))),
        case("target_size.width", |r| r.target_size = Some(size(700, 810))),
        case("target_size", |r| r.target_size = None),
        case("negative_original_size.height", |r| r.negative_original_size = Some(size(310, 400))),
        case("negative_original_size.width", |r| r.negative_original_size = Some(size(300, 410))),
        case("negative_original_size", |r| r.negative_original_size = None),
        case("negative_target_size.height", |r| r.negative_target_size = Some(size(910, 1000))),
        case("negative_target_size.width", |r| r.negative_target_size = Some(size(900, 1010))),
        case("negative_target_size", |r| r.negative_target_size = None),
        case("crops_coords_top_left.top", |r| {
            r.crops_coords_top_left = Some(CropCoords { top: 11, left: 20 });
        }),
        case("crops_coords_top_left.left", |r| {
            r.crops_coords_top_left = Some(CropCoords { top: 10, left: 21 });
        }),
        case("crops_coords_top_left", |r| r.crops_coords_top_left = None),
        case("negative_crops_coords_top_left.top", |r| {
            r.negative_crops_coords_top_left = Some(CropCoords { top: 31, left: 40 });
        }),
        case("negative_crops_coords_top_left.left", |r| {
            r.negative_crops_coords_top_left = Some(CropCoords { top: 30, left: 41 });
        }),
        case("negative_crops_coords_top_left", |r| r.negative_crops_coords_top_left = None),
    ]
}

fn schedulers() -> Vec<Case> {
    let with = |scheduler| move |r: &mut GenerateRequest| r.scheduler = scheduler;
    let kind = Scheduler { kind: SchedulerKind::Ddim.into(), ..scheduler() };
    let spacing = |s: TimestepSpacing| Some(Scheduler { timestep_spacing: Some(s.into()), ..scheduler() });
    let karras = Scheduler { use_karras_sigmas: Some(true), ..scheduler() };
    vec![
        case("scheduler", with(None)),
        case("scheduler.kind", with(Some(kind))),
        case("scheduler.timestep_spacing", with(spacing(TimestepSpacing::Leading))),
        case("scheduler.timestep_spacing", with(spacing(TimestepSpacing::Linspace))),
        case("scheduler.timestep_spacing", with(Some(Scheduler { timestep_spacing: None, ..scheduler() }))),
        case("scheduler.use_karras_sigmas", with(Some(karras))),
    ]
}

fn refiners() -> Vec<Case> {
    let mode = |mode| Refiner { mode: Some(mode), ..split() };
    let strength = || mode(Mode::Strength(0.5));
    vec![
        case("refiner", |r| r.refiner = Some(split())),
        refined("refiner.denoising_split", split(), mode(Mode::DenoisingSplit(0.7))),
        refined("refiner.strength", strength(), mode(Mode::Strength(0.7))),
        refined("refiner.strength", strength(), split()),
        refined("refiner.num_inference_steps", split(), Refiner { num_inference_steps: 10, ..split() }),
        refined("refiner.num_inference_steps", split(), Refiner { num_inference_steps: 0, ..split() }),
        refined("refiner.num_inference_steps", strength(), Refiner { num_inference_steps: 10, ..strength() }),
        refined("refiner.aesthetic_score", split(), Refiner { aesthetic_score: Some(7.0), ..split() }),
        refined("refiner.aesthetic_score", strength(), Refiner { aesthetic_score: None, ..strength() }),
        refined(
            "refiner.negative_aesthetic_score",
            split(),
            Refiner { negative_aesthetic_score: Some(3.0), ..split() },
        ),
        refined(
            "refiner.negative_aesthetic_score",
            strength(),
            Refiner { negative_aesthetic_score: None, ..strength() },
        ),
    ]
}

fn cases() -> Vec<Case> {
    [plain(), conditioning(), schedulers(), refiners()].concat()
}

#[tokio::test]
async fn changing_a_field_changes_the_pictures() {
    let cluster = Cluster::start(&ClusterConfig::new(&Made::pico()));
    let clients = cluster.clients();
    let mut same = Vec::new();
    for (field, from, to) in cases() {
        let mut answers = Vec::new();
        for request in [from, to] {
            let answer = clients.images().generate(request).await.unwrap_or_else(|e| panic!("{field}: {e}"));
            let images = answer.into_inner().images;
            answers.push(images.into_iter().map(|image| image.data).collect::<Vec<_>>());
        }
        if answers[0] == answers[1] {
            same.push(field);
        }
    }
    assert!(same.is_empty(), "without effect: {same:?}");
}

/// The contract's own list of fields, so that a new one cannot be left out above.
#[test]
fn every_field_of_the_contract_is_among_the_cases() {
    let files = FileDescriptorSet::decode(sdxl_proto::FILE_DESCRIPTOR_SET).unwrap();
    let messages: Vec<_> = files.file.into_iter().flat_map(|file| file.message_type).collect();
    // When and how often a picture is made, not what it is.
    const NOT_OF_PICTURES: [&str; 2] = ["priority", "request_id"];
    let covered = cases().into_iter().map(|(field, ..)| field).chain(NOT_OF_PICTURES);
    let covered: BTreeSet<String> = covered.map(str::to_owned).collect();
    let mut fields = BTreeSet::new();
    leaves(&messages, "GenerateRequest", "", &mut fields);
    assert!(fields.contains("refiner.strength") && fields.contains("original_size.height"), "{fields:?}");
    assert_eq!(fields.difference(&covered).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// The paths of the fields of `message` that hold a value of their own.
fn leaves(messages: &[DescriptorProto], message: &str, prefix: &str, fields: &mut BTreeSet<String>) {
    let message = messages.iter().find(|m| m.name() == message).unwrap();
    for field in &message.field {
        let path = format!("{prefix}{}", field.name());
        if field.r#type() == Type::Message {
            let of = field.type_name().trim_start_matches(".sdxl.v1.");
            leaves(messages, of, &format!("{path}."), fields);
        } else {
            fields.insert(path);
        }
    }
}
