//! `sdxl up`: a whole cluster on this machine, each service in a process of its own, on loopback.

mod args;
mod checkpoint;
mod cluster;
mod log;
mod process;
mod programs;
mod replicas;

pub(crate) use args::UpArgs;

use crate::{failure::Failure, terminal::TerminalArgs};
use anyhow::Context;
use checkpoint::Model;
use cluster::Cluster;
use log::{Log, Role};
use process::Spec;
use programs::Programs;
use sdxl_core::StageKind;
use sdxl_runtime::{Shutdown, args::LogFormat};
use std::{
    ffi::OsString,
    net::{SocketAddr, TcpListener},
};

/// Runs a cluster until it is told to stop, or something of it dies that it cannot do without.
///
/// # Errors
/// [`Failure`]; everything that was started has been stopped by then.
pub(crate) async fn run(args: UpArgs, terminal: &TerminalArgs) -> Result<(), Failure> {
    let shutdown =
        Shutdown::on_signals(args.server.stop_on_stdin_close).context("cannot listen to signals")?;
    let programs = Programs::beside_this()?;
    let prepared = tokio::select! {
        prepared = prepare(&args, terminal, &programs) => prepared?,
        () = shutdown.triggered() => return Ok(()),
    };
    let plan = Plan { args: &args, programs: &programs, model: prepared, coloured: terminal.coloured() };
    let mut cluster = Cluster::new(args.server.drain_timeout);
    let stages = plan.stages();
    let ended = tokio::select! {
        ended = cluster.run(stages, |addresses| plan.coordinator(addresses)) => ended,
        () = shutdown.triggered() => Ok(()),
    };
    match &ended {
        Ok(()) => log::note("stopping"),
        Err(_) => log::note("a service has ended; stopping the others"), // which and why comes last
    }
    cluster.stop().await;
    ended.map_err(Failure::from)
}

/// What can be known to be wrong before models are loaded, and the model itself.
async fn prepare(args: &UpArgs, terminal: &TerminalArgs, programs: &Programs) -> Result<Model, Failure> {
    check_callers(args)?;
    check_listen(args.server.listen)?;
    let stages = StageKind::ALL.into_iter().filter(|s| *s != StageKind::Refiner).map(Role::Stage);
    let mut names: Vec<_> = stages.chain([Role::Coordinator]).map(Role::program).collect();
    programs.check(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let model = checkpoint::find(args, terminal, programs).await?;
    if model.refiner.is_some() {
        names = vec![Role::Stage(StageKind::Refiner).program()];
        programs.check(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    } else if args.replicas.given(StageKind::Refiner).is_some() {
        return Err(Failure::bad_input("--replicas: there is no refiner to start; --refiner DIR names one"));
    }
    Ok(model)
}

/// Whether the coordinator will be willing to listen there.
fn check_callers(args: &UpArgs) -> Result<(), Failure> {
    let listen = args.server.listen;
    if listen.ip().to_canonical().is_loopback() || args.keys.is_some() || args.allow_anonymous {
        return Ok(());
    }
    Err(Failure::bad_input(format!(
        "--listen: {listen} is not loopback, and callers would need no key: give --keys FILE, or --allow-anonymous if \
         everybody who reaches it may call"
    )))
}

/// Whether the coordinator will be able to listen; models may load for minutes before it tries.
fn check_listen(address: SocketAddr) -> anyhow::Result<()> {
    TcpListener::bind(address)
        .map(drop)
        .with_context(|| format!("cannot listen on {address} (--listen chooses another address)"))
}

/// How each service is started.
struct Plan<'a> {
    args: &'a UpArgs,
    programs: &'a Programs,
    model: Model,
    coloured: bool,
}

impl Plan<'_> {
    /// All replicas of all stages.
    fn stages(&self) -> Vec<Spec> {
        let mut specs = Vec::new();
        for stage in StageKind::ALL {
            let Some(model) = self.model_args(stage) else { continue };
            for index in 0..self.args.replicas.of(stage) {
                let mut args = model.clone();
                args.extend(["--listen", "127.0.0.1:0"].map(OsString::from));
                args.extend(["--dtype", &self.args.dtype, "--device", &self.args.device].map(OsString::from));
                if let Some(threads) = self.args.threads {
                    args.extend(["--threads".into(), threads.to_string().into()]);
                }
                specs.push(self.spec(Role::Stage(stage), index, args));
            }
        }
        specs
    }

    /// The flags that name a stage's model; `None` for a stage that is not started.
    fn model_args(&self, stage: StageKind) -> Option<Vec<OsString>> {
        let flag = |flag: &str, folder: &std::path::Path| vec![flag.into(), folder.into()];
        let (base, refiner) = (&self.model.base, self.model.refiner.as_deref());
        match stage {
            StageKind::BaseUnet | StageKind::Vae => Some(flag("--model", base)),
            StageKind::Refiner => refiner.map(|refiner| flag("--model", refiner)),
            StageKind::TextEncoder => {
                let mut args = flag("--base", base);
                args.extend(refiner.into_iter().flat_map(|refiner| flag("--refiner", refiner)));
                Some(args)
            }
        }
    }

    /// The coordinator of the stages at `addresses`.
    fn coordinator(&self, addresses: &[(Role, String)]) -> Spec {
        let mut args: Vec<OsString> = vec!["--listen".into(), self.args.server.listen.to_string().into()];
        for stage in StageKind::ALL {
            let replicas: Vec<_> = addresses
                .iter()
                .filter(|(role, _)| *role == Role::Stage(stage))
                .map(|(_, address)| address.trim_start_matches("http://"))
                .collect();
            if !replicas.is_empty() {
                args.extend([format!("--{stage}").into(), replicas.join(",").into()]);
            }
        }
        if let Some(keys) = &self.args.keys {
            args.extend(["--keys".into(), keys.into()]);
        }
        if self.args.allow_anonymous {
            args.push("--allow-anonymous".into());
        }
        self.spec(Role::Coordinator, 0, args)
    }

    fn spec(&self, role: Role, index: u32, mut args: Vec<OsString>) -> Spec {
        let (server, telemetry) = (&self.args.server, &self.args.telemetry);
        args.push("--stop-on-stdin-close".into());
        args.extend(["--drain-timeout".into(), server.drain_timeout.as_secs_f64().to_string().into()]);
        let format = match telemetry.log_format {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        };
        args.extend(["--log", &telemetry.log, "--log-format", format].map(OsString::from));
        let name = role.replica(index);
        Spec {
            role,
            program: self.programs.folder().join(role.program()),
            args,
            without_variables: args::variables(),
            log: Log::new(role, &name, telemetry.log_format, self.coloured),
            name,
        }
    }
}

#[cfg(test)]
mod tests;
