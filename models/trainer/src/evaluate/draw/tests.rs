use candle_nn::VarBuilder;
use sdxl_models::{
    denoise::{Conditioning, DenoiseInputs, DenoiseRun, Start},
    text::ClipTextModel,
    vae::Autoencoder,
};

use super::*;
use crate::{
    stages::configs,
    store::{Initialisation, ParameterStore, Snapshot},
};

fn recipe() -> Recipe {
    let shipped = include_str!("../../../../recipes/shapes.toml");
    let mut recipe = Recipe::parse(shipped, Path::new("shapes.toml")).unwrap();
    recipe.base.block_out_channels = vec![32, 32, 64];
    recipe.refiner.block_out_channels = vec![16, 32, 32, 32];
    recipe.vae.block_out_channels = vec![8, 8, 16, 16];
    recipe
}

fn random<N>(seed: u64, build: impl FnOnce(&VarBuilder<'static>) -> Result<N, ModelError>) -> Snapshot {
    ParameterStore::build(Initialisation::new(seed), build).unwrap().0.frozen().unwrap()
}

fn painter() -> Painter {
    let recipe = recipe();
    let (first, second) =
        (configs::text_encoder(&recipe).unwrap(), configs::text_encoder_2(&recipe).unwrap());
    let (unet, refiner) = (configs::unet(&recipe).unwrap(), configs::refiner_unet(&recipe).unwrap());
    let vae = configs::vae(&recipe, 0.5).unwrap();
    let parts = Parts {
        text_encoder: random(1, |vb| ClipTextModel::new(vb, &first, false)),
        text_encoder_2: random(2, |vb| ClipTextModel::new(vb, &second, true)),
        unet: random(3, |vb| Unet::new(vb, &unet)),
        refiner: Some(random(4, |vb| Unet::new(vb, &refiner))),
        vae: random(5, |vb| Autoencoder::new(vb, &vae)),
        scaling_factor: 0.5,
    };
    Painter::of_parts(&recipe, &parts).unwrap()
}

fn orders(refiner_split: Option<f64>) -> Vec<Order> {
    let options = Options {
        num_inference_steps: 5,
        original_size: Some([64, 200]),
        crops_coords_top_left: [8, 16],
        refiner_split,
        ..Options::new([96, 64])
    };
    let order =
        |(seed, caption): (u64, &str)| Order { caption: caption.to_owned(), seed, options: options.clone() };
    let captions = ["a red circle", "a blue star above a green square", "a large white cross"];
    (0..).zip(captions).map(order).collect()
}

/// What a denoiser's service is asked for.
fn served(
    denoiser: &Denoiser,
    order: &Order,
    ids: [TimeIds; 2],
    steps: Range<usize>,
    start: Start,
) -> Tensor {
    let [prompt_embeds, pooled_prompt_embeds] = (denoiser.encode)(&order.caption).unwrap();
    let [time_ids, negative_ids] = ids;
    // The base's negative half is zeros, the refiner's the empty prompt: so their exports say.
    let [negative_embeds, negative_pooled] = if denoiser.zeros_for_no_prompt {
        [&prompt_embeds, &pooled_prompt_embeds].map(|text| text.zeros_like().unwrap())
    } else {
        (denoiser.encode)("").unwrap()
    };
    let negative = Conditioning {
        prompt_embeds: negative_embeds,
        pooled_prompt_embeds: negative_pooled,
        time_ids: negative_ids,
    };
    let inputs = DenoiseInputs {
        schedule: denoiser.schedule(5).unwrap(),
        steps,
        start,
        positive: Conditioning { prompt_embeds, pooled_prompt_embeds, time_ids },
        negative: Some(negative),
        guidance: Guidance { scale: 5.0, rescale: 0.0 },
        kinds: sdxl_core::StepKinds::plain(),
    };
    let mut run = DenoiseRun::new(&denoiser.unet, inputs).unwrap();
    while run.step(&denoiser.unet).unwrap().is_some() {}
    run.latents().unwrap()
}

fn served_alone(painter: &Painter, order: &Order, refined: bool) -> Tensor {
    let (original, target) = (Size::new(64, 200), Size::new(96, 64));
    let crop = CropCoords { top: 8, left: 16 };
    let ids = TimeIds::base(original, crop, target);
    let steps = if refined { 0..painter.base.schedule(5).unwrap().split(0.6) } else { 0..5 };
    let (end, start) = (steps.end, Start::Noise { seed: order.seed, latent_size: [12, 8] });
    let latents = served(&painter.base, order, [ids.clone(), ids], steps, start);
    if !refined {
        return latents;
    }
    let ids =
        [(crop, 6.0), (CropCoords::default(), 2.5)].map(|(c, score)| TimeIds::refiner(original, c, score));
    served(painter.refiner.as_ref().unwrap(), order, ids, end..5, Start::Latents(latents))
}

/// As a share of the greatest value: random networks do not make unit latents.
fn furthest(a: &Tensor, b: &Tensor) -> f32 {
    let most = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    most(&(a - b).unwrap()) / most(b)
}

#[test]
fn a_batch_is_drawn_as_the_services_draw_each() {
    let painter = painter();
    for split in [None, Some(0.6)] {
        let orders = orders(split);
        let together = painter.latents(&orders).unwrap();
        for (i, order) in orders.iter().enumerate() {
            let alone = served_alone(&painter, order, split.is_some());
            let off = furthest(&together.i(i).unwrap(), &alone);
            assert!(off < 1e-5, "{split:?} {i} {off}");
        }
    }
}

#[test]
fn pictures_come_in_order_whatever_the_threads() {
    let painter = painter();
    let mut orders = orders(None);
    orders[1].options.size = [64, 64];
    let [one, three] = [1, 3].map(|threads| painter.draw(&Team::new(threads).unwrap(), &orders).unwrap());
    assert_eq!(one, three);
    assert_eq!(one.iter().map(|picture| picture.size).collect::<Vec<_>>(), [[96, 64], [64, 64], [96, 64]]);
    assert_eq!(one[0].pixels.len(), 3 * 96 * 64);
    assert!(painter.draw(&Team::new(2).unwrap(), &[]).unwrap().is_empty());
}
