//! This project beside diffusers on PyTorch and beside OpenVINO, on the same weights in the same run: `make bench`, or some
//! parts of it by `make bench PARTS="unet picture"`.
//!
//! - `unet`: a guided step of the base UNet at SDXL's full size, in f32 and bf16, as `sdxl-base-unet` serves it, how much
//!   of the machine's matrix rate that is, what memory it takes, and how far its results are from diffusers'; and a step
//!   of the model that ships with the project.
//! - `vae`, `text`: the same of the decoder and of both text encoders.
//! - `picture`: a whole picture of the shipped model through `sdxl up`, by the engines alone in one process, and by
//!   diffusers in one process.
//! - `start`: from a start to ready with full-size weights, beside the time to read the file.
//!
//! Stages run as processes and are asked over gRPC; what counts is the time that they report themselves. Of several
//! runs the best counts, on every side. Each part prints its table and writes it into `docs/benchmarks.md`. It is no test:
//! it measures time, and ends with 1 where a figure misses its target.

mod bare;
mod checkpoint;
mod document;
mod inputs;
mod network;
mod peer;
mod picture;
mod stage;
mod start;
mod table;
mod text;
mod unet;
mod vae;

use peer::Peers;
use std::process::ExitCode;
use table::Table;

/// A part's name and what measures it.
type Part = (&'static str, fn(&Peers) -> Vec<Table>);

const PARTS: [Part; 5] = [
    ("unet", unet::run),
    ("vae", vae::run),
    ("text", text::run),
    ("picture", picture::run),
    ("start", start::run),
];

fn main() -> ExitCode {
    // cargo itself adds --bench.
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let known = |arg: &String| PARTS.iter().any(|(name, _)| name == arg);
    if let Some(unknown) = args.iter().find(|arg| !known(arg)) {
        let names = PARTS.map(|(name, _)| name).join(" ");
        eprintln!("{unknown}: no such part; PARTS are any of: {names}");
        return ExitCode::from(2);
    }
    let peers = Peers::from_environment();
    let mut met = true;
    for (name, run) in PARTS.iter().filter(|(name, _)| args.is_empty() || args.iter().any(|arg| arg == name))
    {
        let tables = run(&peers);
        let text = document::section(&tables, &peers);
        println!("{text}");
        document::write(name, &text);
        met &= tables.iter().all(Table::met);
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
