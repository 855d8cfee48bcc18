-- oldest code: 5
-- squawk-ignore-file require-concurrent-index-creation, ban-drop-function, changing-column-type, ban-drop-column
-- squawk-ignore-file ban-drop-constraint, adding-field-with-default, ban-create-domain-with-constraint, constraint-missing-not-valid
-- Nothing was published before it: the tables that it rewrites are nobody's yet.
-- Cheaper statements: what may stand in a column is said by domains, and claims look above a mark.

-- A table's check is read anew, from the catalog's text, by each statement that writes to it: those of runs, queue and
-- steps cost a start half of its time. A domain's is read once a session. What needs several columns stays with the
-- table.
create domain pgworkflows.identifier as text
constraint identifier_has_1_to_256_characters check (length(value) between 1 and 256);
create domain pgworkflows.run_status as text
constraint run_status_is_known check (
    value in ('pending', 'running', 'waiting', 'paused', 'completed', 'failed', 'cancelled')
);
create domain pgworkflows.queue_status as text
constraint queue_status_is_known check (value in ('pending', 'running', 'waiting', 'paused'));
create domain pgworkflows.wait_kind as text
constraint wait_kind_is_known check (value in ('event', 'timer', 'poll', 'pause', 'retry', 'child'));
create domain pgworkflows.control as text
constraint control_is_known check (value in ('pause', 'cancel', 'retry'));
create domain pgworkflows.step_kind as text
constraint step_kind_is_known check (
    value in ('run', 'wait_for', 'wait_until', 'delay', 'pause', 'poll', 'invoke_child_workflow')
);
create domain pgworkflows.step_status as text
constraint step_status_is_known check (value in ('waiting', 'retrying', 'completed', 'failed', 'cancelled'));
create domain pgworkflows.priority as integer
constraint priority_within_1000 check (value between -1000 and 1000);
create domain pgworkflows.number as integer
constraint number_not_negative check (value >= 0);

alter table pgworkflows.runs
drop column singleton_key,
drop constraint runs_names_have_1_to_256_characters,
drop constraint runs_priority_within_1000,
drop constraint runs_retries_not_negative,
drop constraint runs_status_is_known,
alter column workflow_id type pgworkflows.identifier,
alter column resource_id type pgworkflows.identifier,
alter column idempotency_key type pgworkflows.identifier,
alter column queue type pgworkflows.identifier,
alter column status type pgworkflows.run_status,
alter column priority type pgworkflows.priority,
alter column retry_count type pgworkflows.number,
alter column max_retries type pgworkflows.number;
alter table pgworkflows.runs
add column singleton_key text generated always as (
    case when singleton and completed_at is null then workflow_id end
) stored;
create unique index runs_singleton on pgworkflows.runs (singleton_key) where singleton_key is not null;
comment on column pgworkflows.runs.singleton_key is
    'The workflow of an unfinished singleton run: unique, so that there is one at most.';

alter table pgworkflows.queue
drop constraint queue_status_is_known,
drop constraint queue_wait_is_known,
drop constraint queue_control_is_for_a_claim,
alter column status type pgworkflows.queue_status,
alter column wait_kind type pgworkflows.wait_kind,
alter column control type pgworkflows.control,
add constraint queue_control_is_for_a_claim check (control is null or claim_id is not null);

alter table pgworkflows.steps
drop constraint steps_id_has_1_to_256_characters,
drop constraint steps_kind_is_known,
drop constraint steps_status_is_known,
alter column step_id type pgworkflows.identifier,
alter column kind type pgworkflows.step_kind,
alter column status type pgworkflows.step_status;

alter table pgworkflows.events
drop constraint events_names_have_1_to_256_characters,
alter column name type pgworkflows.identifier,
alter column idempotency_key type pgworkflows.identifier;

-- A long transaction elsewhere keeps every dead index entry of the queue. Claims then begin to look above a mark, below
-- which nothing is left; a full look from time to time finds what came there late.

-- A heartbeat asks for the controls of its worker's runs: without walking over all that the worker ever had.
create index queue_controls on pgworkflows.queue (worker_id) where control is not null;

