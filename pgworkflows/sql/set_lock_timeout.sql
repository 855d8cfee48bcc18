-- How long statements wait for a lock, in milliseconds, to the end of the transaction. Locks nothing.
select pg_catalog.set_config('lock_timeout', %s, true)
