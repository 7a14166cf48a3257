//! Each layer on a GPU beside the same on the CPU, and whole networks. They need a GPU, and are asked for by name:
//! `cargo test --features cuda -- --ignored cuda::`.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use candle_core::{IndexOp, Var};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use sdxl_core::{CropCoords, Schedule, SchedulerConfig, SchedulerKind, Size, StepKinds};

use super::*;
use crate::{
    denoise::{Ahead, Conditioning, DenoiseInputs, DenoiseRun, Start, Stepped, TimeIds},
    guidance::Guidance,
    seeded,
    text::{ClipTextConfig, ClipTextModel},
    unet::{AddedConditioning, Unet, UnetConfig},
    vae::{Autoencoder, VaeConfig, VaeDecoder, VaeEncoder},
};

/// What rounding to a type may come to, of all values together.
const TYPES: [(DType, f64); 3] = [(DType::F32, 2e-6), (DType::F16, 1.5e-3), (DType::BF16, 1e-2)];

fn gpu() -> Device {
    open(0).expect("a GPU")
}

fn draw(shape: &[usize]) -> Tensor {
    Tensor::randn(0.3_f32, 1.0, shape, &Device::Cpu).unwrap()
}

/// As the type has it, in f32.
fn rounded(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
}

fn on(gpu: &Device, x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap().to_device(gpu).unwrap()
}

/// The norm of the difference over that of what is right.
fn apart(got: &Tensor, right: &Tensor) -> f64 {
    assert_eq!(got.dims(), right.dims());
    let got = got.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let right = right.to_dtype(DType::F64).unwrap();
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm(&(got - &right).unwrap()) / norm(&right)
}

fn near(got: &Tensor, right: &Tensor, within: f64, what: &str) {
    let apart = apart(got, right);
    println!("{what}: {apart:.2e} of {within:.0e}");
    assert!(apart <= within, "{what}: {apart} is over {within}");
}

