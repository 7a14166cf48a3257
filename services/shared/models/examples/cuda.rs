//! The networks of SDXL on an NVIDIA GPU beside diffusers' on the same weights, as `integration-tests/benches/cuda/peer.py` left them:
//! how far the results are apart, how long they take, and what they hold.
//!
//! `cuda FOLDER [DTYPE]`: FOLDER/base is a checkpoint, FOLDER/inputs.safetensors and FOLDER/outputs.safetensors are of the peer.
//! DTYPE, bf16 or f16, is what the UNet computes in. The last line is JSON.

use std::{collections::HashMap, path::Path, time::Instant};

use candle_core::{DType, Device, IndexOp, Tensor, safetensors};
use sdxl_core::{Schedule, StepKinds};
use sdxl_models::{
    PipelineDir, Weights,
    denoise::{Conditioning, DenoiseInputs, DenoiseRun, Start, TimeIds},
    guidance::Guidance,
    open_cuda,
    unet::{AddedConditioning, Unet, UnetConfig},
    vae::{VaeConfig, VaeDecoder, to_rgb8},
};

type Failed = Box<dyn std::error::Error>;

/// What is found, in the order in which it was.
struct Figures(Vec<(String, f64)>);

impl Figures {
    #[expect(clippy::print_stdout, reason = "a program for developers")]
    fn add(&mut self, name: &str, value: f64) {
        println!("{name}: {value:.6}");
        self.0.push((name.to_owned(), value));
    }
}

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().collect();
    let [_, folder, rest @ ..] = args.as_slice() else { return Err("usage: cuda FOLDER [bf16|f16]".into()) };
    let dtype = match rest.first().map(String::as_str) {
        None | Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        Some(other) => return Err(format!("{other} is not bf16 or f16").into()),
    };
    measure(Path::new(folder), dtype)
}

#[expect(clippy::print_stdout, reason = "a program for developers")]
fn measure(folder: &Path, dtype: DType) -> Result<(), Failed> {
    let mut figures = Figures(Vec::new());
    let device = open_cuda(0)?;
    let dir = PipelineDir::open(&folder.join("base"))?;
    let inputs = safetensors::load(folder.join("inputs.safetensors"), &device)?;
    let outputs = safetensors::load(folder.join("outputs.safetensors"), &Device::Cpu)?;

    let config = UnetConfig::open(&dir.unet().join("config.json"))?;
    let began = Instant::now();
    let load = |dtype| -> Result<Unet, Failed> {
        let unet = Unet::new(&Weights::open(&dir.unet())?.var_builder(dtype, &device), &config)?;
        device.synchronize()?;
        Ok(unet)
    };
    let single = load(DType::F32)?;
    figures.add("load_f32_s", began.elapsed().as_secs_f64());
    let right = &outputs["noise_pred_f32"];
    figures.add("noise_pred_f32_apart", apart(&evaluate(&single, &inputs, 2)?, right)?);
    drop(single);

    let began = Instant::now();
    let unet = load(dtype)?;
    figures.add("load_s", began.elapsed().as_secs_f64());
    figures.add("unet_memory_mib", used_mib()?);
    let prediction = evaluate(&unet, &inputs, 2)?;
    figures.add("noise_pred_apart", apart(&prediction, right)?);
    figures.add("peer_noise_pred_bf16_apart", apart(&outputs["noise_pred_bf16"], right)?);
    for (batch, runs) in [(2, 20), (4, 10), (8, 6), (16, 4)] {
        let (issued, step) = steps(&unet, &inputs, batch, runs)?;
        figures.add(&format!("unet_{batch}_ms"), 1e3 * step);
        figures.add(&format!("unet_{batch}_issued_ms"), 1e3 * issued);
    }
    figures.add("steps_memory_mib", used_mib()?);

    let config = VaeConfig::open(&dir.vae().join("config.json"))?;
    let latents = &inputs["latents"];
    let mut kept = None;
    let right = &outputs["pixels_f32"];
    figures.add("peer_pixels_bf16_apart", apart(&outputs["pixels_bf16"], right)?);
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let vae = VaeDecoder::new(&Weights::open(&dir.vae())?.var_builder(dtype, &device), &config)?;
        let pixels = vae.decode(latents)?;
        figures.add(&format!("pixels_{name}_apart"), apart(&pixels, right)?);
        let best = best(5, || {
            vae.decode(latents)?;
            Ok(device.synchronize()?)
        })?;
        figures.add(&format!("vae_{name}_ms"), 1e3 * best);
        kept.get_or_insert(vae);
    }
    figures.add("vae_memory_mib", used_mib()?);
    let Some(vae) = kept else { return Err("no decoder".into()) };

    for count in [20, 30] {
        let best = best(3, || picture(&unet, &vae, &dir, &inputs, count))?;
        figures.add(&format!("end_to_end_{count}_s"), best);
    }
    let figures: Vec<_> = figures.0.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
    println!("{{{}}}", figures.join(", "));
    Ok(())
}

