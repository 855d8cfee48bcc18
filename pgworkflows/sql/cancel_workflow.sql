-- End an unfinished run. Locks the run's queue row, then the run.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_cancel_workflow(run_id => %s::uuid, resource_id => %s, borrowed => %s::boolean) as o
