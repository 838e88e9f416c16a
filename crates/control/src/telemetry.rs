// SPDX-License-Identifier: Apache-2.0
//! Metrics of the server in the format of Prometheus. Label values are from fixed sets, so that no client can
//! create new ones; only one task at a time renders them, on a blocking thread.

use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::Mutex;
use wrenn_api::HostId;
use wrenn_rpc::host::v1::PingResponse;

/// Upper bounds of the buckets of request durations, in seconds: commands take milliseconds, creates seconds.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 60.0];
/// Lifetime of rendered metrics.
const FRESH: Duration = Duration::from_secs(1);

/// The metrics, and their last rendering.
pub(crate) struct Telemetry {
    recorder: PrometheusHandle,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Telemetry {
    /// Installs the recorder of this process.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let recorder = recorder()?;
        let handle = recorder.handle();
        // A second server in the same process writes to the metrics of the first one.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        Ok(Self { recorder: handle, last: Mutex::default() })
    }

    /// Renders all metrics.
    pub(crate) async fn text(&self) -> Bytes {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let recorder = self.recorder.clone();
        let rendered = tokio::task::spawn_blocking(move || recorder.render()).await;
        let text = Bytes::from(rendered.unwrap_or_default());
        *last = Some((Instant::now(), text.clone()));
        text
    }

    /// Compacts the recorded metrics.
    pub(crate) fn upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

/// Creates the recorder with its buckets.
fn recorder() -> anyhow::Result<metrics_exporter_prometheus::PrometheusRecorder> {
    Ok(PrometheusBuilder::new().set_buckets(&BUCKETS)?.build_recorder())
}

/// Describes all metrics, and sets the constant ones.
fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    gauge!("wrenn_build_info", "The version of this server; the value is 1.");
    histogram!("wrenn_http_request_seconds", "Time from a request's head to the beginning of its answer.");
    histogram!(
        "wrenn_proxy_request_seconds",
        "Time from the head of a request to a port to the beginning of its answer, by who answered."
    );
    gauge!("wrenn_http_connections", "Open connections of clients.");
    counter!("wrenn_http_connections_refused_total", "Connections refused because all places were taken.");
    counter!("wrenn_http_accept_errors_total", "Connections that the system could not accept.");
    counter!("wrenn_requests_refused_total", "Requests refused with 429, by what there were too many of.");
    counter!("wrenn_worker_restarts_total", "Background tasks that failed and were started again.");
    gauge!("wrenn_sandboxes", "Sandboxes by status.");
    gauge!("wrenn_hosts_ejected", "Hosts that get no sandboxes for a while, because creates failed there.");
    gauge!("wrenn_outbox_events", "Events that wait for Redis.");
    gauge!(
        "wrenn_driver_info",
        "1 for the VMM driver of a host, and whether it is a security boundary; else 0."
    );
    gauge!("wrenn_host_vcpus", "Processors of a host.");
    gauge!("wrenn_host_memory_mb", "Memory of a host in MiB.");
    gauge!("wrenn_host_disk_mb", "Disk space for sandboxes of a host in MiB.");
    gauge!("wrenn_host_disk_free_mb", "Free disk space for sandboxes of a host in MiB.");
    gauge!("wrenn_host_sandboxes", "Sandboxes of a host.");
    gauge!("wrenn_host_sandboxes_max", "Maximum number of sandboxes of a host.");
    metrics::gauge!("wrenn_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Label values for VMM drivers; an agent may report any name.
const DRIVERS: [&str; 3] = ["firecracker", "qemu", "other"];

/// Records the metrics of a registered host.
pub(crate) fn host(id: HostId, ping: &PingResponse) {
    use metrics::gauge;
    let host = id.to_string();
    let driver = DRIVERS.iter().find(|name| **name == ping.driver).unwrap_or(&"other");
    for name in DRIVERS {
        for (boundary, text) in [(true, "true"), (false, "false")] {
            let present = name == *driver && boundary == ping.security_boundary;
            let labels =
                [("host", host.clone()), ("driver", name.into()), ("security_boundary", text.into())];
            gauge!("wrenn_driver_info", &labels).set(f64::from(u8::from(present)));
        }
    }
    for (name, value) in [
        ("wrenn_host_vcpus", u64::from(ping.cpus)),
        ("wrenn_host_memory_mb", ping.memory_mb),
        ("wrenn_host_disk_mb", ping.disk_mb),
        ("wrenn_host_disk_free_mb", ping.disk_free_mb),
        ("wrenn_host_sandboxes", u64::from(ping.sandboxes)),
        ("wrenn_host_sandboxes_max", u64::from(ping.max_sandboxes)),
    ] {
        gauge!(name, "host" => host.clone()).set(value as f64);
    }
}

/// Label value for the method of a request; clients may invent methods.
pub(crate) fn method(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "PATCH" => "PATCH",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_host_have_labels_of_closed_sets_whatever_it_says() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let id = HostId::new();
        let says = |driver: &str| PingResponse {
            driver: driver.to_owned(),
            security_boundary: driver == "qemu",
            cpus: 4,
            ..Default::default()
        };
        metrics::with_local_recorder(&recorder, || {
            for number in 0..100 {
                host(id, &says(&format!("driver {number}")));
            }
            host(id, &says("qemu"));
        });
        let text = recorder.handle().render();
        let of_driver: Vec<&str> =
            text.lines().filter(|line| line.starts_with("wrenn_driver_info{")).collect();
        assert_eq!(of_driver.len(), 2 * DRIVERS.len());
        let present: Vec<_> = of_driver.iter().filter(|line| line.ends_with(" 1")).collect();
        assert!(
            matches!(present.as_slice(), [line] if line.contains(r#"driver="qemu""#) && line.contains(r#"boundary="true""#)),
            "{present:?}"
        );
        assert!(text.contains("wrenn_host_vcpus{host=") && text.len() < 2000 + 2 * 200 * DRIVERS.len());
    }
}
