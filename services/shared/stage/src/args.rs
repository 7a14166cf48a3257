//! The arguments that all stages share.

use anyhow::{Context, anyhow, bail};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use sdxl_runtime::args::{ServerArgs, TelemetryArgs};
use std::{
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

/// What every stage can be told, beside its checkpoint. `PORT` is its default port.
#[derive(Args, Clone, Debug)]
pub struct StageArgs<const PORT: u16> {
    /// Number format that the networks compute in
    #[arg(long, env = "SDXL_DTYPE", value_name = "TYPE", value_enum, default_value_t = ComputeType::F32)]
    pub dtype: ComputeType,

    /// Device that the networks run on: cpu, or cuda:N for the Nth NVIDIA GPU, of a build with CUDA
    #[arg(long, env = "SDXL_DEVICE", value_name = "DEVICE", default_value_t = ComputeDevice::Cpu)]
    pub device: ComputeDevice,

    /// Threads that compute; all cores if not given
    #[arg(long, env = "SDXL_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub engine: EngineArgs,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub worker: WorkerArgs,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub server: ServerArgs<PORT>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub telemetry: TelemetryArgs,
}

/// How much work a stage takes on.
#[derive(Args, Clone, Copy, Debug)]
pub struct WorkerArgs {
    /// Requests that may wait; further ones are refused at once with RESOURCE_EXHAUSTED
    #[arg(long, env = "SDXL_QUEUE_DEPTH", value_name = "N", default_value = "64")]
    pub queue_depth: NonZeroUsize,

    /// Requests worked on in turns, step by step, so that a short one need not wait for a long one
    #[arg(long, env = "SDXL_MAX_ACTIVE", value_name = "N", default_value = "32")]
    pub max_active: NonZeroUsize,
}

/// Whether networks compute, or a profile's times pass. A stage's checkpoint flag is
/// `required_unless_present = "engine", required_if_eq("engine", "candle")`: clap asks for what the engine needs.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// What does the work
    #[arg(
        id = "engine",
        long,
        env = "SDXL_ENGINE",
        value_name = "ENGINE",
        value_enum,
        default_value_t = EngineKind::Candle,
        requires_if("simulated", "profile")
    )]
    pub kind: EngineKind,

    /// Times and shapes of the simulated engine, a TOML file
    #[arg(long, env = "SDXL_PROFILE", value_name = "FILE", requires = "engine")]
    pub profile: Option<PathBuf>,
}

impl EngineArgs {
    /// The checkpoint folder that was given with `flag`, for the engine that computes.
    ///
    /// # Errors
    /// Where there is none, or a profile that this engine would not keep; one line that names the flag.
    pub fn checkpoint(&self, flag: &str, folder: Option<PathBuf>) -> anyhow::Result<PathBuf> {
        if self.profile.is_some() {
            bail!("--profile is of --engine simulated, and the engine is candle");
        }
        folder.with_context(|| format!("{flag} DIR is missing; only --engine simulated does without"))
    }

    /// The profile, for the engine that simulates.
    ///
    /// # Errors
    /// Where there is none; one line that names the flag.
    pub fn profile(&self) -> anyhow::Result<&Path> {
        self.profile.as_deref().context("--engine simulated needs --profile FILE")
    }
}

/// What does a stage's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// The networks of a checkpoint
    Candle,
    /// Nothing: takes the time that a profile says, and gives results that show nothing
    Simulated,
}

/// Number formats that networks compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    /// Single precision: equal to diffusers in float32
    F32,
    /// Half precision
    F16,
    /// Brain float: half the memory, several times as fast where the processor multiplies it, sums in f32
    Bf16,
}

impl ComputeType {
    /// candle's name for it.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Devices that networks run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeDevice {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for ComputeDevice {
    type Err = String;

