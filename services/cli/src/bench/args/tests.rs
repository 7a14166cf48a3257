use super::*;
use crate::args::{Cli, Command};
use clap::Parser;

fn parse(flags: &[&str]) -> Result<BenchArgs, clap::Error> {
    match Cli::try_parse_from(["sdxl", "bench"].iter().chain(flags))?.command {
        Command::Bench(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_load_has_one_pace_and_at_least_one_end() {
    for right in [
        &["--rate", "2", "--requests", "5"][..],
        &["--concurrency", "2", "--duration", "5"],
        &["--rate", "0.5", "--duration", "5", "--requests", "5", "--warm-up", "1.5"],
        &["--rate", "0.5", "--duration", "5", "--warm-up-requests", "3"],
    ] {
        assert!(parse(right).is_ok(), "{right:?}");
    }
    let cases: [(&[&str], &str); 5] = [
        (&[], "--rate"),
        (&["--duration", "5"], "--concurrency"),
        (&["--rate", "2"], "--duration"),
        (&["--rate", "2", "--concurrency", "2", "--requests", "5"], "--concurrency"),
        (
            &["--rate", "2", "--requests", "5", "--warm-up", "1", "--warm-up-requests", "1"],
            "--warm-up-requests",
        ),
    ];
    for (wrong, named) in cases {
        let error = parse(wrong).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(named), "{wrong:?}: {error}");
    }
}

#[test]
fn wrong_values_name_the_flag_and_what_is_allowed() {
    let cases = [
        ("--rate", "0", "from 0.001 to 100000"),
        ("--rate", "NaN", "from 0.001 to 100000"),
        ("--concurrency", "0", "1..=100000"),
        ("--duration", "0", "above 0"),
        ("--requests", "0", "1.."),
        ("--max-in-flight", "0", "1..=1000000"),
        ("--connections", "0", "1..=1000"),
        ("--timeout", "never", "seconds"),
        ("--sizes", "512", "HEIGHTxWIDTH"),
        ("--sizes", "512x512=2,500x512", "500x512: sides are multiples of 8 from 64 to 2048"),
        ("--sizes", "512x512=0", "above 0"),
        ("--num-inference-steps", "0..5", "1..1000"),
        ("--num-images", "17", "1..16"),
        ("--refiner-share", "1.5", "0 to 1"),
        ("--refiner-split", "1", "between 0 and 1"),
        ("--tenants", "a b=1", "printable ASCII"),
        ("--batch-share", "-1", "0 to 1"),
        ("--deadline", "soon", "20..60"),
        ("--repeat-prompts", "80", "0 to 1"),
        ("--prompt-pool", "0", "1..=1000000"),
    ];
    for (flag, value, allowed) in cases {
        let load = ["--rate", "1", "--requests", "1"];
        let load = if ["--rate", "--concurrency", "--requests"].contains(&flag) { &[][..] } else { &load };
        let error = parse(&[load, &[flag, value]].concat()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        let line = text.lines().next().unwrap();
        assert!(line.contains(flag) && line.contains(allowed), "{flag} {value}: {text}");
    }
}

#[test]
fn work_is_read_as_it_is_written() {
    let args = parse(&[
        "--rate",
        "2",
        "--duration",
        "5",
        "--sizes",
        "512x768=2,1024x1024",
        "--steps",
        "20..50",
        "--tenants",
        "a=99,b=1",
        "--deadline",
        "2x..4x",
    ])
    .unwrap()
    .work;
    assert_eq!(args.sizes.unwrap().at(0.0).0, &Size::new(512, 768));
    assert_eq!(args.num_inference_steps.unwrap().at(0.0).0, &Span { first: 20, last: 50 });
    assert_eq!(args.tenants.unwrap().at(0.995).0.name(), "b");
    assert_eq!(args.deadline.unwrap().at(0.0).0, &Limit::Times(2.0, 4.0));
    assert_eq!(args.num_images, Choice::only(Span { first: 1, last: 1 }));
}
