//! How many pictures take a step together.

use sdxl_core::Size;
use std::str::FromStr;

/// The most that is ever found, so that one step does not take too long for who joins after it.
const MOST: usize = 32;

/// One value of `--max-batch`: a number for all sizes, or for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimit {
    size: Option<Size>,
    pictures: usize,
}

impl FromStr for BatchLimit {
    type Err = String;

    /// Takes `8`, or `1024x768=4` (height, then width) for one size.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not N or HEIGHTxWIDTH=N, as 8 or 1024x768=4, with N in 1..=1024");
        let (size, pictures) = text.split_once('=').map_or((None, text), |(size, n)| (Some(size), n));
        let size = size.map(|size| {
            let (height, width) = size.split_once('x').ok_or_else(wrong)?;
            let side = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
            Ok::<_, String>(Size::new(side(height)?, side(width)?))
        });
        let pictures: usize = pictures.trim().parse().map_err(|_| wrong())?;
        if !(1..=1024).contains(&pictures) {
            return Err(wrong());
        }
        Ok(Self { size: size.transpose()?, pictures })
    }
}

impl BatchLimit {
    /// What is given for a size: its own number before that for all, the last of several.
    #[must_use]
    pub fn of(given: &[Self], size: Size) -> Option<usize> {
        let last = |wanted: Option<Size>| given.iter().rev().find(|limit| limit.size == wanted);
        last(Some(size)).or_else(|| last(None)).map(|limit| limit.pictures)
    }
}

/// How many pictures of a size take a step together at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    given: Vec<BatchLimit>,
    /// What was found to be enough at one size; for others in proportion to their area.
    found: (Size, usize),
}

impl BatchLimits {
    /// As given, each size's own number before that for all; what is not given is `found` at some size.
    #[must_use]
    pub fn new(given: &[BatchLimit], found: (Size, usize)) -> Self {
        Self { given: given.to_vec(), found }
    }

    /// Whether a number for all sizes is given, so that none need be found.
    #[must_use]
    pub fn are_given(given: &[BatchLimit]) -> bool {
        given.iter().any(|limit| limit.size.is_none())
    }

    /// The limit of a size, at least 1.
    #[must_use]
    pub fn of(&self, size: Size) -> usize {
        if let Some(pictures) = BatchLimit::of(&self.given, size) {
            return pictures;
        }
        let area = |size: Size| u64::from(size.height) * u64::from(size.width);
        let (at, pictures) = self.found;
        let pictures = u64::try_from(pictures).unwrap_or(u64::MAX).saturating_mul(area(at));
        usize::try_from(pictures / area(size).max(1)).unwrap_or(MOST).clamp(1, MOST)
    }
}

/// A step that takes longer, in seconds, is not tried in a larger batch or of a larger picture: whoever joins waits for it,
/// and so does the start.
pub const LONGEST: f64 = 0.1;

/// The smallest batch, of 1, 2, 4 and so on, beyond which a picture gets hardly cheaper. `seconds` measures a step of so
/// many pictures.
///
/// # Errors
/// That of `seconds`.
pub fn find<E>(mut seconds: impl FnMut(usize) -> Result<f64, E>) -> Result<usize, E> {
    /// So much cheaper a picture has to get, for others to wait for the larger batch.
    const GAIN: f64 = 0.95;
    let (mut best, mut time) = (1, seconds(1)?);
    while best < MOST && time < LONGEST {
        let next = seconds(2 * best)?;
        if next / 2.0 > GAIN * time {
            break;
        }
        (best, time) = (2 * best, next);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn limits(given: &[&str]) -> BatchLimits {
        let given: Vec<BatchLimit> = given.iter().map(|text| text.parse().unwrap()).collect();
        BatchLimits::new(&given, (Size::new(128, 128), 4))
    }

    #[test]
    fn a_sizes_own_limit_comes_before_that_for_all_and_that_before_what_was_found() {
        let of = |given: &[&str], side| limits(given).of(Size::new(side, side));
        assert_eq!((of(&["8", "64x64=3"], 64), of(&["8", "64x64=3"], 128)), (3, 8));
        assert_eq!((of(&[], 128), of(&[], 64), of(&[], 256), of(&[], 2048), of(&[], 8)), (4, 16, 1, 1, 32));
        assert_eq!(limits(&["64x72=2"]).of(Size::new(72, 64)), 14);
    }

    #[test]
    fn what_is_no_limit_says_what_is() {
        for wrong in ["", "0", "x", "64=2", "64x=2", "64x64=0", "64x64=1025", "-1"] {
            let error = wrong.parse::<BatchLimit>().unwrap_err();
            assert!(error.contains("HEIGHTxWIDTH=N"), "{error}");
        }
    }

    #[test]
    fn a_batch_grows_for_as_long_as_that_pays() {
        let found = |overhead: f64, each: f64| {
            find(|n| Ok::<_, Infallible>(overhead + each * f64::from(u32::try_from(n).unwrap()))).unwrap()
        };
        assert_eq!(found(0.0, 0.01), 1);
        // 20, 15, 12.5, 11.25, 10.6 and 10.3 ms a picture.
        assert_eq!(found(0.01, 0.01), 16);
        assert_eq!(found(0.001, 0.000_001), 32);
        assert_eq!(found(100.0, 0.0), 1, "a step of minutes is not tried again");
    }
}
