-- A row for each time that a job's stream was connected, from CONNECTED to the state or the new URL that ended it.
--
-- Each row comes from the one event that began it, and looks up what it needs of those before and after: so a condition
-- on the job, on the room or on the time picks the events before anything is looked up.
CREATE VIEW stream_sessions AS
SELECT
    j.room_id, e.job_id, coalesce(e.output_url, url.output_url) AS output_url,
    e.sent_at AS connected_at, ending.sent_at AS disconnected_at,
    -- In microseconds: julianday() is exact to some 30 of them only.
    (
        (CAST(strftime('%s', ending.sent_at) AS INTEGER) * 1000000 + CAST(substr(ending.sent_at, 21, 6) AS INTEGER))
        - (CAST(strftime('%s', e.sent_at) AS INTEGER) * 1000000 + CAST(substr(e.sent_at, 21, 6) AS INTEGER))
    ) / 1000000.0 AS duration_seconds,
    ending.state AS ended_by
FROM ordered_events AS e
JOIN jobs AS j ON j.job_id = e.job_id
LEFT JOIN events AS previous ON previous.id = (
    SELECT p.id FROM ordered_events AS p
    WHERE p.job_id = e.job_id AND p.state IS NOT NULL
        AND p.sent_at <= e.sent_at
        AND (p.sent_at, p.place_in_second, p.received_at, p.digest)
            < (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY p.sent_at DESC, p.place_in_second DESC, p.received_at DESC, p.digest DESC LIMIT 1
)
-- A state change that leaves the URL out has that of the one before.
LEFT JOIN events AS url ON url.id = (
    SELECT p.id FROM ordered_events AS p
    WHERE p.job_id = e.job_id AND p.state IS NOT NULL AND p.output_url IS NOT NULL
        AND p.sent_at <= e.sent_at
        AND (p.sent_at, p.place_in_second, p.received_at, p.digest)
            < (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY p.sent_at DESC, p.place_in_second DESC, p.received_at DESC, p.digest DESC LIMIT 1
)
-- What ends a session is another state, or another URL, which may be the beginning of another session.
LEFT JOIN events AS ending ON ending.id = (
    SELECT n.id FROM ordered_events AS n
    WHERE n.job_id = e.job_id AND n.state IS NOT NULL
        AND (
            n.state <> 'CONNECTED' OR n.output_url <> coalesce(e.output_url, url.output_url, (
                -- None was known: the first one that the job sends changes nothing.
                SELECT f.output_url FROM ordered_events AS f
                WHERE f.job_id = e.job_id AND f.state IS NOT NULL AND f.output_url IS NOT NULL
                ORDER BY f.sent_at, f.place_in_second, f.received_at, f.digest LIMIT 1
            ))
        )
        AND n.sent_at >= e.sent_at
        AND (n.sent_at, n.place_in_second, n.received_at, n.digest)
            > (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY n.sent_at, n.place_in_second, n.received_at, n.digest LIMIT 1
)
-- A session begins with CONNECTED after another state, or with another URL. CONNECTED again changes nothing.
WHERE e.state = 'CONNECTED' AND (previous.state IS NOT 'CONNECTED' OR e.output_url <> url.output_url);
