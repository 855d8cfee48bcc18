-- The workflows whose finished runs are not kept for ever, and for how many seconds they are.
select w.id, extract(epoch from w.retention)::text from pgworkflows.workflows as w where w.retention is not null
