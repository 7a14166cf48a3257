//! A guided step of the base UNet: batch of two, negative and positive.

use crate::{
    checkpoint,
    inputs::{self, Values},
    network::{self, Side, Sides, TURNS, Work},
    peer::{self, Peers},
    stage::{self, Stage, seconds},
    table::{Row, Table, Tables, Target},
};
use bytes::Bytes;
use sdxl_core::Schedule;
use sdxl_models::PipelineDir;
use sdxl_proto::v1::{self, denoise_request::Start, denoise_response::Event};
use serde_json::Value;
use std::{cell::RefCell, collections::HashMap, ffi::OsStr, path::Path};

/// Steps of the schedule from which one, from the middle, is asked for.
const STEPS: u32 = 30;
const STEP: u32 = 15;
/// The peers' module has it, too.
const GUIDANCE: f32 = 5.0;

/// At most so much of PyTorch's time.
const TARGET_F32: f64 = 0.80;
const TARGET_BF16: f64 = 0.90;
const MATRIX_RATE: Target = Target::AtLeast(0.75);

/// Writes inputs of a step at the smallest size, for who only wants to get warm.
pub(crate) fn smallest_inputs(folder: &Path, file: &Path) {
    Problem::new(folder, 8, file);
}

pub(crate) fn full_size(peers: &Peers) -> Tables {
    let folder = checkpoint::full_size();
    let work = Work { part: "unet", folder: &folder, name: "unet", runs: 3, turns: TURNS };
    let mut table = Table::new("Base UNet, full size: a guided step at 64 x 64 latents (512 x 512 pixels).");
    let problem = Problem::new(&folder, 64, &work.inputs());
    let rates = RefCell::new(Vec::new());
    let ours = |dtype: &str| {
        rates.borrow_mut().push(matrix_rates(&folder, peers));
        problem.ours(dtype, work.runs)
    };
    let sides: Vec<_> = peers.dtypes().map(|dtype| work.run(dtype, peers, ours)).collect();
    for sides in &sides {
        let row = Row::new(format!("step, {}, s", sides.dtype), sides.times());
        table.add(row.of_pytorch(if sides.dtype == "f32" { TARGET_F32 } else { TARGET_BF16 }));
        table.add(Row::plain(
            format!("a request's first step, {}, s", sides.dtype),
            sides.map(|side| side.first_s),
        ));
    }
    matrix_rate(&mut table, &sides, &rates.into_inner());
    for sides in &sides {
        table.add(memory(sides, &folder));
    }
    network::errors(&mut table, &sides, "noise_pred");
    network::notes(&mut table, &sides);
    vec![Box::new(table)]
}

pub(crate) fn shipped(peers: &Peers) -> Tables {
    let folder = checkpoint::shipped();
    let work = Work { part: "unet", folder: &folder, name: "unet-shapes", runs: 50, turns: TURNS };
    let mut table =
        Table::new("Base UNet of the shipped model: a guided step at 16 x 16 latents (128 x 128 pixels).");
    let problem = Problem::new(&folder, 16, &work.inputs());
    let sides: Vec<_> =
        peers.dtypes().map(|dtype| work.run(dtype, peers, |dtype| problem.ours(dtype, work.runs))).collect();
    for sides in &sides {
        let times = sides.times().map(|seconds| seconds * 1e3);
        table.add(Row::new(format!("step, {}, ms", sides.dtype), times));
        let first = sides.map(|side| 1e3 * side.first_s);
        table.add(Row::plain(format!("a request's first step, {}, ms", sides.dtype), first));
    }
    network::errors(&mut table, &sides, "noise_pred");
    network::notes(&mut table, &sides);
    vec![Box::new(table)]
}

/// What a step is and how fast `torch.mm` is now.
fn matrix_rates(folder: &Path, peers: &Peers) -> Result<Value, String> {
    let threads = peers.threads().to_string();
    peers.run("matrix_rate.py", &[folder.as_os_str(), OsStr::new("64"), OsStr::new(&threads)])
}

/// The operations of a step over its time, and over the best that `torch.mm` reached in all turns.
fn matrix_rate(table: &mut Table, sides: &[Sides], rates: &[Result<Value, String>]) {
    let rates: Vec<&Value> = match rates.iter().map(Result::as_ref).collect() {
        Ok(rates) => rates,
        Err(why) => return table.note(why.clone()),
    };
    let best = |key: &str| rates.iter().map(|rates| peer::figure(rates, key)).fold(f64::NAN, f64::max);
    let step = best("step");
    for sides in sides {
        let rate = best(sides.dtype);
        let shares = sides.times().map(|seconds| step / seconds / rate);
        let row = Row::plain(format!("share of the matrix rate, {}", sides.dtype), shares);
        table.add(if sides.dtype == "bf16" { row.held(shares[0], "share", MATRIX_RATE) } else { row });
    }
    table.note(format!(
        "The matrix rate is the best of torch.mm on 4096 x 4096 matrices in the same run: {:.0} GFLOP/s in f32, {:.0} in \
         bf16. A step is {:.0} GFLOP: products, convolutions and attention, as a textbook computes them; who computes \
         fewer has a share above what he uses.",
        best("f32") / 1e9,
        best("bf16") / 1e9,
        step / 1e9
    ));
}

