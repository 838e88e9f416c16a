DROP INDEX sandboxes_ever;
CREATE INDEX sandboxes_gone ON sandboxes (team_id, id DESC) WHERE status = 'stopped';
DROP INDEX sandboxes_name;
ALTER TABLE sandboxes
    DROP COLUMN on_timeout,
    DROP COLUMN labels,
    DROP COLUMN name;
