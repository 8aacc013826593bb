-- A row for each job: its events, its state, and how long and how often its stream was connected.
CREATE VIEW live_jobs AS
SELECT
    j.room_id, j.job_id, j.first_sent_at AS first_event_at, counted.last_sent_at AS last_event_at,
    s.state, s.since AS state_since, coalesce(connected.seconds, 0.0) AS connected_seconds,
    greatest(connected.sessions - connected.moves - 1, 0) AS reconnects,
    counted.events, counted.paragraphs, counted.replies, connected.since AS connected_since,
    -- The seconds are compared, as now() minus any number of seconds may be out of a timestamp's range.
    s.state IS DISTINCT FROM 'END' AND (
        extract(epoch FROM now() - counted.last_sent_at) > (SELECT a.seconds FROM stale_after AS a)
    ) AS stale
FROM jobs AS j
CROSS JOIN LATERAL (
    SELECT
        max(e.sent_at) AS last_sent_at, count(*) AS events,
        count(CASE WHEN e.event_type = 'SHOOT_SCRIPT_SWITCH' THEN 1 END) AS paragraphs,
        count(CASE WHEN e.event_type = 'REPLY_COMMAND_FINISH' THEN 1 END) AS replies
    FROM events AS e
    WHERE e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
) AS counted
CROSS JOIN LATERAL (
    SELECT
        count(*) AS sessions,
        -- Another URL begins a session too, but is no new connection.
        count(CASE WHEN one.ended_by = 'CONNECTED' THEN 1 END) AS moves,
        -- A session that lasts counts up to the job's latest event: a view cannot know what is meant by now.
        CAST(
            extract(epoch FROM sum(coalesce(one.disconnected_at, counted.last_sent_at) - one.connected_at))
            AS double precision
        ) AS seconds,
        max(CASE WHEN one.disconnected_at IS NULL THEN one.connected_at END) AS since
    FROM stream_sessions AS one
    WHERE one.job_id = j.job_id
) AS connected
LEFT JOIN streams AS s ON s.job_id = j.job_id
WHERE counted.events > 0;
