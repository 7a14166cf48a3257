//! Fixed answers to exact text.

use super::{Style, draw};
use crate::generate::report::Report;
use sdxl_proto::v1::{AttemptEnd, GenerateSummary, RequestTiming, Stage, StageAttempt, StageTiming};
use std::time::Duration;

const WIDE: Style = Style { columns: 100, unicode: true, colour: false };

fn ms(milliseconds: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(milliseconds % 1000).unwrap() * 1_000_000;
    Some(prost_types::Duration { seconds: milliseconds / 1000, nanos })
}

/// Sent at `at` and back after `total`, of which it waited and worked `queue` and `run`; all in milliseconds.
fn timing(stage: Stage, image_index: Option<u32>, at: i64, [queue, run, total]: [i64; 3]) -> StageTiming {
    let name = stage.as_str_name().trim_start_matches("STAGE_").to_lowercase();
    StageTiming {
        stage: stage.into(),
        image_index,
        replica: format!("{}:50062", name.replace('_', "-")),
        queue_time: ms(queue),
        run_time: ms(run),
        total_time: ms(total),
        start_time_offset: ms(at),
        wait_time: ms(0),
        ..StageTiming::default()
    }
}

fn steps(timing: StageTiming, steps: u32) -> StageTiming {
    StageTiming { steps, ..timing }
}

fn drawn(summary: GenerateSummary, elapsed: i64, style: Style) -> String {
    let mut report = Report::default();
    report.close(summary, Duration::from_millis(elapsed.unsigned_abs()));
    draw(&report, style)
}

/// Three pictures with a refiner, of which one lost its base.
fn three() -> GenerateSummary {
    use Stage::{BaseUnet, Refiner, TextEncoder, Vae};
    let lost = StageAttempt {
        replica: "base-unet-1:50062".into(),
        start_time_offset: ms(60),
        wait_time: ms(0),
        queue_time: ms(20),
        run_time: ms(900),
        total_time: ms(1040),
        steps: 9,
        end: AttemptEnd::Died.into(),
    };
    let resumed = StageTiming {
        lost_attempts: vec![lost],
        resumes: 1,
        steps_repeated: 4,
        wait_time: ms(400),
        ..steps(timing(BaseUnet, Some(1), 1500, [300, 1500, 1850]), 20)
    };
    let timings = vec![
        timing(TextEncoder, None, 4, [1, 38, 44]),
        steps(timing(BaseUnet, Some(0), 60, [2, 1200, 1230]), 20),
        steps(timing(Refiner, Some(0), 1290, [0, 400, 405]), 5),
        timing(Vae, Some(0), 1695, [0, 130, 140]),
        resumed,
        steps(timing(Refiner, Some(1), 3351, [0, 400, 406]), 5),
        timing(Vae, Some(1), 3757, [0, 130, 139]),
        steps(timing(BaseUnet, Some(2), 60, [1240, 1200, 2460]), 20),
        steps(timing(Refiner, Some(2), 2520, [0, 400, 404]), 5),
        timing(Vae, Some(2), 2924, [0, 130, 137]),
    ];
    let whole = RequestTiming {
        total_time: ms(3900),
        admission_time: ms(1),
        texts_time_offset: ms(49),
        texts: 3,
        texts_from_cache: 1,
    };
    GenerateSummary {
        timings,
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
        request_timing: Some(whole),
        ..GenerateSummary::default()
    }
}

#[test]
fn a_row_that_is_shorter_than_a_cell_has_one_and_the_others_are_to_scale() {
    let timings = vec![
        timing(Stage::BaseUnet, Some(0), 0, [0, 500, 500]),
        timing(Stage::Refiner, Some(0), 500, [0, 499, 499]),
        timing(Stage::Vae, Some(0), 999, [0, 1, 1]),
    ];
    let text = drawn(one(timings, 1000), 1000, WIDE);
    let bars = text.lines().skip(1).take(3).map(|line| line.chars().filter(|c| *c == '█').count());
    let bars: Vec<_> = bars.collect();
    assert!(bars[0].abs_diff(bars[1]) <= 1 && bars[0] > 20 && bars[2] == 1, "{bars:?}\n{text}");
}

