//! The file of keys: who shows which key, for which tenant, and what its quotas are.
//!
//! Quotas are a tenant's, however many keys it has: a second key, as for a rotation, is not a second helping.

use super::FileError;
use crate::quota::Quotas;
use sdxl_core::Tenant;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, num::NonZeroU32};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// The longest name of a key in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: Vec<Entry>,
    jwt: Option<Defaults>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    tenant: String,
    requests_per_minute: Option<NonZeroU32>,
    pixel_steps_per_minute: Option<NonZeroU32>,
    max_pictures_in_flight: Option<NonZeroU32>,
}

/// The quotas of tenants that have no key and show tokens.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    requests_per_minute: Option<NonZeroU32>,
    pixel_steps_per_minute: Option<NonZeroU32>,
    max_pictures_in_flight: Option<NonZeroU32>,
}

/// The keys of a file.
#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: Vec<Key>,
    quotas: HashMap<Tenant, Quotas>,
    defaults: Quotas,
}

#[derive(Debug)]
struct Key {
    name: String,
    sha256: [u8; 32],
    tenant: Tenant,
}

impl Keys {
    /// What a file says. The error repeats nothing that may be a key.
    ///
    /// # Errors
    /// [`FileError`], which names the line or the key.
    pub(super) fn parse(text: &str) -> Result<Self, FileError> {
        let File { keys, jwt } = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count()
            });
            FileError::Toml { line, problem: error.message().replace('\n', " ") }
        })?;
        if keys.is_empty() && jwt.is_none() {
            return Err(FileError::Empty);
        }
        let mut all = Self::default();
        if let Some(jwt) = jwt {
            all.defaults = Quotas {
                requests_per_minute: jwt.requests_per_minute,
                pixel_steps_per_minute: jwt.pixel_steps_per_minute,
                max_pictures_in_flight: jwt.max_pictures_in_flight,
            };
        }
        for (entry, place) in keys.into_iter().zip(1..) {
            all.add(entry, place)?;
        }
        Ok(all)
    }

    fn add(&mut self, entry: Entry, place: usize) -> Result<(), FileError> {
        let is_name = !entry.name.is_empty()
            && entry.name.len() <= MAX_NAME_BYTES
            && !entry.name.chars().any(char::is_control);
        if !is_name {
            let problem = format!("its name is not 1 to {MAX_NAME_BYTES} bytes of text");
            return Err(FileError::Key { key: format!("number {place}"), problem });
        }
        let wrong = |problem: &str| FileError::Key { key: entry.name.clone(), problem: problem.to_owned() };
        let sha256 = hash(&entry.sha256).ok_or_else(|| wrong("sha256 is not 64 hexadecimal digits"))?;
        // Neither is said: what stands there may be a key in the wrong place.
        let tenant: Tenant = entry
            .tenant
            .parse()
            .map_err(|_| wrong("tenant is not 1 to 64 printable ASCII characters without spaces"))?;
        if self.keys.iter().any(|key| key.name == entry.name) {
            return Err(wrong("another key has this name"));
        }
        if self.keys.iter().any(|key| key.sha256 == sha256) {
            return Err(wrong("another key has this sha256"));
        }
        let quotas = Quotas {
            requests_per_minute: entry.requests_per_minute,
            pixel_steps_per_minute: entry.pixel_steps_per_minute,
            max_pictures_in_flight: entry.max_pictures_in_flight,
        };
        if *self.quotas.entry(tenant.clone()).or_insert(quotas) != quotas {
            return Err(wrong("another key of its tenant has other quotas, which are the tenant's"));
        }
        self.keys.push(Key { name: entry.name, sha256, tenant });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whose key it is. Takes as long whichever of them it is, and whether it is any.
    pub(super) fn tenant(&self, key: &str) -> Option<&Tenant> {
        let shown: [u8; 32] = Sha256::digest(key).into();
        let (mut found, mut place) = (Choice::from(0), 0_u32);
        for (known, at) in self.keys.iter().zip(0_u32..) {
            let is_it = known.sha256.ct_eq(&shown);
            place.conditional_assign(&at, is_it);
            found |= is_it;
        }
        let key = self.keys.get(usize::try_from(place).ok()?)?;
        bool::from(found).then_some(&key.tenant)
    }

    /// A tenant's, or those of all that have no key.
    pub(super) fn quotas(&self, tenant: &Tenant) -> Quotas {
        self.quotas.get(tenant).copied().unwrap_or(self.defaults)
    }
}

