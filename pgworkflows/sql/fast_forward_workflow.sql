-- Complete the wait a run is in. Locks the run's queue row, then the run.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_fast_forward_workflow(
    run_id => %s::uuid, data => %s::json, resource_id => %s, borrowed => false
) as o
