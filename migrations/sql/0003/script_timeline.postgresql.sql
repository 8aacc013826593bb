-- A row for each paragraph of a script that was played: until the job's next paragraph, or the END of its stream.
--
-- Each row comes from the one event that began it, and looks up what it needs of those before and after: so a condition
-- on the job, on the room or on the time picks the events before anything is looked up.
CREATE VIEW script_timeline AS
SELECT
    j.room_id, e.job_id, e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title,
    e.sent_at AS started_at, ending.sent_at AS ended_at,
    CAST(extract(epoch FROM ending.sent_at - e.sent_at) AS double precision) AS duration_seconds,
    e.live_id, e.product_id, e.product_title
FROM ordered_events AS e
-- There is no index of all events by job: jobs says in which range of sent_at a job's events are.
JOIN jobs AS j ON e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
    -- Implied by BETWEEN. PostgreSQL guesses that each comparison of two columns leaves a third of the rows: two more
    -- make it expect few, and read just the range from the primary key.
    AND (e.sent_at, e.digest) >= (j.first_sent_at, CAST('' AS bytea))
    AND (e.sent_at, e.digest) < (j.sent_until + interval '1 second', CAST('' AS bytea))
LEFT JOIN LATERAL (
    SELECT n.sent_at FROM ordered_events AS n
    WHERE n.job_id = e.job_id AND (n.event_type = 'SHOOT_SCRIPT_SWITCH' OR n.state = 'END')
        AND n.sent_at >= e.sent_at AND n.sent_at <= j.sent_until
        AND (n.sent_at, n.place_in_second, n.received_at, n.digest)
            > (e.sent_at, e.place_in_second, e.received_at, e.digest)
    ORDER BY n.sent_at, n.place_in_second, n.received_at, n.digest LIMIT 1
) AS ending ON TRUE
WHERE e.event_type = 'SHOOT_SCRIPT_SWITCH';
