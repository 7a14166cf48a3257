//! Redis, where one is configured: one connection that comes back by itself, and whether it is there at the moment.
//!
//! Nobody waits for a Redis that is known to be gone: whatever is asked of it fails at once, until a probe finds it again.

mod sealed;

pub(crate) use sealed::{Unreadable, open, seal};

use redis::{
    Client, Cmd, FromRedisValue, RedisError, RedisResult, ScriptInvocation,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use sdxl_core::{Classify, ErrorClass};
use std::{
    fmt::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// For an answer, and for a connection. A request waits for one of each at most before it goes on without.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two probes while it is there.
const PROBE: Duration = Duration::from_secs(1);
/// Between two while it is gone.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why Redis did not do what it was asked.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// It has not answered of late.
    #[error("Redis cannot be reached")]
    Gone,
    /// It answered with an error, or the connection broke.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
}

impl Classify for StoreError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }
}

impl StoreError {
    /// The code that Redis's answer begins with, as "NOGROUP".
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Gone => None,
            Self::Redis(error) => error.code(),
        }
    }
}

/// The connection. Clones share it; it is let go with the last of them.
#[derive(Clone)]
pub(crate) struct Store(Arc<Shared>);

struct Shared {
    link: Arc<Link>,
    probing: AbortHandle,
}

/// What the probe shares with the others.
struct Link {
    client: Client,
    connection: Mutex<ConnectionManager>,
    up: watch::Sender<bool>,
    /// Something went wrong, so that a probe is due.
    doubt: Notify,
}

impl Store {
    /// Connects in the background. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Where `client` cannot be used in this runtime.
    pub(crate) fn start(client: Client) -> RedisResult<Self> {
        let connection = Mutex::new(lazy(&client)?);
        let link = Arc::new(Link { client, connection, up: watch::Sender::new(false), doubt: Notify::new() });
        let probing = tokio::spawn(probe(Arc::clone(&link))).abort_handle();
        Ok(Self(Arc::new(Shared { link, probing })))
    }

    /// Whether it is there, now and later.
    pub(crate) fn up(&self) -> watch::Receiver<bool> {
        self.0.link.up.subscribe()
    }

    /// Asks one command.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut connection = self.connection()?;
        let answer = command.query_async(&mut connection).await;
        self.told(answer)
    }

    /// Runs a script.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn invoke<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection()?;
        let answer = script.invoke_async(&mut connection).await;
        self.told(answer)
    }

    fn connection(&self) -> Result<ConnectionManager, StoreError> {
        if !*self.0.link.up.borrow() {
            return Err(StoreError::Gone);
        }
        Ok(self.0.link.connection())
    }

    fn told<T>(&self, answer: RedisResult<T>) -> Result<T, StoreError> {
        answer.map_err(|error| {
            if means_gone(&error) {
                self.0.link.say(false, &error.to_string());
                self.0.link.doubt.notify_one();
            }
            StoreError::Redis(error)
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("up", &*self.0.link.up.borrow()).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.probing.abort();
    }
}

impl Link {
    fn connection(&self) -> ConnectionManager {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what is new, once.
    fn say(&self, up: bool, why: &str) {
        let news = self.up.send_if_modified(|last| std::mem::replace(last, up) != up);
        match (news, up) {
            (false, _) => {}
            (true, true) => info!("Redis is there"),
            (true, false) => warn!("Redis is gone: {why}"),
        }
    }
}

fn lazy(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0) // the probe tries again
        .set_connection_timeout(Some(ANSWER))
        .set_response_timeout(Some(ANSWER));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// Bytes in hexadecimal, as names in Redis have them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Whether it is not there, or not able to serve yet.
fn means_gone(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("LOADING" | "MASTERDOWN" | "READONLY"))
}

async fn probe(link: Arc<Link>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut connection = link.connection();
        let ping = redis::cmd("PING");
        let why = match timeout(2 * ANSWER, ping.query_async::<()>(&mut connection)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        if let Some(why) = why {
            link.say(false, &why);
            // A connection that says nothing may never break by itself, as after a failover: begin with a new one.
            if let Ok(fresh) = lazy(&link.client) {
                *link.connection.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            link.say(true, "");
            pause = FIRST_PAUSE;
            // In doubt or in due time, whichever comes first.
            let _ = timeout(PROBE, link.doubt.notified()).await;
        }
    }
}
