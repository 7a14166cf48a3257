use super::*;
use crate::{
    conformance::{self, Samples},
    engine::{Engine, Step},
    jobs::{DecodeJob, EncodeJob, EncodedPicture, TextEmbedding, TextJob},
};
use candle_core::{DType, Device, Tensor};
use sdxl_core::{Conditioner, ImageFormat};

mod denoiser;

/// Of microseconds and small sizes.
pub(super) const QUICK: &str = r#"
name = "quick"
dtype = "f16"
latent_channels = 4

[text_encoder.base]
num_hidden_layers = 3
force_zeros_for_empty_prompt = true
seconds_per_text = 1e-6

[text_encoder.refiner]
num_hidden_layers = 2
force_zeros_for_empty_prompt = false
seconds_per_text = 1e-6

[base_unet]
warm_up_seconds = 0.001
sample_size = 8
cross_attention_dim = 6
pooled_projection_dim = 3
training_buckets = []
cache_branch_costs = [0.25, 0.5]

[base_unet.scheduler]
_class_name = "EulerDiscreteScheduler"
beta_start = 0.001

[[base_unet.step]]
height = 64
width = 72
overhead_seconds = 1e-6
per_evaluation_seconds = 1e-6
max_batch = 4

[[base_unet.step]]
height = 128
width = 128
overhead_seconds = 1e-6
per_evaluation_seconds = 2e-6
max_batch = 2

[refiner]
sample_size = 8
cross_attention_dim = 4
pooled_projection_dim = 3

[refiner.scheduler]

[[refiner.step]]
height = 64
width = 64
overhead_seconds = 0
per_evaluation_seconds = 0
max_batch = 4

[[vae.picture]]
height = 64
width = 64
seconds = 2e-6
"#;

fn quick() -> Profile {
    Profile::parse(QUICK).unwrap()
}

fn tensor(value: f32, shape: &[usize]) -> Tensor {
    Tensor::full(value, shape, &Device::Cpu).unwrap()
}

