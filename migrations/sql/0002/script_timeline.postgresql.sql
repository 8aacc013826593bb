-- A row for each paragraph of a script that was played: until the job's next paragraph, or the END of its stream.
CREATE VIEW script_timeline AS
WITH switches_and_ends AS (
    SELECT
        j.room_id, j.job_id, e.event_type, e.sent_at, e.received_at, e.digest,
        e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title
    -- OFFSET 0 keeps the planner from merging the two: it cannot know how few events are in a job's range, and would
    -- read the whole table for one day's jobs.
    FROM jobs AS j
    CROSS JOIN LATERAL (
        SELECT * FROM events AS e
        WHERE e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
        OFFSET 0
    ) AS e
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
    CAST(extract(epoch FROM next_at - sent_at) AS double precision) AS duration_seconds
FROM with_next
WHERE event_type = 'SHOOT_SCRIPT_SWITCH';
