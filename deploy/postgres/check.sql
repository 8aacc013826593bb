-- Fails where the role metastudio_reader can read a body or a stream key in any way: through tables and columns, views,
-- functions, roles that it is a member of, what everybody may (PUBLIC), or default privileges. roles.sql and reader.sql
-- end with this; it can be run alone too:
--   psql --file deploy/postgres/check.sql postgresql://OWNER@HOST/NAME
-- Another schema than public is --set schema=NAME.
\set ON_ERROR_STOP on
\if :{?schema}
\else
    \set schema public
\endif

-- What is temporary is of this node alone, if there is Citus.
SET citus.enable_ddl_propagation = off;

-- The columns that hold secrets: of the receiver's tables, their partitions, and what else of its owner has them.
CREATE TEMP VIEW secret AS
SELECT c.oid AS relation, a.attnum AS number, a.attname AS name, c.relowner AS owner
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE a.attname IN ('body', 'stream_key') AND c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
    AND c.relowner = (SELECT relowner FROM pg_class WHERE oid = to_regclass(format('%I.events', :'schema')));

-- The roles whose rights the reader has, or can have with SET ROLE.
CREATE TEMP VIEW readers AS
SELECT * FROM pg_roles WHERE pg_has_role(to_regrole('metastudio_reader'), oid, 'MEMBER');

-- Whether a view needs the secrets for what it shows: not if without them it is the same view. Those that begin with
-- SELECT * have columns that they make no use of.
CREATE FUNCTION pg_temp.shows_secret(view oid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    shows boolean;
BEGIN
    EXECUTE 'CREATE TEMP VIEW without_secrets AS ' || regexp_replace(
        pg_get_viewdef(view), ',\s+(\w+\.)?(body|stream_key)(?=,|\s+FROM)', '', 'g'
    );
    shows := EXISTS (
        SELECT FROM pg_depend AS d JOIN secret AS s ON d.refobjid = s.relation AND d.refobjsubid = s.number
        JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        WHERE r.ev_class = 'pg_temp.without_secrets'::regclass
    ) OR array(
        SELECT attname FROM pg_attribute WHERE attrelid = view AND attnum > 0 ORDER BY attnum
    ) <> array(
        SELECT attname FROM pg_attribute WHERE attrelid = 'pg_temp.without_secrets'::regclass AND attnum > 0
        ORDER BY attnum
    );
    DROP VIEW pg_temp.without_secrets;
    RETURN shows;
END $$;

-- The views that show a secret, and those that are made of these.
CREATE FUNCTION pg_temp.views_with_secrets() RETURNS SETOF oid LANGUAGE plpgsql AS $$
DECLARE
    found oid[] := '{}';
    view oid;
    is_of_found boolean;
    before integer;
BEGIN
    LOOP
        before := cardinality(found);
        FOR view, is_of_found IN
            SELECT r.ev_class, bool_or(d.refobjid = ANY (found))
            FROM pg_rewrite AS r
            JOIN pg_class AS c ON c.oid = r.ev_class AND c.relkind IN ('v', 'm') AND c.relpersistence <> 't'
            JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refobjid <> r.ev_class
            LEFT JOIN secret AS s ON d.refobjid = s.relation AND d.refobjsubid = s.number
            WHERE (s.number IS NOT NULL OR d.refobjid = ANY (found)) AND r.ev_class <> ALL (found)
            GROUP BY r.ev_class
        LOOP
            IF is_of_found OR pg_temp.shows_secret(view) THEN
                found := found || view;
            END IF;
        END LOOP;
        EXIT WHEN cardinality(found) = before;
    END LOOP;
    RETURN QUERY SELECT unnest(found);
END $$;

-- Each way to a secret, in words.
CREATE FUNCTION pg_temp.ways() RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    SELECT format('it has the rights of %I', rolname) FROM readers
    WHERE rolsuper OR rolcreaterole OR rolreplication OR rolname IN (
        'pg_read_all_data', 'pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'
    );
    RETURN QUERY
    SELECT format('%I may read %s.%I', r.rolname, s.relation::regclass, s.name)
    FROM secret AS s CROSS JOIN readers AS r
    WHERE NOT r.rolsuper AND has_column_privilege(r.oid, s.relation, s.number, 'SELECT');
    -- A trigger's function is given the rows, and whoever stores them runs it.
    RETURN QUERY
    SELECT DISTINCT format('%I may make a trigger on %s', r.rolname, s.relation::regclass)
    FROM secret AS s CROSS JOIN readers AS r
    WHERE NOT r.rolsuper AND has_table_privilege(r.oid, s.relation, 'TRIGGER');
    RETURN QUERY
    SELECT format('%I may read the view %s', r.rolname, view::regclass)
    FROM pg_temp.views_with_secrets() AS view CROSS JOIN readers AS r
    WHERE NOT r.rolsuper AND has_any_column_privilege(r.oid, view, 'SELECT');
    -- Nobody can tell what a function reads, but with whose rights it does.
    RETURN QUERY
    SELECT format('%I may call %s, which has the rights of %I', r.rolname, f.oid::regprocedure, o.rolname)
    FROM pg_proc AS f JOIN pg_roles AS o ON f.proowner = o.oid CROSS JOIN readers AS r
    WHERE f.prosecdef AND f.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
        AND f.pronamespace <> 'pg_catalog'::regnamespace
        AND NOT r.rolsuper AND has_function_privilege(r.oid, f.oid, 'EXECUTE')
        AND EXISTS (SELECT FROM secret AS s WHERE has_column_privilege(o.oid, s.relation, s.number, 'SELECT'));
    RETURN QUERY
    SELECT format('%s may read what %I creates', coalesce(quote_ident(r.rolname), 'PUBLIC'), d.defaclrole::regrole)
    FROM pg_default_acl AS d CROSS JOIN aclexplode(d.defaclacl) AS a LEFT JOIN readers AS r ON r.oid = a.grantee
    WHERE d.defaclobjtype = 'r' AND a.privilege_type = 'SELECT' AND (a.grantee = 0 OR r.oid IS NOT NULL)
        AND d.defaclrole IN (SELECT owner FROM secret);
END $$;

DO $$
DECLARE
    ways text := (SELECT string_agg(way, '; ') FROM pg_temp.ways() AS way);
BEGIN
    IF ways IS NOT NULL THEN
        RAISE EXCEPTION 'metastudio_reader can get at bodies or stream keys: %', ways;
    END IF;
END $$;

SET citus.enable_ddl_propagation = on;
