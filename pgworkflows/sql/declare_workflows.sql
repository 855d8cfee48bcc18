-- Store what this engine says of its workflows; later declarations win.
select pgworkflows.declare_workflows(%s::json)