fn bytes(latents: &Tensor) -> Vec<u8> {
    latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn stages_say_that_they_are_simulated() {
    let profile = quick();
    let infos = [
        SimulatedTextEncoder::new(&profile).1,
        SimulatedDenoiser::new(StageKind::BaseUnet, &profile, &[]).unwrap().1,
        SimulatedDenoiser::new(StageKind::Refiner, &profile, &[]).unwrap().1,
        SimulatedVae::new(&profile).1,
    ];
    for (info, kind) in infos.iter().zip(StageKind::ALL) {
        assert_eq!((info.kind, info.model.as_str(), info.device.as_str()), (kind, "quick", "simulated"));
        assert_eq!((&info.revision, info.dtype), (&profile.revision, DType::F16));
    }
}

fn texts(conditioner: Conditioner, prompts: &[(&str, &str)]) -> EncodeJob {
    let text = |(prompt, prompt_2): &(&str, &str)| TextJob {
        conditioner,
        prompt: (*prompt).to_owned(),
        prompt_2: (*prompt_2).to_owned(),
        clip_skip: 0,
    };
    EncodeJob { inputs: prompts.iter().map(text).collect() }
}

fn embedding_bytes(output: &[TextEmbedding]) -> Vec<u8> {
    let values = |t: &Tensor| bytes(&t.to_dtype(DType::F32).unwrap());
    output.iter().flat_map(|e| [values(&e.prompt_embeds), values(&e.pooled_prompt_embeds)].concat()).collect()
}

fn encode(engine: &mut SimulatedTextEncoder, job: EncodeJob) -> Vec<TextEmbedding> {
    let mut run = engine.begin(job).unwrap();
    loop {
        if let Step::Done(output) = engine.advance(&mut [&mut run]).remove(0).unwrap() {
            return output;
        }
    }
}

#[test]
fn the_text_encoder_conforms() {
    let mut engine = SimulatedTextEncoder::new(&quick()).0;
    let too_deep = || {
        let mut job = texts(Conditioner::Base, &[("a", ""), ("b", "")]);
        job.inputs[1].clip_skip = 3;
        job
    };
    let samples = Samples {
        request: &|| texts(Conditioner::Base, &[("a cat", ""), ("a dog", ""), ("", "")]),
        other: &|| texts(Conditioner::Base, &[("a bird", "")]),
        wrong: &[("inputs", &|| texts(Conditioner::Base, &[])), ("inputs[1].clip_skip", &too_deep)],
    };
    conformance::check(&mut engine, &samples, |output| embedding_bytes(output)).unwrap();
}

#[test]
fn embeddings_are_those_of_their_conditioner_and_texts() {
    let mut engine = SimulatedTextEncoder::new(&quick()).0;
    for (which, width) in [(Conditioner::Base, 6), (Conditioner::Refiner, 4)] {
        let output = encode(&mut engine, texts(which, &[("a cat", "")]));
        let [TextEmbedding { prompt_embeds, pooled_prompt_embeds, .. }] = &output[..] else { panic!("one") };
        assert_eq!((prompt_embeds.dims(), prompt_embeds.dtype()), (&[77, width][..], DType::F16));
        assert_eq!((pooled_prompt_embeds.dims(), pooled_prompt_embeds.dtype()), (&[3][..], DType::F16));
    }
    let mut one = |which, texts_of| embedding_bytes(&encode(&mut engine, texts(which, &[texts_of])));
    let (base, refiner) = (Conditioner::Base, Conditioner::Refiner);
    assert_eq!(one(base, ("a", "")), one(base, ("a", "a")), "an empty second prompt is the first");
    assert_ne!(one(base, ("a", "")), one(base, ("a", "b")));
    assert_eq!(one(refiner, ("a", "")), one(refiner, ("a", "b")), "a refiner reads one prompt");
}

fn decode_job(value: f32, image_format: ImageFormat) -> DecodeJob {
    DecodeJob { latents: tensor(value, &[4, 6, 9]), image_format, quality: 90 }
}

fn decode(job: DecodeJob) -> EncodedPicture {
    let mut engine = SimulatedVae::new(&quick()).0;
    let mut run = engine.begin(job).unwrap();
    let Step::Done(picture) = engine.advance(&mut [&mut run]).remove(0).unwrap() else { panic!("not done") };
    picture
}

#[test]
fn the_vae_conforms() {
    let of_shape =
        |shape: &[usize]| DecodeJob { latents: tensor(0.0, shape), ..decode_job(0.0, ImageFormat::Png) };
    let samples = Samples {
        request: &|| decode_job(0.25, ImageFormat::Png),
        other: &|| decode_job(0.5, ImageFormat::Png),
        wrong: &[
            ("image_format", &|| decode_job(0.25, ImageFormat::Jpeg)),
            ("image_format", &|| decode_job(0.25, ImageFormat::WebP)),
            ("latents.shape", &|| of_shape(&[3, 6, 9])),
            ("latents.shape", &|| of_shape(&[4, 6])),
            ("latents.shape", &|| of_shape(&[4, 1, 257])),
            ("latents.shape", &|| of_shape(&[4, 0, 8])),
        ],
    };
    conformance::check(&mut SimulatedVae::new(&quick()).0, &samples, |picture| picture.data.to_vec())
        .unwrap();
}

#[test]
fn the_picture_is_a_png_of_the_latents_sides() {
    let picture = decode(decode_job(0.25, ImageFormat::Png));
    assert_eq!((picture.height, picture.width, picture.media_type), (48, 72, "image/png"));
    let mut decoder = png::Decoder::new(std::io::Cursor::new(&picture.data[..]));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((frame.width, frame.height, frame.color_type), (72, 48, png::ColorType::Rgb));
    assert!(pixels.chunks(3).all(|pixel| pixel == &pixels[..3]), "one colour");
    let text = &reader.info().uncompressed_latin1_text[0];
    assert_eq!((text.keyword.as_str(), text.text.len()), ("latents", 16));

    let mut engine = SimulatedVae::new(&quick()).0;
    let error = engine.begin(decode_job(0.25, ImageFormat::Jpeg)).unwrap_err().to_string();
    assert_eq!(error, "image_format: image/jpeg is not image/png; the simulated vae only writes PNG");
    let mut run = engine.begin(decode_job(f32::NAN, ImageFormat::Png)).unwrap();
    let error = engine.advance(&mut [&mut run]).remove(0).unwrap_err().to_string();
    assert_eq!(error, "latents is not finite");
}
