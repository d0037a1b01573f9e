"""The company: domain, roles, adapters, operations, engine, API and worker, in layers."""
