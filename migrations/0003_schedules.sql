-- oldest code: 3
-- Schedules: workflows that are started at certain times. Workers compute when the next tick is; that each fires once,
-- however many workers there are, is decided here.

create table pgworkflows.schedules (
    workflow_id text primary key,
    expression text not null,
    timezone text not null,
    catch_up text not null,
    overlap text not null,
    input json not null default 'null',
    since timestamptz not null default clock_timestamp(),
    next_at timestamptz,
    last_tick_at timestamptz,
    last_run_id uuid,
    last_skipped_at timestamptz,
    paused_at timestamptz,
    declared_at timestamptz not null default clock_timestamp(),
    constraint schedules_names_have_1_to_256_characters check (
        length(workflow_id) between 1 and 256 and length(timezone) between 1 and 256
    ),
    constraint schedules_expression_is_not_empty check (length(expression) > 0),
    constraint schedules_catch_up_is_known check (catch_up in ('latest', 'all', 'none')),
    constraint schedules_overlap_is_known check (overlap in ('allow', 'skip')),
    constraint schedules_next_tick_is_ahead check (next_at > since),
    constraint schedules_last_run_has_its_tick check ((last_run_id is null) = (last_tick_at is null))
);
comment on table pgworkflows.schedules is
    'When workflows start by themselves, as workers last declared it. Fires only while a live worker declares it.';
comment on column pgworkflows.schedules.workflow_id is 'The workflow.';
comment on column pgworkflows.schedules.expression is 'Five cron fields, or an interval in words.';
comment on column pgworkflows.schedules.timezone is 'Where the clock hangs that the cron fields speak of.';
comment on column pgworkflows.schedules.catch_up is 'Which missed ticks fire once a worker is there again: the latest, all or none.';
comment on column pgworkflows.schedules.overlap is
    'Whether a tick may fire while the last run is unfinished: allow or skip. Singleton workflows skip.';
comment on column pgworkflows.schedules.input is 'The input of the runs: the default of the workflow''s input.';
comment on column pgworkflows.schedules.since is 'The ticks up to here are dealt with.';
comment on column pgworkflows.schedules.next_at is 'The next tick; null until a worker has computed it.';
comment on column pgworkflows.schedules.last_tick_at is 'The tick that started last_run_id.';
comment on column pgworkflows.schedules.last_run_id is 'The run that the schedule, or trigger_schedule, started last.';
comment on column pgworkflows.schedules.last_skipped_at is 'The last tick that did not fire, for an unfinished run.';
comment on column pgworkflows.schedules.paused_at is 'Since when the schedule is paused.';
comment on column pgworkflows.schedules.declared_at is 'When the declaration last changed.';

-- What the operations answer: how it went, the schedule as it is then, and the run that was started or is in the way.
create type pgworkflows.schedule_outcome as (
    outcome text,
    schedule pgworkflows.schedules,
    run pgworkflows.runs
);

-- Declarations ------------------------------------------------------------------------------------------------------

create function pgworkflows.declare_schedules(declarations json) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    insert into pgworkflows.schedules as s (workflow_id, expression, timezone, catch_up, overlap, input)
    select
        d.id,
        d.schedule ->> 'expression',
        d.schedule ->> 'timezone',
        d.schedule ->> 'catch_up',
        d.schedule ->> 'overlap',
        (d.schedule ->> 'input')::json
    from json_to_recordset(declarations) as d (id text, schedule json)
    -- A row that is as declared already is not locked: a client may hold it for as long as its transaction lasts.
    where d.schedule is not null and not exists (
        select from pgworkflows.schedules as known
        where known.workflow_id = d.id
            and (known.expression, known.timezone, known.catch_up, known.overlap, known.input::text) = (
                d.schedule ->> 'expression',
                d.schedule ->> 'timezone',
                d.schedule ->> 'catch_up',
                d.schedule ->> 'overlap',
                d.schedule ->> 'input'
            )
    )
    order by d.id
    on conflict (workflow_id) do update
    set expression = excluded.expression,
        timezone = excluded.timezone,
        catch_up = excluded.catch_up,
        overlap = excluded.overlap,
        input = excluded.input,
        declared_at = clock_timestamp(),
        -- Other ticks: those that were missed of the old ones are not made up for.
        since = case
            when (s.expression, s.timezone) = (excluded.expression, excluded.timezone) then s.since
            else clock_timestamp()
        end,
        next_at = case when (s.expression, s.timezone) = (excluded.expression, excluded.timezone) then s.next_at end
$function$;
comment on function pgworkflows.declare_schedules(json) is 'Store what an engine or a worker says of its schedules.';

