-- Take the lock that shows that the worker lives; it ends with the session.
select pg_catalog.pg_try_advisory_lock(pgworkflows.worker_lock_key(%s::uuid)), pgworkflows.channel()
