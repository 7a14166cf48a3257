use super::*;
use crate::toy::{CHECKPOINT, Toy, ToyEngine};
use sdxl_core::{Classify, ErrorClass, Priority, Size};
use std::{
    num::NonZeroUsize,
    sync::mpsc::{Receiver, Sender},
};

struct Stepwise {
    worker: WorkerHandle<ToyEngine>,
    permits: Sender<()>,
    log: Receiver<(usize, usize)>,
}

async fn stepwise(queue_depth: usize, max_active: usize) -> Stepwise {
    batching(queue_depth, max_active, 1).await
}

async fn batching(queue_depth: usize, max_active: usize, max_batch: usize) -> Stepwise {
    let (mut engine, permits, log) = ToyEngine::stepwise();
    engine.max_batch = max_batch;
    let count = |n| NonZeroUsize::new(n).unwrap();
    let args = WorkerArgs { queue_depth: count(queue_depth), max_active: count(max_active) };
    let (worker, built) = spawn(StageKind::BaseUnet, args, move || Ok((engine, ()))).unwrap();
    built.await.unwrap().unwrap();
    Stepwise { worker, permits, log }
}

impl Stepwise {
    fn submit(&self, toy: Toy) -> Events<ToyEngine> {
        self.worker.submit(toy, Terms::default()).unwrap()
    }

    fn submit_for(&self, tenant: &str, toy: Toy) -> Result<Events<ToyEngine>, StageError> {
        self.worker.submit(toy, Terms { tenant: tenant.parse().unwrap(), ..Terms::default() })
    }

    /// Lets one more step be done.
    fn step(&self) {
        // An engine that has panicked takes no more.
        let _ = self.permits.send(());
    }

    async fn until(&self, queued: usize, active: usize) {
        let mut load = self.worker.load();
        let wanted = load.wait_for(|l| (l.queued, l.active) == (queued, active));
        tokio::time::timeout(Duration::from_secs(5), wanted)
            .await
            .unwrap_or_else(|_| panic!("never {queued} queued and {active} active: {:?}", self.worker.load()))
            .unwrap();
    }
}

async fn last<T>(events: &mut mpsc::UnboundedReceiver<Result<T, StageError>>) -> Result<T, StageError> {
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event);
    }
    last.unwrap()
}

#[tokio::test]
async fn a_run_tells_its_steps_and_its_times() {
    let toy = stepwise(4, 1).await;
    let mut events = toy.submit(Toy::Count(3));
    tokio::time::sleep(Duration::from_millis(20)).await;
    (0..3).for_each(|_| toy.step());
    assert!(matches!(events.recv().await.unwrap().unwrap(), RunEvent::Started { .. }));
    assert_eq!(events.recv().await.unwrap().unwrap(), RunEvent::Step(1));
    assert_eq!(events.recv().await.unwrap().unwrap(), RunEvent::Step(2));
    let RunEvent::Done(finished) = events.recv().await.unwrap().unwrap() else { panic!("not done") };
    assert_eq!(finished.output, 30);
    // On a busy machine the queue has its part of the wait.
    assert!(finished.queue_time + finished.run_time >= Duration::from_millis(15), "{finished:?}");
    assert!(events.recv().await.is_none());
    toy.until(0, 0).await;
}

#[tokio::test]
async fn a_step_that_is_only_begun_tells_nothing() {
    let toy = stepwise(4, 1).await;
    let mut events = toy.submit(Toy::Ahead(2));
    (0..4).for_each(|_| toy.step());
    assert!(matches!(events.recv().await.unwrap().unwrap(), RunEvent::Started { .. }));
    assert_eq!(events.recv().await.unwrap().unwrap(), RunEvent::Step(1));
    assert_eq!(events.recv().await.unwrap().unwrap(), RunEvent::Step(2));
    let RunEvent::Done(finished) = events.recv().await.unwrap().unwrap() else { panic!("not done") };
    assert_eq!(finished.output, 20);
    assert_eq!(toy.log.try_iter().collect::<Vec<_>>(), [(2, 1), (2, 2)]);
}

#[tokio::test]
async fn a_step_that_fails_when_none_is_begun_ends_its_run_only() {
    let toy = stepwise(4, 1).await;
    for (toy_of, output) in [(Toy::AheadFail(1), None), (Toy::Ahead(1), Some(10))] {
        let mut events = toy.submit(toy_of);
        (0..3).for_each(|_| toy.step());
        match last(&mut events).await {
            Ok(RunEvent::Done(finished)) => assert_eq!(Some(finished.output), output),
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert_eq!((error.class(), output), (ErrorClass::Internal, None), "{error}"),
        }
    }
}