/// Seconds of the fastest of some runs, after one that warms up.
fn best(runs: usize, mut run: impl FnMut() -> Result<(), Failed>) -> Result<f64, Failed> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let began = Instant::now();
        run()?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// `times` of the items one after another.
fn repeated(x: &Tensor, batch: usize) -> Result<Tensor, Failed> {
    Ok(Tensor::cat(&vec![x; batch / x.dim(0)?], 0)?)
}

fn given(
    inputs: &HashMap<String, Tensor>,
    batch: usize,
) -> Result<(Tensor, Tensor, AddedConditioning), Failed> {
    let of = |name: &str| repeated(&inputs[name], batch);
    let added = AddedConditioning { text_embeds: of("pooled_prompt_embeds")?, time_ids: of("time_ids")? };
    Ok((of("sample")?, of("prompt_embeds")?, added))
}

fn evaluate(unet: &Unet, inputs: &HashMap<String, Tensor>, batch: usize) -> Result<Tensor, Failed> {
    let (sample, states, added) = given(inputs, batch)?;
    Ok(unet.forward(&sample, &vec![500.0; batch], &states, &added)?)
}

/// Seconds until a step is asked for whole, and until it is done.
fn steps(
    unet: &Unet,
    inputs: &HashMap<String, Tensor>,
    batch: usize,
    runs: usize,
) -> Result<(f64, f64), Failed> {
    let (sample, states, added) = given(inputs, batch)?;
    let prompt = unet.prompt(&states, &added)?;
    let timesteps = vec![500.0; batch];
    let step = || unet.forward_to(&sample, &timesteps, &[&prompt], &[]);
    for _ in 0..2 {
        step()?;
    }
    unet.device().synchronize()?;
    let (mut issued, mut done) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        let began = Instant::now();
        for i in 0..runs {
            step()?;
            if i == 0 {
                issued = issued.min(began.elapsed().as_secs_f64());
            }
        }
        unet.device().synchronize()?;
        done = done.min(began.elapsed().as_secs_f64() / runs as f64);
    }
    Ok((issued, done))
}

/// A guided picture from noise to its pixels on the CPU.
fn picture(
    unet: &Unet,
    vae: &VaeDecoder,
    dir: &PipelineDir,
    inputs: &HashMap<String, Tensor>,
    count: u32,
) -> Result<(), Failed> {
    let half = |i: usize| -> Result<Conditioning, Failed> {
        let side = sdxl_core::Size { height: 1024, width: 1024 };
        let crop = sdxl_core::CropCoords { top: 0, left: 0 };
        Ok(Conditioning {
            prompt_embeds: inputs["prompt_embeds"].i(i)?,
            pooled_prompt_embeds: inputs["pooled_prompt_embeds"].i(i)?,
            time_ids: TimeIds::base(side, crop, side),
        })
    };
    let (_, _, height, width) = inputs["latents"].dims4()?;
    let mut run = DenoiseRun::new(
        unet,
        DenoiseInputs {
            schedule: Schedule::new(&dir.scheduler_config()?, count)?,
            steps: 0..count as usize,
            start: Start::Noise { seed: 0, latent_size: [height, width] },
            positive: half(1)?,
            negative: Some(half(0)?),
            guidance: Guidance { scale: 5.0, rescale: 0.0 },
            kinds: StepKinds::plain(),
        },
    )?;
    while run.step(unet)?.is_some() {}
    to_rgb8(&vae.decode(&run.latents()?.unsqueeze(0)?)?.i(0)?)?;
    Ok(())
}

/// The norm of the difference over that of what is right.
fn apart(got: &Tensor, right: &Tensor) -> Result<f64, Failed> {
    let got = got.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let right = right.to_dtype(DType::F64)?;
    let norm = |x: Tensor| -> Result<f64, Failed> { Ok(x.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt()) };
    Ok(norm((got - &right)?)? / norm(right)?)
}

/// MiB that are taken on the device, as its driver says.
fn used_mib() -> Result<f64, Failed> {
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
    let output = std::process::Command::new("nvidia-smi").args(query).output()?;
    Ok(String::from_utf8(output.stdout)?.lines().next().unwrap_or_default().trim().parse()?)
}
