//! Every golden request through real services, against what diffusers made of it, and each network by itself.
//! `cargo test -p integration-tests --test golden -- --nocapture` prints the figures.

use integration_tests::{Clients, Cluster, Made, Picture, golden::Golden};
use sdxl_proto::v1;
use std::{collections::BTreeMap, fmt::Write};

/// How far the values of the single networks may be from diffusers', whose size is about 1.
const PARTS: f32 = 2e-5;

#[tokio::test]
async fn pico() {
    check("pico").await;
}

#[tokio::test]
async fn nano() {
    check("nano").await;
}

#[tokio::test]
async fn micro() {
    check("micro").await;
}

#[tokio::test]
async fn shapes() {
    check_against("shapes", &Made::shipped()).await;
}

async fn check(variant: &str) {
    check_against(variant, &Made::of(variant, 0)).await;
}

async fn check_against(variant: &str, made: &Made) {
    let golden = Golden::open(variant);
    golden.check_weights(made);
    let (config, _folders) = golden.cluster_config(made);
    let cluster = Cluster::start(&config);
    let mut wrong = String::new();
    parts(&golden, &cluster, &mut wrong).await;
    for (name, request) in &golden.requests {
        whole(&golden, &cluster.clients(), (name, request.into()), &mut wrong).await;
    }
    assert!(wrong.is_empty(), "not what diffusers makes of {variant}:\n{wrong}");
}

/// One request, each of its pictures.
async fn whole(
    golden: &Golden,
    clients: &Clients,
    (name, request): (&str, v1::GenerateRequest),
    wrong: &mut String,
) {
    let count = usize::try_from(request.num_images.max(1)).unwrap();
    let seed = request.seed.unwrap();
    let images = match clients.images().generate(request).await {
        Ok(answer) => answer.into_inner().images,
        Err(status) => return writeln!(wrong, "{name}: {status}").unwrap(),
    };
    assert_eq!(images.len(), count, "{name}");
    for (index, image) in images.iter().enumerate() {
        assert_eq!(image.seed, seed + u64::try_from(index).unwrap(), "{name}");
        let difference = Picture::decode(&image.data).difference(&golden.picture(name, index));
        println!("{name} {index}: {difference}");
        if !difference.is_parity() {
            writeln!(wrong, "{name} {index}: {difference}").unwrap();
        }
    }
}

async fn parts(golden: &Golden, cluster: &Cluster, wrong: &mut String) {
    let parts = golden.parts();
    for name in ["base", "refiner"] {
        let embeds = encode(name, &Clients::new(cluster.text_encoder.address())).await;
        for (got, part) in
            [(embeds.prompt_embeds, "prompt_embeds"), (embeds.pooled_prompt_embeds, "pooled_prompt_embeds")]
        {
            compare(&format!("{name}.{part}"), &got.unwrap(), &parts, wrong);
        }
        let server = if name == "base" { &cluster.base_unets[0] } else { cluster.refiner.as_ref().unwrap() };
        let latents = one_step(name, &parts, &Clients::new(server.address())).await;
        compare(&format!("{name}.next_latents"), &latents, &parts, wrong);
    }
    let request = v1::DecodeRequest { latents: Some(parts["vae.latents"].clone()), ..Default::default() };
    let answer = Clients::new(cluster.vaes[0].address()).vae().decode(request).await.unwrap().into_inner();
    let difference = Picture::decode(&answer.data).difference(&golden.vae_picture());
    println!("vae: {difference}");
    if !difference.is_parity() {
        writeln!(wrong, "vae: {difference}").unwrap();
    }
}

async fn encode(name: &str, clients: &Clients) -> v1::TextEmbedding {
    let (conditioner, prompt_2) = match name {
        "base" => (v1::Conditioner::Base, "oil on canvas"),
        _ => (v1::Conditioner::Refiner, ""),
    };
    let input = v1::TextInput {
        conditioner: conditioner.into(),
        prompt: "a photo of a cat!".to_owned(),
        prompt_2: prompt_2.to_owned(),
        clip_skip: 0,
    };
    let answer = clients.text_encoder().encode(v1::EncodeRequest { inputs: vec![input] }).await.unwrap();
    answer.into_inner().embeddings.remove(0)
}

/// Step 3 of 10 without guidance: one call of the network.
async fn one_step(name: &str, parts: &BTreeMap<String, v1::Tensor>, clients: &Clients) -> v1::Tensor {
    let details = clients.stage().get_stage(v1::GetStageRequest {}).await.unwrap().into_inner().details;
    let Some(v1::get_stage_response::Details::Denoiser(details)) = details else { panic!("{details:?}") };
    let size = v1::Size { height: 88, width: 72 };
    let part = |which: &str| Some(parts[&format!("{name}.{which}")].clone());
    let request = v1::DenoiseRequest {
        size: Some(size),
        scheduler: details.scheduler,
        num_inference_steps: 10,
        begin_step: 3,
        end_step: 4,
        guidance_scale: 1.0,
        guidance_rescale: 0.0,
        conditioning: Some(v1::Conditioning {
            prompt_embeds: part("prompt_embeds"),
            pooled_prompt_embeds: part("pooled_prompt_embeds"),
            original_size: Some(size),
            crops_coords_top_left: Some(v1::CropCoords { top: 3, left: 5 }),
            target_size: Some(size),
            aesthetic_score: (name == "refiner").then_some(6.0),
        }),
        negative_conditioning: None,
        checkpoint_interval: 0,
        progress_interval: 0,
        guidance_steps: None,
        deep_cache: None,
        start: part("latents").map(v1::denoise_request::Start::Latents),
    };
    let mut events = clients.denoiser().denoise(request).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(v1::denoise_response::Event::Result(result)) = event.event {
            return result.latents.unwrap();
        }
    }
    panic!("the stream ended without a result");
}

fn compare(name: &str, got: &v1::Tensor, parts: &BTreeMap<String, v1::Tensor>, wrong: &mut String) {
    let expected = &parts[name];
    assert_eq!((&got.shape, got.dtype), (&expected.shape, v1::DType::F32.into()), "{name}");
    let apart = values(got).zip(values(expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: {apart:e}");
    if apart.is_nan() || apart > PARTS {
        writeln!(wrong, "{name}: {apart:e}, more than {PARTS:e}").unwrap();
    }
}

fn values(tensor: &v1::Tensor) -> impl Iterator<Item = f32> {
    tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()))
}
