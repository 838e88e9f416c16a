//! What was measured: ours, the floor, and what we set ourselves.

use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: &'static str,
    /// What `ours` and `floor` are in.
    pub(crate) unit: &'static str,
    /// Ours; the median.
    pub(crate) ours: f64,
    /// The floor; the median. Absent for a figure that stands for itself.
    pub(crate) floor: Option<f64>,
    /// Ours divided by the floor, or ours.
    pub(crate) figure: f64,
    /// The largest figure that SPECIFICATION.md allows.
    pub(crate) goal: f64,
    /// How often each side was measured.
    pub(crate) runs: usize,
}

impl Row {
    /// Ours against the floor.
    pub(crate) fn ratio(what: &'static str, ours: &[Duration], floor: &[Duration], goal: f64) -> Self {
        let (runs, ours, floor) = (ours.len(), median(ours), median(floor));
        Self { what, unit: "ms", ours, floor: Some(floor), figure: ours / floor, goal, runs }
    }

    /// A time that stands for itself, in milliseconds.
    pub(crate) fn time(what: &'static str, ours: &[Duration], goal: f64) -> Self {
        let (runs, ours) = (ours.len(), median(ours));
        Self { what, unit: "ms", ours, floor: None, figure: ours, goal, runs }
    }
}

/// The median in milliseconds.
pub(crate) fn median(times: &[Duration]) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The table as text.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.set_header(["measured", "ours", "floor", "", "figure", "goal", "", "runs"]);
    for row in rows {
        table.add_row([
            row.what.to_owned(),
            format!("{:.3}", row.ours),
            row.floor.map(|floor| format!("{floor:.3}")).unwrap_or_default(),
            row.unit.to_owned(),
            format!("{:.2}", row.figure),
            format!("≤ {:.2}", row.goal),
            if row.figure <= row.goal { "ok" } else { "MISSED" }.to_owned(),
            row.runs.to_string(),
        ]);
    }
    table
}