fn hash(hex: &str) -> Option<[u8; 32]> {
    let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map_while(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok()).collect();
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::hex;

    fn entry(name: &str, key: &str, more: &str) -> String {
        let sha256 = hex(&Sha256::digest(key));
        format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{more}\n")
    }

    fn error(text: &str) -> String {
        Keys::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_key_names_its_tenant_and_the_tenant_has_quotas() {
        let one = entry("old", "secret", "tenant = \"one\"\nrequests_per_minute = 7");
        let new = entry("new", "fresh", "tenant = \"one\"\nrequests_per_minute = 7").to_uppercase();
        let new = new.replace("[[KEYS]]", "[[keys]]").replace("NAME", "name").replace("SHA256", "sha256");
        let new = new
            .replace("TENANT = \"ONE\"", "tenant = \"one\"")
            .replace("REQUESTS_PER_MINUTE", "requests_per_minute");
        let other = entry("other", "third", "tenant = \"two\"");
        let jwt = "[jwt]\nmax_pictures_in_flight = 2";
        let keys = Keys::parse(&format!("{one}{new}{other}{jwt}")).unwrap();
        for (key, tenant) in [("secret", "one"), ("fresh", "one"), ("third", "two")] {
            assert_eq!(keys.tenant(key).unwrap().name(), tenant);
        }
        for wrong in ["", "Secret", "secret ", "secre", &hex(&Sha256::digest("secret"))] {
            assert!(keys.tenant(wrong).is_none(), "{wrong}");
        }
        let quotas = |name: &str| keys.quotas(&name.parse().unwrap());
        assert_eq!(quotas("one").requests_per_minute, NonZeroU32::new(7));
        assert_eq!(quotas("two"), Quotas::default());
        assert_eq!(quotas("of-a-token").max_pictures_in_flight, NonZeroU32::new(2));
    }

    #[test]
    fn what_is_wrong_is_named_but_never_a_key() {
        let tenant = "tenant = \"one\"";
        assert_eq!(error(""), "it has neither a [[keys]] entry nor a [jwt] table");
        let unknown = error(&entry("a", "k", "tenant = \"one\"\nrequest_per_minute = 7"));
        assert!(unknown.starts_with("line 5: unknown field `request_per_minute`"), "{unknown}");
        assert!(error(&entry("a", "k", "")).contains("missing field `tenant`"));
        let zero = error(&entry("a", "k", "tenant = \"one\"\nrequests_per_minute = 0"));
        assert!(zero.starts_with("line 5: ") && zero.contains('0'), "{zero}");
        let raw = "[[keys]]\nname = \"a\"\nsha256 = \"sdxl_oops\"\ntenant = \"one\"";
        assert_eq!(error(raw), "key \"a\": sha256 is not 64 hexadecimal digits");
        let raw = "[[keys]]\nname = \"a\"\nkey = \"sdxl_oops\"\ntenant = \"one\"";
        let said = error(raw);
        assert!(said.contains("unknown field `key`") && !said.contains("oops"), "{said}");
        let twice = entry("a", "k", tenant) + &entry("a", "l", tenant);
        assert_eq!(error(&twice), "key \"a\": another key has this name");
        let twice = entry("a", "k", tenant) + &entry("b", "k", tenant);
        assert_eq!(error(&twice), "key \"b\": another key has this sha256");
        let more = entry("a", "k", tenant) + &entry("b", "l", "tenant = \"one\"\nrequests_per_minute = 7");
        assert_eq!(
            error(&more),
            "key \"b\": another key of its tenant has other quotas, which are the tenant's"
        );
        assert!(error(&entry("", "k", tenant)).starts_with("key \"number 1\": its name is not"));
        assert!(error(&entry("a", "k", "tenant = \"o n e\"")).starts_with("key \"a\": tenant is not"));
    }
}
