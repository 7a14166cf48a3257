//! Choices by weight as flags write them, such as `512x512=2,768x768=1`, and the ranges that stand in them. A number
//! from 0 up to 1 picks one, so that the same numbers give the same load.

use std::ops::RangeInclusive;

/// Above it the sum of weights would lose the small ones.
const MAX_WEIGHT: f64 = 1e9;

/// Values of which each comes as often as its weight says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice<T> {
    /// At least one; weights are above 0.
    entries: Vec<(T, f64)>,
}

impl<T> Choice<T> {
    /// Always `value`.
    pub(super) fn only(value: T) -> Self {
        Self { entries: vec![(value, 1.0)] }
    }

    /// Takes `VALUE=WEIGHT,…`, where a weight that is not given is 1.
    ///
    /// # Errors
    /// What is wrong with the first part that is.
    pub(super) fn parse(text: &str, value: impl Fn(&str) -> Result<T, String>) -> Result<Self, String> {
        let entry = |part: &str| {
            let (name, weight) = part.rsplit_once('=').unwrap_or((part, "1"));
            let weight = weight.trim().parse::<f64>().ok().filter(|w| *w > 0.0 && *w <= MAX_WEIGHT);
            let weight =
                weight.ok_or_else(|| format!("{part}: a weight is a number above 0 up to {MAX_WEIGHT:e}"))?;
            Ok((value(name.trim())?, weight))
        };
        Ok(Self { entries: text.split(',').map(entry).collect::<Result<_, String>>()? })
    }

    /// The value at `point`, in `0.0..1.0`, of all weights laid end to end, and how far into its own weight that is, in
    /// `0.0..1.0` again.
    pub(super) fn at(&self, point: f64) -> (&T, f64) {
        let total: f64 = self.entries.iter().map(|(_, weight)| weight).sum();
        let (mut index, mut rest) = (0, point * total);
        while index + 1 < self.entries.len() && rest >= self.entries[index].1 {
            rest -= self.entries[index].1;
            index += 1;
        }
        let (value, weight) = &self.entries[index];
        (value, (rest / weight).clamp(0.0, 1.0 - f64::EPSILON))
    }

    /// All values.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(value, _)| value)
    }
}

/// Whole numbers from `first` to `last`, each as often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Span {
    /// Takes `30` or `20..50`, both ends included, within `allowed`.
    ///
    /// # Errors
    /// What is allowed.
    pub(super) fn parse(text: &str, allowed: &RangeInclusive<u32>) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| allowed.contains(n));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!(
                "{text} is neither a whole number nor a range such as {}..{} within {}..{}",
                allowed.start(),
                allowed.end(),
                allowed.start(),
                allowed.end()
            )),
        }
    }

    /// The number at `point`, in `0.0..1.0`, of the whole span.
    pub(super) fn at(self, point: f64) -> u32 {
        let count = f64::from(self.last - self.first) + 1.0;
        self.first + ((point * count) as u32).min(self.last - self.first)
    }
}

/// How long a request may take, each value between two as often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    /// From the first to the last number of seconds.
    Seconds(f64, f64),
    /// So many times as long as the request takes alone.
    Times(f64, f64),
}

impl Limit {
    /// Takes `30`, `20..60`, `3x` or `2x..5x`.
    ///
    /// # Errors
    /// What is allowed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const MOST: f64 = 1e6;
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| *n > 0.0 && *n <= MOST);
        let times = |text: &str| text.trim().strip_suffix('x').and_then(number);
        let limit = match (number(first), number(last), times(first), times(last)) {
            (Some(first), Some(last), ..) if first <= last => Some(Self::Seconds(first, last)),
            (.., Some(first), Some(last)) if first <= last => Some(Self::Times(first, last)),
            _ => None,
        };
        limit.ok_or_else(|| {
            format!("{text} is neither seconds (30, 20..60) nor a factor (3x, 2x..5x) above 0 up to {MOST}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(text: &str) -> Result<Choice<String>, String> {
        Choice::parse(text, |name| if name.is_empty() { Err("empty".into()) } else { Ok(name.to_owned()) })
    }

    #[test]
    fn values_come_by_their_weights() {
        let choice = letters("a=2, b,c=1").unwrap();
        let share = |name: &str| (0..1000).filter(|i| choice.at(f64::from(*i) / 1000.0).0 == name).count();
        assert_eq!((share("a"), share("b"), share("c")), (500, 250, 250));
        assert_eq!(choice.at(0.25), (&"a".to_owned(), 0.5));
        assert_eq!(choice.at(0.0).1, 0.0);
        assert!(choice.at(1.0 - f64::EPSILON).1 < 1.0);
        assert_eq!(Choice::only(7).at(0.9).0, &7);
        assert_eq!(choice.values().count(), 3);
    }

    #[test]
    fn wrong_choices_are_named() {
        for wrong in ["", "a,", "a=", "a=0", "a=-1", "a=NaN", "a=inf", "a=1e10", "=1", "a=1=x"] {
            assert!(letters(wrong).is_err(), "{wrong}");
        }
        assert_eq!(letters("a,b=0").unwrap_err(), "b=0: a weight is a number above 0 up to 1e9");
    }

    #[test]
    fn both_ends_of_a_span_come() {
        let span = Span::parse("20..50", &(1..=1000)).unwrap();
        assert_eq!(span, Span { first: 20, last: 50 });
        assert_eq!((span.at(0.0), span.at(0.5), span.at(0.999_999)), (20, 35, 50));
        assert_eq!(Span::parse(" 7 ", &(1..=9)).unwrap().at(0.9), 7);
        for wrong in ["", "0", "10", "5..3", "1..10", "..3", "3..", "1..2..3", "-1", "2.5"] {
            let error = Span::parse(wrong, &(1..=9)).unwrap_err();
            assert!(error.contains("within 1..9"), "{wrong}: {error}");
        }
    }

    #[test]
    fn limits_are_seconds_or_factors() {
        assert_eq!(Limit::parse("30"), Ok(Limit::Seconds(30.0, 30.0)));
        assert_eq!(Limit::parse("0.5..2"), Ok(Limit::Seconds(0.5, 2.0)));
        assert_eq!(Limit::parse("3x"), Ok(Limit::Times(3.0, 3.0)));
        assert_eq!(Limit::parse("2x..5.5x"), Ok(Limit::Times(2.0, 5.5)));
        for wrong in ["", "0", "x", "-1", "NaN", "inf", "2..1", "2..5x", "2x..5", "5s", "0x"] {
            assert!(Limit::parse(wrong).is_err(), "{wrong}");
        }
    }
}
