-- A row for each time that a job was not connected, from its first state to its END, with what was on when it began.
--
-- Each row comes from the one event that began it, and looks up what it needs of those before and after: so a condition
-- on the job, on the room or on the time picks the events before anything is looked up.
CREATE VIEW stream_outages AS
SELECT
    j.room_id, e.job_id, coalesce(e.output_url, url.output_url) AS output_url,
    e.sent_at AS down_from, ending.sent_at AS down_to,
    -- In microseconds: julianday() is exact to some 30 of them only.
    (
        (CAST(strftime('%s', ending.sent_at) AS INTEGER) * 1000000 + CAST(substr(ending.sent_at, 21, 6) AS INTEGER))
        - (CAST(strftime('%s', e.sent_at) AS INTEGER) * 1000000 + CAST(substr(e.sent_at, 21, 6) AS INTEGER))
    ) / 1000000.0 AS duration_seconds,
    e.state AS began_with, playing.scene_script_name, playing.shoot_script_sequence_no, playing.shoot_script_title
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
LEFT JOIN events AS ending ON ending.id = (
    SELECT n.id FROM ordered_events AS n
    WHERE n.job_id = e.job_id AND n.state IN ('CONNECTED', 'END')
        AND n.sent_at >= e.sent_at
        AND (n.sent_at, n.place_in_second, n.received_at, n.digest)
            > (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY n.sent_at, n.place_in_second, n.received_at, n.digest LIMIT 1
)
-- What was on: the latest paragraph, unless END has come after it. Paragraphs have no index by job: it is not looked back
-- further than to the job's first event.
-- +p.job_id: without the plus SQLite would build an index of all events by job for this one query.
LEFT JOIN events AS playing ON playing.id = (
    SELECT p.id FROM ordered_events AS p
    WHERE +p.job_id = e.job_id AND (p.event_type = 'SHOOT_SCRIPT_SWITCH' OR p.state = 'END')
        AND p.sent_at <= e.sent_at AND p.sent_at >= j.first_sent_at
        AND (p.sent_at, p.place_in_second, p.received_at, p.digest)
            < (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY p.sent_at DESC, p.place_in_second DESC, p.received_at DESC, p.digest DESC LIMIT 1
)
-- It begins with any state but these two, where that is the job's first or comes after one of them.
WHERE e.state IS NOT NULL AND e.state NOT IN ('CONNECTED', 'END')
    AND (previous.state IS NULL OR previous.state IN ('CONNECTED', 'END'));
