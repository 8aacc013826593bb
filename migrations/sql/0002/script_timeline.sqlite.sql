-- A row for each paragraph of a script that was played: until the job's next paragraph, or the END of its stream.
CREATE VIEW script_timeline AS
WITH switches_and_ends AS (
    SELECT
        j.room_id, j.job_id, e.event_type, e.sent_at, e.received_at, e.digest,
        e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title
    -- CROSS JOIN: SQLite then joins in the order as written, which is job by job.
    -- +e.job_id: without the plus it would build an index of all events by job for this one query.
    FROM jobs AS j
    CROSS JOIN events AS e ON +e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
    WHERE e.event_type = 'SHOOT_SCRIPT_SWITCH' OR e.state = 'END'
),
with_next AS (
    SELECT
        *,
        -- Partitioned by the job's columns, so that a condition on these picks the jobs before events are read.
        lead(sent_at) OVER (PARTITION BY room_id, job_id ORDER BY sent_at, received_at, digest) AS next_at
    FROM switches_and_ends
)
SELECT
    room_id, job_id, scene_script_name, shoot_script_sequence_no, shoot_script_title,
    sent_at AS started_at, next_at AS ended_at,
    -- In microseconds: julianday() is exact to some 30 of them only.
    (
        (CAST(strftime('%s', next_at) AS INTEGER) * 1000000 + CAST(substr(next_at, 21, 6) AS INTEGER))
        - (CAST(strftime('%s', sent_at) AS INTEGER) * 1000000 + CAST(substr(sent_at, 21, 6) AS INTEGER))
    ) / 1000000.0 AS duration_seconds
FROM with_next
WHERE event_type = 'SHOOT_SCRIPT_SWITCH';
