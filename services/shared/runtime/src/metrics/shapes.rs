//! Pictures' sizes as labels: few of them, whatever callers ask for.

use sdxl_core::Size;
use std::{borrow::Cow, collections::BTreeMap};

/// Sizes that have a label of their own.
const NAMED: usize = 32;

/// The label of a size: its own for the first thirty-two that were seen, `other` for the rest.
#[derive(Debug, Default)]
pub struct Shapes(BTreeMap<(u32, u32), &'static str>);

impl Shapes {
    /// As `1024x1024`, height x width.
    pub fn label(&mut self, size: Size) -> Cow<'static, str> {
        let Size { height, width } = size;
        let known = self.0.len();
        if let Some(label) = self.0.get(&(height, width)) {
            return (*label).into();
        }
        if known >= NAMED {
            return "other".into();
        }
        // Thirty-two of them, for as long as the process lives.
        let label: &'static str = format!("{height}x{width}").leak();
        self.0.insert((height, width), label);
        label.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_few_labels_however_many_sizes_there_are() {
        let mut shapes = Shapes::default();
        let label = |shapes: &mut Shapes, width| shapes.label(Size { height: 64, width }).into_owned();
        let labels: std::collections::BTreeSet<_> = (1..1000).map(|n| label(&mut shapes, 8 * n)).collect();
        assert_eq!(labels.len(), NAMED + 1);
        assert_eq!(label(&mut shapes, 8), "64x8");
        assert_eq!(label(&mut shapes, 8000), "other");
    }
}
