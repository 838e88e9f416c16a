-- What sandboxes used, of those that are paused and of those that were deleted; those that run have theirs on their host. A tier has
-- measurements of 10 minutes, averages of 30 seconds of 2 hours, or averages of 5 minutes of a day. `sandbox_id` refers to nothing,
-- because points outlive the record of their sandbox.
CREATE TABLE metrics_points (
    sandbox_id uuid NOT NULL,
    team_id uuid NOT NULL REFERENCES teams (id),
    tier text NOT NULL CHECK (tier IN ('10m', '2h', '24h')),
    at timestamptz NOT NULL,
    cpu_hundredths integer NOT NULL,
    mem_bytes bigint NOT NULL,
    disk_bytes bigint NOT NULL,
    net_rx_bytes bigint NOT NULL,
    net_tx_bytes bigint NOT NULL,
    -- As the guest says; a total of 0: not known.
    guest_mem_used_bytes bigint NOT NULL,
    guest_mem_total_bytes bigint NOT NULL,
    guest_disk_used_bytes bigint NOT NULL,
    guest_disk_total_bytes bigint NOT NULL,
    PRIMARY KEY (sandbox_id, tier, at)
);
CREATE INDEX metrics_points_age ON metrics_points (at);

-- The last process that the kernel of its guest killed for want of memory: `at`, and `pid` and `command` where they are known.
ALTER TABLE sandboxes ADD COLUMN last_out_of_memory jsonb;
