//! What the services are started with.

use super::*;
use crate::args::{Cli, Command};
use clap::Parser;

fn up(flags: &[&str]) -> UpArgs {
    match Cli::try_parse_from(["sdxl", "up"].iter().chain(flags)).unwrap().command {
        Command::Up(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn texts(spec: &Spec) -> Vec<&str> {
    spec.args.iter().map(|a| a.to_str().unwrap()).collect()
}

fn specs(flags: &[&str], refiner: Option<&str>) -> (Vec<Spec>, Spec) {
    let args = up(flags);
    let programs = Programs::beside_this().unwrap();
    let model = Model { base: "b".into(), refiner: refiner.map(Into::into) };
    let plan = Plan { args: &args, programs: &programs, model, coloured: false };
    let stages = plan.stages();
    let addresses: Vec<_> =
        stages.iter().enumerate().map(|(i, s)| (s.role, format!("http://127.0.0.1:{i}"))).collect();
    let coordinator = plan.coordinator(&addresses);
    (stages, coordinator)
}

#[test]
fn each_stage_has_its_replicas_and_its_model() {
    let (stages, coordinator) = specs(&["--replicas", "base-unet=2", "--threads", "3"], Some("r"));
    let names: Vec<_> = stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["text-encoder[0]", "base-unet[0]", "base-unet[1]", "refiner[0]", "vae[0]"]);
    assert!(texts(&stages[0]).starts_with(&["--base", "b", "--refiner", "r"]));
    assert!(texts(&stages[1]).starts_with(&["--model", "b", "--listen", "127.0.0.1:0"]));
    assert!(texts(&stages[3]).starts_with(&["--model", "r"]));
    for stage in &stages {
        assert!(stage.program.ends_with(stage.role.program()));
        let texts = texts(stage).join(" ");
        for part in ["--stop-on-stdin-close", "--threads 3", "--dtype f32", "--device cpu", "--log info"] {
            assert!(texts.contains(part), "{}: {part} is not in {texts}", stage.name);
        }
    }
    let texts = texts(&coordinator).join(" ");
    assert!(texts.starts_with(
        "--listen 127.0.0.1:50051 --text-encoder 127.0.0.1:0 --base-unet 127.0.0.1:1,127.0.0.1:2 \
         --refiner 127.0.0.1:3 --vae 127.0.0.1:4"
    ));
    assert!(!texts.contains("--dtype"), "the coordinator computes nothing");
}

#[test]
fn without_a_refiner_there_is_no_such_stage() {
    let (stages, coordinator) = specs(&["--drain-timeout", "1.5"], None);
    assert_eq!(stages.len(), 3);
    assert!(!texts(&stages[0]).contains(&"--refiner"));
    assert!(!texts(&coordinator).contains(&"--refiner"));
    assert!(texts(&coordinator).join(" ").contains("--drain-timeout 1.5"));
}

#[test]
fn an_address_that_is_taken_is_named_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let error = format!("{:#}", check_listen(address).unwrap_err());
    assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
    drop(listener);
    check_listen(address).unwrap();
}

#[test]
fn who_may_call_is_handed_on_and_asked_before_anything_is_loaded() {
    let (stages, coordinator) = specs(&["--keys", "k.toml"], None);
    assert!(texts(&coordinator).join(" ").contains("--keys k.toml"));
    assert!(!texts(&stages[0]).contains(&"--keys"));
    let (_, coordinator) = specs(&["--allow-anonymous"], None);
    assert!(texts(&coordinator).contains(&"--allow-anonymous"));
    let check = |flags: &[&str]| {
        let listen = ["sdxl", "up", "--listen", "0.0.0.0:1"];
        let Command::Up(args) = Cli::try_parse_from(listen.iter().chain(flags)).unwrap().command else {
            panic!("not up")
        };
        check_callers(&args)
    };
    let Err(Failure::BadInput(lines)) = check(&[]) else { panic!("let through") };
    assert!(lines[0].contains("--keys") && lines[0].contains("--allow-anonymous"), "{lines:?}");
    assert!(check(&["--keys", "k"]).is_ok() && check(&["--allow-anonymous"]).is_ok());
}
