//! This project beside diffusers on PyTorch and beside OpenVINO, on the same weights in the same run: `make bench`, or some
//! parts of it by `make bench PARTS="unet picture"`. With `f32` or `bf16` among them that number format alone is measured,
//! into a section of its own: a processor without products of bf16 has little to say of those.
//!
//! - `unet`: a guided step of the base UNet at SDXL's full size, in f32 and bf16, as `sdxl-base-unet` serves it, how much
//!   of the machine's matrix rate that is, what memory it takes, and how far its results are from diffusers'.
//! - `shipped`: a step of the model that ships with the project.
//! - `vae`, `text`: the same of the decoder and of both text encoders.
//! - `picture`: a whole picture of the shipped model through `sdxl up`, by the engines alone in one process, and by
//!   diffusers in one process.
//! - `start`: from a start to ready with full-size weights, beside the time to read the file.
//! - `approximate`: what guidance intervals and step caching save, and how far they change the shipped model's pictures;
//!   without peers.
//!
//! Stages run as processes and are asked over gRPC; what counts is the time that they report themselves. Of several
//! runs the best counts, on every side; of starts and what reading the file takes beside each, the median. Each part
//! prints its table and writes it into `docs/benchmarks.md`. It is no test: it measures time, and ends with 1 where a
//! figure misses its target.

mod approximate;
mod bare;
mod checkpoint;
mod document;
mod inputs;
mod memory;
mod network;
mod peer;
mod picture;
mod stage;
mod start;
mod table;
mod text;
mod unet;
mod vae;

use network::DTYPES;
use peer::Peers;
use std::process::ExitCode;
use table::Tables;

/// A part's name and what measures it.
type Part = (&'static str, fn(&Peers) -> Tables);

const PARTS: [Part; 7] = [
    ("unet", unet::full_size),
    ("shipped", unet::shipped),
    ("vae", vae::run),
    ("text", text::run),
    ("picture", picture::run),
    ("start", start::run),
    ("approximate", approximate::run),
];

fn main() -> ExitCode {
    // cargo itself adds --bench.
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (dtypes, parts): (Vec<_>, Vec<_>) =
        args.iter().map(String::as_str).partition(|arg| DTYPES.contains(arg));
    if let Some(unknown) = parts.iter().find(|part| PARTS.iter().all(|(name, _)| name != *part)) {
        let names = PARTS.map(|(name, _)| name).join(" ");
        eprintln!(
            "{unknown}: no such part; PARTS are any of: {names}, and {} for one alone",
            DTYPES.join(" or ")
        );
        return ExitCode::from(2);
    }
    // The engines in this process compute on this thread, too, as those of stages do on their device's.
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    pool.expect("nothing has computed yet");
    let peers = Peers::from_environment(&dtypes);
    let mut met = true;
    for (name, run) in PARTS.iter().filter(|(name, _)| parts.is_empty() || parts.contains(name)) {
        let tables = run(&peers);
        let text = document::section(&tables, &peers);
        println!("{text}");
        // What changes pictures is measured in f32 only.
        let only = if *name == "approximate" { &[] } else { &dtypes[..] };
        document::write(&[&[*name], only].concat().join(" "), &text);
        met &= tables.iter().all(|table| table.met());
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
