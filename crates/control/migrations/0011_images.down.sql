-- Nobody could go on with these.
UPDATE builds SET status = 'cancelled', ended_at = now(), registry = NULL
    WHERE status IN ('pending', 'running') AND base ->> 'kind' IN ('image', 'imported');
ALTER TABLE builds DROP CONSTRAINT builds_registry_until_the_end, DROP COLUMN registry;
DELETE FROM doomed_images d USING doomed_images o WHERE o.image_id = d.image_id AND o.host_id < d.host_id;
ALTER TABLE doomed_images DROP CONSTRAINT doomed_images_pkey, ADD PRIMARY KEY (image_id);
DROP TABLE images;
ALTER TABLE sandboxes DROP COLUMN image;
