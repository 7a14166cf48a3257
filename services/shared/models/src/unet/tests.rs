use std::{collections::HashMap, path::Path};

use super::*;
use crate::{
    resnet::{Norm, ResnetBlock2D},
    seeded,
};

/// Two levels, the second with attention.
const TINY: &str = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "attention_head_dim": 2,
    "block_out_channels": [8, 16], "cross_attention_dim": 6, "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "use_linear_projection": true,
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "projection_class_embeddings_input_dim": 34}"#;

fn tiny() -> Unet {
    let config = UnetConfig::from_json(TINY, Path::new("config.json")).unwrap();
    Unet::new(&seeded::weights(), &config).unwrap()
}

fn draw(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn added(batch: usize) -> AddedConditioning {
    AddedConditioning { text_embeds: draw(&[batch, 10]), time_ids: draw(&[batch, 6]) }
}

#[test]
fn every_size_comes_back() {
    for unet in [tiny(), packed(DType::F32), packed(DType::BF16)] {
        for (h, w) in [(8, 8), (1, 1), (7, 10), (5, 3)] {
            let out = unet.forward(&draw(&[1, 4, h, w]), &[1.0], &draw(&[1, 3, 6]), &added(1)).unwrap();
            assert_eq!(out.dims(), [1, 4, h, w]);
            assert!(out.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn items_of_a_batch_do_not_depend_on_each_other_to_the_last_bit() {
    let unet = tiny();
    for (count, size) in [(3, 6), (2, 5), (7, 16)] {
        let (sample, states, added) = (draw(&[count, 4, size, 6]), draw(&[count, 5, 6]), added(count));
        let timesteps: Vec<f32> = [981.0, 501.0, 1.5].into_iter().cycle().take(count).collect();
        let together = unet.forward(&sample, &timesteps, &states, &added).unwrap();
        for i in 0..count {
            let one = |t: &Tensor| t.narrow(0, i, 1).unwrap();
            let added =
                AddedConditioning { text_embeds: one(&added.text_embeds), time_ids: one(&added.time_ids) };
            let alone = unet.forward(&one(&sample), &timesteps[i..=i], &one(&states), &added).unwrap();
            let bits = |t: &Tensor| -> Vec<u32> {
                t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
            };
            assert_eq!(bits(&one(&together)), bits(&alone), "item {i} of {count}");
        }
    }
}

#[test]
fn prompts_are_kept_without_changing_a_bit() {
    for unet in [tiny(), packed(DType::F32), packed(DType::BF16)] {
        keeps_prompts(&unet);
    }
}

fn keeps_prompts(unet: &Unet) {
    let (sample, states, added) = (draw(&[3, 4, 6, 5]), draw(&[3, 5, 6]), added(3));
    let part = |from: usize, count: usize| {
        let of = |t: &Tensor| t.narrow(0, from, count).unwrap();
        let added = AddedConditioning { text_embeds: of(&added.text_embeds), time_ids: of(&added.time_ids) };
        unet.prompt(&of(&states), &added).unwrap()
    };
    let prompts = [part(0, 1), part(1, 2)];
    let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for timesteps in [[981.0, 501.0, 1.5], [11.0, 22.0, 33.0]] {
        let (kept, _) = unet.forward_to(&sample, &timesteps, &prompts.each_ref(), &[]).unwrap();
        let anew = unet.forward(&sample, &timesteps, &states, &added).unwrap();
        assert_eq!(values(kept), values(anew));
    }
    let few = unet.forward_to(&sample, &[1.0; 3], &[&prompts[0]], &[]).unwrap_err();
    assert_eq!(few.to_string(), "prompts has shape [1], expected of 3 items");
}

/// What the inner layers made of the same inputs changes nothing: so the outer layers alone are those of the whole network.
#[test]
fn outer_layers_with_the_inner_ones_of_the_same_step_are_the_whole_to_the_last_bit() {
    for unet in [tiny(), packed(DType::F32), packed(DType::BF16)] {
        // An odd size is halved upwards, so that skips of all sizes are met.
        for size in [[6, 5], [7, 9]] {
            let (sample, states, added) = (draw(&[2, 4, size[0], size[1]]), draw(&[2, 5, 6]), added(2));
            let prompt = unet.prompt(&states, &added).unwrap();
            let branches: Vec<_> = (0..unet.config().branches()).collect();
            let (whole, features) = unet.forward_to(&sample, &[981.0, 1.5], &[&prompt], &branches).unwrap();
            assert_eq!(features.len(), branches.len());
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (branch, features) in branches.into_iter().zip(&features) {
                let outer =
                    unet.forward_outer(&sample, &[981.0, 1.5], &[&prompt], (branch, features)).unwrap();
                assert_eq!(values(&outer), values(&whole), "branch {branch}");
                let zeros = features.zeros_like().unwrap();
                let other = unet.forward_outer(&sample, &[981.0, 1.5], &[&prompt], (branch, &zeros)).unwrap();
                assert_ne!(values(&other), values(&whole), "branch {branch}: features must count");
            }
        }
    }
}

#[test]
fn a_branch_that_there_is_not_is_named() {
    let unet = tiny();
    let (sample, prompt) = (draw(&[1, 4, 6, 6]), unet.prompt(&draw(&[1, 3, 6]), &added(1)).unwrap());
    let branches = unet.config().branches();
    let expected = format!("cache_branch_id has shape [{branches}], expected within 0..{branches}");
    let kept = unet.forward_to(&sample, &[1.0], &[&prompt], &[branches]).unwrap_err();
    assert_eq!(kept.to_string(), expected);
    let features = draw(&[1, 8, 6, 6]);
    let outer = unet.forward_outer(&sample, &[1.0], &[&prompt], (branches, &features)).unwrap_err();
    assert_eq!(outer.to_string(), expected);
    let two = draw(&[2, 8, 6, 6]);
    let outer = unet.forward_outer(&sample, &[1.0], &[&prompt], (0, &two)).unwrap_err();
    assert_eq!(outer.to_string(), "features has shape [2, 8, 6, 6], expected of 1 items");
}

#[test]
fn wrong_shapes_are_named() {
    let unet = tiny();
    let (sample, states) = (draw(&[1, 4, 8, 8]), draw(&[1, 3, 6]));
    let message = |result: Result<Tensor, ModelError>| result.unwrap_err().to_string();
    assert_eq!(
        message(unet.forward(&draw(&[1, 3, 8, 8]), &[1.0], &states, &added(1))),
        "latents has shape [1, 3, 8, 8], expected [1, 4, height, width]"
    );
    assert_eq!(
        message(unet.forward(&sample, &[1.0], &draw(&[1, 3, 7]), &added(1))),
        "prompt_embeds has shape [1, 3, 7], expected [1, tokens, 6]"
    );
    let five = AddedConditioning { time_ids: draw(&[1, 5]), ..added(1) };
    assert_eq!(
        message(unet.forward(&sample, &[1.0], &states, &five)),
        "pooled_prompt_embeds has shape [1, 10], expected [1, 14]"
    );
}

#[test]
fn the_differentiable_path_is_the_same_network() {
    use crate::autograd::{Precision, Scope};
    let unet = tiny();
    let (sample, states, added) = (draw(&[2, 4, 6, 7]), draw(&[2, 5, 6]), added(2));
    let run = || unet.forward(&sample, &[981.0, 1.5], &states, &added).unwrap();
    let plain = run();
    for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 0.05)] {
        let _scope = Scope::new(precision);
        let worst = (run() - &plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst <= tolerance, "{precision:?}: {worst}");
    }
}

/// A network of the shapes of [`tiny`], packed in a type.
fn packed(dtype: DType) -> Unet {
    let _packing = crate::Packing::new();
    let config = UnetConfig::from_json(TINY, Path::new("config.json")).unwrap();
    Unet::new(&seeded::weights().set_dtype(dtype), &config).unwrap()
}

#[test]
fn layers_are_tried_as_they_are_loaded_where_they_are_packed() {
    let config = UnetConfig::from_json(TINY, Path::new("config.json")).unwrap();
    let tried = |vb: &VarBuilder<'_>| Unet::tried(vb, &config);
    assert!(tried(&seeded::weights()).unwrap().1.is_none());

    let recorder = crate::TensorRecorder::default();
    Unet::new(&recorder.var_builder(), &config).unwrap();
    let _packing = crate::Packing::new();
    for dtype in [DType::F32, DType::BF16] {
        let (_, took) = tried(&seeded::weights().set_dtype(dtype)).unwrap();
        assert!(took.is_some_and(|took| !took.is_zero()));
        let with_bad = |bad: &str| -> HashMap<String, Tensor> {
            let tensor = |spec: &crate::TensorSpec| {
                let is_bad = spec.name.starts_with(&format!("{bad}.")) && spec.name.ends_with(".bias");
                let value = if is_bad { f32::NAN } else { 0.01 };
                (spec.name.clone(), Tensor::full(value, spec.shape.as_slice(), &Device::Cpu).unwrap())
            };
            recorder.specs().iter().map(tensor).collect()
        };
        // The first of their kinds: two levels, of the same channels with attention and without.
        for bad in [
            "down_blocks.0.resnets.0",
            "down_blocks.1.attentions.0",
            "mid_block.resnets.0",
            "up_blocks.1.resnets.1",
        ] {
            let error =
                tried(&VarBuilder::from_tensors(with_bad(bad), dtype, &Device::Cpu)).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad}: what it makes of zeros is not finite")), "{error}");
        }
        // One like it was tried before, but not with these numbers, which are looked at as they come from a file.
        let bad = with_bad("mid_block.attentions.0");
        let (_, took) = tried(&VarBuilder::from_tensors(bad.clone(), dtype, &Device::Cpu)).unwrap();
        assert!(took.is_some());
        let folder = tempfile::tempdir().unwrap();
        candle_core::safetensors::save(&bad, folder.path().join("model.safetensors")).unwrap();
        let weights = crate::Weights::open(folder.path()).unwrap();
        let error = tried(&weights.var_builder(dtype, &Device::Cpu)).unwrap_err();
        let of_the_layer = |tensor: &str| tensor.starts_with("mid_block.attentions.0.");
        assert!(
            matches!(&error, ModelError::NonFiniteTensor { tensor, .. } if of_the_layer(tensor)),
            "{error}"
        );
    }
}

#[test]
fn layers_alike_take_as_long_as_the_one_that_was_tried() {
    let config = UnetConfig::from_json(TINY, Path::new("config.json")).unwrap();
    let _packing = crate::Packing::new();
    let vb = seeded::weights();
    let trial = Trial::new(&config, DType::F32).unwrap();
    let norm = Norm { num_groups: 4, eps: 1e-5 };
    let block =
        |channels| ResnetBlock2D::load(&vb, [channels; 2], Some(config.time_embed_dim), norm).unwrap();
    trial.resnet("a", &block(8), 0, 8).unwrap();
    let took = trial.took();
    assert!(!took.is_zero());
    trial.resnet("b", &block(8), 0, 8).unwrap();
    assert_eq!(trial.took(), 2 * took);
}

#[test]
fn the_packed_network_is_the_same() {
    let unet = tiny();
    // Of a bf16's eight digits, over the two dozen products that follow each other here.
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 0.02)] {
        let packed = packed(dtype);
        for (batch, height, width) in [(2, 6, 7), (3, 9, 5), (1, 33, 17), (2, 16, 32)] {
            let mut noise = crate::noise::TorchGenerator::new(7);
            let mut draw = |shape: &[usize]| {
                Tensor::from_vec(noise.randn(shape.iter().product()), shape, &Device::Cpu).unwrap()
            };
            let (sample, states) = (draw(&[batch, 4, height, width]), draw(&[batch, 5, 6]));
            let added = AddedConditioning { text_embeds: draw(&[batch, 10]), time_ids: draw(&[batch, 6]) };
            let timesteps = &[981.0, 1.5, 77.0][..batch];
            let run = |unet: &Unet| unet.forward(&sample, timesteps, &states, &added).unwrap();
            let size =
                |t: &Tensor| t.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            let expected = run(&unet);
            let error = size(&(run(&packed) - &expected).unwrap()) / size(&expected);
            assert!(error <= tolerance, "{dtype:?} {batch} x {height} x {width}: {error}");
            assert!(dtype == DType::F32 || error > 1e-4, "bf16 rounds: {error}");
        }
    }
}

