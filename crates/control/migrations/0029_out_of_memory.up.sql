-- Number of processes and whole sandboxes of each team that were killed for want of memory. It has no foreign key, so that counting waits
-- for nobody who has locked the team.
CREATE TABLE out_of_memory (
    team_id uuid PRIMARY KEY,
    number bigint NOT NULL
);
