-- What deploy/postgres/citus.sql uses of Citus, on a plain PostgreSQL: catalog tables and functions with the columns
-- and parameters that Citus 13.2 gives them. A table that is spread gets real shards, which nothing routes rows to.
-- Like Citus it refuses a table with triggers unless that is set, a unique key without the column by which the table
-- is spread, and a table that is spread already.
SET allow_system_table_mods = on;
CREATE SCHEMA citus;
CREATE TYPE citus.distribution_type AS ENUM ('hash', 'range', 'append');
CREATE SEQUENCE pg_catalog.pg_dist_shardid_seq START 102008;
CREATE SEQUENCE pg_catalog.pg_dist_colocationid_seq;
CREATE TABLE pg_catalog.pg_dist_partition (
    logicalrelid regclass NOT NULL, partmethod "char" NOT NULL, partkey text,
    colocationid integer DEFAULT 0 NOT NULL, repmodel "char" DEFAULT 'c' NOT NULL,
    autoconverted boolean DEFAULT FALSE NOT NULL
);
CREATE TABLE pg_catalog.pg_dist_shard (
    logicalrelid regclass NOT NULL, shardid int8 NOT NULL, shardstorage "char" NOT NULL,
    shardminvalue text, shardmaxvalue text
);
GRANT SELECT ON pg_catalog.pg_dist_partition, pg_catalog.pg_dist_shard TO PUBLIC;

CREATE FUNCTION pg_catalog.run_command_on_workers(
    command text, parallel bool DEFAULT TRUE, OUT nodename text, OUT nodeport int, OUT success bool, OUT result text
) RETURNS SETOF record LANGUAGE sql AS 'SELECT NULL::text, NULL::int, TRUE, NULL::text WHERE FALSE';

CREATE FUNCTION pg_catalog.create_distributed_table(
    table_name regclass, distribution_column text, distribution_type citus.distribution_type DEFAULT 'hash',
    colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    own pg_class := (SELECT c FROM pg_class AS c WHERE oid = table_name);
    beside regclass := CASE WHEN colocate_with NOT IN ('none', 'default') THEN colocate_with END;
    colocation integer;
    number integer;
    width bigint;
    id bigint;
    shard text;
    trigger_made text;
BEGIN
    IF EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = table_name) THEN
        RAISE EXCEPTION 'table "%" is already distributed', table_name;
    END IF;
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = table_name AND NOT tgisinternal)
        AND current_setting('citus.enable_unsafe_triggers', TRUE) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION 'cannot distribute relation "%" because it has triggers', table_name;
    END IF;
    IF EXISTS (
        SELECT FROM pg_index WHERE indrelid = table_name AND indisunique AND NOT (
            SELECT attnum FROM pg_attribute WHERE attrelid = table_name AND attname = distribution_column
        ) = ANY (indkey)
    ) THEN
        RAISE EXCEPTION 'cannot create constraint on "%"', table_name;
    END IF;
    IF beside IS NULL THEN
        colocation := nextval('pg_dist_colocationid_seq');
        number := coalesce(shard_count, 32);
    ELSE
        SELECT colocationid INTO STRICT colocation FROM pg_dist_partition WHERE logicalrelid = beside;
        SELECT count(*) INTO number FROM pg_dist_shard WHERE logicalrelid = beside;
    END IF;
    width := 4294967296 / number;
    INSERT INTO pg_dist_partition VALUES (table_name, 'h', distribution_column, colocation, 's');
    FOR i IN 0 .. number - 1 LOOP
        id := nextval('pg_dist_shardid_seq');
        shard := own.relnamespace::regnamespace || '.' || quote_ident(own.relname || '_' || id);
        EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', shard, table_name);
        EXECUTE format('ALTER TABLE %s OWNER TO %I', shard, pg_get_userbyid(own.relowner));
        FOR trigger_made IN
            SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = table_name AND NOT tgisinternal
        LOOP
            EXECUTE regexp_replace(trigger_made, ' ON \S*?' || own.relname || ' ', ' ON ' || shard || ' ');
        END LOOP;
        INSERT INTO pg_dist_shard VALUES (
            table_name, id, 't', -2147483648 + i * width,
            CASE WHEN i = number - 1 THEN 2147483647 ELSE -2147483648 + (i + 1) * width - 1 END
        );
    END LOOP;
END $$;

-- A table that each node has the whole of: one shard, of all rows.
CREATE FUNCTION pg_catalog.create_reference_table(table_name regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    own pg_class := (SELECT c FROM pg_class AS c WHERE oid = table_name);
    id bigint := nextval('pg_dist_shardid_seq');
    shard text := own.relnamespace::regnamespace || '.' || quote_ident(own.relname || '_' || id);
BEGIN
    IF EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = table_name) THEN
        RAISE EXCEPTION 'table "%" is already distributed', table_name;
    END IF;
    INSERT INTO pg_dist_partition VALUES (table_name, 'n', NULL, nextval('pg_dist_colocationid_seq'), 't');
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', shard, table_name);
    EXECUTE format('ALTER TABLE %s OWNER TO %I', shard, pg_get_userbyid(own.relowner));
    INSERT INTO pg_dist_shard VALUES (table_name, id, 't', NULL, NULL);
END $$;
