//! Seconds that a guided step of a checkpoint's UNet takes in this process alone, to be watched by a profiler.
//!
//! `cargo run --release -p sdxl-models --example step -- CHECKPOINT f32|bf16|plain [LATENT_SIDE] [STEPS]`; plain is f32 by candle's
//! layers and the project's first kernels, without packed weights.

use std::{path::Path, time::Instant};

use candle_core::{DType, Device, Tensor};
use sdxl_models::{
    Packing, PipelineDir, Weights,
    unet::{AddedConditioning, Unet, UnetConfig},
};

#[expect(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, reason = "a program for developers")]
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, checkpoint, dtype, rest @ ..] = args.as_slice() else {
        println!("usage: step CHECKPOINT f32|bf16|plain [LATENT_SIDE] [STEPS]");
        return;
    };
    let number = |i: usize, default| rest.get(i).map_or(default, |n| n.parse().expect("a number"));
    let (side, steps) = (number(0, 64), number(1, 3));
    let dtype_name = dtype.as_str();
    let dtype = if dtype_name == "bf16" { DType::BF16 } else { DType::F32 };
    // As a stage's device thread does.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().unwrap();
    let began = Instant::now();
    let dir = PipelineDir::open(Path::new(checkpoint)).unwrap();
    let config = UnetConfig::open(&dir.unet().join("config.json")).unwrap();
    let unet = {
        let _packing = (dtype_name != "plain").then(Packing::new);
        Unet::new(&Weights::open(&dir.unet()).unwrap().var_builder(dtype, &Device::Cpu), &config).unwrap()
    };
    println!("loaded in {:.2} s", began.elapsed().as_secs_f64());
    let draw = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    let time_ids = if dir.requires_aesthetics_score() { 5 } else { 6 };
    let pooled = config.pooled_projection_dim(dir.requires_aesthetics_score());
    let added = AddedConditioning { text_embeds: draw(&[2, pooled]), time_ids: draw(&[2, time_ids]) };
    let prompt = unet.prompt(&draw(&[2, 77, config.cross_attention_dim]), &added).unwrap();
    let sample = draw(&[2, config.in_channels, side, side]);
    for _ in 0..steps {
        let began = Instant::now();
        unet.forward_to(&sample, &[500.0, 500.0], &[&prompt], &[]).unwrap();
        println!("step of 2 at {side} x {side}: {:.4} s", began.elapsed().as_secs_f64());
    }
}
