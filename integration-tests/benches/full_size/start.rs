//! From a start to ready with full-size weights, beside the time that their file takes to read.

use crate::{
    checkpoint,
    peer::{self, Peers},
    stage::{self, Stage},
    table::{Row, Table, Tables, Target},
};
use rustix::fs::{Advice, fadvise};
use std::{ffi::OsStr, fs::File, io::Read, path::Path, time::Instant};

const OF_READING: Target = Target::AtMost(1.2);
/// Of reading the file and of a start, one after the other: what a shared machine's disk and memory do varies threefold.
const TURNS: usize = 4;

pub(crate) fn run(peers: &Peers) -> Tables {
    let folder = checkpoint::full_size();
    let file = folder.join("unet/diffusion_pytorch_model.safetensors");
    let mut table = Table::new("Start of the base UNet, full size, to ready: weights loaded and steps run.");
    let kinds = peers.dtypes().flat_map(|dtype| [true, false].map(|cold| (dtype, cold)));
    let mut reading = [f64::NAN; 2];
    let mut starts = Vec::new();
    for (dtype, cold) in kinds {
        let mut own = f64::NAN;
        for _ in 0..TURNS {
            let of_the_kind = &mut reading[usize::from(cold)];
            *of_the_kind = of_the_kind.min(read(&file, cold));
            match ours(&folder, &file, dtype, cold) {
                Ok(ready) => own = own.min(ready),
                Err(why) => table.note(why),
            }
        }
        let torch = theirs(&folder, &file, dtype, cold, peers).unwrap_or_else(|why| {
            table.note(why);
            f64::NAN
        });
        starts.push((dtype, cold, [own, torch, f64::NAN]));
    }
    let [in_memory, on_disk] = reading;
    for (dtype, cold, seconds) in starts {
        let place = if cold { "file not in memory" } else { "file in memory" };
        let row = Row::new(format!("start to ready, {dtype}, {place}, s"), seconds);
        table.add(if cold {
            row.held(seconds[0] / on_disk, "over reading the file", OF_READING)
        } else {
            row
        });
    }
    table.note(format!(
        "Reading the file of {:.1} GB takes {on_disk:.1} s from the disk, {in_memory:.1} s where it is in memory. Ready \
         is one step at 8 x 8 latents on both sides; sdxl tries larger ones, too, to find how many pictures share a step. \
         Best of {TURNS} turns, each a reading and a start; PyTorch's of one.",
        file.metadata().expect("the weights").len() as f64 / 1e9
    ));
    vec![Box::new(table)]
}

/// Drops the file from the page cache.
fn forget(file: &Path) {
    let file = File::open(file).expect("the weights");
    file.sync_all().expect("what was written is on the disk");
    fadvise(&file, 0, None, Advice::DontNeed).expect("the page cache takes advice");
}

/// Seconds that the file takes to read.
fn read(file: &Path, cold: bool) -> f64 {
    if cold {
        forget(file);
    }
    let mut buffer = vec![0; 8 << 20];
    let began = Instant::now();
    let mut file = File::open(file).expect("the weights");
    while file.read(&mut buffer).expect("the weights") > 0 {}
    began.elapsed().as_secs_f64()
}

fn ours(folder: &Path, file: &Path, dtype: &str, cold: bool) -> Result<f64, String> {
    if cold {
        forget(file);
    }
    Stage::start("sdxl-base-unet", folder, dtype).map(|stage| stage.ready_s)
}

fn theirs(folder: &Path, file: &Path, dtype: &str, cold: bool, peers: &Peers) -> Result<f64, String> {
    if cold {
        forget(file);
    }
    let inputs = stage::scratch("start-inputs.safetensors");
    crate::unet::smallest_inputs(folder, &inputs);
    let threads = peers.threads().to_string();
    let (folder, inputs) = (folder.as_os_str(), inputs.as_os_str());
    let [part, dtype, runs, threads] = ["unet", dtype, "0", threads.as_str()].map(OsStr::new);
    let args = [part, folder, dtype, runs, threads, inputs, OsStr::new("-")];
    Ok(peer::figure(&peers.run("torch_side.py", &args)?, "ready_s"))
}
