-- What is kept of the image of a registry that a sandbox was created from: its id, its reference and digest, and what it runs.
ALTER TABLE sandboxes ADD COLUMN image jsonb;
CREATE INDEX sandboxes_image ON sandboxes ((image ->> 'id')) WHERE image IS NOT NULL AND status <> 'stopped';

-- Which team uses which image of a registry on which host. An image has the same id for all teams and on all hosts.
CREATE TABLE images (
    team_id uuid NOT NULL REFERENCES teams (id),
    reference text NOT NULL,
    host_id uuid NOT NULL REFERENCES hosts (id),
    image_id uuid NOT NULL,
    digest text NOT NULL,
    size_mb bigint NOT NULL,
    config jsonb NOT NULL,
    last_used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, reference, host_id)
);
CREATE INDEX images_image ON images (image_id, host_id);
CREATE INDEX images_unused ON images (last_used_at);

-- So an image may be on several hosts, each of which removes it by itself.
ALTER TABLE doomed_images DROP CONSTRAINT doomed_images_pkey, ADD PRIMARY KEY (image_id, host_id);

-- Account of the registry from which the base of a build is pulled: none once the build has ended.
ALTER TABLE builds
    ADD COLUMN registry jsonb,
    ADD CONSTRAINT builds_registry_until_the_end CHECK (registry IS NULL OR status IN ('pending', 'running'));
