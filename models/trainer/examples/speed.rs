//! Samples that a processor trains on in a second, forward and backward: `speed vae|unet [threads [seconds]]`.
//!
//! Counted in processor time, which other work on the machine changes little.

use std::{
    env, fs,
    io::{Write as _, stdout},
    path::Path,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use sdxl_models::{
    autograd::{Precision, Scope},
    unet::{AddedConditioning, Unet, UnetConfig},
    vae::{Autoencoder, VaeConfig},
};
use sdxl_trainer::{
    TrainError,
    gradients::{self, Batch, Shard},
    random,
    store::{Initialisation, ParameterStore},
    threads::{self, Team},
};

const UNET: &str = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 32,
    "attention_head_dim": [2, 4, 4], "block_out_channels": [64, 128, 128], "cross_attention_dim": 160,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2, "norm_num_groups": 16, "projection_class_embeddings_input_dim": 288,
    "transformer_layers_per_block": [1, 1, 2], "use_linear_projection": true,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;

const VAE: &str = r#"{"block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "norm_num_groups": 8,
    "latent_channels": 4, "scaling_factor": 1.0,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

/// As `sdxl-train`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Loss = Box<dyn Fn(&Shard<'_>) -> Result<Tensor, TrainError> + Sync>;

fn draw(shape: &[usize]) -> Result<Tensor, TrainError> {
    let values = random::normal(&mut random::stream(1, "draw", 0, 0), shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Crops of 64 x 64 through both halves.
fn vae() -> anyhow::Result<(ParameterStore, Loss)> {
    let config = VaeConfig::from_json(VAE, Path::new("vae"))?;
    let (store, network) = ParameterStore::build(Initialisation::new(1), |vb| Autoencoder::new(vb, &config))?;
    let loss = move |shard: &Shard<'_>| {
        let _scope = Scope::new(Precision::Bf16);
        let images = draw(&[shard.samples.len(), 3, 64, 64])?;
        let (mean, logvar) = network.moments(&images)?;
        let latents = (&mean + ((&logvar * 0.5)?.exp()? * draw(mean.dims())?)?)?;
        let error = (network.reconstruct(&latents)? - images)?;
        Ok(((error.abs()?.mean_all()? + error.sqr()?.mean_all()?)? + (logvar.sqr()?.mean_all()? * 1e-4)?)?)
    };
    Ok((store, Box::new(loss)))
}

/// Latents of 16 x 16 with 77 tokens, which have gradients too, as text encoders in training want.
fn unet() -> anyhow::Result<(ParameterStore, Loss)> {
    let config = UnetConfig::from_json(UNET, Path::new("unet"))?;
    let (store, (network, tokens)) = ParameterStore::build(Initialisation::new(1), |vb| {
        Ok::<_, anyhow::Error>((Unet::new(vb, &config)?, vb.get((77, 160), "tokens.weight")?))
    })?;
    let loss = move |shard: &Shard<'_>| {
        let _scope = Scope::new(Precision::Bf16);
        let batch = shard.samples.len();
        let added =
            AddedConditioning { text_embeds: draw(&[batch, 96])?, time_ids: draw(&[batch, 6])?.abs()? };
        let context = draw(&[batch, 77, 160])?.broadcast_add(&tokens)?;
        let sample = draw(&[batch, 4, 16, 16])?;
        let times: Vec<f32> = (0..batch).map(|i| i as f32 * 30.0).collect();
        Ok((network.forward(&sample, &times, &context, &added)? - sample)?.sqr()?.mean_all()?)
    };
    Ok((store, Box::new(loss)))
}

/// Processor time of this process, in hundredths of a second by Linux.
fn processor_seconds() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn main() -> anyhow::Result<()> {
    threads::one_thread_per_kernel()?;
    let args: Vec<String> = env::args().collect();
    let argument = |i: usize, default: u64| args.get(i).map_or(Ok(default), |text| text.parse());
    let (threads, seconds) = (argument(2, 1)? as usize, argument(3, 10)?);
    let (each, (store, loss)) = match args.get(1).map(String::as_str) {
        Some("vae") => (8, vae()?),
        Some("unet") => (32, unet()?),
        _ => anyhow::bail!("speed vae|unet [threads [seconds]]"),
    };
    let team = Team::new(threads)?;
    let batch = Batch { step: 1, samples: (0..each * threads).collect() };
    let step = || gradients::step(&team, &store, &batch, &loss);
    let (value, gradients) = step()?;
    let mut sum = 0.0;
    for (i, parameter) in store.parameters().iter().enumerate() {
        let squares =
            gradients.values(i)?.unwrap_or_default().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        if env::var_os("NORMS").is_some() {
            writeln!(stdout(), "{} {:.6e}", parameter.name(), squares.sqrt())?;
        }
        sum += squares;
    }
    drop(gradients);
    step()?;
    let (started, processor) = (Instant::now(), processor_seconds()?);
    let mut steps = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        step()?;
        steps += 1;
    }
    let taken = processor_seconds()? - processor;
    let samples = (steps * each * threads) as f64;
    writeln!(stdout(), "loss {value:.6}, gradient {:.6}", sum.sqrt())?;
    writeln!(
        stdout(),
        "{:.1} samples/s per thread by processor time, {:.1} by the clock; {steps} steps",
        samples / taken,
        samples / started.elapsed().as_secs_f64() / threads as f64,
    )?;
    Ok(())
}
