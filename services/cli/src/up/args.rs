//! `sdxl up`'s flags.

use super::replicas::Replicas;
use clap::Args;
use sdxl_runtime::args::{ServerArgs, TelemetryArgs};
use std::{num::NonZeroUsize, path::PathBuf};

const EXAMPLES: &str = "\
Examples:
  sdxl up                                       the model that ships with the project
  sdxl up --base ~/models/stable-diffusion-xl-base-1.0
  sdxl up --base ~/sdxl-base --refiner ~/sdxl-refiner --replicas base-unet=2,refiner=2
  sdxl up --listen 0.0.0.0:50051 --keys keys.toml --dtype bf16

When the cluster can serve, one line goes to standard output: `ready http://ADDR`. Logs go to
standard error, each line behind its service's name. Ctrl-C stops all services, a second Ctrl-C at
once; they stop, too, when sdxl itself dies. If a service dies, the others are stopped, unless its
stage has another replica. Services are not started again.

SDXL_QUEUE_DEPTH, SDXL_MAX_ACTIVE and other variables of the services are handed on to them.";

/// What `sdxl up` is told.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    /// Folder of the base model, as diffusers' save_pretrained writes it [default: the model that ships with the
    /// project, or a small random one]
    #[arg(long, env = "SDXL_BASE", value_name = "DIR")]
    pub(super) base: Option<PathBuf>,

    /// Folder of the refiner; requests may then ask for it
    #[arg(long, env = "SDXL_REFINER", value_name = "DIR", requires = "base", conflicts_with = "no_refiner")]
    pub(super) refiner: Option<PathBuf>,

    /// Start no refiner, though the default model has one
    #[arg(long, env = "SDXL_NO_REFINER")]
    pub(super) no_refiner: bool,

    /// How many processes each stage has, 1 where not given: text-encoder, base-unet, refiner, vae
    #[arg(
        long,
        env = "SDXL_REPLICAS",
        value_name = "STAGE=N,…",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) replicas: Replicas,

    /// Number format that the networks compute in: f32, f16 or bf16
    #[arg(long, env = "SDXL_DTYPE", value_name = "TYPE", default_value = "f32")]
    pub(super) dtype: String,

    /// Device that the networks run on
    #[arg(long, env = "SDXL_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub(super) device: String,

    /// Threads that each stage computes with; all cores if not given
    #[arg(long, env = "SDXL_THREADS", value_name = "N")]
    pub(super) threads: Option<NonZeroUsize>,

    /// Folder for the random model that is made where there is no other [default: $XDG_CACHE_HOME/sdxl or
    /// ~/.cache/sdxl]
    #[arg(long, env = "SDXL_CACHE_DIR", value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,

    /// TOML file of the keys that callers may show (sdxl key new makes one); needed to listen on other addresses than
    /// loopback
    #[arg(long, env = "SDXL_KEYS", value_name = "FILE")]
    pub(super) keys: Option<PathBuf>,

    /// Listen on other addresses than loopback although callers need no key
    #[arg(long, env = "SDXL_ALLOW_ANONYMOUS", conflicts_with = "keys")]
    pub(super) allow_anonymous: bool,

    #[command(flatten)]
    pub(super) server: ServerArgs<50051>,

    #[command(flatten)]
    pub(super) telemetry: TelemetryArgs,
}

/// The variables that `sdxl up` reads for itself. Its children get what they are to know as flags, and some of them
/// give the same names another meaning.
pub(super) fn variables() -> Vec<String> {
    let command = UpArgs::augment_args(clap::Command::new("up"));
    command.get_arguments().filter_map(|a| a.get_env()).map(|v| v.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn parse(flags: &[&str]) -> Result<UpArgs, clap::Error> {
        match Cli::try_parse_from(["sdxl", "up"].iter().chain(flags))?.command {
            Command::Up(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refiner_needs_its_base_and_cannot_be_refused_as_well() {
        assert!(parse(&["--base", "b", "--refiner", "r"]).is_ok());
        for flags in [&["--refiner", "r"][..], &["--base", "b", "--refiner", "r", "--no-refiner"]] {
            assert_eq!(parse(flags).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn wrong_replicas_are_refused_with_the_flags_name() {
        let error = parse(&["--replicas", "unet=2"]).unwrap_err().to_string();
        assert!(error.contains("--replicas") && error.contains("base-unet"), "{error}");
    }

    #[test]
    fn children_do_not_see_what_is_meant_for_up() {
        let variables = variables();
        for name in ["SDXL_REFINER", "SDXL_LISTEN", "SDXL_DTYPE", "SDXL_LOG"] {
            assert!(variables.iter().any(|v| v == name), "{name}");
        }
        assert!(variables.iter().all(|v| v.starts_with("SDXL_")), "{variables:?}");
    }
}
