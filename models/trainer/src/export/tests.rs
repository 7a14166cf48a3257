use candle_core::{DType, Device, Tensor};
use sdxl_models::{
    ModelError, PipelineDir, TextConditioner, Weights,
    text::ClipTextModel,
    unet::{AddedConditioning, Unet, UnetConfig},
    vae::{Autoencoder, VaeConfig, VaeDecoder},
};

use super::*;
use crate::{
    stages::configs,
    store::{Initialisation, ParameterStore},
};

const CAPTION: &str = "a red circle on a blue background";

/// The shapes of the recipe that ships, but narrow.
fn recipe() -> Recipe {
    let shipped = include_str!("../../../recipes/shapes.toml");
    let mut recipe = Recipe::parse(shipped, Path::new("shapes.toml")).unwrap();
    recipe.base.block_out_channels = vec![32, 32, 64];
    recipe.refiner.block_out_channels = vec![16, 32, 32, 32];
    recipe
}

fn random<N>(
    seed: u64,
    build: impl FnOnce(&candle_nn::VarBuilder<'static>) -> Result<N, ModelError>,
) -> Snapshot {
    ParameterStore::build(Initialisation::new(seed), build).unwrap().0.frozen().unwrap()
}

fn parts(recipe: &Recipe) -> Parts {
    let (first, second) = (configs::text_encoder(recipe).unwrap(), configs::text_encoder_2(recipe).unwrap());
    let (unet, refiner) = (configs::unet(recipe).unwrap(), configs::refiner_unet(recipe).unwrap());
    let vae = configs::vae(recipe, 0.5).unwrap();
    Parts {
        text_encoder: random(1, |vb| ClipTextModel::new(vb, &first, false)),
        text_encoder_2: random(2, |vb| ClipTextModel::new(vb, &second, true)),
        unet: random(3, |vb| Unet::new(vb, &unet)),
        refiner: Some(random(4, |vb| Unet::new(vb, &refiner))),
        vae: random(5, |vb| Autoencoder::new(vb, &vae)),
        scaling_factor: 0.5,
    }
}

/// Encodes a caption, denoises a step and decodes, all with what lies in the folder.
fn run(dir: &PipelineDir, text: &TextConditioner, time_ids: usize) {
    let encoded = text.encode(CAPTION, "", 0).unwrap();
    let weights = |folder: &Path| Weights::open(folder).unwrap().var_builder(DType::F32, &Device::Cpu);
    let config = UnetConfig::open(&dir.unet().join("config.json")).unwrap();
    let unet = Unet::new(&weights(&dir.unet()), &config).unwrap();
    let side = config.sample_size.unwrap();
    let latents = Tensor::ones((1, 4, side, side), DType::F32, &Device::Cpu).unwrap();
    let added = AddedConditioning {
        text_embeds: encoded.pooled_prompt_embeds.unsqueeze(0).unwrap(),
        time_ids: Tensor::ones((1, time_ids), DType::F32, &Device::Cpu).unwrap(),
    };
    let context = encoded.prompt_embeds.unsqueeze(0).unwrap();
    let predicted = unet.forward(&latents, &[500.0], &context, &added).unwrap();
    let config = VaeConfig::open(&dir.vae().join("config.json")).unwrap();
    assert_eq!((config.scaling_factor, config.compute_dtype(DType::F16)), (0.5, DType::F16));
    let picture = VaeDecoder::new(&weights(&dir.vae()), &config).unwrap().decode(&predicted).unwrap();
    assert_eq!(picture.dims(), [1, 3, 8 * side, 8 * side]);
}

#[test]
fn what_is_exported_loads_and_runs() {
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe();
    let sizes = export(&recipe, &parts(&recipe), out.path()).unwrap();
    assert!(sizes.to_string().lines().count() == 13 && sizes.total() > 1_000_000, "{sizes}");
    let mut names: Vec<_> = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, PIPELINES);

    let [base, refiner] = PIPELINES.map(|name| PipelineDir::open(&out.path().join(name)).unwrap());
    let load = |dir| TextConditioner::load(dir, DType::F32, &Device::Cpu).unwrap();
    let text = load(&base);
    run(&base, &text, 6);
    assert!(text.force_zeros_for_empty_prompt() && !base.requires_aesthetics_score());
    let refiners = TextConditioner::load_refiner_sharing(&text, &refiner, DType::F32, &Device::Cpu).unwrap();
    run(&refiner, &refiners, 5);
    assert!(refiners.shares_with(&text) && !refiners.force_zeros_for_empty_prompt());
    for dir in [base, refiner] {
        dir.scheduler_config().unwrap();
        assert_eq!(dir.training_buckets().unwrap().unwrap().len(), 1 + recipe.data.buckets.len());
    }
}

#[test]
fn an_export_takes_the_place_of_another_whole() {
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("README.md"), "kept").unwrap();
    let recipe = recipe();
    let mut parts = parts(&recipe);
    export(&recipe, &parts, out.path()).unwrap();
    let file = out.path().join("base/unet/diffusion_pytorch_model.safetensors");
    let first = fs::read(&file).unwrap();

    let good = std::mem::replace(&mut parts.text_encoder_2, parts.text_encoder.clone());
    let error = export(&recipe, &parts, out.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: tensor ") && error.lines().count() == 1, "{error}");
    assert!(fs::read(&file).unwrap() == first && out.path().join("refiner").exists());

    (parts.text_encoder_2, parts.refiner) = (good, None);
    export(&recipe, &parts, out.path()).unwrap();
    assert_eq!(fs::read(&file).unwrap(), first);
    let mut names: Vec<_> = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["README.md", "base"]);
}

#[test]
fn weights_that_overflow_are_refused() {
    let recipe = recipe();
    let mut parts = parts(&recipe);
    let config = configs::text_encoder(&recipe).unwrap();
    let build = |vb: &_| ClipTextModel::new(vb, &config, false);
    let (store, _) = ParameterStore::build(Initialisation::new(1), build).unwrap();
    store.parameters()[0]
        .change(|values| {
            values[0] = 70_000.0;
            Ok(())
        })
        .unwrap();
    parts.text_encoder = store.frozen().unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = export(&recipe, &parts, out.path()).unwrap_err().to_string();
    assert!(error.contains("token_embedding.weight is not finite in f16"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_model_too_large_for_the_repository_is_refused() {
    let sizes = Sizes(vec![("base/unet".to_owned(), 20), ("base/vae".to_owned(), 5)]);
    assert!(sizes.check(Path::new("out"), 25).is_ok());
    let error = sizes.check(Path::new("out"), 24).unwrap_err().to_string();
    assert_eq!(error, "out: the model would take 25 bytes; at most 24 are allowed");
}
