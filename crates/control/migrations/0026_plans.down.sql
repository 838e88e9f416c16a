DROP INDEX layers_unused;
