//! The text encoders against diffusers: expected embeddings are kept, weights are made anew from their seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sdxl_checkpoint::{Component, RandomCheckpoint, StoredType, Variant};
use sdxl_models::{PipelineDir, PipelineKind, Text, TextConditioner, TextEmbedding};

/// As in `golden/text.py`.
const REQUESTS: [(&str, &str, usize); 4] = [
    ("a photo of a cat", "", 0),
    ("Wow!!! it's 3.14 <|endoftext|> more", "a dog on a hill", 0),
    ("日本の城 😀 naïve café", "", 1),
    ("", "", 0),
];

/// Largest difference allowed from diffusers, of values of a few units.
const TOLERANCE: f32 = 2e-5;

fn make(folder: &Path) {
    let mut plan = RandomCheckpoint::new(Variant::Pico, 5);
    plan.dtype = StoredType::F32;
    plan.components =
        vec![Component::Tokenizer, Component::Tokenizer2, Component::TextEncoder, Component::TextEncoder2];
    plan.write(folder, &mut |_| ()).unwrap();
}

fn load(root: &Path) -> (PipelineDir, TextConditioner) {
    let dir = PipelineDir::open(root).unwrap();
    let conditioner = TextConditioner::load(&dir, DType::F32, &Device::Cpu).unwrap();
    (dir, conditioner)
}

fn assert_close(ours: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(ours.dims(), expected.dims(), "{what}");
    let difference = (ours - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference <= TOLERANCE, "{what}: {difference}");
}

#[test]
fn embeddings_are_those_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let (dir, conditioner) = load(&folder.path().join("base"));
    assert_eq!(dir.kind(), PipelineKind::Base);
    let expected = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/text.safetensors");
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let long = vec!["word"; 100].join(" ");
    for (i, (prompt, prompt_2, clip_skip)) in REQUESTS.into_iter().chain([(&*long, "!", 0)]).enumerate() {
        let ours = conditioner.encode(prompt, prompt_2, clip_skip).unwrap();
        assert_close(&ours.prompt_embeds, &expected[&format!("{i}.prompt_embeds")], prompt);
        assert_close(&ours.pooled_prompt_embeds, &expected[&format!("{i}.pooled_prompt_embeds")], prompt);
        let lost = (prompt == long).then(|| vec!["word"; 25].join(" "));
        assert_eq!((ours.prompt_truncated, ours.prompt_2_truncated), (lost, None));
    }
}

/// As stages load them: packed. In bf16 the types of both encoders' states are one, whatever `clip_skip` leaves of each.
#[test]
fn packed_embeddings_are_those_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let dir = PipelineDir::open(&folder.path().join("base")).unwrap();
    let expected = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/text.safetensors");
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let _packing = sdxl_models::Packing::new();
    for (dtype, tolerance) in [(DType::F32, TOLERANCE), (DType::BF16, 0.05)] {
        let conditioner = TextConditioner::load(&dir, dtype, &Device::Cpu).unwrap();
        for (i, (prompt, prompt_2, clip_skip)) in REQUESTS.into_iter().enumerate() {
            let ours = conditioner.encode(prompt, prompt_2, clip_skip).unwrap();
            for (ours, name) in
                [(ours.prompt_embeds, "prompt_embeds"), (ours.pooled_prompt_embeds, "pooled_prompt_embeds")]
            {
                assert_eq!(ours.dtype(), dtype);
                let difference =
                    (ours.to_dtype(DType::F32).unwrap() - &expected[&format!("{i}.{name}")]).unwrap();
                let worst = difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(worst <= tolerance, "{dtype:?} {prompt:?} {name}: {worst}");
            }
        }
    }
}

