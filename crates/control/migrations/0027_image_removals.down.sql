DROP TABLE image_removals;