/// The peak against 1.15 times the weights and what PyTorch needs beside its own.
fn memory(sides: &Sides, folder: &Path) -> Row {
    let [_, activations, _] = sides.map(|side| side.activations_mib);
    let peaks = sides.map(|side| side.peak_mib);
    let allowed = 1.15 * checkpoint::weights_mib(&folder.join("unet"), sides.dtype) + activations;
    let name = "of 1.15 x weights + PyTorch's activations";
    let row = Row::new(format!("peak memory, {}, MiB", sides.dtype), peaks);
    row.held(peaks[0] / allowed, name, Target::AtMost(1.0))
}

/// Latents, embeddings and a step for all sides.
struct Problem<'a> {
    folder: &'a Path,
    /// Latents' side.
    side: u32,
    schedule: Schedule,
    /// `[4, side, side]`, as they are before the step.
    latents: Values,
    /// `[2, 77, D]` and `[2, P]`, negative first.
    prompt_embeds: Values,
    pooled_prompt_embeds: Values,
}

impl<'a> Problem<'a> {
    /// Draws the inputs and writes them for the peers.
    fn new(folder: &'a Path, side: u32, file: &Path) -> Self {
        let dir = PipelineDir::open(folder).expect("a checkpoint");
        let schedule =
            Schedule::new(&dir.scheduler_config().expect("a scheduler"), STEPS).expect("a schedule");
        let config = std::fs::read_to_string(folder.join("unet/config.json")).expect("a config");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        let width = |key: &str| config[key].as_u64().expect("a width") as usize;
        let pooled = width("projection_class_embeddings_input_dim") - 6 * width("addition_time_embed_dim");
        let input_scale = schedule.input_scale(STEP as usize);
        let pixels = f32::from(u16::try_from(8 * side).expect("a small picture"));
        let sample = Values::noise(1, &[4, side as usize, side as usize], 1.0);
        let problem = Self {
            folder,
            side,
            latents: Values {
                values: sample.values.iter().map(|v| v / input_scale).collect(),
                ..sample.clone()
            },
            prompt_embeds: Values::noise(2, &[2, 77, width("cross_attention_dim")], 1.0),
            pooled_prompt_embeds: Values::noise(3, &[2, pooled], 1.0),
            schedule,
        };
        let halves = |values: &[f32]| [values, values].concat();
        let both = Values { shape: [&[2], &sample.shape[..]].concat(), values: halves(&sample.values) };
        let timestep = Values { shape: vec![1], values: vec![problem.schedule.timestep(STEP as usize)] };
        let ids = [pixels, pixels, 0.0, 0.0, pixels, pixels];
        let time_ids = Values { shape: vec![2, 6], values: halves(&ids) };
        let tensors = [
            ("sample", &both),
            ("timestep", &timestep),
            ("prompt_embeds", &problem.prompt_embeds),
            ("pooled_prompt_embeds", &problem.pooled_prompt_embeds),
            ("time_ids", &time_ids),
        ];
        inputs::write(file, &tensors, &[]);
        problem
    }

    /// Asks the stage for the step alone, which gets it warm, and `runs` times for that and the next. The best of the second
    /// ones counts: as every step of a request but the first they find the prompt's keys and values.
    fn ours(&self, dtype: &str, runs: u32) -> Result<Side, String> {
        let stage = Stage::start("sdxl-base-unet", self.folder, dtype)?;
        let scheduler = scheduler(&stage)?;
        let (_, next) = stage.ask(steps(&stage, self.request(scheduler)))?;
        let two = v1::DenoiseRequest { end_step: STEP + 2, ..self.request(scheduler) };
        let (mut first_s, mut best_s) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..runs {
            let (times, _) = stage.ask(steps(&stage, two.clone()))?;
            (first_s, best_s) = (first_s.min(times[0]), best_s.min(times[1]));
        }
        let coefficients = self.schedule.step(STEP as usize);
        let of =
            |(before, after): (&f32, f32)| (after - coefficients.sample * before) / coefficients.model_output;
        let noise_pred = self.latents.values.iter().zip(next).map(of).collect();
        let outputs = HashMap::from([("noise_pred".to_owned(), noise_pred)]);
        Ok(Side { first_s, best_s, peak_mib: stage.peak_mib(), activations_mib: f64::NAN, outputs })
    }

