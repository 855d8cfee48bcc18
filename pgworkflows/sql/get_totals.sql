-- Planned anew each time. How many runs were started since a time, and how many ended, and how, as JSON. Looks at the newest
-- `most` runs at most. Locks nothing.
select json_build_object(
    'looked', count(*),
    'oldest', min(looked.created_at),
    'started', count(*) filter (where looked.created_at >= %(since)s::timestamptz),
    'completed', count(*) filter (where looked.ended and looked.status = 'completed'),
    'failed', count(*) filter (where looked.ended and looked.status = 'failed'),
    'cancelled', count(*) filter (where looked.ended and looked.status = 'cancelled')
)::text
from (
    select r.created_at, r.status::text as status, r.completed_at >= %(since)s::timestamptz as ended
    from pgworkflows.runs as r
    where r.id >= %(first)s::uuid
    order by r.id desc
    limit %(most)s::bigint
) as looked