/// Packed texts are encoded together, others one by one; either way each is what it is alone, to the last bit.
#[test]
fn a_text_does_not_depend_on_the_others() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let bits = |embedding: &TextEmbedding| {
        let numbers =
            |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let both = [numbers(&embedding.prompt_embeds), numbers(&embedding.pooled_prompt_embeds)].concat();
        both.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let long = vec!["word"; 100].join(" ");
    let texts: Vec<_> = REQUESTS.into_iter().map(|(prompt, prompt_2, _)| Text { prompt, prompt_2 }).collect();
    let texts =
        [texts, vec![Text { prompt: "a cat", prompt_2: &long }, Text { prompt: &long, prompt_2: "" }]];
    let texts = texts.concat();
    for packed in [true, false] {
        let scope = packed.then(sdxl_models::Packing::new);
        for dtype in [DType::F32, DType::BF16] {
            let dir = PipelineDir::open(&folder.path().join("base")).unwrap();
            let conditioner = TextConditioner::load(&dir, dtype, &Device::Cpu).unwrap();
            for clip_skip in [0, 1] {
                let all = conditioner.encode_all(&texts, clip_skip).unwrap();
                assert_eq!(all.len(), texts.len());
                for (together, Text { prompt, prompt_2 }) in all.iter().zip(&texts) {
                    let alone = conditioner.encode(prompt, prompt_2, clip_skip).unwrap();
                    assert_eq!(bits(together), bits(&alone), "{dtype:?} {prompt:?}");
                    assert_eq!(together.prompt_truncated, alone.prompt_truncated);
                    assert_eq!(together.prompt_2_truncated, alone.prompt_2_truncated);
                }
                let lost = all.iter().map(|e| [e.prompt_truncated.is_some(), e.prompt_2_truncated.is_some()]);
                let lost: Vec<_> = lost.skip(REQUESTS.len()).collect();
                assert_eq!(lost, [[false, true], [true, false]]);
            }
        }
        drop(scope);
    }
    let conditioner = load(&folder.path().join("base")).1;
    assert!(conditioner.encode_all(&[], 0).unwrap().is_empty());
}

#[test]
fn a_refiner_shares_the_bases_second_encoder_and_reads_the_prompt_with_it() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let (_, base) = load(&folder.path().join("base"));
    let (dir, own) = load(&folder.path().join("refiner"));
    let refiner = TextConditioner::load_refiner_sharing(&base, &dir, DType::F32, &Device::Cpu).unwrap();
    assert!(refiner.shares_with(&base) && !own.shares_with(&base));
    assert_eq!((refiner.cross_attention_dim(), base.cross_attention_dim()), (32, 64));
    assert_eq!((refiner.num_hidden_layers(), base.num_hidden_layers()), (3, 2));
    assert!(base.force_zeros_for_empty_prompt() && !refiner.force_zeros_for_empty_prompt());
    let from_base = base.encode("a cat", "", 0).unwrap();
    let ours = refiner.encode("a cat", "ignored", 0).unwrap();
    assert_close(&ours.pooled_prompt_embeds, &from_base.pooled_prompt_embeds, "pooled");
    assert_close(&ours.prompt_embeds, &from_base.prompt_embeds.narrow(1, 32, 32).unwrap(), "context");

    // Another seed's encoder is another one, and is not shared.
    let mut other = RandomCheckpoint::new(Variant::Pico, 6);
    other.dtype = StoredType::F32;
    other.components = vec![Component::Tokenizer2, Component::TextEncoder2];
    other.write(folder.path(), &mut |_| ()).unwrap();
    let refiner = TextConditioner::load_refiner_sharing(&base, &dir, DType::F32, &Device::Cpu).unwrap();
    assert!(!refiner.shares_with(&base));
}

#[test]
fn wrong_requests_and_wrong_configs_are_told() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let (dir, conditioner) = load(&folder.path().join("base"));
    let error = conditioner.encode("a", "", 2).unwrap_err().to_string();
    assert_eq!(error, "clip_skip 2 is not in 0..=1: the text encoder has 2 layers");

    let path = folder.path().join("base/text_encoder/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    for (from, to, part) in [
        ("\"vocab_size\": 49408", "\"vocab_size\": 400", "vocab_size: 400 for a tokenizer of 49408 tokens"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "5 heads do not divide hidden_size 32"),
        ("\"quick_gelu\"", "\"relu\"", "hidden_act = relu is not supported; supported: quick_gelu, gelu"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "layers.2.layer_norm1.weight is missing"),
        (
            "\"intermediate_size\": 128",
            "\"intermediate_size\": 64",
            "has shape [128, 32], its config.json asks for",
        ),
        ("\"hidden_size\": 32", "\"hidden_size\": \"wide\"", "not valid: invalid type"),
    ] {
        std::fs::write(&path, config.replace(from, to)).unwrap();
        let error = TextConditioner::load(&dir, DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("text_encoder/") && !error.contains('\n'), "{error}");
    }
}
