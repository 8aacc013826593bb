-- A row for each job: its events, its state, and how long and how often its stream was connected.
--
-- A row that counts a job's events and a row for each of its sessions are put together job by job: a join would not
-- let a condition on the job, or on first_event_at, pick the jobs before their events are read. For the same reason
-- every window is partitioned by the job's own columns, and each WITH is used once.
CREATE VIEW live_jobs AS
-- From here to with_end as in stream_sessions.
WITH state_changes AS (
    SELECT
        j.room_id, j.job_id, j.first_sent_at, e.sent_at, e.received_at, e.digest, e.state, e.output_url,
        -- Numbers the stretches of events between one output_url that was sent and the next.
        count(e.output_url) OVER (
            PARTITION BY j.room_id, j.job_id, j.first_sent_at ORDER BY e.sent_at, e.received_at, e.digest
        ) AS url_number
    -- CROSS JOIN: SQLite then joins in the order as written, which is job by job, by the index events_states.
    FROM jobs AS j
    CROSS JOIN events AS e ON e.job_id = j.job_id AND e.state IS NOT NULL
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
),
counts_and_sessions AS (
    SELECT
        j.room_id, j.job_id, j.first_sent_at, max(e.sent_at) AS last_sent_at, count(*) AS events,
        count(CASE WHEN e.event_type = 'SHOOT_SCRIPT_SWITCH' THEN 1 END) AS paragraphs,
        count(CASE WHEN e.event_type = 'REPLY_COMMAND_FINISH' THEN 1 END) AS replies,
        NULL AS session_start, NULL AS session_end, NULL AS is_connection
    -- +e.job_id: without the plus SQLite would build an index of all events by job for this one query.
    FROM jobs AS j
    CROSS JOIN events AS e ON +e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
    GROUP BY j.first_sent_at, j.job_id, j.room_id
    UNION ALL
    SELECT
        room_id, job_id, first_sent_at, NULL, NULL, NULL, NULL, sent_at, session_end,
        -- Another URL begins a session too, but is no new connection.
        CASE WHEN coalesce(previous_state, '') <> 'CONNECTED' THEN 1 END
    FROM with_end
    WHERE begins_session
),
with_last_moment AS (
    -- A session that has not ended counts up to the job's latest event.
    SELECT
        *,
        CASE WHEN session_start IS NOT NULL THEN coalesce(
            session_end, max(last_sent_at) OVER (PARTITION BY room_id, job_id, first_sent_at)
        ) END AS session_until
    FROM counts_and_sessions
),
with_totals AS (
    SELECT
        *,
        -- In microseconds: julianday() is exact to some 30 of them only.
        sum(
            (CAST(strftime('%s', session_until) AS INTEGER) * 1000000 + CAST(substr(session_until, 21, 6) AS INTEGER))
            - (CAST(strftime('%s', session_start) AS INTEGER) * 1000000 + CAST(substr(session_start, 21, 6) AS INTEGER))
        ) OVER job / 1000000.0 AS connected_seconds,
        count(is_connection) OVER job AS connections,
        coalesce(max(is_connection) OVER job, 0) AS first_connection
    FROM with_last_moment
    WINDOW job AS (PARTITION BY room_id, job_id, first_sent_at)
)
SELECT
    t.room_id, t.job_id, t.first_sent_at AS first_event_at, t.last_sent_at AS last_event_at,
    s.state, s.since AS state_since, coalesce(t.connected_seconds, 0.0) AS connected_seconds,
    t.connections - t.first_connection AS reconnects, t.events, t.paragraphs, t.replies
FROM with_totals AS t
LEFT JOIN streams AS s ON s.job_id = t.job_id
WHERE t.events IS NOT NULL;