    /// Takes `cpu`, `cuda:1`, and `cuda` for the first.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.split_once(':') {
            None if text == "cpu" => return Ok(Self::Cpu),
            None if text == "cuda" => Some(0),
            Some(("cuda", number)) => number.parse().ok(),
            _ => None,
        };
        match number {
            Some(_) if !cfg!(feature = "cuda") => Err(format!("{text:?}: this build has no CUDA, only cpu")),
            Some(number) => Ok(Self::Cuda(number)),
            None => Err(format!("{text:?} is not cpu, or cuda:N as cuda:0")),
        }
    }
}

impl ComputeDevice {
    /// candle's handle on it, for the thread that will own it; `cuda` opens the GPU of a number.
    ///
    /// # Errors
    /// Where there is no such device; one line.
    pub fn open<E: fmt::Display>(
        self,
        cuda: impl FnOnce(usize) -> Result<Device, E>,
    ) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => cuda(number).map_err(|error| {
                let why = error.to_string();
                anyhow!("--device {self}: {}", why.lines().next().unwrap_or_default())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Stage {
        #[arg(long, required_unless_present = "engine", required_if_eq("engine", "candle"))]
        model: Option<PathBuf>,
        #[command(flatten)]
        stage: StageArgs<0>,
    }

    fn parse(args: &[&str]) -> Result<(EngineKind, Option<PathBuf>), String> {
        let args = ["stage"].iter().chain(args);
        let Stage { model, stage } = Stage::try_parse_from(args).map_err(|error| error.to_string())?;
        let kind = stage.engine.kind;
        let path = match kind {
            EngineKind::Candle => stage.engine.checkpoint("--model", model).map(Some),
            EngineKind::Simulated => stage.engine.profile().map(|path| Some(path.to_owned())),
        };
        path.map(|path| (kind, path)).map_err(|error| error.to_string())
    }

    #[test]
    fn each_engine_gets_what_it_needs() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(parse(&["--model", "m"]), Ok((EngineKind::Candle, path("m"))));
        assert_eq!(parse(&["--engine", "candle", "--model", "m"]), Ok((EngineKind::Candle, path("m"))));
        let simulated = ["--engine", "simulated", "--profile", "p"];
        assert_eq!(parse(&simulated), Ok((EngineKind::Simulated, path("p"))));
        assert_eq!(
            parse(&[&simulated[..], &["--model", "m"]].concat()),
            Ok((EngineKind::Simulated, path("p")))
        );
    }

    #[test]
    fn devices_are_the_processor_and_numbered_gpus() {
        assert_eq!("cpu".parse(), Ok(ComputeDevice::Cpu));
        for (text, number) in [("cuda", 0), ("cuda:0", 0), ("cuda:7", 7)] {
            let device = text.parse::<ComputeDevice>();
            if cfg!(feature = "cuda") {
                assert_eq!(device, Ok(ComputeDevice::Cuda(number)));
            } else {
                assert_eq!(device, Err(format!("{text:?}: this build has no CUDA, only cpu")));
            }
        }
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU"] {
            let error = wrong.parse::<ComputeDevice>().unwrap_err();
            assert!(error.contains("is not cpu, or cuda:N"), "{error}");
        }
        assert_eq!(ComputeDevice::Cuda(3).to_string(), "cuda:3");
        assert!(ComputeDevice::Cpu.open(Device::new_cuda).unwrap().is_cpu());
    }

    #[test]
    fn what_an_engine_misses_or_would_not_keep_is_named() {
        let cases: [(&[&str], &str); 6] = [
            (&[], "--model <MODEL>"),
            (&["--engine", "candle"], "--model <MODEL>"),
            (&["--engine", "simulated"], "--profile <FILE>"),
            (&["--profile", "p", "--model", "m"], "--engine <ENGINE>"),
            (
                &["--engine", "candle", "--profile", "p", "--model", "m"],
                "--profile is of --engine simulated, and the engine is candle",
            ),
            (&["--engine", "torch"], "[possible values: candle, simulated]"),
        ];
        for (args, named) in cases {
            let error = parse(args).unwrap_err();
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }
}
