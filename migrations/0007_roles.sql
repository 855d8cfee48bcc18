-- oldest code: 7
-- squawk-ignore-file require-concurrent-index-creation, adding-not-nullable-field
-- Roles: who started a run, and what those may do who may act on their own runs only. Without roles nothing changes: these
-- functions run with their callers' rights until grant_roles.sql makes them the owner's.

create table pgworkflows.roles (
    role text primary key,
    kind text not null,
    granted_at timestamptz not null default clock_timestamp(),
    constraint roles_kind_is_known check (kind in ('client', 'worker', 'reader', 'revoked'))
);
comment on table pgworkflows.roles is 'The roles that rights were granted to; every migration grants them again.';
comment on column pgworkflows.roles.role is 'The name of the role.';
comment on column pgworkflows.roles.kind is
    'client (starts runs; reads, steers and sends events to its own), worker, or reader (reads everything); revoked while '
    'its rights are taken back.';
comment on column pgworkflows.roles.granted_at is 'When it was first granted.';

create function pgworkflows.caller() returns text
language sql stable parallel safe
return coalesce(nullif(current_setting('role'), 'none'), session_user::text);
comment on function pgworkflows.caller() is
    'Who calls, also within a function that runs with its owner''s rights: the role that was set, else the login.';

-- Existing runs are nobody's, and so are those that the owner starts: these cost no index entry.
alter table pgworkflows.runs add column started_by text;
alter table pgworkflows.runs alter column started_by
set default nullif(coalesce(nullif(current_setting('role'), 'none'), session_user::text), current_user::text);
comment on column pgworkflows.runs.started_by is
    'The role that started the run, or the run that invoked it; null if that was the owner of the schema.';
create index runs_started_by on pgworkflows.runs (started_by, id) where started_by is not null;

create function pgworkflows.may_see(started_by text) returns boolean
language sql stable parallel safe
return coalesce(
    pgworkflows.caller() = current_user::text
    or pgworkflows.caller() = started_by
    or has_sequence_privilege(pgworkflows.caller()::name, 'pgworkflows.claims'::regclass, 'usage'),
    false
);
comment on function pgworkflows.may_see(text) is
    'Whether the caller may act on the runs that a role has started: on its own, or on all if it may claim them, too.';

create function pgworkflows.shown(run pgworkflows.runs) returns pgworkflows.runs
language sql stable
set search_path = pg_catalog, pg_temp
as $function$ select case when pgworkflows.may_see(run.started_by) then run end $function$;
comment on function pgworkflows.shown(pgworkflows.runs) is 'The run that is in the way of a call, if the caller may see it.';

