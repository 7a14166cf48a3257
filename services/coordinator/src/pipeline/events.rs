//! What a request tells on its way.

use super::error::GenerateError;
use crate::placement::Address;
use sdxl_core::StageKind;
use sdxl_proto::v1::{self, generate_stream_response::Event};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc;
use tonic::Status;

/// What a response stream is made of.
pub(crate) type Item = Result<v1::GenerateStreamResponse, Status>;

/// Events that wait for a slow reader. Beyond that progress is left out; pictures never are.
const CAPACITY: usize = 1024;

/// The writing end of a request's events.
#[derive(Debug)]
pub(crate) struct Events {
    sender: mpsc::Sender<Item>,
    /// Whether anyone hears of progress.
    tells_progress: bool,
    steps_total: u32,
    steps_done: AtomicU32,
}

impl Events {
    /// Both ends, for pictures of `steps_total` steps each.
    pub(crate) fn channel(steps_total: u32) -> (Self, mpsc::Receiver<Item>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { sender, tells_progress: true, steps_total, steps_done: AtomicU32::new(0) }, receiver)
    }

    /// The same without progress, for callers that only wait for pictures: telling it would wake the request's task anew
    /// for each step.
    pub(crate) fn of_pictures(steps_total: u32) -> (Self, mpsc::Receiver<Item>) {
        let (events, receiver) = Self::channel(steps_total);
        (Self { tells_progress: false, ..events }, receiver)
    }

    /// `stage` is at work on a picture, or on what all pictures share.
    pub(crate) fn progress(
        &self,
        stage: StageKind,
        image_index: Option<u32>,
        steps_done: u32,
        replica: Option<&Address>,
    ) {
        if !self.tells_progress {
            return;
        }
        let progress = v1::GenerateProgress {
            stage: v1::Stage::from(stage).into(),
            image_index,
            steps_done,
            steps_total: self.steps_total,
            replica: replica.map(Address::to_string).unwrap_or_default(),
        };
        // Full: the reader is slow, and will hear of later steps. Closed: the next picture notices.
        let _ = self.sender.try_send(Ok(message(Event::Progress(progress))));
    }

    /// Whether anyone hears of each step.
    pub(crate) fn tells_progress(&self) -> bool {
        self.tells_progress
    }

    /// So many steps of a picture are done.
    pub(crate) fn steps(&self, steps: u32) {
        self.steps_done.fetch_add(steps, Ordering::Relaxed);
    }

    /// Steps done so far over all pictures.
    pub(crate) fn steps_done(&self) -> u32 {
        self.steps_done.load(Ordering::Relaxed)
    }

    /// A picture is done.
    pub(crate) async fn image(&self, image_index: u32, image: v1::Image) -> Result<(), GenerateError> {
        self.send(Ok(message(Event::Image(v1::GeneratedImage { image_index, image: Some(image) })))).await
    }

    /// All is done.
    pub(crate) async fn summary(&self, summary: v1::GenerateSummary) -> Result<(), GenerateError> {
        self.send(Ok(message(Event::Summary(summary)))).await
    }

    /// Nothing more will be done.
    pub(crate) async fn error(&self, status: Status) -> Result<(), GenerateError> {
        self.send(Err(status)).await
    }

    async fn send(&self, item: Item) -> Result<(), GenerateError> {
        self.sender.send(item).await.map_err(|_| GenerateError::CallerGone)
    }
}

/// A message of a response stream.
pub(crate) fn message(event: Event) -> v1::GenerateStreamResponse {
    v1::GenerateStreamResponse { event: Some(event) }
}
