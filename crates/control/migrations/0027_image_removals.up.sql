-- Until when the removal of an image from a host may be in work, or when the last one has ended. Whoever asked the host for the image
-- before that may have been told of what was removed meanwhile, and asks again.
CREATE TABLE image_removals (
    image_id uuid NOT NULL,
    host_id uuid NOT NULL REFERENCES hosts (id),
    ends_at timestamptz NOT NULL,
    PRIMARY KEY (image_id, host_id)
);
CREATE INDEX image_removals_ended ON image_removals (ends_at);
