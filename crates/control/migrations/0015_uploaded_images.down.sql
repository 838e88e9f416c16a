-- Nobody could go on with these.
UPDATE builds SET status = 'cancelled', ended_at = now(), registry = NULL
    WHERE status IN ('pending', 'running') AND base ->> 'reference' LIKE 'uploaded:%';
WITH gone AS (DELETE FROM images WHERE uploaded RETURNING image_id, host_id)
    INSERT INTO doomed_images (image_id, host_id) SELECT DISTINCT image_id, host_id FROM gone ON CONFLICT DO NOTHING;
DROP INDEX images_uploaded;
ALTER TABLE images DROP COLUMN uploaded;
