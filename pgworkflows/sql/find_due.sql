-- When the next row of the queue becomes due: a wait's end, a poll, a retry, a delayed start or a run's timeout; and how
-- many microseconds the clock has gone on by being looked at. Locks nothing.
select json_build_object('due', least(min(q.wake_at), min(q.timeout_at)), 'looks', min(l.last_value))::text
from pgworkflows_test_clock.looks as l
left join pgworkflows.queue as q on true
