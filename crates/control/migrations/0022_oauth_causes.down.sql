DROP TABLE oauth_states;
ALTER TABLE sandboxes DROP COLUMN changed_by;
