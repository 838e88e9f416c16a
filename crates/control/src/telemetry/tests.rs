// SPDX-License-Identifier: Apache-2.0
//! Tests of the metrics of the server, and of the files that use them: the documentation, the dashboard and the alerts.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::*;
use crate::testing::sources;

/// What is added to the name of a histogram.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Returns a file of the repository.
fn file(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let is_of_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    text.split(|letter| !is_of_name(letter)).filter(|word| word.starts_with("wrenn_")).collect()
}

/// Returns whether the server exports a series of this name.
fn is_exported(series: &str) -> bool {
    ALL.iter().any(|Described { name, kind, .. }| match kind {
        Kind::Counter | Kind::Gauge => series == *name,
        Kind::Histogram(_) => series.strip_prefix(name).is_some_and(|suffix| OF_HISTOGRAMS.contains(&suffix)),
    })
}

#[test]
fn what_the_monitoring_uses_is_exported() {
    for path in ["monitoring/grafana-dashboard.json", "monitoring/alerts.yaml"] {
        let text = file(path);
        let used = names(&text);
        assert!(used.len() > 8, "{path}: {used:?}");
        let unknown: Vec<_> = used.into_iter().filter(|series| !is_exported(series)).collect();
        assert!(unknown.is_empty(), "{path} uses {unknown:?}");
    }
    let dashboard = file("monitoring/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let has_queries =
        |panel: &serde_json::Value| panel["type"] == "row" || panel["targets"][0]["expr"].is_string();
    assert!(panels.len() > 8 && panels.iter().all(has_queries), "{panels:?}");
}

#[test]
fn every_metric_is_described_and_documented() {
    let documented = file("docs/operations.md");
    let documented = names(&documented);
    let described: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(described.len(), ALL.len(), "one is described twice");
    let missing: Vec<_> = described.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    for (file, text) in sources() {
        for macros in ["gauge!(\"", "counter!(\"", "histogram!(\""] {
            let recorded = text.split(macros).skip(1).filter_map(|rest| rest.split('"').next());
            for name in recorded.filter(|name| name.starts_with("wrenn_")) {
                assert!(described.contains(name), "{file} records {name}, which is not described");
            }
        }
    }
}

#[test]
fn every_kind_has_its_help_its_type_and_its_buckets() {
    let recorder = recorder().expect("a recorder");
    metrics::with_local_recorder(&recorder, || {
        describe();
        created(Duration::from_millis(30), Ok(()));
        build_ended("parked");
    });
    let text = recorder.handle().render();
    for line in [
        "# HELP wrenn_build_info The version of this server; the value is 1.",
        "# TYPE wrenn_build_info gauge",
        "# TYPE wrenn_builds_ended_total counter",
        "wrenn_builds_ended_total{result=\"parked\"} 1",
        "# TYPE wrenn_create_seconds histogram",
        "wrenn_create_seconds_bucket{result=\"ok\",le=\"0.02\"} 0",
        "wrenn_create_seconds_bucket{result=\"ok\",le=\"0.035\"} 1",
        "wrenn_create_seconds_bucket{result=\"ok\",le=\"30\"} 1",
    ] {
        assert!(text.lines().any(|written| written == line), "{line} is not in {text}");
    }
}

#[test]
fn creates_are_counted_by_how_they_end() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        use ErrorCode::{AgentError, NoHostsAvailable, NotFound, Timeout};
        let took = Duration::from_millis(1);
        created(took, Ok(()));
        for code in [NoHostsAvailable, AgentError, Timeout, NotFound] {
            created(took, Err(code));
        }
        let step = |step: &str| StepTiming { step: step.to_owned(), micros: 7, ..Default::default() };
        let invented: Vec<_> = (0..100).map(|number| step(&format!("step {number}"))).collect();
        create_steps(&invented);
        create_steps(&[step("boot"), step("place")]);
        placed(took);
    });
    let text = recorder.handle().render();
    let count = |labels: &str| {
        let line = text.lines().find(|line| line.contains("_count{") && line.contains(labels));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok())
    };
    let results = ["ok", "no_room", "failed", "refused"].map(|result| count(&format!("result=\"{result}\"")));
    assert_eq!(results, [Some(1), Some(1), Some(2), Some(1)], "{text}");
    // An agent cannot pass its time off as that of the control plane, nor make series.
    let steps = ["place", "boot", "other"].map(|step| count(&format!("step=\"{step}\"")));
    assert_eq!(steps, [Some(1), Some(1), Some(STEPS_MAX as u32 + 1)], "{text}");
}

#[test]
fn kills_are_counted_by_what_was_killed() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        for of in [Killed::Process, Killed::Machine, Killed::Process] {
            out_of_memory(of);
        }
    });
    let text = recorder.handle().render();
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with("wrenn_out_of_memory")).collect();
    lines.sort_unstable();
    let [machines, processes] = [("machine", 1), ("process", 2)]
        .map(|(of, count)| format!("wrenn_out_of_memory_total{{of=\"{of}\"}} {count}"));
    assert_eq!(lines, [machines, processes]);
}

#[test]
fn what_is_not_counted_is_none() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let counts = [("running".to_owned(), 3), ("flying".to_owned(), 9)];
        by_status("wrenn_builds", &["pending", "running"], &counts);
        room(&[]);
        let id = HostId::new();
        host(id, &PingResponse::default());
        host_away(id);
    });
    let text = recorder.handle().render();
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with("wrenn_builds{")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["wrenn_builds{status=\"pending\"} 0", "wrenn_builds{status=\"running\"} 3"]);
    assert!(text.lines().any(|line| line == "wrenn_hosts_with_room 0"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("wrenn_host_up{") && line.ends_with(" 0")), "{text}");
}

#[test]
fn figures_of_a_host_have_labels_of_closed_sets_whatever_it_says() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let id = HostId::new();
    let says = |driver: &str| PingResponse {
        driver: driver.to_owned(),
        security_boundary: driver == "qemu",
        cpus: 4,
        sandboxes_cpu_milli: 1_250,
        sampler_micros: 2_500,
        ..Default::default()
    };
    metrics::with_local_recorder(&recorder, || {
        for number in 0..100 {
            host(id, &says(&format!("driver {number}")));
        }
        host(id, &says("qemu"));
    });
    let text = recorder.handle().render();
    let of_driver: Vec<&str> = text.lines().filter(|line| line.starts_with("wrenn_driver_info{")).collect();
    assert_eq!(of_driver.len(), 2 * DRIVERS.len());
    let present: Vec<_> = of_driver.iter().filter(|line| line.ends_with(" 1")).collect();
    assert!(
        matches!(present.as_slice(), [line] if line.contains(r#"driver="qemu""#) && line.contains(r#"boundary="true""#)),
        "{present:?}"
    );
    for (name, value) in [("wrenn_host_sampler_seconds", " 0.0025"), ("wrenn_host_sandboxes_cpus", " 1.25")] {
        let is_it = |line: &str| line.starts_with(&format!("{name}{{host=")) && line.ends_with(value);
        assert!(text.lines().any(is_it), "{name}: {text}");
    }
    assert!(text.contains("wrenn_host_vcpus{host=") && text.len() < 2400 + 2 * 200 * DRIVERS.len());
}