create function pgworkflows.is_hidden(run_id uuid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
begin
    return not exists (
        select from pgworkflows.runs as r where r.id = is_hidden.run_id and pgworkflows.may_see(r.started_by)
    );
end
$function$;
comment on function pgworkflows.is_hidden(uuid) is 'Whether a run is none of the caller''s.';

create function pgworkflows.check_start(
    inputs json[],
    terms pgworkflows.terms,
    delay interval,
    run_at timestamptz,
    schedule_tick timestamptz,
    headers json
) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
begin
    perform pgworkflows.check_times(terms.timeout, delay, run_at);
    perform pgworkflows.check_json(headers::text, 'the headers');
    perform pgworkflows.check_json(each::text, 'the input') from unnest(inputs) as each;
    if schedule_tick is not null then
        raise exception 'only a worker starts the run of a schedule''s tick' using errcode = 'insufficient_privilege';
    end if;
end
$function$;
comment on function pgworkflows.check_start(
    json[], pgworkflows.terms, interval, timestamptz, timestamptz, json
) is 'Refuse the start of a role that may call without our client, if a worker could not read what it writes.';

create or replace function pgworkflows.check_json(payload text, what text) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
begin
    -- jsonb is more strict than json: what it refuses could not be read in SQL. Python reads 500 levels at any time.
    if length(payload) > 67108864 then
        raise exception '% must have at most 67108864 characters; this one has %', what, length(payload)
            using errcode = 'invalid_parameter_value';
    end if;
    begin
        if jsonb_path_exists(payload::jsonb, '$.**{501}') is not true then
            return payload::json;
        end if;
    exception when statement_too_complex then
        -- So deep that the server itself cannot read it.
        null;
    end;
    raise exception '% must not be nested more than 500 levels deep', what
        using errcode = 'invalid_parameter_value';
end
$function$;

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
            -- What another role has started is not told of.
            if (answer.run).id is null then
                raise exception 'the idempotency key is taken by a run that another role has started'
                    using errcode = 'PW003', hint = 'Use another key for another run.';
            end if;
            raise exception 'idempotency key % is taken by run % of workflow %, resource %',
                (answer.run).idempotency_key, (answer.run).id, (answer.run).workflow_id, (answer.run).resource_id
                using errcode = 'PW003', hint = 'Use another key for another run.';
        when 'in_progress' then
            if (answer.run).id is null then
                raise exception 'the workflow is a singleton, and another role has an unfinished run of it'
                    using errcode = 'PW004', hint = 'Wait for that run.';
            end if;
            raise exception 'workflow % is a singleton, and run % of it is %',
                (answer.run).workflow_id, (answer.run).id, (answer.run).status
                using errcode = 'PW004', hint = 'Wait for that run, or cancel it.';
        else
            return answer.run;
    end case;
end
$function$;

create or replace function pgworkflows.try_start_workflow(
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
    if not pgworkflows.may_see(null) then
        perform pgworkflows.check_start(
            array[try_start_workflow.input], terms, delay, run_at, schedule_tick, try_start_workflow.headers
        );
    end if;
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
            and pgworkflows.may_see(run.started_by)
        then
            return ('existing', run)::pgworkflows.outcome;
        elsif found then
            return ('conflict', pgworkflows.shown(run))::pgworkflows.outcome;
        end if;
        select * into run from pgworkflows.runs as r
        where r.workflow_id = workflow and r.schedule_tick = try_start_workflow.schedule_tick;
        if found then
            return ('existing', run)::pgworkflows.outcome;
        end if;
        if terms.singleton then
            select * into run from pgworkflows.runs as r where r.singleton_key = workflow;
            if found then
                return ('in_progress', pgworkflows.shown(run))::pgworkflows.outcome;
            end if;
        end if;
    end loop;
    raise exception 'start_workflow lost 100 races for workflow %, idempotency key %', workflow, idempotency_key
        using errcode = 'serialization_failure';
end
$function$;

create or replace function pgworkflows.try_start_workflows(
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
    if not pgworkflows.may_see(null) then
        perform pgworkflows.check_start(
            array(select i.input from json_to_recordset(items) as i (input json)), terms, delay, run_at, null,
            try_start_workflows.headers
        );
    end if;
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
                    and named.resource_id is not distinct from try_start_workflows.resource_id
                    and pgworkflows.may_see(named.started_by),
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
        refused.run := (
            select r from pgworkflows.runs as r where r.id = (refused.run).id and pgworkflows.may_see(r.started_by)
        );
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

create or replace function pgworkflows.lock_run(run_id uuid, resource_id text) returns pgworkflows.locked_run
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    place pgworkflows.queue;
    run pgworkflows.runs;
begin
    -- Not even locked: whoever may not see a run must not hold it up either.
    if not pgworkflows.may_see(null) and pgworkflows.is_hidden(lock_run.run_id) then
        return null;
    end if;
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

create or replace function pgworkflows.try_trigger_event(
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
    if not pgworkflows.may_see(null) then
        perform pgworkflows.check_json(try_trigger_event.data::text, 'the data');
    end if;
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

create or replace function pgworkflows.try_cancel_workflow(run_id uuid, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    parent_id uuid;
    moment timestamptz := clock_timestamp();
begin
    if not pgworkflows.may_see(null) and pgworkflows.is_hidden(try_cancel_workflow.run_id) then
        return ('not_found', null)::pgworkflows.outcome;
    end if;
    -- From the parent down, like everybody who waits for such locks.
    select r.parent_run_id into parent_id from pgworkflows.runs as r where r.id = try_cancel_workflow.run_id;
    if parent_id is not null then
        perform pgworkflows.lock_parent(parent_id);
    end if;
    locked := pgworkflows.lock_run(try_cancel_workflow.run_id, try_cancel_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    elsif place.run_id is null or run.status in ('completed', 'failed', 'cancelled') then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    perform pgworkflows.cancel_family(pgworkflows.lock_family(run.id, true));
    if place.status = 'running' then
        update pgworkflows.queue as q set control = 'cancel', timeout_at = null where q.run_id = run.id;
    else
        delete from pgworkflows.queue as q where q.run_id = run.id;
    end if;
    update pgworkflows.runs as r set status = 'cancelled', completed_at = moment, updated_at = moment
    where r.id = run.id
    returning * into run;
    perform pgworkflows.end_waits(array[run.id]);
    if parent_id is not null then
        perform pgworkflows.tell_parents(array[run.id], borrowed);
    end if;
    return ('cancelled', run)::pgworkflows.outcome;
end
$function$;

create or replace function pgworkflows.try_retry_workflow(run_id uuid, resource_id text, borrowed boolean)
returns pgworkflows.outcome
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    locked pgworkflows.locked_run;
    place pgworkflows.queue;
    run pgworkflows.runs;
    other pgworkflows.runs;
    moment timestamptz := clock_timestamp();
begin
    locked := pgworkflows.lock_run(try_retry_workflow.run_id, try_retry_workflow.resource_id);
    place := locked.place;
    run := locked.run;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome;
    end if;
    -- A finished run has no queue row to lock: two retries at once meet here, and the ends of its children.
    select * into run from pgworkflows.runs as r where r.id = run.id for update;
    if run.id is null then
        return ('not_found', null)::pgworkflows.outcome; -- deleted meanwhile, for its age
    elsif run.status not in ('failed', 'cancelled') then
        return ('invalid_status', run)::pgworkflows.outcome;
    end if;
    begin
        update pgworkflows.runs as r
        set status = 'pending', retry_count = 0, completed_at = null, scheduled_at = null,
            timeout_at = pgworkflows.timeout_from(moment, r.timeout), updated_at = moment
        where r.id = run.id;
    exception when unique_violation then
        select * into other from pgworkflows.runs as r where r.singleton_key = run.workflow_id;
        if not found then
            raise exception 'retry_workflow lost a race for workflow %', run.workflow_id
                using errcode = 'serialization_failure', hint = 'Call it again.';
        end if;
        return ('in_progress', pgworkflows.shown(other))::pgworkflows.outcome;
    end;
    -- The failure is taken back and what was cancelled stands again; a wait's deadline never moves. A child that was
    -- cancelled with its parent is invoked again, which retries it.
    perform pgworkflows.take_back_failures(array[run.id]);
    delete from pgworkflows.steps as s
    where s.run_id = run.id and s.status = 'cancelled' and s.kind = 'invoke_child_workflow';
    update pgworkflows.steps as s
    set status = case when s.kind = 'run' then 'retrying' else 'waiting' end,
        prior_attempts = case when s.kind = 'run' then s.attempts else s.prior_attempts end,
        wake_at = case when s.kind = 'run' then null else s.wake_at end,
        completed_at = null
    where s.run_id = run.id and s.status = 'cancelled';
    update pgworkflows.runs as r set error = null where r.id = run.id returning * into run;
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

create or replace function pgworkflows.invoke_child(
    entry pgworkflows.fenced_entry,
    terms pgworkflows.terms
) returns pgworkflows.fenced_entry
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    parent pgworkflows.runs;
    child pgworkflows.runs;
    other pgworkflows.runs;
    answer pgworkflows.outcome;
    refusal text;
    moment timestamptz := clock_timestamp();
begin
    select * into parent from pgworkflows.runs as r where r.id = entry.run_id;
    for attempt in 1 .. 100 loop
        insert into pgworkflows.runs as r (
            workflow_id, input, resource_id, idempotency_key, queue, priority, max_retries, singleton,
            timeout, timeout_at, parent_run_id, parent_step_id, headers, started_by, created_at, updated_at
        )
        values (
            entry.child ->> 'workflow_id',
            (entry.child ->> 'input')::json,
            coalesce(entry.child ->> 'resource_id', parent.resource_id),
            entry.child ->> 'idempotency_key',
            terms.queue,
            coalesce((entry.child ->> 'priority')::integer, parent.priority),
            terms.retries,
            terms.singleton,
            terms.timeout,
            case when terms.timeout is not null then pgworkflows.timeout_from(moment, terms.timeout) end,
            entry.run_id,
            entry.step_id,
            entry.child -> 'headers',
            parent.started_by,
            moment,
            moment
        )
        on conflict do nothing
        returning * into child;
        if found then
            insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at, timeout_at)
            values (
                child.id, child.workflow_id, child.queue, moment - child.priority * interval '1 second', moment,
                child.timeout_at
            );
            exit;
        end if;
        select * into child from pgworkflows.runs as r
        where r.parent_run_id = entry.run_id and r.parent_step_id = entry.step_id;
        if found then
            -- The step is done again: so is its child, from where it failed.
            if child.status in ('failed', 'cancelled') then
                answer := pgworkflows.try_retry_workflow(child.id, null, false);
                continue when answer.outcome = 'not_found'; -- deleted meanwhile, for its age
                if answer.outcome = 'in_progress' then
                    other := answer.run;
                    refusal := 'WorkflowRunInProgressError';
                end if;
            end if;
            -- One that has ended wakes nobody any more.
            entry.signalled := entry.signalled
                or exists (
                    select from pgworkflows.runs as r
                    where r.id = child.id and r.status in ('completed', 'failed', 'cancelled')
                );
            exit;
        end if;
        select * into other from pgworkflows.runs as r
        where r.idempotency_key = entry.child ->> 'idempotency_key';
        if found then
            refusal := 'IdempotencyConflictError';
            exit;
        end if;
        select * into other from pgworkflows.runs as r
        where terms.singleton and r.singleton_key = entry.child ->> 'workflow_id';
        if found then
            refusal := 'WorkflowRunInProgressError';
            exit;
        end if;
    end loop;
    if refusal is not null then
        update pgworkflows.steps as s
        set status = 'failed',
            completed_at = now(),
            child_run_id = child.id, -- if it has one, which could not be retried
            error = json_build_object(
                'type', refusal,
                'message', case refusal
                    when 'IdempotencyConflictError' then format(
                        'idempotency key %s is taken by run %s of workflow %s, which is not the child of this step: '
                        'use another key for another run',
                        quote_literal(other.idempotency_key), other.id, quote_literal(other.workflow_id)
                    )
                    else format(
                        'workflow %s is a singleton, and run %s of it is %s: wait for it, or cancel it',
                        quote_literal(other.workflow_id), other.id, other.status
                    )
                end,
                'traceback', null,
                'step_id', entry.step_id
            )
        where s.run_id = entry.run_id and s.step_id = entry.step_id;
        entry.signalled := true;
    elsif child.id is null then
        raise exception 'step % of run % lost 100 races for its child', entry.step_id, entry.run_id
            using errcode = 'serialization_failure';
    else
        update pgworkflows.steps as s set child_run_id = child.id
        where s.run_id = entry.run_id and s.step_id = entry.step_id;
    end if;
    return entry;
end
$function$;
