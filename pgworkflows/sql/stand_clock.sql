-- For tests only: let the schema's clock stand at a moment. Locks its one row.
update pgworkflows_test_clock.moved as m
set standing_at = %s::timestamptz - (select l.last_value from pgworkflows_test_clock.looks as l) * interval '1 us'
returning 1
