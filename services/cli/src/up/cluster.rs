//! All services of a cluster: started in order, watched, stopped in order.

use super::{
    log::{Role, note},
    process::{Exit, Process, Spec},
};
use crate::console;
use anyhow::{anyhow, bail};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    future::Future,
    io,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{Instant as TokioInstant, interval_at, sleep, timeout},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Between two questions for a service's health.
const POLL: Duration = Duration::from_millis(100);
/// Between two lines that tell who is still waited for.
const REMINDER: Duration = Duration::from_secs(10);
/// How long services that never served may take to end, and any service beyond its own drain time.
const GRACE: Duration = Duration::from_secs(2);
/// Signals that come within this time of each other are one wish.
const ECHO: Duration = Duration::from_millis(300);

/// The services that have been started.
pub(super) struct Cluster {
    processes: Vec<Process>,
    exits: mpsc::UnboundedReceiver<Exit>,
    exit_sender: mpsc::UnboundedSender<Exit>,
    drain_timeout: Duration,
    serving: bool,
}

impl Cluster {
    /// None yet.
    pub(super) fn new(drain_timeout: Duration) -> Self {
        let (exit_sender, exits) = mpsc::unbounded_channel();
        Self { processes: Vec::new(), exits, exit_sender, drain_timeout, serving: false }
    }

    /// Starts `stages`, waits until all are warm, then starts what `coordinator` makes of their addresses, in the
    /// same order. Prints `ready http://ADDR` when it serves, and watches until something dies that is needed.
    ///
    /// The coordinator comes last so that its first look finds every replica ready.
    ///
    /// # Errors
    /// A service cannot be started, ended before it was ready, or was the last of its stage.
    pub(super) async fn run(
        &mut self,
        stages: Vec<Spec>,
        coordinator: impl FnOnce(&[(Role, String)]) -> Spec,
    ) -> anyhow::Result<()> {
        let mut addresses = Vec::new();
        for spec in stages {
            self.processes.push(Process::start(spec, self.exit_sender.clone())?);
        }
        for process in &mut self.processes {
            let address = process.address();
            addresses.push((process.role, unless_one_ends(&mut self.exits, address).await?));
        }
        self.wait_until_warm(&addresses).await?;
        let mut process = Process::start(coordinator(&addresses), self.exit_sender.clone())?;
        let address = process.address();
        self.processes.push(process);
        let address = unless_one_ends(&mut self.exits, address).await?;
        let fits = async {
            tokio::select! {
                () = serving(address.clone()) => Ok(()),
                why = contradiction(address.clone()) => Err(anyhow!(why)),
            }
        };
        unless_one_ends(&mut self.exits, fits).await??;
        self.serving = true;
        console::result(format_args!("ready {address}"));
        self.watch().await
    }

    /// Waits until each stage's health says so, and tells how it goes.
    async fn wait_until_warm(&mut self, addresses: &[(Role, String)]) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut waiting = BTreeSet::new();
        let mut warm = JoinSet::new();
        for (process, (_, address)) in self.processes.iter().zip(addresses) {
            let (name, address) = (process.name.clone(), address.clone());
            waiting.insert(name.clone());
            warm.spawn(async move {
                serving(address).await;
                name
            });
        }
        let names = |waiting: &BTreeSet<String>| waiting.iter().cloned().collect::<Vec<_>>().join(", ");
        note(format_args!("waiting for {}", names(&waiting)));
        let mut reminder = interval_at(TokioInstant::now() + REMINDER, REMINDER);
        while !waiting.is_empty() {
            tokio::select! {
                Some(Ok(name)) = warm.join_next() => {
                    waiting.remove(&name);
                    note(format_args!("{name} is ready after {:.1} s", started.elapsed().as_secs_f64()));
                }
                Some(exit) = self.exits.recv() => bail!(exit.text),
                _ = reminder.tick() => {
                    note(format_args!("still waiting for {} ({} s)", names(&waiting), started.elapsed().as_secs()));
                }
            }
        }
        Ok(())
    }

    /// Goes on while each stage has a replica; restarts nothing.
    async fn watch(&mut self) -> anyhow::Result<()> {
        while let Some(exit) = self.exits.recv().await {
            let left = self.processes.iter().filter(|p| p.role == exit.role && p.is_alive()).count();
            if left == 0 {
                return Err(anyhow!(exit.text));
            }
            note(format_args!("error: {}; going on with the {left} left", exit.text));
        }
        Ok(())
    }

    /// Stops everything: the coordinator first, so that what it has at work can finish, then the stages. What does
    /// not end in time is killed; so is everything on another Ctrl-C.
    pub(super) async fn stop(&mut self) {
        let grace = if self.serving { self.drain_timeout + GRACE } else { GRACE };
        let (coordinator, stages): (Vec<_>, Vec<_>) =
            self.processes.iter().partition(|p| p.role == Role::Coordinator);
        tokio::select! {
            () = async {
                end(&coordinator, grace).await;
                end(&stages, grace).await;
            } => {}
            () = impatience() => {
                note("stopping at once");
                end(&coordinator, Duration::ZERO).await;
                end(&stages, Duration::ZERO).await;
            }
        }
    }
}

/// Ends `processes` at the same time; those that do not end within `grace` are killed.
async fn end(processes: &[&Process], grace: Duration) {
    for process in processes {
        process.terminate();
    }
    let gone = async {
        for process in processes {
            process.ended().await;
        }
    };
    if timeout(grace, gone).await.is_ok() {
        return;
    }
    for process in processes.iter().filter(|p| p.is_alive()) {
        if !grace.is_zero() {
            note(format_args!("{} did not end within {} s and is killed", process.name, grace.as_secs()));
        }
        process.kill();
    }
    for process in processes {
        process.ended().await;
    }
}

/// Another Ctrl-C while stopping. One that comes with the first signal is not meant: some programs send theirs twice,
/// to a process and to its group.
async fn impatience() {
    sleep(ECHO).await;
    match signal(SignalKind::interrupt()) {
        Ok(mut interrupts) => {
            interrupts.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// Waits for `wanted`, unless a process ends first.
async fn unless_one_ends<T>(
    exits: &mut mpsc::UnboundedReceiver<Exit>,
    wanted: impl Future<Output = T>,
) -> anyhow::Result<T> {
    tokio::select! {
        value = wanted => Ok(value),
        Some(exit) = exits.recv() => Err(anyhow!(exit.text)),
    }
}

/// Waits until the server at `address` says SERVING.
async fn serving(address: String) {
    let Ok(endpoint) = Endpoint::from_shared(address) else { return std::future::pending().await };
    let mut client = HealthClient::new(endpoint.connect_lazy());
    loop {
        let answer = client.check(HealthCheckRequest::default());
        if let Ok(Ok(answer)) = timeout(REMINDER, answer).await
            && answer.into_inner().status() == ServingStatus::Serving
        {
            return;
        }
        sleep(POLL).await;
    }
}

/// Waits until the coordinator at `address` says that its stages can never serve together, and why: they were started
/// from checkpoints that do not fit each other. It is asked where no key is needed.
async fn contradiction(address: String) -> String {
    loop {
        if let Ok(Ok(health)) = timeout(REMINDER, healthz(&address)).await
            && health.lasts
        {
            return health.obstacle;
        }
        sleep(POLL).await;
    }
}

/// What a server says at `/healthz` of what is in its way.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Healthz {
    obstacle: String,
    lasts: bool,
}

async fn healthz(address: &str) -> io::Result<Healthz> {
    let host = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::from_str(body)?)
}

#[cfg(test)]
mod tests;
