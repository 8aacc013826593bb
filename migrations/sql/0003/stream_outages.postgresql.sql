-- A row for each time that a job was not connected, from its first state to its END, with what was on when it began.
--
-- Each row comes from the one event that began it, and looks up what it needs of those before and after: so a condition
-- on the job, on the room or on the time picks the events before anything is looked up.
CREATE VIEW stream_outages AS
SELECT
    j.room_id, e.job_id, coalesce(e.output_url, url.output_url) AS output_url,
    e.sent_at AS down_from, ending.sent_at AS down_to,
    CAST(extract(epoch FROM ending.sent_at - e.sent_at) AS double precision) AS duration_seconds,
    e.state AS began_with, playing.scene_script_name, playing.shoot_script_sequence_no, playing.shoot_script_title
FROM ordered_events AS e
JOIN jobs AS j ON j.job_id = e.job_id
LEFT JOIN LATERAL (
    SELECT p.state FROM ordered_events AS p
    WHERE p.job_id = e.job_id AND p.state IS NOT NULL
        AND p.sent_at <= e.sent_at
        AND (p.sent_at, p.place_in_second, p.received_at, p.digest)
            < (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY p.sent_at DESC, p.place_in_second DESC, p.received_at DESC, p.digest DESC LIMIT 1
) AS previous ON TRUE
-- A state change that leaves the URL out has that of the one before.
LEFT JOIN LATERAL (
    SELECT p.output_url FROM ordered_events AS p
    WHERE p.job_id = e.job_id AND p.state IS NOT NULL AND p.output_url IS NOT NULL
        AND p.sent_at <= e.sent_at
        AND (p.sent_at, p.place_in_second, p.received_at, p.digest)
            < (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY p.sent_at DESC, p.place_in_second DESC, p.received_at DESC, p.digest DESC LIMIT 1
) AS url ON TRUE
LEFT JOIN LATERAL (
    SELECT n.sent_at FROM ordered_events AS n
    WHERE n.job_id = e.job_id AND n.state IN ('CONNECTED', 'END')
        AND n.sent_at >= e.sent_at
        AND (n.sent_at, n.place_in_second, n.received_at, n.digest)
            > (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY n.sent_at, n.place_in_second, n.received_at, n.digest LIMIT 1
) AS ending ON TRUE
-- What was on: the latest paragraph, unless END has come after it. Paragraphs have no index by job: it is not looked back
-- further than to the job's first event.
LEFT JOIN LATERAL (
    SELECT
        p.scene_script_name, p.shoot_script_sequence_no, p.shoot_script_title
    FROM ordered_events AS p
    WHERE p.job_id = e.job_id AND (p.event_type = 'SHOOT_SCRIPT_SWITCH' OR p.state = 'END')
        AND p.sent_at <= e.sent_at AND p.sent_at >= j.first_sent_at
        AND (p.sent_at, p.place_in_second, p.received_at, p.digest)
            < (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY p.sent_at DESC, p.place_in_second DESC, p.received_at DESC, p.digest DESC LIMIT 1
) AS playing ON TRUE
-- It begins with any state but these two, where that is the job's first or comes after one of them.
WHERE e.state IS NOT NULL AND e.state NOT IN ('CONNECTED', 'END')
    AND (previous.state IS NULL OR previous.state IN ('CONNECTED', 'END'));
