//! Keys: the one that is shown to a cluster, and `sdxl key`, which makes them.

use crate::{console, failure::Failure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use sdxl_core::Tenant;
use sha2::{Digest, Sha256};
use std::{env, fmt, fmt::Write, fs, path::Path};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

/// The variable that holds a key. There is no flag of the name: all who share the machine see flags.
pub(crate) const KEY_VARIABLE: &str = "SDXL_KEY";
/// How keys begin, so that scanners for leaked secrets can know them.
const PREFIX: &str = "sdxl_";
/// Random bytes of a key.
const KEY_BYTES: usize = 32;

/// Shows a key with each call, if there is one.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// The key of `file`, or else of the environment.
    ///
    /// # Errors
    /// [`Failure`], where there is none in the file or it cannot be sent. It does not repeat the key.
    pub(crate) fn find(file: Option<&Path>) -> Result<Self, Failure> {
        match file {
            Some(file) => {
                let name = format!("--key-file {}", file.display());
                let text = fs::read_to_string(file)
                    .map_err(|error| Failure::bad_input(format!("{name}: {error}")))?;
                Self::new(text.trim(), &name)
            }
            None => match env::var_os(KEY_VARIABLE).filter(|key| !key.is_empty()) {
                Some(key) => Self::new(key.to_string_lossy().trim(), KEY_VARIABLE),
                None => Ok(Self(None)),
            },
        }
    }

    fn new(key: &str, place: &str) -> Result<Self, Failure> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::bad_input(format!("{place}: it does not hold one key and nothing else")));
        }
        let value = format!("Bearer {key}").parse();
        let mut value: MetadataValue<Ascii> =
            value.map_err(|_| Failure::bad_input(format!("{place}: it cannot be sent")))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(a key)" } else { "Bearer(none)" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

const EXAMPLES: &str = "\
Examples:
  sdxl key new --tenant team-7
  sdxl key new --tenant team-7 > team-7.key 2>> keys.toml
  sdxl generate \"a photo of a cat\" --key-file team-7.key

The key goes to standard output and is kept nowhere else; what the coordinator's --keys FILE is to hold of it goes to
standard error. Whoever has that file cannot call with it.";

/// What `sdxl key` is told.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Draw a key and show its entry in the coordinator's file of keys
    New {
        /// On whose behalf its holders call
        #[arg(long, env = "SDXL_TENANT", value_name = "NAME", value_parser = crate::connection::tenant)]
        tenant: Tenant,
    },
}

/// Prints a new key.
pub(crate) fn run(args: &KeyArgs) {
    let KeyCommand::New { tenant } = &args.command;
    let key = new_key();
    console::result(&key);
    console::note(entry(&key, tenant).trim_end());
}

fn new_key() -> String {
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; KEY_BYTES]>()))
}

/// What the file of keys is to hold of a key. Names need only differ; quotas are for the operator to choose.
fn entry(key: &str, tenant: &Tenant) -> String {
    let digest = Sha256::digest(key);
    let mut hex = String::new();
    for byte in digest {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    let (name, tenant) = (quoted(&format!("{tenant}-{}", &hex[..8])), quoted(tenant.name()));
    format!(
        "
[[keys]]
name = {name}
sha256 = \"{hex}\"
tenant = {tenant}
# requests_per_minute = 60
# pixel_steps_per_minute = 2000 # in millions of pictures x pixels x steps
# max_pictures_in_flight = 16
"
    )
}

/// As TOML and JSON write it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_with_each_call_and_in_no_debug_output() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "sdxl_secret\n").unwrap();
        let mut bearer = Bearer::find(Some(file.path())).unwrap();
        let request = bearer.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer sdxl_secret");
        for shown in [format!("{bearer:?}"), format!("{:?}", request.metadata())] {
            assert!(!shown.contains("sdxl_secret"), "{shown}");
        }
    }

    #[test]
    fn a_file_without_a_key_is_named_but_not_repeated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for wrong in ["", " \n", "two keys", "schl\u{fc}ssel"] {
            fs::write(file.path(), wrong).unwrap();
            let Err(Failure::BadInput(lines)) = Bearer::find(Some(file.path())) else { panic!("{wrong:?}") };
            assert!(lines[0].starts_with("--key-file ") && !lines[0].contains("two keys"), "{lines:?}");
        }
        assert!(Bearer::find(Some(Path::new("/nowhere"))).is_err());
    }

    #[test]
    fn new_keys_differ_and_their_entries_hold_their_hashes_only() {
        let (key, tenant) = (new_key(), "a\"b".parse().unwrap());
        assert!(key != new_key() && key.len() == PREFIX.len() + 43);
        let entry = entry(&key, &tenant);
        assert!(!entry.contains(&key[PREFIX.len()..]));
        assert!(entry.contains("tenant = \"a\\\"b\""), "{entry}");
        assert!(
            super::entry("k", &tenant)
                .contains("8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a")
        );
    }
}
