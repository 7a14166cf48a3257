//! Who may call: whoever shows a key of the keys' file, or a token that is signed with a key of the tokens'. Either names
//! the tenant on whose behalf the call is made. Both files are read again when they change.

mod args;
mod error;
mod jwt;
mod keys;
mod layer;

pub use args::{AccessArgs, AccessArgsError, AccessConfig, JwtConfig};
pub(crate) use error::{AccessError, UnreadableFile};
pub(crate) use layer::guarded;

use crate::quota::Quotas;
use error::FileError;
use jwt::Tokens;
use keys::Keys;
use sdxl_core::Tenant;
use std::{fs, path::Path, sync::Arc, time::Duration};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

/// Between two looks at the files. They are small, and a look at their content misses no way of changing them.
const POLL: Duration = Duration::from_secs(2);

/// On whose behalf a call is made, and how much it may ask for. It is among the call's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) tenant: Tenant,
    pub(crate) quotas: Quotas,
}

/// Who may call. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Access(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: watch::Receiver<Arc<Table>>,
    _reading: AbortOnDropHandle<()>,
}

/// What the files say.
#[derive(Debug)]
struct Table {
    keys: Keys,
    tokens: Option<Tokens>,
}

impl Access {
    /// Reads the files, and goes on reading them. `None` where everybody may call. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`UnreadableFile`]
    pub(crate) fn start(config: &AccessConfig) -> Result<Option<Self>, UnreadableFile> {
        if config.keys.is_none() && config.jwt.is_none() {
            return Ok(None);
        }
        let contents = Contents::read(config)?;
        let (sender, table) = watch::channel(Arc::new(contents.table(config)?));
        let _reading = AbortOnDropHandle::new(tokio::spawn(follow(config.clone(), contents, sender)));
        Ok(Some(Self(Arc::new(Shared { table, _reading }))))
    }

    /// Who shows `secret`, a key or a token.
    ///
    /// # Errors
    /// [`AccessError`]
    fn caller(&self, secret: &str) -> Result<Caller, AccessError> {
        let table = Arc::clone(&self.0.table.borrow());
        let tenant = match (table.keys.tenant(secret), &table.tokens) {
            (Some(tenant), _) => tenant.clone(),
            (None, Some(tokens)) => tokens.tenant(secret)?,
            (None, None) => return Err(AccessError::Unknown),
        };
        let quotas = table.keys.quotas(&tenant);
        Ok(Caller { tenant, quotas })
    }
}

/// The files, byte by byte.
#[derive(PartialEq)]
struct Contents {
    keys: Option<Vec<u8>>,
    tokens: Option<Vec<u8>>,
}

impl Contents {
    fn read(config: &AccessConfig) -> Result<Self, UnreadableFile> {
        let read = |flag, file: &Path| fs::read(file).map_err(|error| wrong(flag, file)(error.into()));
        Ok(Self {
            keys: config.keys.as_deref().map(|file| read("keys", file)).transpose()?,
            tokens: config.jwt.as_ref().map(|jwt| read("jwt-keys", &jwt.keys)).transpose()?,
        })
    }

    fn table(&self, config: &AccessConfig) -> Result<Table, UnreadableFile> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| FileError::Text);
        let keys = match (&self.keys, &config.keys) {
            (Some(bytes), Some(file)) => {
                let keys = text(bytes).and_then(Keys::parse).map_err(wrong("keys", file))?;
                if keys.len() == 0 && config.jwt.is_none() {
                    return Err(wrong("keys", file)(FileError::Nobody));
                }
                keys
            }
            _ => Keys::default(),
        };
        let tokens = match (&self.tokens, &config.jwt) {
            (Some(bytes), Some(jwt)) => {
                let tokens = text(bytes).and_then(|text| Tokens::parse(text, jwt));
                Some(tokens.map_err(wrong("jwt-keys", &jwt.keys))?)
            }
            _ => None,
        };
        Ok(Table { keys, tokens })
    }
}

fn wrong(flag: &'static str, file: &Path) -> impl FnOnce(FileError) -> UnreadableFile {
    let file = file.to_owned();
    move |error| UnreadableFile { flag, file, error }
}

/// Reads the files again and again. What cannot be understood is said once, and what was understood last stays.
async fn follow(config: AccessConfig, mut last: Contents, table: watch::Sender<Arc<Table>>) {
    let (config, mut unreadable) = (Arc::new(config), None);
    loop {
        sleep(POLL).await;
        let reading = Arc::clone(&config);
        let Ok(read) = spawn_blocking(move || Contents::read(&reading)).await else { continue };
        let error = match read {
            Ok(contents) if contents == last => {
                unreadable = None;
                continue;
            }
            Ok(contents) => {
                unreadable = None;
                let news = contents.table(&config);
                last = contents;
                match news {
                    Ok(news) => {
                        let tokens = news.tokens.as_ref().map_or(0, Tokens::len);
                        info!(
                            "who may call was read again: {} keys, {tokens} keys of tokens",
                            news.keys.len()
                        );
                        table.send_replace(Arc::new(news));
                        continue;
                    }
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => {
                let line = error.to_string();
                if unreadable.replace(line.clone()).as_ref() == Some(&line) {
                    continue;
                }
                line
            }
        };
        warn!("{error}; what was read before stays in force");
    }
}
