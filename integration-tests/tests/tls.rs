//! A cluster whose servers all ask for certificates.

use integration_tests::{
    Clients, Picture, Profile, Server,
    certificates::{Authority, Identity},
    fox, process,
};
use sdxl_proto::v1::GetStageRequest;
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::AsyncReadExt;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use tonic_health::pb::health_check_response::ServingStatus;

const STAGE: &str = "stage.sdxl.svc";
const COORDINATOR: &str = "coordinator.sdxl.svc";
const CLIENT: &str = "client.example.org";
const READY: Duration = Duration::from_secs(60);
/// By when a certificate that was renewed is in use.
const IN_USE: Duration = Duration::from_secs(30);

const STAGES: [(&str, &str); 4] = [
    ("sdxl-text-encoder", "--text-encoder"),
    ("sdxl-base-unet", "--base-unet"),
    ("sdxl-refiner", "--refiner"),
    ("sdxl-vae", "--vae"),
];

fn start_stage(binary: &str, profile: &Path, identity: &Identity, listen: &str) -> Server {
    let mut args = identity.flags("tls-", "--tls-client-ca");
    args.extend(["--tls-client-name", COORDINATOR, "--health-listen", "127.0.0.1:0"].map(str::to_owned));
    let profile = profile.display().to_string();
    args.extend(["--engine", "simulated", "--profile", &profile].map(str::to_owned));
    process::Starting::spawn_at(binary, &args, listen).listening()
}

/// Four stages that let in the coordinator alone, and a coordinator that lets in all with a certificate.
struct Secured {
    profile: Profile,
    of_stages: Identity,
    of_coordinator: Identity,
    of_client: Identity,
    stages: Vec<Server>,
    coordinator: Server,
}

impl Secured {
    /// `later` is an authority that is trusted too.
    async fn start(ours: &Authority, later: &Authority) -> Self {
        let profile = Profile::quick(0.01);
        let of = |name| Identity::new(ours, name, &[ours, later]);
        let (of_stages, of_coordinator, of_client) = (of(STAGE), of(COORDINATOR), of(CLIENT));
        let start = |(binary, _)| start_stage(binary, profile.path(), &of_stages, "127.0.0.1:0");
        let stages: Vec<_> = STAGES.into_iter().map(start).collect();
        let mut args = of_coordinator.flags("tls-", "--tls-client-ca");
        args.extend(of_coordinator.flags("stage-tls-", "--stage-tls-ca"));
        args.extend(["--stage-tls-name", STAGE].map(str::to_owned));
        for ((_, flag), stage) in STAGES.iter().zip(&stages) {
            args.extend([(*flag).to_owned(), host(stage).to_owned()]);
        }
        let coordinator = Server::start("sdxl-coordinator", &args);
        let cluster = Self { profile, of_stages, of_coordinator, of_client, stages, coordinator };
        let clients = cluster.clients();
        assert!(clients.becomes(ServingStatus::Serving, READY).await, "{}", cluster.stderr());
        cluster
    }

    /// Over a connection of their own.
    fn clients(&self) -> Clients {
        Clients::over(self.coordinator.address(), &self.of_client.client(true, COORDINATOR))
    }

    fn stderr(&self) -> String {
        self.stages.iter().chain([&self.coordinator]).map(Server::stderr).collect()
    }
}

/// Where it listens, without the scheme.
fn host(server: &Server) -> &str {
    server.address().strip_prefix("https://").expect("it speaks TLS")
}

