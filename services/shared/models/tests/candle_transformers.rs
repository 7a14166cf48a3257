//! The one network that candle-transformers has right: its autoencoder's decoder gives what ours gives from the same
//! weights. (docs/decisions/0001-candle-transformers.md says why it does not serve all the same.)

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use sdxl_models::vae::{VaeConfig, VaeDecoder};

#[test]
fn decoders_agree() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![32, 64, 64],
        layers_per_block: 2,
        latent_channels: 4,
        norm_num_groups: 8,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let theirs = AutoEncoderKL::new(vb.clone(), 3, 3, config).unwrap();
    let ours = VaeConfig::from_json(
        r#"{"block_out_channels": [32, 64, 64], "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 8,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
            "scaling_factor": 0.13025}"#,
        "config.json".as_ref(),
    )
    .unwrap();
    let tensors =
        vars.data().lock().unwrap().iter().map(|(k, v)| (todays(k), v.as_tensor().clone())).collect();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let ours = VaeDecoder::new(&vb, &ours).unwrap();

    let latents = Tensor::randn(0f32, 1.0, (1, 4, 9, 12), &Device::Cpu).unwrap();
    let theirs = theirs.decode(&(&latents / 0.13025).unwrap()).unwrap();
    let ours = ours.decode(&latents).unwrap();
    assert_eq!(ours.dims(), [1, 3, 36, 48]);
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let worst = largest(&(&ours - &theirs).unwrap());
    assert!(worst <= 2e-5 * largest(&theirs).max(1.0), "{worst} apart, of {}", largest(&theirs));
    assert!(largest(&theirs) > 1e-3, "a picture of nothing would compare nothing");
}

/// candle asks a checkpoint that has neither for the attention's old names.
fn todays(key: &str) -> String {
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")]
        .iter()
        .fold(key.to_owned(), |key, (old, new)| key.replace(&format!(".{old}."), &format!(".{new}.")))
}
