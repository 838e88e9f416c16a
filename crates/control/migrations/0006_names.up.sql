-- Names and labels that users give, and what becomes of a sandbox that was idle for its timeout. A name is free again as soon as
-- its sandbox is being deleted, from where no way leads back.
ALTER TABLE sandboxes
    ADD COLUMN name text,
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN on_timeout text NOT NULL DEFAULT 'pause' CHECK (on_timeout IN ('pause', 'delete'));
CREATE UNIQUE INDEX sandboxes_name ON sandboxes (team_id, name)
    WHERE name IS NOT NULL AND status NOT IN ('stopping', 'stopped');

-- Lists may have deleted sandboxes together with others.
DROP INDEX sandboxes_gone;
CREATE INDEX sandboxes_ever ON sandboxes (team_id, id DESC);
