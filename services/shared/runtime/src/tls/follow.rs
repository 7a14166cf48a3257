//! Files that are read again when they change.

use super::{
    TlsError,
    pem::{Contents, PemFiles},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tracing::{info, warn};

/// Between two looks at the files. By content: Kubernetes changes a link to their folder, not them.
const LOOK: Duration = Duration::from_secs(2);

/// Makes a configuration of what the files hold.
type Build<C> = dyn Fn(&PemFiles, &Contents) -> Result<C, TlsError> + Send + Sync;

/// A configuration that is made of files, and the last one of them that made sense.
pub(super) struct Followed<C> {
    files: PemFiles,
    build: Box<Build<C>>,
    first: Contents,
    current: watch::Sender<Arc<C>>,
}

impl<C: Send + Sync + 'static> Followed<C> {
    /// Reads the files once.
    pub(super) fn new(
        files: PemFiles,
        build: impl Fn(&PemFiles, &Contents) -> Result<C, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let first = files.read()?;
        let current = watch::Sender::new(Arc::new(build(&files, &first)?));
        Ok(Self { files, build: Box::new(build), first, current })
    }

    /// For a new connection.
    pub(super) fn current(&self) -> Arc<C> {
        Arc::clone(&self.current.borrow())
    }

    /// Reads the files again and again until what it returns is dropped. Must be called in a tokio runtime.
    pub(super) fn follow(self: Arc<Self>) -> JoinSet<()> {
        let mut following = JoinSet::new();
        following.spawn(async move {
            let mut changes = Changes::new(self.first.clone());
            loop {
                sleep(LOOK).await;
                let this = Arc::clone(&self);
                let Ok(seen) = spawn_blocking(move || this.files.read()).await else { continue };
                if let Some(changed) = changes.see(seen) {
                    self.adopt(changed);
                }
            }
        });
        following
    }

    fn adopt(&self, changed: Seen) {
        let built = changed.and_then(|contents| (self.build)(&self.files, &contents));
        match built {
            Ok(config) => {
                self.current.send_replace(Arc::new(config));
                info!("{}: changed, and in use for new connections", self.names());
            }
            Err(why) => warn!("{why}; what was read before stays in use"),
        }
    }

    fn names(&self) -> String {
        let files = [&self.files.cert, &self.files.key, &self.files.ca];
        let flags: Vec<_> = files.into_iter().flatten().map(|file| format!("--{}", file.flag)).collect();
        flags.join(", ")
    }
}

impl<C> fmt::Debug for Followed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What a look found: the files' contents, or why they cannot be read.
type Seen = Result<Contents, TlsError>;

/// Tells what is new, once two looks agree on it, so that a pair of which only one half is written yet passes by.
struct Changes {
    known: Seen,
    last: Option<Seen>,
}

impl Changes {
    fn new(known: Contents) -> Self {
        Self { known: Ok(known), last: None }
    }

    /// What has changed since it was told last. Each thing is told once.
    fn see(&mut self, seen: Seen) -> Option<Seen> {
        if self.last.as_ref() != Some(&seen) {
            self.last = Some(seen);
            return None;
        }
        if self.known == seen {
            return None;
        }
        self.known = seen.clone();
        Some(seen)
    }
}
