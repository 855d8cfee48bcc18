-- oldest code: 7
-- Most of what a busy worker writes says no more than that a step has returned, or that a run has ended with such a step.
-- That goes by arrays, one for each column: half the work of JSON for the server, and for who spells it.

create function pgworkflows.flush_results(
    worker_id uuid,
    run_ids uuid[],
    claim_ids bigint[],
    positions integer[],
    step_ids text,
    outputs text,
    elapsed bigint[],
    ends text
) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set jit = off
set plan_cache_mode = force_generic_plan -- a plan is the same for any number of rows, and costs more than a row
as $function$
#variable_conflict use_column
declare
    ended constant text[] := string_to_array(ends, e'\x1f');
begin
    -- Lock the queue rows that are still this worker's, and of which nothing is asked. If that is not all of them, write
    -- nothing: what is out of the ordinary is for "flush".
    with result as materialized (
        select r.run_id, r.position, r.step_id, r.output, r.elapsed
        from unnest(
            run_ids, claim_ids, positions, string_to_array(step_ids, e'\x1f'), string_to_array(outputs, e'\x1f'), elapsed
        ) as r (run_id, claim_id, position, step_id, output, elapsed)
        cross join lateral (
            select from pgworkflows.queue as q
            where q.run_id = r.run_id and q.claim_id = r.claim_id
                and coalesce(q.worker_id = flush_results.worker_id, false)
                and q.control is null and q.interruptions = 0
            for no key update skip locked
        ) as q
    )
    -- Each step is new: one that was stored before, as one that is tried again is, is for "flush", too.
    insert into pgworkflows.steps (
        run_id, position, step_id, kind, status, output, attempts, prior_attempts, started_at, completed_at
    )
    select r.run_id, r.position, r.step_id, 'run', 'completed', r.output::json, 1, 0,
        now() - r.elapsed * interval '1 microsecond', now()
    from result as r
    where (select count(*) from result) = cardinality(run_ids);
    if not found then
        return false;
    end if;
    -- The runs that end come first.
    if ended is not null then
        update pgworkflows.runs as r
        set status = 'completed',
            output = e.output::json,
            error = null,
            current_step_id = e.step_id,
            completed_at = now(),
            updated_at = now()
        from unnest(
            run_ids[:cardinality(ended)], ended, (string_to_array(step_ids, e'\x1f'))[:cardinality(ended)]
        ) as e (run_id, output, step_id)
        where r.id = e.run_id;
        delete from pgworkflows.queue as q where q.run_id = any (run_ids[:cardinality(ended)]);
    end if;
    return true;
end
$function$;
comment on function pgworkflows.flush_results(uuid, uuid[], bigint[], integer[], text, text, bigint[], text) is
    'Make durable what steps of many runs have returned at their first call, each fenced by its claim; all of it, or '
    'nothing. Texts are separated by the character 1f. The runs that end with theirs come first; ends has their outputs. elapsed is in microseconds.';
