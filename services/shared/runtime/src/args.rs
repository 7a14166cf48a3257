//! Argument groups that every binary flattens into its own. Each flag has an `SDXL_…` environment variable.

use clap::{Args, ValueEnum};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Where a server listens and how it ends. `PORT` is the server's own default port; 0 lets the system choose.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs<const PORT: u16> {
    /// Address and port to listen on; port 0 takes a free one, which is printed
    #[arg(long, env = "SDXL_LISTEN", value_name = "ADDR", default_value = format!("127.0.0.1:{PORT}"))]
    pub listen: SocketAddr,

    /// How long running work may take to finish after SIGTERM or SIGINT before it is given up
    #[arg(
        long,
        env = "SDXL_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value = "30",
        value_parser = seconds
    )]
    pub drain_timeout: Duration,

    /// Shut down when standard input is closed, as it is when the process that started this one dies
    #[arg(long, env = "SDXL_STOP_ON_STDIN_CLOSE")]
    pub stop_on_stdin_close: bool,

    /// A second address that tells the server's health, by grpc.health.v1 and at /healthz, and nothing else; without TLS,
    /// for probes that show no certificate
    #[arg(long, env = "SDXL_HEALTH_LISTEN", value_name = "ADDR")]
    pub health_listen: Option<SocketAddr>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub tls: TlsArgs,
}

/// What a server shows to its callers, and asks of them. Files are read again when they change.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// The server's certificate and those between it and its authority, in PEM: it speaks TLS alone then
    #[arg(long, env = "SDXL_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert, in PEM
    #[arg(long, env = "SDXL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificates of authorities, in PEM: callers must show a certificate of one of them then
    #[arg(long, env = "SDXL_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// DNS names or URIs: only callers are let in whose certificate is for one of them
    #[arg(long, env = "SDXL_TLS_CLIENT_NAME", value_name = "NAME,…", value_delimiter = ',')]
    pub tls_client_name: Vec<String>,
}

/// What is logged and traced, and how. Traces and metrics are sent to where `OTEL_EXPORTER_OTLP_ENDPOINT` says, if it is set.
#[derive(Args, Clone, Debug)]
pub struct TelemetryArgs {
    /// What is logged to standard error: error, warn, info, debug, trace, off, or a list as "info,sdxl_stage=debug"
    #[arg(long, env = "SDXL_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// A file with such a filter, which holds in place of --log and is read again when it changes
    #[arg(long, env = "SDXL_LOG_FROM", value_name = "FILE")]
    pub log_from: Option<PathBuf>,

    /// How log lines are written
    #[arg(long, env = "SDXL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,

    /// Record each step of a denoiser as a span of its own, in place of an event of its run's
    #[arg(long, env = "SDXL_TRACE_STEPS")]
    pub trace_steps: bool,

    /// Record prompts in traces, for whoever may read those
    #[arg(long, env = "SDXL_TRACE_PROMPTS")]
    pub trace_prompts: bool,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text for each event
    Human,
    /// One JSON object for each event
    Json,
}

/// Parses a duration given in seconds, as `2.5`; for flags of this and other crates.
///
/// # Errors
/// A sentence where `text` is not a number of seconds from 0 to a year.
pub fn seconds(text: &str) -> Result<Duration, String> {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0;
    match text.parse::<f64>() {
        Ok(value) if (0.0..=YEAR).contains(&value) => Ok(Duration::from_secs_f64(value)),
        _ => Err(format!("not a number of seconds from 0 to {YEAR}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser, Debug)]
    struct Binary {
        #[command(flatten)]
        server: ServerArgs<50999>,
        #[command(flatten)]
        telemetry: TelemetryArgs,
    }

    #[test]
    fn defaults_are_the_binarys_own() {
        let args = Binary::try_parse_from(["x"]).unwrap();
        assert_eq!(args.server.listen, SocketAddr::from(([127, 0, 0, 1], 50999)));
        assert_eq!(args.server.drain_timeout, Duration::from_secs(30));
        assert!(!args.server.stop_on_stdin_close);
        assert_eq!(args.telemetry.log_format, LogFormat::Human);
    }

    #[test]
    fn every_flag_has_a_variable_and_a_help_text() {
        for arg in Binary::command().get_arguments().filter(|a| a.get_id() != "help") {
            let variable = format!("SDXL_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(variable.as_str()));
            assert!(arg.get_help().is_some(), "{}", arg.get_id());
        }
    }

    #[test]
    fn seconds_may_have_a_fraction_but_not_a_sign() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for wrong in ["-1", "NaN", "inf", "1s", "", "1e300"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
