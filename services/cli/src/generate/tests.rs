//! Each flag sets its field, and each field has its flag.

use super::{GenerateArgs, flag_of};
use crate::args::{Cli, Command};
use clap::{CommandFactory, Parser};
use prost::Message;
use sdxl_core::ImageFormat;
use sdxl_proto::v1::{self, GenerateRequest, refiner::Mode};

fn parse(flags: &[&str]) -> Result<Box<GenerateArgs>, clap::Error> {
    match Cli::try_parse_from(["sdxl", "generate"].iter().chain(flags))?.command {
        Command::Generate(args) => Ok(args),
        other => panic!("{other:?}"),
    }
}

fn request(flags: &[&str]) -> GenerateRequest {
    let args = parse(&[&["a prompt"], flags].concat()).unwrap();
    args.request(args.output.image_format.unwrap_or(ImageFormat::Png))
}

fn scheduler(r: &mut GenerateRequest) -> &mut v1::Scheduler {
    r.scheduler.get_or_insert_default()
}

fn refiner(r: &mut GenerateRequest, mode: Mode) -> &mut v1::Refiner {
    r.refiner.insert(v1::Refiner { mode: Some(mode), ..Default::default() })
}

const SIZE: v1::Size = v1::Size { height: 768, width: 1344 };
const CROP: v1::CropCoords = v1::CropCoords { top: 3, left: 4 };
const SPLIT: Mode = Mode::DenoisingSplit(0.75);

