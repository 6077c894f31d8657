"""A whole cluster on one machine: namespaces, a real store, real connections, and a failure to watch."""
