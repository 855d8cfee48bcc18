-- oldest code: 7
-- Whatever is looked up by an id or a key is looked up by an index, also in sessions whose plans were made beside empty
-- tables: there all plans cost the same, and stay until somebody has counted the rows that came since.

-- A claim found the rows it has claimed through the whole queue: a worker that was there before its backlog read all of it
-- in each claim. "offset 0" keeps the planner from turning the look round.
create or replace function pgworkflows.claim(
    worker_id uuid,
    queues text[],
    workflows text[],
    capacity integer,
    alone boolean,
    awake boolean,
    since timestamptz default null
) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set jit = off
as $function$
#variable_conflict use_column
declare
    began constant timestamptz := clock_timestamp();
    everywhere constant boolean := since is null;
    claimed uuid[];
    number bigint;
    suspects boolean;
    looked interval;
    mark timestamptz;
    answer json;
begin
    since := coalesce(since, '-infinity');
    if not exists (select from pgworkflows.workers as w where w.id = claim.worker_id) then
        return json_build_object('alive', false);
    end if;
    if awake then
        delete from pgworkflows.sleepers as s where s.worker_id = claim.worker_id;
    end if;
    perform pgworkflows.wake_due(since);
    number := nextval('pgworkflows.claims');
    perform from pgworkflows.queue as q
    where q.interruptions >= 3 and q.status = 'pending' and q.wake_at is null
        and q.queue = any (queues) and q.workflow_id = any (workflows)
    limit 1
    for no key update skip locked;
    suspects := found;
    if not suspects then
        -- One ordered look into the index per lane and workflow: "= any" would sort the whole backlog.
        with candidate as materialized (
            select found.run_id
            from unnest(queues) as lane (queue)
            cross join unnest(workflows) as known (workflow_id)
            cross join lateral (
                select q.run_id, q.rank
                from pgworkflows.queue as q
                where q.status = 'pending' and q.wake_at is null
                    and q.queue = lane.queue and q.workflow_id = known.workflow_id
                    and q.rank >= since and q.interruptions < 3
                order by q.rank
                limit capacity
                for no key update skip locked
            ) as found
            order by found.rank
            limit capacity
        )
        select array_agg(c.run_id) into claimed from candidate as c;
    elsif alone then
        -- A run that may have killed its workers is claimed alone, so that no innocent neighbour is blamed.
        with suspect as materialized (
            select q.run_id
            from pgworkflows.queue as q
            where q.interruptions >= 3 and q.status = 'pending' and q.wake_at is null
                and q.queue = any (queues) and q.workflow_id = any (workflows)
            limit 1
            for no key update skip locked
        )
        select array_agg(s.run_id) into claimed from suspect as s;
    end if;
    looked := clock_timestamp() - began;
    if claimed is not null then
        update pgworkflows.queue as q
        set status = 'running', claim_id = number, worker_id = claim.worker_id, wait_kind = null, wait_event = null
        where q.run_id = any (claimed);
        update pgworkflows.runs as r
        set status = 'running', started_at = coalesce(r.started_at, now()), updated_at = now()
        where r.id = any (claimed);
    end if;
    if everywhere and looked > interval '2 ms' + coalesce(cardinality(claimed), 0) * interval '0.02 ms' then
        mark := pgworkflows.low_water(queues, workflows);
    end if;
    -- The history is read by a second statement: its snapshot is later than the locks, so it sees every checkpoint.
    select json_build_object(
        'alive', true,
        'now', clock_timestamp(),
        'claim_id', number,
        'suspects', suspects,
        'looked_s', extract(epoch from looked),
        'mark', mark,
        -- What is ready and was not claimed is locked: by another worker's claim, or in a client's transaction.
        'held', alone and claimed is null and (
            exists (
                select from unnest(queues) as lane (queue)
                cross join unnest(workflows) as known (workflow_id)
                cross join lateral (
                    select from pgworkflows.queue as q
                    where q.status = 'pending' and q.wake_at is null
                        and q.queue = lane.queue and q.workflow_id = known.workflow_id
                        and q.rank >= since
                    limit 1
                ) as ready
            )
            or exists (
                select from pgworkflows.queue as q
                where q.wake_at > since and q.wake_at <= now() and q.queue = any (queues) and q.workflow_id = any (workflows)
            )
        ),
        -- Not min(): while the statistics say that there are few, it reads them all.
        'next_due', least(
            (select q.wake_at from pgworkflows.queue as q where q.wake_at > since order by q.wake_at limit 1),
            (select q.timeout_at from pgworkflows.queue as q where q.timeout_at > since order by q.timeout_at limit 1)
        ),
        'runs', case when claimed is null then '[]' else (
            select json_agg(json_build_object(
                'run_id', r.id,
                'workflow_id', r.workflow_id,
                'resource_id', r.resource_id,
                'input', r.input::text,
                'retry_count', r.retry_count,
                'max_retries', r.max_retries,
                'signal', q.signal,
                'interruptions', q.interruptions,
                'ready_at', q.ready_at,
                'schedule_tick', r.schedule_tick,
                'headers', r.headers,
                'parent_run_id', r.parent_run_id,
                -- The run that its last step has invoked, as it is now: its end is known by this.
                'child', (
                    select json_build_object(
                        'run_id', c.id,
                        'workflow_id', c.workflow_id,
                        'step_id', c.parent_step_id,
                        'status', c.status,
                        'output', c.output::text,
                        'error', c.error
                    )
                    from pgworkflows.runs as c
                    where c.parent_run_id = r.id and c.parent_step_id = r.current_step_id
                ),
                'steps', (
                    select json_agg(json_build_object(
                        'position', s.position,
                        'step_id', s.step_id,
                        'kind', s.kind,
                        'status', s.status,
                        'output', s.output::text,
                        'error', s.error,
                        'attempts', s.attempts,
                        'prior_attempts', s.prior_attempts,
                        'wake_at', s.wake_at,
                        'deadline_at', s.deadline_at
                    ) order by s.position)
                    from pgworkflows.steps as s
                    where s.run_id = r.id
                ),
                'events', (
                    select json_agg(json_build_object(
                        'id', e.id, 'name', e.name, 'data', e.data::text, 'received_at', e.received_at
                    ) order by e.id)
                    from pgworkflows.events as e
                    where e.run_id = r.id and e.consumed_at is null
                )
            ) order by q.rank)
            from unnest(claimed) as c (run_id)
            cross join lateral (
                select q.signal, q.interruptions, q.ready_at, q.rank
                from pgworkflows.queue as q
                where q.run_id = c.run_id
                offset 0
            ) as q
            join pgworkflows.runs as r on r.id = c.run_id
        ) end
    ) into answer;
    return answer;
