// SPDX-License-Identifier: Apache-2.0
//! Row of the result table: Wrenn, floor and goal.

use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

/// Row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Name of the measurement.
    pub(crate) what: &'static str,
    /// Unit of `ours` and `floor`.
    pub(crate) unit: &'static str,
    /// Median of Wrenn.
    pub(crate) ours: f64,
    /// Median of the floor; `None` for a figure without a floor.
    pub(crate) floor: Option<f64>,
    /// Ratio of `ours` to `floor`, or `ours` without a floor.
    pub(crate) figure: f64,
    /// Maximum that SPECIFICATION.md allows for `figure`.
    pub(crate) goal: f64,
    /// Number of measurements of each side.
    pub(crate) runs: usize,
}

impl Row {
    /// Creates a row that compares Wrenn with the floor.
    pub(crate) fn ratio(what: &'static str, ours: &[Duration], floor: &[Duration], goal: f64) -> Self {
        let (runs, ours, floor) = (ours.len(), median(ours), median(floor));
        Self { what, unit: "ms", ours, floor: Some(floor), figure: ours / floor, goal, runs }
    }

    /// Creates a row with the time in milliseconds that Wrenn adds to the floor.
    pub(crate) fn difference(what: &'static str, ours: &[Duration], floor: &[Duration], goal: f64) -> Self {
        let (runs, ours, floor) = (ours.len(), median(ours), median(floor));
        Self { what, unit: "ms", ours, floor: Some(floor), figure: ours - floor, goal, runs }
    }

    /// Creates a row with a time in milliseconds and no floor.
    pub(crate) fn time(what: &'static str, ours: &[Duration], goal: f64) -> Self {
        let (runs, ours) = (ours.len(), median(ours));
        Self { what, unit: "ms", ours, floor: None, figure: ours, goal, runs }
    }

    /// Creates a row with a figure in this unit and no floor.
    pub(crate) fn figure(
        what: &'static str,
        unit: &'static str,
        figure: f64,
        runs: usize,
        goal: f64,
    ) -> Self {
        Self { what, unit, ours: figure, floor: None, figure, goal, runs }
    }
}

/// Median in milliseconds.
pub(crate) fn median(times: &[Duration]) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Formats the table.
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
