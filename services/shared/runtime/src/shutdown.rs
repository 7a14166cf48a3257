//! When to stop.

use std::{future::Future, io, io::Read, thread};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The wish to stop: expressed once, by whoever comes first, and heard by all clones.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that only [`Shutdown::trigger`] expresses.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM and SIGINT express, and with `stop_on_stdin_close` also the end of standard input. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// Where the signals cannot be listened to.
    pub fn on_signals(stop_on_stdin_close: bool) -> io::Result<Self> {
        let shutdown = Self::new();
        for (name, kind) in [("SIGTERM", SignalKind::terminate()), ("SIGINT", SignalKind::interrupt())] {
            let mut signals = signal(kind)?;
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                if signals.recv().await.is_some() && !shutdown.is_triggered() {
                    info!("{name}: shutting down");
                    shutdown.trigger();
                }
            });
        }
        if stop_on_stdin_close {
            let shutdown = shutdown.clone();
            // tokio's own standard input would keep the runtime from ending for as long as it stays open.
            thread::Builder::new().name("stdin".to_owned()).spawn(move || {
                wait_for_end(io::stdin().lock());
                info!("standard input was closed: shutting down");
                shutdown.trigger();
            })?;
        }
        Ok(shutdown)
    }

    /// Expresses the wish.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    /// Whether it has been expressed.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is.
    pub fn triggered(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }
}

fn wait_for_end(mut input: impl Read) {
    let mut ignored = [0; 1024];
    loop {
        match input.read(&mut ignored) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_clones_hear_it() {
        let shutdown = Shutdown::new();
        let heard = shutdown.clone().triggered();
        assert!(!shutdown.is_triggered());
        shutdown.trigger();
        heard.await;
        assert!(shutdown.clone().is_triggered());
    }

    #[test]
    fn what_a_parent_writes_is_not_the_end() {
        let mut input = io::Cursor::new(vec![0; 5000]);
        wait_for_end(&mut input);
        assert_eq!(input.position(), 5000);
    }
}
