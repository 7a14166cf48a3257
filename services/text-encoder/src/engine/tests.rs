use super::*;
use candle_core::{DType, Device, Tensor};
use sdxl_checkpoint::{RandomCheckpoint, Variant};
use sdxl_core::ConditionerInfo;
use sdxl_stage::{
    Details,
    conformance::{self, Samples},
};
use std::path::Path;

fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(Variant::Pico, 3).write(folder.path(), &mut |_| {}).unwrap();
    folder
}

fn load(base: &Path, refiner: Option<&Path>) -> anyhow::Result<(TextEncoderEngine, sdxl_stage::StageInfo)> {
    TextEncoderEngine::load(base, refiner, DType::F32, &Device::Cpu)
}

fn job(conditioner: Conditioner, prompts: &[&str]) -> EncodeJob {
    let text = |prompt: &&str| TextJob {
        conditioner,
        prompt: (*prompt).to_owned(),
        prompt_2: String::new(),
        clip_skip: 0,
    };
    EncodeJob { inputs: prompts.iter().map(text).collect() }
}

fn bytes(output: &[TextEmbedding]) -> Vec<u8> {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    output
        .iter()
        .flat_map(|e| [values(&e.prompt_embeds), values(&e.pooled_prompt_embeds)].concat())
        .flat_map(f32::to_le_bytes)
        .collect()
}

#[test]
fn the_engine_conforms() {
    let folder = checkpoint();
    let (mut engine, info) = load(&folder.path().join("base"), None).unwrap();
    let Details::TextEncoder(conditioners) = info.details else { panic!("not a text encoder's") };
    let [(Conditioner::Base, ConditionerInfo { num_hidden_layers, .. })] = conditioners[..] else {
        panic!("{conditioners:?}")
    };
    let too_deep = || {
        let mut job = job(Conditioner::Base, &["a", "b"]);
        job.inputs[1].clip_skip = num_hidden_layers;
        job
    };
    let samples = Samples {
        request: &|| job(Conditioner::Base, &["a cat", "a dog", ""]),
        other: &|| job(Conditioner::Base, &["a bird"]),
        wrong: &[
            ("inputs", &|| job(Conditioner::Base, &[])),
            ("inputs[0].conditioner", &|| job(Conditioner::Refiner, &["a"])),
            ("inputs[1].clip_skip", &too_deep),
        ],
    };
    conformance::check(&mut engine, &samples, |output| bytes(output)).unwrap();
}

#[test]
fn the_refiners_texts_are_encoded_by_its_own_encoder() {
    let folder = checkpoint();
    let (base, refiner) = (folder.path().join("base"), folder.path().join("refiner"));
    let (mut engine, info) = load(&base, Some(&refiner)).unwrap();
    let Details::TextEncoder(conditioners) = info.details else { panic!("not a text encoder's") };
    for (which, info) in conditioners {
        let mut run = engine.begin(job(which, &["a cat"])).unwrap();
        let Step::Done(output) = engine.advance(&mut [&mut run]).remove(0).unwrap() else {
            panic!("not done")
        };
        assert_eq!(output[0].prompt_embeds.dims(), [77, info.cross_attention_dim as usize]);
        assert_eq!(output[0].pooled_prompt_embeds.dims(), [info.pooled_projection_dim as usize]);
    }
}

#[test]
fn texts_of_one_kind_share_steps_and_stay_in_order() {
    let folder = checkpoint();
    let (base, refiner) = (folder.path().join("base"), folder.path().join("refiner"));
    let (mut engine, _) = load(&base, Some(&refiner)).unwrap();
    let words: Vec<_> = (0..STEP + 2).map(|i| vec!["cat"; i + 1].join(" ")).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut all = job(Conditioner::Base, &words);
    all.inputs.extend(job(Conditioner::Refiner, &words[..2]).inputs);
    all.inputs.extend(job(Conditioner::Base, &words[..1]).inputs);
    all.inputs[1].clip_skip = 1;
    let texts = all.inputs.clone();
    let mut run = engine.begin(all).unwrap();
    // One, the one that leaves a layer out, eight of the same kind, two of the refiner's, one.
    let mut steps = vec![];
    let output = loop {
        let work = engine.work(&run);
        steps.push((work.steps, work.evaluations));
        match engine.advance(&mut [&mut run]).remove(0).unwrap() {
            Step::Begun => panic!("it is not ahead"),
            Step::Continue(()) => {}
            Step::Done(output) => break output,
        }
    };
    assert_eq!(steps, [(5, 1.0), (4, 1.0), (3, 8.0), (2, 2.0), (1, 1.0)]);
    assert_eq!(output.len(), texts.len());
    for (text, output) in texts.into_iter().zip(output) {
        let mut run = engine.begin(EncodeJob { inputs: vec![text] }).unwrap();
        let Step::Done(alone) = engine.advance(&mut [&mut run]).remove(0).unwrap() else {
            panic!("not done")
        };
        assert_eq!(bytes(&[output]), bytes(&alone));
    }
}

#[test]
fn checkpoints_in_the_wrong_place_are_told() {
    let folder = checkpoint();
    let (base, refiner) = (folder.path().join("base"), folder.path().join("refiner"));
    let error = load(&refiner, None).unwrap_err().to_string();
    assert!(
        error.ends_with("model_index.json: this is a refiner's checkpoint, and --base takes a base's"),
        "{error}"
    );
    let error = load(&base, Some(&base)).unwrap_err().to_string();
    assert!(error.ends_with("this is a base's checkpoint, and --refiner takes a refiner's"), "{error}");
}
