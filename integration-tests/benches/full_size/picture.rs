//! A whole picture of the shipped model: through a cluster, by its engines alone, and by diffusers.

use crate::{
    bare::Bare,
    checkpoint,
    peer::{self, Peers},
    stage,
    table::{Row, Table, Tables, Target},
};
use integration_tests::{Picture, client::Clients, process};
use sdxl_proto::v1;
use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::Instant,
};

pub(crate) const STEPS: u32 = 30;
pub(crate) const SIDE: u32 = 128;
/// At most so much of diffusers' time.
const OF_DIFFUSERS: f64 = 0.5;
/// At most so much of the bare engines' time.
const OF_BARE: Target = Target::AtMost(1.05);

/// Each picture has a prompt of its own, so that no embeddings are known before.
const COLOURS: [&str; 6] = ["red", "yellow", "green", "blue", "purple", "orange"];
const SHAPES: [&str; 4] = ["circle", "square", "triangle", "star"];

pub(crate) fn run(peers: &Peers) -> Tables {
    let folder = checkpoint::shipped();
    let mut table = Table::new(format!(
        "A whole picture of the shipped model: {STEPS} steps, {SIDE} x {SIDE} pixels, f32."
    ));
    let prompts = prompts();
    let (cluster_s, bare_s, pictures) = ours(&folder, &prompts);
    let (torch_s, apart) = match theirs(&folder, &prompts, peers) {
        Ok((time, theirs)) => (time, Some(difference(&pictures, &theirs))),
        Err(why) => {
            table.note(why);
            (f64::NAN, None)
        }
    };
    let milliseconds = |ours: f64| [ours * 1e3, torch_s * 1e3, f64::NAN];
    table.add(
        Row::new("prompt to PNG through the cluster, ms", milliseconds(cluster_s)).of_pytorch(OF_DIFFUSERS),
    );
    let bare = Row::new("prompt to PNG by the engines in one process, ms", milliseconds(bare_s));
    table.add(bare.held(cluster_s / bare_s, "cluster over engines", OF_BARE));
    if let Some(apart) = apart {
        table.add(Row::plain("greatest difference of a pixel, of 255", [apart, f64::NAN, f64::NAN]));
    }
    table.note(format!("Best of {} pictures on each side; PyTorch is diffusers' pipeline.", prompts.len()));
    vec![Box::new(table)]
}

/// What the shipped model is asked for.
pub(crate) fn prompts() -> Vec<String> {
    let of = |shape| COLOURS.map(|colour| format!("a large {colour} {shape} on a white background"));
    SHAPES.into_iter().flat_map(of).collect()
}

/// Seconds of the best picture through a cluster and by the bare engines, in turn, and the pictures.
fn ours(folder: &Path, prompts: &[String]) -> (f64, f64, Vec<Vec<u8>>) {
    eprintln!("sdxl up and the engines by themselves");
    let bare = Bare::load(folder).expect("the shipped model");
    let cluster = Up::start(folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let clients = runtime.block_on(async { Clients::new(&cluster.address) });
    let through_cluster = |prompt: &str, seed: u64| {
        let request = v1::GenerateRequest {
            prompt: prompt.to_owned(),
            num_inference_steps: STEPS,
            seed: Some(seed),
            ..v1::GenerateRequest::default()
        };
        let answer = runtime.block_on(clients.images().generate(request)).expect("a picture");
        answer.into_inner().images.remove(0).data
    };
    through_cluster("a small black cross on a red background", 0);
    bare.picture("a small black cross on a red background", 0, STEPS, SIDE).expect("a picture");
    let (mut cluster_s, mut bare_s, mut pictures) = (f64::INFINITY, f64::INFINITY, Vec::new());
    for (prompt, seed) in prompts.iter().zip(0..) {
        let began = Instant::now();
        let picture = through_cluster(prompt, seed);
        cluster_s = cluster_s.min(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let same = bare.picture(prompt, seed, STEPS, SIDE).expect("a picture");
        bare_s = bare_s.min(began.elapsed().as_secs_f64());
        assert!(picture == same, "the cluster's picture of {prompt:?} is not the engines'");
        pictures.push(same);
    }
    (cluster_s, bare_s, pictures)
}

fn theirs(folder: &Path, prompts: &[String], peers: &Peers) -> Result<(f64, Vec<Vec<u8>>), String> {
    let pictures = stage::scratch("pictures");
    fs::create_dir_all(&pictures).expect("a folder in target");
    let mut args: Vec<OsString> =
        vec![folder.into(), STEPS.to_string().into(), peers.threads().to_string().into()];
    args.push(pictures.clone().into());
    args.extend(prompts.iter().map(OsString::from));
    let json = peers.run("picture.py", &args)?;
    let files = (0..prompts.len()).map(|i| fs::read(pictures.join(format!("{i}.png"))).expect("a picture"));
    Ok((peer::best(&json), files.collect()))
}

/// Over all pictures.
fn difference(ours: &[Vec<u8>], theirs: &[Vec<u8>]) -> f64 {
    let pairs = ours.iter().zip(theirs);
    let greatest = pairs.map(|(a, b)| Picture::decode(a).difference(&Picture::decode(b)).max).max();
    greatest.map_or(f64::NAN, f64::from)
}

/// A cluster as `sdxl up` starts it. It ends when this value is dropped.
struct Up {
    child: Child,
    address: String,
}

impl Up {
    fn start(folder: &Path) -> Self {
        let args = ["up", "--listen", "127.0.0.1:0", "--stop-on-stdin-close", "--log", "warn", "--base"];
        let mut command = process::command("sdxl", args);
        let mut child = command.arg(folder).stderr(Stdio::null()).spawn().expect("sdxl runs");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let ready =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        Self { address: ready.expect("the cluster gets ready"), child }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // tells it to stop, and its services with it
        let _ = self.child.wait();
    }
}
