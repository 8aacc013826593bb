-- Sets the streams whose state was set by another event of the same second than the one that is last in the order.
UPDATE streams SET (state, received_at) = (
    SELECT e.state, e.received_at FROM ordered_events AS e
    WHERE e.job_id = streams.job_id AND e.state IS NOT NULL AND e.sent_at = streams.since
    ORDER BY e.place_in_second DESC, e.received_at DESC, e.digest DESC LIMIT 1
)
WHERE EXISTS (
    SELECT 1 FROM ordered_events AS e
    WHERE e.job_id = streams.job_id AND e.state IS NOT NULL AND e.sent_at = streams.since
        AND e.place_in_second > CASE streams.state WHEN 'CONNECTING' THEN 0 WHEN 'END' THEN 2 ELSE 1 END
);
