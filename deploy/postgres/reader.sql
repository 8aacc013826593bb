-- The role metastudio_reader, for Grafana and for people: it reads the views, streams, jobs and platform_jobs, and
-- nothing else. No stream key and no body is in them. Run this as the owner of the tables, and again after each
-- `receiver migrate`:
--   METASTUDIO_READER_PASSWORD=… psql --file deploy/postgres/reader.sql postgresql://OWNER@HOST/NAME
-- It is the part of roles.sql, which has to be beside it, that is about this role.
\set ON_ERROR_STOP on
\set only_reader true
\ir roles.sql
