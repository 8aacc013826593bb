-- The events of the type SHOOT_SCRIPT_SWITCH.
CREATE VIEW shoot_script_switch AS
SELECT
    e.id, e.endpoint, e.room_id, e.job_id, e.sent_at, e.received_at,
    e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title,
    e.live_id, e.product_id, e.product_title
FROM events AS e
-- There is no index of all events by job: jobs says in which range of sent_at a job's events are.
JOIN jobs AS j ON e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
    -- Implied by BETWEEN. PostgreSQL guesses that each comparison of two columns leaves a third of the rows: two more
    -- make it expect few, and read just the range from the primary key.
    AND (e.sent_at, e.digest) >= (j.first_sent_at, CAST('' AS bytea))
    AND (e.sent_at, e.digest) < (j.sent_until + interval '1 second', CAST('' AS bytea))
WHERE e.event_type = 'SHOOT_SCRIPT_SWITCH';
