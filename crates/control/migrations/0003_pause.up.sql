-- Sandboxes are paused, on request or when they were idle for `timeout_sec` (0: never).
ALTER TABLE sandboxes DROP CONSTRAINT sandboxes_status_check;
ALTER TABLE sandboxes
    ADD CONSTRAINT sandboxes_status_check CHECK (status IN (
        'pending', 'starting', 'running', 'pausing', 'paused', 'resuming', 'stopping', 'stopped', 'missing', 'error')),
    ADD COLUMN timeout_sec integer NOT NULL DEFAULT 0 CHECK (timeout_sec >= 0),
    ADD COLUMN auto_resume boolean NOT NULL DEFAULT false,
    ADD COLUMN last_active_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX sandboxes_with_timeout ON sandboxes (last_active_at) WHERE status = 'running' AND timeout_sec > 0;
