use std::{collections::HashMap, path::Path};

use candle_core::{Var, backprop::GradStore};

use super::*;
use crate::{TensorRecorder, Weights, noise::TorchGenerator, seeded};

/// Two levels, so that a latent is 2 x 2 pixels.
fn config() -> VaeConfig {
    let text = r#"{"block_out_channels": [4, 8], "norm_num_groups": 4, "scaling_factor": 0.5,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;
    VaeConfig::from_json(text, Path::new("config.json")).unwrap()
}

fn decoder() -> VaeDecoder {
    VaeDecoder::new(&seeded::weights(), &config()).unwrap()
}

fn encoder() -> VaeEncoder {
    VaeEncoder::new(&seeded::weights(), &config()).unwrap()
}

fn draw(seed: u64, shape: [usize; 4]) -> Tensor {
    let values = TorchGenerator::new(seed).randn(shape.iter().product());
    Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()
}

fn latents() -> Tensor {
    draw(1, [2, 4, 5, 3])
}

fn images() -> Tensor {
    draw(2, [2, 3, 10, 6])
}

fn second(batch: &Tensor) -> Tensor {
    batch.narrow(0, 1, 1).unwrap()
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    largest(&(a - b).unwrap())
}

#[test]
fn encodes_as_diffusers_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vae/golden");
    let weights = Weights::open(&folder).unwrap().var_builder(DType::F32, &Device::Cpu);
    let config = VaeConfig::open(&folder.join("config.json")).unwrap();
    let golden = |name: &str| weights.pp("golden").get_unchecked(name).unwrap();
    let got = VaeEncoder::new(&weights, &config).unwrap().encode(&golden("image")).unwrap();
    for (name, got) in [("mean", got.mean), ("logvar", got.logvar)] {
        let expected = golden(name);
        let worst = apart(&got, &expected);
        assert!(worst <= 2e-5, "{name}: {worst} apart");
        assert!(largest(&expected) > 0.1, "{name} of nothing would compare nothing");
    }
}

#[test]
fn a_batch_equals_its_items() {
    let (vae, latents) = (decoder(), latents());
    let both = vae.decode(&latents).unwrap();
    assert_eq!(both.dims(), [2, 3, 10, 6]);
    assert_eq!(apart(&second(&both), &vae.decode(&second(&latents)).unwrap()), 0.0);

    let (vae, images) = (encoder(), images());
    let both = vae.encode(&images).unwrap();
    assert_eq!(both.mean.dims(), [2, 4, 5, 3]);
    let alone = vae.encode(&second(&images)).unwrap();
    assert_eq!(apart(&second(&both.mean), &alone.mean), 0.0);
    assert_eq!(apart(&second(&both.logvar), &alone.logvar), 0.0);
}

#[test]
fn the_whole_equals_its_halves() {
    let whole = Autoencoder::new(&seeded::weights(), &config()).unwrap();
    let (images, latents) = (images(), latents());
    let (mean, logvar) = whole.moments(&images).unwrap();
    let encoded = encoder().encode(&images).unwrap();
    assert!(apart(&mean, &encoded.mean) <= 1e-5 && apart(&logvar, &encoded.logvar) <= 1e-5);
    let decoded = decoder().decode(&config().scale(&latents).unwrap()).unwrap();
    assert!(apart(&whole.reconstruct(&latents).unwrap(), &decoded) <= 1e-5);
}

#[test]
fn latents_are_scaled_means() {
    let images = images();
    let mean = encoder().encode(&images).unwrap().mean;
    assert_eq!(apart(&encoder().latents(&images).unwrap(), &(mean * 0.5).unwrap()), 0.0);
}

