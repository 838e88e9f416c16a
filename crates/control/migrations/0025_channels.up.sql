-- Channels: where events of a team are delivered, and what is to be delivered, in order per subject.

-- Each event gets an id of its own, by which receivers know a repetition.
ALTER TABLE outbox ADD COLUMN occurrence uuid NOT NULL DEFAULT gen_random_uuid();

-- `config` is encrypted with the key `key_number` of the servers' key file. A receiver that fails has `failures` and is left alone until
-- `retry_at`. `due_at` is when the channel has something to do next, and none if nothing waits.
CREATE TABLE channels (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name text NOT NULL,
    provider text NOT NULL
        CHECK (provider IN ('webhook', 'slack', 'discord', 'teams', 'googlechat', 'telegram', 'matrix')),
    config bytea NOT NULL,
    key_number integer NOT NULL,
    events text[] NOT NULL CHECK (cardinality(events) > 0),
    failures integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    retry_at timestamptz,
    due_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);
CREATE INDEX channels_of_team ON channels (team_id, id DESC);
CREATE INDEX channels_due ON channels (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX channels_key ON channels (key_number, id);

-- What waits for one subject (a sandbox, a snapshot, a host) is delivered one after the other: its oldest delivery is next, at the time `at`.
-- While a server works on it, the lane has a `lease`, which ends at that time; what came of an attempt counts only for the server whose
-- lease it is. Rows are changed only with the row of the channel locked.
CREATE TABLE channel_lanes (
    channel_id uuid NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    subject text NOT NULL,
    at timestamptz NOT NULL,
    lease uuid,
    PRIMARY KEY (channel_id, subject)
);
CREATE INDEX channel_lanes_due ON channel_lanes (channel_id, at);

-- `sequence` is the id that the event had in the outbox. `queued_at` is when its time began: at the event, or when it was asked for again.
CREATE TABLE deliveries (
    -- Its first digit is that of a UUIDv7: the text of an id would have another letter with one from f0.
    id uuid PRIMARY KEY DEFAULT ('0' || substr(gen_random_uuid()::text, 2))::uuid,
    channel_id uuid NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    occurrence uuid NOT NULL,
    sequence bigint NOT NULL,
    subject text NOT NULL,
    event text NOT NULL,
    payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    response_status integer,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    queued_at timestamptz NOT NULL DEFAULT now(),
    attempted_at timestamptz,
    ended_at timestamptz,
    UNIQUE (channel_id, sequence),
    CHECK ((status = 'pending') = (ended_at IS NULL))
);
CREATE INDEX deliveries_next ON deliveries (channel_id, subject, sequence) WHERE status = 'pending';
CREATE INDEX deliveries_waiting ON deliveries (channel_id, sequence DESC) WHERE status = 'pending';
CREATE INDEX deliveries_age ON deliveries (queued_at) WHERE status = 'pending';
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE status <> 'pending';
