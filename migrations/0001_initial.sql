-- oldest code: 1
-- The first schema: runs and their steps, the mailbox of events, the queue, the workers, the declared workflows.
-- The loader replaces the schema's name, runs the file in one transaction under a lock, and sets the search path.

create function pgworkflows.uuid7() returns uuid
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $function$
    -- RFC 9562, version 7: 48 bits of milliseconds, then 12 bits of the fraction (method 3), then chance.
    select encode(
        overlay(
            uuid_send(gen_random_uuid())
            placing substring(int8send(floor(micros / 1000)::bigint) from 3)
                || int2send((28672 + floor((micros % 1000) * 4.096))::smallint)
            from 1 for 8
        ),
        'hex'
    )::uuid
    from (select extract(epoch from clock_timestamp()) * 1000000 as micros) as clock
$function$;
comment on function pgworkflows.uuid7() is 'A time-ordered id, UUID version 7.';

create table pgworkflows.runs (
    id uuid primary key default pgworkflows.uuid7(),
    workflow_id text not null,
    status text not null default 'pending',
    input json not null default 'null',
    output json,
    error json,
    resource_id text,
    idempotency_key text,
    queue text not null default 'default',
    priority integer not null default 0,
    singleton boolean not null default false,
    current_step_id text,
    retry_count integer not null default 0,
    max_retries integer not null default 0,
    parent_run_id uuid,
    parent_step_id text,
    scheduled_at timestamptz,
    timeout_at timestamptz,
    timeout interval,
    created_at timestamptz not null default clock_timestamp(),
    started_at timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    paused_at timestamptz,
    resumed_at timestamptz,
    completed_at timestamptz,
    constraint runs_status_is_known check (
        status in ('pending', 'running', 'waiting', 'paused', 'completed', 'failed', 'cancelled')
    ),
    constraint runs_finished_has_its_time check (
        (status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)
    ),
    constraint runs_only_completed_has_output check (output is null or status = 'completed'),
    constraint runs_failed_has_its_error check (status <> 'failed' or error is not null),
    constraint runs_paused_has_its_time check (status <> 'paused' or paused_at is not null),
    constraint runs_names_have_1_to_256_characters check (
        length(workflow_id) between 1 and 256
        and length(queue) between 1 and 256
        and length(resource_id) between 1 and 256
        and length(idempotency_key) between 1 and 256
    ),
    constraint runs_priority_within_1000 check (priority between -1000 and 1000),
    constraint runs_retries_not_negative check (retry_count >= 0 and max_retries >= 0),
    constraint runs_parent_is_whole check ((parent_run_id is null) = (parent_step_id is null))
) with (fillfactor = 85);
create unique index runs_idempotency_key on pgworkflows.runs (idempotency_key) where idempotency_key is not null;
create unique index runs_parent on pgworkflows.runs (parent_run_id, parent_step_id) where parent_run_id is not null;
create index runs_workflow on pgworkflows.runs (workflow_id, id);
create index runs_resource on pgworkflows.runs (resource_id, id) where resource_id is not null;
comment on table pgworkflows.runs is 'One row per execution of a workflow, kept after its end.';
comment on column pgworkflows.runs.id is 'UUID version 7: the order of ids is the order of starts.';
comment on column pgworkflows.runs.workflow_id is 'The workflow it is a run of.';
comment on column pgworkflows.runs.status is
    'pending (ready, or waiting for its retry time or scheduled_at), running, waiting (for an event, a time, a poll), '
    'paused, completed, failed or cancelled.';
comment on column pgworkflows.runs.input is 'What the run was started with, as JSON; null when it was started with nothing.';
comment on column pgworkflows.runs.output is 'What the handler returned; set when completed.';
comment on column pgworkflows.runs.error is
    'The failure: {type, message, traceback, step_id}. Of a pending run: the failure it is being retried for.';
comment on column pgworkflows.runs.resource_id is 'Whom the run belongs to; calls that name a resource see only its runs.';
comment on column pgworkflows.runs.idempotency_key is 'A second start with the same key returns this run.';
comment on column pgworkflows.runs.queue is 'The lane the run stands in; workers serve lanes.';
comment on column pgworkflows.runs.priority is 'Seconds of head start over the other runs of the lane, from -1000 to 1000.';
comment on column pgworkflows.runs.singleton is 'Whether the workflow may have only one unfinished run.';
comment on column pgworkflows.runs.current_step_id is 'The last step reached: exact while waiting, paused or failed; may lag while running.';
comment on column pgworkflows.runs.retry_count is 'Executions after a failure since the start or the last retry by hand.';
comment on column pgworkflows.runs.max_retries is 'How often a failed run is executed again by itself.';
comment on column pgworkflows.runs.parent_run_id is 'The run that invoked this one.';
comment on column pgworkflows.runs.parent_step_id is 'The step of the parent that waits for this run.';
comment on column pgworkflows.runs.scheduled_at is 'When the run may start: its run_at or delay, or the time of its next retry.';
comment on column pgworkflows.runs.timeout_at is 'When the run fails with WorkflowTimeoutError if it is unfinished then.';
comment on column pgworkflows.runs.timeout is 'How long the run may take, counted from when it may first start.';
comment on column pgworkflows.runs.created_at is 'When start_workflow was called, by the server''s clock like every time here.';
comment on column pgworkflows.runs.started_at is 'When a worker first claimed the run.';
comment on column pgworkflows.runs.updated_at is 'When the status last changed.';
comment on column pgworkflows.runs.paused_at is 'When the run was last paused.';
comment on column pgworkflows.runs.resumed_at is 'When the run was last resumed.';
comment on column pgworkflows.runs.completed_at is 'When the run ended, however it ended.';

create table pgworkflows.steps (
    run_id uuid not null,
    position integer not null,
    step_id text not null,
    kind text not null,
    status text not null,
    output json,
    error json,
    attempts integer not null default 0,
    prior_attempts integer not null default 0,
    started_at timestamptz,
    completed_at timestamptz,
    wake_at timestamptz,
    deadline_at timestamptz,
    event_name text,
    child_run_id uuid,
    constraint steps_pkey primary key (run_id, step_id),
    constraint steps_kind_is_known check (
        kind in ('run', 'wait_for', 'wait_until', 'delay', 'pause', 'poll', 'invoke_child_workflow')
    ),
    constraint steps_status_is_known check (status in ('waiting', 'retrying', 'completed', 'failed', 'cancelled')),
    constraint steps_id_has_1_to_256_characters check (length(step_id) between 1 and 256),
    constraint steps_completed_has_its_time check (status <> 'completed' or completed_at is not null),
    constraint steps_failed_has_its_error check (status <> 'failed' or error is not null),
    constraint steps_output_only_when_completed check (output is null or status = 'completed'),
    constraint steps_attempts_not_negative check (attempts >= prior_attempts and prior_attempts >= 0)
);
comment on table pgworkflows.steps is 'The timeline of every run: one row per step it has reached.';
comment on column pgworkflows.steps.run_id is 'The run.';
comment on column pgworkflows.steps.position is 'The place of the step in its run, from 0.';
comment on column pgworkflows.steps.step_id is 'The name the handler gave the step, unique within the run.';
comment on column pgworkflows.steps.kind is 'run, wait_for, wait_until, delay, pause, poll or invoke_child_workflow.';
comment on column pgworkflows.steps.status is
    'waiting, retrying (to be called again), completed (also a wait that timed out), failed or cancelled.';
