-- Three roles, each with what it needs and no more:
--   metastudio         owns the tables and views: for `receiver migrate`, `copy`, `prune` and `quarantine`.
--   metastudio_store   stores what comes in, and reads no body and no stream key again: for `receiver serve`.
--   metastudio_reader  reads the views, streams, jobs and platform_jobs, and nothing else: for Grafana and for people.
-- Run this as a superuser in the new database; and as the owner, or a superuser, after each `receiver migrate`:
--   psql --file deploy/postgres/roles.sql postgresql://SUPERUSER@HOST/NAME
-- Passwords are taken from METASTUDIO_OWNER_PASSWORD, METASTUDIO_STORE_PASSWORD and METASTUDIO_READER_PASSWORD. Without
-- its variable a role's password stays as it is: set it with \password ROLE.
-- Another owner is --set owner=NAME, another schema than public is --set schema=NAME.
-- Run by an owner who may not make roles, it does what an owner may, and says what a superuser has to do; then, and
-- where the reader could read a body or a stream key, psql ends with the exit code 3.
\set ON_ERROR_STOP on
\set QUIET on
\getenv owner_password METASTUDIO_OWNER_PASSWORD
\getenv store_password METASTUDIO_STORE_PASSWORD
\getenv reader_password METASTUDIO_READER_PASSWORD
\if :{?schema}
\else
    \set schema public
\endif
\if :{?owner}
\else
    SELECT coalesce(
        (SELECT rolname FROM pg_roles JOIN pg_class AS c ON c.relowner = pg_roles.oid
        WHERE c.oid = to_regclass(format('%I.events', :'schema'))),
        'metastudio'
    ) AS owner \gset
\endif
\if :{?only_reader}
    \set roles '{metastudio_reader}'
\else
    \set roles '{metastudio_store,metastudio_reader}'
\endif

BEGIN;

-- What is temporary is of this node alone, if there is Citus.
SET citus.enable_ddl_propagation = off;

-- Executes a statement, unless what it is for is so already. One that this role may not execute is said, and passed
-- over; `shown` is what is said where the statement has a password in it. `may` is for GRANT, which only warns.
CREATE FUNCTION pg_temp.ensure(is_so boolean, statement text, shown text DEFAULT NULL, may boolean DEFAULT TRUE)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF is_so THEN
        RETURN;
    ELSIF NOT may THEN
        RAISE insufficient_privilege;
    END IF;
    EXECUTE statement;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'for a superuser: %;', coalesce(shown, statement);
    PERFORM set_config('metastudio.left_to_superuser', 'yes', FALSE);
END $$;

SET citus.enable_ddl_propagation = on;

-- Not before the roles are there, which are in the statements that follow.
\if :{?only_reader}
\else
    SELECT pg_temp.ensure(to_regrole(quote_ident(:'owner')) IS NOT NULL, format('CREATE ROLE %I LOGIN', :'owner'))
    \g /dev/null
\endif
SELECT pg_temp.ensure(to_regrole(role) IS NOT NULL, format('CREATE ROLE %I LOGIN', role))
FROM unnest(CAST(:'roles' AS text[])) AS role \g /dev/null

-- What may be read is decided by the grants below; these keep a slow query from being a burden. Who switches the first
-- off can still write to no table, but make what PostgreSQL lets everybody make: temporary tables and large objects.
SELECT pg_temp.ensure(rolcanlogin AND rolconnlimit = 20, format('ALTER ROLE %I LOGIN CONNECTION LIMIT 20', rolname))
FROM pg_roles WHERE rolname = 'metastudio_reader' \g /dev/null
SELECT pg_temp.ensure(
    coalesce(format('%s=%s', name, value) = ANY (setconfig), FALSE),
    format('ALTER ROLE %I SET %s = %L', rolname, name, value)
)
FROM pg_roles AS role
CROSS JOIN (VALUES
    ('default_transaction_read_only', 'on'), ('statement_timeout', '30s'),
    ('idle_in_transaction_session_timeout', '60s')
) AS setting (name, value)
LEFT JOIN pg_db_role_setting ON setrole = role.oid AND setdatabase = 0
WHERE rolname = 'metastudio_reader' \g /dev/null

\if :{?reader_password}
    SELECT pg_temp.ensure(
        FALSE, format('ALTER ROLE metastudio_reader PASSWORD %L', :'reader_password'), '\password metastudio_reader'
    )
    WHERE to_regrole('metastudio_reader') IS NOT NULL \g /dev/null
