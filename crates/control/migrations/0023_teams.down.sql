DROP INDEX builds_open_of_team;
DROP INDEX snapshots_of_team;
DROP INDEX sandboxes_of_host;
DROP INDEX sandboxes_all;
DROP INDEX teams_to_empty;
ALTER TABLE teams DROP COLUMN emptied_at;
DROP TABLE invitations;
