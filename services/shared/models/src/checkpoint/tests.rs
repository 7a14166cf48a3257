use serde_json::json;
use tempfile::TempDir;

use super::*;

fn checkpoint(index: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    folder
}

fn open(index: &Value) -> Result<PipelineDir, ModelError> {
    PipelineDir::open(checkpoint(index).path())
}

fn base() -> Value {
    json!({
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    })
}

#[test]
fn defaults_are_those_of_the_constructors() {
    let dir = open(&base()).unwrap();
    assert_eq!(dir.kind(), PipelineKind::Base);
    assert!(dir.force_zeros_for_empty_prompt() && !dir.requires_aesthetics_score());
    assert!(dir.text_encoder().unwrap().tokenizer.ends_with("tokenizer"));
    assert!(dir.text_encoder_2().tokenizer.ends_with("tokenizer_2"));
}

#[test]
fn a_refiners_encoder_is_found_under_either_name() {
    let refiner = |rest: Value| {
        let mut index = json!({
            "_class_name": "StableDiffusionXLImg2ImgPipeline",
            "force_zeros_for_empty_prompt": false, "requires_aesthetics_score": true,
        });
        index.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        open(&index).unwrap()
    };
    let clip = json!(["transformers", "CLIPTextModelWithProjection"]);
    let published = refiner(json!({"text_encoder": [null, null], "tokenizer": [null, null],
        "text_encoder_2": clip, "tokenizer_2": clip}));
    assert_eq!((published.kind(), published.text_encoder()), (PipelineKind::Refiner, None));
    assert!(published.text_encoder_2().text_encoder.ends_with("text_encoder_2"));
    assert!(published.requires_aesthetics_score() && !published.force_zeros_for_empty_prompt());
    let renamed = refiner(json!({"text_encoder": clip, "tokenizer": clip}));
    assert!(renamed.text_encoder_2().text_encoder.ends_with("text_encoder"));
    assert!(renamed.text_encoder_2().tokenizer.ends_with("tokenizer"));
}

#[test]
fn faults_name_file_and_key() {
    let fault = |index: Value| open(&index).unwrap_err().to_string();
    let folder = tempfile::tempdir().unwrap();
    let missing = PipelineDir::open(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("model_index.json: no such file"), "{missing}");
    fs::write(folder.path().join("model_index.json"), "{\"a\": ").unwrap();
    let broken = PipelineDir::open(folder.path()).unwrap_err().to_string();
    assert!(broken.contains("model_index.json: not valid: EOF") && !broken.contains('\n'), "{broken}");
    assert!(
        fault(json!({"_class_name": "FluxPipeline", "text_encoder": ["a", "b"]}))
            .contains("\"FluxPipeline\"")
    );
    assert!(fault(json!({"_class_name": "StableDiffusionXLPipeline"})).contains("lists neither"));
    let mut one = base();
    one["text_encoder"] = json!([null, null]);
    assert!(fault(one).contains("model_index.json: text_encoder: a StableDiffusionXLPipeline needs two"));
    let mut odd = base();
    odd["force_zeros_for_empty_prompt"] = json!("yes");
    assert!(
        fault(odd)
            .contains("force_zeros_for_empty_prompt = \"yes\" is not supported; supported: true, false")
    );
}

#[test]
fn a_folder_called_base_takes_its_parents_name() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["base", "dreamer"] {
        let folder = parent.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("model_index.json"), base().to_string()).unwrap();
    }
    let name = |f: &str| PipelineDir::open(&parent.path().join(f)).unwrap().name().to_owned();
    assert_eq!(name("dreamer"), "dreamer");
    assert_eq!(name("base"), parent.path().file_name().unwrap().to_string_lossy());
}

#[test]
fn scheduler_and_buckets_are_read_and_their_faults_named() {
    let folder = checkpoint(&base());
    let dir = PipelineDir::open(folder.path()).unwrap();
    let missing = dir.scheduler_config().unwrap_err().to_string();
    assert!(missing.contains("scheduler_config.json: no such file"), "{missing}");
    fs::create_dir(folder.path().join("scheduler")).unwrap();
    let write = |text: &str| fs::write(folder.path().join("scheduler/scheduler_config.json"), text).unwrap();
    write("{\"_class_name\": \"EulerDiscreteScheduler\", \"steps_offset\": 1}");
    assert_eq!(dir.scheduler_config().unwrap().steps_offset, Some(1));
    write("{\"trained_betas\": [0.1]}");
    let error = dir.scheduler_config().unwrap_err().to_string();
    assert!(error.contains("scheduler_config.json: trained_betas = [0.1] is not supported"), "{error}");

    assert_eq!(dir.training_buckets().unwrap(), None);
    let write = |text: &str| fs::write(folder.path().join("training_buckets.json"), text).unwrap();
    write("[[64, 128], [96, 96]]");
    assert_eq!(dir.training_buckets().unwrap(), Some(vec![Size::new(64, 128), Size::new(96, 96)]));
    for (text, part) in
        [("[]", "lists no sizes"), ("[[64, 7]]", "[64, 7]: not multiples of 8"), ("[[64]]", "not valid")]
    {
        write(text);
        let error = dir.training_buckets().unwrap_err().to_string();
        assert!(error.contains("training_buckets.json: ") && error.contains(part), "{error}");
    }
}

#[test]
fn a_revision_follows_every_part_that_it_promises_to() {
    let folder = checkpoint(&base());
    let dir = PipelineDir::open(folder.path()).unwrap();
    let unet = folder.path().join("unet");
    fs::create_dir(&unet).unwrap();
    let weights = unet.join("diffusion_pytorch_model.safetensors");
    let mut bytes = vec![7u8; 3 << 20];
    bytes[..8].copy_from_slice(&100_000u64.to_le_bytes());
    fs::write(&weights, &bytes).unwrap();
    fs::write(unet.join("config.json"), "{}").unwrap();
    let first = dir.revision(&["unet"]).unwrap();
    assert_eq!((first.len(), &first), (16, &dir.revision(&["unet"]).unwrap()));
    let mut seen = vec![first];
    let mut changed = |what: &str| {
        let now = dir.revision(&["unet"]).unwrap();
        assert!(!seen.contains(&now), "{what}");
        seen.push(now);
    };
    fs::write(unet.join("config.json"), "{ }").unwrap();
    changed("config");
    for (what, at) in [("header", 90_000), ("first block", 10), ("last byte", bytes.len() - 1)] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        fs::write(&weights, &other).unwrap();
        changed(what);
    }
    bytes.push(7);
    fs::write(&weights, &bytes).unwrap();
    changed("length");
    let missing = dir.revision(&["vae"]).unwrap_err().to_string();
    assert!(missing.contains("vae: no such file"), "{missing}");
}
