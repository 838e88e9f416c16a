DROP TABLE deliveries;
DROP TABLE channel_lanes;
DROP TABLE channels;
ALTER TABLE outbox DROP COLUMN occurrence;