\endif
\if :{?only_reader}
\else
    \if :{?store_password}
        SELECT pg_temp.ensure(
            FALSE, format('ALTER ROLE metastudio_store PASSWORD %L', :'store_password'), '\password metastudio_store'
        )
        WHERE to_regrole('metastudio_store') IS NOT NULL \g /dev/null
    \endif
    \if :{?owner_password}
        SELECT pg_temp.ensure(
            FALSE, format('ALTER ROLE %I PASSWORD %L', :'owner', :'owner_password'), format('\password %I', :'owner')
        )
        WHERE to_regrole(quote_ident(:'owner')) IS NOT NULL \g /dev/null
    \endif
    SELECT pg_temp.ensure(
        to_regnamespace(quote_ident(:'schema')) IS NOT NULL,
        format('CREATE SCHEMA %I AUTHORIZATION %I', :'schema', :'owner')
    )
    WHERE to_regrole(quote_ident(:'owner')) IS NOT NULL \g /dev/null
    SELECT pg_temp.ensure(
        has_schema_privilege(oid, to_regnamespace(quote_ident(:'schema')), 'CREATE')
        AND has_schema_privilege(oid, to_regnamespace(quote_ident(:'schema')), 'USAGE'),
        format('GRANT CREATE, USAGE ON SCHEMA %I TO %I', :'schema', rolname),
        may => has_schema_privilege(to_regnamespace(quote_ident(:'schema')), 'CREATE WITH GRANT OPTION')
    )
    FROM pg_roles WHERE rolname = :'owner' \g /dev/null
\endif

-- Whoever asks for a table by its name alone is to find it.
SELECT pg_temp.ensure(
    coalesce(format('search_path=%I', :'schema') = ANY (setconfig), FALSE),
    format('ALTER ROLE %I IN DATABASE %I SET search_path = %I', role, current_database(), :'schema'),
    may => to_regrole(quote_ident(role)) IS NOT NULL
)
FROM unnest(CAST(:'roles' AS text[]) || CASE WHEN NOT :{?only_reader} THEN ARRAY[:'owner'] END) AS role
LEFT JOIN pg_db_role_setting AS setting ON setrole = to_regrole(quote_ident(role))
    AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
WHERE :'schema' <> 'public' \g /dev/null

SELECT pg_temp.ensure(
    has_database_privilege(oid, current_database(), 'CONNECT'),
    format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), rolname),
    may => has_database_privilege(current_database(), 'CONNECT WITH GRANT OPTION')
)
FROM pg_roles WHERE rolname = ANY (CAST(:'roles' AS text[])) OR rolname = :'owner' \g /dev/null
SELECT pg_temp.ensure(
    has_schema_privilege(oid, to_regnamespace(quote_ident(:'schema')), 'USAGE'),
    format('GRANT USAGE ON SCHEMA %I TO %I', :'schema', rolname),
    may => has_schema_privilege(to_regnamespace(quote_ident(:'schema')), 'USAGE WITH GRANT OPTION')
)
FROM pg_roles WHERE rolname = ANY (CAST(:'roles' AS text[])) \g /dev/null

-- The receiver's tables and views: those in the schema that belong to whom `events` belongs to.
SET citus.enable_ddl_propagation = off;
CREATE TEMP VIEW own AS
SELECT
    c.oid, c.relname, c.relkind, c.relowner,
    string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname NOT IN ('body', 'stream_key'))
        AS shown,
    coalesce(array_agg(a.attname) FILTER (WHERE a.attname IN ('body', 'stream_key')), '{}') AS secret
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relnamespace = to_regnamespace(quote_ident(:'schema'))
    AND c.relowner = (SELECT relowner FROM pg_class WHERE oid = to_regclass(format('%I.events', :'schema')))
GROUP BY c.oid;
SET citus.enable_ddl_propagation = on;

-- Of no role more than this: what it was granted besides goes.
SELECT format('REVOKE ALL ON %s FROM %I', own.oid::regclass, rolname)
FROM own CROSS JOIN pg_roles WHERE rolname = ANY (CAST(:'roles' AS text[])) \gexec
SELECT format('GRANT SELECT ON %s TO %I', own.oid::regclass, rolname)
FROM own CROSS JOIN pg_roles
WHERE rolname = ANY (CAST(:'roles' AS text[])) AND secret = '{}'
    -- Beside the views what `receiver history` and `receiver report` need.
    AND (relkind = 'v' OR relname IN ('streams', 'jobs', 'platform_jobs', 'alembic_version')) \gexec
-- Citus reads a view with the rights of who asks.
SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS has_citus \gset
\if :has_citus
    SELECT format('GRANT SELECT (%s) ON %s TO metastudio_reader', shown, oid::regclass)
    FROM own JOIN pg_dist_partition ON logicalrelid = oid
    WHERE relname <> 'quarantine' AND to_regrole('metastudio_reader') IS NOT NULL \gexec
\endif
\if :{?only_reader}
\else
    -- Events and quarantine are only added to, and read again by what tells repeats; all others are kept up to date.
    SELECT format(
        'GRANT %s ON %s TO metastudio_store',
        CASE
            WHEN relname = 'alembic_version' THEN 'SELECT'
            WHEN secret <> '{}' THEN format('INSERT, SELECT (%s)', shown)
            ELSE 'SELECT, INSERT, UPDATE'
        END,
        oid::regclass
    )
    FROM own WHERE relkind IN ('r', 'p') AND to_regrole('metastudio_store') IS NOT NULL \gexec
\endif


-- Nothing of this stays where the reader can get at a body or a stream key.
\ir check.sql

COMMIT;

DO $$ BEGIN
    IF current_setting('metastudio.left_to_superuser', TRUE) = 'yes' THEN
        RAISE EXCEPTION 'all else is done: have a superuser run the statements above, then run this again';
    END IF;
END $$;
\echo 'the roles have what they need, and the reader cannot get at a body or a stream key'
