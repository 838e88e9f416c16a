-- Values of the secrets of a build's steps, by their ids: none once the build has ended.
ALTER TABLE builds
    ADD COLUMN secrets jsonb,
    ADD CONSTRAINT builds_secrets_until_the_end CHECK (secrets IS NULL OR status IN ('pending', 'running'));
