DROP INDEX template_versions_artifact;
DROP INDEX template_versions_image;
-- What hosts and the store have is left there: only these rows knew of it.
DROP TABLE stored;
DROP TABLE copies;
