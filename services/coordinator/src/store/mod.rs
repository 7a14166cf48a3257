//! Redis, where one is configured: connections that come back by themselves, and whether it is there at the moment.
//!
//! Large values go over a connection of their own, so that nobody else waits behind them.
//!
//! Nobody waits for a Redis that is known to be gone: whatever is asked of it fails at once, until a probe finds it again.

mod asked;
mod sealed;

pub(crate) use sealed::{Unreadable, open, seal};

use asked::{asked, name};
use redis::{
    Client, Cmd, FromRedisValue, RedisError, RedisResult, Script, ScriptInvocation,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use sdxl_core::{Classify, ErrorClass};
use std::{
    fmt::{self, Write},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

/// For an answer, and for a connection. A request waits for one of each at most before it goes on without.
const ANSWER: Duration = Duration::from_secs(1);
/// For a large value to go over the wire.
const VALUE: Duration = Duration::from_secs(20);
/// Between two probes while it is there.
const PROBE: Duration = Duration::from_secs(1);
/// Between two while it is gone.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How scripts are run.
const SCRIPT: &str = "EVALSHA";

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

/// A server that cannot be written to is of no use. One that is full is: what ends, cancels and frees may run there.
static PROBING: LazyLock<Script> = LazyLock::new(|| Script::new("#!lua flags=allow-oom\nreturn 1"));

/// The connections. Clones share them; they are let go with the last of them.
#[derive(Clone)]
pub(crate) struct Store(Arc<Shared>);

struct Shared {
    link: Arc<Link>,
    _probing: AbortOnDropHandle<()>,
}

/// What the probe shares with the others.
struct Link {
    client: Client,
    connections: Mutex<Connections>,
    up: watch::Sender<Up>,
    /// Something went wrong, so that a probe is due.
    doubt: Notify,
}

#[derive(Clone)]
struct Connections {
    small: ConnectionManager,
    large: ConnectionManager,
}

impl Connections {
    fn new(client: &Client) -> RedisResult<Self> {
        Ok(Self { small: lazy(client, ANSWER)?, large: lazy(client, VALUE)? })
    }
}

/// Whether it is there, and since when it is so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Up {
    pub(crate) is_up: bool,
    pub(crate) since: Instant,
}

impl Store {
    /// Connects in the background. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Where `client` cannot be used in this runtime.
    pub(crate) fn start(client: Client) -> RedisResult<Self> {
        let connections = Mutex::new(Connections::new(&client)?);
        let up = watch::Sender::new(Up { is_up: false, since: Instant::now() });
        let link = Arc::new(Link { client, connections, up, doubt: Notify::new() });
        let _probing = AbortOnDropHandle::new(tokio::spawn(probe(Arc::clone(&link))));
        Ok(Self(Arc::new(Shared { link, _probing })))
    }

    /// Whether it is there, now and later.
    pub(crate) fn up(&self) -> watch::Receiver<Up> {
        self.0.link.up.subscribe()
    }

    /// Asks one command.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut connection = self.connections()?.small;
        asked(name(command), async { self.told(command.query_async(&mut connection).await) }).await
    }

    /// The same for a large answer or question.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn query_value<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut connection = self.connections()?.large;
        let question = async {
            let answer = self.unless_gone(command.query_async(&mut connection)).await?;
            self.told(answer)
        };
        asked(name(command), question).await
    }

    /// Runs a script.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn invoke<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connections()?.small;
        let question = async { self.told(script.invoke_async(&mut connection).await) };
        asked(SCRIPT.to_owned(), question).await
    }

    /// The same for a large answer or question.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn invoke_value<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connections()?.large;
        let question = async {
            let answer = self.unless_gone(script.invoke_async(&mut connection)).await?;
            self.told(answer)
        };
        asked(SCRIPT.to_owned(), question).await
    }

    fn connections(&self) -> Result<Connections, StoreError> {
        if !self.0.link.up.borrow().is_up {
            return Err(StoreError::Gone);
        }
        Ok(self.0.link.connections())
    }

    /// An answer may be long in coming, but not from a Redis that the probe finds gone.
    async fn unless_gone<T>(&self, answer: impl Future<Output = T>) -> Result<T, StoreError> {
        let mut up = self.up();
        tokio::select! {
            answer = answer => Ok(answer),
            _ = up.wait_for(|up| !up.is_up) => Err(StoreError::Gone),
        }
    }

    fn told<T>(&self, answer: RedisResult<T>) -> Result<T, StoreError> {
        answer.map_err(|error| {
            if means_gone(&error) {
                self.0.link.say(false, &error.to_string());
            }
            // Slow is not gone yet: the probe finds out.
            if means_gone(&error) || error.is_timeout() {
                self.0.link.doubt.notify_one();
            }
            StoreError::Redis(error)
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("up", &self.0.link.up.borrow().is_up).finish_non_exhaustive()
    }
}

impl Link {
    fn connections(&self) -> Connections {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what is new, once.
    fn say(&self, up: bool, why: &str) {
        let news = self.up.send_if_modified(|last| {
            let is_new = last.is_up != up;
            if is_new {
                *last = Up { is_up: up, since: Instant::now() };
            }
            is_new
        });
        match (news, up) {
            (false, _) => {}
            (true, true) => info!("Redis is there"),
            (true, false) => warn!("Redis is gone: {why}"),
        }
    }
}

fn lazy(client: &Client, answer: Duration) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0) // the probe tries again
        .set_connection_timeout(Some(ANSWER))
        .set_response_timeout(Some(answer));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// A time as Redis takes it, which knows no time of nothing.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Bytes in hexadecimal, as names in Redis have them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Whether it is not there, not able to serve yet, or not the one that is written to any more.
fn means_gone(error: &RedisError) -> bool {
    (error.is_io_error() && !error.is_timeout())
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("LOADING" | "MASTERDOWN" | "READONLY" | "MISCONF"))
}

async fn probe(link: Arc<Link>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut connection = link.connections().small;
        let probing = PROBING.prepare_invoke();
        let why = match timeout(2 * ANSWER, probing.invoke_async::<()>(&mut connection)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        if let Some(why) = why {
            link.say(false, &why);
            // A connection that says nothing, or that leads to one who does not take writes any more, may never break by
            // itself, as after a failover: begin with new ones.
            if let Ok(fresh) = Connections::new(&link.client) {
                *link.connections.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
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