#[test]
fn means_and_deviations_count() {
    let mut config = config();
    config.latents_mean = Some(vec![1.0, 0.0, 0.0, 0.0]);
    config.latents_std = Some(vec![1.0, 3.0, 1.0, 1.0]);
    let ones = Tensor::ones((1, 4, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let own = config.unscale(&ones).unwrap();
    assert_eq!(own.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [3.0, 6.0, 2.0, 2.0]);
    assert_eq!(apart(&config.scale(&own).unwrap(), &ones), 0.0);
}

#[test]
fn no_variance_is_infinite_or_nothing() {
    let moments = Tensor::new(&[[1e9f32, -1e9, 1e9, -1e9]], &Device::Cpu).unwrap();
    let posterior = Posterior::of_moments(&moments.reshape((1, 4, 1, 1)).unwrap()).unwrap();
    assert_eq!(posterior.mean.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1e9, -1e9]);
    assert_eq!(posterior.logvar.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [20.0, -30.0]);
}

#[test]
fn nan_is_an_error_and_not_a_black_picture() {
    let error = decoder().decode(&(latents() * f64::NAN).unwrap()).unwrap_err();
    assert!(matches!(error, ModelError::NonFinite { what: "latents", step: None }), "{error}");
    let error = encoder().encode(&(images() * f64::NAN).unwrap()).unwrap_err();
    assert!(matches!(error, ModelError::NonFinite { what: "image", step: None }), "{error}");
}

#[test]
fn other_shapes_are_refused() {
    let whole = Autoencoder::new(&seeded::weights(), &config()).unwrap();
    for shape in [(1, 3, 11, 6), (1, 3, 10, 7), (1, 4, 10, 6), (0, 3, 10, 6)] {
        let images = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        for error in [encoder().encode(&images).unwrap_err(), whole.moments(&images).unwrap_err()] {
            let expected = "expected [batch, 3, height, width] with height and width multiples of 2";
            assert!(error.to_string().ends_with(expected), "{error}");
        }
    }
    let images = Tensor::zeros((1, 3, 10, 6), DType::F32, &Device::Cpu).unwrap();
    assert!(matches!(whole.reconstruct(&images), Err(ModelError::InvalidInput { what: "latents", .. })));
}

#[test]
fn half_precision_weights_encode_in_f32() {
    let vb = seeded::weights().set_dtype(DType::F16);
    let got = VaeEncoder::new(&vb, &config()).unwrap().encode(&images()).unwrap();
    let single = encoder().encode(&images()).unwrap();
    assert_eq!((apart(&got.mean, &single.mean), apart(&got.logvar, &single.logvar)), (0.0, 0.0));
}

/// Names of the tensors that `build` asks for.
fn names(build: impl Fn(&VarBuilder<'_>)) -> Vec<String> {
    let recorder = TensorRecorder::default();
    build(&recorder.var_builder());
    recorder.specs().into_iter().map(|spec| spec.name).collect()
}

#[test]
fn a_half_needs_only_its_own_weights() {
    let parts = |build: &dyn Fn(&VarBuilder<'_>)| {
        let mut parts: Vec<_> =
            names(build).into_iter().filter_map(|name| name.split('.').next().map(str::to_owned)).collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    };
    let encoder = parts(&|vb| drop(VaeEncoder::new(vb, &config()).unwrap()));
    assert_eq!(encoder, ["encoder", "quant_conv"]);
    let decoder = parts(&|vb| drop(VaeDecoder::new(vb, &config()).unwrap()));
    assert_eq!(decoder, ["decoder", "post_quant_conv"]);
    let bare = VaeConfig { use_quant_conv: false, use_post_quant_conv: false, ..config() };
    let bare = parts(&|vb| drop(Autoencoder::new(vb, &bare).unwrap()));
    assert_eq!(bare, ["decoder", "encoder"]);
}

/// An autoencoder of variables, and they by name.
fn trainable() -> (HashMap<String, Var>, Autoencoder) {
    let recorder = TensorRecorder::default();
    Autoencoder::new(&recorder.var_builder(), &config()).unwrap();
    let vars: HashMap<_, _> = recorder
        .specs()
        .into_iter()
        .map(|spec| {
            let tensor = seeded::weights().get(spec.shape, &spec.name).unwrap();
            (spec.name, Var::from_tensor(&tensor).unwrap())
        })
        .collect();
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let whole = Autoencoder::new(&vb, &config()).unwrap();
    (vars, whole)
}

/// Squares of the reconstruction of a sampled latent, and of the logarithm of its variance.
fn loss(whole: &Autoencoder, images: &Tensor, noise: &Tensor) -> Tensor {
    let (mean, logvar) = whole.moments(images).unwrap();
    let sample = (mean + (logvar.affine(0.5, 0.0).unwrap().exp().unwrap() * noise).unwrap()).unwrap();
    let pictures = whole.reconstruct(&sample).unwrap();
    (pictures.sqr().unwrap().mean_all().unwrap() + logvar.sqr().unwrap().mean_all().unwrap()).unwrap()
}

/// How the loss changes along a step of `var` against its gradient, over what the gradient says.
fn change(var: &Var, gradients: &GradStore, loss: impl Fn() -> f64) -> f64 {
    const STEP: f64 = 1e-2;
    let gradient = gradients.get(var).unwrap();
    let norm = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt());
    let (at, step) = (var.as_tensor().copy().unwrap(), (gradient * (STEP / norm)).unwrap());
    let moved = |to: candle_core::Result<Tensor>| {
        var.set(&to.unwrap()).unwrap();
        loss()
    };
    let change = moved(&at + &step) - moved(&at - &step);
    var.set(&at).unwrap();
    change / (2.0 * STEP * norm)
}

#[test]
fn every_weight_learns() {
    let (vars, whole) = trainable();
    let (images, noise) = (images(), latents());
    let gradients = loss(&whole, &images, &noise).backward().unwrap();
    for (name, var) in &vars {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        // Softmax does not see what all its scores have in common.
        assert!(largest(gradient) > 0.0 || name.ends_with("to_k.bias"), "{name} does not learn");
    }
    for name in ["encoder.conv_in.weight", "encoder.down_blocks.0.downsamplers.0.conv.weight"] {
        let ratio = change(&vars[name], &gradients, || {
            f64::from(loss(&whole, &images, &noise).to_scalar::<f32>().unwrap())
        });
        assert!((ratio - 1.0).abs() < 0.02, "{name}: the loss changes by {ratio} of what its gradient says");
    }
}
