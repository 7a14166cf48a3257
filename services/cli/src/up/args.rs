//! `sdxl up`'s flags.

use super::replicas::Replicas;
use clap::Args;
use sdxl_runtime::args::{ServerArgs, TelemetryArgs, seconds};
use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

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
    pub(super) server: UpServerArgs,

    #[command(flatten)]
    pub(super) telemetry: TelemetryArgs,
}

/// Where the cluster listens and how it ends. Its services are on one machine and speak no TLS.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpServerArgs {
    /// Address and port to listen on; port 0 takes a free one, which is printed
    #[arg(long, env = "SDXL_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    pub(super) listen: SocketAddr,

    /// How long running work may take to finish after SIGTERM or SIGINT before it is given up
    #[arg(
        long,
        env = "SDXL_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value = "30",
        value_parser = seconds
    )]
    pub(super) drain_timeout: Duration,

    /// Shut down when standard input is closed, as it is when the process that started this one dies
    #[arg(long, env = "SDXL_STOP_ON_STDIN_CLOSE")]
    pub(super) stop_on_stdin_close: bool,
}

/// The variables that `sdxl up` reads for itself, and those of single servers, such as their certificates. Its children get what they are to know as flags, and some of them
/// give the same names another meaning.
pub(super) fn variables() -> Vec<String> {
    let up = UpArgs::augment_args(clap::Command::new("up"));
    let server = ServerArgs::<0>::augment_args(clap::Command::new("server"));
    let variables = up.get_arguments().chain(server.get_arguments()).filter_map(|a| a.get_env());
    let stage_tls = ["CA", "CERT", "KEY", "NAME"].map(|part| format!("SDXL_STAGE_TLS_{part}"));
    variables.map(|v| v.to_string_lossy().into_owned()).chain(stage_tls).collect()
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
        for name in
            ["SDXL_REFINER", "SDXL_LISTEN", "SDXL_DTYPE", "SDXL_LOG", "SDXL_TLS_CERT", "SDXL_STAGE_TLS_CA"]
        {
            assert!(variables.iter().any(|v| v == name), "{name}");
        }
        assert!(variables.iter().all(|v| v.starts_with("SDXL_")), "{variables:?}");
    }
}
