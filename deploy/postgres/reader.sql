-- The role metastudio_reader, for Grafana and for people: it reads the views and nothing else. No stream key and no
-- body is in them. Run this as the owner of the tables, and again after each `receiver migrate`:
--   METASTUDIO_READER_PASSWORD=… psql --file deploy/postgres/reader.sql postgresql://OWNER@HOST/NAME
-- Without METASTUDIO_READER_PASSWORD the role's password stays as it is: set it with \password metastudio_reader.
\set ON_ERROR_STOP on
\getenv password METASTUDIO_READER_PASSWORD

BEGIN;

SELECT 'CREATE ROLE metastudio_reader' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'metastudio_reader')
\gexec
ALTER ROLE metastudio_reader LOGIN CONNECTION LIMIT 20;
\if :{?password}
  ALTER ROLE metastudio_reader PASSWORD :'password';
\endif

-- What may be read is decided by the grants below; these keep a slow query from being a burden. Who switches the first
-- off can still write to no table, but make what PostgreSQL lets everybody make: temporary tables and large objects.
ALTER ROLE metastudio_reader SET default_transaction_read_only = on;
ALTER ROLE metastudio_reader SET statement_timeout = '30s';
ALTER ROLE metastudio_reader SET idle_in_transaction_session_timeout = '60s';

GRANT CONNECT ON DATABASE :"DBNAME" TO metastudio_reader;
GRANT USAGE ON SCHEMA public TO metastudio_reader;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM metastudio_reader;
GRANT SELECT ON
  shoot_script_switch, rtmp_stream_state_change, reply_command_finish, stream_sessions, script_timeline, live_jobs
TO metastudio_reader;

COMMIT;
