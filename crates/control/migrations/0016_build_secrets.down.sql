-- Nobody could go on with these.
UPDATE builds SET status = 'cancelled', ended_at = now(), registry = NULL, secrets = NULL
    WHERE status IN ('pending', 'running') AND secrets IS NOT NULL;
ALTER TABLE builds DROP CONSTRAINT builds_secrets_until_the_end, DROP COLUMN secrets;
