//! Whose a request is, and how much it hurries.

use crate::error::FieldViolation;
use std::{fmt, str::FromStr, sync::Arc};

/// The longest name of a tenant in bytes.
pub const MAX_TENANT_BYTES: usize = 64;

/// The part of a stage's time in which those who ask for little may go before all others.
pub const FIRST_SHARE: f64 = 1.0 / 8.0;

/// On whose behalf a request is made. Tenants share a busy cluster in equal parts, whatever each asks for. Requests
/// that name none are one tenant's, the unnamed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// Its name; empty for the unnamed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether it is the unnamed.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("".into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tenant {
    type Err = FieldViolation;

    /// Takes 1 to 64 printable ASCII characters without spaces.
    fn from_str(name: &str) -> Result<Self, FieldViolation> {
        if name.is_empty() || name.len() > MAX_TENANT_BYTES || !name.bytes().all(|b| b.is_ascii_graphic()) {
            let description = format!(
                "{name:?} is not a name of 1 to {MAX_TENANT_BYTES} printable ASCII characters without spaces"
            );
            return Err(FieldViolation { field: "sdxl-tenant".to_owned(), description });
        }
        Ok(Self(name.into()))
    }
}

/// How much a request hurries where its deadline does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Someone waits for it.
    #[default]
    Interactive,
    /// Work for hours that are not busy: others go first.
    Batch,
}

impl Priority {
    /// As metadata and logs have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

impl FromStr for Priority {
    type Err = FieldViolation;

    fn from_str(name: &str) -> Result<Self, FieldViolation> {
        [Self::Interactive, Self::Batch].into_iter().find(|priority| priority.name() == name).ok_or_else(
            || {
                let description = format!("{name:?} is not one of interactive, batch");
                FieldViolation { field: "sdxl-priority".to_owned(), description }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_have_names_that_fit_into_metadata() {
        assert_eq!("team-7".parse::<Tenant>().unwrap().name(), "team-7");
        assert!(Tenant::default().is_unnamed());
        for wrong in ["", "a b", "é", &"x".repeat(65)] {
            assert_eq!(wrong.parse::<Tenant>().unwrap_err().field, "sdxl-tenant");
        }
        assert!("x".repeat(64).parse::<Tenant>().is_ok());
    }

    #[test]
    fn priorities_are_known_by_name() {
        for priority in [Priority::Interactive, Priority::Batch] {
            assert_eq!(priority.name().parse::<Priority>().unwrap(), priority);
        }
        let error = "urgent".parse::<Priority>().unwrap_err();
        assert_eq!(error.description, "\"urgent\" is not one of interactive, batch");
    }
}
