-- A row for each job: its events, its state, and how long and how often its stream was connected.
CREATE VIEW live_jobs AS
SELECT
    c.room_id, c.job_id, c.first_sent_at AS first_event_at, c.last_sent_at AS last_event_at,
    s.state, s.since AS state_since,
    -- A session that lasts counts up to the job's latest event: a view cannot know what is meant by now.
    coalesce((
        SELECT sum(coalesce(
            -- In microseconds, whose sum is exact.
            CAST(round(one.duration_seconds * 1000000) AS INTEGER),
            CAST(strftime('%s', c.last_sent_at) AS INTEGER) * 1000000
                + CAST(substr(c.last_sent_at, 21, 6) AS INTEGER)
                - CAST(strftime('%s', one.connected_at) AS INTEGER) * 1000000
                - CAST(substr(one.connected_at, 21, 6) AS INTEGER)
        ))
        FROM stream_sessions AS one
        WHERE one.job_id = c.job_id
    ), 0) / 1000000.0 AS connected_seconds,
    (
        -- Another URL begins a session too, but is no new connection.
        SELECT max(count(*) - count(CASE WHEN one.ended_by = 'CONNECTED' THEN 1 END) - 1, 0)
        FROM stream_sessions AS one
        WHERE one.job_id = c.job_id
    ) AS reconnects,
    c.events, c.paragraphs, c.replies,
    (
        SELECT one.connected_at
        FROM stream_sessions AS one
        WHERE one.job_id = c.job_id AND one.disconnected_at IS NULL
    ) AS connected_since,
    s.state IS NOT 'END' AND (
        CAST(strftime('%s', 'now') AS INTEGER) - CAST(strftime('%s', c.last_sent_at) AS INTEGER)
        > (SELECT a.seconds FROM stale_after AS a)
    ) AS stale
FROM (
    SELECT
        j.room_id, j.job_id, j.first_sent_at, max(e.sent_at) AS last_sent_at, count(*) AS events,
        count(CASE WHEN e.event_type = 'SHOOT_SCRIPT_SWITCH' THEN 1 END) AS paragraphs,
        count(CASE WHEN e.event_type = 'REPLY_COMMAND_FINISH' THEN 1 END) AS replies
    FROM jobs AS j
    -- CROSS JOIN: SQLite then joins in the order as written, which is job by job.
    -- +e.job_id: without the plus it would build an index of all events by job for this one query.
    CROSS JOIN events AS e ON +e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
    GROUP BY j.first_sent_at, j.job_id, j.room_id
) AS c
LEFT JOIN streams AS s ON s.job_id = c.job_id;
