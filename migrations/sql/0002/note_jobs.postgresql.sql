-- Keeps the table jobs: in which range of sent_at the events of each job are.
-- An event outside the known range widens it: backwards to its own time, forwards to ten minutes after it.
CREATE FUNCTION note_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs AS known (job_id, room_id, first_sent_at, sent_until)
    SELECT e.job_id, max(e.room_id), min(e.sent_at), max(e.sent_at) + interval '10 minutes'
    FROM stored AS e
    -- Events inside the known range, which nearly all are, only look their job up: no row is locked for them, so
    -- receivers that share the database do not wait for each other.
    WHERE e.job_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM jobs AS j
        WHERE j.job_id = e.job_id
            AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
            AND (e.room_id IS NULL OR j.room_id IS NOT NULL)
    )
    GROUP BY e.job_id
    -- In one order for all receivers, so that they cannot deadlock.
    ORDER BY e.job_id
    ON CONFLICT (job_id) DO UPDATE SET
        room_id = coalesce(known.room_id, excluded.room_id),
        first_sent_at = least(known.first_sent_at, excluded.first_sent_at),
        sent_until = greatest(known.sent_until, excluded.sent_until);
    RETURN NULL;
END $$;

-- Once for all rows of an INSERT, which may be hundreds.
CREATE TRIGGER note_jobs AFTER INSERT ON events
REFERENCING NEW TABLE AS stored FOR EACH STATEMENT EXECUTE FUNCTION note_jobs();
