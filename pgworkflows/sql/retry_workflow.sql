-- Let a failed or cancelled run go on from its last completed step. Locks the run's queue row, then the run.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_retry_workflow(run_id => %s::uuid, resource_id => %s, borrowed => %s::boolean) as o
