// SPDX-License-Identifier: Apache-2.0
//! A build as lines: its steps as they begin and end, and what their commands write.

use indicatif::HumanBytes;
use wrenn_api::{Build, BuildLogEntry, BuildStatus, BuildStep, BuildStepStatus, BuildStream};

use super::plain::{plain, short};

/// Maximum number of characters that are shown of an instruction.
const INSTRUCTION: usize = 100;
/// Maximum length of a line of output in bytes; a longer one is broken.
const LINE: usize = 8 << 10;
/// What stands before what belongs to a step.
const INDENT: &str = "      ";

/// How a build is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Style {
    /// Whether each entry of the log is a line of JSON, and nothing else is told.
    pub(super) json: bool,
    /// Whether to say why results were not taken from the cache.
    pub(super) explain: bool,
    /// Whether to use colours.
    pub(super) colour: bool,
    /// Only this step.
    pub(super) step: Option<u32>,
}

/// Tells a build: each step once, and its output below it.
#[derive(Debug, Default)]
pub(super) struct View {
    style: Style,
    /// Number of steps whose end was told.
    told: usize,
    /// Number of steps that were over when the build was last looked at.
    over: usize,
    /// Step whose beginning was told last; 0: none. A process that was started writes also during the steps after it.
    begun: u32,
    /// Last step whose beginning was told, and last one for which it was told why it was not in the cache.
    latest: u32,
    explained: u32,
    /// Lines of standard output and standard error that have no end yet.
    unfinished: [String; 2],
}

/// Returns what is in work, for a line that changes.
pub(super) fn in_work(build: &Build) -> String {
    let running = build.steps.iter().find(|step| step.status == BuildStepStatus::Running);
    match (build.status, running) {
        (BuildStatus::Pending, _) => "waiting for a worker".to_owned(),
        (_, Some(step)) => {
            format!("{} {}", place(build, step), short(&step.instruction, INSTRUCTION / 2))
        }
        _ => "building".to_owned(),
    }
}

impl View {
    pub(super) fn new(style: Style) -> Self {
        Self { style, ..Self::default() }
    }

    /// Tells what is new in a build that was looked at. The end of a step is told when it was over the last time, too: the log
    /// may have the last of its output a moment later.
    pub(super) fn look(&mut self, build: &Build) -> Vec<String> {
        let mut lines = Vec::new();
        self.steps(build, self.over, &mut lines);
        self.over = build.steps.iter().take_while(|step| is_over(step.status)).count();
        lines
    }

    /// Returns whether an entry is of a later step than all that was told, or of the whole build: that should be looked at first.
    pub(super) fn is_behind(&self, entry: &BuildLogEntry) -> bool {
        !self.style.json && (entry.step > self.latest || entry.step == 0)
    }

    /// Tells an entry of the log, and that the steps before its step are over.
    pub(super) fn entry(&mut self, build: &Build, entry: &BuildLogEntry) -> Vec<String> {
        if self.style.json {
            return serde_json::to_string(entry).into_iter().collect();
        }
        let mut lines = Vec::new();
        if entry.step == 0 {
            self.steps(build, self.over, &mut lines);
            lines.extend(entry.text.lines().map(|line| format!("wrenn: {}", plain(line))));
            return lines;
        }
        self.steps(build, entry.step as usize - 1, &mut lines);
        if self.begun != entry.step
            && let Some(step) = build.steps.get(entry.step as usize - 1)
        {
            self.begin(build, step, &mut lines);
        }
        match entry.stream {
            BuildStream::Stdout => self.output(0, &entry.text, &mut lines),
            BuildStream::Stderr => self.output(1, &entry.text, &mut lines),
            BuildStream::System => {
                let told = entry.text.lines().map(|line| format!("{INDENT}wrenn: {}", plain(line)));
                lines.extend(told);
            }
        }
        lines
    }

    /// Tells the rest of a build that has ended.
    pub(super) fn end(&mut self, build: &Build) -> Vec<String> {
        let mut lines = Vec::new();
        self.steps(build, build.steps.len(), &mut lines);
        self.flush(&mut lines);
        lines
    }

    /// Tells the ends of the next steps, and the beginning of the one in work. Of those after the first `sure` ones only the ends
    /// of cached ones are told.
    fn steps(&mut self, build: &Build, sure: usize, lines: &mut Vec<String>) {
        if self.style.json {
            return;
        }
        while let Some(step) = build.steps.get(self.told) {
            match step.status {
                BuildStepStatus::Cached => {}
                status if is_over(status) && self.told < sure => {}
                BuildStepStatus::Running if self.latest < step.number => {
                    self.begin(build, step, lines);
                    return;
                }
                _ => return,
            }
            self.finish(build, step, lines);
            self.told += 1;
        }
    }

