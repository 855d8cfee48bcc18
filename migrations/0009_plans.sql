-- oldest code: 7
-- A flush finds each row of the queue by its id. Beside empty tables, where all plans cost the same, it was found among
-- all rows of its worker: a session that had begun so read every run in hand once for each entry.
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
        -- For each entry a look at its row, by its id: never through the whole index, which may be full of dead
        -- entries, and never by the worker, which has all the others, too. "coalesce" keeps the planner from that.
        cross join lateral (
            select q.control, q.signal, q.interruptions
            from pgworkflows.queue as q
            where q.run_id = e.run_id and q.claim_id = e.claim_id and coalesce(q.worker_id = flush.worker_id, false)
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
            on q.run_id = e.run_id and q.claim_id = e.claim_id and coalesce(q.worker_id = flush.worker_id, false)
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