comment on column pgworkflows.steps.output is 'The result, as JSON; null also for a wait that timed out.';
comment on column pgworkflows.steps.error is 'The last failure: {type, message, traceback}.';
comment on column pgworkflows.steps.attempts is 'How often the step''s function was called and answered.';
comment on column pgworkflows.steps.prior_attempts is 'How many of them came before the run was last retried.';
comment on column pgworkflows.steps.started_at is 'When the step was first reached.';
comment on column pgworkflows.steps.completed_at is 'When its outcome was stored.';
comment on column pgworkflows.steps.wake_at is 'When the wait ends by itself, or the next attempt or poll is due.';
comment on column pgworkflows.steps.deadline_at is 'When a poll gives up.';
comment on column pgworkflows.steps.event_name is 'The event a wait_for waits for.';
comment on column pgworkflows.steps.child_run_id is 'The run that the step invoked.';

create table pgworkflows.events (
    id bigint generated always as identity primary key,
    run_id uuid not null,
    name text not null,
    data json not null default '{}',
    idempotency_key text,
    received_at timestamptz not null default clock_timestamp(),
    consumed_at timestamptz,
    step_id text,
    constraint events_names_have_1_to_256_characters check (
        length(name) between 1 and 256 and length(idempotency_key) between 1 and 256
    ),
    constraint events_consumed_by_a_step check ((consumed_at is null) = (step_id is null))
);
create unique index events_idempotency_key on pgworkflows.events (run_id, idempotency_key)
where idempotency_key is not null;
create index events_mailbox on pgworkflows.events (run_id, id) where consumed_at is null;
comment on table pgworkflows.events is 'The mailbox of every run: an event is kept until a wait of its name takes it.';
comment on column pgworkflows.events.id is 'Allotted under the lock of the run: the order in which the events were accepted.';
comment on column pgworkflows.events.run_id is 'The run the event was sent to.';
comment on column pgworkflows.events.name is 'What a wait_for asks for.';
comment on column pgworkflows.events.data is 'What came with the event; {} if nothing did.';
comment on column pgworkflows.events.idempotency_key is 'A second event of the run with the same key is not accepted again.';
comment on column pgworkflows.events.received_at is 'When the event was accepted.';
comment on column pgworkflows.events.consumed_at is 'When a wait took the event.';
comment on column pgworkflows.events.step_id is 'The wait that took it.';

create sequence pgworkflows.claims;
comment on sequence pgworkflows.claims is 'Numbers of claims: with the worker''s id, the right to write to a run.';

