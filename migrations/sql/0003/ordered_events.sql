-- What the other views are made of: the events without stream key and body. Those of a job are in order by sent_at,
-- place_in_second, received_at, digest: signed times are in whole seconds, and requests may overtake each other, so of
-- events that were sent at the same time CONNECTING comes first and END last, the others as they were received.
CREATE VIEW ordered_events AS
SELECT
    id, endpoint, event_type, room_id, job_id, sent_at, received_at, digest, scene_script_name,
    shoot_script_sequence_no, shoot_script_title, output_url, state, reply_id, live_id, product_id, product_title,
    CASE state WHEN 'CONNECTING' THEN 0 WHEN 'END' THEN 2 ELSE 1 END AS place_in_second
FROM events;
