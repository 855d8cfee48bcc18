-- A run as JSON, its number of completed steps, of declared steps not yet completed (those of the workflow's last
-- declaration, else those given as {workflow id: [step id]}), and of live workers that have it and serve its lane.
select
    row_to_json(r)::text,
    (select count(*) from pgworkflows.steps as s where s.run_id = r.id and s.status = 'completed'),
    (
        select count(*)
        from unnest(
            coalesce(
                (select w.step_ids from pgworkflows.workflows as w where w.id = r.workflow_id),
                array(select json_array_elements_text(%s::json -> r.workflow_id))
            )
        ) as declared (step_id)
        where not exists (
            select from pgworkflows.steps as s
            where s.run_id = r.id and s.step_id = declared.step_id and s.status = 'completed'
        )
    ),
    (
        select count(*) from pgworkflows.workers as w
        where r.workflow_id = any (w.workflows) and r.queue = any (w.queues)
    )
from pgworkflows.runs as r
where r.id = %s::uuid and coalesce(r.resource_id = %s::text, %s::text is null)
