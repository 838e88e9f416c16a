-- What was to replace another snapshot is given up. Snapshots without a name are those of builds, too: their column stays as it is.
UPDATE snapshots SET status = 'deleting' WHERE replaces IS NOT NULL;
ALTER TABLE snapshots DROP CONSTRAINT snapshots_one_name, DROP COLUMN replaces;
