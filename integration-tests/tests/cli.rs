//! `sdxl`, as a person uses it.

use integration_tests::{Clients, Cluster, ClusterConfig, Made, Picture, Profile, Server, process};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sdxl_proto::v1;
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{PermissionsExt, symlink},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// `sdxl up`, ready.
struct Up {
    child: Child,
    address: String,
}

impl Up {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let made = Made::pico();
        let mut command = process::command("sdxl", ["up", "--listen", "127.0.0.1:0"]);
        command.args(flags);
        command.arg("--base").arg(made.base()).arg("--refiner").arg(made.refiner());
        command.args(["--replicas", "base-unet=2"]).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("ready ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { child, address }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// The processes that it has started.
    fn children(&self) -> Vec<Pid> {
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let child_of = |path: std::path::PathBuf| {
            let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
            // PID (NAME) STATE PARENT …
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            (parent == self.child.id().to_string()).then(|| Pid::from_raw(pid))?
        };
        processes.filter_map(child_of).collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sdxl(args: &[&str]) -> Command {
    process::command("sdxl", args)
}

/// Waits until none of `processes` is there any more.
fn all_gone(processes: &[Pid], limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if processes.iter().all(|pid| test_kill_process(*pid).is_err()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn up_and_generate_make_a_picture() {
    let up = Up::start();
    assert_eq!(up.children().len(), 6, "five kinds of service, one of them twice");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fox.png");
    let name = file.to_str().unwrap();
    let small = ["--width", "72", "--height", "64", "--steps", "4", "--seed", "5", "--refiner-split", "0.5"];
    let args = [&["generate", "a red fox", "--endpoint", &up.address, "-o", name], &small[..]].concat();
    let output = process::run(sdxl(&args), LIMIT);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(Picture::open(&file).size(), (64, 72));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(name), "it says where the picture is: {said}");
}

const TWO: [&str; 14] = [
    "generate",
    "a red fox",
    "--num-images",
    "2",
    "--width",
    "72",
    "--height",
    "64",
    "--steps",
    "4",
    "--refiner-split",
    "0.5",
    "--seed",
    "5",
];

#[test]
fn a_timeline_has_a_line_for_each_stage_of_each_picture() {
    let up = Up::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fox.png");
    let flags = ["--trace", "--endpoint", &up.address, "-o", file.to_str().unwrap()];
    let mut command = sdxl(&[&TWO[..], &flags].concat());
    command.env("LC_ALL", "C");
    let output = process::run(command, LIMIT);
    let drawn = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{drawn}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2, "files alone are results");
    assert!(drawn.is_ascii(), "the locale has no more: {drawn}");
    let rows = ["text-encoder", "0 base-unet", "0 refiner", "0 vae", "1 base-unet", "1 refiner", "1 vae"];
    let mut lines = drawn.lines().skip_while(|line| !line.starts_with(rows[0]));
    for row in rows.iter().chain(&["coordinator"]) {
        let line = lines.next().unwrap();
        let figures = line.strip_prefix(row).unwrap_or_else(|| panic!("{row}: {line}"));
        let has_time = figures.contains(" ms") || figures.contains(" s");
        assert!(figures.contains(['#', '-', '~', '=']) && has_time, "it has a bar and a time: {line}");
        let denoises = row.ends_with("base-unet") || row.ends_with("refiner");
        assert_eq!(line.contains("2 x "), denoises, "it has its steps: {line}");
        assert_eq!(line.contains("127.0.0.1:"), *row != "coordinator", "it has its replica: {line}");
    }
    let (_, trace) = drawn.trim_end().rsplit_once("\ntrace ").unwrap();
    assert!(trace.len() == 32 && trace.chars().all(|c| c.is_ascii_hexdigit()), "{trace}");
}

/// The numbers that it is drawn of.
#[test]
fn stages_lie_one_after_another_within_the_whole() {
    let up = Up::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fox.png");
    let flags = ["--json", "--trace", "--endpoint", &up.address, "-o", file.to_str().unwrap()];
    let output = process::run(sdxl(&[&TWO[..], &flags].concat()), LIMIT);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("coordinator"), "nothing is drawn: {said}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {json}"));
    let whole = &json["request_timing"];
    let total = number(&whole["total_time_s"]);
    assert!(total <= number(&json["elapsed_s"]), "{json}");
    let texts = number(&whole["texts_time_offset_s"]);
    assert!(number(&whole["admission_time_s"]) <= texts, "{json}");
    let timings = json["timings"].as_array().unwrap();
    assert_eq!(timings.len(), 7, "{json}");
    let ends = |timing: &serde_json::Value| {
        let start = number(&timing["start_time_offset_s"]);
        assert!(number(&timing["wait_time_s"]) <= start, "{timing}");
        (start, start + number(&timing["total_time_s"]))
    };
    assert!(ends(&timings[0]).1 <= texts + NANOSECOND, "{json}");
    for picture in 0..2 {
        let own: Vec<_> = timings.iter().filter(|timing| timing["image_index"] == picture).collect();
        let stages: Vec<_> = own.iter().map(|timing| timing["stage"].as_str().unwrap()).collect();
        assert_eq!(stages, ["base-unet", "refiner", "vae"]);
        let mut before = texts;
        for timing in own {
            let (start, end) = ends(timing);
            assert!(before <= start + NANOSECOND && end <= total + NANOSECOND, "{timing} in {json}");
            before = end;
        }
    }
}

/// Seconds as numbers in base two are not exact.
const NANOSECOND: f64 = 1e-9;

/// Waits until a denoiser has been at work for a while.
async fn at_work(server: &Server, time: Duration) {
    let mut stage = Clients::new(server.address()).stage();
    let end = Instant::now() + LIMIT;
    while stage.get_load(v1::GetLoadRequest {}).await.unwrap().into_inner().active == 0 {
        assert!(Instant::now() < end, "it has nothing to do");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(time).await;
}

#[tokio::test]
async fn a_timeline_has_what_a_replica_did_before_it_died() {
    let profile = Profile::quick(0.2);
    // Without checkpoints steps are done again whenever it dies.
    let coordinator_flags = ["--checkpoint-interval", "0"].map(str::to_owned).to_vec();
    let config = ClusterConfig {
        base_unets: 2,
        patience: 30,
        coordinator_flags,
        ..ClusterConfig::simulated(profile.path())
    };
    let cluster = Cluster::start(&config);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fox.png");
    let picture = ["--num-images", "3", "--steps", "20", "--refiner-split", "0.8"];
    let flags = ["--trace", "--endpoint", cluster.coordinator.address(), "-o", file.to_str().unwrap()];
    let mut command = sdxl(&[&["generate", "a red fox"], &picture[..], &flags].concat());
    command.env("LC_ALL", "C.UTF-8").stdout(Stdio::null()).stderr(Stdio::piped());
    let generate = command.spawn().unwrap();
    let victim = &cluster.base_unets[0];
    at_work(victim, Duration::from_millis(800)).await;
    victim.kill();
    let output = generate.wait_with_output().unwrap();
    let drawn = String::from_utf8(output.stderr).unwrap();
    println!("{drawn}");
    assert!(output.status.success(), "{drawn}\n{}", cluster.stderr());
    let lines: Vec<_> = drawn.lines().collect();
    let lost: Vec<_> = (0..lines.len()).filter(|i| lines[*i].contains(", died")).collect();
    assert!(!lost.is_empty(), "{drawn}");
    let address = |server: &Server| server.address().trim_start_matches("http://").to_owned();
    for index in lost {
        let (lost, went_on) = (lines[index], lines[index + 1]);
        assert!(lost.ends_with(&address(victim)) && lost.contains('█'), "{drawn}");
        assert!(went_on.ends_with(&address(&cluster.base_unets[1])), "{drawn}");
        assert_eq!(lost[..11], went_on[..11], "of the same picture: {drawn}");
    }
    assert!(drawn.contains("of them again"), "{drawn}");
}

#[test]
fn a_cluster_with_keys_gets_ready_and_serves_who_shows_one() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, key) = (folder.path().join("keys.toml"), folder.path().join("key"));
    let new = process::run(sdxl(&["key", "new", "--tenant", "team-7"]), LIMIT);
    fs::write(&key, new.stdout).unwrap();
    fs::write(&keys, new.stderr).unwrap();
    let up = Up::start_with(&["--keys", keys.to_str().unwrap()]);
    let (file, key) = (folder.path().join("fox.png"), ["--key-file", key.to_str().unwrap()]);
    let picture = ["generate", "a red fox", "--steps", "2", "--width", "64", "--height", "64", "-o"];
    let picture = [&picture[..], &[file.to_str().unwrap()]].concat();
    let bench = ["bench", "--requests", "1", "--concurrency", "1", "--steps", "1", "--sizes", "64x64"];
    for command in [&["model"], &picture[..], &bench] {
        let command = [command, &["--endpoint", &up.address]].concat();
        let refused = process::run(sdxl(&command), LIMIT);
        let complaint = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && complaint.contains("--key-file"), "{command:?}: {complaint}");
        let served = process::run(sdxl(&[&command[..], &key].concat()), LIMIT);
        assert!(served.status.success(), "{command:?}: {}", String::from_utf8_lossy(&served.stderr));
    }
    assert_eq!(Picture::open(&file).size(), (64, 64));
}

