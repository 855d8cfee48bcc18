-- oldest code: 4
-- squawk-ignore-file ban-drop-function, ban-drop-constraint, constraint-missing-not-valid
-- Child workflows. A child's row, its place in the queue and its parent's wait commit together, and so do a child's end
-- and what wakes its parent. Queue rows are locked from the parent down; whoever must not wait skips what is locked and
-- comes back.

alter table pgworkflows.queue
drop constraint queue_wait_is_known,
add constraint queue_wait_is_known check (
    wait_kind in ('event', 'timer', 'poll', 'pause', 'retry', 'child')
);
comment on column pgworkflows.queue.wait_kind is
    'What the run waits for: event, timer, poll, pause (a pause step), retry or child.';
comment on column pgworkflows.queue.wait_event is
    'The name of the event it waits for, or the step whose child it waits for.';
comment on column pgworkflows.runs.status is
    'pending (ready, or waiting for its retry time or scheduled_at), running, waiting (for an event, a time, a poll, a '
    'child), paused, completed, failed or cancelled.';

alter type pgworkflows.fenced_entry add attribute child json;

create function pgworkflows.tell_parents(run_ids uuid[], borrowed boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    lanes text[];
    moment timestamptz := clock_timestamp();
begin
    -- The caller has locked the parents, and holds the locks of the children's queue rows.
    with parent as materialized (
        select q.run_id,
            bool_or(q.status = 'waiting' and q.wait_kind = 'child' and q.wait_event = c.parent_step_id) as wakes
        from pgworkflows.runs as c
        join pgworkflows.queue as q on q.run_id = c.parent_run_id
        where c.id = any (tell_parents.run_ids)
        group by q.run_id
    ), moved as (
        update pgworkflows.queue as q
        set status = case when p.wakes then 'pending' else q.status end,
            rank = case when p.wakes then moment + (q.rank - q.ready_at) else q.rank end,
            ready_at = case when p.wakes then moment else q.ready_at end,
            wait_kind = case when p.wakes then null else q.wait_kind end,
            wait_event = case when p.wakes then null else q.wait_event end,
            signal = q.signal + 1
        from parent as p
        where q.run_id = p.run_id
        returning q.run_id, q.queue, p.wakes
    ), shown as (
        update pgworkflows.runs as r set status = 'pending', updated_at = moment
        from moved as m
        where r.id = m.run_id and m.wakes
    )
    select array_agg(distinct m.queue) into lanes from moved as m where m.wakes;
    perform pgworkflows.wake_workers(lane, borrowed) from unnest(lanes) as lane;
end
$function$;
comment on function pgworkflows.tell_parents(uuid[], boolean) is
    'Wake the parents that wait for these runs, which have just ended.';

create function pgworkflows.lock_parent(run_id uuid) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
begin
    for attempt in 1 .. 100 loop
        perform from pgworkflows.queue as q where q.run_id = lock_parent.run_id for no key update;
        exit when found;
        -- One that has ended has no row. It must not be retried before it can see how its child has ended. Of those who
        -- lock or change runs, only retries and deletions wait for a key share lock.
        perform from pgworkflows.runs as r
        where r.id = lock_parent.run_id and r.status in ('completed', 'failed', 'cancelled')
        for key share;
        exit when not exists (select from pgworkflows.queue as q where q.run_id = lock_parent.run_id);
    end loop;
end
$function$;
comment on function pgworkflows.lock_parent(uuid) is
    'Lock the queue row of a run whose child is going to end; if it has ended itself, the run, so that nobody retries it.';

create function pgworkflows.lock_parents(run_ids uuid[]) returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    held uuid[] := array(
        select q.run_id from pgworkflows.queue as q where q.run_id = any (run_ids) for no key update skip locked
    );
    ended uuid[];
begin
    run_ids := array(select unnest(run_ids) except select unnest(held));
    if cardinality(run_ids) = 0 then
        return null;
    end if;
    ended := array(
        select r.id from pgworkflows.runs as r
        where r.id = any (run_ids)
            and r.status in ('completed', 'failed', 'cancelled')
            and not exists (select from pgworkflows.queue as q where q.run_id = r.id)
        for key share of r skip locked
    );
    return (
        select array_agg(r.id) from pgworkflows.runs as r
        where r.id = any (run_ids)
            and (r.id <> all (ended) or exists (select from pgworkflows.queue as q where q.run_id = r.id))
    );
end
$function$;
comment on function pgworkflows.lock_parents(uuid[]) is
    'The same for many runs without waiting: those that somebody else has; null if there are none.';

create function pgworkflows.lock_family(run_id uuid, patient boolean) returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    family uuid[] := '{}';
    level uuid[] := array[run_id];
    below uuid[];
begin
    -- The caller holds the lock of the run's queue row. Children are begun under the lock of their parent's: once a level
    -- is locked, the next one is complete.
    loop
        select array_agg(r.id order by r.id) into below
        from pgworkflows.runs as r
        where r.parent_run_id = any (level) and r.status not in ('completed', 'failed', 'cancelled');
        exit when below is null;
        if patient then
            perform from pgworkflows.queue as q where q.run_id = any (below) order by q.run_id for no key update;
        else
            select array_agg(got.run_id) into level
            from (
                select q.run_id from pgworkflows.queue as q where q.run_id = any (below) for no key update skip locked
            ) as got;
            if exists (
                select from pgworkflows.queue as q where q.run_id = any (below) and q.run_id <> all (coalesce(level, '{}'))
            ) then
                return null;
            end if;
        end if;
        level := below;
        family := family || below;
    end loop;
    return family;
end
$function$;
comment on function pgworkflows.lock_family(uuid, boolean) is
    'Lock the queue rows of a run''s unfinished children and theirs: which they are; null if that would mean waiting.';

create function pgworkflows.cancel_family(run_ids uuid[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    moment timestamptz := clock_timestamp();
begin
    update pgworkflows.queue as q set control = 'cancel', timeout_at = null
    where q.run_id = any (run_ids) and q.status = 'running';
    delete from pgworkflows.queue as q where q.run_id = any (run_ids) and q.status <> 'running';
    update pgworkflows.runs as r set status = 'cancelled', completed_at = moment, updated_at = moment
    where r.id = any (run_ids) and r.status not in ('completed', 'failed', 'cancelled');
    perform pgworkflows.end_waits(run_ids);
end
$function$;
comment on function pgworkflows.cancel_family(uuid[]) is 'Cancel runs whose queue rows are locked.';

create function pgworkflows.invoke_child(
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
            timeout, timeout_at, parent_run_id, parent_step_id, headers, created_at, updated_at
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
comment on function pgworkflows.invoke_child(pgworkflows.fenced_entry, pgworkflows.terms) is
    'Begin the child of a step, or retry that of a step that is done again. A refusal fails the step. Raises 55P03 while '
    'somebody holds what it needs.';

create function pgworkflows.invoke_children(fenced pgworkflows.fenced_entry[]) returns pgworkflows.fenced_entry[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set lock_timeout = '20ms' -- a flush waits for nobody, and a client that waits for one of its rows least of all
as $function$
#variable_conflict use_column
declare
    entry pgworkflows.fenced_entry;
    terms pgworkflows.terms;
    lanes text[] := '{}';
    held_over uuid[] := '{}';
begin
    for i in 1 .. cardinality(fenced) loop
        entry := fenced[i];
        continue when entry.child is null;
        if entry.control is not null then
            -- Cancelled, paused or retried meanwhile: the child is not begun, and the step was not reached.
            delete from pgworkflows.steps as s
            where s.run_id = entry.run_id and s.step_id = entry.step_id and s.child_run_id is null;
            entry.step_id := null;
            fenced[i] := entry;
            continue;
        end if;
        terms := pgworkflows.terms_of(
            entry.child ->> 'workflow_id',
            null,
            (entry.child ->> 'priority')::integer,
            (entry.child ->> 'retries')::integer,
            (entry.child ->> 'timeout')::interval,
            null,
            entry.child -> 'fallback'
        );
        if entry.child ->> 'idempotency_key' is null
            and not terms.singleton
            and not exists (
                select from pgworkflows.runs as r
                where r.parent_run_id = entry.run_id and r.parent_step_id = entry.step_id
            )
        then
            -- There is nothing that somebody else could hold.
            fenced[i] := pgworkflows.invoke_child(entry, terms);
        else
            begin
                fenced[i] := pgworkflows.invoke_child(entry, terms);
            exception when lock_not_available then
                -- The step is not reached before it is sent again: its worker may die.
                delete from pgworkflows.steps as s
                where s.run_id = entry.run_id and s.step_id = entry.step_id and s.child_run_id is null;
                held_over := held_over || entry.run_id;
                -- One wait is enough for all that are held up.
                perform set_config('lock_timeout', '1ms', true);
            end;
        end if;
        lanes := lanes || terms.queue;
    end loop;
    -- A child that was cancelled and is retried here may be let go of by this very flush, which has read its control
    -- before: it would delete the row of a run that is pending.
    for i in 1 .. cardinality(fenced) loop
        if fenced[i].control is not null then
            entry := fenced[i];
            select q.control into entry.control from pgworkflows.queue as q where q.run_id = entry.run_id;
            fenced[i] := entry;
        end if;
    end loop;
    perform pgworkflows.wake_workers(lane, false) from (select distinct lane from unnest(lanes) as lane) as each;
    if cardinality(held_over) > 0 then
        return array(select f from unnest(fenced) as f where f.run_id <> all (held_over));
    end if;
    return fenced;
end
$function$;
comment on function pgworkflows.invoke_children(pgworkflows.fenced_entry[]) is
    'Begin the children of a flush whose queue rows are locked, or have those of steps that are done again retried. '
    'Entries whose children somebody holds up are left out of the answer: they are held over.';

drop function pgworkflows.flush(uuid, json, json, json);

create function pgworkflows.flush(
    worker_id uuid,
    entries json,
    steps json,
    events json,
    parents uuid[]
) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $function$
#variable_conflict use_column
declare
    fenced pgworkflows.fenced_entry[];
    busy uuid[];
    answer json;
begin
    -- A child's end writes to its parent's queue row, too. Where somebody holds that, the end is held over; the steps are
    -- written all the same.
    if parents is not null then
        busy := pgworkflows.lock_parents(parents);
    end if;
    -- Lock the queue rows that are still this worker's, and write only for those.
    with entry as materialized (
        select * from json_to_recordset(entries) as e (
            run_id uuid, claim_id bigint, action text, signal integer, step_id text, wait_kind text, wait_event text,
            wake_after double precision, output text, error text, child json, parent_run_id uuid
        )
    ), fence as materialized (
        select e.run_id, case when e.parent_run_id = any (busy) then 'checkpoint' else e.action end as action, e.step_id, e.wait_kind, e.wait_event, e.wake_after, e.output, e.error,
            q.control, q.signal <> e.signal as signalled, q.interruptions, e.child
        from entry as e
        join pgworkflows.queue as q on q.run_id = e.run_id
        where q.claim_id = e.claim_id and q.worker_id = flush.worker_id
        for no key update of q skip locked
    ), saved as (
        insert into pgworkflows.steps as s (
            run_id, position, step_id, kind, status, output, error, attempts, prior_attempts,
            started_at, completed_at, wake_at, deadline_at, event_name, child_run_id
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
            n.event_name,
            -- Its row is there with its child, unless its run was cancelled and retried since the claim.
            case when n.kind = 'invoke_child_workflow' and n.status in ('completed', 'failed') then (
                select c.id from pgworkflows.runs as c
                where c.parent_run_id = n.run_id and c.parent_step_id = n.step_id
            ) end
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
        f.control, f.signalled, f.interruptions, f.child
    )::pgworkflows.fenced_entry) into fenced
    from fence as f;

    if events is not null then
        update pgworkflows.events as e set consumed_at = now(), step_id = taken.step_id
        from json_to_recordset(events) as taken (run_id uuid, event_id bigint, step_id text)
        join unnest(fenced) as f on f.run_id = taken.run_id
        where e.id = taken.event_id and e.run_id = taken.run_id;
    end if;

    if exists (select from unnest(fenced) as f where f.action <> 'checkpoint' or f.control is not null) then
        if exists (select from unnest(fenced) as f where f.child is not null) then
            fenced := pgworkflows.invoke_children(fenced);
        end if;
        perform pgworkflows.move_on(fenced);
        if parents is not null then
            perform pgworkflows.tell_parents(
                array(
                    select f.run_id from unnest(fenced) as f
                    where f.action in ('complete', 'fail') and f.control is null
                ),
                false
            );
        end if;
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
        union all
        select e.run_id, 'locked', null
        from json_to_recordset(entries) as e (run_id uuid, parent_run_id uuid)
        join unnest(fenced) as f on f.run_id = e.run_id
        where busy is not null and e.parent_run_id = any (busy) and f.control is null
    ) as told;
    return answer;
end
$function$;
comment on function pgworkflows.flush(uuid, json, json, json, uuid[]) is
    'Make the outcomes of many runs durable, each fenced by its claim. Tells which were stale or locked, and the controls met.';

create or replace function pgworkflows.move_on(fenced pgworkflows.fenced_entry[]) returns void
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
                when f.wait_kind in ('event', 'child') and f.signalled then 'pending'
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

create or replace function pgworkflows.give_back(run_ids uuid[], died boolean) returns integer
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
    child record;
begin
    -- The caller has locked the queue rows. A child that fails here tells its parent: where somebody holds that one's
    -- row, the child is left for the next time.
    for child in
        select q.run_id, r.parent_run_id
        from pgworkflows.queue as q
        join pgworkflows.runs as r on r.id = q.run_id
        where died and q.run_id = any (give_back.run_ids) and r.parent_run_id is not null
            and q.control is null and q.interruptions >= 9
    loop
        if pgworkflows.lock_parents(array[child.parent_run_id]) is not null then
            run_ids := array_remove(run_ids, child.run_id);
        end if;
    end loop;
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
        -- The others have ended before, and their parents were told: nobody has locked those here.
        (select array_agg(o.run_id) from row_of as o where o.control is null and o.interruptions >= 10),
        (select array_agg(distinct o.queue) from row_of as o)
    into given, ended, failed, lanes;
    if ended is not null then
        perform pgworkflows.end_waits(ended);
    end if;
    if failed is not null then
        perform pgworkflows.tell_parents(failed, false);
    end if;
    perform pgworkflows.wake_workers(lane, false) from unnest(lanes) as lane;
    return given;
end
$function$;

create or replace function pgworkflows.wake_due() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    late uuid[];
    lanes text[];
    related record;
    family uuid[];
    families uuid[] := '{}';
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
        -- Their parents are told and their children are cancelled. A run of whose family somebody holds a row is left for
        -- the next time.
        for related in
            select r.id, r.parent_run_id
            from pgworkflows.runs as r
            where r.id = any (late) and (
                r.parent_run_id is not null
                or exists (select from pgworkflows.runs as c where c.parent_run_id = r.id)
            )
        loop
            family := pgworkflows.lock_family(related.id, false);
            if family is null
                or (
                    related.parent_run_id is not null
                    and pgworkflows.lock_parents(array[related.parent_run_id]) is not null
                )
            then
                late := array_remove(late, related.id);
            else
                families := families || family;
            end if;
        end loop;
        families := array(select unnest(families) except select unnest(late));
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
        if cardinality(families) > 0 then
            perform pgworkflows.cancel_family(families);
        end if;
        perform pgworkflows.tell_parents(late, false);
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
        return ('in_progress', other)::pgworkflows.outcome;
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

create or replace function pgworkflows.try_fast_forward_workflow(run_id uuid, data json, resource_id text, borrowed boolean)
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
    elsif place.status = 'running' or place.wait_kind is null or place.wait_kind in ('retry', 'child') then
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
