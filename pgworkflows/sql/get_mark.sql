-- The time, and which transactions have ended. Locks nothing.
select json_build_object('now', clock_timestamp(), 'snapshot', pg_current_snapshot()::text)::text