type Case = (&'static str, &'static [&'static str], fn(&mut GenerateRequest));

/// A field, flags that set it, and what they set it to.
const CASES: &[Case] = &[
    ("prompt_2", &["--prompt-2", "x"], |r| r.prompt_2 = Some("x".into())),
    ("negative_prompt", &["--negative-prompt", "x"], |r| r.negative_prompt = Some("x".into())),
    ("negative_prompt", &["--negative-prompt", ""], |r| r.negative_prompt = Some(String::new())),
    ("negative_prompt", &["--negative-prompt", "-x"], |r| r.negative_prompt = Some("-x".into())),
    ("negative_prompt_2", &["--negative-prompt-2", "x"], |r| r.negative_prompt_2 = Some("x".into())),
    ("width", &["--width", "1344"], |r| r.width = 1344),
    ("height", &["--height", "768"], |r| r.height = 768),
    ("num_inference_steps", &["--num-inference-steps", "7"], |r| r.num_inference_steps = 7),
    ("num_inference_steps", &["--steps", "7"], |r| r.num_inference_steps = 7),
    ("num_images", &["--num-images", "3"], |r| r.num_images = 3),
    ("guidance_scale", &["--guidance-scale", "0"], |r| r.guidance_scale = Some(0.0)),
    ("guidance_scale", &["--guidance-scale", "-1.5"], |r| r.guidance_scale = Some(-1.5)),
    ("guidance_rescale", &["--guidance-rescale", "0.7"], |r| r.guidance_rescale = Some(0.7)),
    ("seed", &["--seed", "0"], |r| r.seed = Some(0)),
    ("seed", &["--seed", "18446744073709551615"], |r| r.seed = Some(u64::MAX)),
    ("clip_skip", &["--clip-skip", "2"], |r| r.clip_skip = 2),
    ("scheduler.kind", &["--scheduler", "euler"], |r| scheduler(r).kind = 1),
    ("scheduler.kind", &["--scheduler", "ddim"], |r| scheduler(r).kind = 2),
    ("scheduler.timestep_spacing", &["--timestep-spacing", "leading"], |r| {
        scheduler(r).timestep_spacing = Some(1);
    }),
    ("scheduler.timestep_spacing", &["--timestep-spacing", "linspace"], |r| {
        scheduler(r).timestep_spacing = Some(2);
    }),
    ("scheduler.timestep_spacing", &["--timestep-spacing", "trailing"], |r| {
        scheduler(r).timestep_spacing = Some(3);
    }),
    ("scheduler.use_karras_sigmas", &["--use-karras-sigmas"], |r| {
        scheduler(r).use_karras_sigmas = Some(true);
    }),
    ("scheduler.use_karras_sigmas", &["--use-karras-sigmas=false"], |r| {
        scheduler(r).use_karras_sigmas = Some(false);
    }),
    ("original_size", &["--original-size", "768x1344"], |r| r.original_size = Some(SIZE)),
    ("target_size", &["--target-size", "768x1344"], |r| r.target_size = Some(SIZE)),
    ("negative_original_size", &["--negative-original-size", "768x1344"], |r| {
        r.negative_original_size = Some(SIZE);
    }),
    ("negative_target_size", &["--negative-target-size", "768x1344"], |r| {
        r.negative_target_size = Some(SIZE);
    }),
    ("crops_coords_top_left", &["--crops-coords-top-left", "3,4"], |r| {
        r.crops_coords_top_left = Some(CROP);
    }),
    ("negative_crops_coords_top_left", &["--negative-crops-coords-top-left", "3,4"], |r| {
        r.negative_crops_coords_top_left = Some(CROP);
    }),
    ("refiner.denoising_split", &["--refiner-split", "0.75"], |r| {
        refiner(r, SPLIT);
    }),
    ("refiner.strength", &["--refiner-strength", "0.25"], |r| {
        refiner(r, Mode::Strength(0.25));
    }),
    ("refiner.num_inference_steps", &["--refiner-split", "0.75", "--refiner-steps", "9"], |r| {
        refiner(r, SPLIT).num_inference_steps = 9;
    }),
    ("refiner.aesthetic_score", &["--refiner-split", "0.75", "--aesthetic-score", "7.5"], |r| {
        refiner(r, SPLIT).aesthetic_score = Some(7.5);
    }),
    (
        "refiner.negative_aesthetic_score",
        &["--refiner-split", "0.75", "--negative-aesthetic-score", "1"],
        |r| {
            refiner(r, SPLIT).negative_aesthetic_score = Some(1.0);
        },
    ),
    ("image_format", &["--image-format", "png"], |r| r.image_format = 1),
    ("image_format", &["--image-format", "jpeg"], |r| r.image_format = 2),
    ("image_format", &["--image-format", "webp"], |r| r.image_format = 3),
    ("quality", &["--quality", "80"], |r| r.quality = 80),
    ("guidance_interval.start", &["--guidance-start", "0.25"], |r| {
        r.guidance_interval = Some(v1::GuidanceInterval { start: Some(0.25), stop: None });
    }),
    ("guidance_interval.stop", &["--guidance-stop", "0.75"], |r| {
        r.guidance_interval = Some(v1::GuidanceInterval { start: None, stop: Some(0.75) });
    }),
    ("deep_cache.cache_interval", &["--cache-interval", "3"], |r| {
        r.deep_cache = Some(v1::DeepCache { cache_interval: 3, cache_branch_id: 0 });
    }),
    ("deep_cache.cache_branch_id", &["--cache-interval", "5", "--cache-branch-id", "2"], |r| {
        r.deep_cache = Some(v1::DeepCache { cache_interval: 5, cache_branch_id: 2 });
    }),
    ("request_id", &["--request-id", "one"], |r| r.request_id = Some("one".into())),
    ("priority", &["--priority", "interactive"], |r| r.priority = 1),
    ("priority", &["--priority", "batch"], |r| r.priority = 2),
];

#[test]
fn each_flag_sets_its_field_and_no_other() {
    for (field, flags, set) in CASES {
        let mut expected = GenerateRequest {
            prompt: "a prompt".into(),
            image_format: v1::ImageFormat::Png.into(),
            ..Default::default()
        };
        set(&mut expected);
        assert_eq!(request(flags), expected, "{field}: {flags:?}");
    }
}

/// The paths of all fields of `sdxl.v1.GenerateRequest`, with those of its own messages.
fn fields() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(sdxl_proto::FILE_DESCRIPTOR_SET).unwrap();
    let messages: Vec<_> = set.file.iter().flat_map(|f| &f.message_type).collect();
    let of = |name: &str| &messages.iter().find(|m| m.name() == name).unwrap().field;
    let mut paths = Vec::new();
    for field in of("GenerateRequest") {
        match field.type_name() {
            ".sdxl.v1.Scheduler"
            | ".sdxl.v1.Refiner"
            | ".sdxl.v1.GuidanceInterval"
            | ".sdxl.v1.DeepCache" => {
                let message = field.type_name().rsplit('.').next().unwrap();
                paths.extend(of(message).iter().map(|f| format!("{}.{}", field.name(), f.name())));
            }
            _ => paths.push(field.name().to_owned()),
        }
    }
    paths
}

#[test]
fn every_field_has_a_flag_that_exists_and_sets_it() {
    let cli = Cli::command();
    let generate = cli.find_subcommand("generate").unwrap();
    let fields = fields();
    assert!(fields.len() >= 31, "{fields:?}");
    for field in fields.iter().filter(|f| *f != "prompt") {
        let flag = flag_of(field);
        let exists = generate.get_arguments().any(|a| a.get_long().is_some_and(|l| format!("--{l}") == flag));
        assert!(exists, "{field} has {flag}, which is no flag");
        let sets = CASES.iter().any(|(f, flags, _)| f == field && flags.contains(&flag.as_str()));
        let sets = sets || CASES.iter().any(|(f, flags, _)| f == field && flags[0].starts_with(&flag));
        assert!(sets, "no case shows that {flag} sets {field}");
    }
    assert_eq!(flag_of("prompt"), "PROMPT");
    assert_eq!(flag_of("original_size.height"), "--original-size");
    assert_eq!(flag_of("crops_coords_top_left.left"), "--crops-coords-top-left");
    assert_eq!(flag_of("sdxl-tenant"), "--tenant");
    assert_eq!(flag_of("refiner"), "--refiner-split, --refiner-strength");
}

#[test]
fn a_prompt_may_be_named() {
    let args = parse(&["--prompt", "-a prompt"]).unwrap();
    assert_eq!(args.request(ImageFormat::Png).prompt, "-a prompt");
    let error = parse(&["one", "--prompt", "another"]).unwrap_err().to_string();
    assert!(error.contains("--prompt <TEXT>"), "{error}");
    let error = parse(&["--promt", "x"]).unwrap_err().to_string();
    assert!(error.contains("'--prompt'"), "{error}");
}

#[test]
fn wrong_command_lines_are_refused_with_the_flags_name() {
    let cases: [(&[&str], &str); 11] = [
        (&[], "PROMPT"),
        (&["p", "--original-size", "768"], "--original-size"),
        (&["p", "--crops-coords-top-left", "1x2"], "--crops-coords-top-left"),
        (&["p", "--scheduler", "unipc"], "euler, ddim"),
        (&["p", "--width", "ten"], "--width"),
        (&["p", "--seed", "-1"], "-1"),
        (&["p", "--refiner-split", "0.8", "--refiner-strength", "0.2"], "--refiner-strength"),
        (&["p", "--refiner-steps", "9"], "--refiner-split"),
        (&["p", "--timeout", "soon"], "--timeout"),
        (&["p", "--priority", "urgent"], "interactive, batch"),
        (&["p", "--tenant", "a b"], "--tenant"),
    ];
    for (flags, named) in cases {
        let error = parse(flags).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(named), "{flags:?}: {error}");
    }
    assert!(parse(&["--list-sizes"]).is_ok(), "listing sizes needs no prompt");
}
