-- Keeps the table jobs: in which range of sent_at the events of each job are.
-- An event outside the known range widens it: backwards to its own time, forwards to ten minutes after it, so that
-- nearly all events only look their job up and change nothing.
CREATE TRIGGER note_jobs AFTER INSERT ON events
WHEN NEW.job_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM jobs AS j
    WHERE j.job_id = NEW.job_id
        AND NEW.sent_at BETWEEN j.first_sent_at AND j.sent_until
        AND (NEW.room_id IS NULL OR j.room_id IS NOT NULL)
)
BEGIN
    INSERT INTO jobs (job_id, room_id, first_sent_at, sent_until)
    VALUES (
        NEW.job_id, NEW.room_id, NEW.sent_at,
        -- strftime gives milliseconds, where times have microseconds, and NULL after the last moment of a calendar.
        coalesce(strftime('%Y-%m-%d %H:%M:%f', NEW.sent_at, '+10 minutes') || '000', '9999-12-31 23:59:59.999999')
    )
    ON CONFLICT (job_id) DO UPDATE SET
        room_id = coalesce(room_id, excluded.room_id),
        first_sent_at = min(first_sent_at, excluded.first_sent_at),
        sent_until = max(sent_until, excluded.sent_until);
END;
