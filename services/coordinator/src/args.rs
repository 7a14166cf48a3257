//! The command line, as it is written. [`crate::Config`] is what it means.

use crate::{access::AccessArgs, keep::KeepArgs, stage_tls::StageTlsArgs};
use clap::Parser;
use sdxl_runtime::args::{ServerArgs, TelemetryArgs, seconds};
use std::time::Duration;

/// The public API of an SDXL cluster: takes requests and sends their parts to the stages.
#[derive(Parser, Clone, Debug)]
#[command(name = "sdxl-coordinator", version)]
pub struct Args {
    /// Replicas of the text-encoder stage, as HOST:PORT, separated by commas; or dns:HOST:PORT for all behind a name; or
    /// kubernetes:SERVICE[.NAMESPACE]:PORT for the endpoints of a Service, with the port's number or name
    #[arg(long, env = "SDXL_TEXT_ENCODER", value_name = "ADDR,…", value_delimiter = ',')]
    pub text_encoder: Vec<String>,

    /// Replicas of the base-unet stage
    #[arg(long, env = "SDXL_BASE_UNET", value_name = "ADDR,…", value_delimiter = ',')]
    pub base_unet: Vec<String>,

    /// Replicas of the refiner stage; none for a cluster without a refiner
    #[arg(long, env = "SDXL_REFINER", value_name = "ADDR,…", value_delimiter = ',')]
    pub refiner: Vec<String>,

    /// Replicas of the vae stage
    #[arg(long, env = "SDXL_VAE", value_name = "ADDR,…", value_delimiter = ',')]
    pub vae: Vec<String>,

    /// The zone that this coordinator is in, as Kubernetes names zones: replicas there are preferred until they are busier
    #[arg(long, env = "SDXL_ZONE", value_name = "NAME")]
    pub zone: Option<String>,

    /// How often a dns: name is resolved
    #[arg(long, env = "SDXL_DNS_INTERVAL", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub dns_interval: Duration,

    /// How long connecting to a replica may take
    #[arg(
        long,
        env = "SDXL_CONNECT_TIMEOUT",
        value_name = "SECONDS",
        default_value = "1",
        value_parser = seconds
    )]
    pub connect_timeout: Duration,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub stage_tls: StageTlsArgs,

    /// Requests at work at the same time; one more is refused
    #[arg(
        long,
        env = "SDXL_MAX_REQUESTS",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub max_requests: u32,

    /// Denoising steps from one checkpoint of a picture to the next, and so the most that the loss of a replica costs; 0
    /// for no checkpoints
    #[arg(long, env = "SDXL_CHECKPOINT_INTERVAL", value_name = "STEPS", default_value_t = 5)]
    pub checkpoint_interval: u32,

    /// How long work that was begun waits for a replica where none takes it
    #[arg(long, env = "SDXL_PATIENCE", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub patience: Duration,

    /// Work begun anew after the loss of a replica that is always allowed, in units a second
    #[arg(long, env = "SDXL_RETRIES_PER_SECOND", value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub retries_per_second: u32,

    /// The same beside that, as a share of all calls to stages in the last 10 seconds
    #[arg(long, env = "SDXL_RETRY_RATIO", value_name = "F", default_value_t = 0.2)]
    pub retry_ratio: f32,

    /// What outlives a request.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// Who may call.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Where to listen, and how to end.
    #[command(flatten)]
    pub server: ServerArgs<50051>,

    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_has_its_variable() {
        for arg in
            Args::command().get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str()))
        {
            let variable = format!("SDXL_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn a_list_is_cut_at_commas_and_no_request_at_all_is_no_limit() {
        let args = Args::try_parse_from(["x", "--base-unet", "a:1,b:2", "--base-unet", "c:3"]).unwrap();
        assert_eq!(args.base_unet, ["a:1", "b:2", "c:3"]);
        assert!(args.refiner.is_empty());
        assert!(Args::try_parse_from(["x", "--max-requests", "0"]).is_err());
    }
}
