-- Strike a worker that has stopped.
select pgworkflows.unregister_worker(worker_id => %s::uuid)
