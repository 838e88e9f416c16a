-- Each lease of a copy and of an artifact for the store has an id: what came of the work counts only for the one whose lease it is.
ALTER TABLE copies ADD COLUMN lease uuid NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE stored ADD COLUMN lease uuid NOT NULL DEFAULT gen_random_uuid();