/// A worker without a thread, so that its turns come one by one.
fn by_turns(max_active: usize) -> Worker<ToyEngine> {
    Worker {
        engine: ToyEngine::every(Duration::ZERO),
        queue: Arc::new(Queue::new(1)),
        active: Vec::new(),
        max_active,
        turns: Turns::default(),
        turn: 0,
        times: StepTimes::new(),
        steps: Steps::new(StageKind::BaseUnet),
    }
}

impl Worker<ToyEngine> {
    fn begin_for(&mut self, tenant: &str, toy: Toy) -> Events<ToyEngine> {
        let (events, receiver) = mpsc::unbounded_channel();
        let (span, counted) = (RunSpan::new(), (Instant::now(), 0));
        let terms = Terms { tenant: tenant.parse().unwrap(), ..Terms::default() };
        let (queue_time, run_time) = (Duration::ZERO, Duration::ZERO);
        let caller =
            Caller { events, terms, span, stage: StageKind::BaseUnet, queue_time, run_time, counted };
        let run = self.engine.begin(toy);
        // One after the other.
        let submitted = Instant::now() + Duration::from_millis(self.active.len() as u64);
        self.begun(run, caller, submitted);
        receiver
    }

    /// Whose step is under way.
    fn under_way(&self) -> Vec<String> {
        let under_way = self.active.iter().filter(|active| active.begun.is_some());
        under_way.map(|active| active.caller.terms.tenant.to_string()).collect()
    }
}

/// What a worker knows after runs of so many steps each, on a device that is ahead; each turn has a batch limit.
fn learnt(runs: &[usize], limits: &[usize]) -> StepTimes {
    let mut worker = by_turns(runs.len());
    let mut events: Vec<_> = runs.iter().map(|steps| worker.begin_for("one", Toy::Ahead(*steps))).collect();
    for limit in limits {
        assert!(!worker.active.is_empty());
        worker.engine.max_batch = *limit;
        worker.turn().unwrap();
    }
    assert!(worker.active.is_empty());
    for (events, steps) in events.iter_mut().zip(runs) {
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(Result::unwrap).collect();
        assert_eq!(told.len(), steps + 1, "every step, and the end");
        assert!(matches!(told.last(), Some(RunEvent::Done(finished)) if finished.output == steps * 10));
    }
    worker.times
}

/// What is known after these steps: of how many runs, begun in which turn.
fn seen(steps: &[(u32, u64)]) -> StepTimes {
    let mut times = StepTimes::new();
    for (runs, turn) in steps {
        times.observe(Size::new(64, 64), f64::from(*runs), Duration::from_millis(*turn));
    }
    times
}

#[test]
fn a_step_ahead_counts_once_and_as_what_it_was_begun_with() {
    assert_eq!(learnt(&[3], &[1; 5]), seen(&[(1, 1), (1, 2), (1, 3)]));
    // One ends a step before the other.
    assert_eq!(learnt(&[2, 3], &[2; 5]), seen(&[(2, 1), (2, 2), (1, 3)]));
    // Two begin together; then one has all of its turns, and the other is told of that first step thereafter.
    let apart = [&[2][..], &[1; 8]].concat();
    assert_eq!(learnt(&[3, 3], &apart), seen(&[(2, 1), (1, 2), (1, 3), (1, 6), (1, 7)]));
}

#[test]
fn what_a_step_took_on_the_device_is_each_ones_run_time_and_paid_for_in_parts() {
    let mut worker = by_turns(2);
    worker.engine.max_batch = 2;
    let mut events = worker.begin_for("one", Toy::Ahead(1));
    let _other = worker.begin_for("other", Toy::Ahead(9));
    worker.engine.calls = 299; // the first step takes 300 ms, the next one 301
    let clocks = |worker: &Worker<ToyEngine>| {
        ["one", "other"].map(|tenant| (worker.turns.clock(&tenant.parse().unwrap()) * 1e4).round())
    };
    worker.turn().unwrap();
    assert_eq!(clocks(&worker), [0.0, 0.0]);
    worker.turn().unwrap();
    assert_eq!(clocks(&worker), [1500.0, 1500.0]);
    worker.turn().unwrap();
    assert_eq!(clocks(&worker), [1500.0, 4510.0]);
    assert_eq!(events.try_recv().unwrap().unwrap(), RunEvent::Step(1));
    let RunEvent::Done(finished) = events.try_recv().unwrap().unwrap() else { panic!("not done") };
    assert!(finished.run_time >= Duration::from_millis(300), "{:?}", finished.run_time);
}

