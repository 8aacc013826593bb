-- A row for each time that a job's stream was connected, from CONNECTED to the state or the new URL that ended it.
--
-- Every window is partitioned by the job's own columns, so that a condition on one of these picks the jobs before
-- their events are read. For the same reason each WITH is used once: what is used twice would be made for all jobs.
CREATE VIEW stream_sessions AS
WITH state_changes AS (
    SELECT
        j.room_id, j.job_id, j.first_sent_at, e.sent_at, e.received_at, e.digest, e.state, e.output_url,
        -- Numbers the stretches of events between one output_url that was sent and the next.
        count(e.output_url) OVER (
            PARTITION BY j.room_id, j.job_id, j.first_sent_at ORDER BY e.sent_at, e.received_at, e.digest
        ) AS url_number
    -- OFFSET 0 keeps the planner from merging the two: it would read the whole table for one day's jobs.
    FROM jobs AS j
    CROSS JOIN LATERAL (
        SELECT * FROM events AS e WHERE e.job_id = j.job_id AND e.state IS NOT NULL OFFSET 0
    ) AS e
),
with_url AS (
    -- A state change that leaves the URL out has that of the one before.
    SELECT *, max(output_url) OVER (PARTITION BY room_id, job_id, first_sent_at, url_number) AS url
    FROM state_changes
),
with_previous AS (
    SELECT *, lag(state) OVER in_order AS previous_state, lag(url) OVER in_order AS previous_url
    FROM with_url
    WINDOW in_order AS (PARTITION BY room_id, job_id, first_sent_at ORDER BY sent_at, received_at, digest)
),
with_beginning AS (
    -- A session begins with CONNECTED after another state, or with another URL. CONNECTED again changes nothing.
    SELECT
        *,
        state = 'CONNECTED' AND (
            coalesce(previous_state, '') <> 'CONNECTED' OR coalesce(url <> previous_url, FALSE)
        ) AS begins_session
    FROM with_previous
),
with_boundary AS (
    SELECT
        *,
        begins_session OR (state <> 'CONNECTED' AND coalesce(previous_state, '') = 'CONNECTED') AS is_boundary
    FROM with_beginning
),
with_end AS (
    -- What ends a session is the next boundary, which may be the beginning of another session.
    SELECT
        *,
        lead(sent_at) OVER boundaries AS session_end,
        lead(state) OVER boundaries AS end_state
    FROM with_boundary
    WINDOW boundaries AS (
        PARTITION BY room_id, job_id, first_sent_at, is_boundary ORDER BY sent_at, received_at, digest
    )
)
SELECT
    room_id, job_id, url AS output_url, sent_at AS connected_at, session_end AS disconnected_at,
    CAST(extract(epoch FROM session_end - sent_at) AS double precision) AS duration_seconds,
    end_state AS ended_by
FROM with_end
WHERE begins_session;
