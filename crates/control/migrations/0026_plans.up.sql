-- Results of steps that no build uses are looked for by age.
CREATE INDEX layers_unused ON layers (last_used_at);
