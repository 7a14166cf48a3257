use super::testing::{Authority, Folder};
use super::*;
use crate::{
    Health, Shutdown,
    args::{ServerArgs, TlsArgs},
    server::{self, Server, ServerError},
};
use clap::Parser;
use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const STAGE: &str = "stage.sdxl.svc";
const COORDINATOR: &str = "coordinator.sdxl.svc";
const URI: &str = "spiffe://cluster.local/ns/sdxl/sa/coordinator";

#[derive(Parser)]
struct Binary {
    #[command(flatten)]
    server: ServerArgs<0>,
}

struct Running {
    address: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<Result<(), ServerError>>,
}

async fn start(tls: TlsArgs) -> Running {
    let args = Binary::try_parse_from(["x"]).unwrap().server;
    let listener = server::listen(&ServerArgs { tls, ..args }).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, shutdown) = (Health::new(&[]).await, Shutdown::new());
    health.set_serving().await;
    let server = Server {
        listener,
        health,
        descriptors: &[],
        drain_timeout: Duration::ZERO,
        shutdown: shutdown.clone(),
    };
    let serving = tokio::spawn(server::serve(server, tonic::service::Routes::default()));
    Running { address, shutdown, serving }
}

impl Running {
    fn channel(&self, tls: &ClientTls) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        tls.connect_lazy(&endpoint.connect_timeout(Duration::from_secs(5)))
    }

    async fn ask(&self, tls: &ClientTls) -> Result<(), Status> {
        ask(self.channel(tls)).await
    }

    /// The certificate that the server shows.
    async fn shown(&self, trusted: &Folder) -> Vec<u8> {
        let tls = trusted.client(true, STAGE);
        let connector = tokio_rustls::TlsConnector::from(tls.config());
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let connected = connector.connect(STAGE.try_into().unwrap(), tcp).await.unwrap();
        connected.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Whether the server ended the handshake with this alert.
fn is_sent_away(error: &Status, alert: &str) -> bool {
    format!("{error:?}").contains(&format!("received fatal alert: {alert}"))
}

async fn ask(channel: Channel) -> Result<(), Status> {
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(drop)
}

#[tokio::test]
async fn only_callers_with_the_right_certificate_are_let_in() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let stage = start(Folder::new(&ours, STAGE, &ours).server(&[COORDINATOR, URI])).await;
    for name in [COORDINATOR, "COORDINATOR.sdxl.svc", URI] {
        let caller = Folder::new(&ours, name, &ours);
        assert_eq!(stage.ask(&caller.client(true, STAGE)).await.map_err(|e| e.to_string()), Ok(()), "{name}");
        let error = stage.ask(&caller.client(false, STAGE)).await.unwrap_err();
        assert!(is_sent_away(&error, "CertificateRequired"), "{error:?}");
    }
    let cases = [
        (Folder::new(&other, COORDINATOR, &ours), "UnknownCA"),
        (Folder::new(&ours, "vae.sdxl.svc", &ours), "AccessDenied"),
        (Folder::new(&ours, "*.sdxl.svc", &ours), "AccessDenied"),
        (Folder::new(&ours, "https://cluster.local/ns/sdxl/sa/coordinator", &ours), "AccessDenied"),
    ];
    for (caller, alert) in cases {
        let error = stage.ask(&caller.client(true, STAGE)).await.unwrap_err();
        assert!(is_sent_away(&error, alert), "{alert}: {error:?}");
    }
    // Nor does the caller take another server for the one that it asked for.
    let caller = Folder::new(&ours, COORDINATOR, &ours);
    assert!(stage.ask(&caller.client(true, "vae.sdxl.svc")).await.is_err());
    let caller = Folder::new(&ours, COORDINATOR, &other);
    assert!(stage.ask(&caller.client(true, STAGE)).await.is_err());
    stage.shutdown.trigger();
    stage.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_an_authority_for_callers_anybody_is_let_in_who_speaks_tls() {
    let ours = Authority::new("ours");
    let folder = Folder::new(&ours, STAGE, &ours);
    let server = start(TlsArgs { tls_client_ca: None, ..folder.server(&[]) }).await;
    server.ask(&folder.client(false, STAGE)).await.unwrap();
    let plain = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let started = Instant::now();
    ask(plain.connect_lazy()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "it is told at once");
    // `/healthz` is there for HTTP/1.1.
    let mut config = (*folder.client(false, STAGE).config()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect(STAGE.try_into().unwrap(), tcp).await.unwrap();
    tls.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn those_who_say_nothing_hold_nobody_up_and_are_sent_away() {
    let ours = Authority::new("ours");
    let server = start(Folder::new(&ours, STAGE, &ours).server(&[])).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        tcp.write_all(&[22]).await.unwrap(); // how a handshake begins
        silent.push(tcp);
    }
    let started = Instant::now();
    server.ask(&Folder::new(&ours, COORDINATOR, &ours).client(true, STAGE)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(15), silent[0].read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the server still waits for it");
}

/// A connection whose handshake has begun and does not go on.
async fn begin(address: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(&[22]).await.unwrap();
    tcp
}

#[tokio::test]
async fn who_takes_all_places_for_handshakes_has_them_for_a_while_only() {
    let ours = Authority::new("ours");
    let server = start(Folder::new(&ours, STAGE, &ours).server(&[])).await;
    let address = server.address;
    let caller = Folder::new(&ours, COORDINATOR, &ours).client(true, STAGE);
    let open = server.channel(&caller);
    ask(open.clone()).await.unwrap();

    // Whoever is sent away comes again at once.
    let (began, mut knocking) = (Instant::now(), tokio::task::JoinSet::new());
    for _ in 0..accept::HANDSHAKES {
        let mut tcp = begin(address).await;
        knocking.spawn(async move {
            loop {
                let _ = tcp.read_to_end(&mut Vec::new()).await;
                tcp = begin(address).await;
            }
        });
    }
    // The system's queue has an order: this one comes after each of them has had a place, and before any has its second.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let late = caller.connect_lazy(&endpoint.connect_timeout(Duration::from_secs(60)));
    let late = tokio::spawn(ask(late));
    ask(open).await.expect("who is in stays in");
    late.await.unwrap().unwrap();
    println!("let in {:?} after {} others began", began.elapsed(), accept::HANDSHAKES);
    assert!(began.elapsed() >= accept::HANDSHAKE, "there are more places than that");
}

#[tokio::test]
async fn changed_files_are_used_for_new_connections_and_open_ones_go_on() {
    let ours = Authority::new("ours");
    let (stage, caller) = (Folder::new(&ours, STAGE, &ours), Folder::new(&ours, COORDINATOR, &ours));
    let server = start(stage.server(&[COORDINATOR])).await;
    let tls = caller.client(true, STAGE);
    let _following = tls.follow();
    let open = server.channel(&tls);
    ask(open.clone()).await.unwrap();
    let (first, first_of_caller) = (server.shown(&caller).await, tls.config());

    // A pair that does not fit changes nothing.
    fs::write(stage.path("key.pem"), ours.issue(STAGE).1).unwrap();
    fs::write(caller.path("cert.pem"), "none").unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(server.shown(&Folder::new(&ours, COORDINATOR, &ours)).await == first);
    assert!(Arc::ptr_eq(&tls.config(), &first_of_caller));

    stage.renew(&ours, STAGE);
    caller.renew(&ours, COORDINATOR);
    let end = Instant::now() + Duration::from_secs(30);
    while server.shown(&caller).await == first || Arc::ptr_eq(&tls.config(), &first_of_caller) {
        assert!(Instant::now() < end, "the old ones are still in use");
        ask(open.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ask(open).await.unwrap();
    server.ask(&tls).await.unwrap();
}

#[test]
fn what_is_wrong_is_one_line_that_names_flag_and_file() {
    let ours = Authority::new("ours");
    let folder = Folder::new(&ours, STAGE, &ours);
    let path = |file: &str| folder.path(file).display().to_string();
    let (_, other_key) = ours.issue(STAGE);
    let cut = fs::read_to_string(folder.path("cert.pem")).unwrap().replace("-----END CERTIFICATE-----", "");
    let key = fs::read_to_string(folder.path("key.pem")).unwrap();
    let garbled = key.replacen("-----\n", "-----\n!!", 1);
    for (file, text) in
        [("other.pem", other_key.as_str()), ("empty.pem", ""), ("cut.pem", &cut), ("garbled.pem", &garbled)]
    {
        fs::write(folder.path(file), text).unwrap();
    }
    let bogus = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(folder.path("bogus.pem"), bogus).unwrap();

    let args = |change: &dyn Fn(&mut TlsArgs)| {
        let mut args = folder.server(&[]);
        change(&mut args);
        ServerTls::new(&args).map(|tls| tls.is_some()).map_err(|error| error.to_string())
    };
    let cert = |file: &str| args(&|args| args.tls_cert = Some(folder.path(file)));
    let key = |file: &str| args(&|args| args.tls_key = Some(folder.path(file)));
    let ca = |file: &str| args(&|args| args.tls_client_ca = Some(folder.path(file)));
    assert_eq!(args(&|_| {}), Ok(true));
    assert_eq!(args(&|args| *args = TlsArgs::default()), Ok(false));
    assert_eq!(
        args(&|args| args.tls_client_name = vec![String::new()]),
        Ok(true),
        "a variable set to nothing"
    );

    let none = "cannot be read: No such file or directory (os error 2)";
    let cases = [
        (args(&|args| args.tls_key = None), "--tls-cert needs --tls-key beside it".to_owned()),
        (args(&|args| args.tls_cert = None), "--tls-key needs --tls-cert beside it".to_owned()),
        (
            args(&|args| (args.tls_cert, args.tls_key) = (None, None)),
            "--tls-client-ca needs --tls-cert beside it".to_owned(),
        ),
        (
            args(&|args| {
                *args =
                    TlsArgs { tls_client_ca: None, tls_client_name: vec!["a".to_owned()], ..args.clone() };
            }),
            "--tls-client-name needs --tls-client-ca beside it".to_owned(),
        ),
        (cert("none.pem"), format!("--tls-cert: {}: {none}", path("none.pem"))),
        (key("none.pem"), format!("--tls-key: {}: {none}", path("none.pem"))),
        (ca("none.pem"), format!("--tls-client-ca: {}: {none}", path("none.pem"))),
        (cert("key.pem"), format!("--tls-cert: {}: there is no certificate in it, in PEM", path("key.pem"))),
        (
            ca("empty.pem"),
            format!("--tls-client-ca: {}: there is no certificate in it, in PEM", path("empty.pem")),
        ),
        (cert("cut.pem"), format!("--tls-cert: {}: it is cut off: an END line is missing", path("cut.pem"))),
        (
            key("garbled.pem"),
            format!("--tls-key: {}: what is between BEGIN and END is not base64", path("garbled.pem")),
        ),
        (key("cert.pem"), format!("--tls-key: {}: there is no private key in it, in PEM", path("cert.pem"))),
        (
            cert("bogus.pem"),
            format!(
                "--tls-cert: {}: the first certificate in it is none: TrailingData(SignedData)",
                path("bogus.pem")
            ),
        ),
        (
            key("other.pem"),
            format!(
                "--tls-key: {}: it is not the key of the certificate in --tls-cert: {}",
                path("other.pem"),
                path("cert.pem")
            ),
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said.unwrap_err(), expected);
    }
    let error = ca("bogus.pem").unwrap_err();
    assert!(error.starts_with(&format!("--tls-client-ca: {}: ", path("bogus.pem"))), "{error}");
    assert!(
        ClientTls::new(PemFiles::default(), Some("a b"), "tls-name").unwrap_err().to_string().contains("a b")
    );
}