/// A picture by itself.
fn one(timings: Vec<StageTiming>, total: i64) -> GenerateSummary {
    let whole = RequestTiming { total_time: ms(total), admission_time: ms(1), ..RequestTiming::default() };
    GenerateSummary { timings, request_timing: Some(whole), ..GenerateSummary::default() }
}

#[test]
fn three_pictures_of_which_one_lost_a_replica() {
    let expected = "
              0       1 s      2 s      3 s           time  steps                 replica
text-encoder  █                                    44.0 ms                        text-encoder:50062
0 base-unet    ██████████                           1.23 s  20 x 60.0 ms          base-unet:50062
0 refiner                ████                       405 ms  5 x 80.0 ms           refiner:50062
0 vae                        █                      140 ms                        vae:50062
1 base-unet    ████████╳                            1.04 s  9 x 100 ms, died      base-unet-1:50062
1 base-unet             ···░░░█████████████         2.25 s  15 x 100 ms, 4 again  base-unet:50062
1 refiner                                  ████     406 ms  5 x 80.0 ms           refiner:50062
1 vae                                          █    139 ms                        vae:50062
2 base-unet    ░░░░░░░░░░███████████                2.46 s  20 x 60.0 ms          base-unet:50062
2 refiner                           ███             404 ms  5 x 80.0 ms           refiner:50062
2 vae                                  ██           137 ms                        vae:50062
coordinator   ▒                                    21.0 ms
█ on the device   ░ in the replica's queue   · waiting for a replica   ╳ lost, until that was known
▒ at no stage

sums         calls    waited    worked      rest      lost  steps
text-encoder     1   1.00 ms   38.0 ms   5.00 ms      0 ms
base-unet        4    1.96 s    4.80 s   98.0 ms    120 ms  64, 4 of them again
refiner          3      0 ms    1.20 s   15.0 ms      0 ms  15
vae              3      0 ms    390 ms   26.0 ms      0 ms

3.90 s at the coordinator, of which 21.0 ms at no stage
3.95 s here, of which 50.0 ms for connecting, the way and files
1 of 3 texts from the cache
trace 0af7651916cd43dd8448eb211c80319c";
    assert_eq!(format!("\n{}", drawn(three(), 3950, WIDE)), expected);
}

#[test]
fn a_narrow_terminal_has_figures_in_lines_of_their_own() {
    let expected = "
              0        1 s      2 s      3 s            time
text-encoder  #                                      44.0 ms
              text-encoder:50062
0 base-unet    ###########                            1.23 s
              20 x 60.0 ms  base-unet:50062
0 refiner                 ####                        405 ms
              5 x 80.0 ms  refiner:50062
0 vae                         #                       140 ms
              vae:50062
1 base-unet    ########x                              1.04 s
              9 x 100 ms, died  base-unet-1:50062
1 base-unet             ....---#############~         2.25 s
              15 x 100 ms, 4 again  base-unet:50062
1 refiner                                    ####     406 ms
              5 x 80.0 ms  refiner:50062
1 vae                                            #    139 ms
              vae:50062
2 base-unet    -----------###########                 2.46 s
              20 x 60.0 ms  base-unet:50062
2 refiner                            ####             404 ms
              5 x 80.0 ms  refiner:50062
2 vae                                    #            137 ms
              vae:50062
coordinator   =                                      21.0 ms
# on the device   - in the replica's queue
. waiting for a replica
~ the way there and back, others' turns
x lost, until that was known   = at no stage

sums         calls    waited    worked      rest      lost  steps
text-encoder     1   1.00 ms   38.0 ms   5.00 ms      0 ms
base-unet        4    1.96 s    4.80 s   98.0 ms    120 ms  64, 4 of them again
refiner          3      0 ms    1.20 s   15.0 ms      0 ms  15
vae              3      0 ms    390 ms   26.0 ms      0 ms

3.90 s at the coordinator, of which 21.0 ms at no stage
3.95 s here, of which 50.0 ms for connecting, the way and files
1 of 3 texts from the cache
trace 0af7651916cd43dd8448eb211c80319c";
    let style = Style { columns: 60, unicode: false, ..WIDE };
    assert_eq!(format!("\n{}", drawn(three(), 3950, style)), expected);
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for columns in (80..=300).step_by(7) {
        let text = drawn(three(), 3950, Style { columns, ..WIDE });
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= columns, "{widest} of {columns}:\n{text}");
    }
    assert_eq!(
        drawn(three(), 3950, Style { columns: 0, ..WIDE }),
        drawn(three(), 3950, Style { columns: 32, ..WIDE }),
        "what is too narrow for anything is drawn as wide as it takes"
    );
}

