-- A snapshot that is to replace another one has no name until it was made: `replaces` is the name that it takes then, from
-- whichever snapshot has it.
ALTER TABLE snapshots
    ADD COLUMN replaces text,
    ADD CONSTRAINT snapshots_one_name CHECK (num_nonnulls(name, replaces) < 2);