/// A folder of the binaries in which the base UNet, whatever it is told, serves another model.
fn binaries_that_contradict_each_other() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(process::target_dir()).unwrap();
    fs::hard_link(process::binary("sdxl"), folder.path().join("sdxl")).unwrap();
    for stage in ["sdxl-text-encoder", "sdxl-vae", "sdxl-coordinator"] {
        symlink(process::binary(stage), folder.path().join(stage)).unwrap();
    }
    let (real, other) = (process::binary("sdxl-base-unet"), Made::of("nano", 0).base());
    let script = format!("#!/bin/sh\nshift 2\nexec {} --model {} \"$@\"\n", real.display(), other.display());
    let path = folder.path().join("sdxl-base-unet");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Whether keys are asked for or not: `up` itself has none.
#[test]
fn stages_that_do_not_fit_are_told_instead_of_waited_for() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    let new = process::run(sdxl(&["key", "new", "--tenant", "team-7"]), LIMIT);
    fs::write(keys.path(), new.stderr).unwrap();
    let (folder, base) = (binaries_that_contradict_each_other(), Made::pico().base());
    let program = folder.path().join("sdxl");
    let up = ["up", "--listen", "127.0.0.1:0", "--base", base.to_str().unwrap()];
    for flags in [&[][..], &["--keys", keys.path().to_str().unwrap()]] {
        let command = process::command(program.to_str().unwrap(), up.iter().chain(flags));
        let output = process::run(command, LIMIT);
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(last.starts_with("error: the stages contradict each other: "), "{said}");
    }
}

