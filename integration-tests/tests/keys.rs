//! Keys, as a person uses them, with real processes: `sdxl key` makes one, `sdxl generate` shows it, and no log repeats it.

use integration_tests::{
    Profile,
    process::{self, Server, Starting},
};
use std::{
    fs,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// A simulated cluster that logs all it can.
struct Cluster {
    stages: Vec<Server>,
    coordinator: Server,
}

impl Cluster {
    fn start(profile: &Profile, keys: &Path) -> Self {
        let profile = profile.path().display().to_string();
        let flags = ["--engine", "simulated", "--profile", &profile, "--log", "trace"];
        let stages = ["text-encoder", "base-unet", "vae"];
        let starting: Vec<_> =
            stages.iter().map(|stage| Starting::spawn(&format!("sdxl-{stage}"), flags)).collect();
        let servers: Vec<_> = starting.into_iter().map(Starting::listening).collect();
        let mut flags: Vec<_> = stages
            .iter()
            .zip(&servers)
            .flat_map(|(stage, server)| [format!("--{stage}"), server.address().to_owned()])
            .collect();
        flags.extend(["--log", "trace", "--keys"].map(str::to_owned));
        flags.push(keys.display().to_string());
        let coordinator = Server::start("sdxl-coordinator", &flags);
        let end = Instant::now() + LIMIT;
        while coordinator.healthz()["services"]["sdxl.v1.ModelService"] != "SERVING" {
            assert!(Instant::now() < end, "{}", coordinator.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { stages: servers, coordinator }
    }

    fn generate(&self, folder: &Path, more: &[&str], key: Option<&str>) -> Output {
        let picture = folder.join("fox.png").display().to_string();
        let flags = ["generate", "a red fox", "--steps", "2", "-o", &picture];
        let mut command = process::command("sdxl", flags.iter().chain(more));
        command.args(["--endpoint", self.coordinator.address()]).env("RUST_BACKTRACE", "0");
        command.args(["--width", "64", "--height", "64"]);
        if let Some(key) = key {
            command.env("SDXL_KEY", key);
        }
        process::run(command, LIMIT)
    }
}

#[test]
fn a_key_is_made_and_shown_and_never_logged() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let new = process::run(process::command("sdxl", ["key", "new", "--tenant", "team-7"]), LIMIT);
    let (key, entry) = (String::from_utf8(new.stdout).unwrap(), String::from_utf8(new.stderr).unwrap());
    let key = key.trim_end();
    assert!(
        key.starts_with("sdxl_") && !entry.contains(key) && entry.contains("tenant = \"team-7\""),
        "{entry}"
    );
    fs::write(&keys, entry).unwrap();
    let profile = Profile::quick(0.001);
    let cluster = Cluster::start(&profile, &keys);

    let (file, wrong) = (folder.path().join("key"), "sdxl_a-wrong-key-that-nobody-is-to-see");
    fs::write(&file, format!("{key}\n")).unwrap();
    let with_file = ["--key-file", file.to_str().unwrap()];
    let outputs = [
        (cluster.generate(folder.path(), &[], Some(key)), true),
        (cluster.generate(folder.path(), &with_file, None), true),
        (cluster.generate(folder.path(), &with_file, Some(wrong)), true),
        (cluster.generate(folder.path(), &[], Some(wrong)), false),
        (cluster.generate(folder.path(), &[], None), false),
    ];
    let mut said = String::new();
    for (output, is_served) in &outputs {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), *is_served, "{text}");
        assert_eq!(text.contains("SDXL_KEY"), !is_served, "{text}");
        said += &text;
        said += &String::from_utf8_lossy(&output.stdout);
    }
    let log: String = cluster.stages.iter().chain([&cluster.coordinator]).map(Server::stderr).collect();
    // It is the log of those calls, and of the wire below them.
    assert!(log.contains("Unauthenticated") && log.contains("hpack") && log.contains("h2::"), "{log}");
    for secret in [key, wrong] {
        assert!(!log.contains(secret) && !said.contains(secret), "a key is in a log");
    }
}

#[test]
fn without_keys_only_loopback_is_listened_on() {
    let flags = ["--text-encoder", "t:1", "--base-unet", "b:1", "--vae", "v:1", "--listen", "0.0.0.0:0"];
    let output = process::run(process::command("sdxl-coordinator", flags), LIMIT);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("--keys") && error.contains("--allow-anonymous"), "{error}");
    let server =
        Starting::spawn_at("sdxl-coordinator", flags[..6].iter().chain(&["--allow-anonymous"]), "0.0.0.0:0");
    assert!(server.listening().address().starts_with("http://0.0.0.0:"));
}
