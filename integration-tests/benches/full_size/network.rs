//! One network on each side: its time, its memory and its results.

use crate::{
    inputs,
    peer::{self, Peers},
    stage,
    table::{Row, Table},
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// The number formats that can be compared.
pub(crate) const DTYPES: [&str; 2] = ["f32", "bf16"];

/// Turns of each side.
pub(crate) const TURNS: u32 = 3;

/// What one side made of the inputs.
#[derive(Debug)]
pub(crate) struct Side {
    /// Seconds of the best first run for a request, where others that follow have less to do.
    pub(crate) first_s: f64,
    /// Seconds of the best run.
    pub(crate) best_s: f64,
    pub(crate) peak_mib: f64,
    /// What computing takes beside the weights, where it is known.
    pub(crate) activations_mib: f64,
    pub(crate) outputs: HashMap<String, Vec<f32>>,
}

impl Side {
    /// The better times and the greater memory of it and another turn.
    fn improve(&mut self, turn: &Self) {
        eprintln!("    {:.4} s, {:.4} s in another turn", self.best_s, turn.best_s);
        self.outputs.clone_from(&turn.outputs);
        self.first_s = self.first_s.min(turn.first_s);
        self.best_s = self.best_s.min(turn.best_s);
        self.peak_mib = self.peak_mib.max(turn.peak_mib);
        self.activations_mib = self.activations_mib.max(turn.activations_mib);
    }
}

/// All sides in one number format, or why there is none of a side.
#[derive(Debug)]
pub(crate) struct Sides {
    pub(crate) dtype: &'static str,
    pub(crate) all: [Result<Side, String>; 3],
}

impl Sides {
    /// One figure of each side.
    pub(crate) fn map(&self, figure: impl Fn(&Side) -> f64) -> [f64; 3] {
        [0, 1, 2].map(|i| self.all[i].as_ref().map_or(f64::NAN, &figure))
    }

    pub(crate) fn times(&self) -> [f64; 3] {
        self.map(|side| side.best_s)
    }
}

/// What the peers compute, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Work<'a> {
    /// `unet`, `vae` or `text`.
    pub(crate) part: &'static str,
    pub(crate) folder: &'a Path,
    /// A name for files that are made.
    pub(crate) name: &'static str,
    /// Of one turn.
    pub(crate) runs: u32,
    /// How often each side has its turn: what a shared machine can do changes within minutes.
    pub(crate) turns: u32,
}

impl Work<'_> {
    /// Runs all sides in turn on the inputs that were written to [`Self::inputs`]; the best of all turns counts.
    pub(crate) fn run(
        &self,
        dtype: &'static str,
        peers: &Peers,
        ours: impl Fn(&str) -> Result<Side, String>,
    ) -> Sides {
        eprintln!("{} in {dtype}", self.name);
        let sides: [&dyn Fn() -> Result<Side, String>; 3] =
            [&|| ours(dtype), &|| self.torch(dtype, peers), &|| self.openvino(dtype, peers)];
        let mut all = sides.map(|side| side());
        for _ in 1..self.turns {
            for (side, turn) in all.iter_mut().zip(sides) {
                // One that failed is not asked again.
                let Ok(before) = side else { continue };
                match turn() {
                    Ok(next) => before.improve(&next),
                    Err(why) => *side = Err(why),
                }
            }
        }
        Sides { dtype, all }
    }

    /// Where the peers find their inputs.
    pub(crate) fn inputs(&self) -> PathBuf {
        stage::scratch(&format!("{}-inputs.safetensors", self.name))
    }

    fn torch(&self, dtype: &str, peers: &Peers) -> Result<Side, String> {
        let (inputs, outputs) = (self.inputs(), stage::scratch("outputs.safetensors"));
        let (runs, threads) = (self.runs.to_string(), peers.threads().to_string());
        let (folder, inputs) = (self.folder.as_os_str(), inputs.as_os_str());
        let [part, dtype, runs, threads] =
            [self.part, dtype, runs.as_str(), threads.as_str()].map(OsStr::new);
        let args = [part, folder, dtype, runs, threads, inputs, outputs.as_os_str()];
        Ok(side(&peers.run("torch_side.py", &args)?, &outputs))
    }

    fn openvino(&self, dtype: &str, peers: &Peers) -> Result<Side, String> {
        let (inputs, outputs) = (self.inputs(), stage::scratch("outputs.safetensors"));
        let model = stage::scratch(&format!("{}.xml", self.name));
        let (runs, threads) = (self.runs.to_string(), peers.threads().to_string());
        let (folder, inputs, model_path) = (self.folder.as_os_str(), inputs.as_os_str(), model.as_os_str());
        let [convert, run, part] = ["convert", "run", self.part].map(OsStr::new);
        let [dtype, runs, threads] = [dtype, runs.as_str(), threads.as_str()].map(OsStr::new);
        if !model.exists() {
            peers.run("openvino_side.py", &[convert, part, folder, inputs, model_path])?;
        }
        let args = [run, model_path, dtype, runs, threads, inputs, outputs.as_os_str(), part, folder];
        Ok(side(&peers.run("openvino_side.py", &args)?, &outputs))
    }
}

fn side(json: &serde_json::Value, outputs: &Path) -> Side {
    Side {
        first_s: f64::NAN,
        best_s: peer::best(json),
        peak_mib: peer::figure(json, "peak_mib"),
        activations_mib: peer::figure(json, "activations_mib"),
        outputs: inputs::read(outputs),
    }
}

/// How far each side's `output` is from PyTorch's in f32: the greatest difference over the greatest value.
pub(crate) fn errors(table: &mut Table, sides: &[Sides], output: &str) {
    let Some(Ok(right)) = sides.iter().find(|sides| sides.dtype == "f32").map(|sides| &sides.all[1]) else {
        return;
    };
    for sides in sides {
        let mut errors = sides.map(|side| relative_error(&side.outputs[output], &right.outputs[output]));
        if sides.dtype == "f32" {
            errors[1] = f64::NAN; // it is what the others are held against
        }
        table.add(Row::plain(
            format!("{output}, {}: greatest error against PyTorch f32", sides.dtype),
            errors,
        ));
    }
}

pub(crate) fn relative_error(values: &[f32], right: &[f32]) -> f64 {
    assert_eq!(values.len(), right.len(), "results of one shape");
    let greatest = right.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
    let apart = values.iter().zip(right).fold(0.0, |most: f32, (a, b)| {
        let apart = (a - b).abs();
        if apart.is_nan() { f32::INFINITY } else { most.max(apart) }
    });
    f64::from(apart) / f64::from(greatest)
}

/// Why a side has no figures.
pub(crate) fn notes(table: &mut Table, sides: &[Sides]) {
    for sides in sides {
        for (name, side) in ["sdxl", "PyTorch", "OpenVINO"].iter().zip(&sides.all) {
            if let Err(why) = side {
                table.note(format!("No figures of {name} in {}: {why}", sides.dtype));
            }
        }
    }
}
