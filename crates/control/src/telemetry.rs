// SPDX-License-Identifier: Apache-2.0
//! Metrics of the server in the format of Prometheus. Label values are from fixed sets, so that no client can
//! create new ones; only one task at a time renders them, on a blocking thread.

mod described;

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use bytes::Bytes;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sqlx::PgPool;
use tokio::sync::Mutex;
use wrenn_api::{ErrorCode, HostId};
use wrenn_rpc::host::v1::{PingResponse, StepTiming};

use self::described::{ALL, BUCKETS, Described, Kind};
use crate::{
    db::hosts::Candidate,
    place::{Need, On, place},
};

/// Lifetime of rendered metrics.
const FRESH: Duration = Duration::from_secs(1);

/// The metrics, and their last rendering.
pub(crate) struct Telemetry {
    recorder: PrometheusHandle,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Telemetry {
    /// Installs the recorder of this process, unless a server did so before.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self { recorder: installed()?, last: Mutex::default() })
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

/// Returns the recorder of this process, and installs it first if there is none: all servers of a process have the same metrics.
fn installed() -> anyhow::Result<PrometheusHandle> {
    static INSTALLED: std::sync::Mutex<Option<PrometheusHandle>> = std::sync::Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = recorder()?;
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("this program records metrics elsewhere: those of the server are not in its /metrics");
    }
    describe();
    *installed = Some(handle.clone());
    Ok(handle)
}

/// Creates the recorder with its buckets.
fn recorder() -> anyhow::Result<metrics_exporter_prometheus::PrometheusRecorder> {
    let mut builder = PrometheusBuilder::new().set_buckets(&BUCKETS)?;
    for Described { name, kind, .. } in ALL {
        if let Kind::Histogram(buckets) = kind {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
        }
    }
    Ok(builder.build_recorder())
}

/// Describes all metrics, and sets the constant ones.
fn describe() {
    for Described { name, kind, help } in ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram(_) => metrics::describe_histogram!(*name, *help),
        }
    }
    metrics::gauge!("wrenn_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Label values for VMM drivers; an agent may report any name.
const DRIVERS: [&str; 3] = ["firecracker", "qemu", "other"];

/// Records the metrics of a registered host that answers.
pub(crate) fn host(id: HostId, ping: &PingResponse) {
    use metrics::gauge;
    let host = id.to_string();
    gauge!("wrenn_host_up", "host" => host.clone()).set(1.0);
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
        ("wrenn_host_sandboxes_running", u64::from(ping.sandboxes_running)),
        ("wrenn_host_sandboxes_paused", u64::from(ping.sandboxes_paused)),
        ("wrenn_host_sandboxes_memory_bytes", ping.sandboxes_memory_bytes),
    ] {
        gauge!(name, "host" => host.clone()).set(value as f64);
    }
    let cpus = ping.sandboxes_cpu_milli as f64 / 1000.0;
    gauge!("wrenn_host_sandboxes_cpus", "host" => host.clone()).set(cpus);
    let sampler = Duration::from_micros(ping.sampler_micros);
    gauge!("wrenn_host_sampler_seconds", "host" => host).set(sampler.as_secs_f64());
}

/// Records that a registered host does not answer.
pub(crate) fn host_away(id: HostId) {
    metrics::gauge!("wrenn_host_up", "host" => id.to_string()).set(0.0);
}

/// A sandbox of the usual size, which a host with room can take.
const USUAL: Need<'_> = Need { template: "", vcpus: 1, memory_mb: 512, disk_size_mb: 5120, on: On::Any };

/// Records what is reserved on the hosts that are online, and how many have room.
pub(crate) fn room(hosts: &[Candidate]) {
    for host in hosts {
        let id = HostId::from(host.id).to_string();
        for (name, value) in [
            ("wrenn_host_sandboxes_reserved", host.reserved_sandboxes),
            ("wrenn_host_vcpus_reserved", host.reserved_vcpus),
            ("wrenn_host_memory_reserved_mb", host.reserved_memory_mb),
        ] {
            metrics::gauge!(name, "host" => id.clone()).set(value as f64);
        }
    }
    let with_room = place(hosts, &USUAL).map_or(0, |with_room| with_room.len());
    metrics::gauge!("wrenn_hosts_with_room").set(with_room as f64);
}

