//! A stage's process, started and asked as anyone would.

use integration_tests::{
    client::Clients,
    process::{self, Server},
};
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tonic_health::pb::health_check_response::ServingStatus;

const READY: Duration = Duration::from_secs(900);

/// A stage that is ready.
#[derive(Debug)]
pub(crate) struct Stage {
    server: Server,
    runtime: Runtime,
    clients: Clients,
    /// Seconds from its start to its being ready.
    pub(crate) ready_s: f64,
}

impl Stage {
    /// Starts `binary` on the checkpoint `folder` and waits until it is ready, or gives what it died of.
    pub(crate) fn start(binary: &str, folder: &Path, dtype: &str) -> Result<Self, String> {
        let model = if binary == "sdxl-text-encoder" { "--base" } else { "--model" };
        eprintln!("  {binary} {dtype} ...");
        let began = Instant::now();
        let args = [model.as_ref(), folder.as_os_str(), "--dtype".as_ref(), dtype.as_ref()];
        let server = Server::start(binary, args);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let clients = runtime.block_on(async { Clients::new(server.address()) });
        while !runtime.block_on(clients.becomes(ServingStatus::Serving, Duration::from_secs(1))) {
            if server.wait(Duration::ZERO).is_some() {
                let log = server.stderr();
                let last =
                    log.lines().rfind(|line| line.starts_with("error: ")).unwrap_or("it ended").to_owned();
                return Err(format!("{binary} --dtype {dtype}: {last}"));
            }
            if began.elapsed() > READY {
                return Err(format!("{binary} --dtype {dtype}: not ready after {READY:?}"));
            }
        }
        Ok(Self { ready_s: began.elapsed().as_secs_f64(), server, runtime, clients })
    }

    pub(crate) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Waits for an answer of the stage.
    pub(crate) fn ask<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// The most memory that it has held, mapped weights included.
    pub(crate) fn peak_mib(&self) -> f64 {
        peak_mib(&format!("/proc/{}/status", self.server.pid()))
    }
}

fn peak_mib(status: &str) -> f64 {
    let status = fs::read_to_string(status).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("Linux names the peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// A duration on the wire in seconds.
pub(crate) fn seconds(duration: Option<prost_types::Duration>) -> f64 {
    let duration: Duration = duration.unwrap_or_default().try_into().expect("a duration");
    duration.as_secs_f64()
}

/// Where the bench keeps what it makes.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let folder = process::target_dir().join("bench");
    fs::create_dir_all(&folder).expect("a folder in target");
    folder.join(name)
}
