-- Fills each table but the small ones (in the setting `plans.small`) with 10,000 rows of 100 teams, for the case that looks at plans.
-- Foreign keys and checks are dropped: the rows need be plausible only for the planner. A column with a check of its words gets these.
DO $$
DECLARE
    small text[] := string_to_array(current_setting('plans.small'), ' ');
    one record;
    names text;
    vals text;
BEGIN
    CREATE TEMP TABLE words AS
        SELECT c.conrelid AS rel, a.attnum AS col,
            (SELECT array_agg(DISTINCT word[1]) FROM regexp_matches(pg_get_constraintdef(c.oid), '''([a-z0-9_]+)''::text', 'g') word)
                AS list
        FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        WHERE c.contype = 'c' AND cardinality(c.conkey) = 1 AND a.atttypid = 'text'::regtype;
    FOR one IN
        SELECT conrelid::regclass AS rel, conname FROM pg_constraint
        WHERE contype IN ('c', 'f') AND connamespace = 'public'::regnamespace AND conparentid = 0
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.rel, one.conname);
    END LOOP;
    FOR one IN
        SELECT oid, relname FROM pg_class
        WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace AND relname <> ALL (small)
    LOOP
        SELECT string_agg(quote_ident(name), ', '),
            string_agg(CASE WHEN needed THEN value ELSE format('CASE WHEN n %% 3 > 0 THEN %s END', value) END, ', ')
        INTO names, vals
        FROM (
            SELECT a.attname AS name, a.attnotnull AS needed, CASE
                WHEN a.attname = 'team_id' OR one.relname = 'teams' AND a.attname = 'id' THEN 'md5((n % 100)::text)::uuid'
                WHEN a.attname = 'host_id' THEN 'md5((n % 20)::text)::uuid'
                WHEN w.list IS NOT NULL THEN format('(%L::text[])[1 + n %% %s]', w.list, cardinality(w.list))
                WHEN t.typcategory = 'A' OR t.typname IN ('json', 'jsonb') THEN quote_literal('{}') || '::' || t.oid::regtype
                WHEN t.typname = 'uuid' THEN format('md5(%L || n)::uuid', a.attname)
                WHEN t.typname IN ('text', 'varchar') THEN format('%L || n', a.attname)
                WHEN t.typname = 'bytea' THEN format('sha256((%L || n)::bytea)', a.attname)
                WHEN t.typname = 'bool' THEN 'n % 2 = 0'
                WHEN t.typname IN ('timestamptz', 'date') THEN 'now() - n * interval ''1 minute'''
                WHEN t.typname = 'inet' THEN '''127.0.0.1''::inet'
                ELSE 'n::' || t.oid::regtype
            END AS value
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN words w ON w.rel = a.attrelid AND w.col = a.attnum AND w.list IS NOT NULL
            WHERE a.attrelid = one.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = '' AND a.attgenerated = ''
            ORDER BY a.attnum
        ) columns;
        EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM generate_series(1, 10000) n ON CONFLICT DO NOTHING',
            one.oid::regclass, names, vals);
    END LOOP;
END $$;
ANALYZE;
