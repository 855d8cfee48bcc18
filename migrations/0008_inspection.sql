-- oldest code: 7
-- squawk-ignore-file require-concurrent-index-creation
-- What it takes to look at many runs: indexes of failures and of what was done last, and the schema of a workflow's input.

-- None names a status or a time of runs: the end of a run that did not fail stays a heap-only update. The failures of one
-- workflow are said in other words than those of all, so that the planner does not take the one index for the other.
create index runs_failed on pgworkflows.runs (id) where error is not null;
create index runs_workflow_failed on pgworkflows.runs (workflow_id, id) where (error is null) is false;
create index steps_completed on pgworkflows.steps (completed_at) where completed_at is not null;

alter table pgworkflows.workflows add column input_schema json;
comment on column pgworkflows.workflows.input_schema is
    'The JSON Schema of its input; null if there is none, or if it was declared by code that stores none.';

create or replace function pgworkflows.declare_workflows(declarations json) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    insert into pgworkflows.workflows as w (
        id, queue, priority, retries, timeout, singleton, retention, steps, step_ids, input_schema
    )
    select d.id, d.queue, d.priority, d.retries, d.timeout, coalesce(d.singleton, false), d.retention, d.steps,
        array(select json_array_elements_text(d.step_ids)),
        -- Older code says nothing of it; that there is none is said as null in JSON.
        case when d.input_schema is null then known.input_schema else nullif(d.input_schema, 'null')::json end
    from json_to_recordset(declarations) as d (
        id text, queue text, priority integer, retries integer, timeout interval, singleton boolean,
        retention interval, steps json, step_ids json, input_schema text
    )
    left join pgworkflows.workflows as known on known.id = d.id
    order by d.id
    on conflict (id) do update
    set queue = excluded.queue, priority = excluded.priority, retries = excluded.retries, timeout = excluded.timeout,
        singleton = excluded.singleton, retention = excluded.retention, steps = excluded.steps,
        step_ids = excluded.step_ids, input_schema = excluded.input_schema, declared_at = clock_timestamp()
    where (
            w.queue, w.priority, w.retries, w.timeout, w.singleton, w.retention, w.steps::text, w.input_schema::text
        )
        is distinct from (
            excluded.queue, excluded.priority, excluded.retries, excluded.timeout, excluded.singleton,
            excluded.retention, excluded.steps::text, excluded.input_schema::text
        );
    select pgworkflows.declare_schedules(declarations)
$function$;