#[test]
fn one_picture_has_no_number_and_texts_may_be_known() {
    let mut summary = one(vec![steps(timing(Stage::BaseUnet, None, 10, [0, 80, 85]), 4)], 100);
    summary.timings[0].image_index = Some(0);
    let whole = summary.request_timing.as_mut().unwrap();
    (whole.texts, whole.texts_from_cache, whole.texts_time_offset) = (2, 2, ms(6));
    let expected = "
              0       20 ms    40 ms   60 ms    80 ms          time  steps           replica
text-encoder  ▒▒▒                                           5.00 ms  from the cache
base-unet         ███████████████████████████████████╌╌     85.0 ms  4 x 20.0 ms     base-unet:50062
coordinator   ▒▒▒▒                                     ▒▒   15.0 ms
█ on the device   ╌ the way there and back, others' turns   ▒ at no stage

sums         calls    waited    worked      rest  steps
base-unet        1      0 ms   80.0 ms   5.00 ms  4

100 ms at the coordinator, of which 15.0 ms at no stage
101 ms here, of which 1.00 ms for connecting, the way and files
2 of 2 texts from the cache";
    assert_eq!(format!("\n{}", drawn(summary, 101, WIDE)), expected);
}

/// Kept by a coordinator of before.
#[test]
fn what_does_not_say_when_it_began_is_drawn_all_the_same() {
    let mut summary = three();
    summary.request_timing = None;
    summary.timings.truncate(3);
    for timing in &mut summary.timings {
        (timing.start_time_offset, timing.wait_time) = (None, None);
    }
    let expected = "
              0                0.5 s            1.0 s         time  steps         replica
text-encoder  ██                                           44.0 ms                text-encoder:50062
base-unet     █████████████████████████████████████████╌    1.23 s  20 x 60.0 ms  base-unet:50062
refiner       ██████████████                                405 ms  5 x 80.0 ms   refiner:50062
The cluster does not say when this work began: each bar begins at the left.
█ on the device   ╌ the way there and back, others' turns

sums         calls    waited    worked      rest  steps
text-encoder     1   1.00 ms   38.0 ms   5.00 ms
base-unet        1   2.00 ms    1.20 s   28.0 ms  20
refiner          1      0 ms    400 ms   5.00 ms  5

20.0 ms here; the cluster does not say how long it had it
trace 0af7651916cd43dd8448eb211c80319c";
    assert_eq!(format!("\n{}", drawn(summary, 20, WIDE)), expected);
}

#[test]
fn an_answer_that_was_made_before_says_so() {
    let text = drawn(three(), 12, WIDE);
    let line =
        "12.0 ms here: the pictures had been asked for before, and the timeline is that of their making";
    assert!(text.lines().any(|said| said == line), "{text}");
}

