ALTER TABLE sandboxes DROP COLUMN last_out_of_memory;
DROP TABLE metrics_points;
