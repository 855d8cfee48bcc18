-- Return the runs that bear the worker's id but that it does not know of.
select pgworkflows.release_unheld(worker_id => %s::uuid, held => %s::uuid[])
