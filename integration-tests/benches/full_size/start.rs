//! From a start to ready with full-size weights, beside the time that their file takes to read.

use crate::{
    checkpoint,
    peer::{self, Peers},
    stage::{self, Stage},
    table::{Row, Table, Tables, Target},
};
use rustix::fs::{Advice, Mode, OFlags, fadvise, open};
use std::{
    ffi::OsStr,
    fs::{self, File},
    hint::black_box,
    io::Read,
    path::Path,
    time::Instant,
};

const OF_READING: Target = Target::AtMost(1.2);
/// Of reading the file and of a start, one after the other: what a shared machine's disk and memory do varies threefold.
const TURNS: usize = 4;
/// What is read past the page cache begins with it, in the file and in memory.
const BLOCK: usize = 4096;

pub(crate) fn run(peers: &Peers) -> Tables {
    let folder = checkpoint::full_size();
    let file = folder.join("unet/diffusion_pytorch_model.safetensors");
    let mut table = Table::new("Start of the base UNet, full size, to ready: weights loaded and tried.");
    let kinds = peers.dtypes().flat_map(|dtype| [true, false].map(|cold| (dtype, cold)));
    let mut reading = [f64::NAN; 2];
    let mut past_page_cache = f64::NAN;
    let mut starts = Vec::new();
    for (dtype, cold) in kinds {
        let mut own = f64::NAN;
        for _ in 0..TURNS {
            let of_the_kind = &mut reading[usize::from(cold)];
            *of_the_kind = of_the_kind.min(read(&file, cold));
            if cold {
                past_page_cache = past_page_cache.min(read_direct(&file));
            }
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
        "Reading the file of {:.1} GB takes {on_disk:.1} s from the disk, {in_memory:.1} s where it is in memory and \
         {past_page_cache:.1} s past the page cache. Ready is one step at 8 x 8 latents on PyTorch's side; sdxl has tried its \
         residual blocks and transformers at that size by then. Best of {TURNS} turns, each a reading and a start; PyTorch's of one. Memory is written to and \
         given back before each: else whoever is first waits for the host of a virtual machine, seconds for each GB; PyTorch, which loads \
         its libraries first, may wait still.",
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

/// Has the memory for so many bytes of a file and as many of weights, so that nobody waits for a host that had taken it back.
fn settle(file: &Path) {
    let wanted = 2 * file.metadata().expect("the weights").len();
    let memory = fs::read_to_string("/proc/meminfo").expect("Linux");
    let free = memory.lines().find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix(" kB"));
    // The page cache keeps what it has.
    let free = free.and_then(|kb| kb.parse::<u64>().ok()).expect("Linux tells it") * 1024 / 5 * 4;
    black_box(vec![1_u8; usize::try_from(wanted.min(free)).expect("bytes of memory")]);
}

/// Seconds that the file takes to read.
fn read(path: &Path, cold: bool) -> f64 {
    if cold {
        forget(path);
    }
    settle(path);
    let mut buffer = vec![0; 8 << 20];
    let began = Instant::now();
    let mut file = File::open(path).expect("the weights");
    while file.read(&mut buffer).expect("the weights") > 0 {}
    began.elapsed().as_secs_f64()
}

/// Seconds that it takes past the page cache; not a number where that is not possible.
fn read_direct(path: &Path) -> f64 {
    forget(path);
    let mut buffer = vec![0; (16 << 20) + BLOCK];
    let aligned = buffer.as_ptr().align_offset(BLOCK);
    let pages = &mut buffer[aligned..][..16 << 20];
    let began = Instant::now();
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let Ok(mut file) = open(path, flags, Mode::empty()).map(File::from) else { return f64::NAN };
    loop {
        match file.read(pages) {
            Ok(0) => return began.elapsed().as_secs_f64(),
            Ok(_) => {}
            Err(_) => return f64::NAN,
        }
    }
}

fn ours(folder: &Path, file: &Path, dtype: &str, cold: bool) -> Result<f64, String> {
    if cold {
        forget(file);
    }
    settle(file);
    Stage::start("sdxl-base-unet", folder, dtype).map(|stage| stage.ready_s)
}

fn theirs(folder: &Path, file: &Path, dtype: &str, cold: bool, peers: &Peers) -> Result<f64, String> {
    if cold {
        forget(file);
    }
    settle(file);
    let inputs = stage::scratch("start-inputs.safetensors");
    crate::unet::smallest_inputs(folder, &inputs);
    let threads = peers.threads().to_string();
    let (folder, inputs) = (folder.as_os_str(), inputs.as_os_str());
    let [part, dtype, runs, threads] = ["unet", dtype, "0", threads.as_str()].map(OsStr::new);
    let args = [part, folder, dtype, runs, threads, inputs, OsStr::new("-")];
    Ok(peer::figure(&peers.run("torch_side.py", &args)?, "ready_s"))
}
