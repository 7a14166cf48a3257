//! A cluster whose stages take their time and compute nothing, behind the real coordinator.

use integration_tests::{Cluster, ClusterConfig, Picture, Profile, fox, process};
use sdxl_proto::v1;
use std::time::Duration;

#[tokio::test]
async fn a_simulated_cluster_makes_pictures() {
    let profile = Profile::quick(0.001);
    let cluster =
        Cluster::start(&ClusterConfig { base_unets: 2, ..ClusterConfig::simulated(profile.path()) });
    let clients = cluster.clients();
    let model = clients.model().get_model(v1::GetModelRequest {}).await.unwrap().into_inner();
    assert_eq!((model.model.as_str(), model.has_refiner), ("quick", true));
    assert!(model.stages.iter().all(|stage| stage.device == "simulated"), "{:?}", model.stages);

    let request = v1::GenerateRequest {
        num_images: 3,
        width: 104,
        height: 72,
        refiner: Some(v1::Refiner {
            mode: Some(v1::refiner::Mode::DenoisingSplit(0.5)),
            ..Default::default()
        }),
        ..fox()
    };
    let mut answers = Vec::new();
    for _ in 0..2 {
        let answer = clients.images().generate(request.clone()).await.unwrap().into_inner();
        let steps =
            |stage| answer.timings.iter().filter(|t| t.stage() == stage).map(|t| t.steps).sum::<u32>();
        assert_eq!((steps(v1::Stage::BaseUnet), steps(v1::Stage::Refiner)), (6, 6));
        answers.push(answer.images.into_iter().map(|image| image.data).collect::<Vec<_>>());
    }
    for data in &answers[0] {
        assert_eq!(Picture::decode(data).size(), (72, 104));
        assert!(data.starts_with(b"\x89PNG"));
    }
    assert!(answers[0] == answers[1], "the same request gave other bytes");
    assert!(answers[0][0] != answers[0][1] && answers[0][1] != answers[0][2], "each seed has its picture");
}

#[test]
fn flags_that_do_not_go_together_are_named() {
    let profile = Profile::quick(0.001);
    let path = profile.path().display().to_string();
    for (binary, folder) in [
        ("sdxl-text-encoder", "--base"),
        ("sdxl-base-unet", "--model"),
        ("sdxl-refiner", "--model"),
        ("sdxl-vae", "--model"),
    ] {
        let cases: [(&[&str], &str); 5] = [
            (&[], folder),
            (&["--engine", "candle"], folder),
            (&["--engine", "simulated"], "--profile"),
            (&["--profile", &path, folder, "x"], "--engine"),
            (&["--engine", "candle", "--profile", &path, folder, "x"], "--profile is of --engine simulated"),
        ];
        for (args, named) in cases {
            let command = process::command(binary, args.iter().chain(&["--listen", "127.0.0.1:0"]));
            let output = process::run(command, Duration::from_secs(60));
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && error.contains(named), "{binary} {args:?}: {error}");
        }
    }
}
