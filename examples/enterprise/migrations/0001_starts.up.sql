-- Starts of sandboxes as they happen, until they are summed up.
CREATE TABLE starts (
    team_id uuid NOT NULL,
    at timestamptz NOT NULL
);

CREATE TABLE daily_starts (
    team_id uuid NOT NULL,
    day date NOT NULL,
    starts bigint NOT NULL,
    PRIMARY KEY (team_id, day)
);