#[test]
fn items_of_a_packed_batch_do_not_depend_on_each_other_to_the_last_bit() {
    for dtype in [DType::F32, DType::BF16] {
        let unet = packed(dtype);
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (count, size) in [(3, 6), (2, 5), (5, 16)] {
            let (sample, states, added) = (draw(&[count, 4, size, 6]), draw(&[count, 5, 6]), added(count));
            let timesteps: Vec<f32> = [981.0, 501.0, 1.5].into_iter().cycle().take(count).collect();
            let together = unet.forward(&sample, &timesteps, &states, &added).unwrap();
            for i in 0..count {
                let one = |t: &Tensor| t.narrow(0, i, 1).unwrap();
                let added = AddedConditioning {
                    text_embeds: one(&added.text_embeds),
                    time_ids: one(&added.time_ids),
                };
                let alone = unet.forward(&one(&sample), &timesteps[i..=i], &one(&states), &added).unwrap();
                assert_eq!(values(one(&together)), values(alone), "{dtype:?}: item {i} of {count}");
            }
        }
    }
}

#[test]
fn a_packed_result_does_not_depend_on_threads() {
    for dtype in [DType::F32, DType::BF16] {
        let unet = packed(dtype);
        let (sample, states, added) = (draw(&[2, 4, 20, 24]), draw(&[2, 5, 6]), added(2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let run = || unet.forward(&sample, &[3.0, 4.0], &states, &added).unwrap();
            // Tensors may be sent; prompts, which may not, are made inside.
            pool.install(run).flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let unet = packed(DType::F32);
    let (states, added) = (draw(&[1, 3, 6]), added(1));
    let mut values = vec![0.5; 4 * 8 * 8];
    values[77] = f32::NAN;
    let sample = Tensor::from_vec(values, (1, 4, 8, 8), &Device::Cpu).unwrap();
    let got = unet.forward(&sample, &[5.0], &states, &added).unwrap();
    assert!(got.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().any(|v| v.is_nan()));
}

#[test]
fn half_precision_is_not_packed_and_works() {
    let plain = packed(DType::F16);
    let (sample, states, added) = (draw(&[1, 4, 6, 7]), draw(&[1, 5, 6]), added(1));
    let got = plain.forward(&sample, &[5.0], &states, &added).unwrap();
    let expected = tiny().forward(&sample, &[5.0], &states, &added).unwrap();
    let difference = (got.to_dtype(DType::F32).unwrap() - expected).unwrap().abs().unwrap();
    assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 0.02);
}
