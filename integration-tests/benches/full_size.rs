//! The base UNet at SDXL's full size with random weights, as `sdxl-base-unet` serves it over gRPC, beside diffusers in
//! the same run: time to ready, seconds a guided step at 512 x 512 in float32, peak memory.
//!
//! `make bench` runs it. It is no test: it asserts nothing about time.

use bytes::Bytes;
use integration_tests::{
    client::Clients,
    process::{self, Server},
};
use sdxl_proto::v1::{self, denoise_response::Event};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tonic_health::pb::health_check_response::ServingStatus;

/// Steps timed on each side; the median counts.
const STEPS: u32 = 3;
const READY: Duration = Duration::from_secs(900);

struct Figures {
    name: String,
    load_s: f64,
    step_s: f64,
    peak_mib: f64,
}

fn main() {
    let python = std::env::var("SDXL_BENCH_PYTHON").expect("SDXL_BENCH_PYTHON names a Python with diffusers");
    let checkpoint = checkpoint();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    eprintln!("sdxl-base-unet: loading 2.57 billion parameters ...");
    let ours = ours(&checkpoint);
    eprintln!("diffusers: the same ...");
    let theirs = theirs(&python, &checkpoint, threads);
    println!("Full-size base UNet, float32, guided step (batch 2) at 512 x 512, {threads} threads\n");
    println!("| | {} | {} | ratio |\n| --- | --- | --- | --- |", ours.name, theirs.name);
    for (what, a, b) in [
        ("start to ready, s", ours.load_s, theirs.load_s),
        ("guided step, s", ours.step_s, theirs.step_s),
        ("peak memory, MiB", ours.peak_mib, theirs.peak_mib),
    ] {
        println!("| {what} | {a:.1} | {b:.1} | {:.2} |", a / b);
    }
}

/// The checkpoint, made once: 5.1 GB in float16.
fn checkpoint() -> PathBuf {
    let folder = process::target_dir().join("bench/sdxl");
    if !folder.join("base/scheduler/scheduler_config.json").exists() {
        eprintln!("making random weights of SDXL's full size in {} ...", folder.display());
        let args = [
            "random",
            "--variant",
            "sdxl",
            "--seed",
            "0",
            "--dtype",
            "f16",
            "--only",
            "unet,scheduler",
            "--no-refiner",
        ];
        let mut command = Command::new(process::binary("sdxl-checkpoint"));
        let status = command.args(args).arg("--out").arg(&folder).status().expect("sdxl-checkpoint runs");
        assert!(status.success(), "sdxl-checkpoint failed");
    }
    folder.join("base")
}

fn ours(checkpoint: &Path) -> Figures {
    let began = Instant::now();
    let server = Server::start("sdxl-base-unet", ["--model".as_ref(), checkpoint.as_os_str()]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let clients = Clients::new(server.address());
        while !clients.becomes(ServingStatus::Serving, Duration::from_secs(5)).await {
            let ended = server.wait(Duration::ZERO).is_some();
            assert!(!ended && began.elapsed() < READY, "it does not get ready:\n{}", server.stderr());
        }
        let load_s = began.elapsed().as_secs_f64();
        let info =
            clients.stage().get_stage(v1::GetStageRequest {}).await.expect("a ready stage").into_inner();
        let Some(v1::get_stage_response::Details::Denoiser(details)) = info.details else {
            panic!("no denoiser: {info:?}");
        };
        let mut stream =
            clients.denoiser().denoise(request(&details)).await.expect("a warm stage").into_inner();
        let mut times = Vec::new();
        while let Some(message) = stream.message().await.expect("a step") {
            if let Some(Event::Progress(progress)) = message.event {
                let time: Duration = progress.step_time.unwrap_or_default().try_into().expect("a duration");
                times.push(time.as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        Figures {
            name: "sdxl-base-unet".to_owned(),
            load_s,
            step_s: times[times.len() / 2],
            peak_mib: peak_mib(server.pid()),
        }
    })
}

fn request(details: &v1::DenoiserDetails) -> v1::DenoiseRequest {
    let embeds = |value: f32| v1::Conditioning {
        prompt_embeds: Some(constant(&[77, details.cross_attention_dim], value)),
        pooled_prompt_embeds: Some(constant(&[details.pooled_projection_dim], value)),
        original_size: Some(v1::Size { height: 512, width: 512 }),
        crops_coords_top_left: Some(v1::CropCoords { top: 0, left: 0 }),
        target_size: Some(v1::Size { height: 512, width: 512 }),
        aesthetic_score: None,
    };
    v1::DenoiseRequest {
        size: Some(v1::Size { height: 512, width: 512 }),
        scheduler: details.scheduler,
        num_inference_steps: STEPS,
        begin_step: 0,
        end_step: STEPS,
        guidance_scale: 5.0,
        guidance_rescale: 0.0,
        conditioning: Some(embeds(0.5)),
        negative_conditioning: Some(embeds(-0.5)),
        checkpoint_interval: 0,
        progress_interval: 0,
        start: Some(v1::denoise_request::Start::Noise(v1::SeededNoise { seed: 0, draws_before: 0 })),
    }
}

fn constant(shape: &[u32], value: f32) -> v1::Tensor {
    let count = shape.iter().product::<u32>() as usize;
    let data: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), count).flatten().collect();
    v1::Tensor { shape: shape.to_vec(), dtype: v1::DType::F32.into(), data: Bytes::from(data) }
}

fn theirs(python: &str, checkpoint: &Path, threads: usize) -> Figures {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer.py");
    let mut command = Command::new(python);
    command.arg(script).arg(checkpoint.join("unet")).args([STEPS.to_string(), threads.to_string()]);
    let output = process::run(command, READY * 2);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(text.trim()).expect("the peer prints JSON");
    let figure = |key: &str| json[key].as_f64().expect("a figure");
    Figures {
        name: json["versions"].as_str().unwrap_or("diffusers").to_owned(),
        load_s: figure("load_s"),
        step_s: figure("step_s"),
        peak_mib: figure("peak_mib"),
    }
}

/// The most memory that a process has held, mapped weights included.
fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM")).expect("Linux names the peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}
