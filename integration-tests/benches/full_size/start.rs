//! From a start to ready with full-size weights, beside the time that their file takes to read.

use crate::{
    checkpoint,
    memory::Memory,
    peer::{self, Peers},
    stage::{self, Stage},
    table::{Row, Table, Tables, Target},
};
use memmap2::MmapMut;
use rustix::fs::{Advice, Mode, OFlags, fadvise, open};
use std::{ffi::OsStr, fs::File, io::Read, path::Path, time::Instant};

const OF_READING: Target = Target::AtMost(1.2);
/// Each of them reading the file and a start, one right after the other: what a shared machine's disk and memory do varies threefold.
const TURNS: usize = 5;

/// Seconds of each turn.
#[derive(Debug, Default)]
struct Seconds {
    reading: Vec<f64>,
    past_page_cache: Vec<f64>,
    start: Vec<f64>,
}

pub(crate) fn run(peers: &Peers) -> Tables {
    let folder = checkpoint::full_size();
    let file = folder.join("unet/diffusion_pytorch_model.safetensors");
    let mut table = Table::new("Start of the base UNet, full size, to ready: weights loaded and tried.");
    let mut memory = Memory::default();
    let [mut on_disk, mut in_memory, mut past_page_cache] = [const { Vec::new() }; 3];
    for dtype in peers.dtypes() {
        for cold in [true, false] {
            let seconds = turns(&mut memory, &folder, &file, dtype, cold, &mut table);
            let torch = theirs(&mut memory, &folder, &file, dtype, cold, peers).unwrap_or_else(|why| {
                table.note(why);
                f64::NAN
            });
            let place = if cold { "file not in memory" } else { "file in memory" };
            let row = Row::new(
                format!("start to ready, {dtype}, {place}, s"),
                [median(&seconds.start), torch, f64::NAN],
            );
            let ratios: Vec<f64> =
                seconds.start.iter().zip(&seconds.reading).map(|(start, reading)| start / reading).collect();
            table.add(if cold {
                row.held(median(&ratios), "over reading the file", OF_READING)
            } else {
                row
            });
            let readings = if cold { &mut on_disk } else { &mut in_memory };
            readings.extend(seconds.reading);
            past_page_cache.extend(seconds.past_page_cache);
        }
    }
    table.note(format!(
        "Reading the file of {:.1} GB takes {:.1} s from the disk, {:.1} s where it is in memory and {:.1} s past the page cache. \
         Ready is one step at 8 x 8 latents on PyTorch's side; sdxl has looked at every weight and tried a residual block and a \
         transformer of each kind at that size by then. Medians of {TURNS} turns, each a reading and a start right after it, and \
         of their ratios; PyTorch's of one start. The machine's free memory is touched before each and given back as it is \
         wanted: else whoever is first to touch it waits for the host of a virtual machine, seconds for each GB.",
        file.metadata().expect("the weights").len() as f64 / 1e9,
        median(&on_disk),
        median(&in_memory),
        median(&past_page_cache),
    ));
    vec![Box::new(table)]
}

fn turns(
    memory: &mut Memory,
    folder: &Path,
    file: &Path,
    dtype: &str,
    cold: bool,
    table: &mut Table,
) -> Seconds {
    let mut seconds = Seconds::default();
    let forget_if_cold = || {
        if cold {
            forget(file);
        }
    };
    for _ in 0..TURNS {
        if cold {
            forget(file);
            seconds.past_page_cache.push(memory.around(|| read_direct(file)));
        }
        forget_if_cold();
        let reading = memory.around(|| read(file));
        forget_if_cold();
        match memory.around(|| Stage::start("sdxl-base-unet", folder, dtype)) {
            Ok(stage) => {
                eprintln!("  read in {reading:.2} s, ready in {:.2} s", stage.ready_s);
                seconds.reading.push(reading);
                seconds.start.push(stage.ready_s);
            }
            Err(why) => table.note(why),
        }
    }
    seconds
}

/// Not a number where there is none.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Drops the file from the page cache.
fn forget(file: &Path) {
    let file = File::open(file).expect("the weights");
    file.sync_all().expect("what was written is on the disk");
    fadvise(&file, 0, None, Advice::DontNeed).expect("the page cache takes advice");
}

/// Seconds that the file takes to read.
fn read(path: &Path) -> f64 {
    let mut buffer = vec![0; 8 << 20];
    let began = Instant::now();
    let mut file = File::open(path).expect("the weights");
    while file.read(&mut buffer).expect("the weights") > 0 {}
    began.elapsed().as_secs_f64()
}

/// Seconds that it takes past the page cache; not a number where that is not possible.
fn read_direct(path: &Path) -> f64 {
    let mut pages = MmapMut::map_anon(16 << 20).expect("16 MiB");
    // A device asked for pages that lie apart is asked many times.
    let _ = pages.advise(memmap2::Advice::HugePage);
    pages.fill(1);
    let began = Instant::now();
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let Ok(mut file) = open(path, flags, Mode::empty()).map(File::from) else { return f64::NAN };
    loop {
        match file.read(&mut pages) {
            Ok(0) => return began.elapsed().as_secs_f64(),
            Ok(_) => {}
            Err(_) => return f64::NAN,
        }
    }
}

fn theirs(
    memory: &mut Memory,
    folder: &Path,
    file: &Path,
    dtype: &str,
    cold: bool,
    peers: &Peers,
) -> Result<f64, String> {
    let inputs = stage::scratch("start-inputs.safetensors");
    crate::unet::smallest_inputs(folder, &inputs);
    let threads = peers.threads().to_string();
    let (folder, inputs) = (folder.as_os_str(), inputs.as_os_str());
    let [part, dtype, runs, threads] = ["unet", dtype, "0", threads.as_str()].map(OsStr::new);
    let args = [part, folder, dtype, runs, threads, inputs, OsStr::new("-")];
    if cold {
        forget(file);
    }
    let told = memory.around(|| peers.run("torch_side.py", &args))?;
    Ok(peer::figure(&told, "ready_s"))
}
