//! The coordinator finds replicas in EndpointSlices: with the chart's own flags and account, while the API server goes away,
//! comes back and forgets, under load. The test plays the controller that writes slices.
//!
//! The API server takes no loopback addresses in a slice, so all of it runs in a network of its own, which has nothing but a
//! loopback interface with further addresses.

use crate::{LEAST, helm, text, written};
use integration_tests::{
    ApiServer, Clients, Profile, Server, fox,
    kubernetes::{said, tools},
    process::{self, Starting},
};
use sdxl_proto::v1;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tonic_health::pb::health_check_response::ServingStatus;

const NAMESPACE: &str = "discovery";
const CALLERS: usize = 4;
/// A replica gets work, or gets none any more, so soon after its slice has changed.
const SOON: Duration = Duration::from_secs(1);
/// What has changed while the API server was away is known so soon after its return.
const RETURN: Duration = Duration::from_secs(2);
/// The same after the server itself began anew: for its first seconds it knows of no roles and forbids the watch.
const RESTART: Duration = Duration::from_secs(10);
const AWAY: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(400);

#[test]
fn replicas_come_and_go_with_their_slices() {
    if tools().is_none() {
        return;
    }
    let mut network = std::process::Command::new("unshare");
    let script = "ip link set lo up && for i in 1 2 3 4 5 6; do ip addr add 10.255.0.$i/32 dev lo; done && ip route add default dev lo && exec \"$0\" \"$@\"";
    network.args(["-rn", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    network.args(["--exact", "discovery::in_a_network_of_its_own", "--ignored", "--nocapture"]);
    let output = process::run(network, PATIENCE);
    let printed = String::from_utf8_lossy(&output.stdout);
    println!("{printed}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("1 passed"), "it ran");
}

/// A replica of a stage, at the port that the chart gives it.
struct Replica {
    stage: &'static str,
    host: String,
    port: u16,
    _server: Server,
}

impl Replica {
    fn start(stage: &'static str, port: u16, host: u8, profile: &Profile) -> Self {
        let path = profile.path().display().to_string();
        let host = format!("10.255.0.{host}");
        let args = ["--engine", "simulated", "--profile", &path];
        let listen = format!("{host}:{port}");
        let server = Starting::spawn_at(&format!("sdxl-{stage}"), args, &listen).listening();
        Self { stage, host, port, _server: server }
    }

    fn name(&self) -> String {
        format!("{}-{}", self.stage, self.host.replace('.', "-"))
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Says that it is there, or that it is about to go.
    fn write(&self, api: &ApiServer, terminates: bool) {
        let conditions = json!({"ready": !terminates, "serving": true, "terminating": terminates});
        let endpoints = json!([{"addresses": [self.host], "conditions": conditions}]);
        apply(api, self.stage, self.port, &self.name(), &endpoints);
    }

    fn delete(&self, api: &ApiServer) {
        api.kubectl(["delete", "endpointslice", &self.name(), "-n", NAMESPACE]);
    }
}

fn apply(api: &ApiServer, stage: &str, port: u16, name: &str, endpoints: &Value) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": format!("sdxl-{stage}")}},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": port}],
        "endpoints": endpoints,
    });
    let file = written(&slice);
    api.kubectl(["apply", "--server-side", "-n", NAMESPACE, "-f", file.path().to_str().unwrap()]);
}

/// The way to the API server, which can be closed.
struct Gate {
    port: u16,
    is_open: Arc<AtomicBool>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Gate {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Self {
            port: listener.local_addr().unwrap().port(),
            is_open: Arc::new(AtomicBool::new(true)),
            connections: Arc::default(),
        };
        let (is_open, connections) = (Arc::clone(&gate.is_open), Arc::clone(&gate.connections));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if is_open.load(Ordering::Relaxed) {
                    connections.lock().unwrap().spawn(async move {
                        if let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await {
                            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                        }
                    });
                }
            }
        });
        gate
    }

    fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
        self.connections.lock().unwrap().abort_all();
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

/// Pictures, one after the other: which base replica each was on, and when it was asked for.
#[derive(Default)]
struct Load {
    seen: Mutex<Vec<(Instant, String)>>,
    failed: Mutex<Vec<String>>,
    done: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    async fn call(&self, clients: Clients) {
        while !self.over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            match clients.images().generate(v1::GenerateRequest { num_inference_steps: 6, ..fox() }).await {
                Ok(answer) => {
                    let timings = answer.into_inner().timings;
                    let base = timings.into_iter().filter(|t| t.stage() == v1::Stage::BaseUnet);
                    self.seen.lock().unwrap().extend(base.map(|t| (begun, t.replica)));
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(status) => self.failed.lock().unwrap().push(status.to_string()),
            }
        }
    }

