-- Who did what. A record refers to nothing, because it outlives what it names. It gets its place in the log after its transaction has
-- ended, from one server at a time: none appears later at a place that a reader has passed already.
CREATE SEQUENCE audit_log_place;
CREATE TABLE audit_log (
    id uuid PRIMARY KEY,
    place bigint UNIQUE,
    at timestamptz NOT NULL,
    team_id uuid NOT NULL,
    actor_kind text NOT NULL,
    actor_id text,
    actor_name text,
    action text NOT NULL,
    resource_kind text,
    resource_id text,
    resource_name text,
    outcome text NOT NULL CHECK (outcome IN ('succeeded', 'refused', 'failed', 'unknown')),
    error_code text,
    address text,
    request_id text
);
CREATE INDEX audit_log_new ON audit_log (at, id) WHERE place IS NULL;
CREATE INDEX audit_log_team ON audit_log (team_id, place DESC);
CREATE INDEX audit_log_actor ON audit_log (team_id, actor_id, place DESC);
CREATE INDEX audit_log_resource ON audit_log (team_id, resource_id, place DESC);
-- Records come in the order of their time, more or less.
CREATE INDEX audit_log_age ON audit_log USING brin (at);

-- What sandboxes had, from when to when. A sandbox that has something now has one row that ends at infinity.
CREATE TABLE usage_spans (
    sandbox_id uuid NOT NULL,
    team_id uuid NOT NULL,
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT 'infinity',
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    disk_mb integer NOT NULL,
    PRIMARY KEY (sandbox_id, began_at),
    CHECK (ended_at > began_at)
);
CREATE UNIQUE INDEX usage_spans_open ON usage_spans (sandbox_id) WHERE ended_at = 'infinity';
CREATE INDEX usage_spans_team ON usage_spans (team_id, ended_at);
CREATE INDEX usage_spans_age ON usage_spans (ended_at);

-- Sums of days that are over, in UTC, in thousandths of seconds.
CREATE TABLE usage_days (
    team_id uuid NOT NULL,
    day date NOT NULL,
    vcpu_ms bigint NOT NULL,
    memory_mb_ms bigint NOT NULL,
    disk_mb_ms bigint NOT NULL,
    PRIMARY KEY (team_id, day)
);
CREATE INDEX usage_days_age ON usage_days (day);

-- The last day of which the sums are there.
CREATE TABLE usage_summed (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    day date NOT NULL
);

-- Virtual CPUs and memory are used while a sandbox runs, and until it is paused. A disk is used from the creation to the deletion, but
-- not by a sandbox that failed before it ran.
CREATE FUNCTION usage_runs(status text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
    $$ SELECT status IN ('running', 'pausing') $$;
CREATE FUNCTION usage_keeps(status text, started_at timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE AS
    $$ SELECT status NOT IN ('pending', 'stopping', 'stopped') AND (status <> 'error' OR started_at IS NOT NULL) $$;

-- Thousandths of seconds between two times that are of a day in UTC.
CREATE FUNCTION usage_ms(began timestamptz, ended timestamptz, day date) RETURNS numeric LANGUAGE sql IMMUTABLE AS
    $$ SELECT greatest(0, 1000 * extract(epoch FROM least(ended, (day + 1)::timestamp AT TIME ZONE 'UTC')
        - greatest(began, day::timestamp AT TIME ZONE 'UTC'))) $$;

-- In the database and not in the server, so that no change of status can be without it, also not by servers of the version before.
CREATE FUNCTION note_usage() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    it sandboxes%ROWTYPE;
    present usage_spans%ROWTYPE;
    moment timestamptz := now();
    cpus integer := 0;
    memory integer := 0;
    disk integer := 0;
BEGIN
    IF TG_OP = 'DELETE' THEN
        it := OLD;
    ELSE
        it := NEW;
        IF TG_OP = 'INSERT' THEN
            moment := NEW.last_updated;
        ELSIF NEW.last_updated <> OLD.last_updated THEN
            moment := NEW.last_updated;
        END IF;
        IF usage_runs(it.status) THEN
            cpus := it.vcpus;
            memory := it.memory_mb;
        END IF;
        IF usage_keeps(it.status, it.started_at) THEN
            disk := it.disk_size_mb;
        END IF;
    END IF;
    SELECT s.* INTO present FROM usage_spans s WHERE s.sandbox_id = it.id ORDER BY s.began_at DESC LIMIT 1;
    IF FOUND AND present.ended_at = 'infinity' THEN
        IF present.vcpus = cpus AND present.memory_mb = memory AND present.disk_mb = disk THEN
            RETURN NULL;
        END IF;
        -- A clock may have gone back.
        moment := greatest(moment, present.began_at);
        IF moment = present.began_at THEN
            DELETE FROM usage_spans s WHERE s.sandbox_id = it.id AND s.began_at = present.began_at;
        ELSE
            UPDATE usage_spans s SET ended_at = moment WHERE s.sandbox_id = it.id AND s.began_at = present.began_at;
        END IF;
    ELSIF FOUND THEN
        moment := greatest(moment, present.ended_at);
    END IF;
    IF cpus > 0 OR disk > 0 THEN
        INSERT INTO usage_spans (sandbox_id, team_id, began_at, vcpus, memory_mb, disk_mb)
            VALUES (it.id, it.team_id, moment, cpus, memory, disk);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER sandboxes_usage
    AFTER INSERT OR DELETE OR UPDATE OF status, started_at, vcpus, memory_mb, disk_size_mb ON sandboxes
    FOR EACH ROW EXECUTE FUNCTION note_usage();

-- What there is now has been as it is since its last change.
INSERT INTO usage_spans (sandbox_id, team_id, began_at, vcpus, memory_mb, disk_mb)
    SELECT id, team_id, last_updated,
        CASE WHEN usage_runs(status) THEN vcpus ELSE 0 END,
        CASE WHEN usage_runs(status) THEN memory_mb ELSE 0 END,
        CASE WHEN usage_keeps(status, started_at) THEN disk_size_mb ELSE 0 END
    FROM sandboxes WHERE usage_runs(status) OR usage_keeps(status, started_at);
INSERT INTO usage_summed (day)
    SELECT (coalesce(min(began_at), now()) AT TIME ZONE 'UTC')::date - 1 FROM usage_spans;
