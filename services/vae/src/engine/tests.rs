use super::*;
use sdxl_checkpoint::{RandomCheckpoint, Variant};
use sdxl_stage::conformance::{self, Samples};

fn engine() -> VaeEngine {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(Variant::Pico, 3).write(folder.path(), &mut |_| {}).unwrap();
    VaeEngine::load(&folder.path().join("base"), DType::F32, &Device::Cpu).unwrap().0
}

fn job(shape: &[usize], image_format: ImageFormat) -> DecodeJob {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
    let latents = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    DecodeJob { latents, image_format, quality: 90 }
}

#[test]
fn the_engine_conforms() {
    let samples = Samples {
        request: &|| job(&[4, 6, 9], ImageFormat::Png),
        other: &|| job(&[4, 6, 9], ImageFormat::WebP),
        wrong: &[
            ("latents.shape", &|| job(&[3, 6, 9], ImageFormat::Png)),
            ("latents.shape", &|| job(&[4, 6], ImageFormat::Png)),
            ("latents.shape", &|| job(&[4, 1, 257], ImageFormat::Png)),
            ("latents.shape", &|| job(&[4, 0, 8], ImageFormat::Png)),
        ],
    };
    conformance::check(&mut engine(), &samples, |picture| picture.data.to_vec()).unwrap();
}

#[test]
fn the_picture_has_the_latents_sides() {
    let mut engine = engine();
    let mut run = engine.begin(job(&[4, 8, 12], ImageFormat::Jpeg)).unwrap();
    let Step::Done(picture) = engine.advance(&mut [&mut run]).remove(0).unwrap() else { panic!("not done") };
    assert_eq!((picture.height, picture.width, picture.media_type), (64, 96, "image/jpeg"));
}

#[test]
fn nan_is_an_error_and_not_a_black_picture() {
    let mut engine = engine();
    let mut job = job(&[4, 8, 8], ImageFormat::Png);
    job.latents = (job.latents * f64::NAN).unwrap();
    let mut run = engine.begin(job).unwrap();
    assert_eq!(engine.advance(&mut [&mut run]).remove(0).unwrap_err().to_string(), "latents is not finite");
}
