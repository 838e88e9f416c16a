DROP INDEX sandboxes_with_timeout;
UPDATE sandboxes SET status = 'error', error_code = 'invalid_state', error_message = 'this version cannot pause sandboxes'
    WHERE status IN ('pausing', 'paused', 'resuming');
ALTER TABLE sandboxes DROP CONSTRAINT sandboxes_status_check;
ALTER TABLE sandboxes
    ADD CONSTRAINT sandboxes_status_check
        CHECK (status IN ('pending', 'starting', 'running', 'stopping', 'stopped', 'missing', 'error')),
    DROP COLUMN timeout_sec,
    DROP COLUMN auto_resume,
    DROP COLUMN last_active_at;