create or replace function pgworkflows.declare_workflows(declarations json) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    insert into pgworkflows.workflows as w (
        id, queue, priority, retries, timeout, singleton, retention, steps, step_ids
    )
    select d.id, d.queue, d.priority, d.retries, d.timeout, coalesce(d.singleton, false), d.retention, d.steps,
        array(select json_array_elements_text(d.step_ids))
    from json_to_recordset(declarations) as d (
        id text, queue text, priority integer, retries integer, timeout interval, singleton boolean,
        retention interval, steps json, step_ids json
    )
    order by d.id
    on conflict (id) do update
    set queue = excluded.queue, priority = excluded.priority, retries = excluded.retries, timeout = excluded.timeout,
        singleton = excluded.singleton, retention = excluded.retention, steps = excluded.steps,
        step_ids = excluded.step_ids, declared_at = clock_timestamp()
    where (w.queue, w.priority, w.retries, w.timeout, w.singleton, w.retention, w.steps::text)
        is distinct from (
            excluded.queue, excluded.priority, excluded.retries, excluded.timeout, excluded.singleton,
            excluded.retention, excluded.steps::text
        );
    select pgworkflows.declare_schedules(declarations)
$function$;

create function pgworkflows.drop_removed_schedules() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
begin
    if not exists (select from pgworkflows.schedules) then
        return null;
    end if;
    -- One after the other: of two workers of which one comes and the other goes, the second sees what the first did.
    perform pg_advisory_xact_lock(hashtextextended('pgworkflows' || ' schedules', 0));
    -- A row that somebody is at, declares anew or fires, is left for the next time.
    with removed as (
        select s.workflow_id from pgworkflows.schedules as s
        where exists (select from pgworkflows.workers as w where s.workflow_id = any (w.workflows))
            and not exists (select from pgworkflows.workers as w where s.workflow_id = any (w.schedules))
        for update of s skip locked
    )
    delete from pgworkflows.schedules as s using removed where s.workflow_id = removed.workflow_id;
    return null;
end
$function$;
comment on function pgworkflows.drop_removed_schedules() is
    'Forget the schedules of workflows that live workers have, and have without a schedule: the code has dropped them. '
    'While no live worker has the workflow at all, the schedule is kept: that is mere downtime.';

create trigger workers_drop_removed_schedules
after delete or update of workflows, schedules on pgworkflows.workers
for each statement execute function pgworkflows.drop_removed_schedules();

-- Firing ------------------------------------------------------------------------------------------------------------

create function pgworkflows.due_schedules(worker_id uuid) returns json
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    with clock as materialized (
        select clock_timestamp() as now
    ), declared as (
        select s.* from pgworkflows.workers as w
        join pgworkflows.schedules as s on s.workflow_id = any (w.schedules)
        where w.id = due_schedules.worker_id and s.paused_at is null
    )
    select json_build_object(
        'now', clock.now,
        'next_in_s', (
            select extract(epoch from min(d.next_at) - clock.now) from declared as d where d.next_at > clock.now
        ),
        'due', (
            select json_agg(
                json_build_object(
                    'workflow_id', d.workflow_id,
                    'expression', d.expression,
                    'timezone', d.timezone,
                    'catch_up', d.catch_up,
                    'since', d.since
                )
                order by d.next_at, d.workflow_id
            )
            from declared as d
            where d.next_at is null or d.next_at <= clock.now
        )
    )
    from clock
$function$;
comment on function pgworkflows.due_schedules(uuid) is
    'The schedules that a live worker declares and that have a tick to fire or to compute, and how long the others rest.';

create function pgworkflows.fire_schedule(
    workflow text,
    expression text,
    timezone text,
    since timestamptz,
    ticks timestamptz[],
    dealt_with timestamptz,
    next_at timestamptz
) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms' -- shorter than the wait for a deadlock: a client that holds what this waits for goes first
as $function$
#variable_conflict use_column
declare
    schedule pgworkflows.schedules;
    answer pgworkflows.outcome;
    tick timestamptz;
begin
    select * into schedule from pgworkflows.schedules as s where s.workflow_id = workflow
    for no key update skip locked;
    if not found then
        return 'locked';
    end if;
    -- Whoever comes second finds that the ticks are dealt with. The ticks are those of the expression they came from.
    if schedule.since <> fire_schedule.since
        or (schedule.expression, schedule.timezone) <> (fire_schedule.expression, fire_schedule.timezone)
        or schedule.paused_at is not null
    then
        return 'lost';
    end if;
    foreach tick in array ticks loop
        if schedule.overlap = 'skip' and exists (
            select from pgworkflows.runs as r where r.id = schedule.last_run_id and r.completed_at is null
        ) then
            answer := ('in_progress', null)::pgworkflows.outcome;
        else
            answer := pgworkflows.start_tick(schedule, tick, null, false);
        end if;
        case answer.outcome
            when 'started' then
                schedule.last_run_id := (answer.run).id;
                schedule.last_tick_at := tick;
            when 'in_progress' then
                schedule.last_skipped_at := tick;
            else
                -- existing: the tick has had its run.
                null;
        end case;
    end loop;
    update pgworkflows.schedules as s
    set since = fire_schedule.dealt_with,
        next_at = fire_schedule.next_at,
        last_run_id = schedule.last_run_id,
        last_tick_at = schedule.last_tick_at,
        last_skipped_at = schedule.last_skipped_at
    where s.workflow_id = workflow;
    return 'fired';
