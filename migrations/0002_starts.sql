-- oldest code: 2
-- squawk-ignore-file adding-field-with-default, require-concurrent-index-creation, ban-drop-function
-- Nothing was published before it: the table that it rewrites and the functions that it drops are nobody's yet.
-- Singletons, many starts at once, what plugins send along with a start, and what a live worker can do.

alter table pgworkflows.runs
add column singleton_key text generated always as (
    case when singleton and status not in ('completed', 'failed', 'cancelled') then workflow_id end
) stored,
add column schedule_tick timestamptz,
add column headers json;
create unique index runs_singleton on pgworkflows.runs (singleton_key) where singleton_key is not null;
create unique index runs_schedule_tick on pgworkflows.runs (workflow_id, schedule_tick)
where schedule_tick is not null;
comment on column pgworkflows.runs.singleton_key is
    'The workflow of an unfinished singleton run: unique, so that there is one at most.';
comment on column pgworkflows.runs.schedule_tick is 'The tick of the schedule that started the run: one run per tick.';
comment on column pgworkflows.runs.headers is 'What plugins sent along with the start, such as a trace''s context.';

alter table pgworkflows.workflows
add column singleton boolean not null default false,
add column retention interval;
comment on column pgworkflows.workflows.singleton is 'Whether it may have only one unfinished run.';
comment on column pgworkflows.workflows.retention is 'How long finished runs are kept; null: for ever.';

alter table pgworkflows.workers
add column workflows text[] not null default '{}',
add column schedules text[] not null default '{}';
comment on column pgworkflows.workers.workflows is 'The workflows it has.';
comment on column pgworkflows.workers.schedules is 'The workflows whose schedules it declares.';

