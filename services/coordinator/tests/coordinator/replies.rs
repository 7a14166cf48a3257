//! Stages that answer nonsense.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::{Reply, Script, tensor},
};
use sdxl_core::StageKind;
use tonic::{Code, Status};

/// What the caller hears after the only replica's address.
async fn heard(layout: Layout) -> (Code, String) {
    let cluster = Cluster::start(layout).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    (status.code(), status.message().split_once(" answered ").map_or("", |(_, rest)| rest).to_owned())
}

fn encoder(spoil: fn(Reply<'_>)) -> Layout {
    Layout { text_encoder: vec![Script::new(StageKind::TextEncoder).spoil(spoil)], ..Layout::default() }
}

fn base(spoil: fn(Reply<'_>)) -> Layout {
    Layout::bases([Script::new(StageKind::BaseUnet).spoil(spoil)])
}

fn vae(spoil: fn(Reply<'_>)) -> Layout {
    Layout { vae: vec![Script::new(StageKind::Vae).spoil(spoil)], ..Layout::default() }
}

#[tokio::test]
async fn each_is_an_internal_error_that_names_the_field() {
    let cases: [(Layout, &str); 8] = [
        (
            encoder(|reply| {
                if let Reply::Encode(answer) = reply {
                    answer.embeddings.clear();
                }
            }),
            "0 embeddings for 1 texts",
        ),
        (
            encoder(|reply| {
                if let Reply::Encode(answer) = reply {
                    answer.embeddings[0].pooled_prompt_embeds = None;
                }
            }),
            "embeddings[0].pooled_prompt_embeds is absent",
        ),
        (
            encoder(|reply| {
                if let Reply::Encode(answer) = reply {
                    answer.embeddings[0].prompt_embeds = Some(tensor(&[77, 65], 0));
                }
            }),
            "embeddings[0].prompt_embeds has shape [77, 65], not [?, 64]",
        ),
        (
            base(|reply| {
                if let Reply::Denoise(result) = reply {
                    result.latents = None;
                }
            }),
            "result.latents is absent",
        ),
        (
            base(|reply| {
                if let Reply::Denoise(result) = reply {
                    result.latents.as_mut().unwrap().data.truncate(5);
                }
            }),
            "result.latents holds 5 bytes, which do not fit its shape [4, 16, 16]",
        ),
        (
            vae(|reply| {
                if let Reply::Decode(answer) = reply {
                    answer.media_type = "text/html".into();
                }
            }),
            "media_type is \"text/html\", not \"image/png\"",
        ),
        (
            vae(|reply| {
                if let Reply::Decode(answer) = reply {
                    answer.width = 3;
                }
            }),
            "the picture is 128x3 (height x width), not 128x128 (height x width)",
        ),
        (
            vae(|reply| {
                if let Reply::Decode(answer) = reply {
                    answer.data.clear();
                }
            }),
            "the picture is empty",
        ),
    ];
    for (layout, problem) in cases {
        let expected = (Code::Internal, format!("what makes no sense: {problem}"));
        assert_eq!(heard(layout).await, expected);
    }
}

#[tokio::test]
async fn a_stage_that_calls_its_request_invalid_was_asked_wrongly_by_us() {
    let refusing = Script::new(StageKind::BaseUnet).refuse(Status::invalid_argument("size: no"));
    let cluster = Cluster::start(Layout::bases([refusing])).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    let expected = format!("base-unet at {}: size: no", cluster.base_unet[0].address);
    assert_eq!((status.code(), status.message()), (Code::Internal, expected.as_str()));
}

#[tokio::test]
async fn pictures_too_large_for_one_answer_are_refused_and_streamed() {
    let large = |reply: Reply<'_>| {
        if let Reply::Decode(answer) = reply {
            answer.data = vec![0; 20 * 1024 * 1024].into();
        }
    };
    let cluster = Cluster::start(vae(large)).await;
    let request = sdxl_proto::v1::GenerateRequest { num_images: 4, ..cat() };
    let status = cluster.generate(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("GenerateStream"), "{}", status.message());
    assert!(cluster.stream(request).await.1.is_none());
}