create table pgworkflows.queue (
    run_id uuid primary key,
    workflow_id text not null,
    queue text not null,
    rank timestamptz not null,
    status text not null default 'pending',
    ready_at timestamptz not null,
    wake_at timestamptz,
    timeout_at timestamptz,
    wait_kind text,
    wait_event text,
    claim_id bigint,
    worker_id uuid,
    control text,
    signal integer not null default 0,
    interruptions integer not null default 0,
    constraint queue_status_is_known check (status in ('pending', 'running', 'waiting', 'paused')),
    constraint queue_running_is_claimed check ((status = 'running') = (claim_id is not null)),
    constraint queue_claim_is_whole check ((claim_id is null) = (worker_id is null)),
    constraint queue_control_is_for_a_claim check (
        control is null or (control in ('pause', 'cancel', 'retry') and status = 'running')
    ),
    constraint queue_wait_is_known check (wait_kind in ('event', 'timer', 'poll', 'pause', 'retry')),
    constraint queue_only_idle_rows_are_timed check (wake_at is null or status in ('pending', 'waiting'))
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
create index queue_ready on pgworkflows.queue (queue, workflow_id, rank) where status = 'pending' and wake_at is null;
create index queue_suspects on pgworkflows.queue (queue, workflow_id)
where interruptions >= 3 and status = 'pending' and wake_at is null;
create index queue_timed on pgworkflows.queue (wake_at) where wake_at is not null;
create index queue_timeouts on pgworkflows.queue (timeout_at) where timeout_at is not null;
create index queue_claimed on pgworkflows.queue (worker_id) where worker_id is not null;
comment on table pgworkflows.queue is 'One row per unfinished run: what workers claim. Deleted when the run ends.';
comment on column pgworkflows.queue.run_id is 'The run.';
comment on column pgworkflows.queue.workflow_id is 'Only workers that have this workflow claim the run.';
comment on column pgworkflows.queue.queue is 'The lane.';
comment on column pgworkflows.queue.rank is 'ready_at minus one second per point of priority: the lowest is claimed first.';
comment on column pgworkflows.queue.status is 'pending, running (claimed), waiting or paused.';
comment on column pgworkflows.queue.ready_at is 'Since when the run is ready.';
comment on column pgworkflows.queue.wake_at is 'When the row becomes ready by itself; null if it is ready, claimed, or waits without an end.';
comment on column pgworkflows.queue.timeout_at is 'When the run fails for having taken too long.';
comment on column pgworkflows.queue.wait_kind is 'What the run waits for: event, timer, poll, pause (a pause step) or retry.';
comment on column pgworkflows.queue.wait_event is 'The name of the event it waits for.';
comment on column pgworkflows.queue.claim_id is 'The fence: a worker writes only while this and worker_id are its own.';
comment on column pgworkflows.queue.worker_id is 'The worker that has claimed the run.';
comment on column pgworkflows.queue.control is 'What the claiming worker is asked to do: pause, cancel or retry.';
comment on column pgworkflows.queue.signal is 'Raised by everything that may end a wait; a suspend that finds it changed is ready again.';
comment on column pgworkflows.queue.interruptions is 'How often a worker died with this run since its last checkpoint.';

create table pgworkflows.workers (
    id uuid primary key,
    hostname text not null,
    pid integer not null,
    queues text[] not null,
    has_lock boolean not null,
    lease interval not null,
    beats bigint not null default 0,
    started_at timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
comment on table pgworkflows.workers is 'The live workers. A worker whose row is gone is dead, and has lost its claims.';
comment on column pgworkflows.workers.id is 'New at every registration.';
comment on column pgworkflows.workers.hostname is 'The machine.';
comment on column pgworkflows.workers.pid is 'The process.';
comment on column pgworkflows.workers.queues is 'The lanes it serves.';
comment on column pgworkflows.workers.has_lock is 'Whether it holds an advisory lock for as long as it lives.';
comment on column pgworkflows.workers.lease is 'How long it counts as alive without a heartbeat when its lock cannot tell.';
comment on column pgworkflows.workers.beats is 'The number of its heartbeats.';
comment on column pgworkflows.workers.started_at is 'When it registered.';
comment on column pgworkflows.workers.heartbeat_at is 'Its last heartbeat.';

create table pgworkflows.sleepers (
    queue text not null,
    worker_id uuid not null,
    constraint sleepers_pkey primary key (queue, worker_id)
);
comment on table pgworkflows.sleepers is 'The lanes in which a worker is asleep and wants a NOTIFY for new work.';
comment on column pgworkflows.sleepers.queue is 'The lane.';
comment on column pgworkflows.sleepers.worker_id is 'The worker.';

create table pgworkflows.workflows (
    id text primary key,
    queue text not null,
    priority integer not null,
    retries integer not null,
    timeout interval,
    steps json not null default '[]',
    step_ids text[] not null default '{}',
    declared_at timestamptz not null default clock_timestamp()
);
comment on table pgworkflows.workflows is 'What engines and workers last declared of their workflows; start_workflow takes its defaults here.';
comment on column pgworkflows.workflows.id is 'The workflow''s id.';
comment on column pgworkflows.workflows.queue is 'The lane of its runs.';
comment on column pgworkflows.workflows.priority is 'The priority of its runs.';
comment on column pgworkflows.workflows.retries is 'How often its failed runs are executed again.';
comment on column pgworkflows.workflows.timeout is 'How long a run may take.';
comment on column pgworkflows.workflows.steps is 'The steps read from the source: [{id, kind, conditional, loop, dynamic}].';
comment on column pgworkflows.workflows.step_ids is 'The literal step ids among them, which progress counts.';
comment on column pgworkflows.workflows.declared_at is 'When the declaration last changed.';

-- What the operations of clients answer: how it went, and the run as it is then.
create type pgworkflows.outcome as (outcome text, run pgworkflows.runs);

create function pgworkflows.channel() returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $function$ select 'pgw_' || md5('pgworkflows') $function$;
comment on function pgworkflows.channel() is 'The NOTIFY channel of this schema.';

create function pgworkflows.wake_workers(queue text, always boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
begin
    -- A NOTIFY is a lock at commit that all writers share: only somebody asleep is worth it. In a caller's
    -- transaction a worker may fall asleep between this look and the commit, so there it is always sent.
    if always or exists (select from pgworkflows.sleepers as s where s.queue = wake_workers.queue) then
        perform pg_notify(pgworkflows.channel(), wake_workers.queue);
    end if;
end
$function$;
comment on function pgworkflows.wake_workers(text, boolean) is 'Tell sleeping workers of a lane that there is work.';

-- Clients' operations -----------------------------------------------------------------------------------------------
-- try_... answer with an outcome and never raise for a refusal, which would abort the caller's transaction.
-- Locks, here and everywhere: queue, then runs, then events, then steps.

create function pgworkflows.try_start_workflow(
    workflow text,
    input json,
    resource_id text,
    idempotency_key text,
    priority integer,
    retries integer,
    timeout interval,
    queue text,
    delay interval,
    run_at timestamptz,
    fallback json,
    borrowed boolean
) returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    declared pgworkflows.workflows;
    run pgworkflows.runs;
    starts_at timestamptz;
    moment timestamptz := clock_timestamp();
begin
    select * into declared from pgworkflows.workflows as w where w.id = workflow;
    if not found and fallback is not null then
        declared.queue := fallback ->> 'queue';
        declared.priority := (fallback ->> 'priority')::integer;
        declared.retries := (fallback ->> 'retries')::integer;
        declared.timeout := (fallback ->> 'timeout')::interval;
    end if;
    timeout := coalesce(timeout, declared.timeout);
    starts_at := coalesce(run_at, moment + delay);
    for attempt in 1 .. 100 loop
        insert into pgworkflows.runs as r (
            workflow_id, input, resource_id, idempotency_key, queue, priority, max_retries,
            scheduled_at, timeout, timeout_at, created_at, updated_at
        )
        values (
            workflow,
            coalesce(try_start_workflow.input, 'null'),
            try_start_workflow.resource_id,
            try_start_workflow.idempotency_key,
            coalesce(try_start_workflow.queue, declared.queue, 'default'),
            coalesce(try_start_workflow.priority, declared.priority, 0),
            coalesce(try_start_workflow.retries, declared.retries, 0),
            starts_at,
            try_start_workflow.timeout,
            case
                when try_start_workflow.timeout is not null
                    then least(greatest(starts_at, moment) + try_start_workflow.timeout, '9999-12-30 00:00:00+00')
            end,
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
        -- A second statement has a later snapshot: it sees the run whose key was in the way, unless that is gone again.
        select * into run from pgworkflows.runs as r where r.idempotency_key = try_start_workflow.idempotency_key;
        if found and run.workflow_id = workflow
            and run.resource_id is not distinct from try_start_workflow.resource_id
        then
            return ('existing', run)::pgworkflows.outcome;
        elsif found then
            return ('conflict', run)::pgworkflows.outcome;
        end if;
    end loop;
    raise exception 'start_workflow lost 100 races for idempotency key %', idempotency_key
        using errcode = 'serialization_failure';
end
$function$;

create type pgworkflows.locked_run as (place pgworkflows.queue, run pgworkflows.runs);

create function pgworkflows.lock_run(run_id uuid, resource_id text) returns pgworkflows.locked_run
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    place pgworkflows.queue;
    run pgworkflows.runs;
begin
    -- Whoever changes an unfinished run holds its queue row. A finished one has none; found without one although it is
    -- unfinished, it was retried between the two looks.
    for attempt in 1 .. 100 loop
        select * into place from pgworkflows.queue as q where q.run_id = lock_run.run_id for no key update;
        select * into run from pgworkflows.runs as r
        where r.id = lock_run.run_id and (lock_run.resource_id is null or r.resource_id = lock_run.resource_id);
        exit when place.run_id is not null or run.id is null or run.status in ('completed', 'failed', 'cancelled');
    end loop;
    return (place, run)::pgworkflows.locked_run;
end
$function$;
comment on function pgworkflows.lock_run(uuid, text) is 'Lock a run''s queue row and read both, if the run is the resource''s.';

create function pgworkflows.try_trigger_event(
    run_id uuid,
    event_name text,
    data json,
    resource_id text,
    idempotency_key text,
    borrowed boolean
) returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
begin
    locked := pgworkflows.lock_run(try_trigger_event.run_id, try_trigger_event.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    end if;
    if exists (
        select from pgworkflows.events as e
        where e.run_id = run.id and e.idempotency_key = try_trigger_event.idempotency_key
    ) then
        return ('existing', run)::pgworkflows.outcome;
    end if;
    if place.run_id is null or run.status in ('completed', 'failed', 'cancelled') then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    insert into pgworkflows.events (run_id, name, data, idempotency_key)
    values (run.id, event_name, coalesce(try_trigger_event.data, '{}'), try_trigger_event.idempotency_key);
    if place.status = 'waiting' and place.wait_kind = 'event' and place.wait_event = event_name then
        run := pgworkflows.make_ready(run.id, null, borrowed);
    else
        update pgworkflows.queue as q set signal = q.signal + 1 where q.run_id = run.id;
    end if;
    return ('accepted', run)::pgworkflows.outcome;
end
$function$;

create function pgworkflows.make_ready(run_id uuid, not_before timestamptz, borrowed boolean) returns pgworkflows.runs
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    run pgworkflows.runs;
    moment timestamptz := clock_timestamp();
    ready timestamptz := greatest(not_before, moment);
begin
    -- The caller holds the lock of the queue row. rank keeps its distance from ready_at: the priority's head start.
    update pgworkflows.queue as q
    set status = 'pending',
        rank = ready + (q.rank - q.ready_at),
        ready_at = ready,
        wake_at = case when ready > moment then ready end,
        wait_kind = null,
        wait_event = null,
        signal = q.signal + 1
    where q.run_id = make_ready.run_id;
    update pgworkflows.runs as r
    set status = 'pending',
        resumed_at = case when r.status = 'paused' then moment else r.resumed_at end,
        updated_at = moment
    where r.id = make_ready.run_id
    returning * into run;
    perform pgworkflows.wake_workers(run.queue, borrowed);
    return run;
end
$function$;
comment on function pgworkflows.make_ready(uuid, timestamptz, boolean) is 'Wake an unclaimed run, now or at a later time.';

create function pgworkflows.last_step(run_id uuid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select s.step_id from pgworkflows.steps as s where s.run_id = last_step.run_id order by s.position desc limit 1
$function$;
comment on function pgworkflows.last_step(uuid) is 'The step a run has come to.';

create function pgworkflows.try_pause_workflow(run_id uuid, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    moment timestamptz := clock_timestamp();
begin
    locked := pgworkflows.lock_run(try_pause_workflow.run_id, try_pause_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    elsif place.run_id is null or run.status not in ('pending', 'running', 'waiting') then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    -- A claimed run stays claimed until its worker has stored the step in flight; the others keep their wait in
    -- their step's row, and look at it again when they are resumed.
    update pgworkflows.queue as q
    set control = case when q.status = 'running' then 'pause' end,
        status = case when q.status = 'running' then q.status else 'paused' end,
        wake_at = null,
        wait_kind = null,
        wait_event = null
    where q.run_id = run.id;
    update pgworkflows.runs as r
    set status = 'paused', paused_at = moment, updated_at = moment, current_step_id = pgworkflows.last_step(r.id)
    where r.id = run.id
    returning * into run;
    return ('paused', run)::pgworkflows.outcome;
end
$function$;

create function pgworkflows.try_resume_workflow(run_id uuid, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    moment timestamptz := clock_timestamp();
begin
    locked := pgworkflows.lock_run(try_resume_workflow.run_id, try_resume_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    elsif place.run_id is null or run.status <> 'paused' then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    if place.status = 'running' then
        -- Its worker has not parked it yet: it just goes on.
        update pgworkflows.queue as q set control = null where q.run_id = run.id;
        update pgworkflows.runs as r set status = 'running', resumed_at = moment, updated_at = moment
        where r.id = run.id
        returning * into run;
    else
        if place.wait_kind = 'pause' then
            update pgworkflows.steps as s set status = 'completed', output = 'null', completed_at = moment
            where s.run_id = run.id and s.step_id = run.current_step_id and s.kind = 'pause' and s.status = 'waiting';
        end if;
        run := pgworkflows.make_ready(run.id, run.scheduled_at, borrowed);
    end if;
    return ('resumed', run)::pgworkflows.outcome;
end
$function$;

create function pgworkflows.end_waits(run_ids uuid[]) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    update pgworkflows.steps as s set status = 'cancelled', completed_at = clock_timestamp()
    where s.run_id = any (run_ids) and s.status in ('waiting', 'retrying')
$function$;
comment on function pgworkflows.end_waits(uuid[]) is 'Mark what runs were waiting for as cancelled: they have ended.';

create function pgworkflows.try_cancel_workflow(run_id uuid, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    moment timestamptz := clock_timestamp();
begin
    locked := pgworkflows.lock_run(try_cancel_workflow.run_id, try_cancel_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    elsif place.run_id is null or run.status in ('completed', 'failed', 'cancelled') then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    if place.status = 'running' then
        update pgworkflows.queue as q set control = 'cancel', timeout_at = null where q.run_id = run.id;
    else
        delete from pgworkflows.queue as q where q.run_id = run.id;
    end if;
    update pgworkflows.runs as r set status = 'cancelled', completed_at = moment, updated_at = moment
    where r.id = run.id
    returning * into run;
    perform pgworkflows.end_waits(array[run.id]);
    return ('cancelled', run)::pgworkflows.outcome;
end
$function$;

create function pgworkflows.take_back_failures(run_ids uuid[]) returns void
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
        join pgworkflows.steps as s on s.run_id = r.id and s.step_id = r.error ->> 'step_id'
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
comment on function pgworkflows.take_back_failures(uuid[]) is
    'Let failed runs do the step again that they failed with; its count of attempts goes on.';

create function pgworkflows.try_retry_workflow(run_id uuid, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    moment timestamptz := clock_timestamp();
begin
    locked := pgworkflows.lock_run(try_retry_workflow.run_id, try_retry_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    end if;
    -- A finished run has no queue row to lock: two retries at once meet here.
    select * into run from pgworkflows.runs as r where r.id = run.id for no key update;
    if run.status not in ('failed', 'cancelled') then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    -- The failure is taken back and what was cancelled stands again; a wait's deadline never moves.
    perform pgworkflows.take_back_failures(array[run.id]);
    update pgworkflows.steps as s
    set status = case when s.kind = 'run' then 'retrying' else 'waiting' end,
        prior_attempts = case when s.kind = 'run' then s.attempts else s.prior_attempts end,
        wake_at = case when s.kind = 'run' then null else s.wake_at end,
        completed_at = null
    where s.run_id = run.id and s.status = 'cancelled';
    update pgworkflows.runs as r
    set status = 'pending', error = null, retry_count = 0, completed_at = null, scheduled_at = null,
        timeout_at = moment + r.timeout, updated_at = moment
    where r.id = run.id
    returning * into run;
    if place.run_id is null then
        insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at, timeout_at)
        values (
            run.id, run.workflow_id, run.queue, moment - run.priority * interval '1 second', moment, run.timeout_at
        );
        perform pgworkflows.wake_workers(run.queue, borrowed);
    else
        -- Cancelled while claimed: its worker lets go of it first.
        update pgworkflows.queue as q set control = 'retry', timeout_at = run.timeout_at where q.run_id = run.id;
    end if;
    return ('retried', run)::pgworkflows.outcome;
end
$function$;

create function pgworkflows.try_fast_forward_workflow(run_id uuid, data json, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    step_kind text;
begin
    locked := pgworkflows.lock_run(try_fast_forward_workflow.run_id, try_fast_forward_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    elsif place.status = 'running' or place.wait_kind is null or place.wait_kind = 'retry' then
        return ('nothing', run)::pgworkflows.outcome;
    end if;
    update pgworkflows.steps as s
    set status = 'completed',
        completed_at = clock_timestamp(),
        output = case
            when s.kind = 'wait_for' then coalesce(try_fast_forward_workflow.data, '{}')
            when s.kind = 'poll' then json_build_object('timed_out', false, 'data', try_fast_forward_workflow.data)
            else 'null'
        end
    where s.run_id = run.id and s.step_id = run.current_step_id and s.status = 'waiting'
    returning s.kind into step_kind;
    if step_kind is null then
        return ('nothing', run)::pgworkflows.outcome;
    end if;
    run := pgworkflows.make_ready(run.id, null, borrowed);
    return ('forwarded', run)::pgworkflows.outcome;
end
$function$;

-- The same for SQL: they return the run, or raise. ---------------------------------------------------------------------
-- What the client checks in Python is checked here for callers in SQL. Payloads may be json, jsonb or text; priority may be
-- a name or a number: "anycompatible" takes both, and untyped literals as text.

create function pgworkflows.check_name(value text, what text, needed boolean default false) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
begin
    if value is null and needed then
        raise exception '% must not be null', what using errcode = 'invalid_parameter_value';
    elsif length(value) not between 1 and 256 then
        raise exception '% must have 1 to 256 characters; this one has %', what, length(value)
            using errcode = 'invalid_parameter_value';
    end if;
end
$function$;
comment on function pgworkflows.check_name(text, text, boolean) is
    'Refuse a name that is empty, too long or missing, with SQLSTATE 22023.';

create function pgworkflows.check_json(payload text, what text) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
begin
    -- jsonb is more strict than json: what it refuses could not be read in SQL. Python reads 500 levels at any time.
    if length(payload) > 67108864 then
        raise exception '% must have at most 67108864 characters; this one has %', what, length(payload)
            using errcode = 'invalid_parameter_value';
    end if;
    if jsonb_path_exists(payload::jsonb, '$.**{501}') then
        raise exception '% must not be nested more than 500 levels deep', what
            using errcode = 'invalid_parameter_value';
    end if;
    return payload::json;
end
$function$;
comment on function pgworkflows.check_json(text, text) is
    'A payload as JSON, with its keys in their order. Refuses what could not be read again.';

create function pgworkflows.check_times(timeout interval, delay interval, run_at timestamptz) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    longest constant interval := interval '365000 days';
begin
    if timeout <= interval '0' or timeout > longest then
        raise exception 'the timeout must be greater than zero and at most %, not %', longest, timeout
            using errcode = 'invalid_parameter_value';
    elsif delay < interval '0' or delay > longest then
        raise exception 'the delay must lie within zero and %, not %', longest, delay
            using errcode = 'invalid_parameter_value';
    elsif run_at not between '0002-01-01 00:00:00+00' and '9998-12-31 00:00:00+00' then
        raise exception 'run_at must lie within the years 2 and 9998, not %', run_at
            using errcode = 'invalid_parameter_value';
    elsif delay is not null and run_at is not null then
        raise exception 'give delay or run_at, not both' using errcode = 'invalid_parameter_value';
    end if;
end
$function$;
comment on function pgworkflows.check_times(interval, interval, timestamptz) is
    'Refuse what is no timeout, delay or time of a start, with SQLSTATE 22023.';

create function pgworkflows.priority_number(priority text) returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
begin
    case
        when priority is null then return null;
        when priority = 'high' then return 100;
        when priority = 'normal' then return 0;
        when priority = 'low' then return -100;
        when priority ~ '^-?[0-9]{1,4}$' and priority::integer between -1000 and 1000 then return priority::integer;
        else
            raise exception 'the priority must be high, normal, low or a number from -1000 to 1000, not %', priority
                using errcode = 'invalid_parameter_value';
    end case;
end
$function$;
comment on function pgworkflows.priority_number(text) is
    'The number of high, normal, low, or of a number as text; refuses others with SQLSTATE 22023.';

create function pgworkflows.unwrap(answer pgworkflows.outcome, run_id uuid, rule text default null)
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
        else
            return answer.run;
    end case;
end
$function$;
comment on function pgworkflows.unwrap(pgworkflows.outcome, uuid, text) is
    'Raise a refusal: PW001 not found, PW002 wrong status, PW003 idempotency conflict.';

create function pgworkflows.start_workflow(
    workflow text,
    input text default null,
    resource_id text default null,
    idempotency_key text default null,
    priority anycompatible default null::text,
    retries integer default null,
    timeout interval default null,
    queue text default null,
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
            delay => delay,
            run_at => run_at,
            fallback => null,
            borrowed => true
        ),
        null
    );
end
$function$;
comment on function pgworkflows.start_workflow(
    text, text, text, text, anycompatible, integer, interval, text, interval, timestamptz
) is
    'Start a run in the caller''s transaction; a repeated idempotency_key returns the run it has started. input is JSON; '
    'priority is high, normal, low or a number. Raises PW003 when the key belongs to another workflow or resource, and '
    '22023 for arguments that are out of bounds.';

create function pgworkflows.start_workflow(
    workflow text,
    input json,
    resource_id text default null,
    idempotency_key text default null,
    priority anycompatible default null::text,
    retries integer default null,
    timeout interval default null,
    queue text default null,
    delay interval default null,
    run_at timestamptz default null
) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.start_workflow(
        workflow, input::text, resource_id, idempotency_key, priority, retries, timeout, queue, delay, run_at
    )
$function$;
comment on function pgworkflows.start_workflow(
    text, json, text, text, anycompatible, integer, interval, text, interval, timestamptz
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
    delay interval default null,
    run_at timestamptz default null
) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.start_workflow(
        workflow, input::text, resource_id, idempotency_key, priority, retries, timeout, queue, delay, run_at
    )
$function$;
comment on function pgworkflows.start_workflow(
    text, jsonb, text, text, anycompatible, integer, interval, text, interval, timestamptz
) is 'The same with input of type jsonb.';

create function pgworkflows.trigger_event(
    run_id uuid,
    event_name text,
    data anycompatible default null::text,
    resource_id text default null,
    idempotency_key text default null
) returns pgworkflows.runs
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
begin
    perform pgworkflows.check_name(event_name, 'the event name', true);
    perform pgworkflows.check_name(idempotency_key, 'the idempotency_key');
    return pgworkflows.unwrap(
        pgworkflows.try_trigger_event(
            run_id => run_id,
            event_name => event_name,
            data => pgworkflows.check_json(data::text, 'the data'),
            resource_id => resource_id,
            idempotency_key => idempotency_key,
            borrowed => true
        ),
        run_id,
        'unfinished:get events'
    );
end
$function$;
comment on function pgworkflows.trigger_event(uuid, text, anycompatible, text, text) is
    'Send an event to an unfinished run, with data as JSON. Raises PW001 (not found), PW002 (finished) and 22023.';

create function pgworkflows.pause_workflow(run_id uuid, resource_id text default null) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.unwrap(
        pgworkflows.try_pause_workflow(run_id, resource_id, true), run_id, 'pending, running, waiting:be paused'
    )
$function$;
comment on function pgworkflows.pause_workflow(uuid, text) is
    'Pause a pending, running or waiting run. Raises PW001 (not found) or PW002 (another status).';

create function pgworkflows.resume_workflow(run_id uuid, resource_id text default null) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.unwrap(
        pgworkflows.try_resume_workflow(run_id, resource_id, true), run_id, 'paused:be resumed'
    )
$function$;
comment on function pgworkflows.resume_workflow(uuid, text) is
    'Let a paused run go on. Raises PW001 (not found) or PW002 (another status).';

create function pgworkflows.cancel_workflow(run_id uuid, resource_id text default null) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.unwrap(
        pgworkflows.try_cancel_workflow(run_id, resource_id, true), run_id, 'unfinished:be cancelled'
    )
$function$;
comment on function pgworkflows.cancel_workflow(uuid, text) is
    'End an unfinished run. Raises PW001 (not found) or PW002 (finished).';

create function pgworkflows.retry_workflow(run_id uuid, resource_id text default null) returns pgworkflows.runs
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select pgworkflows.unwrap(
        pgworkflows.try_retry_workflow(run_id, resource_id, true), run_id, 'failed, cancelled:be retried'
    )
$function$;
comment on function pgworkflows.retry_workflow(uuid, text) is
    'Let a failed or cancelled run go on from its last completed step. Raises PW001 (not found) or PW002 (another status).';

create function pgworkflows.fast_forward_workflow(
    run_id uuid,
    data anycompatible default null::text,
    resource_id text default null
) returns pgworkflows.runs
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
begin
    return pgworkflows.unwrap(
        pgworkflows.try_fast_forward_workflow(
            run_id, pgworkflows.check_json(data::text, 'the data'), resource_id, true
        ),
        run_id
    );
end
$function$;
comment on function pgworkflows.fast_forward_workflow(uuid, anycompatible, text) is
    'Complete the wait a run is in, with data as JSON. Does nothing when it is in none. Raises PW001 (not found).';

-- Workers -----------------------------------------------------------------------------------------------------------

create function pgworkflows.worker_lock_key(worker_id uuid) returns bigint
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $function$ select hashtextextended('pgworkflows' || ' ' || worker_id::text, 0) $function$;
comment on function pgworkflows.worker_lock_key(uuid) is 'The advisory lock a worker''s listener holds while the process lives.';

create function pgworkflows.declare_workflows(declarations json) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    insert into pgworkflows.workflows as w (id, queue, priority, retries, timeout, steps, step_ids)
    select d.id, d.queue, d.priority, d.retries, d.timeout, d.steps, array(select json_array_elements_text(d.step_ids))
    from json_to_recordset(declarations) as d (
        id text, queue text, priority integer, retries integer, timeout interval, steps json, step_ids json
    )
    order by d.id
    on conflict (id) do update
    set queue = excluded.queue, priority = excluded.priority, retries = excluded.retries, timeout = excluded.timeout,
        steps = excluded.steps, step_ids = excluded.step_ids, declared_at = clock_timestamp()
    where (w.queue, w.priority, w.retries, w.timeout, w.steps::text)
        is distinct from (excluded.queue, excluded.priority, excluded.retries, excluded.timeout, excluded.steps::text)
$function$;
comment on function pgworkflows.declare_workflows(json) is 'Store what an engine or a worker says of its workflows.';

create function pgworkflows.wake_due() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    late uuid[];
    lanes text[];
begin
    -- Runs out of time, in whatever unfinished status. A claimed one is deleted by its worker's next write.
    if exists (select from pgworkflows.queue as q where q.timeout_at <= now()) then
        select array_agg(due.run_id) into late
        from (
            select q.run_id from pgworkflows.queue as q
            where q.timeout_at <= now()
            order by q.timeout_at
            limit 1000
            for no key update skip locked
        ) as due;
        -- A second statement sees the rows as they were locked. In the first one's snapshot a row may have had another
        -- status: its run would have failed while its row went on.
        with told as (
            update pgworkflows.queue as q set control = 'cancel', timeout_at = null
            where q.run_id = any (late) and q.status = 'running'
        )
        delete from pgworkflows.queue as q where q.run_id = any (late) and q.status <> 'running';
        update pgworkflows.runs as r
        set status = 'failed',
            error = json_build_object(
                'type', 'WorkflowTimeoutError',
                'message', format('run %s was not finished within its timeout of %s', r.id, r.timeout),
                'traceback', null,
                'step_id', null
            ),
            current_step_id = pgworkflows.last_step(r.id),
            completed_at = now(),
            updated_at = now()
        where r.id = any (late);
        perform pgworkflows.end_waits(late);
    end if;
    -- Timers, timeouts of waits, polls, retries and delayed starts.
    if exists (select from pgworkflows.queue as q where q.wake_at <= now()) then
        with due as (
            select q.run_id from pgworkflows.queue as q
            where q.wake_at <= now()
            order by q.wake_at
            limit 1000
            for no key update skip locked
        ), woken as (
            update pgworkflows.queue as q
            set status = 'pending',
                rank = q.wake_at + (q.rank - q.ready_at),
                ready_at = q.wake_at,
                wake_at = null,
                wait_kind = null,
                wait_event = null
            from due
            where q.run_id = due.run_id
            returning q.run_id, q.queue
        ), shown as (
            update pgworkflows.runs as r set status = 'pending', updated_at = now()
            from woken where r.id = woken.run_id and r.status <> 'pending'
        )
        select array_agg(distinct woken.queue) into lanes from woken;
        perform pgworkflows.wake_workers(lane, false) from unnest(lanes) as lane;
    end if;
end
$function$;
comment on function pgworkflows.wake_due() is 'Make the rows ready whose time has come, and fail the runs that are out of time.';

create function pgworkflows.claim(
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
comment on function pgworkflows.claim(uuid, text[], text[], integer, boolean, boolean) is
    'Wake what is due, claim up to capacity ready runs for a worker, and return them with their history.';

create function pgworkflows.sleep(worker_id uuid, queues text[]) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    insert into pgworkflows.sleepers (queue, worker_id)
    select lane, w.id from pgworkflows.workers as w cross join unnest(queues) as lane where w.id = worker_id
    on conflict do nothing
$function$;
comment on function pgworkflows.sleep(uuid, text[]) is 'Announce that a worker is asleep; it claims once more after this commits.';

-- One entry of a flush whose queue row is locked: what its worker wants, and what the row says.
create type pgworkflows.fenced_entry as (
    run_id uuid,
    action text,
    step_id text,
    wait_kind text,
    wait_event text,
    wake_after double precision,
    output text,
    error text,
    control text,
    signalled boolean,
    interruptions integer
);

create function pgworkflows.flush(worker_id uuid, entries json, steps json, events json) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $function$
#variable_conflict use_column
declare
    fenced pgworkflows.fenced_entry[];
    answer json;
begin
    -- Lock the queue rows that are still this worker's, and write only for those.
    with entry as materialized (
        select * from json_to_recordset(entries) as e (
            run_id uuid, claim_id bigint, action text, signal integer, step_id text, wait_kind text, wait_event text,
            wake_after double precision, output text, error text
        )
    ), fence as materialized (
        select e.run_id, e.action, e.step_id, e.wait_kind, e.wait_event, e.wake_after, e.output, e.error,
            q.control, q.signal <> e.signal as signalled, q.interruptions
        from entry as e
        join pgworkflows.queue as q on q.run_id = e.run_id
        where q.claim_id = e.claim_id and q.worker_id = flush.worker_id
        for no key update of q skip locked
    ), saved as (
        insert into pgworkflows.steps as s (
            run_id, position, step_id, kind, status, output, error, attempts, prior_attempts,
            started_at, completed_at, wake_at, deadline_at, event_name
        )
        select n.run_id, n.position, n.step_id, n.kind, n.status, n.output::json, n.error::json,
            coalesce(n.attempts, 0), coalesce(n.prior_attempts, 0),
            now() - coalesce(n.elapsed, 0) * interval '1 second',
            case when n.status in ('completed', 'failed') then now() end,
            coalesce(
                n.wake_at,
                least(
                    now() + n.wake_after * interval '1 second',
                    coalesce(n.deadline_at, now() + n.deadline_after * interval '1 second')
                )
            ),
            coalesce(n.deadline_at, now() + n.deadline_after * interval '1 second'),
            n.event_name
        from fence as f
        join json_to_recordset(steps) as n (
            run_id uuid, position integer, step_id text, kind text, status text, output text, error text,
            attempts integer, prior_attempts integer, elapsed double precision, wake_at timestamptz,
            wake_after double precision, deadline_at timestamptz, deadline_after double precision, event_name text
        ) on n.run_id = f.run_id
        on conflict on constraint steps_pkey do update
        set position = excluded.position,
            status = excluded.status,
            output = excluded.output,
            error = case when excluded.status = 'completed' then null else coalesce(excluded.error, s.error) end,
            attempts = excluded.attempts,
            prior_attempts = excluded.prior_attempts,
            completed_at = excluded.completed_at,
            -- A wait's moment is set when it is first stored, and never moves; a poll's and a retry's next call does.
            wake_at = case
                when s.kind in ('run', 'poll') then coalesce(excluded.wake_at, s.wake_at)
                else coalesce(s.wake_at, excluded.wake_at)
            end,
            deadline_at = coalesce(s.deadline_at, excluded.deadline_at)
        where s.status <> 'completed'
    )
    select array_agg((
        f.run_id, f.action, f.step_id, f.wait_kind, f.wait_event, f.wake_after, f.output, f.error,
        f.control, f.signalled, f.interruptions
    )::pgworkflows.fenced_entry) into fenced
    from fence as f;

    if events is not null then
        update pgworkflows.events as e set consumed_at = now(), step_id = taken.step_id
        from json_to_recordset(events) as taken (run_id uuid, event_id bigint, step_id text)
        join unnest(fenced) as f on f.run_id = taken.run_id
        where e.id = taken.event_id and e.run_id = taken.run_id;
    end if;

    if exists (select from unnest(fenced) as f where f.action <> 'checkpoint' or f.control is not null) then
        perform pgworkflows.move_on(fenced);
    end if;
    if exists (select from unnest(fenced) as f where f.interruptions > 0 and f.action = 'checkpoint') then
        update pgworkflows.queue as q set interruptions = 0
        from unnest(fenced) as f
        where q.run_id = f.run_id and f.interruptions > 0 and f.action = 'checkpoint';
    end if;

    -- Only what is out of the ordinary is told: silence means written.
    select json_agg(told) into answer
    from (
        select f.run_id, 'written' as answer, f.control
        from unnest(fenced) as f
        where f.control is not null
        union all
        select e.run_id, case when q.run_id is null then 'stale' else 'locked' end, null
        from json_to_recordset(entries) as e (run_id uuid, claim_id bigint)
        left join pgworkflows.queue as q
            on q.run_id = e.run_id and q.claim_id = e.claim_id and q.worker_id = flush.worker_id
        where coalesce(cardinality(fenced), 0) < json_array_length(entries)
            and not exists (select from unnest(fenced) as f where f.run_id = e.run_id)
    ) as told;
    return answer;
end
$function$;
comment on function pgworkflows.flush(uuid, json, json, json) is
    'Make the outcomes of many runs durable, each fenced by its claim. Tells which were stale or locked, and the controls met.';

create function pgworkflows.move_on(fenced pgworkflows.fenced_entry[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $function$
#variable_conflict use_column
declare
    retried uuid[];
    ended uuid[];
    lanes text[];
begin
    -- What becomes of each run: "gone" from the queue, or pending, waiting or paused in it. An operator's word comes
    -- first: a run that was cancelled or has timed out is gone, one that was paused is parked with its outcome stored.
    with verdict as materialized (
        select f.*,
            case
                when f.control = 'cancel' then 'gone'
                when f.control = 'pause' then 'paused'
                when f.control = 'retry' then 'pending'
                when f.action in ('complete', 'fail') then 'gone'
                when f.action in ('release', 'retry') then 'pending'
                when f.wait_kind = 'event' and f.signalled then 'pending'
                when f.wait_kind = 'pause' then 'paused'
                when f.wait_kind = 'retry' or s.wake_at <= now() then 'pending'
                else 'waiting'
            end as becomes,
            case
                when f.control is not null or (f.wait_kind = 'event' and f.signalled) or f.wait_kind = 'pause' then null
                when f.action = 'suspend' then s.wake_at
                when f.action = 'retry' then now() + f.wake_after * interval '1 second'
            end as wakes
        from unnest(fenced) as f
        left join pgworkflows.steps as s
            on f.action = 'suspend' and s.run_id = f.run_id and s.step_id = f.step_id
        where f.action <> 'checkpoint' or f.control is not null
    ), gone as (
        delete from pgworkflows.queue as q using verdict as v where q.run_id = v.run_id and v.becomes = 'gone'
    ), moved as (
        update pgworkflows.queue as q
        set status = v.becomes,
            claim_id = null,
            worker_id = null,
            control = null,
            rank = case when v.action = 'release' then q.rank else greatest(v.wakes, now()) + (q.rank - q.ready_at) end,
            ready_at = case when v.action = 'release' then q.ready_at else greatest(v.wakes, now()) end,
            wake_at = case when v.wakes > now() then v.wakes end,
            wait_kind = case when v.becomes = 'waiting' or (v.becomes = 'paused' and v.control is null) then v.wait_kind end,
            wait_event = case when v.becomes = 'waiting' then v.wait_event end,
            interruptions = case when v.action = 'release' then q.interruptions else 0 end
        from verdict as v
        where q.run_id = v.run_id and v.becomes <> 'gone'
        returning q.run_id, q.queue, q.status, q.wake_at
    ), shown as (
        update pgworkflows.runs as r
        set status = case
                when v.control is not null then r.status
                when v.action = 'complete' then 'completed'
                when v.action = 'fail' then 'failed'
                else v.becomes
            end,
            output = case when v.control is null and v.action = 'complete' then v.output::json else r.output end,
            error = case
                -- A retry by hand takes back the failure that it finds here, also one that came after the end.
                when v.control = 'cancel' and v.action in ('fail', 'retry') then json_build_object(
                    'type', coalesce(r.error, v.error::json) -> 'type',
                    'message', coalesce(r.error, v.error::json) -> 'message',
                    'traceback', coalesce(r.error, v.error::json) -> 'traceback',
                    'step_id', v.error::json -> 'step_id'
                )
                when v.control = 'retry' and v.action in ('fail', 'retry') then v.error::json
                when v.control is not null then r.error
                when v.action = 'complete' then null
                when v.action in ('fail', 'retry') then v.error::json
                else r.error
            end,
            completed_at = case
                when v.control is null and v.action in ('complete', 'fail') then now()
                else r.completed_at
            end,
            retry_count = case when v.control is null and v.action = 'retry' then r.retry_count + 1 else r.retry_count end,
            scheduled_at = case when v.control is null and v.action = 'retry' then v.wakes else r.scheduled_at end,
            paused_at = case when v.control is null and v.becomes = 'paused' then now() else r.paused_at end,
            current_step_id = coalesce(
                v.step_id,
                case when v.becomes in ('paused', 'gone') then pgworkflows.last_step(r.id) end,
                r.current_step_id
            ),
            updated_at = now()
        from verdict as v
        where r.id = v.run_id
    )
    select
        -- A step that failed after its run was cancelled and retried was told to stop: it is done again, too.
        (
            select array_agg(v.run_id) from verdict as v
            where (v.action = 'retry' and v.control is null) or (v.action in ('fail', 'retry') and v.control = 'retry')
        ),
        (select array_agg(v.run_id) from verdict as v where v.control = 'cancel'),
        (select array_agg(distinct m.queue) from moved as m where m.status = 'pending' and m.wake_at is null)
    into retried, ended, lanes;
    if retried is not null then
        perform pgworkflows.take_back_failures(retried);
    end if;
    if ended is not null then
        perform pgworkflows.end_waits(ended);
    end if;
    if lanes is not null then
        perform pgworkflows.wake_workers(lane, false) from unnest(lanes) as lane;
    end if;
end
$function$;
comment on function pgworkflows.move_on(pgworkflows.fenced_entry[]) is
    'End, suspend, release or retry the runs of a flush whose queue rows are locked.';

create function pgworkflows.register_worker(
    worker_id uuid,
    hostname text,
    pid integer,
    queues text[],
    has_lock boolean,
    lease interval
) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    insert into pgworkflows.workers (id, hostname, pid, queues, has_lock, lease)
    values (worker_id, hostname, pid, queues, has_lock, lease)
    on conflict (id) do nothing -- sent again: the answer to the first was lost
$function$;
comment on function pgworkflows.register_worker(uuid, text, integer, text[], boolean, interval) is 'Enter a worker among the live.';

create function pgworkflows.beat(worker_id uuid) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    answer json;
begin
    update pgworkflows.workers as w set beats = w.beats + 1, heartbeat_at = clock_timestamp()
    where w.id = beat.worker_id;
    if not found then
        return json_build_object('alive', false);
    end if;
    select json_build_object(
        'alive', true,
        'controls', (
            select json_agg(json_build_object('run_id', q.run_id, 'claim_id', q.claim_id, 'control', q.control))
            from pgworkflows.queue as q
            where q.worker_id = beat.worker_id and q.control is not null
        ),
        'peers', (
            select json_agg(json_build_object(
                'worker_id', w.id,
                'beats', w.beats,
                'lease', extract(epoch from w.lease),
                'lapsed', not w.has_lock and w.heartbeat_at + w.lease < clock_timestamp(),
                'locked', w.has_lock and exists (
                    select from pg_locks as l
                    where l.locktype = 'advisory'
                        and l.objsubid = 1
                        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
                        and (l.classid::bigint << 32 | l.objid::bigint) = pgworkflows.worker_lock_key(w.id)
                ),
                'has_lock', w.has_lock
            ))
            from pgworkflows.workers as w
            where w.id <> beat.worker_id
        )
    ) into answer;
    return answer;
end
$function$;
comment on function pgworkflows.beat(uuid) is 'A worker''s heartbeat: it learns whether it lives, what is asked of its runs, and how its peers are.';

create function pgworkflows.declare_dead(worker_id uuid, beats bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    died boolean;
begin
    -- A heartbeat in the meantime saves it.
    delete from pgworkflows.workers as w where w.id = declare_dead.worker_id and w.beats = declare_dead.beats;
    died := found;
    if died then
        delete from pgworkflows.sleepers as s where s.worker_id = declare_dead.worker_id;
    end if;
    return died;
end
$function$;
comment on function pgworkflows.declare_dead(uuid, bigint) is 'Strike a worker from the live, unless it has beaten since. It is final.';

create function pgworkflows.give_back(run_ids uuid[], died boolean) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    failed uuid[];
    ended uuid[];
    lanes text[];
    given integer;
begin
    -- The caller has locked the queue rows.
    with row_of as materialized (
        select q.run_id, q.queue, q.control, q.interruptions + died::integer as interruptions
        from pgworkflows.queue as q
        where q.run_id = any (give_back.run_ids)
    ), gone as (
        delete from pgworkflows.queue as q using row_of as o
        where q.run_id = o.run_id and (o.control = 'cancel' or (o.control is null and o.interruptions >= 10))
    ), moved as (
        update pgworkflows.queue as q
        set status = case when o.control = 'pause' then 'paused' else 'pending' end,
            claim_id = null,
            worker_id = null,
            control = null,
            interruptions = o.interruptions
        from row_of as o
        where q.run_id = o.run_id and not (o.control is null and o.interruptions >= 10)
            and o.control is distinct from 'cancel'
    ), shown as (
        update pgworkflows.runs as r
        set status = case when o.interruptions >= 10 then 'failed' else 'pending' end,
            error = case
                when o.interruptions >= 10 then json_build_object(
                    'type', 'WorkerDiedError',
                    'message', format(
                        'run %s was taken over %s times from a worker that died before its next checkpoint; '
                        'see that its next step does not end the process, then retry the run',
                        r.id, o.interruptions
                    ),
                    'traceback', null,
                    'step_id', null
                )
                else r.error
            end,
            current_step_id = case when o.interruptions >= 10 then pgworkflows.last_step(r.id) else r.current_step_id end,
            completed_at = case when o.interruptions >= 10 then now() end,
            updated_at = now()
        from row_of as o
        where r.id = o.run_id and o.control is null
    )
    select
        (select count(*) from row_of),
        (
            select array_agg(o.run_id) from row_of as o
            where o.control = 'cancel' or (o.control is null and o.interruptions >= 10)
        ),
        (select array_agg(distinct o.queue) from row_of as o)
    into given, ended, lanes;
    if ended is not null then
        perform pgworkflows.end_waits(ended);
    end if;
    perform pgworkflows.wake_workers(lane, false) from unnest(lanes) as lane;
    return given;
end
$function$;
comment on function pgworkflows.give_back(uuid[], boolean) is
    'Return claimed runs to the queue; those whose workers died ten times in a row fail.';

create function pgworkflows.take_over() returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    dead uuid[];
    orphans uuid[];
begin
    -- A worker that was struck just when it fell asleep has left its announcement: every start would send a NOTIFY to
    -- nobody.
    delete from pgworkflows.sleepers as s
    where not exists (select from pgworkflows.workers as w where w.id = s.worker_id);
    -- A worker's id is never used again: who is dead stays dead. "not exists" must not be asked while locking, for a row
    -- that another worker has taken over and claimed since would pass it once more.
    select array_agg(distinct q.worker_id) into dead
    from pgworkflows.queue as q
    where q.worker_id is not null and not exists (select from pgworkflows.workers as w where w.id = q.worker_id);
    if dead is null then
        return 0;
    end if;
    with orphan as (
        select q.run_id from pgworkflows.queue as q
        where q.worker_id = any (dead)
        for no key update of q skip locked
    )
    select array_agg(orphan.run_id) into orphans from orphan;
    if orphans is null then
        return 0;
    end if;
    return pgworkflows.give_back(orphans, true);
end
$function$;
comment on function pgworkflows.take_over() is 'Return the runs that dead workers hold to the queue.';

create function pgworkflows.release_unheld(worker_id uuid, held uuid[]) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    unheld uuid[];
begin
    with found as (
        select q.run_id from pgworkflows.queue as q
        where q.worker_id = release_unheld.worker_id and q.run_id <> all (held)
        for no key update skip locked
    )
    select array_agg(found.run_id) into unheld from found;
    if unheld is null then
        return 0;
    end if;
    return pgworkflows.give_back(unheld, false);
end
$function$;
comment on function pgworkflows.release_unheld(uuid, uuid[]) is
    'Return the runs that bear a worker''s id but that it does not know of: the answer to its claim was lost.';

create function pgworkflows.unregister_worker(worker_id uuid) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
begin
    delete from pgworkflows.workers as w where w.id = unregister_worker.worker_id;
    delete from pgworkflows.sleepers as s where s.worker_id = unregister_worker.worker_id;
end
$function$;
comment on function pgworkflows.unregister_worker(uuid) is 'Strike a worker that has stopped.';
