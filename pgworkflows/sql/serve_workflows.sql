-- Store what a worker says of its workflows, and that it serves them. Locks their rows and its own.
select pgworkflows.serve_workflows(%s::uuid, %s::text[], %s::json)
