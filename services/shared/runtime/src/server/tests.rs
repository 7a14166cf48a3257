use super::*;
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::http::{self, Response},
    server::NamedService,
    transport::Channel,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_prost::ProstCodec;

/// Answers any call after a while with "not implemented", which is an answer that shows it was asked.
#[derive(Clone)]
struct Slow(Duration);

impl NamedService for Slow {
    const NAME: &'static str = "test.Slow";
}

impl tower::Service<http::Request<Body>> for Slow {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let time = self.0;
        Box::pin(async move {
            tokio::time::sleep(time).await;
            Ok(Status::unimplemented("done").into_http())
        })
    }
}

/// A free port of loopback.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Running {
    address: SocketAddr,
    channel: Channel,
    health: Health,
    shutdown: Shutdown,
    serving: JoinHandle<Result<(), ServerError>>,
}

async fn start(call_time: Duration, drain_timeout: Duration) -> Running {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, shutdown) = (Health::new(&[Slow::NAME]).await, Shutdown::new());
    let server = Server {
        listener,
        health: health.clone(),
        descriptors: &[],
        drain_timeout,
        shutdown: shutdown.clone(),
    };
    let serving = tokio::spawn(serve(server, Routes::new(Slow(call_time))));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Running { address, channel, health, shutdown, serving }
}

/// The status that a call of the slow service ends with.
fn call(channel: &Channel) -> JoinHandle<Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    tokio::spawn(async move {
        client.ready().await.unwrap();
        let request = Request::new(HealthCheckRequest::default());
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/test.Slow/Call");
        client.unary(request, path, codec).await.unwrap_err()
    })
}

async fn status_of(channel: &Channel, service: &str) -> ServingStatus {
    HealthClient::new(channel.clone())
        .check(HealthCheckRequest { service: service.to_owned() })
        .await
        .unwrap()
        .into_inner()
        .status()
}

#[tokio::test]
async fn health_follows_what_is_said() {
    let server = start(Duration::ZERO, Duration::from_secs(5)).await;
    for service in ["", Slow::NAME] {
        assert_eq!(status_of(&server.channel, service).await, ServingStatus::NotServing);
    }
    server.health.set_serving().await;
    for service in ["", Slow::NAME] {
        assert_eq!(status_of(&server.channel, service).await, ServingStatus::Serving);
    }
    server.shutdown.trigger();
    server.serving.await.unwrap().unwrap();
}

/// The head's first line and the body of `/healthz`, as a probe or curl gets them.
async fn healthz(address: SocketAddr) -> (String, serde_json::Value) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn plain_http_is_told_too() {
    let server = start(Duration::from_millis(400), Duration::from_secs(5)).await;
    server.health.set_obstacle("no replica of vae is ready".to_owned()).await;
    server.health.set_dependency("redis", false);
    let (line, page) = healthz(server.address).await;
    assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(
        (&page["status"], &page["obstacle"]),
        (&"NOT_SERVING".into(), &"no replica of vae is ready".into())
    );
    assert_eq!(page["dependencies"]["redis"], "NOT_SERVING");
    assert!(page.get("lasts").is_none(), "it may pass");
    server.health.set_lasting_obstacle("they do not fit".to_owned()).await;
    let (_, page) = healthz(server.address).await;
    assert_eq!((&page["obstacle"], &page["lasts"]), (&"they do not fit".into(), &true.into()));
    server.health.set_serving().await;
    let (line, page) = healthz(server.address).await;
    assert_eq!(line, "HTTP/1.1 200 OK", "it serves without what it can do without");
    assert_eq!(
        (&page["obstacle"], &page["services"][Slow::NAME]),
        (&serde_json::Value::Null, &"SERVING".into())
    );
    // While it drains it says that it does not serve, and is still asked.
    let running = call(&server.channel);
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.shutdown.trigger();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(healthz(server.address).await.0, "HTTP/1.1 503 Service Unavailable");
    running.await.unwrap();
    server.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn health_has_an_address_of_its_own_where_that_is_wanted() {
    let port = |listener: &Listener| listener.local_addr().unwrap();
    let (calls, probes) = (bind(ANY).await.unwrap(), bind(ANY).await.unwrap());
    let (address, probed) = (port(&calls), port(&probes));
    let (health, shutdown) = (Health::new(&[Slow::NAME]).await, Shutdown::new());
    let server = Server {
        listener: Listener { health: Some(probes.calls), ..calls },
        health: health.clone(),
        descriptors: &[],
        drain_timeout: Duration::from_secs(5),
        shutdown: shutdown.clone(),
    };
    let serving = tokio::spawn(serve(server, Routes::new(Slow(Duration::ZERO))));
    let channel = Channel::from_shared(format!("http://{probed}")).unwrap().connect().await.unwrap();
    assert_eq!(status_of(&channel, Slow::NAME).await, ServingStatus::NotServing);
    health.set_serving().await;
    assert_eq!(status_of(&channel, Slow::NAME).await, ServingStatus::Serving);
    assert_eq!(healthz(probed).await.0, "HTTP/1.1 200 OK");
    // Of the services there is none.
    assert_eq!(call(&channel).await.unwrap().message(), "");
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    assert_eq!(call(&channel).await.unwrap().message(), "done");
    shutdown.trigger();
    timeout(Duration::from_secs(3), serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn calls_at_the_same_time_are_bounded() {
    let server = start(Duration::ZERO, Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "a server begins with SETTINGS");
    let mut settings = vec![0; usize::from(head[2])];
    stream.read_exact(&mut settings).await.unwrap();
    let most = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
    assert_eq!(most[2..], MAX_STREAMS.to_be_bytes());
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_what_comes() {
    let server = start(Duration::from_millis(400), Duration::from_secs(5)).await;
    let running = call(&server.channel);
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.shutdown.trigger();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(status_of(&server.channel, "").await, ServingStatus::NotServing);
    assert_eq!(call(&server.channel).await.unwrap().code(), Code::Unavailable);
    assert_eq!(running.await.unwrap().message(), "done");
    server.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_health_watch_and_an_endless_call_do_not_hold_the_server() {
    let server = start(Duration::from_secs(3600), Duration::from_millis(200)).await;
    let mut watch = HealthClient::new(server.channel.clone())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    let _endless = call(&server.channel);
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.shutdown.trigger();
    timeout(Duration::from_secs(3), server.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_deadline_is_deadline_exceeded_and_not_cancelled() {
    // Past the wire: tonic's client would end the call by itself.
    let layer = CallLayer::new(Health::new(&[]).await, Shutdown::new(), &[]);
    let mut service = tower::Layer::layer(&layer, Slow(Duration::from_secs(3600)));
    let mut request = http::Request::new(Body::empty());
    request.headers_mut().insert("grpc-timeout", "30m".parse().unwrap());
    let answer = tower::Service::call(&mut service, request).await.unwrap();
    assert_eq!(answer.headers().get("grpc-status").unwrap(), "4");
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = first.local_addr().unwrap();
    let error = anyhow::Error::from(bind(address).await.unwrap_err());
    let line = format!("{error:#}");
    assert!(line.starts_with(&format!("cannot listen on {address}: ")), "{line}");
    assert_eq!(line.matches("in use").count(), 1, "the reason is told once: {line}");
}