create function pgworkflows.low_water(queues text[], workflows text[]) returns timestamptz
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    head_start interval;
begin
    -- The largest head start in use: that of the workflows, and of the latest starts.
    select max(p.priority) * interval '1 second' into head_start
    from (
        select 0 as priority
        union all
        select w.priority from pgworkflows.workflows as w
        union all
        (select r.priority from pgworkflows.runs as r order by r.id desc limit 1000)
    ) as p;
    return (
        select least(
            -- What commits within five seconds after it was made ready is above the mark.
            clock_timestamp() - interval '5 seconds' - head_start,
            (
                select min(ready.rank)
                from unnest(queues) as lane (queue)
                cross join unnest(workflows) as known (workflow_id)
                cross join lateral (
                    select q.rank
                    from pgworkflows.queue as q
                    where q.status = 'pending' and q.wake_at is null
                        and q.queue = lane.queue and q.workflow_id = known.workflow_id
                    order by q.rank
                    limit 1
                ) as ready
            ),
            (select q.wake_at from pgworkflows.queue as q where q.wake_at is not null order by q.wake_at limit 1)
                - interval '1 us',
            (select q.timeout_at from pgworkflows.queue as q where q.timeout_at is not null order by q.timeout_at limit 1)
                - interval '1 us'
        )
    );
end
$function$;
comment on function pgworkflows.low_water(text[], text[]) is
    'The rank and the time below which nothing in these lanes is ready or due, but for what commits late.';

drop function pgworkflows.claim(uuid, text[], text[], integer, boolean, boolean);
drop function pgworkflows.wake_due();

create function pgworkflows.wake_due(since timestamptz default '-infinity') returns void
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
    if exists (select from pgworkflows.queue as q where q.timeout_at > since and q.timeout_at <= now()) then
        select array_agg(due.run_id) into late
        from (
            select q.run_id from pgworkflows.queue as q
            where q.timeout_at > since and q.timeout_at <= now()
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
    if exists (select from pgworkflows.queue as q where q.wake_at > since and q.wake_at <= now()) then
        with due as (
            select q.run_id from pgworkflows.queue as q
            where q.wake_at > since and q.wake_at <= now()
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
comment on function pgworkflows.wake_due(timestamptz) is
    'Make the rows ready whose time has come since then, and fail the runs that are out of time.';

create function pgworkflows.claim(
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
            from pgworkflows.runs as r
            join pgworkflows.queue as q on q.run_id = r.id
            where r.id = any (claimed)
        ) end
    ) into answer;
    return answer;
end
$function$;
comment on function pgworkflows.claim(uuid, text[], text[], integer, boolean, boolean, timestamptz) is
    'Wake what is due, then claim ready runs, and return them with their histories. With "since" only what is ready or due '
    'since then; without it everything, and where that took long, a mark for the next claims.';

-- The same as before in fewer statements: where nothing but steps is written, in one.
create or replace function pgworkflows.flush(
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
    moves boolean;
    invokes boolean;
    redeems boolean;
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
        -- For each entry a look at its row: never through the whole index, which may be full of dead entries.
        cross join lateral (
            select q.control, q.signal, q.interruptions
            from pgworkflows.queue as q
            where q.run_id = e.run_id and q.claim_id = e.claim_id and q.worker_id = flush.worker_id
            for no key update skip locked
        ) as q
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
    )::pgworkflows.fenced_entry),
        bool_or(f.action <> 'checkpoint' or f.control is not null),
        bool_or(f.child is not null),
        bool_or(f.action = 'checkpoint' and f.interruptions > 0)
    into fenced, moves, invokes, redeems
    from fence as f;

    if events is not null then
        update pgworkflows.events as e set consumed_at = now(), step_id = taken.step_id
        from json_to_recordset(events) as taken (run_id uuid, event_id bigint, step_id text)
        join unnest(fenced) as f on f.run_id = taken.run_id
        where e.id = taken.event_id and e.run_id = taken.run_id;
    end if;

    if moves then
        if invokes then
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
    if redeems then
        update pgworkflows.queue as q set interruptions = 0
        from unnest(fenced) as f
        where q.run_id = f.run_id and f.interruptions > 0 and f.action = 'checkpoint';
    end if;

    -- Only what is out of the ordinary is told: silence means written.
    if busy is null and not coalesce(moves and exists (select from unnest(fenced) as f where f.control is not null), false)
        and coalesce(cardinality(fenced), 0) = json_array_length(entries)
    then
        return null;
    end if;
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
