-- A run with what one wants to see beside it, as JSON: its steps after a position (those of one position together), its
-- children, its parent, its place in the queue, the events that nobody has taken, the steps that its workflow declares, and the
-- time. No row when there is no such run. Outputs and events' data of more than `payload_limit` bytes are left out, if it is not
-- null; their size is told, as it is stored: what is stored in more, beside 4 bytes of its own, is not even read. Locks nothing.
select json_build_object(
    'now', clock_timestamp(),
    'run', row_to_json(r)::text,
    'steps', (
        select json_agg(s order by s.position, s.attempts > s.prior_attempts desc, s.started_at)
        from (
            select page.position, page.step_id, page.kind, page.status, case when fits.yes then page.output end as output,
                page.error, page.attempts, page.started_at, page.completed_at, page.wake_at, page.event_name,
                page.child_run_id, page.prior_attempts,
                case when not fits.yes then pg_column_size(page.output) end as omitted_bytes
            from (
                select *
                from pgworkflows.steps
                where run_id = r.id and (%(after)s::integer is null or position > %(after)s::integer)
                order by position
                fetch first (%(limit)s::bigint) rows with ties
            ) as page
            cross join lateral (
                select case
                    when %(payload_limit)s::bigint is null or page.output is null then true
                    when pg_column_size(page.output) - 4 > %(payload_limit)s::bigint then false
                    else octet_length(page.output::text) <= %(payload_limit)s::bigint
                end as yes
                offset 0 -- once for each
            ) as fits
        ) as s
    ),
    'last_position', (select max(s.position) from pgworkflows.steps as s where s.run_id = r.id),
    'current', (
        select row_to_json(s)
        from (
            select position, step_id, kind, status, output, error, attempts, started_at, completed_at, wake_at,
                event_name, child_run_id, prior_attempts
            from pgworkflows.steps
            where run_id = r.id and status in ('waiting', 'retrying')
            order by position desc
            limit 1
        ) as s
    ),
    'children', (
        select json_agg(c order by c.id)
        from (
            select id, workflow_id, status, parent_step_id, created_at, completed_at
            from pgworkflows.runs
            where parent_run_id = r.id
            order by id
            limit 1000
        ) as c
    ),
    'parent', (select row_to_json(p)::text from pgworkflows.runs as p where p.id = r.parent_run_id),
    'place', (select row_to_json(q) from pgworkflows.queue as q where q.run_id = r.id),
    'worker', (
        select json_build_object(
            'hostname', w.hostname, 'pid', w.pid, 'heartbeat_at', w.heartbeat_at,
            'live', w.heartbeat_at > clock_timestamp() - w.lease
        )
        from pgworkflows.queue as q
        join pgworkflows.workers as w on w.id = q.worker_id
        where q.run_id = r.id
    ),
    'live_workers', (
        select count(*) from pgworkflows.workers as w
        where r.workflow_id = any (w.workflows) and r.queue = any (w.queues)
            and w.heartbeat_at > clock_timestamp() - w.lease
    ),
    'events', (
        select json_agg(e order by e.id)
        from (
            select box.id, box.name, case when fits.yes then box.data end as data, box.received_at,
                case when not fits.yes then pg_column_size(box.data) end as omitted_bytes
            from (
                select *
                from pgworkflows.events
                where run_id = r.id and consumed_at is null
                order by id
                limit 1000
            ) as box
            cross join lateral (
                select case
                    when %(payload_limit)s::bigint is null then true
                    when pg_column_size(box.data) - 4 > %(payload_limit)s::bigint then false
                    else octet_length(box.data::text) <= %(payload_limit)s::bigint
                end as yes
                offset 0 -- once for each
            ) as fits
        ) as e
    ),
    'declared', (select w.steps from pgworkflows.workflows as w where w.id = r.workflow_id),
    'reached', (
        select json_agg(declared.step_id)
        from pgworkflows.workflows as w
        cross join unnest(w.step_ids) as declared (step_id)
        where w.id = r.workflow_id
            and exists (select from pgworkflows.steps as s where s.run_id = r.id and s.step_id = declared.step_id)
    )
)::text
from pgworkflows.runs as r
where r.id = %(run_id)s::uuid
