//! The device that is not there: who uses it, and from when to when.

use std::{
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

/// Keeps the time of a device, asleep.
///
/// While it has work, each piece begins where the one before ended and not where the sleep over that one did, so that
/// sleeping too long, as every system lets one, does not add up over a run.
#[derive(Debug)]
pub(super) struct Device {
    /// The end of the last piece of work; `None` where the device has been idle since.
    busy_until: Option<Instant>,
    runs: Rc<()>,
}

/// Held by a run: for as long as one is there, the device has work.
#[derive(Debug)]
pub(super) struct Present {
    _of: Rc<()>,
}

impl Device {
    pub(super) fn new() -> Self {
        Self { busy_until: None, runs: Rc::new(()) }
    }

    /// A run begins.
    pub(super) fn enter(&mut self) -> Present {
        if Rc::strong_count(&self.runs) == 1 {
            self.busy_until = None;
        }
        Present { _of: Rc::clone(&self.runs) }
    }

    /// Works for `time`; tells how long that was by the device's clock.
    pub(super) fn work(&mut self, time: Duration) -> Duration {
        let now = Instant::now();
        let (start, end) = self.plan(now, time);
        thread::sleep(end.saturating_duration_since(now));
        end - start
    }

    /// When work that is asked for at `now` begins and ends. It never ends before `now`: what a machine too busy to keep
    /// up has lost by more than this piece's time stays lost.
    fn plan(&mut self, now: Instant, time: Duration) -> (Instant, Instant) {
        let start = self.busy_until.map_or(now, |end| end.min(now));
        let end = start.checked_add(time).unwrap_or(start).max(now);
        self.busy_until = Some(end);
        (start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn while_there_is_work_a_step_begins_where_the_last_one_ended() {
        let (mut device, zero) = (Device::new(), Instant::now());
        let _run = device.enter();
        assert_eq!(device.plan(zero, STEP), (zero, after(zero, 10)));
        // The sleep took three milliseconds more.
        assert_eq!(device.plan(after(zero, 13), STEP), (after(zero, 10), after(zero, 20)));
        let _other = device.enter();
        assert_eq!(device.plan(after(zero, 20), STEP), (after(zero, 20), after(zero, 30)));
    }

    #[test]
    fn work_never_ends_in_the_past() {
        let (mut device, zero) = (Device::new(), Instant::now());
        let _run = device.enter();
        device.plan(zero, STEP);
        assert_eq!(device.plan(after(zero, 45), STEP), (after(zero, 10), after(zero, 45)));
        assert_eq!(device.plan(after(zero, 45), STEP), (after(zero, 45), after(zero, 55)));
    }

    #[test]
    fn after_an_idle_time_work_begins_when_it_comes() {
        let (mut device, zero) = (Device::new(), Instant::now());
        let run = device.enter();
        device.plan(zero, STEP);
        drop(run);
        let _run = device.enter();
        assert_eq!(device.plan(after(zero, 13), STEP), (after(zero, 13), after(zero, 23)));
    }

    #[test]
    fn time_is_taken() {
        let mut device = Device::new();
        let _run = device.enter();
        let started = Instant::now();
        for _ in 0..10 {
            assert!(device.work(Duration::from_millis(5)) >= Duration::from_millis(5));
        }
        assert!(started.elapsed() >= Duration::from_millis(50));
    }
}
