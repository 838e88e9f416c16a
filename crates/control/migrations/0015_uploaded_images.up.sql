-- Images that teams have uploaded: their references begin with `uploaded:`, and they stay until they are deleted, because no registry
-- has them. Of each there is one row, with the host that got it.
ALTER TABLE images ADD COLUMN uploaded boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX images_uploaded ON images (team_id, reference) WHERE uploaded;
