//! `sdxl generate`: one request over the public API, its progress, its pictures.

mod args;
mod files;
mod parse;
mod progress;
mod report;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
mod timeline;

pub(crate) use args::{GenerateArgs, flag_of};
pub(crate) use files::replace;
pub(crate) use parse::size;

use crate::{
    connection::EndpointArgs,
    console,
    failure::Failure,
    model,
    preview::{self, Protocol},
    terminal::{self, TerminalArgs, Window},
};
use anyhow::{Context, anyhow};
use files::Target;
use progress::Progress;
use report::{ImageReport, Report};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        GenerateRequest, GeneratedImage, generate_stream_response::Event,
        image_generation_service_client::ImageGenerationServiceClient,
    },
};
use sdxl_runtime::{Deadline, Terms};
use std::{
    future,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};
use tonic::{Request, Status};

/// How long after the deadline the cluster's own word on it is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Makes the pictures that `args` describe, or lists sizes.
///
/// # Errors
/// [`Failure`]; pictures that had arrived before it stay written.
pub(crate) async fn run(args: GenerateArgs, terminal: &TerminalArgs) -> Result<(), Failure> {
    if args.list_sizes {
        return model::list_sizes(&args.endpoint).await;
    }
    let num_images = args.request.num_images.unwrap_or(1);
    let target = Target::new(args.output.output.clone(), args.output.image_format, num_images)?;
    let work = Work {
        request: args.request(target.format),
        endpoint: &args.endpoint,
        terms: Terms {
            deadline: args.timeout.and_then(Deadline::after),
            tenant: args.tenant.tenant.clone().unwrap_or_default(),
            ..Terms::default() // the priority is the request's own
        },
        preview: protocol(&args, terminal),
        json: args.output.json,
        timeline: args.output.trace.then(|| timeline::Style {
            columns: terminal::stderr_columns(),
            unicode: terminal.takes_utf8(),
            colour: terminal.coloured(),
        }),
        target,
    };
    tokio::select! {
        ended = work.run(io::stderr().is_terminal()) => ended,
        // Leaving drops the stream and its connection: the cluster stops working within a step or two.
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

/// How pictures are shown, if at all.
fn protocol(args: &GenerateArgs, terminal: &TerminalArgs) -> Option<Protocol> {
    if args.output.no_preview || args.output.json || !io::stdout().is_terminal() {
        return None;
    }
    args.output.preview.protocol(terminal)
}

struct Work<'a> {
    request: GenerateRequest,
    endpoint: &'a EndpointArgs,
    terms: Terms,
    preview: Option<Protocol>,
    json: bool,
    timeline: Option<timeline::Style>,
    target: Target,
}

impl Work<'_> {
    async fn run(&self, bars: bool) -> Result<(), Failure> {
        let started = Instant::now();
        let mut progress = Progress::new(self.request.num_images, bars);
        let mut report = Report::default();
        let ended = tokio::select! {
            ended = self.stream(&mut progress, &mut report, started) => ended,
            () = long_after(self.terms.deadline) => {
                Err(self.endpoint.explain(&Status::deadline_exceeded("the cluster did not answer in time")))
            }
        };
        progress.clear();
        ended?;
        for warning in report.warnings() {
            console::note(format_args!("warning: {warning}"));
        }
        if self.json {
            let json = serde_json::to_string_pretty(&report).context("the result is no JSON")?;
            console::result(json);
        } else if let Some(style) = self.timeline {
            console::note(timeline::draw(&report, style));
        } else {
            console::note(report.summary());
        }
        Ok(())
    }

    /// Sends the request and takes its answers until the last.
    async fn stream(
        &self,
        progress: &mut Progress,
        report: &mut Report,
        started: Instant,
    ) -> Result<(), Failure> {
        let channel = self.endpoint.connect().await?;
        let mut client =
            ImageGenerationServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = Request::new(self.request.clone());
        self.terms.apply(&mut request);
        let answer = client.generate_stream(request).await;
        let mut events = answer.map_err(|status| self.failure(&status))?.into_inner();
        while let Some(response) = events.message().await.map_err(|status| self.failure(&status))? {
            match response.event {
                Some(Event::Progress(event)) => progress.update(&event),
                Some(Event::Image(image)) => {
                    let image = self.take(image, progress)?;
                    report.images.push(image);
                }
                Some(Event::Summary(summary)) => {
                    report.close(summary, started.elapsed());
                    return Ok(());
                }
                // A newer cluster's event that this client does not know.
                None => {}
            }
        }
        Err(anyhow!("the cluster ended the answer before it was complete").into())
    }

    /// What `status` means, knowing that tonic reports a deadline of its own as CANCELLED.
    fn failure(&self, status: &Status) -> Failure {
        if status.code() == tonic::Code::Cancelled && self.terms.deadline.is_some_and(Deadline::passed) {
            return self.endpoint.explain(&Status::deadline_exceeded(status.message()));
        }
        self.endpoint.explain(status)
    }

    /// Writes and shows a picture as soon as it is there.
    fn take(&self, generated: GeneratedImage, progress: &Progress) -> Result<ImageReport, Failure> {
        let index = generated.image_index;
        let image = generated.image.context("the cluster sent an empty picture")?;
        let file = self.target.write(index, image.seed, &image.data)?;
        progress.finish(index);
        if !self.json {
            progress.suspend(|| {
                console::result(format_args!(
                    "{}  width {}, height {}, seed {}",
                    file.display(),
                    image.width,
                    image.height,
                    image.seed
                ));
                if let Some(protocol) = self.preview {
                    // The picture is safe in its file; a preview that fails is no reason to fail.
                    match preview::encode(protocol, &image.data, &image.media_type, Window::of_stdout()) {
                        Ok(bytes) => console::raw(&bytes),
                        Err(error) => console::note(format_args!("warning: no preview: {error:#}")),
                    }
                }
            });
        }
        let (width, height, seed) = (image.width, image.height, image.seed);
        let file = file.to_string_lossy().into_owned();
        Ok(ImageReport { index, file, media_type: image.media_type, width, height, seed })
    }
}

async fn long_after(deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.remaining() + GRACE).await,
        None => future::pending().await,
    }
}