#[test]
fn a_step_under_way_is_paid_for_by_who_leaves_it() {
    for leaves in [false, true] {
        let mut worker = by_turns(3);
        let [first, _second] = [9, 9].map(|steps| worker.begin_for("one", Toy::Ahead(steps)));
        let _third = worker.begin_for("other", Toy::Ahead(9));
        worker.turn().unwrap();
        assert_eq!(worker.under_way(), ["one"]);
        if leaves {
            drop(first);
            worker.sweep();
            assert_eq!(worker.under_way(), [""; 0]);
        }
        worker.turn().unwrap();
        // Nothing is paid for what is not told of yet.
        assert_eq!(worker.under_way(), [if leaves { "other" } else { "one" }]);
    }
}

#[test]
fn a_run_that_fails_beside_another_leaves_its_steps_to_it() {
    let mut worker = by_turns(2);
    worker.engine.max_batch = 2;
    let mut failing = worker.begin_for("one", Toy::AheadFail(2));
    let mut other = worker.begin_for("one", Toy::Ahead(4));
    for left in [2, 2, 1, 1, 1, 0] {
        worker.turn().unwrap();
        assert_eq!(worker.active.len(), left);
    }
    assert_eq!(failing.try_recv().unwrap().unwrap(), RunEvent::Step(1));
    assert_eq!(failing.try_recv().unwrap().unwrap_err().class(), ErrorClass::Internal);
    let told: Vec<_> = std::iter::from_fn(|| other.try_recv().ok()).map(Result::unwrap).collect();
    assert_eq!(told[..4], [1, 2, 3, 4].map(RunEvent::Step));
    assert!(matches!(told[4..], [RunEvent::Done(_)]));
    assert_eq!(worker.times, seen(&[(2, 1), (2, 2), (1, 3), (1, 4)]));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let toy = stepwise(2, 1).await;
    let _running = toy.submit(Toy::Count(1));
    toy.until(0, 1).await;
    let _waiting = [toy.submit(Toy::Count(1)), toy.submit(Toy::Count(1))];
    let error = toy.worker.submit(Toy::Count(1), Terms::default()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Overloaded);
    assert!(error.retry_after().is_some());
    toy.step();
    toy.until(1, 1).await;
    assert!(toy.worker.submit(Toy::Count(1), Terms::default()).is_ok());
}

#[tokio::test]
async fn who_hangs_up_while_waiting_makes_room() {
    let toy = stepwise(1, 1).await;
    let _running = toy.submit(Toy::Count(1));
    toy.until(0, 1).await;
    drop(toy.submit(Toy::Count(1)));
    assert!(toy.worker.submit(Toy::Count(1), Terms::default()).is_ok());
}

#[tokio::test]
async fn a_caller_that_has_gone_frees_the_device_within_one_step() {
    let toy = stepwise(4, 4).await;
    let (gone, waiting) = (toy.submit(Toy::Count(1000)), toy.submit(Toy::Count(999)));
    toy.step(); // the second may have come while the first was at its first step
    toy.until(0, 2).await;
    drop((gone, waiting));
    toy.step(); // at most this one is done for nobody
    toy.worker.idle().await;
    assert!(toy.log.try_iter().count() <= 2);
}

#[tokio::test]
async fn a_short_run_does_not_wait_for_a_long_one() {
    let toy = stepwise(4, 2).await;
    let mut long = toy.submit(Toy::Count(60));
    toy.until(0, 1).await;
    let mut short = toy.submit(Toy::Count(2));
    toy.until(1, 1).await;
    let mut third = toy.submit(Toy::Count(1));
    (0..63).for_each(|_| toy.step());
    for (events, output) in [(&mut long, 600), (&mut short, 20), (&mut third, 10)] {
        let RunEvent::Done(finished) = last(events).await.unwrap() else { panic!("not done") };
        assert_eq!(finished.output, output);
    }
    let order: Vec<_> = (0..63).map(|_| toy.log.recv().unwrap()).collect();
    let at = |run: usize, step: usize| order.iter().position(|done| *done == (run, step)).unwrap();
    assert!(at(2, 2) <= 3 && at(1, 1) <= 4, "{order:?}");
}

