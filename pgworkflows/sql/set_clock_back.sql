-- For tests only: let the schema's clock be the real one again. Locks its one row.
update pgworkflows_test_clock.moved set forward = '0', standing_at = null returning 1
