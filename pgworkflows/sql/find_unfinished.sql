-- Planned anew each time. The same as find_runs.sql, of runs in unfinished statuses: along the queue, which is small. Locks
-- nothing.
with found as materialized (
    select seen.id, coalesce(seen.fits, false) as fits, seen.n = %(scan)s::bigint as last
    from (
        select looked.run_id as id, looked.n,
            (%(workflow_id)s::text is null or looked.workflow_id = %(workflow_id)s::text)
            and (%(queue)s::text is null or looked.queue = %(queue)s::text)
            -- What the queue says of a run that is asked to pause or to end is not yet, or no more, what its row says: it is
            -- looked up. Not by "exists": for that the planner may read the whole table of runs, once.
            and case
                when looked.control is null then looked.status
                else (select r.status::text from pgworkflows.runs as r where r.id = looked.run_id)
            end = any (%(statuses)s::text[]) as fits
        from (
            -- One branch is on; its order is the order of the numbers.
            select branch.*, row_number() over () as n
            from (
                (
                    select q.run_id, q.workflow_id, q.queue, q.status::text, q.control
                    from pgworkflows.queue as q
                    where not %(newer)s::boolean and q.run_id >= %(first)s::uuid and q.run_id <= %(last)s::uuid
                    order by q.run_id desc
                    limit %(scan)s::bigint
                )
                union all
                (
                    select q.run_id, q.workflow_id, q.queue, q.status::text, q.control
                    from pgworkflows.queue as q
                    where %(newer)s::boolean and q.run_id >= %(first)s::uuid and q.run_id <= %(last)s::uuid
                    order by q.run_id
                    limit %(scan)s::bigint
                )
            ) as branch
        ) as looked
    ) as seen
    -- No order is asked for here: it is that of the numbers, and what is not needed is not looked at.
    where seen.fits or seen.n = %(scan)s::bigint
    limit %(limit)s::bigint
)
-- The runs; or in one row how many they are, and which was the last to be looked at.
select f.id::text, f.fits::integer as runs,
    case when f.fits then (select row_to_json(r)::text from pgworkflows.runs as r where r.id = f.id) end, f.last
from found as f
where %(rows)s::boolean
union all
select max(f.id::text) filter (where f.last), count(*) filter (where f.fits), null, coalesce(bool_or(f.last), false)
from found as f
having not %(rows)s::boolean
