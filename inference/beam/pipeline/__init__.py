"""Run mode `pipeline` on Apache Beam: reads files, runs a graph of named steps, writes sharded files."""
