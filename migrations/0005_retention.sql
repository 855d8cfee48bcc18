-- oldest code: 5
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion
-- Retention: finished runs are deleted in small batches, with their steps and events.

-- Events are found by their run, taken or not. That one is taken is then in no index, and costs none.
create index events_run on pgworkflows.events (run_id, id);
drop index pgworkflows.events_mailbox;

create function pgworkflows.prune_runs(workflow text, older_than interval, after uuid, batch integer)
returns table (last_id uuid, deleted integer)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
#variable_conflict use_column
declare
    horizon constant timestamptz := clock_timestamp() - prune_runs.older_than;
    -- Ids carry the time of the start: what began after the horizon has not ended before it.
    newest constant uuid := (
        lpad(to_hex(greatest(floor(extract(epoch from horizon) * 1000), 0)::bigint), 12, '0') || '00000000000000000000'
    )::uuid;
    start constant uuid := coalesce(prune_runs.after, '00000000-0000-0000-0000-000000000000');
    seen uuid[];
    doomed uuid[];
begin
    if workflow is null then
        seen := array(
            select r.id from pgworkflows.runs as r where r.id > start and r.id < newest order by r.id limit batch
        );
    else
        seen := array(
            select r.id from pgworkflows.runs as r
            where r.workflow_id = workflow and r.id > start and r.id < newest
            order by r.id
            limit batch
        );
    end if;
    -- Not while a worker has still to let go of it, and not while a parent may want to know how it ended.
    doomed := array(
        select r.id from pgworkflows.runs as r
        where r.id = any (seen)
            and r.completed_at < horizon
            and not exists (select from pgworkflows.queue as q where q.run_id = r.id)
            and not exists (select from pgworkflows.queue as q where q.run_id = r.parent_run_id)
        for update of r skip locked
    );
    delete from pgworkflows.events as e where e.run_id = any (doomed);
    delete from pgworkflows.steps as s where s.run_id = any (doomed);
    delete from pgworkflows.runs as r where r.id = any (doomed);
    return query select seen[cardinality(seen)], cardinality(doomed);
end
$function$;
comment on function pgworkflows.prune_runs(text, interval, uuid, integer) is
    'Look at a batch of runs after an id, of one workflow or of all, and delete those that ended so long ago. Answers with '
    'the last id it has looked at, null when there are no more.';