    /// How long after `since` the first picture was asked for that was made on `replica`.
    async fn begins_on(&self, replica: &str, since: Instant, limit: Duration) -> Option<Duration> {
        let first = || {
            let seen = self.seen.lock().unwrap();
            seen.iter().filter(|(begun, on)| on == replica && *begun >= since).map(|(begun, _)| *begun).min()
        };
        while since.elapsed() < limit + Duration::from_secs(2) {
            if let Some(first) = first() {
                return Some(first - since).filter(|after| *after <= limit);
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// How long after `since` the last picture was asked for that was made on `replica`, in three seconds more.
    async fn ends_on(&self, replica: &str, since: Instant) -> Duration {
        sleep(Duration::from_secs(3)).await;
        let seen = self.seen.lock().unwrap();
        let last =
            seen.iter().filter(|(begun, on)| on == replica && *begun >= since).map(|(begun, _)| *begun).max();
        last.map_or(Duration::ZERO, |last| last - since)
    }
}

/// The configuration of the chart's account, through the gate.
fn through(config: &Path, gate: &Gate) -> PathBuf {
    let mut parsed: Value = serde_json::from_str(&fs::read_to_string(config).unwrap()).unwrap();
    parsed["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{}", gate.port));
    // In a pod it stands beside the account's token.
    parsed["contexts"][0]["context"]["namespace"] = json!(NAMESPACE);
    let path = config.with_extension("gate");
    fs::write(&path, parsed.to_string()).unwrap();
    path
}

fn port_of(config: &Path) -> u16 {
    let parsed: Value = serde_json::from_str(&fs::read_to_string(config).unwrap()).unwrap();
    let server = text(&parsed["clusters"][0]["cluster"]["server"]);
    server.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by replicas_come_and_go_with_their_slices, in a network of its own"]
async fn in_a_network_of_its_own() {
    let Some(tools) = tools() else { return };
    let api = ApiServer::start(tools);
    api.namespace(NAMESPACE, "privileged");
    said(&helm(&api, "install", NAMESPACE, &[], &LEAST));
    let profile = Profile::quick(0.02);
    let base = |host: u8| Replica::start("base-unet", 50062, host, &profile);
    let first = [
        Replica::start("text-encoder", 50061, 1, &profile),
        base(1),
        Replica::start("refiner", 50063, 1, &profile),
        Replica::start("vae", 50064, 1, &profile),
    ];
    for replica in &first {
        replica.write(&api, false);
    }

    let config = api.log_in(NAMESPACE, "sdxl-coordinator");
    let gate = Gate::to(port_of(&config)).await;
    let deployment = api.get(NAMESPACE, &["deployment", "sdxl-coordinator"]);
    let flags =
        deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().iter().map(text);
    let flags: Vec<_> = flags.filter(|flag| flag.contains("kubernetes:")).collect();
    assert_eq!(flags.len(), 4, "{flags:?}");
    let config = through(&config, &gate).display().to_string();
    let coordinator =
        Starting::spawn_with("sdxl-coordinator", &flags, "127.0.0.1:0", &[("KUBECONFIG", &config)])
            .listening();
    let clients = Clients::new(coordinator.address());
    assert!(
        clients.becomes(ServingStatus::Serving, Duration::from_secs(60)).await,
        "{}",
        coordinator.stderr()
    );

    let load = Arc::new(Load::default());
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (load, clients) = (Arc::clone(&load), Clients::new(coordinator.address()));
            tokio::spawn(async move { load.call(clients).await })
        })
        .collect();
    sleep(Duration::from_secs(2)).await;

    // One, then four.
    let added: Vec<_> = (2..=4).map(base).collect();
    for replica in &added {
        replica.write(&api, false);
        let after = load.begins_on(&replica.address(), Instant::now(), SOON).await;
        println!("{} was added: work after {after:?}", replica.name());
        assert!(after.is_some(), "{}", coordinator.stderr());
    }

    // One of them is about to end, another's slice goes.
    added[1].write(&api, true);
    let after = load.ends_on(&added[1].address(), Instant::now()).await;
    println!("{} is terminating: no work after {after:?}", added[1].name());
    assert!(after <= SOON, "{}", coordinator.stderr());
    added[2].delete(&api);
    let after = load.ends_on(&added[2].address(), Instant::now()).await;
    println!("{} was removed: no work after {after:?}", added[2].name());
    assert!(after <= SOON, "{}", coordinator.stderr());

    // The API server cannot be reached for a minute, in which a replica comes and another goes.
    let late = base(5);
    gate.close();
    sleep(AWAY / 2).await;
    late.write(&api, false);
    added[0].delete(&api);
    sleep(AWAY / 2).await;
    let (back, done) = (Instant::now(), load.done.load(Ordering::Relaxed));
    gate.open();
    let after = load.begins_on(&late.address(), back, RETURN).await;
    println!("back after {AWAY:?}: {} has work after {after:?}; {done} pictures so far", late.name());
    assert!(after.is_some(), "{}", coordinator.stderr());
    assert!(load.ends_on(&added[0].address(), back).await <= RETURN, "{}", coordinator.stderr());

    // The server itself goes and comes back without the history that the watch would go on from.
    api.go_away();
    sleep(Duration::from_secs(1)).await;
    api.forget_history();
    api.come_back();
    added[0].write(&api, false);
    let after = load.begins_on(&added[0].address(), Instant::now(), RESTART).await;
    println!("back without its history: {} has work after {after:?}", added[0].name());
    assert!(after.is_some(), "{}", coordinator.stderr());

    // Thousands of endpoints: most are not ready, and the others do not answer.
    let before = load.done.load(Ordering::Relaxed);
    for slice in 0..3 {
        let endpoint = |i: usize| {
            json!({"addresses": [format!("10.254.{}.{}", 4 * slice + i / 250, 1 + i % 250)],
            "conditions": {"ready": i < 50}})
        };
        let endpoints: Vec<_> = (0..1000).map(endpoint).collect();
        apply(&api, "base-unet", 50062, &format!("many-{slice}"), &json!(endpoints));
    }
    sleep(Duration::from_secs(5)).await;
    let done = load.done.load(Ordering::Relaxed) - before;
    println!("among 3000 endpoints, of which 150 are ready and none answers: {done} pictures more");
    assert!(done > 10, "{}", coordinator.stderr());

    load.over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let failed = load.failed.lock().unwrap();
    println!("{} pictures in all, {} failed", load.done.load(Ordering::Relaxed), failed.len());
    assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), coordinator.stderr());
}
