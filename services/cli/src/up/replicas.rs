//! How many processes each stage has.

use sdxl_core::StageKind;
use std::str::FromStr;

/// The most processes of one stage: beyond it is a slip of the keyboard.
const MAX: u32 = 64;

/// The number of processes of each stage, written as `base-unet=2,vae=1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replicas(Vec<(StageKind, u32)>);

impl Replicas {
    /// Processes of `stage`; 1 where none were asked for.
    pub(super) fn of(&self, stage: StageKind) -> u32 {
        self.given(stage).unwrap_or(1)
    }

    /// What was asked for.
    pub(super) fn given(&self, stage: StageKind) -> Option<u32> {
        self.0.iter().find(|(kind, _)| *kind == stage).map(|(_, count)| *count)
    }
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut replicas = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, count) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not STAGE=N, as in base-unet=2"))?;
            let stage = StageKind::ALL.into_iter().find(|s| s.name() == name.trim()).ok_or_else(|| {
                format!("there is no stage {name:?}, only {}", StageKind::ALL.map(StageKind::name).join(", "))
            })?;
            let number = count.trim().parse().ok().filter(|n| (1..=MAX).contains(n));
            let number = number.ok_or_else(|| format!("{stage}={count} is not in 1..={MAX}"))?;
            if replicas.given(stage).is_some() {
                return Err(format!("{stage} stands there twice"));
            }
            replicas.0.push((stage, number));
        }
        Ok(replicas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_are_not_named_have_one() {
        let replicas: Replicas = "base-unet=2, vae=64".parse().unwrap();
        assert_eq!(StageKind::ALL.map(|s| replicas.of(s)), [1, 2, 1, 64]);
        assert_eq!("".parse(), Ok(Replicas::default()));
        assert_eq!(replicas.given(StageKind::Refiner), None);
    }

    #[test]
    fn wrong_lists_say_what_is_wrong() {
        let cases = [
            ("unet=2", "there is no stage \"unet\", only text-encoder, base-unet, refiner, vae"),
            ("vae=0", "vae=0 is not in 1..=64"),
            ("vae=65", "vae=65 is not in 1..=64"),
            ("vae=-1", "vae=-1 is not in 1..=64"),
            ("vae=two", "vae=two is not in 1..=64"),
            ("vae=", "vae= is not in 1..=64"),
            ("vae", "\"vae\" is not STAGE=N, as in base-unet=2"),
            ("vae=1,vae=2", "vae stands there twice"),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Replicas>(), Err(error.to_owned()));
        }
    }
}
