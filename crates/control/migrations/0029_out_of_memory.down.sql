DROP TABLE out_of_memory;
