-- The workflows as code last declared them, as JSON, with their schedules and the number of live workers that have them.
-- Locks nothing.
select json_build_object(
    'id', w.id,
    'queue', w.queue,
    'priority', w.priority,
    'retries', w.retries,
    'timeout_s', extract(epoch from w.timeout),
    'retention_s', extract(epoch from w.retention),
    'singleton', w.singleton,
    'steps', w.steps,
    'input_schema', w.input_schema,
    'schedule', (select row_to_json(s)::text from pgworkflows.schedules as s where s.workflow_id = w.id),
    'declared_at', w.declared_at,
    'live_workers', (
        select count(*) from pgworkflows.workers as k
        where w.id = any (k.workflows) and k.heartbeat_at > clock_timestamp() - k.lease
    )
)::text
from pgworkflows.workflows as w
order by w.id
