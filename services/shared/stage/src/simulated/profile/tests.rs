use super::*;
use crate::simulated::tests::QUICK;
use std::path::Path;

fn shipped() -> Profile {
    Profile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.toml")).unwrap()
}

fn seconds_of(size: u32, evaluations: u32) -> f64 {
    shipped().base_unet.step(Size::new(size, size), f64::from(evaluations)).as_secs_f64()
}

#[test]
fn the_shipped_profile_gives_the_throughput_that_it_rests_on() {
    let profile = shipped();
    let size = Size::new(1024, 1024);
    let once = profile.vae.picture(size) + 2 * profile.text_encoder.base.per_text;
    // MLPerf's: 20 guided steps, in batches of 32 offline and of 8 as a server.
    for (pictures, published) in [(32, 17.4186 / 8.0), (8, 16.78 / 8.0)] {
        let steps = 20.0 * seconds_of(1024, 2 * pictures) / f64::from(pictures);
        let rate = 1.0 / (steps + once.as_secs_f64());
        assert!((rate / published - 1.0).abs() < 0.02, "{rate} pictures a second, published {published}");
    }
    // And shapes that fit each other: what a coordinator would check.
    let refiner = profile.refiner.as_ref().unwrap();
    assert_eq!((refiner.info.cross_attention_dim, profile.base_unet.info.cross_attention_dim), (1280, 2048));
    assert!(refiner.info.requires_aesthetics_score && !profile.base_unet.info.requires_aesthetics_score);
    let conditioner = profile.text_encoder.conditioner(Conditioner::Refiner).unwrap();
    assert_eq!((conditioner.info.cross_attention_dim, conditioner.info.num_hidden_layers), (1280, 32));
}

#[test]
fn sizes_that_are_not_listed_follow_from_those_that_are() {
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    near(seconds_of(1024, 2), 0.0066 + 2.0 * 0.0082);
    // 5/12 of the way from one area to the other.
    near(seconds_of(768, 2), 0.0066 + 2.0 * (0.0024 + 0.0058 * 5.0 / 12.0));
    near(seconds_of(2048, 4), 0.0066 + 4.0 * 4.0 * 0.0082);
    near(seconds_of(256, 4), 0.0066 + 4.0 * 0.0024 / 4.0);
    // Of the same area as a listed one.
    let wide = shipped().base_unet.step(Size::new(512, 2048), 2.0).as_secs_f64();
    near(wide, seconds_of(1024, 2));
    near(shipped().vae.picture(Size::new(512, 1024)).as_secs_f64(), 0.030 + 0.097 / 3.0);
    let together = |side| shipped().base_unet.max_batch(Size::new(side, side));
    assert_eq!([64, 512, 640, 1024, 2048].map(together), [1024, 16, 10, 4, 1]);
}

#[test]
fn the_revision_is_that_of_the_content() {
    let revision = |text: &str| Profile::parse(text).unwrap().revision;
    assert_eq!(revision(QUICK), revision(QUICK));
    assert_ne!(revision(QUICK), revision(&format!("{QUICK}\n# Another.\n")));
    assert_eq!(revision(QUICK).len(), 16);
}

#[test]
fn what_is_wrong_is_named() {
    let cases = [
        ("name = \"quick\"", "name = \" \"", "name: empty; callers see it as the model's"),
        ("dtype = \"f16\"", "dtype = \"f8\"", "unknown variant `f8`, expected one of `f32`, `f16`, `bf16`"),
        ("latent_channels = 4", "latent_channels = 0", "latent_channels: 0 is not in 1..=64"),
        ("latent_channels = 4", "latent_chanels = 4", "line 4: unknown field `latent_chanels`"),
        ("seconds_per_text = 1e-6", "seconds_per_text = nan", "text_encoder.base.seconds_per_text: NaN"),
        ("warm_up_seconds = 0.001", "warm_up_seconds = inf", "base_unet.warm_up_seconds: inf is not"),
        (
            "overhead_seconds = 1e-6",
            "overhead_seconds = -0.5",
            "base_unet.step[0].overhead_seconds: -0.5 is not a",
        ),
        ("overhead_seconds = 1e-6", "over = 1e-6", "unknown field `over`"),
        ("max_batch = 4", "max_batch = 0", "base_unet.step[0].max_batch: 0 is not in 1..=1024"),
        (
            "height = 64\nwidth = 72",
            "height = 60\nwidth = 72",
            "base_unet.step[0].height: 60 is not a multiple of 8",
        ),
        (
            "height = 128\nwidth = 128",
            "height = 64\nwidth = 72",
            "base_unet.step[1]: 64x72 (height x width) stands",
        ),
        ("training_buckets = []", "training_buckets = [[64]]", "invalid length 1"),
        (
            "training_buckets = []",
            "training_buckets = [[64, 4]]",
            "base_unet.training_buckets[0].width: 4 is",
        ),
        (
            "beta_start = 0.001",
            "betastart = 0.001",
            "base_unet.scheduler.betastart: unknown; known are _class",
        ),
        ("beta_start = 0.001", "beta_start = 2", "base_unet.scheduler: beta_start = 2 is not supported"),
        (
            "\nseconds = 2e-6",
            "\nseconds = 4000",
            "vae.picture[0].seconds: 4000 is not a number of seconds from 0 to",
        ),
        ("[refiner]", "[refine]", "unknown field `refine`"),
    ];
    for (right, wrong, expected) in cases {
        assert!(QUICK.contains(right), "{right}");
        let text = QUICK.replacen(right, wrong, 1);
        let error = format!("{:#}", Profile::parse(&text).unwrap_err());
        assert!(error.contains(expected), "{wrong}: {error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn a_refiner_comes_with_its_conditioner_or_not_at_all() {
    let refiner = QUICK.find("[refiner]").unwrap();
    let vae = QUICK.find("[[vae.picture]]").unwrap();
    let without = format!("{}{}", &QUICK[..refiner], &QUICK[vae..]);
    let error = Profile::parse(&without).unwrap_err().to_string();
    assert_eq!(error, "text_encoder.refiner: there is no [refiner] that it encodes for");
    let error =
        Profile::parse(&without.replace("[text_encoder.refiner]", "[text_encoder.base_2]")).unwrap_err();
    assert!(error.to_string().contains("unknown field `base_2`"), "{error}");
    let base = QUICK.find("[base_unet]").unwrap();
    let conditioner = QUICK.find("[text_encoder.refiner]").unwrap();
    let error =
        Profile::parse(&format!("{}{}", &QUICK[..conditioner], &QUICK[base..])).unwrap_err().to_string();
    assert_eq!(error, "refiner: there is no [text_encoder.refiner] to encode for it");
    let neither = format!("{}{}{}", &QUICK[..conditioner], &QUICK[base..refiner], &QUICK[vae..]);
    let profile = Profile::parse(&neither).unwrap();
    assert!(profile.refiner.is_none() && profile.text_encoder.refiner.is_none());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = format!("{:#}", Profile::open(Path::new("/nowhere/x.toml")).unwrap_err());
    assert!(error.starts_with("/nowhere/x.toml: cannot read the profile: "), "{error}");
}