#[test]
fn ctrl_c_stops_every_service() {
    let mut up = Up::start();
    let children = up.children();
    kill_process(up.pid(), Signal::INT).unwrap();
    let status = process::wait(&mut up.child, Duration::from_secs(15)).expect("sdxl up ends");
    assert!(all_gone(&children, Duration::from_secs(1)), "after its end ({status}) no child is left");
}

#[test]
fn when_up_is_killed_no_service_is_left() {
    let mut up = Up::start();
    let children = up.children();
    assert_eq!(children.len(), 6);
    up.child.kill().unwrap();
    up.child.wait().unwrap();
    assert!(all_gone(&children, Duration::from_secs(10)));
}

#[test]
fn wrong_flags_are_named() {
    for (args, flag) in [
        (&["generate", "a fox", "--width", "wide"][..], "--width"),
        (&["generate", "a fox", "--scheduler", "magic"], "--scheduler"),
        (&["up", "--replicas", "unet=2"], "--replicas"),
        (&["up", "--base", "/nowhere"], "--base"),
    ] {
        let output = process::run(sdxl(args), LIMIT);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {complaint}");
        assert!(complaint.contains(flag), "{args:?}: {complaint}");
    }
}

/// What the cluster refuses is bad input too, and is told in the words of the command line.
#[test]
fn values_that_the_cluster_refuses_are_named() {
    let up = Up::start();
    let output =
        process::run(sdxl(&["generate", "a fox", "--width", "100", "--endpoint", &up.address]), LIMIT);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("--width") && complaint.contains("100"), "{complaint}");
}
