//! What goes with a request from hop to hop beside its message: its deadline, whose it is and how much it hurries.

use crate::deadline::Deadline;
use sdxl_core::{FieldViolation, Priority, Tenant};
use tonic::metadata::MetadataMap;

/// The metadata key that names a tenant.
pub const TENANT: &str = "sdxl-tenant";
/// The metadata key of a priority: `interactive` or `batch`.
pub const PRIORITY: &str = "sdxl-priority";

/// On what terms a request is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// When nobody waits for it any more.
    pub deadline: Option<Deadline>,
    /// How much it hurries.
    pub priority: Priority,
    /// Whose it is.
    pub tenant: Tenant,
}

impl Terms {
    /// Those of a request that has just arrived. What is not said has its default.
    ///
    /// # Errors
    /// The key whose value is none, and what is allowed.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Self, FieldViolation> {
        let text = |key: &'static str| {
            let not_text = |_| FieldViolation { field: key.to_owned(), description: "not ASCII".to_owned() };
            metadata.get(key).map(|value| value.to_str().map_err(not_text)).transpose()
        };
        Ok(Self {
            deadline: Deadline::from_metadata(metadata),
            priority: text(PRIORITY)?.map(str::parse).transpose()?.unwrap_or_default(),
            tenant: text(TENANT)?.map(str::parse).transpose()?.unwrap_or_default(),
        })
    }

    /// Hands them on to the server that `request` goes to.
    pub fn apply<T>(&self, request: &mut tonic::Request<T>) {
        if let Some(deadline) = self.deadline {
            deadline.apply(request);
        }
        let metadata = request.metadata_mut();
        if let Ok(name) = self.tenant.name().parse()
            && !self.tenant.is_unnamed()
        {
            metadata.insert(TENANT, name);
        }
        if self.priority != Priority::default()
            && let Ok(name) = self.priority.name().parse()
        {
            metadata.insert(PRIORITY, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn terms_go_with_a_request() {
        let terms = Terms {
            deadline: Deadline::after(Duration::from_secs(60)),
            priority: Priority::Batch,
            tenant: "team-7".parse().unwrap(),
        };
        let mut request = tonic::Request::new(());
        terms.apply(&mut request);
        let arrived = Terms::from_metadata(request.metadata()).unwrap();
        assert_eq!((arrived.priority, &arrived.tenant), (Priority::Batch, &terms.tenant));
        assert!(arrived.deadline.unwrap().remaining() > Duration::from_secs(59));
    }

    #[test]
    fn what_is_not_said_is_not_sent() {
        let mut request = tonic::Request::new(());
        Terms::default().apply(&mut request);
        assert!(request.metadata().is_empty());
        assert_eq!(Terms::from_metadata(request.metadata()).unwrap(), Terms::default());
    }

    #[test]
    fn what_is_wrong_names_its_key() {
        for (key, value) in [(TENANT, "a b"), (PRIORITY, "urgent"), (TENANT, "")] {
            let mut metadata = MetadataMap::new();
            metadata.insert(key, value.parse().unwrap());
            assert_eq!(Terms::from_metadata(&metadata).unwrap_err().field, key);
        }
    }
}
