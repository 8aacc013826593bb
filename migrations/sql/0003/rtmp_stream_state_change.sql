-- The events of the type RTMP_STREAM_STATE_CHANGE, without the stream key, which is a credential.
-- Those of a job are in order by sent_at, place_in_second, received_at.
CREATE VIEW rtmp_stream_state_change AS
SELECT
    e.id, e.endpoint, e.room_id, e.job_id, e.sent_at, e.received_at, e.output_url, e.state, e.place_in_second
FROM ordered_events AS e
-- Every event of this type has a state; saying so lets the partial index events_states be used.
WHERE e.event_type = 'RTMP_STREAM_STATE_CHANGE' AND e.state IS NOT NULL;
