DROP TABLE doomed_images, template_tags, template_versions, layers, build_logs, builds;
DELETE FROM snapshots WHERE name IS NULL;
ALTER TABLE snapshots ALTER COLUMN name SET NOT NULL;