end
$function$;
comment on function pgworkflows.fire_schedule(
    text, text, text, timestamptz, timestamptz[], timestamptz, timestamptz
) is
    'Start a run for each tick, and note up to when ticks are dealt with. Answers lost if somebody else was first, and '
    'locked while somebody else has the schedule''s row.';

create function pgworkflows.start_tick(
    schedule pgworkflows.schedules,
    tick timestamptz,
    headers json,
    borrowed boolean
) returns pgworkflows.outcome
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.try_start_workflow(
        workflow => schedule.workflow_id,
        input => schedule.input,
        resource_id => null,
        idempotency_key => null,
        priority => null,
        retries => null,
        timeout => null,
        queue => null,
        singleton => null,
        delay => null,
        run_at => null,
        schedule_tick => tick,
        headers => headers,
        fallback => null,
        borrowed => borrowed
    )
$function$;
comment on function pgworkflows.start_tick(pgworkflows.schedules, timestamptz, json, boolean) is
    'Start the run of one tick, unless it has one.';

-- Clients' operations -----------------------------------------------------------------------------------------------

create function pgworkflows.try_pause_schedule(workflow text) returns pgworkflows.schedule_outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    schedule pgworkflows.schedules;
begin
    update pgworkflows.schedules as s set paused_at = coalesce(s.paused_at, clock_timestamp())
    where s.workflow_id = workflow
    returning * into schedule;
    return (case when found then 'paused' else 'not_found' end, schedule, null)::pgworkflows.schedule_outcome;
end
$function$;

create function pgworkflows.try_resume_schedule(workflow text) returns pgworkflows.schedule_outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    schedule pgworkflows.schedules;
    moment constant timestamptz := clock_timestamp();
begin
    -- The ticks that passed while it was paused are dealt with.
    update pgworkflows.schedules as s
    set since = case when s.paused_at is null then s.since else greatest(s.since, moment) end,
        next_at = case when s.paused_at is null or s.next_at > moment then s.next_at end,
        paused_at = null
    where s.workflow_id = workflow
    returning * into schedule;
    return (case when found then 'resumed' else 'not_found' end, schedule, null)::pgworkflows.schedule_outcome;
end
$function$;

create function pgworkflows.try_trigger_schedule(workflow text, headers json, borrowed boolean)
returns pgworkflows.schedule_outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    schedule pgworkflows.schedules;
    answer pgworkflows.outcome;
    tick timestamptz;
begin
    select * into schedule from pgworkflows.schedules as s where s.workflow_id = workflow for no key update;
    if not found then
        return ('not_found', null, null)::pgworkflows.schedule_outcome;
    end if;
    tick := clock_timestamp();
    answer := pgworkflows.start_tick(schedule, tick, headers, borrowed);
    if answer.outcome = 'started' then
        update pgworkflows.schedules as s set last_run_id = (answer.run).id, last_tick_at = tick
        where s.workflow_id = workflow
        returning * into schedule;
    end if;
    return (answer.outcome, schedule, answer.run)::pgworkflows.schedule_outcome;
end
$function$;

-- The same for SQL: they return the schedule or the run, or raise.

create function pgworkflows.unwrap_schedule(answer pgworkflows.schedule_outcome, workflow text)
returns pgworkflows.schedules
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
begin
    if answer.outcome = 'not_found' then
        raise exception 'workflow % has no schedule', workflow
            using errcode = 'PW005', hint = 'A worker that has the workflow with schedule= declares it.';
    end if;
    return answer.schedule;
end
$function$;
comment on function pgworkflows.unwrap_schedule(pgworkflows.schedule_outcome, text) is
    'Raise a refusal: PW005 no such schedule.';

create function pgworkflows.pause_schedule(workflow text) returns pgworkflows.schedules
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$ select pgworkflows.unwrap_schedule(pgworkflows.try_pause_schedule(workflow), workflow) $function$;
comment on function pgworkflows.pause_schedule(text) is
    'Let the ticks of a workflow''s schedule pass without a run. Raises PW005 (no such schedule).';

create function pgworkflows.resume_schedule(workflow text) returns pgworkflows.schedules
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$ select pgworkflows.unwrap_schedule(pgworkflows.try_resume_schedule(workflow), workflow) $function$;
comment on function pgworkflows.resume_schedule(text) is
    'Let a paused schedule go on with its next tick. Raises PW005 (no such schedule).';

create function pgworkflows.trigger_schedule(workflow text) returns pgworkflows.runs
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
declare
    answer pgworkflows.schedule_outcome := pgworkflows.try_trigger_schedule(workflow, null, true);
begin
    perform pgworkflows.unwrap_schedule(answer, workflow);
    return pgworkflows.unwrap((answer.outcome, answer.run)::pgworkflows.outcome, null);
end
$function$;
comment on function pgworkflows.trigger_schedule(text) is
    'Start a run of a workflow as its schedule would, now. Raises PW005 (no such schedule) and PW004 (a singleton''s run '
    'is unfinished).';
