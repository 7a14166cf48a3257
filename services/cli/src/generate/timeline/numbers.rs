//! Times and names as a person reads them, whatever a server may have sent.

/// More of a name than this is left out.
const LONGEST_NAME: usize = 64;

/// A time given in seconds, to three digits: `58.1 ms`, `4.02 s`. At most 8 characters.
pub(super) fn time(seconds: f64) -> String {
    let milliseconds = seconds * 1000.0;
    match seconds {
        s if s <= 0.0 => "0 ms".to_owned(),
        _ if milliseconds < 9.995 => format!("{milliseconds:.2} ms"),
        _ if milliseconds < 99.95 => format!("{milliseconds:.1} ms"),
        _ if milliseconds < 999.5 => format!("{milliseconds:.0} ms"),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 99.95 => format!("{s:.1} s"),
        s if s < 1e6 => format!("{s:.0} s"),
        s => format!("{s:.1e} s"),
    }
}

/// A point of a scale whose points are `step` seconds apart: `0.5 s`, `20 ms`.
pub(super) fn tick(seconds: f64, step: f64) -> String {
    match step {
        _ if seconds <= 0.0 => "0".to_owned(),
        _ if seconds >= 1e6 => format!("{seconds:.1e} s"),
        step if step >= 1.0 => format!("{seconds:.0} s"),
        step if step >= 0.1 => format!("{seconds:.1} s"),
        step if step >= 0.001 => format!("{:.0} ms", seconds * 1000.0),
        _ => format!("{:.2} ms", seconds * 1000.0),
    }
}

/// So many steps, of `seconds` on the device in all; nothing where there are none.
pub(super) fn steps(steps: u64, seconds: Option<f64>) -> String {
    match seconds {
        _ if steps == 0 => String::new(),
        Some(seconds) => format!("{steps} x {}", time(seconds / steps as f64)),
        None => steps.to_string(),
    }
}

/// A server's word, without what a terminal would act on.
pub(super) fn plain(text: &str) -> String {
    let graphic = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(LONGEST_NAME).map(graphic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_fit_their_column() {
        let cases = [
            (0.0, "0 ms"),
            (-1.0, "0 ms"),
            (1e-9, "0.00 ms"),
            (0.000_42, "0.42 ms"),
            (0.009_994, "9.99 ms"),
            (0.058_12, "58.1 ms"),
            (0.999, "999 ms"),
            (0.9997, "1.00 s"),
            (4.021, "4.02 s"),
            (99.94, "99.9 s"),
            (123_456.7, "123457 s"),
            (999_999.6, "1000000 s"),
            (9.22e18, "9.2e18 s"),
            (f64::MAX, "1.8e308 s"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(time(seconds), expected);
        }
    }

    #[test]
    fn points_of_a_scale_have_the_digits_that_tell_them_apart() {
        assert_eq!(tick(0.0, 0.5), "0");
        assert_eq!(tick(3.0, 1.0), "3 s");
        assert_eq!(tick(1.5, 0.5), "1.5 s");
        assert_eq!(tick(0.04, 0.02), "40 ms");
        assert_eq!(tick(0.0002, 0.0001), "0.20 ms");
        assert_eq!(tick(5e17, 5e17), "5.0e17 s");
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not_passed_on() {
        assert_eq!(plain("unet-0:50062"), "unet-0:50062");
        assert_eq!(plain("\u{1b}[2Jé \n"), "?[2J???");
        assert_eq!(plain(&"x".repeat(1000)).len(), LONGEST_NAME);
    }

    #[test]
    fn steps_have_their_time_where_it_is_told() {
        assert_eq!(steps(24, Some(1.2)), "24 x 50.0 ms");
        assert_eq!(steps(24, None), "24");
        assert_eq!(steps(0, Some(1.2)), "");
    }
}