/// A connection to a server by another client than ours, with `identity`'s certificate or with none.
async fn connection(
    server: &Server,
    name: &'static str,
    identity: &Identity,
    shows: bool,
) -> TlsStream<tokio::net::TcpStream> {
    let read = |file| CertificateDer::pem_file_iter(identity.file(file)).unwrap().map(Result::unwrap);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read("ca.pem"));
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = if shows {
        let key = PrivateKeyDer::from_pem_file(identity.file("key.pem")).unwrap();
        config.with_client_auth_cert(read("cert.pem").collect(), key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let tcp = tokio::net::TcpStream::connect(host(server)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::try_from(name).unwrap(), tcp).await.unwrap()
}

/// The certificate that a server shows.
async fn shown(server: &Server, name: &'static str, identity: &Identity) -> Vec<u8> {
    let connected = connection(server, name, identity, true).await;
    connected.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Why a server closes the connection of a client that sends nothing after its certificate. (A gRPC client sends its
/// first frames with it, and a server that closes before it read them resets the connection: the client may never see
/// the alert.)
async fn refusal(server: &Server, name: &'static str, identity: &Identity, shows: bool) -> String {
    let mut connected = connection(server, name, identity, shows).await;
    connected.read_u8().await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_picture_comes_over_hops_that_are_all_authenticated() {
    let (ours, later) = (Authority::new("ours"), Authority::new("later"));
    let cluster = Secured::start(&ours, &later).await;
    let answer = cluster.clients().images().generate(fox()).await.unwrap().into_inner();
    assert_eq!(Picture::decode(&answer.images[0].data).size(), (64, 64));

    // Probes have no certificate, and learn a stage's health where it is told to them.
    let log = cluster.stages[0].stderr();
    let probed = log.lines().find_map(|line| line.split_once("health on http://")).expect("it is logged").1;
    let mut stream = TcpStream::connect(probed.trim()).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");

    // The command line needs a certificate too; it asks for the server by the address that it was given.
    let own = Identity::new(&ours, CLIENT, &[&ours]);
    let refused = |args: Vec<String>| {
        let endpoint = ["model", "--endpoint", cluster.coordinator.address()].map(str::to_owned);
        let output = process::run(process::command("sdxl", endpoint.into_iter().chain(args)), READY);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(own.flags("tls-", "--tls-ca"));
    assert!(error.contains("not valid for name \"127.0.0.1\"") && error.lines().count() == 1, "{error}");
    let flags = own.flags("tls-", "--tls-ca");
    let localhost = Identity::new(&ours, "localhost", &[&ours]);
    let front = front_door(&cluster, &localhost);
    let endpoint = front.address().replace("127.0.0.1", "localhost");
    let args = ["model", "--endpoint", &endpoint].map(str::to_owned).into_iter().chain(flags);
    let deadline = Instant::now() + READY;
    loop {
        let output = process::run(process::command("sdxl", args.clone()), READY);
        if output.status.success() {
            assert!(String::from_utf8_lossy(&output.stdout).contains("quick"));
            break;
        }
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < deadline, "{error}\n{}", front.stderr());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Another coordinator of the same stages, whose certificate for callers is `identity`.
fn front_door(cluster: &Secured, identity: &Identity) -> Server {
    let mut args = identity.flags("tls-", "--tls-client-ca");
    args.extend(cluster.of_coordinator.flags("stage-tls-", "--stage-tls-ca"));
    args.extend(["--stage-tls-name", STAGE].map(str::to_owned));
    for ((_, flag), stage) in STAGES.iter().zip(&cluster.stages) {
        args.extend([(*flag).to_owned(), host(stage).to_owned()]);
    }
    Server::start("sdxl-coordinator", &args)
}

#[tokio::test]
async fn a_stage_refuses_whoever_is_not_the_coordinator() {
    let (ours, later, other) = (Authority::new("ours"), Authority::new("later"), Authority::new("other"));
    let cluster = Secured::start(&ours, &later).await;
    let coordinator = cluster.of_coordinator.client(true, STAGE);
    let stranger = Identity::new(&other, COORDINATOR, &[&ours]);
    for stage in &cluster.stages {
        let ask = async |clients: Clients| clients.stage().get_stage(GetStageRequest {}).await;
        let cases = [
            (&cluster.of_coordinator, false, "received fatal alert: CertificateRequired"),
            (&stranger, true, "received fatal alert: UnknownCA"),
            (&cluster.of_stages, true, "received fatal alert: AccessDenied"),
        ];
        for (identity, shows, alert) in cases {
            ask(Clients::over(stage.address(), &identity.client(shows, STAGE))).await.unwrap_err();
            assert_eq!(refusal(stage, STAGE, identity, shows).await, alert);
        }
        let started = Instant::now();
        ask(Clients::new(&format!("http://{}", host(stage)))).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        ask(Clients::over(stage.address(), &coordinator)).await.unwrap();
        let log = stage.stderr();
        assert!(log.contains("a caller was not let in: it showed no certificate"), "{log}");
    }
    let answer = cluster.clients().images().generate(fox()).await.unwrap().into_inner();
    assert_eq!(answer.images.len(), 1);
}

#[tokio::test]
async fn renewed_certificates_are_in_use_and_no_request_fails() {
    let (ours, later) = (Authority::new("ours"), Authority::new("later"));
    let mut cluster = Secured::start(&ours, &later).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for seed in 0..3 {
        let (clients, address) = (cluster.clients(), cluster.coordinator.address().to_owned());
        let fresh = cluster.of_client.client(true, COORDINATOR);
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        load.spawn(async move {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                // Every second one over a new connection.
                let clients = if asked % 2 == 0 { clients.clone() } else { Clients::over(&address, &fresh) };
                let mut request = fox();
                request.seed = Some(seed * 1000 + asked);
                clients.images().generate(request).await?;
                answered.fetch_add(1, Ordering::Relaxed);
                asked += 1;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    // The coordinator's present one, in other hands.
    let lost = Identity::new(&ours, COORDINATOR, &[&ours, &later]);
    // From another authority, which those who are to see them trust already.
    let renewed = Instant::now();
    let of_stages = cluster.of_stages.renew(&later, STAGE);
    let of_coordinator = cluster.of_coordinator.renew(&later, COORDINATOR);
    let mut waiting: Vec<_> = cluster.stages.iter().map(|stage| (stage, STAGE, &of_stages)).collect();
    waiting.push((&cluster.coordinator, COORDINATOR, &of_coordinator));
    for (server, name, expected) in waiting {
        while shown(server, name, &cluster.of_coordinator).await != *expected {
            assert!(renewed.elapsed() < IN_USE, "{}", server.stderr());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    println!("in use by all servers after {:?}", renewed.elapsed());

    // The old authority is taken away from the stages, as after a key of it was lost: who shows its certificates is out.
    std::fs::write(cluster.of_stages.file("ca.pem"), later.pem()).unwrap();
    let removed = Instant::now();
    let (old, new) = (lost.client(true, STAGE), cluster.of_coordinator.client(true, STAGE));
    for stage in &cluster.stages {
        let ask = async |tls| Clients::over(stage.address(), tls).stage().get_stage(GetStageRequest {}).await;
        while ask(&old).await.is_ok() {
            assert!(removed.elapsed() < IN_USE, "{}", stage.stderr());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ask(&new).await.unwrap();
    }
    println!("shut out of all stages after {:?}", removed.elapsed());
    let before = answered.load(Ordering::Relaxed);
    while answered.load(Ordering::Relaxed) < before + 3 && !load.is_empty() {
        assert!(removed.elapsed() < READY, "{}", cluster.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A stage that comes back and trusts the new authority alone is reached by the coordinator's new certificate alone.
    // The load ends first: work under way when a stage dies is another test's matter.
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap().unwrap_or_else(|error| panic!("{error:?}\n{}", cluster.stderr()));
    }
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered >= 10, "only {answered} requests ran meanwhile");
    println!("{answered} requests, none failed");
    let vae = cluster.stages.pop().unwrap();
    let listen = host(&vae).to_owned();
    vae.kill();
    cluster.stages.push(start_stage("sdxl-vae", cluster.profile.path(), &cluster.of_stages, &listen));
    let end = Instant::now() + READY;
    while let Err(error) = cluster.clients().images().generate(fox()).await {
        assert!(Instant::now() < end, "{error:?}\n{}", cluster.stderr());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The lines of a log that warn of something.
fn warnings(server: &Server, of: &str) -> Vec<String> {
    let log = server.stderr();
    log.lines().filter(|line| line.contains(" WARN ") && line.contains(of)).map(str::to_owned).collect()
}

/// Waits for a warning.
async fn warned(server: &Server, of: &str) {
    let end = Instant::now() + READY;
    while warnings(server, of).is_empty() {
        assert!(Instant::now() < end, "no {of:?} in {}", server.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn refused_certificates_are_told_on_both_sides_and_not_each_time() {
    let ours = Authority::new("ours");
    let profile = Profile::quick(0.01);
    let of_stages = Identity::new(&ours, STAGE, &[&ours]);
    let colleague = Identity::new(&ours, "other.sdxl.svc", &[&ours]);
    let started = Instant::now();
    let start = |(binary, _)| start_stage(binary, profile.path(), &of_stages, "127.0.0.1:0");
    let stages: Vec<_> = STAGES.into_iter().map(start).collect();
    let coordinator = |identity: &Identity, name: &str| {
        let mut args = identity.flags("stage-tls-", "--stage-tls-ca");
        args.extend(["--stage-tls-name", name].map(str::to_owned));
        for ((_, flag), stage) in STAGES.iter().zip(&stages) {
            args.extend([(*flag).to_owned(), host(stage).to_owned()]);
        }
        Server::start("sdxl-coordinator", &args)
    };
    let of_coordinator = Identity::new(&ours, COORDINATOR, &[&ours]);
    let misnamed = coordinator(&of_coordinator, "another.sdxl.svc");
    let refused = coordinator(&colleague, STAGE);
    warned(&refused, "there is no connection by TLS: received fatal alert: AccessDenied").await;
    warned(&misnamed, "there is no connection by TLS: invalid peer certificate").await;
    for stage in &stages {
        warned(stage, "a caller was not let in: its certificate is for no name in --tls-client-name").await;
    }

    // They try again and again, and a line tells of many.
    let one = &stages[0];
    while warnings(one, "more before it").is_empty() || warnings(&refused, "more before it").is_empty() {
        assert!(started.elapsed() < READY, "{}\n{}", one.stderr(), refused.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let most = 2 + usize::try_from(started.elapsed().as_secs()).unwrap() / 5;
    let secrets =
        [&of_stages, &colleague].map(|identity| std::fs::read_to_string(identity.file("key.pem")).unwrap());
    for (server, of) in [(one, "not let in"), (&refused, "by TLS"), (&misnamed, "by TLS")] {
        let lines = warnings(server, of);
        assert!(lines.len() <= most, "{} of {most}: {lines:?}", lines.len());
        let log = server.stderr();
        let told = |secret: &String| secret.lines().any(|line| log.contains(line));
        assert!(!secrets.iter().any(told) && !log.contains("BEGIN"), "{log}");
    }
}

#[test]
fn what_is_wrong_with_the_flags_is_one_line() {
    let ours = Authority::new("ours");
    let (one, two) = (Identity::new(&ours, STAGE, &[&ours]), Identity::new(&ours, STAGE, &[&ours]));
    let profile = Profile::quick(0.001);
    let engine = ["--engine", "simulated", "--profile"].map(str::to_owned);
    let stage: Vec<_> = engine.into_iter().chain([profile.path().display().to_string()]).collect();
    let replicas =
        ["--text-encoder", "t:1", "--base-unet", "b:1", "--vae", "v:1"].map(str::to_owned).to_vec();
    let file = |identity: &Identity, name| identity.file(name).display().to_string();
    let cases = [
        (
            "sdxl-vae",
            &stage,
            vec!["--tls-cert".to_owned(), file(&one, "cert.pem")],
            "--tls-cert needs --tls-key",
        ),
        (
            "sdxl-vae",
            &stage,
            ["--tls-cert", &file(&one, "cert.pem"), "--tls-key", &file(&two, "key.pem")]
                .map(str::to_owned)
                .to_vec(),
            "it is not the key of the certificate in --tls-cert: ",
        ),
        (
            "sdxl-coordinator",
            &replicas,
            ["--stage-tls-ca", "/none/ca.pem"].map(str::to_owned).to_vec(),
            "--stage-tls-ca: /none/ca.pem: cannot be read",
        ),
    ];
    for (binary, needed, flags, expected) in cases {
        let listen = ["--listen", "127.0.0.1:0"].map(str::to_owned);
        let args: Vec<_> = needed.iter().chain(&flags).cloned().chain(listen).collect();
        let output = process::run(process::command(binary, args), READY);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: --") && error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
