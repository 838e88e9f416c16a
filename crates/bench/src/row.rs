//! What was measured: ours, the floor, and what we set ourselves.

use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: &'static str,
    /// Ours, in milliseconds; the median.
    pub(crate) ours_ms: f64,
    /// The floor, in milliseconds; the median. Absent for a figure that stands for itself.
    pub(crate) floor_ms: Option<f64>,
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
        let (ours_ms, floor_ms) = (median(ours), median(floor));
        Self { what, ours_ms, floor_ms: Some(floor_ms), figure: ours_ms / floor_ms, goal, runs: ours.len() }
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
    table.set_header(["measured", "ours (ms)", "floor (ms)", "figure", "goal", "", "runs"]);
    for row in rows {
        table.add_row([
            row.what.to_owned(),
            format!("{:.3}", row.ours_ms),
            row.floor_ms.map(|floor| format!("{floor:.3}")).unwrap_or_default(),
            format!("{:.2}", row.figure),
            format!("≤ {:.2}", row.goal),
            if row.figure <= row.goal { "ok" } else { "MISSED" }.to_owned(),
            row.runs.to_string(),
        ]);
    }
    table
}