    /// Seconds of three steps where guidance ends after the first, and of four from the cache at each of `branches` and
    /// guided, the first of them whole.
    fn approximated(&self, branches: &[u32]) -> Result<(Vec<f64>, Vec<Vec<f64>>), String> {
        let stage = Stage::start("sdxl-base-unet", self.folder, "f32")?;
        let scheduler = scheduler(&stage)?;
        let request = |count| v1::DenoiseRequest { end_step: STEP + count, ..self.request(scheduler) };
        let unguided = v1::DenoiseRequest {
            guidance_steps: Some(v1::StepRange { begin: STEP, end: STEP + 1 }),
            ..request(3)
        };
        let (first, _) = stage.ask(steps(&stage, unguided))?;
        let cached = |branch: &u32| {
            let deep_cache = Some(v1::DeepCache { cache_interval: 20, cache_branch_id: *branch });
            stage.ask(steps(&stage, v1::DenoiseRequest { deep_cache, ..request(4) })).map(|(times, _)| times)
        };
        Ok((first, branches.iter().map(cached).collect::<Result<_, _>>()?))
    }

    fn request(&self, scheduler: Option<v1::SchedulerConfig>) -> v1::DenoiseRequest {
        let size = Some(v1::Size { height: 8 * self.side, width: 8 * self.side });
        let half = |i: usize| v1::Conditioning {
            prompt_embeds: Some(wire(&self.prompt_embeds.item(i))),
            pooled_prompt_embeds: Some(wire(&self.pooled_prompt_embeds.item(i))),
            original_size: size,
            crops_coords_top_left: Some(v1::CropCoords { top: 0, left: 0 }),
            target_size: size,
            aesthetic_score: None,
        };
        v1::DenoiseRequest {
            size,
            scheduler,
            num_inference_steps: STEPS,
            begin_step: STEP,
            end_step: STEP + 1,
            guidance_scale: GUIDANCE,
            guidance_rescale: 0.0,
            conditioning: Some(half(1)),
            negative_conditioning: Some(half(0)),
            checkpoint_interval: 0,
            progress_interval: 0,
            guidance_steps: None,
            deep_cache: None,
            start: Some(Start::Latents(wire(&self.latents))),
        }
    }
}

fn scheduler(stage: &Stage) -> Result<Option<v1::SchedulerConfig>, String> {
    let info = stage.ask(stage.clients().stage().get_stage(v1::GetStageRequest {}));
    match info.map_err(|e| e.to_string())?.into_inner().details {
        Some(v1::get_stage_response::Details::Denoiser(details)) => Ok(details.scheduler),
        _ => Err("no denoiser".to_owned()),
    }
}

/// Seconds of each step on the device, and the latents after the last.
async fn steps(stage: &Stage, request: v1::DenoiseRequest) -> Result<(Vec<f64>, Vec<f32>), String> {
    let mut stream =
        stage.clients().denoiser().denoise(request).await.map_err(|e| e.to_string())?.into_inner();
    let (mut times, mut latents) = (Vec::new(), Vec::new());
    while let Some(message) = stream.message().await.map_err(|e| e.to_string())? {
        match message.event {
            Some(Event::Progress(progress)) => times.push(seconds(progress.step_time)),
            Some(Event::Result(result)) => latents = values(&result.latents.unwrap_or_default()),
            _ => {}
        }
    }
    Ok((times, latents))
}

/// Seconds of a guided step of the full size, of one without guidance, and of one from the cache at each of `branches`.
pub(crate) fn approximations(branches: &[u32]) -> Result<(f64, f64, Vec<f64>), String> {
    let folder = checkpoint::full_size();
    let problem = Problem::new(&folder, 64, &stage::scratch("approximate-inputs.safetensors"));
    let (unguided, cached) = problem.approximated(branches)?;
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let whole: Vec<_> = cached.iter().chain([&unguided]).map(|times| times[0]).collect();
    let cached = cached.iter().map(|times| least(&times[1..])).collect();
    Ok((least(&whole), least(&unguided[1..]), cached))
}

/// A tensor for the wire.
pub(crate) fn wire(tensor: &Values) -> v1::Tensor {
    let shape = tensor.shape.iter().map(|side| u32::try_from(*side).expect("a side")).collect();
    v1::Tensor { shape, dtype: v1::DType::F32.into(), data: Bytes::from(tensor.bytes()) }
}

/// A tensor's values off the wire.
pub(crate) fn values(tensor: &v1::Tensor) -> Vec<f32> {
    let pairs = || tensor.data.chunks_exact(2).map(|b| [b[0], b[1]]);
    match tensor.dtype() {
        v1::DType::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        v1::DType::Bf16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        _ => tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}