/// Records how many there are of each of these statuses; `counts` may lack some, and have others.
pub(crate) fn by_status(name: &'static str, statuses: &[&'static str], counts: &[(String, i64)]) {
    for status in statuses {
        let count = counts.iter().find(|(counted, _)| counted == status).map_or(0, |(_, count)| *count);
        metrics::gauge!(name, "status" => *status).set(count as f64);
    }
}

/// Records how many connections to PostgreSQL there are.
pub(crate) fn pools(requests: &PgPool, access: &PgPool) {
    for (pool, of) in [("requests", requests), ("access", access)] {
        let (open, idle) = (of.size() as usize, of.num_idle());
        metrics::gauge!("wrenn_database_connections", "pool" => pool, "state" => "idle").set(idle as f64);
        let used = open.saturating_sub(idle);
        metrics::gauge!("wrenn_database_connections", "pool" => pool, "state" => "used").set(used as f64);
        let max = of.options().get_max_connections();
        metrics::gauge!("wrenn_database_connections_max", "pool" => pool).set(f64::from(max));
    }
}

/// Records how a create ended, and how long it took.
pub(crate) fn created(took: Duration, created: Result<(), ErrorCode>) {
    let result = match created {
        Ok(()) => "ok",
        Err(ErrorCode::NoHostsAvailable | ErrorCode::InsufficientStorage) => "no_room",
        Err(
            ErrorCode::AgentError
            | ErrorCode::HostUnavailable
            | ErrorCode::Timeout
            | ErrorCode::ServiceUnavailable
            | ErrorCode::InternalError,
        ) => "failed",
        Err(_) => "refused",
    };
    metrics::histogram!("wrenn_create_seconds", "result" => result).record(took.as_secs_f64());
}

/// Label values for steps of creates, in order: the first is the control plane's own, the others are those of hosts. An agent may
/// report any name.
const STEPS: [&str; 7] = ["place", "network", "journal", "disk", "boot", "init", "other"];

/// Records the time in which a host was chosen for a new sandbox, and the sandbox recorded.
pub(crate) fn placed(took: Duration) {
    metrics::histogram!("wrenn_create_step_seconds", "step" => STEPS[0]).record(took.as_secs_f64());
}

/// Maximum number of steps of a create that are recorded.
const STEPS_MAX: usize = 16;

/// Records the durations of the steps of a create, as a host reports them.
pub(crate) fn create_steps(timings: &[StepTiming]) {
    for StepTiming { step, micros, .. } in timings.iter().take(STEPS_MAX) {
        let step = STEPS.iter().skip(1).find(|name| *name == step).unwrap_or(&"other");
        let took = Duration::from_micros(*micros);
        metrics::histogram!("wrenn_create_step_seconds", "step" => *step).record(took.as_secs_f64());
    }
}

/// Records the end of a build that a worker of this server had: `succeeded`, `failed`, `cancelled`, or `parked`.
pub(crate) fn build_ended(result: &'static str) {
    metrics::counter!("wrenn_builds_ended_total", "result" => result).increment(1);
}

/// What was killed for want of memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Killed {
    /// A process in a sandbox, by the kernel of its guest.
    Process,
    /// A whole sandbox: its guest had no memory left, or its VMM on the host.
    Machine,
}

/// Records that something was killed for want of memory. The team is no label: nobody needs a key to read the metrics.
pub(crate) fn out_of_memory(of: Killed) {
    let of = match of {
        Killed::Process => "process",
        Killed::Machine => "machine",
    };
    metrics::counter!("wrenn_out_of_memory_total", "of" => of).increment(1);
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
mod tests;