/// Channels last, and back.
fn last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn first(x: &Tensor) -> Tensor {
    x.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn group_norm_equals_that_of_the_cpu() {
    let gpu = gpu();
    for (dims, groups) in [
        ([2, 40, 7, 5], 4),
        ([1, 320, 128, 96], 32),
        ([3, 2560, 3, 5], 32),
        ([2, 10, 6, 3], 5),
        ([2, 8, 1, 1], 4),
    ] {
        let (x, channels) = (draw(&dims), dims[1]);
        let (weight, bias) = (draw(&[channels]), draw(&[channels]));
        for (dtype, within) in TYPES {
            for shift in [None, Some(draw(&[1, channels])), Some(draw(&[dims[0], channels]))] {
                let mut plain = rounded(&x, dtype);
                if let Some(shift) = &shift {
                    let shift = rounded(shift, dtype).unsqueeze(2).unwrap().unsqueeze(3).unwrap();
                    plain = plain.broadcast_add(&shift).unwrap();
                }
                let grouped = plain.reshape((dims[0], groups, ())).unwrap();
                let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2).unwrap()).unwrap();
                let variance = (centred.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-5).unwrap();
                let plain = centred.broadcast_div(&variance.sqrt().unwrap()).unwrap().reshape(&dims).unwrap();
                let affine = |x: &Tensor| x.reshape((1, channels, 1, 1)).unwrap();
                let plain =
                    plain.broadcast_mul(&affine(&weight)).unwrap().broadcast_add(&affine(&bias)).unwrap();
                let shift = shift.map(|shift| on(&gpu, &shift, dtype));
                let affine = [&weight, &bias].map(|x| x.to_device(&gpu).unwrap());
                for silu in [false, true] {
                    let right = if silu { plain.silu().unwrap() } else { plain.clone() };
                    let affine = affine.each_ref();
                    let got =
                        group_norm(&on(&gpu, &last(&x), dtype), shift.as_ref(), affine, (groups, 1e-5), silu);
                    let what = format!("group norm of {dims:?} in {dtype:?}");
                    near(&first(&got.unwrap()), &right, within.max(1e-5), &what);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn group_norm_keeps_the_digits_of_what_is_far_from_zero() {
    let gpu = gpu();
    let x = (draw(&[1, 32, 64, 64]) + 1000.0).unwrap();
    let [weight, bias] = [1.0_f32, 0.0].map(|value| Tensor::from_vec(vec![value; 32], 32, &gpu).unwrap());
    let got =
        group_norm(&last(&x).to_device(&gpu).unwrap(), None, [&weight, &bias], (4, 0.0), false).unwrap();
    let grouped = x.to_dtype(DType::F64).unwrap().reshape((1, 4, ())).unwrap();
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2).unwrap()).unwrap();
    let right =
        centred.broadcast_div(&centred.sqr().unwrap().mean_keepdim(2).unwrap().sqrt().unwrap()).unwrap();
    near(&first(&got), &right.reshape(x.shape()).unwrap(), 2e-4, "group norm around 1000");
}

#[test]
#[ignore = "needs a GPU"]
fn layer_norm_equals_that_of_the_cpu() {
    let gpu = gpu();
    for shape in [[2, 77, 1280], [1, 3, 10], [3, 130, 640]] {
        let (x, weight, bias) = (draw(&shape), draw(&shape[2..]), draw(&shape[2..]));
        for (dtype, within) in TYPES {
            let [x, weight, bias] = [&x, &weight, &bias].map(|x| rounded(x, dtype));
            let right = candle_nn::ops::layer_norm(&x, &weight, &bias, 1e-5).unwrap();
            let [x, weight, bias] = [&x, &weight, &bias].map(|x| on(&gpu, x, dtype));
            let got = layer_norm(&x, [&weight, &bias], 1e-5).unwrap();
            near(&got, &right, within, &format!("layer norm of {shape:?} in {dtype:?}"));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn geglu_and_upsampling_equal_those_of_the_cpu() {
    let gpu = gpu();
    for (dtype, within) in TYPES {
        for width in [64, 5] {
            let x = rounded(&draw(&[2, 33, 2 * width]), dtype);
            let gate = x.narrow(2, width, width).unwrap().gelu_erf().unwrap();
            let right = (x.narrow(2, 0, width).unwrap() * gate).unwrap();
            let got = geglu(&on(&gpu, &x, dtype)).unwrap();
            near(&got, &right, within, &format!("geglu of {width} in {dtype:?}"));
        }
        for (channels, to) in [(16, [14, 10]), (3, [13, 9])] {
            let x = rounded(&draw(&[2, channels, 7, 5]), dtype);
            let right = x.upsample_nearest2d(to[0], to[1]).unwrap();
            let got = first(&upsampled(&on(&gpu, &last(&x), dtype), to).unwrap());
            near(&got, &right, 0.0, &format!("upsampling of {channels} in {dtype:?}"));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn products_equal_those_of_the_cpu() {
    let gpu = gpu();
    for (rows, inputs, outputs) in [(154, 640, 1280), (2, 320, 1280), (77, 10, 6), (1, 16, 8)] {
        let (x, weight) = (draw(&[1, rows, inputs]), draw(&[outputs, inputs]));
        let (bias, others) = (draw(&[outputs]), draw(&[1, rows, outputs]));
        for (dtype, within) in TYPES {
            let [x, weight, bias, others] = [&x, &weight, &bias, &others].map(|x| rounded(x, dtype));
            let plain = x.broadcast_matmul(&weight.t().unwrap()).unwrap();
            let [x_, weight_, bias_, others_] = [&x, &weight, &bias, &others].map(|x| on(&gpu, x, dtype));
            for (with_bias, with_others) in [(false, false), (true, false), (true, true), (false, true)] {
                let mut right = plain.clone();
                if with_bias {
                    right = right.broadcast_add(&bias).unwrap();
                }
                if with_others {
                    right = (right + &others).unwrap();
                }
                let got = linear(&x_, &weight_, with_bias.then_some(&bias_), with_others.then_some(&others_));
                let what = format!(
                    "product of {rows} x {inputs} to {outputs} in {dtype:?}, {with_bias} {with_others}"
                );
                near(&got.unwrap(), &right, within, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn convolutions_equal_those_of_the_cpu() {
    let gpu = gpu();
    for ([c_in, c_out], kernel, [stride, padding], [height, width]) in [
        ([32, 64], 3, [1, 1], [13, 9]),
        ([4, 320], 3, [1, 1], [16, 16]),
        ([320, 4], 3, [1, 1], [16, 24]),
        ([128, 3], 3, [1, 1], [10, 10]),
        ([64, 64], 3, [2, 1], [15, 8]),
        ([64, 64], 3, [2, 0], [16, 9]),
        ([40, 24], 1, [1, 0], [6, 7]),
    ] {
        let (x, weight) = (draw(&[2, c_in, height, width]), draw(&[c_out, c_in, kernel, kernel]));
        let bias = draw(&[c_out]);
        for (dtype, within) in TYPES {
            let [x, weight, bias] = [&x, &weight, &bias].map(|x| rounded(x, dtype));
            let plain = x.conv2d(&weight, padding, stride, 1, 1).unwrap();
            let others = rounded(&draw(plain.dims()), dtype);
            let biased = plain.broadcast_add(&bias.reshape((1, c_out, 1, 1)).unwrap()).unwrap();
            let [x, weight, bias, added] =
                [&last(&x), &last(&weight), &bias, &last(&others)].map(|x| on(&gpu, x, dtype));
            let both = (&biased + &others).unwrap();
            for (given, right) in
                [([None, None], &plain), ([Some(&bias), None], &biased), ([Some(&bias), Some(&added)], &both)]
            {
                let got = first(&conv2d(&x, &weight, given, [stride, padding]).unwrap());
                let what =
                    format!("convolution of {c_in} to {c_out} by {kernel}, {stride}, {padding} in {dtype:?}");
                near(&got, right, within.max(4e-6), &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention_equals_that_of_the_cpu() {
    let gpu = gpu();
    for (head, heads, rows, counts) in [
        (64, 2, 200, [77, 154]),
        (64, 5, 300, [300, 300]),
        (64, 1, 1, [1, 64]),
        (64, 1, 5, [2, 6]),
        (16, 3, 130, [65, 63]),
        (32, 4, 128, [128, 1]),
        (128, 2, 100, [33, 96]),
    ] {
        let width = head * heads;
        for (dtype, within) in &TYPES[1..] {
            let q = rounded(&(draw(&[2, rows, width]) * 2.0).unwrap(), *dtype);
            // Keys and values side by side, of which each is a view.
            let both: Vec<_> = counts.iter().map(|n| rounded(&draw(&[*n, 2 * width]), *dtype)).collect();
            let mut right = Vec::new();
            for (item, both) in both.iter().enumerate() {
                let split = |x: &Tensor| {
                    let x = x.reshape((x.dim(0).unwrap(), heads, head)).unwrap();
                    x.transpose(0, 1).unwrap().contiguous().unwrap()
                };
                let part = |i| split(&both.narrow(1, i * width, width).unwrap().contiguous().unwrap());
                let (q, k, v) = (split(&q.i(item).unwrap()), part(0), part(1));
                let scores = (q.matmul(&k.t().unwrap()).unwrap() * (head as f64).powf(-0.5)).unwrap();
                let weights = candle_nn::ops::softmax_last_dim(&scores).unwrap();
                right.push(weights.matmul(&v).unwrap().transpose(0, 1).unwrap().flatten_from(1).unwrap());
            }
            let right = Tensor::stack(&right, 0).unwrap();
            let keys: Vec<_> = both
                .iter()
                .map(|both| {
                    let both = on(&gpu, both, *dtype);
                    [0, 1].map(|i| both.narrow(1, i * width, width).unwrap())
                })
                .collect();
            let got = attend(&on(&gpu, &q, *dtype), &keys, heads).unwrap().expect("a width that there is");
            let what = format!("attention of {heads} x {head}, {rows} to {counts:?} in {dtype:?}");
            near(&got, &right, *within, &what);
        }
    }
}

fn unet_config() -> UnetConfig {
    let text = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "attention_head_dim": 2,
        "block_out_channels": [64, 128], "cross_attention_dim": 48, "norm_num_groups": 16, "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "use_linear_projection": true,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "projection_class_embeddings_input_dim": 80}"#;
    UnetConfig::from_json(text, Path::new("config.json")).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn a_unet_equals_that_of_the_cpu() {
    let (gpu, config) = (gpu(), unet_config());
    let plain = Unet::new(&seeded::weights(), &config).unwrap();
    for (height, width) in [(16, 16), (9, 14)] {
        let (sample, states) = (draw(&[2, 4, height, width]), draw(&[2, 7, 48]));
        let added = AddedConditioning { text_embeds: draw(&[2, 32]), time_ids: draw(&[2, 6]) };
        let right = plain.forward(&sample, &[500.0, 20.0], &states, &added).unwrap();
        for (dtype, within) in [(DType::F32, 1e-5), (DType::F16, 1e-2), (DType::BF16, 6e-2)] {
            let unet = Unet::new(&seeded::weights_on(dtype, &gpu), &config).unwrap();
            let [sample, states] = [&sample, &states].map(|x| x.to_device(&gpu).unwrap());
            let added = AddedConditioning {
                text_embeds: added.text_embeds.to_device(&gpu).unwrap(),
                time_ids: added.time_ids.to_device(&gpu).unwrap(),
            };
            let got = unet.forward(&sample, &[500.0, 20.0], &states, &added).unwrap();
            near(&got, &right, within, &format!("UNet at {height} x {width} in {dtype:?}"));
            let again = unet.forward(&sample, &[500.0, 20.0], &states, &added).unwrap();
            near(&got, &again.to_device(&Device::Cpu).unwrap(), 0.0, "again");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn numbers_arrive_when_they_are_awaited() {
    let gpu = gpu();
    let scalar = |value: usize| Tensor::new(value as f32, &Device::Cpu).unwrap().to_device(&gpu).unwrap();
    // The second time they arrive where those of the first did.
    for first in [0, 100] {
        let arriving: Vec<_> = (first..first + 9).map(|i| Arriving::of(&scalar(i)).unwrap()).collect();
        for (i, number) in arriving.iter().enumerate().rev() {
            assert_eq!(number.wait().unwrap(), (first + i) as f32);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn steps_begun_ahead_equal_those_that_are_waited_for() {
    let (gpu, config, size) = (gpu(), unet_config(), Size::new(72, 112));
    let half = || Conditioning {
        prompt_embeds: draw(&[7, 48]),
        pooled_prompt_embeds: draw(&[32]),
        time_ids: TimeIds::base(size, CropCoords::default(), size),
    };
    let inputs = DenoiseInputs {
        schedule: Schedule::new(&SchedulerConfig::new(SchedulerKind::Euler), 4).unwrap(),
        steps: 0..4,
        start: Start::Noise { seed: 3, latent_size: [9, 14] },
        positive: half(),
        negative: Some(half()),
        guidance: Guidance { scale: 5.0, rescale: 0.0 },
        kinds: StepKinds::plain(),
    };
    let waited = |unet: &Unet| {
        let mut run = DenoiseRun::new(unet, inputs.clone()).unwrap();
        while run.step(unet).unwrap().is_some() {}
        run.latents().unwrap().to_device(&Device::Cpu).unwrap()
    };
    let unet = Unet::new(&seeded::weights_on(DType::F32, &gpu), &config).unwrap();
    let right = waited(&unet);
    near(&right, &waited(&Unet::new(&seeded::weights(), &config).unwrap()), 1e-4, "latents");
    let mut run = DenoiseRun::new(&unet, inputs.clone()).unwrap();
    let mut device = Ahead::default();
    let mut ahead = |run: &mut DenoiseRun| device.step(&unet, &mut [run]).unwrap().remove(0);
    assert_eq!(ahead(&mut run).unwrap(), Stepped::Begun);
    for step in 0..4 {
        let Stepped::Done { step: done, took } = ahead(&mut run).unwrap() else { panic!("not done") };
        assert_eq!(done, step);
        assert!(took > Duration::ZERO, "a device takes its time");
    }
    assert_eq!(ahead(&mut run).unwrap(), Stepped::Over);
    near(&run.latents().unwrap(), &right, 0.0, "latents, a step ahead");

    let mut poisoned = inputs.clone();
    poisoned.positive.pooled_prompt_embeds = (poisoned.positive.pooled_prompt_embeds * f64::NAN).unwrap();
    let mut run = DenoiseRun::new(&unet, poisoned).unwrap();
    assert_eq!(ahead(&mut run).unwrap(), Stepped::Begun);
    assert_eq!(ahead(&mut run).unwrap_err().to_string(), "latents is not finite after step 0");
}

fn vae_config() -> VaeConfig {
    let text = r#"{"block_out_channels": [32, 64], "norm_num_groups": 8, "scaling_factor": 0.5,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;
    VaeConfig::from_json(text, Path::new("config.json")).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn an_autoencoder_equals_that_of_the_cpu() {
    let (gpu, config) = (gpu(), vae_config());
    let (latents, images) = (draw(&[2, 4, 9, 6]), draw(&[2, 3, 18, 12]));
    let on = |vb: &VarBuilder<'_>, device: &Device| {
        let (decoder, encoder) =
            (VaeDecoder::new(vb, &config).unwrap(), VaeEncoder::new(vb, &config).unwrap());
        let images = images.to_device(device).unwrap();
        let pixels = decoder.decode(&latents.to_device(device).unwrap()).unwrap();
        [pixels, encoder.encode(&images).unwrap().mean]
    };
    let right = on(&seeded::weights(), &Device::Cpu);
    for (dtype, within) in [(DType::F32, 1e-5), (DType::BF16, 6e-2)] {
        let got = on(&seeded::weights_on(dtype, &gpu), &gpu);
        near(&got[0], &right[0], within, &format!("decoder in {dtype:?}"));
        near(&got[1], &right[1], 1e-5, "encoder, which is in f32");
    }
}

/// Weights that learn, on the CPU, and copies of them on a device, through which gradients flow back.
#[derive(Clone)]
struct Learning {
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl SimpleBackend for Learning {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut variables = self.variables.lock().unwrap();
        let variable = match variables.get(name) {
            Some(variable) => variable.clone(),
            None => {
                let variable = Var::from_tensor(&seeded::weights().get(s, name)?)?;
                variables.insert(name.to_owned(), variable.clone());
                variable
            }
        };
        variable.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("{name} has no shape to draw")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Every gradient of a loss on a GPU beside the same on the CPU.
fn learns_alike(what: &str, loss: impl Fn(&VarBuilder<'_>, &Device) -> Tensor) {
    let (gpu, learning) = (gpu(), Learning { variables: Arc::default() });
    let gradients = |device: &Device| {
        let vb = VarBuilder::from_backend(Box::new(learning.clone()), DType::F32, device.clone());
        loss(&vb, device).backward().unwrap()
    };
    let (right, got) = (gradients(&Device::Cpu), gradients(&gpu));
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let variables = learning.variables.lock().unwrap().clone();
    let greatest = variables.values().filter_map(|v| right.get(v)).map(norm).fold(0.0, f32::max);
    for (name, variable) in &variables {
        let Some(right) = right.get(variable) else {
            assert!(got.get(variable).is_none(), "{what} has a gradient of {name}");
            continue;
        };
        let got = got.get(variable).unwrap_or_else(|| panic!("{what} has no gradient of {name}"));
        assert!(got.device().is_cpu(), "{name}");
        // Some are nothing but what rounding leaves.
        if norm(right) > 1e-5 * greatest || norm(got) > 1e-5 * greatest {
            near(got, right, 2e-4, &format!("{what}'s gradient of {name}"));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_unet_learns_as_on_the_cpu() {
    let (sample, states) = (draw(&[2, 4, 7, 10]), draw(&[2, 7, 48])); // of an odd side
    let (text_embeds, time_ids) = (draw(&[2, 32]), draw(&[2, 6]));
    learns_alike("a UNet", |vb, device| {
        let on = |x: &Tensor| x.to_device(device).unwrap();
        let unet = Unet::new(vb, &unet_config()).unwrap();
        let added = AddedConditioning { text_embeds: on(&text_embeds), time_ids: on(&time_ids) };
        let predicted = unet.forward(&on(&sample), &[500.0, 20.0], &on(&states), &added).unwrap();
        predicted.sqr().unwrap().mean_all().unwrap()
    });
}

#[test]
#[ignore = "needs a GPU"]
fn an_autoencoder_learns_as_on_the_cpu() {
    let images = draw(&[2, 3, 12, 8]);
    learns_alike("an autoencoder", |vb, device| {
        let network = Autoencoder::new(vb, &vae_config()).unwrap();
        let images = images.to_device(device).unwrap();
        let (mean, logvar) = network.moments(&images).unwrap();
        let apart = (network.reconstruct(&mean).unwrap() - images).unwrap();
        (apart.abs().unwrap().mean_all().unwrap() + logvar.exp().unwrap().mean_all().unwrap()).unwrap()
    });
}

#[test]
#[ignore = "needs a GPU"]
fn a_text_encoder_learns_as_on_the_cpu() {
    for act in ["quick_gelu", "gelu"] {
        let text = format!(
            r#"{{"vocab_size": 30, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": 9, "projection_dim": 16, "hidden_act": "{act}"}}"#
        );
        let config = ClipTextConfig::from_json(&text, Path::new("config.json")).unwrap();
        let ids = [vec![3, 7, 1, 29, 2, 2, 2, 2, 2], vec![3, 9, 9, 29, 2, 2, 2, 2, 2]];
        learns_alike("a text encoder", |vb, _| {
            let said = ClipTextModel::new(vb, &config, true).unwrap().forward(&ids, 0).unwrap();
            let pooled = said.text_embeds.unwrap().sqr().unwrap().mean_all().unwrap();
            (said.hidden_states.sqr().unwrap().mean_all().unwrap() + pooled).unwrap()
        });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn no_gradient_ends_unseen() {
    let gpu = gpu();
    let weight = draw(&[6, 8, 3, 3]).to_device(&gpu).unwrap();
    let x = Var::from_tensor(&draw(&[1, 4, 4, 8]).to_device(&gpu).unwrap()).unwrap();
    let error = conv2d(&x, &last(&weight), [None, None], [1, 1]).unwrap_err().to_string();
    assert!(error.contains("no gradient goes through"), "{error}");
}
