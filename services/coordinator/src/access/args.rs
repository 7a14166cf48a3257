//! The flags about who may call, and what they mean.

use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use std::{net::SocketAddr, path::PathBuf};
use thiserror::Error;

/// The flags.
#[derive(Args, Clone, Debug)]
pub struct AccessArgs {
    /// A TOML file of the keys that callers may show, and their tenants' quotas; it is read again when it changes
    #[arg(long, env = "SDXL_KEYS", value_name = "FILE", value_parser = file())]
    pub keys: Option<PathBuf>,

    /// A JWKS file of the public keys that callers' JWTs may be signed with; it is read again when it changes
    #[arg(long, env = "SDXL_JWT_KEYS", value_name = "FILE", value_parser = file())]
    pub jwt_keys: Option<PathBuf>,

    /// Who must have issued a JWT: its claim "iss"
    #[arg(long, env = "SDXL_JWT_ISSUER", value_name = "NAME")]
    pub jwt_issuer: Option<String>,

    /// Whom a JWT must be for: one of its claim "aud"
    #[arg(long, env = "SDXL_JWT_AUDIENCE", value_name = "NAME")]
    pub jwt_audience: Option<String>,

    /// Listen on other addresses than loopback although callers need no key
    #[arg(long, env = "SDXL_ALLOW_ANONYMOUS")]
    pub allow_anonymous: bool,
}

/// A path that may be empty, as a variable is that is set to nothing.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Who may call. Without keys and tokens it is everybody who reaches the port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// The file of keys.
    pub keys: Option<PathBuf>,
    /// What tokens must be.
    pub jwt: Option<JwtConfig>,
}

/// What a JWT must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// The file of the keys that sign them.
    pub keys: PathBuf,
    /// Who issued it.
    pub issuer: String,
    /// Whom it is for.
    pub audience: String,
}

/// Why the flags make no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AccessArgsError {
    /// Everybody could call.
    #[error(
        "--listen: {0} is not loopback, and callers would need no key: give --keys FILE (SDXL_KEYS), or \
         --allow-anonymous (SDXL_ALLOW_ANONYMOUS) if everybody who reaches it may call"
    )]
    Open(SocketAddr),
    /// Either everybody may call, or who shows a key.
    #[error("--allow-anonymous: callers need a key where --{0} is given")]
    Contradiction(&'static str),
    /// Something about tokens is missing.
    #[error("--jwt-keys, --jwt-issuer and --jwt-audience go together: --{0} is missing")]
    Jwt(&'static str),
}

impl AccessArgs {
    /// What the flags mean to a coordinator that listens on `listen`.
    ///
    /// # Errors
    /// [`AccessArgsError`]
    pub fn checked(&self, listen: SocketAddr) -> Result<AccessConfig, AccessArgsError> {
        // An environment variable that is set to nothing says nothing.
        let file = |file: &Option<PathBuf>| file.clone().filter(|file| !file.as_os_str().is_empty());
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (keys, jwt_keys) = (file(&self.keys), file(&self.jwt_keys));
        let (issuer, audience) = (text(&self.jwt_issuer), text(&self.jwt_audience));
        let jwt = match (jwt_keys, issuer, audience) {
            (None, None, None) => None,
            (Some(keys), Some(issuer), Some(audience)) => Some(JwtConfig { keys, issuer, audience }),
            (None, ..) => return Err(AccessArgsError::Jwt("jwt-keys")),
            (_, None, _) => return Err(AccessArgsError::Jwt("jwt-issuer")),
            (_, _, None) => return Err(AccessArgsError::Jwt("jwt-audience")),
        };
        let given = keys.as_ref().map(|_| "keys").or(jwt.as_ref().map(|_| "jwt-keys"));
        match given {
            Some(given) if self.allow_anonymous => return Err(AccessArgsError::Contradiction(given)),
            None if !self.allow_anonymous && !listen.ip().to_canonical().is_loopback() => {
                return Err(AccessArgsError::Open(listen));
            }
            _ => {}
        }
        Ok(AccessConfig { keys, jwt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        access: AccessArgs,
    }

    fn checked(listen: &str, flags: &[&str]) -> Result<AccessConfig, String> {
        let line = Line::try_parse_from(["x"].iter().chain(flags)).unwrap();
        line.access.checked(listen.parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn without_keys_only_loopback_is_listened_on() {
        for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(checked(loopback, &[]), Ok(AccessConfig::default()), "{loopback}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.7:1", "[::ffff:10.0.0.7]:1"] {
            let error = checked(open, &["--keys", ""]).unwrap_err();
            assert!(error.contains("--keys") && error.contains("--allow-anonymous"), "{error}");
            assert_eq!(error.lines().count(), 1);
            assert!(checked(open, &["--allow-anonymous"]).is_ok(), "{open}");
            assert!(checked(open, &["--keys", "file"]).is_ok(), "{open}");
        }
    }

    #[test]
    fn tokens_need_all_three_and_nobody_is_anonymous_beside_keys() {
        let all = ["--jwt-keys", "f", "--jwt-issuer", "i", "--jwt-audience", "a"];
        assert!(checked("0.0.0.0:1", &all).unwrap().jwt.is_some());
        for missing in [0, 2, 4] {
            let flags: Vec<_> =
                all.iter().enumerate().filter(|(i, _)| i / 2 != missing / 2).map(|(_, flag)| *flag).collect();
            let error = checked("127.0.0.1:1", &flags).unwrap_err();
            assert!(error.ends_with(&format!("{} is missing", all[missing])), "{error}");
        }
        let error = checked("127.0.0.1:1", &["--keys", "f", "--allow-anonymous"]).unwrap_err();
        assert_eq!(error, "--allow-anonymous: callers need a key where --keys is given");
    }
}
