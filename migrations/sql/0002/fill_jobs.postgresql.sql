-- Fills the table jobs, while it is empty, from the events that are already stored; see note_jobs.
INSERT INTO jobs (job_id, room_id, first_sent_at, sent_until)
SELECT job_id, max(room_id), min(sent_at), max(sent_at) + interval '10 minutes'
FROM events
WHERE job_id IS NOT NULL
GROUP BY job_id;