    fn begin(&mut self, build: &Build, step: &BuildStep, lines: &mut Vec<String>) {
        self.flush(lines);
        self.begun = step.number;
        self.latest = self.latest.max(step.number);
        if self.is_shown(step) {
            lines.push(format!("{} {}", place(build, step), short(&step.instruction, INSTRUCTION)));
            self.explain(step, lines);
        }
    }

    fn finish(&mut self, build: &Build, step: &BuildStep, lines: &mut Vec<String>) {
        self.flush(lines);
        if !self.is_shown(step) {
            return;
        }
        let (colour, how) = outcome(step);
        let how = if self.style.colour { format!("\u{1b}[{colour}m{how}\u{1b}[0m") } else { how };
        let place = place(build, step);
        if self.begun == step.number {
            self.explain(step, lines);
            lines.push(format!("{place} {how}"));
        } else {
            lines.push(format!("{place} {}  {how}", short(&step.instruction, INSTRUCTION)));
            self.explain(step, lines);
        }
    }

    fn explain(&mut self, step: &BuildStep, lines: &mut Vec<String>) {
        let Some(miss) = step.miss.as_ref().filter(|_| self.style.explain) else { return };
        if self.explained < step.number {
            self.explained = step.number;
            lines.push(format!("{INDENT}not cached: {}", plain(miss)));
        }
    }

    /// Adds output, whose pieces need not be whole lines.
    fn output(&mut self, stream: usize, text: &str, lines: &mut Vec<String>) {
        for piece in text.split_inclusive('\n') {
            let line = &mut self.unfinished[stream];
            line.push_str(piece);
            if line.ends_with('\n') || line.len() > LINE {
                lines.push(indented(line));
                line.clear();
            }
        }
    }

    /// Tells the lines that have no end.
    fn flush(&mut self, lines: &mut Vec<String>) {
        for line in self.unfinished.iter_mut().filter(|line| !line.is_empty()) {
            lines.push(indented(line));
            line.clear();
        }
    }

    fn is_shown(&self, step: &BuildStep) -> bool {
        self.style.step.is_none_or(|only| only == step.number)
    }
}

fn is_over(status: BuildStepStatus) -> bool {
    matches!(status, BuildStepStatus::Cached | BuildStepStatus::Succeeded | BuildStepStatus::Failed)
}

fn place(build: &Build, step: &BuildStep) -> String {
    format!("[{}/{}]", step.number, build.steps.len())
}

fn indented(line: &str) -> String {
    format!("{INDENT}{}", plain(line)).trim_end().to_owned()
}

/// Returns how a step ended, and the colour of that.
fn outcome(step: &BuildStep) -> (u8, String) {
    let after = step.duration_ms.map(|time| format!(" after {}", duration(time))).unwrap_or_default();
    match (step.status, step.exit_code) {
        (BuildStepStatus::Cached, _) => (36, "CACHED".to_owned()),
        (BuildStepStatus::Failed, Some(code)) => (31, format!("failed with exit status {code}{after}")),
        (BuildStepStatus::Failed, None) => (31, format!("failed{after}")),
        _ => {
            let took = step.duration_ms.map(|time| format!(" in {}", duration(time))).unwrap_or_default();
            let added = step.bytes_added.map(|bytes| format!(", added {}", HumanBytes(bytes)));
            (32, format!("done{took}{}", added.unwrap_or_default()))
        }
    }
}