#[tokio::test]
async fn runs_share_steps_and_join_and_leave_between_them() {
    let toy = batching(8, 8, 2).await;
    let first = toy.submit(Toy::Count(4));
    toy.until(0, 1).await;
    let second = toy.submit(Toy::Count(2));
    let third = toy.submit(Toy::Count(3));
    // One permit is enough for both of a batch: the first step alone, if the others come too late for it, and then eight in
    // four, or five where the last ends alone.
    (0..6).for_each(|_| toy.step());
    for mut events in [first, second, third] {
        assert!(matches!(last(&mut events).await.unwrap(), RunEvent::Done(_)));
    }
}

#[tokio::test]
async fn waiting_requests_begin_by_deadline_then_by_priority_then_by_age() {
    let toy = stepwise(8, 1).await;
    let running = toy.submit(Toy::Count(1));
    toy.until(0, 1).await;
    let soon = |seconds| Deadline::after(Duration::from_secs(seconds));
    let mut events = Vec::new();
    for (steps, priority, deadline) in [
        (15, Priority::Batch, None),
        (14, Priority::Interactive, None),
        (13, Priority::Batch, soon(500)),
        (12, Priority::Interactive, soon(400)),
    ] {
        let terms = Terms { deadline, priority, ..Terms::default() };
        events.push(toy.worker.submit(Toy::Count(steps), terms).unwrap());
    }
    (0..55).for_each(|_| toy.step());
    for events in &mut events {
        assert!(last(events).await.is_ok());
    }
    drop(running);
    let begun: Vec<_> = toy.log.try_iter().filter(|(_, step)| *step == 1).map(|(steps, _)| steps).collect();
    assert_eq!(begun, [1, 12, 13, 14, 15]);
}

#[tokio::test]
async fn nobodys_flood_keeps_another_tenant_out() {
    let toy = stepwise(4, 2).await;
    let flood: Vec<_> = (0..2).map(|_| toy.submit_for("flood", Toy::Count(1_000_000_000)).unwrap()).collect();
    toy.step();
    toy.until(0, 2).await;
    let mut more: Vec<_> =
        (0..4).map(|_| toy.submit_for("flood", Toy::Count(1_000_000_000)).unwrap()).collect();
    assert_eq!(toy.submit_for("flood", Toy::Count(1)).unwrap_err().class(), ErrorClass::Overloaded);
    // The queue is full and all places are taken: the last of the flood makes room, and nothing has to end first.
    let mut modest = toy.submit_for("modest", Toy::Count(5)).unwrap();
    assert_eq!(last(&mut more.pop().unwrap()).await.unwrap_err().class(), ErrorClass::Overloaded);
    // From here on every step is done at once, and the flood never ends.
    drop(toy.permits);
    assert!(matches!(last(&mut modest).await.unwrap(), RunEvent::Done(Finished { output: 50, .. })));
    drop((flood, more));
}

