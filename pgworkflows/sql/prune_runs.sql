-- Delete what ended longer ago than an interval, out of the next batch of runs. Locks these runs, skipping locked ones.
select p.last_id, p.deleted
from pgworkflows.prune_runs(
    workflow => %(workflow)s,
    older_than => %(older_than)s::interval,
    after => %(after)s::uuid,
    batch => %(batch)s::integer
) as p