/// Formats a duration in milliseconds.
pub(super) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A build whose steps have these statuses.
    fn build(statuses: &[&str]) -> Build {
        let steps = statuses.iter().enumerate().map(|(before, status)| {
            json!({"number": before + 1, "line": before + 1, "instruction": format!("RUN {}", before + 1), "status": status,
                "duration_ms": 3250, "miss": "it is new"})
        });
        let value = json!({"id": wrenn_api::BuildId::new(), "name": "web", "tag": "latest", "status": "running", "attempt": 1,
            "steps": steps.collect::<Vec<_>>(), "created_at": "2026-01-31T09:30:00Z"});
        serde_json::from_value(value).expect("a build")
    }

    fn entry(step: u32, stream: &str, text: &str) -> BuildLogEntry {
        let value =
            json!({"offset": 1, "step": step, "stream": stream, "text": text, "at": "2026-01-31T09:30:00Z"});
        serde_json::from_value(value).expect("an entry")
    }

    #[test]
    fn cached_steps_are_told_at_once_and_others_as_they_go_on() {
        let mut view = View::new(Style::default());
        let begun = build(&["cached", "cached", "running", "pending"]);
        assert_eq!(view.look(&begun), ["[1/4] RUN 1  CACHED", "[2/4] RUN 2  CACHED", "[3/4] RUN 3"]);
        assert!(view.look(&begun).is_empty(), "nothing is told twice");
        assert_eq!(in_work(&begun), "[3/4] RUN 3");
        assert_eq!(view.entry(&begun, &entry(3, "stdout", "one\ntw")), ["      one"]);
        assert!(view.entry(&begun, &entry(3, "stdout", "o")).is_empty());
        assert_eq!(view.entry(&begun, &entry(3, "stderr", "\u{1b}[31merror\r\n")), ["      error"]);
        let next = build(&["cached", "cached", "succeeded", "running"]);
        assert!(view.look(&next).is_empty(), "more output of step 3 may come");
        assert_eq!(view.entry(&next, &entry(3, "stdout", " and more")), [""; 0]);
        assert_eq!(view.look(&next), ["      two and more", "[3/4] done in 3.2 s", "[4/4] RUN 4"]);
        let ended = build(&["cached", "cached", "succeeded", "succeeded"]);
        assert_eq!(view.end(&ended), ["[4/4] done in 3.2 s"]);
    }

    #[test]
    fn what_a_step_has_added_is_told() {
        let mut build = build(&["succeeded"]);
        build.steps[0].bytes_added = Some(3 << 20);
        assert_eq!(View::new(Style::default()).end(&build), ["[1/1] RUN 1  done in 3.2 s, added 3.00 MiB"]);
    }

    #[test]
    fn a_step_without_output_is_one_line() {
        let mut view = View::new(Style::default());
        let done = build(&["succeeded", "running"]);
        assert!(view.look(&done).is_empty());
        assert_eq!(view.look(&done), ["[1/2] RUN 1  done in 3.2 s", "[2/2] RUN 2"]);
        let failed = build(&["succeeded", "failed"]);
        assert_eq!(view.end(&failed), ["[2/2] failed after 3.2 s"]);
    }

    #[test]
    fn output_ends_the_steps_before_it() {
        let mut view = View::new(Style { explain: true, ..Style::default() });
        let build = build(&["succeeded", "succeeded", "running"]);
        let lines = view.entry(&build, &entry(2, "stdout", "text\n"));
        assert_eq!(
            lines,
            [
                "[1/3] RUN 1  done in 3.2 s",
                "      not cached: it is new",
                "[2/3] RUN 2",
                "      not cached: it is new",
                "      text"
            ]
        );
        assert_eq!(
            view.entry(&build, &entry(3, "system", "no output for 120 s\n")),
            [
                "[2/3] done in 3.2 s",
                "[3/3] RUN 3",
                "      not cached: it is new",
                "      wrenn: no output for 120 s"
            ]
        );
        assert_eq!(view.entry(&build, &entry(0, "system", "on another host")), ["wrenn: on another host"]);
        // What step 2 has started writes once more.
        let lines = view.entry(&build, &entry(2, "stderr", "GET /\n"));
        assert_eq!(lines, ["[2/3] RUN 2", "      GET /"]);
        assert!(!view.is_behind(&entry(3, "system", "")) && view.is_behind(&entry(4, "system", "")));
    }

    #[test]
    fn what_is_in_the_cache_is_told_before_what_the_builder_says_of_it() {
        let mut view = View::new(Style::default());
        let said = entry(0, "system", "nothing is to be done");
        assert!(view.is_behind(&said));
        let lines = view.entry(&build(&["cached", "cached"]), &said);
        assert_eq!(lines, ["[1/2] RUN 1  CACHED", "[2/2] RUN 2  CACHED", "wrenn: nothing is to be done"]);
    }

    #[test]
    fn a_step_can_be_told_alone_or_entries_as_they_are() {
        let build = build(&["cached", "failed", "pending"]);
        let mut view = View::new(Style { step: Some(2), colour: true, ..Style::default() });
        assert_eq!(view.entry(&build, &entry(2, "stdout", "x")), ["[2/3] RUN 2"]);
        assert_eq!(view.end(&build), ["      x", "[2/3] \u{1b}[31mfailed after 3.2 s\u{1b}[0m"]);
        let mut view = View::new(Style { json: true, ..Style::default() });
        let lines = view.entry(&build, &entry(2, "stdout", "x\n"));
        assert_eq!(serde_json::from_str::<BuildLogEntry>(&lines[0]).ok(), Some(entry(2, "stdout", "x\n")));
        assert!(view.look(&build).is_empty() && view.end(&build).is_empty());
    }

    #[test]
    fn a_line_without_an_end_is_broken() {
        let mut view = View::new(Style::default());
        let running = build(&["running"]);
        let piece = "x".repeat(5000);
        assert_eq!(view.entry(&running, &entry(1, "stdout", &piece)).len(), 1);
        assert_eq!(view.entry(&running, &entry(1, "stdout", &piece)), [format!("      {piece}{piece}")]);
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let all = [0, 99, 950, 59_999, 60_000, 3_599_000, 7_260_000].map(duration);
        assert_eq!(all, ["0.0 s", "0.0 s", "0.9 s", "59.9 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]);
    }
}