#[test]
fn colours_are_around_cells_of_a_kind_and_change_nothing_else() {
    let coloured = drawn(three(), 3950, Style { colour: true, ..WIDE });
    assert!(coloured.contains("\u{1b}[32m████████\u{1b}[0m\u{1b}[31m╳\u{1b}[0m "), "{coloured}");
    let mut plain = String::new();
    for part in coloured.split('\u{1b}') {
        plain.push_str(
            part.strip_prefix('[').and_then(|sgr| sgr.split_once('m')).map_or(part, |(_, rest)| rest),
        );
    }
    let plain: Vec<_> = plain.lines().map(str::trim_end).collect();
    assert_eq!(plain.join("\n"), drawn(three(), 3950, WIDE));
}

#[test]
fn what_took_no_time_has_its_place() {
    let timings =
        vec![timing(Stage::BaseUnet, Some(0), 0, [0, 100, 100]), timing(Stage::Vae, Some(0), 100, [0, 0, 0])];
    let text = drawn(one(timings, 100), 100, WIDE);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let (base, vae) = (line("base-unet"), line("vae"));
    let last = base.chars().collect::<Vec<_>>().iter().rposition(|c| *c == '█').unwrap();
    assert_eq!(vae.chars().position(|c| c == '█'), Some(last), "at the end of the bar:\n{text}");
    assert!(vae.contains("0 ms"), "{vae}");
}

#[test]
fn nothing_at_all_is_no_reason_to_fail() {
    assert_eq!(
        drawn(GenerateSummary::default(), 5, WIDE),
        format!("{:96}time\n\n5.00 ms here; the cluster does not say how long it had it", "  0")
    );
    let text = drawn(one(vec![StageTiming::default()], 0), 0, WIDE);
    assert!(text.contains("unknown"), "{text}");
}

/// A server may send anything.
#[test]
fn absurd_values_are_drawn() {
    let extremes = [
        Some(prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 }),
        Some(prost_types::Duration { seconds: i64::MIN, nanos: i32::MIN }),
        Some(prost_types::Duration { seconds: -1, nanos: 5 }),
        Some(prost_types::Duration { seconds: 0, nanos: 1 }),
        None,
    ];
    let mut cases = 0;
    for (i, a) in extremes.into_iter().enumerate() {
        for b in extremes {
            let lost = StageAttempt {
                replica: "\u{1b}[2J".into(),
                start_time_offset: b,
                wait_time: a,
                queue_time: a,
                run_time: b,
                total_time: a,
                steps: u32::MAX,
                end: 77,
            };
            let timing = StageTiming {
                stage: 99,
                image_index: Some(u32::MAX),
                replica: "\u{7}".repeat(1000),
                queue_time: a,
                run_time: b,
                total_time: extremes[(i + 1) % extremes.len()],
                steps: u32::MAX,
                resumes: u32::MAX,
                steps_repeated: u32::MAX,
                start_time_offset: a,
                wait_time: b,
                lost_attempts: vec![lost; 3],
            };
            let whole = RequestTiming {
                total_time: b,
                admission_time: a,
                texts_time_offset: b,
                texts: u32::MAX,
                texts_from_cache: 0,
            };
            for columns in [0, 80, 100_000] {
                let text = drawn(
                    GenerateSummary {
                        timings: vec![timing.clone(), StageTiming { image_index: None, ..timing.clone() }],
                        trace_id: "\u{1b}]0;title\u{7}".into(),
                        request_timing: Some(whole),
                        ..GenerateSummary::default()
                    },
                    5,
                    Style { columns, ..WIDE },
                );
                assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
                assert!(text.lines().filter(|line| line.contains("unknown")).count() >= 8, "{text}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 75);
}

#[test]
fn more_rows_than_any_request_has_are_counted_and_not_drawn() {
    let timings = vec![timing(Stage::Vae, Some(0), 0, [0, 1, 1]); 100_000];
    let text = drawn(one(timings, 3), 3, WIDE);
    assert!(text.lines().count() < 220 && text.contains("and 99801 rows more"), "{}", text.lines().count());
    assert!(!text.lines().any(|line| line.starts_with("coordinator")), "its row is left out");
    assert!(text.contains("3.00 ms at the coordinator, of which 2.00 ms at no stage"), "{text}");
}
