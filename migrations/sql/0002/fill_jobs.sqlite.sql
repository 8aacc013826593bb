-- Fills the table jobs, while it is empty, from the events that are already stored; see note_jobs.
INSERT INTO jobs (job_id, room_id, first_sent_at, sent_until)
SELECT
    job_id, max(room_id), min(sent_at),
    coalesce(strftime('%Y-%m-%d %H:%M:%f', max(sent_at), '+10 minutes') || '000', '9999-12-31 23:59:59.999999')
FROM events
WHERE job_id IS NOT NULL
GROUP BY job_id;
