use std::path::Path;

use super::*;
use crate::seeded;

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
    let unet = tiny();
    for (h, w) in [(8, 8), (1, 1), (7, 10), (5, 3)] {
        let out = unet.forward(&draw(&[1, 4, h, w]), &[1.0], &draw(&[1, 3, 6]), &added(1)).unwrap();
        assert_eq!(out.dims(), [1, 4, h, w]);
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
    let unet = tiny();
    let (sample, states, added) = (draw(&[3, 4, 6, 5]), draw(&[3, 5, 6]), added(3));
    let part = |from: usize, count: usize| {
        let of = |t: &Tensor| t.narrow(0, from, count).unwrap();
        let added = AddedConditioning { text_embeds: of(&added.text_embeds), time_ids: of(&added.time_ids) };
        unet.prompt(&of(&states), &added).unwrap()
    };
    let prompts = [part(0, 1), part(1, 2)];
    let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for timesteps in [[981.0, 501.0, 1.5], [11.0, 22.0, 33.0]] {
        let kept = unet.forward_to(&sample, &timesteps, &prompts.each_ref()).unwrap();
        let anew = unet.forward(&sample, &timesteps, &states, &added).unwrap();
        assert_eq!(values(kept), values(anew));
    }
    let few = unet.forward_to(&sample, &[1.0; 3], &[&prompts[0]]).unwrap_err();
    assert_eq!(few.to_string(), "prompts has shape [1], expected of 3 items");
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
