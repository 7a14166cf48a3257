//! A cluster of simulated replicas, each a process, behind a real coordinator; and what its processes take.

use super::direct::Direct;
use integration_tests::{
    Clients,
    process::{Server, Starting},
};
use sdxl_proto::v1;
use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};
use tonic_health::pb::health_check_response::ServingStatus;

const PROFILE: &str = include_str!("profile.toml");
const READY: Duration = Duration::from_secs(120);
/// Clock ticks a second in /proc (`USER_HZ`), the same on every Linux that this runs on.
const TICKS: f64 = 100.0;
/// Connections that requests go over by turns.
const CONNECTIONS: usize = 8;
/// More than are ever in flight here, and one tenant gets half.
const MAX_REQUESTS: &str = "8192";
/// As many as share a step by the profile: what is active is in every step, so that its time is all waiting or running.
const MAX_ACTIVE: &str = "4";
const QUEUE_DEPTH: &str = "64";

/// How many replicas of each stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) text_encoders: usize,
    pub(crate) bases: usize,
    pub(crate) refiners: usize,
    pub(crate) vaes: usize,
}

impl Size {
    /// So many bases, and of the others what keeps up with them.
    pub(crate) fn of(bases: usize) -> Self {
        Self {
            text_encoders: bases.div_ceil(16),
            bases,
            refiners: bases.div_ceil(4),
            vaes: bases.div_ceil(8),
        }
    }
}

/// Running processes; they end when this is dropped.
pub(crate) struct Cluster {
    pub(crate) size: Size,
    coordinator: Server,
    stages: Vec<(&'static str, Vec<Server>)>,
    _profile: tempfile::TempDir,
}

impl Cluster {
    /// Starts one and waits until all its replicas take work.
    pub(crate) async fn start(size: Size) -> Self {
        Self::start_with(size, &[], &[]).await
    }

    /// The same with variables of the stages' environment, and of the coordinator's.
    pub(crate) async fn start_with(
        size: Size,
        of_stages: &[(&str, &str)],
        of_coordinator: &[(&str, &str)],
    ) -> Self {
        const LISTEN: &str = "127.0.0.1:0";
        let folder = tempfile::tempdir().expect("a folder for the profile");
        let path = folder.path().join("profile.toml");
        let mut file = fs::File::create(&path).expect("a profile");
        file.write_all(PROFILE.as_bytes()).expect("a profile");
        let path = path.display().to_string();
        let args = ["--engine", "simulated", "--profile", &path, "--max-active", MAX_ACTIVE];
        let args: Vec<_> = args.into_iter().chain(["--queue-depth", QUEUE_DEPTH]).collect();
        let kinds = [
            ("text-encoder", size.text_encoders),
            ("base-unet", size.bases),
            ("refiner", size.refiners),
            ("vae", size.vaes),
        ];
        let starting = kinds.map(|(kind, count)| {
            let binary = format!("sdxl-{kind}");
            (
                kind,
                (0..count)
                    .map(|_| Starting::spawn_with(&binary, &args, LISTEN, of_stages))
                    .collect::<Vec<_>>(),
            )
        });
        let mut flags = vec!["--max-requests".to_owned(), MAX_REQUESTS.to_owned()];
        let stages: Vec<_> = starting
            .into_iter()
            .map(|(kind, servers)| (kind, servers.into_iter().map(Starting::listening).collect::<Vec<_>>()))
            .collect();
        for (kind, servers) in &stages {
            let addresses: Vec<_> = servers.iter().map(Server::address).collect();
            flags.extend([format!("--{kind}"), addresses.join(",")]);
        }
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let coordinator =
            Starting::spawn_with("sdxl-coordinator", &flags, LISTEN, of_coordinator).listening();
        let cluster = Self { size, coordinator, stages, _profile: folder };
        cluster.until_ready().await;
        cluster
    }

    async fn until_ready(&self) {
        let clients = Clients::new(self.coordinator.address());
        assert!(clients.becomes(ServingStatus::Serving, READY).await, "{}", self.coordinator.stderr());
        let wanted: usize = self.stages.iter().map(|(_, servers)| servers.len()).sum();
        for _ in 0..600 {
            let model = clients.model().get_model(v1::GetModelRequest {}).await.expect("a ready cluster");
            let ready: u32 = model.into_inner().stages.iter().map(|stage| stage.ready_replicas).sum();
            if usize::try_from(ready) == Ok(wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not all {wanted} replicas get ready\n{}", self.coordinator.stderr());
    }

    /// Connections to the public service.
    pub(crate) fn clients(&self) -> Vec<Clients> {
        (0..CONNECTIONS).map(|_| Clients::new(self.coordinator.address())).collect()
    }

    /// Connections to all stages, past the coordinator.
    pub(crate) async fn direct(&self) -> Direct {
        let of = |wanted: &str| {
            let stage = self.stages.iter().find(|(kind, _)| *kind == wanted).expect("all stages are there");
            stage.1.iter().map(Server::address).collect()
        };
        Direct::new(["text-encoder", "base-unet", "refiner", "vae"].map(of)).await
    }

    /// How long calls take here that a stage answers at once, with next to nothing in them: what is the machine's own of a
    /// picture's latency, which is five calls long.
    pub(crate) async fn empty_calls_ms(&self) -> Vec<f64> {
        let mut client = Clients::new(self.stages[0].1[0].address()).stage();
        let mut times = Vec::new();
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let began = Instant::now();
            client.get_load(v1::GetLoadRequest {}).await.expect("a running stage");
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        times
    }

    /// Seconds of processor time that the coordinator has taken.
    pub(crate) fn coordinator_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.coordinator.pid())).unwrap_or_default();
        // Fields 14 and 15; the second, in brackets, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
        fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
    }

    /// MiB that the coordinator holds.
    pub(crate) fn coordinator_mib(&self) -> f64 {
        self.coordinator.resident_bytes() as f64 / (1024.0 * 1024.0)
    }

    /// Seconds that the devices of each stage have worked, over all replicas.
    pub(crate) async fn busy(&self) -> Vec<(&'static str, f64)> {
        let mut busy = Vec::new();
        for (kind, servers) in &self.stages {
            let mut seconds = 0.0;
            for server in servers {
                let load = Clients::new(server.address()).stage().get_load(v1::GetLoadRequest {}).await;
                let time = load.expect("a running stage").into_inner().busy_time.unwrap_or_default();
                seconds += Duration::try_from(time).expect("a duration").as_secs_f64();
            }
            busy.push((*kind, seconds / servers.len() as f64));
        }
        busy
    }
}

/// Shares of the processors' time that were used, since the start of the machine: `(used, all)` in ticks.
pub(crate) fn processors() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().sum();
    (all - idle, all)
}