-- The same id as before, in one expression that is bound to its functions here and unfolds where it is used: a start
-- spends a tenth of its time on a function with settings of its own. 60 bits of time, milliseconds and their fraction,
-- with the version between them, then the variant and chance.
create or replace function pgworkflows.uuid7() returns uuid
language sql volatile parallel safe
return (
    overlay(
        lpad(to_hex(floor(extract(epoch from clock_timestamp()) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0
    )
    || right(gen_random_uuid()::text, 17)
)::uuid;

drop function pgworkflows.try_start_workflow(
    text, json, text, text, integer, integer, interval, text, interval, timestamptz, json, boolean
);
drop function pgworkflows.start_workflow(
    text, text, text, text, anycompatible, integer, interval, text, interval, timestamptz
);
drop function pgworkflows.start_workflow(
    text, json, text, text, anycompatible, integer, interval, text, interval, timestamptz
);
drop function pgworkflows.start_workflow(
    text, jsonb, text, text, anycompatible, integer, interval, text, interval, timestamptz
);

-- What a run gets: what its start says, else what is declared of the workflow, else what the caller's code says of it.
create type pgworkflows.terms as (
    queue text,
    priority integer,
    retries integer,
    timeout interval,
    singleton boolean
);

create function pgworkflows.terms_of(
    workflow text,
    queue text,
    priority integer,
    retries integer,
    timeout interval,
    singleton boolean,
    fallback json
) returns pgworkflows.terms
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    said pgworkflows.terms;
begin
    select w.queue, w.priority, w.retries, w.timeout, w.singleton into said
    from pgworkflows.workflows as w
    where w.id = workflow;
    if not found and fallback is not null then
        said.queue := fallback ->> 'queue';
        said.priority := (fallback ->> 'priority')::integer;
        said.retries := (fallback ->> 'retries')::integer;
        said.timeout := (fallback ->> 'timeout')::interval;
        said.singleton := (fallback ->> 'singleton')::boolean;
    end if;
    return (
        coalesce(terms_of.queue, said.queue, 'default'),
        coalesce(terms_of.priority, said.priority, 0),
        coalesce(terms_of.retries, said.retries, 0),
        coalesce(terms_of.timeout, said.timeout),
        coalesce(terms_of.singleton, said.singleton, false)
    )::pgworkflows.terms;
end
$function$;
comment on function pgworkflows.terms_of(text, text, integer, integer, interval, boolean, json) is
    'Complete the options of a start.';

create function pgworkflows.timeout_from(starts_at timestamptz, timeout interval) returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $function$ select case when timeout is not null then least(starts_at + timeout, '9999-12-30 00:00:00+00') end $function$;
comment on function pgworkflows.timeout_from(timestamptz, interval) is
    'When a run that may start at a time has used up its timeout; null without one.';

create function pgworkflows.try_start_workflow(
    workflow text,
    input json,
    resource_id text,
    idempotency_key text,
    priority integer,
    retries integer,
    timeout interval,
    queue text,
    singleton boolean,
    delay interval,
    run_at timestamptz,
    schedule_tick timestamptz,
    headers json,
    fallback json,
    borrowed boolean
) returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    terms constant pgworkflows.terms :=
        pgworkflows.terms_of(workflow, queue, priority, retries, timeout, singleton, fallback);
    run pgworkflows.runs;
    moment constant timestamptz := clock_timestamp();
    starts_at constant timestamptz := coalesce(run_at, moment + delay);
begin
    for attempt in 1 .. 100 loop
        insert into pgworkflows.runs as r (
            workflow_id, input, resource_id, idempotency_key, queue, priority, max_retries, singleton,
            scheduled_at, timeout, timeout_at, schedule_tick, headers, created_at, updated_at
        )
        values (
            workflow,
            coalesce(try_start_workflow.input, 'null'),
            try_start_workflow.resource_id,
            try_start_workflow.idempotency_key,
            terms.queue,
            terms.priority,
            terms.retries,
            terms.singleton,
            starts_at,
            terms.timeout,
            case when terms.timeout is not null then pgworkflows.timeout_from(greatest(starts_at, moment), terms.timeout) end,
            try_start_workflow.schedule_tick,
            try_start_workflow.headers,
            moment,
            moment
        )
        on conflict do nothing
        returning * into run;
        if found then
            insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at, wake_at, timeout_at)
            values (
                run.id,
                run.workflow_id,
                run.queue,
                coalesce(starts_at, moment) - run.priority * interval '1 second',
                coalesce(starts_at, moment),
                case when starts_at > moment then starts_at end,
                run.timeout_at
            );
            perform pgworkflows.wake_workers(run.queue, borrowed);
            return ('started', run)::pgworkflows.outcome;
        end if;
        -- A second statement has a later snapshot: it sees the run that was in the way, unless that is gone again.
        select * into run from pgworkflows.runs as r where r.idempotency_key = try_start_workflow.idempotency_key;
        if found and run.workflow_id = workflow
            and run.resource_id is not distinct from try_start_workflow.resource_id
        then
            return ('existing', run)::pgworkflows.outcome;
        elsif found then
            return ('conflict', run)::pgworkflows.outcome;
        end if;
        select * into run from pgworkflows.runs as r
        where r.workflow_id = workflow and r.schedule_tick = try_start_workflow.schedule_tick;
        if found then
            return ('existing', run)::pgworkflows.outcome;
        end if;
        if terms.singleton then
            select * into run from pgworkflows.runs as r where r.singleton_key = workflow;
            if found then
                return ('in_progress', run)::pgworkflows.outcome;
            end if;
        end if;
    end loop;
    raise exception 'start_workflow lost 100 races for workflow %, idempotency key %', workflow, idempotency_key
        using errcode = 'serialization_failure';
end
$function$;

create function pgworkflows.try_start_workflows(
    workflow text,
    items json,
    resource_id text,
    priority integer,
    retries integer,
    timeout interval,
    queue text,
    singleton boolean,
    delay interval,
    run_at timestamptz,
    headers json,
    fallback json,
    borrowed boolean
) returns setof pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    terms constant pgworkflows.terms :=
        pgworkflows.terms_of(workflow, queue, priority, retries, timeout, singleton, fallback);
    moment constant timestamptz := clock_timestamp();
    starts_at constant timestamptz := coalesce(run_at, moment + delay);
    -- In order, as the items are: the order of ids is the order of starts.
    ids constant uuid[] := array(
        select pgworkflows.uuid7() as id from generate_series(1, json_array_length(items)) order by id
    );
    keys constant text[] := array(
        select i.key
        from rows from (json_to_recordset(items) as (key text)) with ordinality as i (key, n)
        order by i.n
    );
    timeout_at constant timestamptz := pgworkflows.timeout_from(greatest(starts_at, moment), terms.timeout);
    refused pgworkflows.outcome;
begin
    begin
        -- In the order of the keys: two callers with the same keys would otherwise wait for each other.
        insert into pgworkflows.runs as r (
            id, workflow_id, input, resource_id, idempotency_key, queue, priority, max_retries, singleton,
            scheduled_at, timeout, timeout_at, headers, created_at, updated_at
        )
        select
            ids[i.n],
            workflow,
            coalesce(i.input, 'null'),
            try_start_workflows.resource_id,
            i.key,
            terms.queue,
            terms.priority,
            terms.retries,
            terms.singleton,
            starts_at,
            terms.timeout,
            timeout_at,
            try_start_workflows.headers,
            moment,
            moment
        from rows from (json_to_recordset(items) as (input json, key text)) with ordinality as i (input, key, n)
        order by i.key, i.n
        on conflict do nothing;
        insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at, wake_at, timeout_at)
        select
            r.id,
            r.workflow_id,
            r.queue,
            coalesce(starts_at, moment) - r.priority * interval '1 second',
            coalesce(starts_at, moment),
            case when starts_at > moment then starts_at end,
            r.timeout_at
        from unnest(ids) as started (id)
        join pgworkflows.runs as r on r.id = started.id;
        -- All or nothing: the first item that cannot be had takes the others back.
        refused := (
            select (
                case when named.id is not null then 'conflict' when single.id is not null then 'in_progress' else 'lost' end,
                coalesce(named, single)
            )::pgworkflows.outcome
            from unnest(ids, keys) with ordinality as i (id, key, n)
            left join pgworkflows.runs as own on own.id = i.id
            left join pgworkflows.runs as named on own.id is null and named.idempotency_key = i.key
            left join pgworkflows.runs as single
                on own.id is null and named.id is null and single.singleton_key = workflow
            where own.id is null
                and not coalesce(
                    named.workflow_id = workflow
                    and named.resource_id is not distinct from try_start_workflows.resource_id,
                    false
                )
            order by i.n
            limit 1
        );
        if refused.outcome is not null then
            raise exception 'taken back' using errcode = 'PW000';
        end if;
    exception when sqlstate 'PW000' then
        if refused.outcome = 'lost' then
            raise exception 'start_workflows lost a race for workflow %', workflow
                using errcode = 'serialization_failure', hint = 'Call it again.';
        end if;
        -- What is in the way may have been one of the items itself.
        refused.run := (select r from pgworkflows.runs as r where r.id = (refused.run).id);
        return next refused;
        return;
    end;
    perform pgworkflows.wake_workers(terms.queue, borrowed);
    return query
    select case when own.id is null then 'existing' else 'started' end, coalesce(own, named)
    from unnest(ids, keys) with ordinality as i (id, key, n)
    left join pgworkflows.runs as own on own.id = i.id
    left join pgworkflows.runs as named on own.id is null and named.idempotency_key = i.key
    order by i.n;
end
$function$;
comment on function pgworkflows.try_start_workflows(
    text, json, text, integer, integer, interval, text, boolean, interval, timestamptz, json, json, boolean
) is
    'Start a run for each {input, key} of items, or none: then the one answer says which run is in the way.';

create or replace function pgworkflows.unwrap(answer pgworkflows.outcome, run_id uuid, rule text default null)
returns pgworkflows.runs
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
begin
    case answer.outcome
        when 'not_found' then
            raise exception 'run % was not found', run_id using errcode = 'PW001';
        when 'invalid_status' then
            raise exception 'run % is %; only % runs can %',
                run_id, (answer.run).status, split_part(rule, ':', 1), split_part(rule, ':', 2)
                using errcode = 'PW002';
        when 'conflict' then
            raise exception 'idempotency key % is taken by run % of workflow %, resource %',
                (answer.run).idempotency_key, (answer.run).id, (answer.run).workflow_id, (answer.run).resource_id
                using errcode = 'PW003', hint = 'Use another key for another run.';
        when 'in_progress' then
            raise exception 'workflow % is a singleton, and run % of it is %',
                (answer.run).workflow_id, (answer.run).id, (answer.run).status
                using errcode = 'PW004', hint = 'Wait for that run, or cancel it.';
        else
            return answer.run;
    end case;
end
$function$;
comment on function pgworkflows.unwrap(pgworkflows.outcome, uuid, text) is
    'Raise a refusal: PW001 not found, PW002 wrong status, PW003 idempotency conflict, PW004 singleton in progress.';

create function pgworkflows.start_workflow(
    workflow text,
    input text default null,
    resource_id text default null,
    idempotency_key text default null,
    priority anycompatible default null::text,
    retries integer default null,
    timeout interval default null,
    queue text default null,
    singleton boolean default null,
    delay interval default null,
    run_at timestamptz default null
) returns pgworkflows.runs
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
begin
    perform pgworkflows.check_name(workflow, 'the workflow id', true);
    perform pgworkflows.check_name(resource_id, 'the resource_id');
    perform pgworkflows.check_name(idempotency_key, 'the idempotency_key');
    perform pgworkflows.check_name(queue, 'the queue');
    perform pgworkflows.check_times(timeout, delay, run_at);
    if retries not between 0 and 1000000 then
        raise exception 'retries must lie within 0 and 1000000, not %', retries
            using errcode = 'invalid_parameter_value';
    end if;
    return pgworkflows.unwrap(
        pgworkflows.try_start_workflow(
            workflow => workflow,
            input => pgworkflows.check_json(input, 'the input'),
            resource_id => resource_id,
            idempotency_key => idempotency_key,
            priority => pgworkflows.priority_number(priority::text),
            retries => retries,
            timeout => timeout,
            queue => queue,
            singleton => singleton,
            delay => delay,
            run_at => run_at,
            schedule_tick => null,
            headers => null,
            fallback => null,
            borrowed => true
        ),
        null
    );
end
$function$;
comment on function pgworkflows.start_workflow(
    text, text, text, text, anycompatible, integer, interval, text, boolean, interval, timestamptz
) is
    'Start a run in the caller''s transaction; a repeated idempotency_key returns the run it has started. input is JSON; '
    'priority is high, normal, low or a number. Raises PW003 when the key belongs to another workflow or resource, PW004 '
    'when a singleton workflow has an unfinished run, and 22023 for arguments that are out of bounds.';

create function pgworkflows.start_workflow(
    workflow text,
    input json,
    resource_id text default null,
    idempotency_key text default null,
    priority anycompatible default null::text,
    retries integer default null,
    timeout interval default null,
    queue text default null,
    singleton boolean default null,
    delay interval default null,
    run_at timestamptz default null
) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.start_workflow(
        workflow, input::text, resource_id, idempotency_key, priority, retries, timeout, queue, singleton, delay, run_at
    )
$function$;
comment on function pgworkflows.start_workflow(
    text, json, text, text, anycompatible, integer, interval, text, boolean, interval, timestamptz
) is 'The same with input of type json.';

create function pgworkflows.start_workflow(
    workflow text,
    input jsonb,
    resource_id text default null,
    idempotency_key text default null,
    priority anycompatible default null::text,
    retries integer default null,
    timeout interval default null,
    queue text default null,
    singleton boolean default null,
    delay interval default null,
    run_at timestamptz default null
) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.start_workflow(
        workflow, input::text, resource_id, idempotency_key, priority, retries, timeout, queue, singleton, delay, run_at
    )
$function$;
comment on function pgworkflows.start_workflow(
    text, jsonb, text, text, anycompatible, integer, interval, text, boolean, interval, timestamptz
) is 'The same with input of type jsonb.';

comment on function pgworkflows.retry_workflow(uuid, text) is
    'Let a failed or cancelled run go on from its last completed step. Raises PW001 (not found), PW002 (another status) or '
    'PW004 (a singleton workflow has another unfinished run).';

create function pgworkflows.serve_workflows(worker_id uuid, queues text[], declarations json) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
begin
    perform pgworkflows.declare_workflows(declarations);
    update pgworkflows.workers as w
    set queues = serve_workflows.queues,
        workflows = array(select d.id from json_to_recordset(declarations) as d (id text) order by d.id),
        schedules = array(
            select d.id from json_to_recordset(declarations) as d (id text, schedule json)
            where d.schedule is not null
            order by d.id
        )
    where w.id = serve_workflows.worker_id;
end
$function$;
comment on function pgworkflows.serve_workflows(uuid, text[], json) is
    'Store what a worker says of its workflows, and that it serves them.';

create or replace function pgworkflows.claim(
    worker_id uuid,
    queues text[],
    workflows text[],
    capacity integer,
    alone boolean,
    awake boolean
) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    claimed uuid[];
    number bigint;
    suspects boolean;
    answer json;
begin
    if not exists (select from pgworkflows.workers as w where w.id = claim.worker_id) then
        return json_build_object('alive', false);
    end if;
    if awake then
        delete from pgworkflows.sleepers as s where s.worker_id = claim.worker_id;
    end if;
    perform pgworkflows.wake_due();
    number := nextval('pgworkflows.claims');
    perform from pgworkflows.queue as q
    where q.interruptions >= 3 and q.status = 'pending' and q.wake_at is null
        and q.queue = any (queues) and q.workflow_id = any (workflows)
    limit 1
    for no key update skip locked;
    suspects := found;
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
                and q.interruptions < 3
            order by q.rank
            limit capacity
            for no key update skip locked
        ) as found
        order by found.rank
        limit case when suspects then 0 else capacity end
    ), suspect as materialized (
        -- A run that may have killed its workers is claimed alone, so that no innocent neighbour is blamed.
        select q.run_id
        from pgworkflows.queue as q
        where suspects and alone
            and q.interruptions >= 3 and q.status = 'pending' and q.wake_at is null
            and q.queue = any (queues) and q.workflow_id = any (workflows)
        limit 1
        for no key update skip locked
    ), taken as (
        update pgworkflows.queue as q
        set status = 'running', claim_id = number, worker_id = claim.worker_id, wait_kind = null, wait_event = null
        where q.run_id in (select c.run_id from candidate as c union all select s.run_id from suspect as s)
        returning q.run_id
    )
    select array_agg(taken.run_id) into claimed from taken;
    if claimed is not null then
        update pgworkflows.runs as r
        set status = 'running', started_at = coalesce(r.started_at, now()), updated_at = now()
        where r.id = any (claimed);
    end if;
    -- The history is read by a second statement: its snapshot is later than the locks, so it sees every checkpoint.
    select json_build_object(
        'alive', true,
        'now', clock_timestamp(),
        'claim_id', number,
        'suspects', suspects,
        -- What is ready and was not claimed is locked: by another worker's claim, or in a client's transaction.
        'held', alone and claimed is null and (
            exists (
                select from unnest(queues) as lane (queue)
                cross join unnest(workflows) as known (workflow_id)
                cross join lateral (
                    select from pgworkflows.queue as q
                    where q.status = 'pending' and q.wake_at is null
                        and q.queue = lane.queue and q.workflow_id = known.workflow_id
                    limit 1
                ) as ready
            )
            or exists (
                select from pgworkflows.queue as q
                where q.wake_at <= now() and q.queue = any (queues) and q.workflow_id = any (workflows)
            )
        ),
        -- Not min(): while the statistics say that there are few, it reads them all.
        'next_due', least(
            (select q.wake_at from pgworkflows.queue as q where q.wake_at is not null order by q.wake_at limit 1),
            (select q.timeout_at from pgworkflows.queue as q where q.timeout_at is not null order by q.timeout_at limit 1)
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
            from pgworkflows.runs as r
            join pgworkflows.queue as q on q.run_id = r.id
            where r.id = any (claimed)
        ) end
    ) into answer;
    return answer;
end
$function$;
