-- Spreads the tables over the nodes of a Citus cluster (13.2 is the version that was tried). Run it on the coordinator,
-- as a superuser, after the first `receiver migrate` and before the first event; and again after each later `receiver
-- migrate`, each time before roles.sql:
--   psql --file deploy/postgres/citus.sql postgresql://SUPERUSER@COORDINATOR/NAME
-- Another schema than public is --set schema=NAME, another number of shards than 8 is --set shards=NUMBER: the more
-- shards, the slower events are stored. docs/how-to/scale-out.md has figures, and what does not work on Citus.
\set ON_ERROR_STOP on
\if :{?schema}
\else
    \set schema public
\endif
\if :{?shards}
\else
    \set shards 8
\endif

-- Citus takes a table with a trigger only where this is set, on each node.
SET citus.enable_unsafe_triggers = on;
SELECT format('ALTER DATABASE %I SET citus.enable_unsafe_triggers = on', current_database()) \gexec
SELECT run_command_on_workers('ALTER SYSTEM SET citus.enable_unsafe_triggers = on') \g /dev/null
SELECT run_command_on_workers('SELECT pg_reload_conf()') \g /dev/null

BEGIN;
SET citus.enable_ddl_propagation = off;  -- what is temporary is of this node alone

-- The receiver's tables, and by which column they are spread: all that is of one job is on one node. A table without a
-- job or a digest is small: each node has the whole of it. alembic_version stays on the coordinator.
CREATE TEMP VIEW spread AS
SELECT
    c.oid, c.relname,
    CASE WHEN bool_or(a.attname = 'job_id') THEN 'job_id' WHEN bool_or(a.attname = 'digest') THEN 'digest' END
        AS by_column,
    EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = c.oid) AS is_done
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relkind = 'r' AND c.relname <> 'alembic_version' AND c.relnamespace = to_regnamespace(quote_ident(:'schema'))
    AND c.relowner = (SELECT relowner FROM pg_class WHERE oid = to_regclass(format('%I.events', :'schema')))
    -- Shards are tables too, and some nodes show them.
    AND NOT EXISTS (
        SELECT FROM pg_dist_shard AS s JOIN pg_class AS p ON p.oid = s.logicalrelid
        WHERE c.relname = p.relname || '_' || s.shardid
    )
GROUP BY c.oid;
SET citus.enable_ddl_propagation = on;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM spread WHERE relname = 'events') THEN
        RAISE EXCEPTION 'there are no tables in this schema: run `receiver migrate` first';
    END IF;
END $$;
-- What Citus does with triggers while it moves rows was not tried.
SELECT format($do$
    DO $$ BEGIN
        IF EXISTS (SELECT FROM %s) THEN
            RAISE EXCEPTION 'there are events: begin with a new database, and bring them over with `receiver copy`';
        END IF;
    END $$
$do$, oid::regclass)
FROM spread WHERE relname = 'events' AND NOT is_done \gexec

-- A unique key has the column by which a table is spread.
SELECT format(
    'ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %2$I PRIMARY KEY (%s, %I)',
    s.oid::regclass, k.conname,
    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY position)
    FROM unnest(k.conkey) WITH ORDINALITY AS key (number, position)
    JOIN pg_attribute AS a ON a.attrelid = s.oid AND a.attnum = number),
    s.by_column
)
FROM spread AS s JOIN pg_constraint AS k ON k.conrelid = s.oid AND k.contype = 'p'
WHERE NOT s.is_done
    AND (SELECT attnum FROM pg_attribute WHERE attrelid = s.oid AND attname = s.by_column) <> ALL (k.conkey) \gexec

-- A trigger runs on a shard, beside the shards of the other tables with the same jobs: its function's statements are
-- kept as the migration has them, and are executed with the names of these shards in place of the tables'.
SET citus.enable_ddl_propagation = off;
CREATE FUNCTION pg_temp.for_shards(function oid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    source text := (SELECT regexp_replace(prosrc, '--[^\n]*', '', 'g') FROM pg_proc WHERE oid = function);
    statements text := substring(source FROM '^\s*BEGIN\s(.*)RETURN NULL;\s*END;?\s*$');
BEGIN
    IF statements IS NULL THEN
        RAISE EXCEPTION 'the function % is not made as citus.sql expects', function::regprocedure;
    END IF;
    RETURN format(
        $function$
        CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql AS $trigger$
        DECLARE
            statements text := %L;
            shard record;
        BEGIN
            FOR shard IN
                SELECT p.relname, p.relname || '_' || other.shardid AS name
                FROM pg_dist_shard AS own
                JOIN pg_dist_shard AS other ON other.shardminvalue = own.shardminvalue
                JOIN pg_class AS p ON p.oid = other.logicalrelid
                WHERE own.shardid = CAST(substring(TG_TABLE_NAME FROM '_(\d+)$') AS bigint)
                    AND p.relname = ANY (%L) AND p.relnamespace = CAST(quote_ident(TG_TABLE_SCHEMA) AS regnamespace)
            LOOP
                statements := regexp_replace(
                    statements, '\m' || shard.relname || '\M', format('%%I.%%I', TG_TABLE_SCHEMA, shard.name), 'g'
                );
            END LOOP;
            EXECUTE statements;
            RETURN NULL;
        END $trigger$
        $function$,
        function::regprocedure, statements,
        (SELECT array_agg(relname) FROM spread WHERE by_column = 'job_id' AND statements ~ ('\m' || relname || '\M'))
    );
END $$;
SET citus.enable_ddl_propagation = on;
SELECT DISTINCT pg_temp.for_shards(f.oid)
FROM spread AS s JOIN pg_trigger AS t ON t.tgrelid = s.oid AND NOT t.tgisinternal
JOIN pg_proc AS f ON f.oid = t.tgfoid AND f.pronamespace = to_regnamespace(quote_ident(:'schema'))
WHERE f.prosrc NOT LIKE '%pg_dist_shard%' \gexec

-- `jobs` first: it is there when the trigger of `events` looks for it.
SELECT create_distributed_table(oid, by_column, colocate_with => 'none', shard_count => :shards)
FROM spread WHERE NOT is_done AND relname IN ('jobs', 'quarantine') ORDER BY relname \g /dev/null
SELECT create_distributed_table(oid, by_column, colocate_with => format('%I.jobs', :'schema'))
FROM (SELECT * FROM spread WHERE NOT is_done AND by_column = 'job_id' ORDER BY relname = 'events', relname) AS rest
\g /dev/null
SELECT create_reference_table(oid) FROM spread WHERE NOT is_done AND by_column IS NULL \g /dev/null

-- A view is read with the rights of who asks: it must not have the columns that nobody may read, not even unused.
SELECT format(
    'CREATE OR REPLACE VIEW %s AS %s', oid::regclass,
    regexp_replace(pg_get_viewdef(oid), ',\s+(\w+\.)?(body|stream_key)(?=,|\s+FROM)', '', 'g')
)
FROM pg_class
WHERE relkind = 'v' AND relnamespace = to_regnamespace(quote_ident(:'schema'))
    AND relowner = (SELECT relowner FROM pg_class WHERE oid = to_regclass(format('%I.events', :'schema')))
    AND pg_get_viewdef(oid) ~ '\m(body|stream_key)\M' \gexec

COMMIT;
