//! `sdxl bench`: a load on a cluster, and what the cluster made of it.

mod args;
mod baseline;
mod call;
mod choice;
mod load;
mod progress;
mod quantiles;
mod report;
mod table;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use args::BenchArgs;

use crate::{connection::EndpointArgs, console, failure::Failure, generate, model};
use anyhow::{Context, anyhow};
use args::LoadArgs;
use baseline::Baseline;
use call::{Connections, Outcome, Planned};
use load::{Driver, Load, Pace, WarmUp};
use progress::Progress;
use report::{Report, Setup};
use sdxl_core::StageKind;
use sdxl_proto::{
    convert::stage_kind,
    v1::{GetModelResponse, Stage},
};
use std::{
    collections::BTreeMap,
    future::Future,
    io::{self, IsTerminal},
    path::Path,
    pin::pin,
    time::{Duration, Instant},
};
use tonic::Status;

/// Measures a cluster as `args` say, and tells what was measured.
///
/// # Errors
/// [`Failure`] where there is nothing to measure or the report cannot be written, and after the report where a person
/// ended it early. What requests end with is a result and no failure.
pub(crate) async fn run(args: BenchArgs) -> Result<(), Failure> {
    if let Some(path) = &args.report.output {
        check_output(path)?;
    }
    let mut progress = Progress::new(io::stderr().is_terminal());
    let stop = async {
        // Without a handler Ctrl-C ends the process as it does any.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let measured = measure(&args, &mut progress, stop).await;
    progress.clear();
    let report = measured?;
    let json = serde_json::to_string_pretty(&report).context("the result is no JSON")?;
    if args.report.json {
        console::result(&json);
    } else {
        console::result(table::tables(&report).trim_end());
    }
    if let Some(path) = &args.report.output {
        generate::replace(path, format!("{json}\n").as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if report.interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Whether a report can be written, as far as that can be known before the load.
fn check_output(path: &Path) -> Result<(), Failure> {
    let wrong = |text: String| Err(Failure::bad_input(format!("--output {}: {text}", path.display())));
    if path.is_dir() || path.file_name().is_none() {
        return wrong("a folder; a file's name is needed".to_owned());
    }
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        Some(folder) => wrong(format!("there is no folder {}", folder.display())),
        None => Ok(()),
    }
}

/// The whole measurement. `stop` ends it: with what there is, or with nothing where the load had not begun.
async fn measure(
    args: &BenchArgs,
    progress: &mut Progress,
    stop: impl Future<Output = ()>,
) -> Result<Report, Failure> {
    let mut stop = pin!(stop);
    let prepared = tokio::select! {
        prepared = Prepared::new(args, progress) => prepared?,
        () = &mut stop => return Err(Failure::Interrupted),
    };
    let Prepared { setup, mix, connections } = prepared;
    let driver = Driver::new(setup.load, &mix, &setup.baseline, connections);
    let run = Box::pin(driver.run(progress, stop)).await;
    Ok(Report::new(&setup, &run))
}

/// What a load is sent with.
struct Prepared {
    setup: Setup,
    mix: work::Mix,
    connections: Connections,
}

impl Prepared {
    async fn new(args: &BenchArgs, progress: &Progress) -> Result<Self, Failure> {
        let endpoint = &args.endpoint;
        let model = model::get_model(endpoint).await?;
        // Short enough to be typed, and for JSON readers that take all numbers for floating point.
        let seed = args.load.seed.unwrap_or_else(|| rand::random::<u32>().into());
        let mix = work::Mix::new(&args.work, seed, &model)?;
        let mut channels = Vec::new();
        for _ in 0..args.load.connections {
            channels.push(endpoint.connect().await?);
        }
        let mut connections = Connections::new(channels, args.load.timeout);
        let baseline = calibrate(&mix, &mut connections, endpoint, progress).await?;
        let setup = Setup {
            endpoint: endpoint.endpoint.clone(),
            replicas: replicas(&model),
            model: model.model,
            seed,
            load: load_of(&args.load),
            baseline,
        };
        Ok(Self { setup, mix, connections })
    }
}

/// Sends one request after the other, so that each is alone, where deadlines hang on what that takes.
async fn calibrate(
    mix: &work::Mix,
    connections: &mut Connections,
    endpoint: &EndpointArgs,
    progress: &Progress,
) -> Result<Baseline, Failure> {
    let mut baseline = Baseline::default();
    for work in mix.calibration() {
        progress.say("measuring what requests take alone");
        let planned = Planned { work: work.clone(), measured: false, at: Duration::ZERO };
        let sample = connections.send(planned, Instant::now()).await;
        match &sample.outcome {
            Outcome::Answered { timings, .. } => baseline.learn(work.size, timings),
            Outcome::Failed { code, message } => {
                return Err(endpoint.explain(&Status::new(*code, message.clone())));
            }
            Outcome::NoAnswer | Outcome::Dropped => {
                return Err(
                    anyhow!("a request of {} alone is not answered within --timeout", work.size).into()
                );
            }
        }
        if baseline.expected(&work) <= 0.0 {
            return Err(anyhow!("the cluster tells no run times, which a factor in --deadline needs").into());
        }
    }
    Ok(baseline)
}

fn replicas(model: &GetModelResponse) -> BTreeMap<StageKind, u32> {
    let of = |status: &sdxl_proto::v1::StageStatus| {
        Some((Stage::try_from(status.stage).ok().and_then(stage_kind)?, status.ready_replicas))
    };
    model.stages.iter().filter_map(of).collect()
}

/// When requests are sent, as the flags say; clap has seen to it that there is one pace and an end.
fn load_of(args: &LoadArgs) -> Load {
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let pace = match (args.pace.rate, args.pace.concurrency) {
        (Some(rate), _) => Pace::Open { rate, max_in_flight: size(args.max_in_flight) },
        (None, concurrency) => Pace::Closed { concurrency: size(concurrency.unwrap_or(1)) },
    };
    let warm_up = match args.warm_up.warm_up_requests {
        Some(requests) => WarmUp::Requests(requests),
        None => WarmUp::Time(args.warm_up.warm_up.unwrap_or_default()),
    };
    Load { pace, warm_up, duration: args.end.duration, requests: args.end.requests }
}