end
$function$;

-- A retry looked for the step that had failed through all steps.
create or replace function pgworkflows.take_back_failures(run_ids uuid[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    failure record;
begin
    -- runs.error names the step whose failure left the handler. It is done again unless a step was completed after it:
    -- what the handler caught, and what it went on from, is history.
    for failure in
        select s.run_id, s.step_id, s.kind
        from pgworkflows.runs as r
        cross join lateral (
            select s.run_id, s.step_id, s.kind, s.status, s.position
            from pgworkflows.steps as s
            where s.run_id = r.id and s.step_id = r.error ->> 'step_id'
            offset 0
        ) as s
        where r.id = any (take_back_failures.run_ids)
            and s.status = 'failed'
            and not exists (
                select from pgworkflows.steps as later
                where later.run_id = s.run_id and later.status = 'completed' and later.position > s.position
            )
    loop
        if failure.kind in ('run', 'poll') then
            update pgworkflows.steps as s
            set status = 'retrying', prior_attempts = s.attempts, completed_at = null, wake_at = null, deadline_at = null
            where s.run_id = failure.run_id and s.step_id = failure.step_id;
        else
            delete from pgworkflows.steps as s where s.run_id = failure.run_id and s.step_id = failure.step_id;
        end if;
    end loop;
end
$function$;

-- What clients and schedules do read whole tables, until autovacuum had looked at them.
alter function pgworkflows.lock_run set enable_seqscan = off;
alter function pgworkflows.lock_run set jit = off;
alter function pgworkflows.lock_parent set enable_seqscan = off;
alter function pgworkflows.lock_parent set jit = off;
alter function pgworkflows.is_hidden set enable_seqscan = off;
alter function pgworkflows.is_hidden set jit = off;
alter function pgworkflows.make_ready set enable_seqscan = off;
alter function pgworkflows.make_ready set jit = off;
alter function pgworkflows.last_step set enable_seqscan = off;
alter function pgworkflows.last_step set jit = off;
alter function pgworkflows.end_waits set enable_seqscan = off;
alter function pgworkflows.end_waits set jit = off;
alter function pgworkflows.take_back_failures set enable_seqscan = off;
alter function pgworkflows.take_back_failures set jit = off;
alter function pgworkflows.cancel_family set enable_seqscan = off;
alter function pgworkflows.cancel_family set jit = off;
alter function pgworkflows.try_start_workflow set enable_seqscan = off;
alter function pgworkflows.try_start_workflow set jit = off;
alter function pgworkflows.try_trigger_event set enable_seqscan = off;
alter function pgworkflows.try_trigger_event set jit = off;
alter function pgworkflows.try_pause_workflow set enable_seqscan = off;
alter function pgworkflows.try_pause_workflow set jit = off;
alter function pgworkflows.try_resume_workflow set enable_seqscan = off;
alter function pgworkflows.try_resume_workflow set jit = off;
alter function pgworkflows.try_cancel_workflow set enable_seqscan = off;
alter function pgworkflows.try_cancel_workflow set jit = off;
alter function pgworkflows.try_retry_workflow set enable_seqscan = off;
alter function pgworkflows.try_retry_workflow set jit = off;
alter function pgworkflows.try_fast_forward_workflow set enable_seqscan = off;
alter function pgworkflows.try_fast_forward_workflow set jit = off;
alter function pgworkflows.fire_schedule set enable_seqscan = off;
alter function pgworkflows.fire_schedule set jit = off;
