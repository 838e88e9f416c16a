// SPDX-License-Identifier: Apache-2.0
//! Every metric of the server: its name, its kind, and what it is.

/// A metric.
pub(super) struct Described {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// Kind of a metric.
pub(super) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets, in seconds.
    Histogram(&'static [f64]),
}

/// Upper bounds of the buckets of request durations, in seconds: commands take milliseconds, creates seconds. Those of histograms of
/// extensions, too.
pub(super) const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 60.0];
/// Those of creates and of their steps: most are where creates from memory are, the others where boots are.
const CREATES: [f64; 16] =
    [0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0];
/// Those of statements in PostgreSQL.
const STATEMENTS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0];

const fn counter(name: &'static str, help: &'static str) -> Described {
    Described { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Described {
    Described { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, buckets: &'static [f64], help: &'static str) -> Described {
    Described { name, kind: Kind::Histogram(buckets), help }
}

/// Every metric.
pub(super) const ALL: &[Described] = &[
    gauge("wrenn_build_info", "The version of this server; the value is 1."),
    histogram(
        "wrenn_http_request_seconds",
        &BUCKETS,
        "Time from a request's head to the beginning of its answer.",
    ),
    histogram(
        "wrenn_proxy_request_seconds",
        &BUCKETS,
        "Time from the head of a request to a port to the beginning of its answer, by who answered.",
    ),
    gauge("wrenn_http_connections", "Open connections of clients."),
    counter("wrenn_http_connections_refused_total", "Connections refused because all places were taken."),
    counter("wrenn_http_accept_errors_total", "Connections that the system could not accept."),
    counter("wrenn_requests_refused_total", "Requests refused with 429, by what there were too many of."),
    counter(
        "wrenn_template_fetches_total",
        "Templates that hosts were to get, by where from and what came of it.",
    ),
    counter("wrenn_template_pushes_total", "Templates that the store was to get, by what came of it."),
    counter("wrenn_mails_total", "Attempts to send a mail, by what came of it."),
    counter(
        "wrenn_refused_attempts_total",
        "Attempts at what can be guessed that were refused, by what was tried.",
    ),
    counter("wrenn_audit_lost_total", "Records of the audit log that the database did not take."),
    counter("wrenn_channel_attempts_total", "Attempts to deliver an event to a channel, by what came of it."),
    counter("wrenn_worker_restarts_total", "Background tasks that failed and were started again."),
    histogram(
        "wrenn_create_seconds",
        &CREATES,
        "Time of the creates of this server, by how they ended. The import of an image is not in it.",
    ),
    histogram(
        "wrenn_create_step_seconds",
        &CREATES,
        "Time of each step of a create: place on the control plane, with the fetch of a template, and those of the host.",
    ),
    gauge("wrenn_sandboxes", "Sandboxes by status."),
    counter(
        "wrenn_out_of_memory_total",
        "Processes in sandboxes, and whole sandboxes, that were killed for want of memory.",
    ),
    gauge("wrenn_builds", "Builds of templates that wait, and that are in work."),
    counter("wrenn_builds_ended_total", "Builds that workers of this server have ended, by how they ended."),
    histogram(
        "wrenn_metrics_keep_seconds",
        &STATEMENTS,
        "Time of the statement that keeps what a paused or deleted sandbox has used.",
    ),
    gauge("wrenn_outbox_events", "Events that wait for Redis."),
    gauge("wrenn_outbox_oldest_seconds", "Age of the oldest event that waits for Redis; 0 without any."),
    gauge("wrenn_database_connections", "Connections of this server to PostgreSQL."),
    gauge("wrenn_database_connections_max", "Maximum number of connections of this server to PostgreSQL."),
    gauge("wrenn_hosts", "Registered hosts by status."),
    gauge("wrenn_hosts_with_room", "Online hosts that can take a sandbox of the usual size."),
    gauge("wrenn_hosts_ejected", "Hosts that get no sandboxes for a while, because creates failed there."),
    gauge("wrenn_hosts_quarantined", "Hosts that do not destroy sandboxes for this database."),
    gauge("wrenn_host_up", "1 for a host whose agent answered this server the last time, else 0."),
    gauge(
        "wrenn_driver_info",
        "1 for the VMM driver of a host, and whether it is a security boundary; else 0.",
    ),
    gauge("wrenn_host_vcpus", "Processors of a host."),
    gauge("wrenn_host_vcpus_reserved", "Virtual CPUs of the sandboxes of a host that are not paused."),
    gauge("wrenn_host_memory_mb", "Memory of a host in MiB."),
    gauge("wrenn_host_memory_reserved_mb", "Memory of the sandboxes of a host that are not paused, in MiB."),
    gauge("wrenn_host_disk_mb", "Disk space for sandboxes of a host in MiB."),
    gauge("wrenn_host_disk_free_mb", "Free disk space for sandboxes of a host in MiB."),
    gauge("wrenn_host_sandboxes", "Sandboxes of a host."),
    gauge("wrenn_host_sandboxes_max", "Maximum number of sandboxes of a host."),
    gauge(
        "wrenn_host_sandboxes_reserved",
        "Sandboxes of a host that are not paused, as the database counts them.",
    ),
    gauge("wrenn_host_sandboxes_running", "Running sandboxes of a host."),
    gauge("wrenn_host_sandboxes_paused", "Paused sandboxes of a host."),
    gauge("wrenn_host_sandboxes_cpus", "CPUs that all running sandboxes of a host use, as it measured last."),
    gauge("wrenn_host_sandboxes_memory_bytes", "Resident memory of all running sandboxes of a host."),
    gauge("wrenn_host_sampler_seconds", "Time in which a host measured all its sandboxes the last time."),
];