#[tokio::test]
async fn a_deadline_ends_a_run_between_steps_and_a_waiting_request() {
    let toy = stepwise(4, 1).await;
    let terms = Terms { deadline: Deadline::after(Duration::from_millis(50)), ..Terms::default() };
    let mut running = toy.worker.submit(Toy::Count(1000), terms.clone()).unwrap();
    let mut waiting = toy.worker.submit(Toy::Count(1), terms).unwrap();
    toy.until(1, 1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    toy.step();
    let error = last(&mut running).await.unwrap_err();
    assert_eq!(error.to_string(), "the deadline passed after 1 steps");
    assert_eq!(last(&mut waiting).await.unwrap_err().class(), ErrorClass::DeadlineExceeded);
    toy.until(0, 0).await;
}

#[tokio::test]
async fn an_error_ends_its_own_run_only() {
    let toy = stepwise(4, 4).await;
    let (mut failing, mut wrong) = (toy.submit(Toy::Fail), toy.submit(Toy::Wrong));
    let mut right = toy.submit(Toy::Count(3));
    (0..5).for_each(|_| toy.step());
    let error = last(&mut failing).await.unwrap_err();
    assert_eq!(
        (error.class(), error.to_string().as_str()),
        (ErrorClass::Internal, "latents is not finite after step 1")
    );
    let error = last(&mut wrong).await.unwrap_err();
    assert_eq!((error.class(), error.violations()[0].field.as_str()), (ErrorClass::InvalidRequest, "toy"));
    assert!(matches!(last(&mut right).await.unwrap(), RunEvent::Done(Finished { output: 30, .. })));
}

#[tokio::test]
async fn a_panic_stops_the_worker_and_everyone_hears() {
    let toy = stepwise(4, 2).await;
    // Long ones, so that the broken one is due first whatever its first step is seen to take.
    let long = Toy::Count(1_000_000_000);
    let (mut broken, mut beside) = (toy.submit(Toy::Panic), toy.submit(long));
    let mut waiting = toy.submit(long);
    (0..3).for_each(|_| toy.step());
    let error = last(&mut broken).await.unwrap_err();
    assert_eq!(
        (error.class(), error.to_string().as_str()),
        (ErrorClass::Internal, "the engine failed: the toy is broken")
    );
    assert_eq!(last(&mut beside).await.unwrap_err().class(), ErrorClass::Unavailable);
    assert_eq!(last(&mut waiting).await.unwrap_err().class(), ErrorClass::Unavailable);
    toy.worker.load().wait_for(|l| l.phase == Phase::Failed).await.unwrap();
    assert_eq!(
        toy.worker.submit(Toy::Count(1), Terms::default()).unwrap_err().class(),
        ErrorClass::Unavailable
    );
}

#[tokio::test]
async fn draining_finishes_what_is_there_and_takes_nothing_new() {
    let toy = stepwise(4, 1).await;
    let (mut running, mut waiting) = (toy.submit(Toy::Count(2)), toy.submit(Toy::Count(1)));
    toy.worker.drain(None);
    let refused = toy.worker.submit(Toy::Count(1), Terms::default()).unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Unavailable);
    (0..3).for_each(|_| toy.step());
    assert!(last(&mut running).await.is_ok());
    assert!(last(&mut waiting).await.is_ok());
    toy.worker.load().wait_for(|l| l.phase == Phase::Ended).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_done_before_the_end_is_handed_over() {
    let toy = stepwise(4, 2).await;
    let mut short = toy.submit(Toy::Count(3));
    toy.until(0, 1).await;
    toy.step();
    assert!(matches!(short.recv().await.unwrap().unwrap(), RunEvent::Started { .. }));
    assert_eq!(short.recv().await.unwrap().unwrap(), RunEvent::Step(1));
    let mut long = toy.submit(Toy::Count(1_000_000_000));
    toy.step();
    toy.until(0, 2).await;
    let mut waiting = toy.submit(Toy::Count(1));
    toy.worker.drain(Some(Duration::from_secs(60)));
    (0..4).for_each(|_| toy.step());
    assert!(matches!(last(&mut short).await.unwrap(), RunEvent::Done(_)));
    let mut heard = Vec::new();
    while let Some(event) = long.recv().await {
        heard.push(event);
    }
    let [.., Ok(RunEvent::Step(checkpoint)), Err(StageError::Draining)] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert!(*checkpoint >= CHECKPOINT, "{heard:?}");
    assert!(matches!(last(&mut waiting).await, Err(StageError::Draining)));
    toy.worker.load().wait_for(|l| l.phase == Phase::Ended).await.unwrap();
}

#[tokio::test]
async fn what_goes_wrong_in_building_is_told() {
    let args = WorkerArgs { queue_depth: NonZeroUsize::MIN, max_active: NonZeroUsize::MIN };
    let (worker, built) =
        spawn::<ToyEngine, ()>(StageKind::BaseUnet, args, || anyhow::bail!("unet/config.json: no such file"))
            .unwrap();
    assert_eq!(built.await.unwrap().unwrap_err().to_string(), "unet/config.json: no such file");
    assert_eq!(worker.load().borrow().phase, Phase::Failed);
    let (_, built) = spawn::<ToyEngine, ()>(StageKind::BaseUnet, args, || panic!("broken")).unwrap();
    assert_eq!(built.await.unwrap().unwrap_err().to_string(), "the engine panicked: broken");
}

#[test]
fn what_is_between_two_turns_of_its_own_counts_and_turns_of_others_do_not() {
    let (between, turn) = (Duration::from_millis(100), Duration::from_millis(10));
    let ago = || Instant::now().checked_sub(between).unwrap();
    let mut caller: Caller<ToyEngine> = Caller {
        events: mpsc::unbounded_channel().0,
        terms: Terms::default(),
        span: RunSpan::new(),
        stage: StageKind::BaseUnet,
        queue_time: Duration::ZERO,
        run_time: Duration::ZERO,
        counted: (ago(), 4),
    };
    caller.took_turn(5, turn);
    let after_one = caller.run_time;
    assert!(after_one >= between, "{after_one:?}");
    caller.counted.0 = ago();
    caller.took_turn(7, turn);
    assert_eq!(caller.run_time, after_one + turn);
}
