//! The same request gives the same bytes: again, beside others, on other replicas, and as one of several pictures.

use integration_tests::{Clients, Cluster, ClusterConfig, Made, fox};
use sdxl_proto::v1;
use std::{
    collections::{BTreeSet, HashSet},
    sync::LazyLock,
};

static SINGLE: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(&ClusterConfig::new(&Made::pico())));
static MANY: LazyLock<Cluster> = LazyLock::new(|| {
    Cluster::start(&ClusterConfig { base_unets: 3, vaes: 2, ..ClusterConfig::new(&Made::pico()) })
});

fn requests() -> Vec<v1::GenerateRequest> {
    let refiner = |mode| Some(v1::Refiner { mode: Some(mode), ..Default::default() });
    vec![
        fox(),
        v1::GenerateRequest { num_images: 4, width: 104, height: 72, ..fox() },
        v1::GenerateRequest {
            refiner: refiner(v1::refiner::Mode::DenoisingSplit(0.5)),
            num_images: 2,
            ..fox()
        },
        v1::GenerateRequest { refiner: refiner(v1::refiner::Mode::Strength(0.5)), num_images: 2, ..fox() },
        v1::GenerateRequest { deep_cache: cache(2, 0), num_images: 2, ..fox() },
        v1::GenerateRequest { deep_cache: cache(3, 2), num_inference_steps: 7, ..fox() },
        v1::GenerateRequest {
            guidance_interval: Some(v1::GuidanceInterval { start: Some(0.25), stop: Some(0.75) }),
            deep_cache: cache(3, 1),
            refiner: refiner(v1::refiner::Mode::DenoisingSplit(0.5)),
            ..fox()
        },
        v1::GenerateRequest { image_format: v1::ImageFormat::Jpeg.into(), ..fox() },
        v1::GenerateRequest { image_format: v1::ImageFormat::Webp.into(), ..fox() },
    ]
}

fn cache(cache_interval: u32, cache_branch_id: u32) -> Option<v1::DeepCache> {
    Some(v1::DeepCache { cache_interval, cache_branch_id })
}

async fn pictures(clients: &Clients, request: v1::GenerateRequest) -> Vec<Vec<u8>> {
    let images = clients.images().generate(request).await.unwrap().into_inner().images;
    images.into_iter().map(|image| image.data.to_vec()).collect()
}

#[tokio::test]
async fn twice_and_on_more_replicas() {
    let (single, many) = (SINGLE.clients(), MANY.clients());
    for request in requests() {
        let first = pictures(&single, request.clone()).await;
        assert_eq!(
            first.iter().collect::<HashSet<_>>().len(),
            first.len(),
            "each seed has a picture of its own"
        );
        assert!(first == pictures(&single, request.clone()).await, "again: {request:?}");
        assert!(first == pictures(&many, request.clone()).await, "on 3 replicas: {request:?}");
    }
}

#[tokio::test]
async fn beside_others() {
    let many = MANY.clients();
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(pictures(&many, request).await);
    }
    let tasks: Vec<_> = requests()
        .into_iter()
        .map(|request| {
            let clients = many.clone();
            tokio::spawn(async move { pictures(&clients, request).await })
        })
        .collect();
    for (task, alone) in tasks.into_iter().zip(alone) {
        assert!(task.await.unwrap() == alone);
    }
}

#[tokio::test]
async fn picture_i_is_that_of_seed_plus_i() {
    let many = MANY.clients();
    for request in requests().into_iter().filter(|r| r.num_images > 1) {
        let together = pictures(&many, request.clone()).await;
        for (i, picture) in together.iter().enumerate() {
            let seed = request.seed.map(|seed| seed + u64::try_from(i).unwrap());
            let alone = v1::GenerateRequest { num_images: 1, seed, ..request.clone() };
            assert!(pictures(&many, alone).await == [picture.clone()], "picture {i}: {request:?}");
        }
    }
}

#[tokio::test]
async fn the_pictures_of_a_request_spread_over_the_replicas() {
    let request = v1::GenerateRequest { num_images: 6, num_inference_steps: 8, ..fox() };
    let timings = MANY.clients().images().generate(request).await.unwrap().into_inner().timings;
    let base: Vec<_> = timings.iter().filter(|t| t.stage() == v1::Stage::BaseUnet).collect();
    assert_eq!(base.len(), 6);
    let replicas: BTreeSet<_> = base.iter().map(|t| &t.replica).collect();
    let all: Vec<_> = MANY.base_unets.iter().map(|s| s.address().trim_start_matches("http://")).collect();
    assert_eq!(replicas.len(), 3, "{replicas:?}");
    assert!(replicas.iter().all(|r| all.contains(&r.as_str())), "{replicas:?} of {all:?}");
}

#[tokio::test]
async fn the_stream_brings_the_same_pictures_and_counts_every_step() {
    let clients = MANY.clients();
    for request in requests() {
        let mut events = clients.images().generate_stream(request.clone()).await.unwrap().into_inner();
        let count = usize::try_from(request.num_images.max(1)).unwrap();
        let (mut streamed, mut steps) = (vec![Vec::new(); count], vec![0; count]);
        let mut total = 0;
        let mut summary = None;
        while let Some(event) = events.message().await.unwrap() {
            assert!(summary.is_none(), "the summary is the last message");
            match event.event.unwrap() {
                v1::generate_stream_response::Event::Progress(progress) => {
                    total = progress.steps_total.max(total);
                    if let Some(index) = progress.image_index {
                        let steps = &mut steps[usize::try_from(index).unwrap()];
                        assert!(progress.steps_done >= *steps, "{progress:?}");
                        *steps = progress.steps_done;
                    }
                }
                v1::generate_stream_response::Event::Image(image) => {
                    let place = &mut streamed[usize::try_from(image.image_index).unwrap()];
                    assert!(place.is_empty(), "each picture comes once");
                    *place = image.image.unwrap().data.to_vec();
                }
                v1::generate_stream_response::Event::Summary(s) => summary = Some(s),
            }
        }
        assert!(summary.is_some_and(|s| s.trace_id.len() == 32 && !s.timings.is_empty()));
        assert!(total > 0 && steps.iter().all(|s| *s == total), "{steps:?} of {total}");
        assert!(streamed == pictures(&clients, request).await);
    }
}

#[tokio::test]
async fn without_a_seed_one_is_drawn_and_reported() {
    let clients = SINGLE.clients();
    let request = v1::GenerateRequest { seed: None, ..fox() };
    let answer = clients.images().generate(request.clone()).await.unwrap().into_inner();
    let other = clients.images().generate(request.clone()).await.unwrap().into_inner();
    assert_ne!(answer.images[0].seed, other.images[0].seed);
    let again = v1::GenerateRequest { seed: Some(answer.images[0].seed), ..request };
    assert!(pictures(&clients, again).await == [answer.images[0].data.to_vec()]);
}
