//! Wire messages to the domain's words and back.
//!
//! What comes from a public caller is checked field by field into [`sdxl_core::Violations`]; what comes from another
//! server of the cluster and makes no sense is a [`WireError`].

mod info;
mod request;
mod scheduler;

pub use info::{conditioner_details, conditioner_info};
pub use request::generate_request;

use crate::v1;
use sdxl_core::{
    Classify, Conditioner, CropCoords, ErrorClass, FieldViolation, ImageFormat, Size, StageKind,
};
use std::time::Duration;
use thiserror::Error;

/// A message of another server that makes no sense.
#[derive(Debug, Error)]
#[error("{}: {}", .0.field, .0.description)]
pub struct WireError(FieldViolation);

impl WireError {
    /// `field` is wrong in the way that `description` tells.
    #[must_use]
    pub fn new(field: &str, description: impl Into<String>) -> Self {
        Self(FieldViolation { field: field.to_owned(), description: description.into() })
    }

    /// `field` is absent and needed.
    #[must_use]
    pub fn missing(field: &str) -> Self {
        Self::new(field, "absent; it is needed")
    }

    /// The enum `field` holds a number that is none of its values.
    #[must_use]
    pub fn unknown_enum(field: &str, value: i32) -> Self {
        Self::new(field, format!("{value} is not a value of the enum that is served"))
    }
}

impl Classify for WireError {
    fn class(&self) -> ErrorClass {
        ErrorClass::InvalidRequest
    }

    fn violations(&self) -> &[FieldViolation] {
        std::slice::from_ref(&self.0)
    }
}

impl From<Size> for v1::Size {
    fn from(size: Size) -> Self {
        Self { height: size.height, width: size.width }
    }
}

impl From<v1::Size> for Size {
    fn from(size: v1::Size) -> Self {
        Self::new(size.height, size.width)
    }
}

impl From<CropCoords> for v1::CropCoords {
    fn from(crop: CropCoords) -> Self {
        Self { top: crop.top, left: crop.left }
    }
}

impl From<v1::CropCoords> for CropCoords {
    fn from(crop: v1::CropCoords) -> Self {
        Self { top: crop.top, left: crop.left }
    }
}

impl From<StageKind> for v1::Stage {
    fn from(kind: StageKind) -> Self {
        match kind {
            StageKind::TextEncoder => Self::TextEncoder,
            StageKind::BaseUnet => Self::BaseUnet,
            StageKind::Refiner => Self::Refiner,
            StageKind::Vae => Self::Vae,
        }
    }
}

/// The stage that a message names; `None` for an unknown one.
#[must_use]
pub fn stage_kind(stage: v1::Stage) -> Option<StageKind> {
    match stage {
        v1::Stage::Unspecified => None,
        v1::Stage::TextEncoder => Some(StageKind::TextEncoder),
        v1::Stage::BaseUnet => Some(StageKind::BaseUnet),
        v1::Stage::Refiner => Some(StageKind::Refiner),
        v1::Stage::Vae => Some(StageKind::Vae),
    }
}

impl From<Conditioner> for v1::Conditioner {
    fn from(conditioner: Conditioner) -> Self {
        match conditioner {
            Conditioner::Base => Self::Base,
            Conditioner::Refiner => Self::Refiner,
        }
    }
}

/// The conditioner that a message names; `None` for an unknown one.
#[must_use]
pub fn conditioner(conditioner: v1::Conditioner) -> Option<Conditioner> {
    match conditioner {
        v1::Conditioner::Unspecified => None,
        v1::Conditioner::Base => Some(Conditioner::Base),
        v1::Conditioner::Refiner => Some(Conditioner::Refiner),
    }
}

impl From<ImageFormat> for v1::ImageFormat {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Png => Self::Png,
            ImageFormat::Jpeg => Self::Jpeg,
            ImageFormat::WebP => Self::Webp,
        }
    }
}

/// The picture format that a message names; PNG where it names none.
#[must_use]
pub fn image_format(format: v1::ImageFormat) -> ImageFormat {
    match format {
        v1::ImageFormat::Unspecified | v1::ImageFormat::Png => ImageFormat::Png,
        v1::ImageFormat::Jpeg => ImageFormat::Jpeg,
        v1::ImageFormat::Webp => ImageFormat::WebP,
    }
}

/// A span of time on the wire. Spans too long for the wire, which no stage measures, are cut to the longest.
#[must_use]
pub fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

/// A span of time off the wire; zero where absent or negative.
#[must_use]
pub fn duration_or_zero(duration: Option<prost_types::Duration>) -> Duration {
    // prost-types negates what is negative, which overflows for the least number of seconds.
    duration.filter(|d| d.seconds >= 0).and_then(|d| d.try_into().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_span_of_time_is_none() {
        let read = |seconds, nanos| duration_or_zero(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(read(1, 500_000_000), Duration::from_millis(1500));
        assert_eq!(read(1, -500_000_000), Duration::from_millis(500));
        for (seconds, nanos) in [(-1, 0), (i64::MIN, i32::MIN), (i64::MIN, 0), (0, i32::MIN)] {
            assert_eq!(read(seconds, nanos), Duration::ZERO, "{seconds} s and {nanos} ns");
        }
        assert_eq!(duration_or_zero(None), Duration::ZERO);
        assert_eq!(read(i64::MAX, i32::MAX).as_secs(), i64::MAX.unsigned_abs());
    }
}
