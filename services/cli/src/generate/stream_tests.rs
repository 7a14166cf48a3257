//! Requests to a service in this process that answers as it is told to.

use super::*;
use crate::{args::Cli, args::Command};
use clap::Parser;
use sdxl_proto::v1::{
    GenerateProgress, GenerateResponse, GenerateStreamResponse, GenerateSummary, Image, Stage,
    image_generation_service_server::{ImageGenerationService, ImageGenerationServiceServer},
};
use sdxl_runtime::{Health, Shutdown, server};
use std::{path::Path, pin::Pin};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tonic::Response;

type Answer = Result<GenerateStreamResponse, Status>;

/// Answers each request with `answers` and then, if it is to hang, with nothing; notes when its caller has gone.
struct Scripted {
    answers: Vec<Answer>,
    hangs: bool,
    gone: mpsc::UnboundedSender<Terms>,
}

struct Gone(mpsc::UnboundedSender<Terms>, Terms);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send(std::mem::take(&mut self.1));
    }
}

#[tonic::async_trait]
impl ImageGenerationService for Scripted {
    async fn generate(&self, _: Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        Err(Status::unimplemented("the command line streams"))
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let terms = Terms::from_metadata(request.metadata()).unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        for answer in &self.answers {
            sender.send(answer.clone()).unwrap();
        }
        let held = self.hangs.then_some(sender);
        let gone = Gone(self.gone.clone(), terms);
        let answers = UnboundedReceiverStream::new(receiver).map(move |answer| {
            let _ = (&gone, &held);
            answer
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Its address, and what tells when a caller has gone, with the terms that it had sent.
async fn serve(answers: Vec<Answer>, hangs: bool) -> (String, mpsc::UnboundedReceiver<Terms>) {
    let (gone, callers) = mpsc::unbounded_channel();
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = ImageGenerationServiceServer::new(Scripted { answers, hangs, gone });
    let server = server::Server {
        listener,
        health: Health::new(&[]).await,
        descriptors: &[],
        drain_timeout: Duration::ZERO,
        shutdown: Shutdown::new(),
    };
    tokio::spawn(server::serve(server, tonic::service::Routes::new(service)));
    (address, callers)
}

async fn generate(endpoint: &str, output: &Path, flags: &[&str]) -> Result<(), Failure> {
    let fixed = ["sdxl", "generate", "a prompt", "--endpoint", endpoint, "-o", output.to_str().unwrap()];
    let cli = Cli::try_parse_from(fixed.iter().chain(flags)).unwrap();
    match cli.command {
        Command::Generate(args) => run(*args, &TerminalArgs::default()).await,
        other => panic!("{other:?}"),
    }
}

fn event(event: Event) -> Answer {
    Ok(GenerateStreamResponse { event: Some(event) })
}

fn picture(index: u32) -> Answer {
    let image = Image {
        data: vec![u8::try_from(index).unwrap(); 9].into(),
        media_type: "image/png".into(),
        width: 8,
        height: 16,
        seed: 40 + u64::from(index),
    };
    event(Event::Image(GeneratedImage { image_index: index, image: Some(image) }))
}

fn progress() -> Answer {
    let stage = Stage::BaseUnet.into();
    event(Event::Progress(GenerateProgress {
        stage,
        image_index: Some(7),
        steps_done: 9,
        ..Default::default()
    }))
}

fn failure_text(failure: &Failure) -> String {
    match failure {
        Failure::BadInput(lines) => lines.join("\n"),
        Failure::Failed(error) => format!("{error:#}"),
        Failure::Interrupted => "interrupted".to_owned(),
    }
}

#[tokio::test]
async fn pictures_are_written_in_whatever_order_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let unknown = Ok(GenerateStreamResponse { event: None });
    let answers =
        vec![progress(), picture(1), unknown, picture(0), event(Event::Summary(GenerateSummary::default()))];
    let (endpoint, _callers) = serve(answers, false).await;
    generate(&endpoint, &folder.path().join("cat.png"), &["--num-images", "2", "--json"]).await.unwrap();
    for index in 0..2 {
        let file = folder.path().join(format!("cat-{index}.png"));
        assert_eq!(std::fs::read(file).unwrap(), [index; 9]);
    }
}

#[tokio::test]
async fn what_had_arrived_before_a_failure_stays() {
    let folder = tempfile::tempdir().unwrap();
    let answers = vec![picture(0), Err(Status::unavailable("vae: the replica at work was lost"))];
    let (endpoint, _callers) = serve(answers, false).await;
    let output = folder.path().join("cat.png");
    let failure = generate(&endpoint, &output, &["--num-images", "2"]).await.unwrap_err();
    assert_eq!(failure.code(), 1);
    assert!(failure_text(&failure).contains("the replica at work was lost"), "{failure:?}");
    assert!(folder.path().join("cat-0.png").is_file());
}

#[tokio::test]
async fn an_answer_that_ends_early_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, _callers) = serve(vec![picture(0)], false).await;
    let failure = generate(&endpoint, &folder.path().join("cat.png"), &[]).await.unwrap_err();
    assert!(failure_text(&failure).contains("before it was complete"), "{failure:?}");
}

#[tokio::test]
async fn the_timeout_goes_to_the_cluster_and_ends_the_wait_for_one_that_ignores_it() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, mut callers) = serve(vec![progress()], true).await;
    let started = Instant::now();
    let failure =
        generate(&endpoint, &folder.path().join("cat.png"), &["--timeout", "0.5"]).await.unwrap_err();
    assert!(failure_text(&failure).contains("--timeout"), "{failure:?}");
    assert!(started.elapsed() < Duration::from_millis(500) + 2 * GRACE);
    let sent = tokio::time::timeout(Duration::from_secs(5), callers.recv()).await.unwrap().unwrap();
    assert!(sent.deadline.is_some(), "grpc-timeout was sent, and the cluster saw its caller go");
}

#[tokio::test]
async fn leaving_the_request_ends_it_at_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, mut callers) = serve(vec![progress()], true).await;
    let path = folder.path().join("cat.png");
    let request = tokio::time::timeout(Duration::from_millis(500), generate(&endpoint, &path, &[]));
    assert!(request.await.is_err());
    let sent = tokio::time::timeout(Duration::from_secs(5), callers.recv()).await.unwrap().unwrap();
    assert_eq!(sent, Terms::default(), "no --timeout, no deadline");
}

#[tokio::test]
async fn the_tenant_goes_to_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let answers = vec![picture(0), event(Event::Summary(GenerateSummary::default()))];
    let (endpoint, mut callers) = serve(answers, false).await;
    generate(&endpoint, &folder.path().join("cat.png"), &["--tenant", "team-7"]).await.unwrap();
    let sent = tokio::time::timeout(Duration::from_secs(5), callers.recv()).await.unwrap().unwrap();
    assert_eq!(sent.tenant.name(), "team-7");
}
