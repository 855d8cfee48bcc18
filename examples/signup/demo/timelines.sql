select case st.position when 0 then s.name end as person,
    st.step_id as step,
    st.status,
    st.attempts as calls,
    round(extract(epoch from st.started_at - r.created_at), 2) as begun_s,
    round(extract(epoch from st.completed_at - r.created_at), 2) as done_s,
    left(coalesce(st.error ->> 'message', nullif(st.output::text, 'null')), 40) as result
from signups as s
join pgworkflows.runs as r on r.id = s.run_id
join pgworkflows.steps as st on st.run_id = r.id
order by s.created_at, s.run_id, st.position
